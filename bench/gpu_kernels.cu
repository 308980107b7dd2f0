#include "kernels/cuda/device.cuh"

extern "C" {
#include "bench/gpu_kernels.h"
}

enum { THREADS = 256, READ_BLOCKS = 4096, UNROLL = 4, MMA_CHAINS = 8, MMA_BLOCKS = 4 };

/* ---- kernels ---- */

__device__ static uint32_t hash(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

/* Words [0, n): bits & mask | bits_set; in heads only every `stride`-th word from `first` is a scale, the rest is random. */
__global__ static void k_fill(uint32_t *p, size_t n, uint32_t seed, uint32_t mask, uint32_t set, int stride, int first)
{
    kernel_begin();
    size_t step = (size_t)gridDim.x * THREADS;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        uint32_t x = hash((uint32_t)i * 2654435761u ^ (uint32_t)(i >> 32) ^ seed);
        p[i] = (int)(i % (size_t)stride) == first || stride == 1 ? (x & mask) | set : x;
    }
}

__global__ static void k_read(const uint4 *p, size_t n, uint32_t *sink)
{
    kernel_begin();
    size_t step = (size_t)gridDim.x * THREADS;
    uint32_t x = 0;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += UNROLL * step) {
        uint4 v[UNROLL] = {};
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (i + (size_t)u * step < n)
                v[u] = p[i + (size_t)u * step];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            x ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    if (x == 0x12345678u) /* so that the loads are not dead */
        *sink = x;
}

__global__ static void k_tick(uint32_t *word)
{
    kernel_begin();
    if (threadIdx.x == 0)
        *word = *word + 1;
}

__global__ static void k_grid_sync(uint32_t *word, int n)
{
    kernel_begin();
    for (int i = 1; i <= n; i++)
        grid_barrier(word, (uint32_t)i * gridDim.x);
}

template <bool BYTES> __global__ static void k_mma(int n, uint32_t *sink)
{
    uint32_t a[4], x = threadIdx.x * 0x01010101u & 0x03030303u;
    int32_t sums[MMA_CHAINS][4] = {};
    float sums_f[MMA_CHAINS][4] = {};
    for (int i = 0; i < 4; i++)
        a[i] = x + (uint32_t)i;
    kernel_begin();
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int c = 0; c < MMA_CHAINS; c++) {
            if constexpr (BYTES)
                mma_16x8x32(sums[c], a, x, x ^ 1);
            else
                mma_f16(sums_f[c], a, x, x ^ 1);
        }
    int32_t all = 0;
    for (int c = 0; c < MMA_CHAINS; c++)
        for (int e = 0; e < 4; e++)
            all += sums[c][e] + (int32_t)sums_f[c][e];
    if (all == 0x12345678) /* so that the sums are not dead */
        *sink = (uint32_t)all;
}

__global__ static void k_combine(const float *parts, int n, int size, float *out)
{
    kernel_begin();
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= size)
        return;
    float sum = 0;
    for (int part = 0; part < n; part++)
        sum += parts[(size_t)part * (size_t)size + (size_t)i];
    out[i] = sum;
}

/* ---- launchers ---- */

static void fill(struct cuda *k, void *p, size_t bytes, uint32_t seed, uint32_t mask, uint32_t set, int stride, int first)
{
    LAUNCH(k, k_fill, dim3(READ_BLOCKS), dim3(THREADS), 0, (uint32_t *)p, bytes / 4, seed, mask, set, stride, first);
    CU_NOTE(k, "fill");
}

