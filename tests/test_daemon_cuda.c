/* The real inferd with the CUDA engine on the host shim (tests/emu/): what it says of a card, which cards it refuses and
 * how, and how it ends when the card fails while it serves. */
#include "base/clock.h"
#include "tests/fixture.h"
#include "tests/proc.h"

#include <check.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { END_MS = 5000 };

static struct proc p;
static struct buf answer;

static void teardown(void)
{
    proc_free(&p);
    buf_free(&answer);
}

/* card: of tests/emu/emu.h. Without speculation, so that a token is a step, and the number of launches does not depend on time. */
static void start(const char *device, const char *card)
{
    char env[128];
    snprintf(env, sizeof env, "EMU_CARD=%s", card);
    const char *const envs[] = {env, NULL};
    const struct proc_options o = {.program = "inferd-emu", .env = envs};
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "0", "--ctx-size", "256", "--speculate", "off",
                                  "--device", device, NULL},
               &o);
}

static json_t *health(void)
{
    buf_reset(&answer);
    ck_assert_int_gt(http_request(p.port, "GET", "/health", NULL, &answer), 0);
    json_t *j = json_loads(strstr(answer.data, "\r\n\r\n") + 4, 0, NULL);
    ck_assert_msg(j != NULL, "%s", answer.data);
    return j;
}

