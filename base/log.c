/* The log owns its way to stderr and one mutex; it allocates nothing.
 *
 * A line is one write(2) of at most PIPE_BUF bytes, so lines of several processes never mix in a pipe. O_NONBLOCK belongs
 * to the open file, which we share with whoever started us: so pipes and terminals are opened once more through /proc,
 * sockets (systemd's journal) are sent to with MSG_DONTWAIT, and regular files never wait for a reader. */
#include "base/log.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/utf8.h"

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_STRING = 128, MAX_MESSAGE = 512 };

enum sink { SINK_POLL, SINK_NONBLOCK, SINK_SOCKET };

static const char *const level_name[LOG_LEVEL_N] = {"debug", "info", "warn", "error"};

/* Process-wide on purpose, like stderr itself: set by log_init before threads exist, constant afterwards. */
static struct {
    enum log_format format;
    enum log_level level;
    char worker_id[64];
    enum sink sink;
    int fd;
} conf = {LOG_TEXT, LOG_INFO, "", SINK_POLL, STDERR_FILENO};

static pthread_mutex_t write_lock = PTHREAD_MUTEX_INITIALIZER;    /* guards cut */
static bool cut;                        /* the last line went out in part: the next one begins on a new line */
static _Atomic uint64_t dropped;

void log_init(enum log_format format, enum log_level level, const char *worker_id)
{
    if (conf.fd != STDERR_FILENO)
        close(conf.fd);
    conf.format = format;
    conf.level = level;
    snprintf(conf.worker_id, sizeof conf.worker_id, "%s", worker_id ? worker_id : "");
    conf.sink = SINK_POLL;
    conf.fd = STDERR_FILENO;
    struct stat st;
    if (fstat(STDERR_FILENO, &st) != 0)
        return;
    if (S_ISSOCK(st.st_mode)) {
        conf.sink = SINK_SOCKET;
    } else if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) {
        int fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd >= 0) {
            conf.sink = SINK_NONBLOCK;
            conf.fd = fd;
        }
    }
}

/* Copies s as valid UTF-8 of at most max bytes: what is not UTF-8 or is a C1 control becomes '?'. */
static size_t clean(char *out, size_t max, const char *s)
{
    size_t len = strnlen(s, max + 4), n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp = 0;
        int k = utf8_decode(s + i, len - i, &cp);
        bool ok = k > 0 && (cp < 0x80 || cp > 0x9F);
        size_t step = k > 0 ? (size_t)k : 1, want = ok ? step : 1;
        if (n + want > max)
            break;
        if (ok)
            memcpy(out + n, s + i, step);
        else
            out[n] = '?';
        n += want;
        i += step;
    }
    return n;
}

static bool is_plain(const char *s, size_t n)
{
    if (n == 0)
        return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] <= ' ' || s[i] == '"' || s[i] == '\\' || s[i] == '=' || s[i] == 0x7F)
            return false;
    return true;
}

static void add_string(struct buf *b, const char *key, const char *s)
{
    char text[MAX_MESSAGE];
    size_t max = strcmp(key, "message") == 0 ? MAX_MESSAGE : MAX_STRING;
    size_t n = clean(text, max, s ? s : "");
    if (conf.format == LOG_TEXT && is_plain(text, n))
        buf_add(b, text, n);
    else
        buf_json_string(b, text, n);
}

/* A field that does not fit leaves the line as it was. */
static void add_field(struct buf *b, const struct log_field *f)
{
    size_t len = b->len;
    buf_printf(b, conf.format == LOG_JSON ? ",\"%s\":" : " %s=", f->key);
    switch (f->kind) {
    case LOG_STR:
        add_string(b, f->key, f->s);
        break;
    case LOG_INT:
        buf_printf(b, "%lld", (long long)f->i);
        break;
    case LOG_DBL:
        if (isfinite(f->d))
            buf_printf(b, "%.3f", f->d);
        else
            buf_puts(b, "null");
        break;
    case LOG_BOOL:
        buf_puts(b, f->i ? "true" : "false");
        break;
    }
    if (b->failed) {
        b->failed = false;
        b->len = len;
    }
}

/* True when the whole line went out. line[0] is a new line, written only after one that was cut. */
static bool put(const char *line, size_t n)
{
    pthread_mutex_lock(&write_lock);
    const char *from = cut ? line : line + 1;
    size_t len = cut ? n : n - 1;
    struct pollfd p = {.fd = conf.fd, .events = POLLOUT};
    ssize_t sent = -1;
    if (conf.sink == SINK_SOCKET)
        sent = send(conf.fd, from, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    else if (conf.sink == SINK_NONBLOCK || (poll(&p, 1, 0) == 1 && (p.revents & POLLOUT) != 0))
        sent = write(conf.fd, from, len);
    if (sent > 0)
        cut = sent < (ssize_t)len;
    pthread_mutex_unlock(&write_lock);
    return sent == (ssize_t)len;
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    if (level < conf.level)
        return;
    /* A buf over memory of ours: with max below cap it never allocates and is not freed. */
    char line[PIPE_BUF];
    struct buf b = {.data = line, .cap = sizeof line, .max = sizeof line - 4};
    char now[32];
    clock_rfc3339(now, sizeof now);
    bool json = conf.format == LOG_JSON;
    buf_printf(&b, json ? "\n{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"" : "\n%s %-5s %s", now,
               level_name[level], event);
    struct log_field id = LOG_S("worker_id", conf.worker_id);
    if (json && conf.worker_id[0] != 0)
        add_field(&b, &id);
    for (const struct log_field *f = fields; f->key != NULL; f++)
        add_field(&b, f);
    if (!json && conf.worker_id[0] != 0)
        add_field(&b, &id);
    b.max = 0;
    buf_puts(&b, json ? "}\n" : "\n");
    if (!put(line, b.len))
        atomic_fetch_add_explicit(&dropped, 1, memory_order_relaxed);
}

uint64_t log_dropped(void)
{
    return atomic_load_explicit(&dropped, memory_order_relaxed);
}
