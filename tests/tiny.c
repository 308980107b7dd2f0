#include "tests/tiny.h"

#include "base/mem.h"
#include "tests/tiny_weights.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- presets ---- */

struct shape {
    int dim, n_head, n_kv_head, head_dim, n_ff;
};

struct preset {
    const char *name;
    struct tiny_spec spec;
    struct shape k; /* for types with blocks of 256; zeros = the same */
};

/* clang-format off */
#define SHAPE(d, h, kv, hd, ff, L, V, ctx) .dim = d, .n_head = h, .n_kv_head = kv, .head_dim = hd, \
    .n_ff = ff, .n_layer = L, .n_vocab = V, .n_ctx = ctx
#define LLAMA2 .family = "llama", .vocab = TINY_LLAMA2, .rope_base = 1e4f, .norm_eps = 1e-5f
#define LLAMA3 .family = "llama", .vocab = TINY_LLAMA3, .rope_base = 5e5f, .norm_eps = 1e-5f
#define LLAMA32 LLAMA3, .tied = true, .rope_freqs = true
#define SMOLLM .family = "llama", .vocab = TINY_SMOLLM, .rope_base = 1e5f, .norm_eps = 1e-5f, .tied = true
#define QWEN2 .family = "qwen2", .vocab = TINY_QWEN2, .rope_base = 1e6f, .norm_eps = 1e-6f, \
    .tied = true, .qkv_bias = true
#define PHI3(w, ctx) .family = "phi3", .vocab = TINY_PHI3, .rope_base = 1e4f, .norm_eps = 1e-5f, \
    .window = w, .n_ctx_orig = ctx
#define PHI3_LONG PHI3(262144, 256), .long_rope = true, .attn_factor = 1.1902381f
#define QWEN3 .family = "qwen3", .vocab = TINY_QWEN2, .rope_base = 1e6f, .norm_eps = 1e-6f, .tied = true
#define GEMMA3 .family = "gemma3", .vocab = TINY_GEMMA, .rope_base = 1e6f, .norm_eps = 1e-6f, \
    .tied = true, .window = 8
#define GPT_OSS(w, n) .family = "gpt-oss", .vocab = TINY_GPT_OSS, .rope_base = 150000.0f, \
    .norm_eps = 1e-5f, .qkv_bias = true, .yarn = 32, .n_ctx_orig = 4096, .window = w, \
    .n_expert = n, .n_expert_used = 4
#define NO_K {0, 0, 0, 0, 0}

static const struct preset presets[] = {
    {"llama2",    {LLAMA2, SHAPE(128, 4, 4, 32, 192, 2, 512, 4096)},              {256, 4, 4, 64, 256}},
    {"llama3",    {LLAMA3, SHAPE(192, 6, 2, 32, 256, 2, 512, 8192)},              {256, 8, 2, 32, 512}},
    {"llama32",   {LLAMA32, SHAPE(192, 6, 2, 32, 256, 2, 512, 131072)},           {256, 4, 1, 64, 512}},
    {"smollm2",   {SMOLLM, SHAPE(96, 3, 1, 32, 160, 2, 512, 8192)},               {256, 4, 2, 64, 256}},
    {"qwen2",     {QWEN2, SHAPE(224, 14, 2, 16, 192, 2, 512, 32768)},             {256, 8, 2, 32, 512}},
    {"phi3",      {PHI3(2047, 4096), SHAPE(192, 2, 2, 96, 224, 2, 512, 4096)},    {768, 8, 8, 96, 256}},
    {"phi3swa",   {PHI3(16, 4096), SHAPE(192, 2, 2, 96, 224, 2, 512, 4096)},      {768, 8, 8, 96, 256}},
    {"phi3long",  {PHI3_LONG, SHAPE(192, 2, 2, 96, 224, 2, 512, 2048)},           {768, 8, 8, 96, 256}},
    {"qwen3",     {QWEN3, SHAPE(128, 8, 2, 32, 192, 2, 512, 40960)},              {256, 8, 2, 64, 256}},
    {"gemma3",    {GEMMA3, SHAPE(96, 4, 1, 32, 128, 7, 512, 32768)},              {256, 4, 1, 64, 256}},
    {"gemma3lin", {GEMMA3, .linear = 8, SHAPE(96, 4, 2, 32, 128, 7, 512, 131072)}, {256, 4, 1, 64, 256}},
    {"gptoss",    {GPT_OSS(8, 6), SHAPE(96, 8, 2, 32, 64, 3, 512, 131072)},       {256, 8, 2, 32, 256}},

    {"smollm2-135m", {SMOLLM, SHAPE(576, 9, 3, 64, 1536, 30, 49152, 8192)}, NO_K},
    {"qwen2.5-0.5b", {QWEN2, SHAPE(896, 14, 2, 64, 4864, 24, 151936, 32768)}, NO_K},
    {"qwen3-0.6b", {QWEN3, SHAPE(1024, 16, 8, 128, 3072, 28, 151936, 40960)}, NO_K},
    {"llama-3.2-1b", {LLAMA32, SHAPE(2048, 32, 8, 64, 8192, 16, 128256, 131072)}, NO_K},
    {"phi-3-mini", {PHI3(2047, 4096), SHAPE(3072, 32, 32, 96, 8192, 32, 32064, 4096)}, NO_K},
    {"llama-2-7b", {LLAMA2, SHAPE(4096, 32, 32, 128, 11008, 32, 32000, 4096)}, NO_K},
    {"llama-3-8b", {LLAMA3, SHAPE(4096, 32, 8, 128, 14336, 32, 128256, 8192)}, NO_K},
    {"gpt-oss-2layer", {GPT_OSS(128, 32), SHAPE(2880, 64, 8, 64, 2880, 2, 201088, 131072)}, NO_K},
};
/* clang-format on */

