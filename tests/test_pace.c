/* The pace on simulated machines: while a prompt of 4,000 tokens is read, those who decode beside
 * it wait at most about three times as long, and the prompt gets what that allows; also where rows
 * grow dearer with depth, and on machines that others load. Deterministic: time is simulated. */
#include "engine/pace.h"
#include "engine/scheduler.h"
#include "tests/rig.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 4000, N_PROMPTS = 4, MAX_STEPS = 20000, QUANTUM = 4, MAX_ROWS = 249 };

/* Seven streams of a small model on two cores; a prompt row at the end of the context costs three
 * times what one costs at its beginning. */
static const double decode_s = 0.013, first_row_s = 0.0006, deeper = 2;

static double uniform(unsigned *seed)
{
    return (rand_r(seed) + 0.5) / ((double)RAND_MAX + 1);
}

/* How many times as long a step takes as on an idle machine. */
typedef double noise_fn(int step, unsigned *seed);

static double quiet(int step, unsigned *seed)
{
    (void)step, (void)seed;
    return 1;
}

static double jitter(int step, unsigned *seed)
{
    (void)step;
    return 0.9 + 0.4 * uniform(seed);
}

static double hiccups(int step, unsigned *seed)
{
    (void)step;
    return uniform(seed) < 0.1 ? 8 : 1 + 0.2 * uniform(seed);
}

static double heavy_tail(int step, unsigned *seed)
{
    (void)step;
    return pow(uniform(seed), -1 / 1.3);
}

static double pauses(int step, unsigned *seed)
{
    (void)step;
    return uniform(seed) < 0.02 ? 100 : 1;
}

static double shared(int step, unsigned *seed)
{
    return (2.5 + 1.5 * sin(step / 30.0)) * (0.8 + 0.5 * uniform(seed));
}

static double slow_for_long(int step, unsigned *seed)
{
    (void)seed;
    return step > 60 && step < 200 ? 10 : 1;
}

