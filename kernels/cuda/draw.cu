/* Drawing tokens from logits where they are: a block a row, every stage of engine/sampler.h, the same token. Candidates are
 * a bit each in shared memory. Passes over the whole vocabulary take it lane by lane and leave few candidates; what counts
 * or sums these takes them in order of id, a stretch a thread. Sums are of integers: any order gives the same. */
#include "kernels/cuda/device.cuh"

enum { DRAW_THREADS = 1024, DRAW_WARPS = DRAW_THREADS / WARP, RADIX_BITS = 10, MAX_MASK = 36 * 1024, WIDTHS = 4, DRAW_LOADS = 8 };

typedef unsigned long long u64;

/* What the block shares about its row. */
struct row_draw {
    const float *v;
    int n, n_words, first, last; /* the thread's stretch of words of mask */
    uint32_t *mask;
    u64 *hist, *sums;
    u64 *found;                  /* what one thread tells the others */
    float max, temperature;
};

/* ---- helpers ---- */

/* As engine/weigh.h: NaN becomes -infinity, +infinity the largest float, -0 becomes 0. */
__device__ static float clean(float x)
{
    constexpr float most = 3.402823466e38f;
    x = x > most ? most : x;
    return x >= -most ? x + 0.0f : -INFINITY;
}

/* Unsigned integers in the order of floats, and back. */
__device__ static uint32_t order_key(float v)
{
    uint32_t u = num_bits(v);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ static float key_value(uint32_t k)
{
    return num_from_bits(k & 0x80000000u ? k & 0x7FFFFFFFu : ~k);
}

__device__ static u64 weight(const struct row_draw &r, float v)
{
    return (u64)(num_exp((v - r.max) / r.temperature) * 1099511627776.0f); /* 2^40 */
}

/* The sum over the threads before this one; *all: over all. */
__device__ static u64 scan(const struct row_draw &r, u64 x, u64 *all)
{
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    u64 sum = x, before = 0;
    for (int by = 1; by < WARP; by *= 2) {
        u64 other = __shfl_up_sync(ALL_LANES, sum, by);
        sum += lane >= by ? other : 0;
    }
    __syncthreads(); /* the last use of sums is over */
    if (lane == WARP - 1)
        r.sums[warp] = sum;
    __syncthreads();
    *all = 0;
    for (int w = 0; w < DRAW_WARPS; w++) {
        before += w < warp ? r.sums[w] : 0;
        *all += r.sums[w];
    }
    return before + sum - x;
}

__device__ static uint32_t block_min(const struct row_draw &r, uint32_t x)
{
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, x, lane);
        x = other < x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % WARP == 0)
        r.sums[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int w = 0; w < DRAW_WARPS; w++)
        x = r.sums[w] < x ? (uint32_t)r.sums[w] : x;
    return x;
}

/* f(id, value) for the candidates of the thread's stretch, in order of id; where it says false, the candidate is dropped. */
template <class F> __device__ static void each(const struct row_draw &r, const F &f)
{
    for (int w = r.first; w < r.last; w++) {
        uint32_t bits = r.mask[w], left = bits;
        while (bits != 0) {
            int b = __ffs((int)bits) - 1, i = w * 32 + b;
            bits &= bits - 1;
            if (!f(i, clean(r.v[i])))
                left &= ~(1u << b);
        }
        r.mask[w] = left;
    }
}

/* Values i, i + 1024 ... of the vocabulary, -infinity past the end: all are under way at once. */
__device__ static void load_values(const struct row_draw &r, int i, float v[DRAW_LOADS])
{
#pragma unroll
    for (int j = 0; j < DRAW_LOADS; j++)
        v[j] = i + j * DRAW_THREADS < r.n ? r.v[i + j * DRAW_THREADS] : -INFINITY;
#pragma unroll
    for (int j = 0; j < DRAW_LOADS; j++)
        v[j] = clean(v[j]);
}

/* The candidates are those of the vocabulary that f(value) takes. */
template <class F> __device__ static void choose(const struct row_draw &r, const F &f)
{
    for (int i = (int)threadIdx.x; i < r.n_words * 32; i += DRAW_LOADS * DRAW_THREADS) {
        float v[DRAW_LOADS];
        load_values(r, i, v);
#pragma unroll
        for (int j = 0; j < DRAW_LOADS; j++) {
            int at = i + j * DRAW_THREADS;
            uint32_t bits = __ballot_sync(ALL_LANES, at < r.n && f(v[j]));
            if (at % WARP == 0 && at < r.n_words * 32)
                r.mask[at / 32] = bits;
        }
    }
    __syncthreads();
}

/* ---- the last of a prefix in order of value ---- */

/* Bucket b of hist, 0 the best, in which the sum reaches *need; *need becomes what is missing of it there. All threads. */
__device__ static uint32_t find_bucket(const struct row_draw &r, u64 *need)
{
    u64 all;
    __syncthreads();
    u64 x = r.hist[threadIdx.x], before = scan(r, x, &all);
    if (before < *need && *need <= before + x) {
        r.found[0] = threadIdx.x;
        r.found[1] = *need - before;
    }
    __syncthreads();
    *need = r.found[1];
    return (uint32_t)r.found[0];
}

