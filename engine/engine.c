/* Two threads. The engine thread owns the adapter and runs the steps. The watch thread ends what is
 * past its deadline, on time whatever the step takes; it does so as a client's cancel does, and
 * touches nothing else. */
#include "engine/engine.h"
#include "base/clock.h"
#include "base/mem.h"
#include "engine/gen.h"
#include "engine/scheduler.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    IDLE_MS = 100,         /* between two signs of life when there is nothing to do */
    RESIDENT_CHECK_S = 60, /* between two looks at where the weights are */
};

struct counters {
    atomic_int running, queued, pages_used, last_batch;
    _Atomic uint64_t tokens_in, tokens_out, heartbeat_ns, steps, draft_tokens, draft_accepted;
    _Atomic uint64_t prefix_queries, prefix_hits;
};

struct engine {
    struct engine_options o;
    struct adapter *adapter; /* the engine thread's; its facts are constant */
    struct sampler *sampler; /* the engine thread's */
    struct draw *draws;      /* (max_logits), of a step; NULL: the device does not draw */
    struct draw_edit *edits; /* (max_logits, DRAW_MAX_EDITS) */
    pthread_t thread, watch_thread;
    bool has_thread, has_watch;
    struct counters n;
    atomic_bool failed;

    pthread_mutex_t mu;   /* guards all below; but s.step and s.pace are the engine thread's */
    pthread_cond_t work;  /* wakes the engine thread: a request, or closing */
    pthread_cond_t watch; /* wakes the watch thread: an earlier deadline, or closing */
    struct sched s;
    uint64_t watch_until; /* what the watch thread sleeps until */
    bool draining, closing;
    struct err failure;
};

/* ---- under the lock ---- */

static void publish_counts(struct engine *e)
{
    atomic_store_explicit(&e->n.running, e->s.n_running, memory_order_relaxed);
    atomic_store_explicit(&e->n.queued, e->s.n_queued, memory_order_relaxed);
    atomic_store_explicit(&e->n.pages_used, e->s.kv.n_pages - e->s.kv.n_free, memory_order_relaxed);
}

static void wait_until(pthread_cond_t *cond, pthread_mutex_t *mu, uint64_t ns)
{
    struct timespec ts = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    if (ns == UINT64_MAX)
        pthread_cond_wait(cond, mu);
    else
        pthread_cond_timedwait(cond, mu, &ts);
}

static void watch_deadline(struct engine *e, uint64_t deadline_ns)
{
    if (deadline_ns < e->watch_until)
        pthread_cond_signal(&e->watch);
}

/* ---- ending many ---- */

static bool is_live(const struct gen *g, const void *arg)
{
    (void)arg;
    return !gen_ended(g);
}

static bool is_overdue(const struct gen *g, const void *now)
{
    return !gen_ended(g) && g->deadline_ns <= *(const uint64_t *)now;
}

/* One by one: a wake function must not run under the engine's lock. */
static void end_all(struct engine *e, enum err_code code, const char *message)
{
    for (;;) {
        pthread_mutex_lock(&e->mu);
        struct gen *g = sched_find(&e->s, is_live, NULL);
        if (g != NULL)
            gen_ref(g);
        pthread_mutex_unlock(&e->mu);
        if (g == NULL)
            return;
        gen_cancel(g, code, message);
        gen_unref(g);
    }
}

/* ---- the watch thread ---- */

static bool earlier(const struct gen *g, const void *arg)
{
    uint64_t *first = *(uint64_t *const *)arg;
    if (!gen_ended(g) && g->deadline_ns < *first)
        *first = g->deadline_ns;
    return false;
}

static void end_overdue(struct gen *g, bool ours, double timeout_s)
{
    char message[96];
    if (ours)
        snprintf(message, sizeof message, "the request ran longer than %g s", timeout_s);
    else
        snprintf(message, sizeof message, "the deadline of the request has passed");
    gen_cancel(g, ERR_TIMEOUT, message);
    gen_unref(g);
}

