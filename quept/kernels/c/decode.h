/* The tables that decode.c reads; quept/kernels/decoder.py has the same for Python. */

#ifndef QUEPT_DECODE_H
#define QUEPT_DECODE_H

#include "library.h"

typedef struct {
    const Weight *weight;
    const float *bias; /* or NULL */
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
    const Weight *embedding;
    Linear head;
    const float *norm;
    const float *frequencies; /* [head_dim / 2], radians a token */
    int64_t hidden, inner, heads, kv_heads, head_dim;
    int64_t input_bytes; /* scratch for the largest input: quept_input_bytes */
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

#endif
