/* One head's values in a block of the KV cache (struct kv_cache in cuda.h): where they lie, rounding in, reading out. */
#ifndef KERNELS_CUDA_KV_CUH
#define KERNELS_CUDA_KV_CUH

#include "kernels/cuda/device.cuh"

template <enum kv_type KV> struct kv_of;
template <> struct kv_of<KV_F16> {
    static constexpr int bytes = 2;
};
template <> struct kv_of<KV_Q8_0> {
    static constexpr int bytes = 1;
};
template <> struct kv_of<KV_F32> {
    static constexpr int bytes = 4;
};

__device__ inline uint8_t *kv_block(const struct kv_cache &kv, int page, int layer, bool is_v, int head)
{
    size_t at = (((size_t)page * (size_t)kv.n_layer + (size_t)layer) * 2 + (is_v ? 1 : 0)) * (size_t)kv.n_kv_head + (size_t)head;
    return kv.data + at * kv.block_bytes;
}

/* Index of dimension d of position p (0..63) in the block's values. */
template <enum kv_type KV> __device__ inline int kv_index(const struct kv_cache &kv, bool is_v, int p, int d)
{
    constexpr int n = 16 / kv_of<KV>::bytes;
    return is_v ? p * kv.dims + d : (d / n * NUM_TILE + p) * n + d % n;
}

/* The half that scales dimension d of position p (Q8_0). */
__device__ inline uint16_t *kv_scale(const struct kv_cache &kv, uint8_t *block, int p, int d)
{
    int n = (kv.dims + NUM_BLOCK - 1) / NUM_BLOCK;
    return (uint16_t *)(block + (size_t)NUM_TILE * (size_t)kv.dims) + p * n + d / NUM_BLOCK;
}

/* Lane d % 32 of a warp stores dimension d; the warp holds a whole block of 32, zeros from head_dim on. */
template <enum kv_type KV>
__device__ inline void kv_store(const struct kv_cache &kv, uint8_t *block, bool is_v, int p, int d, float x)
{
    int at = kv_index<KV>(kv, is_v, p, d);
    if constexpr (KV == KV_F32) {
        if (d < kv.head_dim)
            ((float *)block)[at] = x;
    } else if constexpr (KV == KV_F16) {
        if (d < kv.head_dim)
            ((uint16_t *)block)[at] = num_f32_to_f16(x);
    } else {
        float inv, scale = num_quant_scale(warp_max(fabsf(x)), &inv);
        if (d < kv.head_dim)
            ((int8_t *)block)[at] = num_quant(x, inv);
        if (d % NUM_BLOCK == 0)
            *kv_scale(kv, block, p, d) = num_f32_to_f16(scale);
    }
}

/* One value in memory; scale is read by the caller (Q8_0), who knows when it changes. */
template <enum kv_type KV> __device__ inline float kv_value(const uint8_t *block, int at, float scale)
{
    if constexpr (KV == KV_F32)
        return ((const float *)block)[at];
    else if constexpr (KV == KV_F16)
        return half_to_float(((const uint16_t *)block)[at]);
    else
        return scale * (float)((const int8_t *)block)[at];
}

/* Value i of 16 bytes in registers. */
template <enum kv_type KV> __device__ inline float kv_word(const uint32_t w[4], int i, float scale)
{
    if constexpr (KV == KV_F32)
        return num_from_bits(w[i]);
    else if constexpr (KV == KV_F16)
        return half_of(w[i / 2], i % 2);
    else
        return scale * (float)(int8_t)(w[i / 4] >> 8 * (i % 4));
}

/* Neighbouring values that one thread reads at once: two short ones, from an even index, or a float. */
template <enum kv_type KV> struct kv_pair;
template <> struct kv_pair<KV_F16> {
    static constexpr int n = 2;
    uint32_t w;
    __device__ void read(const uint8_t *block, int at) { w = *(const uint32_t *)((const uint16_t *)block + at); }
    __device__ float value(int i, float) const { return half_of(w, i); }
};
template <> struct kv_pair<KV_Q8_0> {
    static constexpr int n = 2;
    uint16_t w;
    __device__ void read(const uint8_t *block, int at) { w = *(const uint16_t *)(block + at); }
    __device__ float value(int i, float scale) const { return scale * (float)(int8_t)(w >> 8 * i); }
};
template <> struct kv_pair<KV_F32> {
    static constexpr int n = 1;
    float x;
    __device__ void read(const uint8_t *block, int at) { x = ((const float *)block)[at]; }
    __device__ float value(int, float) const { return x; }
};

#endif
