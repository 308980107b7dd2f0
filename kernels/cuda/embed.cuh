/* The embedding's body (pack.cu, persist.cu): a token's row of the packed form as floats. */
#ifndef KERNELS_CUDA_EMBED_CUH
#define KERNELS_CUDA_EMBED_CUH

#include "kernels/cuda/decode.cuh"

struct embed_args {
    const void *w;
    const int32_t *token;
    float *x;
    float scale;
    int cols, n_tile, n_seg;
};

/* Block x: a row of the step; a thread dequantises a block of 32. */
template <int T, int THREADS> __device__ inline void embed_block(const struct embed_args &a, struct block_at b)
{
    kernel_begin();
    int token = a.token[b.x], i = b.y * THREADS + (int)threadIdx.x, s = i / SEGMENT_BLOCKS;
    float *x = a.x + (size_t)b.x * (size_t)a.cols;
    if (i * NUM_BLOCK >= a.cols)
        return;
    struct place at = place_of<T>(a.w, 1, a.n_tile, a.n_seg, 0, token / TILE_ROWS, s, token % TILE_ROWS);
    int j = i % SEGMENT_BLOCKS;
    if constexpr (is_quantised(T)) {
        struct terms w = terms_of<T>(load_head<T>(at.head, s % 2), j);
        if (layout_of(T).mins == 1)
            w.min[1] = w.min[0];
        for (int k = 0; k < NUM_BLOCK; k++) {
            uint32_t half[2];
            codes<T>(at, j, k % 16 / 4, &half[0], &half[1]);
            int code = (int8_t)(without_offset<T>(half[k / 16]) >> 8 * (k % 4));
            float v = w.d * (float)w.scale[k / 16] * (float)code + w.min[k / 16];
            x[i * NUM_BLOCK + k] = a.scale != 1.0f ? v * a.scale : v;
        }
    } else {
        constexpr int per_word = T == QTYPE_F32 ? 1 : 2, per_chunk = CHUNK_WORDS * per_word;
        for (int k = 0; k < NUM_BLOCK && i * NUM_BLOCK + k < a.cols; k++) {
            int in = j * NUM_BLOCK + k;
            float v = float_weight<T>(at(in / per_chunk, in % per_chunk / per_word), in % per_word);
            x[i * NUM_BLOCK + k] = a.scale != 1.0f ? v * a.scale : v;
        }
    }
}

#endif
