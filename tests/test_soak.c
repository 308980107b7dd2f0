/* The promise through the real worker: clients at once, at random, with everything clients do to each
 * other, and every answer as the same request gives alone on a worker without cache and drafts. Runs
 * for SOAK_SECONDS (5 when not set) from SOAK_SEED; make soak runs it for long. */
#include "base/clock.h"
#include "tests/served.h"
#include "tests/sse.h"

#include <check.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_CLIENTS = 16, N_REQUESTS = 40, PATIENCE_MS = 120000, REPORT_S = 10, MOST_TOKENS = 512 };

/* What a request gave. */
struct result {
    int status, n;
    int32_t ids[MOST_TOKENS];
    struct buf text;
    char end[24]; /* stop_reason or error code; "" = none yet */
};

struct request {
    char json[4096]; /* its fields but job_id, stream and those that change nothing */
    struct result alone;
};

enum action { READ, CANCEL, CLOSE, RESET, DEADLINE, N_ACTIONS };
static const char *const action_name[N_ACTIONS] = {"read", "cancelled", "closed", "reset", "late"};

struct soak {
    struct served worker;
    struct request requests[N_REQUESTS];
    uint64_t until_ns;
    unsigned seed;
    atomic_bool stop;
    atomic_long n_done[N_ACTIONS], n_tokens, n_whole, n_jobs;
    pthread_mutex_t mu; /* guards problem */
    char problem[1024];
};

static struct soak soak;

/* The first problem ends the run. No assertions in the clients: Check wants them on one thread. */
static void report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void report(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&soak.mu);
    if (soak.problem[0] == 0)
        vsnprintf(soak.problem, sizeof soak.problem, fmt, ap);
    pthread_mutex_unlock(&soak.mu);
    va_end(ap);
    atomic_store(&soak.stop, true);
}

static int below(unsigned *seed, int n)
{
    return (int)(rand_r(seed) % (unsigned)n);
}

/* ---- requests ---- */

static const char *const words[] = {"the ", "a ", "river ", "seven ", "houses ", "and ", "again ", "of ", "{\\\"x\\\": 1} ",
                                    "\\u00fc", "\\u65e5\\u672c ", "why? ", "\\n", "0123 ", "because ", "over "};

static void add_words(struct buf *b, unsigned *seed, int n)
{
    for (int i = 0; i < n; i++)
        buf_puts(b, words[below(seed, sizeof words / sizeof *words)]);
}

/* Prompts that begin with one of three texts, or with none; every parameter that changes an answer. */
static void make_request(struct request *q, unsigned *seed)
{
    struct buf b = {0};
    unsigned common = 100 + (unsigned)below(seed, 3);
    buf_puts(&b, "\"prompt\":\"");
    if (below(seed, 4) > 0)
        add_words(&b, &(unsigned){common}, (int)(common - 99) * 30);
    add_words(&b, seed, 1 + below(seed, 40));
    buf_printf(&b, "\",\"max_tokens\":%d,\"seed\":%d", 1 + below(seed, 120), below(seed, 1000));
    buf_printf(&b, ",\"temperature\":%s", below(seed, 3) ? "0.9" : "0");
    if (below(seed, 3) == 0)
        buf_printf(&b, ",\"top_p\":0.%d", 5 + below(seed, 5));
    if (below(seed, 3) == 0)
        buf_printf(&b, ",\"top_k\":%d", 1 + below(seed, 50));
    if (below(seed, 5) == 0)
        buf_puts(&b, ",\"min_p\":0.05");
    if (below(seed, 4) == 0)
        buf_puts(&b, ",\"repetition_penalty\":1.2");
    if (below(seed, 4) == 0)
        buf_puts(&b, ",\"frequency_penalty\":0.3,\"presence_penalty\":-0.2");
    if (below(seed, 3) == 0)
        buf_puts(&b, ",\"logit_bias\":{\"40\":20,\"41\":20,\"42\":20}"); /* says the same again: drafts */
    if (below(seed, 4) == 0)
        buf_puts(&b, ",\"stop\":[\"e \",\"ab\",\"\\n\\n\"]");
    if (below(seed, 2) == 0)
        buf_puts(&b, ",\"ignore_eos\":true");
    snprintf(q->json, sizeof q->json, "%s", b.data);
    buf_free(&b);
}

