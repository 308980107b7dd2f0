/* The promise: the same request, the same bytes. Tokens, log-probabilities and alternatives of a
 * mixture of requests, compared between one by one on one thread of scalar code and every other way
 * to run them: among others, in other chunks, on more threads, with wider instructions, from cached
 * pages, beside cancelled neighbours, with drafts. */
#include "kernels/cpu/product.h"
#include "tests/rig.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_REQUESTS = 17, N_CTX = 512, LONGEST = 440 };

struct model_row {
    const char *preset, *type;
};
static const struct model_row models[] = {
    {"smollm2", "Q4_0"}, {"llama2", "Q4_1"}, {"llama3", "Q4_K_M"}, {"qwen2", "Q8_0"},
    {"phi3swa", "Q5_1"}, {"qwen3", "F16"},   {"gemma3", "Q6_K"},   {"gptoss", "MXFP4"},
};
/* Sanitizers look for other things, and slowly: there the first will do. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { N_MODELS = 1, FEWEST_ROWS = 16 };
#else
enum { N_MODELS = sizeof models / sizeof *models, FEWEST_ROWS = 1 };
#endif

struct way {
    const char *name;
    int n_together; /* 0 = one by one */
    int max_rows, n_threads;
    enum isa isa;
    enum speculation speculate;
    bool cached, cancels;
};

/* The first for every model, all for the first. */
static const struct way ways[] = {
    {"all of it", N_REQUESTS, 48, 2, ISA_BEST, SPECULATE_ALWAYS, true, true},
    {"one by one, drafts", 0, 0, 1, ISA_BEST, SPECULATE_ALWAYS, false, false},
    {"one by one, cached", 0, 0, 1, ISA_BEST, SPECULATE_OFF, true, false},
    {"2 together", 2, 0, 1, ISA_BEST, SPECULATE_OFF, false, false},
    {"5 together", 5, 0, 2, ISA_BEST, SPECULATE_ON, false, false},
    {"17 together", 17, 0, 3, ISA_BEST, SPECULATE_OFF, false, false},
    {"1 row a step", 17, 1, 1, ISA_BEST, SPECULATE_OFF, true, false},
    {"2 rows a step", 4, 2, 1, ISA_BEST, SPECULATE_ALWAYS, false, false},
    {"3 rows a step", 17, 3, 3, ISA_BEST, SPECULATE_ALWAYS, true, true},
    {"7 rows a step", 9, 7, 1, ISA_BEST, SPECULATE_ON, false, true},
    {"16 rows a step", 17, 16, 2, ISA_BEST, SPECULATE_ALWAYS, true, false},
    {"64 rows a step", 17, 64, 1, ISA_BEST, SPECULATE_OFF, true, true},
    {"127 rows a step", 3, 127, 1, ISA_BEST, SPECULATE_ALWAYS, true, true},
    {"512 rows a step", 17, 512, 3, ISA_BEST, SPECULATE_ALWAYS, true, true},
    {"scalar", 17, 100, 2, ISA_SCALAR, SPECULATE_ALWAYS, true, true},
    {"AVX2", 17, 100, 2, ISA_AVX2, SPECULATE_ALWAYS, true, true},
    {"AVX-VNNI", 17, 100, 2, ISA_AVX_VNNI, SPECULATE_ALWAYS, true, true},
    {"AVX-512", 17, 100, 2, ISA_AVX512, SPECULATE_ALWAYS, true, true},
    {"AVX-512 VNNI", 17, 100, 2, ISA_AVX512_VNNI, SPECULATE_ALWAYS, true, true},
};
enum { N_WAYS = sizeof ways / sizeof *ways };

/* ---- the requests ---- */

static int32_t prompts[N_REQUESTS][LONGEST];
static struct logit_bias bias[] = {{17, 2}, {99, -100}, {300, 1.5f}};
/* Only these are left: what follows has been said before, so that drafts are right. */
static struct logit_bias few[] = {{40, 80}, {41, 80}, {42, 80}};

/* Lengths from 1 to 400, common beginnings of none, one and several pages, every stage of the
 * sampler. */
