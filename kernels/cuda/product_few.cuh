/* The product for few columns (product.cu, persist.cu): a lane takes one segment of one row, reads it in 16-byte chunks that lie side by side with
 * its neighbours' (8 rows a tile), and holds its sum for up to N columns. The segments' sums are then added in index order
 * by one lane a row: the order of the contract, at any number of columns. Activations come from the L1 cache. */
#ifndef KERNELS_CUDA_PRODUCT_FEW_CUH
#define KERNELS_CUDA_PRODUCT_FEW_CUH

#include "kernels/cuda/product.cuh"

enum { PRODUCT_WAVE = 32, PRODUCT_THREADS = PRODUCT_WAVE * TILE_ROWS, HALF = 4, FEW = 8 };

/* Sums in shared memory lie so that a warp meets each bank once: it writes 8 rows x 4 segments and reads 4 columns x 8 rows. */
enum { SUM_ROW = PRODUCT_WAVE + 4, SUM_COL = TILE_ROWS * SUM_ROW + 1 };

__device__ inline int32_t dot_16(const uint32_t w[4], int4 a)
{
    int32_t sum = __dp4a((int32_t)w[0], a.x, 0);
    sum = __dp4a((int32_t)w[1], a.y, sum);
    sum = __dp4a((int32_t)w[2], a.z, sum);
    return __dp4a((int32_t)w[3], a.w, sum);
}

/* A segment in registers. */
template <int T> struct segment_words {
    uint32_t w[layout_of(T).chunks][CHUNK_WORDS];
    __device__ inline uint32_t operator()(int chunk, int word) const
    {
        return w[chunk][word];
    }
    __device__ inline void set(int chunk, uint4 v)
    {
        w[chunk][0] = v.x;
        w[chunk][1] = v.y;
        w[chunk][2] = v.z;
        w[chunk][3] = v.w;
    }
};

/* acc = the segment's chain for the columns whose activations begin at block col[] of 32, of quantised weights. Few
 * branches, so that loads go ahead of the sums as far as registers allow: up to 4 columns at a time, and all blocks of one
 * column, where a block past the end is computed from whatever lies there and dropped. */
template <int T, int N>
__device__ inline void sum_quantised(const struct product &p, struct place at, int s, const uint32_t col[N], int n,
                                     float acc[N])
{
    struct segment_words<T> words;
#pragma unroll
    for (int c = 0; c < layout_of(T).chunks; c++)
        words.set(c, *(const uint4 *)(at.code + c * TILE_ROWS * CHUNK_WORDS));
    struct head head = load_head<T>(at.head, s % 2);
    int n_block = p.cols / NUM_BLOCK - s * SEGMENT_BLOCKS;
#pragma unroll
    for (int j = 0; j < SEGMENT_BLOCKS; j++) {
        if (N > 1 && j >= n_block)
            break;
        uint32_t lo[4], hi[4];
#pragma unroll
        for (int t = 0; t < 4; t++)
            codes<T>(words, j, t, &lo[t], &hi[t]);
        struct terms terms = terms_of<T>(head, j);
#pragma unroll
        for (int c = 0; c < N; c++) {
            if (c == HALF && n <= HALF)
                break;
            size_t a = (size_t)(col[c] + (uint32_t)(s * SEGMENT_BLOCKS + j));
            const int4 *q = (const int4 *)(p.act.q + a * NUM_BLOCK);
            int32_t dot[2] = {dot_16(lo, q[0]), dot_16(hi, q[1])};
            float sum = add_block<T>(terms, dot, layout_of(T).offset, p.act.s[a], acc[c]);
            acc[c] = j < n_block ? sum : acc[c];
        }
    }
}

/* The same of float weights, one fused step a weight. */
template <int T, int N>
__device__ inline void sum_float(const struct product &p, struct place at, int s, const uint32_t col[N], int n, float acc[N])
{
    constexpr int per_word = T == QTYPE_F32 ? 1 : 2, per_chunk = CHUNK_WORDS * per_word;
    int left = p.cols - s * SEGMENT;
#pragma unroll 4
    for (int i = 0; i < layout_of(T).chunks && i * per_chunk < left; i++) {
        uint4 v = *(const uint4 *)(at.code + i * TILE_ROWS * CHUNK_WORDS);
        const uint32_t w[CHUNK_WORDS] = {v.x, v.y, v.z, v.w};
        bool whole = (i + 1) * per_chunk <= left;
#pragma unroll
        for (int c = 0; c < N; c++) {
            if (c == HALF && n <= HALF)
                break;
            const float *x = p.act.x + (size_t)col[c] * NUM_BLOCK + (size_t)(s * SEGMENT + i * per_chunk);
#pragma unroll
            for (int e = 0; e < per_chunk; e++)
                if (whole || i * per_chunk + e < left)
                    acc[c] = fmaf(float_weight<T>(w[e / per_word], e % per_word), x[e], acc[c]);
        }
    }
}

/* Weights depend on no kernel: they come while the one before still runs. */
template <int T> __device__ inline void prefetch_segment(struct place at)
{
#pragma unroll
    for (int c = 0; c < layout_of(T).chunks; c++)
        prefetch_l2(at.code + c * TILE_ROWS * CHUNK_WORDS);
}

/* Block x: a tile of 8 rows; block y: N columns, the last again for those that are not there. tid: the thread among the
 * 8 rows x `wave` segments that work for the tile; the whole block calls it. sums: N * SUM_COL floats. P: a struct product or a
 * reference to one; of a kernel's parameters only the copy leaves enough registers for Q8_0. */
template <int T, int N, class P>
__device__ inline void product_block(P p, struct block_at b, int tid, int wave, float *sums)
{
    int row = tid % TILE_ROWS, first = b.y * N, n = N > 1 && p.n_col - first < N ? p.n_col - first : N, tile = b.x;
    struct product_part part = part_of(p, &tile);
    if (p.prefetch && tid / TILE_ROWS < p.n_seg)
        prefetch_segment<T>(place_of<T>(part.w, p.n_mat, part.n_tile, p.n_seg, 0, tile, tid / TILE_ROWS, row));
    kernel_begin();
    int mat = p.which != NULL ? p.which[first] : 0;
    uint32_t col[N];
#pragma unroll
    for (int c = 0; c < N; c++)
        col[c] = (uint32_t)(act_at(p, first + (c < n ? c : n - 1), 0) / NUM_BLOCK);
    float total = 0;
    for (int s0 = 0; s0 < p.n_seg; s0 += wave) {
        int s = s0 + tid / TILE_ROWS;
        float acc[N] = {};
        if (s < p.n_seg) {
            struct place at = place_of<T>(part.w, p.n_mat, part.n_tile, p.n_seg, mat, tile, s, row);
            if constexpr (is_quantised(T))
                sum_quantised<T, N>(p, at, s, col, n, acc);
            else
                sum_float<T, N>(p, at, s, col, n, acc);
        }
        if (s0 > 0)
            __syncthreads();
#pragma unroll
        for (int c = 0; c < N; c++)
            sums[c * SUM_COL + row * SUM_ROW + tid / TILE_ROWS] = acc[c];
        __syncthreads();
        if (tid < n * TILE_ROWS)
            for (int i = 0; i < wave && s0 + i < p.n_seg; i++) {
                float v = sums[tid / TILE_ROWS * SUM_COL + row * SUM_ROW + i];
                total = s0 + i == 0 ? v : total + v;
            }
    }
    int out = tile * TILE_ROWS + row;
    if (tid < n * TILE_ROWS && out < part.rows)
        store_output(part, first + tid / TILE_ROWS, out, mat, total);
}

#endif
