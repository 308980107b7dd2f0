/* Writing a row of activations in the forms that the products after it read. */
#ifndef KERNELS_CUDA_ACT_CUH
#define KERNELS_CUDA_ACT_CUH

#include "kernels/cuda/device.cuh"

/* To nearest even; what is too large for a half becomes the largest, so that no sum meets an infinity for it. */
__device__ inline uint16_t round_f16(float x)
{
    x = x > 65504.0f ? 65504.0f : x;
    return num_f32_to_f16(x < -65504.0f ? -65504.0f : x);
}

__device__ inline uint16_t round_bf16(float x)
{
    uint32_t u = num_bits(x);
    return x != x ? 0x7FC0 : (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

/* A warp writes element i (of its block of 32) in all forms that are there; x is 0 from n on. */
__device__ inline void store_act(const struct act &out, int row, int i, int n, float x)
{
    size_t at = (size_t)row * (size_t)out.ld + (size_t)i;
    if (out.x != NULL && i < n)
        out.x[at] = x;
    if (out.f16 != NULL)
        out.f16[at] = round_f16(x);
    if (out.bf16 != NULL)
        out.bf16[at] = round_bf16(x);
    if (out.q == NULL)
        return;
    float inv, d = num_quant_scale(warp_max(fabsf(x)), &inv);
    int8_t q = num_quant(x, inv);
    int32_t sum = half_warp_sum(q);
    int32_t high = __shfl_sync(ALL_LANES, sum, WARP / 2);
    out.q[at] = q;
    if (i % WARP == 0) {
        struct act_scale s = {d, {(int16_t)sum, (int16_t)high}};
        struct act_terms *t = &out.t[at / SEGMENT];
        out.s[at / NUM_BLOCK] = s;
        t->d[i / NUM_BLOCK % SEGMENT_BLOCKS] = d;
        t->m[i / NUM_BLOCK % SEGMENT_BLOCKS] = d * (float)(sum + high);
    }
}

#endif
