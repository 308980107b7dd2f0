/* Random draws for the sampler and for devices that draw: every mix of parameters, logits with ties, NaN and infinities. */
#ifndef TESTS_RANDOM_DRAW_H
#define TESTS_RANDOM_DRAW_H

#include "engine/sampler.h"

enum { N_MAX = 5000, N_HISTORY = 60 };

struct random_draw {
    float logits[N_MAX];
    int32_t history[N_HISTORY], banned[3];
    uint32_t mask[(N_MAX + 31) / 32];
    struct logit_bias bias[4];
    struct sample_params params;
    struct sample_in in;
};

uint64_t lcg(uint64_t *state);      /* 31 bits */
float uniform(uint64_t *state);     /* in [0, 1) */

/* n: tokens, at most N_MAX. shape 0: wide; 1: nearly flat; 2: few distinct values, so many ties; 3: with NaN and infinities */
void random_draw_make(struct random_draw *c, int n, int shape, uint64_t *rng);

#endif
