/* Options: every row of the table at its limits, sources, problems reported all at once, help. */
#include "daemon/cli_table.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UUID "123e4567-e89b-12d3-a456-426614174000"

static struct options o;
static struct buf problems;
static char *no_env[] = {NULL};

static void setup(void)
{
    problems = (struct buf){.max = 1 << 16};
}

static void teardown(void)
{
    options_free(&o);
    buf_free(&problems);
}

static const char *text(void)
{
    return problems.data != NULL ? problems.data : "";
}

/* Parses "inferd --model m.gguf" and the given arguments. */
static bool parse_env(char *const envp[], int n, const char *const args[])
{
    const char *argv[16] = {"inferd", "--model", "m.gguf"};
    ck_assert_int_lt(n, 12);
    for (int i = 0; i < n; i++)
        argv[3 + i] = args[i];
    options_free(&o);
    buf_reset(&problems);
    return options_parse(&o, n + 3, (char *const *)argv, envp, &problems);
}
#define PARSE(...)                                                                                 \
    parse_env(no_env, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), (const char *[]){__VA_ARGS__})
#define ACCEPTS(...) ck_assert_msg(PARSE(__VA_ARGS__), "refused: %s", text())
#define REFUSES(part, ...)                                                                         \
    do {                                                                                           \
        ck_assert_msg(!PARSE(__VA_ARGS__), "accepted, expected %s", part);                         \
        ck_assert_msg(strstr(text(), part) != NULL, "%s: not in: %s", part, text());               \
    } while (0)

static int lines(const char *s)
{
    int n = 0;
    for (; *s != 0; s++)
        n += *s == '\n';
    return n;
}

/* One option with one value, in both spellings and from the environment. */
static void try_value(const struct option_row *r, const char *value, bool good)
{
    char name[64], joined[8192], env[8192];
    snprintf(name, sizeof name, "--%s", r->name);
    snprintf(joined, sizeof joined, "--%s=%s", r->name, value);
    snprintf(env, sizeof env, "INFERD_%s=%s", r->name, value);
    for (char *c = env; *c != '='; c++)
        *c = *c == '-' ? '_' : *c >= 'a' && *c <= 'z' ? (char)(*c - 32) : *c;
    char *envp[] = {env, NULL};
    const struct {
        char *const *envp;
        int n;
        const char *args[2];
    } ways[] = {{no_env, 2, {name, value}}, {no_env, 1, {joined}}, {envp, 0, {0}}};
    for (size_t i = 0; i < 3; i++) {
        if (i == 2 && strcmp(r->name, "model") == 0)
            continue;    /* the command line has one already */
        bool got = parse_env(ways[i].envp, ways[i].n, ways[i].args);
        ck_assert_msg(got == good, "%s way %zu with %.60s: %s %s", name, i, value, got ? "accepted" : "refused", text());
        if (good)
            continue;
        ck_assert_int_eq(lines(text()), 1);
        ck_assert_ptr_nonnull(strstr(text(), i == 2 ? "(environment)" : name));
        ck_assert_ptr_nonnull(strstr(text(), "allowed: "));
    }
}

START_TEST(numbers_at_their_limits)
{
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        if (r->type != OPTION_INT)
            continue;
        const struct {
            int64_t value;
            bool good;
        } cases[] = {{r->min - 1, false}, {r->min, true}, {r->max, true}, {r->max + 1, false}};
        for (size_t i = 0; i < 4; i++) {
            char value[32];
            snprintf(value, sizeof value, "%lld", (long long)cases[i].value);
            try_value(r, value, cases[i].good);
            if (cases[i].good)
                ck_assert(*(int64_t *)(void *)((char *)&o + r->offset) == cases[i].value);
        }
        static const char *const wrong[] = {"", " 1", "1 ", "1x", "0x10", "1.0", "1e3", "+1", "--1", "99999999999999999999"};
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            char joined[64];
            snprintf(joined, sizeof joined, "--%s=%s", r->name, wrong[i]);
            REFUSES("an integer", joined);
        }
    }
}
END_TEST

