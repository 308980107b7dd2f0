/* The stages edit a list of candidates: first the whole vocabulary (id = index), then what a stage
 * left of it, in order of id. Nothing is ever sorted as a whole: top-k and top-p find the last
 * token that stays (its value and its place among equals) by a radix search over the values' bits,
 * in candidates that chunk maxima have thinned out before. */
#include "engine/sampler.h"
#include "base/mem.h"
#include "engine/weigh.h"

#include <stdlib.h>

enum { RADIX_BITS = 11, MIN_LOGPROB = -9999 };

struct sampler {
    const struct weigh_ops *ops;
    int n_vocab, max_chunks;
    /* candidates: n, padded to whole chunks with -infinity */
    int n;
    float *v;    /* values */
    float *e;    /* exponentials, once weighed */
    int32_t *id; /* unused while `whole` */
    bool whole, weighed;
    bool edited; /* v is not what was loaded: chunk_max must be found anew */
    float max;
    float *chunk_max;    /* (max_chunks), of the whole vocabulary */
    uint64_t *chunk_sum; /* (max_chunks), once weighed */
    /* scratch */
    uint32_t *key;   /* (n_vocab) */
    int32_t *live;   /* (n_vocab) */
    uint32_t *count; /* (n_vocab), zero between calls */
    uint64_t hist[1 << RADIX_BITS];
};

struct sampler *sampler_new(int n_vocab)
{
    struct sampler *s = mem_alloc(1, sizeof *s);
    if (s == NULL || n_vocab < 1)
        goto fail;
    s->ops = weigh_best();
    s->n_vocab = n_vocab;
    s->max_chunks = (int)(((size_t)n_vocab + WEIGH_CHUNK - 1) / WEIGH_CHUNK);
    size_t padded = (size_t)s->max_chunks * WEIGH_CHUNK;
    s->v = mem_alloc(padded, sizeof *s->v);
    s->e = mem_alloc(padded, sizeof *s->e);
    s->id = mem_alloc(padded, sizeof *s->id);
    s->key = mem_alloc(padded, sizeof *s->key);
    s->live = mem_alloc(padded, sizeof *s->live);
    s->count = mem_alloc(padded, sizeof *s->count);
    s->chunk_max = mem_alloc((size_t)s->max_chunks, sizeof *s->chunk_max);
    s->chunk_sum = mem_alloc((size_t)s->max_chunks, sizeof *s->chunk_sum);
    if (s->v == NULL || s->e == NULL || s->id == NULL || s->key == NULL || s->live == NULL ||
        s->count == NULL || s->chunk_max == NULL || s->chunk_sum == NULL)
        goto fail;
    return s;
fail:
    sampler_free(s);
    return NULL;
}

void sampler_free(struct sampler *s)
{
    if (s == NULL)
        return;
    free(s->v);
    free(s->e);
    free(s->id);
    free(s->key);
    free(s->live);
    free(s->count);
    free(s->chunk_max);
    free(s->chunk_sum);
    free(s);
}

/* ---- candidates ---- */

static int n_chunks(const struct sampler *s)
{
    return (s->n + WEIGH_CHUNK - 1) / WEIGH_CHUNK;
}

static int32_t id_at(const struct sampler *s, int i)
{
    return s->whole ? i : s->id[i];
}

static void load(struct sampler *s, const float *logits)
{
    s->n = s->n_vocab;
    s->whole = true;
    s->weighed = s->edited = false;
    s->ops->load(logits, s->n, s->v, s->chunk_max);
}

static void find_max(struct sampler *s)
{
    if (s->edited)
        s->ops->maxima(s->v, n_chunks(s), s->chunk_max);
    s->max = -INFINITY;
    for (int c = 0; c < n_chunks(s); c++)
        s->max = s->chunk_max[c] > s->max ? s->chunk_max[c] : s->max;
}

static uint64_t total_of(const struct sampler *s)
{
    uint64_t total = 0;
    for (int c = 0; c < n_chunks(s); c++)
        total += s->chunk_sum[c];
    return total;
}

/* Weighs the candidates. */
static uint64_t weigh(struct sampler *s, float temperature)
{
    s->ops->weigh(s->v, n_chunks(s), s->max, temperature, 0, s->e, s->chunk_sum);
    s->weighed = true;
    return total_of(s);
}

/* The sum of the candidates' weights, those below floor counting as 0; keeps no exponentials. */
static uint64_t sum_weights(struct sampler *s, float temperature, int64_t floor)
{
    if (s->weighed)
        s->ops->sum(s->e, n_chunks(s), floor, s->chunk_sum);
    else
        s->ops->weigh(s->v, n_chunks(s), s->max, temperature, floor, NULL, s->chunk_sum);
    return total_of(s);
}

