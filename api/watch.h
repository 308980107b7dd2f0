/* The client sockets as the library does not see them: deadlines for headers, body and idle connections, and clients that
 * leave while their stream is suspended.
 *
 * One monitor thread with its own epoll set over every client socket. A connection is registered when the library has
 * started it and removed before the library closes its socket, both under `lock`, so that a descriptor number is never
 * confused with its successor. Lock order: watch, job, library. */
#ifndef API_WATCH_H
#define API_WATCH_H

#include "base/err.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct job;

enum conn_phase {
    CONN_HEADERS,    /* a request is being read */
    CONN_BODY,       /* its body is awaited: expiry answers 408 */
    CONN_BUSY,       /* being answered: no deadline of ours */
    CONN_IDLE,       /* kept alive */
    CONN_REFUSED     /* answered by us behind the library's back: what still comes is thrown away */
};

struct conn {
    int fd;
    uint32_t serial;                    /* tells a socket from the next one with its number */
    _Atomic uint64_t deadline_ns;       /* 0 = none */
    _Atomic int phase;
    struct job *job;                    /* guarded by watch.lock; the request owns the reference */
    bool half_closed;                   /* guarded by watch.lock: the client sends nothing more */
};

struct watch {
    pthread_mutex_t lock;               /* guards slot, n_slots, n_conns, serial */
    struct conn **slot;                 /* by descriptor */
    int n_slots, n_conns;
    uint32_t serial;
    int epoll_fd, event_fd;
    atomic_bool stop;
    pthread_t thread;
};

bool watch_open(struct watch *w, struct err *err);
void watch_close(struct watch *w);      /* after the library has stopped */

/* The library's connection notices. NULL when there is no memory: the connection is then refused by its first request. */
struct conn *watch_add(struct watch *w, int fd, int timeout_ms);
void watch_remove(struct watch *w, struct conn *c);

/* Sets the phase, with timeout_ms until its deadline (0 = none); a refused connection stays refused. */
void conn_enter(struct conn *c, enum conn_phase phase, int timeout_ms);
bool conn_refused(const struct conn *c);

/* Writes a canned response on the raw socket while the library waits for more of the body, where it lets us answer nothing.
 * What still comes is discarded for a second, so that closing does not destroy the answer on its way. */
void conn_refuse(struct conn *c, const char *response);

/* Between these two the client's leaving reaches the job. */
void watch_attach(struct watch *w, struct conn *c, struct job *job);
void watch_detach(struct watch *w, struct conn *c);

void watch_shutdown_all(struct watch *w);    /* cuts every connection */

#endif
