/* The kernels against the slow obvious loops, on random shapes, under the sanitizers: see sanitized.py.

   Every buffer has exactly the size it must have, so that a read or write beyond one is seen. usage: fuzz ROUNDS SEED */

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../quept/kernels/c/decode.h"

const Products *quept_products(const char *name);
void quept_pack(const Pool *, const Weight *, const uint8_t *, const uint16_t *, const uint8_t *, uint8_t *, uint16_t *,
                uint8_t *);
void quept_stored(const Pool *, const Weight *, uint8_t *, uint16_t *, uint8_t *);
void quept_to_blocks(const Pool *, const Weight *, const int64_t *, uint8_t *);
int quept_differs(const Pool *, const Weight *, const int64_t *, const uint8_t *, float[2]);
int quept_round(const Pool *, const Products *, const Weight *, const Floats *, uint8_t *, uint16_t *, uint8_t *);
int quept_matmul(const Pool *, const Products *, const Weight *, const float *, int64_t, int, float *);
void quept_unpack(const Pool *, const Products *, const Weight *, void *, int);
void quept_rows(const Weight *, const int64_t *, int64_t, float *);
void quept_fit(Model *);
int quept_step(const Pool *, const Products *, const Model *, const Cache *, int64_t, int64_t, float *, uint8_t *);
int quept_scores(const Pool *, const Products *, const Router *, const float *, int64_t, float *);

#define CHECK(claim)                                                                                  \
    if (!(claim)) {                                                                                   \
        fprintf(stderr, "%s:%d: %s does not hold in round %d\n", __FILE__, __LINE__, #claim, now); \
        exit(1);                                                                                      \
    }

enum { MOST_THREADS = 4 };
static const char *SETS[] = {"plain", "avx2", "avx512", "dotprod"};
static int now;
static uint64_t state;

static uint32_t draw(uint32_t below) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}
static float number(void) { return (float)draw(20001) / 5000 - 2; }
static void *room(int64_t bytes) { return malloc((size_t)(bytes ? bytes : 1)); }
static float *numbers(int64_t n) {
    float *made = room(n * (int64_t)sizeof(float));
    for (int64_t i = 0; i < n; i++) made[i] = number();
    return made;
}

/* ---- a pool of threads as OpenMP's */

static _Thread_local int number_here;
static int size_now = 1;
typedef struct {
    void (*job)(void *);
    void *data;
    int number;
} Start;
static void *begin(void *data) {
    Start *start = data;
    number_here = start->number;
    start->job(start->data);
    return NULL;
}
static void parallel(void (*job)(void *), void *data, unsigned threads, unsigned flags) {
    (void)flags;
    pthread_t all[MOST_THREADS];
    Start starts[MOST_THREADS];
    size_now = (int)threads;
    for (unsigned i = 0; i < threads; i++) {
        starts[i] = (Start){job, data, (int)i};
        pthread_create(&all[i], NULL, begin, &starts[i]);
    }
    for (unsigned i = 0; i < threads; i++) pthread_join(all[i], NULL);
}
static int own(void) { return number_here; }
static int size(void) { return size_now; }
static Pool pool_of(int threads) { return (Pool){parallel, own, size, threads}; }

/* ---- weights */

static uint8_t *stream(const int *codes, int64_t rows, int64_t n, int bits) { /* rows of numerics.packing */
    int64_t bytes = (n + 7) / 8 * bits;
    uint8_t *made = calloc((size_t)(rows * bytes), 1);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++)
            for (int b = 0; b < bits; b++)
                if (codes[r * n + j] >> b & 1) made[r * bytes + (j * bits + b) / 8] |= (uint8_t)(1 << (j * bits + b) % 8);
    return made;
}

typedef struct {
    Weight w;
    float *values;
} Made;

