/* Vectors of the x86 products: a few operations, for 256 or 512 bits, with or without VNNI.
 * PRODUCT_BITS and PRODUCT_VNNI are set by the product_<isa>.c that includes this through
 * product_x86.h.
 *
 * A vector holds the outputs of one group (256 bits) or two (512 bits): loads take the first
 * group's address and the distance to the second. Nothing moves between 32-bit lanes. */
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if PRODUCT_BITS == 256

enum { V_GROUPS = 1, V_BYTES = 32 };
typedef __m256i vi;
typedef __m256 vf;
#define V(name) _mm256_##name
#define V_BITS(name) _mm256_##name##_si256

INLINE vi v_load(const uint8_t *p, size_t next)
{
    (void)next;
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE __m128i v_load_16_each(const uint8_t *p, size_t next)
{
    (void)next;
    return _mm_loadu_si128((const __m128i *)p);
}

INLINE __m128i v_load_8_each(const uint8_t *p, size_t next)
{
    (void)next;
    return _mm_loadl_epi64((const __m128i *)p);
}

INLINE vi v_table(const int8_t table[16])
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

INLINE vi v_if_less(vi a, vi b, vi yes, vi no)
{
    return _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(b, a));
}

/* a where w > 0, -a where w < 0, anything where w = 0 (it is multiplied by |w|). */
INLINE vi v_sign8(vi a, vi w)
{
    return _mm256_sign_epi8(a, w);
}

INLINE vf v_as_float(vi a)
{
    return _mm256_castsi256_ps(a);
}

INLINE vi v_as_int(vf a)
{
    return _mm256_castps_si256(a);
}

INLINE vf v_fetch(const float *out, int n_groups)
{
    return n_groups > 0 ? _mm256_loadu_ps(out) : _mm256_setzero_ps();
}

INLINE void v_store(float *out, vf x, int n_groups)
{
    if (n_groups > 0)
        _mm256_storeu_ps(out, x);
}

#else

enum { V_GROUPS = 2, V_BYTES = 64 };
typedef __m512i vi;
typedef __m512 vf;
#define V(name) _mm512_##name
#define V_BITS(name) _mm512_##name##_si512

INLINE vi v_load(const uint8_t *p, size_t next)
{
    __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)(p + next)), 1);
}

INLINE __m256i v_load_16_each(const uint8_t *p, size_t next)
{
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)(p + next)), 1);
}

INLINE __m128i v_load_8_each(const uint8_t *p, size_t next)
{
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)p),
                              _mm_loadl_epi64((const __m128i *)(p + next)));
}

INLINE vi v_table(const int8_t table[16])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}

INLINE vi v_if_less(vi a, vi b, vi yes, vi no)
{
    return _mm512_mask_mov_epi32(no, _mm512_cmplt_epi32_mask(a, b), yes);
}

INLINE vi v_sign8(vi a, vi w)
{
    return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
}

INLINE vf v_as_float(vi a)
{
    return _mm512_castsi512_ps(a);
}

INLINE vi v_as_int(vf a)
{
    return _mm512_castps_si512(a);
}

/* What v_store left there. */
INLINE vf v_fetch(const float *out, int n_groups)
{
    return n_groups > 1    ? _mm512_loadu_ps(out)
           : n_groups == 1 ? _mm512_castps256_ps512(_mm256_loadu_ps(out))
                           : _mm512_setzero_ps();
}

INLINE void v_store(float *out, vf x, int n_groups)
{
    if (n_groups > 1)
        _mm512_storeu_ps(out, x);
    else if (n_groups == 1)
        _mm256_storeu_ps(out, _mm512_castps512_ps256(x));
}

#endif

/* A whole vector in aligned memory of our own. */
INLINE vi v_get(const uint8_t *p)
{
    return *(const vi *)p;
}

INLINE void v_put(uint8_t *p, vi a)
{
    *(vi *)p = a;
}

/* One value per output: halves, unsigned and signed bytes, bfloat16. */
INLINE vf v_load_f16(const uint8_t *p, size_t next)
{
    return V(cvtph_ps)(v_load_16_each(p, next));
}

INLINE vf v_load_bf16(const uint8_t *p, size_t next)
{
    return v_as_float(V(slli_epi32)(V(cvtepu16_epi32)(v_load_16_each(p, next)), 16));
}

INLINE vi v_load_u8(const uint8_t *p, size_t next)
{
    return V(cvtepu8_epi32)(v_load_8_each(p, next));
}

INLINE vi v_load_i8(const uint8_t *p, size_t next)
{
    return V(cvtepi8_epi32)(v_load_8_each(p, next));
}

/* Four bytes in every lane. */
INLINE vi v_quad(const void *p)
{
    int x;
    memcpy(&x, p, sizeof x);
    return V(set1_epi32)(x);
}

/* Left by n bits, right by -n, in 16-bit lanes: the caller masks what crosses bytes. */
INLINE vi v_shift16(vi a, int n)
{
    return n > 0 ? V(slli_epi16)(a, n) : n < 0 ? V(srli_epi16)(a, -n) : a;
}

/* The dot of a block in every lane: quads u of weight codes (unsigned bytes, or signed ones when
 * wide) times quads x of activation codes. VNNI keeps one 32-bit sum. Without it there are two
 * 16-bit sums, which hold a block of codes up to 5 bits or half a block up to 6 (with their offset
 * taken off in the end: wrapping between is harmless); wide codes allow one product of a pair only,
 * so they go on in 32 bits. */
#if PRODUCT_VNNI

INLINE vi dot_add(bool wide, bool first, vi dot, vi u, vi x)
{
    (void)wide;
    return PRODUCT_DPBUSD(first ? V_BITS(setzero)() : dot, u, x);
}

INLINE vi dot_offset(vi dot, vi pair, int offset)
{
    return V(sub_epi32)(dot, V(madd_epi16)(pair, V(set1_epi16)((short)offset)));
}

INLINE vi dot_scale(bool wide, bool scaled, vi s)
{
    (void)wide;
    (void)scaled;
    return s;
}

INLINE vi dot_finish(bool wide, bool scaled, vi dot, vi s)
{
    (void)wide;
    return scaled ? V(mullo_epi32)(dot, s) : dot;
}

#else

INLINE vi dot_add(bool wide, bool first, vi dot, vi u, vi x)
{
    vi p = V(maddubs_epi16)(wide ? V(abs_epi8)(u) : u, wide ? v_sign8(x, u) : x);
    if (wide)
        p = V(madd_epi16)(p, V(set1_epi16)(1));
    if (!first)
        p = wide ? V(add_epi32)(dot, p) : V(add_epi16)(dot, p);
    /* Keeps the compiler from regrouping the sum into a tree, which would spill every tile: 70 ->
     * 100 GMAC/s. */
    __asm__("" : "+v"(p));
    return p;
}

INLINE vi dot_offset(vi dot, vi pair, int offset)
{
    return V(sub_epi16)(dot, V(mullo_epi16)(pair, V(set1_epi16)((short)offset)));
}

/* Sub-scales (32-bit) as dot_finish takes them. */
INLINE vi dot_scale(bool wide, bool scaled, vi s)
{
    static const int8_t low_twice[16] = {0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13};
    return !scaled ? V(set1_epi16)(1) : wide ? s : V(shuffle_epi8)(s, v_table(low_twice));
}

INLINE vi dot_finish(bool wide, bool scaled, vi dot, vi s)
{
    if (wide)
        return scaled ? V(mullo_epi32)(dot, s) : dot;
    return V(madd_epi16)(dot, s);
}

#endif
