#define _GNU_SOURCE
#include "tests/manager.h"

#include <arpa/inet.h>
#include <check.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Waits for input, but not beyond the manager's end. */
static bool readable(struct manager *m, int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (!atomic_load(&m->closing)) {
        if (poll(&p, 1, 20) == 1)
            return true;
    }
    return false;
}

static bool read_request(struct manager *m, int fd)
{
    size_t n = 0;
    for (;;) {
        if (!readable(m, fd))
            return false;
        ssize_t got = recv(fd, m->last + n, sizeof m->last - 1 - n, 0);
        if (got <= 0)
            return false;
        n += (size_t)got;
        m->last[n] = 0;
        const char *end = strstr(m->last, "\r\n\r\n"), *length = strcasestr(m->last, "Content-Length:");
        if (end == NULL)
            continue;
        size_t want = length != NULL ? strtoul(length + 15, NULL, 10) : 0;
        if (n >= (size_t)(end + 4 - m->last) + want)
            return true;
    }
}

static void put(int fd, const char *s)
{
    if (send(fd, s, strlen(s), MSG_NOSIGNAL) < 0)
        return;    /* the client may leave whenever it likes */
}

static void answer(struct manager *m, int fd)
{
    static const char chunk[16384];
    char head[256];
    if (atomic_fetch_sub(&m->fail_first, 1) > 0 || m->mode == MANAGER_ERROR) {
        put(fd, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    }
    switch (m->mode) {
    case MANAGER_REDIRECT:
        snprintf(head, sizeof head,
                 "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                 m->port);
        put(fd, head);
        break;
    case MANAGER_SILENT:
        while (readable(m, fd) && recv(fd, head, sizeof head, 0) > 0)
            continue;
        break;
    case MANAGER_ENDLESS:
        put(fd, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while (!atomic_load(&m->closing)) {
            ssize_t n = send(fd, chunk, sizeof chunk, MSG_NOSIGNAL);
            if (n <= 0)
                break;
            atomic_fetch_add(&m->sent, n);
        }
        break;
    default:
        put(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}

static void *manager_main(void *arg)
{
    struct manager *m = arg;
    while (readable(m, m->listener)) {
        int fd = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (read_request(m, fd)) {
            atomic_fetch_add(&m->requests, 1);
            answer(m, fd);
        }
        close(fd);
    }
    return NULL;
}

void manager_open(struct manager *m, enum manager_mode mode)
{
    *m = (struct manager){.mode = mode};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    m->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(m->listener, 0);
    ck_assert_int_eq(bind(m->listener, (struct sockaddr *)&a, sizeof a), 0);
    ck_assert_int_eq(listen(m->listener, 16), 0);
    ck_assert_int_eq(getsockname(m->listener, (struct sockaddr *)&a, &len), 0);
    m->port = ntohs(a.sin_port);
    ck_assert_int_eq(pthread_create(&m->thread, NULL, manager_main, m), 0);
}

void manager_close(struct manager *m)
{
    atomic_store(&m->closing, true);
    pthread_join(m->thread, NULL);
    close(m->listener);
}

void manager_url(const struct manager *m, char out[64])
{
    snprintf(out, 64, "http://127.0.0.1:%d/ready", m->port);
}
