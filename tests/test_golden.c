/* Every family against golden values of a float64 forward pass (tests/data/golden): the engine computes the model that is
 * meant. Limits per profile: mean and worst KL(golden || engine) over positions, worst difference of a log-probability above
 * e^-4.6, and a greedy continuation that may leave the golden one only where its margin is below `clear`. */
#include "engine/adapter.h"
#include "engine/sampler.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

enum { N_TOP = 20, MAX_IDS = 256, MAX_LINE = 8192 };

struct limits {
    const char *name;
    double kl_mean, kl_max, dlp, clear;
};
/* Float weights with float KV; with f16 KV; int8 activations; int8 with a router whose near ties flip. */
static const struct limits as_float = {"float", 1e-6, 1e-5, 0.006, 0.01}, as_f16 = {"f16", 5e-5, 1e-3, 0.08, 0.08},
                           as_int8 = {"int8", 8e-3, 8e-2, 1.0, 0.8}, as_moe8 = {"moe8", 1e-2, 4e-1, 3.0, 1.2};

static const struct {
    const char *model;
    enum kv_type kv;
    const struct limits *limits;
} runs[] = {
    {"llama2-F16", KV_F32, &as_float}, {"llama3-F16", KV_F32, &as_float}, {"llama32-F16", KV_F32, &as_float},
    {"qwen2-F16", KV_F32, &as_float},  {"phi3-F16", KV_F32, &as_float},   {"qwen3-F16", KV_F32, &as_float},
    {"gemma3-F16", KV_F32, &as_float}, {"llama3-F16", KV_F16, &as_f16},   {"qwen2-F16", KV_F16, &as_f16},
    {"phi3-F16", KV_F16, &as_f16},     {"phi3swa-Q8_0", KV_F16, &as_int8}, {"phi3long-Q8_0", KV_F16, &as_int8},
    {"gemma3lin-Q8_0", KV_F16, &as_int8}, {"gptoss-Q8_0", KV_F16, &as_moe8}, {"phi3swa-Q8_0", KV_Q8_0, &as_int8},
};

struct scores {
    double kl_sum, kl_max, dlp_max;
    int n;
};

/* One model opened for one context; logits of the ids fed so far. */
struct session {
    struct gguf *gguf;
    struct model *model;
    struct adapter *adapter;
    struct sampler *sampler;
    const float *logits[MAX_IDS];
};

static void session_open(struct session *s, const char *path, int n_ctx, enum kv_type kv)
{
    struct err err = {0};
    struct adapter_options o = {.device = &kern_cpu, .n_ctx = n_ctx ? n_ctx : 512, .max_rows = MAX_IDS, .max_logits = MAX_IDS,
                                .kv_type = kv};
    s->gguf = gguf_open(path, &err);
    s->model = s->gguf == NULL ? NULL : model_open(s->gguf, &err);
    s->adapter = s->model == NULL ? NULL : adapter_open(s->model, &o, &err);
    ck_assert_msg(s->adapter != NULL, "%s", err.msg);
    s->sampler = sampler_new(s->model->n_vocab);
}

static void session_close(struct session *s)
{
    sampler_free(s->sampler);
    adapter_close(s->adapter);
    model_close(s->model);
    gguf_close(s->gguf);
}

static void feed(struct session *s, const int32_t *ids, int n, int pos)
{
    struct row rows[MAX_IDS];
    struct step_out out;
    struct err err = {0};
    for (int i = 0; i < adapter_n_pages(s->adapter); i++)
        adapter_pages(s->adapter, 0)[i] = i;
    for (int i = 0; i < n; i++)
        rows[i] = (struct row){0, pos + i, ids[i], true};
    ck_assert_msg(adapter_step(s->adapter, rows, n, &out, NULL, &err), "%s", err.msg);
    for (int i = 0; i < n; i++)
        s->logits[i] = out.logits[i];
}

/* "id:value id:value ..." */
static int parse_pairs(char *p, int32_t *ids, double *values, int max)
{
    int n = 0;
    for (char *end; n < max; n++, p = end) {
        long id = strtol(p, &end, 10);
        if (end == p || *end != ':')
            break;
        ids[n] = (int32_t)id;
        values[n] = strtod(end + 1, &end);
    }
    return n;
}

