/* The engine on a tiny model and the CPU device: the same bytes whatever else runs, and every
 * way a generation can end leaves nothing behind. */
#include "base/clock.h"
#include "base/mem.h"
#include "tests/rig.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- the same bytes ---- */

enum { N_MIX = 16 };

/* The i-th request of a mixture of lengths and sampling parameters. */
static struct gen_request mixed_request(int i)
{
    struct gen_request q = rig_request(1 + i * 13 % 97, 100 + (uint64_t)i, 5 + i % 11);
    if (i % 2 == 1)
        q.sample.temperature = 0.7f;
    if (i % 3 == 1)
        q.sample.top_p = 0.9f;
    if (i % 4 == 2)
        q.sample.top_k = 20;
    if (i % 5 == 3)
        q.sample.repetition_penalty = 1.3f;
    if (i % 5 == 4)
        q.sample.frequency_penalty = 0.5f;
    return q;
}

static void run_alone(struct rig *r, int i, struct reader *rd)
{
    struct gen_request q = mixed_request(i);
    reader_start(rd, r, &q);
    reader_finish(rd);
    reader_free(rd);
}

static void run_together(struct rig *r, int n, struct reader *rd)
{
    rig_hold();
    for (int i = 0; i < n; i++) {
        struct gen_request q = mixed_request(i);
        reader_start(&rd[i], r, &q);
    }
    rig_go();
    for (int i = 0; i < n; i++) {
        reader_finish(&rd[i]);
        reader_free(&rd[i]);
    }
}

static void assert_same(const struct reader *a, const struct reader *b, const char *what)
{
    ck_assert_msg(a->last.type == b->last.type && a->last.stop == b->last.stop, "%s: another end",
                  what);
    ck_assert_msg(a->n_tokens == b->n_tokens &&
                      memcmp(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens) == 0,
                  "%s: other tokens", what);
}

static void check_mixture(const char *preset, enum kv_type kv_type, int n, const int *max_rows,
                          int n_max_rows)
{
    static struct reader alone[N_MIX], again, together[N_MIX];
    struct rig r;
    for (int k = 0; k < n_max_rows; k++) {
        rig_open(&r, &(struct rig_options){
                         .preset = preset, .max_rows = max_rows[k], .kv_type = kv_type});
        for (int i = 0; k == 0 && i < n; i++)
            run_alone(&r, i, &alone[i]);
        for (int i = 0; k > 0 && i < n; i += 5) {
            run_alone(&r, i, &again);
            assert_same(&again, &alone[i], "alone in other chunks");
        }
        run_together(&r, n, together);
        for (int i = 0; i < n; i++)
            assert_same(&together[i], &alone[i], "among others");
        rig_close(&r);
    }
}

START_TEST(test_same_bytes_whatever_else_runs)
{
    check_mixture("smollm2", KV_F16, N_MIX, (const int[]){0, 7, 1}, 3);
}
END_TEST

START_TEST(test_same_bytes_with_windows_and_q8_pages)
{
    check_mixture("gemma3", KV_Q8_0, 5, (const int[]){0, 7}, 2);
}
END_TEST

START_TEST(test_five_runs_give_one_answer)
{
    static struct reader first, rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    run_alone(&r, 7, &first);
    for (int i = 0; i < 4; i++) {
        run_alone(&r, 7, &rd);
        assert_same(&rd, &first, "another run");
    }
    ck_assert_int_eq(first.n_tokens, 12);
    rig_close(&r);
}
END_TEST

START_TEST(test_equals_the_plain_loop_over_the_adapter)
{
    static struct reader rd;
    struct rig r;
    struct err err = {0};
    int32_t want[12];
    struct gen_request q = mixed_request(7);
    rig_open_adapter(&r, &(struct rig_options){0});
    ck_assert_int_eq(adapter_generate(r.adapter, q.prompt, q.n_prompt, &q.sample, want, 12, &err),
                     12);
    rig_close(&r);
    rig_open(&r, &(struct rig_options){0});
    run_alone(&r, 7, &rd);
    ck_assert_int_eq(rd.n_tokens, 12);
    ck_assert_mem_eq(rd.tokens, want, sizeof want);
    rig_close(&r);
}
END_TEST

