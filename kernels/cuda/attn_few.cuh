/* Attention of few rows (attn.cu, persist.cu): a block takes one row, one KV head and up to G of its query heads, over one split of 256 keys (a thread a key)
 * or all splits in order; then every (row, head) merges its splits in index order and quantises. The order of every sum is
 * the contract's, whichever way the splits are shared out.
 *
 * Three launches, heads (heads.cuh), attention, merge; or one (attn_args.whole): a block makes its queries, and of the step's own
 * keys and values those it reads, for itself, so that none waits for another; several store the same bytes then. The last of a
 * row's splits to be done, whichever that is, merges all of them in index order. */
#ifndef KERNELS_CUDA_ATTN_FEW_CUH
#define KERNELS_CUDA_ATTN_FEW_CUH

#include "kernels/cuda/act.cuh"
#include "kernels/cuda/heads.cuh"

enum { ATTN_WARPS = ATTN_THREADS / WARP };
enum { MERGE_BATCH = 8, SHARED_FLOATS = 8192 };

/* Floats of a head's query in shared memory: whole float4s. */
__host__ __device__ inline int query_floats(int head_dim)
{
    return (head_dim + 3) / 4 * 4;
}

/* Running state of one value of one head; l < 0: no keys yet. */
struct state {
    float m, l, o;
};

__device__ inline struct state merge(struct state a, struct state b)
{
    float fa, fb;
    if (b.l < 0)
        return a;
    if (a.l < 0)
        return b;
    a.m = num_merge(a.m, b.m, &fa, &fb);
    a.l = fmaf(b.l, fb, a.l * fa);
    a.o = fmaf(b.o, fb, a.o * fa);
    return a;
}

/* s[g] = q[g] . the n values in v, whose first dimension is d; only those below `most` are used. */
template <enum kv_type KV, int G>
__device__ inline void score_word(uint4 v, float scale, const float *q, int ld, int d, int most, float s[G])
{
    constexpr int n = 16 / kv_of<KV>::bytes;
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < n; e += 4) {
#pragma unroll
        for (int g = 0; g < G; g++) {
            float4 x = *(const float4 *)(q + g * ld + d + e);
            const float part[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (e + i < most)
                    s[g] = fmaf(part[i], kv_word<KV>(w, e + i, scale), s[g]);
        }
    }
}

/* Scores of the thread's key for G heads, each of ld floats: sequential over the dimensions, a batch of loads under way. */
template <enum kv_type KV, int G>
__device__ inline void score(const struct kv_cache &kv, uint8_t *block, int p, const float *q, int ld, float s[G])
{
    constexpr int n = 16 / kv_of<KV>::bytes, batch = KV != KV_Q8_0 ? 8 : G < 8 ? 4 : 2;
    const uint4 *in = (const uint4 *)block + p;
    int whole = kv.head_dim / n, rest = kv.head_dim % n;
    for (int c = 0; c < whole; c += batch) {
        uint4 v[batch];
        float scale[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            int at = c + i < whole ? c + i : c;
            v[i] = in[at * NUM_TILE];
            scale[i] = KV == KV_Q8_0 ? half_to_float(*kv_scale(kv, block, p, at * n)) : 0;
        }
#pragma unroll
        for (int i = 0; i < batch; i++)
            if (c + i < whole)
                score_word<KV, G>(v[i], scale[i], q, ld, (c + i) * n, n, s);
    }
    if (KV == KV_Q8_0 && rest > 0) { /* heads are multiples of 8; beyond the dimensions there may be anything */
        float scale = half_to_float(*kv_scale(kv, block, p, whole * n));
        score_word<KV, G>(in[whole * NUM_TILE], scale, q, ld, whole * n, rest, s);
    }
}