START_TEST(choices_are_exact)
{
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        if (r->type != OPTION_CHOICE)
            continue;
        char all[64], *save = NULL;
        snprintf(all, sizeof all, "%s", r->choices);
        int64_t i = 0;
        for (char *c = strtok_r(all, "|", &save); c != NULL; c = strtok_r(NULL, "|", &save), i++) {
            try_value(r, c, true);
            ck_assert_int_eq(*(int64_t *)(void *)((char *)&o + r->offset), i);
        }
        try_value(r, "", false);
        try_value(r, "nonsense", false);
        try_value(r, r->choices, false);
    }
}
END_TEST

START_TEST(texts_at_their_lengths)
{
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        if (r->type != OPTION_TEXT)
            continue;
        char joined[8192];
        snprintf(joined, sizeof joined, "--%s=", r->name);
        REFUSES("allowed: ", joined);
        size_t head = strlen(joined);
        memset(joined + head, 'a', (size_t)r->max + 1);
        joined[head + (size_t)r->max + 1] = 0;
        REFUSES("allowed: ", joined);
        joined[head + (size_t)r->max] = 0;
        bool plain = r->problem == NULL || strcmp(r->name, "host") == 0 || strcmp(r->name, "model-alias") == 0;
        if (plain && strcmp(r->name, "callback-token-file") != 0)
            ACCEPTS(joined);
    }
}
END_TEST

