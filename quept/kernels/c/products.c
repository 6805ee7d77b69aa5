/* Products with packed weights (weight.h) in one instruction set: compiled once for each, with -DLEVEL=name.

   Written with the vectors that gcc and clang know, LANES numbers of 32 bits; a tile is TILE / LANES of them side
   by side. Only `dot4`, the product of bytes, names instructions.

   exact  every code becomes a float and is multiplied by the input as it is; few slices of nested codes look
          their products up.
   fast   the input is rounded to 8 bits, one scale for at most 128 columns; sums of a span are whole numbers:
          y[r] = sum over spans s of  scale[r,g] * t[s] * (sum of code * p - zero[r,g] * sum of p)            */

#include <math.h>

#include "vectors.h"

INLINE I32 load_zeros(const Weight *w, int64_t at) {
    return w->zeros ? load_bytes(w->zeros + at) : (I32){0} + 128;
}

/* Fetches what lies so far behind a line: a processor sees only a few lines ahead through the arithmetic on each, and what it
   fetches unasked ends with a page. */
enum { AHEAD = 2048 };
INLINE void fetch_behind(const void *line) { __builtin_prefetch((const char *)line + AHEAD); }

/* The lines of a block, of nested codes those of every slice that is read, `apart` bytes from each other. All are in
   registers before the first is looked into: a processor fetches ahead what is read in the order in which it lies, and
   the planes of a quad lie lines apart. */
typedef struct {
    U32 line[SLICE * SLICES];
} Lines;

INLINE Lines lines_in(const uint8_t *block, int64_t apart, int bits) {
    Lines lines;
    const int slices = is_nested(bits) ? bits - NESTED : 1, each = lines_of(bits);
#pragma GCC unroll 4
    for (int s = 0; s < slices; s++)
#pragma GCC unroll 8
        for (int i = 0; i < each; i++) {
            lines.line[s * each + i] = load(block + s * apart + LINE * i);
            if (each < 8 || LANES < TILE) fetch_behind(block + s * apart + LINE * i);
        }
    if (bits < NESTED) __asm__ volatile("" ::: "memory"); /* a compiler would read each where it is used */
    return lines;
}

/* Quad k of a block: four codes of each row, one a byte. */
INLINE U32 quad(const Lines *lines, int bits, int k) {
    const U32 *line = lines->line;
    if (bits == 8) return line[k];
    U32 codes = {0};
    if (is_nested(bits)) {
#pragma GCC unroll 4
        for (int s = 0; s < bits - NESTED; s++)
            codes |= field(line[SLICE * s + k / 4], SLICE * (k % 4), width_of(bits) - SLICE * (s + 1), SLICE);
        return codes;
    }
    if (bits & 4) codes |= field(line[k / 2], 4 * (k % 2), 0, 4);
    if (bits & 2) codes |= field(line[(bits & 4) + k / 4], 2 * (k % 4), bits & 4, 2);
    if (bits & 1) codes |= field(line[bits - 1], k, bits - 1, 1);
    return codes;
}

/* sum + the products of four codes with p[0..3], in every lane; on AVX2 see dot_block. */
#if defined(__AVX512VNNI__)
INLINE I32 dot4(I32 sum, U32 codes, const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(four));
}
#elif defined(__ARM_FEATURE_DOTPROD)
/* Signed bytes only: codes are brought down by 128, which 128 times the sum of p makes good. */
INLINE I32 dot4(I32 sum, U32 codes, const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    int8x16_t c = vreinterpretq_s8_u32((uint32x4_t)(codes ^ 0x80808080u));
    int32x4_t lifted = vdotq_s32((int32x4_t)sum, c, x);
    return (I32)vdotq_s32(vdotq_s32(lifted, vdupq_n_s8(64), x), vdupq_n_s8(64), x);
}
#elif !defined(__AVX2__)
INLINE I32 dot4(I32 sum, U32 codes, const int8_t *p) {
    for (int c = 0; c < 4; c++) sum += (I32)(codes >> (8 * c) & 0xff) * (int32_t)p[c];
    return sum;
}
#endif

/* sum + code * p over the 32 columns of a block. */
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
/* AVX2 multiplies unsigned by signed bytes into pairs of 16 bits, which hold the sums of a few quads; how many
   depends on the width: 2 * 127 * (2^bits - 1) * quads < 2^15. Codes of 8 bits would not fit even once: they
   are brought down by 128, and their signs moved to p. */
