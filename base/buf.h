/* A growing byte buffer with a maximum. The first failure sticks (`failed`), so a chain of appends is checked once
 * at its end. Zero-initialise, set `max`, free with buf_free. `data` is always NUL-terminated once non-NULL. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data;
    size_t len, cap;
    size_t max;       /* 0 = no limit */
    bool failed;      /* out of memory or over max: data holds what was there before */
};

bool buf_add(struct buf *b, const void *bytes, size_t n);
bool buf_puts(struct buf *b, const char *s);
bool buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool buf_json_string(struct buf *b, const char *s, size_t n);    /* quoted and escaped; s must be valid UTF-8 */
void buf_consume(struct buf *b, size_t n);                       /* drops n bytes from the front */
void buf_reset(struct buf *b);                                   /* empty, memory kept, failed cleared */
void buf_free(struct buf *b);

#endif
