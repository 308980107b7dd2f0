/* Bodies of the kernels that work row by row (row.cu, persist.cu): norms, the gate, experts. */
#ifndef KERNELS_CUDA_ROW_CUH
#define KERNELS_CUDA_ROW_CUH

#include "kernels/cuda/act.cuh"

enum { ROW_THREADS = 256 };

/* 1 / sqrt(mean of squares + eps) of n floats, in the contract's order; the whole block calls it. */
__device__ inline float norm_scale(const float *x, int n, float eps)
{
    __shared__ float sums[NUM_NORM_LANES];
    __shared__ float total;
    int tid = (int)threadIdx.x;
    if (tid < NUM_NORM_LANES) {
        float s = 0;
#pragma unroll 8
        for (int i = tid; i < n; i += NUM_NORM_LANES)
            s = fmaf(x[i], x[i], s);
        sums[tid] = s;
    }
    __syncthreads();
    if (tid < WARP) {
        float s = warp_tree64(sums, tid);
        if (tid == 0)
            total = s;
    }
    __syncthreads();
    return 1.0f / sqrtf(total / (float)n + eps);
}

/* One block a row: adds the pending branch, norms, quantises. */
template <int THREADS> __device__ inline void norm_block(const struct norm_args &a, struct block_at b)
{
    kernel_begin();
    int row = a.rows != NULL ? a.rows[b.x] : b.x, tid = (int)threadIdx.x;
    float *x = a.x + (size_t)row * (size_t)a.dim, *y = a.y + (size_t)row * (size_t)a.dim;
    if (a.has_pending) {
        float post = a.pending_norm != NULL ? norm_scale(y, a.dim, a.eps) : 0;
        for (int i = tid; i < a.dim; i += THREADS)
            x[i] = x[i] + (a.pending_norm != NULL ? y[i] * post * a.pending_norm[i] : y[i]);
        __syncthreads();
    }
    float scale = norm_scale(x, a.dim, a.eps);
    for (int i = tid; i - tid % WARP < a.dim; i += THREADS)
        store_act(a.out, b.x, i, a.dim, i < a.dim ? x[i] * scale * a.norm[i] : 0);
}

__device__ inline float ffn_gated(enum ffn_act act, float gate, float up)
{
    return act == ACT_GELU ? num_gelu(gate) * up : act == ACT_SWIGLU_CLAMPED ? num_swiglu_clamped(gate, up) : num_silu(gate) * up;
}

/* A warp's 32 values of h = act(gate) * up. */
struct gate_args {
    const float *gate, *up;
    struct act out;
    int n;
    enum ffn_act act;
};

__device__ inline void gate_block(const struct gate_args &a, struct block_at b)
{
    kernel_begin();
    int i = b.x * ROW_THREADS + (int)threadIdx.x, col = b.y, n = a.n;
    if (i - i % WARP >= n)
        return;
    size_t at = (size_t)col * (size_t)n + (size_t)i;
    store_act(a.out, col, i, n, i < n ? ffn_gated(a.act, a.gate[at], a.up[at]) : 0);
}

/* The better of two experts: higher logit, then lower id; -1 is none. */
__device__ inline bool is_better(float a, int a_id, float b, int b_id)
{
    return b_id < 0 || (a_id >= 0 && (a > b || (a == b && a_id < b_id)));
}

/* One warp a row: the n_used best by logit, then lower id; softmax over them in rank order; stored by rising id. */
struct choose_args {
    const float *logits;
    int n_expert, n_used;
    int32_t *expert;
    float *weight;
};

__device__ inline void choose_warp(const struct choose_args &a, struct block_at b)
{
    kernel_begin();
    int lane = (int)threadIdx.x, row = b.x, n_expert = a.n_expert, n_used = a.n_used;
    const float *logit = a.logits + (size_t)row * (size_t)n_expert;
    int32_t *id = a.expert + (size_t)row * (size_t)n_used;
    float *w = a.weight + (size_t)row * (size_t)n_used;
    float first = 0, sum = 0;
    for (int rank = 0; rank < n_used; rank++) {
        int best = -1;
        for (int e = lane; e < n_expert; e += WARP) {
            bool taken = false;
            for (int j = 0; j < rank; j++)
                taken = taken || id[j] == e;
            if (!taken && (best < 0 || logit[e] > logit[best]))
                best = e;
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            int other = __shfl_xor_sync(ALL_LANES, best, step);
            if (other >= 0 && is_better(logit[other], other, best < 0 ? 0 : logit[best], best))
                best = other;
        }
        first = rank == 0 ? logit[best] : first;
        float p = num_exp(logit[best] - first);
        sum = sum + p;
        if (lane == 0) {
            id[rank] = best;
            w[rank] = p;
        }
        __syncwarp();
    }
    for (int i = 0; lane == 0 && i < n_used; i++) {
        int e = id[i], j = i;
        float p = w[i] / sum;
        for (; j > 0 && id[j - 1] > e; j--) {
            id[j] = id[j - 1];
            w[j] = w[j - 1];
        }
        id[j] = e;
        w[j] = p;
    }
}

/* y = the experts' outputs, weighted, by rising id. */
struct blend_args {
    const float *branch, *weight;
    int n_used, dim;
    float *y;
};

__device__ inline void blend_block(const struct blend_args &a, struct block_at b)
{
    kernel_begin();
    int i = b.x * ROW_THREADS + (int)threadIdx.x, row = b.y;
    if (i >= a.dim)
        return;
    float sum = 0;
    for (int e = 0; e < a.n_used; e++) {
        size_t slot = (size_t)row * (size_t)a.n_used + (size_t)e;
        sum = fmaf(a.weight[slot], a.branch[slot * (size_t)a.dim + (size_t)i], sum);
    }
    a.y[(size_t)row * (size_t)a.dim + (size_t)i] = sum;
}

#endif
