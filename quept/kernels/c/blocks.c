/* Codes of a packed weight in llama.cpp's blocks of 32 columns, and blocks that were read held against them: what
   quept.export.gguf.blocks does in torch, to the last bit, without a code that is unpacked into memory. Little-endian.

     2 to 4 bits   Q4_1   d, m float16, 16 bytes: column j in the low half of byte j, column 16 + j in the high one
     5 bits        Q5_1   d, m float16, 4 bytes of highest bits, 16 bytes of the others as in Q4_1
     6 to 8 bits   Q8_0   d float16, 32 bytes: q - z

   with d = s and m = -s z rounded to float16. Groups and columns are multiples of 32. */

#include <math.h>
#include <stdatomic.h>

#include "library.h"

#define CONSTANT static inline __attribute__((always_inline)) /* bits: known to the compiler in each copy */

typedef struct {
    const Pool *pool;
    const Weight *w;
    const int64_t *order;      /* the rows, as they follow one another in the blocks; NULL: as they are */
    uint8_t *to;               /* blocks to be written */
    const uint8_t *from;       /* or read */
    atomic_uint off, largest;  /* bits of floats, none of them negative: these are in order as whole numbers, too */
    atomic_int odd;
} Blocks;

CONSTANT int64_t block_bytes(int bits) { return bits < 5 ? 20 : bits == 5 ? 24 : 34; }

