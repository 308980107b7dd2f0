#include "tests/apart.h"
#include "base/clock.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { POLL_US = 10000, SIZE_WHY = 64 };

void *apart_shared(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Waits for it to end; false: it made no progress for too long. */
static bool await(pid_t pid, int *status, const atomic_int *progress, double seconds)
{
    int seen = atomic_load(progress);
    uint64_t since = clock_ns();
    while (waitpid(pid, status, WNOHANG) == 0) {
        int now = atomic_load(progress);
        if (now != seen)
            since = clock_ns();
        seen = now;
        if (clock_ms_since(since) > seconds * 1e3)
            return false;
        usleep(POLL_US);
    }
    return true;
}

bool apart_run(bool (*part)(void *arg), void *arg, const atomic_int *progress, double seconds, char why[64])
{
    int status = 0;
    why[0] = 0;
    fflush(NULL); /* else both would write it */
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool ok = part(arg);
        fflush(NULL);
        _exit(ok ? 0 : 1);
    }
    if (pid < 0) {
        snprintf(why, SIZE_WHY, "no process can be started");
    } else if (!await(pid, &status, progress, seconds)) {
        (void)kill(pid, SIGKILL);
        if (!await(pid, &status, progress, seconds)) /* not even that: its kernel holds the card */
            fprintf(stderr, "process %d does not end\n", (int)pid);
        snprintf(why, SIZE_WHY, "it hangs: no progress for %.0f s", seconds);
    } else if (WIFSIGNALED(status)) {
        snprintf(why, SIZE_WHY, "ended by signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    return pid > 0 && why[0] == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
