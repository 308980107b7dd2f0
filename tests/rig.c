#include "tests/rig.h"
#include "base/clock.h"
#include "tests/tiny.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- the device ---- */

/* A minute without news is a hang; sanitizers are slow. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { WAIT_S = 600 };
#else
enum { WAIT_S = 60 };
#endif
enum { ALL = -1, MAX_STEPS = 4096 };

/* The one gate: a device table has no argument for its hooks. */
static struct {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    int passes; /* steps that may pass; ALL */
    bool held;
    enum err_code broken;
    int us_per_step, us_per_row, phases, n_steps;
    struct rig_step steps[MAX_STEPS];
} gate = {.mu = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .passes = ALL};

static struct kern_device device;

static struct kern *gate_open(const struct kern_config *cfg, struct err *err)
{
    struct kern *k = kern_cpu.open(cfg, err);
    if (k != NULL)
        k->dev = &device;
    return k;
}

static void gate_step_begin(struct kern *k, const struct step *s)
{
    pthread_mutex_lock(&gate.mu);
    gate.held = gate.passes == 0;
    pthread_cond_broadcast(&gate.changed);
    while (gate.passes == 0)
        pthread_cond_wait(&gate.changed, &gate.mu);
    gate.held = false;
    if (gate.passes > 0)
        gate.passes--;
    struct rig_step step = {.n_rows = s->n_rows};
    for (int i = 0; i < s->n_rows; i++)
        step.n_seqs += i == 0 || s->rows[i].seq != s->rows[i - 1].seq;
    if (gate.n_steps < MAX_STEPS)
        gate.steps[gate.n_steps++] = step;
    int us = gate.us_per_step + gate.us_per_row * s->n_rows;
    pthread_mutex_unlock(&gate.mu);
    if (us > 0)
        usleep((useconds_t)us);
    kern_cpu.step_begin(k, s);
}

static void gate_attn(struct kern *k, const struct layer *l)
{
    pthread_mutex_lock(&gate.mu);
    gate.phases++;
    pthread_mutex_unlock(&gate.mu);
    kern_cpu.attn(k, l);
}

static bool gate_step_end(struct kern *k, struct err *err)
{
    pthread_mutex_lock(&gate.mu);
    enum err_code code = gate.broken;
    gate.broken = ERR_NONE;
    pthread_mutex_unlock(&gate.mu);
    return kern_cpu.step_end(k, err) && (code == ERR_NONE || err_set(err, code, "launch failed"));
}

static void set_passes(int n)
{
    pthread_mutex_lock(&gate.mu);
    gate.passes = n;
    if (n != 0)
        gate.held = false;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.mu);
}

void rig_hold(void)
{
    set_passes(0);
}

void rig_let(int n_steps)
{
    set_passes(n_steps);
}

void rig_go(void)
{
    set_passes(ALL);
}

void rig_wait_held(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&gate.mu);
    while (!gate.held)
        ck_assert_int_eq(pthread_cond_timedwait(&gate.changed, &gate.mu, &until), 0);
    pthread_mutex_unlock(&gate.mu);
}

void rig_slow(int us_per_step, int us_per_row)
{
    pthread_mutex_lock(&gate.mu);
    gate.us_per_step = us_per_step;
    gate.us_per_row = us_per_row;
    pthread_mutex_unlock(&gate.mu);
}

void rig_break(enum err_code code)
{
    pthread_mutex_lock(&gate.mu);
    gate.broken = code;
    pthread_mutex_unlock(&gate.mu);
}

int rig_phases(void)
{
    pthread_mutex_lock(&gate.mu);
    int n = gate.phases;
    pthread_mutex_unlock(&gate.mu);
    return n;
}

int rig_steps(const struct rig_step **steps)
{
    pthread_mutex_lock(&gate.mu);
    int n = gate.n_steps;
    pthread_mutex_unlock(&gate.mu);
    *steps = gate.steps;
    return n;
}

/* ---- the engine ---- */

void rig_open_adapter(struct rig *r, const struct rig_options *o)
{
    struct tiny_spec spec;
    struct err err = {0};
    *r = (struct rig){0};
    rig_slow(0, 0);
    pthread_mutex_lock(&gate.mu);
    gate.passes = ALL;
    gate.broken = ERR_NONE;
    gate.phases = gate.n_steps = 0;
    pthread_mutex_unlock(&gate.mu);
    int n_ctx = o->n_ctx > 0 ? o->n_ctx : 256;
    ck_assert_msg(tiny_preset(o->preset != NULL ? o->preset : "smollm2",
                              o->type != NULL ? o->type : "Q4_0", &spec, &err),
                  "%s", err.msg);
    spec.n_layer = o->n_layer > 0 ? o->n_layer : spec.n_layer;
    ck_assert_msg(tiny_image(&spec, &r->image, &err), "%s", err.msg);
    r->gguf = gguf_from_memory(r->image.data, r->image.len, &err);
    ck_assert_msg(r->gguf != NULL, "%s", err.msg);
    r->model = model_open(r->gguf, &err);
    ck_assert_msg(r->model != NULL, "%s", err.msg);
    device = kern_cpu;
    device.open = gate_open;
    device.step_begin = gate_step_begin;
    device.attn = gate_attn;
    device.step_end = gate_step_end;
    struct adapter_options a = {
        .device = o->device != NULL ? o->device : &device,
        .n_ctx = n_ctx,
        .n_ctx_given = true,
        .max_seqs = o->max_seqs > 0 ? o->max_seqs : 16,
        .max_rows = o->max_rows,
        .max_logits = o->max_logits,
        .kv_type = o->kv_type,
        .n_threads = o->n_threads > 0 ? o->n_threads : 1,
        .isa = o->isa,
    };
    struct adapter_plan plan;
    ck_assert_msg(adapter_plan(r->model, &a, &plan, &err), "%s", err.msg);
    a.kv_bytes = (size_t)o->n_pages * plan.kv_page;
    r->adapter = adapter_open(r->model, &a, &err);
    ck_assert_msg(r->adapter != NULL, "%s", err.msg);
}

