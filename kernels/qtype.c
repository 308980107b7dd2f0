/* Weight formats: the table of names and sizes, and the one decoder per format. Clarity before
 * speed: the decoders run at load, in the scalar reference and in tests, never in a product. */
#include "kernels/qtype.h"

#include "kernels/numerics.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};
const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static const struct qtype_info infos[QTYPE_N] = {
#define QTYPE(name, id, n, block, mins)                                                            \
    [QTYPE_##name] = {                                                                             \
        #name,                                                                                     \
        id,                                                                                        \
        n,                                                                                         \
        sizeof(block),                                                                             \
        mins,                                                                                      \
        QTYPE_##name != QTYPE_F32 && QTYPE_##name != QTYPE_F16 && QTYPE_##name != QTYPE_BF16},
#include "kernels/qtypes.def"
#undef QTYPE
};

/* Formats that exist in files but are not computed with: only their names, for the message that
 * refuses them. */
static const struct {
    unsigned id;
    const char *name;
} unsupported[] = {
    {4, "Q4_2"},    {5, "Q4_3"},      {9, "Q8_1"},      {15, "Q8_K"},     {16, "IQ2_XXS"},
    {17, "IQ2_XS"}, {18, "IQ3_XXS"},  {19, "IQ1_S"},    {21, "IQ3_S"},    {22, "IQ2_S"},
    {24, "I8"},     {25, "I16"},      {26, "I32"},      {27, "I64"},      {28, "F64"},
    {29, "IQ1_M"},  {31, "Q4_0_4_4"}, {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"}, {34, "TQ1_0"},
    {35, "TQ2_0"},  {40, "NVFP4"},    {41, "Q1_0"},
};

const struct qtype_info *qtype_info(enum qtype t)
{
    assert(t < QTYPE_N);
    return &infos[t];
}

bool qtype_from_gguf(unsigned gguf_id, enum qtype *out)
{
    for (int t = 0; t < QTYPE_N; t++)
        if (infos[t].gguf_id == gguf_id) {
            *out = (enum qtype)t;
            return true;
        }
    return false;
}

const char *qtype_name(enum qtype t)
{
    return qtype_info(t)->name;
}

const char *qtype_gguf_name(unsigned gguf_id)
{
    enum qtype t;
    if (qtype_from_gguf(gguf_id, &t))
        return infos[t].name;
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (unsupported[i].id == gguf_id)
            return unsupported[i].name;
    return NULL;
}

size_t qtype_row_bytes(enum qtype t, size_t cols)
{
    const struct qtype_info *info = qtype_info(t);
    assert(cols % (size_t)info->block_weights == 0);
    return cols / (size_t)info->block_weights * info->block_bytes;
}

/* Nibbles of a block of 32: low halves are weights 0..15, high halves 16..31. */
static void raw_nibbles(const uint8_t qs[16], uint8_t q[32])
{
    for (int k = 0; k < 16; k++) {
        q[k] = qs[k] & 15;
        q[k + 16] = qs[k] >> 4;
    }
}

/* Bit k of qh is the fifth bit of weight k: 8 at a time, a byte's bits spread over 8 bytes. */
static void raw_fifth_bits(const uint8_t qh[4], uint8_t q[32])
{
    for (int i = 0; i < 4; i++) {
        uint64_t bits = (qh[i] * 0x0101010101010101u & 0x8040201008040201u) + 0x7F7F7F7F7F7F7F7Fu,
                 codes;
        memcpy(&codes, q + 8 * i, 8);
        codes |= (bits >> 7 & 0x0101010101010101u) << 4;
        memcpy(q + 8 * i, &codes, 8);
    }
}

static void raw_scales(struct qraw32 *out, int s0, int s1)
{
    out->scale[0] = (int8_t)s0;
    out->scale[1] = (int8_t)s1;
}

/* Sub-block j (0..7) of 32 weights of a super-block of 256, here and in the K formats below. */
static void raw_q2_k(const struct block_q2_k *b, int j, struct qraw32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 4), *scales = b->scales + 2 * j;
    out->d = b->d;
    out->m = b->dmin;
    for (int k = 0; k < 32; k++)
        out->q[k] = qs[k] >> 2 * (j % 4) & 3;
    raw_scales(out, scales[0] & 15, scales[1] & 15);
    out->min[0] = scales[0] >> 4;
    out->min[1] = scales[1] >> 4;
}

static int q3_k_scale(const uint8_t s[12], int i)
{
    int low = (i < 8 ? s[i] : s[i - 8] >> 4) & 15, high = s[8 + i % 4] >> 2 * (i / 4) & 3;
    return (low | high << 4) - 32;
}

static void raw_q3_k(const struct block_q3_k *b, int j, struct qraw32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 4);
    out->d = b->d;
    for (int k = 0; k < 32; k++)
        out->q[k] = (uint8_t)((qs[k] >> 2 * (j % 4) & 3) | (b->hmask[k] >> j & 1) << 2);
    raw_scales(out, q3_k_scale(b->scales, 2 * j), q3_k_scale(b->scales, 2 * j + 1));
}