static void copy_candidate(struct sampler *s, int from, int to)
{
    s->id[to] = id_at(s, from);
    s->v[to] = s->v[from];
    s->e[to] = s->e[from];
}

static void end_candidates(struct sampler *s, int n)
{
    s->n = n;
    s->whole = false;
    for (int i = n; i < n_chunks(s) * WEIGH_CHUNK; i++) {
        s->v[i] = -INFINITY;
        s->e[i] = 0;
    }
}

/* Of the whole vocabulary, keeps v >= low. */
static void keep_above(struct sampler *s, float low)
{
    int n = 0;
    for (int c = 0; c < s->max_chunks; c++) {
        if (s->chunk_max[c] < low)
            continue;
        int end = (c + 1) * WEIGH_CHUNK < s->n ? (c + 1) * WEIGH_CHUNK : s->n;
        for (int i = c * WEIGH_CHUNK; i < end; i++)
            if (s->v[i] >= low)
                copy_candidate(s, i, n++);
    }
    end_candidates(s, n);
}

/* ---- the last of a prefix in order of value ---- */

/* Unsigned integers in the order of floats. */
static uint32_t order_key(float v)
{
    uint32_t u = num_bits(v);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

struct cut {
    uint32_t key;
    int last; /* index of the last that stays among those with this key */
};

static uint64_t unit_weight(const float *e, int i)
{
    return e == NULL ? 1 : (uint64_t)weigh_fixed(e[i]);
}

/* The end of the shortest prefix of v[0..n), largest first and lower index first among equals,
 * whose weights (those of e, or 1 each when e is NULL) sum to at least need; 1 <= need <= the sum
 * of all. A radix search from the top: each round spreads the keys in [lo, hi] over the buckets and
 * goes on in the one where the sum is reached. */
static struct cut find_cut(struct sampler *s, const float *v, const float *e, int n, uint64_t need)
{
    uint32_t lo = UINT32_MAX, hi = 0;
    for (int i = 0; i < n; i++) {
        uint32_t k = s->key[i] = order_key(v[i]);
        lo = k < lo ? k : lo;
        hi = k > hi ? k : hi;
        s->live[i] = i;
    }
    int n_live = n;
    while (lo != hi) {
        int bits = 32 - __builtin_clz(hi - lo), shift = bits > RADIX_BITS ? bits - RADIX_BITS : 0;
        memset(s->hist, 0, sizeof s->hist);
        for (int j = 0; j < n_live; j++) {
            int i = s->live[j];
            s->hist[(hi - s->key[i]) >> shift] += unit_weight(e, i);
        }
        uint32_t b = 0;
        for (; s->hist[b] < need; b++)
            need -= s->hist[b];
        hi -= b << shift;
        uint32_t width = (1u << shift) - 1;
        lo = hi - lo > width ? hi - width : lo;
        int kept = 0;
        for (int j = 0; j < n_live; j++)
            if (s->key[s->live[j]] >= lo && s->key[s->live[j]] <= hi)
                s->live[kept++] = s->live[j];
        n_live = kept;
    }
    struct cut cut = {hi, s->live[0]};
    for (int j = 0; j < n_live; j++) {
        uint64_t w = unit_weight(e, s->live[j]);
        cut.last = s->live[j];
        if (w >= need)
            break;
        need -= w;
    }
    return cut;
}

static void keep_prefix(struct sampler *s, struct cut cut)
{
    int n = 0;
    for (int i = 0; i < s->n; i++) {
        uint32_t k = order_key(s->v[i]);
        if (k > cut.key || (k == cut.key && i <= cut.last))
            copy_candidate(s, i, n++);
    }
    end_candidates(s, n);
}

static void keep_top(struct sampler *s, int k)
{
    if (k < s->max_chunks) { /* the k-th largest chunk maximum bounds the k-th largest value from
                                below */
        struct cut c = find_cut(s, s->chunk_max, NULL, s->max_chunks, (uint64_t)k);
        keep_above(s, s->chunk_max[c.last]);
    }
    if (k < s->n)
        keep_prefix(s, find_cut(s, s->v, NULL, s->n, (uint64_t)k));
}

static uint64_t weight_above(const struct sampler *s, float low)
{
    uint64_t sum = 0;
    for (int c = 0; c < s->max_chunks; c++) {
        if (s->chunk_max[c] < low)
            continue;
        for (int i = c * WEIGH_CHUNK; i < (c + 1) * WEIGH_CHUNK; i++)
            sum += s->v[i] >= low ? (uint64_t)weigh_fixed(s->e[i]) : 0;
    }
    return sum;
}

/* ---- stages before the temperature: they edit v of the whole vocabulary ---- */

static bool in_vocab(const struct sampler *s, int32_t token)
{
    return token >= 0 && token < s->n_vocab;
}

static bool has_penalties(const struct sample_params *p)
{
    return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

/* The history's tokens into live, each once; count: bit 0 = seen, the rest = times in the output.
 */
static int count_history(struct sampler *s, const struct sample_in *in)
{
    int n_seen = 0;
    for (int i = 0; i < in->n_history; i++) {
        int32_t t = in->history[i];
        if (!in_vocab(s, t))
            continue;
        if (s->count[t] == 0)
            s->live[n_seen++] = t;
        s->count[t] = (s->count[t] | 1) + (i >= in->n_prompt ? 2 : 0);
    }
    return n_seen;
}

static float output_penalty(const struct sample_params *p, uint32_t count)
{
    uint32_t times = count >> 1;
    return times > 0 ? (float)times * p->frequency_penalty + p->presence_penalty : 0;
}

static void apply_penalties(struct sampler *s, const struct sample_in *in)
{
    const struct sample_params *p = in->params;
    if (!has_penalties(p))
        return;
    s->edited = true;
    int n_seen = count_history(s, in);
    for (int j = 0; j < n_seen; j++) {
        int32_t t = s->live[j];
        float v = s->v[t];
        v = v > 0 ? v / p->repetition_penalty : v * p->repetition_penalty;
        s->v[t] = weigh_clean(v - output_penalty(p, s->count[t]));
        s->count[t] = 0;
    }
}

static void apply_bias(struct sampler *s, const struct sample_in *in)
{
    s->edited |= in->params->n_bias > 0;
    for (int i = 0; i < in->params->n_bias; i++) {
        const struct logit_bias *b = &in->params->bias[i];
        if (in_vocab(s, b->token))
            s->v[b->token] = weigh_clean(s->v[b->token] + b->bias);
    }
}

static void apply_mask(struct sampler *s, const struct sample_in *in)
{
    s->edited |= in->n_banned > 0 || in->mask != NULL;
    for (int i = 0; i < in->n_banned; i++)
        if (in_vocab(s, in->banned[i]))
            s->v[in->banned[i]] = -INFINITY;
    if (in->mask == NULL)
        return;
    for (int w = 0; w < (s->n_vocab + 31) / 32; w++) { /* v is padded to whole words */
        float *v = s->v + (size_t)w * 32;
        uint32_t bits = in->mask[w];
        if (bits == 0)
            for (int j = 0; j < 32; j++)
                v[j] = -INFINITY;
        else if (bits != UINT32_MAX)
            for (int j = 0; j < 32; j++)
                v[j] = (bits >> j & 1) != 0 ? v[j] : -INFINITY;
    }
}

/* ---- stages after it: they thin the candidates out ---- */

static void apply_top_k(struct sampler *s, const struct sample_params *p)
{
    if (p->top_k > 0 && p->top_k < s->n)
        keep_top(s, p->top_k);
}

static uint64_t top_p_share(const struct sample_params *p)
{
    return p->top_p >= 1 ? DRAW_WHOLE : (uint64_t)((double)p->top_p * 0x1p32);
}

static void apply_top_p(struct sampler *s, const struct sample_params *p)
{
    if (p->top_p >= 1)
        return;
    uint64_t total = weigh(s, p->temperature), share = top_p_share(p);
    uint64_t need = (uint64_t)(((unsigned __int128)total * share + UINT32_MAX) >> 32);
    need = need < 1 ? 1 : need;
    float low = s->max; /* whole vocabulary: widen the range of values until it holds the prefix */
    for (float width = 4; s->whole && width <= 32; width *= 2) {
        low = s->max - width * p->temperature;
        if (weight_above(s, low) >= need)
            keep_above(s, low);
    }
    keep_prefix(s, find_cut(s, s->v, s->e, s->n, need));
}

static int64_t min_p_floor(const struct sample_params *p)
{
    double floor = (double)p->min_p * 0x1p40; /* exact */
    int64_t whole = (int64_t)floor;
    return (double)whole < floor ? whole + 1 : whole;
}

static void philox_round(uint32_t c[4], const uint32_t k[2])
{
    uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    uint32_t c1 = c[1], c3 = c[3];
    c[0] = (uint32_t)(b >> 32) ^ c1 ^ k[0];
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c3 ^ k[1];
    c[3] = (uint32_t)a;
}

/* Philox4x32-10 (Salmon et al., 2011): any position of any seed's sequence in the same few steps.
 */
static uint64_t random_bits(uint64_t seed, uint64_t position)
{
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        philox_round(c, k);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    return (uint64_t)c[0] << 32 | c[1];
}

static int32_t draw(struct sampler *s, const struct sample_in *in, int64_t floor)
{
    uint64_t total = sum_weights(s, in->params->temperature, floor);
    uint64_t u = random_bits(in->params->seed, in->position);
    uint64_t r = (uint64_t)((unsigned __int128)total * u >> 64);
    int c = 0;
    for (; r >= s->chunk_sum[c]; c++)
        r -= s->chunk_sum[c];
    size_t at = (size_t)c * WEIGH_CHUNK;
    if (!s->weighed)
        s->ops->weigh(s->v + at, 1, s->max, in->params->temperature, floor, s->e + at,
                      &s->chunk_sum[c]);
    for (int i = (int)at;; i++) {
        int64_t w = weigh_fixed(s->e[i]);
        if (w < floor)
            continue;
        if (r < (uint64_t)w)
            return id_at(s, i);
        r -= (uint64_t)w;
    }
}

static int32_t lowest_max(const struct sampler *s)
{
    int c = 0;
    while (s->chunk_max[c] != s->max)
        c++;
    int i = c * WEIGH_CHUNK;
    while (s->v[i] != s->max)
        i++;
    return i;
}

int32_t sampler_draw(struct sampler *s, const struct sample_in *in)
{
    const struct sample_params *p = in->params;
    load(s, in->logits);
    apply_penalties(s, in);
    apply_bias(s, in);
    apply_mask(s, in);
    find_max(s);
    if (s->max == -INFINITY)
        return -1;
    if (p->temperature <= 0)
        return lowest_max(s);
    apply_top_k(s, p);
    apply_top_p(s, p);
    return draw(s, in, min_p_floor(p));
}

/* ---- the draw of a device ---- */

bool sampler_defer(struct sampler *s, const struct sample_in *in, struct draw *d,
                   struct draw_edit *edits)
{
    const struct sample_params *p = in->params;
    *d = (struct draw){
        .temperature = p->temperature,
        .repetition = p->repetition_penalty,
        .top_k = p->top_k,
        .share = top_p_share(p),
        .floor = min_p_floor(p),
        .random = random_bits(p->seed, in->position),
        .edits = edits,
    };
    if (in->mask != NULL || p->n_bias + in->n_banned > DRAW_MAX_EDITS)
        return false;
    int n_seen = has_penalties(p) ? count_history(s, in) : 0, n = 0;
    bool fits = n_seen + p->n_bias + in->n_banned <= DRAW_MAX_EDITS;
    for (int j = 0; j < n_seen; j++) {
        int32_t t = s->live[j];
        if (fits)
            edits[n++] = (struct draw_edit){t, output_penalty(p, s->count[t])};
        s->count[t] = 0;
    }
    d->n_seen = n;
    for (int i = 0; fits && i < p->n_bias; i++)
        if (in_vocab(s, p->bias[i].token))
            edits[n++] = (struct draw_edit){p->bias[i].token, p->bias[i].bias};
    d->n_bias = n - d->n_seen;
    for (int i = 0; fits && i < in->n_banned; i++)
        if (in_vocab(s, in->banned[i]))
            edits[n++] = (struct draw_edit){in->banned[i], 0};
    d->n_ban = n - d->n_seen - d->n_bias;
    d->here = fits;
    return fits;
}

/* ---- log-probabilities ---- */

/* Loads the raw distribution; returns log(sum of e^(v - max)). */
static double log_sum(struct sampler *s, const float *logits)
{
    load(s, logits);
    find_max(s);
    if (s->max == -INFINITY)
        return 0;
    return num_log((double)sum_weights(s, 1, 0) * 0x1p-40);
}

static float logprob_of(const struct sampler *s, float v, double log_total)
{
    double lp = v == -INFINITY ? MIN_LOGPROB : ((double)v - (double)s->max) - log_total;
    return (float)(lp > MIN_LOGPROB ? lp : MIN_LOGPROB);
}

float sampler_logprob(struct sampler *s, const float *logits, int32_t token)
{
    double log_total = log_sum(s, logits);
    return logprob_of(s, in_vocab(s, token) ? s->v[token] : -INFINITY, log_total);
}

static int by_value(const void *a, const void *b)
{
    const struct token_logprob *x = a, *y = b;
    if (x->logprob != y->logprob)
        return x->logprob > y->logprob ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

int sampler_top_logprobs(struct sampler *s, const float *logits, int k, struct token_logprob *out)
{
    double log_total = log_sum(s, logits);
    k = k < s->n ? k : s->n;
    if (k < 1)
        return 0;
    keep_top(s, k);
    for (int i = 0; i < s->n; i++)
        out[i] = (struct token_logprob){id_at(s, i), s->v[i]};
    qsort(out, (size_t)s->n, sizeof *out,
          by_value); /* by logit: different ones may have equal log-probabilities */
    for (int i = 0; i < s->n; i++)
        out[i].logprob = logprob_of(s, out[i].logprob, log_total);
    return s->n;
}
