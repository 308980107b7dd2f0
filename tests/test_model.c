/* model: what a good file becomes, for every family, and how a wrong one is refused: by the name of
 * the key or tensor, what was found and what is expected. A16, A17 and A20 are classes of hostile
 * model files. */
#include "engine/family.h"
#include "engine/model.h"
#include "tests/tiny.h"

#include <check.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T_U8 = 0, T_U32 = 4, T_I32 = 5, T_F32 = 6, T_BOOL = 7 }; /* GGUF's numbers */

static const char *const tiny_names[] = {"llama2", "llama3", "llama32",   "smollm2",
                                         "qwen2",  "phi3",   "phi3swa",   "phi3long",
                                         "qwen3",  "gemma3", "gemma3lin", "gptoss"};
enum { N_TINY = sizeof tiny_names / sizeof *tiny_names };

typedef void edit_fn(struct ggufw *w, void *arg);

struct opened {
    struct tiny_spec spec;
    struct buf image;
    struct gguf *gguf;
    struct model *model;
    struct err err;
};

/* A tiny model, changed by edit, as far as it opens. */
static struct opened open_tiny(const char *preset, const char *type, edit_fn *edit, void *arg)
{
    struct opened o = {0};
    ck_assert(tiny_preset(preset, type, &o.spec, &o.err));
    o.spec.n_vocab = TINY_VOCAB_MIN;
    if (strcmp(type, "F32") == 0) /* any shape can be written */
        o.spec.expert_type = type;
    o.spec.edit = edit;
    o.spec.edit_arg = arg;
    ck_assert_msg(tiny_image(&o.spec, &o.image, &o.err), "%s", o.err.msg);
    o.gguf = gguf_from_memory(o.image.data, o.image.len, &o.err);
    ck_assert_msg(o.gguf != NULL, "%s", o.err.msg);
    o.model = model_open(o.gguf, &o.err);
    return o;
}

static void close_tiny(struct opened *o)
{
    model_close(o->model);
    gguf_close(o->gguf);
    buf_free(&o->image);
}

/* The message must hold the file's name and every piece (NULL ends them). */
static void refused(const char *preset, const char *type, edit_fn *edit, void *arg, ...)
{
    struct opened o = open_tiny(preset, type, edit, arg);
    ck_assert_msg(o.model == NULL, "%s: accepted a wrong file", preset);
    ck_assert_msg(o.err.code == ERR_MODEL, "%s: code %d: %s", preset, o.err.code, o.err.msg);
    ck_assert_msg(strncmp(o.err.msg, "memory: ", 8) == 0 && strstr(o.err.msg + 8, "memory: ") == NULL,
                  "the file's name is not once in: %s", o.err.msg);
    va_list ap;
    va_start(ap, arg);
    for (const char *p = va_arg(ap, const char *); p != NULL; p = va_arg(ap, const char *))
        ck_assert_msg(strstr(o.err.msg, p) != NULL, "%s: \"%s\" not in: %s", preset, p, o.err.msg);
    va_end(ap);
    close_tiny(&o);
}

/* ---- edits ---- */

static void drop_keys(struct ggufw *w, void *arg) /* names, NULL at the end */
{
    for (const char *const *key = arg; *key != NULL; key++)
        ggufw_drop(w, *key);
}

struct value {
    const char *key;
    uint32_t type;
    uint32_t bits;
};

static void set_value(struct ggufw *w, void *arg)
{
    const struct value *v = arg;
    ggufw_raw(w, v->key, v->type, &v->bits, v->type == T_U8 ? 1 : 4);
}

static void drop_tensor(struct ggufw *w, void *arg)
{
    ggufw_drop_tensor(w, arg);
}

struct shape {
    const char *name;
    uint64_t ne[3];
};

static void set_shape(struct ggufw *w, void *arg)
{
    const struct shape *s = arg;
    struct ggufw_tensor *t = ggufw_find(w, s->name);
    ck_assert_ptr_nonnull(t);
    ggufw_reshape(t, s->ne[0], s->ne[1], s->ne[2]);
}

static void quantise_tensor(struct ggufw *w, void *arg)
{
    struct ggufw_tensor *t = ggufw_find(w, arg);
    ck_assert_ptr_nonnull(t);
    t->type = qtype_info(QTYPE_Q8_0)->gguf_id;
    ggufw_reshape(t, t->ne[0], t->ne[1], t->ne[2]);
}

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

struct str_value {
    const char *key, *value;
};

static void set_string(struct ggufw *w, void *arg)
{
    const struct str_value *v = arg;
    ggufw_str(w, v->key, v->value);
}

/* ---- good files ---- */