__device__ static int radix_shift(uint32_t lo, uint32_t hi)
{
    int bits = hi == lo ? 0 : 32 - __clz((int)(hi - lo));
    return bits > RADIX_BITS ? bits - RADIX_BITS : 0;
}

/* Keeps the shortest prefix of the candidates, largest first and lower id first among equals, whose weights (or 1 each) sum to
 * at least need; 1 <= need <= the sum of all. No candidate is below low. */
template <bool WEIGHED> __device__ static void keep_prefix(const struct row_draw &r, float low, u64 need)
{
    uint32_t lo = order_key(low), hi = order_key(r.max);
    while (lo != hi) {
        int shift = radix_shift(lo, hi);
        __syncthreads();
        r.hist[threadIdx.x] = 0;
        __syncthreads();
        each(r, [&](int, float v) {
            uint32_t k = order_key(v);
            if (k >= lo && k <= hi)
                atomicAdd(&r.hist[(hi - k) >> shift], WEIGHED ? weight(r, v) : 1);
            return true;
        });
        hi -= find_bucket(r, &need) << shift;
        uint32_t width = (1u << shift) - 1;
        lo = hi - lo > width ? hi - width : lo;
    }
    /* Equals weigh the same: so many of them stay. */
    u64 one = WEIGHED ? weight(r, key_value(hi)) : 1, stay = (need + one - 1) / one, n = 0, all;
    each(r, [&](int, float v) {
        n += order_key(v) == hi;
        return true;
    });
    u64 before = scan(r, n, &all);
    each(r, [&](int, float v) {
        uint32_t k = order_key(v);
        return k > hi || (k == hi && before++ < stay);
    });
}

/* ---- stages ---- */

/* Penalties of tokens seen, then bias, then bans; tokens of a list are different ones but for the bias, whose later entries
 * with a token add to the earlier. */
__device__ static void edit(const struct draw &d, const struct draw_edit *e, float *v)
{
    const struct draw_edit *bias = e + d.n_seen, *ban = bias + d.n_bias;
    for (int i = (int)threadIdx.x; i < d.n_seen; i += DRAW_THREADS) {
        float x = clean(v[e[i].token]);
        x = x > 0 ? x / d.repetition : x * d.repetition;
        v[e[i].token] = clean(x - e[i].x);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < d.n_bias; i += DRAW_THREADS) {
        bool first = true;
        for (int j = 0; j < i && first; j++)
            first = bias[j].token != bias[i].token;
        float x = clean(v[bias[i].token]);
        for (int j = i; j < d.n_bias && first; j++)
            x = bias[j].token == bias[i].token ? clean(x + bias[j].x) : x;
        if (first)
            v[bias[i].token] = x;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < d.n_ban; i += DRAW_THREADS)
        v[ban[i].token] = -INFINITY;
    __syncthreads();
}

/* A value that at least k of the vocabulary reach, near the k-th largest; mine: the largest of the thread's values. */
__device__ static float low_of_top(const struct row_draw &r, u64 k, float mine)
{
    uint32_t key = order_key(mine), lo = block_min(r, key), hi = order_key(r.max);
    int shift = radix_shift(lo, hi);
    if (k > DRAW_THREADS)
        return -INFINITY;
    r.hist[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&r.hist[(hi - key) >> shift], 1ull);
    u64 edge = ((u64)find_bucket(r, &k) + 1) << shift;
    return edge <= hi - lo ? key_value(hi - (uint32_t)edge + 1) : key_value(lo);
}

/* Of the whole vocabulary: the widest of a few ranges below the largest value that holds a prefix that weighs need, or
 * everything. */
__device__ static float low_of_share(const struct row_draw &r, uint32_t share, u64 *need)
{
    u64 above[WIDTHS] = {}, total = 0, sum;
    for (int i = (int)threadIdx.x; i < r.n; i += DRAW_LOADS * DRAW_THREADS) {
        float v[DRAW_LOADS];
        load_values(r, i, v);
#pragma unroll
        for (int e = 0; e < DRAW_LOADS; e++) {
            u64 w = weight(r, v[e]); /* 0 of what is past the end */
            total += w;
#pragma unroll
            for (int j = 0; j < WIDTHS; j++)
                above[j] += v[e] >= r.max - (float)(4 << j) * r.temperature ? w : 0;
        }
    }
    (void)scan(r, total, &sum);
    *need = (u64)(((unsigned __int128)sum * share + UINT32_MAX) >> 32);
    *need = *need < 1 ? 1 : *need;
    for (int j = 0; j < WIDTHS; j++) {
        (void)scan(r, above[j], &sum);
        if (sum >= *need)
            return r.max - (float)(4 << j) * r.temperature;
    }
    return -INFINITY;
}

