/* Sines and cosines of a step's rows. */
#include "kernels/cuda/rope.cuh"

__global__ static void __launch_bounds__(ANGLE_THREADS) k_angles(struct angles_args a)
{
    angles_block(a, this_block());
}

extern "C" void launch_angles(struct cuda *k)
{
    int half = k->cfg.head_dim / 2, n = k->n_rows * k->cfg.n_rope * half, blocks = (n + ANGLE_THREADS - 1) / ANGLE_THREADS;
    struct angles_args a = {k->step.pos, k->step.inv_freq, k->cos, k->sin, n, k->cfg.n_rope, half, {}, {}};
    for (int i = 0; i < k->cfg.n_rope; i++) {
        a.n_pair[i] = k->cfg.rope[i].n_rot / 2;
        a.mscale[i] = k->cfg.rope[i].mscale;
    }
    if (n == 0)
        return;
    if (k->mode == STEP_RECORD) {
        persist_add(k, OP_ANGLES, 0, blocks, 1, &a, sizeof a);
        return;
    }
    LAUNCH(k, k_angles, dim3((unsigned)blocks), dim3(ANGLE_THREADS), 0, a);
    CU_NOTE(k, "angles");
}
