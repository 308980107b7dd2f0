/* Kernels of gpu-bench alone: weights made on the card, and what the card itself can do. */
#ifndef BENCH_GPU_KERNELS_H
#define BENCH_GPU_KERNELS_H

#include "kernels/cuda/cuda.h"

/* Fills a packed matrix with random codes and small scales. */
void gpu_fill(struct cuda *k, const struct mat *m, uint32_t seed);

/* Fills floats or halves (of a plane of activations) with small values, codes with random bytes. */
void gpu_fill_act(struct cuda *k, const struct act *a, int rows);

/* Reads `bytes` (a multiple of 16) once; `sink` holds one word. */
void gpu_read(struct cuda *k, const void *p, size_t bytes, uint32_t *sink);

/* One block that adds 1 to a word: what a launch costs. */
void gpu_tick(struct cuda *k, uint32_t *word);

/* `blocks` blocks that wait for each other n times; they must all fit on the card at once. words: two, zero before. */
void gpu_grid_sync(struct cuda *k, int blocks, int n, uint32_t *words);

/* Multiplications on the tensor cores out of registers: what they can do by mma.sync. Returns how many multiply-adds. */
double gpu_mma(struct cuda *k, bool bytes, int n, uint32_t *sink);

/* out[i] = sum of n parts, each `size` floats: the second half of a product whose columns are split freely. */
void gpu_combine(struct cuda *k, const float *parts, int n, int size, float *out);

#endif
