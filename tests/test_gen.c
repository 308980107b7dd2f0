/* One generation: how it ends, what is refused, its events and its reader. */
#include "tests/rig.h"

#include <check.h>
#include <string.h>
#include <unistd.h>

/* ---- how it ends ---- */

START_TEST(test_ends_at_max_tokens_and_at_the_context)
{
    static struct reader rd;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.n_ctx = 100});
    static const struct {
        int n_prompt, max_tokens, n;
        enum stop_reason stop;
    } cases[] = {
        {10, 1, 1, STOP_MAX_TOKENS},   {10, 20, 20, STOP_MAX_TOKENS},
        {90, 11, 11, STOP_MAX_TOKENS}, {90, 12, 11, STOP_CONTEXT},
        {99, 100, 2, STOP_CONTEXT},    {100, INT32_MAX, 1, STOP_CONTEXT},
        {100, 1, 1, STOP_MAX_TOKENS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gen_request q = rig_request(cases[i].n_prompt, 1, cases[i].max_tokens);
        reader_start(&rd, &r, &q);
        reader_finish(&rd);
        ck_assert_int_eq(rd.last.type, GEN_EV_END);
        ck_assert_int_eq(rd.n_tokens, cases[i].n);
        ck_assert_int_eq(rd.last.stop, cases[i].stop);
        reader_free(&rd);
    }
    struct gen_request q = rig_request(101, 1, 1);
    ck_assert(!reader_submit(&rd, &r, &q, NULL, &err));
    ck_assert_int_eq(err.code, ERR_CONTEXT);
    ck_assert(strstr(err.msg, "101") != NULL && strstr(err.msg, "100") != NULL);
    rig_close(&r);
}
END_TEST

START_TEST(test_stop_tokens_and_min_tokens)
{
    static struct reader free_run, rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(20, 3, 30);
    reader_start(&free_run, &r, &q);
    reader_finish(&free_run);
    int32_t stop[] = {free_run.tokens[9], 499};
    int first = 0;
    while (free_run.tokens[first] != stop[0] && free_run.tokens[first] != stop[1])
        first++;
    q.stop_tokens = stop;
    q.n_stop_tokens = 2;
    reader_start(&rd, &r, &q);
    reader_finish(&rd);
    ck_assert_int_eq(rd.last.stop, STOP_TOKEN);
    ck_assert_int_eq(rd.n_tokens, first); /* the stop token itself is no event */
    reader_free(&rd);
    q.min_tokens = 25;
    reader_start(&rd, &r, &q);
    reader_finish(&rd);
    ck_assert_int_ge(rd.n_tokens, 25);
    for (int i = 0; i < 25; i++)
        ck_assert(rd.tokens[i] != stop[0] && rd.tokens[i] != stop[1]);
    reader_free(&rd);
    reader_free(&free_run);
    rig_close(&r);
}
END_TEST

START_TEST(test_invalid_requests_are_refused)
{
    static struct reader rd;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){0});
    int32_t bad[] = {1, -1}, huge[] = {512};
    struct gen_request cases[6];
    for (int i = 0; i < 6; i++)
        cases[i] = rig_request(5, 1, 5);
    cases[0].n_prompt = 0;
    cases[1].max_tokens = 0;
    cases[2].prompt = bad, cases[2].n_prompt = 2;
    cases[3].resume = huge, cases[3].n_resume = 1;
    cases[4].n_logprobs = 21;
    cases[5].n_resume = -1;
    for (int i = 0; i < 6; i++) {
        ck_assert(!reader_submit(&rd, &r, &cases[i], NULL, &err));
        ck_assert_int_eq(err.code, ERR_INVALID);
    }
    ck_assert(engine_submit(NULL, &cases[0], NULL, &err) == NULL);
    ck_assert_int_eq(err.code, ERR_NOT_READY);
    ck_assert(engine_open(NULL, &(struct engine_options){0}, &err) == NULL);
    ck_assert(strncmp(err.msg, "MODEL_NOT_LOADED", 16) == 0);
    rig_close(&r);
}
END_TEST

