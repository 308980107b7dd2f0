/* From GGUF's blocks to the packed form (layout.h, decode.cuh), and from the packed form to embeddings. A thread packs one
 * row's segment. The layouts read here are those of blocks.h; qtype.c is the same knowledge for the host. */
#include "kernels/cuda/embed.cuh"

enum { PACK_THREADS = 128 };

/* ---- helpers: raw blocks; p is the block that holds the segment's first weight ---- */

__device__ static uint32_t raw_half(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8; /* blocks are not aligned */
}

/* Code (without offset or table) of weight k of 32-block j. b: the block; j: 0, or 0..7 in a block of 256. */
template <int T> __device__ static uint32_t raw_code(const uint8_t *b, int j, int k)
{
    if constexpr (T == QTYPE_Q8_0)
        return b[2 + k];
    if constexpr (T == QTYPE_Q4_0 || T == QTYPE_IQ4_NL)
        return b[2 + k % 16] >> 4 * (k / 16) & 15;
    if constexpr (T == QTYPE_MXFP4)
        return b[1 + k % 16] >> 4 * (k / 16) & 15;
    if constexpr (T == QTYPE_Q4_1)
        return b[4 + k % 16] >> 4 * (k / 16) & 15;
    if constexpr (T == QTYPE_Q5_0)
        return (b[6 + k % 16] >> 4 * (k / 16) & 15) | (b[2 + k / 8] >> k % 8 & 1) << 4;
    if constexpr (T == QTYPE_Q5_1)
        return (b[8 + k % 16] >> 4 * (k / 16) & 15) | (b[4 + k / 8] >> k % 8 & 1) << 4;
    if constexpr (T == QTYPE_Q2_K) {
        const struct block_q2_k *q = (const struct block_q2_k *)b;
        return q->qs[32 * (j / 4) + k] >> 2 * (j % 4) & 3;
    }
    if constexpr (T == QTYPE_Q3_K) {
        const struct block_q3_k *q = (const struct block_q3_k *)b;
        return (q->qs[32 * (j / 4) + k] >> 2 * (j % 4) & 3) | (q->hmask[k] >> j & 1) << 2;
    }
    if constexpr (T == QTYPE_Q4_K)
        return ((const struct block_q4_k *)b)->qs[32 * (j / 2) + k] >> 4 * (j % 2) & 15;
    if constexpr (T == QTYPE_Q5_K) {
        const struct block_q5_k *q = (const struct block_q5_k *)b;
        return (q->qs[32 * (j / 2) + k] >> 4 * (j % 2) & 15) | (q->qh[k] >> j & 1) << 4;
    }
    if constexpr (T == QTYPE_Q6_K) {
        const struct block_q6_k *q = (const struct block_q6_k *)b;
        uint32_t low = q->ql[64 * (j / 4) + 32 * (j & 1) + k] >> (j % 4 >= 2 ? 4 : 0) & 15;
        return low | (q->qh[32 * (j / 4) + k] >> 2 * (j % 4) & 3) << 4;
    }
    if constexpr (T == QTYPE_IQ4_XS)
        return ((const struct block_iq4_xs *)b)->qs[16 * j + k % 16] >> 4 * (k / 16) & 15;
    return 0;
}

/* Whether a block's scale or minimum is NaN or infinite; of float weights, whether one is. As qtype_finite (qtype.c). */
template <int T> __device__ static bool is_damaged(const uint8_t *b)
{
    if constexpr (T == QTYPE_MXFP4)
        return b[0] == 0xFF;
    if constexpr (T == QTYPE_F32)
        return ((raw_half(b + 2) >> 7) & 0xFF) == 0xFF;
    if constexpr (T == QTYPE_BF16)
        return ((raw_half(b) >> 7) & 0xFF) == 0xFF;
    constexpr size_t at = T == QTYPE_Q2_K   ? offsetof(struct block_q2_k, d)
                          : T == QTYPE_Q3_K ? offsetof(struct block_q3_k, d)
                          : T == QTYPE_Q6_K ? offsetof(struct block_q6_k, d)
                                            : 0;
    constexpr bool two = T != QTYPE_F16 && layout_of(T).mins > 0; /* the minimums' scale follows */
    return (raw_half(b + at) & 0x7C00) == 0x7C00 || (two && (raw_half(b + at + 2) & 0x7C00) == 0x7C00);
}

