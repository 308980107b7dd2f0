/* Packing and unpacking of weight groups, at load: a 32-bit word of the planes at a time. */
#include "kernels/cpu/pack.h"

#include "kernels/cpu/packed.h"

#include <assert.h>
#include <string.h>

static bool is_float(enum qtype t)
{
    return !qtype_info(t)->quantised;
}

size_t pack_group_bytes(enum qtype t, int cols)
{
    assert(cols % NUM_BLOCK == 0 && cols % qtype_info(t)->block_weights == 0);
    if (is_float(t))
        return PACK_ROWS * qtype_row_bytes(t, (size_t)cols);
    int n = cols / NUM_BLOCK;
    return packed_block(t, n) - (n % 8 == 0 ? (size_t)packed_layout(t).head : 0);
}

/* Word r of vector v of a plane: the quad of row r. */
static void put_quad(uint8_t *plane, int v, int r, uint32_t quad)
{
    memcpy(plane + 32 * v + 4 * r, &quad, 4);
}

static uint32_t get_quad(const uint8_t *plane, int v, int r)
{
    uint32_t quad;
    memcpy(&quad, plane + 32 * v + 4 * r, 4);
    return quad;
}

/* Cuts the 8 quads of a row's block into its planes; each plane takes its bits from the bottom. */
static void pack_codes(enum qtype t, const uint8_t q[32], int r, uint8_t *block)
{
    struct packed_format f = packed_format(t);
    struct packed_layout l = packed_layout(t);
    uint32_t quad[8];
    memcpy(quad, q, sizeof quad);
    if (f.byte)
        for (int g = 0; g < 8; g++)
            put_quad(block, g, r, quad[g]);
    if (f.nibble)
        for (int g = 0; g < 4; g++) {
            put_quad(block, g, r, (quad[g] & 0x0F0F0F0Fu) | (quad[g + 4] & 0x0F0F0F0Fu) << 4);
            quad[g] >>= 4;
            quad[g + 4] >>= 4;
        }
    if (f.two)
        for (int v = 0; v < 2; v++) {
            uint32_t two = 0;
            for (int j = 0; j < 4; j++) {
                two |= (quad[4 * v + j] & 0x03030303u) << 2 * j;
                quad[4 * v + j] >>= 2;
            }
            put_quad(block + l.two, v, r, two);
        }
    if (f.bit) {
        uint32_t bit = 0;
        for (int g = 0; g < 8; g++)
            bit |= (quad[g] & 0x01010101u) << g;
        put_quad(block + l.bit, 0, r, bit);
    }
}

static void unpack_codes(enum qtype t, const uint8_t *block, int r, uint8_t q[32])
{
    struct packed_format f = packed_format(t);
    struct packed_layout l = packed_layout(t);
    uint32_t quad[8];
    for (int g = 0; g < 8; g++) {
        int shift = 0;
        quad[g] = f.byte ? get_quad(block, g, r) : 0;
        if (f.nibble) {
            quad[g] = get_quad(block, g % 4, r) >> (g < 4 ? 0 : 4) & 0x0F0F0F0Fu;
            shift = 4;
        }
        if (f.two) {
            quad[g] |= (get_quad(block + l.two, g / 4, r) >> 2 * (g % 4) & 0x03030303u) << shift;
            shift += 2;
        }
        if (f.bit)
            quad[g] |= (get_quad(block + l.bit, 0, r) >> g & 0x01010101u) << shift;
    }
    memcpy(q, quad, sizeof quad);
}

/* Formats whose codes are the plane's words already: d, maybe m, then words of the nibble or byte
 * plane. Five times as fast as taking codes apart. */
PACKED_FN void copy_words(enum qtype t, const size_t words, const void *src, int r, int cols, uint8_t *group)
{
    const struct packed_layout l = packed_layout(t);
    const size_t head = packed_format(t).has_m ? 4 : 2, bytes = head + 4 * words;
    const uint8_t *from = src;
    for (int i = 0; i < cols / NUM_BLOCK; i++, from += bytes, group += l.block) {
        for (size_t v = 0; v < words; v++)
            memcpy(group + 32 * v + 4 * (size_t)r, from + head + 4 * v, 4);
        memcpy(group + l.d + 2 * r, from, 2);
        if (head == 4)
            memcpy(group + l.m + 2 * r, from + 2, 2);
    }
}

static bool pack_words(enum qtype t, const void *src, int r, int cols, uint8_t *group)
{
    switch (t) {
    case QTYPE_Q4_0:
        copy_words(QTYPE_Q4_0, 4, src, r, cols, group);
        return true;
    case QTYPE_Q4_1:
        copy_words(QTYPE_Q4_1, 4, src, r, cols, group);
        return true;
    case QTYPE_IQ4_NL:
        copy_words(QTYPE_IQ4_NL, 4, src, r, cols, group);
        return true;
    case QTYPE_Q8_0:
        copy_words(QTYPE_Q8_0, 8, src, r, cols, group);
        return true;
    default:
        return false;
    }
}

