/* The matrix: every family's tiny model in every weight type and every KV type, against a float64 forward pass that shares
 * nothing with the engine (meaning.h). Limits are per kind of arithmetic; docs/models.md says what is measured. Prints a line
 * a model with `-v`. */
#include "engine/adapter.h"
#include "tests/meaning.h"
#include "tests/tiny.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_PROMPT = 40, N_GREEDY = 8, N_LONG = 300, N_WINDOW = 2100, N_MAX = N_WINDOW + N_GREEDY, CHUNK = 33, N_CTX = 320 };

/* Mean and worst KL(meaning || engine) over positions, worst difference of a log-probability above e^-4.6, and the margin
 * beyond which the best token must agree. */
struct limits {
    const char *name;
    double kl_mean, kl_max, dlp, clear;
};

/* Float weights and KV; halves in the KV; 8-bit activations or KV; the last two with experts, where near ties of the router
 * flip. Measured: 6e-12, 2e-6, 7e-3, 2e-4 and 5e-2 at most for the mean. */
enum profile { AS_FLOAT, AS_F16, AS_INT8, AS_MOE16, AS_MOE8, N_PROFILES };
static const struct limits limits[N_PROFILES] = {
    {"float", 1e-10, 1e-9, 1e-4, 1e-4},
    {"f16", 1e-5, 2e-4, 0.05, 0.05},
    {"int8", 1.5e-2, 1e-1, 1.5, 1.0},
    {"moe16", 1e-3, 1e-1, 1.0, 0.5},
    {"moe8", 8e-2, 2.5, 5.0, 3.0},
};

static bool verbose;

/* ---- scores ---- */

struct scores {
    double kl_sum, kl_max, dlp_max;
    int n, n_clear, n_agree;
};

