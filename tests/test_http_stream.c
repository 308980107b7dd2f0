#define _GNU_SOURCE    /* vasprintf */
/* /execute against the real program: the stream, its text, stop strings, limits, cancelling. */
#include "base/clock.h"
#include "tests/served.h"
#include "tests/sse.h"

#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CTX = 192 };

static struct served tiny, slow;

static void start(void)
{
    fixture_open();
    served_start(&tiny, fixture_tiny, (const char *const[]){"--ctx-size", "192", NULL}, NULL);
    served_start(&slow, fixture_slow,
                 (const char *const[]){"--ctx-size", "2048", "--max-batch", "1", "--max-queue", "2", NULL}, NULL);
}

static void stop(void)
{
    served_stop(&tiny);
    served_stop(&slow);
    fixture_close();
}

static json_t *answer(int port, int want, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static json_t *answer(int port, int want, const char *fmt, ...)
{
    char *json;
    va_list ap;
    int status;
    va_start(ap, fmt);
    ck_assert_int_ge(vasprintf(&json, fmt, ap), 0);
    va_end(ap);
    json_t *root = execute_json(port, json, &status);
    char *text = json_dumps(root, 0);
    ck_assert_msg(status == want, "%s: %d %s", json, status, text);
    free(text);
    free(json);
    return root;
}

static const char *string(const json_t *root, const char *name)
{
    const char *s = json_string_value(json_object_get(root, name));
    ck_assert_msg(s != NULL, "no string %s", name);
    return s;
}

static const char *error_code(const json_t *root)
{
    return string(json_object_get(root, "error"), "code");
}

static json_int_t integer(const json_t *root, const char *name)
{
    ck_assert_msg(json_is_integer(json_object_get(root, name)), "no integer %s", name);
    return json_integer_value(json_object_get(root, name));
}

/* ---- the stream ---- */

START_TEST(stream_and_object_agree)
{
    static const char request[] = "\"prompt\":\"Once upon a time\",\"max_tokens\":60,\"seed\":5,\"ignore_eos\":true";
    char json[512];
    struct sse s;
    json_t *one = answer(tiny.port, 200, "{\"job_id\":\"one\",\"stream\":false,%s}", request);
    snprintf(json, sizeof json, "{\"job_id\":\"str\\u00fcam\",%s}", request);
    sse_open(&s, tiny.port, json);
    const struct event *e = sse_next(&s, 5000);
    ck_assert(e != NULL && strcmp(e->name, "started") == 0);
    ck_assert_str_eq(sse_string(e, "job_id"), "str\xc3\xbc" "am");
    ck_assert_str_eq(sse_string(e, "model"), "tiny");
    ck_assert_int_eq(strlen(sse_string(e, "started_at")), 24);
    ck_assert_int_eq(sse_int(e, "seed"), 5);
    ck_assert_int_eq(sse_int(e, "prompt_tokens"), integer(one, "prompt_tokens"));
    ck_assert_int_eq(sse_int(e, "cached_tokens"), 0);
    json_int_t next = 0;
    while ((e = sse_next(&s, 5000)) != NULL && strcmp(e->name, "end") != 0)
        if (strcmp(e->name, "token") == 0)
            ck_assert_int_eq(sse_int(e, "i"), next++);
    ck_assert_ptr_nonnull(e);
    ck_assert_int_eq(next, 60);
    ck_assert_int_eq(sse_int(e, "tokens_out"), 60);
    ck_assert_int_eq(sse_int(e, "seed"), 5);
    ck_assert_str_eq(sse_string(e, "stop_reason"), "max_tokens");
    ck_assert(json_is_real(json_object_get(e->data, "decode_time_ms")));
    ck_assert(json_is_real(json_object_get(e->data, "prefill_time_ms")));
    ck_assert(json_is_real(json_object_get(e->data, "queue_time_ms")));
    ck_assert_ptr_null(sse_next(&s, 5000));
    ck_assert(s.whole);

    ck_assert_str_eq(string(one, "text"), s.out.data);
    ck_assert_int_eq(integer(one, "tokens_out"), 60);
    const json_t *ids = json_object_get(one, "tokens");
    ck_assert_uint_eq(json_array_size(ids), 60);
    for (int i = 0; i < 60; i++)
        ck_assert_int_eq(json_integer_value(json_array_get(ids, (size_t)i)), s.ids[i]);

    /* the connection is kept */
    struct answer a;
    ck_assert(client_puts(&s.c, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    ck_assert(client_answer(&s.c, &a, false, 2000) && a.status == 200);
    answer_free(&a);
    sse_close(&s);
    json_decref(one);
}
END_TEST

START_TEST(seeds)
{
    static const char fmt[] = "{\"job_id\":\"s\",\"prompt\":\"a b c\",\"max_tokens\":24,\"stream\":false,\"ignore_eos\":true%s%s}";
    char seed[64];
    json_t *first = answer(tiny.port, 200, fmt, "", "");
    json_t *second = answer(tiny.port, 200, fmt, "", "");
    ck_assert(integer(first, "seed") != integer(second, "seed"));
    ck_assert_int_lt(integer(first, "seed"), 1LL << 53);
    ck_assert(!json_equal(json_object_get(first, "tokens"), json_object_get(second, "tokens")));
    snprintf(seed, sizeof seed, ",\"seed\":%lld", (long long)integer(first, "seed"));
    json_t *again = answer(tiny.port, 200, fmt, seed, "");
    ck_assert(json_equal(json_object_get(first, "tokens"), json_object_get(again, "tokens")));
    json_t *large = answer(tiny.port, 200, fmt, ",\"seed\":\"18446744073709551615\"", "");
    ck_assert_str_eq(string(large, "seed"), "18446744073709551615");
    json_decref(first);
    json_decref(second);
    json_decref(again);
    json_decref(large);
}
END_TEST

START_TEST(http_1_0_client)
{
    struct client c;
    struct answer a;
    static const char body[] = "{\"job_id\":\"old\",\"prompt\":\"x\",\"max_tokens\":3}";
    char request[256], v[64];
    snprintf(request, sizeof request, "POST /execute HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    ck_assert(client_open(&c, tiny.port) && client_puts(&c, request));
    ck_assert(client_answer(&c, &a, false, 5000));
    ck_assert(a.status == 200 && !a.chunked && a.complete);
    ck_assert_ptr_null(answer_header(&a, "Transfer-Encoding", v, sizeof v));
    ck_assert_ptr_nonnull(strstr(a.body.data, "event: end\n"));
    answer_free(&a);
    client_close(&c);
}
END_TEST

/* C10, C11 */
START_TEST(odd_prompts_and_names)
{
    static const char *const prompts[] = {"   ", "\\u0301\\u0302\\u0303", "\\ud83d\\ude00\\ud83d\\ude80", "\\u200f\\u202e",
                                          "\\r\\n\\r\\ndata: x\\n\\n", "<|im_end|><|endoftext|>", "\\\\\\\"\\u0001"};
    static const char *const names[] = {"../../etc/passwd", "%s%n%s%n", "'; DROP TABLE jobs", "\\\"quoted\\\\"};
    char json[512];
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        struct sse s;
        snprintf(json, sizeof json, "{\"job_id\":\"%s\",\"prompt\":\"%s\",\"max_tokens\":12,\"ignore_eos\":true}", names[i % 4],
                 prompts[i]);
        sse_open(&s, tiny.port, json);
        const struct event *e = sse_finish(&s);
        ck_assert_str_eq(e->name, "end");
        ck_assert_int_eq(s.n_tokens, 12);
        sse_close(&s);
    }
}
END_TEST

START_TEST(metrics_events)
{
    struct sse s;
    const struct event *e;
    int n = 0;
    uint64_t last = 0;
    sse_open(&s, slow.port, "{\"job_id\":\"m\",\"prompt\":\"x\",\"max_tokens\":2000,\"ignore_eos\":true}");
    while (n < 3 && (e = sse_next(&s, 5000)) != NULL) {
        if (strcmp(e->name, "metrics") != 0)
            continue;
        n++;
        ck_assert_str_eq(sse_string(e, "job_id"), "m");
        ck_assert_int_eq(sse_int(e, "tokens_out"), s.n_tokens);
        ck_assert_int_eq(sse_int(e, "vram_bytes"), 0);
        ck_assert(last == 0 || clock_ms_since(last) > 150);    /* 250 where they are made */
        last = clock_ns();
    }
    ck_assert_int_eq(n, 3);
    sse_close(&s);
    served_check(&slow, "metrics_events");
}
END_TEST

/* ---- how generation ends ---- */

/* C15: whatever part of the text is the stop string, the text ends before its first occurrence. */
START_TEST(stop_strings)
{
    static const char fmt[] = "{\"job_id\":\"s\",\"prompt\":\"stop me\",\"seed\":11,\"max_tokens\":48,\"ignore_eos\":true,\"stream\":%s%s}";
    json_t *full = answer(tiny.port, 200, fmt, "false", "");
    const char *text = string(full, "text");
    size_t len = strlen(text);
    ck_assert_uint_gt(len, 10);
    for (size_t at = 0; at < len; at += 1 + len / 12) {
        for (size_t n = 1; n <= 7; n += 2) {
            char stop[16], json[600];
            size_t from = at, to;
            while (from > 0 && ((unsigned char)text[from] & 0xC0) == 0x80)
                from--;
            for (to = from + n; to < len && ((unsigned char)text[to] & 0xC0) == 0x80; to++)
                ;
            if (to > len || to - from >= sizeof stop)
                continue;
            snprintf(stop, sizeof stop, "%.*s", (int)(to - from), text + from);
            json_t *list = json_pack("[s,s]", stop, "not in the text at all");
            char *dump = json_dumps(list, 0);
            char extra[256];
            snprintf(extra, sizeof extra, ",\"stop\":%s", dump);
            snprintf(json, sizeof json, fmt, "true", extra);
            struct sse s;
            sse_open(&s, tiny.port, json);
            const struct event *e = sse_finish(&s);
            size_t want = (size_t)(strstr(text, stop) - text);
            ck_assert_str_eq(sse_string(e, "stop_reason"), "stop_string");
            ck_assert_str_eq(sse_string(e, "t"), "");
            ck_assert_msg(s.out.len == want && memcmp(s.out.data ? s.out.data : "", text, want) == 0, "stop %s: %s of %s", dump,
                          s.out.data, text);
            ck_assert_int_eq(sse_int(e, "tokens_out"), s.n_tokens);
            sse_close(&s);
            free(dump);
            json_decref(list);
        }
    }
    json_decref(full);
    served_check(&tiny, "stop_strings");
}
END_TEST

START_TEST(stop_ids_and_min_tokens)
{
    static const char fmt[] = "{\"job_id\":\"s\",\"prompt\":\"stop\",\"seed\":3,\"max_tokens\":30,\"ignore_eos\":true,\"stream\":false%s}";
    char extra[128];
    json_t *full = answer(tiny.port, 200, fmt, ""), *ids = json_object_get(full, "tokens");
    json_int_t fifth = json_integer_value(json_array_get(ids, 5));
    size_t first = 0;
    while (json_integer_value(json_array_get(ids, first)) != fifth)
        first++;
    snprintf(extra, sizeof extra, ",\"stop_token_ids\":[%lld]", (long long)fifth);
    json_t *cut = answer(tiny.port, 200, fmt, extra);
    ck_assert_str_eq(string(cut, "stop_reason"), "stop_token");
    ck_assert_uint_eq(json_array_size(json_object_get(cut, "tokens")), first);
    snprintf(extra, sizeof extra, ",\"stop_token_ids\":[%lld],\"min_tokens\":20", (long long)fifth);
    json_t *longer = answer(tiny.port, 200, fmt, extra);
    ck_assert_int_ge(integer(longer, "tokens_out"), 20);
    json_decref(full);
    json_decref(cut);
    json_decref(longer);
}
END_TEST

/* A bias of 100 decides: with it everything is one token. */
START_TEST(logit_bias_and_ignored_end)
{
    json_t *a = answer(tiny.port, 200,
                       "{\"job_id\":\"b\",\"prompt\":\"x\",\"max_tokens\":9,\"logit_bias\":{\"70\":100},\"stream\":false,\"top_k\":1}");
    const json_t *ids = json_object_get(a, "tokens");
    ck_assert_uint_eq(json_array_size(ids), 9);
    for (size_t i = 0; i < 9; i++)
        ck_assert_int_eq(json_integer_value(json_array_get(ids, i)), 70);
    json_decref(a);
}
END_TEST

/* C09: what fits exactly, one less, one more. One byte more is one token more for a prompt of digits. */
START_TEST(context)
{
    char prompt[CTX + 16];
    for (int n = CTX - 1; n <= CTX + 1; n++) {
        int chars = n;
        json_t *a = NULL;
        for (int tries = 0; tries < 4; tries++) {    /* a tokenizer may put a token before the text */
            memset(prompt, '7', (size_t)chars);
            prompt[chars] = 0;
            a = answer(tiny.port, n > CTX ? 400 : 200, "{\"job_id\":\"c\",\"prompt\":\"%s\",\"stream\":false,\"ignore_eos\":true}",
                       prompt);
            if (n > CTX || integer(a, "prompt_tokens") == n)
                break;
            chars -= (int)integer(a, "prompt_tokens") - n;
            json_decref(a);
        }
        if (n > CTX) {
            ck_assert_str_eq(error_code(a), "CONTEXT_OVERFLOW");
            const char *message = string(json_object_get(a, "error"), "message");
            ck_assert_msg(strstr(message, "193") != NULL && strstr(message, "192") != NULL, "%s", message);
        } else {
            ck_assert_int_eq(integer(a, "prompt_tokens"), n);
            ck_assert_int_eq(integer(a, "tokens_out"), CTX + 1 - n);
            ck_assert_str_eq(string(a, "stop_reason"), "context");
        }
        json_decref(a);
    }
    served_check(&tiny, "context");
}
END_TEST

/* A job that lost its worker goes on without a seam. */
START_TEST(resume)
{
    static const char fmt[] = "{\"job_id\":\"r\",\"prompt\":\"go on\",\"seed\":21,\"max_tokens\":40,\"ignore_eos\":true%s}";
    char json[1024], list[512];
    struct sse full, rest;
    snprintf(json, sizeof json, fmt, "");
    sse_open(&full, tiny.port, json);
    struct buf texts[40] = {{0}}, tail = {0};
    const struct event *e;
    char end_t[64] = "";
    while ((e = sse_next(&full, 5000)) != NULL)
        if (strcmp(e->name, "token") == 0)
            buf_puts(&texts[sse_int(e, "i")], sse_string(e, "t"));
        else if (strcmp(e->name, "end") == 0)
            snprintf(end_t, sizeof end_t, "%s", sse_string(e, "t"));
    for (int k = 1; k < 40; k += 9) {
        int n = snprintf(list, sizeof list, ",\"resume_from\":{\"tokens\":[");
        for (int i = 0; i < k; i++)
            n += snprintf(list + n, sizeof list - (size_t)n, "%s%d", i > 0 ? "," : "", (int)full.ids[i]);
        snprintf(list + n, sizeof list - (size_t)n, "]}");
        snprintf(json, sizeof json, fmt, list);
        sse_open(&rest, tiny.port, json);
        const struct event *last = sse_finish(&rest);
        ck_assert_str_eq(last->name, "end");
        ck_assert_int_eq(rest.n_tokens, 40 - k);
        ck_assert_int_eq(memcmp(rest.ids, full.ids + k, (size_t)(40 - k) * sizeof *full.ids), 0);
        ck_assert_int_eq(sse_int(last, "tokens_out"), 40);
        buf_reset(&tail);
        for (int i = k; i < 40; i++)
            buf_add(&tail, texts[i].data, texts[i].len);
        buf_puts(&tail, end_t);
        ck_assert_str_eq(rest.out.data, tail.data);
        sse_close(&rest);
    }
    for (int i = 0; i < 40; i++)
        buf_free(&texts[i]);
    buf_free(&tail);
    sse_close(&full);
}
END_TEST

/* ---- jobs ---- */

static void open_long(struct sse *s, const char *id, const char *extra)
{
    char json[512];
    snprintf(json, sizeof json, "{\"job_id\":\"%s\",\"prompt\":\"x\",\"max_tokens\":1900,\"ignore_eos\":true%s}", id, extra);
    sse_open(s, slow.port, json);
}

static void cancel(const char *id)
{
    char json[128];
    snprintf(json, sizeof json, "{\"job_id\":\"%s\"}", id);
    ck_assert_int_eq(client_request(slow.port, "/cancel", json, NULL), 202);
}

static const char *code_of(const struct event *e)
{
    ck_assert_str_eq(e->name, "error");
    return sse_string(e, "code");
}

/* C12 */
START_TEST(duplicate_job_id)
{
    struct sse s;
    open_long(&s, "same", "");
    ck_assert_ptr_nonnull(sse_next(&s, 5000));
    json_t *a = answer(slow.port, 409, "{\"job_id\":\"same\",\"prompt\":\"x\",\"max_tokens\":1}");
    ck_assert_str_eq(error_code(a), "DUPLICATE_JOB");
    json_decref(a);
    cancel("same");
    ck_assert_str_eq(code_of(sse_finish(&s)), "CANCELLED");
    /* over as soon as its terminal event is there */
    json_decref(answer(slow.port, 200, "{\"job_id\":\"same\",\"prompt\":\"x\",\"max_tokens\":1,\"stream\":false}"));
    sse_close(&s);
    served_check(&slow, "duplicate_job_id");
}
END_TEST

START_TEST(cancel_in_decode_and_in_the_queue)
{
    struct sse running, waiting;
    open_long(&running, "running", "");
    for (int i = 0; i < 4; i++)
        ck_assert_ptr_nonnull(sse_next(&running, 5000));
    open_long(&waiting, "waiting", "");
    ck_assert_ptr_null(sse_next(&waiting, 50));
    uint64_t start = clock_ns();
    cancel("waiting");
    const struct event *e = sse_finish(&waiting);
    ck_assert_str_eq(code_of(e), "CANCELLED");
    ck_assert_int_lt((int)clock_ms_since(start), NOTICE_MS);
    ck_assert(json_is_false(json_object_get(e->data, "retriable")));
    start = clock_ns();
    cancel("running");
    ck_assert_str_eq(code_of(sse_finish(&running)), "CANCELLED");
    ck_assert_int_lt((int)clock_ms_since(start), NOTICE_MS);
    cancel("running");    /* D11: an ended id, twice */
    cancel("running");
    sse_close(&running);
    sse_close(&waiting);
    served_check(&slow, "cancel");
}
END_TEST

START_TEST(cancel_in_prefill_and_without_a_stream)
{
    struct buf b = {0};
    struct client c;
    struct answer a;
    buf_puts(&b, "{\"job_id\":\"p\",\"stream\":false,\"max_tokens\":5,\"prompt\":\"");
    for (int i = 0; i < 1900; i++)
        buf_puts(&b, "7");
    buf_puts(&b, "\"}");
    ck_assert(client_open(&c, slow.port) && client_post(&c, "/execute", b.data));
    ck_assert(served_wait(&slow, "inferd_requests_running", 1, 3000));
    uint64_t start = clock_ns();
    cancel("p");
    ck_assert(client_answer(&c, &a, false, 3000));
    ck_assert_int_lt((int)clock_ms_since(start), NOTICE_MS);
    ck_assert_int_eq(a.status, 499);
    ck_assert_ptr_nonnull(strstr(a.body.data, "CANCELLED"));
    answer_free(&a);
    client_close(&c);
    buf_free(&b);
    served_check(&slow, "cancel in prefill");
}
END_TEST

START_TEST(deadline)
{
    struct sse s;
    open_long(&s, "d", ",\"deadline_ms\":150");
    uint64_t start = clock_ns();
    const struct event *e = sse_finish(&s);
    ck_assert_str_eq(code_of(e), "INFERENCE_TIMEOUT");
    ck_assert_int_lt((int)clock_ms_since(start), 1000);
    sse_close(&s);
    json_t *a = answer(slow.port, 504,
                       "{\"job_id\":\"d\",\"prompt\":\"x\",\"max_tokens\":1900,\"ignore_eos\":true,\"stream\":false,\"deadline_ms\":100}");
    ck_assert_str_eq(error_code(a), "INFERENCE_TIMEOUT");
    json_decref(a);
    served_check(&slow, "deadline");
}
END_TEST

/* One runs, two wait, the next is refused and told when to come back. */
START_TEST(queue_full)
{
    struct sse s[3];
    struct client c;
    struct answer a;
    char v[32];
    double rejected = served_metric(&slow, "worker_requests_total{outcome=\"rejected\"}");
    open_long(&s[0], "q0", "");
    ck_assert_ptr_nonnull(sse_next(&s[0], 5000));
    open_long(&s[1], "q1", "");
    open_long(&s[2], "q2", "");
    ck_assert(client_open(&c, slow.port) && client_post(&c, "/execute", "{\"job_id\":\"q3\",\"prompt\":\"x\"}"));
    ck_assert(client_answer(&c, &a, false, 3000));
    ck_assert_int_eq(a.status, 429);
    ck_assert_ptr_nonnull(answer_header(&a, "Retry-After", v, sizeof v));
    ck_assert_int_ge(strtol(v, NULL, 10), 1);
    ck_assert_ptr_nonnull(strstr(a.body.data, "QUEUE_FULL"));
    ck_assert_int_eq(client_get(slow.port, "/health", NULL, NULL), 200);
    ck_assert(served_metric(&slow, "worker_requests_total{outcome=\"rejected\"}") == rejected + 1);
    answer_free(&a);
    client_close(&c);
    for (int i = 0; i < 3; i++)
        sse_close(&s[i]);
    ck_assert(served_wait(&slow, "inferd_requests_waiting", 0, 5000));    /* or the control request finds the queue full */
    served_check(&slow, "queue_full");
}
END_TEST

/* B13: a request behind a stream on the same connection waits for its end. */
START_TEST(pipelined_behind_a_stream)
{
    struct client c;
    struct answer a;
    ck_assert(client_open(&c, tiny.port));
    ck_assert(client_post(&c, "/execute", "{\"job_id\":\"p1\",\"prompt\":\"x\",\"max_tokens\":50,\"ignore_eos\":true}"));
    ck_assert(client_post(&c, "/execute", "{\"job_id\":\"p2\",\"prompt\":\"x\",\"max_tokens\":5,\"ignore_eos\":true}"));
    for (int i = 1; i <= 2; i++) {
        char id[32];
        snprintf(id, sizeof id, "\"job_id\":\"p%d\"", i);
        ck_assert(client_answer(&c, &a, false, 5000) && a.status == 200 && a.complete);
        ck_assert_ptr_nonnull(strstr(a.body.data, id));
        ck_assert_ptr_nonnull(strstr(a.body.data, "event: end\n"));
        answer_free(&a);
    }
    client_close(&c);
    served_check(&tiny, "pipelined");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http_stream");
    TCase *t = tcase_create("stream");
    tcase_set_timeout(t, 30 * SLOWNESS);
    tcase_add_unchecked_fixture(t, start, stop);
    tcase_add_test(t, stream_and_object_agree);
    tcase_add_test(t, seeds);
    tcase_add_test(t, http_1_0_client);
    tcase_add_test(t, odd_prompts_and_names);
    tcase_add_test(t, metrics_events);
    tcase_add_test(t, stop_strings);
    tcase_add_test(t, stop_ids_and_min_tokens);
    tcase_add_test(t, logit_bias_and_ignored_end);
    tcase_add_test(t, context);
    tcase_add_test(t, resume);
    tcase_add_test(t, duplicate_job_id);
    tcase_add_test(t, cancel_in_decode_and_in_the_queue);
    tcase_add_test(t, cancel_in_prefill_and_without_a_stream);
    tcase_add_test(t, deadline);
    tcase_add_test(t, queue_full);
    tcase_add_test(t, pipelined_behind_a_stream);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
