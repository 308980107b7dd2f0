/* Heads between the Q/K/V product and attention (attn_few.cuh, attn.cu, persist.cu): norm, rope, scale; keys and values go to
 * the cache. A warp has a head, in shared memory. */
#ifndef KERNELS_CUDA_HEADS_CUH
#define KERNELS_CUDA_HEADS_CUH

#include "kernels/cuda/attn.cuh"

enum { HEAD_BATCH = 4 };    /* values a lane has under way */

/* Copies n floats to shared memory, lane i % 32 the i-th. */
__device__ inline void load_head(const float *from, int n, float *x)
{
    int lane = (int)threadIdx.x % WARP;
    for (int at = lane; at < n; at += HEAD_BATCH * WARP) {
        float v[HEAD_BATCH];
#pragma unroll
        for (int j = 0; j < HEAD_BATCH; j++)
            v[j] = at + j * WARP < n ? from[at + j * WARP] : 0;
#pragma unroll
        for (int j = 0; j < HEAD_BATCH; j++)
            if (at + j * WARP < n)
                x[at + j * WARP] = v[j];
    }
}

/* The norm of all n values; each lane works on those it loaded. */
__device__ inline void norm_head(const float *w, int n, float eps, float *x)
{
    int lane = (int)threadIdx.x % WARP;
    float s[2] = {0, 0};
    for (int i = lane; i < n; i += NUM_NORM_LANES) {
        s[0] = fmaf(x[i], x[i], s[0]);
        if (i + WARP < n)
            s[1] = fmaf(x[i + WARP], x[i + WARP], s[1]);
    }
    float total = __shfl_sync(ALL_LANES, warp_tree64(s[0], s[1]), 0), scale = 1.0f / sqrtf(total / (float)n + eps);
    for (int i = lane; i < n; i += WARP)
        x[i] = x[i] * scale * w[i];
}

/* Turns pairs of dimensions; begins and ends with the warp's lanes together. */
__device__ inline void turn_head(const struct attn_args &a, int row, float *x)
{
    int half = a.n_rot / 2;
    size_t angle = ((size_t)row * (size_t)a.n_rope + (size_t)a.rope_set) * (size_t)(a.kv.head_dim / 2);
    __syncwarp();
#pragma unroll 2
    for (int i = (int)threadIdx.x % WARP; i < half; i += WARP)
        num_rotate(a.neox ? x + i : x + 2 * i, a.neox ? x + half + i : x + 2 * i + 1, a.step.cos[angle + (size_t)i],
                   a.step.sin[angle + (size_t)i]);
    __syncwarp();
}

/* Head `head` of a row, q heads first, then k, then v, as it meets others: to x. */
__device__ inline void make_head(const struct attn_args &a, int row, int head, float *x)
{
    int hd = a.kv.head_dim, n_kv = a.kv.n_kv_head, of_kv = head - a.n_head;
    bool is_q = of_kv < 0, is_v = of_kv >= n_kv;
    const float *from = is_q ? a.q : is_v ? a.v : a.k, *norm = is_q ? a.q_norm : is_v ? NULL : a.k_norm;
    int at = is_q ? row * a.n_head + head : row * n_kv + of_kv - (is_v ? n_kv : 0);
    load_head(from + (size_t)at * (size_t)hd, hd, x);
    if (norm != NULL)
        norm_head(norm, hd, a.eps, x);
    if (!is_v)
        turn_head(a, row, x);
    for (int i = (int)threadIdx.x % WARP; is_q && i < hd; i += WARP)
        x[i] = x[i] * a.attn_scale;
}

/* A key or value so made goes to the cache. */
template <enum kv_type KV>
__device__ inline void keep_head(const struct attn_args &a, int row, int head, const float *x)
{
    int hd = a.kv.head_dim, lane = (int)threadIdx.x % WARP, of_kv = head - a.n_head;
    int pos = a.step.pos[row], page = a.step.pages[a.step.page_at[row] + pos / NUM_TILE];
    bool is_v = of_kv >= a.kv.n_kv_head;
    uint8_t *block = kv_block(a.kv, page, a.layer, is_v, is_v ? of_kv - a.kv.n_kv_head : of_kv);
    for (int i = lane; i - lane < hd; i += WARP)
        kv_store<KV>(a.kv, block, is_v, pos % NUM_TILE, i, i < hd ? x[i] : 0);
}

/* A launch of their own: WARPS heads of a row a block. room: head_dim floats a warp. */
template <enum kv_type KV, int WARPS>
__device__ inline void heads_block(const struct attn_args &a, struct block_at b, float *room)
{
    kernel_begin();
    int warp = (int)threadIdx.x / WARP, row = b.y, hd = a.kv.head_dim, head = b.x * WARPS + warp;
    float *x = room + warp * hd;
    if (head >= a.n_head + 2 * a.kv.n_kv_head)
        return;
    make_head(a, row, head, x);
    if (head >= a.n_head) {
        keep_head<KV>(a, row, head, x);
        return;
    }
    float *q = a.q + ((size_t)row * (size_t)a.n_head + (size_t)head) * (size_t)hd;
    for (int i = (int)threadIdx.x % WARP; i < hd; i += WARP)
        q[i] = x[i];
}

#endif
