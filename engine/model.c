#include "engine/model.h"
#include "base/mem.h"
#include "engine/family.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- keys ---- */

/* Reads keys of one architecture; collects what is missing, remembers the first bad one. */
struct reader {
    const struct gguf *g;
    const char *arch;
    char missing[256];
    struct err *err;
    bool bad;
};

static void note_missing(struct reader *r, const char *key)
{
    size_t n = strlen(r->missing);
    snprintf(r->missing + n, sizeof r->missing - n, "%s%s", n ? ", " : "", key);
}

static void note_bad(struct reader *r, const struct err *e)
{
    if (!r->bad)
        *r->err = *e;
    r->bad = true;
}

enum { REQUIRED = -1 };
enum { MAX_EXPERTS_USED = 32 };    /* by a row: a grid of blocks on a card holds 65,535, a step 1,024 rows */

/* Integer key "<arch>.suffix" within [min, max]; def REQUIRED = must be there. */
static int read_int(struct reader *r, const char *suffix, int min, int max, int def)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", r->arch, suffix);
    uint32_t v = 0;
    struct err e = {0};
    if (gguf_u32(r->g, key, (uint32_t)min, (uint32_t)max, &v, &e))
        return (int)v;
    if (e.code != ERR_NONE)
        note_bad(r, &e);
    else if (def == REQUIRED)
        note_missing(r, key);
    return def;
}

static float read_float(struct reader *r, const char *suffix, float def, bool required)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", r->arch, suffix);
    float v = def;
    struct err e = {0};
    if (gguf_f32(r->g, key, &v, &e))
        return v;
    if (e.code != ERR_NONE)
        note_bad(r, &e);
    else if (required)
        note_missing(r, key);
    return def;
}

/* ---- tensors by role ---- */

/* A dimension of a role, as a function of the hyper-parameters. */
enum dim {
    D_ZERO, D_ONE, D_DIM, D_HEAD_DIM, D_HEADS, D_Q, D_KV, D_Q_KV, D_QKV, D_FF, D_FF2, D_EXPERTS
};

enum role_kind {
    VECTOR,     /* (rows) floats -> const struct gguf_tensor * */
    SLICE,      /* rows of a vector or stacked vectors -> struct weight */
    MATRIX,     /* (rows, cols) -> struct weight */
};

struct role {
    const char *name;           /* after "blk.N." */
    enum role_kind kind;
    size_t offset;              /* in struct model_layer */
    enum dim row0, rows, total; /* the slice, and all rows of the tensor */
    enum dim cols, stack;
    unsigned when, unless;      /* family flags that make it apply; 0 = always */
    bool optional;
};

