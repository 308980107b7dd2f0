/* The server: the HTTP library's callbacks, and what api.h declares. */
#include "api/server.h"

#include "api/answer.h"
#include "api/execute.h"
#include "api/guard.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum {
    POOL_BYTES = 32 * 1024,      /* the library's memory of a connection: bounds request line and headers, and a chunk */
    FLUSH_MS = 500,              /* api_close waits that long for answers that are owed */
    CUT_MS = 5000,
};

/* ---- requests ---- */

/* Paths are compared as they came: nothing is decoded. */
static size_t keep_escapes(void *cls, struct MHD_Connection *mhd, char *s)
{
    (void)cls;
    (void)mhd;
    return strlen(s);
}

static struct conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info != NULL ? info->socket_context : NULL;
}

/* The request line is there: the first sign of a request on a kept connection. */
static void *see_request_line(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct api *a = cls;
    struct conn *c = conn_of(mhd);
    struct req *r = c != NULL ? mem_alloc(1, sizeof *r) : NULL;
    (void)uri;
    if (r == NULL)
        return NULL;
    r->api = a;
    r->mhd = mhd;
    r->conn = c;
    if (atomic_load(&c->phase) == CONN_IDLE)
        conn_enter(c, CONN_HEADERS, a->o.header_timeout_ms);
    return r;
}

enum MHD_Result req_send(struct req *r, struct reply *reply)
{
    if (atomic_load(&r->api->state) == WORKER_DRAINING)
        reply->close = true;
    return reply_send(reply, r->mhd);
}

enum MHD_Result req_error(struct req *r, const struct err *err, const struct violations *v)
{
    struct reply reply = {0};
    reply_error(&reply, err, true, v);
    return req_send(r, &reply);
}

/* The library's own time-out, of inactivity in whole seconds, is what we want while an answer is written. It stays set on a kept
 * connection until the next body is read, whose deadline is ours. */
static void set_stall_timeout(struct req *r, bool on)
{
    unsigned seconds = on ? (unsigned)(r->api->o.send_timeout_ms + 999) / 1000 : 0;
    MHD_set_connection_option(r->mhd, MHD_CONNECTION_OPTION_TIMEOUT, seconds);
}

/* Headers are complete. An answer now makes the library close the connection, so it is only given where that is meant. */
static enum MHD_Result begin(struct req *r, const char *url, const char *method, const char *version)
{
    struct api *a = r->api;
    r->begun = true;
    r->route = route_find(url, method, &r->refusal);
    r->refused = r->route == NULL;
    struct guard g = {.mhd = r->mhd, .route = r->route, .version = version, .url = url,
                      .max_body = a->o.max_body_bytes};
    struct reply refusal = {0};
    set_stall_timeout(r, true);
    if (!guard_check(&g, &refusal)) {
        conn_enter(r->conn, CONN_BUSY, 0);
        return reply_send(&refusal, r->mhd);
    }
    if (r->refused && g.has_body) {
        conn_enter(r->conn, CONN_BUSY, 0);
        r->refusal.close = true;
        return reply_send(&r->refusal, r->mhd);
    }
    if (g.has_body) {
        set_stall_timeout(r, false);
        conn_enter(r->conn, CONN_BODY, a->o.body_timeout_ms);
    } else {
        conn_enter(r->conn, CONN_BUSY, 0);
    }
    return MHD_YES;
}

/* A piece of the body. The library lets us answer nothing before its end, so refusals go out on the raw socket. */
static void receive(struct req *r, const char *data, size_t n)
{
    r->received += n;
    if (conn_refused(r->conn))
        return;
    if (r->received > r->api->o.max_body_bytes) {
        conn_refuse(r->conn, reply_canned_413);
    } else if (r->route->json) {
        if (!api_body_charge(r->api, n)) {
            conn_refuse(r->conn, reply_canned_429);
            return;
        }
        r->charged += n;
        if (!buf_add(&r->body, data, n))
            conn_refuse(r->conn, reply_canned_429);
    }
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version, const char *data, size_t *size, void **req_cls)
{
    struct req *r = *req_cls;
    (void)cls;
    (void)mhd;
    if (r == NULL)
        return MHD_NO;    /* no memory */
    if (!r->begun)
        return begin(r, url, method, version);
    if (*size > 0) {
        receive(r, data, *size);
        *size = 0;
        return MHD_YES;
    }
    if (!r->complete) {
        r->complete = true;
        conn_enter(r->conn, CONN_BUSY, 0);
        set_stall_timeout(r, true);
    }
    if (conn_refused(r->conn))
        return MHD_NO;
    return r->refused ? req_send(r, &r->refusal) : r->route->handle(r);
}

