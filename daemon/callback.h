/* The ready callback: one POST that tells the pool manager where this worker is. Runs in the caller's thread until the
 * manager said 2xx, all tries failed, or callback_stop was called. */
#ifndef DAEMON_CALLBACK_H
#define DAEMON_CALLBACK_H

#include "base/err.h"

#include <stddef.h>

struct callback;

enum { CALLBACK_TRIES = 5, CALLBACK_TIMEOUT_MS = 5000, CALLBACK_BACKOFF_MS = 500, CALLBACK_ANSWER_MAX = 64 << 10 };

struct callback_options {
    const char *url;            /* checked by options_parse; must outlive the callback */
    const char *token;          /* bearer token, or NULL */
    const char *body;           /* JSON; must outlive the callback */
    int timeout_ms;             /* of one try; 0 = CALLBACK_TIMEOUT_MS */
    int backoff_ms;             /* before the second try; doubles each time. 0 = CALLBACK_BACKOFF_MS */
};

/* NULL: no memory (ERR_INTERNAL). */
struct callback *callback_open(const struct callback_options *o, struct err *err);

/* True: delivered. False: ERR_SYSTEM with the last try's reason, or ERR_CANCELLED after callback_stop. */
bool callback_run(struct callback *c, struct err *err);

/* From any thread: callback_run returns at once. */
void callback_stop(struct callback *c);
void callback_close(struct callback *c);

#endif
