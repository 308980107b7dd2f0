/* inferd-bench: speeds of a model file on this machine, in llama-bench's letters. Checks before it
 * times (runner.h). */
#include "base/buf.h"
#include "bench/runner.h"
#include "bench/speculation.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LIST = 16, MAX_POS = 1 << 20 };

struct list {
    int n, v[MAX_LIST];
};

struct options {
    struct runner_options run;
    struct list prompt, gen, depth, batch;
    int n_reps;
    bool json;
    const char *ids_path; /* -s */
    float temperature;
};

static const char usage_text[] =
    "usage: inferd-bench -m FILE [options]\n"
    "  -m FILE       GGUF file\n"
    "  -p N[,N..]    prompt lengths (512); 0 = none\n"
    "  -n N[,N..]    tokens to generate (128); 0 = none\n"
    "  -d N[,N..]    positions already in the KV cache (0)\n"
    "  -b N[,N..]    sequences that generate together (1)\n"
    "  -ub N         rows of one prompt step (256)\n"
    "  -t N          threads (all CPUs)\n"
    "  -r N          repetitions (3)\n"
    "  -ctk TYPE     KV cache: f16, q8_0 or f32 (f16)\n"
    "  -dev NAME     auto, cpu, ref or cuda:N (auto)\n"
    "  -o FORMAT     md or json (md)\n"
    "  -s FILE       only: go on with the ids in FILE (a JSON array, see "
    "inferd-eval\n"
    "                --tokenize), without and with speculation\n"
    "  -temp X       its temperature, 0 to 2 (0)\n"
    "Else ids are random; prefix cache and speculation play no part. Each "
    "row is checked before it is timed.\n";

/* ---- options ---- */

static bool parse_int(const char *s, int min, int max, int *out)
{
    char *end;
    errno = 0;
    long v = strtol(s, &end, 10);
    if (end == s || *end != 0 || errno != 0 || v < min || v > max)
        return false;
    *out = (int)v;
    return true;
}

static bool parse_list(const char *s, int min, int max, struct list *out)
{
    char item[16];
    out->n = 0;
    for (;;) {
        size_t len = strcspn(s, ",");
        if (len >= sizeof item || out->n == MAX_LIST)
            return false;
        memcpy(item, s, len);
        item[len] = 0;
        if (!parse_int(item, min, max, &out->v[out->n++]))
            return false;
        if (s[len] == 0)
            return true;
        s += len + 1;
    }
}

static bool parse_device(const char *s, struct runner_options *o)
{
    o->device_index = 0;
    if (strcmp(s, "cpu") == 0)
        o->device = &kern_cpu;
    else if (strcmp(s, "ref") == 0)
        o->device = &kern_ref;
    else if (strcmp(s, "auto") == 0)
        o->device = kern_auto();
    else if (strncmp(s, "cuda:", 5) == 0 && parse_int(s + 5, 0, 63, &o->device_index))
        o->device = kern_cuda();
    else
        return false;
    return o->device != NULL;
}

static bool parse_kv(const char *s, enum kv_type *out)
{
    static const char *const names[KV_TYPE_N] = {
        [KV_F16] = "f16", [KV_Q8_0] = "q8_0", [KV_F32] = "f32"};
    for (int i = 0; i < KV_TYPE_N; i++)
        if (strcmp(s, names[i]) == 0) {
            *out = (enum kv_type)i;
            return true;
        }
    return false;
}

static bool parse_temperature(const char *s, float *out)
{
    char *end;
    *out = strtof(s, &end);
    return end != s && *end == 0 && *out >= 0 && *out <= 2;
}

static bool parse_option(struct options *o, const char *name, const char *value)
{
    if (strcmp(name, "-p") == 0)
        return parse_list(value, 0, MAX_POS, &o->prompt);
    if (strcmp(name, "-n") == 0)
        return parse_list(value, 0, MAX_POS, &o->gen);
    if (strcmp(name, "-d") == 0)
        return parse_list(value, 0, MAX_POS, &o->depth);
    if (strcmp(name, "-b") == 0)
        return parse_list(value, 1, 1024, &o->batch);
    if (strcmp(name, "-ub") == 0)
        return parse_int(value, 1, 4096, &o->run.max_rows);
    if (strcmp(name, "-t") == 0)
        return parse_int(value, 1, 1024, &o->run.n_threads);
    if (strcmp(name, "-r") == 0)
        return parse_int(value, 1, 1000, &o->n_reps);
    if (strcmp(name, "-ctk") == 0)
        return parse_kv(value, &o->run.kv_type);
    if (strcmp(name, "-dev") == 0)
        return parse_device(value, &o->run);
    if (strcmp(name, "-o") == 0) {
        o->json = strcmp(value, "json") == 0;
        return o->json || strcmp(value, "md") == 0;
    }
    if (strcmp(name, "-temp") == 0)
        return parse_temperature(value, &o->temperature);
    if (strcmp(name, "-s") == 0) {
        o->ids_path = value;
        return true;
    }
    if (strcmp(name, "-m") == 0)
        o->run.path = value;
    return strcmp(name, "-m") == 0;
}

