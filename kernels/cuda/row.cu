/* Kernels that work row by row: norms, quantisation, heads after the Q/K/V product, the gate, the experts' choice. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/kv.cuh"

enum { GROUP_THREADS = 512, NORM_THREADS = 1024, ROW_THREADS = 256, HEAD_THREADS = 64, HEAD_DIM_MAX = 512 };

/* ---- helpers ---- */

/* 1 / sqrt(mean of squares + eps) of n floats, in the contract's order; the whole block calls it. */
__device__ static float norm_scale(const float *x, int n, float eps)
{
    __shared__ float sums[NUM_NORM_LANES];
    __shared__ float total;
    int tid = (int)threadIdx.x;
    if (tid < NUM_NORM_LANES) {
        float s = 0;
#pragma unroll 8
        for (int i = tid; i < n; i += NUM_NORM_LANES)
            s = fmaf(x[i], x[i], s);
        sums[tid] = s;
    }
    __syncthreads();
    if (tid < WARP) {
        float s = warp_tree64(sums, tid);
        if (tid == 0)
            total = s;
    }
    __syncthreads();
    return 1.0f / sqrtf(total / (float)n + eps);
}

/* ---- kernels ---- */

/* One block a row: adds the pending branch, norms, quantises. */
template <int THREADS> __global__ static void __launch_bounds__(THREADS) k_norm(struct norm_args a)
{
    kernel_begin();
    int row = a.rows != NULL ? a.rows[blockIdx.x] : (int)blockIdx.x, tid = (int)threadIdx.x;
    float *x = a.x + (size_t)row * (size_t)a.dim, *y = a.y + (size_t)row * (size_t)a.dim;
    if (a.has_pending) {
        float post = a.pending_norm != NULL ? norm_scale(y, a.dim, a.eps) : 0;
        for (int i = tid; i < a.dim; i += THREADS)
            x[i] = x[i] + (a.pending_norm != NULL ? y[i] * post * a.pending_norm[i] : y[i]);
        __syncthreads();
    }
    float scale = norm_scale(x, a.dim, a.eps);
    for (int i = tid; i - tid % WARP < a.dim; i += THREADS)
        store_act(a.out, (int)blockIdx.x, i, a.dim, i < a.dim ? x[i] * scale * a.norm[i] : 0);
}

struct heads_args {
    float *q, *k, *v;
    const float *q_norm, *k_norm;
    struct dev_step step;
    struct kv_cache kv;
    int layer, n_head, n_rope, rope_set, n_rot;
    bool neox;
    float eps, attn_scale;
};

/* One block a head of a row, q heads first, then k, then v: norm, rope, scale; k and v go to the cache. */
template <enum kv_type KV> __global__ static void __launch_bounds__(HEAD_THREADS) k_heads(struct heads_args a)
{
    kernel_begin();
    __shared__ float head[HEAD_DIM_MAX];
    int tid = (int)threadIdx.x, row = (int)blockIdx.y, hd = a.kv.head_dim, h = (int)blockIdx.x;
    bool is_q = h < a.n_head, is_v = h >= a.n_head + a.kv.n_kv_head;
    int kv_head = is_v ? h - a.n_head - a.kv.n_kv_head : h - a.n_head;
    float *at = is_q ? a.q + ((size_t)row * (size_t)a.n_head + (size_t)h) * (size_t)hd
                     : (is_v ? a.v : a.k) + ((size_t)row * (size_t)a.kv.n_kv_head + (size_t)kv_head) * (size_t)hd;
    for (int i = tid; i < hd; i += HEAD_THREADS)
        head[i] = at[i];
    __syncthreads();
    const float *w = is_v ? NULL : is_q ? a.q_norm : a.k_norm;
    if (w != NULL) {
        float scale = norm_scale(head, hd, a.eps);
        for (int i = tid; i < hd; i += HEAD_THREADS)
            head[i] = head[i] * scale * w[i];
        __syncthreads();
    }
    size_t angle = ((size_t)row * (size_t)a.n_rope + (size_t)a.rope_set) * (size_t)(hd / 2);
    int half = a.n_rot / 2;
    for (int i = tid; !is_v && i < half; i += HEAD_THREADS) {
        float *x = a.neox ? head + i : head + 2 * i, *y = a.neox ? head + half + i : head + 2 * i + 1;
        num_rotate(x, y, a.step.cos[angle + (size_t)i], a.step.sin[angle + (size_t)i]);
    }
    __syncthreads();
    if (is_q) {
        for (int i = tid; i < hd; i += HEAD_THREADS)
            at[i] = head[i] * a.attn_scale;
        return;
    }
    int pos = a.step.pos[row], page = a.step.pages[a.step.page_at[row] + pos / NUM_TILE];
    uint8_t *block = kv_block(a.kv, page, a.layer, is_v, kv_head);
    for (int i = tid; i - tid % WARP < hd; i += HEAD_THREADS)
        kv_store<KV>(a.kv, block, is_v, pos % NUM_TILE, i, i < hd ? head[i] : 0);
}

