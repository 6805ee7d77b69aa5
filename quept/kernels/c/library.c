/* What Python calls: packing, rounding, products and unpacking of whole weights, by several threads.

   Nothing is checked here: the Python side knows shapes, sizes and ranges and has checked them. Threads are those of
   the OpenMP runtime that torch has loaded, whose functions Python hands over: a pool of its own would fight with
   torch's threads, which spin for a while after each of torch's operations. */

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

extern const Products products_plain;
#if defined(HAVE_avx2)
extern const Products products_avx2;
#endif
#if defined(HAVE_avx512)
extern const Products products_avx512;
#endif
#if defined(HAVE_dotprod)
extern const Products products_dotprod;
#endif

/* The instruction sets compiled in that this machine runs, best first. */
static int found(const Products *sets[4]) {
    int n = 0;
#if defined(HAVE_avx512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        sets[n++] = &products_avx512;
#endif
#if defined(HAVE_avx2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets[n++] = &products_avx2;
#endif
#if defined(HAVE_dotprod) && defined(__linux__)
    if (getauxval(AT_HWCAP) & (1 << 20)) sets[n++] = &products_dotprod;
#elif defined(HAVE_dotprod)
    sets[n++] = &products_dotprod;
#endif
    sets[n++] = &products_plain;
    return n;
}

const Products *quept_products(const char *name) {
    const Products *sets[4];
    int n = found(sets);
    for (int i = 0; i < n; i++)
        if (!*name || !strcmp(sets[i]->name, name)) return sets[i];
    return NULL;
}

const char *quept_name(const Products *products) { return products->name; }

void run_threads(const Pool *pool, void (*job)(void *), void *data) {
    if (pool->threads > 1 && pool->parallel)
        pool->parallel(job, data, (unsigned)pool->threads, 0);
    else
        job(data);
}

int own_number(const Pool *pool) { return pool->threads > 1 && pool->parallel ? pool->number() : 0; }
int team_size(const Pool *pool) { return pool->threads > 1 && pool->parallel ? pool->size() : 1; }

Part part_of(const Pool *pool, int64_t n) {
    int64_t me = own_number(pool), all = team_size(pool);
    return (Part){n * me / all, n * (me + 1) / all};
}

/* ---- packing: rows of numerics.packing <-> tiles */

/* Codes i..i+31 of one row, of which `n` are there; a row is a little-endian stream of b bits a code. */
static void read_codes(const uint8_t *row, int bits, int64_t i, int64_t n, uint8_t *codes) {
    unsigned mask = (1u << bits) - 1;
    int64_t j = 0;
    memset(codes, 0, BLOCK);
    for (; i % 8 == 0 && j + 8 <= n; j += 8) { /* eight codes are b whole bytes */
        const uint8_t *from = row + (i + j) / 8 * bits;
        uint64_t eight = 0;
        for (int byte = 0; byte < bits; byte++) eight |= (uint64_t)from[byte] << (8 * byte);
        for (int k = 0; k < 8; k++) codes[j + k] = (eight >> (k * bits)) & mask;
    }
    for (; j < n; j++) {
        int64_t at = (i + j) * bits;
        unsigned shift = at % 8, low = row[at / 8] >> shift;
        if (shift + bits > 8) low |= (unsigned)row[at / 8 + 1] << (8 - shift);
        codes[j] = low & mask;
    }
}

/* The reverse, into a row of zeros. */
static inline void write_codes(uint8_t *row, int bits, int64_t i, int64_t n, const uint8_t *codes) {
    int64_t j = 0;
    for (; i % 8 == 0 && j + 8 <= n; j += 8) {
        uint8_t *to = row + (i + j) / 8 * bits;
        uint64_t eight = 0;
        for (int k = 0; k < 8; k++) eight |= (uint64_t)codes[j + k] << (k * bits);
        for (int byte = 0; byte < bits; byte++) to[byte] = (uint8_t)(eight >> (8 * byte));
    }
    for (; j < n; j++) {
        int64_t at = (i + j) * bits;
        unsigned code = (unsigned)codes[j] << at % 8;
        row[at / 8] |= (uint8_t)code;
        if (code >> 8) row[at / 8 + 1] |= (uint8_t)(code >> 8);
    }
}

