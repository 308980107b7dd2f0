/* The product for up to 64 columns of quantised weights, on the tensor cores: a block takes 16 or 32 rows and all columns,
 * a warp 16 rows and every k-th segment. What a wave of segments needs is copied to shared memory while the wave before is
 * multiplied: weights are read once, by the one warp that multiplies them, columns by all rows of the block. A warp decodes its
 * weights once for all columns, of which a pass takes up to 32. The segments' sums meet in shared memory, where the thread
 * that owns an output adds them in index order: the contract's order, at any number of columns. */
#include "kernels/cuda/fragment.cuh"

enum {
    FEW_THREADS = 512, FRAGMENT_ROWS = 16, FRAGMENT_TILES = FRAGMENT_ROWS / TILE_ROWS,
    GROUP = 8,              /* columns of an instruction */
    PASS = 32, PASSES = GROUP_COLS / PASS,
    COL_UNITS = SEGMENT / CHUNK_BYTES, COL_PITCH = COL_UNITS + 1,   /* in units of 16 bytes: no conflicts between columns */
};

/* How a block is made up: warps are fragments x segs. */
struct few_shape {
    int fragments;          /* of 16 rows */
    int segs;               /* segments of a wave */
    int width;              /* columns of a pass */
    int slots;              /* waves (or passes of them) in shared memory, 2 or 3 */
    int share;              /* columns of a pass that a warp copies */
    int slot;               /* units of one */
    int pitch, quads;       /* of a segment's sums: floats of a group of columns, fours of a pass */
};

/* Units of 16 bytes that a warp's weights of a segment take: codes of two tiles, then their heads. */
template <int T> struct warp_units {
    static constexpr int code = layout_of(T).chunks * TILE_ROWS, head = TILE_ROWS * layout_of(T).head_words / 4;
    static constexpr int heads = FRAGMENT_TILES * code, all = FRAGMENT_TILES * (code + head);
};

/* Units from a column's terms to the next's: no conflicts between columns. */
template <int T> struct terms_pitch {
    static constexpr int units = col_units<T>::n == 1 ? 1 : 3;
};

/* ---- helpers ---- */

/* A lane's share of its warp's weights: every sixteenth unit of one of its two tiles. */
template <int T> struct weights_from {
    typedef warp_units<T> units;
    static constexpr int lanes = WARP / FRAGMENT_TILES;
    const uint4 *code, *head;
    __device__ inline void aim(const struct product &p, int mat, int first_tile)
    {
        int lane = (int)threadIdx.x % WARP, tile = first_tile + lane / lanes;
        tile = tile < p.n_tile ? tile : p.n_tile - 1;
        struct product_part part = part_of(p, &tile);
        struct place at = place_of<T>(part.w, p.n_mat, part.n_tile, p.n_seg, mat, tile, 0, 0);
        code = (const uint4 *)at.code + lane % lanes;
        head = (const uint4 *)at.head + lane % lanes;
    }
    __device__ inline void copy(int s, uint4 *to) const
    {
        int lane = (int)threadIdx.x % WARP, tile = lane / lanes, u = lane % lanes;
        uint4 *code_to = to + tile * units::code + u, *head_to = to + units::heads + tile * units::head + u;
#pragma unroll
        for (int i = 0; i < units::code; i += lanes)
            if (i + lanes <= units::code || u + i < units::code)
                copy_async(code_to + i, code + (size_t)s * units::code + i);
#pragma unroll
        for (int i = 0; i < units::head; i += lanes)
            if (u + i < units::head)
                copy_async(head_to + i, head + (size_t)(s / layout_of(T).head_segs) * units::head + i);
    }
};

