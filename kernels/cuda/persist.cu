/* A step of one row as one kernel (off unless persist_open was called; gpu-bench measures it beside graphs and overlap). The
 * phases of step.c record what they would launch: operations, each so many blocks of the bodies that the small kernels have
 * too, so bytes are the same. A cooperative kernel, as many blocks as the card holds at once, runs them in order: its blocks
 * share out an operation's blocks, then all meet at a barrier. After a product each asks for its weights of the next one, which
 * come while it waits and while others compute what lies between.
 *
 * The program of the last class of steps (graph.c) stays on the card; rows, positions and pages are read from device memory.
 * Bodies are functions of their own that run through all their blocks: a call costs once an operation, and ptxas keeps each
 * within its registers. Shared memory is one piece that the bodies use in turn. */
#include "kernels/cuda/attn_few.cuh"
#include "kernels/cuda/embed.cuh"
#include "kernels/cuda/one.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/row.cuh"

#include <assert.h>

enum {
    PERSIST_THREADS = 256, PERSIST_HEADS = 4, OPS_A_LAYER = 16, OPS_BESIDE = 5,
    FETCH_STEP = 32, FETCH_BYTES = 8 << 20 /* of weights at once, of all blocks: a guess at what L2 keeps beside the rest */
};
static_assert(CODE_GRID == 90, "what k_persist asks the preprocessor for");
static_assert((int)PERSIST_THREADS == (int)PRODUCT_THREADS && (int)PERSIST_THREADS == (int)FEW_THREADS &&
                  (int)PERSIST_THREADS == (int)ATTN_THREADS && (int)PERSIST_THREADS == (int)ROW_THREADS &&
                  (int)PERSIST_THREADS == (int)ANGLE_THREADS, "as the bodies want");

struct __align__(16) op {
    enum op_kind kind;
    int type;           /* of weights, or of the KV cache */
    int nx, ny, blocks; /* blocks = nx x ny x nz */
    int wide;           /* attention: heads of a block */
    int wave;           /* product: segments of a row at once; blocks take PRODUCT_WAVE / wave tiles */
    int fetch, tile_bytes;  /* product: of how many blocks the weights may be asked for before; a tile's */
    int index, next;    /* its own; the next product's, -1: none */
    union {
        struct embed_args embed;
        struct angles_args angles;
        struct norm_args norm;
        struct product product;
        struct one one;     /* begins with one */
        struct attn_args attn;
        struct gate_args gate;
        struct choose_args choose;
        struct blend_args blend;
    };
};

enum { OP_WORDS = sizeof(struct op) / sizeof(float4) };

#ifdef __CUDACC__
#define APART __noinline__
#else
#define APART
#endif

/* ---- helpers ---- */

/* f(block) for this block's share of the operation. */
template <class F> __device__ inline void each_block(const struct op &o, const F &f)
{
    for (int i = (int)blockIdx.x; i < o.blocks; i += (int)gridDim.x) {
        struct block_at b = {i % o.nx, i / o.nx % o.ny, i / o.nx / o.ny};
        f(b);
        __syncthreads(); /* shared memory is the next one's */
    }
}

/* Tiles past the end are the last one again, the same bytes twice. */
template <int T> __device__ APART void run_product(const struct op &o, float4 *room)
{
    each_block(o, [&](struct block_at b) {
        if constexpr (T == QTYPE_F16 || T == QTYPE_BF16) {
            half_few_block<T>(o.product, 1, b, (float(*)[TILE_ROWS][FEW_COLS])room);
        } else {
            int threads = o.wave * TILE_ROWS, tid = (int)threadIdx.x % threads, sub = (int)threadIdx.x / threads;
            b.x = b.x * (PERSIST_THREADS / threads) + sub;
            b.x = b.x < o.product.n_tile ? b.x : o.product.n_tile - 1;
            product_block<T, 1, const struct product &>(o.product, b, tid, o.wave, (float *)room + sub * o.wave);
        }
    });
}