#define AT(field) offsetof(struct model_layer, field)
static const struct role roles[] = {
    {"attn_norm.weight", VECTOR, AT(attn_norm), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, 0, 0, false},
    {"attn_q.weight", MATRIX, AT(q), D_ZERO, D_Q, D_Q, D_DIM, D_ONE, FAM_SPLIT_QKV, 0, false},
    {"attn_k.weight", MATRIX, AT(k), D_ZERO, D_KV, D_KV, D_DIM, D_ONE, FAM_SPLIT_QKV, 0, false},
    {"attn_v.weight", MATRIX, AT(v), D_ZERO, D_KV, D_KV, D_DIM, D_ONE, FAM_SPLIT_QKV, 0, false},
    {"attn_q.bias", SLICE, AT(q_bias), D_ZERO, D_Q, D_Q, D_ONE, D_ONE, FAM_QKV_BIAS, 0, false},
    {"attn_k.bias", SLICE, AT(k_bias), D_ZERO, D_KV, D_KV, D_ONE, D_ONE, FAM_QKV_BIAS, 0, false},
    {"attn_v.bias", SLICE, AT(v_bias), D_ZERO, D_KV, D_KV, D_ONE, D_ONE, FAM_QKV_BIAS, 0, false},
    {"attn_q.bias", SLICE, AT(q_bias), D_ZERO, D_Q, D_Q, D_ONE, D_ONE, FAM_SPLIT_QKV, FAM_QKV_BIAS, true},
    {"attn_k.bias", SLICE, AT(k_bias), D_ZERO, D_KV, D_KV, D_ONE, D_ONE, FAM_SPLIT_QKV, FAM_QKV_BIAS, true},
    {"attn_v.bias", SLICE, AT(v_bias), D_ZERO, D_KV, D_KV, D_ONE, D_ONE, FAM_SPLIT_QKV, FAM_QKV_BIAS, true},
    {"attn_qkv.weight", MATRIX, AT(q), D_ZERO, D_Q, D_QKV, D_DIM, D_ONE, FAM_FUSED_QKV, 0, false},
    {"attn_qkv.weight", MATRIX, AT(k), D_Q, D_KV, D_QKV, D_DIM, D_ONE, FAM_FUSED_QKV, 0, false},
    {"attn_qkv.weight", MATRIX, AT(v), D_Q_KV, D_KV, D_QKV, D_DIM, D_ONE, FAM_FUSED_QKV, 0, false},
    {"attn_q_norm.weight", VECTOR, AT(q_norm), D_ZERO, D_HEAD_DIM, D_HEAD_DIM, D_ONE, D_ONE, FAM_QK_NORM, 0, false},
    {"attn_k_norm.weight", VECTOR, AT(k_norm), D_ZERO, D_HEAD_DIM, D_HEAD_DIM, D_ONE, D_ONE, FAM_QK_NORM, 0, false},
    {"attn_sinks.weight", VECTOR, AT(sinks), D_ZERO, D_HEADS, D_HEADS, D_ONE, D_ONE, FAM_SINKS, 0, false},
    {"attn_output.weight", MATRIX, AT(o), D_ZERO, D_DIM, D_DIM, D_Q, D_ONE, 0, 0, false},
    {"attn_output.bias", SLICE, AT(o_bias), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, FAM_SINKS, 0, false},
    {"attn_output.bias", SLICE, AT(o_bias), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, 0, FAM_SINKS, true},
    {"post_attention_norm.weight", VECTOR, AT(post_attn_norm), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, FAM_POST_NORM, 0, false},
    {"post_ffw_norm.weight", VECTOR, AT(post_ffn_norm), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, FAM_POST_NORM, 0, false},
    {"ffn_norm.weight", VECTOR, AT(ffn_norm), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, FAM_FFN_NORM, 0, false},
    {"post_attention_norm.weight", VECTOR, AT(ffn_norm), D_ZERO, D_DIM, D_DIM, D_ONE, D_ONE, 0, FAM_FFN_NORM, false},
    {"ffn_gate.weight", MATRIX, AT(gate), D_ZERO, D_FF, D_FF, D_DIM, D_ONE, FAM_SPLIT_FFN, 0, false},
    {"ffn_up.weight", MATRIX, AT(up), D_ZERO, D_FF, D_FF, D_DIM, D_ONE, FAM_SPLIT_FFN, 0, false},
    {"ffn_up.weight", MATRIX, AT(gate), D_ZERO, D_FF, D_FF2, D_DIM, D_ONE, FAM_FUSED_FFN, 0, false},
    {"ffn_up.weight", MATRIX, AT(up), D_FF, D_FF, D_FF2, D_DIM, D_ONE, FAM_FUSED_FFN, 0, false},
    {"ffn_down.weight", MATRIX, AT(down), D_ZERO, D_DIM, D_DIM, D_FF, D_ONE, FAM_SPLIT_FFN | FAM_FUSED_FFN, 0, false},
    {"ffn_gate_inp.weight", VECTOR, AT(router), D_ZERO, D_EXPERTS, D_EXPERTS, D_DIM, D_ONE, FAM_MOE, 0, false},
    {"ffn_gate_inp.bias", VECTOR, AT(router_bias), D_ZERO, D_EXPERTS, D_EXPERTS, D_ONE, D_ONE, FAM_MOE, 0, false},
    {"ffn_gate_exps.weight", MATRIX, AT(gate), D_ZERO, D_FF, D_FF, D_DIM, D_EXPERTS, FAM_MOE, 0, false},
    {"ffn_up_exps.weight", MATRIX, AT(up), D_ZERO, D_FF, D_FF, D_DIM, D_EXPERTS, FAM_MOE, 0, false},
    {"ffn_down_exps.weight", MATRIX, AT(down), D_ZERO, D_DIM, D_DIM, D_FF, D_EXPERTS, FAM_MOE, 0, false},
    {"ffn_gate_exps.bias", SLICE, AT(gate_bias), D_ZERO, D_FF, D_FF, D_ONE, D_EXPERTS, FAM_MOE, 0, false},
    {"ffn_up_exps.bias", SLICE, AT(up_bias), D_ZERO, D_FF, D_FF, D_ONE, D_EXPERTS, FAM_MOE, 0, false},
    {"ffn_down_exps.bias", SLICE, AT(down_bias), D_ZERO, D_DIM, D_DIM, D_ONE, D_EXPERTS, FAM_MOE, 0, false},
};

static int dim_of(const struct model *m, enum dim d)
{
    int q = m->n_head * m->head_dim, kv = m->n_kv_head * m->head_dim;
    switch (d) {
    case D_ZERO: return 0;
    case D_ONE: return 1;
    case D_DIM: return m->dim;
    case D_HEAD_DIM: return m->head_dim;
    case D_HEADS: return m->n_head;
    case D_Q: return q;
    case D_KV: return kv;
    case D_Q_KV: return q + kv;
    case D_QKV: return q + 2 * kv;
    case D_FF: return m->n_ff;
    case D_FF2: return 2 * m->n_ff;
    case D_EXPERTS: return m->n_expert;
    }
    return 0;
}

