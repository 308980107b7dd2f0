/* The real inferd in an unkind world: killed, out of descriptors, a log nobody takes, a model file that goes away
 * (E03, E05, E07, E08, E09). */
#define _GNU_SOURCE
#include "tests/fixture.h"
#include "tests/proc.h"

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct proc p;
static struct buf answer;

static void teardown(void)
{
    proc_free(&p);
    buf_free(&answer);
}

static const char generate[] = "{\"job_id\":\"a\",\"prompt\":\"hello\",\"max_tokens\":20,\"temperature\":0,\"ignore_eos\":true,"
                               "\"stream\":false}";

static void copy_file(const char *from, const char *to)
{
    static char piece[1 << 16];
    FILE *in = fopen(from, "re"), *out = fopen(to, "we");
    ck_assert(in != NULL && out != NULL);
    for (size_t n; (n = fread(piece, 1, sizeof piece, in)) > 0;)
        ck_assert_uint_eq(fwrite(piece, 1, n, out), n);
    fclose(in);
    ck_assert_int_eq(fclose(out), 0);
}

/* The generated tokens of one request: the answer from "tokens" to the end of the list. */
static void tokens_of(char *out, size_t size)
{
    int status = http_request(p.port, "POST", "/execute", generate, &answer);
    ck_assert_msg(status == 200, "status %d: %s; log: %s", status, answer.data, proc_log(&p));
    const char *list = strstr(answer.data, "\"tokens\":[");
    ck_assert_ptr_nonnull(list);
    snprintf(out, size, "%.*s", (int)strcspn(list, "]"), list);
}

/* E03: the restart binds to the same port and becomes ready. */
START_TEST(killed_and_started_again)
{
    char port[16] = "0";
    for (int i = 0; i < 3; i++) {
        proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", port, NULL}, NULL);
        proc_ready(&p);
        snprintf(port, sizeof port, "%d", p.port);
        int fd = http_send(p.port, "POST", "/execute",
                           "{\"job_id\":\"a\",\"prompt\":\"hello\",\"max_tokens\":8000,\"ignore_eos\":true}");
        buf_reset(&answer);
        ck_assert(http_read_until(fd, &answer, "event: token"));
        proc_signal(&p, SIGKILL);
        ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 1000 + SIGKILL);
        close(fd);
        proc_free(&p);
    }
}
END_TEST

static long cpu_ticks(void)
{
    char path[64], line[1024];
    long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)p.pid);
    FILE *f = fopen(path, "re");
    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(line, sizeof line, f));
    fclose(f);
    ck_assert_int_eq(sscanf(strrchr(line, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &system), 2);
    return user + system;
}

/* E05: more clients than descriptors: it stays alive and idle, and recovers when they go. */
START_TEST(few_descriptors)
{
    const struct proc_options o = {.limit_nofile = 32};
    int fds[100], n = 0;
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "0", NULL}, &o);
    proc_ready(&p);
    for (; n < 100; n++) {
        fds[n] = http_send(p.port, "GET", "/nothing HTTP/1.1\r\nX-Open: yes\r\nX:", NULL);    /* a request that waits for its end */
        if (fds[n] < 0)
            break;
    }
    long before = cpu_ticks();
    usleep(500000);
    long spent = cpu_ticks() - before;
    ck_assert_msg(spent < sysconf(_SC_CLK_TCK) / 4, "%ld ticks in half a second", spent);
    while (n > 0)
        close(fds[--n]);
    proc_ready(&p);
    char tokens[512];
    tokens_of(tokens, sizeof tokens);
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
}
END_TEST

static void serve_with_log_to(int err_fd)
{
    const struct proc_options o = {.err_fd = err_fd};
    char tokens[512];
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "0", "--log-level", "debug", NULL}, &o);
    proc_ready(&p);
    for (int i = 0; i < 30; i++)    /* some 60 lines, more than the pipe holds */
        tokens_of(tokens, sizeof tokens);
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    proc_free(&p);
}

/* E07 */
START_TEST(log_that_nobody_takes)
{
    int fds[2], full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    ck_assert_int_ge(full, 0);
    serve_with_log_to(full);
    close(full);
    ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 4096);
    serve_with_log_to(fds[1]);
    close(fds[0]);
    serve_with_log_to(fds[1]);
    close(fds[1]);
}
END_TEST

/* E08: the file that was opened is kept, whatever happens to its name. */
START_TEST(model_file_replaced_and_deleted)
{
    char path[128], other[128], first[512], later[512];
    snprintf(path, sizeof path, "%s/goes.gguf", fixture_dir);
    snprintf(other, sizeof other, "%s/other", fixture_dir);
    copy_file(fixture_tiny, path);
    proc_start(&p, (const char *[]){"--model", path, "--port", "0", NULL}, NULL);
    proc_ready(&p);
    tokens_of(first, sizeof first);
    copy_file(fixture_slow, other);
    ck_assert_int_eq(rename(other, path), 0);
    tokens_of(later, sizeof later);
    ck_assert_str_eq(first, later);
    ck_assert_int_eq(unlink(path), 0);
    tokens_of(later, sizeof later);
    ck_assert_str_eq(first, later);
}
END_TEST

/* E09: cut in place. Either nothing that is needed was in it, or the worker says what happened and is gone with 70. */
START_TEST(model_file_cut)
{
    char path[128], first[512], later[512];
    snprintf(path, sizeof path, "%s/cut.gguf", fixture_dir);
    copy_file(fixture_tiny, path);
    proc_start(&p, (const char *[]){"--model", path, "--port", "0", NULL}, NULL);
    proc_ready(&p);
    tokens_of(first, sizeof first);
    ck_assert_int_eq(truncate(path, 0), 0);
    int status = http_request(p.port, "POST", "/execute", generate, &answer);
    if (status == 200) {
        tokens_of(later, sizeof later);
        ck_assert_str_eq(first, later);
        return;
    }
    ck_assert_int_eq(proc_wait(&p, 5000 * PROC_SLOWER), 70);
    ck_assert_ptr_nonnull(strstr(proc_log(&p), path));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("daemon_world");
    TCase *t = tcase_create("world");
    tcase_add_checked_fixture(t, NULL, teardown);
    tcase_set_timeout(t, 60 * PROC_SLOWER);
    suite_add_tcase(s, t);
    tcase_add_test(t, killed_and_started_again);
    tcase_add_test(t, few_descriptors);
    tcase_add_test(t, log_that_nobody_takes);
    tcase_add_test(t, model_file_replaced_and_deleted);
    tcase_add_test(t, model_file_cut);
    fixture_open();
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    fixture_close();
    return failed != 0;
}
