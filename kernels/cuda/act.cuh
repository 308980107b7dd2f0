/* Writing a row of activations: as float, and quantised for the product that follows. */
#ifndef KERNELS_CUDA_ACT_CUH
#define KERNELS_CUDA_ACT_CUH

#include "kernels/cuda/device.cuh"

/* A warp writes element i (of its block of 32) as float and quantised; from n on, x is 0 and only
 * the code is written. */
__device__ inline void store_act(const struct act &out, int row, int i, int n, float x)
{
    size_t at = (size_t)row * (size_t)out.ld + (size_t)i;
    float inv, d = num_quant_scale(warp_max(fabsf(x)), &inv);
    int8_t q = num_quant(x, inv);
    int32_t sum = half_warp_sum(q);
    int32_t high = __shfl_sync(ALL_LANES, sum, WARP / 2);
    out.q[at] = q;
    if (i < n)
        out.x[at] = x;
    if (i % WARP == 0) {
        struct act_scale s = {d, {(int16_t)sum, (int16_t)high}};
        out.s[at / NUM_BLOCK] = s;
    }
}

#endif