static bool parse_options(struct options *o, int argc, char **argv, struct err *err)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    *o = (struct options){
        .run = {.max_rows = 256, .n_threads = cpus > 0 ? (int)cpus : 1},
        .prompt = {1, {512}},
        .gen = {1, {128}},
        .depth = {1, {0}},
        .batch = {1, {1}},
        .n_reps = 3,
    };
    parse_device("auto", &o->run);
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc)
            return err_set(err, ERR_USAGE, "option %s: no value", argv[i]);
        if (!parse_option(o, argv[i], argv[i + 1]))
            return err_set(err, ERR_USAGE, "option %s: \"%s\" is not allowed", argv[i],
                           argv[i + 1]);
    }
    if (o->run.path == NULL)
        return err_set(err, ERR_USAGE, "no model: -m FILE is required");
    for (int i = 0; o->ids_path != NULL && i < o->batch.n; i++)
        if (o->batch.v[i] > SPECULATION_MAX_BATCH)
            return err_set(err, ERR_USAGE, "option -b: with -s at most %d", SPECULATION_MAX_BATCH);
    int longest = 0, deepest = 0;
    for (int i = 0; i < o->prompt.n; i++)
        longest = o->prompt.v[i] > longest ? o->prompt.v[i] : longest;
    for (int i = 0; i < o->gen.n; i++)
        longest = o->gen.v[i] > longest ? o->gen.v[i] : longest;
    for (int i = 0; i < o->depth.n; i++)
        deepest = o->depth.v[i] > deepest ? o->depth.v[i] : deepest;
    o->run.max_pos = longest + deepest;
    for (int i = 0; i < o->batch.n; i++)
        o->run.max_batch = o->batch.v[i] > o->run.max_batch ? o->batch.v[i] : o->run.max_batch;
    return true;
}

/* ---- output ---- */

static void name_test(const struct runner_test *t, char *out, size_t size)
{
    int n = snprintf(out, size, "%s%d", t->n_prompt > 0 ? "pp" : "tg", t->n_prompt + t->n_gen);
    if (t->n_depth > 0)
        n += snprintf(out + n, size - (size_t)n, " @ d%d", t->n_depth);
    if (t->n_batch > 1)
        snprintf(out + n, size - (size_t)n, " x %d", t->n_batch);
}

static void print_md(const struct runner *r, const struct options *o, const struct runner_test *t,
                     const struct runner_result *x, bool first)
{
    const struct model *m = runner_model(r);
    char test[48], device[96];
    name_test(t, test, sizeof test);
    runner_describe(r, device, sizeof device);
    if (first)
        printf("%s %s, %.1f MiB, %.0f M parameters, %s, %s; %d positions checked against the "
               "reference\n\n"
               "| test | t/s | best t/s | GB/s | machine GB/s | share |\n"
               "| --- | ---: | ---: | ---: | ---: | ---: |\n",
               m->type, m->quant, (double)runner_file_bytes(r) / (1 << 20),
               (double)m->n_params * 1e-6, o->run.device->name, device, runner_n_checked(r));
    printf("| %s | %.2f ± %.2f | %.2f | %.2f |", test, x->avg_ts, x->stddev_ts, x->best_ts,
           x->gb_s);
    if (x->read_gb_s > 0)
        printf(" %.1f | %.0f %% |\n", x->read_gb_s, 100 * x->gb_s / x->read_gb_s);
    else
        printf(" | |\n");
}

static void print_json(const struct runner *r, const struct options *o, const struct runner_test *t,
                       const struct runner_result *x, bool first)
{
    const struct model *m = runner_model(r);
    char device[96];
    struct buf b = {0};
    runner_describe(r, device, sizeof device);
    buf_puts(&b, first ? "[\n  {\"model\": " : ",\n  {\"model\": ");
    buf_json_string(&b, o->run.path, strlen(o->run.path));
    buf_printf(
        &b, ", \"model_type\": \"%s\", \"quant\": \"%s\", \"model_bytes\": %zu, \"n_params\": %zu",
        m->type, m->quant, runner_file_bytes(r), m->n_params);
    buf_printf(&b, ", \"device\": \"%s\", \"device_info\": ", o->run.device->name);
    buf_json_string(&b, device, strlen(device));
    buf_printf(
        &b,
        ", \"n_threads\": %d, \"n_prompt\": %d, \"n_gen\": %d, \"n_depth\": %d, \"n_batch\": %d",
        o->run.n_threads, t->n_prompt, t->n_gen, t->n_depth, t->n_batch);
    buf_printf(&b, ", \"avg_ts\": %.3f, \"stddev_ts\": %.3f, \"best_ts\": %.3f, \"gb_s\": %.6f",
               x->avg_ts, x->stddev_ts, x->best_ts, x->gb_s);
    if (x->read_gb_s > 0)
        buf_printf(&b, ", \"read_gb_s\": %.3f, \"bandwidth_share\": %.4f", x->read_gb_s,
                   x->gb_s / x->read_gb_s);
    else
        buf_puts(&b, ", \"read_gb_s\": null, \"bandwidth_share\": null");
    buf_printf(&b, ", \"n_checked\": %d}", runner_n_checked(r));
    fputs(b.failed ? "" : b.data, stdout);
    buf_free(&b);
}

