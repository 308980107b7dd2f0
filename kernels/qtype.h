/* Weight formats: names, sizes, and the decoding of a row into the numeric contract's terms.
 *
 * Every quantised format is, per block of 32 weights: one float scale d, integer codes, integer sub-scales of one or two
 * groups, and up to two minimum terms. qtype_unpack32 gives exactly that; the scalar reference, the packers and the
 * tests read formats through it and nothing else does. */
#ifndef KERNELS_QTYPE_H
#define KERNELS_QTYPE_H

#include "kernels/blocks.h"

#include <stdbool.h>
#include <stddef.h>

enum qtype {
#define QTYPE(name, id, n, block, mins) QTYPE_##name,
#include "kernels/qtypes.def"
#undef QTYPE
    QTYPE_N
};

struct qtype_info {
    const char *name;     /* "Q4_K" */
    unsigned gguf_id;
    int block_weights;    /* weights a block */
    size_t block_bytes;
    int n_mins;           /* minimum terms per 32 weights: 0, 1 or 2 */
    bool quantised;       /* false: F32, F16, BF16 (activations stay float) */
};

const struct qtype_info *qtype_info(enum qtype t);
bool qtype_from_gguf(unsigned gguf_id, enum qtype *out);
const char *qtype_name(enum qtype t);
const char *qtype_gguf_name(unsigned gguf_id);       /* also of types that are not supported; NULL when unknown */
size_t qtype_row_bytes(enum qtype t, size_t cols);   /* cols must be a multiple of block_weights */

/* 32 weights of a quantised format: value k = d * scale[k / 16] * code[k] + min[k / 16]. */
struct qblock32 {
    float d;
    int16_t code[32];     /* offset applied: q - 8 for Q4_0, the table value for MXFP4 */
    int16_t scale[2];     /* sub-scales of the two halves (equal where the format has one per 32; 1 if none) */
    float min[2];         /* minimum terms, already multiplied: m, or -(dmin * (float)m); 0 when the format has none */
};

/* The same 32 weights as they are stored, the bits brought together: what a packed layout keeps. */
struct qraw32 {
    uint8_t q[32];        /* codes without offset or table; the signed byte for Q8_0 */
    int8_t scale[2];      /* as in qblock32 */
    uint8_t min[2];       /* K formats: the integer m of dmin * m */
    uint16_t d, m;        /* bits of the half (MXFP4: the exponent byte); m is dmin in the K formats, 0 if none */
};

/* Block i of 32 (i counts over the whole row) of a row that starts at `row`. */
void qtype_unpack32(enum qtype t, const void *row, size_t i, struct qblock32 *out);

/* The two halves of qtype_unpack32. */
void qtype_raw32(enum qtype t, const void *row, size_t i, struct qraw32 *out);
void qtype_terms(enum qtype t, const struct qraw32 *raw, struct qblock32 *out);

/* 32 weights as float: (d * scale) * code + min, one rounding each in that order. */
void qtype_dequant32(const struct qblock32 *b, float out[32]);

/* A row as float: every block as in qtype_dequant32; F32/F16/BF16 exactly. */
void qtype_dequant_row(enum qtype t, const void *row, size_t cols, float *out);

/* False: of the cols weights at `row` a value, scale or minimum is NaN or infinite. */
bool qtype_finite(enum qtype t, const void *row, size_t cols);

/* The first row of n_mat stacked matrices, mat_stride bytes apart, that is not finite: counted over all rows; -1 when all are. */
long qtype_first_damaged(enum qtype t, const void *src, int rows, int cols, int n_mat, size_t mat_stride);

extern const int8_t iq4_values[16];
extern const int8_t mxfp4_values[16];

#endif
