/* The reference device: every phase in plain scalar C, by the letter of the numeric contract (docs/numerics.md). It is the
 * oracle of bytes for all other devices: obvious, single-threaded, never optimised. Weights stay in GGUF's layout; the KV
 * cache holds floats that went through the KV type's rounding. */
#include "base/mem.h"
#include "kernels/kern.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEAD_DIM_MAX = 512 };

struct ref {
    struct kern kern;
    struct kern_config cfg;
    struct step step;
    float *x, *y, *xn;          /* (max_rows, dim): residual, pending branch, normed */
    float *q, *attn;            /* (max_rows, n_head * head_dim) */
    float *kv_row;              /* (2, n_kv_head * head_dim): one row's k and v before they are stored */
    float *h;                   /* (max_rows, max(n_expert_used, 1), n_ff) */
    float *up, *branch;         /* (n_ff), (dim) */
    float *route;               /* (n_expert) */
    int *expert;                /* (max_rows, n_expert_used), by rising id */
    float *expert_w;
    float *logits;              /* (max_logits, n_vocab) */
    float *kv;                  /* [page][layer][k, v][n_kv_head][NUM_TILE][head_dim] */
    float *row_cos, *row_sin;   /* (max_rows, n_rope, head_dim / 2) */
    float *act_d;               /* one quantised activation row: scales, sums of halves, codes; or one weight row */
    int32_t *act_sum;
    int8_t *act_q;
    float *wrow;
    void **owned;               /* all of the above and the weights */
    size_t n_owned;
};

static struct ref *self(struct kern *k)
{
    return (struct ref *)k;
}

/* ---- memory ---- */

static size_t ref_page_bytes(const struct kern_config *c)
{
    return (size_t)c->n_layer * 2 * (size_t)c->n_kv_head * NUM_TILE * (size_t)c->head_dim * sizeof(float);
}

static size_t ref_mat_bytes(enum qtype type, int rows, int cols, int n_mat)
{
    return qtype_row_bytes(type, (size_t)cols) * (size_t)rows * (size_t)n_mat;
}

static int n_ffs(const struct kern_config *c)
{
    return c->n_expert > 0 ? c->n_expert_used : 1;
}

static size_t ref_work_bytes(const struct kern_config *c)
{
    size_t row = 3 * (size_t)c->dim + 2 * (size_t)(c->n_head * c->head_dim) + (size_t)(n_ffs(c) * c->n_ff) +
                 (size_t)(c->n_rope * c->head_dim);
    return ((size_t)c->max_rows * row + (size_t)c->max_logits * (size_t)c->n_vocab) * sizeof(float);
}

static void ref_close(struct kern *k)
{
    if (k == NULL)
        return;
    struct ref *r = self(k);
    for (size_t i = 0; i < r->n_owned; i++)
        free(r->owned[i]);
    free(r->owned);
    mem_unmap(r->kv, ref_page_bytes(&r->cfg) * (size_t)r->cfg.n_pages);
    free(r);
}

static void *own(struct ref *r, size_t n, size_t size)
{
    void **grown = mem_grow(r->owned, r->n_owned + 1, sizeof *grown);
    if (grown != NULL)
        r->owned = grown;
    void *p = grown == NULL ? NULL : mem_alloc(n, size);
    if (p != NULL)
        r->owned[r->n_owned++] = p;
    return p;
}

