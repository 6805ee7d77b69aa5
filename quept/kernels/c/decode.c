/* One token through a Llama-like decoder, from its id to the logits, in one call.

   A model is a table of pointers, so a plan is a table: switching a layer writes a pointer, and two conversations at
   two plans are two tables over one store of weights. For each layer, with x the residual stream:

     a = norm(x)      q, k, v = a Wq + bq, a Wk + bk, a Wv + bv      (q, k: norm of every head where there is one)
     q, k turned by position      keys, values += k, v      x += softmax(q keys / sqrt(d)) values Wo + bo
     m = norm(x)      x += (silu(m Wgate) * (m Wup)) Wdown

   A layer of nested codes may have a router: it scores the input, and the token is multiplied by the slices that it gets
   here and no others; its bits are told. Every thread decides by itself, by the same numbers.

   norm(x) = x / sqrt(mean(x^2) + eps) * weight. All arithmetic is in float; keys and values are kept as the
   conversation's cache keeps them: float, bfloat16, or 2..8 bits in the form of quept.runtime.kvcache.

   Threads share the rows of each product and the heads of attention, and wait for each other between them. */

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"

enum { SPINS = 2000 }; /* turns of waiting before a thread lets others run */

typedef struct {
    const Pool *pool;
    const Products *products;
    const Model *model;
    const Cache *caches;
    int64_t position;
    float *logits;
    uint8_t *slices; /* [layers][LINEARS], those that were read; 0 of what is not nested; or NULL */
    float *x, *q, *k, *v, *mixed, *inner, *turn; /* turn: cosines, then sines, of head_dim / 2 angles each */
    char *own;                                   /* own_bytes for each thread */
    int64_t own_bytes, scores_length;
    atomic_uint arrived, turns;
} Step;

/* What one thread keeps to itself. */
typedef struct {
    const Step *step;
    int number, team;
    Input input;
    const Weight *input_of; /* whose form the input has; NULL: x has changed */
    const Router *scored_by;
    float scores_by[SLICES - 1];
    float *normed, *rows, *scores, *key, *value, *row, *memory;
    void *input_memory;
} Thread;

static void wait_for_all(Thread *t) {
    Step *step = (Step *)t->step;
    if (t->team == 1) return;
    unsigned turn = atomic_load(&step->turns);
    if (atomic_fetch_add(&step->arrived, 1) + 1 == (unsigned)t->team) {
        atomic_store(&step->arrived, 0);
        atomic_store(&step->turns, turn + 1);
        return;
    }
    for (int i = 0; atomic_load(&step->turns) == turn; i++)
        if (i > SPINS) sched_yield();
}

