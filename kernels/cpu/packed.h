/* Inside a packed group: planes of codes, sub-scales, scales. For pack.c and the product kernels
 * alone.
 *
 * A block is 32 columns of 8 rows. Columns are cut into 8 quads g of 4 columns (k = 4 g + i); byte
 * 4 r + i of a vector belongs to row r. A plane holds some bits of every code: nibble  4 vectors:
 * vector g % 4, low half for g < 4, high half for g >= 4 two     2 vectors: vector g / 4, bits 2 (g
 * % 4) and up bit     1 vector: bit g byte    8 vectors: vector g The first plane present holds the
 * code's lowest bits, the next one those above. Then, 8 of each, one a row: scale0 [scale1]  int8
 * sub-scales of the halves k < 16 and k >= 16 (one when both are equal); Q2_K: minimum in the high
 * nibble of each min              uint8 integer minimum d [m]            halves (MXFP4: d is the
 * exponent byte); K formats: once per 8 blocks, in front of them Float formats: for each column the
 * 8 rows' values. */
#ifndef KERNELS_CPU_PACKED_H
#define KERNELS_CPU_PACKED_H

#include "kernels/cpu/pack.h"
#include "kernels/numerics.h"

#define PACKED_FN static inline __attribute__((always_inline))

struct packed_format {
    bool nibble, two, bit, byte; /* planes */
    int n_scales;                /* bytes of sub-scales a row: 0, 1 or 2 */
    int n_mins;                  /* bytes of integer minima a row, beside those in scale nibbles */
    int d_bytes;
    bool has_m;
    bool super; /* d and m once per 8 blocks */
};

/* Constant for a constant t, so that a kernel written over it folds to its format. */
PACKED_FN struct packed_format packed_format(enum qtype t)
{
    struct packed_format f = {.d_bytes = 2};
    f.nibble = t != QTYPE_Q8_0 && t != QTYPE_Q2_K && t != QTYPE_Q3_K;
    f.two = t == QTYPE_Q2_K || t == QTYPE_Q3_K || t == QTYPE_Q6_K;
    f.bit = t == QTYPE_Q5_0 || t == QTYPE_Q5_1 || t == QTYPE_Q5_K || t == QTYPE_Q3_K;
    f.byte = t == QTYPE_Q8_0;
    f.super = t == QTYPE_Q2_K || t == QTYPE_Q3_K || t == QTYPE_Q4_K || t == QTYPE_Q5_K ||
              t == QTYPE_Q6_K || t == QTYPE_IQ4_XS;
    f.n_scales = t == QTYPE_Q2_K || t == QTYPE_Q3_K || t == QTYPE_Q6_K ? 2 : f.super ? 1 : 0;
    f.n_mins = t == QTYPE_Q4_K || t == QTYPE_Q5_K ? 1 : 0;
    f.has_m = t == QTYPE_Q4_1 || t == QTYPE_Q5_1 || t == QTYPE_Q2_K || f.n_mins;
    if (t == QTYPE_MXFP4)
        f.d_bytes = 1;
    return f;
}

/* Byte offsets in a block, and of blocks in a group. */
struct packed_layout {
    int two, bit, scale, min, d, m; /* of the planes (nibble and byte start at 0), sub-scales,
                                       halves; d, m: from packed_d() */
    int block, head;                /* bytes of a block, and of what stands before 8 of them */
};

PACKED_FN struct packed_layout packed_layout(enum qtype t)
{
    struct packed_format f = packed_format(t);
    struct packed_layout l = {0};
    int d_bytes = PACK_ROWS * f.d_bytes, m_bytes = f.has_m ? PACK_ROWS * 2 : 0;
    l.two = f.nibble ? 128 : 0;
    l.bit = l.two + (f.two ? 64 : 0);
    l.scale = f.byte ? 256 : l.bit + (f.bit ? 32 : 0);
    l.min = l.scale + PACK_ROWS * f.n_scales;
    l.block = l.min + PACK_ROWS * f.n_mins;
    l.d = f.super ? 0 : l.block;
    l.m = l.d + d_bytes;
    if (f.super)
        l.head = d_bytes + m_bytes;
    else
        l.block += d_bytes + m_bytes;
    return l;
}

/* Offset of block i in its group, and of the place from which d and m are counted. */
PACKED_FN size_t packed_block(enum qtype t, int i)
{
    struct packed_layout l = packed_layout(t);
    return (size_t)i * (size_t)l.block + (size_t)(i / 8 + 1) * (size_t)l.head;
}

PACKED_FN size_t packed_d(enum qtype t, int i)
{
    struct packed_layout l = packed_layout(t);
    return l.head ? (size_t)(i / 8) * (size_t)(8 * l.block + l.head) : (size_t)i * (size_t)l.block;
}

#endif
