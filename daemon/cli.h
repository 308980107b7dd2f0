/* Options: one table (cli.c) gives their names, ranges, defaults and help. The command line wins over the environment
 * (INFERD_NAME), the environment over the default. Everything is checked before anything is opened but the token file;
 * all problems are reported at once. */
#ifndef DAEMON_CLI_H
#define DAEMON_CLI_H

#include "base/buf.h"
#include "base/log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum device_kind { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA };
enum log_format_choice { LOG_FORMAT_AUTO = -1, LOG_FORMAT_JSON, LOG_FORMAT_TEXT };
enum cli_kv_type { CLI_KV_F16, CLI_KV_Q8_0 };
enum cli_speculate { CLI_SPECULATE_ON, CLI_SPECULATE_OFF };
enum metrics_compat { METRICS_VLLM, METRICS_NONE };

/* Strings point into argv or the environment. 0 in a number means "not given: the program decides". */
struct options {
    const char *model;
    const char *device_text;             /* as given; see device and device_index */
    const char *worker_id;               /* NULL: generate one */
    const char *host;
    const char *callback_url, *callback_token_file;
    const char *model_alias;             /* NULL: file name without .gguf */
    int64_t gpu_device;                  /* -1: not given; folded into device */
    int64_t port;
    int64_t ctx_size, max_batch, max_queue;
    int64_t kv_cache_size_mb, kv_type, speculate;
    int64_t prefix_cache;                /* enum prefix_cache */
    int64_t max_tokens_in, max_tokens_out;
    int64_t inference_timeout_sec, drain_timeout_sec, drain_delay_sec;
    int64_t threads;
    int64_t max_body_bytes, max_connections;
    int64_t header_timeout_ms, body_timeout_ms, send_timeout_ms;
    int64_t metrics_compat, log_format, log_level;
    int64_t check, version, help;        /* flags */

    enum device_kind device;
    int device_index;                    /* of DEVICE_CUDA */
    char *callback_token;                /* content of the token file, or NULL; options_free */
};

/* Fills o from argv and envp. False: `problems` holds one line for each. With --help or --version nothing else is
 * checked. */
bool options_parse(struct options *o, int argc, char *const argv[], char *const envp[], struct buf *problems);
void options_free(struct options *o);

void options_help(struct buf *out);

/* Random version 4 identifier. False when the system gives no randomness. */
bool uuid_make(char out[37]);

#endif
