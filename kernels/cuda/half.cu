/* The product of F16 and BF16 weights on the tensor cores, for any number of columns: `mma.m16n8k16` with the weights as the
 * rows and activations rounded to the weights' type as the columns. A value is, whatever the tile and whoever its
 * neighbours are, the chain of its segment's instructions from zero, segments added to zero in index order; how the hardware adds
 * inside one instruction is its own affair, which is why one row alone takes the same instruction.
 *
 * Both operands' 16 bytes are used as they lie: of 32 weights, lane t of a group holds 8 t .. 8 t + 7, words 0 and 1 are its
 * share of the first instruction, 2 and 3 of the second. The order of k is thereby another one than the index's, the same
 * for both operands and everywhere. */
#include "kernels/cuda/half_few.cuh"

enum {
    HALF_COLS = 2 * NUM_BLOCK,      /* of a stage, half a segment: 8 chunks a row */
    STAGE_CHUNKS = HALF_COLS / 8,
    GROUP_UNITS = STAGE_CHUNKS * TILE_ROWS, /* a stage of 8 rows or 8 columns */
    GROUP_BYTES = GROUP_UNITS * CHUNK_BYTES,
};

/* ---- few columns ---- */

template <int T> __global__ static void __launch_bounds__(FEW_THREADS, 3) k_half_few(struct product p, int width)
{
    __shared__ float sums[HALF_WAVE][TILE_ROWS][FEW_COLS];
    half_few_block<T>(p, width, this_block(), sums);
}

/* ---- many columns: both operands through shared memory, copied STAGES - 1 half segments ahead ---- */

/* A block of ROWS x COLS, 2 warps along the rows, WARPS / 2 along the columns. */
template <int ROWS, int COLS, int WARPS, int STAGES, int BLOCKS> struct shape {
    static constexpr int rows = ROWS, cols = COLS, threads = WARPS * WARP, stages = STAGES;
    static constexpr int blocks = BLOCKS;                               /* that a multiprocessor has room for */
    static constexpr int m = ROWS / 2 / 16, n = COLS / (WARPS / 2) / 8; /* fragments of a warp */
    static constexpr int units = (ROWS + COLS) * STAGE_CHUNKS;          /* of 16 bytes, a stage */
    static constexpr int bytes = STAGES * units * CHUNK_BYTES;
};
typedef shape<64, 32, 4, 4, 4> shape_narrow;
typedef shape<64, GROUP_COLS, 4, 3, 3> shape_small;
typedef shape<128, 128, 8, 3, 1> shape_big;

/* Where chunk c of row (or column) r of a group of 8 lies in shared memory: the eight lanes of a quarter warp, two rows with
 * four chunks each, and eight chunks of one row, all touch other banks. */
__device__ inline int unit_at(int c, int r)
{
    return c * TILE_ROWS + (r ^ (c % 4 * 2 + c / 4));
}

/* A thread's share of a stage: the same unit of several groups of rows, then of several groups of columns. It goes on by a
 * constant from stage to stage. */
template <int T, class S> struct feeder {
    static constexpr int step = S::threads / GROUP_UNITS;   /* groups that the block copies at once */
    static constexpr int n_row = S::rows / TILE_ROWS / step, n_col = S::cols / TILE_ROWS / step;
    const char *row[n_row];
    uint32_t col[n_col];    /* in bytes / 16, from the plane's beginning */
    int row_to, col_to;
    __device__ inline void aim(const struct product &p, const struct columns &cols, int first_tile)
    {
        int group = (int)threadIdx.x / GROUP_UNITS, unit = (int)threadIdx.x % GROUP_UNITS;
        row_to = group * GROUP_UNITS + unit_at(unit / TILE_ROWS, unit % TILE_ROWS);
        col_to = group * GROUP_UNITS + unit_at(unit % STAGE_CHUNKS, unit / STAGE_CHUNKS);
#pragma unroll
        for (int i = 0; i < n_row; i++) {
            int tile = first_tile + group + i * step;
            tile = tile < p.n_tile ? tile : p.n_tile - 1;
            struct product_part part = part_of(p, &tile);
            row[i] = (const char *)place_of<T>(part.w, p.n_mat, part.n_tile, p.n_seg, cols.mat, tile, 0, 0).code + unit * CHUNK_BYTES;
        }
#pragma unroll
        for (int i = 0; i < n_col; i++) {
            int c = column_of(p, cols, (group + i * step) * TILE_ROWS + unit / STAGE_CHUNKS);
            col[i] = (uint32_t)(act_at(p, c, 0) / 8) + (uint32_t)(unit % STAGE_CHUNKS);
        }
    }
    __device__ inline void copy(const struct product &p, uint4 *stage, int s)
    {
#pragma unroll
        for (int i = 0; i < n_row; i++)
            copy_async(stage + row_to + i * step * GROUP_UNITS, row[i] + (size_t)s * GROUP_BYTES);
#pragma unroll
        for (int i = 0; i < n_col; i++)
            copy_async(stage + col_to + (S::rows / TILE_ROWS + i * step) * GROUP_UNITS, (const uint4 *)act_plane<T>(p) + col[i] + s * STAGE_CHUNKS);
    }
};

