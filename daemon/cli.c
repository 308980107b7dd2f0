#define _GNU_SOURCE
#include "daemon/cli_table.h"
#include "api/api.h"
#include "base/mem.h"

#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TOKEN_MAX = 4096, SHOWN_MAX = 80, CUDA_INDEX_MAX = 1023 };

static bool parse_int(const char *s, int64_t *out)
{
    char *end;
    if (!isdigit((unsigned char)s[0]) && !(s[0] == '-' && isdigit((unsigned char)s[1])))
        return false;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    *out = v;
    return errno == 0 && *end == 0;
}

static bool parse_device(const char *s, enum device_kind *kind, int *index)
{
    int64_t n;
    *index = 0;
    if (strcmp(s, "auto") == 0) {
        *kind = DEVICE_AUTO;
    } else if (strcmp(s, "cpu") == 0) {
        *kind = DEVICE_CPU;
    } else if (strncmp(s, "cuda:", 5) == 0 && parse_int(s + 5, &n) && n >= 0 && n <= CUDA_INDEX_MAX) {
        *kind = DEVICE_CUDA;
        *index = (int)n;
    } else {
        return false;
    }
    return true;
}

static const char *device_problem(const char *s)
{
    enum device_kind kind;
    int index;
    return parse_device(s, &kind, &index) ? NULL : "auto, cpu or cuda:N";
}

static const char *uuid_problem(const char *s)
{
    static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
    bool ok = strlen(s) == sizeof form - 1;
    for (size_t i = 0; ok && form[i] != 0; i++)
        ok = form[i] == '-' ? s[i] == '-' : isxdigit((unsigned char)s[i]) != 0;
    return ok ? NULL : "a UUID, 8-4-4-4-12 hexadecimal digits";
}

static const char *printable_problem(const char *s)
{
    for (; *s != 0; s++)
        if (*s < ' ' || *s > '~')
            return "printable ASCII characters";
    return NULL;
}

