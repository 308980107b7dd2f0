/* The block layouts of GGUF's quantised weight formats (facts of the format; see the GGUF specification). A weight's
 * value is given beside each; q are the codes, nibble k of a block of 32: byte k low half for k < 16, byte k - 16 high
 * half for k >= 16. All scales are IEEE half unless said. */
#ifndef KERNELS_BLOCKS_H
#define KERNELS_BLOCKS_H

#include <stdint.h>

#ifdef __cplusplus
#define BLOCK_SIZE_IS(t, n) static_assert(sizeof(struct t) == (n), "block layout")
#else
#define BLOCK_SIZE_IS(t, n) _Static_assert(sizeof(struct t) == (n), "block layout")
#endif

struct block_q4_0 { uint16_t d; uint8_t qs[16]; };                       /* d (q - 8) */
struct block_q4_1 { uint16_t d, m; uint8_t qs[16]; };                    /* d q + m */
struct block_q5_0 { uint16_t d; uint8_t qh[4]; uint8_t qs[16]; };        /* d (q - 16); bit k of qh is q's fifth bit */
struct block_q5_1 { uint16_t d, m; uint8_t qh[4]; uint8_t qs[16]; };     /* d q + m */
struct block_q8_0 { uint16_t d; int8_t qs[32]; };                        /* d q */

/* 16 sub-blocks of 16; scales[i]: low nibble scale, high nibble minimum.  d s q - dmin m
 * weight k: n = k / 128, j = (k / 32) % 4, l = k % 32: q = (qs[32 n + l] >> 2 j) & 3 */
struct block_q2_k { uint8_t scales[16]; uint8_t qs[64]; uint16_t d, dmin; };
/* 16 sub-blocks of 16, scales of 6 bits minus 32.  d (s - 32) (q - 4 + 4 h), q as in q2_k; h = bit (4 n + j) of
 * hmask[l]. scales: low nibbles s & 15 in bytes 0..7 (i < 8 low half, i >= 8 high half), top 2 bits of scale i in
 * byte 8 + i % 4 at bit 2 (i / 4) */
struct block_q3_k { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; uint16_t d; };
/* 8 sub-blocks of 32, scale and minimum of 6 bits.  d s q - dmin m
 * sub-block j < 4: s = scales[j] & 63, m = scales[j + 4] & 63; j >= 4: s = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4,
 * m = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4. Weight k: n = k / 64, l = k % 32: low nibble of qs[32 n + l] for
 * k % 64 < 32, else the high one */
struct block_q4_k { uint16_t d, dmin; uint8_t scales[12]; uint8_t qs[128]; };
/* as q4_k; fifth bit of weight k: bit k / 32 of qh[k % 32] */
struct block_q5_k { uint16_t d, dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; };
/* 16 sub-blocks of 16, scales of 8 bits.  d s (q - 32); weight k: n = k / 128, j = (k / 32) % 4, l = k % 32:
 * low nibble bits from ql[64 n + l + 32 (j & 1)] (high half for j >= 2), top bits (qh[32 n + l] >> 2 j) & 3 */
struct block_q6_k { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; uint16_t d; };
/* d table[q], table: qtype.h iq4_values */
struct block_iq4_nl { uint16_t d; uint8_t qs[16]; };
/* 8 sub-blocks of 32, scale of 6 bits minus 32: low 4 bits nibble j of scales_l, top 2 at bit 2 j of scales_h; codes of
 * sub-block j as in iq4_nl in qs[16 j ..] */
struct block_iq4_xs { uint16_t d; uint16_t scales_h; uint8_t scales_l[4]; uint8_t qs[128]; };
/* 2^(e - 127) table[q] / 2, table: qtype.h mxfp4_values (doubled E2M1 values) */
struct block_mxfp4 { uint8_t e; uint8_t qs[16]; };

BLOCK_SIZE_IS(block_q4_0, 18);
BLOCK_SIZE_IS(block_q4_1, 20);
BLOCK_SIZE_IS(block_q5_0, 22);
BLOCK_SIZE_IS(block_q5_1, 24);
BLOCK_SIZE_IS(block_q8_0, 34);
BLOCK_SIZE_IS(block_q2_k, 84);
BLOCK_SIZE_IS(block_q3_k, 110);
BLOCK_SIZE_IS(block_q4_k, 144);
BLOCK_SIZE_IS(block_q5_k, 176);
BLOCK_SIZE_IS(block_q6_k, 210);
BLOCK_SIZE_IS(block_iq4_nl, 18);
BLOCK_SIZE_IS(block_iq4_xs, 136);
BLOCK_SIZE_IS(block_mxfp4, 17);

#endif
