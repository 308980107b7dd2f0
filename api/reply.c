#include "api/reply.h"

#include <stdio.h>
#include <string.h>

/* The one place where an err_code becomes HTTP. Codes that cannot reach a client (usage, model file) count as internal. */
static const struct {
    unsigned status;
    const char *code;
    bool retriable;
} codes[ERR_N] = {
    [ERR_INVALID] = {400, "INVALID_REQUEST", false},
    [ERR_CONTEXT] = {400, "CONTEXT_OVERFLOW", false},
    [ERR_DUPLICATE] = {409, "DUPLICATE_JOB", false},
    [ERR_BUSY] = {429, "QUEUE_FULL", true},
    [ERR_OOM] = {503, "VRAM_OOM", true},
    [ERR_NOT_READY] = {503, "NOT_READY", true},
    [ERR_DRAINING] = {503, "DRAINING", true},
    [ERR_TIMEOUT] = {504, "INFERENCE_TIMEOUT", false},
    [ERR_CANCELLED] = {499, "CANCELLED", false},
    [ERR_CUDA] = {500, "CUDA_ERROR", true},
};

unsigned reply_status(enum err_code code)
{
    return code < ERR_N && codes[code].status != 0 ? codes[code].status : 500;
}

const char *reply_code(enum err_code code)
{
    return code < ERR_N && codes[code].code != NULL ? codes[code].code : "INTERNAL";
}

bool reply_retriable(enum err_code code, bool in_queue)
{
    if (code == ERR_TIMEOUT)
        return in_queue;
    return code >= ERR_N || codes[code].code == NULL || codes[code].retriable;
}

static void fill(struct reply *r, unsigned status, const char *code, const char *message, bool retriable,
                 const struct violations *v)
{
    buf_free(&r->body);
    r->status = status;
    r->type = NULL;
    buf_printf(&r->body, "{\"error\":{\"code\":\"%s\",\"message\":", code);
    json_text(&r->body, message, strlen(message), 2048);
    buf_printf(&r->body, ",\"retriable\":%s", retriable ? "true" : "false");
    if (v != NULL && v->details.len > 0)
        buf_printf(&r->body, ",\"details\":[%s]", v->details.data);
    buf_puts(&r->body, "}}\n");
}

void reply_error(struct reply *r, const struct err *err, bool in_queue, const struct violations *v)
{
    bool listed = v != NULL && v->n > 0;
    const char *message = listed && v->message.len > 0 ? v->message.data : err->msg;
    enum err_code code = listed ? ERR_INVALID : err->code;
    fill(r, reply_status(code), reply_code(code), message, reply_retriable(code, in_queue), v);
}

void reply_problem(struct reply *r, unsigned status, const char *code, const char *message)
{
    fill(r, status, code, message, status == 503 || status == 429, NULL);
}

void reply_free(struct reply *r)
{
    buf_free(&r->body);
    *r = (struct reply){0};
}

enum MHD_Result reply_send(struct reply *r, struct MHD_Connection *mhd)
{
    char seconds[16];
    bool ok = !r->body.failed;
    if ((r->status == 429 || r->status == 503) && r->retry_after < 1)
        r->retry_after = 1;
    struct MHD_Response *m = ok ? MHD_create_response_from_buffer(r->body.len, r->body.data, MHD_RESPMEM_MUST_FREE)
                                : NULL;
    if (m == NULL) {
        reply_free(r);
        return MHD_NO;
    }
    r->body = (struct buf){0};    /* the response frees it */
    MHD_add_response_header(m, "Content-Type", r->type ? r->type : "application/json");
    MHD_add_response_header(m, "Cache-Control", "no-store");
    MHD_add_response_header(m, "X-Content-Type-Options", "nosniff");
    snprintf(seconds, sizeof seconds, "%d", r->retry_after);
    if (r->retry_after > 0)
        MHD_add_response_header(m, "Retry-After", seconds);
    if (r->allow != NULL)
        MHD_add_response_header(m, "Allow", r->allow);
    if (r->close)
        MHD_add_response_header(m, "Connection", "close");
    enum MHD_Result done = MHD_queue_response(mhd, r->status, m);
    MHD_destroy_response(m);
    reply_free(r);
    return done;
}

/* Lengths are checked by the tests. */
#define CANNED(status_line, extra, length, body)                                                                       \
    "HTTP/1.1 " status_line "\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n" extra                  \
    "Connection: close\r\nContent-Length: " length "\r\n\r\n" body

const char reply_canned_503[] = CANNED(
    "503 Service Unavailable", "Retry-After: 1\r\n", "86",
    "{\"error\":{\"code\":\"NOT_READY\",\"message\":\"too many open connections\",\"retriable\":true}}\n");
const char reply_canned_413[] = CANNED(
    "413 Payload Too Large", "", "91",
    "{\"error\":{\"code\":\"PAYLOAD_TOO_LARGE\",\"message\":\"the body is too large\",\"retriable\":false}}\n");
const char reply_canned_408[] = CANNED(
    "408 Request Timeout", "", "98",
    "{\"error\":{\"code\":\"REQUEST_TIMEOUT\",\"message\":\"the body did not arrive in time\",\"retriable\":true}}\n");
const char reply_canned_429[] = CANNED(
    "429 Too Many Requests", "Retry-After: 1\r\n", "95",
    "{\"error\":{\"code\":\"QUEUE_FULL\",\"message\":\"too many request bodies in flight\",\"retriable\":true}}\n");
