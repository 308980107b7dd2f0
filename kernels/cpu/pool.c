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

/* The word that threads meet at: number of the run, whether it still takes workers, how many it took and how many of those
 * are done. A worker that comes after the caller closed the run is not waited for: a thread that lost its CPU holds up
 * only the work it had already taken. */
#define RUN_OPEN (1ull << 31)
#define RUN_DONE (1ull << 16)
#define RUN_JOINED 1ull

static uint32_t run_number(uint64_t state)
{
    return (uint32_t)(state >> 32);
}

static unsigned n_joined(uint64_t state)
{
    return (unsigned)(state & 0xFFFF);
}

static unsigned n_done(uint64_t state)
{
    return (unsigned)(state >> 16 & 0x7FFF);
}

struct pool {
    _Alignas(64) _Atomic uint64_t state;
    _Alignas(64) atomic_bool asleep;    /* some worker sleeps on bell, or is about to */
    atomic_uint bell;
    atomic_bool quit;
    _Alignas(64) void (*fn)(void *arg); /* written before a run opens, read by those who joined it */
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

static bool has_news(struct pool *p, uint32_t seen, uint64_t *state)
{
    *state = atomic_load(&p->state);
    return run_number(*state) != seen || atomic_load_explicit(&p->quit, memory_order_relaxed);
}

/* The state once there is a run other than `seen`, or the pool closes: spinning first, then asleep. */
static uint64_t wait_run(struct pool *p, uint32_t seen)
{
    uint64_t state, start = clock_ns();
    do {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (has_news(p, seen, &state))
                return state;
            pause_cpu();
        }
    } while (clock_ns() - start < SPIN_NS);
    for (;;) {
        unsigned bell = atomic_load(&p->bell);
        atomic_store(&p->asleep, true);    /* before the last look: the caller looks at it after it opened a run */
        if (has_news(p, seen, &state))
            return state;
        futex_wait(&p->bell, bell);
    }
}

static bool join(struct pool *p, uint64_t state)
{
    uint32_t run = run_number(state);
    while (run_number(state) == run && (state & RUN_OPEN))
        if (atomic_compare_exchange_weak_explicit(&p->state, &state, state + RUN_JOINED, memory_order_acquire,
                                                  memory_order_relaxed))
            return true;
    return false;
}

static void *work(void *arg)
{
    struct pool *p = arg;
    for (uint32_t seen = 0;;) {
        uint64_t state = wait_run(p, seen);
        if (atomic_load(&p->quit))
            return NULL;
        seen = run_number(state);
        if (!join(p, state))
            continue;
        p->fn(p->arg);
        atomic_fetch_add_explicit(&p->state, RUN_DONE, memory_order_release);
    }
}

static void wake(struct pool *p)
{
    if (!atomic_load(&p->asleep))
        return;
    atomic_store(&p->asleep, false);
    atomic_fetch_add(&p->bell, 1);
    futex_wake_all(&p->bell);
}

void pool_run(struct pool *p, void (*fn)(void *arg), void *arg)
{
    if (p->n == 1) {
        fn(arg);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    uint64_t run = (uint64_t)run_number(atomic_load_explicit(&p->state, memory_order_relaxed)) + 1;
    atomic_store(&p->state, run << 32 | RUN_OPEN);
    wake(p);
    fn(arg);
    uint64_t state = atomic_fetch_and_explicit(&p->state, ~RUN_OPEN, memory_order_acq_rel);
    for (int spins = 0; n_done(state) < n_joined(state); spins++) {
        if (spins < 2000)
            pause_cpu();
        else
            sched_yield();    /* a worker lost its CPU in the middle of its work: let it have ours */
        state = atomic_load_explicit(&p->state, memory_order_acquire);
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
    atomic_fetch_add(&p->bell, 1);
    futex_wake_all(&p->bell);
    for (int i = 0; i < p->n - 1; i++)
        pthread_join(p->threads[i], NULL);
    free(p->threads);
    free(p);
}

int pool_size(const struct pool *p)
{
    return p->n;
}
