/* The adapter over tiny models of every family and weight type: one interface, the same bytes
 * however the rows of a sequence are cut into steps, and the plan of memory. */
#include "base/mem.h"
#include "tests/rig.h"
#include "tests/tiny.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = 512, N_MADE = 12 };

static int32_t token_at(int i, int salt)
{
    return (int32_t)(((unsigned)i * 2654435761u + (unsigned)salt * 40503u) >> 8) % N_VOCAB;
}

static void own_pages(struct adapter *a, int seq, int n_pos)
{
    int per_seq = (adapter_n_ctx(a) + NUM_TILE - 1) / NUM_TILE;
    for (int i = 0; i * NUM_TILE < n_pos; i++)
        adapter_pages(a, seq)[i] = seq * per_seq + i;
}

/* Computes positions 0..n-1 of seqs sequences in steps of `chunk` rows of each; the logits of all
 * rows of sequence 0. */
static float *logits_of(struct adapter *a, int n, int chunk, int n_seqs)
{
    float *all = malloc((size_t)n * N_VOCAB * sizeof *all);
    struct row rows[1024];
    struct step_out out;
    struct err err = {0};
    for (int s = 0; s < n_seqs; s++)
        own_pages(a, s, n);
    for (int pos = 0; pos < n; pos += chunk) {
        int m = n - pos < chunk ? n - pos : chunk, n_rows = 0;
        for (int s = n_seqs - 1; s >= 0; s--) /* sequence 0 last: others stand before it */
            for (int i = 0; i < m; i++)
                rows[n_rows++] = (struct row){s, pos + i, token_at(pos + i, s), s == 0};
        ck_assert_msg(adapter_step(a, rows, n_rows, &out, NULL, &err), "%s", err.msg);
        ck_assert_int_eq(out.n_logits, m);
        for (int i = 0; i < m; i++)
            memcpy(all + (size_t)(pos + i) * N_VOCAB, out.logits[i], N_VOCAB * sizeof *all);
    }
    return all;
}

static void assert_equal_logits(float *got, const float *want, int n, const char *what,
                                const char *preset, const char *type)
{
    for (size_t i = 0; i < (size_t)n * N_VOCAB; i++)
        ck_assert_msg(memcmp(&got[i], &want[i], sizeof got[i]) == 0,
                      "%s %s, %s: position %zu, token %zu: %a, expected %a", preset, type, what,
                      i / N_VOCAB, i % N_VOCAB, (double)got[i], (double)want[i]);
    free(got);
}

static void assert_sane(const float *logits, int n, const char *preset, const char *type)
{
    float low = logits[0], high = logits[0];
    for (size_t i = 0; i < (size_t)n * N_VOCAB; i++) {
        ck_assert_msg(logits[i] > -1e4f && logits[i] < 1e4f, "%s %s: a logit is %g", preset, type,
                      (double)logits[i]);
        low = logits[i] < low ? logits[i] : low;
        high = logits[i] > high ? logits[i] : high;
    }
    ck_assert_msg(high - low > 0.1f, "%s %s: flat logits", preset, type);
}

struct way {
    int n_threads;
    enum isa isa;
};

/* One model: whole, in chunks and beside others, in two ways, always as the reference says. */
static void check_model(struct rig_options o, int n, int chunk, const struct way ways[2])
{
    struct rig r;
    o.device = &kern_cpu;
    rig_open_adapter(&r, &o);
    float *want = logits_of(r.adapter, n, n, 1);
    assert_sane(want, n, o.preset, o.type);
    rig_close(&r);
    o.device = &kern_cpu;
    for (size_t i = 0; i < 2; i++) {
        o.n_threads = ways[i].n_threads;
        o.isa = ways[i].isa;
        rig_open_adapter(&r, &o);
        assert_equal_logits(logits_of(r.adapter, n, n, 1), want, n, "whole", o.preset, o.type);
        assert_equal_logits(logits_of(r.adapter, n, chunk, 1), want, n, "in chunks", o.preset,
                            o.type);
        assert_equal_logits(logits_of(r.adapter, n, chunk > 16 ? 16 : 1, 3), want, n,
                            "beside others", o.preset, o.type);
        rig_close(&r);
    }
    free(want);
}

