#include "tests/random_draw.h"

#include <math.h>

uint64_t lcg(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

float uniform(uint64_t *state)
{
    return (float)lcg(state) / 2147483648.0f;
}

static void random_params(struct sample_params *p, int n, uint64_t *rng)
{
    static const float temperatures[] = {0, 0.01f, 0.3f, 0.7f, 1, 1, 1.7f, 2};
    static const float top_ps[] = {1, 1, 0.9f, 0.95f, 0.5f, 0.001f, 0.99999f, 1e-12f};
    static const float min_ps[] = {0, 0, 0.05f, 0.5f, 1, 1e-9f, 0.1f, 0};
    int top_ks[] = {0, 0, 1, 2, 40, n / 2, n - 1, n};
    p->temperature = temperatures[lcg(rng) % 8];
    p->top_p = top_ps[lcg(rng) % 8];
    p->min_p = min_ps[lcg(rng) % 8];
    p->top_k = top_ks[lcg(rng) % 8];
    p->repetition_penalty = lcg(rng) % 2 ? 1 : 0.5f + uniform(rng);
    p->frequency_penalty = lcg(rng) % 2 ? 0 : uniform(rng) * 4 - 2;
    p->presence_penalty = lcg(rng) % 2 ? 0 : uniform(rng) * 4 - 2;
    p->seed = lcg(rng) << 40 ^ lcg(rng);
}

void random_draw_make(struct random_draw *c, int n, int shape, uint64_t *rng)
{
    for (int i = 0; i < n; i++) {
        float x = (uniform(rng) + uniform(rng) + uniform(rng) - 1.5f) * (shape == 1 ? 0.1f : 12);
        c->logits[i] = shape == 2 ? rintf(x / 4) : x;
        if (shape == 3 && lcg(rng) % 16 == 0)
            c->logits[i] =
                (const float[]){NAN, -INFINITY, -0.0f, lcg(rng) % 64 ? 0 : INFINITY}[lcg(rng) % 4];
    }
    for (int i = 0; i < N_HISTORY; i++)
        c->history[i] = (int32_t)(lcg(rng) % (uint64_t)n);
    for (int i = 0; i < 3; i++)
        c->banned[i] = (int32_t)(lcg(rng) % (uint64_t)n);
    for (int i = 0; i < 4; i++)
        c->bias[i] = (struct logit_bias){(int32_t)lcg(rng) % n, uniform(rng) * 20 - 10};
    int density = (int)(lcg(rng) % 3); /* of words with all, some, no bits */
    for (int i = 0; i < (n + 31) / 32; i++)
        c->mask[i] = lcg(rng) % 3 < (uint64_t)density ? UINT32_MAX
                     : lcg(rng) % 2                   ? 0
                                                      : (uint32_t)lcg(rng);
    random_params(&c->params, n, rng);
    c->params.bias = c->bias;
    c->params.n_bias = lcg(rng) % 2 ? 4 : 0;
    int n_history = (int)(lcg(rng) % (N_HISTORY + 1));
    c->in = (struct sample_in){
        .logits = c->logits,
        .params = &c->params,
        .history = c->history,
        .n_prompt = n_history / 2,
        .n_history = n_history,
        .position = lcg(rng),
        .mask = lcg(rng) % 4 ? NULL : c->mask,
        .banned = c->banned,
        .n_banned = (int)(lcg(rng) % 4),
    };
}
