/* The real inferd told to stop: in every state, politely, twice, with readers that do not read (E01, E02). */
#define _GNU_SOURCE
#include "base/clock.h"
#include "tests/fixture.h"
#include "tests/proc.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SLACK_MS = 1000 * PROC_SLOWER };    /* over a time limit of the worker's: its own second to close, and a busy machine's delays */

static struct proc p;
static struct buf answer;

static void teardown(void)
{
    proc_free(&p);
    buf_free(&answer);
}

#define START(...) proc_start(&p, (const char *[]){"--port", "0", "--model", __VA_ARGS__, NULL}, NULL)

static int post(const char *job, const char *prompt, int max_tokens)
{
    struct buf b = {0};
    buf_printf(&b, "{\"job_id\":\"%s\",\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":true,\"prompt\":", job, max_tokens);
    buf_json_string(&b, prompt, strlen(prompt));
    buf_puts(&b, "}");
    ck_assert(!b.failed);
    int fd = http_send(p.port, "POST", "/execute", b.data);
    ck_assert_int_ge(fd, 0);
    buf_free(&b);
    return fd;
}

static void expect_text(const char *part)
{
    ck_assert_msg(answer.data != NULL && strstr(answer.data, part) != NULL, "no %s in ...%s; log: %s", part,
                  answer.data && answer.len > 400 ? answer.data + answer.len - 400 : answer.data, proc_log(&p));
}

/* Stops the worker; it must end with 0 within ms. */
static void stop_within(int ms)
{
    proc_signal(&p, SIGTERM);
    int code = proc_wait(&p, ms);
    ck_assert_msg(code == 0, "exit code %d; log: %s", code, proc_log(&p));
}

START_TEST(while_loading)
{
    for (int i = 0; i < 5; i++) {
        START(fixture_slow);
        proc_listening(&p);
        stop_within(SLACK_MS);
        proc_free(&p);
    }
}
END_TEST

START_TEST(while_idle)
{
    START(fixture_tiny);
    proc_ready(&p);
    uint64_t start = clock_ns();
    stop_within(SLACK_MS);
    ck_assert_double_lt(clock_ms_since(start), 500 * PROC_SLOWER);    /* 100 ms on a machine of its own */
    ck_assert_int_eq(http_request(p.port, "GET", "/health", NULL, NULL), -1);
}
END_TEST

START_TEST(by_interrupt)
{
    START(fixture_tiny);
    proc_ready(&p);
    proc_signal(&p, SIGINT);
    ck_assert_int_eq(proc_wait(&p, SLACK_MS), 0);
}
END_TEST

/* What runs is finished; what comes new is refused and told when to come back; readiness goes, liveness stays. */
START_TEST(running_work_is_finished)
{
    struct buf other = {0};
    START(fixture_slow);
    proc_ready(&p);
    int fd = post("a", "hello", 60);
    ck_assert(http_read_until(fd, &answer, "event: token"));
    proc_signal(&p, SIGTERM);
    int status = 200;
    for (int i = 0; i < 200 && status == 200; i++) {
        status = http_request(p.port, "GET", "/health/ready", NULL, NULL);
        usleep(1000);
    }
    ck_assert_int_eq(status, 503);
    ck_assert_int_eq(http_request(p.port, "GET", "/health/live", NULL, NULL), 200);
    ck_assert_int_eq(http_request(p.port, "POST", "/execute", "{\"job_id\":\"b\",\"prompt\":\"x\"}", &other), 503);
    ck_assert_ptr_nonnull(strstr(other.data, "DRAINING"));
    ck_assert_ptr_nonnull(strstr(other.data, "\r\nRetry-After: "));
    buf_free(&other);
    http_read_until(fd, &answer, NULL);
    close(fd);
    expect_text("event: end");
    expect_text("\"i\":59");
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
}
END_TEST

