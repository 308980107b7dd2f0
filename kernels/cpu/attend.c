/* Attention over KV pages, and the pages' layout. A page holds NUM_TILE positions of one sequence for all layers; inside it,
 * per layer and KV head, a tile of keys and a tile of values. Keys are stored transposed, (head_dim, 64), so that a key is a
 * SIMD lane; values (64, head_dim). Q8_0 tiles are codes in the same order, then half scales per 32 dimensions.
 *
 * A task is a run of rows of one sequence and one KV head: all query heads of that KV head share each tile, which is
 * turned into floats once. When there are too few tasks for the pool (decode), each is cut at the splits of 256
 * positions and the parts are merged afterwards, in index order: the same operations either way. */
#include "kernels/cpu/cpu.h"

enum { MAX_QUERIES = 64, MAX_BLOCK_ROWS = 8 };

/* ---- pages ---- */

static size_t n_scales(const struct kern_config *c)
{
    return (size_t)(c->head_dim + NUM_BLOCK - 1) / NUM_BLOCK;
}

static size_t tile_bytes(const struct kern_config *c)
{
    size_t n = (size_t)c->head_dim * NUM_TILE;
    switch (c->kv_type) {
    case KV_F32:
        return n * sizeof(float);
    case KV_F16:
        return n * sizeof(uint16_t);
    default:
        return n + n_scales(c) * NUM_TILE * sizeof(uint16_t);
    }
}

size_t kv_page_bytes(const struct kern_config *c)
{
    return (size_t)c->n_layer * (size_t)c->n_kv_head * 2 * tile_bytes(c);
}

/* Keys (which = 0) or values (1) of a KV head in the page that holds a position. */
static char *tile_at(const struct cpu *c, int layer, int seq, int pos, int kv_head, int which)
{
    const struct step *s = &c->step;
    size_t page = (size_t)s->page_table[(size_t)seq * (size_t)s->page_stride + (size_t)(pos / NUM_TILE)];
    size_t tile = ((page * (size_t)c->cfg.n_layer + (size_t)layer) * (size_t)c->cfg.n_kv_head + (size_t)kv_head) * 2;
    return c->kv + (tile + (size_t)which) * tile_bytes(&c->cfg);
}

/* Element d of key or value j of a tile. */
static size_t element(const struct kern_config *c, int which, int d, int j)
{
    return which == 0 ? (size_t)d * NUM_TILE + (size_t)j : (size_t)j * (size_t)c->head_dim + (size_t)d;
}

static uint16_t *scale_at(const struct kern_config *c, char *tile, int which, size_t b, int j)
{
    uint16_t *scales = (uint16_t *)(tile + (size_t)c->head_dim * NUM_TILE);
    return scales + (which == 0 ? b * NUM_TILE + (size_t)j : (size_t)j * n_scales(c) + b);
}

/* One head's keys or values at position j of a tile. */
static void store_head(struct cpu *c, char *tile, int which, int j, const float *x)
{
    const struct kern_config *cfg = &c->cfg;
    int hd = cfg->head_dim;
    if (cfg->kv_type == KV_F32) {
        for (int d = 0; d < hd; d++)
            ((float *)tile)[element(cfg, which, d, j)] = x[d];
    } else if (cfg->kv_type == KV_F16 && which == 1) {
        c->ops->to_f16(x, (uint16_t *)tile + (size_t)j * (size_t)hd, hd);
    } else if (cfg->kv_type == KV_F16) {
        uint16_t half[8];
        for (int d = 0; d < hd; d += 8) {
            c->ops->to_f16(x + d, half, 8);
            for (int i = 0; i < 8; i++)
                ((uint16_t *)tile)[element(cfg, which, d + i, j)] = half[i];
        }
    } else {
        for (int b = 0; b < hd; b += NUM_BLOCK) {
            int n = hd - b < NUM_BLOCK ? hd - b : NUM_BLOCK;
            float amax = 0, inv;
            for (int i = 0; i < n; i++)
                amax = fabsf(x[b + i]) > amax ? fabsf(x[b + i]) : amax;
            *scale_at(cfg, tile, which, (size_t)b / NUM_BLOCK, j) = num_f32_to_f16(num_quant_scale(amax, &inv));
            for (int i = 0; i < n; i++)
                ((int8_t *)tile)[element(cfg, which, b + i, j)] = num_quant(x[b + i], inv);
        }
    }
}

