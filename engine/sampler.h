/* The sampler: from logits to one token, in a fixed order of stages: penalties, logit bias, grammar mask, temperature,
 * top-k, top-p, min-p, draw. A pure function of (logits, history, params, position), the same on every machine.
 *
 * Exactly: v = logits after penalties, bias and mask (NaN counts as -infinity, +infinity as the largest float), max = the
 * largest v. Temperature 0 takes it. Else a token weighs w = floor(num_exp((v - max) / temperature) * 2^40), an integer;
 * tokens are ordered by v, largest first, then by lower id, and
 *   top-k  keeps the first k of that order;
 *   top-p  keeps the shortest prefix of what is left whose weights sum to at least
 *          ceil(total * floor(top_p * 2^32) / 2^32), one token at least;
 *   min-p  keeps w >= ceil(min_p * 2^40), min_p of the largest weight;
 *   draw   walks what is left in order of id and takes the token in whose weight r = floor(total * u / 2^64) falls, where
 *          u is the first 64 bits (first word high) of Philox4x32-10 with key = seed and counter = (position, 0), both
 *          low word first.
 * Sums of integers are associative, so any split over lanes, threads or a device draws the same token. */
#ifndef ENGINE_SAMPLER_H
#define ENGINE_SAMPLER_H

#include "kernels/kern.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct logit_bias {
    int32_t token;
    float bias;
};

/* Neutral values switch a stage off. Ranges are checked by the caller (api/request.c's table). */
struct sample_params {
    float temperature;            /* 0 = greedy (after penalties, bias and mask; the lower id wins a tie) */
    float top_p;                  /* 1 = off */
    int top_k;                    /* 0 = off */
    float min_p;                  /* 0 = off */
    float repetition_penalty;     /* 1 = off; over prompt and output: divides what is positive, multiplies the rest */
    float frequency_penalty, presence_penalty;   /* 0 = off; over output: subtracts frequency * count + presence */
    const struct logit_bias *bias;
    int n_bias;
    uint64_t seed;
};
#define SAMPLE_DEFAULTS {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f}

struct sampler;    /* scratch for one vocabulary; used by one thread */
struct sampler *sampler_new(int n_vocab);    /* NULL = no memory */
void sampler_free(struct sampler *s);

struct sample_in {
    const float *logits;              /* (n_vocab); not modified */
    const struct sample_params *params;
    const int32_t *history;           /* prompt then output */
    int n_prompt, n_history;
    uint64_t position;                /* index of the token to draw in the whole sequence: n_history */
    const uint32_t *mask;             /* bit per token, 1 = allowed; NULL = all. (n_vocab + 31) / 32 words */
    const int32_t *banned;            /* further ids that may not be drawn (end tokens under min_tokens) */
    int n_banned;
};

/* An id of the vocabulary; -1 when no logit is left: none is a number, or all that are one are masked or banned. Ids outside
 * the vocabulary in history, bias and banned are ignored. */
int32_t sampler_draw(struct sampler *s, const struct sample_in *in);

/* The same draw for a device that draws itself; in->logits is not read. edits has room for DRAW_MAX_EDITS and must outlive d.
 * False (and d->here): it must be drawn here, because of a mask or too many edits. */
bool sampler_defer(struct sampler *s, const struct sample_in *in, struct draw *d, struct draw_edit *edits);

/* Log-probabilities of the raw model distribution (before any stage): of `token`, and the k best with their ids, best
 * first, the lower id first among equals. Never below -9999 (JSON knows no infinity). */
struct token_logprob {
    int32_t token;
    float logprob;
};
float sampler_logprob(struct sampler *s, const float *logits, int32_t token);
int sampler_top_logprobs(struct sampler *s, const float *logits, int k, struct token_logprob *out);

#endif