static struct kern *ref_open(const struct kern_config *c, struct err *err)
{
    size_t n = (size_t)c->max_rows, dim = (size_t)c->dim, heads = (size_t)(c->n_head * c->head_dim);
    size_t angles = n * (size_t)c->n_rope * (size_t)c->head_dim / 2, n_ff = (size_t)c->n_ff;
    size_t widest = dim > heads ? dim : heads;
    widest = widest > n_ff ? widest : n_ff;
    struct ref *r = mem_alloc(1, sizeof *r);
    if (r == NULL)
        goto fail;
    r->kern.dev = &kern_ref;
    r->cfg = *c;
    struct {
        void *where;
        size_t n, size;
    } plan[] = {
        {&r->x, n * dim, 4},
        {&r->y, n * dim, 4},
        {&r->xn, n * dim, 4},
        {&r->q, n * heads, 4},
        {&r->attn, n * heads, 4},
        {&r->kv_row, 2 * (size_t)(c->n_kv_head * c->head_dim), 4},
        {&r->h, n * (size_t)n_ffs(c) * n_ff, 4},
        {&r->up, n_ff, 4},
        {&r->branch, dim, 4},
        {&r->route, (size_t)c->n_expert, 4},
        {&r->expert, n * (size_t)n_ffs(c), sizeof(int)},
        {&r->expert_w, n * (size_t)n_ffs(c), 4},
        {&r->logits, (size_t)c->max_logits * (size_t)c->n_vocab, 4},
        {&r->row_cos, angles, 4},
        {&r->row_sin, angles, 4},
        {&r->act_d, widest / NUM_BLOCK + 1, 4},
        {&r->act_sum, widest / 16 + 2, sizeof(int32_t)},
        {&r->act_q, widest + NUM_BLOCK, 1},
        {&r->wrow, widest, 4},
    };
    for (size_t i = 0; i < sizeof plan / sizeof *plan; i++) {
        void *p = own(r, plan[i].n, plan[i].size);
        if (p == NULL)
            goto fail;
        memcpy(plan[i].where, &p, sizeof p);
    }
    r->kv = mem_map(ref_page_bytes(c) * (size_t)c->n_pages);
    if (r->kv == NULL)
        goto fail;
    return &r->kern;
fail:
    ref_close(r == NULL ? NULL : &r->kern);
    err_set(err, ERR_DEVICE, "reference device: out of memory, required %zu bytes",
            ref_work_bytes(c) + ref_page_bytes(c) * (size_t)c->n_pages);
    return NULL;
}

static bool ref_mat_load(struct kern *k, struct mat *m, const void *src, size_t mat_stride, struct err *err)
{
    size_t one = ref_mat_bytes(m->type, m->rows, m->cols, 1);
    m->bytes = one * (size_t)m->n_mat;
    m->data = own(self(k), m->bytes, 1);
    if (m->data == NULL)
        return err_set(err, ERR_DEVICE, "reference device: no memory for %zu bytes of weights", m->bytes);
    for (int i = 0; i < m->n_mat; i++)
        memcpy((char *)m->data + one * (size_t)i, (const char *)src + mat_stride * (size_t)i, one);
    return qtype_first_damaged(m->type, src, m->rows, m->cols, m->n_mat, mat_stride) < 0 ||
           err_set(err, ERR_MODEL, "a weight or scale is NaN or infinite");
}

static float *ref_vec_load(struct kern *k, const float *src, size_t n, struct err *err)
{
    float *p = own(self(k), n, sizeof(float));
    if (p == NULL)
        err_set(err, ERR_DEVICE, "reference device: no memory for %zu bytes of weights", n * sizeof(float));
    else
        memcpy(p, src, n * sizeof(float));
    return p;
}

/* ---- arithmetic ---- */

static void norm(const float *x, const float *w, int n, float eps, float *out)
{
    float s[NUM_NORM_LANES] = {0};
    for (int i = 0; i < n; i++)
        s[i % NUM_NORM_LANES] = fmaf(x[i], x[i], s[i % NUM_NORM_LANES]);
    float scale = 1.0f / sqrtf(num_tree64(s) / (float)n + eps);
    for (int i = 0; i < n; i++)
        out[i] = x[i] * scale * w[i];
}

