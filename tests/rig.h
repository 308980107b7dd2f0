/* An engine on a tiny model for tests, a device that can be held between steps, slowed down or
 * broken, and readers of generations. Everything fails by ck_abort: for use inside Check tests. One
 * rig at a time. */
#ifndef TESTS_RIG_H
#define TESTS_RIG_H

#include "base/buf.h"
#include "engine/engine.h"

#include <semaphore.h>

struct rig_options {
    const char *preset, *type;          /* of tests/tiny.h; NULL = smollm2, Q4_0 */
    int n_layer;                        /* 0 = the preset's */
    const struct kern_device *device;   /* NULL = the held one of below */
    int n_ctx;                          /* 0 = 256 */
    int max_seqs, max_rows, max_logits; /* 0 = 16, 256, max_seqs or 16 */
    int n_pages;                        /* 0 = max_seqs * n_ctx */
    enum kv_type kv_type;
    int n_threads; /* 0 = 1 */
    enum isa isa;
    struct engine_options engine; /* max_queue 0 = 128 */
};

struct rig {
    struct buf image;
    struct gguf *gguf;
    struct model *model;
    struct adapter *adapter; /* the engine's */
    struct engine *engine;   /* NULL once closed */
};

void rig_open(struct rig *r, const struct rig_options *o);
/* Also for an adapter alone: opens no engine. */
void rig_open_adapter(struct rig *r, const struct rig_options *o);
/* Checks that nothing runs, waits or holds a page, and closes. */
void rig_close(struct rig *r);
/* The rest, for who has closed the engine. */
void rig_close_model(struct rig *r);
void rig_wait_idle(struct rig *r); /* at most 5 s */

/* ---- the device: kern_cpu with a gate before each step ---- */

void rig_hold(void);       /* steps stop at the gate from now on */
void rig_wait_held(void);  /* until one does */
void rig_let(int n_steps); /* n more may pass */
void rig_go(void);         /* all may */
void rig_slow(int us_per_step, int us_per_row);
void rig_break(enum err_code code); /* the step that runs or comes next fails */
int rig_phases(void);               /* attention phases run so far */

struct rig_step {
    int n_rows, n_seqs;
};
int rig_steps(const struct rig_step **steps); /* the steps so far, at most 4096 */

/* ---- readers ---- */

enum { READER_TOKENS = 1024 };

struct reader {
    struct gen *gen;
    sem_t woken;
    atomic_int n_wakes;
    bool started;
    int n_cached; /* as STARTED says */
    int n_tokens, first_index;
    int32_t tokens[READER_TOKENS];
    float logprobs[READER_TOKENS];
    uint64_t bytes; /* a hash of all tokens, their log-probabilities and alternatives */
    struct gen_event
        last; /* END or ERROR; or STARTED with type GEN_EV_STARTED while there is none */
    bool ended;
};

/* Submits with this reader's wake function. False: the engine refused. */
bool reader_submit(struct reader *rd, struct rig *r, struct gen_request *q, int *retry_after_s,
                   struct err *err);
void reader_start(struct reader *rd, struct rig *r, struct gen_request *q); /* must be taken */
bool reader_poll(struct reader *rd);               /* takes what there is; true when ended */
void reader_wait_tokens(struct reader *rd, int n); /* until it has n; a minute without news fails */
void reader_finish(struct reader *rd);             /* reads to the end, likewise */
void reader_free(struct reader *rd);               /* releases */

/* A request with a prompt of n tokens that depend on seed; the prompt is static, so it is good for
 * one submit. */
struct gen_request rig_request(int n_prompt, uint64_t seed, int max_tokens);

#endif