/* N times a warp's next columns: all offsets are read before the first copy, which is what lets the copies follow one another. */
template <int N> __device__ static void copy_some(const char *q, const uint32_t *from, uint4 *to)
{
    uint32_t at[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        at[i] = from[i * (WARP / COL_UNITS)];
#pragma unroll
    for (int i = 0; i < N; i++)
        copy_async(to + i * (WARP / COL_UNITS) * COL_PITCH, q + at[i]);
}

/* A warp's share of a pass's columns of segment s: as many as every other warp that multiplies the segment. from: where each
 * column begins, in bytes of the codes. */
template <int T>
__device__ static void copy_columns(const struct product &p, const struct few_shape &f, int fragment, const uint32_t *from, int s, uint4 *to)
{
    constexpr int n = col_units<T>::n, step = WARP / COL_UNITS;
    int lane = (int)threadIdx.x % WARP, first = fragment * f.share, c = first + lane / COL_UNITS, part = lane % COL_UNITS;
    const char *q = (const char *)((const uint4 *)p.act.q + (s * COL_UNITS + part));
    int i = 0;
#pragma unroll 1
    for (; i + 4 * step <= f.share; i += 4 * step)
        copy_some<4>(q, from + c + i, to + (c + i) * COL_PITCH + part);
#pragma unroll 1
    for (; i < f.share; i += step)
        copy_some<1>(q, from + c + i, to + (c + i) * COL_PITCH + part);
    part = lane % n;
    q = (const char *)(col_plane<T>(p) + (s * col_units<T>::row + part));
    to += f.width * COL_PITCH + part;
#pragma unroll 1
    for (c = first + lane / n; c < first + f.share; c += WARP / n)
        copy_async(to + c * terms_pitch<T>::units, q + from[c] / COL_UNITS * col_units<T>::row);
}

/* A warp's weights of a segment as the instruction wants them. */
template <int T> struct decoded {
    uint32_t a[SEGMENT_BLOCKS][4];
    struct row_terms w[SEGMENT_BLOCKS][2];
    __device__ inline void read(const uint4 *from, int s)
    {
        typedef warp_units<T> units;
        int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < FRAGMENT_TILES; i++) {
            struct place at = {(const uint32_t *)(from + i * units::code + g), NULL};
            struct head head = load_head<T>((const uint32_t *)(from + units::heads + i * units::head) + g * layout_of(T).head_words, s % 2);
#pragma unroll
            for (int j = 0; j < SEGMENT_BLOCKS; j++) {
                uint32_t lo, hi;
                codes<T>(at, j, t, &lo, &hi);
                a[j][i] = without_offset<T>(lo);
                a[j][2 + i] = without_offset<T>(hi);
                if constexpr (!is_super(T))
                    w[j][i] = row_terms_of<T>(head, j);
            }
            if constexpr (is_super(T)) { /* lane t unpacks block t's for its four */
                struct row_terms mine = row_terms_of<T>(head, t);
#pragma unroll
                for (int j = 0; j < SEGMENT_BLOCKS; j++)
                    w[j][i] = from_lane<T>(mine, 4 * g + j);
            }
        }
    }
};

/* A segment's sums of 16 rows x (N groups of 8 columns). n_block: blocks of 32 that are there, looked at unless WHOLE. Each
 * pointer is the lane's own: row lane % 8 of its matrix, column 2 t, row g of the sums. */
template <int T, int N, bool WHOLE>
__device__ static void sum_groups(const struct decoded<T> &d, const uint4 *cols, const uint4 *terms, int n_block, float *out, int pitch)
{
    float acc[N][4] = {};
    uint32_t c[N][2][4 * col_units<T>::n];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int u = 0; u < col_units<T>::n; u++) {
                uint4 v = terms[(n * GROUP + i) * terms_pitch<T>::units + u];
                c[n][i][4 * u] = v.x;
                c[n][i][4 * u + 1] = v.y;
                c[n][i][4 * u + 2] = v.z;
                c[n][i][4 * u + 3] = v.w;
            }
