/* The endpoints about the worker itself: health, metrics, facts, the API description, the page, shutdown. They read atomics
 * and published facts only, so that they answer whatever the engine does. */
#include "api/embed.h"
#include "api/routes.h"
#include "api/server.h"
#include "base/clock.h"

#include <string.h>

static void add_string(struct buf *b, const char *name, const char *s)
{
    buf_printf(b, ",\"%s\":", name);
    if (s != NULL)
        buf_json_string(b, s, strlen(s));
    else
        buf_puts(b, "null");
}

static void add_int(struct buf *b, const char *name, long long x)
{
    buf_printf(b, ",\"%s\":%lld", name, x);
}

/* What does not change after loading. */
static void add_facts(struct buf *b, const struct worker_facts *f, bool failed)
{
    add_string(b, "model", f->model);
    add_string(b, "model_type", f->model_type);
    add_string(b, "worker_id", f->worker_id);
    buf_printf(b, ",\"resident\":%s", f->resident && !failed ? "true" : "false");
    add_string(b, "device", f->device);
    add_string(b, "memory_architecture", f->memory_architecture);
    add_string(b, "quant_kind", f->quant_kind);
    add_int(b, "vram_bytes_used", (long long)f->vram_bytes_used);
    add_int(b, "vram_bytes_total", (long long)f->vram_bytes_total);
    add_int(b, "memory_bytes", (long long)f->memory_bytes);
    add_string(b, "tokenizer_kind", f->tokenizer_kind);
    add_int(b, "vocab_size", f->vocab_size);
    add_int(b, "hidden_dim", f->hidden_dim);
    add_int(b, "num_layers", f->num_layers);
    add_int(b, "context_length", f->context_length);
    buf_puts(b, ",\"capabilities\":[\"text-gen\"],\"protocol\":\"sse\",\"worker_type\":\"inferd\"");
    add_string(b, "version", INFERD_VERSION);
    add_int(b, "sm", f->sm);
    add_string(b, "cuda_runtime_version", f->cuda_runtime_version);
}

static enum MHD_Result send_health(struct req *r, bool ok)
{
    static const struct {
        const char *state, *status;
    } names[] = {
        [WORKER_LOADING] = {"loading", "loading"},
        [WORKER_READY] = {"ready", "healthy"},
        [WORKER_LEAVING] = {"draining", "draining"},
        [WORKER_DRAINING] = {"draining", "draining"},
        [WORKER_FAILED] = {"failed", "unhealthy"},
    };
    struct api *a = r->api;
    int state = atomic_load(&a->state);
    struct reply reply = {.status = ok ? 200 : 503};
    struct buf *b = &reply.body;
    struct engine_stats s = {0};
    struct engine *e = atomic_load(&a->engine);
    if (e != NULL)
        engine_stats_get(e, &s);
    buf_printf(b, "{\"status\":\"%s\",\"state\":\"%s\"", names[state].status, names[state].state);
    add_facts(b, api_facts(a), state == WORKER_FAILED);
    buf_printf(b, ",\"uptime_seconds\":%.3f", clock_ms_since(a->start_ns) / 1e3);
    add_int(b, "load_percent", atomic_load(&a->load_percent));
    buf_puts(b, ",\"auth\":false");
    add_int(b, "running", s.running);
    add_int(b, "queued", s.queued);
    add_int(b, "kv_blocks_used", s.kv_pages_used);
    add_int(b, "kv_blocks_total", s.kv_pages_total);
    buf_puts(b, "}\n");
    return req_send(r, &reply);
}

enum MHD_Result status_health(struct req *r)
{
    return send_health(r, atomic_load(&r->api->state) == WORKER_READY);
}

enum MHD_Result status_ready(struct req *r)
{
    return status_health(r);
}

enum MHD_Result status_live(struct req *r)
{
    return send_health(r, atomic_load(&r->api->state) != WORKER_FAILED);
}

enum MHD_Result status_metrics(struct req *r)
{
    struct reply reply = {.status = 200, .type = "text/plain; version=0.0.4; charset=utf-8"};
    metrics_text(r->api, &reply.body);
    return req_send(r, &reply);
}

enum MHD_Result status_info(struct req *r)
{
    struct api *a = r->api;
    const struct worker_facts *f = api_facts(a);
    struct reply reply = {.status = 200};
    struct buf *b = &reply.body;
    buf_puts(b, "{\"name\":\"inferd\"");
    add_facts(b, f, atomic_load(&a->state) == WORKER_FAILED);
    add_string(b, "model_ref", f->model_ref);
    add_int(b, "max_batch", f->max_batch);
    add_int(b, "max_queue", f->max_queue);
    add_int(b, "max_tokens_in", a->o.max_tokens_in ? a->o.max_tokens_in : f->context_length);
    add_int(b, "max_tokens_out", a->o.max_tokens_out ? a->o.max_tokens_out : f->context_length);
    add_int(b, "max_body_bytes", (long long)a->o.max_body_bytes);
    add_int(b, "max_connections", a->o.max_connections);
    buf_puts(b, ",\"endpoints\":[");
    for (size_t i = 0; i < n_routes; i++)
        buf_printf(b, "%s\"%s %s\"", i > 0 ? "," : "", routes[i].method, routes[i].path);
    buf_puts(b, "]}\n");
    return req_send(r, &reply);
}

static enum MHD_Result send_embedded(struct req *r, const char *type, const char *data, size_t n)
{
    struct reply reply = {.status = 200, .type = type};
    buf_add(&reply.body, data, n);
    return req_send(r, &reply);
}

enum MHD_Result status_openapi(struct req *r)
{
    return send_embedded(r, "application/yaml", embed_openapi, (size_t)(embed_openapi_end - embed_openapi));
}

enum MHD_Result status_page(struct req *r)
{
    return send_embedded(r, "text/html; charset=utf-8", embed_page, (size_t)(embed_page_end - embed_page));
}

/* Anyone who reaches the port could stop the worker: so only with a key, and there are no keys yet. */
enum MHD_Result status_shutdown(struct req *r)
{
    struct reply reply = {0};
    reply_problem(&reply, 403, "FORBIDDEN", "shutdown over HTTP needs an API key to be configured");
    return req_send(r, &reply);
}
