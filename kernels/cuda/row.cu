/* Launches of the kernels that work row by row (row.cuh), and slots sorted by expert. */
#include "kernels/cuda/row.cuh"

enum { GROUP_THREADS = 512, NORM_THREADS = 1024 };

/* ---- kernels ---- */

template <int THREADS> __global__ static void __launch_bounds__(THREADS) k_norm(struct norm_args a)
{
    norm_block<THREADS>(a, this_block());
}

__global__ static void __launch_bounds__(ROW_THREADS) k_gate(struct gate_args a)
{
    gate_block(a, this_block());
}

__global__ static void __launch_bounds__(WARP) k_choose(struct choose_args a)
{
    choose_warp(a, this_block());
}

__global__ static void __launch_bounds__(ROW_THREADS) k_blend(struct blend_args a)
{
    blend_block(a, this_block());
}

/* Of slots i, i + 32 ... the experts, -1 past the end: all are under way at once. */
enum { GROUP_LOADS = 8 };

__device__ static void load_experts(const int32_t *expert, int n_slot, int i, int its[GROUP_LOADS])
{
#pragma unroll
    for (int j = 0; j < GROUP_LOADS; j++)
        its[j] = i + j * WARP < n_slot ? expert[i + j * WARP] : -1;
}

/* One block: slots by expert, rising in each (a counting sort, a warp an expert at a time), and the groups of GROUP_COLS that
 * their products take; groups that are not needed are empty. */
__global__ static void __launch_bounds__(GROUP_THREADS) k_group(const int32_t *expert, int n_slot, int n_expert, int32_t *order,
                                                                struct col_group *group, int n_group)
{
    kernel_begin();
    __shared__ int32_t count[MAX_GROUPED], first[MAX_GROUPED], first_group[MAX_GROUPED];
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    for (int e = warp; e < n_expert; e += GROUP_THREADS / WARP) {
        int n = 0, its[GROUP_LOADS];
        for (int i = lane; i - lane < n_slot; i += GROUP_LOADS * WARP) {
            load_experts(expert, n_slot, i, its);
#pragma unroll
            for (int j = 0; j < GROUP_LOADS; j++)
                n += __popc(__ballot_sync(ALL_LANES, its[j] == e));
        }
        if (lane == 0)
            count[e] = n;
    }
    __syncthreads();
    int slots = 0, groups = 0; /* of the experts before this stretch of 32 */
    for (int e = lane; warp == 0 && e - lane < n_expert; e += WARP) {
        int n = e < n_expert ? count[e] : 0, g = (n + GROUP_COLS - 1) / GROUP_COLS, all = n, all_g = g;
        for (int by = 1; by < WARP; by *= 2) {
            int a = __shfl_up_sync(ALL_LANES, all, by), b = __shfl_up_sync(ALL_LANES, all_g, by);
            all += lane >= by ? a : 0;
            all_g += lane >= by ? b : 0;
        }
        if (e < n_expert) {
            first[e] = slots + all - n;
            first_group[e] = groups + all_g - g;
        }
        slots += __shfl_sync(ALL_LANES, all, WARP - 1);
        groups += __shfl_sync(ALL_LANES, all_g, WARP - 1);
    }
    for (int i = (int)threadIdx.x; i < n_group; i += GROUP_THREADS)
        group[i].n = 0;
    __syncthreads();
    for (int e = warp; e < n_expert; e += GROUP_THREADS / WARP) {
        for (int j = lane; j * GROUP_COLS < count[e]; j += WARP) {
            int left = count[e] - j * GROUP_COLS;
            struct col_group g = {e, first[e] + j * GROUP_COLS, left < GROUP_COLS ? left : GROUP_COLS};
            group[first_group[e] + j] = g;
        }
        int at = first[e], its[GROUP_LOADS];
        for (int i = lane; i - lane < n_slot; i += GROUP_LOADS * WARP) {
            load_experts(expert, n_slot, i, its);
#pragma unroll
            for (int j = 0; j < GROUP_LOADS; j++) {
                uint32_t all = __ballot_sync(ALL_LANES, its[j] == e);
                if (its[j] == e)
                    order[at + __popc(all & ((1u << lane) - 1))] = i + j * WARP;
                at += __popc(all);
            }
        }
    }
}

/* ---- launchers ---- */

static int blocks_of(int n)
{
    return (n + ROW_THREADS - 1) / ROW_THREADS;
}

extern "C" void launch_norm(struct cuda *k, const struct norm_args *a)
{
    /* Few rows have a multiprocessor each; of many, more fit beside each other in small blocks. */
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_NORM, 0, a->n, 1, a, sizeof *a);
    else if (a->n <= k->n_sm)
        LAUNCH(k, k_norm<NORM_THREADS>, dim3((unsigned)a->n), dim3(NORM_THREADS), 0, *a);
    else
        LAUNCH(k, k_norm<ROW_THREADS>, dim3((unsigned)a->n), dim3(ROW_THREADS), 0, *a);
    CU_NOTE(k, "norm");
}

extern "C" void launch_gate(struct cuda *k, int n_col, int n_ff, const struct act *out)
{
    struct gate_args a = {k->gate, k->up, *out, n_ff, k->cfg.act};
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_GATE, 0, blocks_of(n_ff), n_col, &a, sizeof a);
    else
        LAUNCH(k, k_gate, dim3((unsigned)blocks_of(n_ff), (unsigned)n_col), dim3(ROW_THREADS), 0, a);
    CU_NOTE(k, "gate");
}

extern "C" void launch_choose(struct cuda *k)
{
    struct choose_args a = {k->router, k->cfg.n_expert, k->cfg.n_expert_used, k->expert, k->expert_w};
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_CHOOSE, 0, k->n_rows, 1, &a, sizeof a);
    else
        LAUNCH(k, k_choose, dim3((unsigned)k->n_rows), dim3(WARP), 0, a);
    CU_NOTE(k, "choose");
}

extern "C" void launch_group(struct cuda *k, int n_slot, int n_group)
{
    LAUNCH(k, k_group, dim3(1), dim3(GROUP_THREADS), 0, k->expert, n_slot, k->cfg.n_expert, k->order, k->group, n_group);
    CU_NOTE(k, "group");
}

extern "C" void launch_blend(struct cuda *k)
{
    struct blend_args a = {k->branch, k->expert_w, k->cfg.n_expert_used, k->cfg.dim, k->y};
    if (k->mode == STEP_RECORD)
        persist_add(k, OP_BLEND, 0, blocks_of(k->cfg.dim), k->n_rows, &a, sizeof a);
    else
        LAUNCH(k, k_blend, dim3((unsigned)blocks_of(k->cfg.dim), (unsigned)k->n_rows), dim3(ROW_THREADS), 0, a);
    CU_NOTE(k, "blend");
}
