/* Weight formats: the table of names and sizes, and the one decoder per format. Clarity before speed: the decoders run
 * at load, in the scalar reference and in tests, never in a product. */
#include "kernels/qtype.h"

#include "kernels/numerics.h"

#include <assert.h>

const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static const struct qtype_info infos[QTYPE_N] = {
#define QTYPE(name, id, n, block, mins)                                                                                \
    [QTYPE_##name] = {#name, id, n, sizeof(block), mins,                                                               \
                      QTYPE_##name != QTYPE_F32 && QTYPE_##name != QTYPE_F16 && QTYPE_##name != QTYPE_BF16},
#include "kernels/qtypes.def"
#undef QTYPE
};

/* Formats that exist in files but are not computed with: only their names, for the message that refuses them. */
static const struct {
    unsigned id;
    const char *name;
} unsupported[] = {
    {4, "Q4_2"},     {5, "Q4_3"},     {9, "Q8_1"},     {15, "Q8_K"},     {16, "IQ2_XXS"},  {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"},   {21, "IQ3_S"},   {22, "IQ2_S"},    {24, "I8"},       {25, "I16"},
    {26, "I32"},     {27, "I64"},     {28, "F64"},     {29, "IQ1_M"},    {31, "Q4_0_4_4"}, {32, "Q4_0_4_8"},
    {33, "Q4_0_8_8"}, {34, "TQ1_0"},  {35, "TQ2_0"},   {40, "NVFP4"},    {41, "Q1_0"},
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
static void unpack_nibbles(const uint8_t qs[16], int16_t code[32])
{
    for (int k = 0; k < 16; k++) {
        code[k] = qs[k] & 15;
        code[k + 16] = qs[k] >> 4;
    }
}

static void add_fifth_bits(const uint8_t qh[4], int16_t code[32])
{
    for (int k = 0; k < 32; k++)
        code[k] = (int16_t)(code[k] | (qh[k / 8] >> k % 8 & 1) << 4);
}

static void add_offset(int offset, int16_t code[32])
{
    for (int k = 0; k < 32; k++)
        code[k] = (int16_t)(code[k] + offset);
}

static void look_up(const int8_t table[16], int16_t code[32])
{
    for (int k = 0; k < 32; k++)
        code[k] = table[code[k]];
}

static void set_scales(struct qblock32 *out, int s0, int s1)
{
    out->scale[0] = (int16_t)s0;
    out->scale[1] = (int16_t)s1;
}

static void set_mins(struct qblock32 *out, float m0, float m1)
{
    out->min[0] = m0;
    out->min[1] = m1;
}

static void unpack_q4_0(const struct block_q4_0 *b, struct qblock32 *out)
{
    out->d = num_f16_to_f32(b->d);
    unpack_nibbles(b->qs, out->code);
    add_offset(-8, out->code);
}

static void unpack_q4_1(const struct block_q4_1 *b, struct qblock32 *out)
{
    float m = num_f16_to_f32(b->m);
    out->d = num_f16_to_f32(b->d);
    unpack_nibbles(b->qs, out->code);
    set_mins(out, m, m);
}

static void unpack_q5_0(const struct block_q5_0 *b, struct qblock32 *out)
{
    out->d = num_f16_to_f32(b->d);
    unpack_nibbles(b->qs, out->code);
    add_fifth_bits(b->qh, out->code);
    add_offset(-16, out->code);
}

static void unpack_q5_1(const struct block_q5_1 *b, struct qblock32 *out)
{
    float m = num_f16_to_f32(b->m);
    out->d = num_f16_to_f32(b->d);
    unpack_nibbles(b->qs, out->code);
    add_fifth_bits(b->qh, out->code);
    set_mins(out, m, m);
}

static void unpack_q8_0(const struct block_q8_0 *b, struct qblock32 *out)
{
    out->d = num_f16_to_f32(b->d);
    for (int k = 0; k < 32; k++)
        out->code[k] = b->qs[k];
}

/* Sub-block j (0..7) of 32 weights of a super-block of 256, here and in the K formats below. */
static void unpack_q2_k(const struct block_q2_k *b, int j, struct qblock32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 4), *scales = b->scales + 2 * j;
    float dmin = num_f16_to_f32(b->dmin);
    out->d = num_f16_to_f32(b->d);
    for (int k = 0; k < 32; k++)
        out->code[k] = qs[k] >> 2 * (j % 4) & 3;
    set_scales(out, scales[0] & 15, scales[1] & 15);
    set_mins(out, -(dmin * (float)(scales[0] >> 4)), -(dmin * (float)(scales[1] >> 4)));
}

static int q3_k_scale(const uint8_t s[12], int i)
{
    int low = (i < 8 ? s[i] : s[i - 8] >> 4) & 15, high = s[8 + i % 4] >> 2 * (i / 4) & 3;
    return (low | high << 4) - 32;
}

static void unpack_q3_k(const struct block_q3_k *b, int j, struct qblock32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 4);
    out->d = num_f16_to_f32(b->d);
    for (int k = 0; k < 32; k++)
        out->code[k] = (int16_t)((qs[k] >> 2 * (j % 4) & 3) + 4 * (b->hmask[k] >> j & 1) - 4);
    set_scales(out, q3_k_scale(b->scales, 2 * j), q3_k_scale(b->scales, 2 * j + 1));
}

/* The scales of Q4_K and Q5_K: 6 bits for scale and minimum. */
static void unpack_k4_scales(uint16_t d, uint16_t dmin, const uint8_t s[12], int j, struct qblock32 *out)
{
    int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    float m = -(num_f16_to_f32(dmin) * (float)min);
    out->d = num_f16_to_f32(d);
    set_scales(out, scale, scale);
    set_mins(out, m, m);
}

static void unpack_q4_k(const struct block_q4_k *b, int j, struct qblock32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 2);
    unpack_k4_scales(b->d, b->dmin, b->scales, j, out);
    for (int k = 0; k < 32; k++)
        out->code[k] = qs[k] >> 4 * (j % 2) & 15;
}

