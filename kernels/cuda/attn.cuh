/* What the kernels of attention share (attn.cu: few rows, flash.cu: prompts). */
#ifndef KERNELS_CUDA_ATTN_CUH
#define KERNELS_CUDA_ATTN_CUH

#include "kernels/cuda/kv.cuh"

enum { ATTN_THREADS = NUM_SPLIT, TILES = NUM_SPLIT / NUM_TILE };

struct attn_args {
    const float *q;
    float *part_o, *part_ml;
    struct dev_step step;
    struct kv_cache kv;
    int layer, n_head, window, n_part, passes;  /* passes: groups of G heads a KV head has */
    bool all;                                   /* a block runs through all splits of its rows */
};

/* Keys that position pos sees: first..pos. */
__device__ inline int first_key(int pos, int window)
{
    return window > 0 && pos >= window ? pos - window + 1 : 0;
}

#endif