START_TEST(reads_every_family)
{
    static const char *const types[] = {"llama2",  "llama3", "llama3", "smollm2",
                                        "qwen2.5", "phi3",   "phi3",   "phi3",
                                        "qwen3",   "gemma3", "gemma3", "gpt-oss"};
    for (int i = 0; i < N_TINY; i++) {
        struct opened o = open_tiny(tiny_names[i], "Q4_0", NULL, NULL);
        const struct tiny_spec *s = &o.spec;
        const struct model *m = o.model;
        ck_assert_msg(m != NULL, "%s: %s", tiny_names[i], o.err.msg);
        ck_assert_str_eq(m->arch, s->family);
        ck_assert_str_eq(m->type, types[i]);
        ck_assert_str_eq(m->quant, "Q4_0");
        ck_assert(strstr(m->name, "seed 1") != NULL);
        ck_assert(m->n_layer == s->n_layer && m->dim == s->dim && m->n_head == s->n_head);
        ck_assert(m->n_kv_head == s->n_kv_head && m->head_dim == s->head_dim && m->n_ff == s->n_ff);
        ck_assert(m->n_vocab == s->n_vocab && m->n_ctx_train == s->n_ctx);
        ck_assert(m->n_expert == s->n_expert && m->n_expert_used == s->n_expert_used);
        ck_assert(m->norm_eps == s->norm_eps);
        ck_assert((m->output == m->token_embd) == s->tied);
        ck_assert(fabsf(m->attn_scale - 1.0f / sqrtf((float)s->head_dim)) < 1e-7f);
        close_tiny(&o);
    }
}
END_TEST

/* Every weight of every layer: rows and columns as the seam wants them, slices of fused tensors one
 * behind the other. */
START_TEST(binds_every_weight)
{
    for (int i = 0; i < N_TINY; i++) {
        struct opened o = open_tiny(tiny_names[i], "Q8_0", NULL, NULL);
        const struct model *m = o.model;
        ck_assert_msg(m != NULL, "%s", o.err.msg);
        int q = m->n_head * m->head_dim, kv = m->n_kv_head * m->head_dim,
            stack = m->n_expert ? m->n_expert : 1;
        bool fused = strcmp(m->arch, "phi3") == 0;
        for (int l = 0; l < m->n_layer; l++) {
            const struct model_layer *y = &m->layer[l];
            const struct {
                struct weight w;
                int row0, rows, cols, n_mat;
            } want[] = {
                {y->q, 0, q, m->dim, 1},
                {y->k, fused ? q : 0, kv, m->dim, 1},
                {y->v, fused ? q + kv : 0, kv, m->dim, 1},
                {y->o, 0, m->dim, q, 1},
                {y->gate, 0, m->n_ff, m->dim, stack},
                {y->up, fused ? m->n_ff : 0, m->n_ff, m->dim, stack},
                {y->down, 0, m->dim, m->n_ff, stack},
            };
            for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
                const struct weight *w = &want[k].w;
                ck_assert_ptr_nonnull(w->tensor);
                ck_assert(w->row0 == want[k].row0 && w->rows == want[k].rows);
                ck_assert(w->cols == want[k].cols && w->n_mat == want[k].n_mat);
                ck_assert_int_le(w->row0 + w->rows, w->tensor->ne[1]);
            }
            ck_assert(y->attn_norm != NULL && y->ffn_norm != NULL);
            ck_assert((y->q_bias.tensor != NULL) == o.spec.qkv_bias);
            ck_assert((y->q_norm != NULL) == (strstr("qwen3 gemma3", m->arch) != NULL));
            ck_assert((y->post_ffn_norm != NULL) == (strcmp(m->arch, "gemma3") == 0));
            ck_assert((y->sinks != NULL) == (m->n_expert > 0));
            ck_assert((y->router != NULL) == (m->n_expert > 0));
        }
        close_tiny(&o);
    }
}
END_TEST

START_TEST(windows_by_layer)
{
    static const struct {
        const char *preset;
        int window[7];
    } want[] = {
        {"qwen2", {0, 0}},     {"phi3", {2047, 2047}},
        {"phi3swa", {16, 16}}, {"gemma3", {8, 8, 8, 8, 8, 0, 8}},
        {"gptoss", {8, 0, 8}},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct opened o = open_tiny(want[i].preset, "Q4_0", NULL, NULL);
        ck_assert_msg(o.model != NULL, "%s", o.err.msg);
        for (int l = 0; l < o.model->n_layer; l++)
            ck_assert_int_eq(o.model->layer[l].window, want[i].window[l]);
        close_tiny(&o);
    }
}
END_TEST

static void as_converted_first(struct ggufw *w, void *ctx)
{
    ggufw_drop(w, "phi3.attention.sliding_window");
    ggufw_drop(w, "phi3.context_length");
    ggufw_u32(w, "phi3.context_length", *(uint32_t *)ctx);
}

START_TEST(phi3_4k_slides_without_a_key)
{
    for (int i = 0; i < 2; i++) {
        uint32_t ctx = i == 0 ? 4096 : 8192;
        struct opened o = open_tiny("phi3", "Q4_0", as_converted_first, &ctx);
        ck_assert_msg(o.model != NULL, "%s", o.err.msg);
        ck_assert_int_eq(o.model->layer[0].window, i == 0 ? 2047 : 0);
        close_tiny(&o);
    }
}
END_TEST

/* Keys and tensors of real files that ask for nothing; Gemma 3 27B's scores are divided by another number. */
static void add_harmless(struct ggufw *w, void *arg)
{
    (void)arg;
    ggufw_f32(w, "gemma3.final_logit_softcapping", 0);
    ggufw_f32(w, "gemma3.rope.scaling.yarn_ext_factor", 1);
    ggufw_f32(w, "gemma3.rope.scaling.yarn_beta_fast", 32);
    ggufw_u32(w, "gemma3.attention.sliding_window_pattern", 3);
    ggufw_tensor(w, "v.blk.0.attn_q.weight", QTYPE_F32, 100, 1, 1);
    ggufw_tensor(w, "mm.input_projection.weight", QTYPE_F32, 100, 1, 1);
    ggufw_u32(w, "gemma3.block_count", 7);
}

