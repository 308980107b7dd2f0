#include "tests/decode.h"

#include <math.h>
#include <string.h>

static const double iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const double e2m1_table[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

static unsigned u16(const uint8_t *p)
{
    return p[0] | (unsigned)p[1] << 8;
}

static double half(const uint8_t *p)
{
    unsigned h = u16(p), exponent = h >> 10 & 31, fraction = h & 1023;
    double x = exponent == 31  ? (fraction ? NAN : INFINITY)
               : exponent == 0 ? ldexp(fraction, -24)
                               : ldexp(1024 + fraction, (int)exponent - 25);
    return h & 0x8000 ? -x : x;
}

static double single(const uint8_t *p)
{
    float f;
    memcpy(&f, p, 4);
    return (double)f;
}

static double bfloat(const uint8_t *p)
{
    return single((uint8_t[]){0, 0, p[0], p[1]});
}

/* Nibble k of the 16 bytes of a block of 32: low halves first. */
static int nibble(const uint8_t *qs, int k)
{
    return k < 16 ? qs[k] & 15 : qs[k - 16] >> 4;
}

static int bit(const uint8_t *bits, int k)
{
    return bits[k / 8] >> k % 8 & 1;
}

/* ---- one block each ---- */

static void f32_block(const uint8_t *b, double *out)
{
    out[0] = single(b);
}

static void f16_block(const uint8_t *b, double *out)
{
    out[0] = half(b);
}

static void bf16_block(const uint8_t *b, double *out)
{
    out[0] = bfloat(b);
}

static void q4_0_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = half(b) * (nibble(b + 2, k) - 8);
}

static void q4_1_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = half(b) * nibble(b + 4, k) + half(b + 2);
}

static void q5_0_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = half(b) * (nibble(b + 6, k) + 16 * bit(b + 2, k) - 16);
}

static void q5_1_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = half(b) * (nibble(b + 8, k) + 16 * bit(b + 4, k)) + half(b + 2);
}

static void q8_0_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = half(b) * (int8_t)b[2 + k];
}

/* Two bits of weight k of 256: four weights a byte, 32 apart, 128 weights in 32 bytes. */
static int crumb(const uint8_t *qs, int k)
{
    return qs[k / 128 * 32 + k % 32] >> k % 128 / 32 * 2 & 3;
}

static void q2_k_block(const uint8_t *b, double *out)    /* scales 16, codes 64, d, dmin */
{
    for (int k = 0; k < 256; k++) {
        int scale = b[k / 16] & 15, min = b[k / 16] >> 4;
        out[k] = half(b + 80) * scale * crumb(b + 16, k) - half(b + 82) * min;
    }
}

static void q3_k_block(const uint8_t *b, double *out)    /* high bits 32, codes 64, scales 12, d */
{
    const uint8_t *s = b + 96;
    for (int k = 0; k < 256; k++) {
        int i = k / 16, low = i < 8 ? s[i] & 15 : s[i - 8] >> 4, high = s[8 + i % 4] >> i / 4 * 2 & 3;
        int code = crumb(b + 32, k) + 4 * (b[k % 32] >> k / 32 & 1) - 4;
        out[k] = half(b + 108) * (low + 16 * high - 32) * code;
    }
}

/* Scale and minimum of six bits of sub-block j of 8. */
static void six_bits(const uint8_t *s, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) + 16 * (s[j - 4] >> 6);
        *min = (s[j + 4] >> 4) + 16 * (s[j] >> 6);
    }
}

/* Q4_K and Q5_K: d, dmin, scales 12, then the fifth bits if any, then nibbles: 64 weights in 32 bytes. */
static void k4_block(const uint8_t *b, const uint8_t *fifth, const uint8_t *qs, double *out)
{
    for (int k = 0; k < 256; k++) {
        int scale, min, byte = qs[k / 64 * 32 + k % 32], code = k % 64 < 32 ? byte & 15 : byte >> 4;
        six_bits(b + 4, k / 32, &scale, &min);
        if (fifth != NULL)
            code += 16 * (fifth[k % 32] >> k / 32 & 1);
        out[k] = half(b) * scale * code - half(b + 2) * min;
    }
}

static void q4_k_block(const uint8_t *b, double *out)
{
    k4_block(b, NULL, b + 16, out);
}

static void q5_k_block(const uint8_t *b, double *out)
{
    k4_block(b, b + 16, b + 48, out);
}

static void q6_k_block(const uint8_t *b, double *out)    /* low bits 128, high bits 64, scales 16, d */
{
    for (int k = 0; k < 256; k++) {
        int byte = b[k / 128 * 64 + k % 64], low = k % 128 < 64 ? byte & 15 : byte >> 4;
        out[k] = half(b + 208) * (int8_t)b[192 + k / 16] * (low + 16 * crumb(b + 128, k) - 32);
    }
}

static void iq4_nl_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = half(b) * iq4_table[nibble(b + 2, k)];
}

static void iq4_xs_block(const uint8_t *b, double *out)    /* d, high scale bits 2, low ones 4, codes 128 */
{
    for (int k = 0; k < 256; k++) {
        int j = k / 32, low = b[4 + j / 2] >> 4 * (j % 2) & 15, high = (int)(u16(b + 2) >> 2 * j & 3);
        out[k] = half(b) * (low + 16 * high - 32) * iq4_table[nibble(b + 8 + 16 * j, k % 32)];
    }
}

static void mxfp4_block(const uint8_t *b, double *out)
{
    for (int k = 0; k < 32; k++)
        out[k] = ldexp(e2m1_table[nibble(b + 1, k)], b[0] - 127);
}

static const struct {
    uint32_t id;
    size_t weights, bytes;
    void (*decode)(const uint8_t *block, double *out);
} formats[] = {
    {0, 1, 4, f32_block},       {1, 1, 2, f16_block},       {2, 32, 18, q4_0_block},    {3, 32, 20, q4_1_block},
    {6, 32, 22, q5_0_block},    {7, 32, 24, q5_1_block},    {8, 32, 34, q8_0_block},    {10, 256, 84, q2_k_block},
    {11, 256, 110, q3_k_block}, {12, 256, 144, q4_k_block}, {13, 256, 176, q5_k_block}, {14, 256, 210, q6_k_block},
    {20, 32, 18, iq4_nl_block}, {23, 256, 136, iq4_xs_block}, {30, 1, 2, bf16_block},   {39, 32, 17, mxfp4_block},
};

bool decode_weights(uint32_t gguf_type, const void *data, size_t n, double *out)
{
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        if (formats[f].id != gguf_type)
            continue;
        const uint8_t *p = data;
        for (size_t k = 0; k < n; k += formats[f].weights, p += formats[f].bytes)
            formats[f].decode(p, out + k);
        return true;
    }
    return false;
}
