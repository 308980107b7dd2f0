/* Packed weights: the CPU device's layout, one for all instruction sets.
 *
 * A matrix is a sequence of groups of 8 output rows (the last one padded with zero rows), a group
 * is a sequence of blocks of 32 columns. Inside a block every output row owns one 32-bit lane of
 * every vector, so a product needs no horizontal sum and no row ever mixes with another. Codes are
 * cut into planes (packed.h); sub-scales are widened to bytes. Growth over GGUF: Q4_K 2.8 %,
 * Q5_K 2.3 %, Q3_K 3.6 %, IQ4_XS 1.5 %, all others none. */
#ifndef KERNELS_CPU_PACK_H
#define KERNELS_CPU_PACK_H

#include "kernels/qtype.h"

enum { PACK_ROWS = 8 };

static inline int pack_n_groups(int rows)
{
    return (rows + PACK_ROWS - 1) / PACK_ROWS;
}

/* Bytes of one group; cols is a multiple of 32 and of the format's block. Groups follow each other
 * without gaps; data must be 4-byte aligned, 64 is faster. */
size_t pack_group_bytes(enum qtype t, int cols);

/* Packs n_rows (1..8) rows of a GGUF tensor, src_row_bytes apart, into one group. */
void pack_group(enum qtype t, const void *src, size_t src_row_bytes, int n_rows, int cols,
                void *group);

/* One row of a group back: the same values as qtype_dequant_row of the source. */
void pack_dequant_row(enum qtype t, const void *group, int row, int cols, float *out);

/* Block i of 32 of one row of a group in the numeric contract's terms (quantised formats). */
void pack_unpack32(enum qtype t, const void *group, int row, int i, struct qblock32 *out);

/* Weight k of one row of a group (float formats). */
float pack_float(enum qtype t, const void *group, int row, int k);

#endif
