/* Clients that are slow, leave, stall, or are too many, against the real program with short deadlines. */
#include "base/clock.h"
#include "tests/served.h"
#include "tests/sse.h"

#include <check.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct served w;

/* A sanitizer keeps freed memory for a while and adds its shadows. */
enum { PARSE_KB = 80 * 1024 * SLOWNESS, IDLE_BYTES = 16 * 1024 * SLOWNESS };

static void start(const char *model, const char *const args[], const struct proc_options *o)
{
    served_start(&w, model, args, o);
}

static void start_tiny(void)
{
    start(fixture_tiny, (const char *const[]){"--header-timeout-ms", "1000", "--body-timeout-ms", "1200", "--send-timeout-ms", "1000",
                                              "--max-body-bytes", "300000", NULL}, NULL);
}

static void start_slow(void)
{
    start(fixture_slow, (const char *const[]){"--ctx-size", "4096", "--max-batch", "4", NULL}, NULL);
}

static void stop(void)
{
    served_stop(&w);
}

static int ms_since(uint64_t t)
{
    return (int)clock_ms_since(t);
}

/* ---- slow senders ---- */

START_TEST(D01_slow_headers)
{
    enum { N = 100 };
    static const char head[] = "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    struct client c[N];
    uint64_t begin = clock_ns();
    int open = N;
    for (int i = 0; i < N; i++)
        ck_assert(client_open(&c[i], w.port));
    double worst = 0;
    for (size_t at = 0; open > 0 && ms_since(begin) < 4000; at++) {
        double ms;
        for (int i = 0; i < N; i++) {
            if (c[i].closed)
                continue;
            send(c[i].fd, head + at % (sizeof head - 1), 1, MSG_NOSIGNAL | MSG_DONTWAIT);
            client_receive(&c[i], 0);
            if (c[i].closed) {
                open--;
                ck_assert_msg(ms_since(begin) >= 900, "closed after %d ms", ms_since(begin));
            }
        }
        ck_assert_int_eq(client_get(w.port, "/health", NULL, &ms), 200);
        worst = ms > worst ? ms : worst;
        usleep(40000);
    }
    ck_assert_msg(open == 0 && ms_since(begin) < 2500, "%d are open after %d ms", open, ms_since(begin));
    ck_assert_msg(worst < 100, "/health took %.1f ms", worst);
    for (int i = 0; i < N; i++)
        client_close(&c[i]);
    served_check(&w, "D01");
}
END_TEST

START_TEST(D02_slow_body)
{
    struct client c;
    struct answer a;
    uint64_t begin = clock_ns();
    ck_assert(client_open(&c, w.port));
    ck_assert(client_puts(&c, "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"));
    while (!client_receive(&c, 50) && ms_since(begin) < 4000)
        client_puts(&c, "{");
    ck_assert(client_answer(&c, &a, false, 1000));
    ck_assert_int_eq(a.status, 408);
    ck_assert(a.complete && strstr(a.body.data, "REQUEST_TIMEOUT") != NULL);
    ck_assert_msg(ms_since(begin) >= 1100 && ms_since(begin) < 2000, "%d ms", ms_since(begin));
    ck_assert(client_wait_close(&c, 3000));
    ck_assert_uint_eq(c.in.len, 0);
    answer_free(&a);
    client_close(&c);
    served_check(&w, "D02");
}
END_TEST