INLINE I32 dot_block(I32 sum, const uint8_t *block, int64_t apart, int bits, const int8_t *p) {
    const Lines lines = lines_in(block, apart, bits);
    const int width = width_of(bits), run = width <= 4 ? 8 : width == 5 ? 4 : width == 6 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        int32_t four;
        memcpy(&four, p + 4 * k, sizeof four);
        __m256i x = _mm256_set1_epi32(four), codes = (__m256i)quad(&lines, bits, k);
        if (width == 8) {
            __m256i low = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            sum += (I32)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(low), _mm256_sign_epi8(x, low)), ones);
            continue;
        }
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, x));
        if ((k + 1) % run == 0) {
            sum += (I32)_mm256_madd_epi16(pairs, ones);
            pairs = _mm256_setzero_si256();
        }
    }
    return sum;
}
enum { LOWERED = 128 }; /* by what codes of 8 bits were brought down */
#else
INLINE I32 dot_block(I32 sum, const uint8_t *block, int64_t apart, int bits, const int8_t *p) {
    const Lines lines = lines_in(block, apart, bits);
    I32 even = {0}, odd = {0};
#pragma GCC unroll 4
    for (int k = 0; k < 8; k += 2) {
        even = dot4(even, quad(&lines, bits, k), p + 4 * k);
        odd = dot4(odd, quad(&lines, bits, k + 1), p + 4 * k + 4);
    }
    return sum + even + odd;
}
enum { LOWERED = 0 };
#endif

/* y (LANES) of one part of a tile. `codes`: the part's first line; `at`: its place in scales and zero-points.
   Nested codes q are read in the middle of their cells, as m - zero with m = 2^(8-b) (q + 1/2) in steps of scale / 64;
   2 m is a whole number at every depth. */
INLINE F32 part_fast(const Weight *w, int bits, const uint8_t *codes, int64_t at, const Input *in) {
    F32 y = {0};
    const int8_t *p = in->p;
    const int width = width_of(bits), up = 9 - width;
    int64_t groups = groups_of(w), apart = slice_bytes(w), span = 0;
    for (int64_t g = 0; g < groups; g++, at += TILE) {
        F32 scale = load_half(w->scales + at);
        I32 zero = load_zeros(w, at);
        if (is_nested(bits)) {
            zero = 2 * zero - (1 << (up - 1)); /* of 2 m without its half cell */
            scale *= 0x1p-7f;
        }
        if (width == 8) zero -= LOWERED << (is_nested(bits) ? 1 : 0);
        for (int64_t left = ceil_div(columns_of(w, g), BLOCK); left > 0; left -= SPAN, span++) {
            I32 sum = {0};
            for (int64_t b = least(left, SPAN); b > 0; b--, codes += lines_of(bits) * LINE, p += BLOCK)
                sum = dot_block(sum, codes, apart, bits, p);
            if (is_nested(bits)) sum *= 1 << up;
            sum -= zero * in->sum[span];
            y += scale * in->scale[span] * __builtin_convertvector(sum, F32);
        }
    }
    return y;
}

INLINE U32 moved(U32 v, int right) { return right >= 0 ? v >> right : v << -right; }

INLINE F32 part_exact(const Weight *w, int bits, const uint8_t *codes, int64_t at, const Input *in) {
    /* The bits of 2^23 with a code in the lowest byte are the float 2^23 + code; those of 2^22 with 2 m, 2^22 + m. */
    const int width = width_of(bits), up = is_nested(bits) ? 9 - width : 0;
    const uint32_t mask = ((1u << width) - 1) << up, base = is_nested(bits) ? 0x4a800000u | 1u << (up - 1) : 0x4b000000u;
    F32 y = {0};
    const float *x = in->x;
    int64_t groups = groups_of(w), apart = slice_bytes(w);
    for (int64_t g = 0; g < groups; g++, at += TILE) {
        F32 offset = __builtin_convertvector(load_zeros(w, at), F32) + (is_nested(bits) ? 0x1p22f : 0x1p23f);
        F32 sum[4] = {{0}, {0}, {0}, {0}};
        for (int64_t b = ceil_div(columns_of(w, g), BLOCK); b > 0; b--, codes += lines_of(bits) * LINE, x += BLOCK) {
            const Lines lines = lines_in(codes, apart, bits);
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                U32 four = quad(&lines, bits, k);
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++)
                    sum[c] += (as_float((moved(four, 8 * c - up) & mask) | base) - offset) * x[4 * k + c];
            }
        }
        F32 scale = load_half(w->scales + at) * (is_nested(bits) ? 0x1p-6f : 1);
        y += scale * ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    return y;
}

