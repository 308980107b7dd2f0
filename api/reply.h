/* Answers: the table of error codes, error objects, and handing a complete response to the library. */
#ifndef API_REPLY_H
#define API_REPLY_H

#include "api/json.h"
#include "base/buf.h"
#include "base/err.h"

#include <microhttpd.h>

struct reply {
    unsigned status;
    const char *type;        /* NULL = application/json */
    struct buf body;         /* owned by the reply until it is sent */
    int retry_after;         /* seconds; 0 = no header. 429 and 503 get at least 1 */
    const char *allow;       /* 405: the methods that are allowed */
    bool close;              /* Connection: close */
};

/* HTTP status, code name and whether another worker could succeed. in_queue: the request never ran. */
unsigned reply_status(enum err_code code);
const char *reply_code(enum err_code code);
bool reply_retriable(enum err_code code, bool in_queue);

/* Fills r with the contract's error object. v may be NULL. */
void reply_error(struct reply *r, const struct err *err, bool in_queue, const struct violations *v);
/* The same for what only HTTP knows: a status and its own code name. */
void reply_problem(struct reply *r, unsigned status, const char *code, const char *message);

/* Queues r and frees it; MHD_NO closes the connection (no memory). */
enum MHD_Result reply_send(struct reply *r, struct MHD_Connection *mhd);
void reply_free(struct reply *r);

/* Complete responses for places where the library cannot answer: bytes, with Connection: close. */
extern const char reply_canned_503[];    /* too many connections */
extern const char reply_canned_413[];
extern const char reply_canned_408[];
extern const char reply_canned_429[];    /* too many bodies in flight */

#endif