/* Vectors have their length in ne[0]; stacked vectors (expert biases) the count in ne[1]; matrices cols, rows, count. */
static bool check_shape(const struct gguf_tensor *t, enum role_kind kind, int rows, int cols, int stack, struct err *err)
{
    bool flat = kind != MATRIX && cols == 1;
    int64_t want[4] = {flat ? rows : cols, flat ? stack : rows, flat ? 1 : stack, 1};
    if (memcmp(t->ne, want, sizeof want) != 0)
        return err_set(err, ERR_MODEL, "tensor %s: shape [%lld, %lld, %lld, %lld], expected [%lld, %lld, %lld, 1]", t->name,
                       (long long)t->ne[0], (long long)t->ne[1], (long long)t->ne[2], (long long)t->ne[3],
                       (long long)want[0], (long long)want[1], (long long)want[2]);
    if (kind == MATRIX && cols % NUM_BLOCK != 0)
        return err_set(err, ERR_MODEL, "tensor %s: rows of %d weights, expected a multiple of %d", t->name, cols, NUM_BLOCK);
    if (kind != MATRIX && qtype_info(t->type)->quantised)
        return err_set(err, ERR_MODEL, "tensor %s: type %s, expected F32, F16 or BF16", t->name, qtype_name(t->type));
    return true;
}

static bool applies(const struct model *m, const struct role *role)
{
    unsigned flags = m->family->flags;
    return (role->when == 0 || (flags & role->when) != 0) && (flags & role->unless) == 0;
}

static bool bind_role(const struct model *m, int layer, const struct role *role, struct err *err)
{
    if (!applies(m, role))
        return true;
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s", layer, role->name);
    const struct gguf_tensor *t = gguf_tensor(m->gguf, name);
    if (t == NULL)
        return role->optional || err_set(err, ERR_MODEL, "tensor %s is missing (architecture %s, %d layers)", name,
                                         m->arch, m->n_layer);
    int cols = dim_of(m, role->cols), stack = dim_of(m, role->stack);
    if (!check_shape(t, role->kind, dim_of(m, role->total), cols, stack, err))
        return false;
    char *field = (char *)&m->layer[layer] + role->offset;
    if (role->kind == VECTOR)
        *(const struct gguf_tensor **)field = t;
    else
        *(struct weight *)field = (struct weight){t, dim_of(m, role->row0), dim_of(m, role->rows), cols, stack};
    return true;
}

/* The key says the same as the rows, or is that of a configuration that counts padding which the file has not, or the reverse.
 * Nothing is read by it: one that is far off is of another model. */
static bool check_vocab_size(const struct model *m, struct err *err)
{
    struct reader r = {.g = m->gguf, .arch = m->arch, .err = err};
    int slack = m->n_vocab / 8 > 1024 ? m->n_vocab / 8 : 1024;
    int n = read_int(&r, "vocab_size", 1, 1 << 24, m->n_vocab);
    if (r.bad)
        return false;
    return abs(n - m->n_vocab) <= slack ||
           err_set(err, ERR_MODEL, "key %s.vocab_size: %d, expected %d as tensor token_embd.weight has rows, or up to %d more or fewer",
                   m->arch, n, m->n_vocab, slack);
}

static bool bind_globals(struct model *m, struct err *err)
{
    const struct gguf *g = m->gguf;
    m->token_embd = gguf_tensor(g, "token_embd.weight");
    if (m->token_embd == NULL)
        return err_set(err, ERR_MODEL, "tensor token_embd.weight is missing");
    if (m->token_embd->ne[1] < 1 || m->token_embd->ne[1] > 1 << 20)
        return err_set(err, ERR_MODEL, "tensor token_embd.weight: %lld rows, allowed 1 to %d",
                       (long long)m->token_embd->ne[1], 1 << 20);
    m->n_vocab = (int)m->token_embd->ne[1];
    if (!check_shape(m->token_embd, MATRIX, m->n_vocab, m->dim, 1, err) || !check_vocab_size(m, err))
        return false;
    m->output_norm = gguf_tensor(g, "output_norm.weight");
    if (m->output_norm == NULL)
        return err_set(err, ERR_MODEL, "tensor output_norm.weight is missing");
    if (!check_shape(m->output_norm, VECTOR, m->dim, 1, 1, err))
        return false;
    m->output = gguf_tensor(g, "output.weight");
    if (m->output == NULL && (m->family->flags & FAM_UNTIED) != 0)
        return err_set(err, ERR_MODEL, "tensor output.weight is missing (architecture %s has no tied one)", m->arch);
    if (m->output == NULL)
        m->output = m->token_embd;
    return check_shape(m->output, MATRIX, m->n_vocab, m->dim, 1, err);
}