/* The two mixtures that llama-quantize writes: the type most weights have, the type of the
 * sensitive ones. */
static const struct {
    const char *name;
    enum qtype base, more, qkv;
} mixtures[] = {
    {"Q4_K_M", QTYPE_Q4_K, QTYPE_Q6_K, QTYPE_Q5_K},
    {"Q5_K_M", QTYPE_Q5_K, QTYPE_Q6_K, QTYPE_Q6_K},
};
enum { N_MIXTURES = sizeof mixtures / sizeof *mixtures };

/* A type's or mixture's name: *mix is an index into mixtures or -1, *t the (base) type. */
static bool find_type(const char *name, enum qtype *t, int *mix, struct err *err)
{
    *mix = -1;
    for (int i = 0; i < N_MIXTURES; i++)
        if (strcmp(name, mixtures[i].name) == 0) {
            *mix = i;
            *t = mixtures[i].base;
            return true;
        }
    for (int i = 0; i < QTYPE_N; i++)
        if (strcmp(name, qtype_name((enum qtype)i)) == 0) {
            *t = (enum qtype)i;
            return true;
        }
    return err_set(err, ERR_USAGE,
                   "weight type %s: expected one of kernels/qtypes.def, Q4_K_M or Q5_K_M", name);
}

const char *tiny_preset_name(int i)
{
    return i >= 0 && (size_t)i < sizeof presets / sizeof *presets ? presets[i].name : NULL;
}

bool tiny_preset(const char *name, const char *type, struct tiny_spec *spec, struct err *err)
{
    enum qtype t;
    int mix;
    if (!find_type(type, &t, &mix, err))
        return false;
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        const struct preset *p = &presets[i];
        if (strcmp(p->name, name) != 0)
            continue;
        *spec = p->spec;
        spec->type = type;
        spec->seed = 1;
        if (qtype_info(t)->block_weights == 256 && p->k.dim != 0) {
            spec->dim = p->k.dim;
            spec->n_head = p->k.n_head;
            spec->n_kv_head = p->k.n_kv_head;
            spec->head_dim = p->k.head_dim;
            spec->n_ff = p->k.n_ff;
        }
        return true;
    }
    return err_set(err, ERR_USAGE, "no preset is named %s", name);
}

/* ---- metadata ---- */

static const char chatml[] =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

static int file_type(const char *type)
{
    static const struct {
        const char *name;
        int id;
    } ids[] = {
        {"F32", 0},     {"F16", 1},     {"Q4_0", 2},  {"Q4_1", 3},   {"Q8_0", 7},    {"Q5_0", 8},
        {"Q5_1", 9},    {"Q2_K", 10},   {"Q3_K", 12}, {"Q4_K", 15},  {"Q5_K", 17},   {"Q6_K", 18},
        {"IQ4_NL", 25}, {"IQ4_XS", 30}, {"BF16", 32}, {"MXFP4", 38}, {"Q4_K_M", 15}, {"Q5_K_M", 17},
    };
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (strcmp(ids[i].name, type) == 0)
            return ids[i].id;
    return 0;
}

