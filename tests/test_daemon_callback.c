/* The ready callback against managers of every kind (E11). */
#include "base/clock.h"
#include "base/log.h"
#include "daemon/callback.h"
#include "tests/manager.h"

#include <check.h>
#include <curl/curl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

static struct manager m;
static struct callback *c;
static struct err err;

static void open_to(const char *url, const char *token, int timeout_ms)
{
    struct callback_options o = {.url = url, .token = token, .body = "{\"x\":1}", .timeout_ms = timeout_ms, .backoff_ms = 5};
    err = (struct err){0};
    c = callback_open(&o, &err);
    ck_assert_msg(c != NULL, "%s", err.msg);
}

static void run_against(enum manager_mode mode, int fail_first, bool good)
{
    char url[64];
    manager_open(&m, mode);
    atomic_store(&m.fail_first, fail_first);
    manager_url(&m, url);
    open_to(url, "s3cret", mode == MANAGER_SILENT ? 60 : 0);
    ck_assert_msg(callback_run(c, &err) == good, "%s", err.msg);
    callback_close(c);
    manager_close(&m);
}

START_TEST(delivered)
{
    run_against(MANAGER_OK, 0, true);
    ck_assert_int_eq(m.requests, 1);
    ck_assert_int_eq(strncmp(m.last, "POST /ready HTTP/1.1\r\n", 22), 0);
    ck_assert_ptr_nonnull(strstr(m.last, "\r\nAuthorization: Bearer s3cret\r\n"));
    ck_assert_ptr_nonnull(strstr(m.last, "\r\nContent-Type: application/json\r\n"));
    ck_assert_ptr_null(strstr(m.last, "Expect"));
    ck_assert_ptr_nonnull(strstr(m.last, "\r\n\r\n{\"x\":1}"));
}
END_TEST

START_TEST(delivered_at_the_last_try)
{
    run_against(MANAGER_OK, 4, true);
    ck_assert_int_eq(m.requests, 5);
}
END_TEST

START_TEST(status_500_gives_up_after_five)
{
    run_against(MANAGER_ERROR, 0, false);
    ck_assert_int_eq(m.requests, 5);
    ck_assert_int_eq(err.code, ERR_SYSTEM);
    ck_assert_ptr_nonnull(strstr(err.msg, "status 500"));
    ck_assert_ptr_nonnull(strstr(err.msg, "5 times"));
}
END_TEST

START_TEST(redirects_are_not_followed)
{
    run_against(MANAGER_REDIRECT, 0, false);
    ck_assert_int_eq(m.requests, 5);
    ck_assert_ptr_null(strstr(m.last, "elsewhere"));
    ck_assert_ptr_nonnull(strstr(err.msg, "status 302"));
}
END_TEST

START_TEST(silence_times_out)
{
    uint64_t start = clock_ns();
    run_against(MANAGER_SILENT, 0, false);
    ck_assert_int_eq(m.requests, 5);
    ck_assert_double_lt(clock_ms_since(start), 5000);
}
END_TEST

/* A yes is a yes, however long the answer; but it is not read to its end. */
START_TEST(endless_answer_is_cut)
{
    run_against(MANAGER_ENDLESS, 0, true);
    ck_assert_int_eq(m.requests, 1);
    ck_assert_int_lt(m.sent, 16 << 20);    /* what socket buffers hold */
}
END_TEST

START_TEST(nobody_there)
{
    char url[64];
    manager_open(&m, MANAGER_OK);
    manager_url(&m, url);
    manager_close(&m);
    open_to(url, NULL, 0);
    ck_assert(!callback_run(c, &err));
    ck_assert_int_eq(err.code, ERR_SYSTEM);
    callback_close(c);
    open_to("http://no-such-host.invalid/", NULL, 100);
    ck_assert(!callback_run(c, &err));
    callback_close(c);
}
END_TEST

static void *stop_soon(void *arg)
{
    (void)arg;
    while (atomic_load(&m.requests) == 0)
        usleep(1000);
    callback_stop(c);
    return NULL;
}

START_TEST(stopped_in_the_middle)
{
    char url[64];
    pthread_t t;
    manager_open(&m, MANAGER_SILENT);
    manager_url(&m, url);
    open_to(url, NULL, 0);
    ck_assert_int_eq(pthread_create(&t, NULL, stop_soon, NULL), 0);
    uint64_t start = clock_ns();
    ck_assert(!callback_run(c, &err));
    ck_assert_int_eq(err.code, ERR_CANCELLED);
    ck_assert_double_lt(clock_ms_since(start), 2000);
    pthread_join(t, NULL);
    callback_close(c);
    manager_close(&m);
}
END_TEST

int main(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
    log_init(LOG_TEXT, LOG_ERROR, NULL);
    Suite *s = suite_create("daemon_callback");
    TCase *t = tcase_create("callback");
    tcase_set_timeout(t, 20);
    suite_add_tcase(s, t);
    tcase_add_test(t, delivered);
    tcase_add_test(t, delivered_at_the_last_try);
    tcase_add_test(t, status_500_gives_up_after_five);
    tcase_add_test(t, redirects_are_not_followed);
    tcase_add_test(t, silence_times_out);
    tcase_add_test(t, endless_answer_is_cut);
    tcase_add_test(t, nobody_there);
    tcase_add_test(t, stopped_in_the_middle);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
