/* Which product tables this machine can run. */
#include "kernels/cpu/product.h"

/* Best first. */
static const struct {
    enum isa isa;
    const struct product_isa *table;
} tables[] = {
    {ISA_SCALAR, &product_scalar},
};

static bool runs(enum isa isa)
{
    return isa == ISA_SCALAR;
}

const struct product_isa *product_isa(enum isa isa)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if ((isa == ISA_BEST || isa == tables[i].isa) && runs(tables[i].isa))
            return tables[i].table;
    return NULL;
}
