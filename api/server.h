/* The server's inside, shared by the files of api/ only. */
#ifndef API_SERVER_H
#define API_SERVER_H

#include "api/accept.h"
#include "api/job.h"
#include "api/metrics.h"
#include "api/parsers.h"
#include "api/reply.h"
#include "api/watch.h"

enum {
    API_HTTP_THREADS = 2,
    API_PARSERS = 2,
    API_INLINE_BODY = 8 * 1024,           /* larger bodies are left to the parsers: an event thread may not be held up */
    API_BODY_BUDGET = 64 * 1024 * 1024,   /* bytes of all bodies in flight */
    API_IDLE_TIMEOUT_MS = 60000,          /* between two requests of one connection */
};

/* Immutable once published; strings live behind it. */
struct facts {
    struct worker_facts f;
    struct facts *older;
    char text[];
};

struct api {
    struct api_options o;                 /* with the defaults filled in */
    struct listener listener;
    struct acceptor acceptor;
    struct watch watch;
    struct parsers parsers;
    struct jobs jobs;
    struct metrics metrics;
    struct MHD_Daemon *mhd;
    uint64_t start_ns;

    _Atomic(struct facts *) facts;        /* the newest; older ones stay valid until api_close */
    _Atomic(struct engine *) engine;
    _Atomic(const struct tok *) tok;
    _Atomic int state, load_percent;      /* enum worker_state */
    atomic_bool stopping;                 /* api_close: no connection may be suspended any more */
    atomic_int open_requests;
    _Atomic size_t body_bytes;            /* of all bodies in flight */
};

static inline const struct worker_facts *api_facts(struct api *a)
{
    return &atomic_load(&a->facts)->f;
}

/* The engine when work may be given to it; else NULL with err saying why (not ready, draining, failed). */
struct engine *api_engine(struct api *a, struct err *err);

bool api_body_charge(struct api *a, size_t n);    /* false: over the budget */
void api_body_release(struct api *a, size_t n);

/* One HTTP request, from its request line to the end of its answer; owned by the library's callbacks. */
struct route;
struct req {
    struct api *api;
    struct MHD_Connection *mhd;
    struct conn *conn;
    const struct route *route;            /* NULL when refused */
    bool begun, complete;                 /* headers, body were seen to their end */
    bool refused;                         /* `refusal` is the answer, once the body is read */
    struct reply refusal;
    struct buf body;
    size_t charged, received;
    struct job *job;                      /* of /execute; a reference */
};

#endif