template <int T> __device__ APART void run_embed(const struct op &o)
{
    each_block(o, [&](struct block_at b) { embed_block<T, PERSIST_THREADS>(o.embed, b); });
}

template <enum row_form F> __device__ APART void run_row(const struct one &o, one_row<F> row, float *x, bool keeps)
{
    make_row<F, 2>(o, row, x, keeps);
}

template <int T> __device__ APART void run_one(const struct op &o, float4 *room)
{
    one_block<T>(o.one, (int)blockIdx.x, (int)gridDim.x, room, run_row<row_form(T)>);
}

template <int T> __device__ inline void run_weights(const struct op &o, float4 *room)
{
    if (o.kind == OP_EMBED)
        run_embed<T>(o);
    else if (o.kind == OP_ONE && T != QTYPE_F32)
        run_one<T == QTYPE_F32 ? QTYPE_F16 : T>(o, room);
    else
        run_product<T>(o, room);
}

template <enum kv_type KV> __device__ APART void run_heads(const struct op &o, float4 *room)
{
    each_block(o, [&](struct block_at b) { heads_block<KV, ATTN_WARPS>(o.attn, b, (float *)room); });
}

template <enum kv_type KV> __device__ APART void run_make(const struct attn_args &a, const struct own_heads &own)
{
    make_heads<KV>(a, own);
}

__device__ APART static void run_finish(const struct attn_args &a, struct block_at b, int head0, int n, int n_part,
                                        struct state *run, struct factors *room, bool *is_last)
{
    finish_heads(a, b, head0, n, n_part, run, room, is_last);
}

template <enum kv_type KV, int G> __device__ APART void run_attn(const struct op &o, float4 *room)
{
    struct attn_shared<G> *shared = (struct attn_shared<G> *)room;
    float4 *more = (float4 *)(shared + 1);
    each_block(o, [&](struct block_at b) { attn_block<KV, G>(o.attn, b, shared, more, run_make<KV>, run_finish); });
}

template <enum kv_type KV> __device__ inline void run_cache(const struct op &o, float4 *room)
{
    if (o.kind == OP_HEADS)
        run_heads<KV>(o, room);
    else if (o.wide == 1)
        run_attn<KV, 1>(o, room);
    else
        run_attn<KV, PERSIST_HEADS>(o, room);
}

__device__ APART static void run_angles(const struct op &o)
{
    each_block(o, [&](struct block_at b) { angles_block(o.angles, b); });
}

__device__ APART static void run_norm(const struct op &o)
{
    each_block(o, [&](struct block_at b) { norm_block<PERSIST_THREADS>(o.norm, b); });
}

__device__ APART static void run_merge(const struct op &o)
{
    each_block(o, [&](struct block_at b) { merge_block(o.attn, b); });
}

__device__ APART static void run_gate(const struct op &o)
{
    each_block(o, [&](struct block_at b) { gate_block(o.gate, b); });
}

__device__ APART static void run_choose(const struct op &o)
{
    each_block(o, [&](struct block_at b) {
        if (threadIdx.x < WARP)
            choose_warp(o.choose, b);
    });
}

__device__ APART static void run_blend(const struct op &o)
{
    each_block(o, [&](struct block_at b) { blend_block(o.blend, b); });
}

__device__ inline void run_op(const struct op &o, float4 *room)
{
    switch (o.kind) {
    case OP_EMBED:
    case OP_PRODUCT:
    case OP_ONE:
        switch (o.type) {
#define QTYPE(name, id, n, block, mins)                                                                                \
    case QTYPE_##name: run_weights<QTYPE_##name>(o, room); break;
#include "kernels/qtypes.def"
#undef QTYPE
        }
        break;
    case OP_HEADS:
    case OP_ATTN:
        if (o.type == KV_F16)
            run_cache<KV_F16>(o, room);
        else if (o.type == KV_F32)
            run_cache<KV_F32>(o, room);
        else
            run_cache<KV_Q8_0>(o, room);
        break;
    case OP_ANGLES: run_angles(o); break;
    case OP_NORM: run_norm(o); break;
    case OP_MERGE: run_merge(o); break;
    case OP_GATE: run_gate(o); break;
    case OP_CHOOSE: run_choose(o); break;
    case OP_BLEND: run_blend(o); break;
    }
}

