#define _GNU_SOURCE    /* memmem, getline */
#include "tests/case.h"

#include "tests/client.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER_MS = 10000, CLOSE_MS = 3000 };

struct expect {
    char text[512];
    struct expect *next;
};

struct testcase {
    char title[256];
    struct buf send;
    struct expect *first, **last;
    int line;
};

static void reset(struct testcase *t)
{
    while (t->first != NULL) {
        struct expect *next = t->first->next;
        free(t->first);
        t->first = next;
    }
    t->last = &t->first;
    buf_free(&t->send);
    t->title[0] = 0;
}

/* The }} that belongs to the {{ at s, or NULL. */
static const char *closing(const char *s, const char *end)
{
    int depth = 0;
    for (; s + 1 < end; s++) {
        if (s[0] == '{' && s[1] == '{') {
            depth++;
            s++;
        } else if (s[0] == '}' && s[1] == '}' && depth > 0) {
            if (--depth == 0)
                return s;
            s++;
        }
    }
    return NULL;
}

/* Appends s, with {{...}} replaced. */
static void expand(struct buf *out, const char *s, size_t n)
{
    const char *end = s + n;
    while (s < end) {
        const char *open = memmem(s, (size_t)(end - s), "{{", 2);
        const char *close = open != NULL ? closing(open, end) : NULL;
        if (close == NULL) {
            buf_add(out, s, (size_t)(end - s));
            return;
        }
        buf_add(out, s, (size_t)(open - s));
        char *after;
        unsigned long count = strtoul(open + 2, &after, 10);
        if (after > open + 2 && *after == '*') {
            for (unsigned long i = 0; i < count; i++)
                expand(out, after + 1, (size_t)(close - after - 1));
        } else {
            for (const char *p = open + 2; p < close; p = after) {
                unsigned char byte = (unsigned char)strtoul(p, &after, 16);
                if (after == p)
                    break;
                buf_add(out, &byte, 1);
            }
        }
        s = close + 2;
    }
}

static void send_execute(struct testcase *t, const char *json)
{
    struct buf body = {0};
    expand(&body, json, strlen(json));
    buf_printf(&t->send,
               "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
               body.len);
    buf_add(&t->send, body.data, body.len);
    buf_free(&body);
}

static bool add_line(struct testcase *t, const char *line)
{
    if (line[0] == '=' && line[1] == ' ') {
        send_execute(t, line + 2);
    } else if (line[0] == '>' && line[1] == '|') {
        const char *s = line + (line[2] == ' ' ? 3 : 2);
        expand(&t->send, s, strlen(s));
    } else if (line[0] == '>') {
        const char *s = line + (line[1] == ' ' ? 2 : 1);
        expand(&t->send, s, strlen(s));
        buf_puts(&t->send, "\r\n");
    } else if (line[0] == '<' && line[1] == ' ') {
        struct expect *e = calloc(1, sizeof *e);
        if (e == NULL)
            return false;
        snprintf(e->text, sizeof e->text, "%s", line + 2);
        *t->last = e;
        t->last = &e->next;
    } else {
        return line[0] == 0 || line[0] == '#';
    }
    return true;
}

/* ---- checking ---- */

static bool status_matches(const char *spec, int status)
{
    char *end;
    do {
        if (strtol(spec, &end, 10) == status)
            return true;
        spec = end + 1;
    } while (*end == '|');
    return false;
}

static bool error_matches(const struct answer *a, const char *code, struct buf *problem)
{
    char type[128];
    json_error_t e;
    json_t *root = json_loadb(a->body.data, a->body.len, JSON_REJECT_DUPLICATES, &e);
    const char *found = json_string_value(json_object_get(json_object_get(root, "error"), "code"));
    const char *message = json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    const char *ct = answer_header(a, "Content-Type", type, sizeof type);
    bool ok = found != NULL && strcmp(found, code) == 0 && message != NULL && message[0] != 0 && ct != NULL &&
              strcmp(ct, "application/json") == 0 && json_object_size(root) == 1;
    if (!ok)
        buf_printf(problem, "expected error %s, got %s", code, a->body.data);
    json_decref(root);
    return ok;
}

