#include "engine/gen.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_RING = 4096, MAX_LOGPROBS = 20 };

const char *const stop_reason_name[STOP_N] = {
    [STOP_TOKEN] = "stop_token",
    [STOP_STRING] = "stop_string",
    [STOP_MAX_TOKENS] = "max_tokens",
    [STOP_CONTEXT] = "context",
};

/* ---- making one ---- */

static bool check_ids(const char *what, const int32_t *ids, int n, int n_vocab, struct err *err)
{
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return err_set(err, ERR_INVALID, "%s[%d] is token %d, allowed 0 to %d", what, i, ids[i],
                           n_vocab - 1);
    return true;
}

static bool check_request(const struct gen_request *r, int n_ctx, int n_vocab, struct err *err)
{
    if (r->n_prompt < 1)
        return err_set(err, ERR_INVALID, "prompt has no token");
    if (r->max_tokens < 1)
        return err_set(err, ERR_INVALID, "max_tokens is %d, allowed 1 and more", r->max_tokens);
    if (r->n_resume < 0 || r->n_stop_tokens < 0 || r->sample.n_bias < 0)
        return err_set(err, ERR_INVALID, "negative count of resumed tokens, stop tokens or biases");
    if (r->n_logprobs > MAX_LOGPROBS)
        return err_set(err, ERR_INVALID, "logprobs is %d, allowed 0 to %d", r->n_logprobs,
                       MAX_LOGPROBS);
    if (r->n_prompt > n_ctx)
        return err_set(err, ERR_CONTEXT, "prompt of %d tokens, the context is %d tokens",
                       r->n_prompt, n_ctx);
    if (r->n_resume > n_ctx - r->n_prompt + 1)
        return err_set(err, ERR_CONTEXT,
                       "prompt of %d and resumed output of %d tokens, the context is %d tokens",
                       r->n_prompt, r->n_resume, n_ctx);
    return check_ids("prompt", r->prompt, r->n_prompt, n_vocab, err) &&
           check_ids("resume", r->resume, r->n_resume, n_vocab, err);
}

/* Places n items behind what is there, aligned for anything; NULL base = only counts. */
static void *carve(char *base, size_t *used, size_t n, size_t size)
{
    size_t at = (*used + 15) & ~(size_t)15;
    *used = at + n * size;
    return base == NULL ? NULL : base + at;
}

static const void *carve_copy(char *base, size_t *used, const void *src, size_t n, size_t size)
{
    void *p = carve(base, used, n, size);
    if (p != NULL && n > 0)
        memcpy(p, src, n * size);
    return n > 0 ? p : NULL;
}

static const char *carve_text(char *base, size_t *used, const char *s)
{
    return carve_copy(base, used, s, s == NULL ? 0 : strlen(s) + 1, 1);
}

/* One allocation holds the gen and all it points to. The counts are bounded by the context, the
 * size of a request's body and the ring, so that their sum cannot overflow. */
static size_t lay_out(struct gen *g, char *base, const struct gen_request *r, int max_out,
                      int ring_size)
{
    size_t used = 0, n_top = r->n_logprobs > 0 ? (size_t)r->n_logprobs : 0,
           ring = (size_t)ring_size;
    size_t n_out = (size_t)(max_out > r->n_resume ? max_out : r->n_resume);
    carve(base, &used, 1, sizeof *g);
    size_t n_history = (size_t)r->n_prompt + n_out, n_heads = draft_heads(n_history);
    int32_t *history = carve(base, &used, n_history, sizeof *history);
    int32_t *head = carve(base, &used, n_heads, sizeof *head);
    int32_t *link = carve(base, &used, n_history, sizeof *link);
    const int32_t *stop =
        carve_copy(base, &used, r->stop_tokens, (size_t)r->n_stop_tokens, sizeof *stop);
    const struct logit_bias *bias =
        carve_copy(base, &used, r->sample.bias, (size_t)r->sample.n_bias, sizeof *bias);
    struct gen_piece *pieces = carve(base, &used, ring, sizeof *pieces);
    struct token_logprob *tops = carve(base, &used, ring * n_top, sizeof *tops);
    const char *key = carve_text(base, &used, r->key);
    const char *cache_scope = carve_text(base, &used, r->cache_scope);
    if (base == NULL)
        return used;
    memcpy(history, r->prompt, (size_t)r->n_prompt * sizeof *history);
    if (r->n_resume > 0)
        memcpy(history + r->n_prompt, r->resume, (size_t)r->n_resume * sizeof *history);
    g->history = history;
    draft_init(&g->draft, head, n_heads, link);
    g->stop_tokens = stop;
    g->sample = r->sample;
    g->sample.bias = bias;
    g->ring = pieces;
    g->ring_top = tops;
    g->key = key;
    g->cache_scope = cache_scope;
    return used;
}

