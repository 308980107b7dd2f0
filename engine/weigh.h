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

/* The weight of an exponential in [0, 1]: a shift, because AVX2 has no conversion from float to 64
 * bits. */
static inline int64_t weigh_fixed(float e)
{
    int64_t mantissa = (num_bits(e) & 0x7FFFFFu) | 0x800000u;
    int32_t shift = 127 - (int32_t)(num_bits(e) >> 23);
    return (mantissa << (WEIGH_BITS - 23)) >> (shift < 63 ? shift : 63);
}

struct weigh_ops {
    /* v = clean(logits) for n values; the rest of the last chunk is -infinity. */
    void (*load)(const float *logits, int n, float *v);
    /* The largest value of each chunk. */
    void (*maxima)(const float *v, int n_chunks, float *chunk_max);
    /* e = exp((v - max) / temperature), and each chunk's sum of the weights that are >= floor. */
    void (*weigh)(const float *v, int n_chunks, float max, float temperature, int64_t floor,
                  float *e, uint64_t *sums);
    /* The sums alone. */
    void (*sum)(const float *e, int n_chunks, int64_t floor, uint64_t *sums);
};

const struct weigh_ops *weigh_best(void); /* for this CPU */

#endif