static struct gen_request request(int i)
{
    int n_common = i % 3 * 130, n = i == 16 ? 400 : 1 + n_common + i * 37 % 90;
    struct gen_request common = rig_request(LONGEST, 1, 1);
    memcpy(prompts[i], common.prompt, LONGEST * sizeof *prompts[i]);
    struct gen_request q = rig_request(LONGEST, 100 + (uint64_t)i, 12 + i * 7 % 40);
    memcpy(prompts[i] + n_common, q.prompt, (LONGEST - (size_t)n_common) * sizeof *prompts[i]);
    q.prompt = prompts[i];
    q.n_prompt = n;
    q.n_logprobs = i % 4 == 3 ? -1 : i % 4 * 10;
    q.sample.temperature = i % 2 == 0 ? 0 : 0.8f;
    q.sample.top_p = i % 5 == 1 ? 0.9f : 1;
    q.sample.top_k = i % 5 == 3 ? 20 : 0;
    q.sample.min_p = i == 9 ? 0.05f : 0;
    q.sample.repetition_penalty = i == 5 || i == 12 ? 1.3f : 1;
    q.sample.frequency_penalty = i == 7 ? 0.5f : 0;
    q.sample.presence_penalty = i == 11 ? 0.4f : 0;
    if (i % 6 == 4 || i % 4 == 0) {
        q.sample.bias = i % 4 == 0 ? few : bias;
        q.sample.n_bias = 3;
    }
    static const int32_t stop[] = {5, 55, 155, 255, 355, 455};
    q.stop_tokens = stop;
    q.n_stop_tokens = i % 3 == 2 ? 6 : 0;
    q.min_tokens = i % 3 == 2 ? 9 : 0;
    return q;
}

/* ---- running them ---- */

static struct reader want[N_REQUESTS];

static void compare(const struct reader *got, int i, const struct model_row *m, const char *kv,
                    const char *how)
{
    const struct reader *w = &want[i];
    ck_assert_msg(got->last.type == GEN_EV_END && got->last.stop == w->last.stop &&
                      got->n_tokens == w->n_tokens &&
                      memcmp(got->tokens, w->tokens, (size_t)w->n_tokens * sizeof *w->tokens) == 0,
                  "%s %s, KV %s, %s: request %d has other tokens", m->preset, m->type, kv, how, i);
    ck_assert_msg(got->bytes == w->bytes,
                  "%s %s, KV %s, %s: request %d has other log-probabilities", m->preset, m->type,
                  kv, how, i);
}

/* Requests first..first+n-1 at once, each with a neighbour that is cancelled somewhere on its way.
 */
static int run_together(struct rig *r, const struct way *w, int first, int n, struct reader *got)
{
    static struct reader victims[N_REQUESTS];
    unsigned seed = (unsigned)first;
    int n_cached = 0;
    rig_hold();
    for (int i = first; i < first + n; i++) {
        struct gen_request q = request(i), victim = request((i + 1) % N_REQUESTS);
        q.cache_scope = victim.cache_scope = w->cached ? "" : NULL;
        reader_start(&got[i], r, &q);
        if (w->cancels)
            reader_start(&victims[i], r, &victim);
    }
    rig_go();
    for (int i = first; w->cancels && i < first + n; i++) {
        usleep(rand_r(&seed) % 500);
        gen_cancel(victims[i].gen, ERR_CANCELLED, "");
        reader_free(&victims[i]);
    }
    for (int i = first; i < first + n; i++) {
        reader_finish(&got[i]);
        reader_free(&got[i]);
        n_cached += got[i].n_cached;
    }
    return n_cached;
}

static void check_way(const struct model_row *m, enum kv_type kv, const struct way *w)
{
    static struct reader got[N_REQUESTS];
    struct rig r;
    struct engine_stats s;
    int n = w->n_together > 0 ? w->n_together : 1, n_cached = 0;
    const char *kv_name = kv == KV_F16 ? "f16" : "q8_0";
    rig_open(&r, &(struct rig_options){.preset = m->preset,
                                       .type = m->type,
                                       .n_ctx = N_CTX,
                                       .kv_type = kv,
                                       .max_seqs = 20,
                                       .max_rows = w->max_rows,
                                       .max_logits = 40,
                                       .n_threads = w->n_threads,
                                       .isa = w->isa,
                                       .engine.speculate = w->speculate});
    for (int again = 0; again <= w->cached; again++) {
        n_cached = 0;
        for (int first = 0; first < N_REQUESTS; first += n) {
            int left = N_REQUESTS - first;
            n_cached += run_together(&r, w, first, n < left ? n : left, got);
        }
        for (int i = 0; i < N_REQUESTS; i++)
            compare(&got[i], i, m, kv_name, w->name);
    }
    /* else the test would compare nothing */
    engine_stats_get(r.engine, &s);
    ck_assert(!w->cached || n_cached > 0);
    ck_assert(w->speculate != SPECULATE_ALWAYS || (w->max_rows > 0 && w->max_rows < 16) ||
              s.draft_accepted > 0);
    rig_close(&r);
}

