#define _GNU_SOURCE    /* accept4 */
#include "api/accept.h"

#include "api/reply.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* What the kernel holds for a reader that stalls; small, so that it is noticed. Doubled by the kernel for its own needs. */
enum { SEND_BUFFER = 64 * 1024 };

static void refuse(int fd)
{
    char sink[4096];
    if (send(fd, reply_canned_503, strlen(reply_canned_503), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        shutdown(fd, SHUT_WR);
    /* Unread bytes would turn the close into a reset that may overtake the answer. */
    while (recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0)
        ;
    close(fd);
}

static void set_options(const struct acceptor *a, int fd)
{
    int size = SEND_BUFFER;
    unsigned timeout = (unsigned)a->send_timeout_ms;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    /* A peer that acknowledges nothing for the send time-out is gone (fails harmlessly on a Unix socket). */
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

/* Takes one connection; false when there is none left for now. */
static bool take(struct acceptor *a, int listen_fd)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    int fd = accept4(listen_fd, (struct sockaddr *)&ss, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && a->reserve_fd >= 0) {
        close(a->reserve_fd);
        fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        bool taken = fd >= 0;
        if (taken)
            refuse(fd);
        a->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        return taken;
    }
    if (fd < 0)
        return errno == ECONNABORTED || errno == EINTR || errno == EPROTO;
    if (atomic_load(&a->n_conns) >= a->limit) {
        refuse(fd);
        return true;
    }
    set_options(a, fd);
    atomic_fetch_add(&a->n_conns, 1);
    if (MHD_add_connection(a->mhd, fd, (struct sockaddr *)&ss, len) != MHD_YES)    /* has closed it */
        atomic_fetch_sub(&a->n_conns, 1);
    return true;
}

static void *accept_loop(void *arg)
{
    struct acceptor *a = arg;
    struct pollfd p[API_LISTEN_MAX + 1];
    int n = a->listener->n;
    for (int i = 0; i < n; i++)
        p[i] = (struct pollfd){.fd = a->listener->fd[i], .events = POLLIN};
    p[n] = (struct pollfd){.fd = a->stop_fd, .events = POLLIN};
    while (p[n].revents == 0) {
        if (poll(p, (nfds_t)n + 1, -1) < 0 && errno != EINTR)
            break;
        bool progress = true;
        for (int i = 0; i < n; i++)
            if (p[i].revents != 0)
                progress &= take(a, p[i].fd) || errno == EAGAIN;
        /* Descriptors ran out and the reserve with them: the backlog stays readable, so pause instead of spinning. */
        if (!progress)
            poll(&p[n], 1, 50);
        if (a->reserve_fd < 0)
            a->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    return NULL;
}

bool acceptor_start(struct acceptor *a, struct err *err)
{
    a->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    a->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = a->stop_fd < 0 ? errno : pthread_create(&a->thread, NULL, accept_loop, a);
    if (rc == 0)
        return true;
    if (a->stop_fd >= 0)
        close(a->stop_fd);
    if (a->reserve_fd >= 0)
        close(a->reserve_fd);
    return err_set(err, ERR_SYSTEM, "cannot start the acceptor: %s", strerror(rc));
}

void acceptor_stop(struct acceptor *a)
{
    uint64_t one = 1;
    if (write(a->stop_fd, &one, sizeof one) < 0)
        return;    /* cannot happen: the counter is 0 */
    pthread_join(a->thread, NULL);
    close(a->stop_fd);
    if (a->reserve_fd >= 0)
        close(a->reserve_fd);
}
