/* Reference values of a model and the divergence of an engine from them. A reference is JSON as inferd-eval --ids prints it:
 * {"cases":[{"ids":[...],"positions":[{"pos":0,"top":[[id,log-probability],...]},...],"greedy":[...]}]}; `greedy` may be an
 * object with `ids`, `n_ctx` in a case is the context to open the model with; other keys are left alone. Knows no model and no
 * device. */
#ifndef BENCH_KL_H
#define BENCH_KL_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct kl;

/* Reads and validates all of it; ids serve the cases that have none of their own (n_ids 0: every case must). Errors:
 * ERR_USAGE, with file, place, what was found and what is expected. */
struct kl *kl_open(const char *path, const int32_t *ids, size_t n_ids, int n_vocab, struct err *err);
void kl_close(struct kl *k);

int kl_n_cases(const struct kl *k);
/* What to feed, the greedy continuation included. */
const int32_t *kl_ids(const struct kl *k, int i, int *n);
int kl_n_ctx(const struct kl *k, int i);    /* 0 = not named */

/* The engine's logits at a position of case i, a number among them; no effect where the reference has none. */
void kl_score(struct kl *k, int i, int pos, const float *logits);

/* JSON on standard output. */
void kl_print(const struct kl *k);

#endif
