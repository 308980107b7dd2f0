/* Launches of the product for one column (one.cuh). */
#include "kernels/cuda/one.cuh"
#include "kernels/cuda/fragment.cuh"

enum { ONE_BLOCKS = 2, ONE_STATIC = 1024 /* static shared memory at most */ };

/* ---- kernels ---- */

template <int T> __global__ static void __launch_bounds__(ONE_THREADS, ONE_BLOCKS) k_one(const __grid_constant__ struct one o)
{
    DYNAMIC_SHARED(float4, room);
    one_block<T>(o, (int)blockIdx.x, (int)gridDim.x, room);
}

/* ---- launchers ---- */

template <class F> static void with_type(enum qtype type, const F &f)
{
    if (type == QTYPE_F16)
        f(qtype_constant<QTYPE_F16>());
    else if (type == QTYPE_BF16)
        f(qtype_constant<QTYPE_BF16>());
    else
        with_quantised(type, f);
}

/* Several tiles a block only where every block gets some: each that has none leaves a multiprocessor without work. */
template <int T> static void share_out(struct one *o, int most)
{
    constexpr int slots = one_shape<T>::slots;
    o->n_tile = o->h != NULL ? o->p.part[0].n_tile : o->p.n_tile;
    o->wave = 1;
    while (o->wave < slots && (o->wave < o->p.n_seg || o->n_tile * o->wave < most * slots))
        o->wave *= 2;
    o->rounds = (o->p.n_seg + o->wave - 1) / o->wave;
    o->tiles_at_once = slots / o->wave;
    o->n_unit = (o->n_tile + o->tiles_at_once - 1) / o->tiles_at_once;
}

template <int T> static void run(struct cuda *k, struct one *o)
{
    auto kernel = k_one<T>;
    size_t shared = one_shared<T>(o);
    int blocks = 0;
    (void)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, ONE_THREADS, shared);
    int most = k->n_sm * (blocks > 0 ? blocks : 1);
    share_out<T>(o, most);
    LAUNCH(k, kernel, dim3((unsigned)(o->n_unit < most ? o->n_unit : most)), dim3(ONE_THREADS), shared, *o);
    CU_NOTE(k, "product of one column");
}

extern "C" void launch_one(struct cuda *k, enum qtype type, struct one *o)
{
    with_type(type, [&](auto t) { run<decltype(t)::value>(k, o); });
}

extern "C" bool one_suits(const struct cuda *k, enum qtype type, const struct one *o)
{
    size_t shared = 0;
    with_type(type, [&](auto t) { shared = one_shared<decltype(t)::value>(o); });
    return shared > 0 && shared + ONE_STATIC <= (size_t)k->shared_most && k->code >= CODE_TILE && o->p.n_col == 1 &&
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
        with_type((enum qtype)type, [&](auto t) { ok = ok && allow_shared<decltype(t)::value>(k->shared_most - ONE_STATIC); });
    return ok;
}
