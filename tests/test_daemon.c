/* The real inferd: how it starts and what its exit code says when it does not. */
#define _GNU_SOURCE
#include "tests/fixture.h"
#include "tests/manager.h"
#include "tests/proc.h"

#include <arpa/inet.h>
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define UUID "123e4567-e89b-12d3-a456-426614174000"

static struct proc p;

static void teardown(void)
{
    proc_free(&p);
}

/* Starts, waits for the end, checks exit code and that standard error names `part`. */
static void expect(int code, const char *part, const char *const args[], const struct proc_options *o)
{
    proc_start(&p, args, o);
    int got = proc_wait(&p, PROC_WAIT_MS);
    ck_assert_msg(got == code, "exit code %d, expected %d; log: %s", got, code, proc_log(&p));
    ck_assert_msg(strstr(proc_log(&p), part) != NULL, "not in the log: %s; log: %s", part, p.log);
    proc_free(&p);
}
#define EXPECT(code, part, ...) expect(code, part, (const char *[]){__VA_ARGS__, NULL}, NULL)

static json_t *health(void)
{
    struct buf b = {0};
    int status = http_request(p.port, "GET", "/health", NULL, &b);
    ck_assert_int_gt(status, 0);
    json_t *j = json_loads(strstr(b.data, "\r\n\r\n") + 4, 0, NULL);
    ck_assert_msg(j != NULL, "%s", b.data);
    json_object_set_new(j, "http_status", json_integer(status));
    buf_free(&b);
    return j;
}

