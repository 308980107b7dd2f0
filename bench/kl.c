#include "bench/kl.h"

#include "base/mem.h"

#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kl_case {
    int32_t *ids;
    size_t n;
    int n_ctx;
    const json_t **top;    /* (n) of each position; NULL where the reference has none */
};

struct kl {
    json_t *json;
    struct kl_case *cases;
    int n_cases, n_vocab;
    double sum, max, diff_max;
    int max_case, max_pos;
    long n, n_agree;
};

/* ---- reading ---- */

/* Says what was found in place of what is expected; always false. */
static bool wrong(const json_t *found, const char *where, const char *expected, struct err *err)
{
    if (found == NULL)
        return err_set(err, ERR_USAGE, "%s is missing, expected %s", where, expected);
    if (json_is_array(found) || json_is_object(found))
        return err_set(err, ERR_USAGE, "%s: found %s of %zu, expected %s", where, json_is_array(found) ? "an array" : "an object",
                       json_is_array(found) ? json_array_size(found) : json_object_size(found), expected);
    char *text = json_dumps(found, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    err_set(err, ERR_USAGE, "%s: found %.40s, expected %s", where, text != NULL ? text : "a value", expected);
    free(text);
    return false;
}

static bool in_range(const json_t *v, json_int_t min, json_int_t max, const char *where, struct err *err)
{
    char expected[64];
    snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)min, (long long)max);
    return (json_is_integer(v) && json_integer_value(v) >= min && json_integer_value(v) <= max) || wrong(v, where, expected, err);
}

/* Appends an array of ids. */
static bool take_ids(struct kl_case *c, const json_t *array, const char *name, int n_vocab, struct err *err)
{
    size_t n = json_array_size(array);
    if (!json_is_array(array))
        return wrong(array, name, "an array of ids", err);
    int32_t *grown = mem_grow(c->ids, c->n + n + 1, sizeof *grown);
    if (grown == NULL)
        return err_set(err, ERR_OOM, "no memory for %zu ids", c->n + n);
    c->ids = grown;
    for (size_t i = 0; i < n; i++) {
        char where[64];
        snprintf(where, sizeof where, "%s[%zu]", name, i);
        if (!in_range(json_array_get(array, i), 0, n_vocab - 1, where, err))
            return false;
        c->ids[c->n++] = (int32_t)json_integer_value(json_array_get(array, i));
    }
    return true;
}

static int by_id(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static bool all_differ(int32_t *ids, size_t n, struct err *err)
{
    qsort(ids, n, sizeof *ids, by_id);
    for (size_t i = 1; i < n; i++)
        if (ids[i] == ids[i - 1])
            return err_set(err, ERR_USAGE, "\"top\": found id %d twice, expected each once", (int)ids[i]);
    return true;
}

/* Log-probabilities are printed with few digits: a sum of theirs may pass 1 by a little. */
#define ROUNDING 1e-3

/* A position's list; ids has room for it. */
static bool check_top(const json_t *top, int n_vocab, int32_t *ids, struct err *err)
{
    size_t n = json_array_size(top);
    double sum = 0;
    if (n == 0)
        return wrong(top, "\"top\"", "an array of [id, log-probability]", err);
    if (n > (size_t)n_vocab)
        return err_set(err, ERR_USAGE, "\"top\": found %zu entries, expected at most %d", n, n_vocab);
    for (size_t i = 0; i < n; i++) {
        const json_t *pair = json_array_get(top, i), *lp = json_array_get(pair, 1);
        char where[64];
        snprintf(where, sizeof where, "\"top\"[%zu]", i);
        if (json_array_size(pair) != 2)
            return wrong(pair, where, "[id, log-probability]", err);
        if (!in_range(json_array_get(pair, 0), 0, n_vocab - 1, where, err))
            return false;
        if (!json_is_number(lp) || !(json_number_value(lp) <= ROUNDING && json_number_value(lp) >= -1e4))
            return wrong(lp, where, "a log-probability from -10000 to 0", err);
        ids[i] = (int32_t)json_integer_value(json_array_get(pair, 0));
        sum += exp(json_number_value(lp));
    }
    if (sum > 1 + ROUNDING)
        return err_set(err, ERR_USAGE, "\"top\": found probabilities that sum to %.6f, expected 1 at most", sum);
    return all_differ(ids, n, err);
}

static bool read_positions(struct kl_case *c, const json_t *positions, int n_vocab, struct err *err)
{
    size_t n = json_array_size(positions);
    if (n == 0)
        return wrong(positions, "\"positions\"", "an array of {\"pos\", \"top\"}", err);
    int32_t *ids = mem_alloc((size_t)n_vocab, sizeof *ids);
    c->top = mem_alloc(c->n, sizeof *c->top);
    if (ids == NULL || c->top == NULL) {
        free(ids);
        return err_set(err, ERR_OOM, "no memory for %zu positions", c->n);
    }
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        const json_t *p = json_array_get(positions, i), *pos = json_object_get(p, "pos"), *top = json_object_get(p, "top");
        json_int_t at = json_integer_value(pos);
        if (!json_is_object(p))
            ok = wrong(p, "the element", "{\"pos\", \"top\"}", err);
        else
            ok = in_range(pos, 0, (json_int_t)c->n - 1, "\"pos\"", err) && check_top(top, n_vocab, ids, err);
        if (ok && c->top[at] != NULL)
            ok = err_set(err, ERR_USAGE, "\"pos\": found %lld twice, expected each once", (long long)at);
        if (ok)
            c->top[at] = top;
        else
            err_prefix(err, "positions[%zu]", i);
    }
    free(ids);
    return ok;
}

