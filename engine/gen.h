/* A generation, as the engine's own files see it (engine.h has what others see): the request, its
 * progress, and the ring of events between the engine thread and one reader. It knows nothing of
 * the engine, so it may outlive it. */
#ifndef ENGINE_GEN_H
#define ENGINE_GEN_H

#include "engine/draft.h"
#include "engine/engine.h"

#include <pthread.h>

struct gen_piece { /* a token in the ring */
    int32_t token;
    float logprob;
    int n_top;
};

struct gen {
    atomic_int refs;
    /* END, ERROR or gen_finish: the engine drops it. Also the stop flag of a step that holds this
     * gen's rows alone. */
    atomic_bool ended;

    /* Held while wake runs, so that none runs once gen_release has returned. Recursive: wake may
     * call gen_*. */
    pthread_mutex_t wake_mu;
    void (*wake)(void *arg);
    void *wake_arg;

    pthread_mutex_t mu; /* leaf; guards the fields down to the next blank line */
    bool started, started_unread, last_unread;
    struct gen_event last;          /* END or ERROR */
    struct gen_piece *ring;         /* (ring_size) */
    struct token_logprob *ring_top; /* (ring_size, n_logprobs) */
    int ring_size, ring_first, ring_n;
    int next_index; /* of the token event read next */
    int tokens_out;
    uint64_t submit_ns, start_ns, first_ns, last_ns, end_ns; /* 0 = not yet */

    /* constant */
    struct sample_params sample;
    const int32_t *stop_tokens;
    const char *key, *cache_scope; /* NULL = none */
    int n_stop_tokens, n_prompt, n_resume, min_tokens, n_logprobs;
    int max_out;            /* output tokens, the resumed ones included */
    enum stop_reason limit; /* why max_out ends it */
    enum gen_priority priority;
    int n_pages; /* worst case */

    /* the engine's lock */
    struct gen *next;      /* in the queue */
    uint64_t deadline_ns;  /* UINT64_MAX = none */
    bool deadline_is_ours; /* it is the inference timeout */
    int seq;               /* -1 while it waits */
    uint64_t order;        /* of admission */
    uint64_t tried;        /* kv.n_changes when it did not fit; 0 = not tried */
    int n_cached;          /* positions found at admission */

    /* the engine thread, once admitted */
    bool begun;
    int32_t *history; /* (n_prompt + max_out): prompt, resumed and generated tokens */
    int n_history, n_computed;
    struct draft draft;
};

/* A gen with two references, the submitter's and the engine's. Errors: ERR_INVALID, ERR_CONTEXT,
 * ERR_OOM. */
struct gen *gen_new(const struct gen_request *r, int n_ctx, int n_vocab, int ring_events,
                    struct err *err);
void gen_ref(struct gen *g);
void gen_unref(struct gen *g);

static inline bool gen_ended(const struct gen *g)
{
    return atomic_load_explicit(&g->ended, memory_order_acquire);
}

/* Tokens that must be computed before the next can be drawn. */
static inline int gen_todo(const struct gen *g)
{
    return g->n_history - g->n_computed;
}

/* Output tokens so far, the resumed ones included. */
static inline int gen_n_out(const struct gen *g)
{
    return g->n_history - g->n_prompt;
}

/* These put events down without waking the reader; they do nothing when the gen has ended. */
void gen_put_started(struct gen *g);
bool gen_put_token(struct gen *g, struct gen_piece piece,
                   const struct token_logprob *top); /* false: the ring is full */
void gen_put_end(struct gen *g, enum stop_reason stop);
void gen_wake(struct gen *g);

#endif