/* Slices of 2 bits without arithmetic on codes: LOOKED bits of a lane choose among all that one or two columns of them can
   come to, (slice - 3/2) * x each. It takes time as the slices do, so codes of LOOKED bits and more become floats whole.
   PER_COLUMN: numbers of a table for each column. */
#if defined(__AVX512F__)
#define LOOKED 4
#define PER_COLUMN 8
INLINE F32 look_up(const float *table, U32 which) {
    return (F32)_mm512_permutexvar_ps((__m512i)which, _mm512_loadu_ps(table));
}
#elif defined(__AVX2__)
#define LOOKED 2
#define PER_COLUMN 4
INLINE F32 look_up(const float *table, U32 which) {
    return (F32)_mm256_permutevar_ps(_mm256_broadcast_ps((const __m128 *)table), (__m256i)which);
}
#else
#define LOOKED 0
#define PER_COLUMN 0
#endif

#if defined(__AVX2__)
enum { LOOKS = 32 / LOOKED, CHOICES = 1 << LOOKED };

/* The column of a block whose code stands at bit `at` of the lanes of a line. */
INLINE int column_at(int line, int at) { return 4 * (4 * line + at % 8 / SLICE) + at / 8; }

/* x of a block (BLOCK) -> its tables, in the order of lines and bits. */
static void fill_tables(const float *x, float *table) {
    static const float MIDDLE[4] = {-1.5f, -0.5f, 0.5f, 1.5f};
    for (int line = 0; line < SLICE; line++)
        for (int at = 0; at < 32; at += LOOKED, table += CHOICES) {
            float low = x[column_at(line, at)], high = LOOKED > SLICE ? x[column_at(line, at + SLICE)] : 0;
            for (int choice = 0; choice < CHOICES; choice++)
                table[choice] = MIDDLE[choice % 4] * low + (LOOKED > SLICE ? MIDDLE[choice / 4] * high : 0);
        }
}

INLINE F32 part_looked_up(const Weight *w, int slices, const uint8_t *codes, int64_t at, const Input *in) {
    F32 y = {0};
    const float *table = in->table;
    int64_t groups = groups_of(w), apart = slice_bytes(w);
    for (int64_t g = 0; g < groups; g++, at += TILE) {
        int64_t lines = ceil_div(columns_of(w, g), BLOCK) * SLICE;
        F32 sum = {0};
        for (int s = slices - 1; s >= 0; s--) {
            F32 part[4] = {{0}, {0}, {0}, {0}};
            for (int64_t line = 0; line < lines; line++) {
                U32 v = load(codes + s * apart + line * LINE);
                fetch_behind(codes + s * apart + line * LINE);
#pragma GCC unroll 16
                for (int i = 0; i < LOOKS; i++)
                    part[i % 4] += look_up(table + (line * LOOKS + i) * CHOICES, v >> (LOOKED * i));
            }
            sum = sum * 0.25f + ((part[0] + part[1]) + (part[2] + part[3]));
        }
        fetch_behind(w->scales + at);
        fetch_behind(w->zeros + at);
        F32 zero = __builtin_convertvector(load_zeros(w, at), F32);
        y += load_half(w->scales + at) * (sum + (2 - zero * 0x1p-6f) * in->total[g]);
        codes += lines * LINE;
        table += lines * LOOKS * CHOICES;
    }
    return y;
}
#else
static void fill_tables(const float *x, float *table) { (void)x, (void)table; }
INLINE F32 part_looked_up(const Weight *w, int slices, const uint8_t *codes, int64_t at, const Input *in) {
    return part_exact(w, NESTED + slices, codes, at, in);
}
#endif

INLINE void product_of(const Weight *w, int bits, const Input *in, int64_t first, int64_t last, float *y) {
    for (int64_t tile = first; tile < last; tile++) {
        const uint8_t *codes = w->codes + tile * tile_bytes(w);
        int64_t at = tile * groups_of(w) * TILE;
        float rows[TILE];
        for (int lane = 0; lane < TILE; lane += LANES) {
            F32 part = in->p ? part_fast(w, bits, codes + 4 * lane, at + lane, in)
                       : is_nested(bits) && bits - NESTED < LOOKED
                           ? part_looked_up(w, bits - NESTED, codes + 4 * lane, at + lane, in)
                           : part_exact(w, bits, codes + 4 * lane, at + lane, in);
            memcpy(rows + lane, &part, sizeof part);
        }
        memcpy(y + tile * TILE, rows, sizeof(float) * least(TILE, w->rows - tile * TILE));
    }
}

