#include "api/stop.h"

#include <string.h>

void stop_init(struct stop *s, char *const *strings, int n)
{
    *s = (struct stop){.strings = (const char *const *)strings, .n = n};
}

void stop_free(struct stop *s)
{
    buf_free(&s->held);
}

void stop_flush(struct stop *s, struct buf *out)
{
    buf_add(out, s->held.data, s->held.len);
    buf_reset(&s->held);
}

/* Naive search: the held text is a few hundred bytes at most, and mostly empty. */
bool stop_push(struct stop *s, const char *text, size_t n, struct buf *out)
{
    if (s->n == 0) {
        buf_add(out, text, n);
        return false;
    }
    buf_add(&s->held, text, n);
    const char *h = s->held.data;
    size_t len = s->held.len, match = len, match_end = len + 1, open = len;
    for (size_t i = 0; i < len; i++) {
        for (int k = 0; k < s->n; k++) {
            size_t m = strlen(s->strings[k]), left = len - i;
            if (m <= left && i + m < match_end && memcmp(h + i, s->strings[k], m) == 0) {
                match = i;
                match_end = i + m;
            } else if (m > left && i < open && memcmp(h + i, s->strings[k], left) == 0) {
                open = i;
            }
        }
    }
    bool matched = match_end <= len;
    size_t give = matched ? match : open;
    buf_add(out, h, give);
    buf_consume(&s->held, matched ? len : give);
    out->failed |= s->held.failed;
    return matched;
}
