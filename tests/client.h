/* A raw HTTP client for tests: sends any bytes, reads complete answers, knows when the peer has closed. Nothing waits longer
 * than it is told. */
#ifndef TESTS_CLIENT_H
#define TESTS_CLIENT_H

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>

struct client {
    int fd;
    struct buf in;       /* received and not yet taken by client_answer */
    bool closed;         /* end of file or reset was seen */
};

struct answer {
    int status;
    struct buf head;     /* status line and headers */
    struct buf body;     /* decoded when chunked */
    bool chunked, complete;
};

bool client_open(struct client *c, int port);
void client_close(struct client *c);              /* both ways; unread bytes make it a reset, as for any client */
void client_reset(struct client *c);              /* RST */
bool client_send(struct client *c, const char *bytes, size_t n);
bool client_puts(struct client *c, const char *text);

/* POST of a JSON body, connection kept. */
bool client_post(struct client *c, const char *path, const char *json);

/* Reads more bytes into c->in; false when there are none within ms, or the peer has closed. */
bool client_receive(struct client *c, int ms);

/* Takes one answer from the connection. head: it was asked for by HEAD. false: none within ms. */
bool client_answer(struct client *c, struct answer *a, bool head, int ms);
const char *answer_header(const struct answer *a, const char *name, char *out, size_t size);    /* NULL = absent */
void answer_free(struct answer *a);

/* Waits until `text` has been received (it stays in c->in). */
bool client_wait(struct client *c, const char *text, int ms);
/* Waits until the peer closes; false when it has not within ms. */
bool client_wait_close(struct client *c, int ms);

/* One GET or POST on a connection of its own; the status, 0 when there is no answer. body, ms_out may be NULL. */
int client_get(int port, const char *path, struct buf *body, double *ms_out);
int client_request(int port, const char *path, const char *json, struct buf *body);

#endif