static void init_locks(struct gen *g)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&g->wake_mu, &attr);
    pthread_mutexattr_destroy(&attr);
    pthread_mutex_init(&g->mu, NULL);
}

struct gen *gen_new(const struct gen_request *r, int n_ctx, int n_vocab, int ring_events,
                    struct err *err)
{
    if (!check_request(r, n_ctx, n_vocab, err))
        return NULL;
    int room = n_ctx - r->n_prompt + 1; /* the last token drawn is never computed */
    int max_out = r->max_tokens < room ? r->max_tokens : room;
    int ring_size = ring_events > 0 ? ring_events : DEFAULT_RING;
    int left = max_out > r->n_resume ? max_out - r->n_resume : 1;
    ring_size = left < ring_size ? left : ring_size;
    size_t bytes = lay_out(NULL, NULL, r, max_out, ring_size);
    struct gen *g = mem_alloc(1, bytes);
    if (g == NULL) {
        err_set(err, ERR_OOM, "no memory for a request of %zu bytes", bytes);
        return NULL;
    }
    lay_out(g, (char *)g, r, max_out, ring_size);
    init_locks(g);
    atomic_init(&g->refs, 2);
    g->wake = r->wake;
    g->wake_arg = r->wake_arg;
    g->ring_size = ring_size;
    g->next_index = r->n_resume;
    g->submit_ns = clock_ns();
    g->n_stop_tokens = r->n_stop_tokens;
    g->n_prompt = r->n_prompt;
    g->n_resume = r->n_resume;
    g->min_tokens = r->min_tokens;
    g->n_logprobs = r->n_logprobs;
    g->max_out = max_out;
    g->limit = r->max_tokens > room ? STOP_CONTEXT : STOP_MAX_TOKENS;
    g->priority = r->priority == GEN_BATCH ? GEN_BATCH : GEN_INTERACTIVE;
    g->deadline_ns = r->deadline_ns != 0 ? r->deadline_ns : UINT64_MAX;
    g->seq = -1;
    g->n_history = r->n_prompt + r->n_resume;
    return g;
}

void gen_ref(struct gen *g)
{
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
}

void gen_unref(struct gen *g)
{
    if (atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) != 1)
        return;
    pthread_mutex_destroy(&g->wake_mu);
    pthread_mutex_destroy(&g->mu);
    free(g);
}

void gen_release(struct gen *g)
{
    if (g == NULL)
        return;
    gen_finish(g); /* nobody will read it: no reason to go on */
    pthread_mutex_lock(&g->wake_mu);
    g->wake = NULL;
    pthread_mutex_unlock(&g->wake_mu);
    gen_unref(g);
}

/* ---- events ---- */

static void mark_ended(struct gen *g)
{
    g->end_ns = clock_ns();
    atomic_store_explicit(&g->ended, true, memory_order_release);
}

void gen_put_started(struct gen *g)
{
    pthread_mutex_lock(&g->mu);
    if (!gen_ended(g)) {
        g->started = g->started_unread = true;
        g->start_ns = clock_ns();
    }
    pthread_mutex_unlock(&g->mu);
}

bool gen_put_token(struct gen *g, struct gen_piece piece, const struct token_logprob *top)
{
    bool ok = true;
    pthread_mutex_lock(&g->mu);
    if (gen_ended(g))
        goto done;
    ok = g->ring_n < g->ring_size;
    if (!ok)
        goto done;
    int at = (g->ring_first + g->ring_n++) % g->ring_size;
    g->ring[at] = piece;
    if (piece.n_top > 0)
        memcpy(g->ring_top + (size_t)at * (size_t)g->n_logprobs, top,
               (size_t)piece.n_top * sizeof *top);
    g->last_ns = clock_ns();
    if (g->tokens_out++ == 0)
        g->first_ns = g->last_ns;
done:
    pthread_mutex_unlock(&g->mu);
    return ok;
}

