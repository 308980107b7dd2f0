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
    atomic_int seen[MAX_WORK];
};

static void mark(void *arg)
{
    struct marks *m = arg;
    for (int i; (i = counter_take(&m->counter)) >= 0;)
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
        pool_run(p, mark, &m);
        for (int i = 0; i < MAX_WORK; i++)
            ck_assert_msg(m.seen[i] == (i < n), "run %d: index %d done %d times", run, i, m.seen[i]);
    }
}

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
