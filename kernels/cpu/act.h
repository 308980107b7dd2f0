/* Quantised activations: what a product with a quantised weight format reads of one row. One block
 * of 32 is one cache line, so that a column of a tile costs one line a block. Rows of float weights
 * take the float row itself. */
#ifndef KERNELS_CPU_ACT_H
#define KERNELS_CPU_ACT_H

#include "kernels/numerics.h"

#include <stddef.h>
#include <stdint.h>

struct act_block {
    int8_t q[NUM_BLOCK];
    float d;            /* num_quant_scale */
    float s;            /* d * (float)(sum of the 32 codes): partner of the minimum term */
    float s16[2];       /* the same of each half */
    int16_t pair[2][2]; /* [half][p]: sum of the codes k of a half with k % 4 / 2 == p: the 16-bit
                           lanes of a dot */
    int16_t pair32[2];  /* the halves together */
    int32_t unused;
};
_Static_assert(sizeof(struct act_block) == 64, "one cache line");

/* Bytes of a quantised row: a multiple of 64; rows must be 64-byte aligned to be fast, 4 to be
 * right. */
static inline size_t act_row_bytes(int cols)
{
    return (size_t)(cols / NUM_BLOCK) * sizeof(struct act_block);
}

#endif
