#include "tests/tiny_weights.h"

#include "kernels/numerics.h"

#include <string.h>

struct rng rng_of(uint64_t seed, const char *name)
{
    struct rng r = {seed * 0x9E3779B97F4A7C15u + 0xCBF29CE484222325u};
    for (; *name != 0; name++)
        r.state = (r.state ^ (unsigned char)*name) * 0x100000001B3u;
    rng_next(&r);
    return r;
}

uint64_t rng_next(struct rng *r) /* splitmix64 */
{
    uint64_t x = r->state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

float rng_normal(struct rng *r) /* the sum of four uniforms of 16 bits is near enough */
{
    uint64_t x = rng_next(r);
    int sum =
        (int)(x & 0xFFFF) + (int)(x >> 16 & 0xFFFF) + (int)(x >> 32 & 0xFFFF) + (int)(x >> 48);
    return (float)(sum - 131070) / 37837.0f;
}

static uint16_t f32_to_bf16(float x)
{
    uint32_t u = num_bits(x);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

/* Eight sub-scales and minimums of 6 bits; see block_q4_k. */
static void pack_k4(uint8_t out[12], const uint8_t s[8], const uint8_t m[8])
{
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(s[j] | (s[j + 4] >> 4) << 6);
        out[j + 4] = (uint8_t)(m[j] | (m[j + 4] >> 4) << 6);
        out[j + 8] = (uint8_t)((s[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

static void random_k4(uint8_t out[12], struct rng *r)
{
    uint8_t s[8], m[8];
    uint64_t x = rng_next(r), y = rng_next(r);
    for (int j = 0; j < 8;
         j++) { /* the minimum near the scale, so that the weights' mean is near 0 */
        s[j] = (uint8_t)(8 + (x >> 8 * j & 255) % 56);
        int near = s[j] + (int)((y >> 8 * j & 255) % 7) - 3;
        m[j] = (uint8_t)(near > 63 ? 63 : near);
    }
    pack_k4(out, s, m);
}

/* The standard deviation of a weight whose scale is 1, with all other bits random as below. */
static float unit_of(enum qtype t)
{
    switch (t) {
    case QTYPE_Q4_0:
    case QTYPE_Q4_1:
        return 4.61f;
    case QTYPE_Q5_0:
    case QTYPE_Q5_1:
        return 9.23f;
    case QTYPE_Q8_0:
        return 73.9f;
    case QTYPE_Q2_K:
        return 12.1f;
    case QTYPE_Q3_K:
        return 42.4f;
    case QTYPE_Q4_K:
        return 182.0f;
    case QTYPE_Q5_K:
        return 368.0f;
    case QTYPE_Q6_K:
        return 1367.0f;
    case QTYPE_IQ4_NL:
        return 71.4f;
    case QTYPE_IQ4_XS:
        return 1320.0f;
    default:
        return 1.0f;
    }
}

/* Overwrites scales and minimums of a block of random bits. `sd` is signed: formats without a
 * minimum have scales of either sign in real files. */
static void set_scales(enum qtype t, float sd, struct rng *r, void *block)
{
    float d = sd / unit_of(t), pos = fabsf(d);
    uint16_t h = num_f32_to_f16(d), hpos = num_f32_to_f16(pos);
    switch (t) {
    case QTYPE_Q4_0:
    case QTYPE_Q5_0:
    case QTYPE_Q8_0:
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
        memcpy(block, &h, 2);
        break;
    case QTYPE_Q4_1:
        memcpy(block, (uint16_t[]){hpos, num_f32_to_f16(-7.5f * pos)}, 4);
        break;
    case QTYPE_Q5_1:
        memcpy(block, (uint16_t[]){hpos, num_f32_to_f16(-15.5f * pos)}, 4);
        break;
    case QTYPE_Q2_K: {
        struct block_q2_k *b = block;
        for (int i = 0; i < 16; i++) {
            int s = 4 + b->scales[i] % 12, m = s + b->scales[i] / 12 % 3 - 1;
            b->scales[i] = (uint8_t)(s | (m > 15 ? 15 : m) << 4);
        }
        b->d = hpos;
        b->dmin = num_f32_to_f16(1.5f * pos);
        break;
    }
    case QTYPE_Q3_K:
        ((struct block_q3_k *)block)->d = h;
        break;
    case QTYPE_Q4_K: {
        struct block_q4_k *b = block;
        b->d = hpos;
        b->dmin = num_f32_to_f16(7.5f * pos);
        random_k4(b->scales, r);
        break;
    }
    case QTYPE_Q5_K: {
        struct block_q5_k *b = block;
        b->d = hpos;
        b->dmin = num_f32_to_f16(15.5f * pos);
        random_k4(b->scales, r);
        break;
    }
    case QTYPE_Q6_K:
        ((struct block_q6_k *)block)->d = h;
        break;
    case QTYPE_MXFP4: { /* a power of two at or below the wanted scale; the values have a deviation
                           of 2.93 */
        uint32_t e = num_bits(fabsf(sd) / 2.93f * 1.41f) >> 23;
        ((struct block_mxfp4 *)block)->e = (uint8_t)e;
        break;
    }
    default:
        break;
    }
}

void weights_fill(enum qtype t, float std, struct rng *r, void *out, size_t n)
{
    if (t == QTYPE_F32 || t == QTYPE_F16 || t == QTYPE_BF16) {
        for (size_t i = 0; i < n; i++) {
            float x = std * rng_normal(r);
            if (t == QTYPE_F32)
                ((float *)out)[i] = x;
            else
                ((uint16_t *)out)[i] = t == QTYPE_F16 ? num_f32_to_f16(x) : f32_to_bf16(x);
        }
        return;
    }
    const struct qtype_info *q = qtype_info(t);
    size_t n_blocks = n / (size_t)q->block_weights;
    for (size_t i = 0; i < n_blocks; i++) {
        uint8_t *block = (uint8_t *)out + i * q->block_bytes;
        for (size_t k = 0; k < q->block_bytes; k += 8) {
            uint64_t x = rng_next(r);
            memcpy(block + k, &x, q->block_bytes - k < 8 ? q->block_bytes - k : 8);
        }
        uint64_t x = rng_next(r);
        float amplitude = 0.75f + 0.5f * (float)(x >> 40) / 16777216.0f; /* blocks differ */
        set_scales(t, std * amplitude * (x & 1 ? 1.0f : -1.0f), r, block);
    }
}
