/* Kernels of gpu-bench alone: weights made on the card, and the card's read bandwidth. */
#ifndef BENCH_GPU_KERNELS_H
#define BENCH_GPU_KERNELS_H

#include "kernels/cuda/cuda.h"

/* Fills a packed matrix with random codes and small scales. */
void gpu_fill(struct cuda *k, const struct mat *m, uint32_t seed);

/* Reads `bytes` (a multiple of 16) once; `sink` holds one word. */
void gpu_read(struct cuda *k, const void *p, size_t bytes, uint32_t *sink);

#endif
