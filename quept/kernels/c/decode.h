/* The tables that decode.c reads; quept/kernels/decoder.py has the same for Python. */

#ifndef QUEPT_DECODE_H
#define QUEPT_DECODE_H

#include "library.h"

/* A low-rank correction: y[r] += sum over k of b[k,r] * sum over j of a[k,j] * x[j]; b in codes of 8 bits, all zero-points
   128, with a scale for each `group` rows. */
typedef struct {
    const Weight *a;        /* (rank, columns) */
    const uint8_t *codes;   /* [rank][rows] */
    const uint16_t *scales; /* [rank][rows / group, rounded up], float16 */
    int64_t group;
} Correction;

typedef struct {
    const Weight *weight;
    const Correction *correction; /* or NULL */
} Depth;

/* What each further slice of nested codes is worth to a token (router.c). */
typedef struct {
    const Weight *first; /* dense: W1 (hidden, columns + 1) or P (rows, columns); NULL: the norm of the input itself */
    const float *b1, *w2; /* of an mlp: [hidden], [SLICES - 1][hidden]; else NULL */
    const float *offset;  /* [SLICES - 1] */
    int64_t columns;
} Router;

/* Slice k + 1 is on for a token where score k and all before it reach their thresholds, and k + 1 < most. */
typedef struct {
    const Router *router;
    Depth depths[SLICES]; /* by slices on; `most` of them are there */
    float thresholds[SLICES - 1];
    int32_t most;
} Routing;

typedef struct {
    Depth depth;            /* for all tokens; with routing the first */
    const float *bias;      /* or NULL */
    const Routing *routing; /* or NULL */
    int64_t place;          /* among those whose slices a step tells; -1: not told */
} Linear;

enum { LINEARS = 7 };

typedef struct {
    Linear q, k, v, o, gate, up, down;
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm; /* of every head, or NULL */
} Layer;

typedef struct {
    const Layer *layers;
    int64_t layers_count;
    const Weight *const *embedding; /* its stretches of rows */
    const Linear *head;             /* likewise */
    int64_t embedding_parts, head_parts;
    const float *norm;
    const float *frequencies; /* [head_dim / 2], radians a token */
    int64_t hidden, inner, heads, kv_heads, head_dim;
    int64_t input_bytes, own_floats; /* scratch of a thread, for the largest input, and for routers: quept_fit */
    float eps, turn_scale;
    int32_t fast;
} Model;

/* The keys, or the values, of a layer: [kv_heads][room][head_dim] numbers, or codes of 2..8 bits, head_dim / 8 * bits
   bytes a token and head, with scales (float16) and zero-points for each `group` numbers. */
typedef struct {
    void *codes;
    uint16_t *scales;
    uint8_t *zeros;
    int32_t bits, group; /* bits as in a Weight */
    float clip;          /* of the range, when a token is rounded */
} Kept;

typedef struct {
    Kept keys, values;
    int64_t room; /* tokens that fit */
} Cache;

int64_t router_floats(const Router *router); /* scratch for one call */
void router_scores(const Products *products, const Router *router, const float *x, float *memory, float *scores);

#endif
