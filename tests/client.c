#define _GNU_SOURCE    /* memmem */
#include "tests/client.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WAIT_MS = 5000 };

bool client_open(struct client *c, int port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    *c = (struct client){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (c->fd < 0)
        return false;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&in, sizeof in) == 0)
        return true;
    client_close(c);
    return false;
}

void client_close(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    buf_free(&c->in);
}

void client_reset(struct client *c)
{
    struct linger hard = {1, 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    client_close(c);
}

bool client_send(struct client *c, const char *bytes, size_t n)
{
    while (n > 0) {
        struct pollfd p = {.fd = c->fd, .events = POLLOUT};
        if (poll(&p, 1, WAIT_MS) != 1)
            return false;
        ssize_t sent = send(c->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            return false;
        if (sent > 0) {
            bytes += sent;
            n -= (size_t)sent;
        }
    }
    return true;
}

bool client_puts(struct client *c, const char *text)
{
    return client_send(c, text, strlen(text));
}

bool client_post(struct client *c, const char *path, const char *json)
{
    struct buf b = {0};
    buf_printf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", path,
               strlen(json), json);
    bool ok = !b.failed && client_send(c, b.data, b.len);
    buf_free(&b);
    return ok;
}

bool client_receive(struct client *c, int ms)
{
    char bytes[16384];
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    if (c->closed || poll(&p, 1, ms < 0 ? 0 : ms) != 1)
        return false;
    ssize_t n = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n > 0)
        return buf_add(&c->in, bytes, (size_t)n);
    if (n == 0 || errno != EAGAIN)
        c->closed = true;
    return false;
}

static int left_ms(uint64_t deadline)
{
    uint64_t now = clock_ns();
    return now >= deadline ? 0 : (int)((deadline - now) / 1000000u) + 1;
}

static uint64_t deadline_in(int ms)
{
    return clock_ns() + (uint64_t)ms * 1000000u;
}

/* Waits until more than n bytes are there. */
static bool need(struct client *c, size_t n, uint64_t deadline)
{
    while (c->in.len <= n) {
        int ms = left_ms(deadline);
        if (!client_receive(c, ms) && (ms == 0 || c->closed))
            return false;
    }
    return true;
}

/* Position after the first `text` at or after `at`; 0 when it does not come. */
static size_t find(struct client *c, size_t at, const char *text, uint64_t deadline)
{
    size_t len = strlen(text);
    for (;;) {
        if (c->in.len >= at + len) {
            const char *p = memmem(c->in.data + at, c->in.len - at, text, len);
            if (p != NULL)
                return (size_t)(p - c->in.data) + len;
        }
        if (!need(c, c->in.len, deadline))
            return 0;
    }
}

const char *answer_header(const struct answer *a, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);
    for (const char *line = strstr(a->head.data, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, n) != 0 || line[n] != ':')
            continue;
        const char *v = line + n + 1;
        v += strspn(v, " ");
        snprintf(out, size, "%.*s", (int)strcspn(v, "\r\n"), v);
        return out;
    }
    return NULL;
}

/* Decodes chunks from `at` on; the position after the last one, 0 when it does not come. */
static size_t read_chunks(struct client *c, struct answer *a, size_t at, uint64_t deadline)
{
    for (;;) {
        size_t data = find(c, at, "\r\n", deadline);
        if (data == 0)
            return 0;
        size_t n = strtoul(c->in.data + at, NULL, 16);
        if (!need(c, data + n + 1, deadline))
            return 0;
        if (n == 0)
            return data + 2;
        buf_add(&a->body, c->in.data + data, n);
        at = data + n + 2;
    }
}

bool client_answer(struct client *c, struct answer *a, bool head, int ms)
{
    uint64_t deadline = deadline_in(ms);
    char value[64];
    *a = (struct answer){0};
    size_t body, end;
    do {    /* interim answers are skipped */
        body = find(c, 0, "\r\n\r\n", deadline);
        if (body == 0)
            return false;
        buf_reset(&a->head);
        buf_add(&a->head, c->in.data, body);
        if (strncmp(a->head.data, "HTTP/1.", 7) != 0)
            return false;
        a->status = (int)strtol(a->head.data + 9, NULL, 10);
        if (a->status < 200)
            buf_consume(&c->in, body);
    } while (a->status < 200);
    const char *length = answer_header(a, "Content-Length", value, sizeof value);
    size_t n = length != NULL ? strtoul(length, NULL, 10) : 0;
    a->chunked = answer_header(a, "Transfer-Encoding", value, sizeof value) != NULL;
    if (head || a->status == 204) {
        end = body;
        a->complete = true;
    } else if (a->chunked) {
        end = read_chunks(c, a, body, deadline);
        a->complete = end != 0;
    } else if (length != NULL) {
        a->complete = n == 0 || need(c, body + n - 1, deadline);
        end = a->complete ? body + n : c->in.len;
        buf_add(&a->body, c->in.data + body, end - body);
    } else {
        a->complete = client_wait_close(c, left_ms(deadline));
        end = c->in.len;
        buf_add(&a->body, c->in.data + body, end - body);
    }
    buf_puts(&a->body, "");
    buf_consume(&c->in, end != 0 ? end : c->in.len);
    return true;
}

void answer_free(struct answer *a)
{
    buf_free(&a->head);
    buf_free(&a->body);
}

bool client_wait(struct client *c, const char *text, int ms)
{
    return find(c, 0, text, deadline_in(ms)) != 0;
}

bool client_wait_close(struct client *c, int ms)
{
    uint64_t deadline = deadline_in(ms);
    while (!c->closed && left_ms(deadline) > 0)
        client_receive(c, left_ms(deadline));
    return c->closed;
}

static int exchange(int port, const char *request, struct buf *body, double *ms_out)
{
    struct client c;
    struct answer a = {0};
    uint64_t start = clock_ns();
    int status = 0;
    if (!client_open(&c, port))
        return 0;
    if (client_puts(&c, request) && client_answer(&c, &a, false, WAIT_MS * 6) && a.complete)
        status = a.status;
    if (ms_out != NULL)
        *ms_out = clock_ms_since(start);
    if (body != NULL) {
        buf_reset(body);
        buf_add(body, a.body.data, a.body.len);
    }
    answer_free(&a);
    client_close(&c);
    return status;
}

int client_get(int port, const char *path, struct buf *body, double *ms_out)
{
    char request[512];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path);
    return exchange(port, request, body, ms_out);
}

int client_request(int port, const char *path, const char *json, struct buf *body)
{
    struct buf b = {0};
    buf_printf(&b,
               "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
               "Connection: close\r\n\r\n%s",
               path, strlen(json), json);
    int status = exchange(port, b.data, body, NULL);
    buf_free(&b);
    return status;
}