START_TEST(test_resumed_elsewhere_goes_on_without_a_seam)
{
    static struct reader whole, part;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(70, 5, 40);
    q.sample.frequency_penalty = 0.3f;
    q.sample.repetition_penalty = 1.1f;
    reader_start(&whole, &r, &q);
    reader_finish(&whole);
    for (int n = 1; n <= 40; n += 13) {
        q.resume = whole.tokens;
        q.n_resume = n;
        reader_start(&part, &r, &q);
        reader_finish(&part);
        ck_assert_int_eq(part.n_tokens, 40 - n);
        ck_assert(part.started && part.last.stop == STOP_MAX_TOKENS);
        if (n < 40) {
            ck_assert_int_eq(part.first_index, n);
            ck_assert_mem_eq(part.tokens, whole.tokens + n,
                             (size_t)(40 - n) * sizeof *whole.tokens);
        }
        reader_free(&part);
    }
    reader_free(&whole);
    rig_close(&r);
}
END_TEST

/* ---- cancel and deadlines ---- */

static void assert_error(struct reader *rd, enum err_code code, bool in_queue)
{
    ck_assert(reader_poll(rd)); /* at once, the engine is held */
    ck_assert_int_eq(rd->last.type, GEN_EV_ERROR);
    ck_assert_int_eq(rd->last.code, code);
    ck_assert_int_eq(rd->last.in_queue, in_queue);
    ck_assert(!gen_pending(rd->gen));
    gen_cancel(rd->gen, ERR_INTERNAL, "again");
    ck_assert(!gen_pending(rd->gen));
}

START_TEST(test_cancel_in_queue_prefill_and_decode)
{
    static struct reader decoding, prefilling, queued;
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 1});
    struct gen_request q = rig_request(200, 1, 50);
    rig_hold();
    reader_start(&prefilling, &r, &q);
    reader_start(&queued, &r, &q);
    rig_wait_held();
    gen_cancel(queued.gen, ERR_CANCELLED, "by the client");
    assert_error(&queued, ERR_CANCELLED, true);
    ck_assert_str_eq(queued.last.message, "by the client");
    ck_assert(!queued.started);
    gen_cancel(prefilling.gen, ERR_CANCELLED, "by the client");
    assert_error(&prefilling, ERR_CANCELLED, false);
    ck_assert(prefilling.started);
    rig_go();
    rig_wait_idle(&r);
    ck_assert_int_eq(
        rig_phases(),
        0); /* the step held nothing else: it was abandoned before its first attention */
    rig_hold();
    q.n_prompt = 20;
    reader_start(&decoding, &r, &q);
    rig_let(4);
    reader_wait_tokens(&decoding, 3);
    rig_wait_held();
    gen_cancel(decoding.gen, ERR_CANCELLED, "by the client");
    assert_error(&decoding, ERR_CANCELLED, false);
    rig_go();
    rig_wait_idle(&r);
    reader_free(&decoding);
    reader_free(&prefilling);
    reader_free(&queued);
    rig_close(&r);
}
END_TEST

START_TEST(test_a_neighbour_keeps_its_step)
{
    static struct reader alone, a, b;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(30, 1, 10), p = rig_request(30, 1, 10);
    reader_start(&alone, &r, &p);
    reader_finish(&alone);
    rig_hold();
    reader_start(&a, &r, &p);
    reader_start(&b, &r, &q);
    rig_wait_held();
    gen_cancel(b.gen, ERR_CANCELLED, "");
    rig_go();
    reader_finish(&a);
    assert_same(&a, &alone, "with a cancelled neighbour");
    reader_free(&a);
    reader_free(&b);
    reader_free(&alone);
    rig_close(&r);
}
END_TEST

