/* Which product tables this machine can run. */
#include "kernels/cpu/product.h"
#include "kernels/cpu/features.h"

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
    {ISA_AVX512_VNNI, &product_avx512vnni, cpu_has_avx512vnni},
    {ISA_AVX512, &product_avx512, cpu_has_avx512},
    {ISA_AVX_VNNI, &product_avxvnni, cpu_has_avxvnni},
    {ISA_AVX2, &product_avx2, cpu_has_avx2},
    {ISA_SCALAR, &product_scalar, has_any},
};

const struct product_isa *product_isa(enum isa isa)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if ((isa == ISA_BEST || isa == tables[i].isa) && tables[i].runs_here())
            return tables[i].table;
    return NULL;
}