static void quantise(struct ref *r, const float *x, int cols)
{
    for (int b = 0; b * NUM_BLOCK < cols; b++) {
        const float *xb = x + b * NUM_BLOCK;
        float amax = 0, inv;
        for (int i = 0; i < NUM_BLOCK; i++)
            amax = fabsf(xb[i]) > amax ? fabsf(xb[i]) : amax;
        r->act_d[b] = num_quant_scale(amax, &inv);
        r->act_sum[2 * b] = r->act_sum[2 * b + 1] = 0;
        for (int i = 0; i < NUM_BLOCK; i++) {
            int8_t q = num_quant(xb[i], inv);
            r->act_q[b * NUM_BLOCK + i] = q;
            r->act_sum[2 * b + i / 16] += q;
        }
    }
}

/* One output of a quantised product with the row that quantise() left in r. */
static float dot_quantised(const struct ref *r, enum qtype type, const void *w, int cols)
{
    int n_mins = qtype_info(type)->n_mins;
    float total = 0, acc = 0;
    for (int b = 0; b * NUM_BLOCK < cols; b++) {
        struct qblock32 wb;
        qtype_unpack32(type, w, (size_t)b, &wb);
        const int32_t *sum = r->act_sum + 2 * b;
        int32_t dot[2] = {0, 0};
        for (int i = 0; i < NUM_BLOCK; i++)
            dot[i / 16] += wb.code[i] * r->act_q[b * NUM_BLOCK + i];
        float da = r->act_d[b];
        acc = fmaf((float)(wb.scale[0] * dot[0] + wb.scale[1] * dot[1]), wb.d * da, acc);
        if (n_mins == 1) {
            acc = fmaf(wb.min[0], da * (float)(sum[0] + sum[1]), acc);
        } else if (n_mins == 2) {
            acc = fmaf(wb.min[0], da * (float)sum[0], acc);
            acc = fmaf(wb.min[1], da * (float)sum[1], acc);
        }
        int done = (b + 1) * NUM_BLOCK;
        if (done % NUM_SEGMENT == 0 || done >= cols) {
            total = done <= NUM_SEGMENT ? acc : total + acc;
            acc = 0;
        }
    }
    return total;
}

static float dot_float(const float *w, const float *x, int cols)
{
    float total = 0, acc = 0;
    for (int i = 0; i < cols; i++) {
        acc = fmaf(w[i], x[i], acc);
        if ((i + 1) % NUM_SEGMENT == 0 || i + 1 == cols) {
            total = i < NUM_SEGMENT ? acc : total + acc;
            acc = 0;
        }
    }
    return total;
}

/* out = matrix i of m times x, plus bias. */
static void product(struct ref *r, const struct mat *m, int i, const float *bias, const float *x, float *out)
{
    size_t row_bytes = qtype_row_bytes(m->type, (size_t)m->cols);
    const char *w = (const char *)m->data + (size_t)i * (size_t)m->rows * row_bytes;
    bool quantised = qtype_info(m->type)->quantised;
    if (quantised)
        quantise(r, x, m->cols);
    for (int row = 0; row < m->rows; row++, w += row_bytes) {
        if (quantised) {
            out[row] = dot_quantised(r, m->type, w, m->cols);
        } else {
            qtype_dequant_row(m->type, w, (size_t)m->cols, r->wrow);
            out[row] = dot_float(r->wrow, x, m->cols);
        }
        if (bias != NULL)
            out[row] = out[row] + bias[(size_t)i * (size_t)m->rows + (size_t)row];
    }
}

/* x += branch, the branch normed first where the model has post-norms. */
static void add_pending(struct ref *r, int row, const float *pending_norm)
{
    int dim = r->cfg.dim;
    float *x = r->x + (size_t)row * (size_t)dim, *y = r->y + (size_t)row * (size_t)dim;
    if (pending_norm != NULL)
        norm(y, pending_norm, dim, r->cfg.norm_eps, y);
    for (int i = 0; i < dim; i++)
        x[i] = x[i] + y[i];
}

/* ---- phases ---- */

