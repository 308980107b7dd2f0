#include "engine/adapter.h"
#include "base/mem.h"
#include "engine/sampler.h"

#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_MAX_LOGITS = 16, CARD_RESERVE = 512 << 20 };

struct adapter {
    const struct model *model;
    struct kern *kern;
    struct kern_config cfg;
    struct adapter_plan plan;
    struct rope rope[ROPE_MAX];
    struct layer *layers;
    struct mat embed;
    struct head_params head;
    int max_seqs, page_stride;
    int32_t *page_table;        /* (max_seqs, page_stride) */
    const float **logits;       /* (max_logits) */
    int32_t *tokens;            /* (max_logits) */
    bool on_gpu;
};

static bool not_loaded(struct err *err)
{
    return err_set(err, ERR_NOT_READY, "MODEL_NOT_LOADED: no model is loaded");
}

/* ---- plan ---- */

struct counter {
    const struct kern_device *dev;
    size_t bytes;
};

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static void count_mat(struct counter *c, const struct weight *w)
{
    if (w->tensor != NULL)
        c->bytes += align64(c->dev->mat_bytes(w->tensor->type, w->rows, w->cols, w->n_mat));
}

static void count_tensor(struct counter *c, const struct gguf_tensor *t)
{
    if (t != NULL)
        c->bytes += align64((size_t)(t->ne[0] * t->ne[1] * t->ne[2]) * sizeof(float));
}

static struct weight whole(const struct gguf_tensor *t)
{
    return (struct weight){t, 0, t == NULL ? 0 : (int)t->ne[1], t == NULL ? 0 : (int)t->ne[0], 1};
}

static size_t weight_bytes(const struct model *m, const struct kern_device *dev)
{
    struct counter c = {.dev = dev};
    struct weight embed = whole(m->token_embd), out = whole(m->output);
    count_mat(&c, &embed);
    if (m->output != m->token_embd)
        count_mat(&c, &out);
    count_tensor(&c, m->output_norm);
    for (int i = 0; i < m->n_layer; i++) {
        const struct model_layer *l = &m->layer[i];
        struct weight router = whole(l->router);
        const struct weight *mats[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down, &router};
        const struct weight *slices[] = {&l->q_bias, &l->k_bias, &l->v_bias, &l->o_bias, &l->gate_bias, &l->up_bias, &l->down_bias};
        const struct gguf_tensor *vecs[] = {l->attn_norm, l->q_norm, l->k_norm, l->post_attn_norm, l->ffn_norm, l->post_ffn_norm,
                                            l->sinks, l->router_bias};
        for (size_t j = 0; j < sizeof mats / sizeof *mats; j++)
            count_mat(&c, mats[j]);
        for (size_t j = 0; j < sizeof slices / sizeof *slices; j++)
            if (slices[j]->tensor != NULL)
                c.bytes += align64((size_t)slices[j]->rows * (size_t)slices[j]->n_mat * sizeof(float));
        for (size_t j = 0; j < sizeof vecs / sizeof *vecs; j++)
            count_tensor(&c, vecs[j]);
    }
    return c.bytes;
}

static int pages_for(int n_ctx)
{
    return (n_ctx + NUM_TILE - 1) / NUM_TILE;
}

static void config_from(const struct model *m, const struct adapter_options *o, struct kern_config *c)
{
    *c = (struct kern_config){
        .n_layer = m->n_layer,
        .dim = m->dim,
        .n_head = m->n_head,
        .n_kv_head = m->n_kv_head,
        .head_dim = m->head_dim,
        .n_vocab = m->n_vocab,
        .n_ff = m->n_ff,
        .n_expert = m->n_expert,
        .n_expert_used = m->n_expert_used,
        .norm_eps = m->norm_eps,
        .act = m->act,
        .embed_scale = m->embed_scale,
        .attn_scale = m->attn_scale,
        .n_rope = m->n_rope,
        .max_rows = o->max_rows > 0 ? o->max_rows : o->device->step_rows,
        .kv_type = o->kv_type,
        .n_threads = o->n_threads,
        .isa = o->isa,
        .device_index = o->device_index,
    };
    int seqs = o->max_seqs > 0 ? o->max_seqs : 1;
    c->max_logits = o->max_logits > 0 ? o->max_logits : seqs > DEFAULT_MAX_LOGITS ? seqs : DEFAULT_MAX_LOGITS;
    c->weight_bytes = weight_bytes(m, o->device);
}

