/* The numeric contract: every constant and scalar function that decides bytes. docs/numerics.md is its prose.
 *
 * Each device computes exactly these values in exactly these orders; only what is marked free may differ (integer
 * sums are exact, so their order is). kernels/ref implements it literally and is the oracle of the others.
 * Compiled as C and as CUDA with contraction off (-ffp-contract=off, -fmad=false); fused operations are written.
 * No libm function that is not exactly rounded by IEEE 754 is used: only fma, sqrt, division, rint. */
#ifndef KERNELS_NUMERICS_H
#define KERNELS_NUMERICS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define NUM_FN static __host__ __device__ inline
#else
#define NUM_FN static inline
#endif

enum {
    NUM_BLOCK = 32,      /* weights that share one activation scale */
    NUM_SEGMENT = 128,   /* weights summed in one chain: 4 blocks; segments are added in index order */
    NUM_NORM_LANES = 64, /* strided partial sums of a norm */
    NUM_TILE = 64,       /* keys of an attention tile, at absolute multiples of 64; also the KV page */
    NUM_SPLIT = 256,     /* positions of an attention split, at absolute multiples of 256 */
};

/* A block whose largest magnitude is outside [TINY, HUGE] is quantised as zeros (scale 0): below, 127/amax would
 * overflow; above, it holds an infinity. */
#define NUM_QUANT_TINY 1e-30f
#define NUM_QUANT_HUGE 1e37f

NUM_FN uint32_t num_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

NUM_FN float num_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* IEEE half to float: exact. */
NUM_FN float num_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 1023u;
    if (exp == 31)
        return num_from_bits(sign | 0x7F800000u | (man << 13) | (man ? 0x00400000u : 0u));
    if (exp == 0) {
        float x = (float)man * 5.9604644775390625e-8f; /* man * 2^-24 */
        return sign ? -x : x;
    }
    return num_from_bits(sign | ((exp + 112u) << 23) | (man << 13));
}

/* Float to IEEE half, round to nearest even; NaN becomes a quiet NaN with its top payload bits (as vcvtps2ph does). */
NUM_FN uint16_t num_f32_to_f16(float x)
{
    uint32_t u = num_bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u | ((a >> 13) & 0x1FFu));
    if (a >= 0x477FF000u)
        return (uint16_t)(sign | 0x7C00u);
    if (a < 0x38800000u) { /* subnormal half: let float addition round at 2^-24 */
        float m = num_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (num_bits(m) - 0x3F000000u));
    }
    a += 0xFFFu + ((a >> 13) & 1u);
    return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
}

NUM_FN float num_bf16_to_f32(uint16_t h)
{
    return num_from_bits((uint32_t)h << 16);
}

/* 2^(e - 127) of the MX formats' shared exponent, and half of it (MXFP4 codes are stored doubled). 255 is NaN in the
 * format; it is taken as the number its bits give (2^128 overflows to infinity), never trapped. */
NUM_FN float num_e8m0_half(uint8_t e)
{
    return e < 2 ? num_from_bits(0x00200000u << e) : num_from_bits((uint32_t)(e - 1) << 23);
}

/* e^x to within 1 ulp or so: 0 below -87 (also for -infinity), e^88 above 88, and e^88 for NaN.
 * Coefficients: Cephes expf. Every operation is a single rounding in the order written. */
