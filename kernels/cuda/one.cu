/* Launches of the product for one column (one.cuh). */
#include "kernels/cuda/one.cuh"

enum { ONE_BLOCKS = 2, ONE_FOURS = 4 };

/* ---- kernels ---- */

template <int T> __global__ static void __launch_bounds__(ONE_THREADS, ONE_BLOCKS) k_one(const __grid_constant__ struct one o)
{
    DYNAMIC_SHARED(float4, room);
    one_block<T>(o, (int)blockIdx.x, (int)gridDim.x, room, make_row<row_form(T), ONE_FOURS>);
}

/* ---- launchers ---- */

template <int T> static void run(struct cuda *k, struct one *o)
{
    auto kernel = k_one<T>;
    size_t shared = one_shared<T>(o);
    int blocks = 0;
    (void)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, ONE_THREADS, shared);
    int most = k->n_sm * (blocks > 0 ? blocks : 1);
    one_share_out<T>(o, most);
    LAUNCH(k, kernel, dim3((unsigned)(o->n_unit < most ? o->n_unit : most)), dim3(ONE_THREADS), shared, *o);
    CU_NOTE(k, "product of one column");
}

extern "C" void launch_one(struct cuda *k, enum qtype type, struct one *o)
{
    if (k->mode == STEP_RECORD)
        persist_one(k, type, o);
    else
        with_one_type(type, [&](auto t) { run<decltype(t)::value>(k, o); });
}

extern "C" bool one_suits(const struct cuda *k, enum qtype type, const struct one *o)
{
    size_t shared = 0;
    with_one_type(type, [&](auto t) { shared = one_shared<decltype(t)::value>(o); });
    size_t most = k->mode == STEP_RECORD ? k->persist.room : (size_t)(k->shared_most - ONE_STATIC);
    return shared > 0 && shared <= most && k->code >= CODE_TILE && o->p.n_col == 1 &&
           o->p.which == NULL;
}

template <int T> static bool allow_shared(int bytes)
{
    auto kernel = k_one<T>;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess;
}

extern "C" bool one_open(const struct cuda *k)
{
    bool ok = true;
    for (int type = 0; type < QTYPE_N; type++)
        with_one_type((enum qtype)type, [&](auto t) { ok = ok && allow_shared<decltype(t)::value>(k->shared_most - ONE_STATIC); });
    return ok;
}