static const char *key_of(const struct tiny_spec *s, const char *suffix, char out[80])
{
    snprintf(out, 80, "%s.%s", s->family, suffix);
    return out;
}

static void arch_u32(struct ggufw *w, const struct tiny_spec *s, const char *suffix, int v)
{
    char key[80];
    ggufw_u32(w, key_of(s, suffix, key), (uint32_t)v);
}

static void arch_f32(struct ggufw *w, const struct tiny_spec *s, const char *suffix, float v)
{
    char key[80];
    ggufw_f32(w, key_of(s, suffix, key), v);
}

static void write_rope_keys(struct ggufw *w, const struct tiny_spec *s)
{
    char key[80];
    arch_f32(w, s, "rope.freq_base", s->rope_base);
    if (strcmp(s->family, "llama") == 0 || strcmp(s->family, "phi3") == 0)
        arch_u32(w, s, "rope.dimension_count", s->head_dim);
    if (s->n_ctx_orig > 0)
        arch_u32(w, s, "rope.scaling.original_context_length", s->n_ctx_orig);
    if (s->attn_factor > 0)
        arch_f32(w, s, "rope.scaling.attn_factor", s->attn_factor);
    if (s->linear > 0 || s->yarn > 0) {
        ggufw_str(w, key_of(s, "rope.scaling.type", key), s->linear > 0 ? "linear" : "yarn");
        arch_f32(w, s, "rope.scaling.factor", s->linear > 0 ? s->linear : s->yarn);
    }
}

static bool write_keys(struct ggufw *w, const struct tiny_spec *s, struct err *err)
{
    char name[96];
    snprintf(name, sizeof name, "random %s %s seed %llu", s->family, s->type,
             (unsigned long long)s->seed);
    ggufw_str(w, "general.architecture", s->family);
    ggufw_str(w, "general.name", name);
    ggufw_u32(w, "general.file_type", (uint32_t)file_type(s->type));
    ggufw_u32(w, "general.quantization_version", 2);
    arch_u32(w, s, "context_length", s->n_ctx);
    arch_u32(w, s, "embedding_length", s->dim);
    arch_u32(w, s, "block_count", s->n_layer);
    arch_u32(w, s, "feed_forward_length", s->n_ff);
    arch_u32(w, s, "attention.head_count", s->n_head);
    arch_u32(w, s, "attention.head_count_kv", s->n_kv_head);
    arch_f32(w, s, "attention.layer_norm_rms_epsilon", s->norm_eps);
    arch_u32(w, s, "vocab_size", s->n_vocab);
    if (s->head_dim * s->n_head != s->dim || strcmp(s->family, "qwen3") == 0 ||
        strcmp(s->family, "gemma3") == 0 || strcmp(s->family, "gpt-oss") == 0) {
        arch_u32(w, s, "attention.key_length", s->head_dim);
        arch_u32(w, s, "attention.value_length", s->head_dim);
    }
    if (s->window > 0)
        arch_u32(w, s, "attention.sliding_window", s->window);
    if (s->n_expert > 0) {
        arch_u32(w, s, "expert_count", s->n_expert);
        arch_u32(w, s, "expert_used_count", s->n_expert_used);
        arch_u32(w, s, "expert_feed_forward_length", s->n_ff);
    }
    write_rope_keys(w, s);
    if (!tiny_vocab(w, s->vocab, s->n_vocab, err))
        return false;
    if (strcmp(s->family, "gemma3") == 0)
        ggufw_bool(w, "tokenizer.ggml.add_space_prefix", false);
    const char *chat = s->chat_template != NULL ? s->chat_template : chatml;
    if (chat[0] != 0)
        ggufw_str(w, "tokenizer.chat_template", chat);
    return true;
}

/* ---- tensors ---- */

/* How a tensor's data is made from its two parameters a and b. */
enum fill {
    FILL_RANDOM,      /* standard deviation a, any weight type */
    FILL_GAIN,        /* a around its mean, as norms have */
    FILL_SIGNED_GAIN, /* of random sign */
    FILL_SHIFTED,     /* standard deviation a around b */
    FILL_LINE,        /* from a to b */
};

struct plan {
    struct ggufw *w;
    const struct tiny_spec *s;
    enum qtype type, expert_type;
    int mix;        /* index into mixtures or -1 */
    int layer;      /* -1 outside the layers */
    float residual; /* deviation of what a branch adds: keeps the stream of order one */
};

