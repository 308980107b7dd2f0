/* Which product tables this machine can run. */
#include "kernels/cpu/product.h"

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static bool has_avxvnni(void)
{
    return has_avx2() && __builtin_cpu_supports("avxvnni");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_any(void)
{
    return true;
}

/* Best first. */
static const struct {
    enum isa isa;
    const struct product_isa *table;
    bool (*runs_here)(void);
} tables[] = {
    {ISA_AVX512_VNNI, &product_avx512vnni, has_avx512vnni},
    {ISA_AVX512, &product_avx512, has_avx512},
    {ISA_AVX_VNNI, &product_avxvnni, has_avxvnni},
    {ISA_AVX2, &product_avx2, has_avx2},
    {ISA_SCALAR, &product_scalar, has_any},
};

const struct product_isa *product_isa(enum isa isa)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if ((isa == ISA_BEST || isa == tables[i].isa) && tables[i].runs_here())
            return tables[i].table;
    return NULL;
}
