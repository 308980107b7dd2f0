#define _GNU_SOURCE
#include "daemon/worker.h"
#include "api/api.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "daemon/callback.h"
#include "daemon/loader.h"
#include "daemon/progress.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

enum {
    TICK_MS = 500,            /* between two looks at the engine's heartbeat */
    IDLE_STUCK_S = 5,         /* an idle engine beats ten times a second */
    STEP_STUCK_S = 120,       /* one step of 256 prompt rows of a large model takes a small CPU a minute */
    DRAIN_POLL_MS = 10,
    CLOSE_MS = 950,           /* after the drain time: what is owed is written, then we end within a second */
    FAIL_MS = 3000,           /* a failed worker is gone within five seconds, whatever is stuck */
    LISTEN_FDS_MAX = 8,
};

struct worker {
    const struct options *o;
    const char *id;
    char *alias, *model_ref;         /* valid UTF-8 */
    struct loader_device device;
    sigset_t signals;
    pthread_t main;
    const atomic_bool *bus_error;

    struct api *api;
    struct loaded l;
    struct progress progress;

    pthread_t loader;
    bool load_ok;                    /* valid once loaded, as is load_err */
    struct err load_err;
    atomic_bool loaded;

    struct buf callback_body;
    struct callback *callback;
    pthread_t callback_thread;
    struct err callback_err;         /* valid once callback_failed */
    atomic_bool callback_failed;

    atomic_bool shutdown_asked;      /* POST /shutdown */
    struct err failure;              /* set before the closing thread starts, where that is why */
    atomic_bool closed;              /* the closing thread is through */

    uint64_t last_tick_ns, beat, beat_ticks;    /* the engine's last heartbeat and for how many ticks it is the last */
};

int exit_code_of(const struct err *err)
{
    static const int code[ERR_N] = {
        [ERR_USAGE] = EXIT_CODE_USAGE,   [ERR_MODEL] = EXIT_CODE_MODEL, [ERR_NO_MODEL] = EXIT_CODE_NO_MODEL,
        [ERR_DEVICE] = EXIT_CODE_DEVICE, [ERR_OOM] = EXIT_CODE_DEVICE,  [ERR_SYSTEM] = EXIT_CODE_SYSTEM,
    };
    return err->code < ERR_N && code[err->code] != 0 ? code[err->code] : EXIT_CODE_INTERNAL;
}

void worker_signals(sigset_t *set)
{
    struct sigaction sa;
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, WORKER_WAKE);
    /* A shell starts background jobs with SIGINT ignored: its Ctrl-C is not for us then. */
    if (sigaction(SIGINT, NULL, &sa) == 0 && sa.sa_handler != SIG_IGN)
        sigaddset(set, SIGINT);
}

static void wake(struct worker *w)
{
    pthread_kill(w->main, WORKER_WAKE);
}

/* Waits at most ms. True when the worker was told to stop by a signal. */
static bool stop_signal(struct worker *w, int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    int sig = sigtimedwait(&w->signals, NULL, &ts);
    return sig == SIGTERM || sig == SIGINT;
}

static void log_error(const struct worker *w, const struct err *err, int exit_code)
{
    log_event(LOG_ERROR, "error", LOG_S("message", err->msg), LOG_I("exit_code", exit_code), LOG_S("model_ref", w->model_ref),
              LOG_S("device", w->device.name));
}

/* ---- names ---- */

/* A copy that may stand in JSON: bytes that are no UTF-8 become '?'. */
static char *utf8_copy(const char *s)
{
    size_t n = strlen(s);
    char *copy = mem_strndup(s, n);
    for (size_t i = 0; copy != NULL && i < n;) {
        uint32_t cp;
        int len = utf8_decode(copy + i, n - i, &cp);
        if (len <= 0)
            copy[i] = '?';
        i += len <= 0 ? 1 : (size_t)len;
    }
    return copy;
}

static char *default_alias(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *alias = utf8_copy(slash != NULL ? slash + 1 : path);
    size_t n = alias != NULL ? strlen(alias) : 0;
    if (n > 5 && strcmp(alias + n - 5, ".gguf") == 0)
        alias[n - 5] = 0;
    return alias;
}

/* ---- loading ---- */

static void on_progress(void *arg, int percent)
{
    progress_set(arg, percent);
}