static bool does_not_fit(const struct adapter_options *o, const struct model *m, size_t required, size_t available,
                         const char *what, struct err *err)
{
    return err_set(err, ERR_DEVICE, "%s%s does not fit on device %s: %s, required %zu bytes, available %zu bytes",
                   o->device->memory != NULL ? "VRAM_OOM: " : "", gguf_path(m->gguf), o->device->name, what, required, available);
}

/* A card belongs to the worker: all that is left but a reserve. The host's memory is shared: a quarter. */
static size_t default_kv_bytes(const struct kern_device *dev, const struct adapter_plan *p, size_t fixed)
{
    if (dev->memory == NULL)
        return p->available / 4;
    size_t taken = fixed + CARD_RESERVE;
    return taken < p->available ? p->available - taken : 0;
}

static bool make_plan(const struct model *m, const struct adapter_options *o, struct kern_config *c, struct adapter_plan *p,
                      struct err *err)
{
    if (o->device == NULL)
        return err_set(err, ERR_DEVICE, "no device");
    size_t available = 0;
    if (o->device->memory == NULL)
        available = mem_available();
    else if (!o->device->memory(o->device_index, &available, err))
        return false;
    config_from(m, o, c);
    *p = (struct adapter_plan){
        .weights = c->weight_bytes,
        .work = o->device->work_bytes(c),
        .available = available,
        .kv_page = o->device->page_bytes(c),
        .n_ctx = o->n_ctx > 0 ? o->n_ctx : m->n_ctx_train,
    };
    size_t fixed = p->weights + p->work;
    if (fixed + p->kv_page > p->available)
        return does_not_fit(o, m, fixed + p->kv_page, p->available, "weights and one KV page", err);
    int seqs = o->max_seqs > 0 ? o->max_seqs : 1;
    size_t budget = o->kv_bytes > 0 ? o->kv_bytes : default_kv_bytes(o->device, p, fixed);
    size_t want = (size_t)pages_for(p->n_ctx) * (size_t)seqs, have = budget / p->kv_page;
    size_t pages = want < have ? want : have;
    if (pages > INT32_MAX)
        pages = INT32_MAX;
    if (pages < (size_t)pages_for(p->n_ctx)) {
        if (o->n_ctx_given || pages == 0)
            return does_not_fit(o, m, (size_t)pages_for(p->n_ctx) * p->kv_page, budget, "KV cache of one context", err);
        p->n_ctx = (int)pages * NUM_TILE;
    }
    p->n_pages = c->n_pages = (int)pages;
    p->kv = pages * p->kv_page;
    p->total = fixed + p->kv;
    if (p->total > p->available)
        return does_not_fit(o, m, p->total, p->available, "weights, KV cache and work space", err);
    return true;
}

bool adapter_plan(const struct model *m, const struct adapter_options *o, struct adapter_plan *plan, struct err *err)
{
    struct kern_config c;
    return m == NULL ? not_loaded(err) : make_plan(m, o, &c, plan, err);
}

/* ---- load ---- */

/* Loads tensors one by one and reports how far it is, in bytes of the file. */
struct loader {
    struct adapter *a;
    const struct adapter_options *o;
    size_t done, all;
    int percent;
    bool naming;                /* nothing is loaded any more: which matrix is damaged? */
    float *scratch;             /* one vector as float */
    size_t scratch_n;
    struct err *err;
};

static void report(struct loader *ld, size_t bytes)
{
    ld->done += bytes;
    int percent = ld->all == 0 ? 100 : (int)(ld->done * 100 / ld->all);
    if (percent > ld->percent && percent <= 100 && ld->o->progress != NULL)
        ld->o->progress(ld->o->progress_arg, percent);
    ld->percent = percent > ld->percent ? percent : ld->percent;
}