START_TEST(what_real_files_hold_besides)
{
    struct opened o = open_tiny("gemma3", "Q8_0", add_harmless, NULL);
    ck_assert_msg(o.model != NULL, "%s", o.err.msg);
    for (int l = 0; l < 7; l++)
        ck_assert_int_eq(o.model->layer[l].window, l % 3 == 2 ? 0 : 8);
    close_tiny(&o);
    struct tiny_spec spec;
    ck_assert(tiny_preset("gemma3", "Q8_0", &spec, &o.err));
    spec.n_layer = 62;
    o = (struct opened){0};
    ck_assert_msg(tiny_image(&spec, &o.image, &o.err), "%s", o.err.msg);
    o.gguf = gguf_from_memory(o.image.data, o.image.len, &o.err);
    o.model = model_open(o.gguf, &o.err);
    ck_assert_msg(o.model != NULL, "%s", o.err.msg);
    ck_assert(fabsf(o.model->attn_scale - 1.0f / sqrtf((float)(spec.dim / spec.n_head))) < 1e-7f);
    close_tiny(&o);
}
END_TEST

START_TEST(names_the_quantisation)
{
    struct opened o = open_tiny("qwen2", "Q4_K_M", NULL, NULL);
    ck_assert_str_eq(o.model->quant, "Q4_K_M");
    close_tiny(&o);
    o = open_tiny("qwen2", "Q5_1", drop_keys,
                  (const char *[]){"general.file_type", "general.name", NULL});
    ck_assert_str_eq(o.model->quant, "Q5_1");
    ck_assert_str_eq(o.model->name, "");
    close_tiny(&o);
}
END_TEST

/* Frequencies against the definitions, written here once more with libm. */
START_TEST(rope_tables)
{
    struct rope r[ROPE_MAX];
    struct opened o = open_tiny("llama2", "Q4_0", NULL, NULL);
    ck_assert(model_rope(o.model, 4096, r, &o.err));
    ck_assert(r[0].n_rot == 32 && !r[0].neox && r[0].mscale == 1 && r[1].inv_freq == NULL);
    for (int i = 0; i < 16; i++)
        ck_assert_double_eq_tol(r[0].inv_freq[i] * pow(10000, 2.0 * i / 32), 1, 1e-12);
    free(r[0].inv_freq);
    close_tiny(&o);

    o = open_tiny("llama32", "Q4_0", NULL, NULL); /* factors 1 to 8 over 16 pairs */
    ck_assert(model_rope(o.model, 4096, r, &o.err));
    for (int i = 0; i < 16; i++)
        ck_assert_double_eq_tol(r[0].inv_freq[i] * pow(5e5, 2.0 * i / 32) * (1 + 7.0 * i / 15), 1,
                                1e-6);
    free(r[0].inv_freq);
    close_tiny(&o);

    o = open_tiny("phi3long", "Q4_0", NULL,
                  NULL); /* long factors beyond the original 256 positions */
    for (int ctx = 256; ctx <= 257; ctx++) {
        ck_assert(model_rope(o.model, ctx, r, &o.err));
        ck_assert(r[0].n_rot == 96 && r[0].neox && fabs(r[0].mscale - 1.1902381) < 1e-6);
        double last = ctx > 256 ? 6.0 : 1.5;
        ck_assert_double_eq_tol(r[0].inv_freq[47] * pow(1e4, 94.0 / 96) * last, 1, 1e-6);
        free(r[0].inv_freq);
    }
    close_tiny(&o);

    o = open_tiny("gemma3lin", "Q4_0", NULL,
                  NULL); /* global layers scaled, sliding ones with a base of their own */
    ck_assert(model_rope(o.model, 4096, r, &o.err));
    ck_assert_int_eq(o.model->n_rope, 2);
    ck_assert(o.model->layer[0].rope == 1 && o.model->layer[5].rope == 0);
    ck_assert_double_eq_tol(r[0].inv_freq[3] * pow(1e6, 6.0 / 32) * 8, 1, 1e-12);
    ck_assert_double_eq_tol(r[1].inv_freq[3] * pow(1e4, 6.0 / 32), 1, 1e-12);
    free(r[0].inv_freq);
    free(r[1].inv_freq);
    close_tiny(&o);

    o = open_tiny("gptoss", "Q4_0", NULL,
                  NULL); /* YaRN: fast pairs as they are, slow ones 32 times slower */
    ck_assert(model_rope(o.model, 4096, r, &o.err));
    ck_assert_double_eq_tol(r[0].inv_freq[0], 1, 1e-12);
    ck_assert_double_eq_tol(r[0].inv_freq[15] * pow(150000, 30.0 / 32) * 32, 1, 1e-9);
    ck_assert_double_eq_tol(r[0].mscale, 1 + 0.1 * log(32), 1e-9);
    free(r[0].inv_freq);
    close_tiny(&o);

    /* sliding layers with a base of their own, scaled as the others; a factor below 1 does not lower the scores */
    struct value swa = {"gpt-oss.rope.freq_base_swa", T_F32, bits_of(20000)};
    o = open_tiny("gptoss", "Q4_0", set_value, &swa);
    ck_assert(model_rope(o.model, 4096, r, &o.err));
    ck_assert(o.model->n_rope == 2 && o.model->layer[0].rope == 1 && o.model->layer[1].rope == 0);
    ck_assert_double_eq_tol(r[0].inv_freq[15] * pow(150000, 30.0 / 32) * 32, 1, 1e-9);
    ck_assert_double_eq_tol(r[1].inv_freq[15] * pow(20000, 30.0 / 32) * 32, 1, 1e-9);
    ck_assert(r[1].mscale == r[0].mscale);
    free(r[0].inv_freq);
    free(r[1].inv_freq);
    close_tiny(&o);
    struct value half = {"gpt-oss.rope.scaling.factor", T_F32, bits_of(0.5f)};
    o = open_tiny("gptoss", "Q4_0", set_value, &half);
    ck_assert(model_rope(o.model, 4096, r, &o.err));
    ck_assert(r[0].mscale == 1);
    ck_assert_double_eq_tol(r[0].inv_freq[15] * pow(150000, 30.0 / 32) / 2, 1, 1e-9);
    free(r[0].inv_freq);
    close_tiny(&o);
}
END_TEST

