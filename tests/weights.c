#include "tests/weights.h"

#include "kernels/numerics.h"

#include <stdlib.h>

/* Offsets of a block's halves: scale, and minimum scale or -1. */
static const struct {
    int d, m;
} halves[QTYPE_N] = {
    [QTYPE_Q4_0] = {offsetof(struct block_q4_0, d), -1},
    [QTYPE_Q4_1] = {offsetof(struct block_q4_1, d), offsetof(struct block_q4_1, m)},
    [QTYPE_Q5_0] = {offsetof(struct block_q5_0, d), -1},
    [QTYPE_Q5_1] = {offsetof(struct block_q5_1, d), offsetof(struct block_q5_1, m)},
    [QTYPE_Q8_0] = {offsetof(struct block_q8_0, d), -1},
    [QTYPE_Q2_K] = {offsetof(struct block_q2_k, d), offsetof(struct block_q2_k, dmin)},
    [QTYPE_Q3_K] = {offsetof(struct block_q3_k, d), -1},
    [QTYPE_Q4_K] = {offsetof(struct block_q4_k, d), offsetof(struct block_q4_k, dmin)},
    [QTYPE_Q5_K] = {offsetof(struct block_q5_k, d), offsetof(struct block_q5_k, dmin)},
    [QTYPE_Q6_K] = {offsetof(struct block_q6_k, d), -1},
    [QTYPE_IQ4_NL] = {offsetof(struct block_iq4_nl, d), -1},
    [QTYPE_IQ4_XS] = {offsetof(struct block_iq4_xs, d), -1},
};

uint32_t weights_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

float weights_uniform(uint64_t *state)
{
    return (float)((int32_t)weights_random(state)) * 4.656612873077392578125e-10f; /* 2^-31 */
}

static void float_row(enum qtype t, uint64_t *state, size_t cols, void *row)
{
    float *f = row;
    uint16_t *h = row;
    for (size_t k = 0; k < cols; k++) {
        float x = weights_uniform(state);
        if (t == QTYPE_F32)
            f[k] = x;
        else
            h[k] = t == QTYPE_F16 ? num_f32_to_f16(x) : (uint16_t)(num_bits(x) >> 16);
    }
}

void weights_row(enum qtype t, enum weights_fill fill, uint64_t *state, size_t cols, void *row)
{
    static const uint8_t byte[WEIGHTS_FILL_N] = {0, 0, 0xFF, 0x80};
    const struct qtype_info *info = qtype_info(t);
    if (!info->quantised) {
        float_row(t, state, cols, row);
        return;
    }
    uint8_t *p = row;
    for (size_t i = 0; i < qtype_row_bytes(t, cols); i++)
        p[i] = fill == WEIGHTS_RANDOM ? (uint8_t)weights_random(state) : byte[fill];
    for (size_t b = 0; b < cols / (size_t)info->block_weights; b++, p += info->block_bytes) {
        uint16_t d = num_f32_to_f16(weights_uniform(state)),
                 m = num_f32_to_f16(weights_uniform(state));
        if (t == QTYPE_MXFP4) {
            *p = (uint8_t)(weights_random(state) % 16 ? 112 + weights_random(state) % 16
                                                      : weights_random(state) % 3);
            continue;
        }
        memcpy(p + halves[t].d, &d, 2);
        if (halves[t].m >= 0)
            memcpy(p + halves[t].m, &m, 2);
    }
}