void kv_store_row(struct cpu *c, int layer, const struct row *row, const float *k, const float *v)
{
    for (int h = 0; h < c->cfg.n_kv_head; h++) {
        int j = row->pos % NUM_TILE;
        store_head(c, tile_at(c, layer, row->seq, row->pos, h, 0), 0, j, k + h * c->cfg.head_dim);
        store_head(c, tile_at(c, layer, row->seq, row->pos, h, 1), 1, j, v + h * c->cfg.head_dim);
    }
}

/* A tile as the kernel reads it: in place, or as floats in scratch. */
static const void *load_tile(struct cpu *c, char *tile, int which, float *scratch)
{
    const struct kern_config *cfg = &c->cfg;
    const int8_t *codes = (const int8_t *)tile;
    int hd = cfg->head_dim;
    if (cfg->kv_type != KV_Q8_0)
        return tile;
    float scale[NUM_TILE];
    for (int d = 0; which == 0 && d < hd; d++) {
        if (d % NUM_BLOCK == 0)
            c->ops->from_f16(scale_at(cfg, tile, 0, (size_t)d / NUM_BLOCK, 0), scale, NUM_TILE);
        for (int j = 0; j < NUM_TILE; j++)
            scratch[d * NUM_TILE + j] = scale[j] * (float)codes[d * NUM_TILE + j];
    }
    for (int j = 0; which == 1 && j < NUM_TILE; j++)
        for (int b = 0; b < hd; b += NUM_BLOCK) {
            float one = num_f16_to_f32(*scale_at(cfg, tile, 1, (size_t)b / NUM_BLOCK, j));
            for (int d = b; d < hd && d < b + NUM_BLOCK; d++)
                scratch[j * hd + d] = one * (float)codes[j * hd + d];
        }
    return scratch;
}

/* ---- scratch ---- */

static size_t part_bytes(const struct kern_config *c)
{
    return (sizeof(struct part) + (size_t)c->head_dim * sizeof(float) + 63) / 64 * 64;
}

static int group_size(const struct kern_config *c)
{
    return c->n_head / c->n_kv_head;
}

/* Rows of a block, so that rows times heads of a KV head stay in MAX_QUERIES. */
static int block_rows(const struct kern_config *c)
{
    int n = MAX_QUERIES / group_size(c);
    return n < 1 ? 1 : n > MAX_BLOCK_ROWS ? MAX_BLOCK_ROWS : n;
}

static int max_queries(const struct kern_config *c)
{
    return block_rows(c) * group_size(c);
}

struct scratch {
    float *keys, *values;       /* (head_dim, 64), (64, head_dim) */
    float *q;                   /* (max_queries, head_dim) */
    float (*s)[NUM_TILE];       /* (max_queries) */
    float *fa, *fb;
    bool *first;
    char *split, *all;          /* parts */
    int *lo, *hi;
    struct part **out;
    const void *after;          /* keys that this thread will probably read after the split; NULL = the next split's */
};

size_t attend_tile_bytes(const struct kern_config *c)
{
    size_t q = (size_t)max_queries(c), hd = (size_t)c->head_dim;
    size_t bytes = 2 * hd * NUM_TILE * sizeof(float) + q * hd * sizeof(float) + q * NUM_TILE * sizeof(float) +
                   2 * q * part_bytes(c) + q * (2 * sizeof(int) + sizeof(struct part *) + 2 * sizeof(float) + sizeof(bool));
    return (bytes + 127) / 64 * 64;
}

size_t attend_part_bytes(const struct kern_config *c)
{
    return ATTEND_MAX_PARTS * part_bytes(c);
}

/* Tasks below which they are cut at splits. */
int attend_max_cut(int n_threads)
{
    return 4 * n_threads;
}

static struct scratch carve(const struct kern_config *c, char *p)
{
    size_t q = (size_t)max_queries(c), hd = (size_t)c->head_dim, part = part_bytes(c);
    struct scratch s = {.after = NULL};
    s.keys = (float *)p;
    s.values = s.keys + hd * NUM_TILE;
    s.q = s.values + hd * NUM_TILE;
    s.s = (float (*)[NUM_TILE])(s.q + q * hd);
    s.split = (char *)(s.s + q);
    s.all = s.split + q * part;
    s.out = (struct part **)(s.all + q * part);
    s.lo = (int *)(s.out + q);
    s.hi = s.lo + q;
    s.fa = (float *)(s.hi + q);
    s.fb = s.fa + q;
    s.first = (bool *)(s.fb + q);
    return s;
}

