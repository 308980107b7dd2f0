#define _GNU_SOURCE    /* memmem */
#include "tests/sse.h"

#include "base/clock.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATIENCE_MS = 20000 };

void sse_open(struct sse *s, int port, const char *json)
{
    *s = (struct sse){0};
    ck_assert(client_open(&s->c, port));
    ck_assert(client_post(&s->c, "/execute", json));
    ck_assert_msg(client_wait(&s->c, "\r\n\r\n", PATIENCE_MS), "no headers: %s", s->c.in.data ? s->c.in.data : "");
    const char *end = strstr(s->c.in.data, "\r\n\r\n");
    struct answer a = {0};
    char v[64];
    buf_add(&a.head, s->c.in.data, (size_t)(end - s->c.in.data) + 4);
    ck_assert_msg(strncmp(a.head.data, "HTTP/1.1 200 ", 13) == 0, "%s", s->c.in.data);
    ck_assert_str_eq(answer_header(&a, "Content-Type", v, sizeof v), "text/event-stream");
    ck_assert_str_eq(answer_header(&a, "Cache-Control", v, sizeof v), "no-store");
    ck_assert_str_eq(answer_header(&a, "X-Accel-Buffering", v, sizeof v), "no");
    ck_assert_str_eq(answer_header(&a, "Transfer-Encoding", v, sizeof v), "chunked");
    buf_consume(&s->c.in, a.head.len);
    answer_free(&a);
}

/* Moves complete chunks to text. */
static void dechunk(struct sse *s)
{
    while (!s->over && s->c.in.len > 0) {
        const char *in = s->c.in.data, *line = memmem(in, s->c.in.len, "\r\n", 2);
        if (line == NULL)
            return;
        size_t n = strtoul(in, NULL, 16), head = (size_t)(line - in) + 2;
        if (s->c.in.len < head + n + 2)
            return;
        buf_add(&s->text, in + head, n);
        buf_consume(&s->c.in, head + n + 2);
        s->over = s->whole = n == 0;
    }
}

/* Takes one block from text; false when there is none. */
static bool take_event(struct sse *s)
{
    json_decref(s->ev.data);
    s->ev = (struct event){0};
    const char *end = s->text.len > 0 ? strstr(s->text.data, "\n\n") : NULL;
    if (end == NULL)
        return false;
    size_t n = (size_t)(end - s->text.data) + 2;
    if (strncmp(s->text.data, ": ping\n\n", 8) == 0) {
        snprintf(s->ev.name, sizeof s->ev.name, "ping");
    } else {
        const char *data = strstr(s->text.data, "\ndata: ");
        json_error_t err;
        ck_assert_msg(strncmp(s->text.data, "event: ", 7) == 0 && data != NULL && data < end, "%s", s->text.data);
        snprintf(s->ev.name, sizeof s->ev.name, "%.*s", (int)(data - s->text.data - 7), s->text.data + 7);
        s->ev.data = json_loadb(data + 7, (size_t)(end - data) - 7, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &err);
        ck_assert_msg(s->ev.data != NULL, "%s: %s", err.text, s->text.data);
    }
    buf_consume(&s->text, n);
    return true;
}

/* A model may well say NUL. */
static void add_text(struct sse *s)
{
    const json_t *t = json_object_get(s->ev.data, "t");
    ck_assert(json_is_string(t));
    buf_add(&s->out, json_string_value(t), json_string_length(t));
}

const struct event *sse_any(struct sse *s, int ms)
{
    uint64_t start = clock_ns();
    while (!take_event(s)) {
        dechunk(s);
        if (s->text.len > 0 && strstr(s->text.data, "\n\n") != NULL)
            continue;
        int left = ms - (int)clock_ms_since(start);
        if (s->over || s->c.closed || left <= 0) {
            s->over |= s->c.closed;
            return NULL;
        }
        client_receive(&s->c, left);
    }
    if (strcmp(s->ev.name, "started") == 0) {
        ck_assert(!s->started);
        s->started = true;
    } else if (strcmp(s->ev.name, "token") == 0) {
        add_text(s);
        ck_assert_int_lt(s->n_tokens, 4096);
        s->ids[s->n_tokens++] = (int32_t)sse_int(&s->ev, "id");
    } else if (strcmp(s->ev.name, "end") == 0) {
        add_text(s);
    }
    return &s->ev;
}

const struct event *sse_next(struct sse *s, int ms)
{
    const struct event *e;
    do
        e = sse_any(s, ms);
    while (e != NULL && strcmp(e->name, "ping") == 0);
    return e;
}

const struct event *sse_finish(struct sse *s)
{
    static struct event last;
    const struct event *e;
    json_decref(last.data);
    last = (struct event){0};
    json_int_t next = -1;
    while ((e = sse_next(s, PATIENCE_MS)) != NULL) {
        ck_assert_msg(last.data == NULL, "%s after the terminal event", e->name);
        if (strcmp(e->name, "started") == 0) {
            ck_assert_int_eq(s->n_tokens, 0);
        } else if (strcmp(e->name, "token") == 0) {
            json_int_t i = sse_int(e, "i");
            ck_assert_msg(s->started && (next < 0 || i == next), "token %lld", (long long)i);
            next = i + 1;
        } else if (strcmp(e->name, "metrics") == 0) {
            ck_assert_int_gt(s->n_tokens, 0);
        } else {
            ck_assert_msg(strcmp(e->name, "error") == 0 || (s->started && strcmp(e->name, "end") == 0), "%s", e->name);
            last = *e;
            json_incref(last.data);
        }
    }
    ck_assert_msg(s->whole, "the stream was cut");
    ck_assert_ptr_nonnull(last.data);
    return &last;
}

void sse_close(struct sse *s)
{
    json_decref(s->ev.data);
    buf_free(&s->text);
    buf_free(&s->out);
    client_close(&s->c);
}

const char *sse_string(const struct event *e, const char *name)
{
    const char *v = json_string_value(json_object_get(e->data, name));
    ck_assert_msg(v != NULL, "%s has no string %s", e->name, name);
    return v;
}

json_int_t sse_int(const struct event *e, const char *name)
{
    const json_t *v = json_object_get(e->data, name);
    ck_assert_msg(json_is_integer(v), "%s has no integer %s", e->name, name);
    return json_integer_value(v);
}

json_t *execute_json(int port, const char *json, int *status)
{
    struct buf body = {0};
    json_error_t e;
    *status = client_request(port, "/execute", json, &body);
    json_t *root = json_loadb(body.data ? body.data : "", body.len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    ck_assert_msg(root != NULL, "status %d, %s: %s", *status, e.text, body.data ? body.data : "");
    buf_free(&body);
    return root;
}
