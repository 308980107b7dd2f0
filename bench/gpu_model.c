#include "bench/gpu_model.h"
#include "base/clock.h"
#include "tests/tiny.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH_PAGES = 3 };

double seconds(void)
{
    return (double)clock_ns() * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

enum qtype bench_type(const char *name)
{
    for (int i = 0; i < QTYPE_N; i++)
        if (strcmp(name, qtype_name((enum qtype)i)) == 0)
            return (enum qtype)i;
    return QTYPE_N;
}

static struct mat make_mat(struct bench *b, enum qtype t, int rows, int cols, uint32_t seed)
{
    struct cuda *k = b->k;
    struct mat m = {.type = t, .rows = rows, .cols = cols, .n_mat = 1, .bytes = cuda_mat_bytes(t, rows, cols, 1)};
    b->weight_bytes += m.bytes;
    if (k == NULL)
        return m; /* counting */
    m.data = k->mat_at;
    k->mat_at += m.bytes;
    gpu_fill(k, &m, seed);
    return m;
}

static const float *ones(struct bench *b, int n, struct err *err)
{
    float *host = calloc((size_t)n, sizeof *host);
    for (int i = 0; host != NULL && i < n; i++)
        host[i] = 1;
    const float *p = host == NULL ? NULL : cuda_vec_load(&b->k->kern, host, (size_t)n, err);
    free(host);
    return p;
}

static void make_weights(struct bench *b, const struct tiny_spec *s, enum qtype t)
{
    int heads = s->n_head * s->head_dim, kv = s->n_kv_head * s->head_dim;
    b->weight_bytes = 0;
    for (int i = 0; i < s->n_layer; i++) {
        struct layer *l = &b->layer[i];
        uint32_t seed = (uint32_t)i * 64;
        l->index = i;
        l->attn_in.has_pending = i > 0;
        l->attn.window = 0;
        l->attn_in.q = make_mat(b, t, heads, s->dim, seed + 1);
        l->attn_in.k = make_mat(b, t, kv, s->dim, seed + 3);
        l->attn_in.v = make_mat(b, t, kv, s->dim, seed + 5);
        l->attn_out.o = make_mat(b, t, s->dim, heads, seed + 7);
        l->ffn.gate = make_mat(b, t, s->n_ff, s->dim, seed + 9);
        l->ffn.up = make_mat(b, t, s->n_ff, s->dim, seed + 11);
        l->ffn.down = make_mat(b, t, s->dim, s->n_ff, seed + 13);
    }
    enum qtype ends = qtype_info(t)->quantised ? QTYPE_Q8_0 : t; /* as files have them */
    b->head.out = make_mat(b, ends, s->n_vocab, s->dim, 7777);
    b->embed = b->head.out;
    b->layer_weights = (double)s->n_layer * s->dim * (2.0 * heads + 2.0 * kv + 3.0 * s->n_ff);
    b->head_weights = (double)s->n_vocab * s->dim;
}

static bool make_norms(struct bench *b, struct err *err)
{
    for (int i = 0; i < b->cfg.n_layer; i++) {
        b->layer[i].attn_in.norm = ones(b, b->cfg.dim, err);
        b->layer[i].ffn.norm = ones(b, b->cfg.dim, err);
        if (b->layer[i].attn_in.norm == NULL || b->layer[i].ffn.norm == NULL)
            return false;
    }
    b->head.norm = ones(b, b->cfg.dim, err);
    return b->head.norm != NULL && cuda_load_end(&b->k->kern, err);
}

bool bench_open(struct bench *b, const char *model, const char *type, int n_ctx, int seqs, struct err *err)
{
    struct tiny_spec s;
    enum qtype t = bench_type(type);
    *b = (struct bench){.model = model, .type = type, .seqs = seqs, .stride = (n_ctx + NUM_TILE - 1) / NUM_TILE};
    if (t == QTYPE_N)
        return err_set(err, ERR_USAGE, "weight type %s: not in kernels/qtypes.def", type);
    if (!tiny_preset(model, type, &s, err))
        return false;
    if (s.n_expert > 0 || s.n_layer > MAX_LAYERS || s.dim % qtype_info(t)->block_weights != 0)
        return err_set(err, ERR_USAGE, "%s %s is not benched: experts, too many layers, or rows that are not whole blocks", model,
                       type);
    for (int i = 0; i < s.head_dim / 2; i++)
        b->inv_freq[i] = num_pow((double)s.rope_base, -2.0 * i / s.head_dim);
    make_weights(b, &s, t);
    b->cfg = (struct kern_config){
        .n_layer = s.n_layer, .dim = s.dim, .n_head = s.n_head, .n_kv_head = s.n_kv_head, .head_dim = s.head_dim,
        .n_vocab = s.n_vocab, .n_ff = s.n_ff, .norm_eps = 1e-5f, .embed_scale = 1,
        .attn_scale = 1.0f / sqrtf((float)s.head_dim), .n_rope = 1, .max_rows = MAX_ROWS, .max_logits = MAX_BATCH,
        .n_pages = b->stride + (seqs - 1) * BATCH_PAGES, .kv_type = KV_F16,
        .rope = {{.inv_freq = b->inv_freq, .mscale = 1, .n_rot = s.head_dim, .neox = true}},
        .weight_bytes = b->weight_bytes + (size_t)(2 * s.n_layer + 1) * ((size_t)s.dim * 4 + 64),
    };
    b->k = (struct cuda *)kern_cuda()->open(&b->cfg, err);
    b->pages = calloc((size_t)(seqs * b->stride), sizeof *b->pages);
    if (b->k == NULL || b->pages == NULL)
        return b->k == NULL ? false : err_set(err, ERR_OOM, "no memory for page tables");
    for (int i = 0; i < b->stride; i++)
        b->pages[i] = i;
    for (int seq = 1; seq < seqs; seq++)
        for (int i = 0; i < BATCH_PAGES && i < b->stride; i++)
            b->pages[seq * b->stride + i] = b->stride + (seq - 1) * BATCH_PAGES + i;
    make_weights(b, &s, t);
    if (!make_norms(b, err))
        return false;
    /* Decoding at a depth reads positions that no step wrote: zeros, not the NaNs that may lie there. */
    (void)cudaMemsetAsync(b->k->kv.data, 0, kern_cuda()->page_bytes(&b->cfg) * (size_t)b->cfg.n_pages, b->k->stream);
    CU_NOTE(b->k, "cache");
    return true;
}

void bench_close(struct bench *b)
{
    if (b->k != NULL)
        kern_cuda()->close(&b->k->kern);
    free(b->pages);
    b->k = NULL;
    b->pages = NULL;
}

bool bench_step(struct bench *b, const struct row *rows, int n, struct err *err)
{
    const struct kern_device *d = kern_cuda();
    struct kern *k = &b->k->kern;
    struct draw draws[MAX_BATCH];  /* greedy, on the card, as in service */
    struct step s = {.rows = rows, .n_rows = n, .page_table = b->pages, .page_stride = b->stride, .draws = draws};
    bool logits = false;
    for (int i = 0; i < MAX_BATCH; i++)
        draws[i] = (struct draw){.here = true, .repetition = 1, .share = DRAW_WHOLE};
    d->step_begin(k, &s);
    d->embed(k, &b->embed);
    for (int i = 0; i < b->cfg.n_layer; i++) {
        d->attn_in(k, &b->layer[i]);
        d->attn(k, &b->layer[i]);
        d->attn_out(k, &b->layer[i]);
        d->ffn_in(k, &b->layer[i]);
        d->ffn_out(k, &b->layer[i]);
    }
    for (int i = 0; i < n; i++)
        logits = logits || rows[i].want_logits;
    if (logits)
        d->head(k, &b->head);
    return d->step_end(k, err);
}
