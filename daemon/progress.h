/* How far loading is, said everywhere it is looked for: /health, systemd's STATUS=, and on stderr as a bar (terminal) or as
 * log events. Used by the loading thread alone. */
#ifndef DAEMON_PROGRESS_H
#define DAEMON_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct api;

struct progress {
    struct api *api;
    const char *model_ref, *device;
    bool bar;            /* stderr is a terminal and the log is text */
    int last;            /* percent said last */
    uint64_t status_ns;  /* when systemd was told last */
};

void progress_set(struct progress *p, int percent);
/* Wipes the bar, so that the next log line begins on an empty one. */
void progress_end(struct progress *p);

#endif
