/* The HTTP API as the daemon sees it: listen, serve, tell it what the worker is and how it is.
 *
 * api_open listens at once, so that /health and /metrics answer while the model loads; the daemon then hands over facts,
 * engine and states as they come. Every function may be called from any thread. The API never ends the process and never
 * touches the device; it learns that the engine failed from api_set_state(WORKER_FAILED).
 *
 * Shutdown, in this order: api_set_state(WORKER_DRAINING); engine_drain; wait for engine_idle or the drain time; else
 * engine_cancel_all; api_close (writes what is still owed, then closes the listener); engine_close; tok_close. */
#ifndef API_API_H
#define API_API_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct api;
struct engine;
struct tok;

/* Leaving: told to stop, and no longer called ready, but work is still taken until balancers have noticed. */
enum worker_state { WORKER_LOADING, WORKER_READY, WORKER_LEAVING, WORKER_DRAINING, WORKER_FAILED };

/* Whose prompts may be computed once for all: everybody's, those of each API key, nobody's. */
enum prefix_cache { PREFIX_CACHE_SHARED, PREFIX_CACHE_PER_KEY, PREFIX_CACHE_OFF };

enum { API_LISTEN_MAX = 8 };

struct api_options {
    /* Where to listen: the sockets given by systemd (taken over, also on failure), else the Unix socket, else host:port. */
    const int *listen_fds;
    int n_listen_fds;
    const char *unix_socket;      /* NULL = TCP */
    const char *host;             /* address or name; NULL = 127.0.0.1 */
    int port;                     /* 0 = a free one, see api_port */

    size_t max_body_bytes;        /* 0 = 4 MiB */
    int max_connections;          /* 0 = 12,000 or what RLIMIT_NOFILE allows */
    int header_timeout_ms;        /* total, from accept; 0 = 10,000 */
    int body_timeout_ms;          /* total; 0 = 30,000 */
    int send_timeout_ms;          /* without progress, rounded up to whole seconds; 0 = 30,000 */
    int max_tokens_in;            /* 0 = the context */
    int max_tokens_out;           /* 0 = the context */
    enum prefix_cache prefix_cache;
    bool metrics_vllm;            /* also export the vllm: names */

    /* POST /shutdown was accepted. Called from an HTTP thread: must return at once (raise a signal, write a pipe). */
    void (*on_shutdown)(void *arg);
    void *on_shutdown_arg;
};

/* Static facts of the worker. Strings are copied; NULL = not known yet. */
struct worker_facts {
    const char *worker_id;
    const char *model;                  /* the alias */
    const char *model_ref;              /* path as given */
    const char *model_type;             /* "llama3", ... */
    const char *quant_kind;             /* "Q4_1", ... */
    const char *device;                 /* "cpu", "cuda:0" */
    const char *memory_architecture;    /* "ram", "vram-only" */
    const char *tokenizer_kind;         /* "gguf-bpe", "gguf-spm" */
    int vocab_size, hidden_dim, num_layers, context_length;
    int max_batch, max_queue;
    size_t vram_bytes_used, vram_bytes_total, memory_bytes;
    bool resident;                      /* weights are where the device reads them */
    int sm;                             /* CUDA compute capability, 0 on the CPU */
    const char *cuda_runtime_version;   /* NULL on the CPU */
};

/* Binds, starts the threads, serves with state loading. Errors: ERR_SYSTEM naming address and reason; ERR_USAGE for a Unix
 * socket path that is too long. NULL on failure, with nothing left behind. */
struct api *api_open(const struct api_options *o, struct err *err);

/* Replaces the facts. Call it before the state becomes ready; may be called again. */
void api_set_facts(struct api *a, const struct worker_facts *f);

/* Engine and tokenizer, once, before the state becomes ready; both must outlive api_close. */
void api_set_engine(struct api *a, struct engine *e, const struct tok *t);

/* load_percent is shown while loading. */
void api_set_state(struct api *a, enum worker_state s, int load_percent);

int api_port(const struct api *a);              /* 0 on a Unix socket */
const char *api_uri(const struct api *a);       /* "http://127.0.0.1:8080", "unix:/run/inferd.sock" */
int api_open_streams(const struct api *a);      /* requests whose answer is not completely written */

/* Cancels what still runs, lets answers that are owed be written for at most a second, closes every connection, then the
 * listener. NULL is accepted. */
void api_close(struct api *a);

#endif
