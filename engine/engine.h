/* The engine as the API sees it: submit a request of token ids, read its events, cancel, statistics.
 *
 * One engine thread owns the adapter, the KV pages and the device, and runs steps that batch all running requests. The
 * functions here may be called from any thread. A struct gen has two holders, the engine and the submitter; each
 * releases once, the last frees. Events pass through a bounded ring per gen; after each step the engine calls the wake
 * function of every gen that has news, from the engine thread (or a canceller's): it must be short and must not call
 * back into the engine except gen_* of that gen. The first may come before engine_submit has returned. Once gen_release
 * has returned no wake of that gen runs: so do not call it while you hold a lock that wake takes. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "base/err.h"
#include "engine/adapter.h"
#include "engine/sampler.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;
struct gen;

/* Drafts of what a generation will say, checked in its step (speculate.h). They change speed, never bytes. */
enum speculation {
    SPECULATE_OFF,
    SPECULATE_ON,                   /* where it is expected to pay */
    SPECULATE_ALWAYS,               /* where there is anything to try */
};

struct engine_options {
    int max_queue;                  /* waiting requests; the next is ERR_BUSY */
    int max_jobs_per_key;           /* 0 = none */
    double inference_timeout_s;     /* a request running longer ends with ERR_TIMEOUT; 0 = none */
    enum speculation speculate;
    double resident_check_s;        /* between two looks whether the weights still lie on the device; 0 = 60 */
    int ring_events;                /* events a gen may hold unread; 0 = 4096. A full ring stops the gen (ERR_CANCELLED) */
};

enum gen_state { GEN_QUEUED, GEN_RUNNING, GEN_DONE };
enum gen_priority { GEN_INTERACTIVE, GEN_BATCH };

enum stop_reason { STOP_TOKEN, STOP_STRING, STOP_MAX_TOKENS, STOP_CONTEXT, STOP_N };
extern const char *const stop_reason_name[STOP_N];    /* "stop_token", ... */

struct gen_request {
    const int32_t *prompt;          /* copied */
    int n_prompt;                   /* 1..n_ctx, else ERR_CONTEXT; after n_ctx one token more can be drawn */
    const int32_t *resume;          /* tokens generated elsewhere: they count as output (max_tokens, min_tokens, penalties),
                                       the next token event has index n_resume; copied */
    int n_resume;
    int max_tokens;                 /* >= 1; cut to the context */
    int min_tokens;
    struct sample_params sample;    /* its bias array is copied */
    const int32_t *stop_tokens;     /* ids that end generation: the model's end tokens (unless ignore_eos) and the client's; copied */
    int n_stop_tokens;
    enum gen_priority priority;
    uint64_t deadline_ns;           /* clock_ns() by which it must end; 0 = none */
    int n_logprobs;                 /* 0..20 alternatives with each token event; -1 = none */
    const char *key;                /* scope for max_jobs_per_key; NULL = none; copied */
    const char *cache_scope;        /* KV pages are shared with requests of the same scope; NULL = with none; copied */
    void (*wake)(void *arg);        /* see above; may be NULL (poll) */
    void *wake_arg;
};

enum gen_event_type { GEN_EV_STARTED, GEN_EV_TOKEN, GEN_EV_END, GEN_EV_ERROR };

struct gen_event {
    enum gen_event_type type;
    /* STARTED */
    int prompt_tokens, cached_tokens;    /* cached: of these, not computed again */
    /* TOKEN: every generated token but a stop token */
    int32_t token;
    int index;                      /* 0, 1, ... */
    float logprob;                  /* when n_logprobs >= 0 */
    int n_top;
    struct token_logprob top[20];
    /* END */
    enum stop_reason stop;
    /* ERROR */
    enum err_code code;
    bool in_queue;                  /* it never ran */
    char message[160];
};

/* Times and counts of a gen, readable at any time; final once END or ERROR was read. */
struct gen_stats {
    int prompt_tokens, tokens_out;
    double queue_ms, prefill_ms, decode_ms;    /* decode: first token to last */
};

/* Takes the adapter over (engine_close closes it; on failure it stays the caller's) and starts the threads. */
struct engine *engine_open(struct adapter *a, const struct engine_options *o, struct err *err);

/* Stops the thread after the current step; gens still alive end with ERR_CANCELLED. */
void engine_close(struct engine *e);

/* New work is refused with ERR_DRAINING from now on; running and queued work goes on. */
void engine_drain(struct engine *e);
/* True when nothing runs or waits. */
bool engine_idle(const struct engine *e);
/* Ends everything that runs or waits with ERR_CANCELLED. */
void engine_cancel_all(struct engine *e);
/* The device, its memory or the file is gone: everything ends with the cause (ERR_CUDA, else ERR_INTERNAL), new work is
 * refused. The first cause stays. */
void engine_fail(struct engine *e, const struct err *cause);

/* Errors: ERR_CONTEXT, ERR_BUSY, ERR_OOM, ERR_DRAINING, ERR_NOT_READY, ERR_INVALID. `retry_after_s` (may be NULL): seconds
 * computed from the queue, when ERR_BUSY. The caller owns one reference to the result. */
struct gen *engine_submit(struct engine *e, const struct gen_request *r, int *retry_after_s, struct err *err);

/* The next event, if there is one. After END or ERROR none follows. Called by one thread at a time. */
bool gen_next(struct gen *g, struct gen_event *out);
bool gen_pending(const struct gen *g);      /* gen_next would give one */
/* Ends a gen, from any thread that holds it: its ERROR event (ERR_CANCELLED, or code as given) is readable at once, whatever the engine does; pages are
 * freed at the end of the step. Idempotent; no effect after END. */
void gen_cancel(struct gen *g, enum err_code code, const char *message);
/* Quietly: the reader has what it wanted (a stop string matched); no further event comes. */
void gen_finish(struct gen *g);
/* The submitter lets go of it; what still runs or waits is stopped, as by gen_finish. */
void gen_release(struct gen *g);
void gen_stats_get(const struct gen *g, struct gen_stats *out);

/* A snapshot from atomics; never waits for the engine. */
struct engine_stats {
    int running, queued;
    int kv_pages_used, kv_pages_total;
    uint64_t tokens_in, tokens_out;
    uint64_t heartbeat_ns;          /* clock_ns() of the engine thread's last sign of life (idle included) */
    uint64_t steps;
    int last_batch;                 /* rows of the last step */
    double load;                    /* 0..1: running / max_seqs, 1 when requests wait */
    bool failed;                    /* the device failed: see engine_failure */
    uint64_t prefix_queries, prefix_hits;          /* tokens: to compute before the first draw, of admitted requests with a
                                                      cache_scope; found */
    uint64_t draft_tokens, draft_accepted;         /* tried, right */
};
void engine_stats_get(const struct engine *e, struct engine_stats *out);
bool engine_failure(const struct engine *e, struct err *err);    /* true and the cause when failed */
const struct adapter *engine_adapter(const struct engine *e);    /* for its constant facts */

#endif