START_TEST(test_deadlines_fire_while_a_step_runs)
{
    static struct reader running, queued, limited;
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 1, .engine.inference_timeout_s = 0.5});
    rig_hold();
    struct gen_request q = rig_request(100, 1, 50);
    uint64_t start = clock_ns();
    q.deadline_ns = start + 400000000u;
    reader_start(&running, &r, &q);
    q.deadline_ns = start + 200000000u;
    reader_start(&queued, &r, &q);
    rig_wait_held();
    reader_finish(&queued);
    double queued_ms = clock_ms_since(start);
    reader_finish(&running);
    double running_ms = clock_ms_since(start);
    assert_error(&queued, ERR_TIMEOUT, true);
    assert_error(&running, ERR_TIMEOUT, false);
    ck_assert(queued_ms >= 200 && running_ms >= 400);
    ck_assert_msg(queued_ms < 2000 && running_ms < 2000, "after %g and %g ms", queued_ms,
                  running_ms);
    rig_go();
    rig_wait_idle(&r);
    rig_hold();
    q.deadline_ns = 0;
    reader_start(&limited, &r, &q);
    reader_finish(&limited);
    assert_error(&limited, ERR_TIMEOUT, false);
    ck_assert(strstr(limited.last.message, "0.5 s") != NULL);
    rig_go();
    reader_free(&running);
    reader_free(&queued);
    reader_free(&limited);
    rig_close(&r);
}
END_TEST

START_TEST(test_stats)
{
    static struct reader rd;
    struct rig r;
    struct engine_stats s;
    struct gen_stats g;
    rig_open(&r, &(struct rig_options){.max_seqs = 4});
    rig_slow(2000, 0);
    struct gen_request q = rig_request(100, 1, 10);
    rig_hold();
    reader_start(&rd, &r, &q);
    rig_wait_held();
    engine_stats_get(r.engine, &s);
    ck_assert_int_eq(s.running, 1);
    ck_assert_int_eq(s.queued, 0);
    ck_assert_double_eq(s.load, 0.25);
    ck_assert_int_gt(s.kv_pages_used, 0);
    ck_assert(!engine_idle(r.engine));
    rig_go();
    reader_finish(&rd);
    gen_stats_get(rd.gen, &g);
    ck_assert_int_eq(g.prompt_tokens, 100);
    ck_assert_int_eq(g.tokens_out, 10);
    ck_assert(g.queue_ms >= 0 && g.prefill_ms >= 2 && g.decode_ms >= 18);
    rig_wait_idle(&r);
    engine_stats_get(r.engine, &s);
    ck_assert_uint_eq(s.tokens_in, 100);
    ck_assert_uint_eq(s.tokens_out, 10);
    ck_assert_int_eq(s.last_batch, 1);
    ck_assert_uint_ge(s.steps, 10);
    reader_free(&rd);
    rig_close(&r);
}
END_TEST

START_TEST(test_idle_engine_lives_and_costs_nothing)
{
    struct rig r;
    struct engine_stats a, b;
    struct rusage before, after;
    rig_open(&r, &(struct rig_options){0});
    usleep(20000);
    getrusage(RUSAGE_SELF, &before);
    engine_stats_get(r.engine, &a);
    usleep(350000);
    engine_stats_get(r.engine, &b);
    getrusage(RUSAGE_SELF, &after);
    ck_assert(b.heartbeat_ns > a.heartbeat_ns);
    ck_assert_int_lt((after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 +
                         after.ru_utime.tv_usec - before.ru_utime.tv_usec,
                     50000);
    rig_close(&r);
}
END_TEST

/* ---- shutting down, failing ---- */

START_TEST(test_drain_refuses_new_work_and_finishes_old)
{
    static struct reader running, queued, late;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.max_seqs = 1});
    struct gen_request q = rig_request(10, 1, 10);
    rig_hold();
    reader_start(&running, &r, &q);
    reader_start(&queued, &r, &q);
    engine_drain(r.engine);
    ck_assert(!reader_submit(&late, &r, &q, NULL, &err));
    ck_assert_int_eq(err.code, ERR_DRAINING);
    rig_go();
    reader_finish(&running);
    reader_finish(&queued);
    ck_assert_int_eq(queued.last.type, GEN_EV_END);
    rig_wait_idle(&r);
    reader_free(&running);
    reader_free(&queued);
    rig_close(&r);
}
END_TEST

START_TEST(test_cancel_all)
{
    static struct reader rd[6];
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 2});
    struct gen_request q = rig_request(50, 1, 100);
    rig_hold();
    for (int i = 0; i < 6; i++)
        reader_start(&rd[i], &r, &q);
    rig_wait_held();
    engine_cancel_all(r.engine);
    for (int i = 0; i < 6; i++) {
        ck_assert(reader_poll(&rd[i]));
        assert_error(&rd[i], ERR_CANCELLED, !rd[i].started);
    }
    rig_go();
    rig_wait_idle(&r);
    for (int i = 0; i < 6; i++)
        reader_free(&rd[i]);
    rig_close(&r);
}
END_TEST

