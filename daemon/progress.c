#include "daemon/progress.h"
#include "api/api.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

enum {
    BAR_WIDTH = 40,
    LOG_STEP = 10,        /* percent between two log events */
    STATUS_MS = 200,      /* between two messages to systemd: its socket holds few, and waits when it is full */
    EXTEND_S = 60,        /* systemd kills a start that says nothing for this long */
};

static void draw_bar(int percent)
{
    char line[BAR_WIDTH + 64], bar[BAR_WIDTH + 1];
    memset(bar, ' ', BAR_WIDTH);
    memset(bar, '#', (size_t)(percent * BAR_WIDTH / 100));
    bar[BAR_WIDTH] = 0;
    int n = snprintf(line, sizeof line, "\rloading [%s] %3d%%", bar, percent);
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);    /* a bar that cannot be drawn is no failure */
    (void)ignored;
}

void progress_set(struct progress *p, int percent)
{
    if (percent <= p->last)
        return;
    api_set_state(p->api, WORKER_LOADING, percent);
    if (p->status_ns == 0 || clock_ms_since(p->status_ns) >= STATUS_MS) {
        p->status_ns = clock_ns();
        sd_notifyf(0, "STATUS=Loading the model, %d %%\nEXTEND_TIMEOUT_USEC=%d000000", percent, EXTEND_S);
    }
    if (p->bar)
        draw_bar(percent);
    else if (percent / LOG_STEP > p->last / LOG_STEP)
        log_event(LOG_INFO, "model_load_progress", LOG_S("model_ref", p->model_ref), LOG_S("device", p->device),
                  LOG_I("percent", percent));
    p->last = percent;
}

void progress_end(struct progress *p)
{
    static const char wipe[] = "\r\x1b[K";
    if (!p->bar || p->last < 0)
        return;
    ssize_t ignored = write(STDERR_FILENO, wipe, sizeof wipe - 1);
    (void)ignored;
}