/* Each tile's maximum and sum of exponentials for one head, by its 64 threads; p is written for the values' sums. */
__device__ inline void soften(float s, bool visible, float *p, float *m, float *l, float *scratch)
{
    int tid = (int)threadIdx.x, tile = tid / NUM_TILE, lane = tid % WARP;
    float w = warp_max(visible ? s : -INFINITY);
    if (lane == 0)
        scratch[tid / WARP] = w;
    __syncthreads();
    float most = fmaxf(scratch[2 * tile], scratch[2 * tile + 1]);
    p[tid] = visible ? num_exp(s - most) : 0;
    __syncthreads();
    if (tid % NUM_TILE < WARP) {
        float sum = warp_tree64(p + tile * NUM_TILE, lane);
        if (lane == 0) {
            m[tile] = most;
            l[tile] = sum;
        }
    }
}

/* o[g][tile][d] for the thread's tile: sequential over its visible keys lo..hi (indices in the tile). A batch of keys is read
 * at once, seen or not; two dimensions a thread where values are short (a row of values is even, and what lies beyond the
 * dimensions goes nowhere). */
template <enum kv_type KV, int G>
__device__ inline void weigh_values(const struct kv_cache &kv, uint8_t *block, int lo, int hi, const float p[G][NUM_SPLIT],
                                    float *o)
{
    constexpr int wide = kv_pair<KV>::n, batch = KV == KV_Q8_0 && G == 8 ? 4 : 16;
    int tile = (int)threadIdx.x / NUM_TILE;
    for (int d = (int)threadIdx.x % NUM_TILE * wide; d < kv.head_dim; d += NUM_TILE * wide) {
        float sum[G][wide] = {};
        for (int key = lo / batch * batch; key <= hi; key += batch) {
            kv_pair<KV> v[batch];
            float scale[batch];
#pragma unroll
            for (int j = 0; j < batch; j++) {
                v[j].read(block, kv_index<KV>(kv, true, key + j, d));
                scale[j] = KV == KV_Q8_0 ? half_to_float(*kv_scale(kv, block, key + j, d)) : 0;
            }
#pragma unroll
            for (int j = 0; j < batch; j += 4) {
#pragma unroll
                for (int g = 0; g < G; g++) {
                    float4 x = *(const float4 *)&p[g][tile * NUM_TILE + key + j];
                    const float weight[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                    for (int e = j; e < j + 4; e++)
#pragma unroll
                        for (int i = 0; i < wide; i++)
                            if (key + e >= lo && key + e <= hi)
                                sum[g][i] = fmaf(weight[e - j], v[e].value(i, scale[e]), sum[g][i]);
                }
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int i = 0; i < wide; i++)
                if (d + i < kv.head_dim)
                    o[(g * TILES + tile) * kv.head_dim + d + i] = sum[g][i];
    }
}

/* A block's shared memory: this, and attn_more_floats. p is room for factors at the end. */
template <int G> struct __align__(16) attn_shared {
    float p[G][NUM_SPLIT];
    float m[G][TILES], l[G][TILES], scratch[ATTN_WARPS];
    bool is_last;
};

/* Heads' o: of G heads' tiles; before that, a key or value a warp. */
__host__ __device__ inline int room_heads(int G)
{
    return G * TILES > ATTN_WARPS ? G * TILES : (int)ATTN_WARPS;
}

/* q (G, ld), o, running states (G, hd). */
__host__ __device__ inline int attn_more_floats(int G, int head_dim)
{
    return G * (query_floats(head_dim) + 3 * head_dim) + room_heads(G) * head_dim;
}

/* The most heads at once (8, 4 or 1) that they are and that shared memory (32 KB beside p) has room for. */
static inline int heads_at_once(const struct attn_args *a)
{
    int group = a->n_head / a->kv.n_kv_head, room = SHARED_FLOATS / (1 + TILES + 3) / a->kv.head_dim;
    return group >= 5 && room >= 8 ? 8 : group >= 2 && room >= 4 ? 4 : 1;
}

/* What a block does for itself: where its queries go, their heads and KV head, the positions lo..hi it reads; room: a head a
 * warp. */
struct own_heads {
    int row, head0, n, kv_head, lo, hi;
    float *q, *room;
};

/* Makes queries, and stores the keys and values that the step adds to those positions of the row's sequence, up to the row. */
template <enum kv_type KV> __device__ inline void make_heads(const struct attn_args &a, const struct own_heads &own)
{
    int warp = (int)threadIdx.x / WARP, hd = a.kv.head_dim;
    for (int i = warp;; i += ATTN_WARPS) {
        int kept = i - own.n; /* keys and values in turn, the row's first, then of the rows before it */
        bool is_q = kept < 0;
        int row = is_q ? own.row : own.row - kept / 2;
        int head = is_q ? own.head0 + i : a.n_head + own.kv_head + (kept % 2) * a.kv.n_kv_head;
        float *x = is_q ? own.q + i * query_floats(hd) : own.room + warp * hd;
        if (row < 0 || a.step.page_at[row] != a.step.page_at[own.row] || a.step.pos[row] < own.lo)
            break;
        if (!is_q && a.step.pos[row] > own.hi)
            continue;
        make_head(a, row, head, x);
        if (!is_q)
            keep_head<KV>(a, row, head, x);
    }
}

/* A value of a row's head from its n splits in index order. */
__device__ inline struct state merge_parts(const struct attn_args &a, int row, int n, int head, int d)
{
    struct state s = {0, -1, 0};
    for (int first = 0; first < n; first += MERGE_BATCH) {
        struct state part[MERGE_BATCH];
#pragma unroll
        for (int j = 0; j < MERGE_BATCH; j++) {
            if (first + j >= n)
                continue;
            size_t at = (size_t)(row * a.n_part + first + j) * (size_t)a.n_head + (size_t)head;
            part[j] = {a.part_ml[2 * at], a.part_ml[2 * at + 1], a.part_o[at * (size_t)a.kv.head_dim + (size_t)d]};
        }
#pragma unroll
        for (int j = 0; j < MERGE_BATCH; j++)
            if (first + j < n)
                s = merge(s, part[j]);
    }
    return s;
}

/* The sink, division. */
__device__ inline float attended(const struct attn_args &a, int head, struct state s)
{
    if (a.sinks != NULL) {
        float fa, fb;
        num_merge(s.m, a.sinks[head], &fa, &fb);
        s.l = fmaf(s.l, fa, fb);
        s.o = s.o * fa;
    }
    return s.o * (1.0f / s.l);
}

/* Into how many parts the work for a row at pos is shared out: a split each. */
__device__ inline int parts_of(const struct attn_args &a, int pos)
{
    return a.all ? 1 : pos / NUM_SPLIT - first_key(pos, a.window) / NUM_SPLIT + 1;
}

/* A block's part for those who merge. */
__device__ inline void store_part(const struct attn_args &a, struct block_at b, int head0, int n, const struct state *run)
{
    int slot = b.z * a.n_part + (a.all ? 0 : b.x), hd = a.kv.head_dim;
    for (int i = (int)threadIdx.x; i < n * hd; i += ATTN_THREADS) {
        size_t out = (size_t)slot * (size_t)a.n_head + (size_t)(head0 + i / hd);
        a.part_o[out * (size_t)hd + (size_t)(i % hd)] = run[i].o;
        if (i % hd == 0) {
            a.part_ml[2 * out] = run[i].m;
            a.part_ml[2 * out + 1] = run[i].l;
        }
    }
}

/* How a part of a head is merged into those before it: the same for all its values, so exponentials are computed once. */
struct factors {
    float before, part, l, m;   /* of the two sums; the part's l; the maximum with it */
};

/* Those of parts slot .. slot + n - 1, a lane a part; `to` holds what came of the WARP parts before, unless these are the first. */
__device__ inline void find_factors(const struct attn_args &a, int slot, int head, int n, bool is_first, struct factors *to)
{
    int lane = (int)threadIdx.x % WARP;
    size_t at = 2 * ((size_t)(slot + lane) * (size_t)a.n_head + (size_t)head);
    float part = lane < n ? a.part_ml[at] : -INFINITY, l = lane < n ? a.part_ml[at + 1] : 0;
    float first = is_first ? -INFINITY : to[WARP - 1].m, most = part;
    for (int by = 1; by < WARP; by *= 2) { /* the maximum up to each */
        float other = __shfl_up_sync(ALL_LANES, most, by);
        most = lane >= by && other >= most ? other : most;
    }
    float before = __shfl_up_sync(ALL_LANES, most, 1);
    before = lane == 0 || first >= before ? first : before;
    most = num_merge(before, part, &before, &part);
    __syncwarp(); /* all have read what stood there */
    to[lane] = {before, part, l, most};
}

/* run = n heads of a row from their parts in index order; room: WARP factors a head. */
__device__ inline void merge_heads(const struct attn_args &a, int row, int head0, int n, int n_part, struct state *run,
                                   struct factors *room)
{
    int hd = a.kv.head_dim, width = a.n_head * hd;
    for (int first = 0; first < n_part; first += WARP) {
        int slot = row * a.n_part + first, count = n_part - first < WARP ? n_part - first : (int)WARP;
        for (int g = (int)threadIdx.x / WARP; g < n; g += ATTN_WARPS)
            find_factors(a, slot, head0 + g, count, first == 0, room + g * WARP);
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n * hd; i += ATTN_THREADS) {
            const float *from = a.part_o + (size_t)slot * (size_t)width + (size_t)(head0 * hd + i);
            const struct factors *f = room + i / hd * WARP;
            struct state s = run[i];
            for (int j0 = 0; j0 < count; j0 += 2 * MERGE_BATCH) {
                float o[2 * MERGE_BATCH];
#pragma unroll
                for (int j = 0; j < 2 * MERGE_BATCH; j++)
                    o[j] = j0 + j < count ? from[(size_t)(j0 + j) * (size_t)width] : 0;
#pragma unroll
                for (int j = 0; j < 2 * MERGE_BATCH; j++) {
                    if (j0 + j >= count)
                        continue;
                    struct factors x = f[j0 + j];
                    bool is_first = first + j0 + j == 0;
                    s.l = is_first ? x.l : fmaf(x.l, x.part, s.l * x.before);
                    s.o = is_first ? o[j] : fmaf(o[j], x.part, s.o * x.before);
                }
            }
            s.m = f[count - 1].m;
            run[i] = s;
        }
        __syncthreads();
    }
}

/* What a block's heads give, by the last block of their n_part; heads are whole warps. */
__device__ inline void finish_heads(const struct attn_args &a, struct block_at b, int head0, int n, int n_part, struct state *run,
                                    struct factors *room, bool *is_last)
{
    int row = b.z, hd = a.kv.head_dim;
    if (n_part > 1) {
        __syncthreads();
        if (threadIdx.x == 0)
            *is_last = arrives_last(&a.arrivals[row * a.kv.n_kv_head * a.passes + b.y], (uint32_t)n_part);
        __syncthreads();
        if (!*is_last)
            return;
        merge_heads(a, row, head0, n, n_part, run, room);
    }
    for (int i = (int)threadIdx.x; i < n * hd; i += ATTN_THREADS)
        store_act(a.out, row, head0 * hd + i, a.n_head * hd, attended(a, head0 + i / hd, run[i]));
}

/* Grid: splits (or 1) x KV heads * passes x rows. make, finish: make_heads, finish_heads. */
template <enum kv_type KV, int G, class M, class F>
__device__ inline void attn_block(const struct attn_args &a, struct block_at b, struct attn_shared<G> *shared, float4 *more, const M &make,
                                  const F &finish)
{
    kernel_begin();
    int tid = (int)threadIdx.x, tile = tid / NUM_TILE, row = b.z, hd = a.kv.head_dim, ld = query_floats(hd);
    int group = a.n_head / a.kv.n_kv_head, kv_head = b.y / a.passes;
    int g0 = b.y % a.passes * G, n = group - g0 < G ? group - g0 : G, head0 = kv_head * group + g0;
    int pos = a.step.pos[row], first = first_key(pos, a.window);
    const int32_t *pages = a.step.pages + a.step.page_at[row];
    float *q = (float *)more, *o = q + G * ld;
    struct state *run = (struct state *)(o + room_heads(G) * hd);
    float(*p)[NUM_SPLIT] = shared->p, (*m)[TILES] = shared->m, (*l)[TILES] = shared->l;
    int begin = first / NUM_SPLIT, end = pos / NUM_SPLIT;
    if (!a.all) {
        begin += b.x;
        if (begin > end)
            return;
        end = begin;
    }
    int from = first > begin * NUM_SPLIT ? first : begin * NUM_SPLIT;
    if (a.whole)
        make(a, own_heads{row, head0, n, kv_head, from, end * NUM_SPLIT + NUM_SPLIT - 1, q, o});
    for (int i = tid + (a.whole ? n * ld : 0); i < G * ld; i += ATTN_THREADS) {
        int g = i / ld, d = i % ld;
        size_t head = (size_t)row * (size_t)a.n_head + (size_t)(head0 + g);
        q[i] = g < n && d < hd ? a.q[head * (size_t)hd + (size_t)d] : 0;
    }
    for (int i = tid; i < G * hd; i += ATTN_THREADS)
        run[i].l = -1;
    __syncthreads();
    for (int s = begin; s <= end; s++) {
        int at = s * NUM_SPLIT + tile * NUM_TILE, key = s * NUM_SPLIT + tid;
        int lo = first > at ? first - at : 0, hi = pos - at < NUM_TILE - 1 ? pos - at : NUM_TILE - 1;
        bool visible = key >= first && key <= pos, any = lo <= hi;
        int page = any ? pages[at / NUM_TILE] : 0;
        float sums[G] = {};
        if (visible)
            score<KV, G>(a.kv, kv_block(a.kv, page, a.layer, false, kv_head), tid % NUM_TILE, q, ld, sums);
#pragma unroll
        for (int g = 0; g < G; g++)
            soften(sums[g], visible, p[g], m[g], l[g], shared->scratch); /* p is whole after its last barrier */
        if (any)
            weigh_values<KV, G>(a.kv, kv_block(a.kv, page, a.layer, true, kv_head), lo, hi, p, o);
        __syncthreads();
        for (int i = tid; i < n * hd; i += ATTN_THREADS) { /* thread i's own state: no barrier between splits */
            int g = i / hd, d = i % hd;
            struct state split = {0, -1, 0};
            for (int t = 0; t < TILES; t++) {
                int t_at = s * NUM_SPLIT + t * NUM_TILE;
                if (t_at > pos || t_at + NUM_TILE - 1 < first)
                    continue;
                struct state part = {m[g][t], l[g][t], o[(g * TILES + t) * hd + d]};
                split = merge(split, part);
            }
            run[i] = merge(run[i], split);
        }
    }
    int n_part = parts_of(a, pos);
    if (!a.whole || n_part > 1)
        store_part(a, b, head0, n, run);
    if (a.whole)
        finish(a, b, head0, n, n_part, run, (struct factors *)p, &shared->is_last);
}

/* A thread a value of a row. */
__device__ inline void merge_block(const struct attn_args &a, struct block_at b)
{
    kernel_begin();
    int i = b.x * ATTN_THREADS + (int)threadIdx.x, row = b.y, hd = a.kv.head_dim, width = a.n_head * hd;
    if (i - i % WARP >= width)
        return;
    float x = 0;
    if (i < width)
        x = attended(a, i / hd, merge_parts(a, row, parts_of(a, a.step.pos[row]), i / hd, i % hd));
    store_act(a.out, row, i, width, x);
}

#endif
