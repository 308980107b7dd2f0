/* What the device needs, and where it lies: one slab of weights, KV cache and work space, carved in one pass that also
 * counts it, so that the plan and the allocation cannot differ. */
#include "kernels/cuda/cuda.h"

enum { ALIGN = 256 };

static size_t align(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

void cuda_kv_shape(const struct kern_config *c, struct kv_cache *kv)
{
    static const size_t bytes[KV_TYPE_N] = {[KV_F16] = 2, [KV_Q8_0] = 1, [KV_F32] = 4};
    int dims = (c->head_dim + 15) / 16 * 16;
    size_t scales = c->kv_type == KV_Q8_0 ? (size_t)(NUM_TILE * ((dims + NUM_BLOCK - 1) / NUM_BLOCK)) * 2 : 0;
    kv->n_layer = c->n_layer;
    kv->n_kv_head = c->n_kv_head;
    kv->head_dim = c->head_dim;
    kv->dims = dims;
    kv->block_bytes = (size_t)NUM_TILE * (size_t)dims * bytes[c->kv_type] + scales;
}

/* The next `bytes` of a slab that may be NULL (counting). */
static void *carve(uint8_t *base, size_t *at, size_t n, size_t size)
{
    size_t begin = *at;
    *at += align(n * size);
    return base == NULL ? NULL : base + begin;
}

static struct act carve_act(uint8_t *base, size_t *at, size_t rows, int width)
{
    struct act a = {.ld = (width + SEGMENT - 1) / SEGMENT * SEGMENT};
    size_t n = rows * (size_t)a.ld;
    a.x = carve(base, at, n, sizeof *a.x);
    a.f16 = carve(base, at, n, sizeof *a.f16);
    a.bf16 = carve(base, at, n, sizeof *a.bf16);
    a.q = carve(base, at, n, sizeof *a.q);
    a.s = carve(base, at, n / NUM_BLOCK, sizeof *a.s);
    a.t = carve(base, at, n / SEGMENT, sizeof *a.t);
    return a;
}

/* Bytes of the step's arrays at most: no more pages than every row with a table of its own. */
static size_t step_bytes(const struct kern_config *c)
{
    size_t rows = (size_t)c->max_rows, freqs = (size_t)c->n_rope * (size_t)(c->head_dim / 2) * sizeof(double);
    size_t draws = (size_t)c->max_logits * (sizeof(struct draw) + DRAW_MAX_EDITS * sizeof(struct draw_edit));
    return 6 * ALIGN + freqs + (5 * rows + (size_t)c->max_logits + rows * (size_t)c->n_pages) * 4 + draws;
}

static void carve_work(const struct kern_config *c, struct cuda *k, uint8_t *base, size_t *at)
{
    size_t rows = (size_t)c->max_rows, slots = rows * (size_t)cuda_slots(c), dim = (size_t)c->dim;
    size_t heads = (size_t)(c->n_head * c->head_dim), kv = (size_t)(c->n_kv_head * c->head_dim), n_ff = (size_t)c->n_ff;
    bool moe = c->n_expert > 0;
    k->x = carve(base, at, rows * dim, 4);
    k->y = carve(base, at, rows * dim, 4);
    k->x_home = k->x;
    k->x_next = carve(base, at, dim, 4);
    k->xn = carve_act(base, at, rows, c->dim);
    size_t angles = rows * (size_t)c->n_rope * (size_t)(c->head_dim / 2);
    k->cos = carve(base, at, angles, 4);
    k->sin = carve(base, at, angles, 4);
    k->q = carve(base, at, rows * heads, 4);
    k->k = carve(base, at, rows * kv, 4);
    k->v = carve(base, at, rows * kv, 4);
    k->attn = carve_act(base, at, rows, c->n_head * c->head_dim);
    k->n_part = c->max_rows > SPLIT_SLOTS ? c->max_rows : SPLIT_SLOTS;
    k->part_o = carve(base, at, (size_t)k->n_part * heads, 4);
    k->part_ml = carve(base, at, (size_t)k->n_part * (size_t)c->n_head * 2, 4);
    k->gate = carve(base, at, slots * n_ff, 4);
    k->up = carve(base, at, slots * n_ff, 4);
    k->h = carve_act(base, at, slots, c->n_ff);
    k->branch = carve(base, at, moe ? slots * dim : 0, 4);
    k->router = carve(base, at, moe ? rows * (size_t)c->n_expert : 0, 4);
    k->expert = carve(base, at, moe ? slots : 0, 4);
    k->order = carve(base, at, moe ? slots : 0, 4);
    k->group = carve(base, at, moe ? slots / GROUP_COLS + (size_t)c->n_expert : 0, sizeof *k->group);
    k->expert_w = carve(base, at, moe ? slots : 0, 4);
    k->logits = carve(base, at, (size_t)c->max_logits * (size_t)c->n_vocab, 4);
    k->token = carve(base, at, (size_t)c->max_logits, sizeof *k->token);
    k->step_bytes = step_bytes(c);
    k->step_dev = carve(base, at, k->step_bytes, 1);
}

void cuda_plan(const struct kern_config *c, struct cuda *k, struct cuda_sizes *out)
{
    struct cuda counter = {0};
    uint8_t *base = k == NULL ? NULL : k->slab;
    k = k == NULL ? &counter : k;
    size_t at = 0;
    k->mat_at = carve(base, &at, c->weight_bytes, 1);
    out->weights = at;
    k->vec_at = base == NULL ? NULL : base + at;
    k->persist.ops = carve(base, &at, persist_bytes(c), 1); /* not on the stage: it may be opened before weights are loaded */
    k->persist.arrivals = carve(base, &at, 1, sizeof *k->persist.arrivals);
    size_t rows = (size_t)(c->max_rows < ATTN_WHOLE_ROWS ? c->max_rows : ATTN_WHOLE_ROWS);
    k->arrivals = carve(base, &at, rows * (size_t)c->n_head, sizeof *k->arrivals); /* nor these: the stage is filled with NaNs */
    k->arrival_bytes = rows * (size_t)c->n_head * sizeof *k->arrivals;
    k->damaged = carve(base, &at, 1, sizeof *k->damaged);
    size_t stage_at = at;
    k->stage = base == NULL ? NULL : base + at;
    cuda_kv_shape(c, &k->kv);
    k->kv.data = carve(base, &at, k->kv.block_bytes * 2 * (size_t)c->n_kv_head * (size_t)c->n_layer, (size_t)c->n_pages);
    out->kv = at - stage_at;
    carve_work(c, k, base, &at);
    out->work = at - out->kv - out->weights;
    k->stage_bytes = at - stage_at;
}
