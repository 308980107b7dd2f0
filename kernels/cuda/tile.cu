/* The product for many columns of quantised weights, on the tensor cores: a block takes 64 rows and 64 columns, a warp 32 of
 * each. Codes, scales and activations of a segment are copied to shared memory while the segment before is multiplied. The
 * integer sums of a block of 32 are exact, so only the float chain's order counts, and it is the contract's: blocks in index
 * order into `acc`, segments in index order into `total`. */
#include "kernels/cuda/fragment.cuh"

enum {
    TILE_THREADS = 128,
    TILE_ROW_COUNT = 64,
    BLOCK_TILES = TILE_ROW_COUNT / TILE_ROWS,
    FRAGMENTS = 2,                       /* of 16 rows, a warp */
    GROUPS = 4,                          /* of 8 columns, a warp */
    COL_UNITS = SEGMENT / CHUNK_BYTES,
    COL_PITCH = COL_UNITS + 1,           /* columns four banks apart: no conflicts between a fragment's lanes */
    STAGES = 2,
};

/* Where things of a stage lie, in units of 16 bytes. */
template <int T> struct stage_of {
    static constexpr int tile_units = layout_of(T).chunks * TILE_ROWS, head_units = TILE_ROWS * layout_of(T).head_words / 4;
    static constexpr int heads = BLOCK_TILES * tile_units, cols = heads + BLOCK_TILES * head_units;
    static constexpr int terms = cols + GROUP_COLS * COL_PITCH, units = terms + GROUP_COLS * col_units<T>::n;
};

/* ---- helpers ---- */

/* A thread's share of a stage: a sixteenth of a tile of rows, an eighth of four columns, a unit of one's terms. Where that lies
 * is found once. Rows from the last tile on and columns from the last on repeat it. */
template <int T> struct feeder {
    typedef stage_of<T> at;
    static constexpr int row_threads = TILE_THREADS / BLOCK_TILES, col_steps = GROUP_COLS * COL_UNITS / TILE_THREADS;
    static constexpr int row_steps = (at::tile_units + row_threads - 1) / row_threads, step_cols = TILE_THREADS / COL_UNITS;
    const uint4 *code, *head;
    uint32_t col[col_steps], term; /* in units, from the planes' beginnings */
    __device__ inline void aim(const struct product &p, const struct columns &cols, int first_tile)
    {
        int tid = (int)threadIdx.x, tile = first_tile + tid / row_threads;
        tile = tile < p.n_tile ? tile : p.n_tile - 1;
        struct product_part part = part_of(p, &tile);
        struct place from = place_of<T>(part.w, p.n_mat, part.n_tile, p.n_seg, cols.mat, tile, 0, 0);
        code = (const uint4 *)from.code + tid % row_threads;
        head = (const uint4 *)from.head + tid % row_threads;
#pragma unroll
        for (int i = 0; i < col_steps; i++)
            col[i] = (uint32_t)(act_at(p, column_of(p, cols, tid / COL_UNITS + i * step_cols), 0) / CHUNK_BYTES) +
                     (uint32_t)(tid % COL_UNITS);
        term = (uint32_t)(act_at(p, column_of(p, cols, tid / col_units<T>::n), 0) / SEGMENT) * col_units<T>::row +
               (uint32_t)(tid % col_units<T>::n);
    }
    __device__ inline void copy(const struct product &p, int s, uint4 *stage)
    {
        int tid = (int)threadIdx.x, tile = tid / row_threads, u = tid % row_threads;
#pragma unroll
        for (int i = 0; i < row_steps; i++)
            if ((i + 1) * row_threads <= at::tile_units || u + i * row_threads < at::tile_units)
                copy_async(stage + tile * at::tile_units + u + i * row_threads, code + (size_t)s * at::tile_units + i * row_threads);
        if (u < at::head_units)
            copy_async(stage + at::heads + tile * at::head_units + u, head + (size_t)(s / layout_of(T).head_segs) * at::head_units);
#pragma unroll
        for (int i = 0; i < col_steps; i++)
            copy_async(stage + at::cols + (tid / COL_UNITS + i * step_cols) * COL_PITCH + tid % COL_UNITS,
                       (const uint4 *)p.act.q + col[i] + s * COL_UNITS);
        if (GROUP_COLS * col_units<T>::n == TILE_THREADS || tid < GROUP_COLS)
            copy_async(stage + at::terms + tid, col_plane<T>(p) + term + s * col_units<T>::row);
    }
};
static_assert(GROUP_COLS * 2 == TILE_THREADS, "a thread copies at most one unit of terms");