START_TEST(test_close_with_gens_alive)
{
    static struct reader rd[6];
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 2});
    struct gen_request q = rig_request(50, 1, 100);
    rig_slow(20000, 0); /* 100 tokens take two seconds */
    for (int i = 0; i < 6; i++)
        reader_start(&rd[i], &r, &q);
    reader_wait_tokens(&rd[0], 2);
    reader_free(&rd[5]);
    engine_close(r.engine);
    for (int i = 0; i < 5; i++) { /* they outlive the engine */
        reader_finish(&rd[i]);
        ck_assert_int_eq(rd[i].last.code, ERR_CANCELLED);
        gen_cancel(rd[i].gen, ERR_CANCELLED, "late");
        reader_free(&rd[i]);
    }
    rig_close_model(&r);
}
END_TEST

START_TEST(test_a_failed_device_ends_everything)
{
    static struct reader rd[4], late;
    struct rig r;
    struct err err = {0}, cause = {0};
    struct engine_stats s;
    rig_open(&r, &(struct rig_options){.max_seqs = 2});
    struct gen_request q = rig_request(50, 1, 100);
    ck_assert(!engine_failure(r.engine, &cause));
    rig_hold();
    for (int i = 0; i < 4; i++)
        reader_start(&rd[i], &r, &q);
    rig_let(3);
    rig_wait_held();
    rig_break(ERR_CUDA);
    rig_go();
    for (int i = 0; i < 4; i++) {
        reader_finish(&rd[i]);
        ck_assert_int_eq(rd[i].last.code, ERR_CUDA);
        ck_assert_str_eq(rd[i].last.message, "launch failed");
    }
    ck_assert(engine_failure(r.engine, &cause));
    ck_assert_int_eq(cause.code, ERR_CUDA);
    ck_assert(!reader_submit(&late, &r, &q, NULL, &err));
    ck_assert_int_eq(err.code, ERR_NOT_READY);
    engine_stats_get(r.engine, &s);
    ck_assert(s.failed);
    for (int i = 0; i < 4; i++)
        reader_free(&rd[i]);
    rig_close(&r);
}
END_TEST

/* As when the file was cut or the device taken away while requests ran: not the clients' doing. */
START_TEST(test_a_failure_from_outside_ends_everything)
{
    static struct reader rd[3], late;
    struct rig r;
    struct err cause = {0}, later = {0}, err = {0};
    rig_open(&r, &(struct rig_options){.max_seqs = 2});
    struct gen_request q = rig_request(50, 1, 100);
    rig_hold();
    for (int i = 0; i < 3; i++)
        reader_start(&rd[i], &r, &q);
    rig_let(3);
    rig_wait_held();
    err_set(&cause, ERR_SYSTEM, "the file was cut");
    err_set(&later, ERR_CUDA, "another cause");
    engine_fail(r.engine, &cause);
    engine_fail(r.engine, &later);
    for (int i = 0; i < 3; i++) {
        reader_finish(&rd[i]); /* while the step still hangs */
        ck_assert_int_eq(rd[i].last.code, ERR_INTERNAL);
        ck_assert_str_eq(rd[i].last.message, "the file was cut");
    }
    ck_assert(!reader_submit(&late, &r, &q, NULL, &err));
    ck_assert_int_eq(err.code, ERR_NOT_READY);
    ck_assert(engine_failure(r.engine, &cause));
    ck_assert_str_eq(cause.msg, "the file was cut");
    rig_go();
    for (int i = 0; i < 3; i++)
        reader_free(&rd[i]);
    rig_close(&r);
}
END_TEST

START_TEST(test_no_memory_for_a_request)
{
    static struct reader rd;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(50, 1, 3);
    mem_fail_after(1);
    ck_assert(!reader_submit(&rd, &r, &q, NULL, &err));
    ck_assert_int_eq(err.code, ERR_OOM);
    reader_start(&rd, &r, &q);
    mem_fail_after(1); /* running it allocates nothing */
    reader_finish(&rd);
    mem_fail_after(0);
    ck_assert_int_eq(rd.n_tokens, 3);
    reader_free(&rd);
    rig_close(&r);
}
END_TEST

