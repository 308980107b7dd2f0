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

/* The same for work whose neighbours lie behind each other in memory: every thread goes through a run of its own, so that
 * what it prefetches is what it reads next, and then helps with what is left of the others' runs. */
enum { MAX_SHARES = 16 };
struct shares {
    struct share {
        _Alignas(64) atomic_int next;
        int end;
    } of[MAX_SHARES];
    _Alignas(64) atomic_int joined;
    int n;
};
static inline void shares_init(struct shares *s, int n_threads, int n)
{
    s->n = n_threads < MAX_SHARES ? n_threads : MAX_SHARES;
    atomic_store_explicit(&s->joined, 0, memory_order_relaxed);
    for (int i = 0; i < s->n; i++) {
        atomic_store_explicit(&s->of[i].next, (int)((long)n * i / s->n), memory_order_relaxed);
        s->of[i].end = (int)((long)n * (i + 1) / s->n);
    }
}
/* The share a thread begins with. */
static inline int shares_join(struct shares *s)
{
    return atomic_fetch_add_explicit(&s->joined, 1, memory_order_relaxed) % s->n;
}
/* The next index of it, else of another one, or -1. */
static inline int shares_take(struct shares *s, int own)
{
    for (int k = 0; k < s->n; k++) {
        struct share *share = &s->of[(own + k) % s->n];
        if (atomic_load_explicit(&share->next, memory_order_relaxed) >= share->end)
            continue;
        int i = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
        if (i < share->end)
            return i;
    }
    return -1;
}

#endif
