/* Bytes in, answers out: the .case files of tests/http against the real program. After each case everything must be as before it. */
#include "tests/case.h"
#include "tests/served.h"

#include <check.h>

static struct served worker;

static void start(void)
{
    fixture_open();
    served_start(&worker, fixture_tiny, (const char *const[]){"--header-timeout-ms", "1000", NULL}, NULL);
}

static void stop(void)
{
    served_stop(&worker);
    fixture_close();
}

static void unchanged(void *arg, const char *title)
{
    served_check(arg, title);
}

static void run_file(const char *path, int at_least)
{
    struct buf problem = {0};
    int n = case_run(path, worker.port, unchanged, &worker, &problem);
    ck_assert_msg(problem.len == 0, "%s", problem.data);
    ck_assert_int_ge(n, at_least);
}

START_TEST(framing)
{
    run_file("tests/http/framing.case", 36);
}
END_TEST

START_TEST(routes)
{
    run_file("tests/http/routes.case", 39);
}
END_TEST

START_TEST(json)
{
    run_file("tests/http/json.case", 50);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http");
    TCase *t = tcase_create("cases");
    tcase_set_timeout(t, 60 * SLOWNESS);
    tcase_add_unchecked_fixture(t, start, stop);
    tcase_add_test(t, framing);
    tcase_add_test(t, routes);
    tcase_add_test(t, json);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