/* One of each family, then those that differ from it in numbers alone. */
static const char *const presets[] = {"llama2",  "qwen2",   "phi3",     "qwen3",
                                      "gemma3",  "gptoss",  "llama3",   "smollm2",
                                      "llama32", "phi3swa", "phi3long", "gemma3lin"};
enum { N_FAMILIES = 6, N_PRESETS = sizeof presets / sizeof *presets };

/* For the thread sanitizer some types are enough: this is one thread. */
#ifdef __SANITIZE_THREAD__
enum { TYPE_STEP = 5 };
#else
enum { TYPE_STEP = 1 };
#endif

/* _i: the preset */
START_TEST(test_every_type_as_the_reference)
{
    for (int t = 0; t < QTYPE_N; t += TYPE_STEP) {
        struct rig_options o = {.preset = presets[_i],
                                .type = qtype_name((enum qtype)t),
                                .n_layer = 1,
                                .n_ctx = 64,
                                .max_seqs = 3};
        check_model(o, 5, 3, (const struct way[]){{1, ISA_BEST}, {1, ISA_SCALAR}});
    }
}
END_TEST

/* Past windows, tiles and splits; all layers. */
START_TEST(test_long_prompts_in_chunks)
{
    struct rig_options o = {.preset = presets[_i],
                            .type = "Q8_0",
                            .n_ctx = 512,
                            .max_seqs = 3,
                            .max_rows = 512,
                            .max_logits = 300};
    check_model(o, _i == 0 ? 300 : 70, 37, (const struct way[]){{1, ISA_BEST}, {2, ISA_BEST}});
}
END_TEST

START_TEST(test_more_threads_than_cores)
{
    struct rig_options o = {.preset = "gptoss", .type = "Q4_1", .n_ctx = 64, .max_seqs = 3};
    check_model(o, 8, 5, (const struct way[]){{3, ISA_BEST}, {7, ISA_SCALAR}});
}
END_TEST

/* ---- the calls, for both shapes that every worker must serve ---- */

static const struct {
    const char *preset, *type, *model_type;
    int dim;
} shapes[] = {{"qwen2", "Q8_0", "qwen2.5", 224}, {"phi3", "Q4_0", "phi3", 192}};

START_TEST(test_facts)
{
    struct rig r;
    rig_open_adapter(&r, &(struct rig_options){.preset = shapes[_i].preset,
                                               .type = shapes[_i].type,
                                               .device = &kern_cpu});
    const struct adapter *a = r.adapter;
    ck_assert_str_eq(adapter_model_type(a), shapes[_i].model_type);
    ck_assert_int_eq(adapter_vocab_size(a), N_VOCAB);
    ck_assert_int_eq(adapter_hidden_dim(a), shapes[_i].dim);
    ck_assert_int_eq(adapter_num_layers(a), 2);
    ck_assert_int_eq(adapter_n_ctx(a), 256);
    ck_assert_int_eq(adapter_n_pages(a), 16 * 4);
    ck_assert_int_eq(adapter_max_seqs(a), 16);
    ck_assert_int_eq(adapter_max_rows(a), 256);
    ck_assert_int_eq(adapter_max_logits(a), 16);
    ck_assert_uint_eq(adapter_vram_usage(a), 0);
    const struct adapter_plan *p = adapter_planned(a);
    ck_assert_uint_eq(p->total, p->weights + p->kv + p->work);
    ck_assert_uint_eq(adapter_memory_usage(a), p->total);
    ck_assert_uint_eq(p->kv, p->kv_page * 64);
    char text[64];
    adapter_describe(a, text, sizeof text);
    ck_assert_uint_gt(strlen(text), 0);
    rig_close(&r);
}
END_TEST