#pragma unroll
    for (int h = 0; h < SEGMENT_BLOCKS; h += 2) {
        if (!WHOLE && h >= n_block)
            break;
        uint32_t b[N][4];
#pragma unroll
        for (int n = 0; n < N; n++)
            load_matrices(b[n], cols + n * GROUP * COL_PITCH + 2 * h);
#pragma unroll
        for (int j = h; j < h + 2; j++) {
            if (!WHOLE && j >= n_block)
                break;
#pragma unroll
            for (int n = 0; n < N; n++) {
                const struct col_terms two[2] = {col_terms_of<T>(c[n][0], j), col_terms_of<T>(c[n][1], j)};
                add_fragment<T>(d.a[j], b[n][j % 2 * 2], b[n][j % 2 * 2 + 1], d.w[j], two, acc[n]);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float2 two = {acc[n][2 * i], acc[n][2 * i + 1]};
            *(float2 *)(out + n * pitch + i * TILE_ROWS * GROUP) = two;
        }
}

template <int T, bool WHOLE>
__device__ static void sum_pass(const struct decoded<T> &d, const uint4 *cols, int width, int n_group, int n_block, float *out,
                                int pitch)
{
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint4 *terms = cols + width * COL_PITCH + 2 * t * terms_pitch<T>::units;
    cols += lane % 8 * COL_PITCH + lane / 8;
    out += g * GROUP + 2 * t;
    constexpr int most = layout_of(T).halves ? 1 : 2; /* groups that there are registers for */
#pragma unroll 1
    for (; n_group >= most; n_group -= most) {
        sum_groups<T, most, WHOLE>(d, cols, terms, n_block, out, pitch);
        cols += most * GROUP * COL_PITCH;
        terms += most * GROUP * terms_pitch<T>::units;
        out += most * pitch;
    }
    if (most > 1 && n_group > 0)
        sum_groups<T, 1, WHOLE>(d, cols, terms, n_block, out, pitch);
}

/* Adds the sums of n segments to the totals, four at a time. */
__device__ static void add_sums(const struct few_shape &f, const float4 *sums, int n, int n_quad, float4 *total)
{
#pragma unroll 1
    for (int quad = (int)threadIdx.x; quad < n_quad; quad += (int)blockDim.x) {
        const float4 *at = sums + quad;
        float4 sum = total[quad];
#pragma unroll 4
        for (int i = 0; i < n; i++, at += f.quads) {
            float4 v = *at;
            sum.x = sum.x + v.x;
            sum.y = sum.y + v.y;
            sum.z = sum.z + v.z;
            sum.w = sum.w + v.w;
        }
        total[quad] = sum;
    }
}

/* ---- kernels ---- */

/* Block x: columns, so that blocks that run together read the same weights; block y: rows. A turn is a pass of a wave; while one
 * is multiplied, what the next slots - 1 need is on its way. */
template <int T> __global__ static void __launch_bounds__(FEW_THREADS, 1) k_few(struct product p, struct few_shape f)
{
    DYNAMIC_SHARED(uint4, shared);
    __shared__ uint32_t from[GROUP_COLS];
    int tid = (int)threadIdx.x, warp = tid / WARP, fragment = warp % f.fragments, k = warp / f.fragments;
    if (p.group != NULL)
        kernel_begin(); /* which weights these are, another kernel chose */
    struct columns cols = columns_of(p, (int)blockIdx.x, GROUP_COLS);
    if (cols.n == 0)
        return;
    uint4 *weights_at = shared + warp * warp_units<T>::all;
    uint4 *cols_at = shared + f.segs * f.fragments * warp_units<T>::all + k * f.width * (COL_PITCH + terms_pitch<T>::units);
    float4 *sums = (float4 *)(shared + f.slots * f.slot);
    struct weights_from<T> weights;
    struct decoded<T> d;
    float4 *total = sums + f.segs * f.quads;
    int more = cols.n > f.width; /* passes of a wave, less one */
    for (int i = tid; i < (1 + more) * f.quads; i += (int)blockDim.x)
        total[i] = {-0.0f, -0.0f, -0.0f, -0.0f}; /* -0 + x is x for every x */
    weights.aim(p, cols.mat, ((int)blockIdx.y * f.fragments + fragment) * FRAGMENT_TILES);
    if (k < p.n_seg)
        weights.copy(k, weights_at);
    if (p.group == NULL)
        kernel_begin();
    if (tid < GROUP_COLS)
        from[tid] = (uint32_t)act_at(p, column_of(p, cols, tid), 0);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < f.slots; i++) {
        int s = k + (i >> more) * f.segs, pass = i & more;
        if (s < p.n_seg) {
            copy_columns<T>(p, f, fragment, from + pass * PASS, s, cols_at + i * f.slot);
            if (i > 0 && pass == 0)
                weights.copy(s, weights_at + i * f.slot);
        }
        copy_close();
    }
    for (int first = 0, pass = 0, at = 0; first < p.n_seg;) {
        if (f.slots == 3)
            copy_wait<2>();
        else
            copy_wait<1>();
        __syncthreads(); /* everybody's copies have come, and the sums before were added */
        int s = first + k, n_group = (cols.n - pass * PASS + GROUP - 1) / GROUP;
        n_group = n_group < f.width / GROUP ? n_group : f.width / GROUP;
        if (s < p.n_seg) {
            int n_block = p.cols / NUM_BLOCK - s * SEGMENT_BLOCKS;
            float *out = (float *)(sums + k * f.quads) + fragment * FRAGMENT_ROWS * GROUP;
            if (pass == 0)
                d.read(weights_at + at, s);
            if (is_super(T) || n_block >= SEGMENT_BLOCKS)
                sum_pass<T, true>(d, cols_at + at, f.width, n_group, n_block, out, f.pitch);
            else
                sum_pass<T, false>(d, cols_at + at, f.width, n_group, n_block, out, f.pitch);
        }
        __syncthreads(); /* the sums are there, and the slot is free */
        s += ((pass + f.slots) >> more) * f.segs;
        if (s < p.n_seg) {
            int then = (pass + f.slots) & more;
            copy_columns<T>(p, f, fragment, from + then * PASS, s, cols_at + at);
            if (then == 0)
                weights.copy(s, weights_at + at);
        }
        copy_close();
        int n = p.n_seg - first < f.segs ? p.n_seg - first : f.segs;
        add_sums(f, sums, n, n_group * f.pitch / 4, total + pass * f.quads);
        at = at + f.slot < f.slots * f.slot ? at + f.slot : 0;
        first += pass == more ? f.segs : 0;
        pass = pass == more ? 0 : 1;
    }
    __syncthreads();
    for (int i = tid; i < (1 + more) * f.quads; i += (int)blockDim.x) {
        int quad = i < f.quads ? i : i - f.quads, group = quad / (f.pitch / 4), row = (quad - group * (f.pitch / 4)) / 2;
        int tile = (int)blockIdx.y * f.fragments * FRAGMENT_TILES + row / TILE_ROWS;
        int c = (i < f.quads ? 0 : PASS) + group * GROUP + quad % 2 * 4;
        if (tile >= p.n_tile)
            continue;
        struct product_part part = part_of(p, &tile);
        row = tile * TILE_ROWS + row % TILE_ROWS;
        const float v[4] = {total[i].x, total[i].y, total[i].z, total[i].w};
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (row < part.rows && c + e < cols.n)
                store_output(part, column_of(p, cols, c + e), row, cols.mat, v[e]);
    }
}