struct fairness {
    int n_steps, n_alone;
    double mean, p99; /* of steps with prompt rows: times as long as without, noise aside */
    int starved;      /* longest run of steps with less than a third of the rows that were right */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Reads prompts beside streams. The noise of a step is what the pace sees; what counts is how long
 * the step would take on an idle machine. */
static struct fairness simulate(noise_fn *noise)
{
    static double times[MAX_STEPS];
    struct pace p = {0};
    struct fairness f = {0};
    unsigned seed = 1;
    int n_mixed = 0, starved = 0;
    double sum = 0;
    for (int i = 0; i < N_PROMPTS; i++) {
        for (int pos = 0; pos < N_TOKENS; f.n_steps++) {
            ck_assert_int_lt(f.n_steps, MAX_STEPS);
            double row_s = first_row_s * (1 + deeper * pos / N_TOKENS), rows = pace_rows(&p, true);
            int n = rows < MAX_ROWS ? (int)rows / QUANTUM * QUANTUM : MAX_ROWS;
            n = pace_wants_decode(&p) ? 0 : n > QUANTUM ? n : QUANTUM;
            n = n < N_TOKENS - pos ? n : N_TOKENS - pos;
            pace_measure(&p, 7, n, (decode_s + row_s * n) * noise(f.n_steps, &seed));
            pos += n;
            f.n_alone += n == 0;
            if (n == 0)
                continue;
            sum += times[n_mixed++] = 1 + row_s * n / decode_s;
            starved = n < (PACE_STRETCH - 1) * decode_s / row_s / 3 ? starved + 1 : 0;
            f.starved = starved > f.starved ? starved : f.starved;
        }
    }
    qsort(times, (size_t)n_mixed, sizeof *times, compare);
    f.mean = sum / n_mixed;
    f.p99 = times[n_mixed * 99 / 100];
    return f;
}

START_TEST(test_streams_wait_three_times_as_long_and_prompts_go_on)
{
    static const struct {
        const char *name;
        noise_fn *noise;
        double mean, p99; /* at most */
    } cases[] = {
        {"quiet", quiet, 3, 3.2},
        {"jitter", jitter, 3, 3.6},
        {"hiccups", hiccups, 3.5, 5.5},
        {"heavy tail", heavy_tail, 3.6, 9},
        {"pauses", pauses, 3, 3.6},
        {"a shared machine", shared, 3.7, 7},
        {"slow for long", slow_for_long, 3, 4},
    };
    const char *name = cases[_i].name;
    struct fairness f = simulate(cases[_i].noise);
    ck_assert_msg(f.mean <= cases[_i].mean, "%s: %.2f times as long", name, f.mean);
    ck_assert_msg(f.p99 <= cases[_i].p99, "%s: 99 %%: %.2f times as long", name, f.p99);
    ck_assert_msg(f.mean >= 2.4, "%s: prompts get little, %.2f times as long", name, f.mean);
    ck_assert_msg(f.starved <= 10, "%s: few rows for %d steps", name, f.starved);
    ck_assert_msg(_i > 0 || f.n_alone < f.n_steps / 10, "%d of %d steps without prompt rows",
                  f.n_alone, f.n_steps);
}
END_TEST

/* Nothing else is known but that prompt rows became as cheap again as they were: from four rows
 * back to the right number. */
START_TEST(test_back_from_few_rows)
{
    struct pace p = {.decode_s = 0.013, .row_s = 0.02};
    unsigned seed = 3;
    int n_steps = 0;
    while (pace_rows(&p, true) < 30) {
        int n = pace_wants_decode(&p) ? 0 : (int)pace_rows(&p, true) / QUANTUM * QUANTUM;
        n = n > 0 || pace_wants_decode(&p) ? n : QUANTUM;
        pace_measure(&p, 7, n, (decode_s + first_row_s * n) * jitter(0, &seed));
        ck_assert_int_lt(++n_steps, 60);
    }
}
END_TEST

/* ---- the same in the scheduler ---- */

enum { N_STREAMS = 7, N_CTX = 4400 };

static struct gen *admitted(struct sched *s, int n_prompt, int max_tokens)
{
    struct err err = {0};
    int retry;
    struct gen_request q = rig_request(n_prompt, 1, max_tokens);
    struct gen *g = gen_new(&q, N_CTX, 512, 0, &err);
    ck_assert_msg(g != NULL && sched_submit(s, g, &retry, &err), "%s", err.msg);
    return g;
}

/* One step; how long it took. */
static double step(struct sched *s, const struct gen *prompt)
{
    ck_assert(sched_choose(s));
    int n = s->step.n_rows - s->step.n_decode;
    double row_s = first_row_s * (1 + deeper * prompt->n_computed / N_TOKENS);
    double seconds = (n < s->step.n_rows ? decode_s : decode_s / 2) + row_s * n;
    sched_measure(s, seconds);
    for (int i = 0; i < s->step.n_members; i++) {
        struct gen *g = s->step.members[i].gen;
        g->n_computed += s->step.members[i].n;
        if (s->step.members[i].sample)
            g->history[g->n_history++] = 1;
    }
    return seconds;
}

START_TEST(test_every_stream_has_a_token_in_each_step)
{
    struct rig r;
    struct sched s;
    struct err err = {0};
    struct gen *g[N_STREAMS + 1];
    rig_open_adapter(&r, &(struct rig_options){.n_ctx = N_CTX, .max_seqs = N_STREAMS + 1});
    ck_assert(sched_init(&s, r.adapter, 10, 0, &err));
    s.spec.mode = SPECULATE_OFF;
    for (int i = 0; i < N_STREAMS; i++)
        g[i] = admitted(&s, 1, 4000);
    for (int i = 0; i < 10; i++)
        step(&s, g[0]);
    struct gen *prompt = g[N_STREAMS] = admitted(&s, N_TOKENS, 10);
    double total_s = 0, worst_s = 0;
    int n_steps = 0, n_tokens = g[0]->n_history;
    for (; gen_todo(prompt) > 1; n_steps++) {
        double seconds = step(&s, prompt);
        ck_assert_int_eq(s.step.n_decode, N_STREAMS);
        total_s += seconds;
        worst_s = seconds > worst_s && n_steps > 4 ? seconds : worst_s;
    }
    ck_assert_int_eq(g[0]->n_history - n_tokens, n_steps);
    ck_assert_double_le(worst_s, 3.3 * decode_s);
    ck_assert_double_le(total_s / n_steps, 3 * decode_s);
    ck_assert_double_ge(total_s / n_steps, 2.4 * decode_s);
    for (int i = 0; i <= N_STREAMS; i++)
        gen_release(g[i]);
    sched_reap(&s, true);
    sched_free(&s);
    rig_close(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pace");
    TCase *t = tcase_create("pace");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_streams_wait_three_times_as_long_and_prompts_go_on, 0, 7);
    tcase_add_test(t, test_back_from_few_rows);
    tcase_add_test(t, test_every_stream_has_a_token_in_each_step);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
