/* Attention of prompts: a block takes up to Q queries of one KV head, rows of one sequence that follow each other times the
 * heads of the group, and runs through their keys a tile of 64 at a time, so that keys and values are read once for all of
 * them. Every sum has the order of the contract, query by query: results go where attn.cu puts those of a row's splits. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/attn.cuh"

/* What becomes of a tile's values: o = o * keep + tile * add; or the tile's as they are, or nothing. */
struct blend {
    float keep, add;
};
#define BLEND_TAKE (-1.0f)
#define BLEND_SKIP (-2.0f)

/* Queries of a block: two warps score a quarter of them; `wide` threads hold a value each of `mine` of them. */
template <int QUERY_COUNT, int VALUE_THREADS> struct flash_shape {
    static constexpr int queries = QUERY_COUNT, score = QUERY_COUNT / (ATTN_THREADS / NUM_TILE), wide = VALUE_THREADS;
    static constexpr int blocks = VALUE_THREADS > 128 ? 1 : 2;  /* a multiprocessor */
    static constexpr int mine = QUERY_COUNT * VALUE_THREADS / ATTN_THREADS;
};

template <class S> struct flash_shared {
    float p[S::queries][NUM_TILE];
    float most[ATTN_THREADS / WARP][S::score];  /* of a warp's keys */
    float m[S::queries], l[S::queries], run_m[S::queries], run_l[S::queries];   /* of the split so far, of the splits; l < 0: none */
    struct blend tile[S::queries], split[S::queries];
    int lo[S::queries], hi[S::queries];         /* visible keys; none beyond the queries there are */
};

/* ---- helpers ---- */

/* (m, l) of a later part into the state so far, and what its values blend with. */
__device__ static struct blend merge_into(float *m, float *l, float part_m, float part_l)
{
    struct blend b = {BLEND_TAKE, 0};
    if (*l < 0) {
        *m = part_m;
        *l = part_l;
        return b;
    }
    *m = num_merge(*m, part_m, &b.keep, &b.add);
    *l = fmaf(part_l, b.add, *l * b.keep);
    return b;
}

__device__ static float blended(struct blend b, float o, float part)
{
    return b.keep == BLEND_SKIP ? o : b.keep == BLEND_TAKE ? part : fmaf(part, b.add, o * b.keep);
}

/* s[i] = query i . key, sequential over the dimensions; a query has ld floats. */
template <enum kv_type KV, int N>
__device__ static void score(const struct kv_cache &kv, uint8_t *block, int p, const float *q, int ld, float s[N])
{
    constexpr int n = 16 / kv_of<KV>::bytes;
    for (int d = 0; d < kv.head_dim; d += n) {
        uint4 v = *(const uint4 *)(block + ((size_t)(d / n) * NUM_TILE + (size_t)p) * 16);
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
        float scale = KV == KV_Q8_0 ? half_to_float(*kv_scale(kv, block, p, d)) : 0;
#pragma unroll
        for (int e = 0; e < n; e += 4) {
            if (d + e >= kv.head_dim)
                break;
            float key[4];
#pragma unroll
            for (int i = 0; i < 4; i++) /* beyond the dimensions there may be anything */
                key[i] = d + e + i < kv.head_dim ? kv_word<KV>(w, e + i, scale) : 0;
#pragma unroll
            for (int g = 0; g < N; g++) {
                float4 x = *(const float4 *)(q + g * ld + d + e);
                s[g] = fmaf(x.x, key[0], s[g]);
                s[g] = fmaf(x.y, key[1], s[g]);
                s[g] = fmaf(x.z, key[2], s[g]);
                s[g] = fmaf(x.w, key[3], s[g]);
            }
        }
    }
}