/* A random weight, packed, and its values by the formula. */
static Made made_weight(int64_t rows, int64_t columns, int bits, int group) {
    int64_t groups = ceil_div(columns, group), tiles = ceil_div(rows, TILE);
    int nested = is_nested(bits), width = width_of(bits);
    int *codes = room(rows * columns * (int64_t)sizeof(int)), *zeros = room(rows * groups * (int64_t)sizeof(int));
    uint16_t *scales = room(rows * groups * 2);
    for (int64_t i = 0; i < rows * columns; i++) codes[i] = (int)draw(1u << width);
    for (int64_t i = 0; i < rows * groups; i++) {
        zeros[i] = bits == 8 ? 128 : (int)draw(nested ? 256 : 1u << bits);
        scales[i] = (uint16_t)(draw(2) << 15 | draw(24) << 10 | draw(1024)); /* subnormal to 2^8, either sign */
    }
    Made made = {.w = {.rows = rows, .columns = columns, .bits = bits, .group = group}};
    made.values = room(rows * columns * (int64_t)sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < columns; j++) {
            int64_t g = r * groups + j / group;
            float code = (float)codes[r * columns + j], scale = half_to_float(scales[g]);
            if (nested) { /* the middle of a cell of 2^(8 - width) steps */
                code = (code + 0.5f) * (float)(1 << (8 - width));
                scale /= 64;
            }
            made.values[r * columns + j] = (code - (float)zeros[g]) * scale;
        }
    int slices = nested ? bits - NESTED : 1;
    uint8_t *to_codes = room(slices * slice_bytes(&made.w)), *to_zeros = room(tiles * groups * TILE);
    uint16_t *to_scales = room(tiles * groups * TILE * 2);
    Pool pool = pool_of(1 + (int)draw(MOST_THREADS));
    int without = bits == 8 && draw(2); /* the zero-points of 8 bits need not be there */
    uint8_t *packed_zeros = stream(zeros, rows, groups, 8);
    for (int64_t r = 0; r < tiles * TILE; r++)
        for (int64_t g = 0; g < groups; g++)
            to_zeros[(r / TILE * groups + g) * TILE + r % TILE] = r < rows ? packed_zeros[r * ((groups + 7) / 8 * 8) + g] : 0;
    free(packed_zeros);
    packed_zeros = nested || without ? NULL : stream(zeros, rows, groups, bits);
    for (int s = 0; s < slices; s++) {
        Weight slice = made.w;
        slice.bits = nested ? SLICE : bits;
        int *part = room(rows * columns * (int64_t)sizeof(int));
        for (int64_t i = 0; i < rows * columns; i++)
            part[i] = nested ? codes[i] >> (width - SLICE * (s + 1)) & 3 : codes[i];
        uint8_t *packed = stream(part, rows, columns, slice.bits);
        quept_pack(&pool, &slice, packed, scales, packed_zeros, to_codes + s * slice_bytes(&made.w), to_scales, to_zeros);
        slice.codes = to_codes + s * slice_bytes(&made.w);
        slice.scales = to_scales;
        slice.zeros = packed_zeros ? to_zeros : NULL;
        int64_t row_bytes = (columns + 7) / 8 * slice.bits, zero_bytes = (groups + 7) / 8 * slice.bits;
        uint8_t *again = calloc((size_t)(rows * row_bytes), 1), *again_zeros = calloc((size_t)(rows * zero_bytes), 1);
        uint16_t *again_scales = room(rows * groups * 2);
        quept_stored(&pool, &slice, again, again_scales, again_zeros);
        CHECK(!memcmp(again, packed, (size_t)(rows * row_bytes)));
        CHECK(!memcmp(again_scales, scales, (size_t)(rows * groups * 2)));
        if (packed_zeros) CHECK(!memcmp(again_zeros, packed_zeros, (size_t)(rows * zero_bytes)));
        free(again), free(again_zeros), free(again_scales), free(packed), free(part);
    }
    made.w.codes = to_codes;
    made.w.scales = to_scales;
    made.w.zeros = without ? NULL : to_zeros;
    if (without) free(to_zeros);
    free(codes), free(zeros), free(scales), free(packed_zeros);
    return made;
}

static void let_go(Made *made) {
    free((void *)made->w.codes), free((void *)made->w.scales), free((void *)made->w.zeros), free(made->values);
}

