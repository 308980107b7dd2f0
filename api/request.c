#include "api/request.h"

#include "base/mem.h"
#include "base/utf8.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEADLINE_MS 1e12    /* 30 years: nanoseconds of it still fit */

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    default:
        return "null";
    }
}

static bool printable(const char *s, size_t n, size_t *chars)
{
    uint32_t cp;
    *chars = 0;
    for (size_t i = 0; i < n;) {
        int len = utf8_decode(s + i, n - i, &cp);
        if (len <= 0 || cp < 0x20 || (cp >= 0x7F && cp < 0xA0) || cp == 0x2028 || cp == 0x2029)
            return false;
        i += (size_t)len;
        ++*chars;
    }
    return true;
}

/* An array of ids below n_vocab, copied; *out stays NULL when it is empty or wrong. */
static void read_ids(const char *name, const json_t *value, int n_vocab, size_t max, int32_t **out, int *n_out,
                     struct violations *v)
{
    size_t n = json_array_size(value);
    if (!json_is_array(value)) {
        violations_add(v, name, "%s, expected an array of token ids", type_name(value));
        return;
    }
    if (n > max) {
        violations_add(v, name, "%zu ids, at most %zu are allowed", n, max);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(value, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= n_vocab) {
            violations_add(v, name, "element %zu is not a token id in 0..%d", i, n_vocab - 1);
            return;
        }
    }
    int32_t *ids = n > 0 ? mem_alloc(n, sizeof *ids) : NULL;
    if (n > 0 && ids == NULL) {
        violations_add(v, name, "no memory for %zu ids", n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(value, i));
    *out = ids;
    *n_out = (int)n;
}

static void read_job_id(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    size_t chars;
    (void)l;
    if (!json_is_string(value))
        violations_add(v, "job_id", "%s, expected a string", type_name(value));
    else if (!printable(json_string_value(value), json_string_length(value), &chars))
        violations_add(v, "job_id", "control characters are not allowed");
    else if (chars < 1 || chars > REQUEST_MAX_JOB_ID)
        violations_add(v, "job_id", "%zu characters, allowed are 1..%d", chars, REQUEST_MAX_JOB_ID);
    else if ((r->job_id = mem_strdup(json_string_value(value))) == NULL)
        violations_add(v, "job_id", "no memory for it");
}

static void read_prompt(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    (void)l;
    if (!json_is_string(value)) {
        violations_add(v, "prompt", "%s, expected a string", type_name(value));
        return;
    }
    r->prompt = json_string_value(value);
    r->prompt_len = json_string_length(value);
    if (r->prompt_len == 0)
        violations_add(v, "prompt", "it is empty");
}

static void read_seed(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    (void)l;
    r->seed_given = true;
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        r->seed = (uint64_t)json_integer_value(value);
        return;
    }
    const char *s = json_is_string(value) ? json_string_value(value) : "";
    uint64_t seed = 0;
    bool ok = *s != 0 && strlen(s) <= 20;
    for (; ok && *s != 0; s++) {
        unsigned digit = (unsigned)*s - '0';
        ok = digit <= 9 && seed <= (UINT64_MAX - digit) / 10;
        seed = seed * 10 + digit;
    }
    if (ok)
        r->seed = seed;
    else
        violations_add(v, "seed", "expected an integer in 0..9223372036854775807 or a decimal string in "
                                  "\"0\"..\"18446744073709551615\"");
}

static void read_stop(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    (void)l;
    size_t n = json_array_size(value);
    if (!json_is_array(value)) {
        violations_add(v, "stop", "%s, expected an array of strings", type_name(value));
        return;
    }
    if (n > REQUEST_MAX_STOPS) {
        violations_add(v, "stop", "%zu strings, at most %d are allowed", n, REQUEST_MAX_STOPS);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_array_get(value, i);
        if (!json_is_string(s))
            violations_add(v, "stop", "element %zu is %s, expected a string", i, type_name(s));
        else if (json_string_length(s) < 1 || json_string_length(s) > REQUEST_MAX_STOP_BYTES)
            violations_add(v, "stop", "element %zu has %zu bytes, allowed are 1..%d", i, json_string_length(s),
                           REQUEST_MAX_STOP_BYTES);
        else if ((r->stop[r->n_stop] = mem_strdup(json_string_value(s))) == NULL)
            violations_add(v, "stop", "no memory for it");
        else
            r->n_stop++;
    }
}

static void read_stop_ids(struct request *r, const json_t *value, const struct request_limits *l,
                          struct violations *v)
{
    read_ids("stop_token_ids", value, l->n_vocab, REQUEST_MAX_STOP_IDS, &r->stop_ids, &r->n_stop_ids, v);
}

static void read_priority(struct request *r, const json_t *value, const struct request_limits *l,
                          struct violations *v)
{
    (void)l;
    const char *s = json_is_string(value) ? json_string_value(value) : "";
    if (strcmp(s, "interactive") == 0)
        r->priority = GEN_INTERACTIVE;
    else if (strcmp(s, "batch") == 0)
        r->priority = GEN_BATCH;
    else
        violations_add(v, "priority", "expected \"interactive\" or \"batch\"");
}

