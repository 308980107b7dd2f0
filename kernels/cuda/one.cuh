/* The product for one column (one.cu): what decoding one sequence does all the time, so it waits for nothing but memory. A
 * block asks for its first weights, makes the row of activations that it multiplies in shared memory (a norm and its
 * quantisation are done by every block: that is sooner than a kernel of their own), and goes through its tiles while the
 * weights of the next ones come: a ring of stages, in which a thread reads what it copied itself.
 *
 * A thread has one segment of one row of quantised weights (8 threads a segment of a tile), or a warp a segment of halves; the
 * segments' sums are added in index order by one thread a row, as everywhere. */
#ifndef KERNELS_CUDA_ONE_CUH
#define KERNELS_CUDA_ONE_CUH

#include "kernels/cuda/fragment.cuh"
#include "kernels/cuda/half_few.cuh"
#include "kernels/cuda/product_few.cuh"
#include "kernels/cuda/row.cuh"

enum {
    ONE_THREADS = 256, ONE_RING = 72 << 10, /* bytes of stages: two blocks a multiprocessor have 140 KB under way */
    ONE_STATIC = 1024,                      /* static shared memory at most */
    ROW_STEP = 4 * ONE_THREADS,
    CODE_PITCH = SEGMENT + 16               /* of a segment's codes in shared memory: neighbours in other banks */
};

template <int T> struct one_shape {
    static constexpr bool half = T == QTYPE_F16 || T == QTYPE_BF16;
    static constexpr int lanes = half ? (int)WARP : (int)TILE_ROWS;     /* threads that have a segment of a tile */
    static constexpr int slots = ONE_THREADS / lanes;         /* segments at once */
    static constexpr int chunks = half ? (int)SEGMENT_BLOCKS : layout_of(T).chunks, words = layout_of(T).head_words; /* a thread's */
    static constexpr int stage = ONE_THREADS * (chunks * CHUNK_BYTES + words * 4);
    static constexpr int stages = 4 * stage <= ONE_RING ? 4 : 3 * stage <= ONE_RING ? 3 : 2;
    static constexpr int sum_row = slots + 4, sums = 2 * TILE_ROWS * sum_row * 4;
    static constexpr int act_segment = half ? SEGMENT * 2 : CODE_PITCH + SEGMENT_BLOCKS * (int)sizeof(struct act_scale);
};

/* Bytes of a block's shared memory. */
template <int T> static inline size_t one_shared(const struct one *o)
{
    int floats = o->source.kind == SOURCE_NORM ? o->p.n_seg * SEGMENT : 0;
    return (size_t)(one_shape<T>::stages * one_shape<T>::stage + one_shape<T>::sums + o->p.n_seg * one_shape<T>::act_segment) +
           (size_t)floats * sizeof(float);
}

/* Several tiles a block only where every block gets some: each that has none leaves a multiprocessor without work. */
template <int T> static inline void one_share_out(struct one *o, int most)
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

/* f(constant of the type), for those that there are. */
template <class F> static inline void with_one_type(enum qtype type, const F &f)
{
    if (type == QTYPE_F16)
        f(qtype_constant<QTYPE_F16>());
    else if (type == QTYPE_BF16)
        f(qtype_constant<QTYPE_BF16>());
    else
        with_quantised(type, f);
}

/* The row in shared memory: codes and scales, or halves. */
enum row_form { ROW_CODES, ROW_F16, ROW_BF16 };

LAYOUT_FN enum row_form row_form(int type)
{
    return type == QTYPE_F16 ? ROW_F16 : type == QTYPE_BF16 ? ROW_BF16 : ROW_CODES;
}