/* A row's 32 codes into its lane of a block, whose lines are zeros before. */
static void write_lane(uint8_t *block, int bits, int lane, const uint8_t *codes) {
    uint8_t *plane = block + 4 * lane;
    for (int width = 8, done = 0; width; width /= 2) {
        if (!(bits & width)) continue;
        int share = 8 / width; /* quads in a line */
        uint32_t low = 0x01010101u * ((1u << width) - 1);
        for (int k = 0; k < 8; k++) { /* the four codes of a quad at once, a byte each */
            uint32_t four, kept;
            memcpy(&four, codes + 4 * k, sizeof four);
            memcpy(&kept, plane + LINE * (k / share), sizeof kept);
            kept |= (four >> done & low) << width * (k % share);
            memcpy(plane + LINE * (k / share), &kept, sizeof kept);
        }
        plane += LINE * width;
        done += width;
    }
}

typedef struct {
    const Pool *pool;
    const Weight *w;
    const uint8_t *codes, *zeros;
    const uint16_t *scales;
    uint8_t *to_codes, *to_zeros;
    uint16_t *to_scales;
} Packing;

static void pack_part(void *data) {
    const Packing *job = data;
    const Weight *w = job->w;
    int64_t groups = groups_of(w), row_bytes = ceil_div(w->columns, 8) * w->bits;
    int64_t zero_bytes = ceil_div(groups, 8) * w->bits;
    Part part = part_of(job->pool, tiles_of(w));
    for (int64_t tile = part.first; tile < part.last; tile++) {
        memset(job->to_codes + tile * tile_bytes(w), 0, tile_bytes(w));
        for (int lane = 0; lane < TILE; lane++) {
            int64_t r = tile * TILE + lane;
            uint8_t *block = job->to_codes + tile * tile_bytes(w);
            for (int64_t g = 0; g < groups; g++) {
                int64_t at = (tile * groups + g) * TILE + lane, n = columns_of(w, g);
                job->to_scales[at] = r < w->rows ? job->scales[r * groups + g] : 0;
                uint8_t codes[BLOCK] = {0};
                if (job->zeros) {
                    if (r < w->rows) read_codes(job->zeros + r * zero_bytes, w->bits, g, 1, codes);
                    job->to_zeros[at] = codes[0];
                }
                for (int64_t from = 0; from < n; from += BLOCK, block += w->bits * LINE) {
                    if (r >= w->rows) continue;
                    read_codes(job->codes + r * row_bytes, w->bits, g * w->group + from, least(BLOCK, n - from), codes);
                    write_lane(block, w->bits, lane, codes);
                }
            }
        }
    }
}

void quept_pack(const Pool *pool, const Weight *w, const uint8_t *codes, const uint16_t *scales, const uint8_t *zeros,
                uint8_t *to_codes, uint16_t *to_scales, uint8_t *to_zeros) {
    Packing job = {pool, w, codes, zeros, scales, to_codes, to_zeros, to_scales};
    run_threads(pool, pack_part, &job);
}

/* The reverse: of w itself, into rows of numerics.packing, all of which are zeros before. `bits` is w->bits, known to
   the compiler. */
static inline __attribute__((always_inline)) void rows_of_codes(const Packing *job, int bits) {
    const Weight *w = job->w;
    int64_t groups = groups_of(w), row_bytes = ceil_div(w->columns, 8) * bits, zero_bytes = ceil_div(groups, 8) * bits;
    Part part = part_of(job->pool, tiles_of(w));
    for (int64_t r = part.first * TILE; r < least(part.last * TILE, w->rows); r++) {
        int64_t tile = r / TILE, lane = r % TILE;
        const uint8_t *block = w->codes + tile * tile_bytes(w);
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = (tile * groups + g) * TILE + lane, n = columns_of(w, g);
            job->to_scales[r * groups + g] = w->scales[at];
            if (w->zeros) write_codes(job->to_zeros + r * zero_bytes, bits, g, 1, w->zeros + at);
            for (int64_t from = 0; from < n; from += BLOCK, block += bits * LINE) {
                uint8_t codes[BLOCK];
                read_lane(block, bits, (int)lane, codes);
                write_codes(job->to_codes + r * row_bytes, bits, g * w->group + from, least(BLOCK, n - from), codes);
            }
        }
    }
}