/* The warp's chains of one segment, of n_block blocks that are there, looked at unless WHOLE. */
template <int T, bool WHOLE>
__device__ inline void sum_stage(const uint4 *stage, int s, int row_tile, int first_group, int n_block, float acc[FRAGMENTS][GROUPS][4])
{
    typedef stage_of<T> at;
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint4 *cols = stage + at::cols + (first_group * 8 + lane / 16 * 8 + lane % 8) * COL_PITCH + lane / 8 % 2;
    const uint32_t *terms = (const uint32_t *)(stage + at::terms + (first_group * 8 + 2 * t) * col_units<T>::n);
    /* Lane t unpacks block t's terms for its four. For two scales a block there are no registers, and one alone is quickly
     * unpacked. */
    constexpr bool share = is_super(T) && !layout_of(T).halves;
    struct head head[FRAGMENTS][2];
    struct row_terms mine[FRAGMENTS][2];
#pragma unroll
    for (int m = 0; m < FRAGMENTS; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            head[m][i] = load_head<T>((const uint32_t *)(stage + at::heads + (row_tile + 2 * m + i) * at::head_units) +
                                          g * layout_of(T).head_words, s % 2);
            if constexpr (share)
                mine[m][i] = row_terms_of<T>(head[m][i], t);
        }
#pragma unroll
    for (int j = 0; j < SEGMENT_BLOCKS; j++) {
        if (!WHOLE && j >= n_block)
            break;
        __syncwarp(); /* not for its own sake: nothing of a block is fetched before the block before is done, for which there are
                       * no registers */
        uint32_t a[FRAGMENTS][4];
        struct row_terms w[FRAGMENTS][2];
#pragma unroll
        for (int m = 0; m < FRAGMENTS; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                struct place codes_at = {(const uint32_t *)(stage + (row_tile + 2 * m + i) * at::tile_units + g), NULL};
                uint32_t lo, hi;
                codes<T>(codes_at, j, t, &lo, &hi);
                a[m][i] = without_offset<T>(lo);
                a[m][2 + i] = without_offset<T>(hi);
                if constexpr (share)
                    w[m][i] = from_lane<T>(mine[m][i], 4 * g + j);
                else
                    w[m][i] = row_terms_of<T>(head[m][i], j);
            }
        uint32_t b[4]; /* of two groups */
#pragma unroll
        for (int n = 0; n < GROUPS; n++) {
            if (layout_of(T).halves && n > 0)
                __syncwarp();
            if (n % 2 == 0)
                load_matrices(b, cols + n * 8 * COL_PITCH + 2 * j);
            const struct col_terms two[2] = {col_terms_of<T>(terms + n * 8 * col_units<T>::n * 4, j),
                                             col_terms_of<T>(terms + (n * 8 + 1) * col_units<T>::n * 4, j)};
#pragma unroll
            for (int m = 0; m < FRAGMENTS; m++)
                add_fragment<T>(a[m], b[n % 2 * 2], b[n % 2 * 2 + 1], w[m], two, acc[m][n]);
        }
    }
}

/* ---- kernels ---- */

/* Blocks a multiprocessor: for three, Q2_K and Q3_K have too few registers. */
LAYOUT_FN int tile_blocks(int type)
{
    return code_bits(type) == BITS_2 || code_bits(type) == BITS_3 ? 2 : 3;
}

/* Block x: columns, so that blocks that run together read the same weights; block y: rows. */
template <int T> __global__ static void __launch_bounds__(TILE_THREADS, tile_blocks(T)) k_tile(struct product p)
{
    DYNAMIC_SHARED(uint4, shared);
    typedef stage_of<T> at;
    kernel_begin();
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    struct columns cols = columns_of(p, (int)blockIdx.x, GROUP_COLS);
    int first_tile = (int)blockIdx.y * BLOCK_TILES, row_tile = warp % 2 * FRAGMENTS * 2, first_group = warp / 2 * GROUPS;
    if (cols.n == 0)
        return;
    float acc[FRAGMENTS][GROUPS][4], total[FRAGMENTS][GROUPS][4] = {};
    struct feeder<T> feeder;
    feeder.aim(p, cols, first_tile);
    feeder.copy(p, 0, shared);
    copy_close();
    for (int s = 0; s < p.n_seg; s++) {
        uint4 *stage = shared + s % STAGES * at::units;
        if (s + 1 < p.n_seg)
            feeder.copy(p, s + 1, shared + (s + 1) % STAGES * at::units);
        copy_close();
        copy_wait<1>();
        __syncthreads();
        int n_block = p.cols / NUM_BLOCK - s * SEGMENT_BLOCKS;
#pragma unroll
        for (int m = 0; m < FRAGMENTS; m++)
#pragma unroll
            for (int n = 0; n < GROUPS; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    acc[m][n][e] = 0;
        if (first_group * 8 < cols.n) { /* of a warp's columns, those that are not there repeat the last and are not stored */
            if (is_super(T) || n_block >= SEGMENT_BLOCKS)
                sum_stage<T, true>(stage, s, row_tile, first_group, n_block, acc);
            else
                sum_stage<T, false>(stage, s, row_tile, first_group, n_block, acc);
        }
#pragma unroll
        for (int m = 0; m < FRAGMENTS; m++)
#pragma unroll
            for (int n = 0; n < GROUPS; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    total[m][n][e] = s == 0 ? acc[m][n][e] : total[m][n][e] + acc[m][n][e];
        __syncthreads(); /* before the stage is filled anew */
    }
#pragma unroll
    for (int m = 0; m < FRAGMENTS; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int tile = first_tile + row_tile + 2 * m + i;
            if (tile >= p.n_tile)
                continue;
            struct product_part part = part_of(p, &tile);
            int row = tile * TILE_ROWS + g;
#pragma unroll
            for (int n = 0; n < GROUPS; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int c = (first_group + n) * 8 + 2 * t + e;
                    if (row < part.rows && c < cols.n)
                        store_output(part, column_of(p, cols, c), row, cols.mat, total[m][n][2 * i + e]);
                }
        }
}

/* ---- launchers ---- */

template <int T> static void run(struct cuda *k, const struct product *p)
{
    dim3 grid((unsigned)column_blocks(p, GROUP_COLS), (unsigned)((p->n_tile + BLOCK_TILES - 1) / BLOCK_TILES));
    LAUNCH(k, k_tile<T>, grid, dim3(TILE_THREADS), STAGES * stage_of<T>::units * CHUNK_BYTES, *p);
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
    with_quantised(type, [&](auto t) { run<decltype(t)::value>(k, p); });
}