static float dot(const float *a, const float *b, int64_t n) {
    F32 sums[2] = {{0}, {0}};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sums[0] += as_float(load(a + i)) * as_float(load(b + i));
        sums[1] += as_float(load(a + i + LANES)) * as_float(load(b + i + LANES));
    }
    float sum = sum_of(sums[0] + sums[1]);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void axpy(float a, const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void combine(const float *a, const uint8_t *codes, int64_t stride, int64_t rank, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        F32 sum = as_float(load(y + i));
        for (int64_t k = 0; k < rank; k++)
            sum += a[k] * __builtin_convertvector(load_bytes(codes + k * stride + i) - 128, F32);
        memcpy(y + i, &sum, sizeof sum);
    }
    for (; i < n; i++)
        for (int64_t k = 0; k < rank; k++) y[i] += a[k] * (float)(codes[k * stride + i] - 128);
}

/* e^x to about two units in the last place (a polynomial of Cephes), for x clamped to [-87, 88]; NaN stays. */
INLINE F32 exponential(F32 x) {
    F32 low = {0}, high = {0};
    low += -87;
    high += 88;
    x = as_float(((U32)(x < low) & (U32)low) | (~(U32)(x < low) & (U32)x));
    x = as_float(((U32)(x > high) & (U32)high) | (~(U32)(x > high) & (U32)x));
    F32 k = (x * 0x1.715476p0f + 0x1.8p23f) - 0x1.8p23f;
    F32 r = x - k * 0.693359375f + k * 2.12194440e-4f;
    F32 p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
             1.6666665459e-1f) * r + 5.0000001201e-1f;
    F32 e = p * r * r + r + 1;
    return as_float((U32)e + ((U32)__builtin_convertvector(k, I32) << 23));
}

static void softmax(float *x, int64_t n) {
    float top = -INFINITY, total = 0;
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i += LANES) store_some(x + i, exponential(load_some(x + i, n - i) - top), n - i);
    for (int64_t i = 0; i < n; i++) total += x[i];
    for (int64_t i = 0; i < n; i++) x[i] /= total;
}

static void gated(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        F32 g = load_some(gate + i, n - i);
        store_some(gate + i, g / (1 + exponential(-g)) * load_some(up + i, n - i), n - i);
    }
}

INLINE float dot_narrow(const uint16_t *a, int bits, const float *b, int64_t n) {
    F32 sums[2] = {{0}, {0}};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        fetch_behind(a + i);
        for (int half = 0; half < 2; half++)
            sums[half] += load_narrow(a + i + half * LANES, bits) * as_float(load(b + i + half * LANES));
    }
    float sum = sum_of(sums[0] + sums[1]);
    for (; i < n; i++) sum += narrow(a[i], bits) * b[i];
    return sum;
}

static void product_dense(const Weight *w, const Input *in, int64_t first, int64_t last, float *y) {
    int64_t end = least(last * TILE, w->rows), n = w->columns;
    for (int64_t r = first * TILE; r < end; r++) {
        const uint16_t *row = (const uint16_t *)w->codes + r * n;
        y[r] = w->bits == FLOAT  ? dot((const float *)w->codes + r * n, in->x, n)
               : w->bits == HALF ? dot_narrow(row, HALF, in->x, n)
                                 : dot_narrow(row, BF16, in->x, n);
    }
}

static void product(const Weight *w, const Input *in, int64_t first, int64_t last, float *y) {
    switch (w->bits) { /* a constant width in each, so that planes and shifts are known to the compiler */
    case 2: product_of(w, 2, in, first, last, y); break;
    case 3: product_of(w, 3, in, first, last, y); break;
    case 4: product_of(w, 4, in, first, last, y); break;
    case 5: product_of(w, 5, in, first, last, y); break;
    case 6: product_of(w, 6, in, first, last, y); break;
    case 7: product_of(w, 7, in, first, last, y); break;
    case 8: product_of(w, 8, in, first, last, y); break;
    case NESTED + 1: product_of(w, NESTED + 1, in, first, last, y); break;
    case NESTED + 2: product_of(w, NESTED + 2, in, first, last, y); break;
    case NESTED + 3: product_of(w, NESTED + 3, in, first, last, y); break;
    case NESTED + 4: product_of(w, NESTED + 4, in, first, last, y); break;
    default: product_dense(w, in, first, last, y);
    }
}