static void score_position(struct session *s, int pos, char *text, struct scores *sc)
{
    int32_t ids[N_TOP];
    double want[N_TOP], kl = 0, p_rest = 1, q_rest = 1;
    int n = parse_pairs(text, ids, want, N_TOP);
    ck_assert_int_eq(n, N_TOP);
    for (int i = 0; i < n; i++) {
        double got = (double)sampler_logprob(s->sampler, s->logits[pos], ids[i]), diff = fabs(got - want[i]);
        ck_assert(!isnan(got));
        kl += exp(want[i]) * (want[i] - got);
        p_rest -= exp(want[i]);
        q_rest -= exp(got);
        if (want[i] > -4.6)
            sc->dlp_max = diff > sc->dlp_max ? diff : sc->dlp_max;
    }
    if (p_rest > 1e-6)    /* everything else as one bucket */
        kl += p_rest * log(p_rest / (q_rest > 1e-9 ? q_rest : 1e-9));
    kl = kl > 0 ? kl : 0;
    sc->kl_sum += kl;
    sc->kl_max = kl > sc->kl_max ? kl : sc->kl_max;
    sc->n++;
}

static void follow_greedy(struct session *s, const char *model, int n_ids, char *text, const struct limits *lim)
{
    int32_t ids[64];
    double margin[64];
    int n = parse_pairs(text, ids, margin, 64);
    const float *logits = s->logits[n_ids - 1];
    for (int i = 0; i < n; i++) {
        struct token_logprob best;
        sampler_top_logprobs(s->sampler, logits, 1, &best);
        if (best.token != ids[i]) {
            ck_assert_msg(margin[i] <= lim->clear, "%s: greedy token %d is %d, expected %d with margin %.3f", model, i, best.token,
                          ids[i], margin[i]);
            return;
        }
        feed(s, &ids[i], 1, n_ids + i);
        logits = s->logits[0];
    }
}

START_TEST(model_matches_golden_values)
{
    const char *model = runs[_i].model;
    const struct limits *lim = runs[_i].limits;
    char path[256], line[MAX_LINE];
    snprintf(path, sizeof path, "tests/data/golden/%s.txt", model);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "cannot open %s (run from the repository's root)", path);
    snprintf(path, sizeof path, "tests/data/golden/%s.gguf", model);
    struct session s = {0};
    struct scores sc = {0};
    int32_t ids[MAX_IDS];
    int n_ids = 0, n_ctx = -1, skip, ctx, pos;
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "case %*s ctx %d", &ctx) == 1 && ctx != n_ctx) {
            session_close(&s);
            s = (struct session){0};
            session_open(&s, path, ctx, runs[_i].kv);
            n_ctx = ctx;
        } else if (strncmp(line, "ids ", 4) == 0) {
            char *p = line + 4, *end;
            for (n_ids = 0; n_ids < MAX_IDS; p = end) {
                long id = strtol(p, &end, 10);
                if (end == p)
                    break;
                ids[n_ids++] = (int32_t)id;
            }
            feed(&s, ids, n_ids, 0);
        } else if (sscanf(line, "pos %d %n", &pos, &skip) == 1) {
            score_position(&s, pos, line + skip, &sc);
        } else if (strncmp(line, "greedy ", 7) == 0) {
            follow_greedy(&s, model, n_ids, line + 7, lim);
        }
    }
    fclose(f);
    session_close(&s);
    ck_assert_int_gt(sc.n, 10);
    ck_assert_msg(sc.kl_sum / sc.n <= lim->kl_mean && sc.kl_max <= lim->kl_max && sc.dlp_max <= lim->dlp,
                  "%s, limits %s: KL mean %.2e max %.2e, log-probability off by %.4f", model, lim->name, sc.kl_sum / sc.n,
                  sc.kl_max, sc.dlp_max);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("golden");
    TCase *t = tcase_create("golden");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, model_matches_golden_values, 0, (int)(sizeof runs / sizeof *runs));
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
