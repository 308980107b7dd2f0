/* What a model file means: the forward pass of every family as their papers have it, one token at a time, in double
 * precision over exactly decoded weights, with a float cache of everything. Reads the file's keys and tensors itself and
 * shares neither engine/model.c nor kernels/ with what it judges; slow on purpose. */
#ifndef TESTS_MEANING_H
#define TESTS_MEANING_H

#include "engine/gguf.h"

struct meaning;

/* For a worker opened with n_ctx positions (Phi-3's long or short factors). NULL: no memory, or not a known family. */
struct meaning *meaning_open(const struct gguf *g, int n_ctx);
void meaning_close(struct meaning *m);

int meaning_n_vocab(const struct meaning *m);

/* Appends a token and returns the log-probabilities of the next one, n_vocab of them, until the next call. */
const double *meaning_next(struct meaning *m, int token);

#endif