/* E11: the URL is refused here when it could never be called as meant: other schemes, user info. */
static const char *url_problem(const char *s)
{
    char *scheme = NULL, *user = NULL, *password = NULL, *host = NULL;
    CURLU *u = curl_url();
    const char *problem = NULL, *authority = strstr(s, "://");
    if (u == NULL || printable_problem(s) != NULL || strchr(s, ' ') != NULL || authority == NULL ||
        curl_url_set(u, CURLUPART_URL, s, CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK ||
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK)
        problem = "an absolute http:// or https:// URL";
    else if (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)
        problem = "the schemes http and https";
    else if (curl_url_get(u, CURLUPART_USER, &user, 0) == CURLUE_OK ||
             curl_url_get(u, CURLUPART_PASSWORD, &password, 0) == CURLUE_OK)
        problem = "a URL without user information; use --callback-token-file";
    else if (authority[3] == '/' || curl_url_get(u, CURLUPART_HOST, &host, 0) != CURLUE_OK || host[0] == 0)
        problem = "a URL with a host";
    curl_free(scheme);
    curl_free(user);
    curl_free(password);
    curl_free(host);
    curl_url_cleanup(u);
    return problem;
}

#define AT(field) offsetof(struct options, field)
#define TEXT(n, f, max_, arg_, help_, ...)                                                         \
    {.name = n, .type = OPTION_TEXT, .offset = AT(f), .min = 1, .max = max_, .arg = arg_, .help = help_, __VA_ARGS__}
#define INT(n, f, min_, max_, preset_, help_, ...)                                                 \
    {.name = n, .type = OPTION_INT, .offset = AT(f), .min = min_, .max = max_, .preset = preset_, .arg = "N",    \
     .help = help_, __VA_ARGS__}
#define CHOICE(n, f, choices_, preset_, help_, ...)                                                \
    {.name = n, .type = OPTION_CHOICE, .offset = AT(f), .choices = choices_, .preset = preset_, .help = help_,   \
     __VA_ARGS__}
#define FLAG(n, f, help_) {.name = n, .type = OPTION_FLAG, .offset = AT(f), .help = help_}
#define SHOWN(text) .help_default = text

enum { DAY = 86400, TOKENS = 1 << 24 };

const struct option_row option_table[] = {
    TEXT("model", model, 4095, "PATH", "GGUF file; the first shard of a split model", SHOWN("required")),
    TEXT("device", device_text, 16, "auto|cpu|cuda:N", "where the model lives; cuda:N never falls back",
         .preset_text = "auto", .problem = device_problem),
    INT("gpu-device", gpu_device, 0, CUDA_INDEX_MAX, -1, "the same as --device cuda:N", SHOWN("")),
    TEXT("worker-id", worker_id, 4096, "UUID", "identity given by the pool manager", .problem = uuid_problem, SHOWN("random")),
    TEXT("host", host, 255, "ADDR", "address to listen on", .preset_text = "127.0.0.1",
         .problem = printable_problem),
    INT("port", port, 0, 65535, 8080, "port to listen on; 0 picks a free one"),
    TEXT("callback-url", callback_url, 4096, "URL", "POSTed once when ready; http or https", .problem = url_problem, SHOWN("")),
    TEXT("callback-token-file", callback_token_file, 4095, "FILE", "bearer token sent with the callback", SHOWN("")),
    TEXT("model-alias", model_alias, 128, "NAME", "the model's id for clients", .problem = printable_problem,
         SHOWN("file name")),
    INT("ctx-size", ctx_size, 1, TOKENS, 0, "largest context of one request, tokens", SHOWN("model's own")),
    INT("max-batch", max_batch, 1, 1024, 0, "requests decoded together", SHOWN("32 on CUDA, 8 on CPU")),
    INT("max-queue", max_queue, 0, 100000, 128, "requests that may wait; the next gets 429"),
    INT("kv-cache-size-mb", kv_cache_size_mb, 1, 1 << 24, 0, "memory for the KV cache, MiB", SHOWN("a share of what is free")),
    CHOICE("kv-type", kv_type, "f16|q8_0", CLI_KV_F16, "element type of the KV cache"),
    CHOICE("prefix-cache", prefix_cache, "shared|per-key|off", PREFIX_CACHE_PER_KEY, "who profits from whose computed prompts"),
    CHOICE("speculate", speculate, "on|off", CLI_SPECULATE_ON,
           "try tokens that followed the same text before; changes speed, never bytes"),
    INT("max-tokens-in", max_tokens_in, 1, TOKENS, 0, "longest prompt, tokens", SHOWN("context")),
    INT("max-tokens-out", max_tokens_out, 1, TOKENS, 0, "most tokens a request may ask for", SHOWN("context")),
    INT("inference-timeout-sec", inference_timeout_sec, 1, 7 * DAY, 300, "longest time a request may run"),
    INT("drain-timeout-sec", drain_timeout_sec, 0, DAY, 30, "how long SIGTERM lets requests go on"),
    INT("drain-delay-sec", drain_delay_sec, 0, DAY, 0, "serve on this long after SIGTERM, not ready"),
    INT("threads", threads, 1, 1024, 0, "CPU engine threads", SHOWN("physical cores")),
    INT("max-body-bytes", max_body_bytes, 1024, 1 << 30, 4 << 20, "largest request body"),
    INT("max-connections", max_connections, 1, 1000000, 0, "open connections", SHOWN("12000, or as RLIMIT_NOFILE allows")),
    INT("header-timeout-ms", header_timeout_ms, 100, DAY * 1000, 10000, "total time for a request's headers"),
    INT("body-timeout-ms", body_timeout_ms, 100, DAY * 1000, 30000, "total time for a request's body"),
    INT("send-timeout-ms", send_timeout_ms, 100, DAY * 1000, 30000, "time without progress of a stalled reader"),
    CHOICE("metrics-compat", metrics_compat, "vllm|none", METRICS_VLLM, "also export the vllm: names routers read"),
    CHOICE("log-format", log_format, "json|text", LOG_FORMAT_AUTO, "format of the log on stderr",
           SHOWN("text on a terminal, else json")),
    CHOICE("log-level", log_level, "debug|info|warn|error", LOG_INFO, "what is logged"),
    FLAG("check", check, "load, validate, print the plan, exit"),
    FLAG("version", version, "print the version and exit"),
    FLAG("help", help, "print this and exit"),
};
const size_t option_count = sizeof option_table / sizeof *option_table;

/* Where a value came from, the higher one wins. */
enum source { FROM_TABLE, FROM_ENVIRONMENT, FROM_COMMAND_LINE };

struct parse {
    struct options *o;
    struct buf *problems;
    enum source source[sizeof option_table / sizeof *option_table];
};

static void env_name(const struct option_row *row, char *out, size_t size)
{
    snprintf(out, size, "INFERD_%s", row->name);
    for (char *c = out; *c != 0; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

/* A value as it may be shown on a terminal. */
static void add_shown(struct buf *b, const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n && i < SHOWN_MAX; i++)
        buf_add(b, s[i] >= ' ' && s[i] <= '~' ? s + i : "?", 1);
    if (n > SHOWN_MAX)
        buf_puts(b, "...");
}

static void add_name(struct buf *b, const struct option_row *row, enum source source)
{
    char name[64];
    env_name(row, name, sizeof name);
    if (source == FROM_ENVIRONMENT)
        buf_printf(b, "%s (environment): ", name);
    else
        buf_printf(b, "--%s: ", row->name);
}

static void add_allowed(struct buf *b, const struct option_row *row, const char *problem)
{
    if (problem != NULL)
        buf_puts(b, problem);
    else if (row->type == OPTION_INT)
        buf_printf(b, "an integer %lld..%lld", (long long)row->min, (long long)row->max);
    else if (row->type == OPTION_CHOICE)
        buf_puts(b, row->choices);
    else
        buf_printf(b, "%lld..%lld bytes", (long long)row->min, (long long)row->max);
}

static bool parse_choice(const char *choices, const char *value, int64_t *out)
{
    size_t len = strlen(value);
    *out = 0;
    for (const char *c = choices;; c++, (*out)++) {
        size_t n = strcspn(c, "|");
        if (n == len && memcmp(c, value, n) == 0)
            return true;
        c += n;
        if (*c == 0)
            return false;
    }
}

static void set_value(struct parse *p, const struct option_row *row, const char *value, enum source source)
{
    char *field = (char *)p->o + row->offset;
    const char *problem = NULL;
    int64_t n = 1;
    bool ok = true;
    size_t len = strlen(value);
    switch (row->type) {
    case OPTION_FLAG:
        break;
    case OPTION_INT:
        ok = parse_int(value, &n) && n >= row->min && n <= row->max;
        break;
    case OPTION_CHOICE:
        ok = parse_choice(row->choices, value, &n);
        break;
    case OPTION_TEXT:
        ok = len >= (size_t)row->min && len <= (size_t)row->max;
        if (ok && row->problem != NULL)
            problem = row->problem(value);
        ok = ok && problem == NULL;
        break;
    }
    if (!ok) {
        add_name(p->problems, row, source);
        buf_puts(p->problems, "\"");
        /* A URL with a password in it is refused, and must not end up in a log for that. */
        add_shown(p->problems, row->problem == url_problem && strchr(value, '@') != NULL ? "(hidden)" : value);
        buf_puts(p->problems, "\" is not allowed; allowed: ");
        add_allowed(p->problems, row, problem);
        buf_puts(p->problems, "\n");
        return;
    }
    p->source[row - option_table] = source;
    if (row->type == OPTION_TEXT)
        *(const char **)(void *)field = value;
    else
        *(int64_t *)(void *)field = n;
}

/* Letters to change, add or drop to make a from b; names longer than the table's are far from all. */
static int distance(const char *a, size_t n, const char *b)
{
    int row[64];
    size_t m = strlen(b);
    if (m >= 63 || n >= 63)
        return INT_MAX;
    for (size_t j = 0; j <= m; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int keep = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int drop = row[j] + 1, add = row[j - 1] + 1;
            row[j] = keep < drop ? keep : drop;
            row[j] = row[j] < add ? row[j] : add;
        }
    }
    return row[m];
}

static void report_unknown(struct parse *p, const char *arg, const char *name, size_t len)
{
    const struct option_row *best = NULL;
    int best_distance = 4;    /* further than three letters is no typing error */
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        int d = distance(name, len, r->name);
        if (d < best_distance && d < (int)len) {
            best = r;
            best_distance = d;
        }
    }
    add_shown(p->problems, arg);
    buf_puts(p->problems, ": unknown option");
    if (best != NULL)
        buf_printf(p->problems, "; did you mean --%s?", best->name);
    buf_puts(p->problems, "\n");
}