/* ---- rows ---- */

struct table {
    const struct options *o;
    struct runner *r;
    int n_rows;
};

static bool run_row(struct table *tab, const struct runner_test *t, struct err *err)
{
    struct runner_result x;
    if (!runner_run(tab->r, t, tab->o->n_reps, &x, err))
        return false;
    (tab->o->json ? print_json : print_md)(tab->r, tab->o, t, &x, tab->n_rows++ == 0);
    fflush(stdout);
    return true;
}

/* By depth, so that the KV cache is filled once: prompts, then generation by batch. */
static bool run_rows(struct table *tab, struct err *err)
{
    const struct options *o = tab->o;
    for (int d = 0; d < o->depth.n; d++) {
        for (int p = 0; p < o->prompt.n; p++) {
            struct runner_test t = {
                .n_prompt = o->prompt.v[p], .n_depth = o->depth.v[d], .n_batch = 1};
            if (t.n_prompt > 0 && !run_row(tab, &t, err))
                return false;
        }
        for (int b = 0; b < o->batch.n; b++)
            for (int n = 0; n < o->gen.n; n++) {
                struct runner_test t = {
                    .n_gen = o->gen.v[n], .n_depth = o->depth.v[d], .n_batch = o->batch.v[b]};
                if (t.n_gen > 0 && !run_row(tab, &t, err))
                    return false;
            }
    }
    return true;
}

/* ---- rows with speculation ---- */

static void print_speculation(const struct options *o, const struct speculation_test *t,
                              const struct speculation_result *x, bool first)
{
    double share = x->drafted > 0 ? x->accepted / x->drafted : 0;
    if (!o->json && first)
        printf("| prompt | temperature | test | off, t/s | on, t/s | ratio | drafted | accepted | "
               "steps |\n| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    if (!o->json) {
        printf("| %d | %g | tg%d x %d | %.2f | %.2f | %.3f | %.0f | %.0f (%.0f %%) | %.0f |\n",
               t->n_ids, (double)t->temperature, t->n_gen, t->n_batch, x->off_ts, x->on_ts,
               x->on_ts / x->off_ts, x->drafted, x->accepted, 100 * share, x->steps);
        return;
    }
    printf("%s{\"speculation\": true, \"n_prompt\": %d, \"temperature\": %g, \"n_gen\": %d, "
           "\"n_batch\": %d, \"off_ts\": %.3f, \"on_ts\": %.3f, \"drafted\": %.1f, "
           "\"accepted\": %.1f, \"steps\": %.1f}",
           first ? "[\n  " : ",\n  ", t->n_ids, (double)t->temperature, t->n_gen, t->n_batch,
           x->off_ts, x->on_ts, x->drafted, x->accepted, x->steps);
}

static bool run_speculation(const struct options *o, struct err *err)
{
    struct speculation_test t = {.temperature = o->temperature};
    struct speculation_result x;
    int32_t *ids = NULL;
    int n_rows = 0;
    bool ok = speculation_read_ids(o->ids_path, &ids, &t.n_ids, err);
    t.ids = ids;
    for (int b = 0; ok && b < o->batch.n; b++)
        for (int n = 0; ok && n < o->gen.n; n++) {
            t.n_batch = o->batch.v[b];
            t.n_gen = o->gen.v[n];
            if (t.n_gen == 0)
                continue;
            ok = speculation_run(&o->run, &t, o->n_reps, &x, err);
            if (ok)
                print_speculation(o, &t, &x, n_rows++ == 0);
            fflush(stdout);
        }
    if (o->json)
        printf(n_rows > 0 ? "\n]\n" : "[]\n");
    free(ids);
    return ok;
}

static int exit_code(enum err_code code)
{
    switch (code) {
    case ERR_USAGE:
        return 64;
    case ERR_MODEL:
        return 65;
    case ERR_NO_MODEL:
        return 66;
    case ERR_DEVICE:
        return 69;
    case ERR_SYSTEM:
        return 71;
    default:
        return 70;
    }
}

int main(int argc, char **argv)
{
    struct options o;
    struct err err = {0};
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage_text, stdout);
        return 0;
    }
    bool ok = parse_options(&o, argc, argv, &err);
    struct table tab = {.o = &o};
    if (ok && o.ids_path != NULL) {
        ok = run_speculation(&o, &err);
    } else if (ok) {
        tab.r = runner_open(&o.run, &err);
        ok = tab.r != NULL && run_rows(&tab, &err);
    }
    if (o.json && tab.r != NULL)
        printf(tab.n_rows > 0 ? "\n]\n" : "[]\n");
    runner_close(tab.r);
    if (!ok)
        fprintf(stderr, "inferd-bench: %s\n", err.msg);
    return ok ? 0 : exit_code(err.code);
}