static void stored_part(void *data) {
    const Packing *job = data;
    switch (job->w->bits) {
    case 2: rows_of_codes(job, 2); break;
    case 3: rows_of_codes(job, 3); break;
    case 4: rows_of_codes(job, 4); break;
    case 5: rows_of_codes(job, 5); break;
    case 6: rows_of_codes(job, 6); break;
    case 7: rows_of_codes(job, 7); break;
    case 8: rows_of_codes(job, 8); break;
    }
}

void quept_stored(const Pool *pool, const Weight *w, uint8_t *to_codes, uint16_t *to_scales, uint8_t *to_zeros) {
    Packing job = {.pool = pool, .w = w, .to_codes = to_codes, .to_zeros = to_zeros, .to_scales = to_scales};
    run_threads(pool, stored_part, &job);
}

/* ---- rounding: floats -> tiles */

typedef struct {
    const Pool *pool;
    const Products *products;
    const Weight *w;
    const Floats *from;
    uint8_t *codes, *zeros;
    uint16_t *scales;
    atomic_int odd;
} Rounding;

static void round_part(void *data) {
    Rounding *job = data;
    Part part = part_of(job->pool, tiles_of(job->w));
    if (job->products->round(job->w, job->from, part.first, part.last, job->codes, job->scales, job->zeros))
        atomic_store(&job->odd, 1);
}

/* Returns whether a number is not finite, or a scale no float16. */
int quept_round(const Pool *pool, const Products *products, const Weight *w, const Floats *from, uint8_t *codes,
                uint16_t *scales, uint8_t *zeros) {
    Rounding job = {pool, products, w, from, codes, zeros, scales, 0};
    run_threads(pool, round_part, &job);
    return atomic_load(&job.odd);
}

/* ---- products of a few rows */

static int64_t input_blocks(const Weight *w) {
    return w->bits >= BF16 ? ceil_div(w->columns, BLOCK) : blocks_of(w);
}

int64_t input_bytes(const Weight *w) {
    int64_t nested = is_nested(w->bits) ? BLOCK * ENTRIES * sizeof(float) : 0;
    return input_blocks(w) * (BLOCK * (sizeof(float) + 1) + 2 * sizeof(float) + sizeof(int32_t) + nested) + 4 * LINE;
}

Input input_in(const Weight *w, void *memory, int fast) {
    int64_t blocks = input_blocks(w);
    char *at = (char *)(((uintptr_t)memory + LINE - 1) / LINE * LINE);
    Input in = {.x = (float *)at};
    at += blocks * BLOCK * sizeof(float);
    if (is_nested(w->bits) && !fast) in.table = (float *)at;
    at += in.table ? blocks * BLOCK * ENTRIES * sizeof(float) : 0;
    in.total = (float *)at;
    in.scale = (float *)(at + blocks * sizeof(float));
    in.sum = (int32_t *)(at + 2 * blocks * sizeof(float));
    at += blocks * (2 * sizeof(float) + sizeof(int32_t));
    in.p = fast && w->bits < BF16 ? (int8_t *)at : NULL;
    return in;
}

typedef struct {
    const Pool *pool;
    const Products *products;
    const Weight *w;
    const Input *inputs;
    float *y;
    int64_t n;
} Multiplying;

static void multiply_part(void *data) {
    const Multiplying *job = data;
    Part part = part_of(job->pool, tiles_of(job->w));
    for (int64_t tile = part.first; tile < part.last; tile++) /* the codes of a tile stay near for all inputs */
        for (int64_t i = 0; i < job->n; i++)
            job->products->product(job->w, &job->inputs[i], tile, tile + 1, job->y + i * job->w->rows);
}

