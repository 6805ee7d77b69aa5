/* Shared by library.c and decode.c: threads, inputs, single rows. */

#ifndef QUEPT_LIBRARY_H
#define QUEPT_LIBRARY_H

#include <string.h>

#include "weight.h"

/* The OpenMP runtime: GOMP_parallel, omp_get_thread_num, omp_get_num_threads; parallel NULL: one thread. */
typedef struct {
    void (*parallel)(void (*job)(void *), void *data, unsigned threads, unsigned flags);
    int (*number)(void);
    int (*size)(void);
    int64_t threads;
} Pool;

typedef struct {
    int64_t first, last;
} Part;

void run_threads(const Pool *pool, void (*job)(void *), void *data);
int own_number(const Pool *pool);
int team_size(const Pool *pool); /* the runtime may give fewer threads than asked for */
Part part_of(const Pool *pool, int64_t n); /* the calling thread's share of n things */

int64_t input_bytes(const Weight *w);
Input input_in(const Weight *w, void *memory, int fast); /* an input in input_bytes(w) bytes of memory */
void unpack_row(const Weight *w, int64_t row, float *out);

static inline float half_to_float(uint16_t half) { /* finite ones */
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float size;
    memcpy(&size, &bits, sizeof size);
    size *= 0x1p112f;
    return half & 0x8000 ? -size : size;
}

#endif