/* The four bytes of weights 16 h + 4 t .. + 3, bits [at, at + n) of each. */
template <int T> __device__ static uint32_t gather(const uint8_t *b, int j, int h, int t, int at, int n)
{
    uint32_t w = 0;
    for (int i = 0; i < 4; i++)
        w |= (raw_code<T>(b, j, 16 * h + 4 * t + i) >> at & ((1u << n) - 1)) << 8 * i;
    return w;
}

/* The parts of a packed word, as decode.cuh lists them. */
template <int T> __device__ static uint32_t nibble_word(const uint8_t *b, int j, int t)
{
    return gather<T>(b, j, 0, t, 0, 4) | gather<T>(b, j, 1, t, 0, 4) << 4;
}

template <int T> __device__ static uint32_t two_bit_word(const uint8_t *b, int j, int h, int at)
{
    uint32_t w = 0;
    for (int t = 0; t < 4; t++)
        w |= gather<T>(b, j, h, t, at, 2) << 2 * t;
    return w;
}

template <int T> __device__ static uint32_t one_bit_word(const uint8_t *b, int j, int at)
{
    uint32_t w = 0;
    for (int t = 0; t < 4; t++)
        w |= gather<T>(b, j, 0, t, at, 1) << t | gather<T>(b, j, 1, t, at, 1) << (4 + t);
    return w;
}

/* Writes the words of block j (0..3) of the segment; b and sub: its block of the format, and which 32 of it. */
template <int T> __device__ static void pack_codes(const uint8_t *b, int sub, int j, uint32_t *code)
{
    constexpr enum code_bits bits = code_bits(T);
    constexpr int pitch = TILE_ROWS * CHUNK_WORDS;
    for (int t = 0; t < 4; t++) {
        if constexpr (bits == BITS_8) {
            code[2 * j * pitch + t] = gather<T>(b, sub, 0, t, 0, 8);
            code[(2 * j + 1) * pitch + t] = gather<T>(b, sub, 1, t, 0, 8);
        } else if constexpr (bits != BITS_2 && bits != BITS_3) {
            code[j * pitch + t] = nibble_word<T>(b, sub, t);
        }
    }
    if constexpr (bits == BITS_2 || bits == BITS_3 || bits == BITS_6) {
        constexpr int chunk = bits == BITS_6 ? 4 : 0, at = bits == BITS_6 ? 4 : 0;
        for (int h = 0; h < 2; h++)
            code[(chunk + j / 2) * pitch + 2 * (j % 2) + h] = two_bit_word<T>(b, sub, h, at);
    }
    if constexpr (bits == BITS_3 || bits == BITS_5)
        code[(bits == BITS_3 ? 2 : 4) * pitch + j] = one_bit_word<T>(b, sub, bits == BITS_3 ? 2 : 4);
}

