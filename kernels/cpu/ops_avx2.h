/* Eight lanes as one AVX2 register; FMA and F16C. */
#ifndef KERNELS_CPU_OPS_AVX2_H
#define KERNELS_CPU_OPS_AVX2_H

#include <immintrin.h>

typedef __m256 v8;

static inline v8 v8_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void v8_store(float *p, v8 a)
{
    _mm256_storeu_ps(p, a);
}
static inline v8 v8_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline v8 v8_add(v8 a, v8 b)
{
    return _mm256_add_ps(a, b);
}
static inline v8 v8_sub(v8 a, v8 b)
{
    return _mm256_sub_ps(a, b);
}
static inline v8 v8_mul(v8 a, v8 b)
{
    return _mm256_mul_ps(a, b);
}
static inline v8 v8_div(v8 a, v8 b)
{
    return _mm256_div_ps(a, b);
}
static inline v8 v8_max(v8 a, v8 b)    /* b where a is NaN */
{
    return _mm256_max_ps(a, b);
}
static inline v8 v8_min(v8 a, v8 b)    /* b where a is NaN */
{
    return _mm256_min_ps(a, b);
}
static inline v8 v8_neg(v8 a)
{
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
}
static inline v8 v8_fma(v8 a, v8 b, v8 c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline v8 v8_fnma(v8 b, v8 s, v8 x, v8 c)
{
    return _mm256_fmsub_ps(x, c, _mm256_mul_ps(b, s));
}

/* num_exp, lane by lane. NaN gives e^88 as there: the minimum of it and 88 is 88. */
static inline v8 v8_exp(v8 x)
{
    v8 zero = _mm256_cmp_ps(x, v8_set1(-87.0f), _CMP_LT_OQ);
    x = v8_min(x, v8_set1(88.0f));
    v8 magic = v8_set1(12582912.0f);
    v8 n = v8_sub(v8_fma(x, v8_set1(1.44269504088896341f), magic), magic);
    v8 r = v8_fma(n, v8_set1(-0.693359375f), x);
    r = v8_fma(n, v8_set1(2.12194440e-4f), r);
    v8 p = v8_set1(1.9875691500e-4f);
    p = v8_fma(p, r, v8_set1(1.3981999507e-3f));
    p = v8_fma(p, r, v8_set1(8.3334519073e-3f));
    p = v8_fma(p, r, v8_set1(4.1665795894e-2f));
    p = v8_fma(p, r, v8_set1(1.6666665459e-1f));
    p = v8_fma(p, r, v8_set1(5.0000001201e-1f));
    p = v8_add(v8_fma(p, v8_mul(r, r), r), v8_set1(1.0f));
    __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(zero, v8_mul(p, _mm256_castsi256_ps(e)));
}

/* The sum of the lanes: strides 4, 2, 1. */
static inline float v8_tree(v8 a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
/* The largest lane; none is NaN. */
static inline float v8_largest(v8 a)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static inline v8 v8_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline void v8_store_f16(uint16_t *p, v8 a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

#endif