static void products_round(const Products *products) {
    int64_t rows = 1 + draw(70), columns = 1 + draw(300), n = 1 + draw(3);
    int group = 1 + (int)draw((uint32_t)columns), bits = 2 + (int)draw(11);
    if (draw(2)) group = (int)least(columns, 32 << draw(3));
    Made made = made_weight(rows, columns, bits, group);
    Pool pool = pool_of(1 + (int)draw(MOST_THREADS));
    float *x = numbers(n * columns), *y = room(n * rows * 4), *quick = room(n * rows * 4), *out = room(rows * columns * 4);
    int poisoned = draw(4) == 0;
    if (poisoned) x[draw((uint32_t)columns)] = draw(2) ? NAN : INFINITY;
    CHECK(!quept_matmul(&pool, products, &made.w, x, n, 0, y));
    CHECK(!quept_matmul(&pool, products, &made.w, x, n, 1, quick));
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) {
            double expected = 0, size = 0, most = 0;
            for (int64_t j = 0; j < columns; j++) {
                double w = made.values[r * columns + j], one = x[i * columns + j];
                expected += w * one;
                size += fabs(w * one);
                most = fmax(most, fabs(one));
            }
            double rounding = 0; /* half a step of the coarsest span, in every product */
            for (int64_t j = 0; j < columns; j++) rounding += fabs(made.values[r * columns + j]) * most / 254;
            if (poisoned && i == 0) {
                CHECK(isnan(quick[r]));
            } else {
                CHECK(fabs(y[i * rows + r] - expected) <= 1e-5 * size + 1e-30);
                CHECK(fabs(quick[i * rows + r] - expected) <= 1.01 * rounding + 1e-5 * size + 1e-30);
            }
        }
    quept_unpack(&pool, products, &made.w, out, 0);
    CHECK(!memcmp(out, made.values, (size_t)(rows * columns * 4)));
    uint16_t *narrow = room(rows * columns * 2);
    quept_unpack(&pool, products, &made.w, narrow, 1);
    int64_t ids[2] = {draw((uint32_t)rows), rows - 1};
    float *two = room(2 * columns * 4);
    quept_rows(&made.w, ids, 2, two);
    for (int i = 0; i < 2; i++) CHECK(!memcmp(two + i * columns, made.values + ids[i] * columns, (size_t)columns * 4));
    free(x), free(y), free(quick), free(out), free(narrow), free(two);
    let_go(&made);
}

/* ---- rounding */

/* n numbers of a kind, and what they are as floats. */
static void *numbers_of(int kind, int64_t n, float *x) {
    uint16_t *narrow = room(n * (kind == FLOAT ? 4 : 2));
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        x[i] = kind == HALF ? half_to_float(narrow[i] = (uint16_t)(draw(2) << 15 | draw(31) << 10 | draw(1024))) : number();
        if (kind == HALF) continue;
        memcpy(&bits, x + i, 4);
        if (kind == FLOAT) memcpy((float *)narrow + i, x + i, 4);
        if (kind == BF16) narrow[i] = (uint16_t)((bits &= 0xffff0000u) >> 16);
        memcpy(x + i, &bits, 4);
    }
    return narrow;
}

static float half_of(float value, uint16_t *bits) { /* normal ones */
    int e;
    float m = rintf(ldexpf(frexpf(value, &e), 11));
    *bits = (uint16_t)((e + 14) * 1024 + (int)m - 1024);
    return ldexpf(m, e - 11);
}