static void *watch_main(void *arg)
{
    struct engine *e = arg;
    pthread_mutex_lock(&e->mu);
    while (!e->closing) {
        uint64_t now = clock_ns(), first = UINT64_MAX, *p = &first;
        struct gen *g = sched_find(&e->s, is_overdue, &now);
        if (g != NULL) {
            bool ours = g->deadline_is_ours;
            gen_ref(g);
            pthread_mutex_unlock(&e->mu);
            end_overdue(g, ours, e->o.inference_timeout_s);
            pthread_mutex_lock(&e->mu);
            continue;
        }
        sched_find(&e->s, earlier, &p);
        e->watch_until = first;
        wait_until(&e->watch, &e->mu, first);
    }
    pthread_mutex_unlock(&e->mu);
    return NULL;
}

/* ---- a step, on the engine thread ---- */

void engine_fail(struct engine *e, const struct err *cause)
{
    pthread_mutex_lock(&e->mu);
    if (!atomic_load_explicit(&e->failed, memory_order_relaxed)) { /* readers take no lock: written once */
        e->failure = *cause;
        if (cause->code != ERR_CUDA)
            e->failure.code = ERR_INTERNAL; /* rows that break the adapter's rules are our fault */
        atomic_store_explicit(&e->failed, true, memory_order_release);
    }
    pthread_mutex_unlock(&e->mu);
    end_all(e, e->failure.code, e->failure.msg);
}

static bool is_stop_token(const struct gen *g, int32_t token)
{
    for (int i = 0; i < g->n_stop_tokens; i++)
        if (g->stop_tokens[i] == token)
            return true;
    return false;
}

static bool put_token(struct engine *e, struct gen *g, int32_t token, const float *logits)
{
    struct gen_piece piece = {.token = token};
    struct token_logprob top[20];
    if (g->n_logprobs >= 0)
        piece.logprob = sampler_logprob(e->sampler, logits, token);
    if (g->n_logprobs > 0)
        piece.n_top = sampler_top_logprobs(e->sampler, logits, g->n_logprobs, top);
    return gen_put_token(g, piece, top);
}

static struct sample_in sample_of(const struct gen *g, const float *logits)
{
    return (struct sample_in){
        .logits = logits,
        .params = &g->sample,
        .history = g->history,
        .n_prompt = g->n_prompt,
        .n_history = g->n_history,
        .position = (uint64_t)g->n_history,
        .banned = g->stop_tokens,
        .n_banned = gen_n_out(g) < g->min_tokens ? g->n_stop_tokens : 0,
    };
}

/* The draws that the device can do: all but those that need the logits here, too (for log-probabilities), or that of the
 * token before (drafts). */
static const struct draw *defer_draws(struct engine *e)
{
    int n = 0;
    for (int i = 0; e->draws != NULL && i < e->s.step.n_members; i++) {
        const struct member *m = &e->s.step.members[i];
        for (int j = 0; m->sample && j <= m->n_draft; j++, n++) {
            struct sample_in in = sample_of(m->gen, NULL);
            e->draws[n].here = false;
            if (m->n_draft == 0 && m->gen->n_logprobs < 0)
                sampler_defer(e->sampler, &in, &e->draws[n], e->edits + (size_t)n * DRAW_MAX_EDITS);
        }
    }
    return e->draws;
}

/* Nothing can be drawn from logits of which none is a number: damaged weights, or activations that overflow. Only what met
 * them ends: other prompts may not. */
static void end_without_numbers(struct gen *g)
{
    char message[128];
    snprintf(message, sizeof message, "the model gives no numbers after %d tokens (its weights may be damaged)", g->n_history);
    gen_cancel(g, ERR_INTERNAL, message);
}

/* Draws the next token, unless the device did (drawn is not -1). False: it ended the gen, or found it ended. */
static bool sample(struct engine *e, struct gen *g, const float *logits, int32_t drawn)
{
    if (gen_ended(g))
        return false;
    struct sample_in in = sample_of(g, logits);
    int32_t token = drawn != -1 ? drawn : sampler_draw(e->sampler, &in);
    if (token < 0) {
        end_without_numbers(g);
        return false;
    }
    if (is_stop_token(g, token)) {
        gen_put_end(g, STOP_TOKEN);
        return false;
    }
    if (!put_token(e, g, token, logits)) {
        char message[96];
        snprintf(message, sizeof message, "the reader is too slow: %d tokens unread", g->ring_size);
        gen_cancel(g, ERR_CANCELLED, message);
        return false;
    }
    g->history[g->n_history++] = token;
    atomic_fetch_add_explicit(&e->n.tokens_out, 1, memory_order_relaxed);
    if (gen_n_out(g) == g->max_out)
        gen_put_end(g, g->limit);
    return true;
}

