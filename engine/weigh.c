/* Loops with constant trip counts, so that the compiler makes vectors of them at -O2. It does so
 * for conditional floating point only when it may forget the exception flags, which nothing here
 * reads; no value changes. */
#ifndef __clang__
#pragma GCC optimize("no-trapping-math")
#endif
#include "engine/weigh.h"

#include <string.h>

#define BODY static inline __attribute__((always_inline))

enum { LANES = 8 };

BODY void load_body(const float *restrict logits, int n, float *restrict v)
{
    int whole = n / WEIGH_CHUNK * WEIGH_CHUNK;
    for (int i = 0; i < whole; i += WEIGH_CHUNK)
        for (int j = 0; j < WEIGH_CHUNK; j++)
            v[i + j] = weigh_clean(logits[i + j]);
    if (whole == n)
        return;
    for (int j = 0; j < WEIGH_CHUNK; j++)
        v[whole + j] = whole + j < n ? weigh_clean(logits[whole + j]) : -INFINITY;
}

BODY void maxima_body(const float *restrict v, int n_chunks, float *restrict chunk_max)
{
    for (int c = 0; c < n_chunks; c++, v += WEIGH_CHUNK) {
        float lane[LANES];
        memcpy(lane, v, sizeof lane);
        for (int i = LANES; i < WEIGH_CHUNK; i += LANES)
            for (int j = 0; j < LANES; j++)
                lane[j] = v[i + j] > lane[j] ? v[i + j] : lane[j];
        for (int half = LANES / 2; half > 0; half /= 2)
            for (int j = 0; j < half; j++)
                lane[j] = lane[j + half] > lane[j] ? lane[j + half] : lane[j];
        chunk_max[c] = lane[0];
    }
}

BODY uint64_t sum_chunk(const float *restrict e, int64_t floor)
{
    int64_t sum = 0;
    for (int j = 0; j < WEIGH_CHUNK; j++) {
        int64_t w = weigh_fixed(e[j]);
        sum += w >= floor ? w : 0;
    }
    return (uint64_t)sum;
}

BODY void weigh_body(const float *restrict v, int n_chunks, float max, float temperature,
                     int64_t floor, float *restrict e, uint64_t *restrict sums)
{
    for (int c = 0; c < n_chunks; c++, v += WEIGH_CHUNK, e += WEIGH_CHUNK) {
        for (int j = 0; j < WEIGH_CHUNK; j++)
            e[j] = num_exp((v[j] - max) / temperature);
        sums[c] = sum_chunk(e, floor);
    }
}

BODY void sum_body(const float *restrict e, int n_chunks, int64_t floor, uint64_t *restrict sums)
{
    for (int c = 0; c < n_chunks; c++, e += WEIGH_CHUNK)
        sums[c] = sum_chunk(e, floor);
}

#define VARIANT(name, attributes)                                                                  \
    attributes static void name##_load(const float *logits, int n, float *v)                       \
    {                                                                                              \
        load_body(logits, n, v);                                                                   \
    }                                                                                              \
    attributes static void name##_maxima(const float *v, int n_chunks, float *chunk_max)           \
    {                                                                                              \
        maxima_body(v, n_chunks, chunk_max);                                                       \
    }                                                                                              \
    attributes static void name##_weigh(const float *v, int n_chunks, float max,                   \
                                        float temperature, int64_t floor, float *e,                \
                                        uint64_t *sums)                                            \
    {                                                                                              \
        weigh_body(v, n_chunks, max, temperature, floor, e, sums);                                 \
    }                                                                                              \
    attributes static void name##_sum(const float *e, int n_chunks, int64_t floor, uint64_t *sums) \
    {                                                                                              \
        sum_body(e, n_chunks, floor, sums);                                                        \
    }                                                                                              \
    static const struct weigh_ops name = {name##_load, name##_maxima, name##_weigh, name##_sum};

VARIANT(baseline, )
#ifdef __x86_64__
VARIANT(avx2, __attribute__((target("avx2,fma"))))
#endif

const struct weigh_ops *weigh_best(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2;
#endif
    return &baseline;
}