static const struct option_row *find_row(const char *name, size_t len)
{
    for (const struct option_row *r = option_table; r < option_table + option_count; r++)
        if (strlen(r->name) == len && memcmp(r->name, name, len) == 0)
            return r;
    return NULL;
}

static void parse_arguments(struct parse *p, int argc, char *const argv[])
{
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        const char *name = strcmp(arg, "-h") == 0 ? "help" : arg + 2;
        size_t len = strcspn(name, "=");
        if (name == arg + 2 && strncmp(arg, "--", 2) != 0) {
            add_shown(p->problems, arg);
            buf_puts(p->problems, arg[0] == '-' ? ": unknown option; options begin with --\n"
                                                : ": unexpected argument; the model is given with --model\n");
            continue;
        }
        const struct option_row *row = find_row(name, len);
        bool has_value = name[len] == '=';
        if (row == NULL) {
            report_unknown(p, arg, name, len);
            /* What follows an unknown option is most likely its value: not a second problem. */
            if (!has_value && i + 1 < argc && argv[i + 1][0] != '-')
                i++;
        } else if (row->type == OPTION_FLAG && has_value) {
            buf_printf(p->problems, "--%s: takes no value\n", row->name);
        } else if (row->type == OPTION_FLAG) {
            set_value(p, row, "", FROM_COMMAND_LINE);
        } else if (has_value) {
            set_value(p, row, name + len + 1, FROM_COMMAND_LINE);
        } else if (i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) {
            set_value(p, row, argv[++i], FROM_COMMAND_LINE);
        } else {
            buf_printf(p->problems, "--%s: a value is missing; allowed: ", row->name);
            add_allowed(p->problems, row, row->type == OPTION_TEXT ? row->arg : NULL);
            buf_puts(p->problems, "\n");
        }
    }
}