static const char *text_of(json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

static json_int_t number_of(json_t *j, const char *key)
{
    return json_integer_value(json_object_get(j, key));
}

static void stop(void)
{
    proc_signal(&p, SIGTERM);
    int code = proc_wait(&p, PROC_WAIT_MS);
    ck_assert_msg(code == 0, "exit code %d: %s", code, proc_log(&p));
    proc_free(&p);
}

/* The tokens of short answers: greedy, and drawn on the card through every stage. */
static void generate(char *out, size_t size, bool greedy)
{
    char body[512];
    snprintf(body, sizeof body,
             "{\"job_id\":\"a\",\"prompt\":\"hello world\",\"max_tokens\":12,\"stream\":false,\"ignore_eos\":true,%s}",
             greedy ? "\"temperature\":0"
                    : "\"temperature\":1.3,\"top_k\":90,\"top_p\":0.95,\"min_p\":0.001,\"seed\":7,\"repetition_penalty\":1.1,"
                      "\"presence_penalty\":0.2");
    buf_reset(&answer);
    int status = http_request(p.port, "POST", "/execute", body, &answer);
    ck_assert_msg(status == 200, "%s", answer.data);
    const char *tokens = strstr(answer.data, "\"tokens\":[");
    ck_assert_msg(tokens != NULL, "%s", answer.data);
    snprintf(out, size, "%.*s", (int)strcspn(tokens, "]"), tokens);
}

START_TEST(facts_and_the_bytes_of_the_cpu)
{
    char want[2][512], got[512];
    start("cpu", "capability=90");
    proc_ready(&p);
    generate(want[0], sizeof want[0], true);
    generate(want[1], sizeof want[1], false);
    ck_assert_str_ne(want[0], want[1]);
    json_t *j = health();
    ck_assert_str_eq(text_of(j, "device"), "cpu");
    ck_assert(json_is_null(json_object_get(j, "cuda_runtime_version")));
    ck_assert_int_eq(number_of(j, "vram_bytes_total"), 0);
    json_decref(j);
    stop();
    start("auto", "capability=90,memory=2147483648");
    proc_ready(&p);
    for (int i = 0; i < 2; i++) {
        generate(got, sizeof got, i == 0);
        ck_assert_str_eq(got, want[i]);
    }
    j = health();
    ck_assert_str_eq(text_of(j, "device"), "cuda:0");
    ck_assert_str_eq(text_of(j, "memory_architecture"), "vram-only");
    ck_assert(json_is_true(json_object_get(j, "resident")));
    ck_assert_int_eq(number_of(j, "sm"), 90);
    ck_assert_str_eq(text_of(j, "cuda_runtime_version"), "13.0");
    ck_assert_int_eq(number_of(j, "vram_bytes_total"), 2147483648);
    ck_assert_int_gt(number_of(j, "vram_bytes_used"), 100000);
    ck_assert_int_lt(number_of(j, "vram_bytes_used"), 2147483648);
    json_decref(j);
    stop();
}
END_TEST

/* A machine whose driver or card is of no use: `auto` serves from the CPU. */
START_TEST(auto_without_a_card)
{
    static const char *const cards[] = {"probe=35,driver=0", "probe=100", "probe=35,driver=12040", "capability=70"};
    start("auto", cards[_i]);
    proc_ready(&p);
    json_t *j = health();
    ck_assert_str_eq(text_of(j, "device"), "cpu");
    json_decref(j);
    stop();
}
END_TEST

/* Named, it is that card or nothing. */
START_TEST(cards_that_cannot_be_used_are_69)
{
    static const struct {
        const char *device, *card, *message;
    } cases[] = {
        {"cuda:0", "probe=35,driver=0", "device cuda: no NVIDIA driver on this machine"},
        {"cuda:0", "probe=35,driver=12040", "the NVIDIA driver is for CUDA 12.4, needed is 13.0 or later"},
        {"cuda:0", "probe=100", "device cuda: no NVIDIA GPU on this machine"},
        {"cuda:0", "capability=70", "compute capability 7.0, needed is 7.5 or later"},
        {"cuda:3", "n_devices=2", "device cuda:3: this machine has 2 (cuda:0 to cuda:1)"},
        {"cuda:0", "memory=65536", "VRAM_OOM"},
    };
    start(cases[_i].device, cases[_i].card);
    int code = proc_wait(&p, PROC_WAIT_MS);
    ck_assert_msg(code == 69, "exit code %d: %s", code, proc_log(&p));
    ck_assert_msg(strstr(proc_log(&p), cases[_i].message) != NULL, "expected \"%s\": %s", cases[_i].message, p.log);
    if (strcmp(cases[_i].message, "VRAM_OOM") == 0) {
        ck_assert_ptr_nonnull(strstr(p.log, "required "));
        ck_assert_ptr_nonnull(strstr(p.log, "available 65536 bytes"));
        ck_assert_ptr_nonnull(strstr(p.log, fixture_tiny));
    }
}
END_TEST

/* Errors of a card do not go away: the stream says so, and the worker is gone for its manager to start again. */
START_TEST(a_failing_launch_ends_it_with_70)
{
    start("cuda:0", "fail_launch=150");    /* a step is one launch from its second graph on */
    proc_ready(&p);
    int fd = http_send(p.port, "POST", "/execute",
                       "{\"job_id\":\"a\",\"prompt\":\"hello\",\"max_tokens\":200,\"ignore_eos\":true,\"temperature\":0}");
    ck_assert_msg(http_read_until(fd, &answer, "event: error"), "...%s; log: %s",
                  answer.len > 400 ? answer.data + answer.len - 400 : answer.data, proc_log(&p));
    uint64_t noticed = clock_ns();
    http_read_until(fd, &answer, NULL);
    close(fd);
    ck_assert_msg(strstr(answer.data, "event: token") != NULL, "it failed too early: %s", answer.data);
    ck_assert_msg(strstr(answer.data, "\"code\":\"CUDA_ERROR\"") != NULL, "%s", answer.data);
    ck_assert_msg(strstr(answer.data, "\"retriable\":true") != NULL, "%s", answer.data);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 70);
    ck_assert_double_lt(clock_ms_since(noticed), END_MS * PROC_SLOWER);
    ck_assert_msg(strstr(proc_log(&p), "CUDA_ERROR: device cuda:0") != NULL, "%s", p.log);
}
END_TEST

START_TEST(memory_that_is_not_the_cards_is_70)
{
    start("cuda:0", "managed=1");
    int code = proc_wait(&p, PROC_WAIT_MS);
    ck_assert_msg(code == 70, "exit code %d: %s", code, proc_log(&p));
    ck_assert_ptr_nonnull(strstr(proc_log(&p), "weights not resident"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("daemon_cuda");
    TCase *t = tcase_create("daemon");
    tcase_add_unchecked_fixture(t, fixture_open, fixture_close);
    tcase_add_checked_fixture(t, NULL, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, facts_and_the_bytes_of_the_cpu);
    tcase_add_loop_test(t, auto_without_a_card, 0, 4);
    tcase_add_loop_test(t, cards_that_cannot_be_used_are_69, 0, 6);
    tcase_add_test(t, a_failing_launch_ends_it_with_70);
    tcase_add_test(t, memory_that_is_not_the_cards_is_70);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