static int best_of(const double *x, int n, double *margin)
{
    int best = 0;
    double second = -INFINITY;
    for (int i = 1; i < n; i++) {
        if (x[i] > x[best]) {
            second = x[best];
            best = i;
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    *margin = x[best] - second;
    return best;
}

static void score(struct scores *s, const double *want, const float *logits, int n, double clear)
{
    double max = -INFINITY, sum = 0, kl = 0, margin;
    for (int i = 0; i < n; i++)
        max = fmax(max, (double)logits[i]);
    for (int i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    int best = 0;
    for (int i = 0; i < n; i++) {
        double got = (double)logits[i] - max - log(sum), diff = fabs(got - want[i]);
        kl += exp(want[i]) * (want[i] - got);
        if (want[i] > -4.6)
            s->dlp_max = fmax(s->dlp_max, diff);
        if (logits[i] > logits[best])
            best = i;
    }
    s->kl_sum += isnan(kl) ? INFINITY : kl;
    s->kl_max = isnan(kl) ? INFINITY : fmax(s->kl_max, kl);
    s->n++;
    int wanted = best_of(want, n, &margin);
    if (margin > clear) {
        s->n_clear++;
        s->n_agree += best == wanted;
    }
}

static bool within(const struct scores *s, const struct limits *l)
{
    return s->kl_sum / s->n <= l->kl_mean && s->kl_max <= l->kl_max && s->dlp_max <= l->dlp && s->n_agree == s->n_clear;
}

/* ---- a model and what it means ---- */

/* Ids of a prompt and of its greedy continuation, and the log-probabilities after each. */
struct story {
    int n_prompt, n, n_vocab;
    int32_t ids[N_MAX];
    double *logprobs;    /* (n, n_vocab) */
};

static struct gguf *open_image(const struct tiny_spec *spec, struct buf *image)
{
    struct err err = {0};
    ck_assert_msg(tiny_image(spec, image, &err), "%s", err.msg);
    struct gguf *g = gguf_from_memory(image->data, image->len, &err);
    ck_assert_msg(g != NULL, "%s", err.msg);
    return g;
}

static void tell(const struct tiny_spec *spec, int n_prompt, int n_ctx, struct story *s)
{
    struct buf image = {0};
    struct gguf *g = open_image(spec, &image);
    struct meaning *m = meaning_open(g, n_ctx);
    ck_assert_ptr_nonnull(m);
    *s = (struct story){.n_prompt = n_prompt, .n = n_prompt + N_GREEDY, .n_vocab = meaning_n_vocab(m)};
    s->logprobs = malloc((size_t)s->n * (size_t)s->n_vocab * sizeof(double));
    uint64_t state = 7;
    for (int i = 0; i < s->n; i++) {
        double margin, *row = s->logprobs + (size_t)i * (size_t)s->n_vocab;
        state = state * 6364136223846793005u + 1442695040888963407u;
        s->ids[i] = i < n_prompt ? (int32_t)((state >> 33) % (uint64_t)s->n_vocab) : best_of(row - s->n_vocab, s->n_vocab, &margin);
        memcpy(row, meaning_next(m, s->ids[i]), (size_t)s->n_vocab * sizeof(double));
    }
    meaning_close(m);
    gguf_close(g);
    buf_free(&image);
}

/* The prompt in chunks, the continuation a token at a time, as a worker would. */
static struct scores judge(const struct tiny_spec *spec, const struct story *s, int n_ctx, enum kv_type kv, double clear)
{
    struct buf image = {0};
    struct err err = {0};
    struct gguf *g = open_image(spec, &image);
    struct adapter_options o = {.device = &kern_cpu, .n_ctx = n_ctx, .max_seqs = 1, .max_rows = CHUNK, .max_logits = CHUNK,
                                .kv_type = kv, .kv_bytes = 256 << 20};
    struct model *m = model_open(g, &err);
    struct adapter *a = m == NULL ? NULL : adapter_open(m, &o, &err);
    ck_assert_msg(a != NULL, "%s", err.msg);
    for (int i = 0; i < (n_ctx + NUM_TILE - 1) / NUM_TILE; i++)
        adapter_pages(a, 0)[i] = i;
    struct scores sc = {0};
    struct row rows[CHUNK];
    struct step_out out;
    for (int at = 0, n; at < s->n; at += n) {
        n = at >= s->n_prompt ? 1 : s->n_prompt - at < CHUNK ? s->n_prompt - at : CHUNK;
        for (int i = 0; i < n; i++)
            rows[i] = (struct row){0, at + i, s->ids[at + i], true};
        ck_assert_msg(adapter_step(a, rows, n, &out, NULL, &err), "%s", err.msg);
        for (int i = 0; i < n; i++)
            score(&sc, s->logprobs + (size_t)(at + i) * (size_t)s->n_vocab, out.logits[i], s->n_vocab, clear);
    }
    adapter_close(a);
    model_close(m);
    gguf_close(g);
    buf_free(&image);
    return sc;
}

static bool is_float(const char *type)
{
    return strcmp(type, "F32") == 0 || strcmp(type, "F16") == 0 || strcmp(type, "BF16") == 0;
}

static enum profile profile_of(const struct tiny_spec *spec, enum kv_type kv)
{
    bool plain = is_float(spec->type) && (spec->n_expert == 0 || is_float(spec->expert_type));
    if (plain && kv != KV_Q8_0)
        return kv == KV_F32 ? AS_FLOAT : spec->n_expert > 0 ? AS_MOE16 : AS_F16;
    return spec->n_expert > 0 ? AS_MOE8 : AS_INT8;
}

static void check_model(const char *name, const struct tiny_spec *spec, int n_prompt, int n_ctx)
{
    static const char *const kv_names[] = {"f16", "q8_0", "f32"};
    struct story s;
    tell(spec, n_prompt, n_ctx, &s);
    for (int kv = 0; kv < KV_TYPE_N; kv++) {
        const struct limits *l = &limits[profile_of(spec, (enum kv_type)kv)];
        struct scores sc = judge(spec, &s, n_ctx, (enum kv_type)kv, l->clear);
        char line[200];
        snprintf(line, sizeof line, "%-10s %-7s %-4s kv ctx %d: KL mean %.1e max %.1e, log-probability off by %.4f, best %d of %d (%s)",
                 name, spec->type, kv_names[kv], n_ctx, sc.kl_sum / sc.n, sc.kl_max, sc.dlp_max, sc.n_agree, sc.n_clear, l->name);
        if (verbose)
            printf("%s\n", line);
        ck_assert_msg(within(&sc, l), "%s", line);
    }
    free(s.logprobs);
}

/* ---- the table ---- */

static const char *const presets[] = {"llama2", "llama3", "llama32", "smollm2", "qwen2", "phi3",
                                      "phi3swa", "phi3long", "qwen3", "gemma3", "gemma3lin", "gptoss"};
static const char *const types[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K",
                                    "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "Q4_K_M", "Q5_K_M"};
enum { N_PRESETS = sizeof presets / sizeof *presets, N_TYPES = sizeof types / sizeof *types };

static struct tiny_spec spec_of(const char *preset, const char *type)
{
    struct tiny_spec spec;
    struct err err = {0};
    ck_assert_msg(tiny_preset(preset, type, &spec, &err), "%s", err.msg);
    return spec;
}

START_TEST(family_in_type)
{
    const char *preset = presets[_i / N_TYPES], *type = types[_i % N_TYPES];
    struct tiny_spec spec = spec_of(preset, type);
    bool longer = strcmp(type, "F32") == 0 || strcmp(type, "Q8_0") == 0 || strcmp(type, "Q4_K") == 0;
    if (spec.n_expert > 0 && type[strlen(type) - 1] != 'M')    /* the experts in the type too, not only in MXFP4 */
        spec.expert_type = type;
    check_model(preset, &spec, longer ? N_LONG : N_PROMPT, N_CTX);
}
END_TEST

/* ---- shapes that no preset has ---- */

static void change_bias(struct tiny_spec *s)
{
    s->qkv_bias = !s->qkv_bias;
}

static void change_tied(struct tiny_spec *s)
{
    s->tied = !s->tied;
}

static void change_freqs(struct tiny_spec *s)
{
    s->rope_freqs = !s->rope_freqs;
}

static void change_linear(struct tiny_spec *s)
{
    s->linear = s->linear > 0 ? 4 : 3;
}

static void change_yarn(struct tiny_spec *s)
{
    s->yarn = s->yarn > 0 ? 16 : 8;
    s->n_ctx_orig = 4096;
}

static void be_27b(struct tiny_spec *s)
{
    s->n_layer = 62;
}

static void set_pattern(struct ggufw *w, void *arg)
{
    (void)arg;
    ggufw_u32(w, "gemma3.attention.sliding_window_pattern", 2);
    ggufw_f32(w, "gpt-oss.rope.scaling.yarn_beta_fast", 16);
    ggufw_f32(w, "gpt-oss.rope.scaling.yarn_beta_slow", 2);
}

static void change_keys(struct tiny_spec *s)
{
    s->edit = set_pattern;
}

/* The type of bools is 7. */
static void list_layers(struct ggufw *w, void *arg)
{
    (void)arg;
    ggufw_arr(w, "gemma3.attention.sliding_window_pattern", 7, (const uint8_t[7]){1, 0, 0, 1, 1, 0, 1}, 7, 1);
    ggufw_arr(w, "gpt-oss.attention.sliding_window_pattern", 7, (const uint8_t[3]){0, 1, 1}, 3, 1);
    ggufw_f32(w, "gpt-oss.rope.freq_base_swa", 2000);
}

static void change_layers(struct tiny_spec *s)
{
    s->edit = list_layers;
}

static void change_yarn_down(struct tiny_spec *s)
{
    s->yarn = 0.5f;
    s->n_ctx_orig = 4096;
}

static void rotate_32(struct ggufw *w, void *arg)
{
    (void)arg;
    ggufw_u32(w, "llama.rope.dimension_count", 32);
    ggufw_u32(w, "qwen2.rope.dimension_count", 32);
    ggufw_u32(w, "phi3.rope.dimension_count", 32);
}

static void change_rotated(struct tiny_spec *s)
{
    s->edit = rotate_32;
}

static const struct {
    const char *title, *preset;
    int dim, n_head, n_kv_head, head_dim, window;    /* 0 = the preset's */
    void (*change)(struct tiny_spec *s);
} shapes[] = {
    {"head of 8", "llama2", 64, 8, 4, 8, 0, NULL},
    {"head of 24", "llama3", 96, 4, 2, 24, 0, NULL},
    {"head of 40", "qwen2", 160, 8, 1, 40, 0, NULL},
    {"head of 80", "llama2", 96, 4, 4, 80, 0, NULL},
    {"head of 112", "qwen3", 96, 6, 2, 112, 0, NULL},
    {"head of 128", "qwen3", 64, 4, 2, 128, 0, NULL},
    {"head of 256", "gemma3", 64, 4, 1, 256, 0, NULL},
    {"head of 512", "gemma3", 64, 2, 1, 512, 0, NULL},
    {"one head", "llama3", 64, 1, 1, 64, 0, NULL},
    {"groups of 3", "llama3", 96, 12, 4, 32, 0, NULL},
    {"groups of 16", "llama3", 96, 16, 1, 16, 0, NULL},
    {"phi3, grouped", "phi3", 96, 4, 2, 96, 0, NULL},
    {"llama, window", "llama3", 0, 0, 0, 0, 16, NULL},
    {"llama, window 1", "llama3", 0, 0, 0, 0, 1, NULL},
    {"window of a tile", "phi3", 0, 0, 0, 0, 64, NULL},
    {"llama, biases", "llama3", 0, 0, 0, 0, 0, change_bias},
    {"llama, linear", "llama3", 0, 0, 0, 0, 0, change_linear},
    {"llama, yarn", "llama3", 0, 0, 0, 0, 0, change_yarn},
    {"qwen2, yarn", "qwen2", 0, 0, 0, 0, 0, change_yarn},
    {"qwen2, untied", "qwen2", 0, 0, 0, 0, 0, change_tied},
    {"gemma3, untied", "gemma3", 0, 0, 0, 0, 0, change_tied},
    {"gemma3 of 62 layers", "gemma3", 0, 0, 0, 0, 0, be_27b},
    {"gemma3, pattern 2", "gemma3", 0, 0, 0, 0, 0, change_keys},
    {"gpt-oss, betas", "gptoss", 0, 0, 0, 0, 0, change_keys},
    {"gpt-oss, two bases", "gptoss", 0, 0, 0, 0, 0, change_layers},
    {"gemma3, layers listed", "gemma3", 0, 0, 0, 0, 0, change_layers},
    {"qwen2, yarn below 1", "qwen2", 0, 0, 0, 0, 0, change_yarn_down},
    {"32 of 80 turn", "llama2", 96, 4, 4, 80, 0, change_rotated},
    {"32 of 64 turn", "qwen2", 96, 4, 2, 64, 0, change_rotated},
    {"32 of 96 turn", "phi3", 0, 0, 0, 0, 0, change_rotated},
};

START_TEST(odd_shape)
{
    static const char *const in[] = {"F32", "Q8_0"};
    for (int t = 0; t < (shapes[_i].change == be_27b ? 1 : 2); t++) {    /* 62 layers of 8 bits drift apart */
        struct tiny_spec spec = spec_of(shapes[_i].preset, in[t]);
        spec.expert_type = in[t];
        if (shapes[_i].dim > 0) {
            spec.dim = shapes[_i].dim;
            spec.n_head = shapes[_i].n_head;
            spec.n_kv_head = shapes[_i].n_kv_head;
            spec.head_dim = shapes[_i].head_dim;
        }
        if (shapes[_i].window > 0)
            spec.window = shapes[_i].window;
        if (shapes[_i].change != NULL)
            shapes[_i].change(&spec);
        check_model(shapes[_i].title, &spec, 150, N_CTX);
    }
}
END_TEST

/* Rows that are no multiples of 256 are Q5_0, Q5_1, Q8_0 or IQ4_NL in files of K types: four types in one layer. */
START_TEST(types_that_fall_back)
{
    struct tiny_spec spec = spec_of("qwen2", "Q8_0");
    spec.type = types[_i];
    spec.n_ff = 256;
    check_model("fall-back", &spec, N_PROMPT, N_CTX);
}
END_TEST

/* Phi-3's factors follow the context the worker is opened with, not the prompt: short up to the original context (256). */
START_TEST(factors_by_context)
{
    struct tiny_spec spec = spec_of("phi3long", _i ? "Q8_0" : "F32");
    check_model("phi3long", &spec, 200, 256);
    check_model("phi3long", &spec, 200, 257);
    struct story s;
    tell(&spec, 100, 256, &s);
    struct scores sc = judge(&spec, &s, 257, KV_F32, 1);
    ck_assert_double_gt(sc.kl_sum / sc.n, 0.1);
    free(s.logprobs);
}
END_TEST

/* Phi-3's own window of 2,047 positions, and angles of large positions. */
START_TEST(long_contexts)
{
    struct tiny_spec spec = spec_of(_i ? "gptoss" : "phi3", "F32");
    spec.expert_type = "F32";
    spec.n_layer = 2;
    check_model(_i ? "gpt-oss, long" : "phi3, long", &spec, N_WINDOW, N_WINDOW + 100);
}
END_TEST

/* ---- the limits notice mistakes ---- */

static void change_base(struct tiny_spec *s)
{
    s->rope_base *= 2;
}

static void change_eps(struct tiny_spec *s)
{
    s->norm_eps = 2e-5f;
}

static void widen_window(struct tiny_spec *s)
{
    s->window++;
}

static void narrow_window(struct tiny_spec *s)
{
    s->window--;
}

static void drop_layer(struct tiny_spec *s)
{
    s->n_layer--;
}

static void drop_expert(struct tiny_spec *s)
{
    s->n_expert_used--;
}

static void change_attn_factor(struct tiny_spec *s)
{
    s->attn_factor = 1.1f;
}

static const struct {
    const char *preset;
    void (*change)(struct tiny_spec *s);
    bool small;    /* lost in the rounding of 8 bits */
} mistakes[] = {
    {"llama2", change_base, false},      {"llama2", change_eps, true},        {"llama2", drop_layer, false},
    {"llama3", change_bias, false},      {"llama32", change_freqs, false},
    {"phi3swa", widen_window, false},    {"phi3swa", narrow_window, false},   {"phi3long", change_attn_factor, false},
    {"qwen3", change_base, false},       {"gemma3", widen_window, false},     {"gemma3", narrow_window, false},
    {"gemma3lin", change_linear, true},  {"gptoss", widen_window, false},     {"gptoss", change_yarn, true},
    {"gptoss", drop_expert, false},
};

START_TEST(mistake_is_noticed)
{
    static const char *const in[] = {"F32", "Q8_0"};
    for (int t = 0; t < 2; t++) {
        struct tiny_spec spec = spec_of(mistakes[_i].preset, in[t]);
        spec.expert_type = in[t];
        const struct limits *l = &limits[profile_of(&spec, KV_F32)];
        struct story s;
        tell(&spec, N_PROMPT, N_CTX, &s);
        mistakes[_i].change(&spec);
        struct scores sc = judge(&spec, &s, N_CTX, KV_F32, l->clear);
        if (verbose)
            printf("mistake %d, %-9s %-5s: KL mean %.1e max %.1e, log-probability off by %.4f, best %d of %d\n", _i,
                   mistakes[_i].preset, in[t], sc.kl_sum / sc.n, sc.kl_max, sc.dlp_max, sc.n_agree, sc.n_clear);
        ck_assert_msg(!within(&sc, l) || (t == 1 && mistakes[_i].small), "%s %s: mistake %d passes", mistakes[_i].preset, in[t],
                      _i);
        free(s.logprobs);
    }
}
END_TEST

int main(int argc, char **argv)
{
    verbose = argc > 1 && strcmp(argv[1], "-v") == 0;
    Suite *s = suite_create("matrix");
    TCase *families = tcase_create("families"), *odd = tcase_create("shapes"), *limits_hold = tcase_create("mistakes");
    TCase *const all[] = {families, odd, limits_hold};
    tcase_add_loop_test(families, family_in_type, 0, N_PRESETS * N_TYPES);
    tcase_add_loop_test(odd, odd_shape, 0, (int)(sizeof shapes / sizeof *shapes));
    tcase_add_loop_test(odd, types_that_fall_back, 0, N_TYPES);
    tcase_add_loop_test(odd, factors_by_context, 0, 2);
    tcase_add_loop_test(odd, long_contexts, 0, 2);
    tcase_add_loop_test(limits_hold, mistake_is_noticed, 0, (int)(sizeof mistakes / sizeof *mistakes));
    for (int i = 0; i < 3; i++) {
        tcase_set_timeout(all[i], 120);
        suite_add_tcase(s, all[i]);
    }
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