static bool is_given(const struct parse *p, const char *name)
{
    return p->source[find_row(name, strlen(name)) - option_table] == FROM_COMMAND_LINE;
}

/* True when argv names the option at all, well or badly: then the environment's value does not count. */
static bool on_command_line(int argc, char *const argv[], const struct option_row *row)
{
    size_t len = strlen(row->name);
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "--", 2) == 0 && strncmp(argv[i] + 2, row->name, len) == 0 &&
            (argv[i][2 + len] == 0 || argv[i][2 + len] == '='))
            return true;
    return false;
}

static void parse_environment(struct parse *p, char *const envp[], int argc, char *const argv[])
{
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        char name[64];
        env_name(r, name, sizeof name);
        size_t len = strlen(name);
        if (r->type == OPTION_FLAG || on_command_line(argc, argv, r))
            continue;
        for (char *const *e = envp; *e != NULL; e++)
            if (strncmp(*e, name, len) == 0 && (*e)[len] == '=')
                set_value(p, r, *e + len + 1, FROM_ENVIRONMENT);
    }
}

static void resolve_device(struct parse *p)
{
    struct options *o = p->o;
    if (!parse_device(o->device_text, &o->device, &o->device_index))
        return;    /* reported already */
    if (o->gpu_device < 0 || (is_given(p, "device") && !is_given(p, "gpu-device")))
        return;
    bool same_rank = p->source[find_row("device", 6) - option_table] == p->source[find_row("gpu-device", 10) - option_table];
    if (same_rank && (o->device != DEVICE_CUDA || o->device_index != o->gpu_device)) {
        buf_printf(p->problems, "--gpu-device: %d contradicts --device ", (int)o->gpu_device);
        add_shown(p->problems, o->device_text);
        buf_puts(p->problems, "; allowed: one of the two, or both naming the same device\n");
        return;
    }
    o->device = DEVICE_CUDA;
    o->device_index = (int)o->gpu_device;
}

