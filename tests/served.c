#include "tests/served.h"

#include "base/clock.h"
#include "tests/client.h"
#include "tests/sse.h"

#include <check.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int count_fds(const struct served *s)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)s->p.pid);
    DIR *d = opendir(path);
    ck_assert_msg(d != NULL, "the worker is gone");
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* What of the control request's answer must never change. */
static void control(const struct served *s, struct buf *out)
{
    int status;
    char *tokens;
    json_t *root = execute_json(s->port,
                                "{\"job_id\":\"control\",\"prompt\":\"The quick brown fox\",\"seed\":7,\"max_tokens\":8,"
                                "\"ignore_eos\":true,\"stream\":false}",
                                &status);
    ck_assert_int_eq(status, 200);
    tokens = json_dumps(json_object_get(root, "tokens"), JSON_COMPACT);
    buf_printf(out, "%s %s", tokens, json_string_value(json_object_get(root, "text")));
    free(tokens);
    json_decref(root);
}

void served_start(struct served *s, const char *model, const char *const args[], const struct proc_options *o)
{
    const char *argv[40] = {"--model", model, "--port", "0", "--kv-cache-size-mb", "64", "--device", "cpu"};
    int n = 8;
    for (; args != NULL && *args != NULL; args++)
        argv[n++] = *args;
    *s = (struct served){0};
    proc_start(&s->p, argv, o);
    proc_ready(&s->p);
    s->port = s->p.port;
    control(s, &s->control);
    usleep(20000);
    s->n_fds = count_fds(s);
}

double served_metric(struct served *s, const char *name)
{
    struct buf b = {0};
    char line[128];
    ck_assert_int_eq(client_get(s->port, "/metrics", &b, NULL), 200);
    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr(b.data, line);
    ck_assert_msg(at != NULL, "no metric %s", name);
    double v = strtod(at + strlen(line), NULL);
    buf_free(&b);
    return v;
}

bool served_wait(struct served *s, const char *name, double value, int ms)
{
    uint64_t start = clock_ns();
    while (served_metric(s, name) != value) {
        if (clock_ms_since(start) > ms)
            return false;
        usleep(2000);
    }
    return true;
}

static bool at_rest(struct served *s)
{
    bool rest = served_metric(s, "inferd_requests_running") == 0 && served_metric(s, "inferd_requests_waiting") == 0 &&
           served_metric(s, "inferd_kv_cache_usage_ratio") == 0;
    usleep(3000);    /* the worker closes the connection that asked */
    return rest && count_fds(s) <= s->n_fds;
}

void served_check(struct served *s, const char *title)
{
    double best = 1e9, ms;
    ck_assert_msg(kill(s->p.pid, 0) == 0, "%s: the worker is gone", title);
    /* The best of a few: the machine that runs the tests is not idle. */
    for (int i = 0; i < 20 && best >= 10; i++) {
        ck_assert_msg(client_get(s->port, "/health", NULL, &ms) == 200, "%s: /health", title);
        best = ms < best ? ms : best;
    }
    ck_assert_msg(best < 10, "%s: /health took %.1f ms at best", title, best);
    struct buf again = {0};
    control(s, &again);
    ck_assert_msg(strcmp(again.data, s->control.data) == 0, "%s: %s, before %s", title, again.data, s->control.data);
    buf_free(&again);
    uint64_t start = clock_ns();
    while (!at_rest(s)) {
        ck_assert_msg(clock_ms_since(start) < REST_MS, "%s: %g running, %g waiting, %g of the KV cache, %d descriptors (%d)", title,
                      served_metric(s, "inferd_requests_running"), served_metric(s, "inferd_requests_waiting"),
                      served_metric(s, "inferd_kv_cache_usage_ratio"), count_fds(s), s->n_fds);
        usleep(5000);
    }
}

void served_stop(struct served *s)
{
    if (s->p.pid > 0) {
        proc_signal(&s->p, SIGTERM);
        ck_assert_int_eq(proc_wait(&s->p, 10000), 0);
    }
    proc_free(&s->p);
    buf_free(&s->control);
}

long served_rss_kb(struct served *s)
{
    char path[64], line[256];
    long kb = -1;
    snprintf(path, sizeof path, "/proc/%d/status", (int)s->p.pid);
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    while (kb < 0 && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kb = strtol(line + 6, NULL, 10);
    fclose(f);
    return kb;
}

long served_cpu_ms(struct served *s)
{
    char path[64], line[1024], state;
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)s->p.pid);
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(line, sizeof line, f));
    fclose(f);
    ck_assert_int_eq(sscanf(strrchr(line, ')') + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &state, &user, &system), 3);
    return (long)((user + system) * 1000 / (unsigned long)sysconf(_SC_CLK_TCK));
}
