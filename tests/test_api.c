/* The parts of api/ that need no server: the table of request fields, JSON with positions, stop strings, error codes. */
#include "api/reply.h"
#include "api/request.h"
#include "api/stop.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct request_limits limits = {.n_vocab = 1000, .n_ctx = 512, .max_tokens_out = 300};

struct parsed {
    struct request r;
    struct violations v;
    struct err err;
    bool ok;
};

static struct parsed parse(const char *json)
{
    struct parsed p = {0};
    char *body = strdup(json);
    p.ok = request_read(&p.r, body, strlen(body), &limits, &p.v, &p.err);
    free(body);
    return p;
}

static void drop(struct parsed *p)
{
    request_free(&p->r);
    violations_free(&p->v);
}

/* A valid request with one more member. */
static struct parsed with(const char *name, const char *value)
{
    char json[512];
    snprintf(json, sizeof json, "{\"job_id\":\"a\",\"prompt\":\"x\",\"%s\":%s}", name, value);
    return parse(json);
}

static void refuses(const char *name, const char *value)
{
    char field[128];
    struct parsed p = with(name, value);
    snprintf(field, sizeof field, "{\"field\":\"%s\"", name);
    ck_assert_msg(!p.ok, "%s: %s was accepted", name, value);
    ck_assert_msg(p.v.n == 1 && strstr(p.v.details.data, field) == p.v.details.data, "%s: %s: %s", name, value,
                  p.v.details.data ? p.v.details.data : p.err.msg);
    drop(&p);
}

static void accepts(const char *name, const char *value)
{
    struct parsed p = with(name, value);
    ck_assert_msg(p.ok, "%s: %s: %s%s", name, value, p.err.msg, p.v.details.data ? p.v.details.data : "");
    drop(&p);
}

START_TEST(test_every_field_of_the_table)
{
    static const char *const wrong[] = {"\"5\"", "true", "null", "[]", "{}", "1e999", "-1e999", "9223372036854775808",
                                        "18446744073709551616"};
    for (size_t i = 0; i < request_n_fields; i++) {
        const struct field *f = &request_fields[i];
        char value[64];
        double max = f->bound == BOUND_VOCAB ? 1000 : f->bound == BOUND_MAX_TOKENS ? 300 : f->max;
        if (f->kind == FIELD_BOOLEAN) {
            accepts(f->name, "true");
            accepts(f->name, "false");
            refuses(f->name, "null");
            refuses(f->name, "0");
            refuses(f->name, "\"true\"");
        }
        if (f->kind != FIELD_NUMBER && f->kind != FIELD_INTEGER)
            continue;
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++)
            refuses(f->name, wrong[k]);
        snprintf(value, sizeof value, "%.15g", f->min - 1);
        refuses(f->name, value);
        snprintf(value, sizeof value, "%.17g", f->min);
        f->above_min ? refuses(f->name, value) : accepts(f->name, value);
        snprintf(value, sizeof value, "%.17g", max);
        accepts(f->name, value);
        snprintf(value, sizeof value, "%.17g", f->kind == FIELD_INTEGER ? max + 1 : nextafter(max, 1e9));
        refuses(f->name, value);
        if (f->kind == FIELD_INTEGER) {
            snprintf(value, sizeof value, "%.17g", f->min + 0.5);
            refuses(f->name, value);
        }
    }
}
END_TEST

START_TEST(test_values_arrive)
{
    struct parsed p = parse("{\"job_id\":\"j\\u00fc\",\"prompt\":\"hello\",\"max_tokens\":7,\"temperature\":-0,\"top_p\":0.5,\"top_k\":3,"
                            "\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[5,6,7],\"min_tokens\":2,\"seed\":\"18446744073709551615\","
                            "\"stream\":false,\"deadline_ms\":1000,\"priority\":\"batch\",\"cache_salt\":\"s\",\"prefix_cache\":false,"
                            "\"logit_bias\":{\"3\":-100,\"999\":1.5},\"ignore_eos\":true,\"resume_from\":{\"tokens\":[1,2]}}");
    ck_assert_msg(p.ok, "%s", p.v.details.data);
    ck_assert_str_eq(p.r.job_id, "j\xc3\xbc");
    ck_assert_str_eq(p.r.prompt, "hello");
    ck_assert_int_eq(p.r.max_tokens, 7);
    ck_assert(p.r.temperature == 0 && !signbit(p.r.temperature));
    ck_assert(p.r.top_p == 0.5 && p.r.top_k == 3 && p.r.min_p == 0 && p.r.repetition_penalty == 1);
    ck_assert_int_eq(p.r.n_stop, 2);
    ck_assert_str_eq(p.r.stop[1], "bc");
    ck_assert_int_eq(p.r.n_stop_ids, 3);
    ck_assert_int_eq(p.r.stop_ids[2], 7);
    ck_assert(p.r.seed_given && p.r.seed == UINT64_MAX);
    ck_assert(!p.r.stream && !p.r.prefix_cache && p.r.ignore_eos && !p.r.parse_special);
    ck_assert_int_eq(p.r.deadline_ms, 1000);
    ck_assert_int_eq(p.r.priority, GEN_BATCH);
    ck_assert_int_eq(p.r.n_bias, 2);
    ck_assert_int_eq(p.r.n_resume, 2);
    drop(&p);
}
END_TEST

