/* What the two products (product.cu, tile.cu) share: which part and row of activations, a block's step, the output. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/decode.cuh"

/* The part that tile *tile of the whole product is in; *tile becomes the tile in that part. */
__device__ inline struct product_part part_of(const struct product &p, int *tile)
{
    struct product_part part = p.part[0];
    for (int i = 1; i < p.n_part && *tile >= part.n_tile; i++) {
        *tile -= part.n_tile;
        part = p.part[i];
    }
    return part;
}

/* Where segment s of a column's activations begins. */
__device__ inline size_t act_at(const struct product &p, int col, int s)
{
    return (size_t)(col / p.act_div) * (size_t)p.act.ld + (size_t)(s * SEGMENT);
}

/* The columns of a block: n of them, of one matrix, from index `first` on of p.order or of the columns themselves. */
struct columns {
    int mat, first, n;
};

__device__ inline struct columns columns_of(const struct product &p, int block, int width)
{
    if (p.group != NULL) {
        struct col_group g = p.group[block];
        return {g.mat, g.first, g.n};
    }
    int first = block * width;
    return {0, first, p.n_col - first < width ? p.n_col - first : width};
}

/* Column c of these; those from n on repeat the last. */
__device__ inline int column_of(const struct product &p, const struct columns &cols, int c)
{
    int i = cols.first + (c < cols.n ? c : cols.n - 1);
    return p.order != NULL ? p.order[i] : i;
}

static inline int column_blocks(const struct product *p, int width)
{
    return p->group != NULL ? p->n_group : (p->n_col + width - 1) / width;
}

/* One block of 32 of the contract, from its integer sum. */
template <int T> __device__ inline float add_terms(const struct terms &w, float isum, struct act_scale a, float acc)
{
    acc = fmaf(isum, w.d * a.d, acc);
    if constexpr (layout_of(T).mins == 1)
        acc = fmaf(w.min[0], a.d * (float)(a.sum[0] + a.sum[1]), acc);
    if constexpr (layout_of(T).mins == 2) {
        acc = fmaf(w.min[0], a.d * (float)a.sum[0], acc);
        acc = fmaf(w.min[1], a.d * (float)a.sum[1], acc);
    }
    return acc;
}

/* The same from codes' dot products with the offset still in them. */
template <int T>
__device__ inline float add_block(const struct terms &w, const int32_t dot[2], int offset, struct act_scale a, float acc)
{
    int32_t isum;
    if constexpr (layout_of(T).halves)
        isum = w.scale[0] * (dot[0] - offset * a.sum[0]) + w.scale[1] * (dot[1] - offset * a.sum[1]);
    else
        isum = w.scale[0] * (dot[0] + dot[1] - offset * (a.sum[0] + a.sum[1]));
    return add_terms<T>(w, (float)isum, a, acc);
}

__device__ inline float with_bias(const struct product_part &part, int row, int mat, float x)
{
    return part.bias != NULL ? x + part.bias[(size_t)mat * (size_t)part.rows + (size_t)row] : x;
}

__device__ inline void store_output(const struct product_part &part, int col, int row, int mat, float x)
{
    part.out[(size_t)col * (size_t)part.rows + (size_t)row] = with_bias(part, row, mat, x);
}

#endif
