/* The sampler's passes over a whole vocabulary, in chunks of WEIGH_CHUNK values, compiled for the
 * baseline CPU and for AVX2 with the same results: every operation is exact or a single rounding,
 * and sums are of integers. */
#ifndef ENGINE_WEIGH_H
#define ENGINE_WEIGH_H

#include "kernels/numerics.h"

#include <float.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WEIGH_CHUNK = 64,
    WEIGH_BITS = 40, /* a weight is floor(e * 2^WEIGH_BITS) */
};

/* NaN becomes -infinity, +infinity the largest float, -0 becomes 0 (equal values must have equal
 * bits). */
static inline float weigh_clean(float x)
{
    x = x > FLT_MAX ? FLT_MAX : x;
    return x >= -FLT_MAX ? x + 0.0f : -INFINITY;
}

/* The upper and the lower half of the weight of an exponential in [0, 1]: two conversions to 32
 * bits, because AVX2 has none to 64. Both products and the difference are exact. */
static inline int32_t weigh_high(float e)
{
    return (int32_t)(e * 0x1p20f);
}

static inline int32_t weigh_low(float e)
{
    return (int32_t)((e * 0x1p20f - (float)weigh_high(e)) * 0x1p20f);
}

static inline int64_t weigh_fixed(float e)
{
    return ((int64_t)weigh_high(e) << (WEIGH_BITS / 2)) + weigh_low(e);
}

struct weigh_ops {
    /* v = clean(logits) for n values; the rest of the last chunk is -infinity. And as maxima. */
    void (*load)(const float *logits, int n, float *v, float *chunk_max);
    /* The largest value of each chunk. */
    void (*maxima)(const float *v, int n_chunks, float *chunk_max);
    /* e = exp((v - max) / temperature), and each chunk's sum of the weights that are >= floor. e
     * may be NULL. */
    void (*weigh)(const float *v, int n_chunks, float max, float temperature, int64_t floor,
                  float *e, uint64_t *sums);
    /* The sums alone. */
    void (*sum)(const float *e, int n_chunks, int64_t floor, uint64_t *sums);
};

const struct weigh_ops *weigh_best(void); /* for this CPU */

#endif
