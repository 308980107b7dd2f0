/* A job: one generation request from its body to its last byte, and the table of running jobs.
 *
 * Reference counted, because four threads meet here: the HTTP thread of its connection (reads events, writes bytes), a parse
 * thread (large bodies), the engine (wakes it), the monitor (the client left). The fields under `lock` are what they tell each
 * other; all others belong to the thread that has the job at the time: first whoever prepares it, then its HTTP thread. */
#ifndef API_JOB_H
#define API_JOB_H

#include "api/reader.h"

#include <pthread.h>
#include <stdatomic.h>

struct api;
struct MHD_Connection;

enum job_stage {
    JOB_PREPARING,    /* body is parsed, prompt tokenised */
    JOB_REFUSED,      /* err and violations say why */
    JOB_RUNNING       /* the engine has it */
};

enum job_outcome { OUTCOME_SUCCESS, OUTCOME_ERROR, OUTCOME_CANCELLED, OUTCOME_TIMEOUT, OUTCOME_REJECTED, OUTCOME_N };

struct job {
    struct api *api;
    atomic_int refs;

    pthread_mutex_t lock;           /* guards the fields down to the blank line; no other lock but the library's inside */
    struct MHD_Connection *mhd;     /* to be resumed while suspended */
    enum job_stage stage;
    struct gen *gen;                /* set once, released with the job */
    bool suspended;
    bool news;                      /* something happened since the HTTP thread last looked */
    bool probe;                     /* a comment line is to be written */
    bool left;                      /* the client is gone, or must go */
    bool half_closed;               /* the client sends nothing more: gone, unless it reads a stream */
    bool cancelled;

    int fd;                         /* of the connection; the HTTP thread's */
    struct job *next, **link;       /* in the table; its lock */

    char *body;                     /* the request's bytes, until they are parsed */
    size_t body_len, charged;       /* bytes counted against the budget of bodies in flight */
    uint64_t arrived_ns;
    struct job *queue_next;         /* of the parsers */
    struct request request;
    struct violations violations;
    struct err err;                 /* why it was refused */
    int retry_after;
    char key[1];                    /* scope of the job_id; "" until there are API keys */
    int n_prompt;
    uint64_t seed;
    char model[256];                /* alias as `started` shows it */

    struct reader reader;
    struct buf out;                 /* formatted events, out_at bytes of them written */
    size_t out_at;
    uint64_t metrics_ns;            /* time of the last metrics event, or of the first token */
    _Atomic uint64_t written_ns;    /* time of the last bytes; 0 = not streaming */
    int cached_tokens;
    bool running;                   /* the HTTP thread has seen JOB_RUNNING: gen may be used */
    bool started, done;             /* STARTED was read; the terminal event is in `out` */
    bool accounted;                 /* metrics and log have it */
    struct buf text, ids;           /* of a collected answer */
};

struct job *job_new(struct api *a, struct MHD_Connection *mhd, int fd);    /* one reference */
struct job *job_ref(struct job *j);
void job_unref(struct job *j);

/* Resumes the connection if it sleeps; the argument is a job. Any thread. */
void job_wake(void *job);
/* Puts the connection to sleep; false when there is news, or the server stops (then the job counts as left). HTTP thread. */
bool job_suspend(struct job *j);

/* A snapshot of what other threads have said, and the news are taken. HTTP thread. */
struct job_view {
    enum job_stage stage;
    bool left, cancelled, probe;
};
struct job_view job_look(struct job *j);

/* Preparation is over: refused (err, violations), or g runs. */
void job_refuse(struct job *j);
bool job_run(struct job *j, struct gen *g);    /* false: it was cancelled meanwhile, and is again */

void job_cancel(struct job *j, const char *message);
void job_client_left(struct job *j);
void job_client_half_closed(struct job *j);
void job_tick(struct job *j, uint64_t now_ns);    /* asks for a ping when the stream was silent for long */

enum { JOB_BUCKETS = 256 };
struct jobs {
    pthread_mutex_t lock;           /* guards all of it */
    struct job *bucket[JOB_BUCKETS];
};

void jobs_init(struct jobs *t);
void jobs_free(struct jobs *t);
bool jobs_add(struct jobs *t, struct job *j, struct err *err);    /* ERR_DUPLICATE */
void jobs_remove(struct jobs *t, struct job *j);                  /* idempotent */
struct job *jobs_find(struct jobs *t, const char *key, const char *job_id);    /* a reference, or NULL */

#endif