/* ---- wrong files ---- */

START_TEST(A16_missing_keys)
{
    static const char *const keys[] = {
        "qwen2.block_count",          "qwen2.embedding_length",
        "qwen2.attention.head_count", "qwen2.feed_forward_length",
        "qwen2.context_length",       "qwen2.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        refused("qwen2", "Q4_0", drop_keys, (const char *[]){keys[i], NULL}, "missing", keys[i],
                NULL);
    refused("qwen2", "Q4_0", drop_keys, (const char *[]){"general.architecture", NULL},
            "general.architecture", "qwen2", NULL);
    refused("qwen2", "Q4_0", drop_keys, (const char *[]){keys[0], keys[1], keys[6], NULL}, keys[0],
            keys[1], keys[6], NULL);
    refused("gptoss", "Q4_0", drop_keys,
            (const char *[]){"gpt-oss.expert_count", "gpt-oss.expert_used_count", NULL},
            "gpt-oss.expert_count", "gpt-oss.expert_used_count", NULL);
}
END_TEST

START_TEST(A17_block_count)
{
    struct value v = {"llama.block_count", T_U32, 0};
    refused("llama3", "Q4_0", set_value, &v, "llama.block_count", "value 0, expected 1 to", NULL);
    v.bits = 1u << 31;
    refused("llama3", "Q4_0", set_value, &v, "llama.block_count", "2147483648", NULL);
    v.bits = UINT32_MAX;
    v.type = T_I32;
    refused("llama3", "Q4_0", set_value, &v, "llama.block_count", "value -1", NULL);
    v.bits = 12;
    v.type = T_U32;
    refused("llama3", "Q4_0", set_value, &v, "blk.2.attn_norm.weight", "missing", "12 layers",
            NULL);
}
END_TEST

START_TEST(A20_shapes_against_metadata)
{
    struct value v = {"qwen2.embedding_length", T_U32, 448};
    refused("qwen2", "F32", set_value, &v, "tensor token_embd.weight", "[224, 384",
            "expected [448, 384", NULL);
    v = (struct value){"qwen2.attention.head_count", T_U32, 15};
    refused("qwen2", "Q4_0", set_value, &v, "attention.head_count", "15", "224", NULL);
    v = (struct value){"llama.attention.head_count_kv", T_U32, 4};
    refused("llama3", "Q4_0", set_value, &v, "head_count_kv", "4", "6", NULL);
    v = (struct value){"llama.attention.head_count", T_U32, 48};
    refused("llama3", "Q4_0", set_value, &v, "head dimension 4", "multiple of 8", NULL);
    v = (struct value){"qwen3.attention.value_length", T_U32, 64};
    refused("qwen3", "Q4_0", set_value, &v, "value_length", "64", "32", NULL);
}
END_TEST

/* A tensor without which the model still has a meaning. */
static bool is_optional(const struct tiny_spec *s, const char *name)
{
    return (strcmp(name, "output.weight") == 0 && s->n_expert == 0) || strcmp(name, "rope_freqs.weight") == 0 ||
           (strncmp(name, "rope_factors", 12) == 0 && !s->long_rope);
}

/* Every dimension of a tensor one less and one more, and its rows as columns. */
static void refuse_shapes(const char *preset, const struct gguf_tensor *t)
{
    const uint64_t ne[3] = {(uint64_t)t->ne[0], (uint64_t)t->ne[1], (uint64_t)t->ne[2]};
    for (int i = 0; i < 7; i++) {
        struct shape to = {t->name, {ne[0], ne[1], ne[2]}};
        char found[100];
        if (i < 6) {
            to.ne[i / 2] += i % 2 ? 1 : (uint64_t)-1;
        } else {
            to.ne[0] = ne[1];
            to.ne[1] = ne[0];
        }
        bool same = to.ne[0] == ne[0] && to.ne[1] == ne[1] && to.ne[2] == ne[2];
        if (same || to.ne[0] == 0 || to.ne[1] == 0 || to.ne[2] == 0)
            continue;
        snprintf(found, sizeof found, "shape [%d, %d, %d, 1]", (int)to.ne[0], (int)to.ne[1],
                 (int)to.ne[2]);
        refused(preset, "F32", set_shape, &to, t->name, found, "expected [", NULL);
    }
}

