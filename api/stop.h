/* Stop strings, matched on text across tokens. Text that may still become one is held back; a match ends generation and no
 * part of it is ever given out. */
#ifndef API_STOP_H
#define API_STOP_H

#include "base/buf.h"

struct stop {
    const char *const *strings;    /* not owned */
    int n;
    struct buf held;
};

void stop_init(struct stop *s, char *const *strings, int n);
void stop_free(struct stop *s);

/* Appends what is certain not to be part of a stop string to out. True when one is complete: out then ends where the match
 * begins, and nothing may be pushed any more. The match that is complete first wins; of several that end together, the one
 * that begins first. */
bool stop_push(struct stop *s, const char *text, size_t n, struct buf *out);

/* The text is not searched any more: what is held goes to out. */
void stop_flush(struct stop *s, struct buf *out);

#endif
