/* Attention of few rows (attn.cu, persist.cu): a block takes one row, one KV head and up to G of its query heads, over one split of 256 keys (a thread a key)
 * or all splits in order; then every (row, head) merges its splits in index order and quantises. The order of every sum is
 * the contract's, whichever way the splits are shared out. */
#ifndef KERNELS_CUDA_ATTN_FEW_CUH
#define KERNELS_CUDA_ATTN_FEW_CUH

#include "kernels/cuda/act.cuh"
#include "kernels/cuda/attn.cuh"

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

/* A block's shared memory: this, and attn_more_floats. */
template <int G> struct attn_shared {
    float p[G][NUM_SPLIT];
    float m[G][TILES], l[G][TILES], scratch[ATTN_THREADS / WARP];
};

/* q (G, ld), tiles' o (G, 4, hd), running states. */
__host__ __device__ inline int attn_more_floats(int G, int head_dim)
{
    return G * (query_floats(head_dim) + head_dim * (TILES + 3));
}

/* The most heads at once (8, 4 or 1) that they are and that shared memory (32 KB beside p) has room for. */
static inline int heads_at_once(const struct attn_args *a)
{
    int group = a->n_head / a->kv.n_kv_head, room = SHARED_FLOATS / (1 + TILES + 3) / a->kv.head_dim;
    return group >= 5 && room >= 8 ? 8 : group >= 2 && room >= 4 ? 4 : 1;
}

/* Grid: splits (or 1) x KV heads * passes x rows. */
template <enum kv_type KV, int G>
__device__ inline void attn_block(const struct attn_args &a, struct block_at b, struct attn_shared<G> *shared, float4 *more)
{
    kernel_begin();
    int tid = (int)threadIdx.x, tile = tid / NUM_TILE, row = b.z, hd = a.kv.head_dim, ld = query_floats(hd);
    int group = a.n_head / a.kv.n_kv_head, kv_head = b.y / a.passes;
    int g0 = b.y % a.passes * G, n = group - g0 < G ? group - g0 : G, head0 = kv_head * group + g0;
    int pos = a.step.pos[row], first = first_key(pos, a.window);
    const int32_t *pages = a.step.pages + a.step.page_at[row];
    float *q = (float *)more, *o = q + G * ld;
    struct state *run = (struct state *)(o + G * TILES * hd);
    float(*p)[NUM_SPLIT] = shared->p, (*m)[TILES] = shared->m, (*l)[TILES] = shared->l;
    int begin = first / NUM_SPLIT, end = pos / NUM_SPLIT;
    if (!a.all) {
        begin += b.x;
        if (begin > end)
            return;
        end = begin;
    }
    for (int i = tid; i < G * ld; i += ATTN_THREADS) {
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
    int slot = row * a.n_part + (a.all ? 0 : b.x);
    for (int i = tid; i < n * hd; i += ATTN_THREADS) {
        size_t out = (size_t)slot * (size_t)a.n_head + (size_t)(head0 + i / hd);
        a.part_o[out * (size_t)hd + (size_t)(i % hd)] = run[i].o;
        if (i % hd == 0) {
            a.part_ml[2 * out] = run[i].m;
            a.part_ml[2 * out + 1] = run[i].l;
        }
    }
}

struct merge_args {
    struct attn_args attn;
    const float *sinks;
    struct act out;
};

/* A thread a value of a row: splits in index order, the sink, division, quantisation. */
__device__ inline void merge_block(const struct merge_args &all, struct block_at b)
{
    kernel_begin();
    const struct attn_args &a = all.attn;
    int i = b.x * ATTN_THREADS + (int)threadIdx.x, row = b.y, hd = a.kv.head_dim, width = a.n_head * hd;
    if (i - i % WARP >= width)
        return;
    float x = 0;
    if (i < width) {
        int pos = a.step.pos[row], n = a.all ? 1 : pos / NUM_SPLIT - first_key(pos, a.window) / NUM_SPLIT + 1;
        struct state s = {0, -1, 0};
        for (int first = 0; first < n; first += MERGE_BATCH) {
            struct state part[MERGE_BATCH];
#pragma unroll
            for (int j = 0; j < MERGE_BATCH; j++) {
                if (first + j >= n)
                    continue;
                size_t at = (size_t)(row * a.n_part + first + j) * (size_t)a.n_head + (size_t)(i / hd);
                part[j] = {a.part_ml[2 * at], a.part_ml[2 * at + 1], a.part_o[at * (size_t)hd + (size_t)(i % hd)]};
            }
#pragma unroll
            for (int j = 0; j < MERGE_BATCH; j++)
                if (first + j < n)
                    s = merge(s, part[j]);
        }
        if (all.sinks != NULL) {
            float fa, fb;
            num_merge(s.m, all.sinks[i / hd], &fa, &fb);
            s.l = fmaf(s.l, fa, fb);
            s.o = s.o * fa;
        }
        x = s.o * (1.0f / s.l);
    }
    store_act(all.out, row, i, width, x);
}

#endif