/* ---- answers ---- */

static void add_token(struct result *r, json_int_t id)
{
    if (r->n < MOST_TOKENS)
        r->ids[r->n++] = (int32_t)id;
}

static void add_string(struct buf *b, const json_t *s)
{
    buf_add(b, json_string_value(s), json_string_length(s));
}

static void read_event(struct result *r, const char *name, size_t n_name, const json_t *data)
{
    if (n_name == 5 && memcmp(name, "token", 5) == 0) {
        if (json_integer_value(json_object_get(data, "i")) != r->n)
            report("token %d has another index", r->n);
        add_token(r, json_integer_value(json_object_get(data, "id")));
        add_string(&r->text, json_object_get(data, "t"));
    } else if (n_name == 3 && memcmp(name, "end", 3) == 0) {
        add_string(&r->text, json_object_get(data, "t"));
        snprintf(r->end, sizeof r->end, "%s", json_string_value(json_object_get(data, "stop_reason")));
    } else if (n_name == 5 && memcmp(name, "error", 5) == 0) {
        snprintf(r->end, sizeof r->end, "%s", json_string_value(json_object_get(data, "code")));
    }
}

/* The whole events of a stream, as far as it came. */
static void read_stream(struct result *r, const char *text)
{
    for (const char *end = strstr(text, "\n\n"); end != NULL; text = end + 2, end = strstr(text, "\n\n")) {
        const char *data = strstr(text, "\ndata: ");
        json_error_t err;
        if (text[0] == ':')
            continue;
        json_t *root = data != NULL && data < end ? json_loadb(data + 7, (size_t)(end - data) - 7, JSON_ALLOW_NUL, &err) : NULL;
        if (root == NULL || strncmp(text, "event: ", 7) != 0) {
            report("not an event: %.300s", text);
            return;
        }
        read_event(r, text + 7, (size_t)(data - text) - 7, root);
        json_decref(root);
    }
}

static void read_object(struct result *r, const char *text)
{
    json_error_t err;
    json_t *root = json_loads(text, JSON_ALLOW_NUL, &err), *id;
    size_t i;
    json_array_foreach(json_object_get(root, "tokens"), i, id)
        add_token(r, json_integer_value(id));
    add_string(&r->text, json_object_get(root, "text"));
    const char *stop = json_string_value(json_object_get(root, "stop_reason"));
    const char *code = json_string_value(json_object_get(json_object_get(root, "error"), "code"));
    snprintf(r->end, sizeof r->end, "%s", stop != NULL ? stop : code != NULL ? code : "");
    json_decref(root);
}

/* Whole answers must be the same; the others are a beginning of it. */
static bool is_error(const struct result *r)
{
    return r->end[0] >= 'A' && r->end[0] <= 'Z';
}

static void compare(const struct request *q, const struct result *got, enum action action, const char *json)
{
    const struct result *w = &q->alone;
    bool whole = got->end[0] != 0 && !is_error(got);
    bool allowed = whole || (action == CLOSE || action == RESET ? got->end[0] == 0
                             : action == CANCEL                 ? strcmp(got->end, "CANCELLED") == 0
                             : action == DEADLINE               ? strcmp(got->end, "INFERENCE_TIMEOUT") == 0
                                                                : false);
    if (!allowed)
        report("%s, status %d, ended with \"%s\": %s", action_name[action], got->status, got->end, json);
    else if (got->n > w->n || memcmp(got->ids, w->ids, (size_t)got->n * sizeof *got->ids) != 0 ||
             got->text.len > w->text.len || (got->text.len > 0 && memcmp(got->text.data, w->text.data, got->text.len) != 0) ||
             (whole && (got->n != w->n || got->text.len != w->text.len || strcmp(got->end, w->end) != 0)))
        report("%s: %d tokens \"%s\" (%s), alone %d tokens \"%s\" (%s): %s", action_name[action], got->n,
               got->text.data ? got->text.data : "", got->end, w->n, w->text.data ? w->text.data : "", w->end, json);
    atomic_fetch_add(&soak.n_whole, whole);
    atomic_fetch_add(&soak.n_tokens, got->n);
    atomic_fetch_add(&soak.n_done[action], 1);
}