/* x[n], n a multiple of BLOCK -> p[n] and its sum; returns the scale, NaN where a number is not finite. */
static float rounded(const float *x, int64_t n, int8_t *p, int32_t *sum) {
    I32 largest = {0}; /* of |x|, as bits: ordered like the numbers, infinity and NaN above all */
    for (int64_t i = 0; i < n; i += LANES) {
        I32 size = (I32)(load(x + i) & 0x7fffffff), above = size > largest;
        largest = (size & above) | (largest & ~above);
    }
    int32_t top = 0;
    for (int lane = 0; lane < LANES; lane++) top = largest[lane] > top ? largest[lane] : top;
    if (top < 0x01800000 || top >= 0x7f800000) { /* nothing that could be divided by, or not finite */
        memset(p, 0, n);
        *sum = p[0] = top >= 0x7f800000;
        return *sum ? NAN : 0;
    }
    float scale;
    memcpy(&scale, &top, sizeof scale);
    scale /= 127;
    float inverse = 1 / scale;
    I32 total = {0};
    for (int64_t i = 0; i < n; i += LANES) { /* adding and taking 1.5 * 2^23 rounds to the nearest whole number */
        F32 whole = (as_float(load(x + i)) * inverse + 0x1.8p23f) - 0x1.8p23f;
        I32 q = __builtin_convertvector(whole, I32);
        I8 bytes = __builtin_convertvector(q, I8);
        memcpy(p + i, &bytes, sizeof bytes);
        total += q;
    }
    *sum = 0;
    for (int lane = 0; lane < LANES; lane++) *sum += total[lane];
    return scale;
}

static void prepare(const Weight *w, const float *x, Input *in) {
    if (w->bits >= BF16) {
        memcpy(in->x, x, sizeof(float) * w->columns);
        return;
    }
    int64_t groups = groups_of(w), span = 0;
    float *to = in->x, *table = in->table;
    int8_t *p = in->p;
    for (int64_t g = 0; g < groups; g++) {
        int64_t n = columns_of(w, g), filled = ceil_div(n, BLOCK) * BLOCK;
        memcpy(to, x + g * w->group, sizeof(float) * n);
        memset(to + n, 0, sizeof(float) * (filled - n));
        for (int64_t at = 0; p && at < filled; at += SPAN * BLOCK, span++)
            in->scale[span] = rounded(to + at, least(SPAN * BLOCK, filled - at), p + at, &in->sum[span]);
        if (in->table) {
            F32 total = {0};
            for (int64_t at = 0; at < filled; at += LANES) total += as_float(load(to + at));
            in->total[g] = sum_of(total);
            for (int64_t at = 0; at < filled; at += BLOCK, table += BLOCK * PER_COLUMN) fill_tables(to + at, table);
        }
        to += filled;
        p = p ? p + filled : NULL;
    }
}

static uint16_t to_bf16(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE void store_bf16(uint16_t *to, F32 values) { /* to the nearest, ties to even */
    U32 wide = (U32)values;
    wide = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)wide));
#else
    U16 rounded = __builtin_convertvector(wide, U16);
    memcpy(to, &rounded, sizeof rounded);
#endif
}