/* One by one, cold, on one thread, nothing tried ahead; the first model with scalar code. */
static void find_wanted(const struct model_row *m, enum kv_type kv)
{
    static const struct way plain = {"the plain way", 0,     0,    1, ISA_SCALAR,
                                     SPECULATE_OFF,   false, false};
    struct rig r;
    rig_open(&r, &(struct rig_options){.preset = m->preset,
                                       .type = m->type,
                                       .n_ctx = N_CTX,
                                       .kv_type = kv,
                                       .isa = m == models ? ISA_SCALAR : ISA_BEST});
    for (int i = 0; i < N_REQUESTS; i++)
        run_together(&r, &plain, i, 1, want);
    rig_close(&r);
}

/* _i: model and KV type */
START_TEST(test_tokens_and_log_probabilities)
{
    const struct model_row *m = &models[_i / 2];
    enum kv_type kv = _i % 2 == 0 ? KV_F16 : KV_Q8_0;
    find_wanted(m, kv);
    for (int i = 0; i < (_i == 0 ? N_WAYS : 1); i++)
        if (product_isa(ways[i].isa) != NULL &&
            (ways[i].max_rows == 0 || ways[i].max_rows >= FEWEST_ROWS))
            check_way(m, kv, &ways[i]);
}
END_TEST

/* ---- logits, all of them ---- */

enum { N_POS = 270 };

/* The logits of every position of a prompt of n, computed in chunks. */
static float *logits_of(const struct model_row *m, enum kv_type kv, int chunk, int n_threads,
                        enum isa isa)
{
    struct rig r;
    struct row rows[512];
    struct step_out out;
    struct err err = {0};
    rig_open_adapter(&r, &(struct rig_options){.preset = m->preset,
                                               .type = m->type,
                                               .n_ctx = 512,
                                               .kv_type = kv,
                                               .max_seqs = 1,
                                               .max_rows = 512,
                                               .n_layer = 2,
                                               .max_logits = 512,
                                               .n_threads = n_threads,
                                               .isa = isa});
    int n_vocab = adapter_vocab_size(r.adapter);
    float *all = malloc((size_t)N_POS * (size_t)n_vocab * sizeof *all);
    ck_assert_ptr_nonnull(all);
    for (int i = 0; i <= N_POS / NUM_TILE; i++)
        adapter_pages(r.adapter, 0)[i] = N_POS / NUM_TILE - i;
    for (int pos = 0; pos < N_POS; pos += chunk) {
        int n = chunk < N_POS - pos ? chunk : N_POS - pos;
        for (int i = 0; i < n; i++)
            rows[i] = (struct row){0, pos + i, (pos + i) * 37 % 256, true};
        ck_assert_msg(adapter_step(r.adapter, rows, n, &out, NULL, &err), "%s", err.msg);
        for (int i = 0; i < n; i++)
            memcpy(all + (size_t)(pos + i) * (size_t)n_vocab, out.logits[i],
                   (size_t)n_vocab * sizeof *all);
    }
    rig_close(&r);
    return all;
}

/* _i: the model */
START_TEST(test_logits)
{
    static const int chunks[] = {1, 512, 7, 64, 100, 2, 33, 256, 3, 128, 5, 16, 31, 63, 300};
    const struct model_row *m = &models[_i];
    enum kv_type kv = _i % 2 == 0 ? KV_F16 : KV_Q8_0;
    float *plain = logits_of(m, kv, 40, 1, ISA_SCALAR);
    int n_vocab = 0, at = 0;
    struct rig r;
    rig_open_adapter(&r, &(struct rig_options){.preset = m->preset, .type = m->type});
    n_vocab = adapter_vocab_size(r.adapter);
    rig_close(&r);
    for (enum isa isa = ISA_SCALAR; isa < ISA_N; isa++)
        for (int n_threads = isa == ISA_SCALAR ? 3 : 1; product_isa(isa) != NULL && n_threads <= 3;
             n_threads++) {
            int chunk = chunks[(_i + at++) % 15];
            float *got = logits_of(m, kv, chunk, n_threads, isa);
            for (int i = 0; i < N_POS; i++)
                ck_assert_msg(
                    memcmp(got + (size_t)i * (size_t)n_vocab, plain + (size_t)i * (size_t)n_vocab,
                           (size_t)n_vocab * sizeof *got) == 0,
                    "%s %s, chunks of %d, %d threads, instructions %d: other logits at %d",
                    m->preset, m->type, chunk, n_threads, (int)isa, i);
            free(got);
        }
    free(plain);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("promise");
    TCase *t = tcase_create("promise");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, test_tokens_and_log_probabilities, 0, 2 * N_MODELS);
    tcase_add_loop_test(t, test_logits, 0, N_MODELS);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
