/* Who runs, who waits, who is refused, and what a step holds; on an engine whose device can be
 * held. */
#include "engine/scheduler.h"
#include "tests/rig.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- the queue ---- */

enum { N_CROWD = 40 };

struct crowd {
    struct rig *rig;
    struct reader rd[N_CROWD];
    bool taken[N_CROWD];
    atomic_int next, n_busy, bad_retry;
};

static void *push(void *arg)
{
    struct crowd *c = arg;
    int i = atomic_fetch_add(&c->next, 1);
    while (i < N_CROWD) {
        int32_t prompt[] = {1, 2, 3, i};
        struct gen_request q = {.prompt = prompt,
                                .n_prompt = 4,
                                .max_tokens = 4,
                                .sample = SAMPLE_DEFAULTS,
                                .n_logprobs = -1};
        struct err err = {0};
        int retry = 0;
        c->taken[i] = reader_submit(&c->rd[i], c->rig, &q, &retry, &err);
        if (!c->taken[i]) {
            atomic_fetch_add(&c->n_busy, err.code == ERR_BUSY);
            atomic_fetch_add(&c->bad_retry, retry < 1 || retry > 600);
        }
        i = atomic_fetch_add(&c->next, 1);
    }
    return NULL;
}

/* D09 */
START_TEST(test_exactly_the_surplus_is_refused)
{
    static struct crowd c;
    struct rig r;
    pthread_t t[4];
    rig_open(&r, &(struct rig_options){.max_seqs = 2, .engine.max_queue = 3});
    for (int again = 0; again < 2; again++) { /* the first crowd leaves nothing behind */
        memset(&c, 0, sizeof c);
        c.rig = &r;
        rig_hold();
        for (int i = 0; i < 4; i++)
            ck_assert_int_eq(pthread_create(&t[i], NULL, push, &c), 0);
        for (int i = 0; i < 4; i++)
            pthread_join(t[i], NULL);
        ck_assert_int_eq(atomic_load(&c.n_busy), N_CROWD - 5);
        ck_assert_int_eq(atomic_load(&c.bad_retry), 0);
        rig_go();
        int n = 0;
        for (int i = 0; i < N_CROWD; i++) {
            if (!c.taken[i])
                continue;
            reader_finish(&c.rd[i]);
            ck_assert_int_eq(c.rd[i].last.type, GEN_EV_END);
            reader_free(&c.rd[i]);
            n++;
        }
        ck_assert_int_eq(n, 5);
        rig_wait_idle(&r);
    }
    rig_close(&r);
}
END_TEST

/* Which of n readers has started since the last look. */
static int newly_started(struct reader *rd, int n)
{
    int found = -1;
    for (int i = 0; i < n; i++) {
        bool before = rd[i].started;
        reader_poll(&rd[i]);
        if (rd[i].started && !before) {
            ck_assert_int_eq(found, -1);
            found = i;
        }
    }
    return found;
}

START_TEST(test_first_come_first_served_and_interactive_before_batch)
{
    static struct reader rd[7];
    static const enum gen_priority priority[] = {GEN_BATCH, GEN_BATCH,       GEN_INTERACTIVE,
                                                 GEN_BATCH, GEN_INTERACTIVE, GEN_INTERACTIVE,
                                                 GEN_BATCH};
    static const int want[] = {0, 2, 4, 5, 1, 3, 6};
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 1});
    rig_hold();
    for (int i = 0; i < 7; i++) {
        struct gen_request q = rig_request(3, (uint64_t)i, 3);
        q.priority = priority[i];
        reader_start(&rd[i], &r, &q);
    }
    for (int i = 0; i < 7; i++) { /* each is there for three steps */
        rig_wait_held();
        ck_assert_int_eq(newly_started(rd, 7), want[i]);
        rig_let(3);
    }
    for (int i = 0; i < 7; i++) {
        reader_finish(&rd[i]);
        reader_free(&rd[i]);
    }
    rig_close(&r);
}
END_TEST