static void pack_row(enum qtype t, const void *src, int r, int cols, uint8_t *group)
{
    struct packed_format f = packed_format(t);
    struct packed_layout l = packed_layout(t);
    for (int i = 0; i < cols / NUM_BLOCK; i++) {
        struct qraw32 raw;
        uint8_t *block = group + packed_block(t, i), *d = group + packed_d(t, i) + l.d,
                *m = d - l.d + l.m;
        qtype_raw32(t, src, (size_t)i, &raw);
        pack_codes(t, raw.q, r, block);
        for (int h = 0; h < f.n_scales; h++)
            block[l.scale + PACK_ROWS * h + r] =
                (uint8_t)((uint8_t)raw.scale[h] | (t == QTYPE_Q2_K ? raw.min[h] << 4 : 0));
        if (f.n_mins)
            block[l.min + r] = raw.min[0];
        memcpy(d + f.d_bytes * r, &raw.d,
               (size_t)f.d_bytes); /* little-endian: the low byte is MXFP4's exponent */
        if (f.has_m)
            memcpy(m + 2 * r, &raw.m, 2);
    }
}

/* Interleaves n_rows rows of values of `size` bytes; a constant size makes the copies moves. */
static inline void interleave(const size_t size, const uint8_t *src, size_t src_row_bytes,
                              int n_rows, int cols, uint8_t *group)
{
    for (int k = 0; k < cols; k++)
        for (int r = 0; r < n_rows; r++)
            memcpy(group + (size_t)(PACK_ROWS * k + r) * size,
                   src + (size_t)r * src_row_bytes + (size_t)k * size, size);
}

void pack_group(enum qtype t, const void *src, size_t src_row_bytes, int n_rows, int cols,
                void *group)
{
    assert(n_rows >= 1 && n_rows <= PACK_ROWS);
    if (n_rows < PACK_ROWS)
        memset(group, 0, pack_group_bytes(t, cols));
    if (t == QTYPE_F32)
        interleave(4, src, src_row_bytes, n_rows, cols, group);
    else if (is_float(t))
        interleave(2, src, src_row_bytes, n_rows, cols, group);
    else
        for (int r = 0; r < n_rows; r++) {
            const uint8_t *row = (const uint8_t *)src + (size_t)r * src_row_bytes;
            if (!pack_words(t, row, r, cols, group))
                pack_row(t, row, r, cols, group);
        }
}

void pack_unpack32(enum qtype t, const void *group, int row, int i, struct qblock32 *out)
{
    struct packed_format f = packed_format(t);
    struct packed_layout l = packed_layout(t);
    struct qraw32 raw = {.scale = {1, 1}};
    const uint8_t *block = (const uint8_t *)group + packed_block(t, i);
    const uint8_t *d = (const uint8_t *)group + packed_d(t, i) + l.d, *m = d - l.d + l.m;
    unpack_codes(t, block, row, raw.q);
    for (int h = 0; h < 2 && f.n_scales; h++) {
        uint8_t s = block[l.scale + PACK_ROWS * (h < f.n_scales ? h : 0) + row];
        raw.scale[h] = (int8_t)(t == QTYPE_Q2_K ? s & 15 : s);
        raw.min[h] = t == QTYPE_Q2_K ? s >> 4 : f.n_mins ? block[l.min + row] : 0;
    }
    memcpy(&raw.d, d + f.d_bytes * row, (size_t)f.d_bytes);
    if (f.has_m)
        memcpy(&raw.m, m + 2 * row, 2);
    qtype_terms(t, &raw, out);
}

float pack_float(enum qtype t, const void *group, int row, int k)
{
    size_t size = qtype_info(t)->block_bytes;
    const uint8_t *p = (const uint8_t *)group + (size_t)(PACK_ROWS * k + row) * size;
    float x;
    uint16_t h;
    if (t == QTYPE_F32) {
        memcpy(&x, p, sizeof x);
        return x;
    }
    memcpy(&h, p, sizeof h);
    return t == QTYPE_F16 ? num_f16_to_f32(h) : num_bf16_to_f32(h);
}

void pack_dequant_row(enum qtype t, const void *group, int row, int cols, float *out)
{
    if (is_float(t)) {
        for (int k = 0; k < cols; k++)
            out[k] = pack_float(t, group, row, k);
        return;
    }
    for (int i = 0; i < cols / NUM_BLOCK; i++) {
        struct qblock32 b;
        pack_unpack32(t, group, row, i, &b);
        qtype_dequant32(&b, out + NUM_BLOCK * i);
    }
}