__host__ __device__ static inline bool is_product(const struct op &o)
{
    return o.kind == OP_PRODUCT || o.kind == OP_ONE;
}

/* Asks for the codes that this block will multiply in product o. */
[[maybe_unused]] __device__ APART static void fetch_weights(const struct op &o)
{
    const struct product &p = o.product;
    int tiles = PRODUCT_WAVE / o.wave;
    for (int i = (int)blockIdx.x; i < o.fetch; i += (int)gridDim.x)
        for (int j = 0; j < tiles && i * tiles + j < p.n_tile; j++) {
            int tile = i * tiles + j;
            struct product_part part = part_of(p, &tile);
            const char *w = (const char *)part.w + (size_t)tile * (size_t)o.tile_bytes;
            for (int at = (int)threadIdx.x * FETCH_STEP; at < o.tile_bytes; at += PERSIST_THREADS * FETCH_STEP)
                prefetch_l2(w + at);
        }
}

/* ---- kernels ---- */

/* arrived: what the barrier has counted before. The operation is in shared memory, what follows it is the bodies'. */
__global__ static void __launch_bounds__(PERSIST_THREADS, 2) k_persist(const struct op *ops, int n_op, uint32_t *arrivals,
                                                                       uint32_t arrived)
{
    kernel_begin();
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* CODE_GRID, which is no macro; older code is never asked for it */
    DYNAMIC_SHARED(float4, shared);
    const struct op &o = *(const struct op *)shared;
    int word = (int)threadIdx.x % OP_WORDS;
    if (n_op == 0)
        return;
    if (ops->next >= 0)
        fetch_weights(ops[ops->next]);
    shared[word] = ((const float4 *)ops)[word];
    __syncthreads();
    for (;;) {
        run_op(o, shared + OP_WORDS);
        if (o.index + 1 == n_op) /* not a variable: it would be saved around every call */
            break;
        if (is_product(o) && o.next >= 0)
            fetch_weights(ops[o.next]);
        float4 part = ((const float4 *)(ops + o.index + 1))[word]; /* on its way meanwhile */
        grid_barrier(arrivals, arrived + (uint32_t)(o.index + 1) * gridDim.x);
        shared[word] = part;
        __syncthreads();
    }
#endif
}

/* ---- recording ---- */

static struct op *add(struct cuda *k, enum op_kind kind, int type, int nx, int ny, int nz, const void *args, size_t bytes)
{
    struct persist *p = &k->persist;
    assert(p->n_op < p->max_op && bytes <= sizeof(struct op) - offsetof(struct op, embed));
    struct op *o = &p->host_ops[p->n_op];
    memset(o, 0, sizeof *o);
    memcpy(&o->embed, args, bytes);
    o->kind = kind;
    o->type = type;
    o->nx = nx;
    o->ny = ny;
    o->blocks = nx * ny * nz;
    o->index = p->n_op++;
    return o;
}

extern "C" void persist_add(struct cuda *k, enum op_kind kind, int type, int nx, int ny, const void *args, size_t bytes)
{
    (void)add(k, kind, type, nx, ny, 1, args, bytes);
}

extern "C" void persist_attn(struct cuda *k, const struct attn_args *args, int splits)
{
    struct attn_args a = *args;
    int heads = heads_at_once(&a) > 1 ? PERSIST_HEADS : 1, group = a.n_head / a.kv.n_kv_head;
    a.passes = (group + heads - 1) / heads;
    add(k, OP_ATTN, k->cfg.kv_type, splits, a.kv.n_kv_head * a.passes, k->n_rows, &a, sizeof a)->wide = heads;
}

