/* Eight lanes as an array: for CPUs without AVX2, and the second opinion of the tests. */
#include "kernels/cpu/features.h"
#include "kernels/cpu/ops.h"

typedef struct {
    float f[8];
} v8;
#define LANES(expr)                                                                                                    \
    v8 r;                                                                                                              \
    for (int i = 0; i < 8; i++)                                                                                        \
        r.f[i] = (expr);                                                                                               \
    return r

static v8 v8_load(const float *p)
{
    LANES(p[i]);
}
static void v8_store(float *p, v8 a)
{
    memcpy(p, a.f, sizeof a.f);
}
static v8 v8_set1(float x)
{
    LANES(x);
}
static v8 v8_add(v8 a, v8 b)
{
    LANES(a.f[i] + b.f[i]);
}
static v8 v8_sub(v8 a, v8 b)
{
    LANES(a.f[i] - b.f[i]);
}
static v8 v8_mul(v8 a, v8 b)
{
    LANES(a.f[i] * b.f[i]);
}
static v8 v8_div(v8 a, v8 b)
{
    LANES(a.f[i] / b.f[i]);
}
static v8 v8_max(v8 a, v8 b)
{
    LANES(a.f[i] > b.f[i] ? a.f[i] : b.f[i]);
}
static v8 v8_min(v8 a, v8 b)
{
    LANES(a.f[i] < b.f[i] ? a.f[i] : b.f[i]);
}
static float v8_tree(v8 a)
{
    for (int stride = 4; stride > 0; stride /= 2)
        for (int i = 0; i < stride; i++)
            a.f[i] += a.f[i + stride];
    return a.f[0];
}
static float v8_largest(v8 a)
{
    float m = a.f[0];
    for (int i = 1; i < 8; i++)
        m = a.f[i] > m ? a.f[i] : m;
    return m;
}
static v8 v8_neg(v8 a)
{
    LANES(-a.f[i]);
}
static v8 v8_fma(v8 a, v8 b, v8 c)
{
    LANES(fmaf(a.f[i], b.f[i], c.f[i]));
}
/* fma(x, c, -(b * s)): the first value of a rotated pair. */
static v8 v8_fnma(v8 b, v8 s, v8 x, v8 c)
{
    LANES(fmaf(x.f[i], c.f[i], -(b.f[i] * s.f[i])));
}
static v8 v8_exp(v8 a)
{
    LANES(num_exp(a.f[i]));
}
static v8 v8_load_f16(const uint16_t *p)
{
    LANES(num_f16_to_f32(p[i]));
}
static void v8_store_f16(uint16_t *p, v8 a)
{
    for (int i = 0; i < 8; i++)
        p[i] = num_f32_to_f16(a.f[i]);
}

enum { WIDE = 8 };
typedef v8 vw;
#define VW(name) v8_##name
#include "kernels/cpu/ops_body.h"

const struct cpu_ops cpu_ops_scalar = CPU_OPS_TABLE("scalar");

const struct cpu_ops *cpu_ops(enum isa isa)
{
#if defined(__x86_64__)
    if (cpu_has_avx512() && (isa == ISA_BEST || isa == ISA_AVX512 || isa == ISA_AVX512_VNNI))
        return &cpu_ops_avx512;
    if (isa != ISA_SCALAR)
        return cpu_has_avx2() ? &cpu_ops_avx2 : isa == ISA_BEST ? &cpu_ops_scalar : NULL;
#else
    if (isa != ISA_SCALAR && isa != ISA_BEST)
        return NULL;
#endif
    return &cpu_ops_scalar;
}
