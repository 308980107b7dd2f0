/* Random weight rows for tests: any byte for codes and sub-scales, halves that keep sums finite. */
#ifndef TESTS_WEIGHTS_H
#define TESTS_WEIGHTS_H

#include "kernels/qtype.h"

/* How codes and sub-scales are filled. */
enum weights_fill { WEIGHTS_RANDOM, WEIGHTS_ALL_0, WEIGHTS_ALL_FF, WEIGHTS_ALL_80, WEIGHTS_FILL_N };

uint32_t weights_random(uint64_t *state); /* 32 bits */
float weights_uniform(uint64_t *state);   /* [-1, 1) */

/* One row of cols weights. */
void weights_row(enum qtype t, enum weights_fill fill, uint64_t *state, size_t cols, void *row);

#endif