static void may_fetch(struct op *o, int wave, int blocks)
{
    o->wave = wave;
    o->tile_bytes = o->product.n_seg * layout_of(o->type).chunks * CHUNK_BYTES * TILE_ROWS;
    int most = FETCH_BYTES / o->tile_bytes / (PRODUCT_WAVE / wave);
    o->fetch = o->product.which != NULL ? 0 : blocks < most ? blocks : most; /* which expert's nobody knows yet */
}

extern "C" void persist_product(struct cuda *k, enum qtype type, const struct product *p)
{
    bool half = type == QTYPE_F16 || type == QTYPE_BF16;
    int wave = half ? PRODUCT_WAVE : FEW;
    /* Several tiles a block only where each block of the card gets some. */
    while (wave < PRODUCT_WAVE && (wave < p->n_seg || p->n_tile * wave < (int)k->persist.blocks * PRODUCT_WAVE))
        wave *= 2;
    int tiles = PRODUCT_WAVE / wave;
    struct op *o = add(k, OP_PRODUCT, type, (p->n_tile + tiles - 1) / tiles, p->n_col, 1, p, sizeof *p);
    o->product.prefetch = false;
    may_fetch(o, wave, o->nx);
}

extern "C" void persist_one(struct cuda *k, enum qtype type, const struct one *one)
{
    struct op *o = add(k, OP_ONE, type, 1, 1, 1, one, sizeof *one);
    with_one_type(type, [&](auto t) { one_share_out<decltype(t)::value>(&o->one, (int)k->persist.blocks); });
    may_fetch(o, PRODUCT_WAVE, o->product.n_tile);
}

/* ---- the step ---- */

extern "C" enum step_mode persist_begin(struct cuda *k)
{
    struct persist *p = &k->persist;
    if (p->slot == k->slot)
        return STEP_RERUN;
    p->slot = NULL;
    p->n_op = 0;
    return STEP_RECORD;
}

static void upload(struct cuda *k)
{
    struct persist *p = &k->persist;
    for (int i = p->n_op - 1, next = -1; i >= 0; i--) {
        p->host_ops[i].next = next;
        next = is_product(p->host_ops[i]) ? i : next;
    }
    (void)cudaMemcpyAsync(p->ops, p->host_ops, (size_t)p->n_op * sizeof *p->ops, cudaMemcpyHostToDevice, k->stream);
    CU_NOTE(k, "persistent kernel's program");
    p->slot = k->slot;
}

static void launch(struct cuda *k)
{
    struct persist *p = &k->persist;
    LAUNCH_TOGETHER(k, k_persist, p->blocks, PERSIST_THREADS, p->shared, (const struct op *)p->ops, p->n_op, p->arrivals, p->arrived);
    p->arrived += p->n_op > 0 ? (uint32_t)(p->n_op - 1) * p->blocks : 0;
    CU_NOTE(k, "persistent kernel");
}

/* Tokens are drawn by the kernel of its own: it wants more threads a block. */
extern "C" void persist_end(struct cuda *k)
{
    if (!k->has_head)
        return; /* stopped half way: what was recorded is dropped */
    if (k->mode == STEP_RECORD)
        upload(k);
    if (k->failed == cudaSuccess) /* else what the card holds may be no program */
        launch(k);
    if (k->draws)
        launch_draw(k);
}

