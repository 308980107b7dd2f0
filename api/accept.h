/* The acceptor: one thread takes connections from the listening sockets and hands them to the HTTP library. It stands before
 * the library because that lets connections over its limit wait in the backlog, and stops accepting when descriptors run
 * out; here they are answered 503 at once. */
#ifndef API_ACCEPT_H
#define API_ACCEPT_H

#include "api/listen.h"

#include <pthread.h>
#include <stdatomic.h>

struct MHD_Daemon;

struct acceptor {
    const struct listener *listener;
    struct MHD_Daemon *mhd;
    int limit;                    /* open connections */
    int send_timeout_ms;
    atomic_int n_conns;           /* accepted here, less those the library reported closed */
    int reserve_fd;               /* given up for a moment to refuse a connection when descriptors run out */
    int stop_fd;
    pthread_t thread;
};

bool acceptor_start(struct acceptor *a, struct err *err);
void acceptor_stop(struct acceptor *a);

#endif