/* A tensor that nothing reads means a model that is not computed here, such as one with biases elsewhere: better refused
 * than quietly wrong. The picture part that some files carry (v., mm.) does not touch text. */
static bool has_role(const struct model *m, const char *name)
{
    static const char *const globals[] = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight",
                                          "rope_factors_short.weight", "rope_factors_long.weight"};
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (strcmp(name, globals[i]) == 0)
            return true;
    if (strncmp(name, "v.", 2) == 0 || strncmp(name, "mm.", 3) == 0)
        return true;
    char full[96];
    for (size_t r = 0; r < sizeof roles / sizeof *roles; r++) {
        const char *rest = strncmp(name, "blk.", 4) == 0 ? strchr(name + 4, '.') : NULL;
        if (rest == NULL || strcmp(rest + 1, roles[r].name) != 0 || !applies(m, &roles[r]))
            continue;
        long layer = strtol(name + 4, NULL, 10);
        snprintf(full, sizeof full, "blk.%ld.%s", layer, roles[r].name);
        if (layer >= 0 && layer < m->n_layer && strcmp(full, name) == 0)
            return true;
    }
    return false;
}

static bool bind_tensors(struct model *m, struct err *err)
{
    if (!bind_globals(m, err))
        return false;
    m->layer = mem_alloc((size_t)m->n_layer, sizeof *m->layer);
    if (m->layer == NULL)
        return err_set(err, ERR_MODEL, "no memory for %d layers", m->n_layer);
    for (int i = 0; i < m->n_layer; i++)
        for (size_t r = 0; r < sizeof roles / sizeof *roles; r++)
            if (!bind_role(m, i, &roles[r], err))
                return false;
    for (size_t i = 0; i < gguf_n_tensors(m->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->gguf, i);
        if (!has_role(m, t->name))
            return err_set(err, ERR_MODEL, "tensor %.64s: not part of a model of architecture %s with %d layers", t->name, m->arch,
                           m->n_layer);
        m->n_params += (size_t)(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
    }
    return true;
}

/* ---- hyper-parameters ---- */

/* The text as far as it fits, whole characters; control characters as '?', so that no name ends early or escapes into a terminal. */
static bool copy_str(const struct gguf *g, const char *key, char *out, size_t size, struct err *err)
{
    struct gguf_str s;
    struct err e = {0};
    out[0] = 0;
    if (!gguf_str(g, key, &s, &e)) {
        if (e.code != ERR_NONE && err != NULL)
            *err = e;
        return e.code == ERR_NONE;
    }
    size_t n = s.len < size - 1 ? s.len : size - 1;
    while (n > 0 && n < s.len && ((unsigned char)s.s[n] & 0xC0) == 0x80)
        n--;
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)s.s[i] < 0x20 || s.s[i] == 0x7F ? '?' : s.s[i];
    out[n] = 0;
    return true;
}

static bool in_range(const char *arch, const char *suffix, float v, float lo, float hi, struct err *err)
{
    if (v >= lo && v <= hi)
        return true;
    return err_set(err, ERR_MODEL, "key %s.%s: %g, allowed %g to %g", arch, suffix, (double)v, (double)lo, (double)hi);
}

/* Keys of other models of the same architecture name whose arithmetic is not implemented, with the value that asks for
 * nothing. */
static bool check_unsupported(const struct model *m, struct err *err)
{
    static const struct {
        const char *suffix;
        float neutral;
    } keys[] = {
        {"attn_logit_softcapping", 0}, {"final_logit_softcapping", 0}, {"attention.clamp_kqv", 0}, {"attention.scale", 0},
        {"attention.max_alibi_bias", 0}, {"logit_scale", 1}, {"residual_scale", 1}, {"embedding_scale", 1},
        {"rope.scaling.alpha", 0}, {"rope.scaling.yarn_log_multiplier", 0}, {"rope.scaling.yarn_ext_factor", 1},
        {"rope.scaling.yarn_attn_factor", 1},
    };
    struct reader r = {.g = m->gguf, .arch = m->arch, .err = err};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        float v = read_float(&r, keys[i].suffix, keys[i].neutral, false);
        if (v < keys[i].neutral || v > keys[i].neutral)
            return err_set(err, ERR_MODEL, "key %s.%s: %g is not supported, expected %g or none", m->arch, keys[i].suffix,
                           (double)v, (double)keys[i].neutral);
    }
    return !r.bad;
}