static void rounding_round(const Products *products) {
    int64_t rows = 1 + draw(70), columns = 1 + draw(300), n = rows * columns;
    int group = draw(2) ? 1 + (int)draw((uint32_t)columns) : (int)least(columns, 32 << draw(3)), bits = 2 + (int)draw(7);
    int kinds[] = {FLOAT, BF16, HALF}, kind = kinds[draw(3)];
    int64_t groups = ceil_div(columns, group), tiles = ceil_div(rows, TILE);
    float *x = room(n * 4), top = (float)((1 << bits) - 1);
    void *given = numbers_of(kind, n, x);
    if (draw(8) == 0) memset(x, 0, (size_t)n * 4), memset(given, 0, (size_t)n * (kind == FLOAT ? 4 : 2));
    float *added = draw(2) ? numbers(n) : NULL, *factors[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) {
        if (draw(2)) continue;
        factors[i] = room(rows * groups * 4);
        for (int64_t j = 0; j < rows * groups; j++) factors[i][j] = (float)(1 + draw(256)) / 256;
    }
    int *codes = room(n * (int64_t)sizeof(int)), *zeros = room(rows * groups * (int64_t)sizeof(int));
    uint16_t *scales = room(rows * groups * 2);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = r * columns + g * group, end = at + least(group, columns - g * group), place = r * groups + g;
            float lo = 0, hi = 0;
            for (int64_t i = at; i < end; i++) {
                if (added) x[i] += added[i];
                lo = fminf(lo, x[i]);
                hi = fmaxf(hi, x[i]);
            }
            volatile float low = factors[0] ? lo * factors[0][place] : lo, high = factors[1] ? hi * factors[1][place] : hi;
            float span = bits == 8 ? 2 * fmaxf(-low, high) / (top - 1) : (high - low) / top;
            float scale = half_of(span == 0 ? 1 : fmaxf(span, 0x1p-14f), &scales[place]);
            float zero = bits == 8 ? 128 : fminf(rintf(-low / scale), top);
            zeros[place] = (int)zero;
            for (int64_t i = at; i < end; i++) codes[i] = (int)fminf(fmaxf(rintf(x[i] / scale) + zero, 0), top);
        }
    Weight w = {.rows = rows, .columns = columns, .bits = bits, .group = group};
    int64_t bytes = tiles * tile_bytes(&w), lanes = tiles * groups * TILE;
    uint8_t *packed = stream(codes, rows, columns, bits), *packed_zeros = stream(zeros, rows, groups, bits);
    uint8_t *to[2] = {room(bytes), room(bytes)}, *to_zeros[2] = {room(lanes), room(lanes)};
    uint16_t *to_scales[2] = {room(lanes * 2), room(lanes * 2)};
    Pool pool = pool_of(1 + (int)draw(MOST_THREADS));
    Floats floats = {given, added, factors[0], factors[1], kind};
    quept_pack(&pool, &w, packed, scales, bits == 8 ? NULL : packed_zeros, to[0], to_scales[0], to_zeros[0]);
    CHECK(!quept_round(&pool, products, &w, &floats, to[1], to_scales[1], bits == 8 ? NULL : to_zeros[1]));
    CHECK(!memcmp(to[0], to[1], (size_t)bytes) && !memcmp(to_scales[0], to_scales[1], (size_t)lanes * 2));
    CHECK(bits == 8 || !memcmp(to_zeros[0], to_zeros[1], (size_t)lanes));
    int64_t odd = draw((uint32_t)n);
    uint32_t broken[] = {0x7f800000u, 0xff800000u, 0x7fc00000u}, one = broken[draw(3)];
    if (kind == FLOAT) memcpy((float *)given + odd, &one, 4);
    if (kind == BF16) ((uint16_t *)given)[odd] = (uint16_t)(one >> 16);
    if (kind == HALF) ((uint16_t *)given)[odd] = (uint16_t)(0x7c00 | draw(2) << 15 | draw(1024));
    CHECK(quept_round(&pool, products, &w, &floats, to[1], to_scales[1], bits == 8 ? NULL : to_zeros[1]));
    for (int i = 0; i < 2; i++) free(to[i]), free(to_zeros[i]), free(to_scales[i]), free(factors[i]);
    free(x), free(given), free(added), free(codes), free(zeros), free(scales), free(packed), free(packed_zeros);
}

/* ---- llama.cpp's blocks */

/* Number j of a block, by its definition; sure: by how much the rounding of its offset may move it. */
static float number_of(const uint8_t *block, int bits, int j, float *sure) {
    uint16_t d, m;
    memcpy(&d, block, 2);
    *sure = 0;
    if (bits > 5) return half_to_float(d) * (float)(int8_t)block[2 + j];
    memcpy(&m, block + 2, 2);
    const uint8_t *codes = block + (bits == 5 ? 8 : 4);
    int code = codes[j % 16] >> (j < 16 ? 0 : 4) & 15;
    if (bits == 5) code |= (block[4 + j / 8] >> j % 8 & 1) << 4;
    *sure = fabsf(half_to_float(m)) * 0x1p-11f + 0x1p-25f;
    return half_to_float(d) * (float)code + half_to_float(m);
}