template <enum row_form F> struct one_row {
    uint8_t *code;
    struct act_scale *scale;
    __device__ one_row(void *room, int n_seg)
        : code((uint8_t *)room), scale((struct act_scale *)((uint8_t *)room + n_seg * CODE_PITCH)) {}
    __device__ uint16_t *half_at(int i) const { return (uint16_t *)code + i; }
    __device__ int8_t *code_at(int i) const { return (int8_t *)code + i / SEGMENT * CODE_PITCH + i % SEGMENT; }

    /* Elements i .. i + 3 of the row; a warp has a segment. */
    __device__ void store(int i, const float x[4]) const
    {
        if constexpr (F != ROW_CODES) {
            for (int e = 0; e < 4; e++)
                half_at(i)[e] = F == ROW_F16 ? round_f16(x[e]) : round_bf16(x[e]);
        } else {
            float most = fabsf(x[0]), inv;
            for (int e = 1; e < 4; e++)
                most = fmaxf(most, fabsf(x[e]));
            for (int lane = 1; lane < NUM_BLOCK / 4; lane *= 2)
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, lane));
            float d = num_quant_scale(most, &inv);
            uint32_t word = 0;
            int sum = 0;
            for (int e = 0; e < 4; e++) {
                int8_t q = num_quant(x[e], inv);
                sum += q;
                word |= (uint32_t)(uint8_t)q << 8 * e;
            }
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            int high = __shfl_xor_sync(ALL_LANES, sum, 4);
            *(uint32_t *)code_at(i) = word;
            if (i % NUM_BLOCK == 0)
                scale[i / NUM_BLOCK] = {d, {(int16_t)sum, (int16_t)high}};
        }
    }

    /* The row as it lies in memory. */
    __device__ void copy(const struct product &p) const
    {
        int n = p.n_seg * SEGMENT;
        if constexpr (F != ROW_CODES) {
            for (int i = 8 * (int)threadIdx.x; i < n; i += 8 * ONE_THREADS)
                *(uint4 *)half_at(i) = *(const uint4 *)((F == ROW_F16 ? p.act.f16 : p.act.bf16) + i);
        } else {
            for (int i = 16 * (int)threadIdx.x; i < n; i += 16 * ONE_THREADS)
                *(uint4 *)code_at(i) = *(const uint4 *)(p.act.q + i);
            for (int i = (int)threadIdx.x; i < n / NUM_BLOCK; i += ONE_THREADS)
                scale[i] = p.act.s[i];
        }
    }
};

/* A thread's share of n floats: N fours of neighbours, ROW_STEP apart, zeros past the end. All its loads are under way at once. */
template <int N> struct fours {
    float v[N][4];
    __device__ void load(const float *from, int i, int n)
    {
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = i + j * ROW_STEP;
            if (n % 4 == 0) {
                float4 x = at < n ? *(const float4 *)(from + at) : float4{0, 0, 0, 0};
                v[j][0] = x.x;
                v[j][1] = x.y;
                v[j][2] = x.z;
                v[j][3] = x.w;
                continue;
            }
#pragma unroll
            for (int e = 0; e < 4; e++)
                v[j][e] = at + e < n ? from[at + e] : 0;
        }
    }
};

/* x = the residual with its pending branch, n floats in shared memory, zeros up to `end`; one block keeps it for the kernels to
 * come. */
template <int N> __device__ inline void add_pending(const struct source &s, int n, int end, float *x, bool keeps)
{
    bool normed = s.y != NULL && s.pending_norm != NULL;
    struct fours<N> old, y, w;
    float post = 0;
    for (int i = 4 * (int)threadIdx.x; normed && i < end; i += N * ROW_STEP) {
        y.load(s.y, i, n);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (i + j * ROW_STEP < end)
                *(float4 *)(x + i + j * ROW_STEP) = {y.v[j][0], y.v[j][1], y.v[j][2], y.v[j][3]};
    }
    if (normed) {
        __syncthreads();
        post = norm_scale(x, n, s.eps);
    }
    for (int i = 4 * (int)threadIdx.x; i < end; i += N * ROW_STEP) {
        old.load(s.x, i, n);
        if (s.y != NULL)
            y.load(s.y, i, n);
        if (normed)
            w.load(s.pending_norm, i, n);
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = i + j * ROW_STEP;
            for (int e = 0; e < 4 && at < end; e++) {
                float v = normed ? old.v[j][e] + y.v[j][e] * post * w.v[j][e] : s.y != NULL ? old.v[j][e] + y.v[j][e] : old.v[j][e];
                x[at + e] = v;
                if (keeps && s.sum != NULL && at + e < n)
                    s.sum[at + e] = v;
            }
        }
    }
    __syncthreads();
}