static bool read_case(struct kl_case *c, const json_t *json, const int32_t *ids, size_t n_ids, int n_vocab, struct err *err)
{
    const json_t *own = json_object_get(json, "ids"), *greedy = json_object_get(json, "greedy");
    const json_t *n_ctx = json_object_get(json, "n_ctx");
    if (json_is_object(greedy))
        greedy = json_object_get(greedy, "ids");
    if (n_ctx != NULL && !in_range(n_ctx, 0, 1 << 24, "\"n_ctx\"", err))
        return false;
    c->n_ctx = (int)json_integer_value(n_ctx);
    if (own == NULL) {
        if (n_ids == 0)
            return err_set(err, ERR_USAGE, "\"ids\" is missing: give them with --ids");
        c->ids = mem_alloc(n_ids, sizeof *c->ids);
        if (c->ids == NULL)
            return err_set(err, ERR_OOM, "no memory for %zu ids", n_ids);
        memcpy(c->ids, ids, n_ids * sizeof *ids);
        c->n = n_ids;
    } else if (!take_ids(c, own, "\"ids\"", n_vocab, err)) {
        return false;
    }
    if (json_object_get(json, "greedy") != NULL && !take_ids(c, greedy, "\"greedy\"", n_vocab, err))
        return false;
    size_t most = c->n_ctx > 0 ? (size_t)c->n_ctx : 1 << 24;
    if (c->n == 0 || c->n > most)
        return err_set(err, ERR_USAGE, "\"ids\": found %zu, the continuation included, expected 1 to %zu", c->n, most);
    return read_positions(c, json_object_get(json, "positions"), n_vocab, err);
}

static bool read_cases(struct kl *k, const int32_t *ids, size_t n_ids, struct err *err)
{
    const json_t *cases = json_object_get(k->json, "cases");
    size_t n = json_array_size(cases);
    if (!json_is_object(k->json))
        return wrong(k->json, "the document", "{\"cases\":[...]}", err);
    if (n == 0)
        return wrong(cases, "\"cases\"", "an array of a case or more", err);
    k->cases = mem_alloc(n, sizeof *k->cases);
    if (k->cases == NULL)
        return err_set(err, ERR_OOM, "no memory for %zu cases", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(cases, i), *window = json_object_get(json, "window_applied");
        bool ok = json_is_object(json) || wrong(json, "the case", "an object", err);
        if (ok && window != NULL && !json_is_boolean(window))
            ok = wrong(window, "\"window_applied\"", "true or false", err);
        if (ok && window != NULL && json_is_false(window))
            continue;    /* values without the model's sliding window: another model */
        if (!ok || !read_case(&k->cases[k->n_cases++], json, ids, n_ids, k->n_vocab, err))
            return err_prefix(err, "cases[%zu]", i);
    }
    return k->n_cases > 0 || err_set(err, ERR_USAGE, "\"cases\": all %zu are without the model's window, nothing is left", n);
}