static void complete(void *cls, struct MHD_Connection *mhd, void **req_cls, enum MHD_RequestTerminationCode how)
{
    struct api *a = cls;
    struct req *r = *req_cls;
    (void)mhd;
    (void)how;
    if (r == NULL)
        return;
    *req_cls = NULL;
    if (r->job != NULL) {
        watch_detach(&a->watch, r->conn);
        job_client_left(r->job);    /* no effect when it has ended */
        answer_account(r->job, a, OUTCOME_CANCELLED);
        job_unref(r->job);
        atomic_fetch_sub(&a->open_requests, 1);
    }
    conn_enter(r->conn, CONN_IDLE, API_IDLE_TIMEOUT_MS);
    api_body_release(a, r->charged);
    buf_free(&r->body);
    reply_free(&r->refusal);
    free(r);
}

static void connection(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_ConnectionNotificationCode code)
{
    struct api *a = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        *context = watch_add(&a->watch, info->connect_fd, a->o.header_timeout_ms);
    } else {
        if (*context != NULL)
            watch_remove(&a->watch, *context);
        *context = NULL;
        atomic_fetch_sub(&a->acceptor.n_conns, 1);
    }
}

/* The library gives up on its own state: it will abort. Say why, where people look. */
static void panic(void *cls, const char *file, unsigned line, const char *reason)
{
    (void)cls;
    log_event(LOG_ERROR, "error", LOG_S("code", "INTERNAL"), LOG_S("message", reason ? reason : "HTTP library"),
              LOG_S("file", file), LOG_I("line", line));
}

/* ---- what the daemon calls ---- */

static int connection_limit(int wanted)
{
    struct rlimit rl;
    int possible = 12000;
    if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur != RLIM_INFINITY) {
        /* the rest is for the model, the library's own descriptors and the callback */
        rlim_t spare = rl.rlim_cur / 2 < 64 ? rl.rlim_cur / 2 : 64;
        if (rl.rlim_cur - spare < (rlim_t)possible)
            possible = (int)(rl.rlim_cur - spare);
    }
    return wanted > 0 && wanted < possible ? wanted : possible;
}

static void fill_options(struct api *a, const struct api_options *o)
{
    a->o = *o;
    if (a->o.max_body_bytes == 0)
        a->o.max_body_bytes = 4 * 1024 * 1024;
    if (a->o.header_timeout_ms == 0)
        a->o.header_timeout_ms = 10000;
    if (a->o.body_timeout_ms == 0)
        a->o.body_timeout_ms = 30000;
    if (a->o.send_timeout_ms == 0)
        a->o.send_timeout_ms = 30000;
    a->o.max_connections = connection_limit(o->max_connections);
}

static bool start_library(struct api *a, struct err *err)
{
    const unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME |
                           MHD_USE_ITC;
    /* Its limit is divided by the threads and must never be the one that bites: ours answers, its lets wait. */
    unsigned limit = ((unsigned)a->o.max_connections + 64) * API_HTTP_THREADS;
    a->mhd = MHD_start_daemon(
        flags, 0, NULL, NULL, handle, a, MHD_OPTION_NOTIFY_COMPLETED, complete, a, MHD_OPTION_NOTIFY_CONNECTION,
        connection, a, MHD_OPTION_URI_LOG_CALLBACK, see_request_line, a, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes,
        a, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)API_HTTP_THREADS, MHD_OPTION_CONNECTION_LIMIT, limit,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES, MHD_OPTION_STRICT_FOR_CLIENT, 0, MHD_OPTION_END);
    return a->mhd != NULL || err_set(err, ERR_SYSTEM, "cannot start the HTTP library");
}

struct api *api_open(const struct api_options *o, struct err *err)
{
    struct api *a = mem_alloc(1, sizeof *a);
    bool watching = false, parsing = false;
    if (a == NULL) {
        err_set(err, ERR_SYSTEM, "no memory for the HTTP server");
        return NULL;
    }
    fill_options(a, o);
    a->start_ns = clock_ns();
    jobs_init(&a->jobs);
    metrics_init(&a->metrics);
    MHD_set_panic_func(panic, NULL);
    if (!listener_open(&a->listener, o, err))
        goto fail;
    api_set_facts(a, &(struct worker_facts){0});
    if (atomic_load(&a->facts) == NULL) {
        err_set(err, ERR_SYSTEM, "no memory for the HTTP server");
        goto fail;
    }
    watching = watch_open(&a->watch, err);
    parsing = watching && parsers_open(&a->parsers, API_PARSERS, execute_prepare, err);
    if (!parsing || !start_library(a, err))
        goto fail;
    a->acceptor = (struct acceptor){.listener = &a->listener, .mhd = a->mhd, .limit = a->o.max_connections,
                                    .send_timeout_ms = a->o.send_timeout_ms};
    if (acceptor_start(&a->acceptor, err))
        return a;
    MHD_stop_daemon(a->mhd);
fail:
    if (parsing)
        parsers_close(&a->parsers);
    if (watching)
        watch_close(&a->watch);
    listener_close(&a->listener);
    jobs_free(&a->jobs);
    free(atomic_load(&a->facts));
    free(a);
    return NULL;
}