/* llama-quantize gives these layers' attn_v and ffn_down more bits. */
static bool is_sensitive(int layer, int n_layer)
{
    int eighth = n_layer / 8;
    return layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2;
}

/* The type of a matrix: what llama-quantize chooses in a mixture, and its fall-backs for short
 * rows. */
static enum qtype matrix_type(const struct plan *p, const char *role, int cols)
{
    enum qtype t = p->type;
    if (p->mix >= 0) {
        bool embd = strcmp(role, "token_embd") == 0;
        if (strcmp(role, "output") == 0 || (embd && p->s->tied))
            t = QTYPE_Q6_K;
        else if (strcmp(role, "attn_qkv") == 0)
            t = mixtures[p->mix].qkv;
        else if ((strcmp(role, "attn_v") == 0 || strcmp(role, "ffn_down") == 0) &&
                 is_sensitive(p->layer, p->s->n_layer))
            t = mixtures[p->mix].more;
    }
    if (cols % qtype_info(t)->block_weights == 0)
        return t;
    return t == QTYPE_Q4_K   ? QTYPE_Q5_0
           : t == QTYPE_Q5_K ? QTYPE_Q5_1
           : t == QTYPE_Q6_K ? QTYPE_Q8_0
                             : QTYPE_IQ4_NL;
}

static struct ggufw_tensor *tensor(struct plan *p, const char *name, enum qtype t, int ne0, int ne1,
                                   int ne2)
{
    char full[96];
    if (p->layer >= 0)
        snprintf(full, sizeof full, "blk.%d.%s", p->layer, name);
    return ggufw_tensor(p->w, p->layer >= 0 ? full : name, t, (uint64_t)ne0, (uint64_t)ne1,
                        (uint64_t)ne2);
}

static void vector(struct plan *p, const char *name, int n, enum fill fill, float a, float b)
{
    struct ggufw_tensor *t = tensor(p, name, QTYPE_F32, n, 1, 1);
    if (t != NULL) {
        t->fill = fill;
        t->a = a;
        t->b = b;
    }
}

static void gain(struct plan *p, const char *name, int n)
{
    vector(p, name, n, FILL_GAIN, 1.0f, 0);
}

/* A matrix whose products have `scale` times the deviation of their inputs. */
static void matrix(struct plan *p, const char *role, int rows, int cols, float scale)
{
    char name[64];
    snprintf(name, sizeof name, "%s.weight", role);
    struct ggufw_tensor *t = tensor(p, name, matrix_type(p, role, cols), cols, rows, 1);
    if (t != NULL)
        t->a = scale / sqrtf((float)cols);
}

static void experts(struct plan *p, const char *role, int rows, int cols, float scale)
{
    char name[64];
    const struct tiny_spec *s = p->s;
    snprintf(name, sizeof name, "%s.weight", role);
    struct ggufw_tensor *t = tensor(p, name, p->expert_type, cols, rows, s->n_expert);
    if (t != NULL)
        t->a = scale / sqrtf((float)cols);
    snprintf(name, sizeof name, "%s.bias", role);
    t = tensor(p, name, QTYPE_F32, rows, s->n_expert, 1);
    if (t != NULL)
        t->a = 0.3f;
}

static void plan_attention(struct plan *p)
{
    const struct tiny_spec *s = p->s;
    int q = s->n_head * s->head_dim, kv = s->n_kv_head * s->head_dim;
    const float sharp = 1.25f; /* queries and keys: scores that differ, but not by much */
    gain(p, "attn_norm.weight", s->dim);
    if (strcmp(s->family, "phi3") == 0) {
        matrix(p, "attn_qkv", q + 2 * kv, s->dim, sharp);
    } else {
        matrix(p, "attn_q", q, s->dim, sharp);
        matrix(p, "attn_k", kv, s->dim, sharp);
        matrix(p, "attn_v", kv, s->dim, 1.0f);
    }
    if (s->qkv_bias) {
        vector(p, "attn_q.bias", q, FILL_RANDOM, 0.5f, 0);
        vector(p, "attn_k.bias", kv, FILL_RANDOM, 0.5f, 0);
        vector(p, "attn_v.bias", kv, FILL_RANDOM, 0.5f, 0);
    }
    matrix(p, "attn_output", s->dim, q, p->residual);
    if (strcmp(s->family, "qwen3") == 0 || strcmp(s->family, "gemma3") == 0) {
        vector(p, "attn_q_norm.weight", s->head_dim, FILL_GAIN, sharp, 0);
        vector(p, "attn_k_norm.weight", s->head_dim, FILL_GAIN, sharp, 0);
    }
    if (strcmp(s->family, "gpt-oss") == 0) {
        vector(p, "attn_output.bias", s->dim, FILL_RANDOM, 0.3f, 0);
        vector(p, "attn_sinks.weight", s->n_head, FILL_SHIFTED, 1.0f, 1.5f);
    }
}