/* One expectation about the answer that was read last. */
static bool check(struct client *c, const struct answer *a, const char *what, struct buf *problem)
{
    char value[1024], name[64];
    bool no = strncmp(what, "no ", 3) == 0;
    if (no)
        what += 3;
    bool found;
    if (strncmp(what, "body ", 5) == 0) {
        found = strstr(a->body.data, what + 5) != NULL;
    } else if (strcmp(what, "empty") == 0) {
        found = a->body.len == 0;
    } else if (strcmp(what, "close") == 0) {
        found = client_wait_close(c, CLOSE_MS) && c->in.len == 0;
    } else if (strncmp(what, "header ", 7) == 0) {
        size_t n = strcspn(what + 7, ":");
        snprintf(name, sizeof name, "%.*s", (int)n, what + 7);
        const char *v = answer_header(a, name, value, sizeof value);
        const char *wanted = what[7 + n] == ':' ? what + 8 + n + strspn(what + 8 + n, " ") : "";
        found = v != NULL && strstr(v, wanted) != NULL;
    } else {
        buf_printf(problem, "unknown expectation: %s", what);
        return false;
    }
    if (found != no)
        return true;
    buf_printf(problem, "expected %s%s; got %s%.600s", no ? "no " : "", what, a->head.data ? a->head.data : "nothing",
               a->body.data ? a->body.data : "");
    if (c->in.len > 0)
        buf_printf(problem, "\nthen %.300s", c->in.data);
    return false;
}

/* An expectation that begins with a digit is an answer; those after it are about it. */
static bool expect_all(struct testcase *t, struct client *c, struct buf *problem)
{
    struct answer a = {0};
    bool ok = true, head = strncmp(t->send.data, "HEAD ", 5) == 0;
    for (struct expect *e = t->first; ok && e != NULL; e = e->next) {
        if (e->text[0] < '0' || e->text[0] > '9') {
            ok = check(c, &a, e->text, problem);
            continue;
        }
        long times = 1;
        if (e->next != NULL && strncmp(e->next->text, "times ", 6) == 0)
            times = strtol(e->next->text + 6, NULL, 10);
        for (long i = 0; ok && i < times; i++) {
            answer_free(&a);
            bool got = client_answer(c, &a, head, ANSWER_MS);
            if (!status_matches(e->text, got ? a.status : 0)) {
                buf_printf(problem, "expected %s, got %s %.300s", e->text, got ? a.head.data : "no answer",
                           got && a.body.data != NULL ? a.body.data : "");
                ok = false;
            }
            const char *code = strchr(e->text, ' ');
            if (ok && got && a.status >= 400 && code != NULL)
                ok = error_matches(&a, code + 1, problem);
        }
        if (times > 1)
            e = e->next;
    }
    answer_free(&a);
    return ok;
}

static bool run(struct testcase *t, int port, struct buf *problem)
{
    struct client c;
    if (!client_open(&c, port)) {
        buf_printf(problem, "no connection to port %d", port);
        return false;
    }
    client_send(&c, t->send.data, t->send.len);    /* may be cut short by an early refusal */
    bool ok = expect_all(t, &c, problem);
    client_close(&c);
    return ok;
}

int case_run(const char *path, int port, void (*after)(void *arg, const char *title), void *arg, struct buf *problem)
{
    struct testcase t = {.last = &t.first};
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    int n = 0, number = 0;
    bool ok = true, more = f != NULL;
    if (f == NULL)
        buf_printf(problem, "%s: %s", path, strerror(errno));
    while (ok && more) {
        more = getline(&line, &size, f) >= 0;
        number++;
        if (more)
            line[strcspn(line, "\n")] = 0;
        if (!more || strncmp(line, "== ", 3) == 0) {
            struct buf why = {0};
            ok = t.title[0] == 0 || run(&t, port, &why);
            if (!ok)
                buf_printf(problem, "%s:%d: %s: %s", path, t.line, t.title, why.data);
            else if (t.title[0] != 0 && ++n > 0 && after != NULL)
                after(arg, t.title);
            buf_free(&why);
            reset(&t);
            t.line = number;
            if (more)
                snprintf(t.title, sizeof t.title, "%s", line + 3);
        } else if (!add_line(&t, line)) {
            buf_printf(problem, "%s:%d: not understood: %s", path, number, line);
            ok = false;
        }
    }
    reset(&t);
    free(line);
    if (f != NULL)
        fclose(f);
    return n;
}