START_TEST(test_jobs_per_key)
{
    static struct reader rd[8], more;
    static const char *const keys[] = {"a", "a", "a", "b", NULL, NULL, NULL, NULL};
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.max_seqs = 1, .engine.max_jobs_per_key = 3});
    rig_hold();
    struct gen_request q = rig_request(3, 1, 3);
    for (int i = 0; i < 8; i++) {
        q.key = keys[i];
        reader_start(&rd[i], &r, &q); /* no key, no limit */
    }
    int retry = 0;
    q.key = "a";
    ck_assert(!reader_submit(&more, &r, &q, &retry, &err));
    ck_assert_int_eq(err.code, ERR_BUSY);
    ck_assert_int_ge(retry, 1);
    gen_cancel(rd[2].gen, ERR_CANCELLED, "");
    reader_start(&more, &r, &q); /* the cancelled one counts no more */
    rig_go();
    reader_finish(&more);
    reader_free(&more);
    for (int i = 0; i < 8; i++) {
        reader_finish(&rd[i]);
        reader_free(&rd[i]);
    }
    rig_close(&r);
}
END_TEST

START_TEST(test_keys_share_when_they_are_limited)
{
    static struct reader rd[5];
    static const char *const keys[] = {"a", "a", "a", "b", "b"};
    static const int max_tokens[] = {60, 5, 5, 60, 5};
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 2, .engine.max_jobs_per_key = 10});
    rig_hold();
    for (int i = 0; i < 5; i++) { /* a a | a b b: two of a run */
        struct gen_request q = rig_request(3, 1, max_tokens[i]);
        q.key = keys[i];
        reader_start(&rd[i], &r, &q);
    }
    rig_let(8); /* more than the second of a needs */
    rig_wait_held();
    for (int i = 0; i < 5; i++)
        reader_poll(&rd[i]);
    ck_assert(rd[1].ended &&
              rd[3].started); /* b comes before the third of a: b had nothing running */
    ck_assert(!rd[2].started && !rd[4].started);
    rig_go();
    for (int i = 0; i < 5; i++) {
        reader_finish(&rd[i]);
        reader_free(&rd[i]);
    }
    rig_close(&r);
}
END_TEST

START_TEST(test_cancelled_in_the_queue_makes_room_at_once)
{
    static struct reader running, queued, more;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.max_seqs = 1, .engine.max_queue = 1});
    struct gen_request q = rig_request(3, 1, 3);
    rig_hold();
    reader_start(&running, &r, &q);
    rig_wait_held();
    for (int i = 0; i < 100; i++) { /* while the engine is in one long step */
        reader_start(&queued, &r, &q);
        ck_assert(!reader_submit(&more, &r, &q, NULL, &err));
        gen_cancel(queued.gen, ERR_CANCELLED, "");
        reader_free(&queued);
    }
    rig_go();
    reader_finish(&running);
    reader_free(&running);
    rig_close(&r);
}
END_TEST

/* ---- pages ---- */

START_TEST(test_pages_are_reserved_for_the_worst_case)
{
    static struct reader a, b, c;
    struct rig r;
    struct engine_stats s;
    /* 4 pages of 64: a may need 3, b 2, c 1 */
    rig_open(&r, &(struct rig_options){.n_pages = 4});
    struct gen_request q = rig_request(10, 1, 150);
    rig_hold();
    reader_start(&a, &r, &q);
    q.max_tokens = 80;
    reader_start(&b, &r, &q);
    q.max_tokens = 5;
    reader_start(&c, &r, &q);
    rig_let(3);
    reader_wait_tokens(&a, 3);
    engine_stats_get(r.engine, &s);
    ck_assert_int_eq(s.running, 1);
    ck_assert_int_eq(s.queued, 2);        /* nobody overtakes */
    ck_assert_int_eq(s.kv_pages_used, 1); /* taken when needed */
    ck_assert_int_eq(s.kv_pages_total, 4);
    rig_go();
    reader_finish(&a);
    reader_finish(&b);
    reader_finish(&c);
    ck_assert_int_eq(a.n_tokens, 150);
    ck_assert_int_eq(b.n_tokens, 80);
    reader_free(&a);
    reader_free(&b);
    reader_free(&c);
    rig_close(&r);
}
END_TEST

START_TEST(test_the_whole_cache_for_one)
{
    static struct reader rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){.n_ctx = 256, .n_pages = 4});
    struct gen_request q = rig_request(200, 1, 1000);
    reader_start(&rd, &r, &q);
    reader_finish(&rd);
    ck_assert_int_eq(rd.n_tokens, 57);
    ck_assert_int_eq(rd.last.stop, STOP_CONTEXT);
    reader_free(&rd);
    rig_close(&r);
}
END_TEST

/* ---- the rows of a step ---- */

static struct gen *admitted(struct sched *s, int n_prompt, enum gen_priority priority)
{
    struct err err = {0};
    int retry;
    struct gen_request q = rig_request(n_prompt, 1, 20);
    q.priority = priority;
    struct gen *g = gen_new(&q, 256, 512, 0, &err);
    ck_assert_msg(g != NULL && sched_submit(s, g, &retry, &err), "%s", err.msg);
    return g;
}

