#include "api/metrics.h"

#include "api/server.h"
#include "base/clock.h"
#include "base/log.h"

#include <string.h>

static const double seconds[] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300};
static const double per_token[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25,
                                   0.5, 1, 2.5};
static const double milliseconds[] = {1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 120000,
                                      300000};

const char *const outcome_name[OUTCOME_N] = {
    [OUTCOME_SUCCESS] = "success",     [OUTCOME_ERROR] = "error",       [OUTCOME_CANCELLED] = "cancelled",
    [OUTCOME_TIMEOUT] = "timeout",     [OUTCOME_REJECTED] = "rejected",
};

static void set_bounds(struct hist *h, const double *bounds, size_t n)
{
    h->bounds = bounds;
    h->n_bounds = (int)n;
}

void metrics_init(struct metrics *m)
{
    set_bounds(&m->inference_ms, milliseconds, sizeof milliseconds / sizeof *milliseconds);
    set_bounds(&m->per_token_s, per_token, sizeof per_token / sizeof *per_token);
    set_bounds(&m->first_token_s, seconds, sizeof seconds / sizeof *seconds);
    set_bounds(&m->total_s, seconds, sizeof seconds / sizeof *seconds);
    set_bounds(&m->queue_s, seconds, sizeof seconds / sizeof *seconds);
}

static void observe(struct hist *h, double x)
{
    int i = 0;
    while (i < h->n_bounds && x > h->bounds[i])
        i++;
    atomic_fetch_add(&h->count[i], 1);
    atomic_fetch_add(&h->sum_millionths, (uint64_t)(x * 1e6));
}

void metrics_count(struct metrics *m, enum job_outcome outcome)
{
    atomic_fetch_add(&m->requests[outcome], 1);
}

void metrics_observe(struct metrics *m, const struct gen_stats *s)
{
    observe(&m->queue_s, s->queue_ms / 1e3);
    observe(&m->total_s, (s->queue_ms + s->prefill_ms + s->decode_ms) / 1e3);
    observe(&m->inference_ms, s->prefill_ms + s->decode_ms);
    if (s->tokens_out > 0)
        observe(&m->first_token_s, (s->queue_ms + s->prefill_ms) / 1e3);
    if (s->tokens_out > 1)
        observe(&m->per_token_s, s->decode_ms / 1e3 / (s->tokens_out - 1));
}

/* ---- text ---- */

static void head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(struct buf *b, const char *name, const char *type, const char *help, double value)
{
    head(b, name, type, help);
    buf_printf(b, "%s %.15g\n", name, value);
}