/* Every tensor of every family, taken away, with another shape, and quantised where it must not be.
 */
START_TEST(each_tensor_is_checked)
{
    static const char *const presets[] = {"llama32",  "llama2", "qwen2",  "phi3",
                                          "phi3long", "qwen3",  "gemma3", "gptoss"};
    const char *preset = presets[_i];
    struct opened o = open_tiny(preset, "F32", NULL, NULL);
    ck_assert_msg(o.model != NULL, "%s", o.err.msg);
    for (size_t i = 0; i < gguf_n_tensors(o.gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(o.gguf, i);
        char name[100];
        snprintf(name, sizeof name, "%s", t->name);
        if (strncmp(name, "blk.", 4) == 0 && strncmp(name, "blk.1.", 6) != 0)
            continue;
        if (!is_optional(&o.spec, name))
            refused(preset, "F32", drop_tensor, name, name, "missing", NULL);
        if (strcmp(name, "token_embd.weight") != 0) /* its rows are the vocabulary's size */
            refuse_shapes(preset, t);
        bool vector = t->ne[1] == 1 || strstr(name, ".bias") != NULL || strstr(name, "gate_inp") != NULL;
        if (vector && t->ne[0] % 32 == 0)
            refused(preset, "F32", quantise_tensor, name, name, "Q8_0", "expected F32", NULL);
    }
    close_tiny(&o);
}
END_TEST

/* What is particular to a family: keys of theirs that are wrong or lie about the tensors, and
 * tensors that may be there but then must be right. */
static void add_wrong_bias(struct ggufw *w, void *arg)
{
    ggufw_tensor(w, arg, QTYPE_F32, 100, 1, 1);
}

/* The first value of a tensor whose values lie on a line. */
struct line {
    const char *name;
    float first;
};

static void set_first(struct ggufw *w, void *arg)
{
    const struct line *l = arg;
    struct ggufw_tensor *t = ggufw_find(w, l->name);
    ck_assert_ptr_nonnull(t);
    t->a = l->first;
}

/* 64 for each of 1,024 rows were one block more than a grid of a card holds. */
static void use_many_experts(struct ggufw *w, void *arg)
{
    (void)arg;
    ggufw_u32(w, "gpt-oss.expert_count", 40);
    ggufw_u32(w, "gpt-oss.expert_used_count", 33);
}

static void drop_factors(struct ggufw *w, void *arg)
{
    (void)arg;
    ggufw_str(w, "phi3.rope.scaling.type", "longrope");
    ggufw_drop_tensor(w, "rope_factors_short.weight");
    ggufw_drop_tensor(w, "rope_factors_long.weight");
}

/* Values for each layer. */
struct list {
    const char *key;
    uint32_t type;
    int n;
    uint32_t v[7];    /* bools are one byte each */
};

static void set_list(struct ggufw *w, void *arg)
{
    const struct list *l = arg;
    uint8_t bytes[7];
    for (int i = 0; i < l->n; i++)
        bytes[i] = (uint8_t)l->v[i];
    bool small = l->type == T_BOOL;
    ggufw_arr(w, l->key, l->type, small ? (const void *)bytes : l->v, (size_t)l->n, small ? 1 : 4);
}

START_TEST(particulars_of_families)
{
    const struct {
        const char *preset;
        struct value v;
        const char *where, *found, *expected;
    } keys[] = {
        {"gptoss", {"gpt-oss.expert_count", T_U32, 5}, "ffn_gate_inp.weight", "[96, 6,", "[96, 5,"},
        {"gptoss", {"gpt-oss.expert_count", T_U32, 7}, "ffn_gate_inp.weight", "[96, 6,", "[96, 7,"},
        {"gptoss", {"gpt-oss.expert_count", T_U32, 0}, "expert_used_count", "4", "allowed"},
        {"gptoss", {"gpt-oss.expert_used_count", T_U32, 65}, "expert_used_count", "65", "1 to 6"},
        {"gptoss", {"gpt-oss.expert_feed_forward_length", T_U32, 96}, "ffn_gate_exps.weight", "[96, 64, 6", "[96, 96, 6"},
        {"gptoss", {"gpt-oss.attention.head_count", T_U32, 16}, "blk.0.attn_q.weight", "[96, 256,", "[96, 512,"},
        {"gptoss", {"gpt-oss.attention.head_count_kv", T_U32, 8}, "blk.0.attn_k.weight", "[96, 64,", "[96, 256,"},
        {"gptoss", {"gpt-oss.attention.sliding_window", T_U32, 0xFFFFFFFF}, "sliding_window", "4294967295", "0 to"},
        {"phi3", {"phi3.attention.head_count_kv", T_U32, 1}, "blk.0.attn_qkv.weight", "[192, 576,", "[192, 384,"},
        {"phi3", {"phi3.feed_forward_length", T_U32, 448}, "blk.0.ffn_up.weight", "[192, 448,", "[192, 896,"},
        {"phi3long", {"phi3.rope.dimension_count", T_U32, 64}, "rope_factors_short.weight", "[48,", "[32,"},
        {"llama32", {"llama.rope.dimension_count", T_U32, 16}, "rope_freqs.weight", "[16,", "[8,"},
        {"qwen3", {"qwen3.attention.key_length", T_U32, 16}, "value_length", "32", "16"},
        {"gemma3", {"gemma3.attention.key_length", T_U32, 64}, "value_length", "32", "64"},
        {"gemma3", {"gemma3.attention.sliding_window", T_F32, 8}, "sliding_window", "f32", "integer"},
        {"gemma3", {"gemma3.rope.freq_base_swa", T_F32, bits_of(0.5f)}, "freq_base_swa", "0.5", "allowed"},
        {"qwen2", {"qwen2.feed_forward_length", T_U32, 1 << 20}, "feed_forward_length", "1048576", "expected"},
        {"qwen2", {"qwen2.attention.head_count", T_U32, 1025}, "head_count", "1025", "1 to 1024"},
        {"qwen2", {"qwen2.attention.head_count_kv", T_U32, 3}, "head_count_kv", "3", "14"},
        {"qwen2", {"qwen2.embedding_length", T_U32, 16}, "embedding_length", "16", "32 to"},
        /* fewer layers than the file has, and arithmetic that is not implemented */
        {"llama3", {"llama.block_count", T_U32, 1}, "tensor blk.1.", "not part of", "1 layers"},
        {"llama3", {"llama.attn_logit_softcapping", T_F32, bits_of(50)}, "attn_logit_softcapping", "50", "expected 0"},
        {"gemma3", {"gemma3.final_logit_softcapping", T_F32, bits_of(30)}, "final_logit_softcapping", "30", "expected 0"},
        {"llama3", {"llama.attention.scale", T_F32, bits_of(0.5f)}, "attention.scale", "0.5", "expected 0"},
        {"llama3", {"llama.embedding_scale", T_F32, bits_of(12)}, "embedding_scale", "12", "expected 1"},
        {"llama3", {"llama.logit_scale", T_U32, 1}, "logit_scale", "type u32", "f32"},
        {"qwen2", {"qwen2.rope.scaling.yarn_ext_factor", T_F32, bits_of(0)}, "yarn_ext_factor", "0", "expected 1"},
        {"qwen2", {"qwen2.rope.scaling.yarn_attn_factor", T_F32, bits_of(3)}, "yarn_attn_factor", "3", "expected 1"},
        {"gptoss", {"gpt-oss.rope.scaling.yarn_beta_fast", T_F32, bits_of(0)}, "yarn_beta_fast", "0", "allowed"},
        {"gemma3", {"gemma3.attention.sliding_window_pattern", T_U32, 1025}, "sliding_window_pattern", "1025", "0 to"},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct value v = keys[i].v;
        refused(keys[i].preset, "Q8_0", set_value, &v, keys[i].where, keys[i].found, keys[i].expected, NULL);
    }
    refused("gptoss", "Q8_0", use_many_experts, NULL, "expert_used_count", "33", "allowed 1 to 32", NULL);
    refused("llama3", "Q8_0", add_wrong_bias, "blk.1.attn_q.bias", "blk.1.attn_q.bias", "[100,", "expected [192,", NULL);
    refused("llama3", "Q8_0", add_wrong_bias, "blk.1.attn_output.bias", "blk.1.attn_output.bias", "[100,", "[192,", NULL);
    static const char *const strange[] = {"output.bias", "blk.0.ffn_up.bias", "blk.0.attn_q_norm.weight", "blk.00.attn_q.bias",
                                          "blk.0.attn_qkv.weight", "blk.7.attn_norm.weight", "blk.-1.attn_norm.weight", "blk"};
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++)
        refused("llama3", "Q8_0", add_wrong_bias, (void *)strange[i], strange[i], "not part of", NULL);
    refused("llama3", "Q8_0", add_wrong_bias, "rope_freqs.weight", "rope_freqs.weight", "[100,", "expected [16,", NULL);
    refused("phi3", "Q8_0", add_wrong_bias, "rope_factors_long.weight", "rope_factors_long.weight", "[100,", "[48,", NULL);
}
END_TEST