static void ref_step_begin(struct kern *k, const struct step *s)
{
    struct ref *r = self(k);
    r->step = *s;
    size_t at = 0;
    for (int i = 0; i < s->n_rows; i++) {
        for (int set = 0; set < r->cfg.n_rope; set++, at += (size_t)r->cfg.head_dim / 2) {
            const struct rope *rope = &r->cfg.rope[set];
            for (int j = 0; j < rope->n_rot / 2; j++) {
                double sn, cs;
                num_sincos((double)s->rows[i].pos * rope->inv_freq[j], &sn, &cs);
                r->row_cos[at + (size_t)j] = (float)(cs * rope->mscale);
                r->row_sin[at + (size_t)j] = (float)(sn * rope->mscale);
            }
        }
    }
}

static void ref_embed(struct kern *k, const struct mat *table)
{
    struct ref *r = self(k);
    size_t row_bytes = qtype_row_bytes(table->type, (size_t)table->cols);
    for (int i = 0; i < r->step.n_rows; i++) {
        float *x = r->x + (size_t)i * (size_t)r->cfg.dim;
        const char *w = (const char *)table->data + (size_t)r->step.rows[i].token * row_bytes;
        qtype_dequant_row(table->type, w, (size_t)table->cols, x);
        for (int j = 0; r->cfg.embed_scale != 1.0f && j < r->cfg.dim; j++)
            x[j] = x[j] * r->cfg.embed_scale;
    }
}

static void rotate(const struct ref *r, int row, int set, float *head)
{
    const struct rope *rope = &r->cfg.rope[set];
    size_t at = ((size_t)row * (size_t)r->cfg.n_rope + (size_t)set) * (size_t)r->cfg.head_dim / 2;
    int half = rope->n_rot / 2;
    for (int j = 0; j < half; j++) {
        float *a = rope->neox ? head + j : head + 2 * j, *b = rope->neox ? head + half + j : head + 2 * j + 1;
        num_rotate(a, b, r->row_cos[at + (size_t)j], r->row_sin[at + (size_t)j]);
    }
}

/* Keys (which = 0) or values (1) of a position's head: head_dim floats. */
static float *kv_at(const struct ref *r, int layer, int which, int seq, int pos, int head)
{
    const struct kern_config *c = &r->cfg;
    size_t page = (size_t)r->step.page_table[(size_t)seq * (size_t)r->step.page_stride + (size_t)(pos / NUM_TILE)];
    size_t block = ((page * (size_t)c->n_layer + (size_t)layer) * 2 + (size_t)which) * (size_t)c->n_kv_head + (size_t)head;
    return r->kv + (block * NUM_TILE + (size_t)(pos % NUM_TILE)) * (size_t)c->head_dim;
}

/* What a head's values are after a trip through the KV cache. Q8_0: blocks of 32, scale amax/127 rounded to half. */
static void kv_store(enum kv_type type, const float *src, float *dst, int n)
{
    if (type == KV_F32) {
        memcpy(dst, src, (size_t)n * sizeof(float));
    } else if (type == KV_F16) {
        for (int i = 0; i < n; i++)
            dst[i] = num_f16_to_f32(num_f32_to_f16(src[i]));
    } else {
        for (int b = 0; b < n; b += NUM_BLOCK) {
            int len = n - b < NUM_BLOCK ? n - b : NUM_BLOCK;
            float amax = 0, inv;
            for (int i = 0; i < len; i++)
                amax = fabsf(src[b + i]) > amax ? fabsf(src[b + i]) : amax;
            float d = num_f16_to_f32(num_f32_to_f16(num_quant_scale(amax, &inv)));
            for (int i = 0; i < len; i++)
                dst[b + i] = d * (float)num_quant(src[b + i], inv);
        }
    }
}

