#include "bench/speculation.h"

#include "base/mem.h"
#include "engine/engine.h"

#include <errno.h>
#include <limits.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- ids ---- */

/* Numbers between brackets, with commas between; -1 = something else. */
static int parse_ids(const char *s, int32_t *ids, int max)
{
    int n = 0;
    s += strspn(s, " \n\r\t");
    if (*s++ != '[')
        return -1;
    for (;;) {
        char *end;
        errno = 0;
        long id = strtol(s, &end, 10);
        if (end == s || errno != 0 || id < 0 || id > INT32_MAX || n == max)
            return -1;
        ids[n++] = (int32_t)id;
        s = end + strspn(end, " \n\r\t");
        if (*s == ']')
            return s[1 + strspn(s + 1, " \n\r\t")] == 0 ? n : -1;
        if (*s++ != ',')
            return -1;
    }
}

bool speculation_read_ids(const char *path, int32_t **ids, int *n, struct err *err)
{
    enum { MAX_BYTES = 8 << 20 };
    FILE *f = fopen(path, "r");
    if (f == NULL)
        return err_set(err, ERR_USAGE, "%s: %s", path, strerror(errno));
    char *text = mem_alloc(MAX_BYTES + 1, 1);
    *ids = mem_alloc(MAX_BYTES / 2, sizeof **ids);
    size_t got = text != NULL ? fread(text, 1, MAX_BYTES, f) : 0;
    fclose(f);
    *n = *ids != NULL && got < MAX_BYTES ? parse_ids(text, *ids, MAX_BYTES / 2) : -1;
    free(text);
    return *n > 0 || err_set(err, ERR_USAGE, "%s: not a JSON array of token ids", path);
}

/* ---- a run ---- */

struct subject { /* an engine with all below it */
    struct gguf *gguf;
    struct model *model;
    struct engine *engine;
    struct engine_stats before;
};

static bool open_subject(struct subject *s, const struct runner_options *o,
                         const struct speculation_test *t, enum speculation mode, struct err *err)
{
    s->gguf = gguf_open(o->path, err);
    s->model = s->gguf != NULL ? model_open(s->gguf, err) : NULL;
    struct adapter_options ao = {
        .device = o->device,
        .device_index = o->device_index,
        .n_ctx = t->n_ids + t->n_gen,
        .n_ctx_given = true,
        .max_seqs = t->n_batch,
        .max_rows = o->max_rows,
        .kv_type = o->kv_type,
        .n_threads = o->n_threads,
    };
    struct engine_options eo = {.max_queue = t->n_batch, .speculate = mode};
    struct adapter *a = s->model != NULL ? adapter_open(s->model, &ao, err) : NULL;
    if (a == NULL)
        return false;
    s->engine = engine_open(a, &eo, err);
    if (s->engine == NULL)
        adapter_close(a);
    return s->engine != NULL;
}

static void close_subject(struct subject *s)
{
    engine_close(s->engine);
    model_close(s->model);
    gguf_close(s->gguf);
}

static void wake(void *arg)
{
    sem_post(arg);
}

/* Reads what there is; true when the generation is over. */
static bool drain(struct gen *g, int32_t *tokens, int *n, struct err *err)
{
    struct gen_event ev;
    while (gen_next(g, &ev)) {
        if (ev.type == GEN_EV_TOKEN)
            tokens[(*n)++] = ev.token;
        if (ev.type == GEN_EV_ERROR)
            err_set(err, ev.code, "%s", ev.message);
        if (ev.type == GEN_EV_END || ev.type == GEN_EV_ERROR)
            return true;
    }
    return false;
}

/* One run of all generations: their tokens and the sum of their speeds. */
static bool run(struct subject *s, const struct speculation_test *t, int32_t *tokens, double *ts,
                struct err *err)
{
    struct gen *gens[SPECULATION_MAX_BATCH] = {0};
    sem_t woken;
    *ts = 0;
    sem_init(&woken, 0, 0);
    engine_stats_get(s->engine, &s->before);
    for (int i = 0; i < t->n_batch; i++) {
        struct gen_request q = {
            .prompt = t->ids,
            .n_prompt = t->n_ids,
            .max_tokens = t->n_gen,
            .sample = SAMPLE_DEFAULTS,
            .n_logprobs = -1,
            .wake = wake,
            .wake_arg = &woken,
        };
        q.sample.temperature = t->temperature;
        q.sample.seed = (uint64_t)i;
        gens[i] = engine_submit(s->engine, &q, NULL, err);
        if (gens[i] == NULL)
            goto done;
    }
    for (int i = 0; i < t->n_batch; i++) {
        int n = 0;
        while (!drain(gens[i], tokens + (size_t)i * (size_t)t->n_gen, &n, err))
            sem_wait(&woken);
        struct gen_stats g;
        gen_stats_get(gens[i], &g);
        if (g.decode_ms > 0)
            *ts += (g.tokens_out - 1) / g.decode_ms * 1e3;
    }
    while (!engine_idle(s->engine)) /* it counts a step when the step is over */
        usleep(100);
done:
    for (int i = 0; i < t->n_batch; i++)
        gen_release(gens[i]);
    sem_destroy(&woken);
    return err->code == ERR_NONE;
}

static void count(const struct subject *s, int n_reps, struct speculation_result *out)
{
    struct engine_stats now;
    engine_stats_get(s->engine, &now);
    out->drafted += (double)(now.draft_tokens - s->before.draft_tokens) / n_reps;
    out->accepted += (double)(now.draft_accepted - s->before.draft_accepted) / n_reps;
    out->steps += (double)(now.steps - s->before.steps) / n_reps;
}

/* The first run of each is a warm-up, in which costs are learned, and gives the tokens that all
 * others must give. */
static bool run_both(struct subject *off, struct subject *on, const struct speculation_test *t,
                     int n_reps, int32_t *want, int32_t *got, struct speculation_result *out,
                     struct err *err)
{
    size_t bytes = (size_t)t->n_gen * (size_t)t->n_batch * sizeof *want;
    double ts;
    for (int i = 0; i <= n_reps; i++) {
        if (!run(off, t, i == 0 ? want : got, &ts, err))
            return false;
        if (i > 0)
            out->off_ts = ts > out->off_ts ? ts : out->off_ts;
        if (i > 0 && memcmp(want, got, bytes) != 0)
            return err_set(err, ERR_INTERNAL, "two runs gave different tokens");
        if (!run(on, t, got, &ts, err))
            return false;
        if (memcmp(want, got, bytes) != 0)
            return err_set(err, ERR_INTERNAL, "speculation changed the tokens");
        if (i == 0)
            continue;
        out->on_ts = ts > out->on_ts ? ts : out->on_ts;
        count(on, n_reps, out);
    }
    return true;
}

bool speculation_run(const struct runner_options *o, const struct speculation_test *t, int n_reps,
                     struct speculation_result *out, struct err *err)
{
    struct subject off = {0}, on = {0};
    size_t n = (size_t)t->n_gen * (size_t)t->n_batch;
    int32_t *want = mem_alloc(n, sizeof *want), *got = mem_alloc(n, sizeof *got);
    *out = (struct speculation_result){0};
    bool ok = want != NULL && got != NULL;
    if (!ok)
        err_set(err, ERR_DEVICE, "no memory for %zu tokens", n);
    ok = ok && open_subject(&off, o, t, SPECULATE_OFF, err) &&
         open_subject(&on, o, t, SPECULATE_ON, err) &&
         run_both(&off, &on, t, n_reps, want, got, out, err);
    close_subject(&off);
    close_subject(&on);
    free(want);
    free(got);
    return ok;
}