/* Keys that newer files give for each layer: taken where all layers are alike, or may differ. */
START_TEST(values_of_each_layer)
{
    struct list good[] = {
        {"gpt-oss.attention.head_count_kv", T_U32, 3, {2, 2, 2}},
        {"gpt-oss.attention.head_count", T_I32, 3, {8, 8, 8}},
        {"gpt-oss.expert_feed_forward_length", T_U32, 3, {64, 64, 64}},
        {"gpt-oss.feed_forward_length", T_U32, 3, {64, 64, 64}},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct opened o = open_tiny("gptoss", "Q8_0", set_list, &good[i]);
        ck_assert_msg(o.model != NULL, "%s", o.err.msg);
        ck_assert(o.model->n_kv_head == 2 && o.model->n_head == 8 && o.model->n_ff == 64);
        close_tiny(&o);
    }
    struct {
        struct list l;
        const char *found, *expected;
    } bad[] = {
        {{"gpt-oss.attention.head_count_kv", T_U32, 2, {2, 2}}, ": 2 values", "each of 3 layers"},
        {{"gpt-oss.attention.head_count_kv", T_U32, 0, {0}}, ": 0 values", "each of 3 layers"},
        {{"gpt-oss.attention.head_count_kv", T_U32, 3, {2, 4, 2}}, "[1]: value 4", "expected 2 as in layer 0"},
        {{"gpt-oss.attention.head_count_kv", T_I32, 3, {2, 2, (uint32_t)-2}}, "[2]: value -2", "expected 1 to 1024"},
        {{"gpt-oss.attention.head_count", T_F32, 3, {0}}, "type array of f32", "expected an integer"},
        {{"gpt-oss.feed_forward_length", T_U32, 3, {64, 64, 0}}, "[2]: value 0", "expected 32 to"},
        {{"gpt-oss.embedding_length", T_U32, 3, {96, 96, 96}}, "type array of u32", "expected an integer"},
        {{"gpt-oss.attention.sliding_window_pattern", T_BOOL, 4, {1, 0, 1, 0}}, ": 4 values", "each of 3 layers"},
        {{"gpt-oss.attention.sliding_window_pattern", T_U32, 3, {1, 0, 1}}, "type array of u32", "expected an integer"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused("gptoss", "Q8_0", set_list, &bad[i].l, bad[i].l.key, bad[i].found, bad[i].expected, NULL);
    static const struct {
        const char *preset;
        struct list l;
    } patterns[] = {
        {"gemma3", {"gemma3.attention.sliding_window_pattern", T_BOOL, 7, {1, 0, 0, 1, 1, 1, 0}}},
        {"gptoss", {"gpt-oss.attention.sliding_window_pattern", T_BOOL, 3, {0, 1, 1}}},
        {"phi3swa", {"phi3.attention.sliding_window_pattern", T_BOOL, 2, {0, 1}}},
    };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        struct list l = patterns[i].l;
        struct opened o = open_tiny(patterns[i].preset, "Q8_0", set_list, &l);
        ck_assert_msg(o.model != NULL, "%s", o.err.msg);
        for (int k = 0; k < l.n; k++)
            ck_assert_msg((o.model->layer[k].window > 0) == (l.v[k] != 0) &&
                              o.model->layer[k].rope == (i == 0 && l.v[k] != 0), "%s, layer %d", patterns[i].preset, k);
        close_tiny(&o);
    }
}
END_TEST

/* llama.cpp's rule: the rows are as many as there are tokens; the key may count padding. */
START_TEST(size_of_the_vocabulary)
{
    for (uint32_t n = 0; n < 7000; n += 500) {
        struct value v = {"qwen2.vocab_size", T_U32, n};
        if (n > 0 && n <= TINY_VOCAB_MIN + 1024) {
            struct opened o = open_tiny("qwen2", "Q8_0", set_value, &v);
            ck_assert_msg(o.model != NULL && o.model->n_vocab == TINY_VOCAB_MIN, "%s", o.err.msg);
            close_tiny(&o);
        } else {
            refused("qwen2", "Q8_0", set_value, &v, "key qwen2.vocab_size", "expected", n == 0 ? "1 to" : "384 as tensor", NULL);
        }
    }
    refused("qwen2", "Q8_0", drop_keys, (const char *[]){"tokenizer.ggml.tokens", "qwen2.vocab_size", NULL}, "tokens", NULL);
    struct opened o = open_tiny("qwen2", "Q8_0", drop_keys, (const char *[]){"qwen2.vocab_size", NULL});
    ck_assert_msg(o.model != NULL, "%s", o.err.msg);
    close_tiny(&o);
}
END_TEST

/* What the families' authors and llama.cpp do where a key or tensor is missing. */
START_TEST(what_must_be_there)
{
    refused("gptoss", "Q8_0", drop_tensor, "output.weight", "tensor output.weight is missing", "gpt-oss", NULL);
    refused("gptoss", "Q8_0", drop_keys, (const char *[]){"gpt-oss.rope.freq_base", NULL}, "missing metadata: gpt-oss.rope.freq_base", NULL);
    refused("gemma3", "Q8_0", drop_keys, (const char *[]){"gemma3.rope.freq_base", NULL}, "missing metadata: gemma3.rope.freq_base", NULL);
    struct opened o = open_tiny("llama2", "Q8_0", drop_keys, (const char *[]){"llama.rope.freq_base", NULL});
    ck_assert_msg(o.model != NULL, "%s", o.err.msg);
    close_tiny(&o);
    struct value swa = {"gpt-oss.attention.key_length_swa", T_U32, 64};
    refused("gptoss", "Q8_0", set_value, &swa, "gpt-oss.attention.key_length_swa: 64", "expected 32", NULL);
}
END_TEST

START_TEST(values_out_of_range)
{
    const struct {
        const char *preset;
        struct value v;
        const char *piece;
    } bad[] = {
        {"llama3", {"llama.embedding_length", T_U32, 1u << 30}, "1073741824, expected"},
        {"llama3", {"llama.context_length", T_U32, 0}, "value 0, expected 1 to"},
        {"llama3", {"llama.attention.head_count", T_U32, 0}, "value 0, expected 1 to"},
        {"llama3", {"llama.attention.head_count_kv", T_U32, 0}, "value 0, expected 1 to"},
        {"llama3", {"llama.feed_forward_length", T_U32, 0}, "value 0, expected"},
        {"llama3", {"llama.feed_forward_length", T_U8, 200}, "ffn_gate.weight"},
        {"qwen3", {"qwen3.attention.key_length", T_U32, 4096}, "value 4096, expected"},
        {"llama3", {"llama.attention.layer_norm_rms_epsilon", T_F32, bits_of(-1)}, "-1"},
        {"llama3", {"llama.attention.layer_norm_rms_epsilon", T_U32, 0}, "type u32, expected f32"},
        {"llama3", {"llama.attention.layer_norm_rms_epsilon", T_F32, 0x7FC00000}, "NaN"},
        {"llama3", {"llama.rope.freq_base", T_F32, bits_of(0)}, "0"},
        {"llama3", {"llama.rope.freq_base", T_F32, 0x7F800000}, "infinity"},
        {"llama3", {"llama.rope.dimension_count", T_U32, 31}, "31"},
        {"llama3", {"llama.rope.dimension_count", T_U32, 34}, "34"},
        {"llama3", {"llama.expert_count", T_U32, 8}, "8"},
        {"gemma3lin", {"gemma3.rope.scaling.factor", T_F32, bits_of(-8)}, "-8"},
        {"phi3long", {"phi3.rope.scaling.attn_factor", T_F32, bits_of(0)}, "0"},
        {"phi3long",
         {"phi3.rope.scaling.original_context_length", T_U32, 0},
         "value 0, expected 1 to"},
        {"gptoss", {"gpt-oss.expert_used_count", T_U32, 7}, "7"},
        {"gptoss", {"gpt-oss.expert_used_count", T_U32, 0}, "0"},
        {"gptoss", {"gpt-oss.expert_count", T_U32, 100000}, "100000"},
        {"phi3", {"phi3.attention.sliding_window", T_U32, 1u << 31}, "2147483648"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct value v = bad[i].v;
        const char *key = v.type == T_U8 ? "tensor" : v.key;
        refused(bad[i].preset, "Q4_0", set_value, &v, key, bad[i].piece, NULL);
    }
}
END_TEST

START_TEST(angles_that_are_no_numbers)
{
    static const float bad[] = {0, -1, 1e-30f, NAN, INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct line freqs = {"rope_freqs.weight", bad[i]}, longer = {"rope_factors_long.weight", bad[i]};
        refused("llama32", "Q8_0", set_first, &freqs, "tensor rope_freqs.weight[", "expected a number from 0.001", NULL);
        refused("phi3long", "Q8_0", set_first, &longer, "tensor rope_factors_long.weight[", "from 0.001", NULL);
    }
    struct value tiny = {"gemma3.rope.scaling.factor", T_F32, bits_of(1e-30f)};
    refused("gemma3lin", "Q8_0", set_value, &tiny, "rope.scaling.factor", "1e-30", "0.001 to", NULL);
    refused("phi3long", "Q8_0", drop_factors, NULL, "tensor rope_factors_long.weight is missing", "longrope", NULL);
    refused("gptoss", "Q8_0", drop_keys, (const char *[]){"gpt-oss.attention.sliding_window", NULL}, "missing metadata", "sliding_window", NULL);
}
END_TEST

START_TEST(names_that_are_not_known)
{
    struct str_value v = {"general.architecture", "mamba"};
    refused("llama3", "Q4_0", set_string, &v, "general.architecture", "mamba", "llama, qwen2, phi3",
            NULL);
    v.value = "llama\n\x1b[2J";
    refused("llama3", "Q4_0", set_string, &v, "\"llama?" "?[2J\" is not supported", NULL);
    v = (struct str_value){"gemma3.rope.scaling.type", "ntk"};
    refused("gemma3lin", "Q4_0", set_string, &v, "gemma3.rope.scaling.type", "ntk", "linear", NULL);
    v = (struct str_value){"qwen2.block_count", "24"};
    refused("qwen2", "Q4_0", set_string, &v, "qwen2.block_count", "type string", NULL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model");
    TCase *good = tcase_create("good files"), *bad = tcase_create("wrong files");
    tcase_add_test(good, reads_every_family);
    tcase_add_test(good, binds_every_weight);
    tcase_add_test(good, windows_by_layer);
    tcase_add_test(good, phi3_4k_slides_without_a_key);
    tcase_add_test(good, what_real_files_hold_besides);
    tcase_add_test(good, names_the_quantisation);
    tcase_add_test(good, rope_tables);
    tcase_add_test(bad, A16_missing_keys);
    tcase_add_test(bad, A17_block_count);
    tcase_add_test(bad, A20_shapes_against_metadata);
    tcase_add_loop_test(bad, each_tensor_is_checked, 0, 8);
    tcase_add_test(bad, particulars_of_families);
    tcase_add_test(bad, values_of_each_layer);
    tcase_add_test(bad, size_of_the_vocabulary);
    tcase_add_test(bad, what_must_be_there);
    tcase_add_test(bad, values_out_of_range);
    tcase_add_test(bad, angles_that_are_no_numbers);
    tcase_add_test(bad, names_that_are_not_known);
    tcase_set_timeout(bad, 60);
    suite_add_tcase(s, good);
    suite_add_tcase(s, bad);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