/* Block x: columns, so that blocks that run together read the same weights; block y: rows. */
template <int T, class S> __global__ static void __launch_bounds__(S::threads, S::blocks) k_half_tile(struct product p)
{
    DYNAMIC_SHARED(uint4, shared);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int row_at = warp % 2 * S::m * 2, col_at = warp / 2 * S::n;
    int first_tile = (int)blockIdx.y * (S::rows / TILE_ROWS);
    int n_block = (p.cols + NUM_BLOCK - 1) / NUM_BLOCK, n_stage = (n_block + 1) / 2;
    struct feeder<T, S> feeder;
    float acc[S::m][S::n][4] = {}, total[S::m][S::n][4] = {};
    kernel_begin();
    struct columns all = columns_of(p, (int)blockIdx.x, S::cols);
    if (all.n == 0)
        return;
    feeder.aim(p, all, first_tile);
    for (int s = 0; s < S::stages - 1; s++) {
        if (s < n_stage)
            feeder.copy(p, shared + s * S::units, s);
        copy_close();
    }
    for (int s = 0, slot = 0; s < n_stage; s++) {
        copy_wait<S::stages - 2>();
        __syncthreads(); /* everybody's part has come, and nobody reads the slot that is filled next */
        if (s + S::stages - 1 < n_stage)
            feeder.copy(p, shared + (slot == 0 ? S::stages - 1 : slot - 1) * S::units, s + S::stages - 1);
        copy_close();
        const uint4 *rows = shared + slot * S::units + row_at * GROUP_UNITS;
        const uint4 *cols = shared + slot * S::units + (S::rows / TILE_ROWS + col_at) * GROUP_UNITS;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (2 * s + j >= n_block)
                break;
            int at = unit_at(4 * j + t, g);
            uint4 b[S::n];
#pragma unroll
            for (int n = 0; n < S::n; n++)
                b[n] = cols[n * GROUP_UNITS + at];
#pragma unroll
            for (int m = 0; m < S::m; m++) {
                uint4 lo = rows[2 * m * GROUP_UNITS + at], hi = rows[(2 * m + 1) * GROUP_UNITS + at];
#pragma unroll
                for (int n = 0; n < S::n; n++)
                    multiply_block<T>(acc[m][n], lo, hi, b[n]);
            }
        }
        if (s % 2 == 1 || s == n_stage - 1) /* the end of a segment */
#pragma unroll
            for (int m = 0; m < S::m; m++)
#pragma unroll
                for (int n = 0; n < S::n; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        total[m][n][e] = total[m][n][e] + acc[m][n][e];
                        acc[m][n][e] = 0;
                    }
        slot = slot == S::stages - 1 ? 0 : slot + 1;
    }
    all = columns_of(p, (int)blockIdx.x, S::cols); /* looked up again, to spare registers */
#pragma unroll
    for (int m = 0; m < S::m; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int tile = first_tile + row_at + 2 * m + half;
            if (tile >= p.n_tile)
                continue;
            struct product_part part = part_of(p, &tile);
            int row = tile * TILE_ROWS + g;
#pragma unroll
            for (int n = 0; n < S::n; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int c = (col_at + n) * 8 + 2 * t + e;
                    if (row < part.rows && c < all.n)
                        store_output(part, column_of(p, all, c), row, all.mat, total[m][n][2 * half + e]);
                }
        }
}

/* ---- launchers ---- */

static int blocks(int n, int size)
{
    return (n + size - 1) / size;
}

template <int T, class S> static void run_tile(struct cuda *k, const struct product *p)
{
    dim3 grid((unsigned)column_blocks(p, S::cols), (unsigned)blocks(p->n_tile, S::rows / TILE_ROWS));
    LAUNCH(k, (k_half_tile<T, S>), grid, dim3(S::threads), S::bytes, *p);
}

/* Bytes are the same for every shape: the biggest that still gives every multiprocessor a block. */
template <int T> static void run(struct cuda *k, const struct product *p)
{
    if (p->group != NULL) {
        run_tile<T, shape_small>(k, p);
    } else if (p->n_col <= FEW_COLS || p->which != NULL) {
        int width = p->which != NULL ? 1 : FEW_COLS;
        dim3 grid((unsigned)p->n_tile, (unsigned)blocks(p->n_col, width));
        LAUNCH(k, k_half_few<T>, grid, dim3(FEW_THREADS), 0, *p, width);
    } else if (p->n_col <= shape_narrow::cols) {
        run_tile<T, shape_narrow>(k, p);
    } else if (p->n_col <= shape_small::cols ||
               blocks(p->n_col, shape_big::cols) * blocks(p->n_tile, shape_big::rows / TILE_ROWS) < k->n_sm) {
        run_tile<T, shape_small>(k, p);
    } else {
        run_tile<T, shape_big>(k, p);
    }
    CU_NOTE(k, "half");
}

template <int T> static bool allow_shared(void)
{
    auto kernel = k_half_tile<T, shape_big>;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape_big::bytes) == cudaSuccess;
}

extern "C" bool half_open(void)
{
    return allow_shared<QTYPE_F16>() && allow_shared<QTYPE_BF16>();
}

extern "C" void launch_half(struct cuda *k, enum qtype type, const struct product *p)
{
    if (type == QTYPE_F16)
        run<QTYPE_F16>(k, p);
    else
        run<QTYPE_BF16>(k, p);
}
