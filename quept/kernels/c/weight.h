/* A packed weight and the products with it: the types that all files of this library share.

   y[r] = sum over groups g of  scale[r,g] * sum over columns j of g of (code[r,j] - zero[r,g]) * x[j]

   with codes of 2..8 bits, float16 scales and whole zero-points, as quept.numerics.grid makes them.

   LAYOUT. Sixteen rows are a tile, 32 columns of a group a block; the last tile is filled up with rows and the
   end of every group with columns, of zeros. A block of b bits is b lines of 64 bytes. In each line the 32-bit
   lane i belongs to row i of the tile, and each byte of a lane to one of four columns in a row: a quad. The
   bits of a code are spread over planes of 4, 2 and 1 bits, as many as b has binary digits set (5 = 4 + 1), the
   lowest bits in the first plane:

     plane     lines   quad k of the block (columns 4k..4k+3) stands in
     8 bits      8     line k
     4 bits      4     line k / 2, from bit 4 (k mod 2) of every byte
     2 bits      2     line k / 4, from bit 2 (k mod 4)
     1 bit       1     from bit k

   so one shift and one mask give four codes of each of sixteen rows, whatever vectors the processor has, and no
   sum runs across lanes. Scales and zero-points lie as [tile][group][row]. Little-endian throughout.

   NESTED codes (quept.numerics.nested) are four weights of 2 bits in this layout one behind the other, the slices, with
   the highest bits first. `bits` NESTED + n reads the first n and no more, scales and zero-points are those of this depth:

   y[r] = sum over g of  scale[r,g] * (sum over slices k of 4^-k sum over j (slice_k[r,j] - 3/2) * x[j]
                                       + (2 - zero[r,g] / 64) * sum over j of x[j]) */

#ifndef QUEPT_WEIGHT_H
#define QUEPT_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

enum { TILE = 16, BLOCK = 32, LINE = 64, SPAN = 4 /* blocks that share the scale of a rounded input */ };
enum { NESTED = 8, SLICE = 2, SLICES = 4 };
enum { BF16 = 16, HALF = 17, FLOAT = 32 }; /* in place of a width: a dense weight (rows, columns) of such numbers */

typedef struct {
    const uint8_t *codes;   /* or the dense values */
    const uint16_t *scales; /* [tiles][groups][TILE], float16 bits */
    const uint8_t *zeros;   /* the same; NULL: all 128 */
    int64_t rows, columns;
    int32_t bits, group;    /* group: columns that share a scale, at most `columns` */
} Weight;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t tiles_of(const Weight *w) { return ceil_div(w->rows, TILE); }
static inline int64_t groups_of(const Weight *w) { return ceil_div(w->columns, w->group); }
/* Columns of group g; only the last may have fewer than the others. */
static inline int64_t columns_of(const Weight *w, int64_t g) {
    return least(w->group, w->columns - g * w->group);
}
static inline int64_t blocks_of(const Weight *w) {
    int64_t last = groups_of(w) - 1;
    return last * ceil_div(w->group, BLOCK) + ceil_div(columns_of(w, last), BLOCK);
}
static inline int is_nested(int bits) { return bits > NESTED && bits < BF16; }
static inline int width_of(int bits) { return is_nested(bits) ? (bits - NESTED) * SLICE : bits; } /* of a whole code */
static inline int lines_of(int bits) { return is_nested(bits) ? SLICE : bits; } /* of a block, in each slice */
static inline int64_t tile_bytes(const Weight *w) { return blocks_of(w) * lines_of(w->bits) * LINE; }
static inline int64_t slice_bytes(const Weight *w) { return tiles_of(w) * tile_bytes(w); } /* from one slice to the next */

/* An input vector as a weight reads it: its groups filled up to whole blocks, with zeros.
   Of a rounded one, x ~ scale[s] * p in every span s of at most SPAN blocks, |p| <= 127, sum[s] = sum of p. */
enum { ENTRIES = 8 }; /* numbers of a table for each column, at most */
typedef struct {
    float *x;      /* [blocks * BLOCK] */
    int8_t *p;     /* the same, or NULL: the product is exact */
    float *scale;  /* [spans], at most one a block */
    int32_t *sum;
    float *total;  /* [groups], sums of x, and what products of slices are looked up in; of nested codes, exact */
    float *table;
} Input;

/* What a weight is rounded from: x + added, (rows, columns) numbers, and the factors, (rows, groups), by which the
   lower and the upper end of each group's range are clipped; added, low, high: NULL where there are none. */
typedef struct {
    const void *x;
    const float *added, *low, *high;
    int32_t kind; /* of x: BF16, HALF, FLOAT */
} Floats;

/* What one instruction set gives: products.c and rounding.c, compiled once for each. */
typedef struct {
    const char *name;
    /* Lays x (columns) out and, if input->p is there, rounds it. */
    void (*prepare)(const Weight *, const float *x, Input *);
    /* y[r] for the rows of the tiles first..last-1, from y[0] for row 0. */
    void (*product)(const Weight *, const Input *, int64_t first, int64_t last, float *y);
    /* The values of tiles first..last-1: rows of `out`, `stride` numbers apart, float or bfloat16. */
    void (*unpack)(const Weight *, int64_t first, int64_t last, void *out, int64_t stride, int bf16);
    /* Sum of a[i] * b[i]; y += a * x; both over n floats. */
    float (*dot)(const float *a, const float *b, int64_t n);
    void (*axpy)(float a, const float *x, float *y, int64_t n);
    /* x becomes softmax(x); gate becomes silu(gate) * up; over n floats. */
    void (*softmax)(float *x, int64_t n);
    void (*gated)(float *gate, const float *up, int64_t n);
    /* y[i] += sum of a[k] * (codes[k * stride + i] - 128) over k < rank, for n codes. */
    void (*combine)(const float *a, const uint8_t *codes, int64_t stride, int64_t rank, float *y, int64_t n);
    /* Tiles first..last-1 rounded to their grid and packed, from codes[0], scales[0], zeros[0] for tile 0 (zeros: NULL
       at 8 bits); returns whether a number is not finite, or a scale no float16. */
    int (*round)(const Weight *, const Floats *, int64_t first, int64_t last, uint8_t *codes, uint16_t *scales,
                 uint8_t *zeros);
} Products;

#endif