void rig_open(struct rig *r, const struct rig_options *o)
{
    struct err err = {0};
    rig_open_adapter(r, o);
    struct engine_options e = o->engine;
    e.max_queue = e.max_queue > 0 ? e.max_queue : 128;
    r->engine = engine_open(r->adapter, &e, &err);
    ck_assert_msg(r->engine != NULL, "%s", err.msg);
}

void rig_wait_idle(struct rig *r)
{
    struct engine_stats s;
    for (int i = 0; i < 5000; i++) {
        engine_stats_get(r->engine, &s);
        if (engine_idle(r->engine) && s.kv_pages_used == 0)
            return;
        usleep(1000);
    }
    ck_abort_msg("not idle: %d running, %d queued, %d pages", s.running, s.queued, s.kv_pages_used);
}

void rig_close(struct rig *r)
{
    if (r->engine != NULL) {
        rig_wait_idle(r);
        engine_close(r->engine);
    } else {
        adapter_close(r->adapter);
    }
    rig_close_model(r);
}

void rig_close_model(struct rig *r)
{
    model_close(r->model);
    gguf_close(r->gguf);
    buf_free(&r->image);
}

/* ---- readers ---- */

struct gen_request rig_request(int n_prompt, uint64_t seed, int max_tokens)
{
    static int32_t prompt[4096];
    ck_assert_int_le(n_prompt, 4096);
    uint64_t x = seed * 2654435761u + 12345;
    for (int i = 0; i < n_prompt; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        prompt[i] = (int32_t)((x >> 40) % 500);
    }
    struct gen_request q = {
        .prompt = prompt,
        .n_prompt = n_prompt,
        .max_tokens = max_tokens,
        .sample = SAMPLE_DEFAULTS,
        .n_logprobs = -1,
    };
    q.sample.seed = seed;
    return q;
}

static void wake(void *arg)
{
    struct reader *rd = arg;
    atomic_fetch_add(&rd->n_wakes, 1);
    sem_post(&rd->woken);
}

bool reader_submit(struct reader *rd, struct rig *r, struct gen_request *q, int *retry_after_s,
                   struct err *err)
{
    memset(rd, 0, sizeof *rd);
    sem_init(&rd->woken, 0, 0);
    q->wake = wake;
    q->wake_arg = rd;
    rd->gen = engine_submit(r->engine, q, retry_after_s, err);
    return rd->gen != NULL;
}

void reader_start(struct reader *rd, struct rig *r, struct gen_request *q)
{
    struct err err = {0};
    ck_assert_msg(reader_submit(rd, r, q, NULL, &err), "%s", err.msg);
}

static void add_bytes(struct reader *rd, const void *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        rd->bytes = (rd->bytes ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

bool reader_poll(struct reader *rd)
{
    struct gen_event ev;
    while (gen_next(rd->gen, &ev)) {
        ck_assert_msg(!rd->ended, "an event after the last");
        if (ev.type == GEN_EV_STARTED) {
            ck_assert(!rd->started && rd->n_tokens == 0);
            rd->started = true;
            rd->n_cached = ev.cached_tokens;
            ck_assert_int_le(rd->n_cached, ev.prompt_tokens);
        } else if (ev.type == GEN_EV_TOKEN) {
            ck_assert(rd->started);
            if (rd->n_tokens == 0)
                rd->first_index = ev.index;
            ck_assert_int_eq(ev.index, rd->first_index + rd->n_tokens);
            ck_assert_int_lt(rd->n_tokens, READER_TOKENS);
            add_bytes(rd, &ev.token, sizeof ev.token);
            add_bytes(rd, &ev.logprob, sizeof ev.logprob);
            add_bytes(rd, ev.top, (size_t)ev.n_top * sizeof *ev.top);
            rd->logprobs[rd->n_tokens] = ev.logprob;
            rd->tokens[rd->n_tokens++] = ev.token;
        } else {
            rd->last = ev;
            rd->ended = true;
        }
    }
    return rd->ended;
}

/* One wake, at most WAIT_S. */
static void wait_wake(struct reader *rd)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    while (sem_timedwait(&rd->woken, &until) != 0)
        ck_assert_msg(errno == EINTR, "no wake in a minute: %d tokens so far", rd->n_tokens);
}

void reader_wait_tokens(struct reader *rd, int n)
{
    while (!reader_poll(rd) && rd->n_tokens < n)
        wait_wake(rd);
}

void reader_finish(struct reader *rd)
{
    while (!reader_poll(rd))
        wait_wake(rd);
}

void reader_free(struct reader *rd)
{
    gen_release(rd->gen);
    rd->gen = NULL;
    sem_destroy(&rd->woken);
}
