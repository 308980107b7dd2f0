/* The device half of the CUDA shim: enough of CUDA's language for g++ to compile kernels/cuda/ as they are. Blocks run one
 * after the other in random order, the lanes of a block as fibers in random order between barriers (block.cc). */
#ifndef TESTS_EMU_CUDA_RUNTIME_H
#define TESTS_EMU_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#include "kernels/numerics.h"

#include <functional>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static   /* one block at a time */
#define __grid_constant__
#define LAUNCH(k, kernel, grid, block, smem, ...) emu_launch(grid, block, smem, false, (k)->stream, kernel, __VA_ARGS__)
#define LAUNCH_TOGETHER(k, kernel, n, block, smem, ...) emu_launch_together(n, block, smem, (k)->stream, kernel, __VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type *name = (type *)emu_dynamic_shared()

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

/* block.cc */
void emu_enqueue(cudaStream_t s, std::function<void()> work);
void emu_run_grid(dim3 grid, dim3 block, size_t smem, bool together, const std::function<void()> &lane);
void *emu_dynamic_shared(void);
/* A lane's copies to shared memory: the target is NaNs until the lane waits for the copy's group. */
void emu_copy(void *shared, const void *global, int bytes);
void emu_copy_close(void);
void emu_copy_wait(int left);
enum { EMU_WARP = 32, EMU_SLOT = 64 };
typedef unsigned char emu_slot[EMU_SLOT];
/* Hands `bytes` of every lane of the warp to all of them; valid until the lane's second exchange from here. */
const emu_slot *emu_exchange(const void *mine, size_t bytes, int line);
int emu_lane(void);
void emu_barrier(int line);
void emu_fail(const char *what, int line, int other);
void emu_begin(void);
void emu_grid_barrier(uint32_t *arrivals, uint32_t until, int line);

/* Arguments are taken now, as by a real launch; the grid runs when its stream is waited for. */
template <class... P, class... A>
void emu_launch(dim3 grid, dim3 block, size_t smem, bool together, cudaStream_t s, void (*kernel)(P...), A... args)
{
    emu_enqueue(s, [=] { emu_run_grid(grid, block, smem, together, [&] { kernel(args...); }); });
}

/* A cooperative launch: refused when its blocks are more than the card holds. */
bool emu_holds(unsigned blocks);
template <class... P, class... A>
void emu_launch_together(unsigned n, unsigned block, size_t smem, cudaStream_t s, void (*kernel)(P...), A... args)
{
    if (emu_holds(n))
        emu_launch(dim3(n), dim3(block), smem, true, s, kernel, args...);
}
cudaError_t emu_occupancy(int *blocks);
template <class F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *, int, size_t)
{
    return emu_occupancy(blocks);
}

/* As if compiled for the card that is there. */
cudaError_t emu_attributes(struct cudaFuncAttributes *a);
cudaError_t emu_raise_shared(int bytes);
template <class F> cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, F *)
{
    return emu_attributes(a);
}

/* What a kernel may take beyond 48 KB; asked for once, kept for all: launches check the card's limit alone. */
template <class F> cudaError_t cudaFuncSetAttribute(F *, enum cudaFuncAttribute, int bytes)
{
    return emu_raise_shared(bytes);
}

/* The default argument is the line of the call. */
#define EMU_LINE int line = __builtin_LINE()

static inline void __syncthreads(EMU_LINE)
{
    emu_barrier(line);
}

static inline void emu_check_mask(unsigned mask, int line)
{
    if (mask != 0xFFFFFFFFu)
        emu_fail("a warp operation without all lanes", line, 0);
}

static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, EMU_LINE)
{
    emu_check_mask(mask, line);
    emu_exchange("", 1, line);
}

template <class T> T emu_shuffle(unsigned mask, T x, int from, int line)
{
    emu_check_mask(mask, line);
    const emu_slot *all = emu_exchange(&x, sizeof x, line);
    T out;
    memcpy(&out, all[from], sizeof out);
    return out;
}

template <class T> T __shfl_sync(unsigned mask, T x, int from, EMU_LINE)
{
    return emu_shuffle(mask, x, from % EMU_WARP, line);
}

template <class T> T __shfl_xor_sync(unsigned mask, T x, int bits, EMU_LINE)
{
    return emu_shuffle(mask, x, emu_lane() ^ bits, line);
}

template <class T> T __shfl_up_sync(unsigned mask, T x, int by, EMU_LINE)
{
    int from = emu_lane() - by;
    return emu_shuffle(mask, x, from >= 0 ? from : emu_lane(), line);
}

static inline unsigned __ballot_sync(unsigned mask, bool x, EMU_LINE)
{
    emu_check_mask(mask, line);
    const emu_slot *all = emu_exchange(&x, sizeof x, line);
    unsigned bits = 0;
    for (int i = 0; i < EMU_WARP; i++)
        bits |= (unsigned)(all[i][0] != 0) << i;
    return bits;
}