static bool load_mat(struct loader *ld, const struct weight *w, struct mat *m)
{
    if (w->tensor == NULL)
        return true;
    size_t row = qtype_row_bytes(w->tensor->type, (size_t)w->cols);
    *m = (struct mat){.type = w->tensor->type, .rows = w->rows, .cols = w->cols, .n_mat = w->n_mat};
    const char *src = (const char *)w->tensor->data + (size_t)w->row0 * row;
    size_t stride = (size_t)w->tensor->ne[1] * row;
    struct kern *k = ld->a->kern;
    if (ld->naming || !k->dev->mat_load(k, m, src, stride, ld->err)) {
        long at = ld->err->code != ERR_MODEL ? -1 : qtype_first_damaged(m->type, src, m->rows, m->cols, m->n_mat, stride);
        if (ld->naming && at < 0)
            return true;
        if (at >= 0)
            err_prefix(ld->err, "row %ld", w->row0 + at);
        return err_prefix(ld->err, "%s: tensor %s", gguf_path(ld->a->model->gguf), w->tensor->name);
    }
    if (w->n_mat == 1)    /* so that weights are in memory twice a matrix at a time */
        gguf_drop_part(ld->a->model->gguf, src, row * (size_t)w->rows);
    report(ld, row * (size_t)w->rows * (size_t)w->n_mat);
    return true;
}

/* Floats [first, first + n) of a tensor taken as one long vector. */
static bool load_floats(struct loader *ld, const struct gguf_tensor *t, size_t first, size_t n, const float **out)
{
    if (ld->naming)
        return true;
    if (n > ld->scratch_n) {
        float *p = mem_grow(ld->scratch, n, sizeof *p);
        if (p == NULL)
            return err_set(ld->err, ERR_DEVICE, "no memory to read tensor %s", t->name);
        ld->scratch = p;
        ld->scratch_n = n;
    }
    const char *src = (const char *)t->data + qtype_row_bytes(t->type, first);
    qtype_dequant_row(t->type, src, n, ld->scratch);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(ld->scratch[i]))
            return err_set(ld->err, ERR_MODEL, "%s: tensor %s: value %zu is %g, expected a finite number",
                           gguf_path(ld->a->model->gguf), t->name, first + i, (double)ld->scratch[i]);
    *out = ld->a->kern->dev->vec_load(ld->a->kern, ld->scratch, n, ld->err);
    if (*out == NULL)
        return err_prefix(ld->err, "tensor %s", t->name);
    report(ld, qtype_row_bytes(t->type, n));
    return true;
}

static bool load_vec(struct loader *ld, const struct gguf_tensor *t, const float **out)
{
    return t == NULL || load_floats(ld, t, 0, (size_t)(t->ne[0] * t->ne[1]), out);
}

static bool load_slice(struct loader *ld, const struct weight *w, const float **out)
{
    return w->tensor == NULL || load_floats(ld, w->tensor, (size_t)w->row0, (size_t)w->rows * (size_t)w->n_mat, out);
}

static bool load_layer(struct loader *ld, int i, const float **pending)
{
    const struct model_layer *m = &ld->a->model->layer[i];
    struct layer *l = &ld->a->layers[i];
    struct weight router = whole(m->router);
    l->index = i;
    l->attn_in.has_pending = i > 0;
    l->attn_in.pending_norm = *pending;
    l->attn_in.rope = m->rope;
    l->attn.window = m->window;
    return load_vec(ld, m->attn_norm, &l->attn_in.norm) && load_mat(ld, &m->q, &l->attn_in.q) &&
           load_mat(ld, &m->k, &l->attn_in.k) && load_mat(ld, &m->v, &l->attn_in.v) &&
           load_slice(ld, &m->q_bias, &l->attn_in.q_bias) && load_slice(ld, &m->k_bias, &l->attn_in.k_bias) &&
           load_slice(ld, &m->v_bias, &l->attn_in.v_bias) && load_vec(ld, m->q_norm, &l->attn_in.q_norm) &&
           load_vec(ld, m->k_norm, &l->attn_in.k_norm) && load_vec(ld, m->sinks, &l->attn.sinks) &&
           load_mat(ld, &m->o, &l->attn_out.o) && load_slice(ld, &m->o_bias, &l->attn_out.o_bias) &&
           load_vec(ld, m->post_attn_norm, &l->ffn.pending_norm) && load_vec(ld, m->ffn_norm, &l->ffn.norm) &&
           load_mat(ld, &router, &l->route.router) && load_vec(ld, m->router_bias, &l->route.router_bias) &&
           load_mat(ld, &m->gate, &l->ffn.gate) && load_mat(ld, &m->up, &l->ffn.up) &&
           load_mat(ld, &m->down, &l->ffn.down) && load_slice(ld, &m->gate_bias, &l->ffn.gate_bias) &&
           load_slice(ld, &m->up_bias, &l->ffn.up_bias) && load_slice(ld, &m->down_bias, &l->ffn.down_bias) &&
           load_vec(ld, m->post_ffn_norm, pending);
}