static void *load_main(void *arg)
{
    struct worker *w = arg;
    uint64_t start = clock_ns();
    log_event(LOG_INFO, "model_load_start", LOG_S("model_ref", w->model_ref), LOG_S("device", w->device.name));
    w->progress = (struct progress){
        .api = w->api,
        .model_ref = w->model_ref,
        .device = w->device.name,
        .bar = isatty(STDERR_FILENO) && w->o->log_format != LOG_FORMAT_JSON,
        .last = -1,
    };
    w->load_ok = loader_open(w->o, &w->device, on_progress, &w->progress, &w->l, &w->load_err);
    progress_end(&w->progress);
    if (w->load_ok) {
        char cpu[64];
        adapter_describe(w->l.adapter, cpu, sizeof cpu);
        const struct adapter_plan *p = adapter_planned(w->l.adapter);
        log_event(LOG_INFO, "model_load_complete", LOG_S("model_ref", w->model_ref), LOG_S("device", w->device.name),
                  LOG_S("engine", cpu), LOG_D("load_ms", clock_ms_since(start)), LOG_I("weight_bytes", p->weights),
                  LOG_I("kv_bytes", p->kv), LOG_I("work_bytes", p->work), LOG_I("context_length", p->n_ctx));
        int asked = w->o->ctx_size > 0 ? (int)w->o->ctx_size : w->l.model->n_ctx_train;
        if (p->n_ctx < asked)
            log_event(LOG_WARN, "context_lowered", LOG_I("context_length", p->n_ctx), LOG_I("asked", asked),
                      LOG_S("message", "the KV cache has no room for more; see --kv-cache-size-mb"));
        if (asked > w->l.model->n_ctx_train)
            log_event(LOG_WARN, "context_beyond_model", LOG_I("context_length", asked),
                      LOG_I("trained", w->l.model->n_ctx_train));
    }
    atomic_store(&w->loaded, true);
    wake(w);
    return NULL;
}

/* ---- listening ---- */

static void on_shutdown(void *arg)
{
    struct worker *w = arg;
    atomic_store(&w->shutdown_asked, true);
    wake(w);
}

static bool is_loopback(const char *uri)
{
    return strncmp(uri, "http://127.", 11) == 0 || strncmp(uri, "http://[::1]", 12) == 0 ||
           strncmp(uri, "http://localhost", 16) == 0 || strncmp(uri, "unix:", 5) == 0;
}

static bool listen_first(struct worker *w, struct err *err)
{
    const struct options *o = w->o;
    int fds[LISTEN_FDS_MAX], n_fds = sd_listen_fds(1);
    if (n_fds < 0 || n_fds > LISTEN_FDS_MAX)
        return err_set(err, ERR_SYSTEM, "sockets from systemd: %s, at most %d are taken",
                       n_fds < 0 ? strerror(-n_fds) : "too many", LISTEN_FDS_MAX);
    for (int i = 0; i < n_fds; i++)
        fds[i] = SD_LISTEN_FDS_START + i;
    struct api_options ao = {
        .listen_fds = n_fds > 0 ? fds : NULL,
        .n_listen_fds = n_fds,
        .host = o->host,
        .port = (int)o->port,
        .max_body_bytes = (size_t)o->max_body_bytes,
        .max_connections = (int)o->max_connections,
        .header_timeout_ms = (int)o->header_timeout_ms,
        .body_timeout_ms = (int)o->body_timeout_ms,
        .send_timeout_ms = (int)o->send_timeout_ms,
        .max_tokens_in = (int)o->max_tokens_in,
        .max_tokens_out = (int)o->max_tokens_out,
        .prefix_cache = (enum prefix_cache)o->prefix_cache,
        .metrics_vllm = o->metrics_compat == METRICS_VLLM,
        .on_shutdown = on_shutdown,
        .on_shutdown_arg = w,
    };
    w->api = api_open(&ao, err);
    if (w->api == NULL)
        return false;
    struct worker_facts facts = {.worker_id = w->id, .model = w->alias, .model_ref = w->model_ref, .device = w->device.name};
    api_set_facts(w->api, &facts);
    /* For whoever asked for port 0; one line, so that a script can read it. */
    printf("inferd: listening on %s\n", api_uri(w->api));
    fflush(stdout);
    if (!is_loopback(api_uri(w->api)))
        log_event(LOG_WARN, "no_authentication", LOG_S("uri", api_uri(w->api)),
                  LOG_S("message", "anyone who reaches this address may use the worker"));
    return true;
}