/* The scales of Q4_K and Q5_K: 6 bits for scale and minimum. */
static void raw_k4_scales(uint16_t d, uint16_t dmin, const uint8_t s[12], int j, struct qraw32 *out)
{
    int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    out->d = d;
    out->m = dmin;
    raw_scales(out, scale, scale);
    out->min[0] = out->min[1] = (uint8_t)min;
}

static void raw_q4_k(const struct block_q4_k *b, int j, struct qraw32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 2);
    raw_k4_scales(b->d, b->dmin, b->scales, j, out);
    for (int k = 0; k < 32; k++)
        out->q[k] = qs[k] >> 4 * (j % 2) & 15;
}

static void raw_q5_k(const struct block_q5_k *b, int j, struct qraw32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 2);
    raw_k4_scales(b->d, b->dmin, b->scales, j, out);
    for (int k = 0; k < 32; k++)
        out->q[k] = (uint8_t)((qs[k] >> 4 * (j % 2) & 15) | (b->qh[k] >> j & 1) << 4);
}

static void raw_q6_k(const struct block_q6_k *b, int j, struct qraw32 *out)
{
    const uint8_t *ql = b->ql + 64 * (j / 4) + 32 * (j & 1), *qh = b->qh + 32 * (j / 4);
    int low = j % 4 >= 2 ? 4 : 0, high = 2 * (j % 4);
    out->d = b->d;
    for (int k = 0; k < 32; k++)
        out->q[k] = (uint8_t)((ql[k] >> low & 15) | (qh[k] >> high & 3) << 4);
    raw_scales(out, b->scales[2 * j], b->scales[2 * j + 1]);
}

static void raw_iq4_xs(const struct block_iq4_xs *b, int j, struct qraw32 *out)
{
    int scale = (b->scales_l[j / 2] >> 4 * (j % 2) & 15) | (b->scales_h >> 2 * j & 3) << 4;
    out->d = b->d;
    raw_nibbles(b->qs + 16 * j, out->q);
    raw_scales(out, scale - 32, scale - 32);
}

/* The formats with one block per 32: `type` has d and qs. */
#define RAW_NIBBLE_BLOCK(type)                                                                     \
    const struct type *b = (const struct type *)row + i;                                           \
    out->d = b->d;                                                                                 \
    raw_nibbles(b->qs, out->q)

