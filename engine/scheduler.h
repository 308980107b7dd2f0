/* The scheduler: who waits, who runs, and which rows the next step holds. Pure bookkeeping: it
 * computes nothing, takes no lock and knows no thread; the engine's lock guards it. What it decides
 * changes speed, never bytes. */
#ifndef ENGINE_SCHEDULER_H
#define ENGINE_SCHEDULER_H

#include "engine/gen.h"
#include "engine/kv.h"
#include "engine/pace.h"
#include "engine/speculate.h"

struct member { /* the rows of one gen in a step */
    struct gen *gen;
    int n;       /* rows: positions n_computed .. n_computed + n - 1 */
    bool sample; /* the last of them gives a token */
    int n_draft; /* rows behind those, of tokens that are guessed; each gives a token, too */
};

struct sched_step {
    struct row *rows;       /* (max_rows) */
    struct member *members; /* (max_seqs) */
    int n_rows, n_members;
    int n_decode,
        n_draft; /* decode rows, and how many of them are drafts; the rest are of prompts */
};

struct sched {
    struct kv kv;
    int max_seqs, max_rows, max_logits, max_queue, max_jobs_per_key;
    struct gen **running; /* (max_seqs), by sequence; NULL = free */
    int n_running, n_queued;
    struct gen *queue[2]; /* by priority, first come first */
    uint64_t n_admitted;
    int turn; /* the sequence whose decode row comes first */
    struct pace pace;
    double service_s; /* a request from start to end, a running average; 0 = not known yet */
    struct sched_step step;
    struct gen **prompts; /* (max_seqs), scratch of sched_choose: gens with a prompt to compute */
    struct speculate spec;
    struct bid *bids; /* (max_seqs), scratch of sched_choose, by turn: gens that decode */
};

bool sched_init(struct sched *s, struct adapter *a, int max_queue, int max_jobs_per_key,
                struct err *err);
void sched_free(struct sched *s); /* no gen may be left */

/* Takes g over (the engine's reference) and admits it if it can. False: g is not taken. Errors:
 * ERR_BUSY with *retry_after_s, ERR_OOM when it never fits. */
bool sched_submit(struct sched *s, struct gen *g, int *retry_after_s, struct err *err);

/* Drops what has ended: in the queue; and with `running`, which only the engine thread may give
 * between steps, there too. */
void sched_reap(struct sched *s, bool running);
/* Moves from the queue to free sequences. */
void sched_admit(struct sched *s);
/* Chooses the rows of the next step into s->step and covers them with pages. False: nothing to
 * compute. */
bool sched_choose(struct sched *s);
/* After a step: the pages that it completed can be found by others. */
void sched_publish(struct sched *s);
/* What s->step took. */
void sched_measure(struct sched *s, double seconds);

/* The first gen that match accepts, running or waiting; NULL = none. */
struct gen *sched_find(const struct sched *s, bool (*match)(const struct gen *g, const void *arg),
                       const void *arg);

#endif
