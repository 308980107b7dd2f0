/* Products of packed weights (pack.h) with activation rows, one table per instruction set, chosen
 * at run time.
 *
 * Every table gives the same bytes, whatever n_groups and n_rows: the value of out[row][output] is,
 * by the numeric contract, a function of the output's weights and the row alone: for each segment
 * of NUM_SEGMENT weights (the last may be shorter):  acc = 0 for each block of 32 of it, in index
 * order (dw, code, scale, min: qtype.h; da, q, s, s16: act.h) isum = exact integer  sum over k of
 * scale[k / 16] * code[k] * q[k]         (below 2^24, so its float is exact) acc =
 * fmaf((float)isum, dw * da, acc) one minimum term:   acc = fmaf(min[0], s, acc) two minimum terms:
 * acc = fmaf(min[0], s16[0], acc);  acc = fmaf(min[1], s16[1], acc) result = the first segment's
 * acc;  result = result + acc for each further segment, in index order F32, F16 and BF16 weights:
 * the same two levels with acc = fmaf(w, x, acc) over single weights. */
#ifndef KERNELS_CPU_PRODUCT_H
#define KERNELS_CPU_PRODUCT_H

#include "kernels/cpu/act.h"
#include "kernels/cpu/pack.h"
#include "kernels/kern.h"

/* Give n_groups in multiples of this: a tile is 2 or 4 groups wide, and one that is not filled takes
 * as long (3 groups with many rows: -26 %). */
enum { PRODUCT_GROUPS = 4 };

/* out[row * out_stride + 8 * group + lane] for n_groups groups and n_rows activation rows; the
 * lanes of padding rows are written too (finite or not: they are nobody's). acts: quantised rows
 * (act.h), or float rows for F32, F16 and BF16; act_stride in bytes, out_stride in floats. Weights
 * pass through the caches once per call when n_rows is small; for many rows the call blocks for L2
 * by itself. Any thread may call it, with no shared state. */
typedef void product_fn(const void *groups, int n_groups, int cols, const void *acts,
                        size_t act_stride, int n_rows, float *out, size_t out_stride);

struct product_isa {
    const char *name; /* "avx2" */
    void (*quantise)(const float *x, int cols, struct act_block *out);
    product_fn *product[QTYPE_N];
};

/* The table of an instruction set, NULL when this machine lacks it; ISA_BEST and ISA_SCALAR are
 * never NULL. */
const struct product_isa *product_isa(enum isa isa);

/* The tables themselves, for product.c alone. */
extern const struct product_isa product_scalar, product_avx2, product_avxvnni, product_avx512,
    product_avx512vnni;

#endif
