/* The product for many columns of quantised weights, on the tensor cores: a block takes 64 rows and 64 columns, a warp 16 of
 * the rows. The integer sums of a block of 32 are exact, so only the float chain's order counts, and it is the contract's:
 * blocks in index order into `acc`, segments in index order into `total`. */
#include "kernels/cuda/product.cuh"

enum {
    TILE_THREADS = 128,
    WARP_TILES = 2,                      /* tiles of 8 rows a warp takes */
    BLOCK_TILES = TILE_THREADS / WARP * WARP_TILES,
    TILE_COLS = 64,
    GROUPS = TILE_COLS / 8,              /* the instruction's 8 columns */
    COL_WORDS = SEGMENT / 4,
    COL_PITCH = COL_WORDS + 4,           /* columns four banks apart: no conflicts between a fragment's lanes */
};

/* ---- helpers ---- */

/* The block copies its columns' codes and scales of segment s; columns from n_col on repeat the last one. */
__device__ static void load_columns(const struct product &p, int first, int s, uint32_t q[TILE_COLS][COL_PITCH],
                                    struct act_scale scale[SEGMENT_BLOCKS][TILE_COLS])
{
    constexpr int chunks = SEGMENT / CHUNK_BYTES;
    for (int i = (int)threadIdx.x; i < TILE_COLS * chunks; i += TILE_THREADS) {
        int c = i / chunks, col = first + c < p.n_col ? first + c : p.n_col - 1;
        *(uint4 *)&q[c][i % chunks * CHUNK_WORDS] = *(const uint4 *)(p.act.q + act_at(p, col, s) + (size_t)(i % chunks * CHUNK_BYTES));
    }
    for (int i = (int)threadIdx.x; i < TILE_COLS * SEGMENT_BLOCKS; i += TILE_THREADS) {
        int c = i / SEGMENT_BLOCKS, col = first + c < p.n_col ? first + c : p.n_col - 1;
        scale[i % SEGMENT_BLOCKS][c] = p.act.s[act_at(p, col, s) / NUM_BLOCK + (size_t)(i % SEGMENT_BLOCKS)];
    }
}

/* One block of 32 for 16 rows x 8 columns: a = the weights' fragment, b = the columns'. */
template <int T>
__device__ static void add_fragment(const uint32_t a[4], uint32_t b0, uint32_t b1, const struct terms w[2],
                                    const struct act_scale s[2], float acc[4])
{
    int32_t dot[2][4] = {};
    if constexpr (layout_of(T).halves) {
        mma_16x8x16(dot[0], a[0], a[1], b0);
        mma_16x8x16(dot[1], a[2], a[3], b1);
    } else {
        mma_16x8x32(dot[0], a, b0, b1);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int32_t sums[2] = {dot[0][e], dot[1][e]};
        acc[e] = add_block<T>(w[e / 2], sums, 0, s[e % 2], acc[e]);
    }
}

/* ---- kernels ---- */

template <int T> __global__ static void __launch_bounds__(TILE_THREADS, 2) k_tile(struct product p)
{
    kernel_begin();
    __shared__ __align__(16) uint32_t q[TILE_COLS][COL_PITCH];
    __shared__ struct act_scale scale[SEGMENT_BLOCKS][TILE_COLS];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int first = (int)blockIdx.y * TILE_COLS;
    struct product_part part[WARP_TILES];
    int tile[WARP_TILES];
    bool inside[WARP_TILES];
#pragma unroll
    for (int i = 0; i < WARP_TILES; i++) {
        int at = (int)blockIdx.x * BLOCK_TILES + warp * WARP_TILES + i;
        inside[i] = at < p.n_tile;
        tile[i] = inside[i] ? at : p.n_tile - 1;
        part[i] = part_of(p, &tile[i]);
    }
    float acc[GROUPS][4], total[GROUPS][4];
    for (int s = 0; s < p.n_seg; s++) {
        /* weights first: their loads are under way while the columns are copied */
        uint32_t a[SEGMENT_BLOCKS][4];
        struct head head[WARP_TILES];
#pragma unroll
        for (int i = 0; i < WARP_TILES; i++) {
            struct place at = place_of<T>(part[i].w, p.n_mat, part[i].n_tile, p.n_seg, 0, tile[i], s, g);
            head[i] = load_head<T>(at.head, s % 2);
#pragma unroll
            for (int j = 0; j < SEGMENT_BLOCKS; j++) {
                uint32_t lo, hi;
                codes<T>(at, j, t, &lo, &hi);
                a[j][i] = without_offset<T>(lo);
                a[j][2 + i] = without_offset<T>(hi);
            }
        }
        __syncthreads();
        load_columns(p, first, s, q, scale);
        __syncthreads();
        int n_block = p.cols / NUM_BLOCK - s * SEGMENT_BLOCKS;
#pragma unroll
        for (int n = 0; n < GROUPS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                acc[n][e] = 0;
#pragma unroll
        for (int j = 0; j < SEGMENT_BLOCKS; j++) {
            if (j >= n_block)
                break;
            const struct terms w[2] = {terms_of<T>(head[0], j), terms_of<T>(head[1], j)};
#pragma unroll
            for (int n = 0; n < GROUPS; n++) {
                const struct act_scale cols[2] = {scale[j][n * 8 + 2 * t], scale[j][n * 8 + 2 * t + 1]};
                const uint32_t *b = &q[n * 8 + g][j * 8 + t];
                add_fragment<T>(a[j], b[0], b[4], w, cols, acc[n]);
            }
        }
#pragma unroll
        for (int n = 0; n < GROUPS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                total[n][e] = s == 0 ? acc[n][e] : total[n][e] + acc[n][e];
    }
#pragma unroll
    for (int n = 0; n < GROUPS; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = e / 2, row = tile[i] * TILE_ROWS + g, col = first + n * 8 + 2 * t + e % 2;
            if (inside[i] && row < part[i].rows && col < p.n_col)
                store_output(part[i], col, row, 0, total[n][e]);
        }
}

/* ---- launchers ---- */

template <int T> static void run(struct cuda *k, const struct product *p)
{
    dim3 grid((unsigned)((p->n_tile + BLOCK_TILES - 1) / BLOCK_TILES), (unsigned)((p->n_col + TILE_COLS - 1) / TILE_COLS));
    LAUNCH(k, k_tile<T>, grid, dim3(TILE_THREADS), 0, *p);
    CU_NOTE(k, "tile");
}

/* PTX made for sm_75 also runs on newer cards: what counts is what the kernel was compiled for. */
extern "C" int tile_code(void)
{
    struct cudaFuncAttributes a;
    auto kernel = k_tile<QTYPE_Q4_0>;
    cudaError_t e = cudaFuncGetAttributes(&a, kernel);
    return e == cudaSuccess ? a.ptxVersion : 0;
}

extern "C" void launch_tile(struct cuda *k, enum qtype type, const struct product *p)
{
    switch (type) {
#define QTYPE(name, id, n, block, mins)                                                                                \
    case QTYPE_##name:                                                                                                 \
        if constexpr (is_quantised(QTYPE_##name))                                                                      \
            run<QTYPE_##name>(k, p);                                                                                   \
        break;
#include "kernels/qtypes.def"
#undef QTYPE
    case QTYPE_N: break;
    }
}
