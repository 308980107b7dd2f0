/* How a matrix lies in device memory: the sizes of its packed form. C and CUDA share it.
 *
 * Rows go in tiles of 8, columns in segments of 128 (the chains of the numeric contract). A row's part of a segment is
 * `chunks` chunks of 16 bytes:  code plane  [matrix][tile][segment][chunk][row 8][16 bytes]
 * so that 8 lanes with a row each read whole lines of 128 bytes. The scales follow in a plane of their own:
 * [matrix][tile][segment / head_segs][row 8][head_words]. What is in a chunk and in a head: decode.cuh. */
#ifndef KERNELS_CUDA_LAYOUT_H
#define KERNELS_CUDA_LAYOUT_H

#include "kernels/qtype.h"

#ifdef __CUDACC__
#define LAYOUT_FN __host__ __device__ constexpr
#elif defined(__cplusplus)
#define LAYOUT_FN constexpr
#else
#define LAYOUT_FN static inline
#endif

enum { TILE_ROWS = 8, SEGMENT = 128, SEGMENT_BLOCKS = 4, CHUNK_BYTES = 16, CHUNK_WORDS = 4 };

struct layout {
    int chunks;     /* of a row's segment: its bits a weight */
    int head_words; /* 32-bit words of scales of a row ... */
    int head_segs;  /* ... for so many segments; 0 for float weights, which have none */
    int offset;     /* code = q - offset */
    int halves;     /* 1: a scale for each 16 weights; 0: one for each 32 */
    int mins;       /* minimum terms of a block of 32 */
};

LAYOUT_FN struct layout layout_of(int type)
{
    struct layout l = {32, 0, 0, 0, 0, 0}; /* F32 */
    switch (type) {
    case QTYPE_F16:
    case QTYPE_BF16:   l.chunks = 16; break;
    case QTYPE_Q4_0:   l.chunks = 4; l.head_words = 2; l.head_segs = 1; l.offset = 8; break;
    case QTYPE_Q4_1:   l.chunks = 4; l.head_words = 4; l.head_segs = 1; l.mins = 1; break;
    case QTYPE_Q5_0:   l.chunks = 5; l.head_words = 2; l.head_segs = 1; l.offset = 16; break;
    case QTYPE_Q5_1:   l.chunks = 5; l.head_words = 4; l.head_segs = 1; l.mins = 1; break;
    case QTYPE_Q8_0:   l.chunks = 8; l.head_words = 2; l.head_segs = 1; break;
    case QTYPE_Q2_K:   l.chunks = 2; l.head_words = 5; l.head_segs = 2; l.halves = 1; l.mins = 2; break;
    case QTYPE_Q3_K:   l.chunks = 3; l.head_words = 4; l.head_segs = 2; l.halves = 1; l.offset = 4; break;
    case QTYPE_Q4_K:   l.chunks = 4; l.head_words = 4; l.head_segs = 2; l.mins = 1; break;
    case QTYPE_Q5_K:   l.chunks = 5; l.head_words = 4; l.head_segs = 2; l.mins = 1; break;
    case QTYPE_Q6_K:   l.chunks = 6; l.head_words = 5; l.head_segs = 2; l.halves = 1; l.offset = 32; break;
    case QTYPE_IQ4_NL: l.chunks = 4; l.head_words = 2; l.head_segs = 1; break;
    case QTYPE_IQ4_XS: l.chunks = 4; l.head_words = 2; l.head_segs = 2; break;
    case QTYPE_MXFP4:  l.chunks = 4; l.head_words = 1; l.head_segs = 1; break;
    default: break;
    }
    return l;
}

LAYOUT_FN int layout_tiles(int rows)
{
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}

LAYOUT_FN int layout_segments(int cols)
{
    return (cols + SEGMENT - 1) / SEGMENT;
}

/* Bytes of one matrix's codes and heads. */
LAYOUT_FN size_t layout_code_bytes(struct layout l, int rows, int cols)
{
    return (size_t)layout_tiles(rows) * TILE_ROWS * (size_t)layout_segments(cols) * (size_t)l.chunks * CHUNK_BYTES;
}

LAYOUT_FN size_t layout_head_bytes(struct layout l, int rows, int cols)
{
    return l.head_segs == 0 ? 0
                            : (size_t)layout_tiles(rows) * TILE_ROWS * (size_t)(layout_segments(cols) / l.head_segs) *
                                  (size_t)l.head_words * 4;
}

#endif