void qtype_raw32(enum qtype t, const void *row, size_t i, struct qraw32 *out)
{
    int j = (int)(i % 8);
    out->m = 0;
    out->min[0] = out->min[1] = 0;
    raw_scales(out, 1, 1);
    switch (t) {
    case QTYPE_Q4_0: {
        RAW_NIBBLE_BLOCK(block_q4_0);
        break;
    }
    case QTYPE_Q4_1: {
        RAW_NIBBLE_BLOCK(block_q4_1);
        out->m = b->m;
        break;
    }
    case QTYPE_Q5_0: {
        RAW_NIBBLE_BLOCK(block_q5_0);
        raw_fifth_bits(b->qh, out->q);
        break;
    }
    case QTYPE_Q5_1: {
        RAW_NIBBLE_BLOCK(block_q5_1);
        raw_fifth_bits(b->qh, out->q);
        out->m = b->m;
        break;
    }
    case QTYPE_Q8_0: {
        const struct block_q8_0 *b = (const struct block_q8_0 *)row + i;
        out->d = b->d;
        memcpy(out->q, b->qs, sizeof out->q);
        break;
    }
    case QTYPE_IQ4_NL: {
        RAW_NIBBLE_BLOCK(block_iq4_nl);
        break;
    }
    case QTYPE_MXFP4: {
        const struct block_mxfp4 *b = (const struct block_mxfp4 *)row + i;
        out->d = b->e;
        raw_nibbles(b->qs, out->q);
        break;
    }
    case QTYPE_Q2_K:
        raw_q2_k((const struct block_q2_k *)row + i / 8, j, out);
        break;
    case QTYPE_Q3_K:
        raw_q3_k((const struct block_q3_k *)row + i / 8, j, out);
        break;
    case QTYPE_Q4_K:
        raw_q4_k((const struct block_q4_k *)row + i / 8, j, out);
        break;
    case QTYPE_Q5_K:
        raw_q5_k((const struct block_q5_k *)row + i / 8, j, out);
        break;
    case QTYPE_Q6_K:
        raw_q6_k((const struct block_q6_k *)row + i / 8, j, out);
        break;
    case QTYPE_IQ4_XS:
        raw_iq4_xs((const struct block_iq4_xs *)row + i / 8, j, out);
        break;
    case QTYPE_F32:
    case QTYPE_F16:
    case QTYPE_BF16:
    case QTYPE_N:
        assert(!"a quantised format");
        break;
    }
}

/* What a stored code means: code = table[q], or q - offset, or q as a signed byte. */
static void terms_of_codes(enum qtype t, const uint8_t q[32], int16_t code[32])
{
    int offset = 0;
    switch (t) {
    case QTYPE_Q8_0:
        for (int k = 0; k < 32; k++)
            code[k] = (int8_t)q[k];
        return;
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
    case QTYPE_MXFP4:
        for (int k = 0; k < 32; k++)
            code[k] = (t == QTYPE_MXFP4 ? mxfp4_values : iq4_values)[q[k]];
        return;
    case QTYPE_Q3_K:
        offset = 4;
        break;
    case QTYPE_Q4_0:
        offset = 8;
        break;
    case QTYPE_Q5_0:
        offset = 16;
        break;
    case QTYPE_Q6_K:
        offset = 32;
        break;
    default:
        break;
    }
    for (int k = 0; k < 32; k++)
        code[k] = (int16_t)(q[k] - offset);
}

void qtype_terms(enum qtype t, const struct qraw32 *raw, struct qblock32 *out)
{
    const struct qtype_info *info = qtype_info(t);
    float m = num_f16_to_f32(raw->m);
    out->d = t == QTYPE_MXFP4 ? num_e8m0_half((uint8_t)raw->d) : num_f16_to_f32(raw->d);
    terms_of_codes(t, raw->q, out->code);
    for (int h = 0; h < 2; h++) {
        out->scale[h] = raw->scale[h];
        out->min[h] = info->n_mins == 0                  ? 0
                      : info->block_weights == NUM_BLOCK ? m
                                                         : -(m * (float)raw->min[h]);
    }
}

void qtype_unpack32(enum qtype t, const void *row, size_t i, struct qblock32 *out)
{
    struct qraw32 raw;
    qtype_raw32(t, row, i, &raw);
    qtype_terms(t, &raw, out);
}

void qtype_dequant32(const struct qblock32 *b, float out[NUM_BLOCK])
{
    for (int k = 0; k < NUM_BLOCK; k++)
        out[k] = b->d * (float)b->scale[k / 16] * (float)b->code[k] + b->min[k / 16];
}

