/* Runs grids: block after block, the lanes of a block as fibers. A lane runs until it waits (barrier, warp exchange) or
 * ends; which lane runs next is drawn from the card's seed, so a missing barrier gives other bytes. Lanes that wait for
 * ones that never come, or at different places, are an error of the kernel: reported with lines, and the test ends. */
#include "tests/emu/emu.h"
#include "tests/emu/fiber.h"

#include <cuda_runtime.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

enum { MAX_LANES = 1024, MAX_WARPS = MAX_LANES / EMU_WARP, MAX_SHARED = 227 * 1024, FREE_SHARED = 48 * 1024, COPY_BYTES = 16 };

struct copy {
    void *to;
    const void *from;
    int group;
};

struct warp {
    emu_slot slot[2][EMU_WARP];
    int waiting, line;
};

static struct {
    struct fiber main, lane[MAX_LANES];
    struct warp warp[MAX_WARPS];
    bool begun[MAX_LANES];  /* called kernel_begin */
    int parity[MAX_LANES];  /* which slot a lane's next exchange uses */
    int ready[MAX_LANES], n_ready;
    int n_lanes, n_done, n_waiting, line, current;
    const std::function<void()> *body;
    uint64_t random;
    std::vector<struct copy> copies[MAX_LANES];     /* under way, oldest first */
    int groups[MAX_LANES];  /* closed so far */
    int allowed_shared;
    alignas(16) unsigned char shared[MAX_SHARED];
} now;

dim3 threadIdx, blockIdx, blockDim, gridDim;

void emu_fail(const char *what, int line, int other)
{
    fprintf(stderr, "emu: %s: block (%u, %u, %u), lane %d, lines %d and %d\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
            now.current, line, other);
    exit(1);
}

void *emu_dynamic_shared(void)
{
    return now.shared;
}

int emu_lane(void)
{
    return now.current % EMU_WARP;
}

static void wait(void)
{
    int me = now.current;
    fiber_switch(&now.lane[me], &now.main);
}

static void make_ready(int first, int n)
{
    for (int i = 0; i < n; i++)
        now.ready[now.n_ready++] = first + i;
}

void emu_barrier(int line)
{
    if (now.n_waiting++ == 0)
        now.line = line;
    if (now.line != line)
        emu_fail("lanes at different barriers", line, now.line);
    if (now.n_waiting == now.n_lanes) {
        now.n_waiting = 0;
        make_ready(0, now.n_lanes);
    }
    wait();
}

const emu_slot *emu_exchange(const void *mine, size_t bytes, int line)
{
    int me = now.current, parity = now.parity[me];
    struct warp *w = &now.warp[me / EMU_WARP];
    now.parity[me] = 1 - parity;
    memcpy(w->slot[parity][me % EMU_WARP], mine, bytes);
    if (w->waiting++ == 0)
        w->line = line;
    if (w->line != line)
        emu_fail("lanes of a warp at different operations", line, w->line);
    if (w->waiting == EMU_WARP) {
        w->waiting = 0;
        make_ready(me / EMU_WARP * EMU_WARP, EMU_WARP);
    }
    wait();
    return w->slot[parity];
}

void emu_begin(void)
{
    now.begun[now.current] = true;
}

void emu_copy(void *shared, const void *global)
{
    if (((uintptr_t)shared | (uintptr_t)global) % COPY_BYTES != 0)
        emu_fail("a copy that is not aligned", 0, 0);
    memset(shared, 0xFF, COPY_BYTES);
    now.copies[now.current].push_back({shared, global, now.groups[now.current]});
}

void emu_copy_close(void)
{
    now.groups[now.current]++;
}

void emu_copy_wait(int left)
{
    std::vector<struct copy> &all = now.copies[now.current];
    size_t n = 0;
    for (; n < all.size() && all[n].group < now.groups[now.current] - left; n++)
        memcpy(all[n].to, all[n].from, COPY_BYTES);
    all.erase(all.begin(), all.begin() + (ptrdiff_t)n);
}

cudaError_t emu_raise_shared(int bytes)
{
    now.allowed_shared = bytes > now.allowed_shared ? bytes : now.allowed_shared;
    return bytes <= emu_card()->shared && bytes <= MAX_SHARED ? cudaSuccess : cudaErrorInvalidValue;
}

static void lane_entry(void)
{
    (*now.body)();
    if (!now.begun[now.current])
        emu_fail("a kernel that does not begin with kernel_begin", 0, 0);
    now.n_done++;
    wait();
}

static uint64_t draw(void)
{
    now.random ^= now.random << 13;
    now.random ^= now.random >> 7;
    now.random ^= now.random << 17;
    return now.random;
}

static void run_block(int n_lanes, size_t smem)
{
    now.n_lanes = n_lanes;
    now.n_done = now.n_waiting = now.n_ready = 0;
    for (int i = 0; i < n_lanes; i++) {
        fiber_start(&now.lane[i], lane_entry);
        now.begun[i] = false;
        now.parity[i] = now.groups[i] = 0;
        now.copies[i].clear();
        now.warp[i / EMU_WARP].waiting = 0;
    }
    memset(now.shared, 0xFF, smem);
    make_ready(0, n_lanes);
    while (now.n_ready > 0) {
        int pick = (int)(draw() % (uint64_t)now.n_ready);
        now.current = now.ready[pick];
        now.ready[pick] = now.ready[--now.n_ready];
        threadIdx = dim3((unsigned)now.current, 0, 0);
        fiber_switch(&now.main, &now.lane[now.current]);
    }
    if (now.n_done != n_lanes)
        emu_fail("lanes wait for ones that ended or wait elsewhere", now.line, 0);
}

void emu_run_grid(dim3 grid, dim3 block, size_t smem, const std::function<void()> &lane)
{
    if (block.x % EMU_WARP != 0 || block.x > MAX_LANES || block.y != 1 || block.z != 1 || (smem > FREE_SHARED && smem > (size_t)now.allowed_shared) || smem > (size_t)emu_card()->shared || grid.y > 65535 ||
        grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0)
        emu_fail("a launch no card takes, or not whole warps", (int)block.x, (int)smem);
    gridDim = grid;
    blockDim = block;
    now.body = &lane;
    now.random = emu_card()->seed * 2 + 1;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                run_block((int)block.x, smem);
            }
}