/* Reads the token: one line of printable characters, so that it cannot smuggle a header. */
static void read_token(struct parse *p)
{
    struct options *o = p->o;
    char text[TOKEN_MAX + 2];
    const char *problem = NULL;
    ssize_t n = 0;
    struct stat st;
    int fd = open(o->callback_token_file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0)
        problem = strerror(errno);
    else if (S_ISDIR(st.st_mode))
        problem = "it is a folder";
    else
        n = read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (n < 0)
        problem = strerror(errno);
    if (problem == NULL) {
        text[n] = 0;
        size_t used = strlen(text), kept = used;
        while (kept > 0 && isspace((unsigned char)text[kept - 1]))
            text[--kept] = 0;
        if (used != (size_t)n || kept == 0 || n > TOKEN_MAX || strchr(text, ' ') != NULL || printable_problem(text) != NULL)
            problem = "not one word of 1..4096 printable ASCII characters";
    }
    if (problem == NULL) {
        o->callback_token = mem_strdup(text);
        problem = o->callback_token == NULL ? "out of memory" : NULL;
    }
    explicit_bzero(text, sizeof text);
    if (problem == NULL)
        return;
    buf_puts(p->problems, "--callback-token-file: \"");
    add_shown(p->problems, o->callback_token_file);
    buf_printf(p->problems, "\": %s; allowed: a readable file with the token\n", problem);
}

bool options_parse(struct options *o, int argc, char *const argv[], char *const envp[], struct buf *problems)
{
    *o = (struct options){0};
    struct parse p = {.o = o, .problems = problems};
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        char *field = (char *)o + r->offset;
        if (r->type == OPTION_TEXT)
            *(const char **)(void *)field = r->preset_text;
        else
            *(int64_t *)(void *)field = r->preset;
    }
    size_t before = problems->len;
    parse_arguments(&p, argc, argv);
    if (o->help || o->version) {
        problems->len = before;    /* the way out of a wrong command line */
        return true;
    }
    parse_environment(&p, envp, argc, argv);
    resolve_device(&p);
    if (o->model == NULL && !on_command_line(argc, argv, option_table))
        buf_puts(problems, "--model: required; allowed: the path of a GGUF file\n");
    if (o->callback_token_file != NULL) {
        if (o->callback_url == NULL && !on_command_line(argc, argv, find_row("callback-url", 12)))
            buf_puts(problems, "--callback-token-file: needs --callback-url\n");
        read_token(&p);
    }
    return problems->len == before && !problems->failed;
}

void options_free(struct options *o)
{
    if (o->callback_token != NULL)
        explicit_bzero(o->callback_token, strlen(o->callback_token));
    free(o->callback_token);
    o->callback_token = NULL;
}

static void add_default(struct buf *out, const struct option_row *r)
{
    if (r->help_default != NULL) {
        if (r->help_default[0] != 0)
            buf_printf(out, " (%s)", r->help_default);
    } else if (r->type == OPTION_INT) {
        buf_printf(out, " (%lld)", (long long)r->preset);
    } else if (r->type == OPTION_TEXT && r->preset_text != NULL) {
        buf_printf(out, " (%s)", r->preset_text);
    } else if (r->type == OPTION_CHOICE) {
        const char *c = r->choices;
        for (int64_t i = 0; i < r->preset; i++)
            c += strcspn(c, "|") + 1;
        buf_printf(out, " (%.*s)", (int)strcspn(c, "|"), c);
    }
}

void options_help(struct buf *out)
{
    buf_puts(out, "Usage: inferd --model PATH [options]\n\n"
                  "Loads one GGUF model and serves it over HTTP until it is told to stop.\n\n");
    for (const struct option_row *r = option_table; r < option_table + option_count; r++) {
        char left[64];
        const char *arg = r->arg != NULL ? r->arg : r->choices;
        snprintf(left, sizeof left, "--%s%s%s", r->name, arg != NULL ? " " : "", arg != NULL ? arg : "");
        buf_printf(out, "  %-36s %s", left, r->help);
        add_default(out, r);
        buf_puts(out, "\n");
    }
    buf_puts(out, "\nEach option that takes a value may come from the environment instead: --max-batch is INFERD_MAX_BATCH.\n"
                  "Exit codes: 0 stopped, 64 usage, 65 bad model, 66 no model, 69 device, 70 internal, 71 system, 75 callback.\n");
}

bool uuid_make(char out[37])
{
    uint8_t r[16];
    if (getrandom(r, sizeof r, 0) != sizeof r)
        return false;
    r[6] = (uint8_t)((r[6] & 0x0F) | 0x40);
    r[8] = (uint8_t)((r[8] & 0x3F) | 0x80);
    static const char hex[] = "0123456789abcdef";
    char *p = out;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *p++ = '-';
        *p++ = hex[r[i] >> 4];
        *p++ = hex[r[i] & 15];
    }
    *p = 0;
    return true;
}