static void ref_attn_in(struct kern *k, const struct layer *l)
{
    struct ref *r = self(k);
    const struct kern_config *c = &r->cfg;
    const struct attn_in_params *p = &l->attn_in;
    int hd = c->head_dim, q_dim = c->n_head * hd;
    float *key = r->kv_row, *value = r->kv_row + c->n_kv_head * hd;
    for (int i = 0; i < r->step.n_rows; i++) {
        const struct row *row = &r->step.rows[i];
        float *xn = r->xn + (size_t)i * (size_t)c->dim, *q = r->q + (size_t)i * (size_t)q_dim;
        if (p->has_pending)
            add_pending(r, i, p->pending_norm);
        norm(r->x + (size_t)i * (size_t)c->dim, p->norm, c->dim, c->norm_eps, xn);
        product(r, &p->q, 0, p->q_bias, xn, q);
        product(r, &p->k, 0, p->k_bias, xn, key);
        product(r, &p->v, 0, p->v_bias, xn, value);
        for (int h = 0; h < c->n_head; h++) {
            if (p->q_norm != NULL)
                norm(q + h * hd, p->q_norm, hd, c->norm_eps, q + h * hd);
            rotate(r, i, p->rope, q + h * hd);
        }
        for (int j = 0; j < q_dim; j++)
            q[j] = q[j] * c->attn_scale;
        for (int h = 0; h < c->n_kv_head; h++) {
            if (p->k_norm != NULL)
                norm(key + h * hd, p->k_norm, hd, c->norm_eps, key + h * hd);
            rotate(r, i, p->rope, key + h * hd);
            kv_store(c->kv_type, key + h * hd, kv_at(r, l->index, 0, row->seq, row->pos, h), hd);
            kv_store(c->kv_type, value + h * hd, kv_at(r, l->index, 1, row->seq, row->pos, h), hd);
        }
    }
}

/* Attention over a run of keys: its maximum, sum of exponentials and weighted values. */
struct part {
    bool empty;
    float m, l;
    float o[HEAD_DIM_MAX];
};

static void merge(struct part *a, const struct part *b, int n)
{
    float fa, fb;
    if (b->empty)
        return;
    if (a->empty) {
        *a = *b;
        return;
    }
    a->m = num_merge(a->m, b->m, &fa, &fb);
    a->l = fmaf(b->l, fb, a->l * fa);
    for (int d = 0; d < n; d++)
        a->o[d] = fmaf(b->o[d], fb, a->o[d] * fa);
}

/* Keys lo..hi, all of one tile. */
static void attend_tile(const struct ref *r, int layer, int seq, int head, const float *q, int lo, int hi, struct part *t)
{
    int hd = r->cfg.head_dim;
    float p[NUM_TILE] = {0};
    *t = (struct part){.empty = false, .m = -INFINITY};
    for (int j = lo; j <= hi; j++) {
        const float *key = kv_at(r, layer, 0, seq, j, head);
        float s = 0;
        for (int d = 0; d < hd; d++)
            s = fmaf(q[d], key[d], s);
        p[j % NUM_TILE] = s;
        t->m = s > t->m ? s : t->m;
    }
    for (int j = lo; j <= hi; j++) {
        const float *value = kv_at(r, layer, 1, seq, j, head);
        float w = p[j % NUM_TILE] = num_exp(p[j % NUM_TILE] - t->m);
        for (int d = 0; d < hd; d++)
            t->o[d] = fmaf(w, value[d], t->o[d]);
    }
    t->l = num_tree64(p);
}

/* One head of one row: tiles in order within a split, splits in order, then the sink. */
static void attend(const struct ref *r, const struct layer *l, const struct row *row, int head, const float *q, float *out)
{
    int hd = r->cfg.head_dim, kv_head = head / (r->cfg.n_head / r->cfg.n_kv_head);
    int pos = row->pos, first = l->attn.window > 0 && pos >= l->attn.window ? pos - l->attn.window + 1 : 0;
    struct part all = {.empty = true}, tile;
    for (int s = first / NUM_SPLIT * NUM_SPLIT; s <= pos; s += NUM_SPLIT) {
        struct part split = {.empty = true};
        for (int t = s; t <= pos && t < s + NUM_SPLIT; t += NUM_TILE) {
            int lo = t > first ? t : first, hi = t + NUM_TILE - 1 < pos ? t + NUM_TILE - 1 : pos;
            if (lo > hi)
                continue;
            attend_tile(r, l->index, row->seq, kv_head, q, lo, hi, &tile);
            merge(&split, &tile, hd);
        }
        merge(&all, &split, hd);
    }
    if (l->attn.sinks != NULL) {
        float fa, fb;
        num_merge(all.m, l->attn.sinks[head], &fa, &fb);
        all.l = fmaf(all.l, fa, fb);
        for (int d = 0; d < hd; d++)
            all.o[d] = all.o[d] * fa;
    }
    float inv = 1.0f / all.l;
    for (int d = 0; d < hd; d++)
        out[d] = all.o[d] * inv;
}

