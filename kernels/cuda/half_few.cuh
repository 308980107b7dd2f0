/* The product of F16 and BF16 weights for few columns (half.cu, persist.cu): a block takes 8 rows, a warp every eighth segment,
 * straight from memory. half.cu says what the instructions add, and in which order. */
#ifndef KERNELS_CUDA_HALF_FEW_CUH
#define KERNELS_CUDA_HALF_FEW_CUH

#include "kernels/cuda/product.cuh"

enum { FEW_COLS = 8, FEW_WARPS = 8, FEW_THREADS = FEW_WARPS * WARP, HALF_WAVE = 32 /* segments between two barriers */ };

template <int T> __device__ inline void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    if constexpr (T == QTYPE_F16)
        mma_f16(c, a, b0, b1);
    else
        mma_bf16(c, a, b0, b1);
}

/* Two instructions: 32 weights of rows g (lo) and g + 8 (hi) with those of column g. */
template <int T> __device__ inline void multiply_block(float c[4], uint4 lo, uint4 hi, uint4 b)
{
    const uint32_t first[4] = {lo.x, hi.x, lo.y, hi.y}, second[4] = {lo.z, hi.z, lo.w, hi.w};
    multiply<T>(c, first, b.x, b.y);
    multiply<T>(c, second, b.z, b.w);
}

template <int T> __device__ inline const uint16_t *act_plane(const struct product &p)
{
    return T == QTYPE_F16 ? p.act.f16 : p.act.bf16;
}

template <int T> __device__ inline void load_weights(const struct place &at, int t, uint4 w[SEGMENT_BLOCKS])
{
#pragma unroll
    for (int j = 0; j < SEGMENT_BLOCKS; j++)
        w[j] = *(const uint4 *)(at.code + (size_t)(4 * j + t) * TILE_ROWS * CHUNK_WORDS);
}

/* Rows 8..15 of the instruction are zeros: this path waits for memory, not for arithmetic. x: the lane's column's first
 * values of the segment, of which n_block blocks are there. */
template <int T>
__device__ inline void sum_segment(const uint4 w[SEGMENT_BLOCKS], const uint16_t *x, bool mine, int n_block, float acc[4])
{
    const uint4 none = {0, 0, 0, 0};
    acc[0] = acc[1] = acc[2] = acc[3] = 0;
#pragma unroll
    for (int j = 0; j < SEGMENT_BLOCKS; j++)
        if (j < n_block)
            multiply_block<T>(acc, w[j], none, mine ? *(const uint4 *)(x + j * NUM_BLOCK) : none);
}

/* Block x: a tile of 8 rows; block y: `width` columns: 8, or one when each has a matrix of its own. */
template <int T>
__device__ inline void half_few_block(const struct product &p, int width, struct block_at b,
                                      float sums[HALF_WAVE][TILE_ROWS][FEW_COLS])
{
    int tid = (int)threadIdx.x, lane = tid % WARP, warp = tid / WARP, g = lane / 4, t = lane % 4;
    int first = b.y * width, n = p.n_col - first < width ? p.n_col - first : width;
    int tile = b.x, row = tid / FEW_COLS, c = tid % FEW_COLS;
    struct product_part part = part_of(p, &tile);
    if (p.which != NULL)
        kernel_begin(); /* which weights these are, another kernel chose */
    int mat = p.which != NULL ? p.which[first] : 0, n_block = (p.cols + NUM_BLOCK - 1) / NUM_BLOCK;
    bool mine = g < n; /* the lane's column is there */
    const uint16_t *x = act_plane<T>(p) + act_at(p, mine ? first + g : first, 0) + (size_t)(8 * t);
    struct place at = place_of<T>(part.w, p.n_mat, part.n_tile, p.n_seg, mat, tile, 0, g);
    constexpr int pitch = layout_of(T).chunks * TILE_ROWS * CHUNK_WORDS;
    float total = 0;
    uint4 next[SEGMENT_BLOCKS];
    at.code += (size_t)warp * pitch;
    if (warp < p.n_seg)
        load_weights<T>(at, t, next);
    if (p.which == NULL)
        kernel_begin();
    for (int s0 = 0; s0 < p.n_seg; s0 += HALF_WAVE) {
#pragma unroll 1
        for (int i = warp; i < HALF_WAVE && s0 + i < p.n_seg; i += FEW_WARPS) {
            uint4 w[SEGMENT_BLOCKS];
            float acc[4];
#pragma unroll
            for (int j = 0; j < SEGMENT_BLOCKS; j++)
                w[j] = next[j];
            at.code += (size_t)FEW_WARPS * pitch;
            if (s0 + i + FEW_WARPS < p.n_seg)
                load_weights<T>(at, t, next);
            sum_segment<T>(w, x + (s0 + i) * SEGMENT, mine, n_block - (s0 + i) * SEGMENT_BLOCKS, acc);
            sums[i][g][2 * t] = acc[0];
            sums[i][g][2 * t + 1] = acc[1];
        }
        __syncthreads();
#pragma unroll 4
        for (int i = 0; row < TILE_ROWS && i < HALF_WAVE && s0 + i < p.n_seg; i++)
            total = total + sums[i][row][c];
        __syncthreads();
    }
    tile = b.x; /* looked up again: kept, it would take registers that loads need */
    part = part_of(p, &tile);
    int out = tile * TILE_ROWS + row;
    if (row < TILE_ROWS && c < n && out < part.rows)
        store_output(part, first + c, out, mat, total);
}

#endif