/* As read_int; and of an array with a value for each layer, all of them the same. */
static int read_layers(struct reader *r, const char *suffix, int n_layer, int min, int max, int def)
{
    char key[128];
    struct gguf_arr a;
    struct err e = {0};
    snprintf(key, sizeof key, "%s.%s", r->arch, suffix);
    if (!gguf_arr(r->g, key, GGUF_U32, &a, &e))
        return read_int(r, suffix, min, max, def);
    bool ok = (n_layer > 0 && a.n == (size_t)n_layer) ||
              err_set(&e, ERR_MODEL, "key %s: %zu values, expected one for each of %d layers", key, a.n, n_layer);
    for (size_t i = 0; ok && i < a.n; i++) {
        int32_t v = gguf_arr_i32(&a, i), first = gguf_arr_i32(&a, 0);
        if (v < min || v > max)
            ok = err_set(&e, ERR_MODEL, "key %s[%zu]: value %d, expected %d to %d", key, i, (int)v, min, max);
        else if (v != first)
            ok = err_set(&e, ERR_MODEL, "key %s[%zu]: value %d, expected %d as in layer 0 (layers that differ are not supported)", key,
                         i, (int)v, (int)first);
    }
    if (!ok)
        note_bad(r, &e);
    return ok ? gguf_arr_i32(&a, 0) : def;
}

static bool read_shape(struct model *m, struct err *err)
{
    bool moe = m->family->flags & FAM_MOE;
    struct reader r = {.g = m->gguf, .arch = m->arch, .err = err};
    m->n_layer = read_int(&r, "block_count", 1, 1024, REQUIRED);
    m->dim = read_int(&r, "embedding_length", 32, 1 << 16, REQUIRED);
    m->n_head = read_layers(&r, "attention.head_count", m->n_layer, 1, 1024, REQUIRED);
    m->n_kv_head = read_layers(&r, "attention.head_count_kv", m->n_layer, 1, 1024, m->n_head);
    m->head_dim = read_int(&r, "attention.key_length", 8, 512, 0);
    int value_dim = read_int(&r, "attention.value_length", 8, 512, 0);
    m->n_ff = read_layers(&r, "feed_forward_length", m->n_layer, 32, 1 << 18, moe ? 0 : REQUIRED);
    m->n_ctx_train = read_int(&r, "context_length", 1, 1 << 24, REQUIRED);
    m->n_expert = read_int(&r, "expert_count", 0, 1024, moe ? REQUIRED : 0);
    m->n_expert_used = read_int(&r, "expert_used_count", 0, 1024, moe ? REQUIRED : 0);
    if (moe)
        m->n_ff = read_layers(&r, "expert_feed_forward_length", m->n_layer, 32, 1 << 18, m->n_ff ? m->n_ff : REQUIRED);
    m->norm_eps = read_float(&r, "attention.layer_norm_rms_epsilon", 0, true);
    if (!gguf_has(m->gguf, "tokenizer.ggml.tokens"))
        note_missing(&r, "tokenizer.ggml.tokens");
    if (r.missing[0] != 0)
        return err_set(err, ERR_MODEL, "missing metadata: %s", r.missing);
    if (r.bad)
        return false;
    if (!in_range(m->arch, "attention.layer_norm_rms_epsilon", m->norm_eps, 0, 1, err))
        return false;
    if (m->head_dim == 0) {
        if (m->dim % m->n_head != 0)
            return err_set(err, ERR_MODEL, "key %s.attention.head_count: %d does not divide embedding_length %d", m->arch,
                           m->n_head, m->dim);
        m->head_dim = m->dim / m->n_head;
    }
    if (value_dim != 0 && value_dim != m->head_dim)
        return err_set(err, ERR_MODEL, "key %s.attention.value_length: %d, expected %d as the keys", m->arch, value_dim,
                       m->head_dim);
    if (m->head_dim % 8 != 0 || m->head_dim > 512)
        return err_set(err, ERR_MODEL, "%s: head dimension %d, expected a multiple of 8 up to 512", m->arch, m->head_dim);
    static const char *const sliding[] = {"attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"};
    int n_rot = read_int(&r, "rope.dimension_count", 2, m->head_dim, m->head_dim);
    for (int i = 0; i < 3; i++) {
        int all = i < 2 ? m->head_dim : n_rot, n = read_int(&r, sliding[i], 1, 1 << 16, all);
        if (!r.bad && n != all)
            return err_set(err, ERR_MODEL, "key %s.%s: %d, expected %d as in all layers", m->arch, sliding[i], n, all);
    }
    if (r.bad)
        return false;
    if (m->n_head % m->n_kv_head != 0)
        return err_set(err, ERR_MODEL, "key %s.attention.head_count_kv: %d does not divide head_count %d", m->arch,
                       m->n_kv_head, m->n_head);
    if (!moe && m->n_expert > 0)
        return err_set(err, ERR_MODEL, "key %s.expert_count: %d, but experts are supported in gpt-oss only", m->arch,
                       m->n_expert);
    int most = m->n_expert < MAX_EXPERTS_USED ? m->n_expert : MAX_EXPERTS_USED;
    if (moe && (m->n_expert < 1 || m->n_expert_used < 1 || m->n_expert_used > most))
        return err_set(err, ERR_MODEL, "key %s.expert_used_count: %d, allowed 1 to %d", m->arch, m->n_expert_used, most);
    return true;
}

