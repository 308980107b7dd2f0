/* The read bandwidth of this machine, as the yardstick of every timing. */
#ifndef BENCH_BANDWIDTH_H
#define BENCH_BANDWIDTH_H

#include "base/err.h"

struct bandwidth; /* a buffer larger than any cache */

struct bandwidth *bandwidth_open(int n_threads, struct err *err);
void bandwidth_close(struct bandwidth *b);

/* Bytes per second that n_threads read together: the best of a few passes, about a quarter of a
 * second in all. 0 when no thread could be started. */
double bandwidth_measure(struct bandwidth *b);

#endif
