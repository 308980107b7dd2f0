/* Launches of the attention of few rows (attn_few.cuh), of heads before it and the merge after it; and which way a step's
 * attention goes. */
#include "kernels/cuda/attn_few.cuh"

enum { HEAD_WARPS = 4 };

/* ---- kernels ---- */

template <enum kv_type KV> __global__ static void __launch_bounds__(HEAD_WARPS *WARP) k_heads(struct attn_args a)
{
    DYNAMIC_SHARED(float4, room);
    heads_block<KV, HEAD_WARPS>(a, this_block(), (float *)room);
}

/* Blocks a multiprocessor: as many as keys and values leave registers for. */
template <enum kv_type KV, int G>
__global__ static void __launch_bounds__(ATTN_THREADS, KV == KV_F16 && G == 1 ? 3 : 2) k_attn(struct attn_args a)
{
    DYNAMIC_SHARED(float4, more);
    __shared__ struct attn_shared<G> shared;
    attn_block<KV, G>(a, this_block(), &shared, more, make_heads<KV>, finish_heads);
}

__global__ static void __launch_bounds__(ATTN_THREADS) k_merge(struct attn_args a)
{
    merge_block(a, this_block());
}

/* ---- launchers ---- */

template <enum kv_type KV, int G> static void run(struct cuda *k, struct attn_args *a, int splits)
{
    int group = a->n_head / a->kv.n_kv_head;
    a->passes = (group + G - 1) / G;
    dim3 grid((unsigned)splits, (unsigned)(a->kv.n_kv_head * a->passes), (unsigned)k->n_rows);
    size_t shared = (size_t)attn_more_floats(G, a->kv.head_dim) * sizeof(float);
    auto kernel = k_attn<KV, G>;
    LAUNCH(k, kernel, grid, dim3(ATTN_THREADS), shared, *a);
    CU_NOTE(k, "attention");
}

template <enum kv_type KV> static void run_heads(struct cuda *k, struct attn_args *a, int splits)
{
    int heads = heads_at_once(a);
    if (heads == 8)
        run<KV, 8>(k, a, splits);
    else if (heads == 4)
        run<KV, 4>(k, a, splits);
    else
        run<KV, 1>(k, a, splits);
}

/* One launch for few rows; heads, attention and merge each for many and where heads are not whole warps; for prompts flash.cu
 * between the two, but not in a graph, whose runs would not be the next step's. */
enum way { WAY_WHOLE, WAY_APART, WAY_FLASH };

static enum way way_of(const struct cuda *k)
{
    if (k->slot == NULL && k->n_runs > 0 && 2 * k->n_runs <= k->n_rows)
        return WAY_FLASH;
    return k->fuse && k->n_rows <= ATTN_WHOLE_ROWS && k->cfg.head_dim % WARP == 0 ? WAY_WHOLE : WAY_APART;
}

static struct attn_args args_of(const struct cuda *k, const struct layer *l)
{
    const struct kern_config *c = &k->cfg;
    struct attn_args a = {};
    a.q = k->q;
    a.k = k->k;
    a.v = k->v;
    a.q_norm = l->attn_in.q_norm;
    a.k_norm = l->attn_in.k_norm;
    a.sinks = l->attn.sinks;
    a.part_o = k->part_o;
    a.part_ml = k->part_ml;
    a.arrivals = k->arrivals;
    a.step = k->step;
    a.kv = k->kv;
    a.layer = l->index;
    a.n_head = c->n_head;
    a.window = l->attn.window;
    a.n_rope = c->n_rope;
    a.rope_set = l->attn_in.rope;
    a.n_rot = c->rope[l->attn_in.rope].n_rot;
    a.neox = c->rope[l->attn_in.rope].neox;
    a.eps = c->norm_eps;
    a.attn_scale = c->attn_scale;
    a.whole = way_of(k) == WAY_WHOLE;
    return a;
}

extern "C" void launch_heads(struct cuda *k, const struct layer *l)
{
    struct attn_args a = args_of(k, l);
    int heads = a.n_head + 2 * a.kv.n_kv_head, warps = k->mode == STEP_RECORD ? (int)ATTN_WARPS : (int)HEAD_WARPS;
    dim3 grid((unsigned)((heads + warps - 1) / warps), (unsigned)k->n_rows), block(HEAD_WARPS * WARP);
    size_t shared = (size_t)(HEAD_WARPS * a.kv.head_dim) * sizeof(float);
    if (a.whole)
        return;
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_HEADS, k->cfg.kv_type, (int)grid.x, (int)grid.y, &a, sizeof a);
    else if (k->cfg.kv_type == KV_F16)
        LAUNCH(k, k_heads<KV_F16>, grid, block, shared, a);
    else if (k->cfg.kv_type == KV_F32)
        LAUNCH(k, k_heads<KV_F32>, grid, block, shared, a);
    else
        LAUNCH(k, k_heads<KV_Q8_0>, grid, block, shared, a);
    CU_NOTE(k, "heads");
}

static void launch_merge(struct cuda *k, const struct attn_args *a)
{
    int width = a->n_head * a->kv.head_dim;
    dim3 grid((unsigned)((width + ATTN_THREADS - 1) / ATTN_THREADS), (unsigned)k->n_rows);
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_MERGE, 0, (int)grid.x, (int)grid.y, a, sizeof *a);
    else
        LAUNCH(k, k_merge, grid, dim3(ATTN_THREADS), 0, *a);
    CU_NOTE(k, "merge");
}

extern "C" void launch_attn(struct cuda *k, const struct layer *l, const struct act *out)
{
    struct attn_args a = args_of(k, l);
    int most = a.window > 0 ? (a.window + NUM_SPLIT - 2) / NUM_SPLIT + 1 : k->splits;
    bool flash = way_of(k) == WAY_FLASH;
    most = most < k->splits ? most : k->splits;
    a.out = *out;
    a.all = flash || most * k->n_rows > k->n_part; /* many rows fill the card without splits */
    a.n_part = a.all ? 1 : most;
    if (k->mode == STEP_RECORD)
        persist_attn(k, &a, a.n_part);
    else if (flash)
        launch_flash(k, &a);
    else if (k->cfg.kv_type == KV_F16)
        run_heads<KV_F16>(k, &a, a.n_part);
    else if (k->cfg.kv_type == KV_F32)
        run_heads<KV_F32>(k, &a, a.n_part);
    else
        run_heads<KV_Q8_0>(k, &a, a.n_part);
    if (!a.whole)
        launch_merge(k, &a);
}
