#include "api/execute.h"

#include "api/answer.h"
#include "api/routes.h"
#include "api/server.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { DEFAULT_MAX_TOKENS = 2048 };

/* Below 2^53, so that it survives every JSON parser on its way back. */
static uint64_t random_seed(void)
{
    uint64_t x = 0;
    if (getrandom(&x, sizeof x, 0) != sizeof x)
        x = clock_ns();
    return x >> 11;
}

static struct request_limits limits(struct api *a)
{
    const struct worker_facts *f = api_facts(a);
    return (struct request_limits){
        .n_vocab = f->vocab_size,
        .n_ctx = f->context_length,
        .max_tokens_out = a->o.max_tokens_out ? a->o.max_tokens_out : f->context_length,
    };
}

static bool parse(struct job *j)
{
    struct request_limits l = limits(j->api);
    bool ok = request_read(&j->request, j->body, j->body_len, &l, &j->violations, &j->err);
    free(j->body);
    j->body = NULL;
    if (ok && j->request.max_tokens == 0)
        j->request.max_tokens = l.max_tokens_out < DEFAULT_MAX_TOKENS ? l.max_tokens_out : DEFAULT_MAX_TOKENS;
    j->seed = j->request.seed_given ? j->request.seed : random_seed();
    return ok;
}

/* The model's end tokens, unless they are ignored, and the client's. */
static int32_t *stop_ids(const struct tok *t, const struct request *q, int *n_out)
{
    int n = 0;
    const int32_t *ends = q->ignore_eos ? NULL : tok_end_ids(t, &n);
    int32_t *ids = mem_alloc((size_t)n + (size_t)q->n_stop_ids + 1, sizeof *ids);
    if (ids == NULL)
        return NULL;
    if (n > 0)
        memcpy(ids, ends, (size_t)n * sizeof *ids);
    if (q->n_stop_ids > 0)
        memcpy(ids + n, q->stop_ids, (size_t)q->n_stop_ids * sizeof *ids);
    *n_out = n + q->n_stop_ids;
    return ids;
}

/* The requests this one shares pages with: its key's, unless all keys share, with the same salt. An empty name for none. */
static bool cache_scope(struct job *j, struct buf *name)
{
    const struct request *q = &j->request;
    enum prefix_cache mode = j->api->o.prefix_cache;
    if (mode == PREFIX_CACHE_OFF || !q->prefix_cache)
        return true;
    buf_printf(name, "%s\n%s", mode == PREFIX_CACHE_PER_KEY ? j->key : "", q->cache_salt ? q->cache_salt : "");
    return !name->failed || err_set(&j->err, ERR_INTERNAL, "no memory for the request");
}

static struct gen *submit(struct job *j, struct engine *e, const int32_t *prompt, size_t n_prompt,
                          const int32_t *stop, int n_stop)
{
    const struct request *q = &j->request;
    struct buf scope = {0};
    struct gen_request g = {
        .prompt = prompt,
        .n_prompt = (int)n_prompt,
        .resume = q->resume,
        .n_resume = q->n_resume,
        .max_tokens = (int)q->max_tokens,
        .min_tokens = (int)q->min_tokens,
        .sample = {
            .temperature = (float)q->temperature,
            .top_p = (float)q->top_p,
            .top_k = (int)q->top_k,
            .min_p = (float)q->min_p,
            .repetition_penalty = (float)q->repetition_penalty,
            .frequency_penalty = (float)q->frequency_penalty,
            .presence_penalty = (float)q->presence_penalty,
            .bias = q->bias,
            .n_bias = q->n_bias,
            .seed = j->seed,
        },
        .stop_tokens = stop,
        .n_stop_tokens = n_stop,
        .priority = q->priority,
        .deadline_ns = q->deadline_ms > 0 ? j->arrived_ns + (uint64_t)q->deadline_ms * 1000000u : 0,
        .n_logprobs = -1,
        .wake = job_wake,
        .wake_arg = j,
    };
    bool ok = cache_scope(j, &scope);
    g.cache_scope = scope.data;
    struct gen *gen = ok ? engine_submit(e, &g, &j->retry_after, &j->err) : NULL;
    buf_free(&scope);
    return gen;
}

/* Megabytes that cannot fit are not worth the seconds that their tokens take. */
static bool may_fit(struct job *j, const struct tok *t)
{
    int n_ctx = api_facts(j->api)->context_length;
    size_t least = tok_at_least(t, j->request.prompt, j->request.prompt_len);
    return least <= (size_t)n_ctx || err_set(&j->err, ERR_CONTEXT, "prompt of at least %zu tokens, the context is %d tokens",
                                             least, n_ctx);
}