/* The head words of a block of 256, as load_head reads them. */
template <int T> __device__ static void pack_super_head(const uint8_t *b, uint32_t *head)
{
    uint32_t w[5] = {};
    if constexpr (T == QTYPE_Q2_K || T == QTYPE_Q6_K) {
        const uint8_t *scales = T == QTYPE_Q2_K ? b : b + offsetof(struct block_q6_k, scales);
        for (int i = 0; i < 16; i++)
            w[i / 4] |= (uint32_t)scales[i] << 8 * (i % 4);
        w[4] = T == QTYPE_Q2_K ? raw_half(b + offsetof(struct block_q2_k, d)) | raw_half(b + offsetof(struct block_q2_k, dmin)) << 16
                               : raw_half(b + offsetof(struct block_q6_k, d));
    } else if constexpr (T == QTYPE_Q3_K) {
        const struct block_q3_k *q = (const struct block_q3_k *)b;
        for (int i = 0; i < 16; i++) {
            w[i / 8] |= (uint32_t)((i < 8 ? q->scales[i] : q->scales[i - 8] >> 4) & 15) << 4 * (i % 8);
            w[2] |= (uint32_t)(q->scales[8 + i % 4] >> 2 * (i / 4) & 3) << 2 * i;
        }
        w[3] = raw_half(b + offsetof(struct block_q3_k, d));
    } else if constexpr (T == QTYPE_Q4_K || T == QTYPE_Q5_K) {
        const uint8_t *s = b + offsetof(struct block_q4_k, scales);
        w[0] = raw_half(b) | raw_half(b + 2) << 16;
        for (int i = 0; i < 8; i++) {
            uint32_t scale = i < 4 ? s[i] & 63u : (s[i + 4] & 15u) | (uint32_t)(s[i - 4] >> 6) << 4;
            uint32_t min = i < 4 ? s[i + 4] & 63u : (uint32_t)(s[i + 4] >> 4) | (uint32_t)(s[i] >> 6) << 4;
            w[1] |= (scale & 15) << 4 * i;
            w[2] |= (min & 15) << 4 * i;
            w[3] |= scale >> 4 << 2 * i | min >> 4 << (16 + 2 * i);
        }
    } else {
        const struct block_iq4_xs *q = (const struct block_iq4_xs *)b;
        w[0] = raw_half(b) | raw_half(b + offsetof(struct block_iq4_xs, scales_h)) << 16;
        for (int i = 0; i < 4; i++)
            w[1] |= (uint32_t)q->scales_l[i] << 8 * i;
    }
    for (int i = 0; i < layout_of(T).head_words; i++)
        head[i] = w[i];
}

/* Scale (and minimum) of block j of a segment of a format with blocks of 32. */
template <int T> __device__ static void pack_head(const uint8_t *b, int j, uint32_t head[4])
{
    if constexpr (T == QTYPE_MXFP4) {
        head[0] |= (uint32_t)b[0] << 8 * j;
    } else {
        head[j / 2] |= raw_half(b) << 16 * (j % 2);
        if constexpr (layout_of(T).mins == 1)
            head[2 + j / 2] |= raw_half(b + 2) << 16 * (j % 2);
    }
}

/* True: a scale is damaged. */
template <int T> __device__ static bool pack_quantised(const uint8_t *row, int cols, int s, uint32_t *code, uint32_t *head)
{
    bool damaged = false;
    if constexpr (is_super(T)) {
        constexpr int bytes = block_bytes(T);
        const uint8_t *b = row + (size_t)(s / 2) * bytes;
        damaged = is_damaged<T>(b);
        for (int j = 0; j < SEGMENT_BLOCKS; j++)
            pack_codes<T>(b, s % 2 * SEGMENT_BLOCKS + j, j, code);
        if (s % 2 == 0)
            pack_super_head<T>(b, head);
    } else {
        uint32_t w[4] = {};
        for (int j = 0; j < SEGMENT_BLOCKS && (s * SEGMENT_BLOCKS + j) * NUM_BLOCK < cols; j++) {
            const uint8_t *b = row + (size_t)(s * SEGMENT_BLOCKS + j) * block_bytes(T);
            damaged |= is_damaged<T>(b);
            pack_codes<T>(b, 0, j, code);
            pack_head<T>(b, j, w);
        }
        for (int i = 0; i < layout_of(T).head_words; i++)
            head[i] = w[i];
    }
    return damaged;
}

