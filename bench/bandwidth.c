#include "bench/bandwidth.h"

#include "base/clock.h"
#include "base/mem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* 512 MiB: no last-level cache holds a relevant part of it, and a pass takes tens of milliseconds.
 */
enum { BUFFER_MIB = 512, PASSES = 8 };

struct reader {
    struct bandwidth *all;
    const uint64_t *data;
    size_t n;
    uint64_t sum;
    pthread_t thread;
};

struct bandwidth {
    uint64_t *data;
    size_t bytes;
    int n_threads;
    struct reader *readers; /* the first one is the caller */
    atomic_int go;          /* number of the pass that may run; -1: the threads end */
    atomic_int done;        /* passes that were read, of all threads together */
};

struct bandwidth *bandwidth_open(int n_threads, struct err *err)
{
    struct bandwidth *b = mem_alloc(1, sizeof *b);
    if (b != NULL) {
        b->bytes = (size_t)BUFFER_MIB << 20;
        b->n_threads = n_threads;
        b->data = mem_map(b->bytes);
        b->readers = mem_alloc((size_t)n_threads, sizeof *b->readers);
    }
    if (b == NULL || b->data == NULL || b->readers == NULL) {
        err_set(err, ERR_DEVICE, "no memory to measure the read bandwidth, required %d MiB",
                BUFFER_MIB);
        bandwidth_close(b);
        return NULL;
    }
    memset(b->data, 1, b->bytes); /* untouched pages would all be one page of zeros */
    return b;
}

void bandwidth_close(struct bandwidth *b)
{
    if (b == NULL)
        return;
    mem_unmap(b->data, b->bytes);
    free(b->readers);
    free(b);
}

/* Eight chains, so that the additions never wait for one another. */
static uint64_t sum_of(const uint64_t *p, size_t n)
{
    uint64_t s[8] = {0};
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += p[i + (size_t)k];
    return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

static void *read_passes(void *arg)
{
    struct reader *r = arg;
    for (int pass = 1; pass <= PASSES; pass++) {
        int go;
        while ((go = atomic_load(&r->all->go)) < pass && go >= 0)
            sched_yield();
        if (go < 0)
            break;
        r->sum += sum_of(r->data, r->n);
        atomic_fetch_add(&r->all->done, 1);
    }
    return NULL;
}

/* One pass of all threads; bytes per second. */
static double measure_pass(struct bandwidth *b, int pass)
{
    struct reader *self = &b->readers[0];
    uint64_t start = clock_ns();
    atomic_store(&b->go, pass);
    self->sum += sum_of(self->data, self->n);
    while (atomic_load(&b->done) < pass * (b->n_threads - 1))
        sched_yield();
    return (double)self->n * sizeof *self->data * b->n_threads /
           ((double)(clock_ns() - start) * 1e-9);
}

double bandwidth_measure(struct bandwidth *b)
{
    size_t n = b->bytes / sizeof *b->data / (size_t)b->n_threads;
    double best = 0;
    int started = 1;
    atomic_store(&b->go, 0);
    atomic_store(&b->done, 0);
    for (int i = 0; i < b->n_threads; i++)
        b->readers[i] = (struct reader){.all = b, .data = b->data + (size_t)i * n, .n = n};
    while (started < b->n_threads && pthread_create(&b->readers[started].thread, NULL, read_passes,
                                                    &b->readers[started]) == 0)
        started++;
    if (started < b->n_threads)
        atomic_store(&b->go, -1);
    for (int pass = 1; started == b->n_threads && pass <= PASSES; pass++) {
        double rate = measure_pass(b, pass);
        best = rate > best ? rate : best;
    }
    for (int i = 1; i < started; i++)
        pthread_join(b->readers[i].thread, NULL);
    return best;
}
