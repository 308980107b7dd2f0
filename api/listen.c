#include "api/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 4096 };    /* the kernel cuts it to net.core.somaxconn */

static bool take(struct listener *l, int fd)
{
    if (l->n == API_LISTEN_MAX)
        return false;
    l->fd[l->n++] = fd;
    return true;
}

/* Notes port and URI of a bound socket, the first one winning. */
static void describe(struct listener *l, int fd)
{
    struct sockaddr_storage ss = {0};
    socklen_t len = sizeof ss;
    char host[INET6_ADDRSTRLEN] = "";
    if (getsockname(fd, (struct sockaddr *)&ss, &len) != 0 || l->uri[0] != 0)
        return;
    if (ss.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&ss;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        l->port = ntohs(in->sin_port);
        snprintf(l->uri, sizeof l->uri, "http://%s:%d", host, l->port);
    } else if (ss.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&ss;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        l->port = ntohs(in6->sin6_port);
        snprintf(l->uri, sizeof l->uri, "http://[%s]:%d", host, l->port);
    } else if (ss.ss_family == AF_UNIX) {
        const struct sockaddr_un *un = (const struct sockaddr_un *)&ss;
        snprintf(l->uri, sizeof l->uri, "unix:%.*s", (int)sizeof un->sun_path, un->sun_path);
    }
}

static bool open_inherited(struct listener *l, const struct api_options *o, struct err *err)
{
    bool ok = true;
    for (int i = 0; i < o->n_listen_fds; i++) {
        int fd = o->listen_fds[i], listening = 0;
        socklen_t len = sizeof listening;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) != 0 || !listening)
            ok = err_set(err, ERR_SYSTEM, "inherited descriptor %d is not a listening socket", fd);
        else if (!take(l, fd))
            ok = err_set(err, ERR_SYSTEM, "%d inherited sockets, at most %d are taken", o->n_listen_fds,
                         API_LISTEN_MAX);
        else
            continue;
        close(fd);
    }
    for (int i = 0; ok && i < l->n; i++) {
        fcntl(l->fd[i], F_SETFD, FD_CLOEXEC);
        fcntl(l->fd[i], F_SETFL, fcntl(l->fd[i], F_GETFL) | O_NONBLOCK);
        describe(l, l->fd[i]);
    }
    return ok;
}

/* A socket file that nobody listens on any more is removed; a living one and any other file are left alone. */
static bool clear_dead_socket(const struct sockaddr_un *un, struct err *err)
{
    struct stat st;
    if (lstat(un->sun_path, &st) != 0)
        return errno == ENOENT || err_set(err, ERR_SYSTEM, "cannot listen on %s: %s", un->sun_path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, ERR_SYSTEM, "cannot listen on %s: it exists and is not a socket", un->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, ERR_SYSTEM, "socket: %s", strerror(errno));
    bool dead = connect(fd, (const struct sockaddr *)un, sizeof *un) != 0 && errno == ECONNREFUSED;
    close(fd);
    if (!dead)
        return err_set(err, ERR_SYSTEM, "cannot listen on %s: another process listens there", un->sun_path);
    if (unlink(un->sun_path) != 0 && errno != ENOENT)
        return err_set(err, ERR_SYSTEM, "cannot replace the dead socket %s: %s", un->sun_path, strerror(errno));
    return true;
}

static bool open_unix(struct listener *l, const char *path, struct err *err)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof un.sun_path)
        return err_set(err, ERR_USAGE, "Unix socket path has %zu bytes, at most %zu are possible: %s", strlen(path),
                       sizeof un.sun_path - 1, path);
    snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
    if (!clear_dead_socket(&un, err))
        return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(err, ERR_SYSTEM, "socket: %s", strerror(errno));
    take(l, fd);
    if (bind(fd, (const struct sockaddr *)&un, sizeof un) != 0)
        return err_set(err, ERR_SYSTEM, "cannot listen on %s: %s", path, strerror(errno));
    snprintf(l->unix_path, sizeof l->unix_path, "%s", path);
    if (listen(fd, BACKLOG) != 0)
        return err_set(err, ERR_SYSTEM, "cannot listen on %s: %s", path, strerror(errno));
    describe(l, fd);
    return true;
}

static bool open_tcp(struct listener *l, const char *host, int port, struct err *err)
{
    char service[16];
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *ai = NULL;
    snprintf(service, sizeof service, "%d", port);
    int rc = getaddrinfo(host, service, &hints, &ai);
    if (rc != 0)
        return err_set(err, ERR_SYSTEM, "cannot listen on %s port %d: %s", host, port, gai_strerror(rc));
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    bool ok = fd >= 0 && take(l, fd);
    /* A restart must not wait for the connections of the process before it. */
    ok = ok && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0;
    ok = ok && bind(fd, ai->ai_addr, ai->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0;
    if (!ok)
        err_set(err, ERR_SYSTEM, "cannot listen on %s port %d: %s", host, port, strerror(errno));
    else
        describe(l, fd);
    freeaddrinfo(ai);
    return ok;
}

bool listener_open(struct listener *l, const struct api_options *o, struct err *err)
{
    *l = (struct listener){0};
    bool ok;
    if (o->n_listen_fds > 0)
        ok = open_inherited(l, o, err);
    else if (o->unix_socket != NULL)
        ok = open_unix(l, o->unix_socket, err);
    else
        ok = open_tcp(l, o->host != NULL ? o->host : "127.0.0.1", o->port, err);
    if (!ok)
        listener_close(l);
    return ok;
}

void listener_close(struct listener *l)
{
    for (int i = 0; i < l->n; i++)
        close(l->fd[i]);
    if (l->unix_path[0] != 0)
        unlink(l->unix_path);
    l->n = 0;
    l->unix_path[0] = 0;
}