static const char *text_of(json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

START_TEST(usage_is_64)
{
    EXPECT(64, "--model: required", "--port", "0");
    EXPECT(64, "did you mean --port?", "--prot", "0", "--model", fixture_tiny);
    EXPECT(64, "http and https", "--model", fixture_tiny, "--callback-url", "file:///etc/passwd");
    EXPECT(64, "an integer 0..65535", "--model", "/no/such/file", "--port", "65536");
}
END_TEST

START_TEST(bad_model_is_65)
{
    char path[128];
    snprintf(path, sizeof path, "%s/garbage.gguf", fixture_dir);
    FILE *f = fopen(path, "w");
    fputs("this is no model file, but it is long enough to have a header", f);
    fclose(f);
    EXPECT(65, path, "--model", path, "--port", "0");
    EXPECT(65, path, "--model", path, "--check");
}
END_TEST

START_TEST(no_model_is_66)
{
    EXPECT(66, "/no/such/file.gguf", "--model", "/no/such/file.gguf", "--port", "0");
    EXPECT(66, "/tmp", "--model", "/tmp", "--port", "0");
    EXPECT(66, "/no/such/file.gguf", "--model", "/no/such/file.gguf", "--check");
}
END_TEST

START_TEST(no_device_is_69)
{
    /* no CUDA engine, no driver or no such card: always said, never another device instead */
    EXPECT(69, "device cuda", "--model", fixture_tiny, "--port", "0", "--device", "cuda:63");
    EXPECT(69, "device cuda", "--model", fixture_tiny, "--check", "--gpu-device", "63");
    EXPECT(69, "required", "--model", fixture_slow, "--port", "0", "--kv-cache-size-mb", "1", "--ctx-size", "8192");
}
END_TEST

/* E06 */
START_TEST(too_little_memory_is_69)
{
    const struct proc_options o = {.limit_as = (size_t)300 << 20};
    proc_start(&p, (const char *[]){"--model", fixture_slow, "--port", "0", "--ctx-size", "8192", "--max-batch", "64",
                                    "--kv-cache-size-mb", "4096", NULL}, &o);
    int code = proc_wait(&p, PROC_WAIT_MS);
    ck_assert_msg(code == 69 || code == 71, "exit code %d: %s", code, proc_log(&p));
    if (code == 69) {
        ck_assert_ptr_nonnull(strstr(proc_log(&p), "required"));
        ck_assert_ptr_nonnull(strstr(p.log, "available"));
    }
}
END_TEST

/* E04: 71 before the model is read, naming address and reason. */
START_TEST(no_address_is_71)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    char port[16];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    ck_assert_int_eq(listen(fd, 1), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    snprintf(port, sizeof port, "%d", ntohs(a.sin_port));
    EXPECT(71, port, "--model", "/no/such/file", "--port", port);
    close(fd);
    EXPECT(71, "192.0.2.1", "--model", "/no/such/file", "--host", "192.0.2.1", "--port", "0");
}
END_TEST

START_TEST(help_and_version)
{
    struct buf out = {0};
    proc_start(&p, (const char *[]){"--help", NULL}, NULL);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    proc_output(&p, &out);
    ck_assert_ptr_nonnull(strstr(out.data, "--max-queue N"));
    ck_assert_str_eq(proc_log(&p), "");
    proc_free(&p);
    buf_reset(&out);
    proc_start(&p, (const char *[]){"--version", NULL}, NULL);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    proc_output(&p, &out);
    ck_assert_int_eq(strncmp(out.data, "inferd ", 7), 0);
    buf_free(&out);
}
END_TEST

START_TEST(check_prints_the_plan)
{
    struct buf out = {0};
    proc_start(&p, (const char *[]){"--check", "--model", fixture_tiny, NULL}, NULL);
    ck_assert_msg(proc_wait(&p, PROC_WAIT_MS) == 0, "%s", proc_log(&p));
    proc_output(&p, &out);
    static const char *const parts[] = {fixture_tiny, "device   cpu", "weights", "kv cache", "work", "total", "available", "MiB"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        ck_assert_msg(strstr(out.data, parts[i]) != NULL, "no %s in %s", parts[i], out.data);
    ck_assert_ptr_null(strstr(out.data, "lowered"));
    buf_free(&out);
}
END_TEST

START_TEST(check_tells_of_a_lowered_context)
{
    struct buf out = {0};
    proc_start(&p, (const char *[]){"--check", "--model", fixture_tiny, "--kv-cache-size-mb", "1", NULL}, NULL);
    ck_assert_msg(proc_wait(&p, PROC_WAIT_MS) == 0, "%s", proc_log(&p));
    proc_output(&p, &out);
    ck_assert_msg(strstr(out.data, "lowered from 8192, the KV cache has no room for more") != NULL, "%s", out.data);
    buf_free(&out);
}
END_TEST

START_TEST(ready_and_its_facts)
{
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "0", "--worker-id", UUID, "--model-alias", "pet", NULL}, NULL);
    proc_ready(&p);
    json_t *j = health();
    ck_assert_int_eq(json_integer_value(json_object_get(j, "http_status")), 200);
    ck_assert_str_eq(text_of(j, "state"), "ready");
    ck_assert_str_eq(text_of(j, "worker_id"), UUID);
    ck_assert_str_eq(text_of(j, "model"), "pet");
    ck_assert_str_eq(text_of(j, "device"), "cpu");
    ck_assert_str_eq(text_of(j, "memory_architecture"), "ram");
    ck_assert_str_eq(text_of(j, "quant_kind"), "Q8_0");
    ck_assert_str_eq(text_of(j, "tokenizer_kind"), "gguf-bpe");
    ck_assert_int_eq(json_integer_value(json_object_get(j, "context_length")), 8192);
    ck_assert_int_eq(json_integer_value(json_object_get(j, "num_layers")), 2);
    json_decref(j);
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    static const char *const events[] = {"startup", "model_load_start", "model_load_complete", "ready", "shutdown"};
    const char *at = proc_log(&p);
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        char event[64];
        snprintf(event, sizeof event, "\"event\":\"%s\"", events[i]);
        at = strstr(at, event);
        ck_assert_msg(at != NULL, "no %s in its place: %s", events[i], p.log);
    }
    for (const char *line = p.log; *line != 0; line = strchr(line, '\n') + 1) {
        json_t *event = json_loadb(line, strcspn(line, "\n"), 0, NULL);
        ck_assert_msg(event != NULL, "not JSON: %s", line);
        ck_assert_str_eq(text_of(event, "worker_id"), UUID);
        json_decref(event);
    }
}
END_TEST