/* ---- windows and rope ---- */

static bool read_windows(struct model *m, struct err *err)
{
    struct reader r = {.g = m->gguf, .arch = m->arch, .err = err};
    /* gpt-oss has no layers but these two kinds; a Gemma 3 with global layers only has no key. */
    int absent = m->family->flags & FAM_SINKS ? REQUIRED : m->n_ctx_train == 4096 ? m->family->window_4k : 0;
    int window = read_int(&r, "attention.sliding_window", 0, 1 << 24, absent), period = m->family->window_period;
    if (r.missing[0] != 0)
        return err_set(err, ERR_MODEL, "missing metadata: %s", r.missing);
    char key[128];
    struct gguf_arr by_layer;    /* which layers slide; else every `period`-th does not */
    struct err none = {0};
    snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", m->arch);
    bool listed = gguf_arr(m->gguf, key, GGUF_BOOL, &by_layer, &none);
    if (listed && by_layer.n != (size_t)m->n_layer)
        return err_set(err, ERR_MODEL, "key %s: %zu values, expected one for each of %d layers", key, by_layer.n, m->n_layer);
    if (!listed)
        period = read_int(&r, "attention.sliding_window_pattern", 0, 1024, period);
    if (r.bad)
        return false;
    snprintf(key, sizeof key, "%s.rope.freq_base_swa", m->arch);
    bool local = window > 0 && (m->family->rope_base_local != 0 || gguf_has(m->gguf, key));
    m->n_rope = local ? 2 : 1;
    for (int i = 0; i < m->n_layer; i++) {
        bool slides = listed ? ((const uint8_t *)by_layer.data)[i] != 0 : period == 0 || i % period != period - 1;
        slides = slides && window > 0;
        m->layer[i].window = slides ? window : 0;
        m->layer[i].rope = local && slides ? 1 : 0;
    }
    return true;
}

/* How the angles of one table set are scaled; see the model cards of YaRN (arXiv 2309.00071) and Llama 3.1. */
struct rope_scaling {
    double base, freq_scale, attn_factor, beta_fast, beta_slow;
    bool yarn;
    int n_ctx_orig;
    const struct gguf_tensor *factors;
};

static bool make_rope(const struct model *m, int n_rot, const struct rope_scaling *s, struct rope *out, struct err *err)
{
    int half = n_rot / 2;
    *out = (struct rope){.n_rot = n_rot, .neox = (m->family->flags & FAM_NEOX) != 0, .mscale = s->attn_factor};
    out->inv_freq = mem_alloc((size_t)half, sizeof(double));
    float *factors = mem_alloc((size_t)half, sizeof(float));
    if (out->inv_freq == NULL || factors == NULL) {
        free(factors);
        return err_set(err, ERR_DEVICE, "no memory for rope tables");
    }
    if (s->factors != NULL)
        qtype_dequant_row(s->factors->type, s->factors->data, (size_t)half, factors);
    double lo = 0, hi = 0;
    if (s->yarn) {    /* dimensions that turn beta_fast and beta_slow times over the original context bound the ramp */
        double per_octave = n_rot / (2 * num_log(s->base));
        lo = floor(per_octave * num_log(s->n_ctx_orig / (s->beta_fast * 2 * M_PI)));
        hi = ceil(per_octave * num_log(s->n_ctx_orig / (s->beta_slow * 2 * M_PI)));
        lo = lo > 0 ? lo : 0;
        hi = hi < n_rot - 1 ? hi : n_rot - 1;
        out->mscale *= s->freq_scale < 1 ? 1.0 + 0.1 * num_log(1.0 / s->freq_scale) : 1.0;
    }
    for (int i = 0; i < half; i++) {
        double f = num_pow(s->base, -2.0 * i / n_rot);
        if (s->factors != NULL)
            f /= (double)factors[i];
        double scaled = f * s->freq_scale;
        if (s->yarn) {
            double t = (i - lo) / (hi - lo > 0.001 ? hi - lo : 0.001);
            t = t < 0 ? 0 : t > 1 ? 1 : t;
            scaled = scaled * t + f * (1 - t);
        }
        out->inv_freq[i] = scaled;
    }
    free(factors);
    return true;
}

enum { ROPE_PAIRS = 256 };    /* of the largest head */