/* Draws a token from each row that stands on what was really drawn before. The rest was computed in
 * vain: n_computed does not count it, and whoever comes to its positions writes over it. */
static void sample_member(struct engine *e, const struct member *m, const float *const *logits,
                          const int32_t *drawn)
{
    struct gen *g = m->gen;
    int i = 0, n = g->n_history;
    if (gen_ended(g))
        return;
    while (sample(e, g, logits[i], drawn[i])) {
        bool right = draft_check(&g->draft, g->history, n + i, g->history[n + i]);
        if (!right || i == m->n_draft)
            break;
        i++;
        g->n_computed++;
    }
    if (m->n_draft > 0) {
        atomic_fetch_add_explicit(&e->n.draft_tokens, (uint64_t)m->n_draft, memory_order_relaxed);
        atomic_fetch_add_explicit(&e->n.draft_accepted, (uint64_t)i, memory_order_relaxed);
    }
    gen_wake(g);
}

static void run_step(struct engine *e)
{
    const struct sched_step *st = &e->s.step;
    /* Only when nobody else loses by it may a gen's end abandon the step. */
    const atomic_bool *stop = st->n_members == 1 ? &st->members[0].gen->ended : NULL;
    struct step_out out;
    struct err err = {0};
    uint64_t start = clock_ns();
    if (!adapter_step_draw(e->adapter, st->rows, st->n_rows, defer_draws(e), &out, stop, &err)) {
        if (err.code != ERR_CANCELLED)
            engine_fail(e, &err);
        return;
    }
    if (st->n_decode == st->n_rows)
        speculate_measure(&e->s.spec, st->n_rows, clock_ms_since(start) / 1e3);
    int n_drawn = 0;
    for (int i = 0; i < st->n_members; i++) {
        const struct member *m = &st->members[i];
        m->gen->n_computed += m->n;
        if (!m->sample)
            continue;
        sample_member(e, m, out.logits + n_drawn, out.tokens + n_drawn);
        n_drawn += 1 + m->n_draft;
    }
    sched_measure(&e->s, clock_ms_since(start) / 1e3);
    atomic_fetch_add_explicit(&e->n.steps, 1, memory_order_relaxed);
    atomic_store_explicit(&e->n.last_batch, st->n_rows, memory_order_relaxed);
}

/* ---- the engine thread ---- */

static bool is_new(const struct gen *g, const void *arg)
{
    (void)arg;
    return g->seq >= 0 && !g->begun;
}

static void count_prompt(struct engine *e, const struct gen *g)
{
    struct counters *n = &e->n;
    atomic_fetch_add_explicit(&n->tokens_in, (uint64_t)g->n_prompt, memory_order_relaxed);
    if (g->cache_scope == NULL)
        return;
    atomic_fetch_add_explicit(&n->prefix_queries, (uint64_t)g->n_history, memory_order_relaxed);
    atomic_fetch_add_explicit(&n->prefix_hits, (uint64_t)g->n_cached, memory_order_relaxed);
}

/* Tells those that were admitted that they run. Takes and gives back the lock around each. */
static void begin_new(struct engine *e)
{
    for (struct gen *g = sched_find(&e->s, is_new, NULL); g != NULL;
         g = sched_find(&e->s, is_new, NULL)) {
        g->begun = true;
        uint64_t limit_ns =
            e->o.inference_timeout_s > 0 ? (uint64_t)(e->o.inference_timeout_s * 1e9) : 0;
        uint64_t end_ns = limit_ns > 0 ? clock_ns() + limit_ns : UINT64_MAX;
        if (end_ns < g->deadline_ns) {
            g->deadline_ns = end_ns;
            g->deadline_is_ours = true;
            watch_deadline(e, end_ns);
        }
        pthread_mutex_unlock(&e->mu);
        gen_put_started(g);
        count_prompt(e, g);
        if (gen_n_out(g) >= g->max_out) /* resumed after its last token */
            gen_put_end(g, g->limit);
        gen_wake(g);
        pthread_mutex_lock(&e->mu);
    }
}