static void ref_attn(struct kern *k, const struct layer *l)
{
    struct ref *r = self(k);
    assert(r->cfg.head_dim <= HEAD_DIM_MAX);
    for (int i = 0; i < r->step.n_rows; i++) {
        for (int h = 0; h < r->cfg.n_head; h++) {
            size_t at = ((size_t)i * (size_t)r->cfg.n_head + (size_t)h) * (size_t)r->cfg.head_dim;
            attend(r, l, &r->step.rows[i], h, r->q + at, r->attn + at);
        }
    }
}

static void ref_attn_out(struct kern *k, const struct layer *l)
{
    struct ref *r = self(k);
    size_t in = (size_t)(r->cfg.n_head * r->cfg.head_dim);
    for (int i = 0; i < r->step.n_rows; i++)
        product(r, &l->attn_out.o, 0, l->attn_out.o_bias, r->attn + (size_t)i * in,
                r->y + (size_t)i * (size_t)r->cfg.dim);
}

static void ffn_norm(struct ref *r, const struct ffn_params *p)
{
    for (int i = 0; i < r->step.n_rows; i++) {
        size_t at = (size_t)i * (size_t)r->cfg.dim;
        add_pending(r, i, p->pending_norm);
        norm(r->x + at, p->norm, r->cfg.dim, r->cfg.norm_eps, r->xn + at);
    }
}

/* The n_expert_used best by logit, then lower id; softmax over them in rank order; kept by rising id. */
static void choose(const struct ref *r, const float *logit, int *expert, float *weight)
{
    int used = r->cfg.n_expert_used;
    float sum = 0;
    for (int rank = 0; rank < used; rank++) {
        int best = -1;
        for (int e = 0; e < r->cfg.n_expert; e++) {
            bool taken = false;
            for (int j = 0; j < rank; j++)
                taken = taken || expert[j] == e;
            if (!taken && (best < 0 || logit[e] > logit[best]))
                best = e;
        }
        expert[rank] = best;
        weight[rank] = num_exp(logit[best] - logit[expert[0]]);
        sum = sum + weight[rank];
    }
    for (int i = 0; i < used; i++)
        weight[i] = weight[i] / sum;
    for (int i = 1; i < used; i++) {
        for (int j = i; j > 0 && expert[j - 1] > expert[j]; j--) {
            int e = expert[j];
            float w = weight[j];
            expert[j] = expert[j - 1];
            weight[j] = weight[j - 1];
            expert[j - 1] = e;
            weight[j - 1] = w;
        }
    }
}

static void ref_route(struct kern *k, const struct layer *l)
{
    struct ref *r = self(k);
    ffn_norm(r, &l->ffn);
    for (int i = 0; i < r->step.n_rows; i++) {
        size_t at = (size_t)i * (size_t)r->cfg.n_expert_used;
        product(r, &l->route.router, 0, l->route.router_bias, r->xn + (size_t)i * (size_t)r->cfg.dim, r->route);
        choose(r, r->route, r->expert + at, r->expert_w + at);
    }
}

static float activate(enum ffn_act act, float gate, float up)
{
    switch (act) {
    case ACT_GELU:
        return num_gelu(gate) * up;
    case ACT_SWIGLU_CLAMPED:
        return num_swiglu_clamped(gate, up);
    default:
        return num_silu(gate) * up;
    }
}

