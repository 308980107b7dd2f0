/* The parsers: a few threads that prepare jobs with large bodies, first come first served. What may wait is bounded by the
 * budget of body bytes in flight. */
#ifndef API_PARSERS_H
#define API_PARSERS_H

#include "base/err.h"

#include <pthread.h>

struct job;

enum { PARSERS_MAX = 4 };

struct parsers {
    pthread_mutex_t lock;      /* guards the queue and `stop` */
    pthread_cond_t work;
    struct job *first, **last;
    bool stop;
    void (*fn)(struct job *j);
    pthread_t thread[PARSERS_MAX];
    int n_threads;
};

bool parsers_open(struct parsers *p, int n_threads, void (*fn)(struct job *j), struct err *err);
void parsers_submit(struct parsers *p, struct job *j);    /* takes a reference of its own */
void parsers_close(struct parsers *p);                    /* what is queued is still done */

#endif
