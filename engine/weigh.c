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

BODY float larger(float a, float b)
{
    return a > b ? a : b;
}

BODY float chunk_maximum(const float *restrict v)
{
    float lane[LANES];
    memcpy(lane, v, sizeof lane);
    for (int i = LANES; i < WEIGH_CHUNK; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] = larger(v[i + j], lane[j]);
    return larger(larger(larger(lane[0], lane[1]), larger(lane[2], lane[3])),
                  larger(larger(lane[4], lane[5]), larger(lane[6], lane[7])));
}

BODY void load_body(const float *restrict logits, int n, float *restrict v,
                    float *restrict chunk_max)
{
    int whole = n / WEIGH_CHUNK;
    for (int c = 0; c < whole; c++, v += WEIGH_CHUNK, logits += WEIGH_CHUNK) {
        for (int j = 0; j < WEIGH_CHUNK; j++)
            v[j] = weigh_clean(logits[j]);
        chunk_max[c] = chunk_maximum(v);
    }
    n -= whole * WEIGH_CHUNK;
    if (n == 0)
        return;
    for (int j = 0; j < WEIGH_CHUNK; j++)
        v[j] = j < n ? weigh_clean(logits[j]) : -INFINITY;
    chunk_max[whole] = chunk_maximum(v);
}

BODY void maxima_body(const float *restrict v, int n_chunks, float *restrict chunk_max)
{
    for (int c = 0; c < n_chunks; c++)
        chunk_max[c] = chunk_maximum(v + c * WEIGH_CHUNK);
}

/* The halves are summed apart: 64 of them stay below 2^27. */
BODY uint64_t sum_chunk(const float *restrict e, int64_t floor)
{
    int32_t high = 0, low = 0;
    int32_t floor_high = (int32_t)(floor >> (WEIGH_BITS / 2)),
            floor_low = (int32_t)(floor & ((1 << (WEIGH_BITS / 2)) - 1));
    if (floor == 0) {
        for (int j = 0; j < WEIGH_CHUNK; j++) {
            high += weigh_high(e[j]);
            low += weigh_low(e[j]);
        }
    } else {
        for (int j = 0; j < WEIGH_CHUNK; j++) {
            int32_t h = weigh_high(e[j]), l = weigh_low(e[j]);
            int32_t stays = -((h > floor_high) | ((h == floor_high) & (l >= floor_low)));
            high += h & stays;
            low += l & stays;
        }
    }
    return ((uint64_t)(uint32_t)high << (WEIGH_BITS / 2)) + (uint32_t)low;
}

BODY void weigh_body(const float *restrict v, int n_chunks, float max, float temperature,
                     int64_t floor, float *restrict e, uint64_t *restrict sums)
{
    float scratch[WEIGH_CHUNK];
    size_t step = e == NULL ? 0 : WEIGH_CHUNK;
    float *at = e == NULL ? scratch : e;
    for (int c = 0; c < n_chunks; c++, v += WEIGH_CHUNK, at += step) {
        for (int j = 0; j < WEIGH_CHUNK; j++)
            at[j] = num_exp((v[j] - max) / temperature);
        sums[c] = sum_chunk(at, floor);
    }
}

BODY void sum_body(const float *restrict e, int n_chunks, int64_t floor, uint64_t *restrict sums)
{
    for (int c = 0; c < n_chunks; c++, e += WEIGH_CHUNK)
        sums[c] = sum_chunk(e, floor);
}

#define VARIANT(name, attributes)                                                                  \
    attributes static void name##_load(const float *logits, int n, float *v, float *chunk_max)     \
    {                                                                                              \
        load_body(logits, n, v, chunk_max);                                                        \
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