/* ---- a client ---- */

/* Sends, and does to the job what it does. */
static void converse(struct client *c, const char *json, enum action action, const char *job, unsigned *seed, struct result *r,
                     bool stream)
{
    struct answer a = {0};
    bool leaves = action == CLOSE || action == RESET;
    if (!client_post(c, "/execute", json)) {
        report("cannot send: %s", json);
        return;
    }
    if (leaves || action == CANCEL) {
        uint64_t until = clock_ns() + (uint64_t)below(seed, 60) * 1000000u;
        while (clock_ns() < until && !c->closed)
            client_receive(c, 2);
    }
    if (action == CANCEL) {
        char cancel[96];
        snprintf(cancel, sizeof cancel, "{\"job_id\":\"%s\"}", job);
        if (client_request(soak.worker.port, "/cancel", cancel, NULL) != 202)
            report("/cancel was not accepted");
    }
    bool any = client_answer(c, &a, false, leaves ? 0 : PATIENCE_MS);
    if (any) {
        r->status = a.status;
        if (stream && a.status == 200)
            read_stream(r, a.body.data);
        else if (a.complete)
            read_object(r, a.body.data);
    }
    if (!leaves && !(any && a.complete))
        report("no whole answer: %s", json);
    answer_free(&a);
}

static void ask(struct client *c, const struct request *q, unsigned *seed)
{
    static const enum action actions[] = {READ, READ, READ, READ, READ, READ, CANCEL, CLOSE, RESET, DEADLINE};
    static const char *const salts[] = {"", "", ",\"cache_salt\":\"a\"", ",\"cache_salt\":\"b\"", ",\"prefix_cache\":false"};
    enum action action = actions[below(seed, 10)];
    bool stream = below(seed, 4) > 0;
    char json[4608], job[32], deadline[40] = "";
    struct result got = {0};
    snprintf(job, sizeof job, "job-%ld", atomic_fetch_add(&soak.n_jobs, 1));
    if (action == DEADLINE)
        snprintf(deadline, sizeof deadline, ",\"deadline_ms\":%d", 1 + below(seed, 80));
    snprintf(json, sizeof json, "{\"job_id\":\"%s\",\"stream\":%s%s%s%s,%s}", job, stream ? "true" : "false",
             salts[below(seed, 5)], deadline, below(seed, 3) ? "" : ",\"priority\":\"batch\"", q->json);
    if (c->fd >= 0)
        client_receive(c, 0); /* the worker may have closed a kept connection */
    if (c->fd >= 0 && c->closed)
        client_close(c);
    if (c->fd < 0 && !client_open(c, soak.worker.port)) {
        report("cannot connect");
        return;
    }
    converse(c, json, action, job, seed, &got, stream);
    compare(q, &got, action, json);
    if (action == RESET)
        client_reset(c);
    else if (action == CLOSE || below(seed, 5) == 0)
        client_close(c);
    buf_free(&got.text);
}

static void *client_main(void *arg)
{
    unsigned seed = *(unsigned *)arg;
    struct client c = {.fd = -1};
    while (!atomic_load(&soak.stop) && clock_ns() < soak.until_ns)
        ask(&c, &soak.requests[below(&seed, N_REQUESTS)], &seed);
    client_close(&c);
    return NULL;
}

/* ---- the run ---- */

static void find_answers(void)
{
    static const char *const plain[] = {"--ctx-size", "512", "--max-batch", "1", "--prefix-cache", "off",
                                        "--speculate", "off", "--threads", "1", "--log-level", "error", NULL};
    struct served worker;
    struct client c;
    served_start(&worker, fixture_tiny, plain, NULL);
    ck_assert(client_open(&c, worker.port));
    for (int i = 0; i < N_REQUESTS; i++) {
        struct request *q = &soak.requests[i];
        char json[4608];
        make_request(q, &soak.seed);
        snprintf(json, sizeof json, "{\"job_id\":\"alone\",\"stream\":false,%s}", q->json);
        converse(&c, json, READ, "alone", &soak.seed, &q->alone, false);
        ck_assert_msg(q->alone.status == 200, "%d: %s", q->alone.status, json);
    }
    client_close(&c);
    served_stop(&worker);
}

