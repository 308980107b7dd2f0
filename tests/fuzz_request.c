#define _GNU_SOURCE    /* memmem */
/* Fuzzes the reading of request bodies and the matching of stop strings (libFuzzer; make fuzz). The first byte chooses: a body of
 * /execute, a body of /cancel, or stop strings (lines) with pieces of text after an empty line. What comes out is checked: an
 * accepted request is within its ranges, a refused one has a message that is JSON. */
#include "api/request.h"
#include "api/stop.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void insist(bool ok)
{
    if (!ok)
        abort();
}

static void check_details(const struct violations *v)
{
    if (v->n == 0)
        return;
    struct buf b = {0};
    buf_printf(&b, "[%s]", v->details.data);
    json_t *list = json_loadb(b.data, b.len, JSON_REJECT_DUPLICATES, NULL);
    insist(list != NULL && json_array_size(list) == (size_t)(v->n < 64 ? v->n : 64));
    json_decref(list);
    buf_free(&b);
}

static void read_execute(char *body, size_t n)
{
    static const struct request_limits limits = {.n_vocab = 1000, .n_ctx = 512, .max_tokens_out = 300};
    struct request r;
    struct violations v = {0};
    struct err err = {0};
    bool ok = request_read(&r, body, n, &limits, &v, &err);
    insist(ok == (v.n == 0 && err.code == ERR_NONE));
    check_details(&v);
    if (ok) {
        insist(r.job_id != NULL && r.prompt != NULL && r.prompt_len > 0);
        insist(r.max_tokens >= 0 && r.max_tokens <= 300 && r.top_k >= 0 && r.top_k <= 1000);
        insist(r.temperature >= 0 && r.temperature <= 2 && r.top_p > 0 && r.top_p <= 1);
        for (int i = 0; i < r.n_stop; i++)
            insist(r.stop[i][0] != 0 && strlen(r.stop[i]) <= REQUEST_MAX_STOP_BYTES);
        for (int i = 0; i < r.n_bias; i++)
            insist(r.bias[i].token >= 0 && r.bias[i].token < 1000);
    }
    request_free(&r);
    violations_free(&v);
}

static void read_cancel(char *body, size_t n)
{
    struct violations v = {0};
    struct err err = {0};
    free(request_read_cancel(body, n, &v, &err));
    check_details(&v);
    violations_free(&v);
}

/* What was given out and what is held is what was put in, unless a stop string was found: then none is in the output. */
static void match(char *text, size_t n)
{
    char *stops[REQUEST_MAX_STOPS];
    int n_stops = 0;
    struct buf in = {0}, out = {0};
    struct stop s;
    char *end = text + n, *p = text;
    while (n_stops < REQUEST_MAX_STOPS && p < end && *p != '\n') {
        char *line = memchr(p, '\n', (size_t)(end - p));
        if (line == NULL)
            break;
        *line = 0;
        if (strlen(p) > 0)
            stops[n_stops++] = p;
        p = line + 1;
    }
    stop_init(&s, stops, n_stops);
    bool found = false;
    while (!found && p < end) {
        size_t piece = 1 + (unsigned char)*p % 5;
        if (piece > (size_t)(end - p))
            piece = (size_t)(end - p);
        found = stop_push(&s, p, piece, &out);
        buf_add(&in, p, piece);
        p += piece;
    }
    if (!found)
        stop_flush(&s, &out);
    insist(out.len <= in.len && (found || out.len == in.len));
    insist(out.len == 0 || memcmp(out.data, in.data, out.len) == 0);
    for (int i = 0; i < n_stops; i++)
        insist(out.len == 0 || memmem(out.data, out.len, stops[i], strlen(stops[i])) == NULL);
    stop_free(&s);
    buf_free(&in);
    buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[])(char *, size_t) = {read_execute, read_cancel, match};
    if (size == 0)
        return 0;
    char *copy = malloc(size);    /* the exact size: the sanitizer sees any byte too many */
    if (copy == NULL)
        return 0;
    memcpy(copy, data + 1, size - 1);
    targets[data[0] % 3](copy, size - 1);
    free(copy);
    return 0;
}