int quept_matmul(const Pool *pool, const Products *products, const Weight *w, const float *x, int64_t n, int fast,
                 float *y) {
    int64_t each = ceil_div(input_bytes(w), LINE) * LINE;
    char *memory = malloc((size_t)(n * each));
    Input *inputs = malloc((size_t)n * sizeof *inputs);
    int failed = !memory || !inputs;
    if (!failed) {
        for (int64_t i = 0; i < n; i++) {
            inputs[i] = input_in(w, memory + i * each, fast);
            products->prepare(w, x + i * w->columns, &inputs[i]);
        }
        Multiplying job = {pool, products, w, inputs, y, n};
        run_threads(pool, multiply_part, &job);
    }
    free(inputs);
    free(memory);
    return failed;
}

/* ---- values */

typedef struct {
    const Pool *pool;
    const Products *products;
    const Weight *w;
    void *out;
    int bf16;
} Unpacking;

static void unpack_part(void *data) {
    const Unpacking *job = data;
    Part part = part_of(job->pool, tiles_of(job->w));
    int64_t offset = part.first * TILE * job->w->columns * (job->bf16 ? 2 : 4);
    job->products->unpack(job->w, part.first, part.last, (char *)job->out + offset, job->w->columns, job->bf16);
}

void quept_unpack(const Pool *pool, const Products *products, const Weight *w, void *out, int bf16) {
    Unpacking job = {pool, products, w, out, bf16};
    run_threads(pool, unpack_part, &job);
}

/* The code of quad k in one byte of the lanes of a block, plane by plane. */
static int code_at(const uint8_t *plane, int bits, int64_t k) {
    int code = 0, done = 0;
    for (int width = 8; width; width /= 2) {
        if (!(bits & width)) continue;
        int share = 8 / width;
        code |= (plane[LINE * (k / share)] >> width * (k % share) & ((1 << width) - 1)) << done;
        plane += LINE * width;
        done += width;
    }
    return code;
}

/* One row: read from its lane, number by number. */
void unpack_row(const Weight *w, int64_t row, float *out) {
    if (w->bits >= BF16) {
        for (int64_t j = 0; j < w->columns; j++) {
            uint16_t narrow = ((const uint16_t *)w->codes)[row * w->columns + j];
            uint32_t bits = (uint32_t)narrow << 16;
            if (w->bits == BF16)
                memcpy(out + j, &bits, sizeof bits);
            else
                out[j] = w->bits == HALF ? half_to_float(narrow) : ((const float *)w->codes)[row * w->columns + j];
        }
        return;
    }
    int64_t tile = row / TILE, lane = row % TILE, groups = groups_of(w);
    const uint8_t *block = w->codes + tile * tile_bytes(w);
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = (tile * groups + g) * TILE + lane, n = columns_of(w, g);
        float scale = half_to_float(w->scales[at]);
        int zero = w->zeros ? w->zeros[at] : 128;
        for (int64_t from = 0; from < n; from += BLOCK, block += lines_of(w->bits) * LINE)
            for (int64_t j = 0; j < least(BLOCK, n - from); j++) {
                const uint8_t *lane_of_j = block + 4 * lane + j % 4;
                if (!is_nested(w->bits)) {
                    *out++ = (float)(code_at(lane_of_j, w->bits, j / 4) - zero) * scale;
                    continue;
                }
                int twice = 1; /* 2 m, see products.c */
                for (int s = 0; s < w->bits - NESTED; s++)
                    twice = (twice - 1) * 4 + 2 * code_at(lane_of_j + s * slice_bytes(w), SLICE, j / 4) + 1;
                twice <<= 8 - width_of(w->bits);
                *out++ = (float)(twice - 2 * zero) * (scale * 0x1p-7f);
            }
    }
}

void quept_rows(const Weight *w, const int64_t *rows, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) unpack_row(w, rows[i], out + i * w->columns);
}
