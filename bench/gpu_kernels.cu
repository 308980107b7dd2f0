#include "kernels/cuda/device.cuh"

extern "C" {
#include "bench/gpu_kernels.h"
}

enum { THREADS = 256, READ_BLOCKS = 4096, UNROLL = 4 };

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