static struct part *part_of(const struct cpu *c, char *parts, int i)
{
    return (struct part *)(parts + (size_t)i * part_bytes(&c->cfg));
}

/* A part that saw no key: l < 0. */
static void clear_parts(const struct cpu *c, char *parts, int n)
{
    for (int i = 0; i < n; i++)
        *part_of(c, parts, i) = (struct part){.m = -INFINITY, .l = -1};
}

static void merge_part(const struct cpu *c, struct part *a, const struct part *b)
{
    if (b->l < 0)
        return;
    if (a->l < 0)
        memcpy(a, b, sizeof *a + (size_t)c->cfg.head_dim * sizeof(float));
    else
        c->ops->merge(a, b, c->cfg.head_dim);
}

/* ---- tasks ---- */

struct attend_run {
    struct cpu *c;
    const struct layer *l;
    struct block *blocks;
    int n_blocks;
    int n_splits;               /* splits a task is cut into; 0 = not cut */
    struct counter counter;     /* of the pieces of tasks that are cut */
    struct shares shares;       /* of whole tasks */
};

static int first_visible(int window, int pos)
{
    return window > 0 && pos >= window ? pos - window + 1 : 0;
}

/* One tile for the rows of a block that see a part of it; merges into s->split. */
static void attend_tile(struct attend_run *r, struct scratch *s, const struct block *b, int kv_head, int t)
{
    struct cpu *c = r->c;
    const struct row *rows = c->step.rows + b->row0;
    int g = group_size(&c->cfg), hd = c->cfg.head_dim, window = r->l->attn.window, from = -1, to = -1;
    for (int i = 0; i < b->n_rows; i++) {
        int lo = first_visible(window, rows[i].pos) - t, hi = rows[i].pos - t;
        lo = lo > 0 ? lo : 0;
        hi = hi < NUM_TILE - 1 ? hi : NUM_TILE - 1;
        if (lo > hi)
            continue;
        from = from < 0 ? i : from;    /* positions rise, so the rows that see a tile are a run */
        to = i + 1;
        for (int h = i * g; h < (i + 1) * g; h++) {
            s->lo[h] = lo;
            s->hi[h] = hi;
        }
    }
    if (from < 0)
        return;
    for (int h = from * g; h < to * g; h++)
        s->out[h] = part_of(c, s->split, h);
    char *keys = tile_at(c, r->l->index, rows->seq, t, kv_head, 0), *values = tile_at(c, r->l->index, rows->seq, t, kv_head, 1);
    bool goes_on = t + NUM_TILE <= rows[b->n_rows - 1].pos && (s->after == NULL || (t + NUM_TILE) % NUM_SPLIT != 0);
    const void *next = goes_on ? tile_at(c, r->l->index, rows->seq, t + NUM_TILE, kv_head, 0) : s->after;
    int at = from * g, n_q = (to - from) * g;
    struct tile tile = {
        .half = c->cfg.kv_type == KV_F16,
        .head_dim = hd, .n_q = n_q, .q = s->q + (size_t)at * (size_t)hd, .lo = s->lo + at, .hi = s->hi + at,
        .out = s->out + at, .s = s->s + at, .fa = s->fa + at, .fb = s->fb + at, .first = s->first + at,
    };
    tile.keys = load_tile(c, keys, 0, s->keys);
    tile.values = load_tile(c, values, 1, s->values);
    tile.next = next != NULL && tile.keys == keys ? next : tile.keys;
    c->ops->attend(&tile);
}

/* Split s of 256 positions, into s->split. */
static void attend_split(struct attend_run *r, struct scratch *s, const struct block *b, int kv_head, int split)
{
    int last = r->c->step.rows[b->row0 + b->n_rows - 1].pos;
    clear_parts(r->c, s->split, b->n_rows * group_size(&r->c->cfg));
    for (int t = split * NUM_SPLIT; t <= last && t < (split + 1) * NUM_SPLIT; t += NUM_TILE)
        attend_tile(r, s, b, kv_head, t);
}

static void gather_queries(struct cpu *c, struct scratch *s, const struct block *b, int kv_head)
{
    int hd = c->cfg.head_dim, g = group_size(&c->cfg);
    for (int i = 0; i < b->n_rows; i++)
        memcpy(s->q + (size_t)(i * g * hd), c->q + ((size_t)(b->row0 + i) * (size_t)c->cfg.n_head + (size_t)(kv_head * g)) * (size_t)hd,
               (size_t)(g * hd) * sizeof(float));
}

