/* What the further slices of nested codes are worth to a token, from its input to a layer: the scores of
   quept.engines.mobiquant.router, one token at a time, so that they are the same whatever is read beside it.

     mlp         W2 relu(W1 f + b1) + offset,   f = (x sqrt(n) / |x|, log |x|)
     projection  log |P x|^2 + offset
     norm        log |x|^2 + offset                                                                              */

#include <math.h>
#include <stdlib.h>

#include "decode.h"

static const float SMALLEST = 1e-12f;

int64_t router_floats(const Router *router) { return router->columns + 1 + (router->first ? router->first->rows : 0); }

static float above_nothing(float square) { return square < SMALLEST ? SMALLEST : square; } /* NaN stays */

void router_scores(const Products *products, const Router *router, const float *x, float *memory, float *scores) {
    const Weight *first = router->first;
    int64_t n = router->columns;
    if (!router->w2) {
        if (first) products->product(first, &(Input){.x = (float *)x}, 0, tiles_of(first), memory);
        const float *seen = first ? memory : x;
        int64_t many = first ? first->rows : n;
        float size = logf(above_nothing(products->dot(seen, seen, many)));
        for (int k = 0; k < SLICES - 1; k++) scores[k] = size + router->offset[k];
        return;
    }
    float size = sqrtf(above_nothing(products->dot(x, x, n))), scale = sqrtf((float)n) / size, *hidden = memory + n + 1;
    for (int64_t j = 0; j < n; j++) memory[j] = x[j] * scale;
    memory[n] = logf(size);
    products->product(first, &(Input){.x = memory}, 0, tiles_of(first), hidden);
    for (int64_t h = 0; h < first->rows; h++) {
        hidden[h] += router->b1[h];
        if (hidden[h] < 0) hidden[h] = 0;
    }
    for (int k = 0; k < SLICES - 1; k++)
        scores[k] = products->dot(router->w2 + k * first->rows, hidden, first->rows) + router->offset[k];
}

typedef struct {
    const Pool *pool;
    const Products *products;
    const Router *router;
    const float *x;
    float *memory, *scores;
    int64_t n;
} Scoring;

static void score_part(void *data) {
    const Scoring *job = data;
    Part part = part_of(job->pool, job->n);
    float *memory = job->memory + own_number(job->pool) * router_floats(job->router);
    for (int64_t i = part.first; i < part.last; i++)
        router_scores(job->products, job->router, job->x + i * job->router->columns, memory, job->scores + i * (SLICES - 1));
}

int quept_scores(const Pool *pool, const Products *products, const Router *router, const float *x, int64_t n,
                 float *scores) {
    float *memory = malloc((size_t)(pool->threads * router_floats(router)) * sizeof *memory);
    if (!memory) return 1;
    Scoring job = {pool, products, router, x, memory, scores, n};
    run_threads(pool, score_part, &job);
    free(memory);
    return 0;
}