static void print_progress(double seconds)
{
    long n = 0;
    for (int i = 0; i < N_ACTIONS; i++)
        n += atomic_load(&soak.n_done[i]);
    printf("soak: %4.0f s, %ld requests, %ld whole answers compared, %ld tokens", seconds, n, atomic_load(&soak.n_whole),
           atomic_load(&soak.n_tokens));
    for (int i = 1; i < N_ACTIONS; i++)
        printf(", %ld %s", atomic_load(&soak.n_done[i]), action_name[i]);
    printf("; %.0f tokens found, %.0f of %.0f drafts right, %ld KiB\n",
           served_metric(&soak.worker, "inferd_prefix_cache_hits_total"),
           served_metric(&soak.worker, "inferd_speculation_accepted_total"),
           served_metric(&soak.worker, "inferd_speculation_drafted_total"), served_rss_kb(&soak.worker));
    fflush(stdout);
}

static double number(const char *name, double otherwise)
{
    const char *s = getenv(name);
    return s != NULL && s[0] != 0 ? strtod(s, NULL) : otherwise;
}

START_TEST(everybody_gets_what_he_would_get_alone)
{
    pthread_t threads[N_CLIENTS];
    unsigned seeds[N_CLIENTS];
    double seconds = number("SOAK_SECONDS", 5);
    long rss = 0;
    soak.seed = (unsigned)number("SOAK_SEED", 1);
    printf("soak: %.0f s, seed %u\n", seconds, soak.seed);
    find_answers();
    uint64_t start = clock_ns();
    soak.until_ns = start + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < N_CLIENTS; i++) {
        seeds[i] = soak.seed * 1000 + (unsigned)i;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, client_main, &seeds[i]), 0);
    }
    for (double next = REPORT_S; !atomic_load(&soak.stop) && clock_ns() < soak.until_ns;) {
        usleep(100000);
        double now = clock_ms_since(start) / 1e3;
        if (now < next)
            continue;
        next += REPORT_S;
        print_progress(now);
        if (rss == 0 && now > seconds / 3)
            rss = served_rss_kb(&soak.worker);
    }
    for (int i = 0; i < N_CLIENTS; i++)
        pthread_join(threads[i], NULL);
    print_progress(clock_ms_since(start) / 1e3);
    ck_assert_msg(soak.problem[0] == 0, "seed %u: %s", (unsigned)number("SOAK_SEED", 1), soak.problem);
    served_check(&soak.worker, "afterwards"); /* nothing runs, waits, or holds pages or descriptors */
    ck_assert_int_gt(atomic_load(&soak.n_whole), 0);
    ck_assert(served_metric(&soak.worker, "inferd_prefix_cache_hits_total") > 0);
    long grown = served_rss_kb(&soak.worker) - rss;
    ck_assert_msg(rss == 0 || PROC_SANITIZED || grown < 4096, "%ld KiB more than after a third of the time", grown);
}
END_TEST

static void start_worker(void)
{
    /* 64 pages of 64 tokens for 12 requests of up to 512: the cache is always short of pages. */
    static const char *const args[] = {"--ctx-size", "512", "--max-batch", "12", "--kv-cache-size-mb", "1",
                                       "--threads", "2", "--log-level", "error", NULL};
    pthread_mutex_init(&soak.mu, NULL);
    fixture_open();
    served_start(&soak.worker, fixture_tiny, args, NULL);
}

static void stop_worker(void)
{
    served_stop(&soak.worker);
    for (int i = 0; i < N_REQUESTS; i++)
        buf_free(&soak.requests[i].alone.text);
    fixture_close();
}

int main(void)
{
    Suite *suite = suite_create("soak");
    TCase *t = tcase_create("soak");
    tcase_set_timeout(t, 300 + 2 * number("SOAK_SECONDS", 5));
    tcase_add_checked_fixture(t, start_worker, stop_worker);
    tcase_add_test(t, everybody_gets_what_he_would_get_alone);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