static void norm(const Products *products, const float *x, const float *weight, float eps, int64_t n, float *y) {
    float scale = 1 / sqrtf(products->dot(x, x, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static Part rows_of(const Thread *t, const Weight *w) { /* whole tiles */
    Part tiles = part_of(t->step->pool, tiles_of(w));
    return (Part){tiles.first * TILE, least(tiles.last * TILE, w->rows)};
}

static void forget_input(Thread *t) { /* x changes */
    t->input_of = NULL;
    t->scored_by = NULL;
}

static int fits(const Weight *prepared, const Weight *w) {
    int alike = prepared->columns == w->columns && prepared->group == w->group;
    return alike && (prepared->bits >= BF16) == (w->bits >= BF16) && (is_nested(prepared->bits) || !is_nested(w->bits));
}

/* x in the form that a weight reads; as it is already where the last one's fits. */
static const Input *input_for(Thread *t, const Weight *w, const float *x) {
    if (!t->input_of || !fits(t->input_of, w)) {
        t->input = input_in(w, t->input_memory, t->step->model->fast);
        t->step->products->prepare(w, x, &t->input);
        t->input_of = w;
    }
    return &t->input;
}

static const Depth *depth_of(Thread *t, const Linear *linear, const float *x) {
    const Routing *routing = linear->routing;
    if (!routing) return &linear->depth;
    if (t->scored_by != routing->router) {
        router_scores(t->step->products, routing->router, x, t->memory, t->scores_by);
        t->scored_by = routing->router;
    }
    int more = 0;
    while (more + 1 < routing->most && t->scores_by[more] >= routing->thresholds[more]) more++;
    return &routing->depths[more];
}

/* Adds a correction to these rows of y. */
static void correct(Thread *t, const Correction *correction, const float *x, Part rows, int64_t all_rows, float *y) {
    const Weight *a = correction->a;
    const Products *products = t->step->products;
    int64_t blocks = ceil_div(all_rows, correction->group);
    float *low = t->memory, *scaled = low + a->rows;
    products->product(a, input_for(t, a, x), 0, tiles_of(a), low);
    for (int64_t from = rows.first; from < rows.last;) {
        int64_t block = from / correction->group, end = least((block + 1) * correction->group, rows.last);
        for (int64_t k = 0; k < a->rows; k++) scaled[k] = low[k] * half_to_float(correction->scales[k * blocks + block]);
        products->combine(scaled, correction->codes + from, all_rows, a->rows, y + from, end - from);
        from = end;
    }
}

/* This thread's rows of y = x W + bias; x as in the last call where it was not forgotten. */
static Part multiply(Thread *t, const Linear *linear, const float *x, float *y) {
    const Step *step = t->step;
    const Depth *depth = depth_of(t, linear, x);
    const Weight *w = depth->weight;
    Part rows = rows_of(t, w);
    step->products->product(w, input_for(t, w, x), rows.first / TILE, ceil_div(rows.last, TILE), y);
    if (depth->correction) correct(t, depth->correction, x, rows, w->rows, y);
    for (int64_t r = rows.first; linear->bias && r < rows.last; r++) y[r] += linear->bias[r];
    if (step->slices && linear->place >= 0 && t->number == 0)
        step->slices[linear->place] = (uint8_t)(is_nested(w->bits) ? w->bits - NESTED : 0);
    return rows;
}

static void add_product(Thread *t, const Linear *linear, const float *x) {
    forget_input(t);
    Part rows = multiply(t, linear, x, t->rows);
    for (int64_t r = rows.first; r < rows.last; r++) t->step->x[r] += t->rows[r];
}

/* ---- keys and values */

static uint16_t to_half(float value) { /* positive, up to 65504; to the nearest, ties to even */
    uint32_t bits;
    value *= 0x1p-112f;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

static uint64_t codes_mask(int bits) { return (1u << bits) - 1; }

/* Number `at` (a token of one head) of a cache -> head_dim floats, in `room` where they are not floats already. */
static const float *read_row(const Kept *kept, int64_t at, int64_t n, float *room) {
    if (kept->bits == FLOAT) return (const float *)kept->codes + at * n;
    if (kept->bits == BF16) {
        const uint16_t *from = (const uint16_t *)kept->codes + at * n;
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)from[i] << 16;
            memcpy(room + i, &bits, sizeof bits);
        }
        return room;
    }
    const uint8_t *from = (const uint8_t *)kept->codes + at * (n / 8) * kept->bits;
    int64_t groups = n / kept->group;
    for (int64_t i = 0; i < n; i += 8, from += kept->bits) {
        uint64_t word = 0;
        memcpy(&word, from, (size_t)kept->bits);
        for (int j = 0; j < 8; j++) room[i + j] = (float)(word >> (j * kept->bits) & codes_mask(kept->bits));
    }
    for (int64_t g = 0; g < groups; g++) {
        float scale = half_to_float(kept->scales[at * groups + g]), zero = kept->zeros[at * groups + g];
        for (int64_t i = g * kept->group; i < (g + 1) * kept->group; i++) room[i] = (room[i] - zero) * scale;
    }
    return room;
}

/* x becomes what the cache keeps of it; written there as number `at` if it is this thread's to write. */
static void keep_row(const Kept *kept, int64_t at, int64_t n, float *x, int writes) {
    if (kept->bits == FLOAT) {
        if (writes) memcpy((float *)kept->codes + at * n, x, sizeof(float) * (size_t)n);
        return;
    }
    if (kept->bits == BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, sizeof bits);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
            memcpy(x + i, &bits, sizeof bits);
            if (writes) ((uint16_t *)kept->codes)[at * n + i] = (uint16_t)(bits >> 16);
        }
        return;
    }
    int64_t groups = n / kept->group;
    float top = (float)codes_mask(kept->bits);
    uint8_t *to = (uint8_t *)kept->codes + at * (n / 8) * kept->bits;
    for (int64_t g = 0; g < groups; g++, x += kept->group) {
        float low = 0, high = 0;
        for (int64_t i = 0; i < kept->group; i++) {
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
        }
        low *= kept->clip;
        high *= kept->clip;
        uint16_t half = to_half(fminf(fmaxf((high - low) / top, 0x1p-24f), 65504));
        float scale = half_to_float(half), zero = fminf(rintf(-low / scale), top);
        if (writes) {
            kept->scales[at * groups + g] = half;
            kept->zeros[at * groups + g] = (uint8_t)zero;
        }
        for (int64_t i = 0; i < kept->group; i += 8, to += kept->bits) {
            uint64_t word = 0;
            for (int j = 0; j < 8; j++) {
                float code = fminf(fmaxf(rintf(x[i + j] / scale) + zero, 0), top);
                word |= (uint64_t)code << (j * kept->bits);
                x[i + j] = (code - zero) * scale;
            }
            if (writes) memcpy(to, &word, (size_t)kept->bits);
        }
    }
}

