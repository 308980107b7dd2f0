/* An event stream of /execute, read event by event; and what is common to the tests of it. Failures end the Check test. */
#ifndef TESTS_SSE_H
#define TESTS_SSE_H

#include "tests/client.h"

#include <jansson.h>

struct event {
    char name[16];       /* "ping" for a comment line */
    json_t *data;        /* NULL for a ping */
};

struct sse {
    struct client c;
    struct buf text;     /* dechunked, not yet taken as events */
    bool over;           /* the last chunk, or the end of the connection, was seen */
    bool whole;          /* it was the last chunk */
    bool started;        /* its event was seen */
    struct event ev;     /* the one sse_next returned last */
    struct buf out;      /* all text so far, end.t included */
    int n_tokens;
    int32_t ids[4096];
};

/* Posts a body to /execute and reads the headers, which must be those of a stream. */
void sse_open(struct sse *s, int port, const char *json);
/* The next event but pings; NULL at the end of the stream or when none comes within ms. */
const struct event *sse_next(struct sse *s, int ms);
/* The same with pings. */
const struct event *sse_any(struct sse *s, int ms);
/* Reads to the end, checking order and indices. The terminal event; its name is "end" or "error". */
const struct event *sse_finish(struct sse *s);
void sse_close(struct sse *s);

const char *sse_string(const struct event *e, const char *name);
json_int_t sse_int(const struct event *e, const char *name);

/* stream:false; the parsed answer, with *status. */
json_t *execute_json(int port, const char *json, int *status);

#endif
