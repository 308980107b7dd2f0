/* Times the engine on a given text with speculation off and on, in turn, and checks that both give
 * the same tokens. Each has its own engine and copy of the weights. */
#ifndef BENCH_SPECULATION_H
#define BENCH_SPECULATION_H

#include "bench/runner.h"

enum { SPECULATION_MAX_BATCH = 64 };

struct speculation_test {
    const int32_t *ids; /* the prompt */
    int n_ids;
    int n_gen;   /* tokens to generate, */
    int n_batch; /* by each of so many together, 1..SPECULATION_MAX_BATCH */
    float temperature;
};

struct speculation_result {
    double off_ts, on_ts; /* tokens per second between first and last, of all together, best run */
    double drafted, accepted; /* tokens, of a run */
    double steps;             /* of a run with speculation */
};

/* A JSON array of ids, as `inferd-eval --tokenize` prints; *ids is to be freed. */
bool speculation_read_ids(const char *path, int32_t **ids, int *n, struct err *err);

bool speculation_run(const struct runner_options *o, const struct speculation_test *t, int n_reps,
                     struct speculation_result *out, struct err *err);

#endif
