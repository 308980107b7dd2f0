/* GET /metrics: counters and histograms of the API, and the engine's statistics, as Prometheus text. */
#ifndef API_METRICS_H
#define API_METRICS_H

#include "api/job.h"
#include "base/buf.h"

#include <stdatomic.h>
#include <stdint.h>

enum { HIST_MAX_BOUNDS = 16 };

/* Buckets count what is <= their bound; the sum is kept in millionths, because there is no atomic double in C. */
struct hist {
    const double *bounds;
    int n_bounds;
    _Atomic uint64_t count[HIST_MAX_BOUNDS + 1];    /* the last one: above all bounds */
    _Atomic uint64_t sum_millionths;
};

struct metrics {
    _Atomic uint64_t requests[OUTCOME_N];
    struct hist inference_ms;                                   /* prefill and decode */
    struct hist first_token_s, per_token_s, total_s, queue_s;
};

extern const char *const outcome_name[OUTCOME_N];

void metrics_init(struct metrics *m);
void metrics_count(struct metrics *m, enum job_outcome outcome);
/* A request that ended in the engine. */
void metrics_observe(struct metrics *m, const struct gen_stats *s);

struct api;
void metrics_text(struct api *a, struct buf *out);

#endif