/* The sink, the division, and the result to its place. */
static void finish_block(struct attend_run *r, const struct block *b, int kv_head, char *parts)
{
    struct cpu *c = r->c;
    int hd = c->cfg.head_dim, g = group_size(&c->cfg);
    for (int i = 0; i < b->n_rows * g; i++) {
        struct part *p = part_of(c, parts, i);
        int head = kv_head * g + i % g;
        if (r->l->attn.sinks != NULL) {
            float fa, fb;
            num_merge(p->m, r->l->attn.sinks[head], &fa, &fb);
            p->l = fmaf(p->l, fa, fb);
            c->ops->scale(p->o, fa, hd);
        }
        float *out = c->attn.f + (size_t)(b->row0 + i / g) * c->attn.f_stride + (size_t)(head * hd);
        memcpy(out, p->o, (size_t)hd * sizeof(float));
        c->ops->scale(out, 1.0f / p->l, hd);
    }
}

static void split_range(const struct attend_run *r, const struct block *b, int *from, int *to)
{
    const struct row *rows = r->c->step.rows + b->row0;
    *from = first_visible(r->l->attn.window, rows[0].pos) / NUM_SPLIT;
    *to = rows[b->n_rows - 1].pos / NUM_SPLIT;
}

static struct scratch take_scratch(struct cpu *c)
{
    int thread = atomic_fetch_add_explicit(&c->thread_next, 1, memory_order_relaxed);
    return carve(&c->cfg, c->tiles + (size_t)thread * c->tile_bytes);
}

/* The block of whole task i: later rows are longer, so they come first. */
static const struct block *block_at(const struct attend_run *r, int i)
{
    return &r->blocks[r->n_blocks - 1 - i / r->c->cfg.n_kv_head];
}

/* The first keys of whole task i, NULL when there is none. */
static const void *first_keys(const struct attend_run *r, int i)
{
    const struct cpu *c = r->c;
    int from, to;
    if (i >= r->n_blocks * c->cfg.n_kv_head)
        return NULL;
    split_range(r, block_at(r, i), &from, &to);
    return tile_at(c, r->l->index, c->step.rows[block_at(r, i)->row0].seq, from * NUM_SPLIT, i % c->cfg.n_kv_head, 0);
}

static void work_whole(void *arg)
{
    struct attend_run *r = arg;
    struct cpu *c = r->c;
    struct scratch s = take_scratch(c);
    for (int i, own = shares_join(&r->shares); (i = shares_take(&r->shares, own)) >= 0;) {
        const struct block *b = block_at(r, i);
        int kv_head = i % c->cfg.n_kv_head, n_q = b->n_rows * group_size(&c->cfg), from, to;
        gather_queries(c, &s, b, kv_head);
        clear_parts(c, s.all, n_q);
        split_range(r, b, &from, &to);
        for (int split = from; split <= to; split++) {
            s.after = split == to ? first_keys(r, i + 1) : NULL;
            attend_split(r, &s, b, kv_head, split);
            for (int h = 0; h < n_q; h++)
                merge_part(c, part_of(c, s.all, h), part_of(c, s.split, h));
        }
        finish_block(r, b, kv_head, s.all);
    }
}

/* Parts of a task: n_splits times max_queries, one after the other. */
static char *task_parts(const struct attend_run *r, int task, int split)
{
    return (char *)part_of(r->c, r->c->parts, (task * r->n_splits + split) * max_queries(&r->c->cfg));
}

static void merge_task(struct attend_run *r, int task)
{
    struct cpu *c = r->c;
    const struct block *b = &r->blocks[task / c->cfg.n_kv_head];
    int from, to, n_q = b->n_rows * group_size(&c->cfg);
    split_range(r, b, &from, &to);
    char *all = task_parts(r, task, 0);
    for (int split = 1; split <= to - from; split++)
        for (int h = 0; h < n_q; h++)
            merge_part(c, part_of(c, all, h), part_of(c, task_parts(r, task, split), h));
    finish_block(r, b, task % c->cfg.n_kv_head, all);
}

/* One split of one task. */
struct piece {
    int task, split;            /* split counts from the task's first */
    const struct block *b;
    int kv_head, pos;           /* of the first position */
    bool there;                 /* tasks of short sequences have fewer splits than n_splits */
};

