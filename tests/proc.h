/* The real inferd as a child process, and HTTP to it over plain sockets. Everything has a time limit and fails the test when
 * that is reached; a child never outlives its test. */
#ifndef TESTS_PROC_H
#define TESTS_PROC_H

#include "base/buf.h"

#include <stdbool.h>
#include <sys/types.h>

/* Sanitizers slow the worker down and change its address space. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { PROC_WAIT_MS = 60000, PROC_SLOWER = 5, PROC_SANITIZED = 1 };
#else
enum { PROC_WAIT_MS = 20000, PROC_SLOWER = 1, PROC_SANITIZED = 0 };
#endif

struct proc {
    pid_t pid;
    int out;                 /* its standard output */
    char err_path[64];       /* its standard error */
    int port;                /* after proc_listening */
    char *log;               /* of proc_log */
};

struct proc_options {
    const char *program;     /* beside the test program; NULL = inferd */
    const char *const *env;  /* "NAME=value", besides the test's own; NULL-terminated; may be NULL */
    int err_fd;              /* its standard error; 0 = a file, see proc_log */
    int listen_fd;           /* passed as systemd does; 0 = none */
    long limit_nofile;       /* 0 = as it is */
    size_t limit_as;         /* bytes of address space; 0 = as it is */
};

/* Starts inferd (it lies beside the test program) with args, NULL-terminated, without the program's name. o may be NULL. */
void proc_start(struct proc *p, const char *const args[], const struct proc_options *o);
/* Waits for its line on standard output and takes the port from it. */
void proc_listening(struct proc *p);
/* Waits until /health/ready is 200. */
void proc_ready(struct proc *p);
void proc_signal(struct proc *p, int sig);
/* Waits for the end. The exit code, or 1000 + the signal that ended it. Takes at most ms, else the test fails. */
int proc_wait(struct proc *p, int ms);
/* What it wrote on standard error so far. */
const char *proc_log(struct proc *p);
/* What is left on its standard output; after proc_wait. */
void proc_output(struct proc *p, struct buf *out);
/* Kills it if it still runs and removes its files. Call it from a fixture's teardown. */
void proc_free(struct proc *p);

/* One request with Connection: close; the status, the whole answer in `out` (may be NULL). -1: no connection, no answer. */
int http_request(int port, const char *method, const char *path, const char *body, struct buf *out);
/* Sends and leaves the answer to http_read_until. */
int http_send(int port, const char *method, const char *path, const char *body);
/* Reads until `needle` is in out (true) or the connection ends (false). needle NULL: to the end, true. */
bool http_read_until(int fd, struct buf *out, const char *needle);

#endif
