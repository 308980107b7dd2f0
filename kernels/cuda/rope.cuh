/* The body of the step's sines and cosines (rope.cu, persist.cu): the host's operations in double precision, a thread a pair of
 * dimensions. */
#ifndef KERNELS_CUDA_ROPE_CUH
#define KERNELS_CUDA_ROPE_CUH

#include "kernels/cuda/device.cuh"

enum { ANGLE_THREADS = 256 };

struct angles_args {
    const int32_t *pos;
    const double *inv_freq;     /* (n_rope, half) */
    float *cos, *sin;           /* (rows, n_rope, half) */
    int n, n_rope, half;
    int n_pair[ROPE_MAX];       /* that turn */
    double mscale[ROPE_MAX];
};

__device__ inline void angles_block(const struct angles_args &a, struct block_at b)
{
    kernel_begin();
    int i = b.x * ANGLE_THREADS + (int)threadIdx.x, row = i / a.half / a.n_rope, set = i / a.half % a.n_rope;
    if (i >= a.n || i % a.half >= a.n_pair[set])
        return;
    double s, c;
    num_sincos((double)a.pos[row] * a.inv_freq[set * a.half + i % a.half], &s, &c);
    a.cos[i] = (float)(c * a.mscale[set]);
    a.sin[i] = (float)(s * a.mscale[set]);
}

#endif
