/* What the products on the tensor cores for bytes share (few.cu, tile.cu): one block of 32 of 16 rows x 8 columns, and the
 * contract's chain behind it. */
#ifndef KERNELS_CUDA_FRAGMENT_CUH
#define KERNELS_CUDA_FRAGMENT_CUH

#include "kernels/cuda/product.cuh"

/* Sums of bytes begin at the bits of 1.5 x 2^23: with 2^22 on either side they are, as floats, wrong by that alone, and no
 * conversion is needed. */
enum { SUM_BITS = 0x4B400000 };
#define SUM_SHIFT 12582912.0f

/* A row's terms of a block, scales as floats. */
struct row_terms {
    float d, scale[2], min[2];
};

template <int T> __device__ inline struct row_terms row_terms_of(const struct head &h, int j)
{
    struct terms t = terms_of<T>(h, j);
    return {t.d, {(float)t.scale[0], (float)t.scale[1]}, {t.min[0], t.min[1]}};
}

/* The terms that another lane of the warp has; scales of blocks of 256 are the same in all. */
template <int T> __device__ inline struct row_terms from_lane(const struct row_terms &mine, int lane)
{
    constexpr struct layout l = layout_of(T);
    struct row_terms t = mine;
#pragma unroll
    for (int i = 0; i < 1 + l.halves; i++)
        t.scale[i] = __shfl_sync(ALL_LANES, mine.scale[i], lane);
#pragma unroll
    for (int i = 0; i < l.mins; i++)
        t.min[i] = __shfl_sync(ALL_LANES, mine.min[i], lane);
    return t;
}

/* A column's terms of a segment in 16-byte units: scales, then what minimums are multiplied by; with two minimums as struct
 * act_scale. */
template <int T> struct col_units {
    static constexpr int n = layout_of(T).mins == 0 ? 1 : 2, row = SEGMENT_BLOCKS * 8 / CHUNK_BYTES; /* used, and from segment to segment */
};
static_assert(sizeof(struct act_terms) == 2 * CHUNK_BYTES && sizeof(struct act_scale) * SEGMENT_BLOCKS == 2 * CHUNK_BYTES, "units of terms");

template <int T> __device__ inline const uint4 *col_plane(const struct product &p)
{
    return layout_of(T).mins == 2 ? (const uint4 *)p.act.s : (const uint4 *)p.act.t;
}

/* A column's terms of a block. */
struct col_terms {
    float d, m[2];
};

/* Those of block j, from the words of a column's units. */
template <int T, class Words> __device__ inline struct col_terms col_terms_of(const Words &w, int j)
{
    struct col_terms c = {num_from_bits(w[layout_of(T).mins == 2 ? 2 * j : j]), {0, 0}};
    if constexpr (layout_of(T).mins == 1)
        c.m[0] = num_from_bits(w[SEGMENT_BLOCKS + j]);
    if constexpr (layout_of(T).mins == 2) {
        c.m[0] = c.d * (float)(int16_t)w[2 * j + 1];
        c.m[1] = c.d * (float)(int16_t)(w[2 * j + 1] >> 16);
    }
    return c;
}

/* scale x (x - SUM_SHIFT), which is an integer below 2^24: any way to it is exact, this is one instruction. */
__device__ inline float scaled(float scale, float x)
{
    return fmaf(scale, x, -(scale * SUM_SHIFT));
}

/* One block of 32 for 16 rows x 8 columns: a = the weights' fragment, b = the columns'; w = rows g and g + 8, c = columns
 * 2 t and 2 t + 1. */
template <int T>
__device__ inline void add_fragment(const uint32_t a[4], uint32_t b0, uint32_t b1, const struct row_terms w[2],
                                    const struct col_terms c[2], float acc[4])
{
    constexpr struct layout l = layout_of(T);
    constexpr bool scales = is_super(T); /* the others' scales are 1 */
    int32_t dot[2][4] = {{SUM_BITS, SUM_BITS, SUM_BITS, SUM_BITS}, {SUM_BITS, SUM_BITS, SUM_BITS, SUM_BITS}};
    if constexpr (l.halves) {
        mma_16x8x16(dot[0], a[0], a[1], b0);
        mma_16x8x16(dot[1], a[2], a[3], b1);
    } else {
        mma_16x8x32(dot[0], a, b0, b1);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const struct row_terms &r = w[e / 2];
        const struct col_terms &k = c[e % 2];
        float x = num_from_bits((uint32_t)dot[0][e]), isum;
        if constexpr (l.halves)
            isum = fmaf(r.scale[0], x - SUM_SHIFT, scaled(r.scale[1], num_from_bits((uint32_t)dot[1][e])));
        else if constexpr (scales)
            isum = scaled(r.scale[0], x);
        else
            isum = x - SUM_SHIFT;
        acc[e] = fmaf(isum, r.d * k.d, acc[e]);
#pragma unroll
        for (int i = 0; i < l.mins; i++)
            acc[e] = fmaf(r.min[i], k.m[i], acc[e]);
    }
}

/* ---- launchers ---- */

template <int T> struct qtype_constant {
    static constexpr int value = T;
};

/* f(constant of the type), for the quantised ones. */
template <class F> static void with_quantised(enum qtype type, const F &f)
{
    switch (type) {
#define QTYPE(name, id, n, block, mins)                                                                                \
    case QTYPE_##name:                                                                                                 \
        if constexpr (is_quantised(QTYPE_##name))                                                                      \
            f(qtype_constant<QTYPE_##name>());                                                                         \
        break;
#include "kernels/qtypes.def"
#undef QTYPE
    case QTYPE_N: break;
    }
}

#endif
