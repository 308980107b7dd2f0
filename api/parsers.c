#include "api/parsers.h"

#include "api/job.h"

#include <string.h>

static void *work(void *arg)
{
    struct parsers *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct job *j = p->first;
        if (j == NULL && p->stop)
            break;
        if (j == NULL) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        p->first = j->queue_next;
        if (p->first == NULL)
            p->last = &p->first;
        pthread_mutex_unlock(&p->lock);
        p->fn(j);
        job_unref(j);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

bool parsers_open(struct parsers *p, int n_threads, void (*fn)(struct job *j), struct err *err)
{
    *p = (struct parsers){.fn = fn};
    p->last = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    for (int i = 0; i < n_threads && i < PARSERS_MAX; i++) {
        int rc = pthread_create(&p->thread[i], NULL, work, p);
        if (rc != 0) {
            parsers_close(p);
            return err_set(err, ERR_SYSTEM, "cannot start a parse thread: %s", strerror(rc));
        }
        p->n_threads++;
    }
    return true;
}

void parsers_submit(struct parsers *p, struct job *j)
{
    job_ref(j);
    pthread_mutex_lock(&p->lock);
    j->queue_next = NULL;
    *p->last = j;
    p->last = &j->queue_next;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void parsers_close(struct parsers *p)
{
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_threads; i++)
        pthread_join(p->thread[i], NULL);
    p->n_threads = 0;
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
}