/* A warp's 32 values of h = act(gate) * up. */
__global__ static void __launch_bounds__(ROW_THREADS) k_gate(const float *gate, const float *up, struct act out, int n,
                                                             enum ffn_act act)
{
    kernel_begin();
    int i = (int)(blockIdx.x * ROW_THREADS + threadIdx.x), col = (int)blockIdx.y;
    if (i - i % WARP >= n)
        return;
    float h = 0;
    if (i < n) {
        float g = gate[(size_t)col * (size_t)n + (size_t)i], u = up[(size_t)col * (size_t)n + (size_t)i];
        h = act == ACT_GELU ? num_gelu(g) * u : act == ACT_SWIGLU_CLAMPED ? num_swiglu_clamped(g, u) : num_silu(g) * u;
    }
    store_act(out, col, i, n, h);
}

/* The better of two experts: higher logit, then lower id; -1 is none. */
__device__ static bool is_better(float a, int a_id, float b, int b_id)
{
    return b_id < 0 || (a_id >= 0 && (a > b || (a == b && a_id < b_id)));
}

/* One warp a row: the n_used best by logit, then lower id; softmax over them in rank order; stored by rising id. */
__global__ static void __launch_bounds__(WARP) k_choose(const float *logits, int n_expert, int n_used, int32_t *expert,
                                                        float *weight)
{
    kernel_begin();
    int lane = (int)threadIdx.x, row = (int)blockIdx.x;
    const float *logit = logits + (size_t)row * (size_t)n_expert;
    int32_t *id = expert + (size_t)row * (size_t)n_used;
    float *w = weight + (size_t)row * (size_t)n_used;
    float first = 0, sum = 0;
    for (int rank = 0; rank < n_used; rank++) {
        int best = -1;
        for (int e = lane; e < n_expert; e += WARP) {
            bool taken = false;
            for (int j = 0; j < rank; j++)
                taken = taken || id[j] == e;
            if (!taken && (best < 0 || logit[e] > logit[best]))
                best = e;
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            int other = __shfl_xor_sync(ALL_LANES, best, step);
            if (other >= 0 && is_better(logit[other], other, best < 0 ? 0 : logit[best], best))
                best = other;
        }
        first = rank == 0 ? logit[best] : first;
        float p = num_exp(logit[best] - first);
        sum = sum + p;
        if (lane == 0) {
            id[rank] = best;
            w[rank] = p;
        }
        __syncwarp();
    }
    for (int i = 0; lane == 0 && i < n_used; i++) {
        int e = id[i], j = i;
        float p = w[i] / sum;
        for (; j > 0 && id[j - 1] > e; j--) {
            id[j] = id[j - 1];
            w[j] = w[j - 1];
        }
        id[j] = e;
        w[j] = p;
    }
}

/* One block: slots by expert, rising in each (a counting sort, a warp an expert at a time), and the groups of GROUP_COLS that
 * their products take; groups that are not needed are empty. */
__global__ static void __launch_bounds__(GROUP_THREADS) k_group(const int32_t *expert, int n_slot, int n_expert, int32_t *order,
                                                                struct col_group *group, int n_group)
{
    kernel_begin();
    __shared__ int32_t count[MAX_GROUPED], first[MAX_GROUPED], first_group[MAX_GROUPED];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    for (int e = warp; e < n_expert; e += GROUP_THREADS / WARP) {
        int n = 0;
        for (int i = lane; i - lane < n_slot; i += WARP)
            n += __popc(__ballot_sync(ALL_LANES, i < n_slot && expert[i < n_slot ? i : 0] == e));
        if (lane == 0)
            count[e] = n;
    }
    __syncthreads();
    int slots = 0, groups = 0; /* of the experts before this stretch of 32 */
    for (int e = lane; warp == 0 && e - lane < n_expert; e += WARP) {
        int n = e < n_expert ? count[e] : 0, g = (n + GROUP_COLS - 1) / GROUP_COLS, all = n, all_g = g;
        for (int by = 1; by < WARP; by *= 2) {
            int a = __shfl_up_sync(ALL_LANES, all, by), b = __shfl_up_sync(ALL_LANES, all_g, by);
            all += lane >= by ? a : 0;
            all_g += lane >= by ? b : 0;
        }
        if (e < n_expert) {
            first[e] = slots + all - n;
            first_group[e] = groups + all_g - g;
        }
        slots += __shfl_sync(ALL_LANES, all, WARP - 1);
        groups += __shfl_sync(ALL_LANES, all_g, WARP - 1);
    }
    for (int i = (int)threadIdx.x; i < n_group; i += GROUP_THREADS)
        group[i].n = 0;
    __syncthreads();
    for (int e = warp; e < n_expert; e += GROUP_THREADS / WARP) {
        for (int j = lane; j * GROUP_COLS < count[e]; j += WARP) {
            int left = count[e] - j * GROUP_COLS;
            struct col_group g = {e, first[e] + j * GROUP_COLS, left < GROUP_COLS ? left : GROUP_COLS};
            group[first_group[e] + j] = g;
        }
        int at = first[e];
        for (int i = lane; i - lane < n_slot; i += WARP) {
            bool mine = i < n_slot && expert[i < n_slot ? i : 0] == e;
            uint32_t all = __ballot_sync(ALL_LANES, mine);
            if (mine)
                order[at + __popc(all & ((1u << lane) - 1))] = i;
            at += __popc(all);
        }
    }
}

