/* What the packed words mean: codes and terms of a block of 32 for every quantised format, from registers or memory.
 *
 * Bits lie as the dot instructions want them. Code word t (0..3) of a block's half h is the four bytes of weights
 * 16 h + 4 t .. + 3, and byte b of the packed words below is weight 4 t + b (or 16 + 4 t + b):
 *   nibbles   chunk j, word t              low half: h = 0, high half: h = 1
 *   bytes     chunk 2 j + h, word t        Q8_0
 *   two bits  byte b of word (j, h): bits 2 t, 2 t + 1.  Q2_K, Q3_K: chunk j / 2, word 2 (j % 2) + h; Q6_K: chunk 4 + ...
 *   one bit   byte b of word j: bit t for h = 0, 4 + t for h = 1.  Q5_*: chunk 4, Q3_K: chunk 2 */
#ifndef KERNELS_CUDA_DECODE_CUH
#define KERNELS_CUDA_DECODE_CUH

#include "kernels/cuda/device.cuh"

enum code_bits { BITS_2, BITS_3, BITS_4, BITS_5, BITS_6, BITS_8, BITS_TABLE };

LAYOUT_FN enum code_bits code_bits(int type)
{
    switch (type) {
    case QTYPE_Q2_K: return BITS_2;
    case QTYPE_Q3_K: return BITS_3;
    case QTYPE_Q5_0:
    case QTYPE_Q5_1:
    case QTYPE_Q5_K: return BITS_5;
    case QTYPE_Q6_K: return BITS_6;
    case QTYPE_Q8_0: return BITS_8;
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
    case QTYPE_MXFP4: return BITS_TABLE;
    default: return BITS_4;
    }
}

LAYOUT_FN bool is_quantised(int type)
{
    return layout_of(type).head_segs > 0;
}

LAYOUT_FN bool is_super(int type)
{
    return layout_of(type).head_segs == 2;
}

LAYOUT_FN size_t block_bytes(int type)
{
    switch (type) {
#define QTYPE(name, id, n, block, mins)                                                                                \
    case QTYPE_##name: return sizeof(block);
#include "kernels/qtypes.def"
#undef QTYPE
    default: return 0;
    }
}

/* Four table entries: byte i is entry (nibble i of w) of 16 bytes t0..t3. */
__device__ inline uint32_t look_up4(uint32_t w, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3)
{
    uint32_t low = __byte_perm(t0, t1, w & 0x7777), high = __byte_perm(t2, t3, w & 0x7777);
    return __byte_perm(low, high, 0x3210 | (w & 0x8888) >> 1);
}

template <int T> __device__ inline void look_up_nibbles(uint32_t w, uint32_t *lo, uint32_t *hi)
{
    /* iq4_values and mxfp4_values of qtype.c as bytes */
    constexpr bool mx = T == QTYPE_MXFP4;
    constexpr uint32_t t0 = mx ? 0x03020100u : 0xBFAD9881u, t1 = mx ? 0x0C080604u : 0xF6EADDCFu;
    constexpr uint32_t t2 = mx ? 0xFDFEFF00u : 0x26190D01u, t3 = mx ? 0xF4F8FAFCu : 0x71594535u;
    uint32_t a = look_up4(w & 0xFFFF, t0, t1, t2, t3), b = look_up4(w >> 16, t0, t1, t2, t3);
    *lo = __byte_perm(a, b, 0x6420); /* nibbles 0, 2, 4, 6 */
    *hi = __byte_perm(a, b, 0x7531);
}

