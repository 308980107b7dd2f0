/* Launches of the attention of few rows (attn_few.cuh), and which kernel a step's attention takes. */
#include "kernels/cuda/attn_few.cuh"

/* ---- kernels ---- */

template <enum kv_type KV, int G> __global__ static void __launch_bounds__(ATTN_THREADS, 2) k_attn(struct attn_args a)
{
    DYNAMIC_SHARED(float4, more);
    __shared__ __align__(16) struct attn_shared<G> shared;
    attn_block<KV, G>(a, this_block(), &shared, more);
}

__global__ static void __launch_bounds__(ATTN_THREADS) k_merge(struct merge_args a)
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

extern "C" void launch_attn(struct cuda *k, const struct attn_params *p, int layer, const struct act *out)
{
    int most = p->window > 0 ? (p->window + NUM_SPLIT - 2) / NUM_SPLIT + 1 : k->splits;
    most = most < k->splits ? most : k->splits;
    struct attn_args a = {};
    a.q = k->q;
    a.part_o = k->part_o;
    a.part_ml = k->part_ml;
    a.step = k->step;
    a.kv = k->kv;
    a.layer = layer;
    a.n_head = k->cfg.n_head;
    a.window = p->window;
    bool flash = k->slot == NULL && k->n_runs > 0 && 2 * k->n_runs <= k->n_rows; /* a graph's runs would not be the next step's */
    a.all = flash || most * k->n_rows > k->n_part; /* many rows fill the card without splits */
    a.n_part = a.all ? 1 : most;
    int splits = a.n_part;
    if (k->mode == STEP_RECORD)
        persist_attn(k, &a, splits);
    else if (flash)
        launch_flash(k, &a);
    else if (k->cfg.kv_type == KV_F16)
        run_heads<KV_F16>(k, &a, splits);
    else if (k->cfg.kv_type == KV_F32)
        run_heads<KV_F32>(k, &a, splits);
    else
        run_heads<KV_Q8_0>(k, &a, splits);
    int width = k->cfg.n_head * k->cfg.head_dim;
    dim3 grid((unsigned)((width + ATTN_THREADS - 1) / ATTN_THREADS), (unsigned)k->n_rows);
    struct merge_args m = {a, p->sinks, *out};
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_MERGE, 0, (int)grid.x, (int)grid.y, &m, sizeof m);
    else
        LAUNCH(k, k_merge, grid, dim3(ATTN_THREADS), 0, m);
    CU_NOTE(k, "merge");
}