/* y = the experts' outputs, weighted, by rising id. */
__global__ static void __launch_bounds__(ROW_THREADS) k_blend(const float *branch, const float *weight, int n_used, int dim,
                                                              float *y)
{
    kernel_begin();
    int i = (int)(blockIdx.x * ROW_THREADS + threadIdx.x), row = (int)blockIdx.y;
    if (i >= dim)
        return;
    float sum = 0;
    for (int e = 0; e < n_used; e++) {
        size_t slot = (size_t)row * (size_t)n_used + (size_t)e;
        sum = fmaf(weight[slot], branch[slot * (size_t)dim + (size_t)i], sum);
    }
    y[(size_t)row * (size_t)dim + (size_t)i] = sum;
}

/* ---- launchers ---- */

static unsigned blocks_of(int n)
{
    return (unsigned)((n + ROW_THREADS - 1) / ROW_THREADS);
}

extern "C" void launch_norm(struct cuda *k, const struct norm_args *a)
{
    /* Few rows have a multiprocessor each; of many, more fit beside each other in small blocks. */
    if (a->n <= k->n_sm)
        LAUNCH(k, k_norm<NORM_THREADS>, dim3((unsigned)a->n), dim3(NORM_THREADS), 0, *a);
    else
        LAUNCH(k, k_norm<ROW_THREADS>, dim3((unsigned)a->n), dim3(ROW_THREADS), 0, *a);
    CU_NOTE(k, "norm");
}

extern "C" void launch_heads(struct cuda *k, const struct attn_in_params *p, int layer)
{
    const struct kern_config *c = &k->cfg;
    struct heads_args a = {};
    a.q = k->q;
    a.k = k->k;
    a.v = k->v;
    a.q_norm = p->q_norm;
    a.k_norm = p->k_norm;
    a.step = k->step;
    a.kv = k->kv;
    a.layer = layer;
    a.n_head = c->n_head;
    a.n_rope = c->n_rope;
    a.rope_set = p->rope;
    a.n_rot = c->rope[p->rope].n_rot;
    a.neox = c->rope[p->rope].neox;
    a.eps = c->norm_eps;
    a.attn_scale = c->attn_scale;
    dim3 grid((unsigned)(c->n_head + 2 * c->n_kv_head), (unsigned)k->n_rows);
    if (c->kv_type == KV_F32)
        LAUNCH(k, k_heads<KV_F32>, grid, dim3(HEAD_THREADS), 0, a);
    else if (c->kv_type == KV_F16)
        LAUNCH(k, k_heads<KV_F16>, grid, dim3(HEAD_THREADS), 0, a);
    else
        LAUNCH(k, k_heads<KV_Q8_0>, grid, dim3(HEAD_THREADS), 0, a);
    CU_NOTE(k, "heads");
}

extern "C" void launch_gate(struct cuda *k, int n_col, int n_ff, const struct act *out)
{
    LAUNCH(k, k_gate, dim3(blocks_of(n_ff), (unsigned)n_col), dim3(ROW_THREADS), 0, k->gate, k->up, *out, n_ff,
           k->cfg.act);
    CU_NOTE(k, "gate");
}

extern "C" void launch_choose(struct cuda *k)
{
    LAUNCH(k, k_choose, dim3((unsigned)k->n_rows), dim3(WARP), 0, k->router, k->cfg.n_expert, k->cfg.n_expert_used,
           k->expert, k->expert_w);
    CU_NOTE(k, "choose");
}

extern "C" void launch_group(struct cuda *k, int n_slot, int n_group)
{
    LAUNCH(k, k_group, dim3(1), dim3(GROUP_THREADS), 0, k->expert, n_slot, k->cfg.n_expert, k->order, k->group, n_group);
    CU_NOTE(k, "group");
}

extern "C" void launch_blend(struct cuda *k)
{
    LAUNCH(k, k_blend, dim3(blocks_of(k->cfg.dim), (unsigned)k->n_rows), dim3(ROW_THREADS), 0, k->branch, k->expert_w,
           k->cfg.n_expert_used, k->cfg.dim, k->y);
    CU_NOTE(k, "blend");
}