/* A prompt, then one token: by prefill and decode, and by one step over all rows. */
START_TEST(test_prefill_and_decode)
{
    struct rig r;
    struct err err = {0};
    const float *logits;
    int32_t tokens[21];
    rig_open_adapter(&r, &(struct rig_options){.preset = shapes[_i].preset,
                                               .type = shapes[_i].type,
                                               .max_rows = 32,
                                               .device = &kern_cpu});
    for (int i = 0; i < 21; i++)
        tokens[i] = token_at(i, 0);
    float *want = logits_of(r.adapter, 21, 7, 1);
    ck_assert_msg(adapter_prefill(r.adapter, 2, 0, tokens, 20, &logits, &err), "%s", err.msg);
    ck_assert_mem_eq(logits, want + 19 * N_VOCAB, N_VOCAB * sizeof *logits);
    ck_assert_msg(adapter_decode(r.adapter, 2, 20, tokens[20], &logits, &err), "%s", err.msg);
    ck_assert_mem_eq(logits, want + 20 * N_VOCAB, N_VOCAB * sizeof *logits);
    free(want);
    ck_assert(!adapter_prefill(r.adapter, 16, 0, tokens, 20, &logits, &err));
    ck_assert_int_eq(err.code, ERR_INVALID);
    rig_close(&r);
}
END_TEST

static void generate(struct rig *r, float temperature, uint64_t seed, int32_t out[N_MADE])
{
    struct sample_params p = SAMPLE_DEFAULTS;
    struct err err = {0};
    int32_t prompt[] = {1, 17, 300, 42};
    p.temperature = temperature;
    p.seed = seed;
    ck_assert_msg(adapter_generate(r->adapter, prompt, 4, &p, out, N_MADE, &err) == N_MADE, "%s",
                  err.msg);
    for (int i = 0; i < N_MADE; i++)
        ck_assert(out[i] >= 0 && out[i] < N_VOCAB);
}

START_TEST(test_generate)
{
    struct rig r;
    struct err err = {0};
    int32_t first[N_MADE], again[N_MADE], greedy[N_MADE], null[1000];
    rig_open_adapter(&r, &(struct rig_options){.preset = shapes[_i].preset,
                                               .type = shapes[_i].type,
                                               .device = &kern_cpu});
    generate(&r, 0.8f, 11, first);
    for (int i = 0; i < 4; i++) { /* five runs, one seed */
        generate(&r, 0.8f, 11, again);
        ck_assert_mem_eq(again, first, sizeof first);
    }
    generate(&r, 0.8f, 12, again);
    ck_assert_mem_ne(again, first, sizeof first);
    generate(&r, 0, 1, greedy); /* temperature 0: no seed matters */
    generate(&r, 0, 2, again);
    ck_assert_mem_eq(again, greedy, sizeof greedy);
    generate(&r, 1e-4f, 3, again); /* and near it neither */
    ck_assert_mem_eq(again, greedy, sizeof greedy);
    int32_t prompt[] = {1, 17, 300, 42};
    ck_assert_int_eq(adapter_generate(r.adapter, prompt, 4, NULL, null, N_MADE, &err), N_MADE);
    ck_assert_mem_eq(null, greedy, sizeof greedy);
    /* more than the context holds */
    ck_assert_int_eq(adapter_generate(r.adapter, prompt, 4, NULL, null, 1000, &err), -1);
    rig_close(&r);
}
END_TEST

/* ---- without a model ---- */

static void assert_not_loaded(bool failed, struct err *err)
{
    ck_assert(failed);
    ck_assert_int_eq(err->code, ERR_NOT_READY);
    ck_assert(strncmp(err->msg, "MODEL_NOT_LOADED", 16) == 0);
    *err = (struct err){0};
}