void qtype_dequant_row(enum qtype t, const void *row, size_t cols, float *out)
{
    const uint16_t *half = row;
    switch (t) {
    case QTYPE_F32:
        memcpy(out, row, cols * sizeof *out);
        return;
    case QTYPE_F16:
        for (size_t k = 0; k < cols; k++)
            out[k] = num_f16_to_f32(half[k]);
        return;
    case QTYPE_BF16:
        for (size_t k = 0; k < cols; k++)
            out[k] = num_bf16_to_f32(half[k]);
        return;
    default:
        break;
    }
    for (size_t i = 0; i < cols / NUM_BLOCK; i++) {
        struct qblock32 b;
        qtype_unpack32(t, row, i, &b);
        qtype_dequant32(&b, out + NUM_BLOCK * i);
    }
}

/* ---- damaged weights ---- */

/* An exponent whose bits are all set means NaN or infinity. One more than it carries into the bit above, which the mask has
 * cleared: the sums of all blocks are or-ed, and that bit looked at once. A constant stride makes vectors where it can. */
#define FIELD static inline __attribute__((always_inline)) bool

FIELD finite16(const uint8_t *p, size_t n, const size_t stride, const uint16_t exponent, const uint16_t one)
{
    uint16_t sums = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + i * stride, sizeof h);
        sums |= (uint16_t)((h & exponent) + one);
    }
    return (sums & (uint16_t)(exponent + one)) == 0;
}

FIELD finite32(const uint8_t *p, size_t n, const size_t stride, const uint32_t exponent, const uint32_t one)
{
    uint32_t sums = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t w;
        memcpy(&w, p + i * stride, sizeof w);
        sums |= (w & exponent) + one;
    }
    return (sums & (exponent + one)) == 0;
}

/* A half; two halves that follow each other. */
#define HALF(block, field) finite16(p + offsetof(struct block, field), n, sizeof(struct block), 0x7C00, 0x0400)
#define PAIR(block, field) finite32(p + offsetof(struct block, field), n, sizeof(struct block), 0x7C007C00, 0x04000400)

bool qtype_finite(enum qtype t, const void *row, size_t cols)
{
    const uint8_t *p = row;
    size_t n = cols / (size_t)qtype_info(t)->block_weights;
    switch (t) {
    case QTYPE_F32:
        return finite32(p, n, 4, 0x7F800000, 0x00800000);
    case QTYPE_F16:
        return finite16(p, n, 2, 0x7C00, 0x0400);
    case QTYPE_BF16:
        return finite16(p, n, 2, 0x7F80, 0x0080);
    case QTYPE_Q4_0:
        return HALF(block_q4_0, d);
    case QTYPE_Q4_1:
        return PAIR(block_q4_1, d);
    case QTYPE_Q5_0:
        return HALF(block_q5_0, d);
    case QTYPE_Q5_1:
        return PAIR(block_q5_1, d);
    case QTYPE_Q8_0:
        return HALF(block_q8_0, d);
    case QTYPE_Q2_K:
        return PAIR(block_q2_k, d);
    case QTYPE_Q3_K:
        return HALF(block_q3_k, d);
    case QTYPE_Q4_K:
        return PAIR(block_q4_k, d);
    case QTYPE_Q5_K:
        return PAIR(block_q5_k, d);
    case QTYPE_Q6_K:
        return HALF(block_q6_k, d);
    case QTYPE_IQ4_NL:
        return HALF(block_iq4_nl, d);
    case QTYPE_IQ4_XS:
        return HALF(block_iq4_xs, d);
    case QTYPE_MXFP4:
        return finite16(p, n, sizeof(struct block_mxfp4), 0x00FF, 0x0001); /* the exponent is the first byte */
    case QTYPE_N:
        break;
    }
    return false;
}

long qtype_first_damaged(enum qtype t, const void *src, int rows, int cols, int n_mat, size_t mat_stride)
{
    size_t row_bytes = qtype_row_bytes(t, (size_t)cols);
    for (int i = 0; i < n_mat; i++)
        for (int r = 0; r < rows; r++)
            if (!qtype_finite(t, (const char *)src + (size_t)i * mat_stride + (size_t)r * row_bytes, (size_t)cols))
                return (long)i * rows + r;
    return -1;
}