/* Each event of the log has what a reader of it is promised. */
START_TEST(log_events_have_their_fields)
{
    static const char *const common[] = {"worker_id", "model_ref", "device", NULL};
    static const char *const start[] = {"job_id", "tokens_in", NULL};
    static const char *const end[] = {"job_id", "tokens_in", "tokens_out", "queue_ms", "first_token_ms", "decode_time_ms",
                                      "outcome", NULL};
    static const struct {
        const char *event;
        const char *const *own;
    } rows[] = {{"startup", NULL}, {"model_load_start", NULL}, {"model_load_progress", NULL}, {"model_load_complete", NULL},
                {"ready", NULL}, {"execute_start", start}, {"execute_end", end}};
    bool seen[sizeof rows / sizeof *rows] = {0};
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "0", NULL}, NULL);
    proc_ready(&p);
    ck_assert_int_eq(http_request(p.port, "POST", "/execute", "{\"job_id\":\"a\",\"prompt\":\"b\",\"max_tokens\":2}", NULL), 200);
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    for (const char *line = proc_log(&p); *line != 0; line = strchr(line, '\n') + 1) {
        json_t *event = json_loadb(line, strcspn(line, "\n"), 0, NULL);
        ck_assert_msg(event != NULL, "not JSON: %s", line);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            if (strcmp(text_of(event, "event"), rows[i].event) != 0)
                continue;
            seen[i] = true;
            for (const char *const *f = common; *f != NULL; f++)
                ck_assert_msg(json_object_get(event, *f) != NULL, "no %s: %s", *f, line);
            for (const char *const *f = rows[i].own; f != NULL && *f != NULL; f++)
                ck_assert_msg(json_object_get(event, *f) != NULL, "no %s: %s", *f, line);
        }
        json_decref(event);
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        ck_assert_msg(seen[i], "no %s: %s", rows[i].event, p.log);
}
END_TEST

START_TEST(names_are_made_when_not_given)
{
    const char *env[] = {"INFERD_PORT=0", "INFERD_LOG_FORMAT=text", NULL};
    const struct proc_options o = {.env = env};
    proc_start(&p, (const char *[]){"--model", fixture_tiny, NULL}, &o);
    proc_ready(&p);
    json_t *j = health();
    ck_assert_str_eq(text_of(j, "model"), "tiny");
    ck_assert_uint_eq(strlen(text_of(j, "worker_id")), 36);
    json_decref(j);
    ck_assert_ptr_nonnull(strstr(proc_log(&p), " info  ready "));
}
END_TEST

/* /health answers while the model loads. Catching a load in the act is a race: it is won once in a few starts. */
START_TEST(health_while_loading)
{
    bool seen = false;
    for (int i = 0; i < 20 && !seen; i++) {
        proc_start(&p, (const char *[]){"--model", fixture_slow, "--port", "0", NULL}, NULL);
        proc_listening(&p);
        json_t *j = health();
        const char *state = text_of(j, "state");
        seen = strcmp(state, "loading") == 0;
        ck_assert_int_eq(json_integer_value(json_object_get(j, "http_status")), seen ? 503 : 200);
        if (seen) {
            ck_assert_str_eq(text_of(j, "status"), "loading");
            int status = http_request(p.port, "GET", "/health/live", NULL, NULL);
            ck_assert_int_eq(status, 200);
            proc_ready(&p);
        }
        json_decref(j);
        proc_free(&p);
    }
    ck_assert_msg(seen, "20 starts and never loading");
}
END_TEST

static int receive(int fd, char *out, size_t size)
{
    ssize_t n = recv(fd, out, size - 1, MSG_DONTWAIT);
    out[n > 0 ? n : 0] = 0;
    return (int)n;
}

/* Type=notify and socket activation, as systemd does them. */
START_TEST(under_systemd)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    char env_line[128], message[1024], all[8192] = "";
    snprintf(un.sun_path, sizeof un.sun_path, "%s/notify", fixture_dir);
    int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(notify, (struct sockaddr *)&un, sizeof un), 0);
    snprintf(env_line, sizeof env_line, "NOTIFY_SOCKET=%s", un.sun_path);

    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof in;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&in, sizeof in), 0);
    ck_assert_int_eq(listen(listener, 16), 0);
    ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&in, &len), 0);

    const char *env[] = {env_line, NULL};
    const struct proc_options o = {.env = env, .listen_fd = listener};
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "1", NULL}, &o);
    proc_ready(&p);
    ck_assert_int_eq(p.port, ntohs(in.sin_port));
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    size_t n = 0;
    while (n + sizeof message < sizeof all && receive(notify, message, sizeof message) > 0)
        n += (size_t)snprintf(all + n, sizeof all - n, "%s\n", message);
    const char *loading = strstr(all, "STATUS=Loading"), *ready = strstr(all, "READY=1"), *stopping = strstr(all, "STOPPING=1");
    ck_assert_msg(loading && ready && stopping && loading < ready && ready < stopping, "%s", all);
    close(notify);
    close(listener);
}
END_TEST

