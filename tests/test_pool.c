/* The worker pool: work is done exactly once whoever comes, sleepers are woken, idle threads cost nothing. */
#include "base/clock.h"
#include "kernels/cpu/pool.h"

#include <check.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_WORK = 300 };

struct marks {
    struct counter counter;
    struct shares shares;
    atomic_int seen[MAX_WORK];
};

static void mark(void *arg)
{
    struct marks *m = arg;
    for (int i; (i = counter_take(&m->counter)) >= 0;)
        atomic_fetch_add(&m->seen[i], 1);
}

static void mark_shares(void *arg)
{
    struct marks *m = arg;
    for (int i, own = shares_join(&m->shares); (i = shares_take(&m->shares, own)) >= 0;)
        atomic_fetch_add(&m->seen[i], 1);
}

/* Runs that follow each other at once, of all lengths; the argument lives on the stack, so a worker that came late and
 * still used it would be seen. */
static void run_many(struct pool *p, int n_runs)
{
    for (int run = 0; run < n_runs; run++) {
        struct marks m;
        int n = run % MAX_WORK;
        memset(&m, 0, sizeof m);
        counter_init(&m.counter, n);
        shares_init(&m.shares, pool_size(p), n);
        pool_run(p, run % 2 == 0 ? mark : mark_shares, &m);
        for (int i = 0; i < MAX_WORK; i++)
            ck_assert_msg(m.seen[i] == (i < n), "run %d: index %d done %d times", run, i, m.seen[i]);
    }
}

/* A thread walks through its own share, then through what the others have not taken; more threads than shares share them. */
START_TEST(shares_are_runs_of_neighbours)
{
    struct shares s;
    shares_init(&s, 3, 10);
    int own[] = {shares_join(&s), shares_join(&s), shares_join(&s), shares_join(&s)};
    ck_assert(own[0] == 0 && own[1] == 1 && own[2] == 2 && own[3] == 0);
    ck_assert(shares_take(&s, 1) == 3 && shares_take(&s, 2) == 6 && shares_take(&s, 1) == 4 && shares_take(&s, 1) == 5);
    static const int rest[] = {7, 8, 9, 0, 1, 2, -1, -1};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        ck_assert_int_eq(shares_take(&s, 1), rest[i]);
    shares_init(&s, MAX_SHARES + 5, 7);
    for (int i = 0, seen = 0; i < 7; i++) {
        int taken = shares_take(&s, shares_join(&s));
        ck_assert(taken >= 0 && taken < 7 && (seen >> taken & 1) == 0);
        seen |= 1 << taken;
    }
    ck_assert_int_eq(shares_take(&s, 3), -1);
}
END_TEST

START_TEST(work_is_done_once)
{
    for (int n = 1; n <= 5; n++) {
        struct pool *p = pool_open(n);
        ck_assert_ptr_nonnull(p);
        ck_assert_int_eq(pool_size(p), n);
        run_many(p, 1000);
        pool_close(p);
    }
    pool_close(NULL);
}
END_TEST

struct meeting {
    atomic_int present;
    int wanted;
    uint64_t until_ns;
};

static void meet(void *arg)
{
    struct meeting *m = arg;
    atomic_fetch_add(&m->present, 1);
    while (atomic_load(&m->present) < m->wanted && clock_ns() < m->until_ns)
        usleep(50);
}

/* Guards against a wake-up lost between a worker's last look and its sleep: every worker comes to every run that lasts. */
START_TEST(sleepers_come)
{
    enum { THREADS = 4 };
    struct pool *p = pool_open(THREADS);
    ck_assert_ptr_nonnull(p);
    for (int i = 0; i < 200; i++) {
        usleep((useconds_t)(i % 4 * 40));    /* around the time when spinning ends */
        struct meeting m = {.wanted = THREADS, .until_ns = clock_ns() + 20000000000u};
        pool_run(p, meet, &m);
        ck_assert_int_eq(m.present, THREADS);
        run_many(p, 3);
    }
    pool_close(p);
}
END_TEST

START_TEST(idle_costs_nothing)
{
    struct pool *p = pool_open(4);
    ck_assert_ptr_nonnull(p);
    run_many(p, 10);
    usleep(20000);
    clock_t before = clock();
    usleep(200000);
    ck_assert_int_lt(clock() - before, CLOCKS_PER_SEC / 100);
    pool_close(p);
}
END_TEST

START_TEST(default_is_at_least_one)
{
    ck_assert_int_ge(pool_default(), 1);
    struct pool *p = pool_open(0);
    ck_assert_ptr_nonnull(p);
    ck_assert_int_eq(pool_size(p), pool_default());
    pool_close(p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pool");
    TCase *tc = tcase_create("pool");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, work_is_done_once);
    tcase_add_test(tc, shares_are_runs_of_neighbours);
    tcase_add_test(tc, sleepers_come);
    tcase_add_test(tc, idle_costs_nothing);
    tcase_add_test(tc, default_is_at_least_one);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