/* Top-k and top-p leave candidates. */
__device__ static void thin(const struct row_draw &r, const struct draw &d, float mine)
{
    constexpr float least = -3.402823466e38f; /* -infinity weighs nothing and need not be kept */
    bool top_k = d.top_k > 0 && d.top_k < r.n;
    float low = least;
    u64 need = 0, n = 0, all;
    if (top_k)
        low = low_of_top(r, (u64)d.top_k, mine);
    else if (d.share < DRAW_WHOLE)
        low = low_of_share(r, (uint32_t)d.share, &need);
    low = low < least ? least : low;
    if (!top_k && d.share >= DRAW_WHOLE) {
        u64 floor = d.floor < 1 ? 1 : (u64)d.floor;
        choose(r, [&](float v) { return weight(r, v) >= floor; });
        return;
    }
    choose(r, [&](float v) { return v >= low; });
    if (top_k) {
        each(r, [&](int, float) {
            n++;
            return true;
        });
        (void)scan(r, n, &all);
        if (all > (u64)d.top_k)
            keep_prefix<false>(r, low, (u64)d.top_k);
    }
    if (top_k && d.share < DRAW_WHOLE) {
        n = 0;
        each(r, [&](int, float v) {
            n += weight(r, v);
            return true;
        });
        (void)scan(r, n, &all);
        need = (u64)(((unsigned __int128)all * d.share + UINT32_MAX) >> 32);
        need = need < 1 ? 1 : need;
    }
    if (d.share < DRAW_WHOLE)
        keep_prefix<true>(r, low, need);
}

/* Of the candidates, the one in whose weight the random number falls. */
__device__ static void take(const struct row_draw &r, const struct draw &d, int32_t *token)
{
    u64 mine = 0, total;
    each(r, [&](int, float v) {
        u64 w = weight(r, v);
        mine += w >= (u64)d.floor ? w : 0;
        return w >= (u64)d.floor;
    });
    u64 before = scan(r, mine, &total), at = __umul64hi(total, d.random);
    if (at < before || at >= before + mine)
        return;
    at -= before;
    bool found = false;
    each(r, [&](int i, float v) {
        u64 w = weight(r, v);
        if (!found && at < w) {
            *token = i;
            found = true;
        }
        at -= found ? 0 : w;
        return true;
    });
}

/* ---- kernels ---- */

struct draw_args {
    float *logits;
    const struct draw *draw;
    int32_t *token;
    int n_vocab;
};

__global__ static void __launch_bounds__(DRAW_THREADS, 1) k_draw(struct draw_args a)
{
    kernel_begin();
    DYNAMIC_SHARED(uint32_t, mask);
    __shared__ u64 hist[DRAW_THREADS], sums[DRAW_WARPS], found[2];
    const struct draw d = a.draw[blockIdx.x];
    if (!d.here)
        return;
    float *v = a.logits + (size_t)blockIdx.x * (size_t)a.n_vocab, mine = -INFINITY;
    const struct draw_edit *edits = d.edits;
    struct row_draw r = {v, a.n_vocab, (a.n_vocab + 31) / 32, 0, 0, mask, hist, sums, found, 0, d.temperature};
    int per_thread = (r.n_words + DRAW_THREADS - 1) / DRAW_THREADS, where = 0;
    r.first = (int)threadIdx.x * per_thread < r.n_words ? (int)threadIdx.x * per_thread : r.n_words;
    r.last = r.first + per_thread < r.n_words ? r.first + per_thread : r.n_words;
    if (d.n_seen + d.n_bias + d.n_ban > 0)
        edit(d, edits, v);
#pragma unroll 8
    for (int i = (int)threadIdx.x; i < r.n; i += DRAW_THREADS) {
        float x = clean(v[i]);
        where = x > mine ? i : where;
        mine = x > mine ? x : mine;
    }
    r.max = key_value(~block_min(r, ~order_key(mine)));
    if (r.max == -INFINITY) {
        if (threadIdx.x == 0)
            a.token[blockIdx.x] = DRAW_NOTHING;
        return;
    }
    if (d.temperature <= 0) {
        uint32_t best = block_min(r, mine == r.max ? (uint32_t)where : UINT32_MAX);
        if (threadIdx.x == 0)
            a.token[blockIdx.x] = (int32_t)best;
        return;
    }
    thin(r, d, mine);
    take(r, d, a.token + blockIdx.x);
}

/* ---- launchers ---- */

static size_t mask_bytes(int n_vocab)
{
    return ((size_t)n_vocab + 31) / 32 * sizeof(uint32_t);
}

extern "C" bool draw_usable(int n_vocab)
{
    return mask_bytes(n_vocab) <= MAX_MASK;
}

extern "C" void launch_draw(struct cuda *k)
{
    struct draw_args a = {k->logits, k->step.draw, k->token, k->cfg.n_vocab};
    LAUNCH(k, k_draw, dim3((unsigned)k->n_logits), dim3(DRAW_THREADS), mask_bytes(k->cfg.n_vocab), a);
    CU_NOTE(k, "draw");
}
