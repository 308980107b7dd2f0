/* The life of a worker: loading, ready, draining, stopped; failed from any. Runs in the main thread, which has blocked the
 * signals; they are taken with sigtimedwait. */
#ifndef DAEMON_WORKER_H
#define DAEMON_WORKER_H

#include "daemon/cli.h"

#include <signal.h>
#include <stdatomic.h>

enum {
    EXIT_CODE_OK = 0,
    EXIT_CODE_USAGE = 64,
    EXIT_CODE_MODEL = 65,
    EXIT_CODE_NO_MODEL = 66,
    EXIT_CODE_DEVICE = 69,
    EXIT_CODE_INTERNAL = 70,
    EXIT_CODE_SYSTEM = 71,
    EXIT_CODE_CALLBACK = 75,
};

struct err;
int exit_code_of(const struct err *err);

/* Signals the worker waits for. The caller blocks them before any thread starts. WORKER_WAKE is how its own threads (and
 * main's bus error handler) make it look again. */
#define WORKER_WAKE SIGUSR1
void worker_signals(sigset_t *set);

/* Serves until told to stop; returns the exit code. *running_threads: some could not be joined (loading, stuck, or told to
 * stop twice), so the process must end without running destructors. bus_error becomes true when a mapped page of the model
 * file has vanished. */
int worker_run(const struct options *o, const char *worker_id, const atomic_bool *bus_error, bool *running_threads);

#endif
