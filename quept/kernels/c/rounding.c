/* A weight in floats -> rounded to its grid and packed, in one pass over each group of a tile; in one instruction set,
   compiled once for each, with -DLEVEL=name.

     lo = min(0, x.min()) * low       hi = max(0, x.max()) * high
     s  = (hi - lo) / (2^b - 1)       z  = clamp(round(-lo / s), 0, 2^b - 1)         8 bits: see `grid_of`
     q  = clamp(round(x / s) + z, 0, 2^b - 1)

   Codes, scales and zero-points are those of quept.numerics.grid.quantize to the last bit: the same operations in the
   same order, each of them rounded. So no product may be fused with a sum (build.py tells the compiler), and a
   division stays one. */

#include "vectors.h"

INLINE F32 smaller(F32 a, F32 b) {
#if defined(__AVX512F__)
    return (F32)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (F32)_mm256_min_ps((__m256)a, (__m256)b);
#else
    I32 less = a < b;
    return as_float(((U32)a & (U32)less) | ((U32)b & ~(U32)less));
#endif
}

INLINE F32 larger(F32 a, F32 b) {
#if defined(__AVX512F__)
    return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
    I32 more = a > b;
    return as_float(((U32)a & (U32)more) | ((U32)b & ~(U32)more));
#endif
}

/* Whole numbers of 0..255 -> a byte each. */
INLINE void store_bytes(uint8_t *to, I32 q) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)q));
#elif defined(__AVX2__)
    const __m256i lowest = _mm256_set1_epi32(0x0c080400);
    __m256i bytes = _mm256_shuffle_epi8((__m256i)q, lowest);
    int32_t four[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
    memcpy(to, four, sizeof four);
#else
    U8 bytes = __builtin_convertvector(q, U8);
    memcpy(to, &bytes, sizeof bytes);
#endif
}

/* Numbers at..at+n-1, n at most LANES, zeros behind them; what is not finite stays so. */
INLINE F32 numbers(const Floats *from, int kind, int64_t at, int64_t n) {
    F32 v;
    if (kind == FLOAT) {
        const float *x = (const float *)from->x + at;
        v = n < LANES ? load_some(x, n) : as_float(load(x));
    } else {
        const uint16_t *x = (const uint16_t *)from->x + at;
        uint16_t some[LANES] = {0};
        if (n < LANES) memcpy(some, x, sizeof *x * (size_t)n);
        v = load_narrow(n < LANES ? some : x, kind);
        if (kind == HALF) { /* infinity and NaN were read as 2^16 and more */
            I32 odd = (I32)((U32)v & 0x7fffffff) >= 0x47800000;
            v = as_float((U32)v | ((U32)odd & 0x7f800000));
        }
    }
    if (from->added) v += n < LANES ? load_some(from->added + at, n) : as_float(load(from->added + at));
    return v;
}

/* The ends of the range of n numbers, zero inside it; returns whether one of them is not finite. */
INLINE int range_in(const Floats *from, int kind, int64_t at, int64_t n, float *lo, float *hi) {
    F32 low = {0}, high = {0}, odd = {0};
    for (int64_t j = 0; j < n; j += LANES) {
        F32 v = numbers(from, kind, at + j, n - j);
        low = smaller(low, v);
        high = larger(high, v);
        odd += v - v; /* zero, or NaN */
    }
    float lows[LANES], highs[LANES], odds[LANES];
    memcpy(lows, &low, sizeof low);
    memcpy(highs, &high, sizeof high);
    memcpy(odds, &odd, sizeof odd);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) {
            lows[i] = lows[i + half] < lows[i] ? lows[i + half] : lows[i];
            highs[i] = highs[i + half] > highs[i] ? highs[i + half] : highs[i];
            odds[i] += odds[i + half];
        }
    *lo = lows[0];
    *hi = highs[0];
    return odds[0] != 0;
}

static int range_of(const Floats *from, int64_t at, int64_t n, float *lo, float *hi) {
    return from->kind == FLOAT  ? range_in(from, FLOAT, at, n, lo, hi)
           : from->kind == BF16 ? range_in(from, BF16, at, n, lo, hi)
                                : range_in(from, HALF, at, n, lo, hi);
}

/* Codes of n numbers, at most BLOCK, a byte each; zeros behind them. */
INLINE void codes_in(const Floats *from, int kind, int64_t at, int64_t n, float scale, float zero, float top,
                     uint8_t *bytes) {
    const F32 none = {0};
    for (int64_t j = 0; j < n; j += LANES) { /* adding and taking 1.5 * 2^23 rounds to the nearest whole number */
        F32 q = numbers(from, kind, at + j, n - j) / scale;
        q = (q + 0x1.8p23f) - 0x1.8p23f + zero;
        store_bytes(bytes + j, __builtin_convertvector(smaller(larger(q, none), none + top), I32));
    }
    if (n < BLOCK) memset(bytes + n, 0, (size_t)(BLOCK - n));
}