static void publish_facts(struct worker *w)
{
    const struct adapter *a = w->l.adapter;
    size_t vram = adapter_vram_usage(a);
    struct kern_facts card;
    adapter_facts(a, &card);
    struct worker_facts facts = {
        .worker_id = w->id,
        .model = w->alias,
        .model_ref = w->model_ref,
        .model_type = adapter_model_type(a),
        .quant_kind = w->l.model->quant,
        .device = w->device.name,
        .memory_architecture = w->device.vram ? "vram-only" : "ram",
        .tokenizer_kind = tok_kind(w->l.tok),
        .vocab_size = adapter_vocab_size(a),
        .hidden_dim = adapter_hidden_dim(a),
        .num_layers = adapter_num_layers(a),
        .context_length = adapter_n_ctx(a),
        .max_batch = w->l.max_batch,
        .max_queue = (int)w->o->max_queue,
        .vram_bytes_used = vram,
        .vram_bytes_total = card.memory_total,
        .memory_bytes = adapter_memory_usage(a),
        .resident = true,   /* adapter_open has looked */
        .sm = card.sm,
        .cuda_runtime_version = card.sm > 0 ? card.runtime : NULL,
    };
    api_set_facts(w->api, &facts);
    api_set_engine(w->api, w->l.engine, w->l.tok);
}

/* ---- the ready callback ---- */

static void add_member(struct buf *b, const char *name, const char *value)
{
    buf_printf(b, "%s\"%s\":", b->len > 1 ? "," : "", name);
    buf_json_string(b, value, strlen(value));
}

static void *callback_main(void *arg)
{
    struct worker *w = arg;
    struct err err = {0};
    if (callback_run(w->callback, &err)) {
        log_event(LOG_INFO, "callback_delivered");
    } else if (err.code != ERR_CANCELLED) {
        w->callback_err = err;
        atomic_store(&w->callback_failed, true);
        wake(w);
    }
    return NULL;
}

static bool start_callback(struct worker *w, struct err *err)
{
    struct buf *b = &w->callback_body;
    buf_puts(b, "{");
    add_member(b, "worker_id", w->id);
    add_member(b, "model_ref", w->model_ref);
    add_member(b, "memory_architecture", w->device.vram ? "vram-only" : "ram");
    add_member(b, "uri", api_uri(w->api));
    add_member(b, "worker_type", "inferd");
    buf_printf(b, ",\"memory_bytes\":%zu,\"vram_bytes\":%zu,\"capabilities\":[\"text-gen\"]}", adapter_memory_usage(w->l.adapter),
               adapter_vram_usage(w->l.adapter));
    if (b->failed)
        return err_set(err, ERR_INTERNAL, "out of memory");
    struct callback_options co = {.url = w->o->callback_url, .token = w->o->callback_token, .body = b->data};
    w->callback = callback_open(&co, err);
    if (w->callback == NULL)
        return false;
    int rc = pthread_create(&w->callback_thread, NULL, callback_main, w);
    if (rc == 0)
        return true;
    callback_close(w->callback);
    w->callback = NULL;
    return err_set(err, ERR_SYSTEM, "cannot start the callback's thread: %s", strerror(rc));
}

static void end_callback(struct worker *w)
{
    if (w->callback != NULL) {
        callback_stop(w->callback);
        pthread_join(w->callback_thread, NULL);
        callback_close(w->callback);
    }
    buf_free(&w->callback_body);
}

/* ---- what can fail while serving ---- */

/* Ticks are counted, not time: a process that was stopped and goes on has missed none. */
static bool engine_stuck(struct worker *w, const struct engine_stats *s)
{
    if (s->heartbeat_ns != w->beat) {
        w->beat = s->heartbeat_ns;
        w->beat_ticks = 0;
        return false;
    }
    int limit_s = s->running + s->queued > 0 ? STEP_STUCK_S : IDLE_STUCK_S;
    return ++w->beat_ticks * TICK_MS >= (uint64_t)limit_s * 1000;
}

