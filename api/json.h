/* JSON bodies: reading with bounds and positions, and the list of everything that is wrong with one request. */
#ifndef API_JSON_H
#define API_JSON_H

#include "base/buf.h"
#include "base/err.h"

#include <jansson.h>

/* Values of one body (elements and members): bounds the memory of a parse to some 25 MB whatever max_body_bytes is. Larger
 * than any context is long, because prompts may be arrays of token ids. */
enum { JSON_MAX_VALUES = 262144 };

/* Reads one object. Duplicate keys, NUL characters, bytes after the end and invalid UTF-8 are refused with line and column
 * (ERR_INVALID). Numbers too large for any type become +-9e307, so that the field's own range refuses them by name; `text` is
 * changed in place for that. Free with json_decref. */
json_t *json_read(char *text, size_t n, struct err *err);

/* All violations of one request, reported together. */
struct violations {
    struct buf details;    /* the elements of "details", comma separated */
    struct buf message;    /* the same for people, cut to a few */
    int n;
};

/* field is the client's text: it is escaped and cut. */
void violations_add(struct violations *v, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void violations_free(struct violations *v);

/* Appends s as a JSON string whatever its bytes are: invalid UTF-8 becomes U+FFFD, more than max bytes are cut. */
void json_text(struct buf *b, const char *s, size_t n, size_t max);

#endif