struct kl *kl_open(const char *path, const int32_t *ids, size_t n_ids, int n_vocab, struct err *err)
{
    json_error_t error;
    struct kl *k = mem_alloc(1, sizeof *k);
    if (k == NULL) {
        err_set(err, ERR_OOM, "no memory for the reference");
        return NULL;
    }
    k->n_vocab = n_vocab;
    k->json = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (k->json == NULL)
        err_set(err, ERR_USAGE, "%s: line %d, column %d: %s", path, error.line, error.column, error.text);
    else if (read_cases(k, ids, n_ids, err))
        return k;
    else
        err_prefix(err, "%s", path);
    kl_close(k);
    return NULL;
}

void kl_close(struct kl *k)
{
    if (k == NULL)
        return;
    for (int i = 0; i < k->n_cases; i++) {
        free(k->cases[i].ids);
        free(k->cases[i].top);
    }
    free(k->cases);
    json_decref(k->json);
    free(k);
}

int kl_n_cases(const struct kl *k)
{
    return k->n_cases;
}

const int32_t *kl_ids(const struct kl *k, int i, int *n)
{
    *n = (int)k->cases[i].n;
    return k->cases[i].ids;
}

int kl_n_ctx(const struct kl *k, int i)
{
    return k->cases[i].n_ctx;
}

/* ---- scores ---- */

/* As the sampler takes it: what is no number has no probability; and none is below e^-9999. */
static double logit(float x)
{
    return isfinite(x) ? (double)x : x > 0 ? FLT_MAX : -INFINITY;
}

/* KL(reference || engine) over the listed tokens and, as one bucket, all others. */
void kl_score(struct kl *k, int i, int pos, const float *logits)
{
    const json_t *top = (size_t)pos < k->cases[i].n ? k->cases[i].top[pos] : NULL;
    if (top == NULL)
        return;
    int best = 0;
    for (int t = 1; t < k->n_vocab; t++)
        best = logit(logits[t]) > logit(logits[best]) ? t : best;
    double max = logit(logits[best]), sum = 0, kl = 0, p_rest = 1, q_rest = 1, p_best = -INFINITY;
    for (int t = 0; t < k->n_vocab; t++)
        sum += exp(logit(logits[t]) - max);
    json_int_t want = 0;
    for (size_t j = 0; j < json_array_size(top); j++) {
        const json_t *pair = json_array_get(top, j);
        json_int_t id = json_integer_value(json_array_get(pair, 0));
        double p = json_number_value(json_array_get(pair, 1)), q = fmax(logit(logits[id]) - max - log(sum), -9999);
        kl += exp(p) * (p - q);
        p_rest -= exp(p);
        q_rest -= exp(q);
        if (p > -4.6)
            k->diff_max = fmax(k->diff_max, fabs(p - q));
        if (p > p_best) {
            p_best = p;
            want = id;
        }
    }
    if (p_rest > 1e-6)    /* log-probabilities are printed with six digits */
        kl += p_rest * log(p_rest / fmax(q_rest, 1e-9));
    kl = fmax(kl, 0);
    k->sum += kl;
    if (kl > k->max) {
        k->max = kl;
        k->max_case = i;
        k->max_pos = pos;
    }
    k->n++;
    k->n_agree += best == want;
}

void kl_print(const struct kl *k)
{
    double n = k->n > 0 ? (double)k->n : 1;
    printf("{\"kl_mean\":%.3e,\"kl_max\":%.3e,\"kl_max_case\":%d,\"kl_max_pos\":%d,\"logprob_diff_max\":%.6f,\"top1\":%.5f,"
           "\"positions\":%ld,\"cases\":%d}\n",
           k->sum / n, k->max, k->max_case, k->max_pos, k->diff_max, (double)k->n_agree / n, k->n, k->n_cases);
}
