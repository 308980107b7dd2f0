#include "tests/meaning.h"

#include "tests/decode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_EXPERTS = 64 };

struct decoded {
    const char *name;
    double *w;
    int cols, rows;    /* ne[0], ne[1] */
};

struct meaning {
    const struct gguf *g;
    char arch[16];
    int dim, n_layer, n_head, n_kv_head, head_dim, n_ff, n_vocab, n_expert, n_used, n_ctx, n_rot, window, n_ctx_orig;
    double eps, base, factor, attn_factor, beta_fast, beta_slow;
    bool yarn, linear;
    int n_pos;                /* tokens so far */
    struct decoded *tensors;
    size_t n_tensors;
    double *keys, *values;    /* (n_layer, n_ctx, n_kv_head * head_dim) */
    double *x, *logits;       /* the residual stream; (n_vocab) */
};

/* ---- the file ---- */

static int read_int(const struct meaning *m, const char *suffix, int otherwise)
{
    char key[96];
    uint32_t v;
    snprintf(key, sizeof key, "%s.%s", m->arch, suffix);
    return gguf_u32(m->g, key, 0, INT32_MAX, &v, NULL) ? (int)v : otherwise;
}

static double read_float(const struct meaning *m, const char *suffix, double otherwise)
{
    char key[96];
    float v;
    snprintf(key, sizeof key, "%s.%s", m->arch, suffix);
    return gguf_f32(m->g, key, &v, NULL) ? (double)v : otherwise;
}

static void read_string(const struct meaning *m, const char *key, char *out, size_t size)
{
    struct gguf_str s = {"", 0};
    gguf_str(m->g, key, &s, NULL);
    snprintf(out, size, "%.*s", (int)s.len, s.s);
}

static const struct decoded *find(const struct meaning *m, const char *name)
{
    for (size_t i = 0; i < m->n_tensors; i++)
        if (strcmp(m->tensors[i].name, name) == 0)
            return &m->tensors[i];
    return NULL;
}

/* Layer -1: outside the layers. NULL when the file has none. */
static const struct decoded *tensor(const struct meaning *m, int layer, const char *name)
{
    char full[96];
    if (layer >= 0)
        snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return find(m, layer >= 0 ? full : name);
}

static const double *vector(const struct meaning *m, int layer, const char *name)
{
    const struct decoded *t = tensor(m, layer, name);
    return t != NULL ? t->w : NULL;
}

static bool is_arch(const struct meaning *m, const char *arch)
{
    return strcmp(m->arch, arch) == 0;
}

static void read_keys(struct meaning *m, int n_ctx)
{
    char kind[16], key[64];
    read_string(m, "general.architecture", m->arch, sizeof m->arch);
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->arch);
    read_string(m, key, kind, sizeof kind);
    m->dim = read_int(m, "embedding_length", 0);
    m->n_layer = read_int(m, "block_count", 0);
    m->n_head = read_int(m, "attention.head_count", 1);
    m->n_kv_head = read_int(m, "attention.head_count_kv", m->n_head);
    m->head_dim = read_int(m, "attention.key_length", m->dim / m->n_head);
    m->n_expert = read_int(m, "expert_count", 0);
    m->n_used = read_int(m, "expert_used_count", 0);
    m->n_ff = read_int(m, m->n_expert > 0 ? "expert_feed_forward_length" : "feed_forward_length", 0);
    m->n_ctx = n_ctx;
    m->n_rot = read_int(m, "rope.dimension_count", m->head_dim);
    m->window = read_int(m, "attention.sliding_window", 0);
    m->n_ctx_orig = read_int(m, "rope.scaling.original_context_length", read_int(m, "context_length", 0));
    m->eps = read_float(m, "attention.layer_norm_rms_epsilon", 0);
    m->base = read_float(m, "rope.freq_base", 10000);
    m->factor = read_float(m, "rope.scaling.factor", 1);
    m->beta_fast = read_float(m, "rope.scaling.yarn_beta_fast", 32);
    m->beta_slow = read_float(m, "rope.scaling.yarn_beta_slow", 1);
    m->attn_factor = read_float(m, "rope.scaling.attn_factor", 1);
    m->yarn = strcmp(kind, "yarn") == 0;
    m->linear = strcmp(kind, "linear") == 0;
}