static void plan_ffn(struct plan *p)
{
    const struct tiny_spec *s = p->s;
    if (strcmp(s->family, "gpt-oss") == 0) {
        gain(p, "post_attention_norm.weight", s->dim);
        struct ggufw_tensor *t =
            tensor(p, "ffn_gate_inp.weight", QTYPE_F32, s->dim, s->n_expert, 1);
        if (t != NULL)
            t->a = 1.5f / sqrtf((float)s->dim);
        vector(p, "ffn_gate_inp.bias", s->n_expert, FILL_RANDOM, 0.5f, 0);
        experts(p, "ffn_gate_exps", s->n_ff, s->dim, 1.5f);
        experts(p, "ffn_up_exps", s->n_ff, s->dim, 1.5f);
        experts(p, "ffn_down_exps", s->dim, s->n_ff, p->residual);
        return;
    }
    gain(p, "ffn_norm.weight", s->dim);
    if (strcmp(s->family, "gemma3") == 0) {
        gain(p, "post_attention_norm.weight", s->dim);
        gain(p, "post_ffw_norm.weight", s->dim);
    }
    if (strcmp(s->family, "phi3") == 0) {
        matrix(p, "ffn_up", 2 * s->n_ff, s->dim, 1.5f);
    } else {
        matrix(p, "ffn_gate", s->n_ff, s->dim, 1.5f);
        matrix(p, "ffn_up", s->n_ff, s->dim, 1.5f);
    }
    matrix(p, "ffn_down", s->dim, s->n_ff, p->residual);
}

static void plan_tensors(struct plan *p)
{
    const struct tiny_spec *s = p->s;
    int half = s->head_dim / 2;
    p->residual = s->n_layer <= 3 ? 2.0f : 2.0f * sqrtf(3.0f / (float)s->n_layer);
    p->layer = -1;
    /* Logits have a deviation of 3. With tied matrices a token would predict itself: random signs
     * in the norm prevent it. */
    matrix(p, "token_embd", s->n_vocab, s->dim, s->tied ? 3.0f : sqrtf((float)s->dim));
    vector(p, "output_norm.weight", s->dim, s->tied ? FILL_SIGNED_GAIN : FILL_GAIN, 1.0f, 0);
    if (!s->tied)
        matrix(p, "output", s->n_vocab, s->dim, 3.0f);
    if (s->rope_freqs)
        vector(p, "rope_freqs.weight", half, FILL_LINE, 1.0f, 8.0f);
    if (s->long_rope) {
        vector(p, "rope_factors_long.weight", half, FILL_LINE, 1.0f, 6.0f);
        vector(p, "rope_factors_short.weight", half, FILL_LINE, 1.0f, 1.5f);
    }
    for (p->layer = 0; p->layer < s->n_layer; p->layer++) {
        plan_attention(p);
        plan_ffn(p);
    }
}

/* ---- data ---- */

/* Where the bytes go: a file or a buffer. */
struct sink {
    FILE *file;
    struct buf *buf;
};

static bool put(const struct sink *out, const void *bytes, size_t n)
{
    return out->file != NULL ? fwrite(bytes, 1, n, out->file) == n : buf_add(out->buf, bytes, n);
}

/* Large matrices are tiles of a pool, each turned by another number of blocks: writing goes at the
 * disk's speed. */
enum { POOL_WEIGHTS = 1 << 20 };

struct pool {
    enum qtype type;
    float std;
    void *data;
    size_t bytes;
};