static bool file_vanished(const struct worker *w, struct err *err)
{
    if (!atomic_load(w->bus_error))
        return false;
    err_set(err, ERR_INTERNAL, "%s: the file was cut or its storage failed while it was in use", w->o->model);
    return true;
}

/* True, and why, when the worker cannot go on. */
static bool has_failed(struct worker *w, struct err *err)
{
    struct engine_stats stats;
    if (file_vanished(w, err))
        return true;
    engine_stats_get(w->l.engine, &stats);
    if (stats.failed) {
        if (!engine_failure(w->l.engine, err))
            err_set(err, ERR_INTERNAL, "the engine failed");
        return true;
    }
    if (clock_ms_since(w->last_tick_ns) < TICK_MS)
        return false;
    w->last_tick_ns = clock_ns();
    if (engine_stuck(w, &stats)) {
        err_set(err, ERR_INTERNAL, "the engine thread gives no sign of life");
        return true;
    }
    return false;
}

/* ---- the end ---- */

static void *close_main(void *arg)
{
    struct worker *w = arg;
    if (w->failure.code != ERR_NONE) {
        api_set_state(w->api, WORKER_FAILED, 0);
        engine_fail(w->l.engine, &w->failure);
    }
    api_close(w->api);
    loader_close(&w->l);
    atomic_store(&w->closed, true);
    wake(w);
    return NULL;
}

/* Closes everything in a thread of its own, because a stuck engine, reader or device must not keep us: false after ms or
 * when a signal says so, and then threads are left running. */
static bool close_within(struct worker *w, int ms)
{
    pthread_t t;
    uint64_t start = clock_ns();
    if (pthread_create(&t, NULL, close_main, w) != 0)
        return false;
    while (!atomic_load(&w->closed)) {
        int left = ms - (int)clock_ms_since(start);
        if (left <= 0 || stop_signal(w, left)) {
            pthread_detach(t);
            return false;
        }
    }
    pthread_join(t, NULL);
    return true;
}

/* The engine, its device or the model file is gone. Nobody may think that this worker lives. */
static int fail(struct worker *w, const struct err *cause, bool *running_threads)
{
    log_error(w, cause, EXIT_CODE_INTERNAL);
    sd_notifyf(0, "STOPPING=1\nSTATUS=Failed: %s", cause->msg);
    w->failure = *cause;
    *running_threads = !close_within(w, FAIL_MS);
    return EXIT_CODE_INTERNAL;
}

/* Waits until nothing runs and nothing is owed, or ms passed. False: a second signal, or a failure (err->code set). */
static bool drained(struct worker *w, int64_t ms, struct err *err)
{
    uint64_t start = clock_ns();
    while ((!engine_idle(w->l.engine) || api_open_streams(w->api) > 0) && clock_ms_since(start) < (double)ms)
        if (stop_signal(w, DRAIN_POLL_MS) || has_failed(w, err))
            return false;
    return true;
}

/* With --drain-delay-sec: balancers see readiness go before the first request is refused. */
static bool leave(struct worker *w, int64_t ms, struct err *err)
{
    uint64_t start = clock_ns();
    api_set_state(w->api, WORKER_LEAVING, 100);
    for (double left = 0; (left = (double)ms - clock_ms_since(start)) > 0;)
        if (stop_signal(w, left < TICK_MS ? (int)left + 1 : TICK_MS) || has_failed(w, err))
            return false;
    return true;
}

/* Drains and closes. A second signal ends it at once. */
static int drain(struct worker *w, const char *reason, int exit_code, bool *running_threads)
{
    struct err err = {0};
    log_event(LOG_INFO, "shutdown", LOG_S("reason", reason), LOG_I("exit_code", exit_code));
    sd_notify(0, "STOPPING=1\nSTATUS=Draining");
    bool ok = w->o->drain_delay_sec == 0 || leave(w, w->o->drain_delay_sec * 1000, &err);
    if (ok) {
        api_set_state(w->api, WORKER_DRAINING, 100);
        engine_drain(w->l.engine);
        ok = drained(w, w->o->drain_timeout_sec * 1000, &err);
    }
    if (err.code != ERR_NONE)
        return fail(w, &err, running_threads);
    *running_threads = true;
    if (!ok)
        return exit_code;
    engine_cancel_all(w->l.engine);
    *running_threads = !close_within(w, CLOSE_MS);
    return exit_code;
}