static bool load_tensors(struct loader *ld)
{
    struct adapter *a = ld->a;
    const struct model *m = a->model;
    struct weight embed = whole(m->token_embd), out = whole(m->output);
    const float *pending = NULL;
    bool ok = load_mat(ld, &embed, &a->embed);
    for (int i = 0; ok && i < m->n_layer; i++)
        ok = load_layer(ld, i, &pending);
    a->head.pending_norm = pending;
    ok = ok && load_vec(ld, m->output_norm, &a->head.norm);
    if (ok && m->output == m->token_embd)
        a->head.out = a->embed;
    else
        ok = ok && load_mat(ld, &out, &a->head.out);
    return ok;
}

/* The device's last word; that some matrix is damaged gets its name by looking at them all again. */
static bool end_load(struct loader *ld)
{
    struct kern *k = ld->a->kern;
    if (k->dev->load_end == NULL || k->dev->load_end(k, ld->err))
        return true;
    ld->naming = ld->err->code == ERR_MODEL;
    if (ld->naming)
        (void)load_tensors(ld);
    return false;
}

static bool load_weights(struct adapter *a, const struct adapter_options *o, struct err *err)
{
    const struct model *m = a->model;
    struct loader ld = {.a = a, .o = o, .percent = -1, .err = err};
    for (size_t i = 0; i < gguf_n_tensors(m->gguf); i++)
        ld.all += gguf_tensor_at(m->gguf, i)->bytes;
    gguf_prefetch(m->gguf);
    report(&ld, 0);
    bool ok = load_tensors(&ld) && end_load(&ld) && adapter_resident(a, err);
    free(ld.scratch);
    if (ok && ld.percent < 100 && o->progress != NULL)
        o->progress(o->progress_arg, 100);
    gguf_drop_data(m->gguf);
    return ok;
}

struct adapter *adapter_open(const struct model *m, const struct adapter_options *o, struct err *err)
{
    if (m == NULL) {
        not_loaded(err);
        return NULL;
    }
    struct adapter *a = mem_alloc(1, sizeof *a);
    if (a == NULL) {
        err_set(err, ERR_DEVICE, "no memory for the adapter");
        return NULL;
    }
    a->model = m;
    if (!make_plan(m, o, &a->cfg, &a->plan, err) || !model_rope(m, a->plan.n_ctx, a->rope, err))
        goto fail;
    memcpy(a->cfg.rope, a->rope, sizeof a->rope);
    a->on_gpu = o->device == kern_cuda();
    a->max_seqs = o->max_seqs > 0 ? o->max_seqs : 1;
    a->page_stride = pages_for(a->plan.n_ctx);
    a->page_table = mem_alloc((size_t)a->max_seqs * (size_t)a->page_stride, sizeof *a->page_table);
    a->layers = mem_alloc((size_t)m->n_layer, sizeof *a->layers);
    a->logits = mem_alloc((size_t)a->cfg.max_logits, sizeof *a->logits);
    a->tokens = mem_alloc((size_t)a->cfg.max_logits, sizeof *a->tokens);
    if (a->page_table == NULL || a->layers == NULL || a->logits == NULL || a->tokens == NULL) {
        err_set(err, ERR_DEVICE, "no memory for the adapter");
        goto fail;
    }
    a->kern = o->device->open(&a->cfg, err);
    if (a->kern == NULL || !load_weights(a, o, err))
        goto fail;
    return a;
fail:
    adapter_close(a);
    return NULL;
}

void adapter_close(struct adapter *a)
{
    if (a == NULL)
        return;
    if (a->kern != NULL)
        a->kern->dev->close(a->kern);
    for (int i = 0; i < ROPE_MAX; i++)
        free(a->rope[i].inv_freq);
    free(a->page_table);
    free(a->layers);
    free(a->logits);
    free(a->tokens);
    free(a);
}

/* ---- facts ---- */

const char *adapter_model_type(const struct adapter *a)
{
    return a == NULL ? "" : a->model->type;
}

int adapter_vocab_size(const struct adapter *a)
{
    return a == NULL ? 0 : a->cfg.n_vocab;
}

int adapter_hidden_dim(const struct adapter *a)
{
    return a == NULL ? 0 : a->cfg.dim;
}

int adapter_num_layers(const struct adapter *a)
{
    return a == NULL ? 0 : a->cfg.n_layer;
}

