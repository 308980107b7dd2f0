/* The CPU device: memory and steps. Weights are packed once into one slab (pack.h), KV pages are one mapping committed when
 * first touched, everything a step needs is carved from one block at open. */
#include "kernels/cpu/cpu.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

enum { ALIGN = 64 };

static size_t align_up(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t cpu_mat_bytes(enum qtype type, int rows, int cols, int n_mat)
{
    return pack_group_bytes(type, cols) * (size_t)pack_n_groups(rows) * (size_t)n_mat;
}

/* ---- work space ---- */

/* Hands out pieces of one block; without a block it only counts. */
struct carver {
    char *base;
    size_t used;
};

static void *carve(struct carver *v, size_t n, size_t size)
{
    void *p = v->base == NULL ? NULL : v->base + v->used;
    v->used += align_up(n * size);
    return p;
}

static struct input carve_input(struct carver *v, size_t rows, int cols)
{
    struct input in = {.f_stride = (size_t)cols, .q_stride = (size_t)(cols / NUM_BLOCK)};
    in.f = carve(v, rows * in.f_stride, sizeof(float));
    in.q = carve(v, rows * in.q_stride, sizeof(struct act_block));
    return in;
}

static void carve_work(struct cpu *c, struct carver *v, int n_threads)
{
    const struct kern_config *g = &c->cfg;
    size_t rows = (size_t)g->max_rows, dim = (size_t)g->dim, used = g->n_expert > 0 ? (size_t)g->n_expert_used : 1;
    int q_dim = g->n_head * g->head_dim, kv_dim = g->n_kv_head * g->head_dim;
    c->x = carve(v, rows * dim, sizeof(float));
    c->y = carve(v, rows * dim, sizeof(float));
    c->xn = carve_input(v, rows, g->dim);
    c->q = carve(v, rows * (size_t)q_dim, sizeof(float));
    c->k = carve(v, rows * (size_t)kv_dim, sizeof(float));
    c->v = carve(v, rows * (size_t)kv_dim, sizeof(float));
    c->attn = carve_input(v, rows, q_dim);
    c->h = carve_input(v, rows * used, g->n_ff);
    c->up = carve(v, rows * used * (size_t)g->n_ff, sizeof(float));
    c->cos = carve(v, rows * (size_t)g->n_rope * (size_t)g->head_dim / 2, sizeof(float));
    c->sin = carve(v, rows * (size_t)g->n_rope * (size_t)g->head_dim / 2, sizeof(float));
    c->logits_stride = (size_t)pack_n_groups(g->n_vocab) * PACK_ROWS;
    c->logits = carve(v, (size_t)g->max_logits * c->logits_stride, sizeof(float));
    c->wanted = carve(v, rows, sizeof *c->wanted);
    c->blocks = carve(v, rows, sizeof *c->blocks);
    c->tile_bytes = attend_tile_bytes(g);
    c->tiles = carve(v, (size_t)n_threads, c->tile_bytes);
    c->parts = carve(v, 1, attend_part_bytes(g));
    c->splits_left = carve(v, (size_t)attend_max_cut(n_threads), sizeof *c->splits_left);
    if (g->n_expert == 0)
        return;
    struct routing *r = &c->route;
    r->expert = carve(v, rows * used, sizeof(int));
    r->weight = carve(v, rows * used, sizeof(float));
    r->slot = carve(v, rows * used, sizeof(int));
    r->first = carve(v, (size_t)g->n_expert + 1, sizeof(int));
    r->active = carve(v, (size_t)g->n_expert, sizeof(int));
    r->logits = carve(v, rows * (size_t)pack_n_groups(g->n_expert) * PACK_ROWS, sizeof(float));
    r->in = carve_input(v, rows * used, g->dim);
    r->out = carve(v, rows * used * dim, sizeof(float));
}

static size_t cpu_work_bytes(const struct kern_config *cfg)
{
    struct cpu c = {.cfg = *cfg};
    struct carver v = {0};
    carve_work(&c, &v, cfg->n_threads > 0 ? cfg->n_threads : pool_default());
    return v.used;
}

/* ---- open and close ---- */

static void cpu_close(struct kern *k)
{
    if (k == NULL)
        return;
    struct cpu *c = cpu_self(k);
    pool_close(c->pool);
    mem_unmap(c->slab, c->slab_bytes);
    mem_unmap(c->kv, c->kv_bytes);
    mem_unmap(c->work, c->work_bytes);
    free(c);
}

static struct kern *cpu_open(const struct kern_config *cfg, struct err *err)
{
    struct cpu *c = mem_alloc(1, sizeof *c);
    if (c == NULL) {
        err_set(err, ERR_DEVICE, "cpu: no memory");
        return NULL;
    }
    c->kern.dev = &kern_cpu;
    c->cfg = *cfg;
    c->product = product_isa(cfg->isa);
    c->ops = cpu_ops(cfg->isa);
    if (c->product == NULL || c->ops == NULL) {
        err_set(err, ERR_DEVICE, "cpu: this machine lacks the instructions asked for");
        goto fail;
    }
    c->pool = pool_open(cfg->n_threads);
    if (c->pool == NULL) {
        err_set(err, ERR_DEVICE, "cpu: cannot start %d threads", cfg->n_threads);
        goto fail;
    }
    struct carver v = {0};
    carve_work(c, &v, pool_size(c->pool));
    c->slab_bytes = cfg->weight_bytes;
    c->kv_bytes = kv_page_bytes(cfg) * (size_t)cfg->n_pages;
    c->work_bytes = v.used;
    c->slab = mem_map(c->slab_bytes);
    c->kv = mem_map(c->kv_bytes);
    c->work = mem_map(c->work_bytes);
    if (c->slab == NULL || c->kv == NULL || c->work == NULL) {
        err_set(err, ERR_DEVICE, "cpu: required %zu bytes, available %zu bytes", c->slab_bytes + c->kv_bytes + c->work_bytes,
                mem_available());
        goto fail;
    }
    v = (struct carver){.base = c->work};
    carve_work(c, &v, pool_size(c->pool));
    return &c->kern;
fail:
    cpu_close(&c->kern);
    return NULL;
}

/* ---- weights ---- */

static void *take(struct cpu *c, size_t bytes, struct err *err)
{
    size_t at = align_up(c->slab_used);
    if (bytes > c->slab_bytes || at > c->slab_bytes - bytes) {
        err_set(err, ERR_INTERNAL, "cpu: the plan counted %zu bytes of weights, %zu more are needed", c->slab_bytes,
                at + bytes - c->slab_bytes);
        return NULL;
    }
    c->slab_used = at + bytes;
    return c->slab + at;
}

enum { PACK_AT_ONCE = 32 };    /* groups of a task */

struct pack_run {
    const struct mat *m;
    const char *src;
    size_t mat_stride;
    struct counter counter;
    atomic_bool damaged;
};

static void work_pack(void *arg)
{
    struct pack_run *r = arg;
    const struct mat *m = r->m;
    size_t group = pack_group_bytes(m->type, m->cols), row = qtype_row_bytes(m->type, (size_t)m->cols);
    int n_groups = pack_n_groups(m->rows), tasks = (n_groups + PACK_AT_ONCE - 1) / PACK_AT_ONCE;
    for (int i; (i = counter_take(&r->counter)) >= 0;) {
        const char *src = r->src + (size_t)(i / tasks) * r->mat_stride;
        char *dst = (char *)m->data + (size_t)(i / tasks) * (size_t)n_groups * group;
        for (int g = i % tasks * PACK_AT_ONCE; g < n_groups && g < (i % tasks + 1) * PACK_AT_ONCE; g++) {
            int rows = m->rows - g * PACK_ROWS < PACK_ROWS ? m->rows - g * PACK_ROWS : PACK_ROWS;
            const char *from = src + (size_t)g * PACK_ROWS * row;
            if (!qtype_finite(m->type, from, (size_t)rows * (size_t)m->cols))
                atomic_store_explicit(&r->damaged, true, memory_order_relaxed);
            pack_group(m->type, from, row, rows, m->cols, dst + (size_t)g * group);
        }
    }
}

static bool cpu_mat_load(struct kern *k, struct mat *m, const void *src, size_t mat_stride, struct err *err)
{
    struct cpu *c = cpu_self(k);
    m->bytes = cpu_mat_bytes(m->type, m->rows, m->cols, m->n_mat);
    m->data = take(c, m->bytes, err);
    if (m->data == NULL)
        return false;
    struct pack_run r = {.m = m, .src = src, .mat_stride = mat_stride};
    counter_init(&r.counter, (pack_n_groups(m->rows) + PACK_AT_ONCE - 1) / PACK_AT_ONCE * m->n_mat);
    pool_run(c->pool, work_pack, &r);
    return !r.damaged || err_set(err, ERR_MODEL, "a weight or scale is NaN or infinite");
}

static float *cpu_vec_load(struct kern *k, const float *src, size_t n, struct err *err)
{
    float *p = take(cpu_self(k), n * sizeof(float), err);
    if (p != NULL)
        memcpy(p, src, n * sizeof(float));
    return p;
}

/* ---- steps ---- */

static void rope_row(struct cpu *c, void *arg, int i)
{
    (void)arg;
    const struct kern_config *cfg = &c->cfg;
    size_t half = (size_t)cfg->head_dim / 2, at = (size_t)i * (size_t)cfg->n_rope * half;
    for (int set = 0; set < cfg->n_rope; set++, at += half) {
        const struct rope *rope = &cfg->rope[set];
        for (int j = 0; j < rope->n_rot / 2; j++) {
            double sn, cs;
            num_sincos((double)c->step.rows[i].pos * rope->inv_freq[j], &sn, &cs);
            c->cos[at + (size_t)j] = (float)(cs * rope->mscale);
            c->sin[at + (size_t)j] = (float)(sn * rope->mscale);
        }
    }
}

static void cpu_step_begin(struct kern *k, const struct step *s)
{
    struct cpu *c = cpu_self(k);
    c->step = *s;
    run_rows(c, rope_row, NULL, s->n_rows);
}

static void embed_row(struct cpu *c, void *arg, int i)
{
    const struct mat *table = arg;
    int token = c->step.rows[i].token;
    float *x = c->x + (size_t)i * (size_t)c->cfg.dim;
    const char *group = (const char *)table->data + (size_t)(token / PACK_ROWS) * pack_group_bytes(table->type, table->cols);
    pack_dequant_row(table->type, group, token % PACK_ROWS, table->cols, x);
    if (c->cfg.embed_scale != 1.0f)
        c->ops->scale(x, c->cfg.embed_scale, c->cfg.dim);
}

static void cpu_embed(struct kern *k, const struct mat *table)
{
    struct cpu *c = cpu_self(k);
    run_rows(c, embed_row, (void *)table, c->step.n_rows);
}

static void cpu_head(struct kern *k, const struct head_params *p)
{
    struct cpu *c = cpu_self(k);
    const struct kern_config *cfg = &c->cfg;
    int n = c->step.n_rows;    /* all of them want logits: see keep_wanted_rows */
    for (int i = 0; i < n; i++) {
        float *x = c->x + (size_t)i * (size_t)cfg->dim;
        c->ops->add_branch(x, c->y + (size_t)i * (size_t)cfg->dim, p->pending_norm, cfg->dim, cfg->norm_eps);
        c->ops->norm(x, p->norm, cfg->dim, cfg->norm_eps, c->xn.f + (size_t)i * c->xn.f_stride);
        quantise_row(c, &c->xn, i, cfg->dim);
    }
    const struct job job = {&p->out, 0, NULL, &c->xn, 0, n, c->logits, c->logits_stride};
    run_jobs(c, &job, 1);
}

static bool cpu_step_end(struct kern *k, struct err *err)
{
    (void)k;
    (void)err;
    return true;
}

static const float *cpu_logits(struct kern *k, int i)
{
    return cpu_self(k)->logits + (size_t)i * cpu_self(k)->logits_stride;
}

static void cpu_describe(const struct kern *k, char *out, size_t size)
{
    const struct cpu *c = (const struct cpu *)k;
    snprintf(out, size, "%s, %d thread%s", c->product->name, pool_size(c->pool), pool_size(c->pool) == 1 ? "" : "s");
}

const struct kern_device kern_cpu = {
    .name = "cpu",
    .step_rows = 256,
    .open = cpu_open,
    .close = cpu_close,
    .mat_bytes = cpu_mat_bytes,
    .page_bytes = kv_page_bytes,
    .work_bytes = cpu_work_bytes,
    .mat_load = cpu_mat_load,
    .vec_load = cpu_vec_load,
    .step_begin = cpu_step_begin,
    .embed = cpu_embed,
    .attn_in = cpu_attn_in,
    .attn = cpu_attn,
    .attn_out = cpu_attn_out,
    .route = cpu_route,
    .ffn_in = cpu_ffn_in,
    .ffn_out = cpu_ffn_out,
    .head = cpu_head,
    .step_end = cpu_step_end,
    .logits = cpu_logits,
    .describe = cpu_describe,
};