START_TEST(work_that_takes_too_long_is_cancelled)
{
    START(fixture_slow, "--drain-timeout-sec", "1");
    proc_ready(&p);
    int fd = post("a", "hello", 8000);
    ck_assert(http_read_until(fd, &answer, "event: token"));
    uint64_t start = clock_ns();
    stop_within(1000 + SLACK_MS + 500);
    ck_assert_double_ge(clock_ms_since(start), 1000);
    http_read_until(fd, &answer, NULL);
    close(fd);
    expect_text("event: error");
    expect_text("CANCELLED");
}
END_TEST

START_TEST(queued_work_is_cancelled_too)
{
    START(fixture_slow, "--drain-timeout-sec", "0", "--max-batch", "1");
    proc_ready(&p);
    int running = post("a", "hello", 8000);
    ck_assert(http_read_until(running, &answer, "event: token"));
    int queued = post("b", "hello", 8000);
    buf_reset(&answer);
    ck_assert(http_read_until(queued, &answer, "text/event-stream"));
    stop_within(SLACK_MS + 500);
    http_read_until(queued, &answer, NULL);
    expect_text("CANCELLED");
    http_read_until(running, &answer, NULL);
    close(running);
    close(queued);
}
END_TEST

START_TEST(in_a_long_prefill)
{
    char prompt[6000];
    for (size_t i = 0; i < sizeof prompt; i++)
        prompt[i] = "abcdefgh "[i * 7 % 9];
    prompt[sizeof prompt - 1] = 0;
    START(fixture_slow, "--drain-timeout-sec", "0");
    proc_ready(&p);
    int fd = post("a", prompt, 100);
    ck_assert(http_read_until(fd, &answer, "event: started"));
    stop_within(SLACK_MS + 500);
    http_read_until(fd, &answer, NULL);
    close(fd);
    expect_text("CANCELLED");
}
END_TEST

START_TEST(second_signal_ends_it_at_once)
{
    START(fixture_slow);
    proc_ready(&p);
    int fd = post("a", "hello", 8000);
    ck_assert(http_read_until(fd, &answer, "event: token"));
    proc_signal(&p, SIGTERM);
    while (http_request(p.port, "GET", "/health/ready", NULL, NULL) == 200)
        usleep(1000);
    stop_within(SLACK_MS);
    close(fd);
}
END_TEST

/* E02: a reader that stopped reading does not hold the worker longer than the drain time. */
START_TEST(with_a_stalled_reader)
{
    START(fixture_tiny, "--drain-timeout-sec", "1");
    proc_ready(&p);
    int fd = post("a", "hello", 8000);
    int small = 2048;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    ck_assert(http_read_until(fd, &answer, "event: token"));
    stop_within(1000 + SLACK_MS + 500);
    close(fd);
}
END_TEST

/* With --drain-delay-sec it goes on serving, but no longer calls itself ready. */
START_TEST(drain_delay)
{
    START(fixture_tiny, "--drain-delay-sec", "1");
    proc_ready(&p);
    uint64_t start = clock_ns();
    proc_signal(&p, SIGTERM);
    while (http_request(p.port, "GET", "/health/ready", NULL, NULL) == 200)
        usleep(1000);
    int fd = post("a", "hello", 3);
    http_read_until(fd, &answer, NULL);
    close(fd);
    expect_text("event: end");
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    ck_assert_double_ge(clock_ms_since(start), 1000);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("daemon_stop");
    TCase *t = tcase_create("stop");
    tcase_add_checked_fixture(t, NULL, teardown);
    tcase_set_timeout(t, 60 * PROC_SLOWER);
    suite_add_tcase(s, t);
    tcase_add_test(t, while_loading);
    tcase_add_test(t, while_idle);
    tcase_add_test(t, by_interrupt);
    tcase_add_test(t, running_work_is_finished);
    tcase_add_test(t, work_that_takes_too_long_is_cancelled);
    tcase_add_test(t, queued_work_is_cancelled_too);
    tcase_add_test(t, in_a_long_prefill);
    tcase_add_test(t, second_signal_ends_it_at_once);
    tcase_add_test(t, with_a_stalled_reader);
    tcase_add_test(t, drain_delay);
    fixture_open();
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    fixture_close();
    return failed != 0;
}
