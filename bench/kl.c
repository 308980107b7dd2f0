#include "bench/kl.h"

#include "base/mem.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

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

static bool take_ids(struct kl_case *c, const json_t *array, int n_vocab, struct err *err)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *v = json_array_get(array, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= n_vocab)
            return err_set(err, ERR_USAGE, "id %zu: expected a number from 0 to %d", i, n_vocab - 1);
        int32_t *grown = mem_grow(c->ids, c->n + 1, sizeof *grown);
        if (grown == NULL)
            return err_set(err, ERR_OOM, "no memory for %zu ids", c->n);
        c->ids = grown;
        c->ids[c->n++] = (int32_t)id;
    }
    return true;
}

static bool check_top(const json_t *top, int n_vocab, struct err *err)
{
    for (size_t i = 0; i < json_array_size(top); i++) {
        const json_t *pair = json_array_get(top, i), *id = json_array_get(pair, 0);
        if (!json_is_integer(id) || !json_is_number(json_array_get(pair, 1)))
            return err_set(err, ERR_USAGE, "top %zu: expected [id, log-probability]", i);
        if (json_integer_value(id) < 0 || json_integer_value(id) >= n_vocab)
            return err_set(err, ERR_USAGE, "top %zu: expected an id from 0 to %d", i, n_vocab - 1);
    }
    return json_array_size(top) > 0 || err_set(err, ERR_USAGE, "\"top\": expected a list of [id, log-probability]");
}

static bool read_case(struct kl_case *c, const json_t *json, const int32_t *ids, size_t n_ids, int n_vocab, struct err *err)
{
    const json_t *own = json_object_get(json, "ids"), *greedy = json_object_get(json, "greedy");
    const json_t *positions = json_object_get(json, "positions");
    greedy = json_is_object(greedy) ? json_object_get(greedy, "ids") : greedy;
    json_int_t n_ctx = json_integer_value(json_object_get(json, "n_ctx"));
    if (n_ctx < 0 || n_ctx > 1 << 24)
        return err_set(err, ERR_USAGE, "\"n_ctx\": expected a number up to %d", 1 << 24);
    c->n_ctx = (int)n_ctx;
    if (own == NULL && n_ids == 0)
        return err_set(err, ERR_USAGE, "no \"ids\": give them with --ids");
    for (size_t i = 0; own == NULL && i < n_ids; i++) {
        json_t *one = json_pack("[i]", (int)ids[i]);
        bool ok = take_ids(c, one, n_vocab, err);
        json_decref(one);
        if (!ok)
            return false;
    }
    if (!take_ids(c, own, n_vocab, err) || !take_ids(c, greedy, n_vocab, err))
        return false;
    if (c->n == 0 || c->n > 1 << 24)
        return err_set(err, ERR_USAGE, "%zu ids, allowed 1 to %d", c->n, 1 << 24);
    c->top = mem_alloc(c->n, sizeof *c->top);
    if (c->top == NULL)
        return err_set(err, ERR_OOM, "no memory for %zu positions", c->n);
    for (size_t i = 0; i < json_array_size(positions); i++) {
        const json_t *p = json_array_get(positions, i), *pos = json_object_get(p, "pos"), *top = json_object_get(p, "top");
        if (!json_is_integer(pos) || json_integer_value(pos) < 0 || json_integer_value(pos) >= (json_int_t)c->n)
            return err_set(err, ERR_USAGE, "position %zu: expected \"pos\" from 0 to %zu", i, c->n - 1);
        if (!check_top(top, n_vocab, err))
            return err_prefix(err, "position %zu", i);
        c->top[json_integer_value(pos)] = top;
    }
    return json_array_size(positions) > 0 || err_set(err, ERR_USAGE, "no \"positions\"");
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
    k->json = json_load_file(path, 0, &error);
    if (k->json == NULL) {
        err_set(err, ERR_USAGE, "%s: line %d: %s", path, error.line, error.text);
        goto fail;
    }
    const json_t *cases = json_object_get(k->json, "cases");
    size_t n = json_array_size(cases);
    if (n == 0) {
        err_set(err, ERR_USAGE, "%s: expected {\"cases\":[...]} with a case or more", path);
        goto fail;
    }
    k->cases = mem_alloc(n, sizeof *k->cases);
    if (k->cases == NULL) {
        err_set(err, ERR_OOM, "no memory for %zu cases", n);
        goto fail;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(cases, i);
        if (json_is_false(json_object_get(json, "window_applied")))
            continue;    /* values without the model's sliding window: another model */
        if (!read_case(&k->cases[k->n_cases++], json, ids, n_ids, n_vocab, err)) {
            err_prefix(err, "%s: case %zu", path, i);
            goto fail;
        }
    }
    return k;
fail:
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

/* KL(reference || engine) over the listed tokens and, as one bucket, all others. */
void kl_score(struct kl *k, int i, int pos, const float *logits)
{
    const json_t *top = (size_t)pos < k->cases[i].n ? k->cases[i].top[pos] : NULL;
    if (top == NULL)
        return;
    int best = 0;
    for (int t = 1; t < k->n_vocab; t++)
        best = logits[t] > logits[best] ? t : best;
    double max = (double)logits[best], sum = 0, kl = 0, p_rest = 1, q_rest = 1, p_best = -INFINITY;
    for (int t = 0; t < k->n_vocab; t++)
        sum += exp((double)logits[t] - max);
    json_int_t want = 0;
    for (size_t j = 0; j < json_array_size(top); j++) {
        const json_t *pair = json_array_get(top, j);
        json_int_t id = json_integer_value(json_array_get(pair, 0));
        double p = json_number_value(json_array_get(pair, 1)), q = (double)logits[id] - max - log(sum);
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
    kl = isnan(kl) ? INFINITY : fmax(kl, 0);
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