void gen_put_end(struct gen *g, enum stop_reason stop)
{
    pthread_mutex_lock(&g->mu);
    if (!gen_ended(g)) {
        g->last = (struct gen_event){.type = GEN_EV_END, .stop = stop};
        g->last_unread = true;
        mark_ended(g);
    }
    pthread_mutex_unlock(&g->mu);
}

void gen_wake(struct gen *g)
{
    pthread_mutex_lock(&g->wake_mu);
    if (g->wake != NULL)
        g->wake(g->wake_arg);
    pthread_mutex_unlock(&g->wake_mu);
}

void gen_cancel(struct gen *g, enum err_code code, const char *message)
{
    bool news = false;
    pthread_mutex_lock(&g->mu);
    if (!gen_ended(g)) {
        g->last = (struct gen_event){.type = GEN_EV_ERROR, .code = code, .in_queue = !g->started};
        snprintf(g->last.message, sizeof g->last.message, "%s", message);
        g->last_unread = news = true;
        mark_ended(g);
    }
    pthread_mutex_unlock(&g->mu);
    if (!news)
        return;
    gen_ref(g); /* wake may release the caller's */
    gen_wake(g);
    gen_unref(g);
}

void gen_finish(struct gen *g)
{
    pthread_mutex_lock(&g->mu);
    if (!gen_ended(g))
        mark_ended(g);
    g->started_unread = g->last_unread = false;
    g->ring_n = 0;
    pthread_mutex_unlock(&g->mu);
}

static bool pending(const struct gen *g)
{
    return g->started_unread || g->ring_n > 0 || g->last_unread;
}

bool gen_pending(const struct gen *g)
{
    pthread_mutex_t *mu = (pthread_mutex_t *)&g->mu; /* a lock is no part of what const promises */
    pthread_mutex_lock(mu);
    bool p = pending(g);
    pthread_mutex_unlock(mu);
    return p;
}

static void take_token(struct gen *g, struct gen_event *out)
{
    const struct gen_piece *p = &g->ring[g->ring_first];
    *out = (struct gen_event){
        .type = GEN_EV_TOKEN,
        .token = p->token,
        .index = g->next_index++,
        .logprob = p->logprob,
        .n_top = p->n_top,
    };
    if (p->n_top > 0)
        memcpy(out->top, g->ring_top + (size_t)g->ring_first * (size_t)g->n_logprobs,
               (size_t)p->n_top * sizeof *out->top);
    g->ring_first = (g->ring_first + 1) % g->ring_size;
    g->ring_n--;
}

bool gen_next(struct gen *g, struct gen_event *out)
{
    pthread_mutex_lock(&g->mu);
    bool any = pending(g);
    if (g->started_unread) {
        *out = (struct gen_event){
            .type = GEN_EV_STARTED,
            .prompt_tokens = g->n_prompt,
            .cached_tokens = g->n_cached < g->n_prompt ? g->n_cached : g->n_prompt,
        };
        g->started_unread = false;
    } else if (g->ring_n > 0) {
        take_token(g, out);
    } else if (g->last_unread) {
        *out = g->last;
        g->last_unread = false;
    }
    pthread_mutex_unlock(&g->mu);
    return any;
}

static double ms_between(uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) / 1e6 : 0;
}

void gen_stats_get(const struct gen *g, struct gen_stats *out)
{
    pthread_mutex_t *mu = (pthread_mutex_t *)&g->mu;
    pthread_mutex_lock(mu);
    uint64_t now = g->end_ns != 0 ? g->end_ns : clock_ns();
    *out = (struct gen_stats){
        .prompt_tokens = g->n_prompt,
        .tokens_out = g->tokens_out,
        .queue_ms = ms_between(g->submit_ns, g->start_ns != 0 ? g->start_ns : now),
        .prefill_ms =
            g->start_ns == 0 ? 0 : ms_between(g->start_ns, g->first_ns != 0 ? g->first_ns : now),
        .decode_ms = ms_between(g->first_ns, g->last_ns),
    };
    pthread_mutex_unlock(mu);
}