static void blocks_round(void) {
    int64_t rows = 1 + draw(40), many = 1 + draw(9), columns = BLOCK * many;
    int bits = 2 + (int)draw(7), group = BLOCK * (1 + (int)draw((uint32_t)many));
    int64_t each = bits < 5 ? 20 : bits == 5 ? 24 : 34, bytes = rows * many * each;
    Made made = made_weight(rows, columns, bits, group);
    Pool pool = pool_of(1 + (int)draw(MOST_THREADS));
    int64_t *order = draw(2) ? room(rows * 8) : NULL;
    for (int64_t i = 0; order && i < rows; i++) order[i] = draw((uint32_t)rows);
    uint8_t *blocks = room(bytes);
    quept_to_blocks(&pool, &made.w, order, blocks);
    float sure, found[2];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            float read = number_of(blocks + (i * many + j / BLOCK) * each, bits, (int)(j % BLOCK), &sure);
            CHECK(fabsf(read - made.values[(order ? order[i] : i) * columns + j]) <= sure * 1.01f);
        }
    CHECK(!quept_differs(&pool, &made.w, order, blocks, found));
    CHECK(found[0] >= 0 && found[0] <= found[1]);
    blocks[draw((uint32_t)bytes)] ^= (uint8_t)(1 << draw(8));
    CHECK(quept_differs(&pool, &made.w, order, blocks, found));
    free(order), free(blocks);
    let_go(&made);
}

/* ---- a token */

static Made linears[256];
static int linears_count;

static void *held[4096];
static int held_count;
static void *hold(void *made) { return held[held_count++] = made; }

static uint16_t *small_scales(int64_t n) {
    uint16_t *made = hold(room(n * 2));
    for (int64_t i = 0; i < n; i++) made[i] = (uint16_t)(draw(9) << 10 | draw(1024));
    return made;
}

static const Correction *correction(int64_t rows, int64_t columns) {
    Made *a = &linears[linears_count++];
    int64_t rank = 1 + draw(20), group = 1 + draw((uint32_t)rows);
    *a = made_weight(rank, columns, 8, (int)least(columns, 8 << draw(4)));
    for (int64_t i = 0, n = ceil_div(rank, TILE) * groups_of(&a->w) * TILE; i < n; i++) ((uint16_t *)a->w.scales)[i] &= 0xa3ff;
    uint8_t *codes = hold(room(rank * rows));
    for (int64_t i = 0; i < rank * rows; i++) codes[i] = (uint8_t)draw(256);
    Correction *made = hold(room(sizeof *made));
    *made = (Correction){&a->w, codes, small_scales(rank * ceil_div(rows, group)), group};
    return made;
}

static Router router(int64_t columns) {
    int kind = (int)draw(3);
    Router made = {.offset = hold(numbers(SLICES - 1)), .columns = columns};
    if (kind == 0) return made;
    int64_t rows = 1 + draw(20), inputs = columns + (kind == 1);
    Weight *first = hold(room(sizeof *first));
    uint32_t *dense = hold(room(rows * inputs * 4));
    for (int64_t i = 0; i < rows * inputs; i++) {
        float value = number();
        if (draw(2)) value /= 8;
        memcpy(&dense[i], &value, 4);
    }
    *first = (Weight){.codes = (uint8_t *)dense, .rows = rows, .columns = inputs, .bits = FLOAT, .group = (int)inputs};
    made.first = first;
    if (kind == 1) made.b1 = hold(numbers(rows)), made.w2 = hold(numbers((SLICES - 1) * rows));
    return made;
}

