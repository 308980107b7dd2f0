/* The CPU device's worker threads: run one function on all of them that are there, and wait. Between runs workers spin for about 50 us (a
 * step is hundreds of short runs), then sleep, so that an idle worker costs nothing. */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include <stdatomic.h>

struct pool;

/* n threads, the caller's included; 0 = physical cores this process may use. NULL: a thread could not be started. */
struct pool *pool_open(int n);
void pool_close(struct pool *p);
int pool_size(const struct pool *p);
int pool_default(void);    /* what 0 means */

/* Runs fn(arg) here and on every worker that comes before this thread is through, and returns when all of them are. So fn
 * must hand out its work by a counter, and be ready to do all of it alone. Not to be nested. */
void pool_run(struct pool *p, void (*fn)(void *arg), void *arg);

/* Work handed out in index order to whoever asks: a static half would wait for a thread that lost its CPU. */
struct counter {
    _Alignas(64) atomic_int next;
    int n;
};
static inline void counter_init(struct counter *c, int n)
{
    atomic_store_explicit(&c->next, 0, memory_order_relaxed);
    c->n = n;
}
/* The next index, or -1. */
static inline int counter_take(struct counter *c)
{
    int i = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
    return i < c->n ? i : -1;
}

#endif