/* To the nearest float16, ties to even; infinity where it is too large. */
static inline uint16_t to_half(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000;
    value = fabsf(value);
    if (value >= 65520) return (uint16_t)(sign | 0x7c00);
    if (value < 0x1p-14f) { /* whole steps of 2^-24 */
        value += 0.5f;
        memcpy(&bits, &value, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    value *= 0x1p-112f;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

/* The lowest bit of every byte of a quad, the first in the lowest bit of four. */
static inline uint32_t gathered(uint32_t quad) { return (quad & 0x01010101u) * 0x01020408u >> 24 & 15; }

CONSTANT void write_block(int bits, const uint32_t quads[8], uint16_t scale, uint16_t offset, int zero, uint8_t *to) {
    memcpy(to, &scale, sizeof scale);
    if (bits > 5) {
        uint8_t codes[BLOCK];
        memcpy(codes, quads, sizeof codes);
        for (int j = 0; j < BLOCK; j++) to[2 + j] = (uint8_t)(codes[j] - zero);
        return;
    }
    memcpy(to + 2, &offset, sizeof offset);
    to += 4;
    if (bits == 5) {
        uint32_t high = 0;
        for (int k = 0; k < 8; k++) high |= gathered(quads[k] >> 4) << (4 * k);
        memcpy(to, &high, sizeof high);
        to += sizeof high;
    }
    for (int k = 0; k < 4; k++) {
        uint32_t pairs = (quads[k] & 0x0f0f0f0fu) | (quads[k + 4] & 0x0f0f0f0fu) << 4;
        memcpy(to + 4 * k, &pairs, sizeof pairs);
    }
}

/* Zero where a block says these codes, this scale and this offset. */
CONSTANT uint32_t differs(int bits, const uint8_t *block, const uint32_t quads[8], uint16_t scale, uint16_t offset,
                          int zero) {
    uint16_t d, m = offset;
    uint32_t off = 0, high = 0;
    memcpy(&d, block, sizeof d);
    if (bits > 5) {
        uint8_t codes[BLOCK];
        memcpy(codes, quads, sizeof codes);
        for (int j = 0; j < BLOCK; j++) off |= (uint8_t)(block[2 + j] + zero - codes[j]);
    } else {
        memcpy(&m, block + 2, sizeof m);
        block += 4;
        if (bits == 5) {
            memcpy(&high, block, sizeof high);
            block += sizeof high;
            for (int k = 0; k < 8; k++) off |= (high >> (4 * k) & 15) ^ gathered(quads[k] >> 4);
        }
        for (int k = 0; k < 4; k++) {
            uint32_t pairs;
            memcpy(&pairs, block + 4 * k, sizeof pairs);
            off |= ((pairs ^ quads[k]) | (pairs >> 4 ^ quads[k + 4])) & 0x0f0f0f0fu;
        }
    }
    return off | (uint32_t)(d ^ scale) | (uint32_t)(m ^ offset);
}

CONSTANT void rows_in(Blocks *job, int bits, int reads) {
    const Weight *w = job->w;
    const int64_t groups = groups_of(w), each = block_bytes(bits), top = (1 << bits) - 1;
    Part part = part_of(job->pool, w->rows);
    int64_t start = part.first * (w->columns / BLOCK) * each;
    uint8_t *to = reads ? NULL : job->to + start;
    const uint8_t *from = reads ? job->from + start : NULL;
    float off = 0, largest = 0;
    uint32_t odd = 0;
    for (int64_t i = part.first; i < part.last; i++) {
        int64_t row = job->order ? job->order[i] : i, tile = row / TILE;
        int lane = (int)(row % TILE);
        const uint8_t *block = w->codes + tile * tile_bytes(w);
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = (tile * groups + g) * TILE + lane, columns = columns_of(w, g);
            int zero = w->zeros ? w->zeros[at] : 128;
            float scale = half_to_float(w->scales[at]), exact = scale * -(float)zero;
            uint16_t offset = to_half(exact);
            if (reads) {
                float most = fabsf(scale) * (float)(zero > top - zero ? zero : top - zero);
                largest = most > largest ? most : largest;
                float moved = bits > 5 ? 0 : fabsf(half_to_float(offset) - exact);
                off = moved > off ? moved : off;
            }
            for (int64_t j = 0; j < columns; j += BLOCK, block += bits * LINE) {
                uint32_t quads[8];
                read_lane(block, bits, lane, (uint8_t *)quads);
                if (reads) {
                    odd |= differs(bits, from, quads, w->scales[at], offset, zero);
                    from += each;
                } else {
                    write_block(bits, quads, w->scales[at], offset, zero, to);
                    to += each;
                }
            }
        }
    }
    if (!reads) return;
    unsigned bits_of[2], seen;
    memcpy(bits_of, &off, sizeof off);
    memcpy(bits_of + 1, &largest, sizeof largest);
    atomic_uint *kept[2] = {&job->off, &job->largest};
    for (int k = 0; k < 2; k++) {
        seen = atomic_load(kept[k]);
        while (seen < bits_of[k] && !atomic_compare_exchange_weak(kept[k], &seen, bits_of[k])) {}
    }
    if (odd) atomic_store(&job->odd, 1);
}

static void write_part(void *data) {
    Blocks *job = data;
    switch (job->w->bits) {
    case 2: rows_in(job, 2, 0); break;
    case 3: rows_in(job, 3, 0); break;
    case 4: rows_in(job, 4, 0); break;
    case 5: rows_in(job, 5, 0); break;
    case 6: rows_in(job, 6, 0); break;
    case 7: rows_in(job, 7, 0); break;
    case 8: rows_in(job, 8, 0); break;
    }
}

static void read_part(void *data) {
    Blocks *job = data;
    switch (job->w->bits) {
    case 2: rows_in(job, 2, 1); break;
    case 3: rows_in(job, 3, 1); break;
    case 4: rows_in(job, 4, 1); break;
    case 5: rows_in(job, 5, 1); break;
    case 6: rows_in(job, 6, 1); break;
    case 7: rows_in(job, 7, 1); break;
    case 8: rows_in(job, 8, 1); break;
    }
}

void quept_to_blocks(const Pool *pool, const Weight *w, const int64_t *order, uint8_t *blocks) {
    Blocks job = {.pool = pool, .w = w, .order = order, .to = blocks};
    run_threads(pool, write_part, &job);
}

/* Returns whether blocks say something else than the weight; found: the largest rounding of an offset, and the largest
   value that the grid holds. */
int quept_differs(const Pool *pool, const Weight *w, const int64_t *order, const uint8_t *blocks, float found[2]) {
    Blocks job = {.pool = pool, .w = w, .order = order, .from = blocks};
    run_threads(pool, read_part, &job);
    unsigned bits[2] = {atomic_load(&job.off), atomic_load(&job.largest)};
    memcpy(found, bits, sizeof bits);
    return atomic_load(&job.odd);
}
