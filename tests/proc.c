#define _GNU_SOURCE
#include "tests/proc.h"
#include "base/clock.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void set_limit(int what, rlim_t value)
{
    struct rlimit rl = {value, value};
    setrlimit(what, &rl);
}

/* In the child: descriptors, limits, environment, program. */
static void become(const char *const args[], const struct proc_options *o, int out, int err)
{
    char path[4096], *argv[64] = {path};
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 16);
    int i = 0;
    if (n < 0)
        _exit(127);
    path[n] = 0;
    snprintf(strrchr(path, '/') + 1, 16, "%s", o->program != NULL ? o->program : "inferd");
    for (; args[i] != NULL && i < 62; i++)
        argv[i + 1] = (char *)(size_t)args[i];
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* The thread sanitizer holds a process that ends for a second, else. */
    setenv("TSAN_OPTIONS", "atexit_sleep_ms=0", 0);
    setenv("INFERD_DEVICE", "cpu", 0);    /* these tests are not about cards */
    for (int e = 0; o->env != NULL && o->env[e] != NULL; e++)
        putenv((char *)(size_t)o->env[e]);
    if (o->listen_fd > 0) {
        char pid[16];
        snprintf(pid, sizeof pid, "%d", (int)getpid());
        setenv("LISTEN_PID", pid, 1);
        setenv("LISTEN_FDS", "1", 1);
        if (o->listen_fd == 3)
            fcntl(3, F_SETFD, 0);
        else
            dup2(o->listen_fd, 3);
    }
    if (o->limit_nofile > 0)
        set_limit(RLIMIT_NOFILE, (rlim_t)o->limit_nofile);
    if (o->limit_as > 0)
        set_limit(RLIMIT_AS, o->limit_as);
    execv(path, argv);
    _exit(127);
}

void proc_start(struct proc *p, const char *const args[], const struct proc_options *o)
{
    static const struct proc_options none;
    int out[2];
    *p = (struct proc){.err_path = "/tmp/inferd-test-log-XXXXXX"};
    int err = mkostemp(p->err_path, O_CLOEXEC | O_APPEND);
    ck_assert_int_ge(err, 0);
    ck_assert_int_eq(pipe2(out, O_CLOEXEC), 0);
    o = o != NULL ? o : &none;
    fflush(NULL);
    p->pid = fork();
    ck_assert_int_ge(p->pid, 0);
    if (p->pid == 0)
        become(args, o, out[1], o->err_fd > 0 ? o->err_fd : err);
    close(out[1]);
    close(err);
    p->out = out[0];
}

/* Reads what comes until `needle`, the end, or the time limit. */
static bool read_until(int fd, struct buf *out, const char *needle)
{
    uint64_t start = clock_ns();
    char piece[4096];
    for (;;) {
        if (needle != NULL && out->data != NULL && memmem(out->data, out->len, needle, strlen(needle)) != NULL)
            return true;
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        int left = PROC_WAIT_MS - (int)clock_ms_since(start);
        ck_assert_msg(left > 0 && poll(&pfd, 1, left) >= 0, "waited %d ms for %s", PROC_WAIT_MS, needle ? needle : "the end");
        ssize_t n = read(fd, piece, sizeof piece);
        if (n <= 0)
            return needle == NULL;
        ck_assert(buf_add(out, piece, (size_t)n));
    }
}

void proc_listening(struct proc *p)
{
    static const char before[] = "inferd: listening on ";
    struct buf b = {0};
    bool ok = read_until(p->out, &b, "\n");
    ck_assert_msg(ok, "no line on standard output; log: %s", proc_log(p));
    ck_assert_msg(strncmp(b.data, before, sizeof before - 1) == 0, "%s", b.data);
    const char *colon = strrchr(b.data, ':');
    p->port = (int)strtol(colon + 1, NULL, 10);
    ck_assert_int_gt(p->port, 0);
    buf_free(&b);
}

void proc_ready(struct proc *p)
{
    uint64_t start = clock_ns();
    if (p->port == 0)
        proc_listening(p);
    while (http_request(p->port, "GET", "/health/ready", NULL, NULL) != 200) {
        bool ended = waitpid(p->pid, NULL, WNOHANG) != 0;
        p->pid = ended ? 0 : p->pid;
        ck_assert_msg(!ended && clock_ms_since(start) < PROC_WAIT_MS, "%s; log: %s", ended ? "it ended" : "not ready", proc_log(p));
        usleep(5000);
    }
}

void proc_signal(struct proc *p, int sig)
{
    ck_assert_int_eq(kill(p->pid, sig), 0);
}

int proc_wait(struct proc *p, int ms)
{
    uint64_t start = clock_ns();
    int status;
    while (waitpid(p->pid, &status, WNOHANG) == 0) {
        ck_assert_msg(clock_ms_since(start) < ms, "still running after %d ms; log: %s", ms, proc_log(p));
        usleep(2000);
    }
    p->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

const char *proc_log(struct proc *p)
{
    free(p->log);
    p->log = NULL;
    FILE *f = fopen(p->err_path, "re");
    ck_assert_ptr_nonnull(f);
    size_t size = 0;
    if (getdelim(&p->log, &size, 0, f) < 0) {
        free(p->log);
        p->log = strdup("");
    }
    fclose(f);
    return p->log;
}

void proc_output(struct proc *p, struct buf *out)
{
    read_until(p->out, out, NULL);
}

void proc_free(struct proc *p)
{
    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
    }
    if (p->out > 0)
        close(p->out);
    if (p->err_path[0] != 0)
        unlink(p->err_path);
    free(p->log);
    *p = (struct proc){0};
}

int http_send(int port, const char *method, const char *path, const char *body)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) {
        close(fd);
        return -1;
    }
    struct buf b = {0};
    buf_printf(&b, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n", method, path, port);
    if (body != NULL)
        buf_printf(&b, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    buf_printf(&b, "\r\n%s", body != NULL ? body : "");
    ck_assert(!b.failed);
    ssize_t n = send(fd, b.data, b.len, MSG_NOSIGNAL);
    bool ok = n == (ssize_t)b.len;
    buf_free(&b);
    if (ok)
        return fd;
    close(fd);
    return -1;
}

bool http_read_until(int fd, struct buf *out, const char *needle)
{
    return read_until(fd, out, needle);
}

int http_request(int port, const char *method, const char *path, const char *body, struct buf *out)
{
    struct buf own = {0}, *b = out != NULL ? out : &own;
    int fd = http_send(port, method, path, body), status = -1;
    if (fd < 0)
        return -1;
    buf_reset(b);
    read_until(fd, b, NULL);
    close(fd);
    if (b->len > 12 && strncmp(b->data, "HTTP/1.1 ", 9) == 0)
        status = (int)strtol(b->data + 9, NULL, 10);
    buf_free(&own);
    return status;
}
