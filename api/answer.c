#include "api/answer.h"

#include "api/server.h"
#include "base/clock.h"
#include "base/log.h"

#include <string.h>
#include <sys/socket.h>

#define METRICS_NS 250000000u    /* metrics events are at least this far apart */

/* ---- the books ---- */

static struct gen_stats stats_of(const struct job *j)
{
    struct gen_stats s = {0};
    if (j->running)
        gen_stats_get(j->gen, &s);
    return s;
}

void answer_account(struct job *j, struct api *a, enum job_outcome outcome)
{
    if (j == NULL) {
        metrics_count(&a->metrics, outcome);
        return;
    }
    if (j->accounted)
        return;
    j->accounted = true;
    jobs_remove(&a->jobs, j);
    metrics_count(&a->metrics, outcome);
    if (!j->running)
        return;
    struct gen_stats s = stats_of(j);
    const struct worker_facts *f = api_facts(a);
    if (j->started)
        metrics_observe(&a->metrics, &s);
    log_event(LOG_INFO, "execute_end", LOG_S("job_id", j->request.job_id), LOG_S("model_ref", f->model_ref),
              LOG_S("device", f->device), LOG_S("outcome", outcome_name[outcome]), LOG_I("tokens_in", s.prompt_tokens),
              LOG_I("tokens_out", j->reader.n_tokens - j->request.n_resume), LOG_D("queue_ms", s.queue_ms),
              LOG_D("first_token_ms", s.queue_ms + s.prefill_ms), LOG_D("decode_time_ms", s.decode_ms));
}

static void account_error(struct job *j, const struct gen_event *ev)
{
    enum job_outcome outcome = ev->code == ERR_TIMEOUT     ? OUTCOME_TIMEOUT
                               : ev->code == ERR_CANCELLED ? OUTCOME_CANCELLED
                                                           : OUTCOME_ERROR;
    const struct worker_facts *f = api_facts(j->api);
    if (outcome == OUTCOME_ERROR)
        log_event(LOG_ERROR, "error", LOG_S("job_id", j->request.job_id), LOG_S("model_ref", f->model_ref),
                  LOG_S("device", f->device), LOG_S("code", reply_code(ev->code)), LOG_S("message", ev->message));
    answer_account(j, j->api, outcome);
}

static void note_start(struct job *j, const struct gen_event *ev)
{
    const struct worker_facts *f = api_facts(j->api);
    j->started = true;
    j->n_prompt = ev->prompt_tokens;
    j->cached_tokens = ev->cached_tokens;
    log_event(LOG_INFO, "execute_start", LOG_S("job_id", j->request.job_id), LOG_S("model_ref", f->model_ref),
              LOG_S("device", f->device), LOG_I("tokens_in", ev->prompt_tokens), LOG_I("tokens_cached", ev->cached_tokens));
}

/* ---- pieces of JSON ---- */

static void add_text(struct buf *b, const char *name, const char *s, size_t n)
{
    buf_printf(b, "\"%s\":", name);
    buf_json_string(b, n > 0 ? s : "", n);
}

/* As the request may give it: a number where JSON has one for it, else a decimal string. */
static void add_seed(struct buf *b, uint64_t seed)
{
    buf_printf(b, seed <= INT64_MAX ? ",\"seed\":%llu" : ",\"seed\":\"%llu\"", (unsigned long long)seed);
}

static void add_counts(struct buf *b, const struct job *j, enum stop_reason stop)
{
    struct gen_stats s = stats_of(j);
    buf_printf(b,
               ",\"tokens_out\":%d,\"decode_time_ms\":%.3f,\"prefill_time_ms\":%.3f,\"queue_time_ms\":%.3f,"
               "\"stop_reason\":\"%s\"",
               j->reader.n_tokens, s.decode_ms, s.prefill_ms, s.queue_ms, stop_reason_name[stop]);
    add_seed(b, j->seed);
}

/* ---- the stream ---- */

static void format_started(struct job *j, struct buf *b)
{
    char now[32];
    clock_rfc3339(now, sizeof now);
    buf_puts(b, "event: started\ndata: {");
    add_text(b, "job_id", j->request.job_id, strlen(j->request.job_id));
    buf_puts(b, ",");
    add_text(b, "model", j->model, strlen(j->model));
    buf_printf(b, ",\"started_at\":\"%s\",\"prompt_tokens\":%d,\"cached_tokens\":%d", now, j->n_prompt,
               j->cached_tokens);
    add_seed(b, j->seed);
    buf_puts(b, "}\n\n");
}

static void format_token(struct job *j, struct buf *b, const struct piece *p)
{
    uint64_t now = clock_ns();
    buf_puts(b, "event: token\ndata: {");
    add_text(b, "t", p->text, p->len);
    buf_printf(b, ",\"i\":%d,\"id\":%d}\n\n", p->index, (int)p->id);
    if (j->metrics_ns == 0)
        j->metrics_ns = now;
    if (now - j->metrics_ns < METRICS_NS || j->reader.stopped)
        return;
    j->metrics_ns = now;
    buf_puts(b, "event: metrics\ndata: {");
    add_text(b, "job_id", j->request.job_id, strlen(j->request.job_id));
    buf_printf(b, ",\"tokens_out\":%d,\"decode_time_ms\":%.3f,\"vram_bytes\":%zu}\n\n", j->reader.n_tokens,
               stats_of(j).decode_ms, api_facts(j->api)->vram_bytes_used);
}