static Linear linear(int64_t rows, int64_t columns) {
    Made *made = &linears[linears_count++];
    int bits = 2 + (int)draw(13); /* 13, 14: dense */
    Linear found = {.bias = draw(2) ? numbers(rows) : NULL, .place = -1};
    if (bits < 13) {
        *made = made_weight(rows, columns, bits, (int)least(columns, 8 << draw(4)));
        for (int64_t i = 0, n = ceil_div(rows, TILE) * groups_of(&made->w) * TILE; i < n; i++)
            ((uint16_t *)made->w.scales)[i] &= 0xa3ff; /* small: activations stay finite */
    } else {
        *made = (Made){.w = {.rows = rows, .columns = columns, .bits = bits == 13 ? BF16 : FLOAT, .group = (int)columns}};
        uint32_t *dense = room(rows * columns * (bits == 13 ? 2 : 4));
        for (int64_t i = 0; i < rows * columns; i++) {
            float value = number() / 8;
            uint32_t as_bits;
            memcpy(&as_bits, &value, 4);
            if (bits == 13) ((uint16_t *)dense)[i] = (uint16_t)(as_bits >> 16);
            else dense[i] = as_bits;
        }
        made->w.codes = (uint8_t *)dense;
    }
    int nested = is_nested(made->w.bits);
    found.depth = (Depth){&made->w, nested && draw(2) ? correction(rows, columns) : NULL};
    if (nested && draw(2)) {
        Routing *routing = hold(room(sizeof *routing));
        Router *own = hold(room(sizeof *own));
        Weight *depths = hold(room((bits - NESTED) * (int64_t)sizeof *depths));
        *own = router(columns);
        *routing = (Routing){.router = own, .most = bits - NESTED};
        for (int k = 0; k < routing->most; k++) {
            depths[k] = made->w;
            depths[k].bits = NESTED + k + 1;
            routing->depths[k] = (Depth){&depths[k], draw(2) ? correction(rows, columns) : NULL};
        }
        for (int k = 0; k < SLICES - 1; k++) routing->thresholds[k] = number();
        found.depth = routing->depths[0];
        found.routing = routing;
    }
    return found;
}

static Kept kept(int64_t heads, int64_t tokens, int64_t n, int bits) {
    Kept made = {.bits = bits, .group = (int)n, .clip = 0.95f};
    int64_t all = heads * tokens;
    if (bits >= BF16) made.codes = calloc((size_t)(all * n), bits / 8);
    else {
        made.codes = calloc((size_t)(all * n / 8), (size_t)bits);
        made.scales = calloc((size_t)all, 2);
        made.zeros = calloc((size_t)all, 1);
    }
    return made;
}

/* Reads `tokens` tokens into fresh caches; the last logits. */
static void read_text(const Products *products, const Model *model, int threads, int kv, int64_t tokens, float *logits,
                      uint8_t *slices) {
    Cache *caches = calloc((size_t)model->layers_count, sizeof *caches);
    for (int64_t i = 0; i < model->layers_count; i++)
        caches[i] = (Cache){kept(model->kv_heads, tokens, model->head_dim, kv),
                            kept(model->kv_heads, tokens, model->head_dim, kv), tokens};
    Pool pool = pool_of(threads);
    for (int64_t t = 0; t < tokens; t++) CHECK(!quept_step(&pool, products, model, caches, t % 7, t, logits, slices));
    for (int64_t i = 0; i < model->layers_count; i++) {
        free(caches[i].keys.codes), free(caches[i].keys.scales), free(caches[i].keys.zeros);
        free(caches[i].values.codes), free(caches[i].values.scales), free(caches[i].values.zeros);
    }
    free(caches);
}