START_TEST(test_logprobs)
{
    static struct reader plain, rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(20, 3, 12);
    reader_start(&plain, &r, &q);
    reader_finish(&plain);
    q.n_logprobs = 20;
    q.sample.temperature = 0;
    reader_start(&rd, &r, &q);
    struct gen_event ev = {0};
    int n = 0;
    while (ev.type != GEN_EV_END) {
        if (!gen_next(rd.gen, &ev)) {
            usleep(500);
            continue;
        }
        if (ev.type != GEN_EV_TOKEN)
            continue;
        n++;
        ck_assert_int_eq(ev.n_top, 20);
        ck_assert_int_eq(ev.top[0].token, ev.token); /* greedy takes the best */
        ck_assert_float_eq(ev.top[0].logprob, ev.logprob);
        for (int i = 1; i < 20; i++)
            ck_assert_float_le(ev.top[i].logprob, ev.top[i - 1].logprob);
    }
    ck_assert_int_eq(n, 12);
    reader_free(&rd);
    q.n_logprobs = 0;
    q.sample.temperature = 1;
    reader_start(&rd, &r, &q);
    reader_finish(&rd);
    ck_assert_int_eq(rd.n_tokens, 12);
    ck_assert_mem_eq(rd.tokens, plain.tokens, 12 * sizeof *rd.tokens);
    for (int i = 0; i < 12; i++)
        ck_assert(rd.logprobs[i] < 0 && rd.logprobs[i] > -100);
    reader_free(&rd);
    reader_free(&plain);
    rig_close(&r);
}
END_TEST

/* ---- its reader ---- */

START_TEST(test_reader_that_does_not_read_is_stopped)
{
    static struct reader rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){.engine.ring_events = 8});
    struct gen_request q = rig_request(10, 1, 100);
    reader_start(&rd, &r, &q);
    rig_wait_idle(&r);
    ck_assert(reader_poll(&rd));
    ck_assert_int_eq(rd.n_tokens, 8);
    ck_assert_int_eq(rd.last.code, ERR_CANCELLED);
    reader_free(&rd);
    rig_close(&r);
}
END_TEST

START_TEST(test_finish_is_quiet)
{
    static struct reader rd;
    struct rig r;
    struct gen_event ev;
    struct gen_stats stats;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(10, 1, 200);
    reader_start(&rd, &r, &q);
    reader_wait_tokens(&rd, 5);
    gen_finish(rd.gen);
    ck_assert(!gen_pending(rd.gen) && !gen_next(rd.gen, &ev));
    rig_wait_idle(&r);
    ck_assert(!gen_pending(rd.gen) && !gen_next(rd.gen, &ev));
    gen_cancel(rd.gen, ERR_CANCELLED, "late");
    ck_assert(!gen_next(rd.gen, &ev));
    gen_stats_get(rd.gen, &stats);
    ck_assert_int_ge(stats.tokens_out, 5);
    reader_free(&rd);
    rig_close(&r);
}
END_TEST

START_TEST(test_release_stops_the_work_and_the_wakes)
{
    static struct reader rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(10, 1, 200);
    reader_start(&rd, &r, &q);
    reader_wait_tokens(&rd, 3);
    gen_release(rd.gen);
    int n = atomic_load(&rd.n_wakes);
    rig_wait_idle(&r);
    ck_assert_int_eq(atomic_load(&rd.n_wakes), n);
    sem_destroy(&rd.woken);
    rig_close(&r);
}
END_TEST

static void release_in_wake(void *arg)
{
    struct gen *_Atomic *at = arg,
                        *g = atomic_load(at); /* NULL while engine_submit has not returned */
    struct gen_event ev;
    while (g != NULL && gen_next(g, &ev))
        if (ev.type == GEN_EV_ERROR || ev.type == GEN_EV_END) {
            gen_release(g);
            atomic_store(at, g = NULL);
        }
}

START_TEST(test_wake_may_read_and_release)
{
    struct rig r;
    struct err err = {0};
    struct gen *_Atomic g = NULL;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(10, 1, 5);
    q.wake = release_in_wake;
    q.wake_arg = &g;
    rig_hold();
    g = engine_submit(r.engine, &q, NULL, &err);
    ck_assert(g != NULL);
    rig_wait_held();
    gen_cancel(g, ERR_CANCELLED, "from this thread");
    ck_assert(g == NULL);
    rig_go();
    rig_close(&r);
}
END_TEST

START_TEST(test_one_wake_a_step)
{
    static struct reader rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(10, 1, 20);
    reader_start(&rd, &r, &q);
    reader_finish(&rd);
    ck_assert_int_le(atomic_load(&rd.n_wakes), 1 + 20); /* started, and one with each token */
    reader_free(&rd);
    rig_close(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gen");
    TCase *t = tcase_create("gen");
    tcase_set_timeout(t, 240); /* for the thread sanitizer */
    tcase_add_test(t, test_ends_at_max_tokens_and_at_the_context);
    tcase_add_test(t, test_stop_tokens_and_min_tokens);
    tcase_add_test(t, test_invalid_requests_are_refused);
    tcase_add_test(t, test_logprobs);
    tcase_add_test(t, test_reader_that_does_not_read_is_stopped);
    tcase_add_test(t, test_finish_is_quiet);
    tcase_add_test(t, test_release_stops_the_work_and_the_wakes);
    tcase_add_test(t, test_wake_may_read_and_release);
    tcase_add_test(t, test_one_wake_a_step);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