/* What a step leaves behind. */
static void computed(struct sched *s, double seconds)
{
    sched_measure(s, seconds);
    for (int i = 0; i < s->step.n_members; i++) {
        struct gen *g = s->step.members[i].gen;
        g->n_computed += s->step.members[i].n;
        if (s->step.members[i].sample)
            g->history[g->n_history++] = 1;
    }
}

static int rows_of(const struct sched *s, const struct gen *g)
{
    for (int i = 0; i < s->step.n_members; i++)
        if (s->step.members[i].gen == g)
            return s->step.members[i].n;
    return 0;
}

static void end_gens(struct sched *s, struct gen **g, int n)
{
    for (int i = 0; i < n; i++)
        gen_release(g[i]);
    sched_reap(s, true);
    ck_assert_int_eq(s->n_running, 0);
    ck_assert_int_eq(s->kv.n_free, s->kv.n_pages);
    ck_assert_int_eq(s->kv.n_promised, 0);
    sched_free(s);
}

START_TEST(test_prompt_rows_fill_the_time_that_neighbours_allow)
{
    struct rig r;
    struct sched s;
    struct err err = {0};
    rig_open_adapter(&r, &(struct rig_options){0});
    ck_assert(sched_init(&s, r.adapter, 10, 0, &err));
    struct gen *g[3] = {admitted(&s, 1, GEN_INTERACTIVE)};
    for (int i = 0; i < 10; i++) { /* a decode step takes 10 ms */
        ck_assert(sched_choose(&s));
        ck_assert_int_eq(s.step.n_rows, 1);
        computed(&s, 0.010);
    }
    g[1] = admitted(&s, 250, GEN_INTERACTIVE);
    int n_steps = 0, last = 0;
    for (; gen_todo(g[1]) > 1; n_steps++) { /* a prompt row costs 0.49 ms */
        ck_assert(sched_choose(&s));
        ck_assert_int_eq(rows_of(&s, g[0]), 1);
        int n = rows_of(&s, g[1]);
        last = n_steps > 0 && gen_todo(g[1]) > n ? n : last;
        computed(&s, 0.010 + 0.00049 * n);
    }
    ck_assert_int_eq(last, 40); /* 10 + 40 * 0.49 < 3 * 10 ms */
    g[2] = admitted(&s, 250, GEN_INTERACTIVE);
    double ratio = s.pace.decode_s / s.pace.row_s;
    for (int i = 0; i < 4; i++) { /* everything becomes ten times slower: the same number of rows */
        ck_assert(sched_choose(&s));
        computed(&s, 10 * (0.010 + 0.00049 * (s.step.n_rows - s.step.n_decode)));
        ck_assert_double_gt(s.pace.decode_s / s.pace.row_s, ratio / 2);
    }
    gen_release(g[0]);
    gen_release(g[1]);
    sched_reap(&s, true);
    s.pace.row_s = 0.001;
    ck_assert(sched_choose(&s));
    ck_assert_int_eq(s.step.n_rows,
                     gen_todo(g[2])); /* nobody decodes, and it takes less than half a second */
    s.pace.row_s = 0.01;
    ck_assert(sched_choose(&s));
    ck_assert_int_eq(s.step.n_rows, 48);
    s.pace.row_s = 10; /* the slowest device gets on */
    ck_assert(sched_choose(&s));
    ck_assert_int_eq(s.step.n_rows, 4);
    end_gens(&s, g + 2, 1);
    rig_close(&r);
}
END_TEST

START_TEST(test_short_prompts_pass_a_long_one_but_do_not_stop_it)
{
    struct rig r;
    struct sched s;
    struct err err = {0};
    rig_open_adapter(&r, &(struct rig_options){.max_rows = 64});
    ck_assert(sched_init(&s, r.adapter, 10, 0, &err));
    s.pace.row_s = 0.001;
    struct gen *g[] = {admitted(&s, 250, GEN_INTERACTIVE), admitted(&s, 100, GEN_INTERACTIVE),
                       admitted(&s, 10, GEN_INTERACTIVE), admitted(&s, 6, GEN_BATCH)};
    ck_assert(sched_choose(&s));
    ck_assert_int_eq(rows_of(&s, g[0]), 32); /* the oldest: half */
    ck_assert_int_eq(rows_of(&s, g[2]), 10); /* the shortest of the interactive ones: all */
    ck_assert_int_eq(rows_of(&s, g[1]), 20); /* what is left, in fours */
    ck_assert_int_eq(rows_of(&s, g[3]), 0);
    ck_assert_int_eq(s.step.n_members, 3);
    computed(&s, 0.062);
    ck_assert(sched_choose(&s)); /* one decodes now */
    ck_assert_int_eq(s.step.n_decode, 1);
    ck_assert_int_eq(rows_of(&s, g[2]), 1);
    end_gens(&s, g, 4);
    rig_close(&r);
}
END_TEST

