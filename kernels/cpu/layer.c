/* The products of a layer and what is fused around them. With few rows, norms and quantisation run on the calling thread
 * before the one run that multiplies (a barrier costs more than 600 floats); with many, rows are spread over the pool. */
#include "kernels/cpu/cpu.h"

enum {
    CHUNK_BYTES = 24 << 10,     /* weights a thread takes at once: small enough to balance two noisy CPUs */
    CHUNK_GROUPS = 4,           /* in multiples of the widest product tile, which is one block of h too */
    BLOCK_BYTES = 192 << 10,    /* rows that many weights pass over while they stay in L2 ... */
    BLOCK_ROWS = 64,            /* ... but enough rows for each weight that is read */
    LEAST_ROWS = 16,            /* of a block, where chunks alone are too few tasks for the pool */
    TASKS_PER_THREAD = 4,
    PRODUCT_ROWS = 4,           /* rows of a product's tile */
    SERIAL_ROWS = 2,            /* up to here row work is done by the caller */
};
_Static_assert(CHUNK_GROUPS * PACK_ROWS % NUM_BLOCK == 0, "a chunk is whole blocks of h");

static bool is_quantised(const struct mat *m)
{
    return qtype_info(m->type)->quantised;
}

/* ---- running ---- */

struct row_run {
    struct cpu *c;
    void (*fn)(struct cpu *c, void *arg, int i);
    void *arg;
    struct counter counter;
};

static void work_rows(void *arg)
{
    struct row_run *r = arg;
    for (int i; (i = counter_take(&r->counter)) >= 0;)
        r->fn(r->c, r->arg, i);
}

void run_rows(struct cpu *c, void (*fn)(struct cpu *c, void *arg, int i), void *arg, int n)
{
    struct row_run r = {.c = c, .fn = fn, .arg = arg};
    counter_init(&r.counter, n);
    if (n <= SERIAL_ROWS)
        work_rows(&r);
    else
        pool_run(c->pool, work_rows, &r);
}

/* How a job is cut into tasks: chunks of groups, and for many rows blocks of rows. */
struct grid {
    int chunk, n_chunks;        /* groups */
    int block, n_blocks;        /* rows */
};