START_TEST(test_no_model)
{
    struct err err = {0};
    struct adapter_options o = {.device = &kern_cpu};
    struct adapter_plan plan;
    struct row row = {0};
    struct step_out out;
    const float *logits;
    int32_t token = 1, made;
    char text[8] = "x";
    assert_not_loaded(!adapter_plan(NULL, &o, &plan, &err), &err);
    assert_not_loaded(adapter_open(NULL, &o, &err) == NULL, &err);
    assert_not_loaded(!adapter_step(NULL, &row, 1, &out, NULL, &err), &err);
    assert_not_loaded(!adapter_prefill(NULL, 0, 0, &token, 1, &logits, &err), &err);
    assert_not_loaded(!adapter_decode(NULL, 0, 0, 1, &logits, &err), &err);
    assert_not_loaded(adapter_generate(NULL, &token, 1, NULL, &made, 1, &err) == -1, &err);
    ck_assert_str_eq(adapter_model_type(NULL), "");
    ck_assert_int_eq(adapter_vocab_size(NULL), 0);
    ck_assert_int_eq(adapter_hidden_dim(NULL), 0);
    ck_assert_int_eq(adapter_num_layers(NULL), 0);
    ck_assert_int_eq(adapter_n_ctx(NULL), 0);
    ck_assert_int_eq(adapter_n_pages(NULL), 0);
    ck_assert_int_eq(adapter_max_rows(NULL), 0);
    ck_assert_int_eq(adapter_max_seqs(NULL), 0);
    ck_assert_int_eq(adapter_max_logits(NULL), 0);
    ck_assert_uint_eq(adapter_memory_usage(NULL), 0);
    ck_assert_uint_eq(adapter_vram_usage(NULL), 0);
    ck_assert_ptr_null(adapter_planned(NULL));
    ck_assert_ptr_null(adapter_pages(NULL, 0));
    adapter_describe(NULL, text, sizeof text);
    ck_assert_str_eq(text, "");
    adapter_close(NULL);
}
END_TEST

/* ---- memory ---- */

static size_t memory_of(const struct rig_options *o)
{
    struct rig r;
    rig_open_adapter(&r, o);
    size_t bytes = adapter_memory_usage(r.adapter);
    rig_close(&r);
    return bytes;
}

START_TEST(test_a_larger_model_takes_more_memory)
{
    struct rig_options o = {.preset = "qwen2", .type = "Q8_0", .device = &kern_cpu};
    size_t base = memory_of(&o);
    o.n_layer = 4;
    ck_assert_uint_gt(memory_of(&o), base);
    o.n_layer = 0;
    o.type = "Q4_0";
    ck_assert_uint_lt(memory_of(&o), base);
    o.type = "Q8_0";
    o.n_ctx = 1024;
    ck_assert_uint_gt(memory_of(&o), base);
}
END_TEST

struct planner {
    struct rig rig;
    struct adapter_options o;
    struct adapter_plan plan;
    struct err err;
};

static void planner_open(struct planner *p)
{
    *p = (struct planner){.o = {.device = &kern_cpu, .n_ctx = 256, .max_seqs = 4}};
    rig_open_adapter(&p->rig, &(struct rig_options){.device = &kern_cpu});
    ck_assert(adapter_plan(p->rig.model, &p->o, &p->plan, &p->err));
    ck_assert_int_eq(p->plan.n_pages, 16);
}

START_TEST(test_plan_lowers_the_context_or_refuses)
{
    struct planner p;
    planner_open(&p);
    p.o.kv_bytes = 3 * p.plan.kv_page + 1;
    ck_assert(adapter_plan(p.rig.model, &p.o, &p.plan, &p.err));
    ck_assert_int_eq(p.plan.n_pages, 3);
    ck_assert_int_eq(p.plan.n_ctx, 3 * NUM_TILE);
    p.o.n_ctx_given = true;
    ck_assert(!adapter_plan(p.rig.model, &p.o, &p.plan, &p.err));
    ck_assert_int_eq(p.err.code, ERR_DEVICE);
    ck_assert(strstr(p.err.msg, "required") != NULL && strstr(p.err.msg, "available") != NULL);
    p.o.n_ctx_given = false;
    p.o.kv_bytes = 1;
    ck_assert(!adapter_plan(p.rig.model, &p.o, &p.plan, &p.err));
    p.o.kv_bytes = SIZE_MAX / 2;
    p.o.max_seqs = 1 << 30; /* as much as that needs does not exist */
    ck_assert(!adapter_plan(p.rig.model, &p.o, &p.plan, &p.err));
    ck_assert_int_eq(p.err.code, ERR_DEVICE);
    rig_close(&p.rig);
}
END_TEST