int adapter_n_ctx(const struct adapter *a)
{
    return a == NULL ? 0 : a->plan.n_ctx;
}

int adapter_n_pages(const struct adapter *a)
{
    return a == NULL ? 0 : a->cfg.n_pages;
}

int adapter_max_rows(const struct adapter *a)
{
    return a == NULL ? 0 : a->cfg.max_rows;
}

int adapter_max_seqs(const struct adapter *a)
{
    return a == NULL ? 0 : a->max_seqs;
}

int adapter_max_logits(const struct adapter *a)
{
    return a == NULL ? 0 : a->cfg.max_logits;
}

size_t adapter_memory_usage(const struct adapter *a)
{
    return a == NULL ? 0 : a->plan.total;
}

size_t adapter_vram_usage(const struct adapter *a)
{
    return a == NULL || !a->on_gpu ? 0 : a->plan.total;
}

const struct adapter_plan *adapter_planned(const struct adapter *a)
{
    return a == NULL ? NULL : &a->plan;
}

void adapter_describe(const struct adapter *a, char *out, size_t size)
{
    if (a == NULL)
        snprintf(out, size, "%s", "");
    else
        a->kern->dev->describe(a->kern, out, size);
}

bool adapter_resident(struct adapter *a, struct err *err)
{
    return a == NULL ? not_loaded(err) : a->kern->dev->resident == NULL || a->kern->dev->resident(a->kern, err);
}

void adapter_facts(const struct adapter *a, struct kern_facts *out)
{
    *out = (struct kern_facts){0};
    if (a != NULL && a->kern->dev->facts != NULL)
        a->kern->dev->facts(a->kern, out);
}

int32_t *adapter_pages(struct adapter *a, int seq)
{
    return a == NULL ? NULL : a->page_table + (size_t)seq * (size_t)a->page_stride;
}

/* ---- step ---- */

static bool check_rows(const struct adapter *a, const struct row *rows, int n_rows, int *n_logits, struct err *err)
{
    if (n_rows < 1 || n_rows > a->cfg.max_rows)
        return err_set(err, ERR_INVALID, "step of %d rows, allowed 1 to %d", n_rows, a->cfg.max_rows);
    *n_logits = 0;
    for (int i = 0; i < n_rows; i++) {
        const struct row *r = &rows[i];
        if (r->seq < 0 || r->seq >= a->max_seqs || r->pos < 0 || r->pos >= a->plan.n_ctx || r->token < 0 ||
            r->token >= a->cfg.n_vocab)
            return err_set(err, ERR_INVALID, "step row %d: sequence %d, position %d, token %d; allowed below %d, %d, %d", i,
                           r->seq, r->pos, r->token, a->max_seqs, a->plan.n_ctx, a->cfg.n_vocab);
        *n_logits += r->want_logits;
    }
    if (*n_logits > a->cfg.max_logits)
        return err_set(err, ERR_INVALID, "step wants logits of %d rows, allowed %d", *n_logits, a->cfg.max_logits);
    return true;
}

/* One layer, phase by phase; false when asked to stop. */
static bool run_layer(struct kern *k, const struct layer *l, const atomic_bool *stop)
{
    void (*const phases[])(struct kern *, const struct layer *) = {
        k->dev->attn_in, k->dev->attn, k->dev->attn_out, l->route.router.data != NULL ? k->dev->route : NULL,
        k->dev->ffn_in,  k->dev->ffn_out,
    };
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        if (stop != NULL && atomic_load_explicit(stop, memory_order_relaxed))
            return false;
        if (phases[i] != NULL)
            phases[i](k, l);
    }
    return true;
}

bool adapter_draws(const struct adapter *a)
{
    return a != NULL && a->kern->dev->token != NULL;
}

bool adapter_step(struct adapter *a, const struct row *rows, int n_rows, struct step_out *out, const atomic_bool *stop,
                  struct err *err)
{
    return adapter_step_draw(a, rows, n_rows, NULL, out, stop, err);
}