INLINE void unpack_of(const Weight *w, int bits, int64_t first, int64_t last, void *out, int64_t stride, int bf16) {
    const int up = 9 - width_of(bits);
    int64_t groups = groups_of(w), apart = slice_bytes(w);
    for (int64_t tile = first; tile < last; tile++) {
        const uint8_t *block = w->codes + tile * tile_bytes(w);
        int64_t rows = least(TILE, w->rows - tile * TILE), row = (tile - first) * TILE;
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = (tile * groups + g) * TILE, n = columns_of(w, g);
            float scale[TILE], zero[TILE];
            for (int lane = 0; lane < TILE; lane += LANES) {
                F32 s = load_half(w->scales + at + lane), z = __builtin_convertvector(load_zeros(w, at + lane), F32);
                if (is_nested(bits)) { /* of 2 m, see part_fast */
                    z = 2 * z - (float)(1 << (up - 1));
                    s *= 0x1p-7f;
                }
                memcpy(scale + lane, &s, sizeof s);
                memcpy(zero + lane, &z, sizeof z);
            }
            for (int64_t from = 0; from < n; from += BLOCK, block += lines_of(bits) * LINE) {
                uint32_t quads[8][TILE], codes[TILE][8]; /* of each row, in the order of its columns */
                for (int lane = 0; lane < TILE; lane += LANES) {
                    const Lines lines = lines_in(block + 4 * lane, apart, bits);
#pragma GCC unroll 8
                    for (int k = 0; k < 8; k++) {
                        U32 four = quad(&lines, bits, k);
                        memcpy(&quads[k][lane], &four, sizeof four);
                    }
                }
                for (int r = 0; r < TILE; r++)
                    for (int k = 0; k < 8; k++) codes[r][k] = quads[k][r];
                int64_t width = least(BLOCK, n - from), column = g * w->group + from;
                for (int64_t r = 0; r < rows; r++) {
                    float last_ones[BLOCK]; /* of a group that ends within the block */
                    int64_t place = (row + r) * stride + column;
                    void *to = width < BLOCK ? (void *)last_ones
                               : bf16        ? (void *)((uint16_t *)out + place)
                                             : (void *)((float *)out + place);
                    for (int j = 0; j < BLOCK; j += LANES) {
                        I32 code = load_bytes((const uint8_t *)codes[r] + j) * (is_nested(bits) ? 1 << up : 1);
                        F32 values = (__builtin_convertvector(code, F32) - zero[r]) * scale[r];
                        if (bf16)
                            store_bf16((uint16_t *)to + j, values);
                        else
                            memcpy((float *)to + j, &values, sizeof values);
                    }
                    if (width < BLOCK)
                        memcpy((char *)out + place * (bf16 ? 2 : 4), last_ones, (size_t)width * (bf16 ? 2 : 4));
                }
            }
        }
    }
}

/* Dense numbers of 16 bits. */
INLINE void unpack_narrow(const Weight *w, int bits, int64_t first, int64_t last, void *out, int64_t stride, int bf16) {
    for (int64_t r = first * TILE; r < least(last * TILE, w->rows); r++) {
        const uint16_t *from = (const uint16_t *)w->codes + r * w->columns;
        int64_t place = (r - first * TILE) * stride, j = 0;
        for (; j + LANES <= w->columns; j += LANES) {
            F32 values = load_narrow(from + j, bits);
            if (bf16)
                store_bf16((uint16_t *)out + place + j, values);
            else
                memcpy((float *)out + place + j, &values, sizeof values);
        }
        for (; j < w->columns; j++)
            if (bf16)
                ((uint16_t *)out)[place + j] = to_bf16(narrow(from[j], bits));
            else
                ((float *)out)[place + j] = narrow(from[j], bits);
    }
}

static void unpack(const Weight *w, int64_t first, int64_t last, void *out, int64_t stride, int bf16) {
    switch (w->bits) {
    case 2: unpack_of(w, 2, first, last, out, stride, bf16); break;
    case 3: unpack_of(w, 3, first, last, out, stride, bf16); break;
    case 4: unpack_of(w, 4, first, last, out, stride, bf16); break;
    case 5: unpack_of(w, 5, first, last, out, stride, bf16); break;
    case 6: unpack_of(w, 6, first, last, out, stride, bf16); break;
    case 7: unpack_of(w, 7, first, last, out, stride, bf16); break;
    case 8: unpack_of(w, 8, first, last, out, stride, bf16); break;
    case NESTED + 1: unpack_of(w, NESTED + 1, first, last, out, stride, bf16); break;
    case NESTED + 2: unpack_of(w, NESTED + 2, first, last, out, stride, bf16); break;
    case NESTED + 3: unpack_of(w, NESTED + 3, first, last, out, stride, bf16); break;
    case NESTED + 4: unpack_of(w, NESTED + 4, first, last, out, stride, bf16); break;
    case BF16: unpack_narrow(w, BF16, first, last, out, stride, bf16); break;
    case HALF: unpack_narrow(w, HALF, first, last, out, stride, bf16); break;
    }
}

int JOIN(round_, LEVEL)(const Weight *, const Floats *, int64_t, int64_t, uint8_t *, uint16_t *, uint8_t *);

const Products JOIN(products_, LEVEL) = {TEXT(LEVEL), prepare, product, unpack, dot, axpy,
                                         softmax, gated, combine, JOIN(round_, LEVEL)};