static void codes_of(const Floats *from, int64_t at, int64_t n, float scale, float zero, float top, uint8_t *bytes) {
    switch (from->kind) {
    case FLOAT: codes_in(from, FLOAT, at, n, scale, zero, top, bytes); break;
    case BF16: codes_in(from, BF16, at, n, scale, zero, top, bytes); break;
    default: codes_in(from, HALF, at, n, scale, zero, top, bytes);
    }
}

/* Codes of a block of each row, a byte each, in the order of its columns -> the lines of its planes. */
INLINE void planes_of(int bits, const uint8_t bytes[TILE][BLOCK], uint8_t *line) {
    uint32_t quads[8][TILE];
    for (int r = 0; r < TILE; r++)
        for (int k = 0; k < 8; k++) memcpy(&quads[k][r], bytes[r] + 4 * k, sizeof(uint32_t));
    int done = 0;
    for (int width = 8; width; width /= 2) {
        if (!(bits & width)) continue;
        const int share = 8 / width; /* quads in a line */
        for (int first = 0; first < 8; first += share, line += LINE)
            for (int lane = 0; lane < TILE; lane += LANES) {
                U32 four = {0};
                for (int k = 0; k < share; k++) four |= field(load(&quads[first + k][lane]), done, width * k, width);
                memcpy(line + 4 * lane, &four, sizeof four);
            }
        done += width;
    }
}

static void write_block(int bits, const uint8_t bytes[TILE][BLOCK], uint8_t *block) {
    switch (bits) { /* a constant width in each, as in products.c */
    case 2: planes_of(2, bytes, block); break;
    case 3: planes_of(3, bytes, block); break;
    case 4: planes_of(4, bytes, block); break;
    case 5: planes_of(5, bytes, block); break;
    case 6: planes_of(6, bytes, block); break;
    case 7: planes_of(7, bytes, block); break;
    case 8: planes_of(8, bytes, block); break;
    }
}

/* To the nearest float16, ties to even; 0 and finite ones of normal size, else a number above 0x7bff. */
static inline uint32_t to_half(float value) {
    uint32_t bits;
    value *= 0x1p-112f;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0xfff + (bits >> 13 & 1)) >> 13;
}

/* Scale and zero-point of each row of a tile from the ends of its range; returns whether a scale is no float16. */
static int grid_of(int bits, const float *lo, const float *hi, float *scale, float *zero, uint16_t *halves) {
    const float top = (float)((1 << bits) - 1), tiny = 0x1p-14f;
    int odd = 0;
    for (int r = 0; r < TILE; r++) {
        float span = bits == 8 ? 2 * (-lo[r] > hi[r] ? -lo[r] : hi[r]) / (top - 1) : (hi[r] - lo[r]) / top;
        span = span == 0 ? 1 : span < tiny ? tiny : span;
        uint32_t half = to_half(span);
        odd |= half > 0x7bff;
        halves[r] = (uint16_t)half;
        scale[r] = half_to_float(halves[r]);
    }
    for (int r = 0; r < TILE; r++) {
        float z = (-lo[r] / scale[r] + 0x1.8p23f) - 0x1.8p23f;
        zero[r] = bits == 8 ? 128 : z < top ? z : top;
    }
    return odd;
}

int JOIN(round_, LEVEL)(const Weight *w, const Floats *from, int64_t first, int64_t last, uint8_t *codes,
                        uint16_t *scales, uint8_t *zeros) {
    int64_t groups = groups_of(w);
    const float top = (float)((1 << w->bits) - 1);
    int odd = 0;
    for (int64_t tile = first; tile < last; tile++) {
        int64_t rows = least(TILE, w->rows - tile * TILE);
        uint8_t *block = codes + tile * tile_bytes(w);
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = (tile * groups + g) * TILE, n = columns_of(w, g), start = g * w->group;
            float lo[TILE] = {0}, hi[TILE] = {0}, scale[TILE], zero[TILE];
            uint16_t halves[TILE];
            for (int64_t r = 0; r < rows; r++) {
                int64_t row = tile * TILE + r;
                odd |= range_of(from, row * w->columns + start, n, &lo[r], &hi[r]);
                if (from->low) lo[r] *= from->low[row * groups + g];
                if (from->high) hi[r] *= from->high[row * groups + g];
            }
            odd |= grid_of(w->bits, lo, hi, scale, zero, halves);
            for (int64_t r = 0; r < TILE; r++) {
                scales[at + r] = r < rows ? halves[r] : 0;
                if (zeros) zeros[at + r] = r < rows ? (uint8_t)(int)zero[r] : 0;
            }
            for (int64_t j = 0; j < n; j += BLOCK, block += w->bits * LINE) {
                uint8_t bytes[TILE][BLOCK];
                memset(bytes, 0, rows < TILE ? sizeof bytes : 0);
                for (int64_t r = 0; r < rows; r++)
                    codes_of(from, (tile * TILE + r) * w->columns + start + j, least(BLOCK, n - j), scale[r], zero[r],
                             top, bytes[r]);
                write_block(w->bits, (const uint8_t(*)[BLOCK])bytes, block);
            }
        }
    }
    return odd;
}