static bool put_tiled(struct pool *pool, const struct ggufw_tensor *t, enum qtype type,
                      struct rng *r, const struct sink *out)
{
    size_t block = qtype_info(type)->block_bytes, left = t->bytes;
    if (pool->data == NULL || pool->type != type || fabsf(pool->std - t->a) > 0.0f) {
        free(pool->data);
        *pool = (struct pool){type, t->a, NULL, qtype_row_bytes(type, POOL_WEIGHTS)};
        pool->data = mem_alloc(pool->bytes, 1);
        if (pool->data == NULL)
            return false;
        weights_fill(type, t->a, r, pool->data, POOL_WEIGHTS);
    }
    while (left > 0) {
        size_t turn = rng_next(r) % (pool->bytes / block) * block;
        size_t n = pool->bytes - turn < left ? pool->bytes - turn : left;
        if (!put(out, (char *)pool->data + turn, n))
            return false;
        left -= n;
    }
    return true;
}

static void fill_vector(const struct ggufw_tensor *t, struct rng *r, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        switch ((enum fill)t->fill) {
        case FILL_RANDOM:
            x[i] = t->a * rng_normal(r);
            break;
        case FILL_GAIN:
            x[i] = t->a * (1.0f + 0.25f * rng_normal(r));
            break;
        case FILL_SIGNED_GAIN:
            x[i] = t->a * (1.0f + 0.25f * rng_normal(r)) * (rng_next(r) & 1 ? 1.0f : -1.0f);
            break;
        case FILL_SHIFTED:
            x[i] = t->b + t->a * rng_normal(r);
            break;
        case FILL_LINE:
            x[i] = t->a + (t->b - t->a) * (float)i / (float)(n > 1 ? n - 1 : 1);
            break;
        }
    }
}

static bool put_tensor(struct pool *pool, const struct ggufw_tensor *t, uint64_t seed,
                       const struct sink *out)
{
    static const char zeros[GGUFW_ALIGNMENT];
    struct rng r = rng_of(seed, t->name);
    enum qtype type;
    bool known = qtype_from_gguf(t->type, &type), ok;
    size_t n =
        known ? t->bytes / qtype_info(type)->block_bytes * (size_t)qtype_info(type)->block_weights
              : 0;
    if (n > 2 * POOL_WEIGHTS && t->fill == FILL_RANDOM) {
        ok = put_tiled(pool, t, type, &r, out);
    } else {
        void *data = mem_alloc(t->bytes, 1);
        if (data == NULL)
            return false;
        if (known && t->fill == FILL_RANDOM)
            weights_fill(type, t->a, &r, data, n);
        else if (known && type == QTYPE_F32)
            fill_vector(t, &r, data, n);
        ok = put(out, data, t->bytes);
        free(data);
    }
    return ok && put(out, zeros, (GGUFW_ALIGNMENT - t->bytes % GGUFW_ALIGNMENT) % GGUFW_ALIGNMENT);
}

static bool write_all(const struct tiny_spec *s, const struct sink *out, struct err *err)
{
    struct plan p = {.s = s, .w = ggufw_open()};
    struct buf header = {0};
    struct pool pool = {0};
    int none;
    bool ok =
        find_type(s->type, &p.type, &p.mix, err) &&
        find_type(s->expert_type != NULL ? s->expert_type : "MXFP4", &p.expert_type, &none, err);
    if (ok && p.w == NULL)
        ok = err_set(err, ERR_INTERNAL, "no memory");
    ok = ok && write_keys(p.w, s, err);
    if (ok) {
        plan_tensors(&p);
        if (s->edit != NULL)
            s->edit(p.w, s->edit_arg);
        ok = ggufw_header(p.w, &header) && put(out, header.data, header.len);
        for (size_t i = 0; ok && i < ggufw_n_tensors(p.w); i++)
            ok = put_tensor(&pool, ggufw_tensor_at(p.w, i), s->seed, out);
        if (!ok)
            err_set(err, ERR_INTERNAL, "no memory, or writing failed (%s)", strerror(errno));
    }
    free(pool.data);
    buf_free(&header);
    ggufw_close(p.w);
    return ok;
}

bool tiny_write(const struct tiny_spec *spec, const char *path, struct err *err)
{
    struct sink out = {.file = fopen(path, "wbe")};
    if (out.file == NULL)
        return err_set(err, ERR_SYSTEM, "%s: %s", path, strerror(errno));
    bool ok = write_all(spec, &out, err);
    if (fclose(out.file) != 0 && ok)
        ok = err_set(err, ERR_SYSTEM, "%s: %s", path, strerror(errno));
    return ok;
}

bool tiny_image(const struct tiny_spec *spec, struct buf *out, struct err *err)
{
    struct sink sink = {.buf = out};
    return write_all(spec, &sink, err);
}
