#include "api/watch.h"

#include "api/job.h"
#include "api/reply.h"
#include "base/clock.h"
#include "base/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TICK_MS = 100, LINGER_MS = 1000, BATCH = 64 };

void conn_enter(struct conn *c, enum conn_phase phase, int timeout_ms)
{
    int old = atomic_load(&c->phase);
    while (old != CONN_REFUSED && !atomic_compare_exchange_weak(&c->phase, &old, (int)phase))
        ;
    if (old != CONN_REFUSED)
        atomic_store(&c->deadline_ns, timeout_ms ? clock_ns() + (uint64_t)timeout_ms * 1000000u : 0);
}

bool conn_refused(const struct conn *c)
{
    return atomic_load(&c->phase) == CONN_REFUSED;
}

void conn_refuse(struct conn *c, const char *response)
{
    if (atomic_exchange(&c->phase, CONN_REFUSED) == CONN_REFUSED)
        return;
    /* A socket that does not take a few hundred bytes at once belongs to a client that does not read: no answer then. */
    if (send(c->fd, response, strlen(response), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        shutdown(c->fd, SHUT_WR);
    atomic_store(&c->deadline_ns, clock_ns() + (uint64_t)LINGER_MS * 1000000u);
}

static void expire(struct conn *c)
{
    int body = CONN_BODY;
    if (atomic_load(&c->phase) == body) {
        conn_refuse(c, reply_canned_408);
        return;
    }
    atomic_store(&c->deadline_ns, 0);
    shutdown(c->fd, SHUT_RDWR);    /* the library sees the end of file and closes */
}

static void tick(struct watch *w)
{
    uint64_t now = clock_ns();
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < w->n_slots; i++) {
        struct conn *c = w->slot[i];
        if (c == NULL)
            continue;
        uint64_t deadline = atomic_load(&c->deadline_ns);
        if (deadline != 0 && now >= deadline)
            expire(c);
        if (c->job != NULL)
            job_tick(c->job, now);
    }
    pthread_mutex_unlock(&w->lock);
}

static void handle(struct watch *w, const struct epoll_event *ev)
{
    uint32_t fd = (uint32_t)ev->data.u64, serial = (uint32_t)(ev->data.u64 >> 32);
    struct job *job = NULL;
    bool gone = (ev->events & (EPOLLHUP | EPOLLERR)) != 0;
    pthread_mutex_lock(&w->lock);
    struct conn *c = fd < (uint32_t)w->n_slots ? w->slot[fd] : NULL;
    if (c != NULL && c->serial == serial) {
        c->half_closed = true;
        if (c->job != NULL)
            job = job_ref(c->job);
    }
    pthread_mutex_unlock(&w->lock);
    if (job == NULL)
        return;
    if (gone)
        job_client_left(job);
    else
        job_client_half_closed(job);
    job_unref(job);
}

static void *monitor(void *arg)
{
    struct watch *w = arg;
    struct epoll_event ev[BATCH];
    uint64_t next = 0, ignored;
    while (!atomic_load(&w->stop)) {
        if (clock_ns() >= next) {
            tick(w);
            next = clock_ns() + TICK_MS * 1000000u;
        }
        pthread_mutex_lock(&w->lock);
        bool idle = w->n_conns == 0;
        pthread_mutex_unlock(&w->lock);
        uint64_t now = clock_ns();
        int left_ms = now < next ? (int)((next - now) / 1000000u) + 1 : 0;
        int n = epoll_wait(w->epoll_fd, ev, BATCH, idle ? -1 : left_ms);
        for (int i = 0; i < n; i++) {
            if (ev[i].data.u64 == UINT64_MAX) {
                if (read(w->event_fd, &ignored, sizeof ignored) < 0)
                    continue;    /* somebody's wake-up was taken already */
            } else {
                handle(w, &ev[i]);
            }
        }
    }
    return NULL;
}

static void wake_monitor(struct watch *w)
{
    uint64_t one = 1;
    if (write(w->event_fd, &one, sizeof one) < 0)
        return;    /* the counter is full: it is awake */
}

bool watch_open(struct watch *w, struct err *err)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
    *w = (struct watch){.epoll_fd = epoll_create1(EPOLL_CLOEXEC), .event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    pthread_mutex_init(&w->lock, NULL);
    int rc = w->epoll_fd < 0 || w->event_fd < 0 ? errno : 0;
    if (rc == 0 && epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->event_fd, &ev) != 0)
        rc = errno;
    if (rc == 0)
        rc = pthread_create(&w->thread, NULL, monitor, w);
    if (rc == 0)
        return true;
    if (w->epoll_fd >= 0)
        close(w->epoll_fd);
    if (w->event_fd >= 0)
        close(w->event_fd);
    pthread_mutex_destroy(&w->lock);
    return err_set(err, ERR_SYSTEM, "cannot start the connection monitor: %s", strerror(rc));
}

void watch_close(struct watch *w)
{
    atomic_store(&w->stop, true);
    wake_monitor(w);
    pthread_join(w->thread, NULL);
    close(w->epoll_fd);
    close(w->event_fd);
    pthread_mutex_destroy(&w->lock);
    free(w->slot);
}

static bool make_room(struct watch *w, int fd)
{
    if (fd < w->n_slots)
        return true;
    int n = fd + 64;
    struct conn **slot = mem_grow(w->slot, (size_t)n, sizeof *slot);
    if (slot == NULL)
        return false;
    memset(slot + w->n_slots, 0, (size_t)(n - w->n_slots) * sizeof *slot);
    w->slot = slot;
    w->n_slots = n;
    return true;
}

struct conn *watch_add(struct watch *w, int fd, int timeout_ms)
{
    struct conn *c = mem_alloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->fd = fd;
    conn_enter(c, CONN_HEADERS, timeout_ms);
    pthread_mutex_lock(&w->lock);
    c->serial = ++w->serial;
    struct epoll_event ev = {.events = EPOLLRDHUP | EPOLLET,
                             .data.u64 = (uint64_t)c->serial << 32 | (uint32_t)fd};
    bool ok = make_room(w, fd) && epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, fd, &ev) == 0;
    bool first = ok && w->n_conns++ == 0;
    if (ok)
        w->slot[fd] = c;
    pthread_mutex_unlock(&w->lock);
    if (first)
        wake_monitor(w);
    if (ok)
        return c;
    free(c);
    return NULL;
}

void watch_remove(struct watch *w, struct conn *c)
{
    pthread_mutex_lock(&w->lock);
    epoll_ctl(w->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    w->slot[c->fd] = NULL;
    w->n_conns--;
    pthread_mutex_unlock(&w->lock);
    free(c);
}

void watch_attach(struct watch *w, struct conn *c, struct job *job)
{
    pthread_mutex_lock(&w->lock);
    c->job = job;
    bool half_closed = c->half_closed;
    pthread_mutex_unlock(&w->lock);
    if (half_closed)
        job_client_half_closed(job);
}

void watch_detach(struct watch *w, struct conn *c)
{
    pthread_mutex_lock(&w->lock);
    c->job = NULL;
    pthread_mutex_unlock(&w->lock);
}

void watch_shutdown_all(struct watch *w)
{
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < w->n_slots; i++)
        if (w->slot[i] != NULL)
            shutdown(w->slot[i]->fd, SHUT_RDWR);
    pthread_mutex_unlock(&w->lock);
}
