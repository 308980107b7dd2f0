/* inferd: parse and validate the options, then be a worker until told to stop. The only file that ends the process. */
#define _GNU_SOURCE
#include "daemon/cli.h"
#include "daemon/loader.h"
#include "daemon/worker.h"

#include <curl/curl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* A mapped page of the model file can vanish (the file was cut in place, its disk failed). The kernel says so with SIGBUS
 * in the thread that touched it: the one signal that cannot be waited for, and so the one handler. The thread is stopped
 * for good, and the main thread winds up; these two are what the handler may touch. */
static atomic_bool bus_error;
static pthread_t main_thread;

static void on_bus_error(int sig)
{
    static const char message[] = "inferd: bus error: the model file was cut while it was in use\n";
    (void)sig;
    if (pthread_equal(pthread_self(), main_thread)) {
        ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
        (void)ignored;
        _exit(EXIT_CODE_INTERNAL);
    }
    atomic_store(&bus_error, true);
    pthread_kill(main_thread, WORKER_WAKE);
    for (;;)
        pause();
}

static void set_signals(void)
{
    struct sigaction sa = {.sa_handler = on_bus_error};
    sigset_t set;
    main_thread = pthread_self();
    sigaction(SIGBUS, &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
    worker_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void start_log(const struct options *o, const char *worker_id)
{
    bool json = o->log_format == LOG_FORMAT_AUTO ? !isatty(STDERR_FILENO) : o->log_format == LOG_FORMAT_JSON;
    log_init(json ? LOG_JSON : LOG_TEXT, (enum log_level)o->log_level, worker_id);
}

static int check(const struct options *o)
{
    struct loader_device device;
    struct buf plan = {0};
    struct err err = {0};
    int code = EXIT_CODE_OK;
    if (loader_device(o, &device, &err) && loader_check(o, &device, &plan, &err)) {
        fputs(plan.data, stdout);
    } else {
        fprintf(stderr, "inferd: %s\n", err.msg);
        code = exit_code_of(&err);
    }
    buf_free(&plan);
    return code;
}

static int print_help(void)
{
    struct buf help = {0};
    options_help(&help);
    fputs(help.failed ? "" : help.data, stdout);
    buf_free(&help);
    return EXIT_CODE_OK;
}

static int usage_error(const struct buf *problems)
{
    const char *s = problems->data != NULL ? problems->data : "";
    for (const char *end; (end = strchr(s, '\n')) != NULL; s = end + 1)
        fprintf(stderr, "inferd: %.*s\n", (int)(end - s), s);
    fputs("inferd: --help lists the options\n", stderr);
    return EXIT_CODE_USAGE;
}

static int serve(const struct options *o, bool *running_threads)
{
    char id[37];
    if (o->worker_id != NULL)
        snprintf(id, sizeof id, "%s", o->worker_id);
    else if (!uuid_make(id)) {
        fputs("inferd: the system gives no random numbers for a worker id\n", stderr);
        return EXIT_CODE_SYSTEM;
    }
    start_log(o, id);
    return worker_run(o, id, &bus_error, running_threads);
}

int main(int argc, char *argv[])
{
    struct options o;
    struct buf problems = {.max = 64 << 10};
    bool running_threads = false;
    int code;
    set_signals();
    curl_global_init(CURL_GLOBAL_DEFAULT);    /* before threads; the parser uses libcurl's URLs */
    if (!options_parse(&o, argc, argv, environ, &problems))
        code = usage_error(&problems);
    else if (o.help)
        code = print_help();
    else if (o.version)
        code = puts("inferd " INFERD_VERSION) < 0 ? EXIT_CODE_SYSTEM : EXIT_CODE_OK;
    else if (o.check)
        code = check(&o);
    else
        code = serve(&o, &running_threads);
    buf_free(&problems);
    if (running_threads)
        _exit(code);    /* they use what exit() and options_free() would take away */
    options_free(&o);
    curl_global_cleanup();
    return code;
}