START_TEST(devices)
{
    ACCEPTS("--device", "auto");
    ck_assert_int_eq(o.device, DEVICE_AUTO);
    ACCEPTS("--device", "cpu");
    ck_assert_int_eq(o.device, DEVICE_CPU);
    ACCEPTS("--device", "cuda:3");
    ck_assert_int_eq(o.device, DEVICE_CUDA);
    ck_assert_int_eq(o.device_index, 3);
    static const char *const wrong[] = {"gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "cuda:1024", "CPU", "cuda:0 "};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        REFUSES("auto, cpu or cuda:N", "--device", wrong[i]);

    ACCEPTS("--gpu-device", "2");
    ck_assert_int_eq(o.device, DEVICE_CUDA);
    ck_assert_int_eq(o.device_index, 2);
    ACCEPTS("--gpu-device", "2", "--device", "cuda:2");
    REFUSES("contradicts", "--gpu-device", "2", "--device", "cuda:1");
    REFUSES("contradicts", "--gpu-device", "0", "--device", "cpu");
    char *env[] = {"INFERD_GPU_DEVICE=1", NULL};
    ck_assert(parse_env(env, 2, (const char *[]){"--device", "cpu"}));
    ck_assert_int_eq(o.device, DEVICE_CPU);
    char *env_device[] = {"INFERD_DEVICE=cpu", NULL};
    ck_assert(parse_env(env_device, 2, (const char *[]){"--gpu-device", "1"}));
    ck_assert_int_eq(o.device, DEVICE_CUDA);
    char *both[] = {"INFERD_DEVICE=cpu", "INFERD_GPU_DEVICE=1", NULL};
    ck_assert(!parse_env(both, 0, NULL));
    ck_assert_ptr_nonnull(strstr(text(), "contradicts"));
}
END_TEST

START_TEST(worker_ids)
{
    ACCEPTS("--worker-id", UUID);
    ck_assert_str_eq(o.worker_id, UUID);
    ACCEPTS("--worker-id", "123E4567-E89B-12D3-A456-42661417400F");
    static const char *const wrong[] = {"1", UUID "0", "123e4567-e89b-12d3-a456-42661417400", "123e4567-e89b-12d3-a456_426614174000",
                                        "123e4567-e89b-12d3-a456-42661417400g", "../../../../etc/passwd"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        REFUSES("a UUID", "--worker-id", wrong[i]);

    char a[37], b[37];
    ck_assert(uuid_make(a) && uuid_make(b));
    ck_assert_str_ne(a, b);
    ck_assert_int_eq(a[14], '4');
    ck_assert_ptr_nonnull(strchr("89ab", a[19]));
    ACCEPTS("--worker-id", a);
}
END_TEST

/* E11: what could never be called as meant is refused before the model is touched. */
START_TEST(callback_urls)
{
    ACCEPTS("--callback-url", "http://127.0.0.1:9/ready");
    ACCEPTS("--callback-url", "https://pool.example/v2/workers?x=1");
    ACCEPTS("--callback-url", "http://[::1]:8080/");
    REFUSES("http and https", "--callback-url", "file:///etc/passwd");
    REFUSES("http and https", "--callback-url", "gopher://host/x");
    REFUSES("http and https", "--callback-url", "ftp://host/x");
    REFUSES("without user information", "--callback-url", "http://user@host/");
    REFUSES("without user information", "--callback-url", "http://user:secret@host/");
    ck_assert_ptr_null(strstr(text(), "secret"));
    REFUSES("absolute", "--callback-url", "host/path");
    REFUSES("absolute", "--callback-url", "http://host/a b");
    REFUSES("absolute", "--callback-url", "http://host/\r\nX: y");
    REFUSES("--callback-url", "--callback-url", "http:///path");
    REFUSES("--callback-url", "--callback-url", "http://host:99999/");
}
END_TEST

START_TEST(callback_tokens)
{
    char path[] = "/tmp/inferd-test-token-XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    REFUSES("needs --callback-url", "--callback-token-file", path);
    static const struct {
        const char *content;
        const char *token;
    } cases[] = {
        {"abc.DEF-123\n", "abc.DEF-123"}, {"abc", "abc"}, {"abc\r\n\n", "abc"}, {"", NULL}, {"\n", NULL},
        {"two words", NULL}, {"a\nb", NULL}, {"a\r\nX-Evil: 1", NULL}, {"caf\xC3\xA9", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert_int_eq(ftruncate(fd, 0), 0);
        ck_assert_int_eq(pwrite(fd, cases[i].content, strlen(cases[i].content), 0), (ssize_t)strlen(cases[i].content));
        if (cases[i].token != NULL) {
            ACCEPTS("--callback-url", "http://h/", "--callback-token-file", path);
            ck_assert_str_eq(o.callback_token, cases[i].token);
        } else {
            REFUSES("--callback-token-file", "--callback-url", "http://h/", "--callback-token-file", path);
        }
    }
    ck_assert_int_eq(ftruncate(fd, 1 << 20), 0);
    REFUSES("--callback-token-file", "--callback-url", "http://h/", "--callback-token-file", path);
    close(fd);
    unlink(path);
    REFUSES("No such file", "--callback-url", "http://h/", "--callback-token-file", path);
    REFUSES("folder", "--callback-url", "http://h/", "--callback-token-file", "/tmp");
}
END_TEST

START_TEST(command_line_over_environment_over_default)
{
    char *env[] = {"INFERD_PORT=1234", "INFERD_MAX_QUEUE=5", "INFERD_SOMETHING=else", "PORT=1", "INFERD_CHECK=1", NULL};
    ck_assert(parse_env(env, 2, (const char *[]){"--port", "4321"}));
    ck_assert_int_eq(o.port, 4321);
    ck_assert_int_eq(o.max_queue, 5);
    ck_assert_int_eq(o.check, 0);
    ck_assert_int_eq(o.max_body_bytes, 4 << 20);
    ck_assert_str_eq(o.host, "127.0.0.1");
    ck_assert_ptr_null(o.worker_id);
    ck_assert_int_eq(o.log_format, LOG_FORMAT_AUTO);

    char *bad[] = {"INFERD_PORT=x", NULL};
    ck_assert_msg(parse_env(bad, 2, (const char *[]){"--port", "4321"}), "%s", text());
    ck_assert(!parse_env(bad, 0, NULL));
    ck_assert_str_eq(text(), "INFERD_PORT (environment): \"x\" is not allowed; allowed: an integer 0..65535\n");
    ACCEPTS("--port", "1", "--port", "2");
    ck_assert_int_eq(o.port, 2);

    char *model_env[] = {"INFERD_MODEL=/models/a.gguf", NULL};
    char *argv[] = {"inferd", NULL};
    options_free(&o);
    ck_assert(options_parse(&o, 1, argv, model_env, &problems));
    ck_assert_str_eq(o.model, "/models/a.gguf");
}
END_TEST

START_TEST(all_problems_at_once)
{
    char *argv[] = {"inferd", "--port", "99999", "--max-batch=0", "--kv-type", "q4_0", "--prot", "1", "stray", "--threads",
                    "--check=yes", NULL};
    ck_assert(!options_parse(&o, 11, argv, no_env, &problems));
    ck_assert_str_eq(text(), "--port: \"99999\" is not allowed; allowed: an integer 0..65535\n"
                             "--max-batch: \"0\" is not allowed; allowed: an integer 1..1024\n"
                             "--kv-type: \"q4_0\" is not allowed; allowed: f16|q8_0\n"
                             "--prot: unknown option; did you mean --port?\n"
                             "stray: unexpected argument; the model is given with --model\n"
                             "--threads: a value is missing; allowed: an integer 1..1024\n"
                             "--check: takes no value\n"
                             "--model: required; allowed: the path of a GGUF file\n");
}
END_TEST

START_TEST(unknown_options)
{
    REFUSES("did you mean --model?", "--modle", "x");
    ck_assert_int_eq(lines(text()), 1);
    REFUSES("did you mean --max-queue?", "--max-qeue=1");
    REFUSES("--frobnicate: unknown option\n", "--frobnicate");
    REFUSES("-m: unknown option", "-m");
    REFUSES("--: unknown option", "--");
    REFUSES("unknown option", "--tls-cert", "x");
    REFUSES("unknown option", "--api-key-file", "x");
    REFUSES("?", "--\x1b[31mred", "x");
    ck_assert_ptr_null(strchr(text(), '\x1b'));
    char longest[5000] = "--";
    memset(longest + 2, 'a', sizeof longest - 3);
    REFUSES("unknown option", longest);
    ck_assert_uint_lt(strlen(text()), 200);
}
END_TEST

START_TEST(help_fits_a_screen)
{
    struct buf help = {0};
    options_help(&help);
    ck_assert_int_le(lines(help.data), 50);
    size_t longest = 0;
    for (const char *s = help.data; *s != 0; s += strcspn(s, "\n") + 1)
        longest = strcspn(s, "\n") > longest ? strcspn(s, "\n") : longest;
    ck_assert_uint_le(longest, 120);
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        char name[64];
        snprintf(name, sizeof name, "\n  --%s ", r->name);
        ck_assert_msg(strstr(help.data, name) != NULL, "--help lacks %s", r->name);
    }
    ck_assert_ptr_nonnull(strstr(help.data, "port to listen on; 0 picks a free one (8080)"));
    ck_assert_ptr_nonnull(strstr(help.data, "element type of the KV cache (f16)"));
    buf_free(&help);

    /* help and version work whatever else is wrong */
    ACCEPTS("--port", "x", "--help");
    ck_assert(o.help);
    ACCEPTS("-h");
    ck_assert(o.help);
    ACCEPTS("--nonsense", "--version");
    ck_assert(o.version);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cli");
    TCase *t = tcase_create("cli");
    tcase_add_checked_fixture(t, setup, teardown);
    suite_add_tcase(s, t);
    tcase_add_test(t, numbers_at_their_limits);
    tcase_add_test(t, choices_are_exact);
    tcase_add_test(t, texts_at_their_lengths);
    tcase_add_test(t, devices);
    tcase_add_test(t, worker_ids);
    tcase_add_test(t, callback_urls);
    tcase_add_test(t, callback_tokens);
    tcase_add_test(t, command_line_over_environment_over_default);
    tcase_add_test(t, all_problems_at_once);
    tcase_add_test(t, unknown_options);
    tcase_add_test(t, help_fits_a_screen);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