START_TEST(B15_too_large_by_length)
{
    struct client c;
    struct answer a;
    ck_assert(client_open(&c, w.port));
    ck_assert(client_puts(&c, "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                              "Expect: 100-continue\r\nContent-Length: 300001\r\n\r\n"));
    ck_assert(client_answer(&c, &a, false, 2000));
    ck_assert_int_eq(a.status, 413);
    ck_assert_ptr_nonnull(strstr(a.body.data, "PAYLOAD_TOO_LARGE"));
    ck_assert(client_wait_close(&c, 2000));
    answer_free(&a);
    client_close(&c);
    served_check(&w, "B15 length");
}
END_TEST

START_TEST(B15_too_large_by_chunks)
{
    struct client c;
    struct answer a;
    char chunk[10016];
    int n = snprintf(chunk, sizeof chunk, "2710\r\n");
    memset(chunk + n, '1', 10000);
    memcpy(chunk + n + 10000, "\r\n", 2);
    uint64_t begin = clock_ns();
    ck_assert(client_open(&c, w.port));
    ck_assert(client_puts(&c, "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                              "Transfer-Encoding: chunked\r\n\r\n"));
    int sent = 0;
    while (sent < 100 && c.in.len == 0 && !c.closed) {
        ck_assert(client_send(&c, chunk, (size_t)n + 10002));
        sent++;
        client_receive(&c, sent < 30 ? 0 : 20);
    }
    ck_assert_msg(sent >= 29 && sent < 60, "answered after %d chunks", sent);
    ck_assert(client_answer(&c, &a, false, 1000));
    ck_assert_int_eq(a.status, 413);
    ck_assert(a.complete && strstr(a.body.data, "PAYLOAD_TOO_LARGE") != NULL);
    /* a hidden request after the end of the body is not served */
    client_puts(&c, "0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    ck_assert(client_wait_close(&c, 3000));
    ck_assert_uint_eq(c.in.len, 0);
    ck_assert_int_lt(ms_since(begin), 3000);
    answer_free(&a);
    client_close(&c);
    served_check(&w, "B15 chunks");
}
END_TEST

/* C03: many large bodies of little sense; /health stays quick and the memory bounded. */
START_TEST(C03_parses_are_bounded)
{
    enum { N = 12 };
    struct client c[N];
    struct buf body = {0};
    buf_puts(&body, "{\"job_id\":\"x\",\"prompt\":\"y\",\"z\":[1");
    while (body.len < 299000)
        buf_puts(&body, ",1");
    buf_puts(&body, "]}");
    long before = served_rss_kb(&w);
    for (int i = 0; i < N; i++)
        ck_assert(client_open(&c[i], w.port) && client_post(&c[i], "/execute", body.data));
    double best = 1e9, ms;
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(client_get(w.port, "/health", NULL, &ms), 200);
        best = ms < best ? ms : best;
    }
    ck_assert_msg(best < 10, "/health took %.1f ms", best);
    for (int i = 0; i < N; i++) {
        struct answer a;
        ck_assert(client_answer(&c[i], &a, false, 10000));
        ck_assert_int_eq(a.status, 400);
        answer_free(&a);
        client_close(&c[i]);
    }
    ck_assert_msg(served_rss_kb(&w) - before < PARSE_KB, "%ld KiB more", served_rss_kb(&w) - before);
    buf_free(&body);
    served_check(&w, "C03");
}
END_TEST

/* C09: one word of the largest body is tokenised in linear time, off the event threads. */
START_TEST(C09_long_word)
{
    struct buf body = {0};
    struct client c;
    struct answer a;
    double ms;
    buf_puts(&body, "{\"job_id\":\"x\",\"max_tokens\":1,\"prompt\":\"");
    while (body.len < 299000)
        buf_puts(&body, "abcdefghij");
    buf_puts(&body, "\"}");
    uint64_t begin = clock_ns();
    ck_assert(client_open(&c, w.port) && client_post(&c, "/execute", body.data));
    ck_assert_int_eq(client_get(w.port, "/health", NULL, &ms), 200);
    ck_assert(client_answer(&c, &a, false, 5000));
    ck_assert_int_lt(ms_since(begin), 2000);
    ck_assert_int_eq(a.status, 400);
    ck_assert_ptr_nonnull(strstr(a.body.data, "CONTEXT_OVERFLOW"));
    ck_assert_ptr_nonnull(strstr(a.body.data, "at least"));
    answer_free(&a);
    client_close(&c);
    buf_free(&body);
    served_check(&w, "C09");
}
END_TEST

/* ---- readers that stall ---- */

/* Opens a stream with a small receive window and reads nothing. */
static void stall(struct client *c, const char *id)
{
    char json[256];
    int size = 2048;
    ck_assert(client_open(c, w.port));
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    snprintf(json, sizeof json, "{\"job_id\":\"%s\",\"prompt\":\"x\",\"max_tokens\":8000,\"ignore_eos\":true}", id);
    ck_assert(client_post(c, "/execute", json));
}

START_TEST(D03_stalled_reader)
{
    struct client c;
    double cancelled = served_metric(&w, "worker_requests_total{outcome=\"cancelled\"}");
    stall(&c, "stalled");
    uint64_t begin = clock_ns();
    /* others are served meanwhile */
    for (int i = 0; i < 3; i++) {
        struct sse s;
        sse_open(&s, w.port, "{\"job_id\":\"other\",\"prompt\":\"x\",\"max_tokens\":50,\"ignore_eos\":true}");
        ck_assert_str_eq(sse_finish(&s)->name, "end");
        sse_close(&s);
    }
    ck_assert(served_wait(&w, "worker_requests_total{outcome=\"cancelled\"}", cancelled + 1, 8000));
    ck_assert_msg(ms_since(begin) > 500, "stopped after %d ms", ms_since(begin));
    served_check(&w, "D03");    /* the connection is gone too */
    client_close(&c);
}
END_TEST

/* E02: a stalled reader does not hold up the end. */
START_TEST(E02_stop_with_a_stalled_reader)
{
    struct client c;
    start(fixture_tiny, (const char *const[]){"--drain-timeout-sec", "1", NULL}, NULL);
    stall(&c, "stalled");
    usleep(300000);
    uint64_t begin = clock_ns();
    proc_signal(&w.p, SIGTERM);
    ck_assert_int_eq(proc_wait(&w.p, 5000), 0);
    ck_assert_msg(ms_since(begin) < 2100, "%d ms", ms_since(begin));
    client_close(&c);
}
END_TEST

/* ---- clients that leave ---- */

enum {
    LEAVE_CLOSE,
    LEAVE_RESET,
    LEAVE_N,
};

static void leave(struct sse *s, int how)
{
    if (how == LEAVE_RESET)
        client_reset(&s->c);
    sse_close(s);
}

/* D04, D05: in the queue, in prefill, in decode; noticed within 100 ms, and the engine is free at the end of the step. */
START_TEST(D04_D05_leaving)
{
    char json[8192], prompt[4000];
    memset(prompt, '7', sizeof prompt - 1);
    prompt[sizeof prompt - 1] = 0;
    for (int how = 0; how < LEAVE_N; how++) {
        struct sse busy[4], s;
        double done = served_metric(&w, "worker_requests_total{outcome=\"cancelled\"}");
        snprintf(json, sizeof json, "{\"job_id\":\"prefill\",\"prompt\":\"%s\",\"max_tokens\":9}", prompt);
        sse_open(&s, w.port, json);
        ck_assert(served_wait(&w, "inferd_requests_running", 1, 3000));
        leave(&s, how);
        ck_assert_msg(served_wait(&w, "worker_requests_total{outcome=\"cancelled\"}", ++done, NOTICE_MS), "prefill, %d", how);
        ck_assert(served_wait(&w, "inferd_requests_running", 0, REST_MS));

        for (int i = 0; i < 4; i++) {
            snprintf(json, sizeof json, "{\"job_id\":\"busy%d\",\"prompt\":\"x\",\"max_tokens\":1000,\"ignore_eos\":true}", i);
            sse_open(&busy[i], w.port, json);
            ck_assert_ptr_nonnull(sse_next(&busy[i], 5000));
        }
        sse_open(&s, w.port, "{\"job_id\":\"queued\",\"prompt\":\"x\",\"max_tokens\":9}");
        ck_assert(served_wait(&w, "inferd_requests_waiting", 1, REST_MS));
        leave(&s, how);
        ck_assert_msg(served_wait(&w, "worker_requests_total{outcome=\"cancelled\"}", ++done, NOTICE_MS), "queue, %d", how);
        ck_assert(served_wait(&w, "inferd_requests_waiting", 0, REST_MS));
        for (int i = 0; i < 4; i++)
            leave(&busy[i], how);
        ck_assert_msg(served_wait(&w, "worker_requests_total{outcome=\"cancelled\"}", done + 4, NOTICE_MS), "decode, %d", how);
        served_check(&w, "D04");
    }
    /* after the end: nothing happens */
    struct sse s;
    sse_open(&s, w.port, "{\"job_id\":\"ended\",\"prompt\":\"x\",\"max_tokens\":2}");
    sse_finish(&s);
    leave(&s, LEAVE_RESET);
    served_check(&w, "D05 after the end");
}
END_TEST

/* D06: a client that only stops sending reads its stream to the end, from the queue on. */
START_TEST(D06_half_close)
{
    struct sse s, busy[4];
    char json[256];
    for (int i = 0; i < 4; i++) {
        snprintf(json, sizeof json, "{\"job_id\":\"busy%d\",\"prompt\":\"x\",\"max_tokens\":30,\"ignore_eos\":true}", i);
        sse_open(&busy[i], w.port, json);
        ck_assert_ptr_nonnull(sse_next(&busy[i], 5000));
    }
    sse_open(&s, w.port, "{\"job_id\":\"half\",\"prompt\":\"x\",\"max_tokens\":8,\"ignore_eos\":true}");
    ck_assert_int_eq(shutdown(s.c.fd, SHUT_WR), 0);
    const struct event *e = sse_any(&s, 2000);
    ck_assert_msg(e != NULL && strcmp(e->name, "ping") == 0, "no probe");
    ck_assert_str_eq(sse_finish(&s)->name, "end");
    ck_assert_int_eq(s.n_tokens, 8);
    sse_close(&s);
    for (int i = 0; i < 4; i++) {
        sse_finish(&busy[i]);
        sse_close(&busy[i]);
    }
    /* one object: it may be treated as gone, but it must not stay */
    struct client c;
    ck_assert(client_open(&c, w.port));
    ck_assert(client_post(&c, "/execute", "{\"job_id\":\"half\",\"prompt\":\"x\",\"max_tokens\":4000,\"ignore_eos\":true,\"stream\":false}"));
    ck_assert_int_eq(shutdown(c.fd, SHUT_WR), 0);
    ck_assert(client_wait_close(&c, 3000));
    client_close(&c);
    served_check(&w, "D06");
}
END_TEST

/* D10: requests cancelled at random, by /cancel, by closing, by both, while control requests run. */
START_TEST(D10_random_cancelling)
{
    enum { ROUNDS = 25, AT_ONCE = 8 };
    unsigned seed = 1;
    for (int r = 0; r < ROUNDS; r++) {
        struct sse s[AT_ONCE];
        char json[256];
        for (int i = 0; i < AT_ONCE; i++) {
            snprintf(json, sizeof json, "{\"job_id\":\"r%d-%d\",\"prompt\":\"cancel %d\",\"max_tokens\":2000,\"ignore_eos\":true,\"seed\":%d}",
                     r, i, i, r);
            sse_open(&s[i], w.port, json);
        }
        for (int i = 0; i < AT_ONCE; i++) {
            seed = seed * 1103515245 + 12345;
            usleep((seed >> 16) % 10000);
            if ((seed >> 8) % 3 != 0) {
                snprintf(json, sizeof json, "{\"job_id\":\"r%d-%d\"}", r, i);
                ck_assert_int_eq(client_request(w.port, "/cancel", json, NULL), 202);
            }
            if ((seed >> 8) % 3 != 1) {
                leave(&s[i], (int)((seed >> 20) % LEAVE_N));
                s[i].c.fd = -1;
            }
            if (i == AT_ONCE / 2) {    /* the control request in the middle of it */
                int status;
                json_t *a = execute_json(w.port, "{\"job_id\":\"control\",\"prompt\":\"The quick brown fox\",\"seed\":7,\"max_tokens\":8,"
                                                 "\"ignore_eos\":true,\"stream\":false}", &status);
                ck_assert_int_eq(status, 200);
                ck_assert_ptr_nonnull(strstr(w.control.data, json_string_value(json_object_get(a, "text"))));
                json_decref(a);
            }
        }
        for (int i = 0; i < AT_ONCE; i++) {
            if (s[i].c.fd < 0)
                continue;
            const struct event *e = sse_finish(&s[i]);
            ck_assert_msg(strcmp(e->name, "error") == 0 && strcmp(sse_string(e, "code"), "CANCELLED") == 0, "%s", e->name);
            sse_close(&s[i]);
        }
    }
    served_check(&w, "D10");
}
END_TEST

/* ---- too many ---- */

START_TEST(D08_connection_limit)
{
    enum { LIMIT = 12 };
    struct client c[LIMIT], extra;
    struct answer a;
    char v[32];
    start(fixture_tiny, (const char *const[]){"--max-connections", "12", NULL}, NULL);
    usleep(50000);    /* the connections that asked for readiness are closed */
    for (int i = 0; i < LIMIT; i++)
        ck_assert(client_open(&c[i], w.port));
    for (int i = 0; i < 5; i++) {
        uint64_t begin = clock_ns();
        ck_assert(client_open(&extra, w.port));
        client_puts(&extra, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        ck_assert(client_answer(&extra, &a, false, 1000));
        ck_assert_int_eq(a.status, 503);
        ck_assert_ptr_nonnull(answer_header(&a, "Retry-After", v, sizeof v));
        ck_assert(a.complete && client_wait_close(&extra, 1000));
        ck_assert_int_lt(ms_since(begin), 500);
        answer_free(&a);
        client_close(&extra);
    }
    /* the others are not harmed, and a place that is given up can be taken */
    ck_assert(client_puts(&c[3], "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    ck_assert(client_answer(&c[3], &a, false, 1000) && a.status == 200);
    answer_free(&a);
    for (int i = 0; i < LIMIT; i++)
        client_close(&c[i]);
    usleep(50000);
    served_check(&w, "D08");
}
END_TEST

/* D09: of ten times as many as can run and wait, exactly the surplus is refused, and each of the others ends. */
START_TEST(D09_surplus)
{
    enum { PLACES = 2 + 4, N = 10 * PLACES };
    struct client c[N];
    struct answer a;
    char json[128], v[16];
    int refused = 0, ended = 0;
    start(fixture_slow, (const char *const[]){"--max-batch", "2", "--max-queue", "4", "--ctx-size", "256", NULL}, NULL);
    for (int i = 0; i < N; i++) {
        snprintf(json, sizeof json, "{\"job_id\":\"j%d\",\"prompt\":\"x\",\"max_tokens\":200,\"ignore_eos\":true}", i);
        ck_assert(client_open(&c[i], w.port) && client_post(&c[i], "/execute", json));
    }
    for (int i = 0; i < N; i++) {
        if (!client_wait(&c[i], "HTTP/1.1 429", 0) && client_wait(&c[i], "HTTP/1.1 200", 2000 * SLOWNESS))
            continue;
        ck_assert(client_answer(&c[i], &a, false, 2000 * SLOWNESS));
        ck_assert_int_eq(a.status, 429);
        ck_assert_ptr_nonnull(answer_header(&a, "Retry-After", v, sizeof v));
        refused++;
        answer_free(&a);
        client_close(&c[i]);
        c[i].fd = -1;
    }
    ck_assert_int_eq(refused, N - PLACES);
    for (int i = 0; i < N; i++) {
        if (c[i].fd < 0)
            continue;
        snprintf(json, sizeof json, "{\"job_id\":\"j%d\"}", i);
        ck_assert_int_eq(client_request(w.port, "/cancel", json, NULL), 202);
        ck_assert(client_answer(&c[i], &a, false, 5000 * SLOWNESS) && a.complete);
        ended += strstr(a.body.data, "event: error\n") != NULL || strstr(a.body.data, "event: end\n") != NULL;
        answer_free(&a);
        client_close(&c[i]);
    }
    ck_assert_int_eq(ended, PLACES);
    served_check(&w, "D09");
}
END_TEST

/* E05: out of descriptors it goes on serving whom it has, refuses the rest, and does not spin. */
START_TEST(E05_descriptors)
{
    enum { N = 100 };
    struct client c[N];
    int answered = 0;
    start(fixture_tiny, NULL, &(struct proc_options){.limit_nofile = 32});
    for (int i = 0; i < N; i++) {
        ck_assert(client_open(&c[i], w.port));
        client_puts(&c[i], "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    usleep(200000);
    long cpu = served_cpu_ms(&w);
    usleep(1000000);
    cpu = served_cpu_ms(&w) - cpu;
    ck_assert_msg(cpu < 100, "%ld ms of a second", cpu);
    for (int i = 0; i < N; i++) {
        struct answer a;
        if (client_answer(&c[i], &a, false, 200)) {
            ck_assert_msg(a.status == 200 || a.status == 503, "%d", a.status);
            answered += a.status == 200;
        }
        answer_free(&a);
    }
    ck_assert_msg(answered >= 4, "%d were served", answered);
    for (int i = 0; i < N; i++)
        client_close(&c[i]);
    usleep(100000);
    served_check(&w, "E05");
}
END_TEST

/* D07, in small: what an idle connection costs. */
START_TEST(D07_idle_connections)
{
    enum { N = 500 };
    static struct client c[N];
    double ms;
    long before = served_rss_kb(&w);
    for (int i = 0; i < N; i++)
        ck_assert(client_open(&c[i], w.port));
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(client_get(w.port, "/health", NULL, &ms), 200);
    ck_assert_msg(ms < 50, "/health took %.1f ms", ms);
    long each = (served_rss_kb(&w) - before) * 1024 / N;
    ck_assert_msg(each < IDLE_BYTES, "%ld bytes each", each);
    for (int i = 0; i < N; i++)
        client_close(&c[i]);
    served_check(&w, "D07");
}
END_TEST

/* Stopping while requests run: they end by themselves or are told; new ones are refused, never left without an answer. */
START_TEST(draining)
{
    struct sse s;
    struct client c;
    struct answer a;
    char v[32], json[128];
    enum { TOKENS = 60 / SLOWNESS };
    snprintf(json, sizeof json, "{\"job_id\":\"last\",\"prompt\":\"x\",\"max_tokens\":%d,\"ignore_eos\":true}", TOKENS);
    sse_open(&s, w.port, json);
    ck_assert_ptr_nonnull(sse_next(&s, 5000));
    ck_assert(client_open(&c, w.port));
    proc_signal(&w.p, SIGTERM);
    uint64_t begin = clock_ns();
    while (client_get(w.port, "/health/ready", NULL, NULL) != 503)
        ck_assert_int_lt(ms_since(begin), 1000);
    ck_assert(client_post(&c, "/execute", "{\"job_id\":\"late\",\"prompt\":\"x\"}"));
    ck_assert(client_answer(&c, &a, false, 2000));
    ck_assert_int_eq(a.status, 503);
    ck_assert_ptr_nonnull(strstr(a.body.data, "DRAINING"));
    ck_assert_ptr_nonnull(answer_header(&a, "Retry-After", v, sizeof v));
    ck_assert_str_eq(answer_header(&a, "Connection", v, sizeof v), "close");
    answer_free(&a);
    client_close(&c);
    ck_assert_str_eq(sse_finish(&s)->name, "end");
    ck_assert_int_eq(s.n_tokens, TOKENS);
    sse_close(&s);
    ck_assert_int_eq(proc_wait(&w.p, 3000), 0);
}
END_TEST

static TCase *add(Suite *s, const char *name, void (*setup)(void), const TTest *const tests[])
{
    TCase *t = tcase_create(name);
    tcase_set_timeout(t, 30 * SLOWNESS);
    tcase_add_checked_fixture(t, setup, stop);
    for (; *tests != NULL; tests++)
        tcase_add_test(t, *tests);
    suite_add_tcase(s, t);
    return t;
}

int main(void)
{
    Suite *s = suite_create("http_abuse");
    fixture_open();
    add(s, "tiny", start_tiny,
        (const TTest *const[]){D01_slow_headers, D02_slow_body, B15_too_large_by_length, B15_too_large_by_chunks, C03_parses_are_bounded,
                               C09_long_word, D03_stalled_reader, D07_idle_connections, D10_random_cancelling, NULL});
    add(s, "slow", start_slow, (const TTest *const[]){D04_D05_leaving, D06_half_close, draining, NULL});
    add(s, "own", NULL, (const TTest *const[]){D08_connection_limit, D09_surplus, E02_stop_with_a_stalled_reader, E05_descriptors, NULL});
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    fixture_close();
    return failed != 0;
}