struct meaning *meaning_open(const struct gguf *g, int n_ctx)
{
    struct meaning *m = calloc(1, sizeof *m);
    if (m == NULL)
        return NULL;
    m->g = g;
    read_keys(m, n_ctx);
    m->n_tensors = gguf_n_tensors(g);
    m->tensors = calloc(m->n_tensors, sizeof *m->tensors);
    bool ok = m->tensors != NULL;
    for (size_t i = 0; ok && i < m->n_tensors; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        size_t n = (size_t)(t->ne[0] * t->ne[1] * t->ne[2]);
        m->tensors[i] = (struct decoded){t->name, malloc(n * sizeof(double)), (int)t->ne[0], (int)t->ne[1]};
        ok = m->tensors[i].w != NULL && decode_weights(qtype_info(t->type)->gguf_id, t->data, n, m->tensors[i].w);
    }
    const struct decoded *embd = ok ? find(m, "token_embd.weight") : NULL;
    if (embd == NULL) {
        meaning_close(m);
        return NULL;
    }
    m->n_vocab = embd->rows;
    size_t cache = (size_t)m->n_layer * (size_t)n_ctx * (size_t)(m->n_kv_head * m->head_dim);
    m->keys = malloc(cache * sizeof(double));
    m->values = malloc(cache * sizeof(double));
    m->x = malloc((size_t)m->dim * sizeof(double));
    m->logits = malloc((size_t)m->n_vocab * sizeof(double));
    if (m->keys != NULL && m->values != NULL && m->x != NULL && m->logits != NULL)
        return m;
    meaning_close(m);
    return NULL;
}

void meaning_close(struct meaning *m)
{
    if (m == NULL)
        return;
    for (size_t i = 0; m->tensors != NULL && i < m->n_tensors; i++)
        free(m->tensors[i].w);
    free(m->tensors);
    free(m->keys);
    free(m->values);
    free(m->x);
    free(m->logits);
    free(m);
}

int meaning_n_vocab(const struct meaning *m)
{
    return m->n_vocab;
}

/* ---- operators ---- */

