/* The sampler against a literal copy of its definition (engine/sampler.h): everything sorted,
 * scalar, no shortcuts. The copy is compiled for the baseline CPU, so equal draws also say that the
 * vector passes give the scalar bytes. */
#include "engine/sampler.h"
#include "kernels/numerics.h"
#include "tests/random_draw.h"

#include <check.h>
#include <float.h>
#include <stdlib.h>

/* ---- the definition ---- */

static uint64_t philox(uint64_t seed, uint64_t position)
{
    uint32_t x[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0}, k0 = (uint32_t)seed,
             k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        uint64_t a = (uint64_t)0xD2511F53u * x[0], b = (uint64_t)0xCD9E8D57u * x[2];
        uint32_t y[4] = {(uint32_t)(b >> 32) ^ x[1] ^ k0, (uint32_t)b,
                         (uint32_t)(a >> 32) ^ x[3] ^ k1, (uint32_t)a};
        memcpy(x, y, sizeof x);
    }
    return (uint64_t)x[0] << 32 | x[1];
}

struct item {
    int32_t id;
    float v;
    uint64_t w;
};

static int by_order(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->v != y->v)
        return x->v > y->v ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b)
{
    return ((const struct item *)a)->id - ((const struct item *)b)->id;
}

static float cleaned(float v)
{
    return v != v ? -INFINITY : v > FLT_MAX ? FLT_MAX : v;
}

static void edit(struct item *t, int n, const struct sample_in *in)
{
    const struct sample_params *p = in->params;
    for (int i = 0; i < n; i++) {
        int total = 0, output = 0;
        for (int j = 0; j < in->n_history; j++) {
            total += in->history[j] == i;
            output += in->history[j] == i && j >= in->n_prompt;
        }
        float v = t[i].v;
        if (total > 0)
            v = v > 0 ? v / p->repetition_penalty : v * p->repetition_penalty;
        if (output > 0)
            v -= (float)output * p->frequency_penalty + p->presence_penalty;
        t[i].v = cleaned(v);
        for (int j = 0; j < p->n_bias; j++)
            if (p->bias[j].token == i)
                t[i].v += p->bias[j].bias;
        for (int j = 0; j < in->n_banned; j++)
            if (in->banned[j] == i)
                t[i].v = -INFINITY;
        if (in->mask != NULL && (in->mask[i / 32] >> i % 32 & 1) == 0)
            t[i].v = -INFINITY;
    }
}

static int32_t defined_draw(const struct sample_in *in, int n)
{
    const struct sample_params *p = in->params;
    struct item *t = malloc((size_t)n * sizeof *t);
    for (int i = 0; i < n; i++)
        t[i] = (struct item){i, cleaned(in->logits[i]), 0};
    edit(t, n, in);
    qsort(t, (size_t)n, sizeof *t, by_order);
    float max = t[0].v;
    int32_t token = max > -INFINITY ? t[0].id : -1;
    if (p->temperature == 0 || max == -INFINITY)
        goto done;
    for (int i = 0; i < n; i++)
        t[i].w = (uint64_t)(num_exp((t[i].v - max) / p->temperature) * 1099511627776.0f);
    if (p->top_k > 0 && p->top_k < n)
        n = p->top_k;
    uint64_t total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        total += t[i].w;
    if (p->top_p < 1) {
        unsigned __int128 share = (uint64_t)((double)p->top_p * 4294967296.0);
        uint64_t need = (uint64_t)((total * share + 4294967295u) / 4294967296u);
        int kept = 0;
        do
            sum += t[kept++].w;
        while (sum < need);
        n = kept;
    }
    qsort(t, (size_t)n, sizeof *t, by_id);
    total = 0;
    for (int i = 0; i < n; i++) {
        if ((double)t[i].w < (double)p->min_p * 1099511627776.0)
            t[i].w = 0;
        total += t[i].w;
    }
    uint64_t r = (uint64_t)((unsigned __int128)total * philox(p->seed, in->position) >> 64);
    int at = 0;
    for (; r >= t[at].w; at++)
        r -= t[at].w;
    token = t[at].id;
done:
    free(t);
    return token;
}

START_TEST(test_equals_its_definition)
{
    static const int sizes[] = {1, 2, 31, 63, 64, 65, 128, 700, 4097, N_MAX};
    struct random_draw *c = malloc(sizeof *c);
    uint64_t rng = 42;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        struct sampler *s = sampler_new(sizes[k]);
        for (int i = 0; i < 400; i++) {
            random_draw_make(c, sizes[k], i % 4, &rng);
            int32_t want = defined_draw(&c->in, sizes[k]), got = sampler_draw(s, &c->in);
            ck_assert_msg(got == want, "vocabulary %d case %d: token %d, expected %d", sizes[k], i,
                          got, want);
        }
        sampler_free(s);
    }
    free(c);
}
END_TEST