START_TEST(test_no_memory_at_any_point_of_opening)
{
    struct planner p;
    planner_open(&p);
    struct adapter *a = NULL;
    int n = 0;
    while (a == NULL) {
        ck_assert_int_lt(n, 1000);
        p.err.code = ERR_NONE;
        mem_fail_after(++n);
        a = adapter_open(p.rig.model, &p.o, &p.err);
        mem_fail_after(0);
        ck_assert(a != NULL || p.err.code == ERR_DEVICE);
    }
    ck_assert_int_gt(n, 5);
    adapter_close(a);
    rig_close(&p.rig);
}
END_TEST

static void note_progress(void *arg, int percent)
{
    int *last = arg;
    ck_assert_int_ge(percent, *last);
    ck_assert_int_le(percent, 100);
    *last = percent;
}

START_TEST(test_progress_ends_at_100)
{
    struct planner p;
    int last = -1;
    planner_open(&p);
    p.o.progress = note_progress;
    p.o.progress_arg = &last;
    struct adapter *a = adapter_open(p.rig.model, &p.o, &p.err);
    ck_assert(a != NULL);
    ck_assert_int_eq(last, 100);
    adapter_close(a);
    rig_close(&p.rig);
}
END_TEST

/* ---- steps ---- */

START_TEST(test_steps_that_break_the_rules)
{
    struct rig r;
    struct err err = {0};
    struct step_out out;
    rig_open_adapter(&r, &(struct rig_options){.max_seqs = 2, .max_rows = 20, .device = &kern_cpu});
    static const struct row bad[] = {{2, 0, 1, false},  {-1, 0, 1, false},      {0, 256, 1, false},
                                     {0, -1, 1, false}, {0, 0, N_VOCAB, false}, {0, 0, -1, false}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert(!adapter_step(r.adapter, &bad[i], 1, &out, NULL, &err));
        ck_assert_int_eq(err.code, ERR_INVALID);
    }
    struct row rows[21];
    for (int i = 0; i < 21; i++)
        rows[i] = (struct row){0, i, 1, true};
    ck_assert(!adapter_step(r.adapter, rows, 0, &out, NULL, &err));
    ck_assert(!adapter_step(r.adapter, rows, 21, &out, NULL, &err));
    ck_assert(!adapter_step(r.adapter, rows, 17, &out, NULL, &err)); /* logits of 16 at most */
    rig_close(&r);
}
END_TEST

START_TEST(test_a_stopped_step_does_no_harm)
{
    struct rig r;
    struct err err = {0};
    struct step_out out;
    rig_open_adapter(&r, &(struct rig_options){.device = &kern_cpu});
    float *want = logits_of(r.adapter, 12, 12, 1);
    atomic_bool stop = true;
    struct row rows[12];
    for (int i = 0; i < 12; i++)
        rows[i] = (struct row){0, i, token_at(i, 5), false};
    ck_assert(!adapter_step(r.adapter, rows, 12, &out, &stop, &err));
    ck_assert_int_eq(err.code, ERR_CANCELLED);
    assert_equal_logits(logits_of(r.adapter, 12, 4, 1), want, 12, "after a stopped step", "smollm2",
                        "Q4_0");
    free(want);
    rig_close(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("adapter");
    TCase *t = tcase_create("adapter");
    tcase_set_timeout(t, 240); /* for the thread sanitizer */
    tcase_add_loop_test(t, test_every_type_as_the_reference, 0, N_FAMILIES);
    tcase_add_loop_test(t, test_long_prompts_in_chunks, 0, N_PRESETS);
    tcase_add_test(t, test_more_threads_than_cores);
    tcase_add_loop_test(t, test_facts, 0, 2);
    tcase_add_loop_test(t, test_prefill_and_decode, 0, 2);
    tcase_add_loop_test(t, test_generate, 0, 2);
    tcase_add_test(t, test_no_model);
    tcase_add_test(t, test_a_larger_model_takes_more_memory);
    tcase_add_test(t, test_plan_lowers_the_context_or_refuses);
    tcase_add_test(t, test_no_memory_at_any_point_of_opening);
    tcase_add_test(t, test_progress_ends_at_100);
    tcase_add_test(t, test_steps_that_break_the_rules);
    tcase_add_test(t, test_a_stopped_step_does_no_harm);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