static double dot(const double *a, const double *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y = W x (+ bias), the rows from row0 on. */
static void product(const double *w, const double *bias, int row0, int rows, int cols, const double *x, double *y)
{
    for (int r = 0; r < rows; r++)
        y[r] = dot(w + (size_t)(row0 + r) * (size_t)cols, x, cols) + (bias != NULL ? bias[row0 + r] : 0);
}

/* A tensor of the layer with its bias, if the file has one. */
static void linear(const struct meaning *m, int layer, const char *role, int row0, int rows, const double *x, double *y)
{
    char name[64];
    snprintf(name, sizeof name, "%s.weight", role);
    const struct decoded *w = tensor(m, layer, name);
    snprintf(name, sizeof name, "%s.bias", role);
    product(w->w, vector(m, layer, name), row0, rows, w->cols, x, y);
}

static void rms_norm(const double *x, const double *gain, int n, double eps, double *out)
{
    double scale = 1 / sqrt(dot(x, x, n) / n + eps);
    for (int i = 0; i < n; i++)
        out[i] = x[i] * scale * gain[i];
}

static void softmax(double *x, int n)
{
    double max = x[0], sum = 0;
    for (int i = 1; i < n; i++)
        max = fmax(max, x[i]);
    for (int i = 0; i < n; i++)
        sum += x[i] = exp(x[i] - max);
    for (int i = 0; i < n; i++)
        x[i] /= sum;
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double gelu(double x)    /* the tanh form */
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* ---- attention ---- */

/* Positions a layer sees, the token's own included; 0 = all before it. */
static int window_of(const struct meaning *m, int layer)
{
    char key[64];
    struct gguf_arr slides;
    struct err err = {0};
    snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", m->arch);
    if (gguf_arr(m->g, key, GGUF_BOOL, &slides, &err))
        return ((const unsigned char *)slides.data)[layer] ? m->window : 0;
    int period = read_int(m, "attention.sliding_window_pattern", is_arch(m, "gemma3") ? 6 : 2);
    bool global = (is_arch(m, "gemma3") || is_arch(m, "gpt-oss")) && period > 0 && layer % period == period - 1;
    return global ? 0 : m->window;
}

/* Where YaRN's ramp meets a dimension that turns this often over the original context. */
static double yarn_bound(const struct meaning *m, double base, double turns)
{
    return m->n_rot * log(m->n_ctx_orig / (turns * 2 * M_PI)) / (2 * log(base));
}

/* Angle of pair i at a position, and the factor of its sine and cosine. */
static double angle(const struct meaning *m, int layer, int pos, int i, double *scale)
{
    bool slides = window_of(m, layer) > 0, local = is_arch(m, "gemma3") && slides;    /* a base of their own, unscaled */
    double base = slides ? read_float(m, "rope.freq_base_swa", local ? 10000 : (float)m->base) : m->base;
    double theta = pos * pow(base, -2.0 * i / m->n_rot);
    const double *factors = vector(m, -1, "rope_freqs.weight");
    if (factors == NULL)
        factors = vector(m, -1, m->n_ctx > m->n_ctx_orig ? "rope_factors_long.weight" : "rope_factors_short.weight");
    *scale = local ? 1 : m->attn_factor;
    if (factors != NULL)
        theta /= factors[i];
    if (m->linear && !local)
        return theta / m->factor;
    if (!m->yarn)
        return theta;
    double lo = fmax(0, floor(yarn_bound(m, base, m->beta_fast)));
    double hi = fmin(m->n_rot - 1, ceil(yarn_bound(m, base, m->beta_slow)));
    double slow = fmin(1, fmax(0, (i - lo) / fmax(0.001, hi - lo)));
    *scale *= m->factor > 1 ? 1 + 0.1 * log(m->factor) : 1;
    return theta / m->factor * slow + theta * (1 - slow);
}

/* Sine and cosine of a layer's pairs at a position. */
struct turn {
    double c[256], s[256];
};

static void turn_of(const struct meaning *m, int layer, int pos, struct turn *t)
{
    for (int i = 0; i < m->n_rot / 2; i++) {
        double scale, theta = angle(m, layer, pos, i, &scale);
        t->c[i] = cos(theta) * scale;
        t->s[i] = sin(theta) * scale;
    }
}

static void rotate(const struct meaning *m, const struct turn *t, double *head)
{
    bool neighbours = is_arch(m, "llama");
    for (int i = 0; i < m->n_rot / 2; i++) {
        double *a = neighbours ? &head[2 * i] : &head[i], *b = neighbours ? a + 1 : a + m->n_rot / 2, was = *a;
        *a = was * t->c[i] - *b * t->s[i];
        *b = was * t->s[i] + *b * t->c[i];
    }
}

static void attend(struct meaning *m, int layer, const double *x, double *out)
{
    int hd = m->head_dim, n_q = m->n_head * hd, n_kv = m->n_kv_head * hd, pos = m->n_pos;
    size_t base = (size_t)layer * (size_t)m->n_ctx * (size_t)n_kv;
    double *q = malloc((size_t)n_q * sizeof *q), *mixed = calloc((size_t)n_q, sizeof *mixed);
    double *scores = malloc((size_t)(pos + 2) * sizeof *scores);
    double *k = m->keys + base + (size_t)pos * (size_t)n_kv, *v = m->values + base + (size_t)pos * (size_t)n_kv;
    if (is_arch(m, "phi3")) {
        linear(m, layer, "attn_qkv", 0, n_q, x, q);
        linear(m, layer, "attn_qkv", n_q, n_kv, x, k);
        linear(m, layer, "attn_qkv", n_q + n_kv, n_kv, x, v);
    } else {
        linear(m, layer, "attn_q", 0, n_q, x, q);
        linear(m, layer, "attn_k", 0, n_kv, x, k);
        linear(m, layer, "attn_v", 0, n_kv, x, v);
    }
    struct turn turn;
    turn_of(m, layer, pos, &turn);
    const double *q_norm = vector(m, layer, "attn_q_norm.weight"), *k_norm = vector(m, layer, "attn_k_norm.weight");
    for (int h = 0; h < m->n_head; h++) {
        if (q_norm != NULL)
            rms_norm(q + h * hd, q_norm, hd, m->eps, q + h * hd);
        rotate(m, &turn, q + h * hd);
    }
    for (int h = 0; h < m->n_kv_head; h++) {
        if (k_norm != NULL)
            rms_norm(k + h * hd, k_norm, hd, m->eps, k + h * hd);
        rotate(m, &turn, k + h * hd);
    }
    const double *sinks = vector(m, layer, "attn_sinks.weight");
    double divisor = sqrt(is_arch(m, "gemma3") && m->n_layer == 62 ? m->dim / m->n_head : hd);    /* Gemma 3 27B */
    int window = window_of(m, layer), from = window > 0 && pos >= window ? pos - window + 1 : 0, n = pos - from + 1;
    for (int h = 0; h < m->n_head; h++) {
        size_t head = base + (size_t)(h / (m->n_head / m->n_kv_head) * hd);
        for (int j = 0; j < n; j++)
            scores[j] = dot(q + h * hd, m->keys + head + (size_t)(from + j) * (size_t)n_kv, hd) / divisor;
        if (sinks != NULL)
            scores[n] = sinks[h];
        softmax(scores, n + (sinks != NULL));
        for (int j = 0; j < n; j++)
            for (int d = 0; d < hd; d++)
                mixed[h * hd + d] += scores[j] * m->values[head + (size_t)(from + j) * (size_t)n_kv + (size_t)d];
    }
    linear(m, layer, "attn_output", 0, m->dim, mixed, out);
    free(scores);
    free(mixed);
    free(q);
}

/* ---- feed-forward ---- */

static void feed_forward(const struct meaning *m, int layer, const double *x, double *out)
{
    int n = m->n_ff;
    double *gate = malloc((size_t)n * sizeof *gate), *up = malloc((size_t)n * sizeof *up);
    bool fused = is_arch(m, "phi3");
    linear(m, layer, fused ? "ffn_up" : "ffn_gate", 0, n, x, gate);
    linear(m, layer, "ffn_up", fused ? n : 0, n, x, up);
    for (int i = 0; i < n; i++)
        gate[i] = (is_arch(m, "gemma3") ? gelu(gate[i]) : silu(gate[i])) * up[i];
    linear(m, layer, "ffn_down", 0, m->dim, gate, out);
    free(gate);
    free(up);
}

/* One expert's part of a stacked tensor and of its biases. */
static void expert_product(const struct meaning *m, int layer, const char *role, int expert, int rows, const double *x,
                           double *y)
{
    linear(m, layer, role, expert * rows, rows, x, y);
}

static void feed_experts(const struct meaning *m, int layer, const double *x, double *out)
{
    int n = m->n_ff, chosen[MAX_EXPERTS];
    double router[MAX_EXPERTS], weight[MAX_EXPERTS];
    double *gate = malloc((size_t)n * sizeof *gate), *up = malloc((size_t)n * sizeof *up);
    double *one = malloc((size_t)m->dim * sizeof *one);
    linear(m, layer, "ffn_gate_inp", 0, m->n_expert, x, router);
    for (int u = 0; u < m->n_used; u++) {    /* the best, one after the other */
        int best = -1;
        for (int e = 0; e < m->n_expert; e++)
            if (!isnan(router[e]) && (best < 0 || router[e] > router[best]))
                best = e;
        chosen[u] = best;
        weight[u] = router[best];
        router[best] = NAN;
    }
    softmax(weight, m->n_used);
    memset(out, 0, (size_t)m->dim * sizeof *out);
    for (int u = 0; u < m->n_used; u++) {
        expert_product(m, layer, "ffn_gate_exps", chosen[u], n, x, gate);
        expert_product(m, layer, "ffn_up_exps", chosen[u], n, x, up);
        for (int i = 0; i < n; i++) {
            double g = fmin(gate[i], 7), v = fmax(-7, fmin(up[i], 7));
            gate[i] = g / (1 + exp(-1.702 * g)) * (v + 1);
        }
        expert_product(m, layer, "ffn_down_exps", chosen[u], m->dim, gate, one);
        for (int i = 0; i < m->dim; i++)
            out[i] += weight[u] * one[i];
    }
    free(gate);
    free(up);
    free(one);
}

/* ---- the whole ---- */

static void add_branch(struct meaning *m, int layer, const char *post_norm, double *branch)
{
    if (is_arch(m, "gemma3"))
        rms_norm(branch, vector(m, layer, post_norm), m->dim, m->eps, branch);
    for (int i = 0; i < m->dim; i++)
        m->x[i] += branch[i];
}

const double *meaning_next(struct meaning *m, int token)
{
    double *in = malloc((size_t)m->dim * sizeof *in), *out = malloc((size_t)m->dim * sizeof *out);
    const struct decoded *embd = tensor(m, -1, "token_embd.weight"), *head = tensor(m, -1, "output.weight");
    const char *ffn_norm = is_arch(m, "gpt-oss") ? "post_attention_norm.weight" : "ffn_norm.weight";
    for (int i = 0; i < m->dim; i++)
        m->x[i] = embd->w[(size_t)token * (size_t)m->dim + (size_t)i] * (is_arch(m, "gemma3") ? sqrt(m->dim) : 1);
    for (int layer = 0; layer < m->n_layer; layer++) {
        rms_norm(m->x, vector(m, layer, "attn_norm.weight"), m->dim, m->eps, in);
        attend(m, layer, in, out);
        add_branch(m, layer, "post_attention_norm.weight", out);
        rms_norm(m->x, vector(m, layer, ffn_norm), m->dim, m->eps, in);
        if (m->n_expert > 0)
            feed_experts(m, layer, in, out);
        else
            feed_forward(m, layer, in, out);
        add_branch(m, layer, "post_ffw_norm.weight", out);
    }
    m->n_pos++;
    rms_norm(m->x, vector(m, -1, "output_norm.weight"), m->dim, m->eps, in);
    product((head != NULL ? head : embd)->w, NULL, 0, m->n_vocab, m->dim, in, m->logits);
    double max = m->logits[0], sum = 0;
    for (int i = 1; i < m->n_vocab; i++)
        max = fmax(max, m->logits[i]);
    for (int i = 0; i < m->n_vocab; i++)
        sum += exp(m->logits[i] - max);
    for (int i = 0; i < m->n_vocab; i++)
        m->logits[i] -= max + log(sum);
    free(in);
    free(out);
    return m->logits;
}