static void format_piece(struct job *j, struct buf *b, const struct piece *p)
{
    switch (p->type) {
    case PIECE_STARTED:
        note_start(j, &p->ev);
        format_started(j, b);
        break;
    case PIECE_TOKEN:
        format_token(j, b, p);
        break;
    case PIECE_END:
        buf_puts(b, "event: end\ndata: {");
        add_text(b, "job_id", j->request.job_id, strlen(j->request.job_id));
        buf_puts(b, ",");
        add_text(b, "t", p->text, p->len);
        add_counts(b, j, p->stop);
        buf_puts(b, "}\n\n");
        answer_account(j, j->api, OUTCOME_SUCCESS);
        j->done = true;
        break;
    case PIECE_ERROR:
        buf_printf(b, "event: error\ndata: {\"code\":\"%s\",", reply_code(p->ev.code));
        add_text(b, "message", p->ev.message, strlen(p->ev.message));
        buf_printf(b, ",\"retriable\":%s}\n\n", reply_retriable(p->ev.code, p->ev.in_queue) ? "true" : "false");
        account_error(j, &p->ev);
        j->done = true;
        break;
    }
}

/* Bytes that are ready, cut to max. */
static size_t take(struct job *j, char *to, size_t max)
{
    size_t n = j->out.len - j->out_at;
    if (n > max)
        n = max;
    if (n > 0)
        memcpy(to, j->out.data + j->out_at, n);
    j->out_at += n;
    if (j->out_at == j->out.len) {
        buf_reset(&j->out);
        j->out_at = 0;
    }
    if (n > 0)
        atomic_store(&j->written_ns, clock_ns());
    return n;
}

/* Ends the connection. MHD_CONTENT_READER_END_WITH_ERROR would be the library's way, but 0.9.75 then leaves the closed connection
 * and its descriptor lying until its thread happens to wake up again; a write that fails is cleaned up at once. */
static ssize_t cut(const struct job *j, char *to)
{
    shutdown(j->fd, SHUT_RDWR);
    to[0] = '\n';
    return 1;
}

/* The library asks for the next chunk once the one before is out. Events that wait are joined into one. */
static ssize_t read_stream(void *cls, uint64_t pos, char *to, size_t max)
{
    struct job *j = cls;
    struct piece p;
    (void)pos;
    do {
        struct job_view v = job_look(j);
        if (v.left)
            return cut(j, to);
        while (j->out.len - j->out_at < max && !j->out.failed && reader_next(&j->reader, &p))
            format_piece(j, &j->out, &p);
        if (j->out.failed)
            return cut(j, to);
        if (v.probe && j->out.len == j->out_at && !j->done)
            buf_puts(&j->out, ": ping\n\n");
        size_t n = take(j, to, max);
        if (n > 0)
            return (ssize_t)n;
        if (j->done)
            return MHD_CONTENT_READER_END_OF_STREAM;
    } while (!job_suspend(j));
    return 0;
}

static void release_stream(void *cls)
{
    job_unref(cls);
}

enum MHD_Result answer_stream(struct job *j, struct MHD_Connection *mhd)
{
    struct MHD_Response *m =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 32 * 1024, read_stream, job_ref(j), release_stream);
    if (m == NULL) {
        job_unref(j);
        return MHD_NO;
    }
    MHD_add_response_header(m, "Content-Type", "text/event-stream");
    MHD_add_response_header(m, "Cache-Control", "no-store");
    MHD_add_response_header(m, "X-Accel-Buffering", "no");
    MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
    atomic_store(&j->written_ns, clock_ns());
    enum MHD_Result done = MHD_queue_response(mhd, MHD_HTTP_OK, m);
    MHD_destroy_response(m);
    return done;
}

/* ---- one object ---- */

static void finish_collected(struct job *j, struct reply *r, const struct piece *p)
{
    struct buf *b = &r->body;
    buf_add(&j->text, p->text, p->len);
    r->status = 200;
    buf_puts(b, "{");
    add_text(b, "job_id", j->request.job_id, strlen(j->request.job_id));
    buf_puts(b, ",");
    add_text(b, "model", j->model, strlen(j->model));
    buf_puts(b, ",");
    add_text(b, "text", j->text.data, j->text.len);
    buf_printf(b, ",\"tokens\":[%s],\"prompt_tokens\":%d,\"cached_tokens\":%d", j->ids.len > 0 ? j->ids.data : "",
               j->n_prompt, j->cached_tokens);
    add_counts(b, j, p->stop);
    buf_puts(b, "}\n");
    b->failed |= j->text.failed || j->ids.failed;
    answer_account(j, j->api, OUTCOME_SUCCESS);
}

bool answer_collect(struct job *j, struct reply *r)
{
    struct piece p;
    while (reader_next(&j->reader, &p)) {
        switch (p.type) {
        case PIECE_STARTED:
            note_start(j, &p.ev);
            break;
        case PIECE_TOKEN:
            buf_add(&j->text, p.text, p.len);
            buf_printf(&j->ids, "%s%d", j->ids.len > 0 ? "," : "", (int)p.id);
            break;
        case PIECE_END:
            finish_collected(j, r, &p);
            return true;
        case PIECE_ERROR: {
            struct err err;
            err_set(&err, p.ev.code, "%s", p.ev.message);
            reply_error(r, &err, p.ev.in_queue, NULL);
            account_error(j, &p.ev);
            return true;
        }
        }
    }
    return false;
}