/* Code words t of both halves of block j. load(chunk, word) gives a packed word. */
template <int T, class Load>
__device__ inline void codes(const Load &load, int j, int t, uint32_t *lo, uint32_t *hi)
{
    constexpr enum code_bits bits = code_bits(T);
    if constexpr (bits == BITS_8) {
        *lo = load(2 * j, t);
        *hi = load(2 * j + 1, t);
        return;
    }
    if constexpr (bits == BITS_TABLE) {
        look_up_nibbles<T>(load(j, t), lo, hi);
        return;
    }
    if constexpr (bits == BITS_2 || bits == BITS_3) {
        *lo = load(j / 2, 2 * (j % 2)) >> 2 * t & 0x03030303u;
        *hi = load(j / 2, 2 * (j % 2) + 1) >> 2 * t & 0x03030303u;
    } else {
        uint32_t w = load(j, t);
        *lo = w & 0x0F0F0F0Fu;
        *hi = w >> 4 & 0x0F0F0F0Fu;
    }
    if constexpr (bits == BITS_3 || bits == BITS_5) {
        uint32_t w = load(bits == BITS_3 ? 2 : 4, j);
        constexpr int at = bits == BITS_3 ? 2 : 4;
        *lo |= (w >> t & 0x01010101u) << at;
        *hi |= (w >> (4 + t) & 0x01010101u) << at;
    }
    if constexpr (bits == BITS_6) {
        *lo |= (load(4 + j / 2, 2 * (j % 2)) >> 2 * t & 0x03030303u) << 4;
        *hi |= (load(4 + j / 2, 2 * (j % 2) + 1) >> 2 * t & 0x03030303u) << 4;
    }
}

/* The same bytes with the offset taken off, as signed bytes: q - offset without a borrow between bytes. */
template <int T> __device__ inline uint32_t without_offset(uint32_t q)
{
    constexpr uint32_t offset = (uint32_t)layout_of(T).offset * 0x01010101u;
    return offset == 0 ? q : ((q | 0x80808080u) - offset) ^ 0x80808080u;
}

/* One row's scales for one segment, the same place for either segment of a block of 256. */
struct head {
    uint32_t w[5];
};

/* p: the row's head words. Words of the formats with a block of 256 (half = which segment of the two):
 *   Q2_K, Q6_K  0..3: byte 2 j + h of the block's sub-blocks j = 0..7 (Q2_K: scale, minimum << 4); 4: d, dmin
 *   Q3_K        0, 1: low nibbles; 2: top two bits at 2 (2 j + h); 3: d
 *   Q4_K, Q5_K  0: d, dmin; 1: low nibbles of scales; 2: of minimums; 3: top two bits of scales, of minimums << 16
 *   IQ4_XS      0: d, top two bits << 16; 1: low nibbles
 * The others: halves d of the four blocks in two words, then m; MXFP4: the four exponents. */
template <int T> __device__ inline struct head load_head(const uint32_t *p, int half)
{
    struct head h = {};
    if constexpr (T == QTYPE_Q2_K || T == QTYPE_Q6_K) {
        h.w[0] = p[2 * half];
        h.w[1] = p[2 * half + 1];
        h.w[2] = p[4];
    } else if constexpr (T == QTYPE_Q3_K) {
        h.w[0] = p[half];
        h.w[1] = p[2] >> 16 * half;
        h.w[2] = p[3];
    } else if constexpr (T == QTYPE_Q4_K || T == QTYPE_Q5_K) {
        uint4 v = *(const uint4 *)p;
        h.w[0] = v.x;
        h.w[1] = v.y >> 16 * half;
        h.w[2] = v.z >> 16 * half;
        h.w[3] = v.w >> 8 * half;
    } else if constexpr (T == QTYPE_IQ4_XS) {
        uint2 v = *(const uint2 *)p;
        h.w[0] = v.x & 0xFFFF;
        h.w[1] = v.y >> 16 * half;
        h.w[2] = v.x >> (16 + 8 * half);
    } else if constexpr (T == QTYPE_MXFP4) {
        h.w[0] = p[0];
    } else if constexpr (layout_of(T).head_words == 2) {
        uint2 v = *(const uint2 *)p;
        h.w[0] = v.x;
        h.w[1] = v.y;
    } else {
        uint4 v = *(const uint4 *)p;
        h.w[0] = v.x;
        h.w[1] = v.y;
        h.w[2] = v.z;
        h.w[3] = v.w;
    }
    return h;
}

/* What qblock32 holds, for block j of a segment. */
struct terms {
    float d;
    int scale[2];
    float min[2];
};

