/* A pool manager for tests: listens on a free loopback port, counts what it is sent and answers as told. */
#ifndef TESTS_MANAGER_H
#define TESTS_MANAGER_H

#include <stdatomic.h>
#include <pthread.h>

enum manager_mode {
    MANAGER_OK,          /* 200 */
    MANAGER_ERROR,       /* 500 */
    MANAGER_REDIRECT,    /* 302 to itself, to a path that would be counted */
    MANAGER_SILENT,      /* accepts, reads, never answers */
    MANAGER_ENDLESS,     /* 200 and a body that ends when the client closes */
};

struct manager {
    int listener, port;
    enum manager_mode mode;
    atomic_int fail_first;       /* so many 500 before anything else */
    atomic_int requests;
    atomic_long sent;            /* bytes of body */
    char last[8192];             /* the last request, whole; read it after requests went up */
    pthread_t thread;
    atomic_bool closing;
};

void manager_open(struct manager *m, enum manager_mode mode);
void manager_close(struct manager *m);
void manager_url(const struct manager *m, char out[64]);

#endif