START_TEST(test_no_memory_for_the_engine)
{
    struct rig r;
    struct err err = {0};
    rig_open_adapter(&r, &(struct rig_options){0});
    struct engine *e = NULL;
    int n = 0;
    while (e == NULL) {
        ck_assert_int_lt(n, 50);
        mem_fail_after(++n);
        e = engine_open(r.adapter, &(struct engine_options){.max_queue = 1}, &err);
    }
    mem_fail_after(0);
    ck_assert_int_gt(n, 5);
    r.engine = e;
    rig_close(&r);
}
END_TEST

/* ---- a storm (D10) ---- */

struct stormer {
    pthread_t thread;
    struct rig *rig;
    unsigned seed;
};

static void *storm(void *arg)
{
    struct stormer *s = arg;
    struct reader *rd = malloc(sizeof *rd);
    struct err err = {0};
    for (int i = 0; i < 60; i++) {
        struct gen_request q = {.max_tokens = 30, .sample = SAMPLE_DEFAULTS, .n_logprobs = -1};
        int32_t prompt[120];
        for (int j = 0; j < 120; j++)
            prompt[j] = (int32_t)(rand_r(&s->seed) % 500);
        q.prompt = prompt;
        q.n_prompt = 1 + (int)(rand_r(&s->seed) % 120);
        if (!reader_submit(rd, s->rig, &q, NULL, &err))
            continue;
        usleep(rand_r(&s->seed) % 4000);
        if (i % 3 == 0)
            gen_cancel(rd->gen, ERR_CANCELLED, "cancelled");
        if (i % 3 == 1)
            gen_finish(rd->gen);
        reader_free(rd);
    }
    free(rd);
    return NULL;
}

START_TEST(test_storm_of_cancels_leaves_neighbours_alone)
{
    static struct reader alone[N_MIX], together[N_MIX];
    struct stormer s[4];
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 20});
    for (int i = 0; i < N_MIX; i++)
        run_alone(&r, i, &alone[i]);
    for (unsigned i = 0; i < 4; i++) {
        s[i] = (struct stormer){.rig = &r, .seed = i};
        ck_assert_int_eq(pthread_create(&s[i].thread, NULL, storm, &s[i]), 0);
    }
    for (int i = 0; i < N_MIX; i++) {
        struct gen_request q = mixed_request(i);
        reader_start(&together[i], &r, &q);
    }
    for (int i = 0; i < N_MIX; i++) {
        reader_finish(&together[i]);
        assert_same(&together[i], &alone[i], "in a storm");
        reader_free(&together[i]);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(s[i].thread, NULL);
    rig_close(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("engine");
    TCase *t = tcase_create("engine");
    tcase_set_timeout(t, 240); /* for the thread sanitizer */
    tcase_add_test(t, test_same_bytes_whatever_else_runs);
    tcase_add_test(t, test_same_bytes_with_windows_and_q8_pages);
    tcase_add_test(t, test_five_runs_give_one_answer);
    tcase_add_test(t, test_equals_the_plain_loop_over_the_adapter);
    tcase_add_test(t, test_resumed_elsewhere_goes_on_without_a_seam);
    tcase_add_test(t, test_cancel_in_queue_prefill_and_decode);
    tcase_add_test(t, test_a_neighbour_keeps_its_step);
    tcase_add_test(t, test_deadlines_fire_while_a_step_runs);
    tcase_add_test(t, test_stats);
    tcase_add_test(t, test_idle_engine_lives_and_costs_nothing);
    tcase_add_test(t, test_drain_refuses_new_work_and_finishes_old);
    tcase_add_test(t, test_cancel_all);
    tcase_add_test(t, test_close_with_gens_alive);
    tcase_add_test(t, test_a_failed_device_ends_everything);
    tcase_add_test(t, test_a_failure_from_outside_ends_everything);
    tcase_add_test(t, test_no_memory_for_a_request);
    tcase_add_test(t, test_no_memory_for_the_engine);
    tcase_add_test(t, test_storm_of_cancels_leaves_neighbours_alone);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