static void read_salt(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    size_t chars;
    (void)l;
    if (!json_is_string(value))
        violations_add(v, "cache_salt", "%s, expected a string", type_name(value));
    else if (!printable(json_string_value(value), json_string_length(value), &chars) || chars > REQUEST_MAX_SALT)
        violations_add(v, "cache_salt", "allowed are at most %d printable characters", REQUEST_MAX_SALT);
    else if ((r->cache_salt = mem_strdup(json_string_value(value))) == NULL)
        violations_add(v, "cache_salt", "no memory for it");
}

/* {"1234": -100, ...}: ids as decimal strings. */
static void read_bias(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    size_t n = json_object_size(value);
    if (!json_is_object(value) || n > REQUEST_MAX_BIAS) {
        if (!json_is_object(value))
            violations_add(v, "logit_bias", "%s, expected an object of token ids and numbers", type_name(value));
        else
            violations_add(v, "logit_bias", "%zu entries, at most %d are allowed", n, REQUEST_MAX_BIAS);
        return;
    }
    r->bias = n > 0 ? mem_alloc(n, sizeof *r->bias) : NULL;
    if (n > 0 && r->bias == NULL) {
        violations_add(v, "logit_bias", "no memory for %zu entries", n);
        return;
    }
    const char *key;
    json_t *bias;
    json_object_foreach((json_t *)value, key, bias)
    {
        char *end;
        long id = key[0] >= '0' && key[0] <= '9' && strlen(key) < 10 ? strtol(key, &end, 10) : -1;
        if (id < 0 || id >= l->n_vocab || *end != 0) {
            violations_add(v, "logit_bias", "\"%.32s\" is not a token id in 0..%d", key, l->n_vocab - 1);
        } else if (!json_is_number(bias) || fabs(json_number_value(bias)) > 100) {
            violations_add(v, "logit_bias", "the value of %ld is not a number in -100..100", id);
        } else {
            r->bias[r->n_bias].token = (int32_t)id;
            r->bias[r->n_bias++].bias = (float)json_number_value(bias);
        }
    }
}

static void read_resume(struct request *r, const json_t *value, const struct request_limits *l, struct violations *v)
{
    const json_t *tokens = json_object_get(value, "tokens");
    if (!json_is_object(value) || tokens == NULL || json_object_size(value) != 1)
        violations_add(v, "resume_from", "expected {\"tokens\": [ids]}");
    else
        read_ids("resume_from", tokens, l->n_vocab, (size_t)l->n_ctx, &r->resume, &r->n_resume, v);
}

#define VALUE(kind_, field, ...) {.name = #field, .kind = kind_, .offset = offsetof(struct request, field), __VA_ARGS__}
#define NUMBER(field, lo, hi, ...) VALUE(FIELD_NUMBER, field, .min = lo, .max = hi, __VA_ARGS__)
#define INTEGER(field, lo, ...) VALUE(FIELD_INTEGER, field, .min = lo, __VA_ARGS__)
#define BOOLEAN(field, d) VALUE(FIELD_BOOLEAN, field, .def = d)
#define OTHER(field, fn, ...) {.name = field, .kind = FIELD_OTHER, .read = fn, __VA_ARGS__}
#define REFUSED(field, reason) {.name = field, .kind = FIELD_REFUSED, .why = reason}

const struct field request_fields[] = {
    OTHER("job_id", read_job_id, .required = true),
    OTHER("prompt", read_prompt, .required = true),
    INTEGER(max_tokens, 1, .bound = BOUND_MAX_TOKENS),
    NUMBER(temperature, 0, 2, .def = 1),
    NUMBER(top_p, 0, 1, .def = 1, .above_min = true),
    INTEGER(top_k, 0, .bound = BOUND_VOCAB),
    NUMBER(min_p, 0, 1),
    NUMBER(repetition_penalty, 0, 2, .def = 1, .above_min = true),
    NUMBER(frequency_penalty, -2, 2),
    NUMBER(presence_penalty, -2, 2),
    OTHER("stop", read_stop),
    OTHER("stop_token_ids", read_stop_ids),
    INTEGER(min_tokens, 0, .bound = BOUND_MAX_TOKENS),
    OTHER("seed", read_seed),
    BOOLEAN(stream, 1),
    INTEGER(deadline_ms, 1, .max = MAX_DEADLINE_MS),
    OTHER("priority", read_priority),
    BOOLEAN(prefix_cache, 1),
    OTHER("cache_salt", read_salt),
    OTHER("logit_bias", read_bias),
    BOOLEAN(ignore_eos, 0),
    BOOLEAN(parse_special, 0),
    OTHER("resume_from", read_resume),
    REFUSED("messages", "chat messages are not supported by this worker, send a prompt"),
    REFUSED("logprobs", "log-probabilities are not supported by this worker"),
    REFUSED("response_format", "constrained output is not supported by this worker"),
};
const size_t request_n_fields = sizeof request_fields / sizeof *request_fields;