template <int T> __device__ inline struct terms terms_of(const struct head &h, int j)
{
    struct terms t = {0, {1, 1}, {0, 0}};
    if constexpr (T == QTYPE_Q2_K) {
        uint32_t w = h.w[j / 2] >> 16 * (j % 2);
        float dmin = half_of(h.w[2], 1);
        t.d = half_of(h.w[2], 0);
        t.scale[0] = (int)(w & 15);
        t.scale[1] = (int)(w >> 8 & 15);
        t.min[0] = -(dmin * (float)(w >> 4 & 15));
        t.min[1] = -(dmin * (float)(w >> 12 & 15));
    } else if constexpr (T == QTYPE_Q3_K) {
        uint32_t low = h.w[0] >> 8 * j, high = h.w[1] >> 4 * j;
        t.d = half_of(h.w[2], 0);
        t.scale[0] = (int)((low & 15) | (high & 3) << 4) - 32;
        t.scale[1] = (int)((low >> 4 & 15) | (high >> 2 & 3) << 4) - 32;
    } else if constexpr (T == QTYPE_Q4_K || T == QTYPE_Q5_K) {
        t.d = half_of(h.w[0], 0);
        t.scale[0] = t.scale[1] = (int)((h.w[1] >> 4 * j & 15) | (h.w[3] >> 2 * j & 3) << 4);
        uint32_t m = (h.w[2] >> 4 * j & 15) | (h.w[3] >> (16 + 2 * j) & 3) << 4;
        t.min[0] = -(half_of(h.w[0], 1) * (float)m);
    } else if constexpr (T == QTYPE_Q6_K) {
        uint32_t w = h.w[j / 2] >> 16 * (j % 2);
        t.d = half_of(h.w[2], 0);
        t.scale[0] = (int8_t)w;
        t.scale[1] = (int8_t)(w >> 8);
    } else if constexpr (T == QTYPE_IQ4_XS) {
        t.d = half_of(h.w[0], 0);
        t.scale[0] = t.scale[1] = (int)((h.w[1] >> 4 * j & 15) | (h.w[2] >> 2 * j & 3) << 4) - 32;
    } else if constexpr (T == QTYPE_MXFP4) {
        t.d = num_e8m0_half((uint8_t)(h.w[0] >> 8 * j));
    } else {
        t.d = half_of(h.w[j / 2], j % 2);
        if constexpr (layout_of(T).mins == 1)
            t.min[0] = half_of(h.w[2 + j / 2], j % 2);
    }
    return t;
}

/* Where row `row` (0..7) of a tile has its segment s: a loader of packed words, and its head. */
struct place {
    const uint32_t *code, *head;
    __device__ inline uint32_t operator()(int chunk, int word) const
    {
        return code[chunk * TILE_ROWS * CHUNK_WORDS + word];
    }
};

template <int T>
__device__ inline struct place place_of(const void *data, int n_mat, int n_tile, int n_seg, int mat, int tile, int s, int row)
{
    constexpr struct layout l = layout_of(T);
    size_t at = ((size_t)mat * (size_t)n_tile + (size_t)tile) * (size_t)n_seg;
    struct place p;
    p.code = (const uint32_t *)data + ((at + (size_t)s) * l.chunks * TILE_ROWS + (size_t)row) * CHUNK_WORDS;
    p.head = NULL;
    if constexpr (l.head_segs > 0) {
        const uint32_t *heads =
            (const uint32_t *)data + (size_t)n_mat * (size_t)n_tile * (size_t)n_seg * l.chunks * TILE_ROWS * CHUNK_WORDS;
        p.head = heads + ((at + (size_t)s) / l.head_segs * TILE_ROWS + (size_t)row) * l.head_words;
    }
    return p;
}

/* A float weight's word as floats: F32 one, F16 and BF16 two. */
template <int T> __device__ inline float float_weight(uint32_t w, int i)
{
    if constexpr (T == QTYPE_F32)
        return num_from_bits(w);
    else if constexpr (T == QTYPE_BF16)
        return num_bf16_to_f32((uint16_t)(w >> 16 * i));
    else
        return half_of(w, i);
}

#endif