/* p and each query's blend for the tile whose first key is `at`, from the thread's scores. Begins and ends with a barrier. */
template <class S> __device__ static void soften(struct flash_shared<S> *sh, const float s[S::score], int at)
{
    int tid = (int)threadIdx.x, key = tid % NUM_TILE, quarter = tid / NUM_TILE, warp = tid / WARP, lane = tid % WARP;
    __syncthreads();
#pragma unroll
    for (int g = 0; g < S::score; g++) {
        int q = quarter * S::score + g;
        bool visible = at + key >= sh->lo[q] && at + key <= sh->hi[q];
        float most = warp_max(visible ? s[g] : -INFINITY);
        if (lane == 0)
            sh->most[warp][g] = most;
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < S::score; g++) {
        int q = quarter * S::score + g;
        bool visible = at + key >= sh->lo[q] && at + key <= sh->hi[q];
        sh->p[q][key] = visible ? num_exp(s[g] - fmaxf(sh->most[2 * quarter][g], sh->most[2 * quarter + 1][g])) : 0;
    }
    __syncthreads();
    for (int q = warp; q < S::queries; q += ATTN_THREADS / WARP) {
        float sum = warp_tree64(sh->p[q], lane), most = fmaxf(sh->most[q / S::score * 2][q % S::score], sh->most[q / S::score * 2 + 1][q % S::score]);
        struct blend none = {BLEND_SKIP, 0};
        if (lane == 0)
            sh->tile[q] = at > sh->hi[q] || at + NUM_TILE <= sh->lo[q] ? none : merge_into(&sh->m[q], &sh->l[q], most, sum);
    }
    __syncthreads();
}

/* o[i] = the values of the tile weighted for the thread's queries from `first` on, dimension d, sequential over visible keys. */
template <enum kv_type KV, class S>
__device__ static void weigh(const struct kv_cache &kv, uint8_t *block, const struct flash_shared<S> *sh, int first, int d, int at,
                             bool whole, float o[S::mine])
{
    constexpr int n = 4;
    for (int i = 0; i < S::mine; i++)
        o[i] = 0;
    for (int key = 0; key < NUM_TILE; key += n) {
        float v[n];
#pragma unroll
        for (int j = 0; j < n; j++) {
            float scale = KV == KV_Q8_0 ? half_to_float(*kv_scale(kv, block, key + j, d)) : 0;
            v[j] = kv_value<KV>(block, kv_index<KV>(kv, true, key + j, d), scale);
        }
#pragma unroll
        for (int i = 0; i < S::mine; i++) {
            float4 p = *(const float4 *)&sh->p[first + i][key];
            const float w[n] = {p.x, p.y, p.z, p.w};
#pragma unroll
            for (int j = 0; j < n; j++)
                if (whole || (at + key + j >= sh->lo[first + i] && at + key + j <= sh->hi[first + i]))
                    o[i] = fmaf(w[j], v[j], o[i]);
        }
    }
}

/* ---- kernels ---- */