/* Between steps, here, because this thread alone touches the device. Asks the driver, waits for nothing on the card. */
static void check_resident(struct engine *e)
{
    struct err err = {0};
    pthread_mutex_unlock(&e->mu);
    if (!adapter_resident(e->adapter, &err))
        engine_fail(e, &err);
    pthread_mutex_lock(&e->mu);
}

static void *engine_main(void *arg)
{
    struct engine *e = arg;
    double every_s = e->o.resident_check_s > 0 ? e->o.resident_check_s : RESIDENT_CHECK_S;
    uint64_t every_ns = (uint64_t)(every_s * 1e9), next_check = clock_ns() + every_ns;
    pthread_mutex_lock(&e->mu);
    while (!e->closing) {
        uint64_t now = clock_ns();
        atomic_store_explicit(&e->n.heartbeat_ns, now, memory_order_relaxed);
        if (now >= next_check) {
            next_check = now + every_ns;
            check_resident(e);
        }
        sched_reap(&e->s, true);
        sched_admit(&e->s);
        begin_new(e);
        bool any = sched_choose(&e->s);
        publish_counts(e);
        if (any) {
            pthread_mutex_unlock(&e->mu);
            run_step(e);
            pthread_mutex_lock(&e->mu);
            sched_publish(&e->s);
        } else if (e->s.n_running + e->s.n_queued == 0 && !e->closing) {
            wait_until(&e->work, &e->mu, now + IDLE_MS * 1000000ull);
        }
    }
    pthread_mutex_unlock(&e->mu);
    return NULL;
}

/* ---- open and close ---- */

static bool init_sync(struct engine *e)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return false;
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->mu, NULL);
    pthread_cond_init(&e->work, &attr);
    pthread_cond_init(&e->watch, &attr);
    pthread_condattr_destroy(&attr);
    return true;
}

static void stop_threads(struct engine *e)
{
    pthread_mutex_lock(&e->mu);
    e->draining = e->closing = true;
    pthread_cond_signal(&e->work);
    pthread_cond_signal(&e->watch);
    pthread_mutex_unlock(&e->mu);
    if (e->has_thread)
        pthread_join(e->thread, NULL);
    if (e->has_watch)
        pthread_join(e->watch_thread, NULL);
}

static void destroy(struct engine *e)
{
    stop_threads(e);
    sched_free(&e->s);
    sampler_free(e->sampler);
    free(e->draws);
    free(e->edits);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->watch);
    pthread_mutex_destroy(&e->mu);
    free(e);
}

static bool make_draws(struct engine *e)
{
    size_t n = (size_t)adapter_max_logits(e->adapter);
    if (!adapter_draws(e->adapter))
        return true;
    e->draws = mem_alloc(n, sizeof *e->draws);
    e->edits = mem_alloc(n * DRAW_MAX_EDITS, sizeof *e->edits);
    return e->draws != NULL && e->edits != NULL;
}

struct engine *engine_open(struct adapter *a, const struct engine_options *o, struct err *err)
{
    if (a == NULL) {
        err_set(err, ERR_NOT_READY, "MODEL_NOT_LOADED: no model is loaded");
        return NULL;
    }
    struct engine *e = mem_alloc(1, sizeof *e);
    if (e == NULL || !init_sync(e)) {
        err_set(err, ERR_OOM, "no memory for the engine");
        free(e);
        return NULL;
    }
    e->o = *o;
    e->adapter = a;
    e->watch_until = UINT64_MAX;
    atomic_init(&e->n.heartbeat_ns, clock_ns());
    if (!sched_init(&e->s, a, o->max_queue, o->max_jobs_per_key, err))
        goto fail;
    e->s.spec.mode = o->speculate;
    e->sampler = sampler_new(adapter_vocab_size(a));
    if (e->sampler == NULL || !make_draws(e)) {
        err_set(err, ERR_OOM, "no memory for the sampler of %d tokens", adapter_vocab_size(a));
        goto fail;
    }
    e->has_thread = pthread_create(&e->thread, NULL, engine_main, e) == 0;
    e->has_watch = pthread_create(&e->watch_thread, NULL, watch_main, e) == 0;
    if (e->has_thread && e->has_watch)
        return e;
    err_set(err, ERR_SYSTEM, "cannot start the engine's threads");
fail:
    destroy(e);
    return NULL;
}