/* ---- single properties ---- */

static int32_t draw_with(struct sampler *s, const float *logits, const struct sample_params *p,
                         uint64_t position)
{
    return sampler_draw(s,
                        &(struct sample_in){.logits = logits, .params = p, .position = position});
}

START_TEST(test_generator_is_philox)
{
    /* Published answers of philox4x32-10: key 0, counter 0 gives 6627e8d5...; equal logits show the
     * highest bits. */
    static float logits[65536];
    struct sampler *s = sampler_new(65536);
    struct sample_params p = SAMPLE_DEFAULTS;
    ck_assert_int_eq(draw_with(s, logits, &p, 0), 0x6627);
    p.seed = UINT64_MAX;
    uint64_t word = philox(UINT64_MAX, UINT64_MAX);
    ck_assert_int_eq(draw_with(s, logits, &p, UINT64_MAX), (int)(word >> 48));
    sampler_free(s);
}
END_TEST

START_TEST(test_neutral_values_are_identities)
{
    enum { N = 1000 };
    struct random_draw *c = malloc(sizeof *c);
    struct sampler *s = sampler_new(N);
    uint64_t rng = 7;
    uint32_t all[(N + 31) / 32];
    memset(all, 0xFF, sizeof all);
    for (int i = 0; i < 200; i++) {
        random_draw_make(c, N, 0, &rng);
        struct sample_params plain = SAMPLE_DEFAULTS, neutral = SAMPLE_DEFAULTS;
        plain.seed = neutral.seed = c->params.seed;
        neutral.top_k = N;
        struct logit_bias zero = {3, 0};
        neutral.bias = &zero;
        neutral.n_bias = 1;
        struct sample_in with = c->in;
        with.params = &neutral;
        with.mask = all;
        with.n_banned = 0;
        ck_assert_int_eq(sampler_draw(s, &with), draw_with(s, c->logits, &plain, c->in.position));
    }
    sampler_free(s);
    free(c);
}
END_TEST

START_TEST(test_temperature_zero_takes_the_lowest_of_the_best)
{
    float logits[200] = {0};
    logits[77] = logits[99] = logits[150] = 3;
    struct sampler *s = sampler_new(200);
    struct sample_params p = SAMPLE_DEFAULTS;
    p.temperature = 0;
    ck_assert_int_eq(draw_with(s, logits, &p, 0), 77);
    struct logit_bias bias = {150, 0.5f};
    p.bias = &bias;
    p.n_bias = 1;
    ck_assert_int_eq(draw_with(s, logits, &p, 0), 150);
    int32_t banned[] = {150, 77, -1, 200};
    struct sample_in in = {.logits = logits, .params = &p, .banned = banned, .n_banned = 4};
    ck_assert_int_eq(sampler_draw(s, &in), 99);
    sampler_free(s);
}
END_TEST

START_TEST(test_equal_values_are_cut_by_lower_id)
{
    float logits[300] = {0};
    struct sampler *s = sampler_new(300);
    struct sample_params k = SAMPLE_DEFAULTS, p = SAMPLE_DEFAULTS;
    k.top_k = 3;
    p.top_p = 0.00999f; /* 2.997 of 300 equal weights: three tokens */
    for (uint64_t i = 0; i < 200; i++) {
        ck_assert_int_lt(draw_with(s, logits, &k, i), 3);
        ck_assert_int_lt(draw_with(s, logits, &p, i), 3);
    }
    logits[5] = -0.0f; /* equals 0 */
    logits[250] = 1;
    for (uint64_t i = 0; i < 200; i++) {
        int32_t t = draw_with(s, logits, &k, i);
        ck_assert(t == 0 || t == 1 || t == 250);
    }
    sampler_free(s);
}
END_TEST

START_TEST(test_frequencies_follow_the_weights)
{
    float logits[3] = {0, 1.0986123f, -INFINITY}; /* weights 1 : 3 : 0 */
    struct sampler *s = sampler_new(3);
    struct sample_params p = SAMPLE_DEFAULTS;
    int count[3] = {0};
    for (uint64_t i = 0; i < 40000; i++) {
        p.seed = i / 200;
        count[draw_with(s, logits, &p, i % 200)]++;
    }
    ck_assert_int_eq(count[2], 0);
    ck_assert_int_gt(count[1], 29600); /* 30000 +- 4.6 sigma */
    ck_assert_int_lt(count[1], 30400);
    sampler_free(s);
}
END_TEST

