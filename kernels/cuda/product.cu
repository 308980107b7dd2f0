/* Launches of the product for few columns (product_few.cuh). */
#include "kernels/cuda/product_few.cuh"

/* ---- kernels ---- */

/* blockDim is 8 rows x as many segments as a wave takes. */
template <int T, int N>
__global__ static void __launch_bounds__(PRODUCT_THREADS, N == 1 ? 4 : N == 2 ? 3 : 2) k_product(struct product p)
{
    __shared__ float sums[N * SUM_COL];
    product_block<T, N>(p, this_block(), (int)threadIdx.x, (int)blockDim.x / TILE_ROWS, sums);
}

/* ---- launchers ---- */

template <int T> static void run(struct cuda *k, const struct product *p)
{
    /* Enough threads for a tile's segments, whole warps, and a lane for each of the sums. */
    int wave = p->n_seg < PRODUCT_WAVE ? (p->n_seg + 3) / 4 * 4 : PRODUCT_WAVE;
    int n = p->n_col == 1 || p->which != NULL ? 1 : p->n_col == 2 ? 2 : p->n_col <= HALF ? HALF : FEW;
    wave = wave < n ? n : wave;
    dim3 grid((unsigned)p->n_tile, (unsigned)((p->n_col + n - 1) / n)), block((unsigned)(wave * TILE_ROWS));
    if (n == 1)
        LAUNCH(k, (k_product<T, 1>), grid, block, 0, *p);
    else if (n == 2)
        LAUNCH(k, (k_product<T, 2>), grid, block, 0, *p);
    else if (n == HALF)
        LAUNCH(k, (k_product<T, HALF>), grid, block, 0, *p);
    else
        LAUNCH(k, (k_product<T, FEW>), grid, block, 0, *p);
    CU_NOTE(k, "product");
}

extern "C" void launch_product(struct cuda *k, enum qtype type, const struct product *p)
{
    switch (type) {
#define QTYPE(name, id, n, block, mins)                                                                                \
    case QTYPE_##name: run<QTYPE_##name>(k, p); break;
#include "kernels/qtypes.def"
#undef QTYPE
    case QTYPE_N: break;
    }
}