template <class T> T atomicAdd(T *to, T x)
{
    T was = *to;
    *to = was + x;
    return was;
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

template <class T> T __shfl_down_sync(unsigned mask, T x, int by, EMU_LINE)
{
    int from = emu_lane() + by;
    return emu_shuffle(mask, x, from < EMU_WARP ? from : emu_lane(), line);
}

static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 15, byte = (uint32_t)(bytes >> 8 * (s & 7)) & 255;
        out |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return out;
}

static inline int emu_byte(uint32_t w, int i)
{
    return (int8_t)(w >> 8 * i);
}

static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += emu_byte((uint32_t)a, i) * emu_byte((uint32_t)b, i);
    return c;
}

static inline float half_to_float(uint16_t h)
{
    return num_f16_to_f32(h);
}

/* A lane that ends without it is an error: on a card the kernel would run beside the one before. */
static inline void kernel_begin(void)
{
    emu_begin();
}

static inline void grid_barrier(uint32_t *arrivals, uint32_t until, EMU_LINE)
{
    emu_grid_barrier(arrivals, until, line);
}

static inline bool arrives_last(uint32_t *arrivals, uint32_t n)
{
    *arrivals = *arrivals >= n - 1 ? 0 : *arrivals + 1;
    return *arrivals == 0;
}

static inline void prefetch_l2(const void *)
{
}

/* mma.sync with signed bytes, 16 x 8 x (16 steps): the fragments of all lanes are brought together, each lane then
 * computes its four results. Words of a lane: rows g and g + 8 for each half of k, then the halves of its column. */
static inline void emu_mma(int32_t c[4], const uint32_t *a, const uint32_t *b, int halves, int line)
{
    uint32_t mine[6] = {};
    for (int h = 0; h < halves; h++) {
        mine[2 * h] = a[2 * h];
        mine[2 * h + 1] = a[2 * h + 1];
        mine[4 + h] = b[h];
    }
    const emu_slot *all = emu_exchange(mine, sizeof mine, line);
    int g = emu_lane() / 4, t = emu_lane() % 4;
    for (int e = 0; e < 4; e++)
        for (int h = 0; h < halves; h++)
            for (int q = 0; q < 4; q++) { /* the quarter of k that lane q of a group holds */
                uint32_t x, y;
                memcpy(&x, all[4 * g + q] + 4 * (2 * h + e / 2), 4);
                memcpy(&y, all[4 * (2 * t + e % 2) + q] + 4 * (4 + h), 4);
                c[e] = __dp4a((int)x, (int)y, c[e]);
            }
}

/* mma.sync with halves or bfloats: the products of a value are added one by one in order of k. The card's order inside the
 * instruction is its own: against the reference such results are compared within a tolerance. */
template <float (*value)(uint16_t)> void emu_mma_float(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, int line)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const emu_slot *all = emu_exchange(mine, sizeof mine, line);
    int g = emu_lane() / 4, t = emu_lane() % 4;
    for (int e = 0; e < 4; e++)
        for (int k = 0; k < 16; k++) {
            int q = k % 8 / 2, high = k / 8;
            uint16_t x, y;
            memcpy(&x, all[4 * g + q] + 4 * (2 * high + e / 2) + 2 * (k % 2), 2);
            memcpy(&y, all[4 * (2 * t + e % 2) + q] + 4 * (4 + high) + 2 * (k % 2), 2);
            c[e] = fmaf(value(x), value(y), c[e]);
        }
}

static inline void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, EMU_LINE)
{
    emu_mma_float<num_f16_to_f32>(c, a, b0, b1, line);
}

static inline void mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, EMU_LINE)
{
    emu_mma_float<num_bf16_to_f32>(c, a, b0, b1, line);
}

static inline void load_matrices(uint32_t out[4], const void *row, EMU_LINE)
{
    const emu_slot *all = emu_exchange(&row, sizeof row, line);
    for (int m = 0; m < 4; m++) {
        const unsigned char *from;
        memcpy(&from, all[8 * m + emu_lane() / 4], sizeof from);
        if ((uintptr_t)from % 16 != 0)
            emu_fail("a matrix row that is not aligned", line, 0);
        memcpy(&out[m], from + 4 * (emu_lane() % 4), 4);
    }
}

static inline void copy_async(void *shared, const void *global)
{
    emu_copy(shared, global, 16);
}

static inline void copy_async_word(void *shared, const void *global)
{
    emu_copy(shared, global, 4);
}

static inline void copy_close(void)
{
    emu_copy_close();
}

template <int left> void copy_wait(void)
{
    emu_copy_wait(left);
}

static inline void mma_16x8x32(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, EMU_LINE)
{
    const uint32_t b[2] = {b0, b1};
    emu_mma(c, a, b, 2, line);
}

static inline void mma_16x8x16(int32_t c[4], uint32_t a0, uint32_t a1, uint32_t b, EMU_LINE)
{
    const uint32_t a[2] = {a0, a1};
    emu_mma(c, a, &b, 1, line);
}

#endif