static void ref_ffn_in(struct kern *k, const struct layer *l)
{
    struct ref *r = self(k);
    const struct ffn_params *p = &l->ffn;
    bool moe = l->route.router.data != NULL;
    if (!moe)
        ffn_norm(r, p);
    for (int i = 0; i < r->step.n_rows; i++) {
        const float *xn = r->xn + (size_t)i * (size_t)r->cfg.dim;
        for (int e = 0; e < n_ffs(&r->cfg); e++) {
            size_t slot = (size_t)i * (size_t)n_ffs(&r->cfg) + (size_t)e;
            float *h = r->h + slot * (size_t)r->cfg.n_ff;
            int which = moe ? r->expert[slot] : 0;
            product(r, &p->gate, which, p->gate_bias, xn, h);
            product(r, &p->up, which, p->up_bias, xn, r->up);
            for (int j = 0; j < p->gate.rows; j++)
                h[j] = activate(r->cfg.act, h[j], r->up[j]);
        }
    }
}

static void ref_ffn_out(struct kern *k, const struct layer *l)
{
    struct ref *r = self(k);
    const struct ffn_params *p = &l->ffn;
    bool moe = l->route.router.data != NULL;
    for (int i = 0; i < r->step.n_rows; i++) {
        float *y = r->y + (size_t)i * (size_t)r->cfg.dim;
        if (!moe) {
            product(r, &p->down, 0, p->down_bias, r->h + (size_t)i * (size_t)r->cfg.n_ff, y);
            continue;
        }
        memset(y, 0, (size_t)r->cfg.dim * sizeof(float));
        for (int e = 0; e < r->cfg.n_expert_used; e++) {
            size_t slot = (size_t)i * (size_t)r->cfg.n_expert_used + (size_t)e;
            product(r, &p->down, r->expert[slot], p->down_bias, r->h + slot * (size_t)r->cfg.n_ff, r->branch);
            for (int j = 0; j < r->cfg.dim; j++)
                y[j] = fmaf(r->expert_w[slot], r->branch[j], y[j]);
        }
    }
}

static void ref_head(struct kern *k, const struct head_params *p)
{
    struct ref *r = self(k);
    size_t n = 0;
    for (int i = 0; i < r->step.n_rows; i++) {
        if (!r->step.rows[i].want_logits)
            continue;
        size_t at = (size_t)i * (size_t)r->cfg.dim;
        add_pending(r, i, p->pending_norm);
        norm(r->x + at, p->norm, r->cfg.dim, r->cfg.norm_eps, r->xn + at);
        product(r, &p->out, 0, NULL, r->xn + at, r->logits + n++ * (size_t)r->cfg.n_vocab);
    }
}

static bool ref_step_end(struct kern *k, struct err *err)
{
    (void)k;
    (void)err;
    return true;
}

static const float *ref_logits(struct kern *k, int i)
{
    return self(k)->logits + (size_t)i * (size_t)self(k)->cfg.n_vocab;
}

static void ref_describe(const struct kern *k, char *out, size_t size)
{
    (void)k;
    snprintf(out, size, "scalar reference, 1 thread");
}

const struct kern_device kern_ref = {
    .name = "ref",
    .step_rows = 256,
    .open = ref_open,
    .close = ref_close,
    .mat_bytes = ref_mat_bytes,
    .page_bytes = ref_page_bytes,
    .work_bytes = ref_work_bytes,
    .mat_load = ref_mat_load,
    .vec_load = ref_vec_load,
    .step_begin = ref_step_begin,
    .embed = ref_embed,
    .attn_in = ref_attn_in,
    .attn = ref_attn,
    .attn_out = ref_attn_out,
    .route = ref_route,
    .ffn_in = ref_ffn_in,
    .ffn_out = ref_ffn_out,
    .head = ref_head,
    .step_end = ref_step_end,
    .logits = ref_logits,
    .describe = ref_describe,
};
