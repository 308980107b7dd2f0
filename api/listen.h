/* The listening sockets: inherited from systemd, a Unix socket, or TCP. Binding only; accept.c takes connections. */
#ifndef API_LISTEN_H
#define API_LISTEN_H

#include "api/api.h"

struct listener {
    int fd[API_LISTEN_MAX];
    int n;
    int port;                 /* of the first TCP socket; 0 when there is none */
    char uri[320];
    char unix_path[108];      /* removed by listener_close; "" when it is not ours to remove */
};

/* Errors: ERR_SYSTEM (address and reason), ERR_USAGE (Unix path too long). The inherited descriptors are taken over in any
 * case. On failure nothing is open. */
bool listener_open(struct listener *l, const struct api_options *o, struct err *err);
void listener_close(struct listener *l);

#endif