/* ---- open, close ---- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The largest products of one column, of any type. */
static size_t one_bytes(const struct kern_config *c)
{
    int heads = c->n_head * c->head_dim, widest = heads > c->n_ff ? heads : c->n_ff;
    struct one norm = {}, row = {};
    size_t most = 0;
    norm.source.kind = SOURCE_NORM;
    norm.p.n_seg = layout_segments(c->dim);
    row.p.n_seg = layout_segments(widest);
    for (int type = 0; type < QTYPE_N; type++)
        with_one_type((enum qtype)type, [&](auto t) {
            most = larger(most, larger(one_shared<decltype(t)::value>(&norm), one_shared<decltype(t)::value>(&row)));
        });
    return most;
}

/* What operations need; those products of one column that do not fit take the other way (one_suits). */
static size_t room_bytes(const struct cuda *k)
{
    const struct kern_config *c = &k->cfg;
    struct attn_args a = {};
    a.n_head = c->n_head;
    a.kv.n_kv_head = c->n_kv_head;
    a.kv.head_dim = c->head_dim;
    int heads = heads_at_once(&a) > 1 ? PERSIST_HEADS : 1;
    size_t attn = heads * sizeof(struct attn_shared<1>) + (size_t)attn_more_floats(heads, c->head_dim) * sizeof(float);
    size_t few = sizeof(float[HALF_WAVE][TILE_ROWS][FEW_COLS]); /* more than other products and heads take */
    size_t one = one_bytes(c), most = (size_t)(k->shared_most - ONE_STATIC) - sizeof(struct op);
    return larger(larger(attn, few), one < most ? one : most);
}

extern "C" size_t persist_bytes(const struct kern_config *c)
{
    return (size_t)(c->n_layer * OPS_A_LAYER + OPS_BESIDE) * sizeof(struct op);
}

extern "C" void persist_close(struct cuda *k)
{
    struct persist *p = &k->persist;
    (void)cudaFreeHost(p->host_ops);
    p->host_ops = NULL;
    p->slot = NULL;
    p->blocks = 0;
}

/* Takes host memory and launches the kernel once with nothing to do: what a card cannot do is known then. */
extern "C" bool persist_open(struct cuda *k, struct err *err)
{
    struct persist *p = &k->persist;
    int can = 0, blocks = 0, index = k->cfg.device_index;
    if (k->code < CODE_GRID)
        return err_set(err, ERR_DEVICE, "device cuda:%d: no persistent kernel: the code that runs is for compute capability %d.%d",
                       index, k->code / 10, k->code % 10);
    p->room = room_bytes(k);
    p->shared = sizeof(struct op) + p->room;
    p->max_op = (int)(persist_bytes(&k->cfg) / sizeof(struct op));
    p->arrived = 0;
    cudaError_t e = cudaDeviceGetAttribute(&can, cudaDevAttrCooperativeLaunch, index);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(k_persist, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)p->shared);
    if (e == cudaSuccess)
        e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, k_persist, PERSIST_THREADS, p->shared);
    if (e == cudaSuccess && (can == 0 || blocks == 0))
        return err_set(err, ERR_DEVICE, "device cuda:%d: no persistent kernel: the card has no cooperative launches, or no room", index);
    e = e == cudaSuccess ? cudaMallocHost((void **)&p->host_ops, persist_bytes(&k->cfg)) : e;
    e = e == cudaSuccess ? cudaMemsetAsync(p->arrivals, 0, sizeof *p->arrivals, k->stream) : e;
    if (e == cudaSuccess) {
        p->blocks = (unsigned)(blocks * k->n_sm);
        LAUNCH_TOGETHER(k, k_persist, p->blocks, PERSIST_THREADS, p->shared, (const struct op *)p->ops, 0, p->arrivals, 0u);
        e = cudaGetLastError();
    }
    e = e == cudaSuccess ? cudaStreamSynchronize(k->stream) : e;
    if (e == cudaSuccess)
        return true;
    (void)cudaStreamSynchronize(k->stream);
    (void)cudaGetLastError();
    persist_close(k);
    return err_set(err, ERR_DEVICE, "device cuda:%d: no persistent kernel: %s", index, cudaGetErrorString(e));
}
