/* Shared by library.c, blocks.c and decode.c: threads, inputs, single rows. */

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

/* A row's 32 codes out of its lane of a block. */
static inline void read_lane(const uint8_t *block, int bits, int lane, uint8_t *codes) {
    const uint8_t *plane = block + 4 * lane;
    memset(codes, 0, BLOCK);
    for (int width = 8, done = 0; width; width /= 2) {
        if (!(bits & width)) continue;
        int share = 8 / width;
        uint32_t low = 0x01010101u * ((1u << width) - 1);
        for (int k = 0; k < 8; k++) {
            uint32_t line, four;
            memcpy(&line, plane + LINE * (k / share), sizeof line);
            memcpy(&four, codes + 4 * k, sizeof four);
            four |= (line >> width * (k % share) & low) << done;
            memcpy(codes + 4 * k, &four, sizeof four);
        }
        plane += LINE * width;
        done += width;
    }
}

#endif