static bool rope_factors(const struct model *m, const char *name, int half, const struct gguf_tensor **out, struct err *err)
{
    float v[ROPE_PAIRS];
    *out = gguf_tensor(m->gguf, name);
    if (*out == NULL)
        return true;
    if (!check_shape(*out, VECTOR, half, 1, 1, err))
        return false;
    qtype_dequant_row((*out)->type, (*out)->data, (size_t)half, v);
    for (int i = 0; i < half; i++)
        if (!(v[i] >= 1e-3f && isfinite(v[i])))
            return err_set(err, ERR_MODEL, "tensor %s[%d]: %g, expected a number from 0.001", name, i, (double)v[i]);
    return true;
}

bool model_rope(const struct model *m, int n_ctx, struct rope rope[ROPE_MAX], struct err *err)
{
    struct reader r = {.g = m->gguf, .arch = m->arch, .err = err};
    int n_rot = read_int(&r, "rope.dimension_count", 2, m->head_dim, m->head_dim);
    float base = read_float(&r, "rope.freq_base", 10000.0f, (m->family->flags & FAM_OWN_BASE) != 0);
    float factor = read_float(&r, "rope.scaling.factor", read_float(&r, "rope.scale_linear", 0, false), false);
    float beta_fast = read_float(&r, "rope.scaling.yarn_beta_fast", 32, false);
    float beta_slow = read_float(&r, "rope.scaling.yarn_beta_slow", 1, false);
    float attn_factor = read_float(&r, "rope.scaling.attn_factor", 1.0f, false);
    int n_ctx_orig = read_int(&r, "rope.scaling.original_context_length", 1, 1 << 24, m->n_ctx_train);
    bool unscaled = m->family->rope_base_local != 0;
    float base_local = read_float(&r, "rope.freq_base_swa", unscaled ? m->family->rope_base_local : base, false);
    if (r.missing[0] != 0)
        return err_set(err, ERR_MODEL, "missing metadata: %s", r.missing);
    if (r.bad)
        return false;
    char key[128], kind[32];
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->arch);
    if (!copy_str(m->gguf, key, kind, sizeof kind, err))
        return false;
    if (!in_range(m->arch, "rope.freq_base", base, 1.001f, 1e12f, err) ||
        ((factor < 0 || factor > 0) && !in_range(m->arch, "rope.scaling.factor", factor, 1e-3f, 1e6f, err)) ||
        !in_range(m->arch, "rope.scaling.attn_factor", attn_factor, 1e-3f, 1e3f, err) ||
        !in_range(m->arch, "rope.scaling.yarn_beta_fast", beta_fast, 1e-3f, 1e6f, err) ||
        !in_range(m->arch, "rope.scaling.yarn_beta_slow", beta_slow, 1e-3f, 1e6f, err) ||
        (m->n_rope > 1 && !in_range(m->arch, "rope.freq_base_swa", base_local, 1.001f, 1e12f, err)))
        return false;
    if (n_rot % 2 != 0)
        return err_set(err, ERR_MODEL, "key %s.rope.dimension_count: %d, expected an even number", m->arch, n_rot);
    static const char *const kinds[] = {"", "none", "linear", "yarn", "longrope", "llama3"};
    bool known = false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        known = known || strcmp(kind, kinds[i]) == 0;
    if (!known)
        return err_set(err, ERR_MODEL, "key %s: \"%s\", allowed none, linear, yarn, longrope, llama3", key, kind);

    struct rope_scaling s = {.base = base, .freq_scale = 1, .attn_factor = attn_factor, .beta_fast = beta_fast,
                             .beta_slow = beta_slow, .n_ctx_orig = n_ctx_orig};
    s.yarn = strcmp(kind, "yarn") == 0;
    if (factor > 0 && (kind[0] == 0 || s.yarn || strcmp(kind, "linear") == 0))
        s.freq_scale = 1.0 / (double)factor;
    const struct gguf_tensor *freqs, *shorter, *longer;
    if (!rope_factors(m, "rope_freqs.weight", n_rot / 2, &freqs, err) ||
        !rope_factors(m, "rope_factors_short.weight", n_rot / 2, &shorter, err) ||
        !rope_factors(m, "rope_factors_long.weight", n_rot / 2, &longer, err))
        return false;
    if ((shorter == NULL) != (longer == NULL))
        return err_set(err, ERR_MODEL, "tensor rope_factors_%s.weight is missing", shorter == NULL ? "short" : "long");
    if (strcmp(kind, "longrope") == 0 && longer == NULL && freqs == NULL)
        return err_set(err, ERR_MODEL, "tensor rope_factors_long.weight is missing (key %s: longrope)", key);
    s.factors = freqs != NULL ? freqs : n_ctx > n_ctx_orig ? longer : shorter;
    memset(rope, 0, ROPE_MAX * sizeof *rope);
    if (!make_rope(m, n_rot, &s, &rope[0], err))
        return false;
    struct rope_scaling local = s;
    if (unscaled)
        local = (struct rope_scaling){.freq_scale = 1, .attn_factor = 1};
    local.base = base_local;
    return m->n_rope < 2 || make_rope(m, n_rot, &local, &rope[1], err);
}

