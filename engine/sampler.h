/* The sampler: from logits to one token, in a fixed order of stages: penalties, logit bias, grammar mask, temperature,
 * top-k, top-p, min-p, draw. A pure function of (logits, history, params, position): probabilities are 64-bit fixed point
 * (integer sums are associative), order is by value and then lower id, and the generator is counter-based, keyed by
 * (seed, position), so that a token depends on nothing but its request. */
#ifndef ENGINE_SAMPLER_H
#define ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct logit_bias {
    int32_t token;
    float bias;
};

/* Neutral values switch a stage off. Ranges are checked by the caller (api/request.c's table). */
struct sample_params {
    float temperature;            /* 0 = greedy (after penalties, bias and mask) */
    float top_p;                  /* 1 = off */
    int top_k;                    /* 0 = off */
    float min_p;                  /* 0 = off */
    float repetition_penalty;     /* 1 = off; over prompt and output */
    float frequency_penalty, presence_penalty;   /* 0 = off; over output */
    const struct logit_bias *bias;
    int n_bias;
    uint64_t seed;
};
#define SAMPLE_DEFAULTS {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f}

struct sampler;    /* scratch for one vocabulary; used by one thread */
struct sampler *sampler_new(int n_vocab);
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

int32_t sampler_draw(struct sampler *s, const struct sample_in *in);

/* Log-probabilities of the raw model distribution (before any stage): of `token`, and the k best with their ids. */
struct token_logprob {
    int32_t token;
    float logprob;
};
float sampler_logprob(struct sampler *s, const float *logits, int32_t token);
int sampler_top_logprobs(struct sampler *s, const float *logits, int k, struct token_logprob *out);

#endif