template <int T> __device__ static bool pack_float(const uint8_t *row, int cols, int s, uint32_t *code)
{
    constexpr int size = block_bytes(T);
    int n = cols - s * SEGMENT < SEGMENT ? cols - s * SEGMENT : SEGMENT;
    const uint8_t *from = row + (size_t)(s * SEGMENT) * size;
    for (int i = 0; i < SEGMENT * size; i++) { /* zeros to the end: the tensor cores take blocks of 32 */
        int chunk = i / CHUNK_BYTES;
        ((uint8_t *)code)[chunk * TILE_ROWS * CHUNK_BYTES + i % CHUNK_BYTES] = i < n * size ? from[i] : 0;
    }
    bool damaged = false;
    for (int i = 0; i < n; i++)
        damaged |= is_damaged<T>(from + i * size);
    return damaged;
}

/* ---- kernels ---- */

struct pack_args {
    const uint8_t *raw;
    void *dst;
    size_t row_bytes;
    int cols, n_mat, n_tile, n_seg, mat, row0, n;
    uint32_t *damaged;
};

template <int T> __global__ static void __launch_bounds__(PACK_THREADS) k_pack(struct pack_args a)
{
    kernel_begin();
    int s = (int)blockIdx.y, i = (int)(blockIdx.x * PACK_THREADS + threadIdx.x), row = a.row0 + i;
    if (i >= a.n)
        return;
    struct place at = place_of<T>(a.dst, a.n_mat, a.n_tile, a.n_seg, a.mat, row / TILE_ROWS, s, row % TILE_ROWS);
    const uint8_t *raw = a.raw + (size_t)i * a.row_bytes;
    bool damaged;
    if constexpr (is_quantised(T))
        damaged = pack_quantised<T>(raw, a.cols, s, (uint32_t *)at.code, (uint32_t *)at.head);
    else
        damaged = pack_float<T>(raw, a.cols, s, (uint32_t *)at.code);
    if (damaged)
        *a.damaged = 1; /* whoever says it says the same */
}

template <int T> __global__ static void __launch_bounds__(PACK_THREADS) k_embed(struct embed_args a)
{
    embed_block<T, PACK_THREADS>(a, this_block());
}

/* ---- launchers ---- */

extern "C" void launch_pack(struct cuda *k, enum qtype type, const uint8_t *raw, void *dst, int rows, int cols, int n_mat,
                            int mat, int row0, int n)
{
    struct pack_args a = {raw,   dst, qtype_row_bytes(type, (size_t)cols), cols, n_mat, layout_tiles(rows), layout_segments(cols),
                          mat, row0, n,   k->damaged};
    dim3 grid((unsigned)((n + PACK_THREADS - 1) / PACK_THREADS), (unsigned)a.n_seg);
    switch (type) {
#define QTYPE(name, id, weights, block, mins)                                                                          \
    case QTYPE_##name: LAUNCH(k, k_pack<QTYPE_##name>, grid, dim3(PACK_THREADS), 0, a); break;
#include "kernels/qtypes.def"
#undef QTYPE
    case QTYPE_N: break;
    }
    CU_NOTE(k, "pack");
}

extern "C" void launch_embed(struct cuda *k, const struct mat *table)
{
    struct embed_args a = {table->data,  k->step.token,           k->x, k->cfg.embed_scale, table->cols, layout_tiles(table->rows),
                           layout_segments(table->cols)};
    int blocks = (table->cols + NUM_BLOCK - 1) / NUM_BLOCK;
    if (k->mode == STEP_RECORD) {
        persist_add(k, OP_EMBED, table->type, k->n_rows, (blocks + 2 * PACK_THREADS - 1) / (2 * PACK_THREADS), &a, sizeof a);
        return;
    }
    dim3 grid((unsigned)k->n_rows, (unsigned)((blocks + PACK_THREADS - 1) / PACK_THREADS));
    switch (table->type) {
#define QTYPE(name, id, weights, block, mins)                                                                          \
    case QTYPE_##name: LAUNCH(k, k_embed<QTYPE_##name>, grid, dim3(PACK_THREADS), 0, a); break;
#include "kernels/qtypes.def"
#undef QTYPE
    case QTYPE_N: break;
    }
    CU_NOTE(k, "embed");
}