/* ---- names ---- */

static const struct {
    uint32_t id;
    const char *name;
} file_types[] = {
    {0, "F32"}, {1, "F16"}, {2, "Q4_0"}, {3, "Q4_1"}, {7, "Q8_0"}, {8, "Q5_0"}, {9, "Q5_1"}, {10, "Q2_K"},
    {11, "Q3_K_S"}, {12, "Q3_K_M"}, {13, "Q3_K_L"}, {14, "Q4_K_S"}, {15, "Q4_K_M"}, {16, "Q5_K_S"}, {17, "Q5_K_M"},
    {18, "Q6_K"}, {21, "Q2_K_S"}, {25, "IQ4_NL"}, {30, "IQ4_XS"}, {32, "BF16"}, {38, "MXFP4"},
};

static void name_quant(struct model *m)
{
    uint32_t id = UINT32_MAX;
    gguf_u32(m->gguf, "general.file_type", 0, UINT32_MAX - 1, &id, NULL);
    for (size_t i = 0; i < sizeof file_types / sizeof *file_types; i++)
        if (file_types[i].id == id)
            snprintf(m->quant, sizeof m->quant, "%s", file_types[i].name);
    if (m->quant[0] != 0)
        return;
    size_t bytes[QTYPE_N] = {0};
    int best = 0;
    for (size_t i = 0; i < gguf_n_tensors(m->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->gguf, i);
        bytes[t->type] += t->bytes;
        if (bytes[t->type] > bytes[best])
            best = (int)t->type;
    }
    snprintf(m->quant, sizeof m->quant, "%s", qtype_name((enum qtype)best));
}

/* The llama architecture serves several families that differ in their tokenizer only. */
static void name_type(struct model *m)
{
    char tok[32], pre[32];
    const char *type = m->family->type;
    if (type == NULL) {
        copy_str(m->gguf, "tokenizer.ggml.model", tok, sizeof tok, NULL);
        copy_str(m->gguf, "tokenizer.ggml.pre", pre, sizeof pre, NULL);
        type = strcmp(tok, "llama") == 0      ? "llama2"
               : strcmp(pre, "llama-bpe") == 0 ? "llama3"
               : strcmp(pre, "smollm") == 0    ? "smollm2"
                                               : "llama";
    }
    snprintf(m->type, sizeof m->type, "%s", type);
}

struct model *model_open(const struct gguf *g, struct err *err)
{
    struct model *m = mem_alloc(1, sizeof *m);
    if (m == NULL) {
        err_set(err, ERR_DEVICE, "no memory for the model's description");
        return NULL;
    }
    m->gguf = g;
    char families[128];
    family_list(families, sizeof families);
    if (!copy_str(g, "general.architecture", m->arch, sizeof m->arch, err) || !copy_str(g, "general.name", m->name, sizeof m->name, err))
        goto fail;
    if (m->arch[0] == 0) {
        err_set(err, ERR_MODEL, "missing metadata: general.architecture (supported: %s)", families);
        goto fail;
    }
    m->family = family_find(m->arch);
    if (m->family == NULL) {
        err_set(err, ERR_MODEL, "key general.architecture: \"%s\" is not supported; supported: %s", m->arch, families);
        goto fail;
    }
    if (!read_shape(m, err) || !check_unsupported(m, err) || !bind_tensors(m, err) || !read_windows(m, err))
        goto fail;
    m->act = m->family->act;
    m->embed_scale = m->family->flags & FAM_EMBED_SCALE ? sqrtf((float)m->dim) : 1.0f;
    bool by_dim = m->family->by_dim_layers == m->n_layer;
    m->attn_scale = 1.0f / sqrtf((float)(by_dim ? m->dim / m->n_head : m->head_dim));
    name_quant(m);
    name_type(m);
    struct rope rope[ROPE_MAX] = {0};
    bool ok = model_rope(m, m->n_ctx_train, rope, err);
    for (int i = 0; i < ROPE_MAX; i++)
        free(rope[i].inv_freq);
    if (ok)
        return m;
fail:
    if (err != NULL && strncmp(err->msg, gguf_path(g), strlen(gguf_path(g))) != 0)    /* gguf.h's own name the file */
        err_prefix(err, "%s", gguf_path(g));
    model_close(m);
    return NULL;
}

void model_close(struct model *m)
{
    if (m == NULL)
        return;
    free(m->layer);
    free(m);
}