static double upper_bound(const struct field *f, const struct request_limits *l)
{
    return f->bound == BOUND_VOCAB ? l->n_vocab : f->bound == BOUND_MAX_TOKENS ? l->max_tokens_out : f->max;
}

static void read_number(struct request *r, const struct field *f, const json_t *value,
                        const struct request_limits *l, struct violations *v)
{
    double x = json_number_value(value) + 0.0, max = upper_bound(f, l);    /* + 0.0 makes -0 a 0 */
    const char *open = f->above_min ? "(" : "[";
    bool integer = f->kind == FIELD_INTEGER;
    if (!json_is_number(value))
        violations_add(v, f->name, "%s, expected %s in %s%.15g..%.15g]", type_name(value),
                       integer ? "an integer" : "a number", open, f->min, max);
    else if (x < f->min || x > max || (f->above_min && x <= f->min))
        violations_add(v, f->name, "%.15g is not in %s%.15g..%.15g]", x, open, f->min, max);
    else if (integer && x != floor(x))
        violations_add(v, f->name, "%.15g is not an integer in [%.15g..%.15g]", x, f->min, max);
    else if (integer)
        *(int64_t *)((char *)r + f->offset) = (int64_t)x;
    else
        *(double *)((char *)r + f->offset) = x;
}

static void read_field(struct request *r, const struct field *f, const json_t *value,
                       const struct request_limits *l, struct violations *v)
{
    switch (f->kind) {
    case FIELD_NUMBER:
    case FIELD_INTEGER:
        read_number(r, f, value, l, v);
        break;
    case FIELD_BOOLEAN:
        if (json_is_boolean(value))
            *(bool *)((char *)r + f->offset) = json_is_true(value);
        else
            violations_add(v, f->name, "%s, expected true or false", type_name(value));
        break;
    case FIELD_OTHER:
        f->read(r, value, l, v);
        break;
    case FIELD_REFUSED:
        violations_add(v, f->name, "%s", f->why);
        break;
    }
}

static void set_defaults(struct request *r)
{
    *r = (struct request){0};
    for (size_t i = 0; i < request_n_fields; i++) {
        const struct field *f = &request_fields[i];
        void *at = (char *)r + f->offset;
        if (f->kind == FIELD_NUMBER)
            *(double *)at = f->def;
        else if (f->kind == FIELD_INTEGER)
            *(int64_t *)at = (int64_t)f->def;
        else if (f->kind == FIELD_BOOLEAN)
            *(bool *)at = f->def != 0;
    }
}

static bool known(const char *name)
{
    for (size_t i = 0; i < request_n_fields; i++)
        if (strcmp(request_fields[i].name, name) == 0)
            return true;
    return false;
}

bool request_read(struct request *r, char *body, size_t n, const struct request_limits *l, struct violations *v,
                  struct err *err)
{
    set_defaults(r);
    r->root = json_read(body, n, err);
    if (r->root == NULL)
        return false;
    for (size_t i = 0; i < request_n_fields; i++) {
        const struct field *f = &request_fields[i];
        const json_t *value = json_object_get(r->root, f->name);
        bool replaced = strcmp(f->name, "prompt") == 0 && json_object_get(r->root, "messages") != NULL;
        if (value != NULL)
            read_field(r, f, value, l, v);
        else if (f->required && !replaced)
            violations_add(v, f->name, "it is required");
    }
    const char *key;
    json_t *value;
    json_object_foreach(r->root, key, value)
    {
        if (!known(key))
            violations_add(v, key, "unknown field");
    }
    if (r->max_tokens > 0 && r->min_tokens > r->max_tokens)
        violations_add(v, "min_tokens", "%lld is above max_tokens, %lld", (long long)r->min_tokens,
                       (long long)r->max_tokens);
    return v->n == 0;
}

void request_drop_body(struct request *r)
{
    json_decref(r->root);
    r->root = NULL;
    r->prompt = NULL;
    r->prompt_len = 0;
}

void request_free(struct request *r)
{
    request_drop_body(r);
    free(r->job_id);
    free(r->cache_salt);
    for (int i = 0; i < r->n_stop; i++)
        free(r->stop[i]);
    free(r->stop_ids);
    free(r->resume);
    free(r->bias);
    *r = (struct request){0};
}

char *request_read_cancel(char *body, size_t n, struct violations *v, struct err *err)
{
    struct request r = {.root = json_read(body, n, err)};
    if (r.root == NULL)
        return NULL;
    const char *key;
    json_t *value;
    json_object_foreach(r.root, key, value)
    {
        if (strcmp(key, "job_id") != 0)
            violations_add(v, key, "unknown field");
    }
    const json_t *id = json_object_get(r.root, "job_id");
    if (id == NULL)
        violations_add(v, "job_id", "it is required");
    else
        read_job_id(&r, id, NULL, v);
    char *job_id = v->n == 0 ? r.job_id : NULL;
    if (job_id != NULL)
        r.job_id = NULL;
    request_free(&r);
    return job_id;
}
