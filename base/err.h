/* Errors: a code that decides what the caller does (HTTP status, exit code) and a message for people.
 *
 * A function that can fail returns bool (true = ok) or a pointer (NULL = failed) and takes `struct err *err`
 * last. A message says what was found, what is allowed and where (file, tensor, key, option). */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>

enum err_code {
    ERR_NONE,
    ERR_USAGE,        /* bad option or configuration value */
    ERR_MODEL,        /* model file malformed or unsupported */
    ERR_NO_MODEL,     /* model file missing or unreadable */
    ERR_DEVICE,       /* device missing, busy, too small or not built in */
    ERR_INTERNAL,     /* our own failure */
    ERR_SYSTEM,       /* bind failed, out of descriptors, ... */
    ERR_INVALID,      /* a request that can never succeed */
    ERR_CONTEXT,      /* a request longer than the context */
    ERR_DUPLICATE,    /* job_id is running already */
    ERR_BUSY,         /* queue full */
    ERR_OOM,          /* not enough (device) memory for this request */
    ERR_NOT_READY,    /* model not loaded (yet) */
    ERR_DRAINING,     /* shutting down */
    ERR_TIMEOUT,      /* deadline passed */
    ERR_CANCELLED,    /* cancelled, or its client left */
    ERR_CUDA,         /* the device failed in service */
    ERR_N
};

struct err {
    enum err_code code;
    char msg[512];
};

/* Sets code and message (cut to fit, never inside a UTF-8 character); always returns false. err may be NULL. */
bool err_set(struct err *err, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message that is there; always returns false. */
bool err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