extern "C" void gpu_fill(struct cuda *k, const struct mat *m, uint32_t seed)
{
    struct layout l = layout_of(m->type);
    size_t codes = layout_code_bytes(l, m->rows, m->cols) * (size_t)m->n_mat;
    size_t heads = layout_head_bytes(l, m->rows, m->cols) * (size_t)m->n_mat;
    uint8_t *head = (uint8_t *)m->data + codes;
    switch (m->type) { /* floats and halves of about 2^-7, scales so small that code times scale is not more */
    case QTYPE_F32: fill(k, m->data, codes, seed, 0x807FFFFFu, 0x3C000000u, 1, 0); return;
    case QTYPE_F16: fill(k, m->data, codes, seed, 0x83FF83FFu, 0x20002000u, 1, 0); return;
    case QTYPE_BF16: fill(k, m->data, codes, seed, 0x807F807Fu, 0x3C003C00u, 1, 0); return;
    default: break;
    }
    fill(k, m->data, codes, seed, 0xFFFFFFFFu, 0, 1, 0);
    switch (m->type) { /* where d is: decode.cuh */
    case QTYPE_MXFP4: fill(k, head, heads, seed + 1, 0x03030303u, 0x74747474u, 1, 0); break;
    case QTYPE_Q2_K:
    case QTYPE_Q6_K: fill(k, head, heads, seed + 1, 0x83FF83FFu, 0x04000400u, 5, 4); break;
    case QTYPE_Q3_K: fill(k, head, heads, seed + 1, 0x83FF83FFu, 0x04000400u, 4, 3); break;
    case QTYPE_Q4_K:
    case QTYPE_Q5_K: fill(k, head, heads, seed + 1, 0x83FF83FFu, 0x04000400u, 4, 0); break;
    case QTYPE_IQ4_XS: fill(k, head, heads, seed + 1, 0xFFFF83FFu, 0x00000400u, 2, 0); break;
    default: fill(k, head, heads, seed + 1, 0x83FF83FFu, 0x10001000u, 1, 0); break;
    }
}

extern "C" void gpu_read(struct cuda *k, const void *p, size_t bytes, uint32_t *sink)
{
    LAUNCH(k, k_read, dim3(READ_BLOCKS), dim3(THREADS), 0, (const uint4 *)p, bytes / 16, sink);
    CU_NOTE(k, "read");
}

extern "C" void gpu_fill_act(struct cuda *k, const struct act *a, int rows)
{
    size_t n = (size_t)rows * (size_t)a->ld;
    fill(k, a->x, n * 4, 1, 0x807FFFFFu, 0x3C000000u, 1, 0);
    fill(k, a->f16, n * 2, 2, 0x83FF83FFu, 0x20002000u, 1, 0);
    fill(k, a->bf16, n * 2, 3, 0x807F807Fu, 0x3C003C00u, 1, 0);
    fill(k, a->q, n, 4, 0xFFFFFFFFu, 0, 1, 0);
    fill(k, a->s, n / NUM_BLOCK * sizeof *a->s, 5, 0x007FFFFFu, 0x3C000000u, 2, 0);
    fill(k, a->t, n / SEGMENT * sizeof *a->t, 6, 0x007FFFFFu, 0x3C000000u, 1, 0);
}

extern "C" void gpu_tick(struct cuda *k, uint32_t *word)
{
    LAUNCH(k, k_tick, dim3(1), dim3(WARP), 0, word);
    CU_NOTE(k, "tick");
}

extern "C" void gpu_grid_sync(struct cuda *k, int blocks, int n, uint32_t *words)
{
    LAUNCH_TOGETHER(k, k_grid_sync, (unsigned)blocks, THREADS, 0, words, n);
    CU_NOTE(k, "grid sync");
}

extern "C" double gpu_mma(struct cuda *k, bool bytes, int n, uint32_t *sink)
{
    dim3 grid((unsigned)(k->n_sm * MMA_BLOCKS));
    if (bytes)
        LAUNCH(k, k_mma<true>, grid, dim3(THREADS), 0, n, sink);
    else
        LAUNCH(k, k_mma<false>, grid, dim3(THREADS), 0, n, sink);
    CU_NOTE(k, "mma");
    return (double)k->n_sm * MMA_BLOCKS * (THREADS / WARP) * n * MMA_CHAINS * 16 * 8 * (bytes ? 32 : 16);
}

extern "C" void gpu_combine(struct cuda *k, const float *parts, int n, int size, float *out)
{
    LAUNCH(k, k_combine, dim3((unsigned)((size + THREADS - 1) / THREADS)), dim3(THREADS), 0, parts, n, size, out);
    CU_NOTE(k, "combine");
}
