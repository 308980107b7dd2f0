/* The first look at a request, before any of its body is read: framing that the HTTP library takes too lightly, and what no
 * endpoint accepts. A table of checks; the first that fails answers, and the connection is closed after it. */
#ifndef API_GUARD_H
#define API_GUARD_H

#include "api/reply.h"
#include "api/routes.h"

struct guard {
    struct MHD_Connection *mhd;
    const struct route *route;      /* NULL when there is none: still checked */
    const char *version;            /* "HTTP/1.1" */
    const char *url;                /* the raw path */
    size_t max_body;

    /* found in the headers */
    bool bad_name;
    int n_host, n_length, n_encoding, n_type, n_auth;
    const char *transfer_encoding, *content_type, *content_encoding;
    uint64_t content_length;
    bool has_body;
};

/* Reads the headers; true = go on. Else r is the answer. */
bool guard_check(struct guard *g, struct reply *r);

#endif