static void step_round(const Products *products) {
    int64_t share = 1 + draw(3), kv_heads = 1 + draw(2), dim = 8 * (1 + draw(4)), hidden = 8 + draw(60), inner = 1 + draw(90);
    int64_t heads = share * kv_heads, vocabulary = 7 + draw(60), count = 1 + draw(2), tokens = 1 + draw(9);
    int widths[] = {2, 3, 4, 5, 6, 7, 8, BF16, FLOAT}, kv = widths[draw(9)];
    Layer *layers = calloc((size_t)count, sizeof *layers);
    for (int64_t i = 0; i < count; i++)
        layers[i] = (Layer){linear(heads * dim, hidden),
                            linear(kv_heads * dim, hidden),
                            linear(kv_heads * dim, hidden),
                            linear(hidden, heads * dim),
                            linear(inner, hidden),
                            linear(inner, hidden),
                            linear(hidden, inner),
                            numbers(hidden),
                            numbers(hidden),
                            i ? numbers(dim) : NULL,
                            i ? numbers(dim) : NULL};
    for (int64_t i = 0; i < count; i++)
        for (int j = 0; j < LINEARS; j++) (&layers[i].q)[j].place = i * LINEARS + j;
    Linear embedding[] = {linear(3, hidden), linear(vocabulary, hidden)}; /* in stretches of rows */
    Linear head[] = {linear(TILE, hidden), linear(vocabulary, hidden)};
    head[0].routing = head[1].routing = NULL;
    vocabulary += TILE;
    const Weight *rows[] = {embedding[0].depth.weight, embedding[1].depth.weight};
    Model model = {layers, count, rows, head, 2, 2, numbers(hidden), numbers(dim / 2), hidden, inner, heads,
                   kv_heads, dim, 0, 0, 1e-5f, 1, (int)draw(2)};
    quept_fit(&model);
    float *one = room(vocabulary * 4), *other = room(vocabulary * 4);
    uint8_t *slices = room(count * LINEARS), *others = room(count * LINEARS);
    read_text(products, &model, 1, kv, tokens, one, slices);
    read_text(products, &model, 2 + (int)draw(MOST_THREADS - 1), kv, tokens, other, others);
    CHECK(!memcmp(slices, others, (size_t)(count * LINEARS)));
    for (int64_t i = 0; i < vocabulary; i++) CHECK(isfinite(one[i]));
    CHECK(!memcmp(one, other, (size_t)vocabulary * 4)); /* whoever computes a row, it is the same */
    for (int64_t i = 0; i < count; i++) {
        const Linear *all = &layers[i].q;
        for (int j = 0; j < LINEARS; j++) free((void *)all[j].bias);
        free((void *)layers[i].attention_norm), free((void *)layers[i].mlp_norm);
        free((void *)layers[i].q_norm), free((void *)layers[i].k_norm);
    }
    while (linears_count) let_go(&linears[--linears_count]);
    for (int i = 0; i < 2; i++) free((void *)embedding[i].bias), free((void *)head[i].bias);
    free((void *)model.norm), free((void *)model.frequencies);
    while (held_count) free(held[--held_count]);
    free(layers), free(one), free(other), free(slices), free(others);
}

/* ---- scores of tokens */

static void scores_round(const Products *products) {
    int64_t columns = 1 + draw(200), n = 1 + draw(5);
    Router made = router(columns);
    float *x = numbers(n * columns), all[5 * (SLICES - 1)], one[SLICES - 1];
    Pool pool = pool_of(1 + (int)draw(MOST_THREADS)), single = pool_of(1);
    CHECK(!quept_scores(&pool, products, &made, x, n, all));
    for (int64_t i = 0; i < n; i++) { /* a token's scores are the same alone */
        CHECK(!quept_scores(&single, products, &made, x + i * columns, 1, one));
        CHECK(!memcmp(one, all + i * (SLICES - 1), sizeof one));
        for (int k = 0; k < SLICES - 1; k++) CHECK(isfinite(one[k]));
    }
    while (held_count) free(held[--held_count]);
    free(x);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 100, sets = 0;
    state = 0x9e3779b97f4a7c15u + (argc > 2 ? strtoull(argv[2], NULL, 10) : 0);
    for (size_t i = 0; i < sizeof SETS / sizeof *SETS; i++) {
        const Products *products = quept_products(SETS[i]);
        if (!products) continue;
        sets++;
        for (now = 0; now < rounds; now++) {
            products_round(products);
            rounding_round(products);
            blocks_round();
            scores_round(products);
            if (now % 4 == 0) step_round(products);
        }
    }
    printf("%d rounds in %d instruction sets\n", rounds, sets);
    return 0;
}