/* ---- attention */

/* The head's norm, where there is one, and the turn by position: pairs (i, i + n / 2). */
static void turned(const Step *step, float *head, const float *weight) {
    const Model *model = step->model;
    int64_t n = model->head_dim, half = n / 2;
    const float *cosine = step->turn, *sine = step->turn + half;
    if (weight) norm(step->products, head, weight, model->eps, n, head);
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

/* Heads first..last-1, which read the same keys and values; `writes`: the new token's into the cache too. */
static void attend(Thread *t, const Layer *layer, const Cache *cache, int64_t first, int64_t last, int writes) {
    const Step *step = t->step;
    const Model *model = step->model;
    const Products *products = step->products;
    int64_t n = model->head_dim, position = step->position, length = step->scores_length;
    int64_t from = first / (model->heads / model->kv_heads), at = from * cache->room;
    memcpy(t->key, step->k + from * n, sizeof(float) * (size_t)n);
    memcpy(t->value, step->v + from * n, sizeof(float) * (size_t)n);
    turned(step, t->key, layer->k_norm);
    keep_row(&cache->keys, at + position, n, t->key, writes);
    keep_row(&cache->values, at + position, n, t->value, writes);
    float scale = 1 / sqrtf((float)n);
    for (int64_t h = first; h < last; h++) {
        turned(step, step->q + h * n, layer->q_norm);
        memset(step->mixed + h * n, 0, sizeof(float) * (size_t)n);
    }
    for (int64_t j = 0; j <= position; j++) {
        const float *key = j == position ? t->key : read_row(&cache->keys, at + j, n, t->row);
        for (int64_t h = first; h < last; h++)
            t->scores[(h - first) * length + j] = scale * products->dot(step->q + h * n, key, n);
    }
    for (int64_t h = first; h < last; h++) products->softmax(t->scores + (h - first) * length, position + 1);
    for (int64_t j = 0; j <= position; j++) {
        const float *value = j == position ? t->value : read_row(&cache->values, at + j, n, t->row);
        for (int64_t h = first; h < last; h++)
            products->axpy(t->scores[(h - first) * length + j], value, step->mixed + h * n, n);
    }
}

static void attention(Thread *t, const Layer *layer, const Cache *cache) {
    const Model *model = t->step->model;
    int64_t share = model->heads / model->kv_heads; /* heads that read the same keys */
    Part heads = part_of(t->step->pool, model->heads);
    for (int64_t h = heads.first; h < heads.last;) {
        int64_t end = least((h / share + 1) * share, heads.last);
        attend(t, layer, cache, h, end, h % share == 0);
        h = end;
    }
}

/* ---- the token */

static void layer_step(Thread *t, const Layer *layer, const Cache *cache) {
    const Step *step = t->step;
    const Model *model = step->model;
    norm(step->products, step->x, layer->attention_norm, model->eps, model->hidden, t->normed);
    forget_input(t);
    multiply(t, &layer->q, t->normed, step->q);
    multiply(t, &layer->k, t->normed, step->k);
    multiply(t, &layer->v, t->normed, step->v);
    wait_for_all(t);
    attention(t, layer, cache);
    wait_for_all(t);
    add_product(t, &layer->o, step->mixed);
    wait_for_all(t);
    norm(step->products, step->x, layer->mlp_norm, model->eps, model->hidden, t->normed);
    forget_input(t);
    multiply(t, &layer->up, t->normed, t->rows);
    Part rows = multiply(t, &layer->gate, t->normed, step->inner);
    step->products->gated(step->inner + rows.first, t->rows + rows.first, rows.last - rows.first);
    wait_for_all(t);
    add_product(t, &layer->down, step->inner);
    wait_for_all(t);
}

static void *carve(char **memory, int64_t bytes) { /* the next piece of a scratch buffer, on a line of its own */
    void *piece = *memory;
    *memory += ceil_div(bytes, LINE) * LINE;
    return piece;
}

static void step_part(void *data) {
    const Step *step = data;
    const Model *model = step->model;
    int64_t share = model->heads / model->kv_heads;
    Thread t = {.step = step, .number = own_number(step->pool), .team = team_size(step->pool)};
    char *own = step->own + t.number * step->own_bytes;
    t.input_memory = carve(&own, model->input_bytes);
    t.normed = carve(&own, model->hidden * (int64_t)sizeof(float));
    t.rows = carve(&own, (model->hidden > model->inner ? model->hidden : model->inner) * (int64_t)sizeof(float));
    t.key = carve(&own, model->head_dim * (int64_t)sizeof(float));
    t.value = carve(&own, model->head_dim * (int64_t)sizeof(float));
    t.row = carve(&own, model->head_dim * (int64_t)sizeof(float));
    t.memory = carve(&own, model->own_floats * (int64_t)sizeof(float));
    t.scores = carve(&own, share * step->scores_length * (int64_t)sizeof(float));
    for (int64_t i = 0; i < model->layers_count; i++) layer_step(&t, &model->layers[i], &step->caches[i]);
    norm(step->products, step->x, model->norm, model->eps, model->hidden, t.normed);
    forget_input(&t);
    float *logits = step->logits;
    for (int64_t i = 0; i < model->head_parts; i++) {
        multiply(&t, &model->head[i], t.normed, logits);
        logits += model->head[i].depth.weight->rows;
    }
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static void fit_depth(Model *model, const Depth *depth) {
    const Correction *correction = depth->correction;
    model->input_bytes = most(model->input_bytes, input_bytes(depth->weight));
    if (!correction) return;
    model->input_bytes = most(model->input_bytes, input_bytes(correction->a));
    model->own_floats = most(model->own_floats, 2 * correction->a->rows);
}

static void fit_linear(Model *model, const Linear *linear) {
    const Routing *routing = linear->routing;
    fit_depth(model, &linear->depth);
    for (int k = 0; routing && k < routing->most; k++) fit_depth(model, &routing->depths[k]);
    if (routing) model->own_floats = most(model->own_floats, router_floats(routing->router));
}

/* Fills in the scratch that the largest layer takes. */
void quept_fit(Model *model) {
    model->input_bytes = model->own_floats = 0;
    for (int64_t i = 0; i < model->head_parts; i++) fit_linear(model, &model->head[i]);
    for (int64_t i = 0; i < model->layers_count; i++)
        for (int j = 0; j < LINEARS; j++) fit_linear(model, &model->layers[i].q + j);
}

int quept_step(const Pool *pool, const Products *products, const Model *model, const Cache *caches, int64_t token,
               int64_t position, float *logits, uint8_t *slices) {
    const int64_t size = sizeof(float), dim = model->head_dim, heads = model->heads, kv_heads = model->kv_heads;
    int64_t widest = model->hidden > model->inner ? model->hidden : model->inner;
    Step step = {.pool = pool, .products = products, .model = model, .caches = caches, .position = position};
    step.logits = logits;
    step.slices = slices;
    step.scores_length = ceil_div(position + 1, TILE) * TILE;
    step.own_bytes = 9 * LINE + model->input_bytes +
                     size * (model->hidden + widest + 3 * dim + model->own_floats + heads / kv_heads * step.scores_length);
    step.own_bytes = ceil_div(step.own_bytes, LINE) * LINE;
    int64_t shared = size * (model->hidden + dim * (2 * heads + 2 * kv_heads + 1) + model->inner) + 8 * LINE;
    char *memory = malloc((size_t)(LINE + shared + pool->threads * step.own_bytes)), *at;
    if (!memory) return 1;
    at = memory + (LINE - (uintptr_t)memory % LINE) % LINE;
    step.x = carve(&at, size * model->hidden);
    step.q = carve(&at, size * heads * dim);
    step.mixed = carve(&at, size * heads * dim);
    step.k = carve(&at, size * kv_heads * dim);
    step.v = carve(&at, size * kv_heads * dim);
    step.inner = carve(&at, size * model->inner);
    step.turn = carve(&at, size * dim);
    step.own = at;
    const Weight *const *part = model->embedding;
    while (token >= (*part)->rows) token -= (*part++)->rows;
    unpack_row(*part, token, step.x);
    for (int64_t i = 0; i < dim / 2; i++) {
        float angle = (float)position * model->frequencies[i];
        step.turn[i] = cosf(angle) * model->turn_scale;
        step.turn[dim / 2 + i] = sinf(angle) * model->turn_scale;
    }
    run_threads(pool, step_part, &step);
    free(memory);
    return 0;
}