/* Places a copy of *s at *at, and *s points to it. With at NULL only measures. */
static size_t copy_string(const char **s, char **at)
{
    size_t n = *s != NULL ? strlen(*s) + 1 : 0;
    if (n > 0 && at != NULL) {
        memcpy(*at, *s, n);
        *s = *at;
        *at += n;
    }
    return n;
}

static size_t copy_strings(struct worker_facts *f, char *at)
{
    const char **all[] = {&f->worker_id, &f->model, &f->model_ref, &f->model_type, &f->quant_kind, &f->device,
                          &f->memory_architecture, &f->tokenizer_kind, &f->cuda_runtime_version};
    size_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        n += copy_string(all[i], at != NULL ? &at : NULL);
    return n;
}

void api_set_facts(struct api *a, const struct worker_facts *f)
{
    struct worker_facts copy = *f;
    struct facts *facts = mem_alloc(1, sizeof *facts + copy_strings(&copy, NULL));
    if (facts == NULL)
        return;    /* the ones before stay */
    copy_strings(&copy, facts->text);
    facts->f = copy;
    facts->older = atomic_load(&a->facts);
    atomic_store(&a->facts, facts);
}

void api_set_engine(struct api *a, struct engine *e, const struct tok *t)
{
    atomic_store(&a->tok, t);
    atomic_store(&a->engine, e);
}

void api_set_state(struct api *a, enum worker_state s, int load_percent)
{
    atomic_store(&a->load_percent, load_percent);
    atomic_store(&a->state, s);
}

struct engine *api_engine(struct api *a, struct err *err)
{
    static const struct {
        enum err_code code;
        const char *message;
    } why[] = {
        [WORKER_LOADING] = {ERR_NOT_READY, "the model is being loaded"},
        [WORKER_DRAINING] = {ERR_DRAINING, "the worker is shutting down"},
        [WORKER_FAILED] = {ERR_NOT_READY, "the worker has failed"},
    };
    int state = atomic_load(&a->state);
    struct engine *e = atomic_load(&a->engine);
    bool serving = state == WORKER_READY || state == WORKER_LEAVING;
    if (serving && e != NULL)
        return e;
    if (serving)
        state = WORKER_LOADING;
    err_set(err, why[state].code, "%s", why[state].message);
    return NULL;
}

int api_port(const struct api *a)
{
    return a->listener.port;
}

const char *api_uri(const struct api *a)
{
    return a->listener.uri;
}

int api_open_streams(const struct api *a)
{
    return atomic_load(&a->open_requests);
}

bool api_body_charge(struct api *a, size_t n)
{
    if (atomic_fetch_add(&a->body_bytes, n) + n <= API_BODY_BUDGET)
        return true;
    atomic_fetch_sub(&a->body_bytes, n);
    return false;
}

void api_body_release(struct api *a, size_t n)
{
    atomic_fetch_sub(&a->body_bytes, n);
}

static bool wait_for_requests(const struct api *a, int ms)
{
    for (int waited = 0; atomic_load(&a->open_requests) > 0; waited += 2) {
        if (waited >= ms)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return true;
}

void api_close(struct api *a)
{
    if (a == NULL)
        return;
    struct engine *e = atomic_load(&a->engine);
    if (atomic_load(&a->state) != WORKER_FAILED)
        api_set_state(a, WORKER_DRAINING, atomic_load(&a->load_percent));
    if (e != NULL)
        engine_cancel_all(e);
    wait_for_requests(a, FLUSH_MS);
    acceptor_stop(&a->acceptor);
    parsers_close(&a->parsers);
    /* The library aborts when it is stopped with a suspended connection: from here on none is suspended, and cutting the
     * sockets makes the monitor wake those that are. */
    atomic_store(&a->stopping, true);
    watch_shutdown_all(&a->watch);
    wait_for_requests(a, CUT_MS);
    MHD_stop_daemon(a->mhd);
    watch_close(&a->watch);
    listener_close(&a->listener);
    jobs_free(&a->jobs);
    for (struct facts *f = atomic_load(&a->facts); f != NULL;) {
        struct facts *older = f->older;
        free(f);
        f = older;
    }
    free(a);
}
