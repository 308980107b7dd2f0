/* Sines and cosines of a step's rows. */
#include "kernels/cuda/rope.cuh"

enum { ANGLE_THREADS = 128 };

__global__ static void __launch_bounds__(ANGLE_THREADS) k_angles(struct angles_args a)
{
    angles_block<ANGLE_THREADS>(a, this_block());
}

static int blocks(int n, int size)
{
    return (n + size - 1) / size;
}

extern "C" void launch_angles(struct cuda *k)
{
    int half = k->cfg.head_dim / 2, n = k->n_rows * k->cfg.n_rope * half;
    struct angles_args a = {k->step.pos, k->step.inv_freq, k->cos, k->sin, n, k->cfg.n_rope, half, {}, {}};
    for (int i = 0; i < k->cfg.n_rope; i++) {
        a.n_pair[i] = k->cfg.rope[i].n_rot / 2;
        a.mscale[i] = k->cfg.rope[i].mscale;
    }
    if (n == 0)
        return;
    if (k->mode == STEP_RECORD) {
        persist_add(k, OP_ANGLES, 0, blocks(n, 2 * ANGLE_THREADS), 1, &a, sizeof a);
        return;
    }
    LAUNCH(k, k_angles, dim3((unsigned)blocks(n, ANGLE_THREADS)), dim3(ANGLE_THREADS), 0, a);
    CU_NOTE(k, "angles");
}