/* Block x: a run of rows; block y: a KV head. Dynamic shared memory: queries, each of ld floats. */
template <enum kv_type KV, class S> __global__ static void __launch_bounds__(ATTN_THREADS, S::blocks) k_flash(struct attn_args a, int ld)
{
    DYNAMIC_SHARED(float4, shared);
    __shared__ __align__(16) struct flash_shared<S> sh;
    kernel_begin();
    float *q = (float *)shared;
    int tid = (int)threadIdx.x, hd = a.kv.head_dim, group = a.n_head / a.kv.n_kv_head, kv_head = (int)blockIdx.y;
    int row0 = a.step.run[2 * blockIdx.x], n_row = a.step.run[2 * blockIdx.x + 1], n = n_row * group;
    const int32_t *pages = a.step.pages + a.step.page_at[row0];
    int least = first_key(a.step.pos[row0], a.window), most = a.step.pos[row0 + n_row - 1]; /* positions rise */
    int last_lo = first_key(most, a.window), first_hi = a.step.pos[row0];
    for (int i = tid; i < S::queries * ld; i += ATTN_THREADS) {
        int c = i / ld, d = i % ld;
        size_t at = (size_t)(row0 + c / group) * (size_t)a.n_head + (size_t)(kv_head * group + c % group);
        q[i] = c < n && d < hd ? a.q[at * (size_t)hd + (size_t)d] : 0;
    }
    if (tid < S::queries) {
        int pos = tid < n ? a.step.pos[row0 + tid / group] : 0;
        sh.lo[tid] = tid < n ? first_key(pos, a.window) : 1;
        sh.hi[tid] = pos;
        sh.l[tid] = sh.run_l[tid] = -1;
    }
    int d = tid % S::wide, first = tid / S::wide * S::mine, quarter = tid / NUM_TILE * S::score;
    float split[S::mine] = {}, run[S::mine] = {};
    __syncthreads();
    for (int t = least / NUM_TILE; t <= most / NUM_TILE; t++) {
        int at = t * NUM_TILE, page = pages[t];
        float s[S::score] = {}, o[S::mine];
        if (quarter < n)
            score<KV, S::score>(a.kv, kv_block(a.kv, page, a.layer, false, kv_head), tid % NUM_TILE, q + quarter * ld, ld, s);
        soften<S>(&sh, s, at);
        bool whole = at >= last_lo && at + NUM_TILE - 1 <= first_hi && n == S::queries;
        if (d < hd && first < n) {
            uint8_t *values = kv_block(a.kv, page, a.layer, true, kv_head);
            if (whole)
                weigh<KV, S>(a.kv, values, &sh, first, d, at, true, o);
            else
                weigh<KV, S>(a.kv, values, &sh, first, d, at, false, o);
#pragma unroll
            for (int i = 0; i < S::mine; i++)
                split[i] = blended(sh.tile[first + i], split[i], o[i]);
        }
        if (t % TILES != TILES - 1 && t != most / NUM_TILE)
            continue;
        __syncthreads();
        if (tid < S::queries) { /* the split is over */
            struct blend none = {BLEND_SKIP, 0};
            sh.split[tid] = sh.l[tid] < 0 ? none : merge_into(&sh.run_m[tid], &sh.run_l[tid], sh.m[tid], sh.l[tid]);
            sh.l[tid] = -1;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < S::mine; i++)
            run[i] = blended(sh.split[first + i], run[i], split[i]);
    }
#pragma unroll
    for (int i = 0; i < S::mine; i++) {
        int c = first + i;
        if (d >= hd || c >= n)
            continue;
        size_t out = (size_t)(row0 + c / group) * (size_t)a.n_head + (size_t)(kv_head * group + c % group);
        a.part_o[out * (size_t)hd + (size_t)d] = run[i];
        if (d == 0) {
            a.part_ml[2 * out] = sh.run_m[c];
            a.part_ml[2 * out + 1] = sh.run_l[c];
        }
    }
}

/* ---- launchers ---- */

typedef flash_shape<32, 64> shape_64;    /* head_dim up to 64, 128, 256 */
typedef flash_shape<32, 128> shape_128;
typedef flash_shape<16, 256> shape_256;

extern "C" int flash_rows(const struct kern_config *c)
{
    int queries = c->head_dim <= shape_128::wide ? shape_128::queries : shape_256::queries;
    return c->head_dim > shape_256::wide ? 0 : queries / (c->n_head / c->n_kv_head);
}

template <enum kv_type KV, class S> static void run(struct cuda *k, const struct attn_args *a)
{
    int ld = (a->kv.head_dim + 3) / 4 * 4;
    dim3 grid((unsigned)k->n_runs, (unsigned)a->kv.n_kv_head);
    LAUNCH(k, (k_flash<KV, S>), grid, dim3(ATTN_THREADS), (size_t)(S::queries * ld) * sizeof(float), *a, ld);
}

template <enum kv_type KV> static void run_shape(struct cuda *k, const struct attn_args *a)
{
    if (a->kv.head_dim <= shape_64::wide)
        run<KV, shape_64>(k, a);
    else if (a->kv.head_dim <= shape_128::wide)
        run<KV, shape_128>(k, a);
    else
        run<KV, shape_256>(k, a);
}

extern "C" void launch_flash(struct cuda *k, const struct attn_args *a)
{
    if (k->cfg.kv_type == KV_F16)
        run_shape<KV_F16>(k, a);
    else if (k->cfg.kv_type == KV_F32)
        run_shape<KV_F32>(k, a);
    else
        run_shape<KV_Q8_0>(k, a);
    CU_NOTE(k, "flash");
}