/* E11 */
START_TEST(callback_is_sent_when_ready)
{
    struct manager m;
    char url[64], token[128];
    manager_open(&m, MANAGER_OK);
    manager_url(&m, url);
    snprintf(token, sizeof token, "%s/token", fixture_dir);
    FILE *f = fopen(token, "w");
    fputs("s3cret\n", f);
    fclose(f);
    proc_start(&p, (const char *[]){"--model", fixture_tiny, "--port", "0", "--worker-id", UUID, "--callback-url", url,
                                    "--callback-token-file", token, NULL}, NULL);
    proc_ready(&p);
    for (int i = 0; i < 1000 && atomic_load(&m.requests) == 0; i++)
        usleep(5000);
    ck_assert_int_eq(m.requests, 1);
    json_t *j = json_loads(strstr(m.last, "\r\n\r\n") + 4, 0, NULL);
    ck_assert_msg(j != NULL, "%s", m.last);
    char uri[64];
    snprintf(uri, sizeof uri, "http://127.0.0.1:%d", p.port);
    ck_assert_str_eq(text_of(j, "worker_id"), UUID);
    ck_assert_str_eq(text_of(j, "model_ref"), fixture_tiny);
    ck_assert_str_eq(text_of(j, "uri"), uri);
    ck_assert_str_eq(text_of(j, "worker_type"), "inferd");
    ck_assert_str_eq(text_of(j, "memory_architecture"), "ram");
    ck_assert_int_gt(json_integer_value(json_object_get(j, "memory_bytes")), 0);
    ck_assert_int_eq(json_integer_value(json_object_get(j, "vram_bytes")), 0);
    ck_assert_str_eq(json_string_value(json_array_get(json_object_get(j, "capabilities"), 0)), "text-gen");
    json_decref(j);
    ck_assert_ptr_nonnull(strstr(m.last, "\r\nAuthorization: Bearer s3cret\r\n"));
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
    ck_assert_ptr_null(strstr(proc_log(&p), "s3cret"));
    manager_close(&m);
}
END_TEST

/* E11: a callback that fails for good is exit 75, and /health answers until then. A stop meanwhile is a stop. */
START_TEST(callback_failure_is_75)
{
    struct manager m;
    char url[64];
    struct proc other = {0};
    manager_open(&m, MANAGER_ERROR);
    manager_url(&m, url);
    const char *const args[] = {"--model", fixture_tiny, "--port", "0", "--callback-url", url, NULL};
    proc_start(&p, args, NULL);
    proc_start(&other, args, NULL);
    proc_ready(&p);
    proc_ready(&other);
    proc_signal(&other, SIGTERM);
    ck_assert_int_eq(proc_wait(&other, PROC_WAIT_MS), 0);
    proc_free(&other);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(http_request(p.port, "GET", "/health", NULL, NULL), 200);
        usleep(100000);
    }
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 75);
    ck_assert_ptr_nonnull(strstr(proc_log(&p), "status 500"));
    manager_close(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("daemon");
    TCase *t = tcase_create("start");
    tcase_add_checked_fixture(t, NULL, teardown);
    tcase_set_timeout(t, 60 * PROC_SLOWER);
    suite_add_tcase(s, t);
    tcase_add_test(t, usage_is_64);
    tcase_add_test(t, bad_model_is_65);
    tcase_add_test(t, no_model_is_66);
    tcase_add_test(t, no_device_is_69);
    if (!PROC_SANITIZED)    /* a sanitizer needs terabytes of address space */
        tcase_add_test(t, too_little_memory_is_69);
    tcase_add_test(t, no_address_is_71);
    tcase_add_test(t, help_and_version);
    tcase_add_test(t, check_prints_the_plan);
    tcase_add_test(t, check_tells_of_a_lowered_context);
    tcase_add_test(t, ready_and_its_facts);
    tcase_add_test(t, log_events_have_their_fields);
    tcase_add_test(t, names_are_made_when_not_given);
    tcase_add_test(t, health_while_loading);
    tcase_add_test(t, under_systemd);
    tcase_add_test(t, callback_is_sent_when_ready);
    tcase_add_test(t, callback_failure_is_75);
    fixture_open();
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    fixture_close();
    return failed != 0;
}