bool adapter_step_draw(struct adapter *a, const struct row *rows, int n_rows, const struct draw *draws, struct step_out *out,
                       const atomic_bool *stop, struct err *err)
{
    int n_logits;
    if (a == NULL)
        return not_loaded(err);
    if (!check_rows(a, rows, n_rows, &n_logits, err))
        return false;
    struct kern *k = a->kern;
    struct step step = {rows, n_rows, a->page_table, a->page_stride, adapter_draws(a) ? draws : NULL};
    k->dev->step_begin(k, &step);
    k->dev->embed(k, &a->embed);
    bool stopped = false;
    for (int i = 0; i < a->cfg.n_layer && !stopped; i++)
        stopped = !run_layer(k, &a->layers[i], stop);
    if (!stopped && n_logits > 0)
        k->dev->head(k, &a->head);
    if (!k->dev->step_end(k, err))
        return false;
    if (stopped)
        return err_set(err, ERR_CANCELLED, "step stopped");
    for (int i = 0; i < n_logits; i++) {
        a->tokens[i] = adapter_draws(a) ? k->dev->token(k, i) : -1;
        a->logits[i] = a->tokens[i] == -1 ? k->dev->logits(k, i) : NULL;
    }
    *out = (struct step_out){n_logits, a->logits, a->tokens};
    return true;
}

/* ---- over adapter_step, for tools and tests ---- */

static bool assign_pages(struct adapter *a, int seq, int n_pos, struct err *err)
{
    if (seq < 0 || seq >= a->max_seqs || n_pos > a->plan.n_ctx || (seq + 1) * a->page_stride > a->cfg.n_pages)
        return err_set(err, ERR_INVALID, "sequence %d of %d positions does not fit in %d pages", seq, n_pos, a->cfg.n_pages);
    for (int i = 0; i < a->page_stride; i++)
        adapter_pages(a, seq)[i] = seq * a->page_stride + i;
    return true;
}

bool adapter_prefill(struct adapter *a, int seq, int pos, const int32_t *tokens, int n, const float **last_logits,
                     struct err *err)
{
    if (a == NULL)
        return not_loaded(err);
    if (!assign_pages(a, seq, pos + n, err))
        return false;
    struct row *rows = mem_alloc((size_t)a->cfg.max_rows, sizeof *rows);
    if (rows == NULL)
        return err_set(err, ERR_OOM, "no memory for %d rows", a->cfg.max_rows);
    bool ok = true;
    struct step_out out = {0};
    for (int done = 0; ok && done < n;) {
        int chunk = n - done < a->cfg.max_rows ? n - done : a->cfg.max_rows;
        for (int i = 0; i < chunk; i++)
            rows[i] = (struct row){seq, pos + done + i, tokens[done + i], done + i == n - 1};
        ok = adapter_step(a, rows, chunk, &out, NULL, err);
        done += chunk;
    }
    free(rows);
    if (ok && last_logits != NULL && out.n_logits > 0)
        *last_logits = out.logits[0];
    return ok;
}

bool adapter_decode(struct adapter *a, int seq, int pos, int32_t token, const float **logits, struct err *err)
{
    return adapter_prefill(a, seq, pos, &token, 1, logits, err);
}

int adapter_generate(struct adapter *a, const int32_t *prompt, int n_prompt, const struct sample_params *params,
                     int32_t *out, int n, struct err *err)
{
    if (a == NULL) {
        not_loaded(err);
        return -1;
    }
    static const struct sample_params greedy = {.temperature = 0, .top_p = 1, .repetition_penalty = 1};
    struct sampler *s = sampler_new(a->cfg.n_vocab);
    int32_t *history = mem_alloc((size_t)n_prompt + (size_t)n, sizeof *history);
    const float *logits = NULL;
    int made = -1;
    if (s == NULL || history == NULL) {
        err_set(err, ERR_OOM, "no memory to generate %d tokens", n);
        goto done;
    }
    memcpy(history, prompt, (size_t)n_prompt * sizeof *history);
    bool ok = adapter_prefill(a, 0, 0, prompt, n_prompt, &logits, err);
    for (made = 0; ok && made < n; made++) {
        int at = n_prompt + made;
        struct sample_in in = {
            .logits = logits, .params = params != NULL ? params : &greedy, .history = history, .n_prompt = n_prompt,
            .n_history = at, .position = (uint64_t)at,
        };
        out[made] = history[at] = sampler_draw(s, &in);
        if (history[at] < 0)
            ok = err_set(err, ERR_MODEL, "the model gives no numbers after %d tokens", at);
        else if (made + 1 < n)
            ok = adapter_decode(a, 0, at, history[at], &logits, err);
    }
    if (!ok)
        made = -1;
done:
    sampler_free(s);
    free(history);
    return made;
}
