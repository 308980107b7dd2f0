#include "api/job.h"

#include "api/server.h"
#include "base/clock.h"
#include "base/mem.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>

#define PING_NS 10000000000u    /* silence after which a stream gets a comment line */

struct job *job_new(struct api *a, struct MHD_Connection *mhd, int fd)
{
    struct job *j = mem_alloc(1, sizeof *j);
    if (j == NULL)
        return NULL;
    j->api = a;
    j->mhd = mhd;
    j->fd = fd;
    j->arrived_ns = clock_ns();
    atomic_init(&j->refs, 1);
    pthread_mutex_init(&j->lock, NULL);
    return j;
}

struct job *job_ref(struct job *j)
{
    atomic_fetch_add(&j->refs, 1);
    return j;
}

void job_unref(struct job *j)
{
    if (j == NULL || atomic_fetch_sub(&j->refs, 1) != 1)
        return;
    gen_release(j->gen);
    reader_free(&j->reader);
    request_free(&j->request);
    violations_free(&j->violations);
    buf_free(&j->out);
    buf_free(&j->text);
    buf_free(&j->ids);
    free(j->body);
    api_body_release(j->api, j->charged);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* With the lock held. The library may be called under it: its own locks are leaves. */
static void resume(struct job *j)
{
    j->news = true;
    if (j->suspended) {
        j->suspended = false;
        MHD_resume_connection(j->mhd);
    }
}

void job_wake(void *job)
{
    struct job *j = job;
    pthread_mutex_lock(&j->lock);
    resume(j);
    pthread_mutex_unlock(&j->lock);
}

bool job_suspend(struct job *j)
{
    pthread_mutex_lock(&j->lock);
    if (atomic_load(&j->api->stopping))
        j->left = j->news = true;    /* the library may not be stopped with a suspended connection */
    bool sleep = !j->news;
    if (sleep) {
        j->suspended = true;
        MHD_suspend_connection(j->mhd);
    }
    pthread_mutex_unlock(&j->lock);
    return sleep;
}

struct job_view job_look(struct job *j)
{
    pthread_mutex_lock(&j->lock);
    struct job_view v = {j->stage, j->left, j->cancelled, j->probe};
    /* Only a stream can tell a client that closed from one that merely stopped sending, by writing to it. */
    if (j->half_closed && j->stage == JOB_RUNNING) {
        v.probe |= j->request.stream;
        v.left |= !j->request.stream;
        j->half_closed = false;
    }
    j->left = v.left;
    j->news = j->probe = false;
    pthread_mutex_unlock(&j->lock);
    return v;
}

void job_refuse(struct job *j)
{
    pthread_mutex_lock(&j->lock);
    j->stage = JOB_REFUSED;
    resume(j);
    pthread_mutex_unlock(&j->lock);
}

bool job_run(struct job *j, struct gen *g)
{
    pthread_mutex_lock(&j->lock);
    j->gen = g;
    j->reader.gen = g;
    j->stage = JOB_RUNNING;
    bool stopped = j->cancelled || j->left;
    resume(j);
    pthread_mutex_unlock(&j->lock);
    if (stopped)
        gen_cancel(g, ERR_CANCELLED, "cancelled");
    return !stopped;
}

/* Marks the job, wakes it and stops its generation (outside the lock: gen_cancel calls job_wake). */
static void stop(struct job *j, bool left, const char *message)
{
    pthread_mutex_lock(&j->lock);
    j->cancelled = true;
    j->left |= left;
    struct gen *g = j->gen;    /* lives as long as the job, which the caller holds */
    resume(j);
    pthread_mutex_unlock(&j->lock);
    if (g != NULL)
        gen_cancel(g, ERR_CANCELLED, message);
}

void job_cancel(struct job *j, const char *message)
{
    stop(j, false, message);
}

void job_client_left(struct job *j)
{
    stop(j, true, "the client left");
}

void job_client_half_closed(struct job *j)
{
    pthread_mutex_lock(&j->lock);
    j->half_closed = true;
    resume(j);
    pthread_mutex_unlock(&j->lock);
}

void job_tick(struct job *j, uint64_t now_ns)
{
    uint64_t written = atomic_load(&j->written_ns);
    if (written == 0 || now_ns < written + PING_NS)
        return;
    pthread_mutex_lock(&j->lock);
    j->probe = true;
    resume(j);
    pthread_mutex_unlock(&j->lock);
}

/* ---- the table ---- */

void jobs_init(struct jobs *t)
{
    *t = (struct jobs){0};
    pthread_mutex_init(&t->lock, NULL);
}

void jobs_free(struct jobs *t)
{
    pthread_mutex_destroy(&t->lock);
}

/* FNV-1a; a client that makes its own ids collide only slows its own look-ups down, and by little: the queue is bounded. */
static struct job **bucket(struct jobs *t, const char *key, const char *id)
{
    uint32_t h = 2166136261u;
    for (const char *s = key; *s != 0; s++)
        h = (h ^ (unsigned char)*s) * 16777619u;
    for (const char *s = id; *s != 0; s++)
        h = (h ^ (unsigned char)*s) * 16777619u;
    return &t->bucket[h % JOB_BUCKETS];
}

static struct job *find(struct job *first, const char *key, const char *id)
{
    while (first != NULL && (strcmp(first->request.job_id, id) != 0 || strcmp(first->key, key) != 0))
        first = first->next;
    return first;
}

bool jobs_add(struct jobs *t, struct job *j, struct err *err)
{
    bool ok = true;
    pthread_mutex_lock(&t->lock);
    struct job **b = bucket(t, j->key, j->request.job_id);
    if (find(*b, j->key, j->request.job_id) != NULL) {
        ok = err_set(err, ERR_DUPLICATE, "a job with this job_id is running");
    } else {
        j->next = *b;
        if (j->next != NULL)
            j->next->link = &j->next;
        *b = j;
        j->link = b;
    }
    pthread_mutex_unlock(&t->lock);
    return ok;
}

void jobs_remove(struct jobs *t, struct job *j)
{
    pthread_mutex_lock(&t->lock);
    if (j->link != NULL) {
        *j->link = j->next;
        if (j->next != NULL)
            j->next->link = j->link;
        j->next = NULL;
        j->link = NULL;
    }
    pthread_mutex_unlock(&t->lock);
}

struct job *jobs_find(struct jobs *t, const char *key, const char *job_id)
{
    pthread_mutex_lock(&t->lock);
    struct job *j = find(*bucket(t, key, job_id), key, job_id);
    if (j != NULL)
        job_ref(j);
    pthread_mutex_unlock(&t->lock);
    return j;
}