static void unpack_q5_k(const struct block_q5_k *b, int j, struct qblock32 *out)
{
    const uint8_t *qs = b->qs + 32 * (j / 2);
    unpack_k4_scales(b->d, b->dmin, b->scales, j, out);
    for (int k = 0; k < 32; k++)
        out->code[k] = (int16_t)((qs[k] >> 4 * (j % 2) & 15) | (b->qh[k] >> j & 1) << 4);
}

static void unpack_q6_k(const struct block_q6_k *b, int j, struct qblock32 *out)
{
    const uint8_t *ql = b->ql + 64 * (j / 4) + 32 * (j & 1), *qh = b->qh + 32 * (j / 4);
    int shift = j % 4 >= 2 ? 4 : 0;
    out->d = num_f16_to_f32(b->d);
    for (int k = 0; k < 32; k++)
        out->code[k] = (int16_t)((ql[k] >> shift & 15) + ((qh[k] >> 2 * (j % 4) & 3) << 4) - 32);
    set_scales(out, b->scales[2 * j], b->scales[2 * j + 1]);
}

static void unpack_iq4_nl(const struct block_iq4_nl *b, struct qblock32 *out)
{
    out->d = num_f16_to_f32(b->d);
    unpack_nibbles(b->qs, out->code);
    look_up(iq4_values, out->code);
}

static void unpack_iq4_xs(const struct block_iq4_xs *b, int j, struct qblock32 *out)
{
    int scale = (b->scales_l[j / 2] >> 4 * (j % 2) & 15) | (b->scales_h >> 2 * j & 3) << 4;
    out->d = num_f16_to_f32(b->d);
    unpack_nibbles(b->qs + 16 * j, out->code);
    look_up(iq4_values, out->code);
    set_scales(out, scale - 32, scale - 32);
}

static void unpack_mxfp4(const struct block_mxfp4 *b, struct qblock32 *out)
{
    out->d = num_e8m0_half(b->e);
    unpack_nibbles(b->qs, out->code);
    look_up(mxfp4_values, out->code);
}

void qtype_unpack32(enum qtype t, const void *row, size_t i, struct qblock32 *out)
{
    int j = (int)(i % 8);
    set_scales(out, 1, 1);
    set_mins(out, 0, 0);
    switch (t) {
    case QTYPE_Q4_0: unpack_q4_0((const struct block_q4_0 *)row + i, out); break;
    case QTYPE_Q4_1: unpack_q4_1((const struct block_q4_1 *)row + i, out); break;
    case QTYPE_Q5_0: unpack_q5_0((const struct block_q5_0 *)row + i, out); break;
    case QTYPE_Q5_1: unpack_q5_1((const struct block_q5_1 *)row + i, out); break;
    case QTYPE_Q8_0: unpack_q8_0((const struct block_q8_0 *)row + i, out); break;
    case QTYPE_Q2_K: unpack_q2_k((const struct block_q2_k *)row + i / 8, j, out); break;
    case QTYPE_Q3_K: unpack_q3_k((const struct block_q3_k *)row + i / 8, j, out); break;
    case QTYPE_Q4_K: unpack_q4_k((const struct block_q4_k *)row + i / 8, j, out); break;
    case QTYPE_Q5_K: unpack_q5_k((const struct block_q5_k *)row + i / 8, j, out); break;
    case QTYPE_Q6_K: unpack_q6_k((const struct block_q6_k *)row + i / 8, j, out); break;
    case QTYPE_IQ4_NL: unpack_iq4_nl((const struct block_iq4_nl *)row + i, out); break;
    case QTYPE_IQ4_XS: unpack_iq4_xs((const struct block_iq4_xs *)row + i / 8, j, out); break;
    case QTYPE_MXFP4: unpack_mxfp4((const struct block_mxfp4 *)row + i, out); break;
    case QTYPE_F32:
    case QTYPE_F16:
    case QTYPE_BF16:
    case QTYPE_N: assert(!"a quantised format"); break;
    }
}

void qtype_dequant_row(enum qtype t, const void *row, size_t cols, float *out)
{
    const uint16_t *half = row;
    switch (t) {
    case QTYPE_F32: memcpy(out, row, cols * sizeof *out); return;
    case QTYPE_F16:
        for (size_t k = 0; k < cols; k++)
            out[k] = num_f16_to_f32(half[k]);
        return;
    case QTYPE_BF16:
        for (size_t k = 0; k < cols; k++)
            out[k] = num_bf16_to_f32(half[k]);
        return;
    default: break;
    }
    struct qblock32 b;
    for (size_t i = 0; i < cols / NUM_BLOCK; i++, out += NUM_BLOCK) {
        qtype_unpack32(t, row, i, &b);
        for (int k = 0; k < NUM_BLOCK; k++)
            out[k] = b.d * (float)b.scale[k / 16] * (float)b.code[k] + b.min[k / 16];
    }
}
