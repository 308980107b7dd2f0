/* Parts of gpu-check and gpu-bench, each in a process of its own: an error of a card stays until its process ends, and a kernel
 * that hangs never does. The program itself touches no card. */
#ifndef TESTS_APART_H
#define TESTS_APART_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Memory, zeroed, that the program and its parts share; NULL: there is none. */
void *apart_shared(size_t bytes);

/* Runs part(arg) there; true when it said so. It is ended when it does not change *progress for `seconds`; why it ended is in
 * why: "" when it said false itself. */
bool apart_run(bool (*part)(void *arg), void *arg, const atomic_int *progress, double seconds, char why[64]);

#endif