/* Tokenise and submit; NULL with j->err. */
static struct gen *start(struct job *j)
{
    struct request *q = &j->request;
    const struct tok *t = atomic_load(&j->api->tok);
    struct engine *e = api_engine(j->api, &j->err);
    int32_t *prompt = NULL, *stop = NULL;
    size_t n_prompt = 0;
    int n_stop = 0;
    struct gen *g = NULL;
    if (e == NULL || !may_fit(j, t) || !tok_encode(t, q->prompt, q->prompt_len, TOK_ADD_ONCE, q->parse_special, 0, &prompt, &n_prompt, &j->err))
        goto done;
    request_drop_body(q);
    j->n_prompt = (int)n_prompt;
    int max_in = j->api->o.max_tokens_in;
    if (max_in > 0 && n_prompt > (size_t)max_in) {
        err_set(&j->err, ERR_CONTEXT, "prompt of %zu tokens, this worker takes %d", n_prompt, max_in);
        goto done;
    }
    if (n_prompt > INT32_MAX || !reader_init(&j->reader, t, q)) {
        violations_add(&j->violations, "resume_from", "a stop string ends within these tokens");
        goto done;
    }
    stop = stop_ids(t, q, &n_stop);
    if (stop == NULL)
        err_set(&j->err, ERR_INTERNAL, "no memory for the request");
    else
        g = submit(j, e, prompt, n_prompt, stop, n_stop);
done:
    free(prompt);
    free(stop);
    return g;
}

void execute_prepare(struct job *j)
{
    const char *model = api_facts(j->api)->model;
    snprintf(j->model, sizeof j->model, "%s", model ? model : "");
    struct gen *g = NULL;
    if (parse(j) && jobs_add(&j->api->jobs, j, &j->err))
        g = start(j);
    api_body_release(j->api, j->charged);
    j->charged = 0;
    /* A client that left meanwhile is not there any more to take the job out of the table. */
    if (g == NULL || !job_run(j, g))
        jobs_remove(&j->api->jobs, j);
    if (g == NULL) {
        request_drop_body(&j->request);
        job_refuse(j);
    }
}

/* Takes the body over and prepares the job, here or by the parsers. */
static bool begin(struct req *r)
{
    struct job *j = job_new(r->api, r->mhd, r->conn->fd);
    if (j == NULL)
        return false;
    size_t n = r->body.len;
    j->body = r->body.data;
    j->body_len = n;
    j->charged = r->charged;
    r->body = (struct buf){0};
    r->charged = 0;
    if (j->body == NULL && (j->body = mem_strdup("")) == NULL) {
        job_unref(j);
        return false;
    }
    r->job = j;
    atomic_fetch_add(&r->api->open_requests, 1);
    if (n <= API_INLINE_BODY)
        execute_prepare(j);
    else
        parsers_submit(&r->api->parsers, j);
    watch_attach(&r->api->watch, r->conn, j);
    return true;
}

/* j: the job whose preparation was refused, NULL when there is none or others still work on it. */
static enum MHD_Result refuse(struct req *r, const struct job *j, const struct err *err)
{
    struct reply reply = {.retry_after = j != NULL ? j->retry_after : 0};
    answer_account(r->job, r->api, err->code == ERR_CANCELLED ? OUTCOME_CANCELLED : OUTCOME_REJECTED);
    reply_error(&reply, err, true, j != NULL ? &j->violations : NULL);
    return req_send(r, &reply);
}

enum MHD_Result execute_handle(struct req *r)
{
    static const struct err cancelled = {ERR_CANCELLED, "cancelled by request"};
    struct err err = {ERR_INTERNAL, "out of memory"};
    struct reply reply = {0};
    if (r->job == NULL && (api_engine(r->api, &err) == NULL || !begin(r)))
        return refuse(r, NULL, &err);
    struct job *j = r->job;
    do {
        struct job_view v = job_look(j);
        j->running = v.stage == JOB_RUNNING;
        if (v.left)
            return MHD_NO;
        if (v.stage == JOB_REFUSED)
            return refuse(r, j, &j->err);
        if (v.stage == JOB_PREPARING && v.cancelled)
            return refuse(r, NULL, &cancelled);
        if (j->running && j->request.stream)
            return answer_stream(j, r->mhd);
        if (j->running && answer_collect(j, &reply))
            return req_send(r, &reply);
    } while (!job_suspend(j));
    return MHD_YES;
}

enum MHD_Result execute_cancel(struct req *r)
{
    struct violations v = {0};
    struct err err;
    char *id = request_read_cancel(r->body.data ? r->body.data : (char[1]){0}, r->body.len, &v, &err);
    if (id == NULL) {
        enum MHD_Result done = req_error(r, &err, &v);
        violations_free(&v);
        return done;
    }
    struct job *j = jobs_find(&r->api->jobs, "", id);
    if (j != NULL)
        job_cancel(j, "cancelled by request");
    job_unref(j);
    struct reply reply = {.status = 202};
    buf_puts(&reply.body, "{\"job_id\":");
    buf_json_string(&reply.body, id, strlen(id));
    buf_puts(&reply.body, "}\n");
    free(id);
    return req_send(r, &reply);
}