START_TEST(test_defaults)
{
    struct parsed p = parse("{\"job_id\":\"j\",\"prompt\":\"x\"}");
    ck_assert(p.ok && p.r.max_tokens == 0 && p.r.temperature == 1 && p.r.top_p == 1 && p.r.top_k == 0);
    ck_assert(p.r.stream && p.r.prefix_cache && !p.r.seed_given && !p.r.ignore_eos && p.r.deadline_ms == 0);
    ck_assert_int_eq(p.r.priority, GEN_INTERACTIVE);
    drop(&p);
}
END_TEST

/* A message shows what was sent, also where it does not fit the parser's types. */
START_TEST(test_too_large_numbers_are_named)
{
    static const char *const rows[][2] = {
        {"9223372036854775808", "9.22337203685477e+18 is not in"},
        {"-9223372036854775809", "-9.22337203685477e+18 is not in"},
        {"18446744073709551616", "1.84467440737095e+19 is not in"},
        {"100000000000000000000000000000", "1e+29 is not in"},
        {"-1e999", "-9e+307 is not in"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct parsed p = with("top_k", rows[i][0]);
        ck_assert_msg(!p.ok && p.v.n == 1 && strstr(p.v.details.data, rows[i][1]) != NULL, "%s: %s", rows[i][0],
                      p.v.details.data ? p.v.details.data : p.err.msg);
        drop(&p);
    }
}
END_TEST

START_TEST(test_seed)
{
    accepts("seed", "0");
    accepts("seed", "-0");
    accepts("seed", "9223372036854775807");
    accepts("seed", "\"0\"");
    accepts("seed", "\"18446744073709551615\"");
    refuses("seed", "\"18446744073709551616\"");
    refuses("seed", "\"99999999999999999999\"");
    refuses("seed", "\"\"");
    refuses("seed", "\"-1\"");
    refuses("seed", "\"0x10\"");
    refuses("seed", "9223372036854775808");
    refuses("seed", "-1");
    refuses("seed", "1.5");
    refuses("seed", "null");
}
END_TEST

START_TEST(test_job_id_and_strings)
{
    struct parsed p = parse("{\"job_id\":\"../../etc/passwd %s%n\",\"prompt\":\"\\r\\n\\r\\ndata: x\\n\\n\"}");
    ck_assert(p.ok);
    ck_assert_str_eq(p.r.job_id, "../../etc/passwd %s%n");
    drop(&p);
    refuses("cache_salt", "5");
    refuses("cache_salt", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"");
    refuses("cache_salt", "\"a\\tb\"");
    refuses("priority", "\"urgent\"");
    refuses("stop", "\"text\"");
    refuses("stop", "[5]");
    refuses("stop_token_ids", "[1000]");
    refuses("stop_token_ids", "[1.5]");
    refuses("logit_bias", "{\"1000\":1}");
    refuses("logit_bias", "{\"-1\":1}");
    refuses("logit_bias", "{\"1x\":1}");
    refuses("logit_bias", "{\"1\":101}");
    refuses("logit_bias", "[]");
    refuses("resume_from", "[]");
    refuses("resume_from", "{\"tokens\":[1],\"x\":1}");
    accepts("resume_from", "{\"tokens\":[]}");
    refuses("messages", "[]");
    refuses("temprature", "1");
    refuses("min_tokens", "9,\"max_tokens\":8");
    accepts("min_tokens", "8,\"max_tokens\":8");
    accepts("min_tokens", "9");
}
END_TEST

START_TEST(test_all_violations_together)
{
    struct parsed p = parse("{\"prompt\":5,\"top_p\":0,\"zzz\":1,\"seed\":true}");
    ck_assert(!p.ok);
    ck_assert_int_eq(p.v.n, 5);
    for (const char *const *f = (const char *const[]){"job_id", "prompt", "top_p", "zzz", "seed", NULL}; *f; f++)
        ck_assert_msg(strstr(p.v.details.data, *f) != NULL, "%s is missing in %s", *f, p.v.details.data);
    drop(&p);
}
END_TEST

START_TEST(test_many_violations_are_bounded)
{
    struct buf b = {0};
    buf_puts(&b, "{");
    for (int i = 0; i < 20000; i++)
        buf_printf(&b, "\"k%d\":1,", i);
    buf_puts(&b, "\"job_id\":\"a\",\"prompt\":\"x\"}");
    struct parsed p = parse(b.data);
    ck_assert_int_eq(p.v.n, 20000);
    ck_assert_uint_lt(p.v.details.len, 8192);
    ck_assert_uint_lt(p.v.message.len, 2048);
    drop(&p);
    buf_free(&b);
}
END_TEST

START_TEST(test_cancel_body)
{
    static const char *const bad[] = {"", "{}", "{\"job_id\":5}", "{\"job_id\":\"a\",\"x\":1}", "[]", "{\"job_id\":\"\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct violations v = {0};
        struct err err = {0};
        char *body = strdup(bad[i]);
        ck_assert_ptr_null(request_read_cancel(body, strlen(body), &v, &err));
        ck_assert(v.n > 0 || err.code == ERR_INVALID);
        violations_free(&v);
        free(body);
    }
    struct violations v = {0};
    struct err err;
    char body[] = "{\"job_id\":\"a b\"}";
    char *id = request_read_cancel(body, strlen(body), &v, &err);
    ck_assert_str_eq(id, "a b");
    free(id);
}
END_TEST

/* ---- stop strings ---- */

/* Pushes pieces (separated by |) and returns "text" or "text!" when one matched; what is held comes after a '~'. */
static const char *stopping(char *const *stops, int n, const char *pieces)
{
    static char result[256];
    struct stop s;
    struct buf out = {0};
    bool matched = false;
    stop_init(&s, stops, n);
    for (const char *p = pieces; *p != 0 && !matched;) {
        size_t len = strcspn(p, "|");
        matched = stop_push(&s, p, len, &out);
        p += len + (p[len] == '|');
    }
    snprintf(result, sizeof result, "%s%s%s%s", out.data ? out.data : "", matched ? "!" : "", s.held.len ? "~" : "",
             s.held.len ? s.held.data : "");
    stop_free(&s);
    buf_free(&out);
    return result;
}

START_TEST(test_stop)
{
    char *end[] = {"END"}, *two[] = {"ab", "abc"}, *overlap[] = {"aab"}, *nested[] = {"bcd", "c"}, *utf[] = {"\xc3\xa9z"};
    ck_assert_str_eq(stopping(NULL, 0, "some |text"), "some text");
    ck_assert_str_eq(stopping(end, 1, "a|EN|D|x"), "a!");
    ck_assert_str_eq(stopping(end, 1, "a|EN|x"), "aENx");
    ck_assert_str_eq(stopping(end, 1, "aEE|ND"), "aE!");
    ck_assert_str_eq(stopping(end, 1, "xENDy"), "x!");
    ck_assert_str_eq(stopping(end, 1, "abcE"), "abc~E");
    ck_assert_str_eq(stopping(end, 1, "E|N|E|N|D"), "EN!");
    ck_assert_str_eq(stopping(two, 2, "xabc"), "x!");
    ck_assert_str_eq(stopping(overlap, 1, "a|a|a|b"), "a!");
    ck_assert_str_eq(stopping(nested, 2, "ab|c|d"), "ab!");    /* "c" is complete before "bcd" */
    ck_assert_str_eq(stopping(utf, 1, "caf\xc3\xa9|z!"), "caf!");
    ck_assert_str_eq(stopping(utf, 1, "caf\xc3\xa9|s"), "caf\xc3\xa9s");
}
END_TEST

/* Against the obvious definition: the first end of any match in the whole text, whatever the pieces. */
START_TEST(test_stop_random)
{
    unsigned seed = 7;
    for (int round = 0; round < 20000; round++) {
        char text[32], pieces[80], want[64];
        char s1[6], s2[6], *stops[] = {s1, s2};
        size_t n = 0, m = 0, lens[2], best_end = 99, best_at = 0;
        for (size_t k = 0; k < 2; k++) {
            seed = seed * 1103515245 + 12345;
            lens[k] = 1 + (seed >> 16) % 4;
            for (size_t i = 0; i < lens[k]; i++) {
                seed = seed * 1103515245 + 12345;
                stops[k][i] = (char)('a' + (seed >> 16) % 3);
            }
            stops[k][lens[k]] = 0;
        }
        while (n < 20) {
            seed = seed * 1103515245 + 12345;
            text[n] = (char)('a' + (seed >> 16) % 3);
            pieces[m++] = text[n++];
            if ((seed >> 20) % 3 == 0)
                pieces[m++] = '|';
        }
        text[n] = pieces[m] = 0;
        for (size_t at = 0; at < n; at++)
            for (size_t k = 0; k < 2; k++)
                if (strncmp(text + at, stops[k], lens[k]) == 0 && at + lens[k] < best_end) {
                    best_end = at + lens[k];
                    best_at = at;
                }
        const char *got = stopping(stops, 2, pieces);
        if (best_end < 99) {
            snprintf(want, sizeof want, "%.*s!", (int)best_at, text);
            ck_assert_msg(strcmp(got, want) == 0, "%s with %s, %s: %s, expected %s", pieces, s1, s2, got, want);
        } else {
            const char *tilde = strchr(got, '~');
            snprintf(want, sizeof want, "%.*s%s", (int)(tilde ? tilde - got : (long)strlen(got)), got, tilde ? tilde + 1 : "");
            ck_assert_str_eq(want, text);
        }
    }
}
END_TEST

/* ---- answers ---- */

START_TEST(test_error_codes)
{
    ck_assert_uint_eq(reply_status(ERR_BUSY), 429);
    ck_assert_uint_eq(reply_status(ERR_CONTEXT), 400);
    ck_assert_str_eq(reply_code(ERR_CONTEXT), "CONTEXT_OVERFLOW");
    ck_assert_uint_eq(reply_status(ERR_MODEL), 500);
    ck_assert_str_eq(reply_code(ERR_SYSTEM), "INTERNAL");
    ck_assert(reply_retriable(ERR_TIMEOUT, true) && !reply_retriable(ERR_TIMEOUT, false));
    ck_assert(reply_retriable(ERR_INTERNAL, false) && !reply_retriable(ERR_INVALID, true));
    for (int c = 0; c < ERR_N; c++)
        ck_assert(reply_status((enum err_code)c) >= 400 && reply_code((enum err_code)c)[0] != 0);
}
END_TEST

START_TEST(test_canned_lengths)
{
    static const char *const all[] = {reply_canned_503, reply_canned_413, reply_canned_408, reply_canned_429};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const char *length = strstr(all[i], "Content-Length: "), *body = strstr(all[i], "\r\n\r\n");
        ck_assert(length != NULL && body != NULL);
        ck_assert_msg(strtoul(length + 16, NULL, 10) == strlen(body + 4), "%zu bytes: %s", strlen(body + 4), all[i]);
        json_t *root = json_loads(body + 4, 0, NULL);
        ck_assert_ptr_nonnull(root);
        json_decref(root);
    }
}
END_TEST