START_TEST(test_a_long_prompt_gets_on_where_a_step_holds_four_rows)
{
    struct rig r;
    struct sched s;
    struct err err = {0};
    rig_open_adapter(&r, &(struct rig_options){0});
    ck_assert(sched_init(&s, r.adapter, 10, 0, &err));
    s.pace.row_s = 0.2; /* a large model on a small machine */
    struct gen *g[] = {admitted(&s, 250, GEN_INTERACTIVE), admitted(&s, 30, GEN_INTERACTIVE),
                       admitted(&s, 40, GEN_INTERACTIVE)};
    for (int step = 0; step < 5; step++) {
        ck_assert(sched_choose(&s));
        ck_assert_int_eq(rows_of(&s, g[0]), 2); /* the oldest: half */
        ck_assert_int_eq(rows_of(&s, g[1]), 2); /* the shortest: the rest */
        computed(&s, 0.8);
    }
    end_gens(&s, g, 3);
    rig_close(&r);
}
END_TEST

START_TEST(test_more_sequences_than_rows_take_turns)
{
    struct rig r;
    struct sched s;
    struct err err = {0};
    enum { N = 16 };
    rig_open_adapter(&r, &(struct rig_options){.max_seqs = N, .max_rows = 10});
    ck_assert(sched_init(&s, r.adapter, 10, 0, &err));
    struct gen *g[N];
    int n_rows[N] = {0};
    for (int i = 0; i < N - 1; i++)
        g[i] = admitted(&s, 1, GEN_INTERACTIVE);
    g[N - 1] = admitted(&s, 30, GEN_INTERACTIVE);
    for (int step = 0; step < 20; step++) {
        ck_assert(sched_choose(&s));
        ck_assert(s.step.n_rows >= 7 && s.step.n_rows <= 10);
        for (int i = 0; i < N; i++)
            n_rows[i] += rows_of(&s, g[i]);
        computed(&s, 0.01);
    }
    for (int i = 0; i < N - 1; i++)
        ck_assert_msg(n_rows[i] >= 9 && n_rows[i] <= 14, "gen %d: %d rows", i, n_rows[i]);
    ck_assert_int_ge(n_rows[N - 1], 30); /* and the prompt goes on beside them */
    end_gens(&s, g, N);
    rig_close(&r);
}
END_TEST

START_TEST(test_arrivals_share_steps)
{
    static struct reader rd[8];
    const struct rig_step *steps;
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_seqs = 8});
    rig_hold();
    for (int i = 0; i < 8; i++) {
        struct gen_request q = rig_request(2, (uint64_t)i, 30);
        reader_start(&rd[i], &r, &q);
    }
    rig_go();
    for (int i = 0; i < 8; i++) {
        reader_finish(&rd[i]);
        reader_free(&rd[i]);
    }
    int n = rig_steps(&steps), full = 0;
    for (int i = 0; i < n; i++)
        full += steps[i].n_seqs == 8;
    ck_assert_int_ge(full, 25);
    ck_assert_int_le(n, 35);
    rig_close(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("scheduler");
    TCase *t = tcase_create("scheduler");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_exactly_the_surplus_is_refused);
    tcase_add_test(t, test_first_come_first_served_and_interactive_before_batch);
    tcase_add_test(t, test_jobs_per_key);
    tcase_add_test(t, test_keys_share_when_they_are_limited);
    tcase_add_test(t, test_cancelled_in_the_queue_makes_room_at_once);
    tcase_add_test(t, test_pages_are_reserved_for_the_worst_case);
    tcase_add_test(t, test_the_whole_cache_for_one);
    tcase_add_test(t, test_prompt_rows_fill_the_time_that_neighbours_allow);
    tcase_add_test(t, test_short_prompts_pass_a_long_one_but_do_not_stop_it);
    tcase_add_test(t, test_a_long_prompt_gets_on_where_a_step_holds_four_rows);
    tcase_add_test(t, test_more_sequences_than_rows_take_turns);
    tcase_add_test(t, test_arrivals_share_steps);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
