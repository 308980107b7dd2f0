/* base/: errors, buffers, UTF-8, memory, clock, log. The log tests put a file of their own under descriptor 2. */
#define _GNU_SOURCE
#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/utf8.h"

#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

START_TEST(err_keeps_code_and_message)
{
    struct err err = {0};
    ck_assert(!err_set(&err, ERR_MODEL, "tensor %s: %d", "x", 3));
    ck_assert_int_eq(err.code, ERR_MODEL);
    ck_assert_str_eq(err.msg, "tensor x: 3");
    ck_assert(!err_prefix(&err, "file %s", "a.gguf"));
    ck_assert_str_eq(err.msg, "file a.gguf: tensor x: 3");
    ck_assert_int_eq(err.code, ERR_MODEL);
    err_set(&err, ERR_MODEL, "a\n\x1b[2J\xc2\x9b\x7f \xff\xc3( \xe2\x82\xac %s", "\t");
    ck_assert_str_eq(err.msg, "a?" "?[2J??? ?" "?( \xe2\x82\xac ?");
    ck_assert(!err_set(NULL, ERR_MODEL, "nobody listens"));
    ck_assert(!err_prefix(NULL, "nobody listens"));
}
END_TEST

START_TEST(err_cuts_between_characters)
{
    char euros[3 * 400 + 1];
    for (int i = 0; i < 400; i++)
        memcpy(euros + 3 * i, "\xE2\x82\xAC", 4);
    for (int shift = 0; shift < 3; shift++) {
        struct err err = {0};
        err_set(&err, ERR_MODEL, "%.*s%s", shift, "abc", euros);
        ck_assert_uint_gt(strlen(err.msg), sizeof err.msg - 5);
        ck_assert(utf8_valid(err.msg, strlen(err.msg)));
        err_prefix(&err, "x");
        ck_assert(utf8_valid(err.msg, strlen(err.msg)));
    }
}
END_TEST

START_TEST(buf_grows_to_its_maximum)
{
    struct buf b = {.max = 10};
    ck_assert(buf_puts(&b, "12345"));
    ck_assert(buf_printf(&b, "%d", 67890));
    ck_assert_str_eq(b.data, "1234567890");
    ck_assert(!buf_puts(&b, "x"));
    ck_assert(b.failed);
    ck_assert_str_eq(b.data, "1234567890");
    buf_reset(&b);
    ck_assert(!b.failed);
    ck_assert_uint_eq(b.len, 0);
    ck_assert(buf_puts(&b, "again"));
    ck_assert(buf_add(&b, "\0z", 2));
    ck_assert_uint_eq(b.len, 7);
    buf_consume(&b, 3);
    ck_assert_mem_eq(b.data, "in\0z", 5);
    buf_consume(&b, 99);
    ck_assert_uint_eq(b.len, 0);
    buf_free(&b);
    buf_free(&b);

    struct buf big = {0};
    for (int i = 0; i < 10000; i++)
        ck_assert(buf_puts(&big, "0123456789"));
    ck_assert_uint_eq(big.len, 100000);
    buf_free(&big);
}
END_TEST

START_TEST(buf_failure_sticks)
{
    struct buf b = {0};
    mem_fail_after(1);
    ck_assert(!buf_puts(&b, "lost"));
    mem_fail_after(0);
    ck_assert(!buf_puts(&b, "also lost"));
    ck_assert(b.failed);
    buf_free(&b);
    ck_assert(buf_puts(&b, "fine"));
    buf_free(&b);
}
END_TEST