START_TEST(test_json_text)
{
    struct buf b = {0};
    json_text(&b, "a\xff\n\"", 4, 100);
    ck_assert_str_eq(b.data, "\"a\xef\xbf\xbd\\n\\\"\"");
    buf_reset(&b);
    json_text(&b, "\xf0\x9f\x98\x80\xf0\x9f\x98\x80", 8, 7);
    ck_assert_str_eq(b.data, "\"\xf0\x9f\x98\x80\"");
    buf_free(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("api");
    TCase *t = tcase_create("request");
    tcase_add_test(t, test_every_field_of_the_table);
    tcase_add_test(t, test_values_arrive);
    tcase_add_test(t, test_defaults);
    tcase_add_test(t, test_too_large_numbers_are_named);
    tcase_add_test(t, test_seed);
    tcase_add_test(t, test_job_id_and_strings);
    tcase_add_test(t, test_all_violations_together);
    tcase_add_test(t, test_many_violations_are_bounded);
    tcase_add_test(t, test_cancel_body);
    suite_add_tcase(s, t);
    t = tcase_create("stop");
    tcase_add_test(t, test_stop);
    tcase_add_test(t, test_stop_random);
    suite_add_tcase(s, t);
    t = tcase_create("answers");
    tcase_add_test(t, test_error_codes);
    tcase_add_test(t, test_canned_lengths);
    tcase_add_test(t, test_json_text);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
