/* The products in plain C: the contract of product.h written down, and what runs on a CPU without
 * AVX2. Not tuned. */
#include "kernels/cpu/product.h"

static void quantise(const float *x, int cols, struct act_block *out)
{
    for (int i = 0; i < cols / NUM_BLOCK; i++, x += NUM_BLOCK, out++) {
        float amax = 0, inv;
        int sum[2][2] = {{0}}; /* [half][pair] */
        for (int k = 0; k < NUM_BLOCK; k++) {
            float a = fabsf(x[k]);
            amax = a > amax ? a : amax; /* never takes a NaN */
        }
        out->d = num_quant_scale(amax, &inv);
        for (int k = 0; k < NUM_BLOCK; k++) {
            out->q[k] = num_quant(x[k], inv);
            sum[k / 16][k % 4 / 2] += out->q[k];
        }
        for (int h = 0; h < 2; h++) {
            out->s16[h] = out->d * (float)(sum[h][0] + sum[h][1]);
            out->pair[h][0] = (int16_t)sum[h][0];
            out->pair[h][1] = (int16_t)sum[h][1];
        }
        out->s = out->d * (float)(sum[0][0] + sum[0][1] + sum[1][0] + sum[1][1]);
        out->pair32[0] = (int16_t)(sum[0][0] + sum[1][0]);
        out->pair32[1] = (int16_t)(sum[0][1] + sum[1][1]);
        out->unused = 0;
    }
}

static float add_block(const struct qblock32 *w, const struct act_block *a, int n_mins, float acc)
{
    int isum = 0;
    for (int k = 0; k < NUM_BLOCK; k++)
        isum += w->scale[k / 16] * w->code[k] * a->q[k];
    acc = fmaf((float)isum, w->d * a->d, acc);
    if (n_mins == 1)
        acc = fmaf(w->min[0], a->s, acc);
    if (n_mins == 2) {
        acc = fmaf(w->min[0], a->s16[0], acc);
        acc = fmaf(w->min[1], a->s16[1], acc);
    }
    return acc;
}

/* The blocks of one output row are unpacked once a segment and used by all activation rows. */
static void product(enum qtype t, const uint8_t *groups, int n_groups, int cols,
                    const uint8_t *acts, size_t act_stride, int n_rows, float *out,
                    size_t out_stride)
{
    enum { PER_SEGMENT = NUM_SEGMENT / NUM_BLOCK };
    int n_mins = qtype_info(t)->n_mins, n_blocks = cols / NUM_BLOCK;
    for (int o = 0; o < n_groups * PACK_ROWS; o++) {
        const uint8_t *group = groups + (size_t)(o / PACK_ROWS) * pack_group_bytes(t, cols);
        for (int i0 = 0; i0 < n_blocks; i0 += PER_SEGMENT) {
            struct qblock32 w[PER_SEGMENT];
            int n = n_blocks - i0 < PER_SEGMENT ? n_blocks - i0 : PER_SEGMENT;
            for (int i = 0; i < n; i++)
                pack_unpack32(t, group, o % PACK_ROWS, i0 + i, &w[i]);
            for (int row = 0; row < n_rows; row++) {
                const struct act_block *a =
                    (const struct act_block *)(acts + (size_t)row * act_stride) + i0;
                float *y = out + (size_t)row * out_stride + o, acc = 0;
                for (int i = 0; i < n; i++)
                    acc = add_block(&w[i], &a[i], n_mins, acc);
                *y = i0 == 0 ? acc : *y + acc;
            }
        }
    }
}

static void product_float(enum qtype t, const uint8_t *groups, int n_groups, int cols,
                          const uint8_t *acts, size_t act_stride, int n_rows, float *out,
                          size_t out_stride)
{
    for (int o = 0; o < n_groups * PACK_ROWS; o++) {
        const uint8_t *group = groups + (size_t)(o / PACK_ROWS) * pack_group_bytes(t, cols);
        for (int k0 = 0; k0 < cols; k0 += NUM_SEGMENT) {
            float w[NUM_SEGMENT];
            int n = cols - k0 < NUM_SEGMENT ? cols - k0 : NUM_SEGMENT;
            for (int k = 0; k < n; k++)
                w[k] = pack_float(t, group, o % PACK_ROWS, k0 + k);
            for (int row = 0; row < n_rows; row++) {
                const float *x = (const float *)(acts + (size_t)row * act_stride) + k0;
                float *y = out + (size_t)row * out_stride + o, acc = 0;
                for (int k = 0; k < n; k++)
                    acc = fmaf(w[k], x[k], acc);
                *y = k0 == 0 ? acc : *y + acc;
            }
        }
    }
}

#define QTYPE(name, id, n, block, mins)                                                            \
    static void product_##name(const void *groups, int n_groups, int cols, const void *acts,       \
                               size_t act_stride, int n_rows, float *out, size_t out_stride)       \
    {                                                                                              \
        (n == 1 ? product_float : product)(QTYPE_##name, groups, n_groups, cols, acts, act_stride, \
                                           n_rows, out, out_stride);                               \
    }
#include "kernels/qtypes.def"
#undef QTYPE

const struct product_isa product_scalar = {
    .name = "scalar",
    .quantise = quantise,
    .product =
        {
#define QTYPE(name, id, n, block, mins) [QTYPE_##name] = product_##name,
#include "kernels/qtypes.def"
#undef QTYPE
        },
};
