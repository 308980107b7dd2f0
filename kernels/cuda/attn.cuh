/* What the kernels of attention share (attn.cu: few rows, flash.cu: prompts). */
#ifndef KERNELS_CUDA_ATTN_CUH
#define KERNELS_CUDA_ATTN_CUH

#include "kernels/cuda/kv.cuh"

enum { ATTN_THREADS = NUM_SPLIT, TILES = NUM_SPLIT / NUM_TILE };

/* A layer's attention, for all its kernels. */
struct attn_args {
    float *q;                   /* of the product, or as heads left them */
    const float *k, *v;         /* of the product */
    const float *q_norm, *k_norm, *sinks;   /* NULL: none */
    float *part_o, *part_ml;
    uint32_t *arrivals;
    struct dev_step step;
    struct kv_cache kv;
    struct act out;
    int layer, n_head, window, n_part, passes;  /* passes: groups of G heads a KV head has */
    int n_rope, rope_set, n_rot;
    float eps, attn_scale;
    bool neox;
    bool all;                   /* a block runs through all splits of its rows */
    bool whole;                 /* it makes the heads it needs itself, and the last of a row's splits merges them */
};

/* Keys that position pos sees: first..pos. */
__device__ inline int first_key(int pos, int window)
{
    return window > 0 && pos >= window ? pos - window + 1 : 0;
}

#endif