static struct piece piece_at(const struct attend_run *r, int i)
{
    int n_kv_head = r->c->cfg.n_kv_head, from, to;
    struct piece p = {.task = i / r->n_splits, .split = i % r->n_splits};
    p.b = &r->blocks[p.task / n_kv_head];
    p.kv_head = p.task % n_kv_head;
    split_range(r, p.b, &from, &to);
    p.pos = (from + p.split) * NUM_SPLIT;
    p.there = from + p.split <= to;
    return p;
}

/* The first keys of the piece that this thread gets after its i-th, if threads take turns: a wrong guess costs nothing. */
static const void *keys_after(const struct attend_run *r, int i)
{
    const struct cpu *c = r->c;
    int next = i + pool_size(c->pool);
    struct piece p = piece_at(r, next < r->counter.n ? next : i);
    return p.there ? tile_at(c, r->l->index, c->step.rows[p.b->row0].seq, p.pos, p.kv_head, 0) : NULL;
}

static void work_cut(void *arg)
{
    struct attend_run *r = arg;
    struct cpu *c = r->c;
    struct scratch s = take_scratch(c);
    for (int i; (i = counter_take(&r->counter)) >= 0;) {
        struct piece p = piece_at(r, i);
        if (!p.there)
            continue;
        s.after = keys_after(r, i);
        s.split = task_parts(r, p.task, p.split);
        gather_queries(c, &s, p.b, p.kv_head);
        attend_split(r, &s, p.b, p.kv_head, p.pos / NUM_SPLIT);
        /* whoever ends a task's last split merges them all: no further meeting of the threads */
        if (atomic_fetch_sub_explicit(&c->splits_left[p.task], 1, memory_order_acq_rel) == 1)
            merge_task(r, p.task);
    }
}

/* Runs of rows of one sequence, at most block_rows long. */
static int find_blocks(const struct cpu *c, struct block *blocks)
{
    int n = 0, most = block_rows(&c->cfg);
    for (int i = 0; i < c->step.n_rows; i++) {
        const struct row *row = &c->step.rows[i];
        bool goes_on = n > 0 && blocks[n - 1].n_rows < most && row[-1].seq == row->seq && row[-1].pos + 1 == row->pos;
        if (goes_on)
            blocks[n - 1].n_rows++;
        else
            blocks[n++] = (struct block){i, 1};
    }
    return n;
}

/* Behind the last layer's keys only rows that want logits matter: the step goes on with them alone. */
static void keep_wanted_rows(struct cpu *c)
{
    size_t dim = (size_t)c->cfg.dim, q_dim = (size_t)(c->cfg.n_head * c->cfg.head_dim);
    int n = 0;
    for (int i = 0; i < c->step.n_rows; i++) {
        if (!c->step.rows[i].want_logits)
            continue;
        memmove(c->x + (size_t)n * dim, c->x + (size_t)i * dim, dim * sizeof(float));
        memmove(c->q + (size_t)n * q_dim, c->q + (size_t)i * q_dim, q_dim * sizeof(float));
        c->wanted[n++] = c->step.rows[i];
    }
    c->step.rows = c->wanted;
    c->step.n_rows = n;
}

void cpu_attn(struct kern *k, const struct layer *l)
{
    struct cpu *c = cpu_self(k);
    if (l->index == c->cfg.n_layer - 1)
        keep_wanted_rows(c);
    if (c->step.n_rows == 0)
        return;
    struct attend_run r = {.c = c, .l = l, .blocks = c->blocks};
    r.n_blocks = find_blocks(c, r.blocks);
    int n_tasks = r.n_blocks * c->cfg.n_kv_head, longest = 1;
    for (int i = 0; i < r.n_blocks; i++) {
        int from, to;
        split_range(&r, &r.blocks[i], &from, &to);
        longest = to - from + 1 > longest ? to - from + 1 : longest;
    }
    atomic_store_explicit(&c->thread_next, 0, memory_order_relaxed);
    bool few = n_tasks < attend_max_cut(pool_size(c->pool));
    bool fits = n_tasks * longest * max_queries(&c->cfg) <= ATTEND_MAX_PARTS;
    if (longest > 1 && few && fits) {
        for (int task = 0; task < n_tasks; task++) {
            int from, to;
            split_range(&r, &r.blocks[task / c->cfg.n_kv_head], &from, &to);
            atomic_store_explicit(&c->splits_left[task], to - from + 1, memory_order_relaxed);
        }
        r.n_splits = longest;
        counter_init(&r.counter, n_tasks * longest);
        pool_run(c->pool, work_cut, &r);
    } else {
        shares_init(&r.shares, pool_size(c->pool), n_tasks);
        pool_run(c->pool, work_whole, &r);
    }
}
