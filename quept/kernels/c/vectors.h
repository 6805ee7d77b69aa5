/* Vectors that gcc and clang know, LANES numbers of 32 bits, and what the files that are compiled once for each
   instruction set (-DLEVEL=name) do with them. Few things are named by instructions: where a compiler would take
   numbers one by one. */

#ifndef QUEPT_VECTORS_H
#define QUEPT_VECTORS_H

#include <string.h>

#include "library.h"

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

typedef uint32_t U32 __attribute__((vector_size(4 * LANES)));
typedef int32_t I32 __attribute__((vector_size(4 * LANES)));
typedef float F32 __attribute__((vector_size(4 * LANES)));
typedef uint16_t U16 __attribute__((vector_size(2 * LANES)));
typedef uint8_t U8 __attribute__((vector_size(LANES)));
typedef int8_t I8 __attribute__((vector_size(LANES)));

INLINE U32 load(const void *from) {
    U32 v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE F32 as_float(U32 bits) { return (F32)bits; }

/* float16 -> float, finite ones; where no instruction does it the exponent is moved by a product, which is right for
   subnormals as well. */
INLINE F32 load_half(const uint16_t *from) {
#if defined(__AVX512F__)
    return (F32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#else
    U16 h;
    memcpy(&h, from, sizeof h);
    U32 bits = __builtin_convertvector(h, U32);
    F32 size = as_float((bits & 0x7fff) << 13) * 0x1p112f;
    return as_float((U32)size | (bits & 0x8000) << 16);
#endif
}

/* Bytes -> whole numbers; by name where a compiler would take them one by one. */
INLINE I32 load_bytes(const uint8_t *from) {
#if defined(__AVX512F__)
    return (I32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined(__AVX2__)
    return (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    U8 bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, I32);
#endif
}

/* The field of `width` bits that begins at bit `from` of every byte, moved to bit `to`. */
INLINE U32 field(U32 v, int from, int to, int width) {
    uint32_t mask = (((1u << width) - 1) << to) * 0x01010101u;
    return (from >= to ? v >> (from - to) : v << (to - from)) & mask;
}

/* The first n numbers, at most LANES; zeros behind them. */
INLINE F32 load_some(const float *from, int64_t n) {
    F32 v = {0};
    memcpy(&v, from, sizeof(float) * least(LANES, n));
    return v;
}

INLINE void store_some(float *to, F32 v, int64_t n) { memcpy(to, &v, sizeof(float) * least(LANES, n)); }

/* The sum of all lanes, by halves: in one order the additions would wait for each other. */
INLINE float sum_of(F32 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float part[LANES];
    memcpy(part, &v, sizeof v);
#pragma GCC unroll 4
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) part[i] += part[i + n];
    return part[0];
#endif
}

/* Numbers of 16 bits -> floats. */
INLINE F32 load_narrow(const uint16_t *from, int bits) {
    if (bits == HALF) return load_half(from);
    U16 v;
    memcpy(&v, from, sizeof v);
    return as_float(__builtin_convertvector(v, U32) << 16);
}

INLINE float narrow(uint16_t bits16, int bits) {
    uint32_t wide = (uint32_t)bits16 << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return bits == HALF ? half_to_float(bits16) : value;
}

#endif