/* ---- launchers ---- */

enum { FEW_STATIC = GROUP_COLS * 4, MIN_SEGS = PASS / GROUP, BLOCK_OVERHEAD = 1024 };

template <int T> static int shared_bytes(struct few_shape *f)
{
    f->slot = f->segs * (f->fragments * warp_units<T>::all + f->width * (COL_PITCH + terms_pitch<T>::units));
    f->share = f->width / f->fragments;
    f->pitch = f->fragments * FRAGMENT_ROWS * GROUP;
    f->quads = f->pitch * (f->width / GROUP) / 4;
    return f->slots * f->slot * CHUNK_BYTES + (f->segs + PASSES) * f->quads * (int)sizeof(float4);
}

static int blocks_of(const struct product *p, int fragments)
{
    return column_blocks(p, GROUP_COLS) * ((p->n_tile + fragments * FRAGMENT_TILES - 1) / (fragments * FRAGMENT_TILES));
}

/* Bytes are the same for every shape. More rows a block read the columns less often, and that traffic from L2 is what bounds many
 * columns; fewer make enough blocks. A block that has its multiprocessor alone takes 16 warps, else two of 8 share it. */
template <int T> static struct few_shape shape_of(const struct cuda *k, const struct product *p)
{
    int n = p->group != NULL || p->n_col > PASS ? PASS : (p->n_col + GROUP - 1) / GROUP * GROUP, most = k->shared_most - FEW_STATIC;
    struct few_shape f = {};
    f.width = n;
    f.slots = 2;
    f.fragments = 1;
    if (p->n_tile > (n > PASS / 2 ? 2 : 4) * k->n_sm)
        f.fragments = 2;
    bool alone = blocks_of(p, f.fragments) <= k->n_sm;
    f.segs = (alone ? 16 : 8) / f.fragments;
    while (shared_bytes<T>(&f) > most && f.segs * f.fragments > MIN_SEGS)
        if (f.segs > MIN_SEGS)
            f.segs /= 2;
        else
            f.fragments /= 2;
    f.slots = 3;
    if (shared_bytes<T>(&f) > (alone ? most : (most - BLOCK_OVERHEAD) / 2))
        f.slots = 2;
    return f;
}

template <int T> static void run(struct cuda *k, const struct product *p)
{
    struct few_shape f = shape_of<T>(k, p);
    dim3 grid((unsigned)column_blocks(p, GROUP_COLS), (unsigned)(blocks_of(p, f.fragments) / column_blocks(p, GROUP_COLS)));
    LAUNCH(k, k_few<T>, grid, dim3((unsigned)(f.fragments * f.segs * WARP)), (size_t)shared_bytes<T>(&f), *p, f);
    CU_NOTE(k, "few");
}

template <int T> static bool allow_shared(int bytes)
{
    auto kernel = k_few<T>;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess;
}

extern "C" bool few_open(const struct cuda *k)
{
    bool ok = true;
    for (int type = 0; type < QTYPE_N; type++)
        with_quantised((enum qtype)type, [&](auto t) { ok = ok && allow_shared<decltype(t)::value>(k->shared_most - FEW_STATIC); });
    return ok;
}

extern "C" void launch_few(struct cuda *k, enum qtype type, const struct product *p)
{
    with_quantised(type, [&](auto t) { run<decltype(t)::value>(k, p); });
}