/* ---- serving ---- */

static int serve(struct worker *w, bool *running_threads)
{
    struct err err = {0};
    for (;;) {
        if (stop_signal(w, TICK_MS))
            return drain(w, "signal", EXIT_CODE_OK, running_threads);
        if (atomic_load(&w->shutdown_asked))
            return drain(w, "POST /shutdown", EXIT_CODE_OK, running_threads);
        if (has_failed(w, &err))
            return fail(w, &err, running_threads);
        if (atomic_load(&w->callback_failed)) {
            log_error(w, &w->callback_err, EXIT_CODE_CALLBACK);
            return drain(w, "callback failed", EXIT_CODE_CALLBACK, running_threads);
        }
    }
}

/* True when the model is loaded; else *code is how the process ends. */
static bool load(struct worker *w, int *code, bool *running_threads)
{
    struct err err = {0};
    int rc = pthread_create(&w->loader, NULL, load_main, w);
    if (rc != 0) {
        err_set(&err, ERR_SYSTEM, "cannot start a thread: %s", strerror(rc));
        goto fail;
    }
    while (!atomic_load(&w->loaded)) {
        bool vanished = file_vanished(w, &err);
        if (vanished)
            log_error(w, &err, EXIT_CODE_INTERNAL);
        else if (!stop_signal(w, TICK_MS) && !atomic_load(&w->shutdown_asked))
            continue;
        if (!vanished)
            log_event(LOG_INFO, "shutdown", LOG_S("reason", "stopped while loading"), LOG_I("exit_code", EXIT_CODE_OK));
        /* Nothing is owed to anyone: the loading thread is not waited for. */
        *running_threads = true;
        *code = vanished ? EXIT_CODE_INTERNAL : EXIT_CODE_OK;
        return false;
    }
    pthread_join(w->loader, NULL);
    if (w->load_ok)
        return true;
    err = w->load_err;
fail:
    *code = exit_code_of(&err);
    log_error(w, &err, *code);
    sd_notifyf(0, "STATUS=Failed: %s", err.msg);
    api_set_state(w->api, WORKER_FAILED, 0);
    api_close(w->api);
    return false;
}

static int run(struct worker *w, bool *running_threads)
{
    struct err err = {0};
    int code;
    if (w->alias == NULL || w->model_ref == NULL)
        err_set(&err, ERR_INTERNAL, "out of memory");
    if (err.code != ERR_NONE || !loader_device(w->o, &w->device, &err) || !listen_first(w, &err)) {
        code = exit_code_of(&err);
        log_error(w, &err, code);
        return code;
    }
    log_event(LOG_INFO, "startup", LOG_S("version", INFERD_VERSION), LOG_S("uri", api_uri(w->api)),
              LOG_S("model_ref", w->model_ref), LOG_S("device", w->device.name), LOG_I("pid", getpid()));
    if (!load(w, &code, running_threads))
        return code;
    publish_facts(w);
    api_set_state(w->api, WORKER_READY, 100);
    sd_notifyf(0, "READY=1\nSTATUS=Serving %s at %s", w->alias, api_uri(w->api));
    log_event(LOG_INFO, "ready", LOG_S("model_ref", w->model_ref), LOG_S("device", w->device.name),
              LOG_S("uri", api_uri(w->api)));
    if (w->o->callback_url != NULL && !start_callback(w, &err)) {
        log_error(w, &err, exit_code_of(&err));
        return drain(w, "callback failed", exit_code_of(&err), running_threads);
    }
    return serve(w, running_threads);
}

int worker_run(const struct options *o, const char *worker_id, const atomic_bool *bus_error, bool *running_threads)
{
    struct worker *w = mem_alloc(1, sizeof *w);
    *running_threads = false;
    if (w == NULL)
        return EXIT_CODE_INTERNAL;
    w->o = o;
    w->id = worker_id;
    w->main = pthread_self();
    w->bus_error = bus_error;
    w->alias = o->model_alias != NULL ? mem_strdup(o->model_alias) : default_alias(o->model);
    w->model_ref = utf8_copy(o->model);
    worker_signals(&w->signals);
    int code = run(w, running_threads);
    if (*running_threads)
        return code;    /* they may still look at w */
    end_callback(w);
    free(w->alias);
    free(w->model_ref);
    free(w);
    return code;
}