static int divide_up(int a, int b)
{
    return (a + b - 1) / b;
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static struct grid cut(const struct cpu *c, const struct job *j)
{
    const struct mat *m = j->m;
    struct grid g;
    int fit = (int)(CHUNK_BYTES / pack_group_bytes(m->type, m->cols));
    int rows_fit = max_int((int)(BLOCK_BYTES / act_row_bytes(m->cols)), BLOCK_ROWS);
    g.chunk = max_int(fit / CHUNK_GROUPS * CHUNK_GROUPS, CHUNK_GROUPS);
    g.n_chunks = divide_up(pack_n_groups(m->rows), g.chunk);
    int wanted = divide_up(TASKS_PER_THREAD * pool_size(c->pool), g.n_chunks), most = divide_up(j->n_rows, LEAST_ROWS);
    g.n_blocks = max_int(divide_up(j->n_rows, rows_fit), wanted < most ? wanted : most);
    g.block = divide_up(divide_up(j->n_rows, g.n_blocks), PRODUCT_ROWS) * PRODUCT_ROWS;
    g.n_blocks = divide_up(j->n_rows, g.block);
    return g;
}

/* Task i of a job: a part of its rows. Chunks follow each other within a block of rows. */
static struct job part_of(const struct job *j, const struct grid *g, int i, int *g0, int *n)
{
    struct job part = *j;
    int row = i / g->n_chunks * g->block, groups = pack_n_groups(j->m->rows);
    part.row0 += row;
    part.n_rows = j->n_rows - row < g->block ? j->n_rows - row : g->block;
    *g0 = i % g->n_chunks * g->chunk;
    *n = groups - *g0 < g->chunk ? groups - *g0 : g->chunk;
    return part;
}

void job_groups(struct cpu *c, const struct job *j, int g0, int n)
{
    const struct mat *m = j->m;
    size_t group = pack_group_bytes(m->type, m->cols);
    const char *w = (const char *)m->data + ((size_t)j->which * (size_t)pack_n_groups(m->rows) + (size_t)g0) * group;
    bool quantised = is_quantised(m);
    const void *acts = quantised ? (const void *)(j->in->q + (size_t)j->row0 * j->in->q_stride)
                                 : (const void *)(j->in->f + (size_t)j->row0 * j->in->f_stride);
    size_t stride = quantised ? j->in->q_stride * sizeof(struct act_block) : j->in->f_stride * sizeof(float);
    float *out = j->out + (size_t)j->row0 * j->out_stride + (size_t)g0 * PACK_ROWS;
    c->product->product[m->type](w, n, m->cols, acts, stride, j->n_rows, out, j->out_stride);
    int cols = (g0 + n) * PACK_ROWS <= m->rows ? n * PACK_ROWS : m->rows - g0 * PACK_ROWS;
    for (int r = 0; j->bias != NULL && r < j->n_rows; r++)
        c->ops->add(out + (size_t)r * j->out_stride, j->bias + (size_t)g0 * PACK_ROWS, cols);
}

struct product_run {
    struct cpu *c;
    const struct job *jobs;
    struct grid grid[MAX_JOBS];
    int n_jobs;
    struct shares shares;
};

static void work_products(void *arg)
{
    struct product_run *r = arg;
    for (int i, own = shares_join(&r->shares); (i = shares_take(&r->shares, own)) >= 0;) {
        int j = 0, g0, n;
        for (; i >= r->grid[j].n_chunks * r->grid[j].n_blocks; j++)
            i -= r->grid[j].n_chunks * r->grid[j].n_blocks;
        struct job part = part_of(&r->jobs[j], &r->grid[j], i, &g0, &n);
        job_groups(r->c, &part, g0, n);
    }
}

void run_jobs(struct cpu *c, const struct job *jobs, int n_jobs)
{
    if (c->step.n_rows == 0)
        return;
    struct product_run r = {.c = c, .jobs = jobs, .n_jobs = n_jobs};
    int n = 0;
    for (int j = 0; j < n_jobs; j++) {
        r.grid[j] = cut(c, &jobs[j]);
        n += r.grid[j].n_chunks * r.grid[j].n_blocks;
    }
    shares_init(&r.shares, pool_size(c->pool), n);
    pool_run(c->pool, work_products, &r);
}

void quantise_row(struct cpu *c, const struct input *in, int i, int cols)
{
    c->product->quantise(in->f + (size_t)i * in->f_stride, cols, in->q + (size_t)i * in->q_stride);
}

/* ---- attention side ---- */

struct norm_args {
    bool has_pending, quantise;
    const float *pending_norm, *norm;
};

/* x += pending; xn = norm(x), and its codes. */
static void norm_row(struct cpu *c, void *arg, int i)
{
    const struct norm_args *a = arg;
    const struct kern_config *cfg = &c->cfg;
    float *x = c->x + (size_t)i * (size_t)cfg->dim;
    if (a->has_pending)
        c->ops->add_branch(x, c->y + (size_t)i * (size_t)cfg->dim, a->pending_norm, cfg->dim, cfg->norm_eps);
    c->ops->norm(x, a->norm, cfg->dim, cfg->norm_eps, c->xn.f + (size_t)i * c->xn.f_stride);
    if (a->quantise)
        quantise_row(c, &c->xn, i, cfg->dim);
}

/* Norms, rope and scale of one row's q and k; k and v into the cache. */
static void finish_row(struct cpu *c, void *arg, int i)
{
    const struct layer *l = arg;
    const struct attn_in_params *p = &l->attn_in;
    const struct kern_config *cfg = &c->cfg;
    const struct rope *rope = &cfg->rope[p->rope];
    int hd = cfg->head_dim, q_dim = cfg->n_head * hd, kv_dim = cfg->n_kv_head * hd;
    size_t at = ((size_t)i * (size_t)cfg->n_rope + (size_t)p->rope) * (size_t)hd / 2;
    float *q = c->q + (size_t)i * (size_t)q_dim, *k = c->k + (size_t)i * (size_t)kv_dim;
    for (int h = 0; h < cfg->n_head + cfg->n_kv_head; h++) {
        bool is_q = h < cfg->n_head;
        float *head = is_q ? q + h * hd : k + (h - cfg->n_head) * hd;
        const float *norm = is_q ? p->q_norm : p->k_norm;
        if (norm != NULL)
            c->ops->norm(head, norm, hd, cfg->norm_eps, head);
        c->ops->rotate(head, c->cos + at, c->sin + at, rope->n_rot / 2, rope->neox);
    }
    c->ops->scale(q, cfg->attn_scale, q_dim);
    kv_store_row(c, l->index, &c->step.rows[i], k, c->v + (size_t)i * (size_t)kv_dim);
}

void cpu_attn_in(struct kern *k, const struct layer *l)
{
    struct cpu *c = cpu_self(k);
    const struct attn_in_params *p = &l->attn_in;
    int n = c->step.n_rows, q_dim = c->cfg.n_head * c->cfg.head_dim, kv_dim = c->cfg.n_kv_head * c->cfg.head_dim;
    struct norm_args norm = {p->has_pending, is_quantised(&p->q) || is_quantised(&p->k) || is_quantised(&p->v),
                             p->pending_norm, p->norm};
    run_rows(c, norm_row, &norm, n);
    const struct job jobs[] = {
        {&p->q, 0, p->q_bias, &c->xn, 0, n, c->q, (size_t)q_dim},
        {&p->k, 0, p->k_bias, &c->xn, 0, n, c->k, (size_t)kv_dim},
        {&p->v, 0, p->v_bias, &c->xn, 0, n, c->v, (size_t)kv_dim},
    };
    run_jobs(c, jobs, 3);
    struct layer *arg = (struct layer *)l;    /* read only */
    run_rows(c, finish_row, arg, n);
}

static void quantise_attn(struct cpu *c, void *arg, int i)
{
    (void)arg;
    quantise_row(c, &c->attn, i, c->cfg.n_head * c->cfg.head_dim);
}

void cpu_attn_out(struct kern *k, const struct layer *l)
{
    struct cpu *c = cpu_self(k);
    if (is_quantised(&l->attn_out.o))
        run_rows(c, quantise_attn, NULL, c->step.n_rows);
    const struct job job = {&l->attn_out.o, 0, l->attn_out.o_bias, &c->attn, 0, c->step.n_rows, c->y, (size_t)c->cfg.dim};
    run_jobs(c, &job, 1);
}

/* ---- feed-forward ---- */

struct ffn_run {
    struct cpu *c;
    const struct ffn_job *jobs;
    struct grid grid[MAX_JOBS];
    struct shares shares;
};

/* A chunk is whole blocks of h, so that the thread that made them quantises them. */
static void ffn_chunk(struct cpu *c, const struct ffn_job *j, const struct grid *g, int task)
{
    int g0, n;
    struct job gate = part_of(&j->gate, g, task, &g0, &n), up = part_of(&j->up, g, task, &g0, &n);
    job_groups(c, &gate, g0, n);
    job_groups(c, &up, g0, n);
    int col = g0 * PACK_ROWS, cols = n * PACK_ROWS;
    for (int r = gate.row0; r < gate.row0 + gate.n_rows; r++) {
        float *h = j->h->f + (size_t)r * j->h->f_stride + col;
        c->ops->activate(c->cfg.act, h, up.out + (size_t)r * up.out_stride + col, cols);
        if (j->quantise)
            c->product->quantise(h, cols, j->h->q + (size_t)r * j->h->q_stride + col / NUM_BLOCK);
    }
}

static void work_ffn(void *arg)
{
    struct ffn_run *r = arg;
    for (int i, own = shares_join(&r->shares); (i = shares_take(&r->shares, own)) >= 0;) {
        int j = 0;
        for (; i >= r->grid[j].n_chunks * r->grid[j].n_blocks; j++)
            i -= r->grid[j].n_chunks * r->grid[j].n_blocks;
        ffn_chunk(r->c, &r->jobs[j], &r->grid[j], i);
    }
}

void run_ffn_jobs(struct cpu *c, const struct ffn_job *jobs, int n_jobs)
{
    if (c->step.n_rows == 0)
        return;
    struct ffn_run r = {.c = c, .jobs = jobs};
    int n = 0;
    for (int j = 0; j < n_jobs; j++) {
        r.grid[j] = cut(c, &jobs[j].gate);
        n += r.grid[j].n_chunks * r.grid[j].n_blocks;
    }
    shares_init(&r.shares, pool_size(c->pool), n);
    pool_run(c->pool, work_ffn, &r);
}

static void ffn_norm(struct cpu *c, const struct ffn_params *p, bool quantise)
{
    struct norm_args norm = {true, quantise, p->pending_norm, p->norm};
    run_rows(c, norm_row, &norm, c->step.n_rows);
}

/* The router's product wants float or quantised rows as its type says; the experts quantised ones as theirs. */
void cpu_route(struct kern *k, const struct layer *l)
{
    struct cpu *c = cpu_self(k);
    ffn_norm(c, &l->ffn, is_quantised(&l->route.router) || is_quantised(&l->ffn.gate) || is_quantised(&l->ffn.up));
    int stride = pack_n_groups(c->cfg.n_expert) * PACK_ROWS;
    const struct job job = {&l->route.router, 0, l->route.router_bias, &c->xn, 0, c->step.n_rows, c->route.logits, (size_t)stride};
    run_jobs(c, &job, 1);
}

void cpu_ffn_in(struct kern *k, const struct layer *l)
{
    struct cpu *c = cpu_self(k);
    const struct ffn_params *p = &l->ffn;
    if (l->route.router.data != NULL) {
        experts_in(c, l);
        return;
    }
    int n = c->step.n_rows;
    ffn_norm(c, p, is_quantised(&p->gate) || is_quantised(&p->up));
    const struct ffn_job job = {
        .gate = {&p->gate, 0, p->gate_bias, &c->xn, 0, n, c->h.f, c->h.f_stride},
        .up = {&p->up, 0, p->up_bias, &c->xn, 0, n, c->up, c->h.f_stride},
        .h = &c->h,
        .quantise = is_quantised(&p->down),
    };
    run_ffn_jobs(c, &job, 1);
}

void cpu_ffn_out(struct kern *k, const struct layer *l)
{
    struct cpu *c = cpu_self(k);
    if (l->route.router.data != NULL) {
        experts_out(c, l);
        return;
    }
    const struct job job = {&l->ffn.down, 0, l->ffn.down_bias, &c->h, 0, c->step.n_rows, c->y, (size_t)c->cfg.dim};
    run_jobs(c, &job, 1);
}