void engine_close(struct engine *e)
{
    if (e == NULL)
        return;
    struct adapter *a = e->adapter;
    pthread_mutex_lock(&e->mu);
    e->draining = true;
    pthread_mutex_unlock(&e->mu);
    end_all(e, ERR_CANCELLED, "the worker stops");
    stop_threads(e);
    sched_reap(&e->s, true);
    destroy(e);
    adapter_close(a);
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->mu);
    e->draining = true;
    pthread_mutex_unlock(&e->mu);
}

bool engine_idle(const struct engine *e)
{
    return atomic_load(&e->n.running) + atomic_load(&e->n.queued) == 0;
}

void engine_cancel_all(struct engine *e)
{
    end_all(e, ERR_CANCELLED, "cancelled");
}

/* ---- requests ---- */

static bool submit(struct engine *e, struct gen *g, int *retry_after_s, struct err *err)
{
    if (atomic_load_explicit(&e->failed, memory_order_acquire))
        return err_set(err, ERR_NOT_READY, "the device has failed: %s", e->failure.msg);
    if (e->draining)
        return err_set(err, ERR_DRAINING, "the worker is shutting down");
    if (!sched_submit(&e->s, g, retry_after_s, err))
        return false;
    publish_counts(e);
    watch_deadline(e, g->deadline_ns);
    pthread_cond_signal(&e->work);
    return true;
}

struct gen *engine_submit(struct engine *e, const struct gen_request *r, int *retry_after_s,
                          struct err *err)
{
    int unused;
    if (e == NULL) {
        err_set(err, ERR_NOT_READY, "MODEL_NOT_LOADED: no model is loaded");
        return NULL;
    }
    struct gen *g = gen_new(r, adapter_n_ctx(e->adapter), adapter_vocab_size(e->adapter),
                            e->o.ring_events, err);
    if (g == NULL)
        return NULL;
    pthread_mutex_lock(&e->mu);
    bool ok = submit(e, g, retry_after_s != NULL ? retry_after_s : &unused, err);
    pthread_mutex_unlock(&e->mu);
    if (ok)
        return g;
    gen_unref(g); /* both references */
    gen_unref(g);
    return NULL;
}

/* ---- facts ---- */

void engine_stats_get(const struct engine *e, struct engine_stats *out)
{
    const struct counters *n = &e->n;
    int max_seqs = adapter_max_seqs(e->adapter);
    *out = (struct engine_stats){
        .running = atomic_load_explicit(&n->running, memory_order_relaxed),
        .queued = atomic_load_explicit(&n->queued, memory_order_relaxed),
        .kv_pages_used = atomic_load_explicit(&n->pages_used, memory_order_relaxed),
        .kv_pages_total = adapter_n_pages(e->adapter),
        .tokens_in = atomic_load_explicit(&n->tokens_in, memory_order_relaxed),
        .tokens_out = atomic_load_explicit(&n->tokens_out, memory_order_relaxed),
        .heartbeat_ns = atomic_load_explicit(&n->heartbeat_ns, memory_order_relaxed),
        .steps = atomic_load_explicit(&n->steps, memory_order_relaxed),
        .last_batch = atomic_load_explicit(&n->last_batch, memory_order_relaxed),
        .draft_tokens = atomic_load_explicit(&n->draft_tokens, memory_order_relaxed),
        .draft_accepted = atomic_load_explicit(&n->draft_accepted, memory_order_relaxed),
        .failed = atomic_load_explicit(&e->failed, memory_order_acquire),
        .prefix_queries = atomic_load_explicit(&n->prefix_queries, memory_order_relaxed),
        .prefix_hits = atomic_load_explicit(&n->prefix_hits, memory_order_relaxed),
    };
    out->load = out->queued > 0 ? 1 : (double)out->running / max_seqs;
}

bool engine_failure(const struct engine *e, struct err *err)
{
    if (!atomic_load_explicit(&e->failed, memory_order_acquire))
        return false;
    *err = e->failure; /* written once, before failed */
    return true;
}

const struct adapter *engine_adapter(const struct engine *e)
{
    return e->adapter;
}
