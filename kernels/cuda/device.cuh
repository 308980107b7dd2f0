/* What every .cu file starts with: the C headers as C, the launch macro, and warp helpers. Instructions without an
 * intrinsic stand here, one function each, so that a host build can replace them (tests/emu/). */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cuda_runtime.h>

extern "C" {
#include "kernels/cuda/cuda.h"
}

#define ALL_LANES 0xFFFFFFFFu
enum { WARP = 32 };

#ifdef __CUDACC__
/* With k->overlap a kernel may start while the one before it still runs; it waits in kernel_begin(). */
template <class... P, class... A>
inline void launch_kernel(struct cuda *k, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args)
{
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = shared;
    c.stream = k->stream;
    c.attrs = &overlap;
    c.numAttrs = k->overlap ? 1 : 0;
    (void)cudaLaunchKernelEx(&c, kernel, args...); /* CU_NOTE sees what it said */
}
/* n blocks that are all on the card at once, or none: they may use grid_barrier. */
template <class... P, class... A>
inline void launch_together(struct cuda *k, void (*kernel)(P...), unsigned n, unsigned block, size_t shared, A... args)
{
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3(n);
    c.blockDim = dim3(block);
    c.dynamicSmemBytes = shared;
    c.stream = k->stream;
    c.attrs = &together;
    c.numAttrs = 1;
    (void)cudaLaunchKernelEx(&c, kernel, args...);
}
#define LAUNCH_TOGETHER(k, kernel, n, block, shared, ...) launch_together(k, kernel, n, block, shared, __VA_ARGS__)
#define LAUNCH(k, kernel, grid, block, shared, ...) launch_kernel(k, kernel, grid, block, shared, __VA_ARGS__)

/* Every kernel calls it before it reads or writes anything that another kernel writes; only weights may be fetched before.
 * Waits until the kernel before is through, then lets the next one start. */
__device__ inline void kernel_begin(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Waits for all blocks of a cooperative launch: each adds one to *arrivals, which is `until` (modulo 2^32) when all have.
 * What they wrote before, all see after. */
__device__ inline void grid_barrier(uint32_t *arrivals, uint32_t until)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t now;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
        do
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrivals) : "memory");
        while ((int32_t)(now - until) < 0);
    }
    __syncthreads();
}

/* Counts up to n, then from 0 again: true for the last of n. What the others wrote before, it sees after. */
__device__ inline bool arrives_last(uint32_t *arrivals, uint32_t n)
{
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(arrivals), "r"(n - 1) : "memory");
    return before == n - 1;
}

__device__ inline void prefetch_l2(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]

__device__ inline float half_to_float(uint16_t h)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

/* c += a x b for 16 rows x 8 columns x 32 (16) signed bytes; fragments as PTX defines them. sm_80 on. */
__device__ inline void mma_16x8x32(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ inline void mma_16x8x16(int32_t c[4], uint32_t a0, uint32_t a1, uint32_t b)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
#endif
}

/* Four matrices of 8 rows of 16 bytes from shared memory, row i of matrix m where lane 8 m + i says: word t of row g of each to
 * lane (g, t), which is how the instructions above hold their operands. */
__device__ inline void load_matrices(uint32_t out[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* c += a x b for 16 rows x 8 columns x 16 halves, or bfloats. */
__device__ inline void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ inline void mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* 16 bytes from global to shared memory, there for this thread once copy_wait says so of the group it was closed in. */
__device__ inline void copy_async(void *shared, const void *global)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global)
                 : "memory");
#endif
}

/* 4 bytes, the same way. */
__device__ inline void copy_async_word(void *shared, const void *global)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global)
                 : "memory");
#endif
}

__device__ inline void copy_close(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* All groups but the last `left` have arrived. */
template <int left> __device__ inline void copy_wait(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}
#endif

/* Which block of its grid a kernel's body works for: the one that was launched, or one of many in turn (persist.cu). */
struct block_at {
    int x, y, z;
};

__device__ inline struct block_at this_block(void)
{
    return {(int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z};
}

/* Half i of a word. */
__device__ inline float half_of(uint32_t w, int i)
{
    return half_to_float((uint16_t)(w >> 16 * i));
}

/* Largest over the warp; a NaN is never taken, as in the contract. */
__device__ inline float warp_max(float x)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    return x;
}

/* Adds over each half of the warp. */
__device__ inline int32_t half_warp_sum(int32_t x)
{
    for (int lane = WARP / 4; lane > 0; lane /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

/* num_tree64 over the values of a warp's lanes and 32 more, lane i's being the i-th and the (i + 32)-th; in lane 0. */
__device__ inline float warp_tree64(float v, float more)
{
    v = v + more;
    for (int stride = WARP / 2; stride > 0; stride /= 2)
        v += __shfl_down_sync(ALL_LANES, v, stride);
    return v;
}

/* The same over 64 floats in shared memory, written before a barrier. */
__device__ inline float warp_tree64(const float *s, int lane)
{
    return warp_tree64(s[lane], s[lane + WARP]);
}

#endif