static void histogram(struct buf *b, const char *name, const char *help, const struct hist *h)
{
    uint64_t total = 0;
    head(b, name, "histogram", help);
    for (int i = 0; i < h->n_bounds; i++) {
        total += atomic_load(&h->count[i]);
        buf_printf(b, "%s_bucket{le=\"%g\"} %llu\n", name, h->bounds[i], (unsigned long long)total);
    }
    total += atomic_load(&h->count[h->n_bounds]);
    buf_printf(b, "%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)total);
    buf_printf(b, "%s_sum %.15g\n%s_count %llu\n", name, (double)atomic_load(&h->sum_millionths) / 1e6, name,
               (unsigned long long)total);
}

/* A label value: JSON's escapes of quote, backslash and newline are the same. */
static void labelled(struct buf *b, const char *name, const char *type, const char *help, const char *label,
                     double value)
{
    head(b, name, type, help);
    buf_printf(b, "%s{model_name=", name);
    buf_json_string(b, label, strlen(label));
    buf_printf(b, "} %.15g\n", value);
}

/* What routers and autoscalers made for vLLM read. */
static void vllm_names(struct buf *b, const char *model, const struct engine_stats *s, double kv_use)
{
    labelled(b, "vllm:num_requests_running", "gauge", "Requests running.", model, s->running);
    labelled(b, "vllm:num_requests_waiting", "gauge", "Requests waiting.", model, s->queued);
    labelled(b, "vllm:kv_cache_usage_perc", "gauge", "KV cache in use, 0..1.", model, kv_use);
    labelled(b, "vllm:gpu_cache_usage_perc", "gauge", "KV cache in use, 0..1.", model, kv_use);
    labelled(b, "vllm:prefix_cache_queries_total", "counter", "Tokens of prompts and resumed outputs looked up.", model,
             (double)s->prefix_queries);
    labelled(b, "vllm:prefix_cache_hits_total", "counter", "Tokens of them found.", model, (double)s->prefix_hits);
    labelled(b, "vllm:prompt_tokens_total", "counter", "Prompt tokens.", model, (double)s->tokens_in);
    labelled(b, "vllm:generation_tokens_total", "counter", "Generated tokens.", model, (double)s->tokens_out);
}

void metrics_text(struct api *a, struct buf *b)
{
    const struct worker_facts *f = api_facts(a);
    const struct metrics *m = &a->metrics;
    struct engine_stats s = {0};
    struct engine *e = atomic_load(&a->engine);
    if (e != NULL)
        engine_stats_get(e, &s);
    double kv_use = s.kv_pages_total > 0 ? (double)s.kv_pages_used / s.kv_pages_total : 0;

    one(b, "worker_vram_bytes", "gauge", "Device memory of the model and its caches.", (double)f->vram_bytes_used);
    one(b, "worker_memory_bytes", "gauge", "Memory of the model and its caches.", (double)f->memory_bytes);
    one(b, "worker_uptime_seconds", "gauge", "Time since start.", clock_ms_since(a->start_ns) / 1e3);
    head(b, "worker_requests_total", "counter", "Generation requests by outcome.");
    for (int i = 0; i < OUTCOME_N; i++)
        buf_printf(b, "worker_requests_total{outcome=\"%s\"} %llu\n", outcome_name[i],
                   (unsigned long long)atomic_load(&m->requests[i]));
    one(b, "worker_tokens_in_total", "counter", "Prompt tokens.", (double)s.tokens_in);
    one(b, "worker_tokens_generated_total", "counter", "Generated tokens.", (double)s.tokens_out);
    histogram(b, "worker_inference_duration_ms", "Prompt processing and generation.", &m->inference_ms);

    histogram(b, "inferd_time_to_first_token_seconds", "From arrival to the first token.", &m->first_token_s);
    histogram(b, "inferd_time_per_output_token_seconds", "Mean time between tokens of a request.", &m->per_token_s);
    histogram(b, "inferd_request_latency_seconds", "From arrival to the last token.", &m->total_s);
    histogram(b, "inferd_queue_time_seconds", "Time in the queue.", &m->queue_s);
    one(b, "inferd_requests_running", "gauge", "Requests running.", s.running);
    one(b, "inferd_requests_waiting", "gauge", "Requests waiting.", s.queued);
    one(b, "inferd_kv_cache_usage_ratio", "gauge", "KV cache in use, 0..1.", kv_use);
    one(b, "inferd_prefix_cache_queries_total", "counter", "Tokens of prompts and resumed outputs looked up.", (double)s.prefix_queries);
    one(b, "inferd_prefix_cache_hits_total", "counter", "Tokens of them found.", (double)s.prefix_hits);
    one(b, "inferd_batch_size", "gauge", "Rows of the last step.", s.last_batch);
    one(b, "inferd_steps_total", "counter", "Engine steps.", (double)s.steps);
    one(b, "inferd_speculation_drafted_total", "counter", "Tokens drafted.", (double)s.draft_tokens);
    one(b, "inferd_speculation_accepted_total", "counter", "Drafted tokens accepted.", (double)s.draft_accepted);
    one(b, "inferd_open_connections", "gauge", "Client connections.", atomic_load(&a->acceptor.n_conns));
    one(b, "inferd_body_bytes_in_flight", "gauge", "Request bodies held.", (double)atomic_load(&a->body_bytes));
    one(b, "inferd_log_lines_dropped_total", "counter", "Log lines that could not be written.",
        (double)log_dropped());
    if (a->o.metrics_vllm)
        vllm_names(b, f->model ? f->model : "", &s, kv_use);
}
