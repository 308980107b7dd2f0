/* The prefix cache as clients see it: cached_tokens, salts, switching it off, the counters. Answers are the same. */
#include "tests/served.h"
#include "tests/sse.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct served worker;

static void start(void)
{
    fixture_open();
}

static void stop(void)
{
    served_stop(&worker);
    fixture_close();
}

static void serve(const char *mode)
{
    const char *args[] = {"--prefix-cache", mode, NULL};
    served_start(&worker, fixture_tiny, mode != NULL ? args : NULL, NULL);
}

/* A request with a prompt of several pages, and these fields. */
static const char *request(const char *fields)
{
    static char json[8192];
    size_t n = (size_t)snprintf(json, sizeof json, "{\"job_id\":\"p\",\"seed\":3,\"ignore_eos\":true%s,\"prompt\":\"", fields);
    for (int i = 0; i < 40; i++)
        n += (size_t)snprintf(json + n, sizeof json - n, "%d bottles, ", 200 - i);
    snprintf(json + n, sizeof json - n, "\"}");
    return json;
}

static json_t *ask(const char *fields, int want)
{
    char more[256];
    int status;
    snprintf(more, sizeof more, ",\"stream\":false,\"max_tokens\":20%s", fields);
    json_t *root = execute_json(worker.port, request(more), &status);
    ck_assert_int_eq(status, want);
    return root;
}

static int count(const json_t *root, const char *name)
{
    ck_assert_ptr_nonnull(json_object_get(root, name));
    return (int)json_integer_value(json_object_get(root, name));
}

static int cached(const char *fields, const json_t *first)
{
    json_t *root = ask(fields, 200);
    int n = count(root, "cached_tokens");
    ck_assert(json_equal(json_object_get(root, "tokens"), json_object_get(first, "tokens")));
    json_decref(root);
    return n;
}

START_TEST(found_by_default_and_counted)
{
    serve(NULL);
    double queries = served_metric(&worker, "inferd_prefix_cache_queries_total");
    json_t *first = ask("", 200);
    int n_prompt = count(first, "prompt_tokens"), full = (n_prompt - 1) / 64 * 64;
    ck_assert_int_ge(full, 128);
    ck_assert_int_eq(count(first, "cached_tokens"), 0);
    ck_assert_int_eq(cached("", first), full);
    ck_assert_int_eq(cached(",\"cache_salt\":\"\"", first), full); /* the default */
    ck_assert(served_metric(&worker, "inferd_prefix_cache_queries_total") == queries + 3 * n_prompt);
    ck_assert(served_metric(&worker, "inferd_prefix_cache_hits_total") == 2 * full);
    ck_assert(served_wait(&worker, "inferd_kv_cache_usage_ratio", 0, REST_MS));
    json_decref(first);
}
END_TEST

START_TEST(salts_are_apart_and_one_request_may_stay_out)
{
    serve("shared");
    json_t *first = ask(",\"cache_salt\":\"a\"", 200);
    int full = (count(first, "prompt_tokens") - 1) / 64 * 64;
    ck_assert_int_eq(cached("", first), 0);
    ck_assert_int_eq(cached(",\"cache_salt\":\"b\"", first), 0);
    ck_assert_int_eq(cached(",\"cache_salt\":\"a\",\"prefix_cache\":false", first), 0);
    ck_assert_int_eq(cached(",\"cache_salt\":\"a\",\"prefix_cache\":true", first), full);
    ck_assert_int_eq(cached(",\"cache_salt\":\"b\"", first), full);
    ck_assert_int_eq(cached(",\"prefix_cache\":false,\"cache_salt\":\"c\"", first), 0);
    ck_assert_int_eq(cached(",\"cache_salt\":\"c\"", first), 0); /* it left nothing */
    json_decref(first);
    json_decref(ask(",\"cache_salt\":7", 400));
    json_decref(ask(",\"prefix_cache\":\"yes\"", 400));
}
END_TEST

START_TEST(off)
{
    serve("off");
    json_t *first = ask("", 200);
    ck_assert_int_eq(cached("", first), 0);
    ck_assert_int_eq(cached(",\"prefix_cache\":true,\"cache_salt\":\"a\"", first), 0);
    ck_assert(served_metric(&worker, "inferd_prefix_cache_queries_total") == 0);
    json_decref(first);
}
END_TEST

/* A stream that goes on with it. */
START_TEST(what_was_generated_is_found)
{
    struct sse s;
    struct buf fields = {0};
    int status;
    serve("per-key");
    json_t *first = execute_json(worker.port, request(",\"stream\":false,\"max_tokens\":150"), &status);
    ck_assert_int_eq(status, 200);
    int n_prompt = count(first, "prompt_tokens");
    char *tokens = json_dumps(json_object_get(first, "tokens"), JSON_COMPACT);
    buf_printf(&fields, ",\"max_tokens\":160,\"resume_from\":{\"tokens\":%s}", tokens);
    ck_assert(served_wait(&worker, "inferd_kv_cache_usage_ratio", 0, REST_MS)); /* the last page is known */
    sse_open(&s, worker.port, request(fields.data));
    const struct event *e = sse_next(&s, 5000);
    ck_assert(e != NULL && strcmp(e->name, "started") == 0);
    ck_assert_int_eq(sse_int(e, "cached_tokens"), n_prompt); /* and what follows it */
    ck_assert(served_metric(&worker, "inferd_prefix_cache_hits_total") == (n_prompt + 149) / 64 * 64);
    e = sse_finish(&s);
    ck_assert_str_eq(e->name, "end");
    sse_close(&s);
    buf_free(&fields);
    free(tokens);
    json_decref(first);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("http_prefix");
    TCase *t = tcase_create("http_prefix");
    tcase_set_timeout(t, 60 * SLOWNESS);
    tcase_add_checked_fixture(t, start, stop);
    tcase_add_test(t, found_by_default_and_counted);
    tcase_add_test(t, salts_are_apart_and_one_request_may_stay_out);
    tcase_add_test(t, off);
    tcase_add_test(t, what_was_generated_is_found);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
