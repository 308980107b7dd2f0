/* A worker on the tiny or the slow model, for tests over HTTP, and what must hold after whatever was done to it. */
#ifndef TESTS_SERVED_H
#define TESTS_SERVED_H

#include "tests/fixture.h"
#include "tests/proc.h"

/* Time limits hold on a machine that also does other things; under a sanitizer they are this many times as long. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SLOWNESS = 10 };
#else
enum { SLOWNESS = 1 };
#endif
enum {
    NOTICE_MS = 300 * SLOWNESS,    /* 100 are promised; it is a few on an idle machine */
    REST_MS = 1000 * SLOWNESS,
};

struct served {
    struct proc p;
    int port;
    int n_fds;              /* open descriptors at rest */
    struct buf control;     /* answer of the control request, times cut off */
};

/* args: further options, NULL-terminated; may be NULL. Waits until it is ready and takes the values at rest. */
void served_start(struct served *s, const char *model, const char *const args[], const struct proc_options *o);

/* The process lives, /health is quick, the control request gives the same answer, and within a second nothing runs, waits,
 * holds KV pages or descriptors more than before. */
void served_check(struct served *s, const char *title);

/* SIGTERM; it must end with 0. */
void served_stop(struct served *s);

double served_metric(struct served *s, const char *name);    /* a line of /metrics that begins with `name ` */
bool served_wait(struct served *s, const char *name, double value, int ms);    /* until the metric has it */
long served_rss_kb(struct served *s);
long served_cpu_ms(struct served *s);

#endif