START_TEST(buf_json_string_is_what_a_parser_reads)
{
    char all[128 + 8];
    size_t n = 0;
    for (int c = 0; c < 128; c++)
        all[n++] = (char)c;
    memcpy(all + n, "\xF0\x9F\x98\x80\xC3\xA9", 6);
    n += 6;
    struct buf b = {0};
    ck_assert(buf_json_string(&b, all, n));
    json_error_t error;
    json_t *j = json_loadb(b.data, b.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    ck_assert_msg(j != NULL, "%s", error.text);
    ck_assert_uint_eq(json_string_length(j), n);
    ck_assert_mem_eq(json_string_value(j), all, n);
    json_decref(j);
    buf_reset(&b);
    ck_assert(buf_json_string(&b, "", 0));
    ck_assert_str_eq(b.data, "\"\"");
    buf_free(&b);
}
END_TEST

START_TEST(utf8_refuses_what_rfc_3629_refuses)
{
    static const struct {
        const char *s;
        int len;
        uint32_t cp;
    } cases[] = {
        {"a", 1, 'a'},
        {"\xC2\x80", 2, 0x80},
        {"\xE0\xA0\x80", 3, 0x800},
        {"\xED\x9F\xBF", 3, 0xD7FF},
        {"\xEF\xBF\xBF", 3, 0xFFFF},
        {"\xF0\x90\x80\x80", 4, 0x10000},
        {"\xF4\x8F\xBF\xBF", 4, 0x10FFFF},
        {"\xC0\x80", 0, 0},            /* overlong */
        {"\xC1\xBF", 0, 0},
        {"\xE0\x9F\xBF", 0, 0},
        {"\xF0\x8F\xBF\xBF", 0, 0},
        {"\xED\xA0\x80", 0, 0},        /* surrogate */
        {"\xF4\x90\x80\x80", 0, 0},    /* beyond U+10FFFF */
        {"\xF5\x80\x80\x80", 0, 0},
        {"\x80", 0, 0},
        {"\xFF", 0, 0},
        {"\xE2\x28\xA1", 0, 0},
        {"\xC3", -1, 0},               /* could go on */
        {"\xE2\x82", -1, 0},
        {"\xF0\x9F\x98", -1, 0},
        {"", -1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t cp = 0;
        int len = utf8_decode(cases[i].s, strlen(cases[i].s), &cp);
        ck_assert_msg(len == cases[i].len, "case %zu: %d, expected %d", i, len, cases[i].len);
        if (len > 0)
            ck_assert_uint_eq(cp, cases[i].cp);
    }
}
END_TEST

START_TEST(utf8_every_character_there_and_back)
{
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        char s[4];
        uint32_t back = 0;
        int n = utf8_encode(cp, s);
        if (utf8_decode(s, (size_t)n, &back) != n || back != cp)
            ck_abort_msg("U+%04X came back as U+%04X", cp, back);
        for (int k = 1; k < n; k++)
            if (utf8_decode(s, (size_t)k, &back) != -1)
                ck_abort_msg("U+%04X is complete after %d bytes", cp, k);
    }
}
END_TEST

START_TEST(utf8_complete_holds_back_only_an_open_character)
{
    ck_assert_uint_eq(utf8_complete("", 0), 0);
    ck_assert_uint_eq(utf8_complete("ab", 2), 2);
    ck_assert_uint_eq(utf8_complete("a\xE2\x82", 3), 1);
    ck_assert_uint_eq(utf8_complete("a\xE2\x82\xAC", 4), 4);
    ck_assert_uint_eq(utf8_complete("\xF0\x9F\x98", 3), 0);
    ck_assert_uint_eq(utf8_complete("a\xFF", 2), 2);
    ck_assert_uint_eq(utf8_complete("a\x80\x80", 3), 3);
}
END_TEST

START_TEST(mem_checks_products)
{
    size_t out;
    ck_assert(mem_mul(3, 4, &out) && out == 12);
    ck_assert(!mem_mul(SIZE_MAX, 2, &out));
    ck_assert(mem_add(3, 4, &out) && out == 7);
    ck_assert(!mem_add(SIZE_MAX, 1, &out));
    /* volatile: the compiler would refuse what the function must */
    volatile size_t huge = SIZE_MAX / 2;
    char *p = mem_alloc(10, 1);
    ck_assert_ptr_null(mem_grow(p, huge, 4));
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(p[i], 0);
    free(p);
    p = mem_strndup("ab\0cd", 5);
    ck_assert_mem_eq(p, "ab\0cd", 6);
    free(p);
}
END_TEST

START_TEST(mem_maps_zeroes)
{
    size_t n = 8u << 20;
    unsigned char *p = mem_map(n);
    ck_assert_ptr_nonnull(p);
    for (size_t i = 0; i < n; i += 4096)
        ck_assert_uint_eq(p[i], 0);
    p[n - 1] = 1;
    mem_unmap(p, n);
    mem_unmap(NULL, n);
    ck_assert_ptr_null(mem_map(0));
    ck_assert_uint_gt(mem_available(), 1u << 20);
}
END_TEST

START_TEST(mem_fails_the_nth)
{
    mem_fail_after(2);
    void *a = mem_alloc(1, 1), *b = mem_alloc(1, 1), *c = mem_alloc(1, 1);
    ck_assert_ptr_nonnull(a);
    ck_assert_ptr_null(b);
    ck_assert_ptr_nonnull(c);
    free(a);
    free(c);
}
END_TEST

START_TEST(clock_goes_forward)
{
    uint64_t start = clock_ns();
    ck_assert_uint_ge(clock_ns(), start);
    ck_assert_double_ge(clock_ms_since(start), 0);
    char now[32];
    clock_rfc3339(now, sizeof now);
    ck_assert_uint_eq(strlen(now), 24);
    ck_assert_int_eq(now[10], 'T');
    ck_assert_int_eq(now[23], 'Z');
}
END_TEST

/* Descriptor 2 as this process got it, while a test has its own there. */
static int real_stderr = -1;

static void stderr_to(int fd)
{
    real_stderr = dup(STDERR_FILENO);
    dup2(fd, STDERR_FILENO);
}

static void stderr_back(void)
{
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    log_init(LOG_TEXT, LOG_INFO, NULL);
}

/* What arrived at the reading end, which must not block. */
static size_t drain(int fd, char *out, size_t size)
{
    ssize_t n = read(fd, out, size - 1);
    out[n > 0 ? n : 0] = 0;
    return n > 0 ? (size_t)n : 0;
}

START_TEST(log_json_is_one_object_a_line)
{
    int fds[2];
    ck_assert_int_eq(pipe2(fds, O_NONBLOCK), 0);
    stderr_to(fds[1]);
    log_init(LOG_JSON, LOG_INFO, "w-1");
    char text[700];
    memset(text, 'm', sizeof text - 1);
    text[sizeof text - 1] = 0;
    log_event(LOG_INFO, "ready", LOG_S("device", "cp\"u\n"), LOG_I("port", INT64_MIN),
              LOG_D("ms", 1.25), LOG_D("inf", INFINITY), LOG_B("auth", false),
              LOG_S("bad", "a\xFF\xC2\x9B\xC3\xA9"), LOG_S("message", text), LOG_S("long", text),
              LOG_S("null", NULL));
    log_event(LOG_DEBUG, "quiet");
    log_event(LOG_ERROR, "error");
    stderr_back();
    char out[8192];
    drain(fds[0], out, sizeof out);
    char *second = strchr(out, '\n') + 1;
    second[-1] = 0;
    json_t *j = json_loads(out, 0, NULL);
    ck_assert_msg(j != NULL, "not JSON: %s", out);
    ck_assert_str_eq(json_string_value(json_object_get(j, "level")), "info");
    ck_assert_str_eq(json_string_value(json_object_get(j, "event")), "ready");
    ck_assert_str_eq(json_string_value(json_object_get(j, "worker_id")), "w-1");
    ck_assert_str_eq(json_string_value(json_object_get(j, "device")), "cp\"u\n");
    ck_assert(json_integer_value(json_object_get(j, "port")) == INT64_MIN);
    ck_assert_double_eq(json_real_value(json_object_get(j, "ms")), 1.25);
    ck_assert(json_is_null(json_object_get(j, "inf")));
    ck_assert(json_is_false(json_object_get(j, "auth")));
    ck_assert_str_eq(json_string_value(json_object_get(j, "bad")), "a??\xC3\xA9");
    ck_assert_uint_eq(json_string_length(json_object_get(j, "message")), 512);
    ck_assert_uint_eq(json_string_length(json_object_get(j, "long")), 128);
    json_decref(j);
    ck_assert_ptr_nonnull(strstr(second, "\"event\":\"error\""));
    ck_assert_ptr_null(strstr(second, "quiet"));
    ck_assert_str_eq(second + strlen(second) - 2, "}\n");
    close(fds[0]);
    close(fds[1]);
}
END_TEST

START_TEST(log_text_quotes_what_it_must)
{
    int fds[2];
    ck_assert_int_eq(pipe2(fds, O_NONBLOCK), 0);
    stderr_to(fds[1]);
    log_init(LOG_TEXT, LOG_WARN, "w-1");
    log_event(LOG_INFO, "quiet");
    log_event(LOG_WARN, "error", LOG_S("a", "plain"), LOG_S("b", "two words"), LOG_S("c", ""));
    stderr_back();
    char out[1024];
    drain(fds[0], out, sizeof out);
    ck_assert_ptr_null(strstr(out, "quiet"));
    ck_assert_str_eq(out + 24, " warn  error a=plain b=\"two words\" c=\"\" worker_id=w-1\n");
    close(fds[0]);
    close(fds[1]);
}
END_TEST

/* Fields that do not fit are left out, the line stays whole. */
START_TEST(log_line_stays_whole)
{
    int fds[2];
    ck_assert_int_eq(pipe2(fds, O_NONBLOCK), 0);
    stderr_to(fds[1]);
    log_init(LOG_JSON, LOG_INFO, "w-1");
    char text[600];
    memset(text, 1, sizeof text - 1);    /* six bytes each in JSON */
    text[sizeof text - 1] = 0;
    log_event(LOG_INFO, "e", LOG_S("message", text), LOG_S("message", text), LOG_I("n", 7));
    stderr_back();
    char out[8192];
    size_t n = drain(fds[0], out, sizeof out);
    ck_assert_uint_le(n, 4096);
    json_t *j = json_loads(out, 0, NULL);
    ck_assert_ptr_nonnull(j);
    ck_assert_int_eq(json_integer_value(json_object_get(j, "n")), 7);
    json_decref(j);
    close(fds[0]);
    close(fds[1]);
}
END_TEST

/* E07: a pipe nobody reads, a closed pipe, a full disk: lines are dropped and counted, nothing blocks. A log that
 * blocks here runs into Check's time-out. */
START_TEST(log_never_blocks)
{
    int pipes[2], socks[2];
    signal(SIGPIPE, SIG_IGN);
    ck_assert_int_eq(pipe(pipes), 0);    /* a blocking one, as a shell makes it */
    stderr_to(pipes[1]);
    log_init(LOG_JSON, LOG_INFO, "w-1");
    uint64_t before = log_dropped();
    for (int i = 0; i < 2000; i++)
        log_event(LOG_INFO, "nobody_reads_this", LOG_I("i", i));
    uint64_t lost = log_dropped() - before;
    int flags = fcntl(pipes[1], F_GETFL);
    close(pipes[0]);
    log_event(LOG_INFO, "reader_gone");
    stderr_back();
    ck_assert_uint_gt(lost, 0);
    ck_assert_uint_lt(lost, 2000);
    ck_assert_int_eq(flags & O_NONBLOCK, 0);    /* the file is shared: its mode is not ours to change */
    ck_assert_uint_eq(log_dropped() - before, lost + 1);
    close(pipes[1]);

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, socks), 0);
    stderr_to(socks[1]);
    log_init(LOG_JSON, LOG_INFO, "w-1");
    before = log_dropped();
    for (int i = 0; i < 20000; i++)
        log_event(LOG_INFO, "nobody_reads_this", LOG_I("i", i));
    lost = log_dropped() - before;
    close(socks[0]);
    log_event(LOG_INFO, "reader_gone");
    stderr_back();
    ck_assert_uint_gt(lost, 0);
    ck_assert_uint_eq(log_dropped() - before, lost + 1);
    close(socks[1]);

    int full = open("/dev/full", O_WRONLY);
    ck_assert_int_ge(full, 0);
    stderr_to(full);
    log_init(LOG_TEXT, LOG_INFO, "w-1");
    before = log_dropped();
    log_event(LOG_INFO, "disk_full");
    stderr_back();
    ck_assert_uint_eq(log_dropped() - before, 1);
    close(full);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base");
    TCase *t = tcase_create("base");
    suite_add_tcase(s, t);
    tcase_add_test(t, err_keeps_code_and_message);
    tcase_add_test(t, err_cuts_between_characters);
    tcase_add_test(t, buf_grows_to_its_maximum);
    tcase_add_test(t, buf_failure_sticks);
    tcase_add_test(t, buf_json_string_is_what_a_parser_reads);
    tcase_add_test(t, utf8_refuses_what_rfc_3629_refuses);
    tcase_add_test(t, utf8_every_character_there_and_back);
    tcase_add_test(t, utf8_complete_holds_back_only_an_open_character);
    tcase_add_test(t, mem_checks_products);
    tcase_add_test(t, mem_maps_zeroes);
    tcase_add_test(t, mem_fails_the_nth);
    tcase_add_test(t, clock_goes_forward);
    tcase_add_test(t, log_json_is_one_object_a_line);
    tcase_add_test(t, log_text_quotes_what_it_must);
    tcase_add_test(t, log_line_stays_whole);
    tcase_add_test(t, log_never_blocks);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