START_TEST(test_nothing_to_choose_from)
{
    float logits[70];
    uint32_t mask[3] = {0, 0xFFFFFFF0u, 0x3F};
    int32_t banned[] = {36, 37};
    struct sampler *s = sampler_new(70);
    for (int fill = 0; fill < 2; fill++) {
        for (int i = 0; i < 70; i++)
            logits[i] = fill ? NAN : -INFINITY;
        struct sample_params p = SAMPLE_DEFAULTS;
        for (int greedy = 0; greedy < 2; greedy++) {
            p.temperature = (float)greedy;
            ck_assert_int_eq(draw_with(s, logits, &p, 0), -1);
            struct sample_in in = {
                .logits = logits, .params = &p, .mask = mask, .banned = banned, .n_banned = 2};
            ck_assert_int_eq(sampler_draw(s, &in), -1);
            logits[39] = -1e30f; /* one number is enough */
            ck_assert_int_eq(sampler_draw(s, &in), 39);
            logits[39] = logits[40];
        }
    }
    for (int i = 0; i < 70; i++)
        logits[i] = 1;
    memset(mask, 0, sizeof mask);
    struct sample_params p = SAMPLE_DEFAULTS;
    struct sample_in none = {.logits = logits, .params = &p, .mask = mask};
    ck_assert_int_eq(sampler_draw(s, &none), -1);
    logits[20] = NAN;
    p.temperature = 0;
    ck_assert_int_eq(draw_with(s, logits, &p, 0), 0);
    sampler_free(s);
}
END_TEST

START_TEST(test_extreme_temperatures)
{
    float logits[100];
    for (int i = 0; i < 100; i++)
        logits[i] = (float)(i % 10);
    struct sampler *s = sampler_new(100);
    struct sample_params p = SAMPLE_DEFAULTS;
    p.temperature = 1e-38f;
    for (uint64_t i = 0; i < 50; i++)
        ck_assert_int_eq(draw_with(s, logits, &p, i) % 10, 9);
    logits[3] = INFINITY;
    logits[4] = -FLT_MAX;
    for (uint64_t i = 0; i < 50; i++)
        ck_assert_int_eq(draw_with(s, logits, &p, i), 3);
    sampler_free(s);
}
END_TEST

/* ---- log-probabilities ---- */

START_TEST(test_logprobs)
{
    enum { N = 1000, K = 20 };
    struct random_draw *c = malloc(sizeof *c);
    struct sampler *s = sampler_new(N);
    uint64_t rng = 9;
    for (int shape = 0; shape < 3; shape++) {
        random_draw_make(c, N, shape, &rng);
        double sum = 0;
        for (int i = 0; i < N; i++)
            sum += exp((double)c->logits[i]);
        struct item items[N];
        for (int i = 0; i < N; i++) {
            items[i] = (struct item){i, c->logits[i], 0};
            ck_assert_double_eq_tol(sampler_logprob(s, c->logits, i), c->logits[i] - log(sum),
                                    2e-6);
        }
        qsort(items, N, sizeof *items, by_order);
        struct token_logprob top[K];
        ck_assert_int_eq(sampler_top_logprobs(s, c->logits, K, top), K);
        for (int i = 0; i < K; i++) {
            ck_assert_int_eq(top[i].token, items[i].id);
            ck_assert_float_eq(top[i].logprob, sampler_logprob(s, c->logits, top[i].token));
        }
    }
    sampler_free(s);
    free(c);
}
END_TEST

START_TEST(test_logprobs_are_finite)
{
    float logits[3] = {NAN, -INFINITY, -2};
    struct sampler *s = sampler_new(3);
    ck_assert_float_eq(sampler_logprob(s, logits, 0), -9999);
    ck_assert_float_eq(sampler_logprob(s, logits, 1), -9999);
    ck_assert_float_eq(sampler_logprob(s, logits, 2), 0);
    ck_assert_float_eq(sampler_logprob(s, logits, 3), -9999);
    struct token_logprob top[5];
    ck_assert_int_eq(sampler_top_logprobs(s, logits, 5, top), 3);
    ck_assert_int_eq(top[0].token, 2);
    ck_assert_int_eq(top[1].token, 0);
    ck_assert_int_eq(sampler_top_logprobs(s, logits, 0, top), 0);
    logits[2] = NAN;
    ck_assert_float_eq(sampler_logprob(s, logits, 2), -9999);
    sampler_free(s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sampler");
    TCase *t = tcase_create("sampler");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, test_equals_its_definition);
    tcase_add_test(t, test_generator_is_philox);
    tcase_add_test(t, test_neutral_values_are_identities);
    tcase_add_test(t, test_temperature_zero_takes_the_lowest_of_the_best);
    tcase_add_test(t, test_equal_values_are_cut_by_lower_id);
    tcase_add_test(t, test_frequencies_follow_the_weights);
    tcase_add_test(t, test_nothing_to_choose_from);
    tcase_add_test(t, test_extreme_temperatures);
    tcase_add_test(t, test_logprobs);
    tcase_add_test(t, test_logprobs_are_finite);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
