/* The parse pool: a few threads that prepare jobs with large bodies, first come first served. What may wait is bounded by the
 * budget of body bytes in flight. */
#ifndef API_POOL_H
#define API_POOL_H

#include "base/err.h"

#include <pthread.h>

struct job;

enum { POOL_MAX_THREADS = 4 };

struct pool {
    pthread_mutex_t lock;      /* guards the queue and `stop` */
    pthread_cond_t work;
    struct job *first, **last;
    bool stop;
    void (*fn)(struct job *j);
    pthread_t thread[POOL_MAX_THREADS];
    int n_threads;
};

bool pool_open(struct pool *p, int n_threads, void (*fn)(struct job *j), struct err *err);
void pool_submit(struct pool *p, struct job *j);    /* takes a reference of its own */
void pool_close(struct pool *p);                    /* what is queued is still done */

#endif
