/* The body of POST /execute: a table of fields, and the request they make. */
#ifndef API_REQUEST_H
#define API_REQUEST_H

#include "api/json.h"
#include "engine/engine.h"

enum {
    REQUEST_MAX_STOPS = 16,
    REQUEST_MAX_STOP_BYTES = 256,
    REQUEST_MAX_STOP_IDS = 256,
    REQUEST_MAX_BIAS = 1024,
    REQUEST_MAX_JOB_ID = 128,    /* characters */
    REQUEST_MAX_SALT = 64,
};

/* What the table's ranges depend on. */
struct request_limits {
    int n_vocab, n_ctx;
    int max_tokens_out;
};

struct request {
    char *job_id;
    const char *prompt;           /* points into root */
    size_t prompt_len;
    int64_t max_tokens;           /* 0 = the default */
    double temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    int64_t top_k, min_tokens, deadline_ms;    /* deadline 0 = none */
    bool seed_given, stream, prefix_cache, ignore_eos, parse_special;
    uint64_t seed;
    enum gen_priority priority;
    char *cache_salt;
    char *stop[REQUEST_MAX_STOPS];
    int n_stop;
    int32_t *stop_ids, *resume;
    int n_stop_ids, n_resume;
    struct logit_bias *bias;
    int n_bias;
    json_t *root;                 /* the parsed body; dropped by request_drop_body */
};

enum field_kind { FIELD_NUMBER, FIELD_INTEGER, FIELD_BOOLEAN, FIELD_OTHER, FIELD_REFUSED };
enum field_bound { BOUND_FIXED, BOUND_VOCAB, BOUND_MAX_TOKENS };

/* One row of the table. The tests walk it too. */
struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;                /* of the value in struct request */
    double min, max, def;
    bool above_min;               /* min itself is not allowed */
    enum field_bound bound;       /* what replaces max */
    bool required;
    const char *why;              /* FIELD_REFUSED: what to say */
    void (*read)(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v);
};
extern const struct field request_fields[];
extern const size_t request_n_fields;

/* Fills r from a body (changed in place, see json_read). false: err when the body is not a JSON object, else v. r is to be
 * freed in either case. */
bool request_read(struct request *r, char *body, size_t n, const struct request_limits *l, struct violations *v,
                  struct err *err);
void request_drop_body(struct request *r);    /* the prompt is not needed any more */
void request_free(struct request *r);

/* {"job_id": "..."} of POST /cancel; allocated, NULL with v or err filled. */
char *request_read_cancel(char *body, size_t n, struct violations *v, struct err *err);

#endif
