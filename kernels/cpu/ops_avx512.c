/* Sixteen lanes of AVX-512 in attention, eight of AVX2 elsewhere. */
#include "kernels/cpu/ops.h"

#if defined(__AVX512F__)
#include "kernels/cpu/ops_avx2.h"

enum { WIDE = 16 };
typedef __m512 vw;
#define VW(name) v16_##name

static inline vw v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, vw a)
{
    _mm512_storeu_ps(p, a);
}
static inline vw v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vw v16_add(vw a, vw b)
{
    return _mm512_add_ps(a, b);
}
static inline vw v16_sub(vw a, vw b)
{
    return _mm512_sub_ps(a, b);
}
static inline vw v16_mul(vw a, vw b)
{
    return _mm512_mul_ps(a, b);
}
static inline vw v16_max(vw a, vw b)    /* b where a is NaN */
{
    return _mm512_max_ps(a, b);
}
static inline vw v16_fma(vw a, vw b, vw c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vw v16_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* v8_exp, twice as wide. */
static inline vw v16_exp(vw x)
{
    __mmask16 counts = _mm512_cmp_ps_mask(x, v16_set1(-87.0f), _CMP_NLT_UQ);
    x = _mm512_min_ps(x, v16_set1(88.0f));
    vw magic = v16_set1(12582912.0f);
    vw n = v16_sub(v16_fma(x, v16_set1(1.44269504088896341f), magic), magic);
    vw r = v16_fma(n, v16_set1(-0.693359375f), x);
    r = v16_fma(n, v16_set1(2.12194440e-4f), r);
    vw p = v16_set1(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set1(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set1(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set1(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set1(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set1(5.0000001201e-1f));
    p = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set1(1.0f));
    __m512i e = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_maskz_mul_ps(counts, p, _mm512_castsi512_ps(e));
}

/* The sum of the lanes: strides 8, 4, 2, 1. */
static inline float v16_tree(vw a)
{
    return v8_tree(v8_add(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
/* The largest lane; none is NaN. */
static inline float v16_largest(vw a)
{
    return v8_largest(v8_max(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}

#include "kernels/cpu/ops_body.h"

const struct cpu_ops cpu_ops_avx512 = CPU_OPS_TABLE("avx512");
#endif
