/* Seeded random weights of every format, scaled to a standard deviation: for tiny*.c and
 * test_kernels.c. */
#ifndef TESTS_TINY_WEIGHTS_H
#define TESTS_TINY_WEIGHTS_H

#include "kernels/qtype.h"

#include <stdint.h>

struct rng {
    uint64_t state;
};

/* The stream of (seed, name). */
struct rng rng_of(uint64_t seed, const char *name);
uint64_t rng_next(struct rng *r);
float rng_normal(struct rng *r); /* standard deviation 1, |x| < 3.5 */

/* n weights (whole blocks) of valid random blocks: every bit field is used. */
void weights_fill(enum qtype t, float std, struct rng *r, void *out, size_t n);

#endif
