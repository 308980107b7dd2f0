#define _GNU_SOURCE
#include "kernels/cpu/pool.h"
#include "base/clock.h"
#include "base/mem.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPIN_NS = 50000, SPINS_PER_LOOK = 64 };

struct pool {
    _Alignas(64) atomic_uint epoch;     /* counts runs; workers wait for it to change */
    _Alignas(64) atomic_int busy;       /* workers that have not finished the run */
    atomic_int sleepers;
    atomic_bool quit;
    void (*fn)(void *arg);              /* written before epoch, read after it */
    void *arg;
    int n;
    pthread_t *threads;                 /* (n - 1) */
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(atomic_uint *word, unsigned seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Waits until epoch leaves `seen`: spinning first, then asleep. */
static void wait_epoch(struct pool *p, unsigned seen)
{
    uint64_t start = clock_ns();
    for (;;) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (atomic_load_explicit(&p->epoch, memory_order_acquire) != seen)
                return;
            pause_cpu();
        }
        if (clock_ns() - start > SPIN_NS)
            break;
    }
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load_explicit(&p->epoch, memory_order_acquire) == seen)
        futex_wait(&p->epoch, seen);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *work(void *arg)
{
    struct pool *p = arg;
    for (unsigned seen = 0;; seen++) {
        wait_epoch(p, seen);
        if (atomic_load(&p->quit))
            return NULL;
        p->fn(p->arg);
        atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
    }
}

static void start_epoch(struct pool *p)
{
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleepers) > 0)
        futex_wake_all(&p->epoch);
}

void pool_run(struct pool *p, void (*fn)(void *arg), void *arg)
{
    if (p->n == 1) {
        fn(arg);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->busy, p->n - 1, memory_order_relaxed);
    start_epoch(p);
    fn(arg);
    for (int spins = 0; atomic_load_explicit(&p->busy, memory_order_acquire) > 0; spins++) {
        if (spins < 20000)
            pause_cpu();
        else
            sched_yield();    /* a worker lost its CPU: let it have ours */
    }
}

/* Cores among the CPUs this process may run on: hyper-threads of one core count once. */
int pool_default(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set))
            continue;
        char path[96];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *f = fopen(path, "re");
        int first = cpu;
        if (f != NULL) {
            if (fscanf(f, "%d", &first) != 1)
                first = cpu;
            fclose(f);
        }
        cores += first == cpu || !CPU_ISSET(first, &set);
    }
    return cores > 0 ? cores : 1;
}

struct pool *pool_open(int n)
{
    struct pool *p = aligned_alloc(64, sizeof *p);
    if (p == NULL)
        return NULL;
    *p = (struct pool){.n = 1};
    int want = n > 0 ? n : pool_default();
    p->threads = mem_alloc((size_t)want, sizeof *p->threads);
    if (p->threads == NULL) {
        pool_close(p);
        return NULL;
    }
    for (; p->n < want; p->n++) {
        if (pthread_create(&p->threads[p->n - 1], NULL, work, p) != 0) {
            pool_close(p);
            return NULL;
        }
    }
    return p;
}

void pool_close(struct pool *p)
{
    if (p == NULL)
        return;
    atomic_store(&p->quit, true);
    atomic_fetch_add(&p->epoch, 1);
    futex_wake_all(&p->epoch);
    for (int i = 0; i < p->n - 1; i++)
        pthread_join(p->threads[i], NULL);
    free(p->threads);
    free(p);
}

int pool_size(const struct pool *p)
{
    return p->n;
}