/* What comes from memory for the first elements is on its way while the norm is computed. */
template <enum row_form F, int N> __device__ inline void make_row(const struct one &o, const one_row<F> &row, float *x, bool keeps)
{
    const struct source &s = o.source;
    bool normed = s.kind == SOURCE_NORM;
    int n = o.p.cols, end = o.p.n_seg * SEGMENT;
    float scale = 1;
    struct fours<N> own;
    if (s.kind == SOURCE_ACT) {
        row.copy(o.p);
        return;
    }
    int i = 4 * (int)threadIdx.x;
    own.load(normed ? s.norm : s.x, i, n);
    if (normed) {
        add_pending<N>(s, n, end, x, keeps);
        scale = norm_scale(x, n, s.eps);
    }
    while (i < end) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            int at = i + j * ROW_STEP;
            if (at >= end)
                break;
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (normed)
                    own.v[j][e] = at + e < n ? x[at + e] * scale * own.v[j][e] : 0;
            row.store(at, own.v[j]);
        }
        i += N * ROW_STEP;
        own.load(normed ? s.norm : s.x, i, n);
    }
}

/* Where a block is among its tiles: a unit is as many tiles as it takes at once, or pairs of a gate's and an up's. */
struct walk {
    int unit, part, round;
    __device__ void go_on(const struct one &o, int n_block)
    {
        if (++round < o.rounds)
            return;
        round = 0;
        if (++part < (o.h != NULL ? 2 : 1))
            return;
        part = 0;
        unit += n_block;
    }
};

/* What a thread has there. */
struct one_task {
    struct product_part part;
    int tile, segment;  /* tile < 0: nothing */
};

__device__ inline struct one_task task_at(const struct one &o, const struct walk &w, int sub, int segment)
{
    struct one_task t;
    t.tile = w.unit * o.tiles_at_once + sub;
    t.segment = w.round * o.wave + segment;
    bool there = w.unit < o.n_unit && t.tile < o.n_tile && t.segment < o.p.n_seg;
    if (o.h != NULL)
        t.part = o.p.part[w.part];
    else
        t.part = part_of(o.p, &t.tile);
    t.tile = there ? t.tile : -1;
    return t;
}

template <int T> __device__ inline void ask_for(const struct one &o, const struct one_task &t, int lane, uint8_t *stage)
{
    using shape = one_shape<T>;
    int tid = (int)threadIdx.x, row = shape::half ? lane / 4 : lane;
    if (t.tile >= 0) {
        struct place at = place_of<T>(t.part.w, 1, t.part.n_tile, o.p.n_seg, 0, t.tile, t.segment, row);
#pragma unroll
        for (int c = 0; c < shape::chunks; c++)
            copy_async(stage + (c * ONE_THREADS + tid) * CHUNK_BYTES,
                       at.code + (shape::half ? 4 * c + lane % 4 : c) * TILE_ROWS * CHUNK_WORDS);
#pragma unroll
        for (int i = 0; i < shape::words; i++)
            copy_async_word(stage + ONE_THREADS * (shape::chunks * CHUNK_BYTES) + (tid * shape::words + i) * 4, at.head + i);
    }
    copy_close();
}