NUM_FN float num_exp(float x)
{
    if (x < -87.0f)
        return 0.0f;
    if (!(x <= 88.0f))
        x = 88.0f;
    float n = fmaf(x, 1.44269504088896341f, 12582912.0f) - 12582912.0f; /* nearest integer, ties to even */
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return p * num_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

NUM_FN float num_silu(float x)
{
    return x / (1.0f + num_exp(-x));
}

/* The tanh form: 0.5 x (1 + tanh u), written as x - x / (1 + e^2u). */
NUM_FN float num_gelu(float x)
{
    float u = fmaf(0.044715f * x, x * x, x) * 1.5957691216057308f; /* 2 sqrt(2/pi) (x + 0.044715 x^3) */
    return x - x / (1.0f + num_exp(u));
}

/* gpt-oss: clamped gate and up, alpha 1.702. */
NUM_FN float num_swiglu_clamped(float gate, float up)
{
    gate = gate < 7.0f ? gate : 7.0f;
    up = up < 7.0f ? up : 7.0f;
    up = up > -7.0f ? up : -7.0f;
    return gate / (1.0f + num_exp(-1.702f * gate)) * (up + 1.0f);
}

/* One rope pair: (a, b) rotated by the angle whose cosine and sine are c and s. */
NUM_FN void num_rotate(float *a, float *b, float c, float s)
{
    float x = *a, y = *b;
    *a = fmaf(x, c, -(y * s));
    *b = fmaf(x, s, y * c);
}

/* Activation scale of a block with largest magnitude amax: *inv = 127/amax for the codes, result = amax/127. */
NUM_FN float num_quant_scale(float amax, float *inv)
{
    if (!(amax >= NUM_QUANT_TINY && amax <= NUM_QUANT_HUGE)) {
        *inv = 0.0f;
        return 0.0f;
    }
    *inv = 127.0f / amax;
    return amax / 127.0f;
}

/* The code of one activation: nearest integer, ties to even, in [-127, 127]; NaN gives -127. */
NUM_FN int8_t num_quant(float x, float inv)
{
    float v = rintf(x * inv);
    v = v >= -127.0f ? v : -127.0f;
    v = v <= 127.0f ? v : 127.0f;
    return (int8_t)v;
}

/* Fixed binary tree over n = 64 values, in place: strides 32, 16, ... 1. */
NUM_FN float num_tree64(float s[NUM_NORM_LANES])
{
    for (int stride = NUM_NORM_LANES / 2; stride > 0; stride /= 2)
        for (int i = 0; i < stride; i++)
            s[i] += s[i + stride];
    return s[0];
}

/* Online-softmax merge of the later part (mb, lb) into the earlier (ma, la): factors for the two weighted sums.
 * New state: l = fma(lb, fb, la * fa), o = fma(ob, fb, oa * fa), m = max(ma, mb). */
NUM_FN float num_merge(float ma, float mb, float *fa, float *fb)
{
    float m = ma >= mb ? ma : mb;
    *fa = num_exp(ma - m);
    *fb = num_exp(mb - m);
    return m;
}

/* Double precision built from + - * / alone, so that tables made at load and per step are the same on every machine. Absolute
 * error below 1e-14 relative to the result's scale. Rope's, |angle| < 2^31: */
NUM_FN void num_sincos(double angle, double *s, double *c)
{
    /* Cody-Waite reduction by pi/2 in three parts: exact products while |n| < 2^20 and good to 1e-10 far beyond,
     * which a float32 rope value does not see. */
    double n = rint(angle * 0.63661977236758134308);
    double r = angle - n * 1.57079632673412561417e+00;
    r -= n * 6.07710050630396597660e-11;
    r -= n * 2.02226624879595063154e-21;
    double r2 = r * r, sn = 0, cs = 0;
    for (int k = 19; k >= 1; k -= 2) /* sin r = r (1 - r2/6 (1 - r2/20 (...))) */
        sn = 1 - r2 / ((k + 1) * (k + 2)) * (k == 19 ? 1 : sn);
    for (int k = 18; k >= 0; k -= 2)
        cs = 1 - r2 / ((k + 1) * (k + 2)) * (k == 18 ? 1 : cs);
    sn *= r;
    switch ((int)((int64_t)n & 3)) {
    case 0: *s = sn; *c = cs; break;
    case 1: *s = cs; *c = -sn; break;
    case 2: *s = -sn; *c = -cs; break;
    default: *s = -cs; *c = sn; break;
    }
}

/* Host only (numerics.c). */
#ifdef __cplusplus
extern "C" {
#endif
double num_log(double x);                             /* x > 0, normal */
double num_pow(double base, double exponent);         /* base > 0 */
#ifdef __cplusplus
}
#endif

#endif
