/* Log: one line an event on stderr, as JSON or as text. Thread-safe; never blocks and never fails: a line that
 * cannot be written at once is dropped and counted. Prompts, generated text and keys never go in. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_LEVEL_N };
enum log_format { LOG_TEXT, LOG_JSON };

enum log_kind { LOG_STR, LOG_INT, LOG_DBL, LOG_BOOL };
struct log_field {
    const char *key;
    enum log_kind kind;
    const char *s;    /* escaped, cut to 128 bytes (the field "message": 512) */
    int64_t i;
    double d;
};
#define LOG_S(k, v) ((struct log_field){.key = (k), .kind = LOG_STR, .s = (v)})
#define LOG_I(k, v) ((struct log_field){.key = (k), .kind = LOG_INT, .i = (int64_t)(v)})
#define LOG_D(k, v) ((struct log_field){.key = (k), .kind = LOG_DBL, .d = (v)})
#define LOG_B(k, v) ((struct log_field){.key = (k), .kind = LOG_BOOL, .i = (v)})

/* Set once, before threads are started. worker_id is copied and goes into every line. */
void log_init(enum log_format format, enum log_level level, const char *worker_id);

/* log_event(LOG_INFO, "ready", LOG_S("device", "cpu"), LOG_I("port", 8080)); fields are optional. */
#define log_event(level, event, ...)                                                               \
    log_write((level), (event), (const struct log_field[]){__VA_ARGS__ __VA_OPT__(, )(struct log_field){0}})

/* fields end with one whose key is NULL. */
void log_write(enum log_level level, const char *event, const struct log_field *fields);

uint64_t log_dropped(void);    /* lines lost because stderr did not take them */

#endif