/* The segment's chain. */
template <int T>
__device__ inline float sum_of(const struct one &o, const struct one_task &t, const one_row<row_form(T)> &row, int lane, const uint8_t *stage)
{
    using shape = one_shape<T>;
    int tid = (int)threadIdx.x, n_block = (o.p.cols + NUM_BLOCK - 1) / NUM_BLOCK - t.segment * SEGMENT_BLOCKS;
    uint4 w[shape::chunks];
#pragma unroll
    for (int c = 0; c < shape::chunks; c++)
        w[c] = *(const uint4 *)(stage + (c * ONE_THREADS + tid) * CHUNK_BYTES);
    if constexpr (shape::half) {
        float acc[4];
        sum_segment<T>(w, row.half_at(t.segment * SEGMENT + 8 * (lane % 4)), lane < 4, n_block, acc);
        return acc[0];
    } else {
        struct segment_words<T> words;
#pragma unroll
        for (int c = 0; c < shape::chunks; c++)
            words.set(c, w[c]);
        const uint32_t *head_at = (const uint32_t *)(stage + ONE_THREADS * (shape::chunks * CHUNK_BYTES)) + tid * shape::words;
        struct head head = load_head<T>(head_at, t.segment % 2);
        float acc = 0;
#pragma unroll
        for (int j = 0; j < SEGMENT_BLOCKS; j++) {
            uint32_t lo[4], hi[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                codes<T>(words, j, i, &lo[i], &hi[i]);
            const int4 *q = (const int4 *)row.code_at(t.segment * SEGMENT + j * NUM_BLOCK);
            int32_t dot[2] = {dot_16(lo, q[0]), dot_16(hi, q[1])};
            float sum = add_block<T>(terms_of<T>(head, j), dot, layout_of(T).offset, row.scale[t.segment * SEGMENT_BLOCKS + j], acc);
            acc = j < n_block ? sum : acc;
        }
        return acc;
    }
}

/* Block `block` of n_block that share the product. room: one_shared bytes. make: make_row. */
template <int T, class M> __device__ inline void one_block(const struct one &o, int block, int n_block, float4 *room, const M &make)
{
    using shape = one_shape<T>;
    int tid = (int)threadIdx.x, lane = tid % shape::lanes, slot = tid / shape::lanes;
    int sub = slot / o.wave, segment = slot % o.wave, adder = tid / TILE_ROWS, adder_row = tid % TILE_ROWS;
    uint8_t *ring = (uint8_t *)room;
    float *sums = (float *)(ring + shape::stages * shape::stage);
    one_row<row_form(T)> row((uint8_t *)sums + shape::sums, o.p.n_seg);
    float *x = (float *)((uint8_t *)sums + shape::sums + o.p.n_seg * shape::act_segment);
    struct walk here = {block, 0, 0}, ahead = here;
    for (int i = 0; i < shape::stages; i++, ahead.go_on(o, n_block))
        ask_for<T>(o, task_at(o, ahead, sub, segment), lane, ring + i * shape::stage);
    if (o.source.kind == SOURCE_NORM && tid * WARP < o.p.cols)
        prefetch_l2(o.source.norm + tid * WARP);
    kernel_begin();
    make(o, row, x, block == 0);
    __syncthreads();
    float total = 0, gate = 0;
    int at = 0, side = 0;
#pragma unroll 1
    for (; here.unit < o.n_unit; here.go_on(o, n_block), ahead.go_on(o, n_block)) {
        struct one_task t = task_at(o, here, sub, segment);
        copy_wait<shape::stages - 1>();
        float acc = t.tile >= 0 ? sum_of<T>(o, t, row, lane, ring + at * shape::stage) : 0;
        ask_for<T>(o, task_at(o, ahead, sub, segment), lane, ring + at * shape::stage);
        at = at + 1 < shape::stages ? at + 1 : 0;
        if (!shape::half || lane % 4 == 0)
            sums[(side * TILE_ROWS + (shape::half ? lane / 4 : lane)) * shape::sum_row + slot] = acc;
        __syncthreads();
        if (adder < o.tiles_at_once) {
            const float *from = sums + (side * TILE_ROWS + adder_row) * shape::sum_row + adder * o.wave;
            int n = o.p.n_seg - here.round * o.wave;
            n = n < o.wave ? n : o.wave;
            total = here.round > 0 ? total + from[0] : shape::half ? 0 + from[0] : from[0];
#pragma unroll 8
            for (int i = 1; i < n; i++)
                total = total + from[i];
            if (here.round + 1 == o.rounds) {
                struct one_task mine = task_at(o, here, adder, 0);
                int out = mine.tile * TILE_ROWS + adder_row;
                if (mine.tile >= 0 && out < mine.part.rows) {
                    float y = with_bias(mine.part, out, 0, total);
                    if (o.h == NULL)
                        mine.part.out[out] = y;
                    else if (here.part == 1)
                        o.h[out] = ffn_gated(o.ffn, gate, y);
                    gate = y;
                }
            }
        }
        side = !side;
    }
}

#endif
