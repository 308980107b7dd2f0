/* Runs grids: block after block in random order, the lanes of a block as fibers. Blocks of a cooperative launch are all alive at once: in random
 * order each runs to the grid's barrier, then the next does (what is static in a kernel is theirs between barriers alone). A lane runs until it waits (barrier, warp exchange) or
 * ends; which lane runs next is drawn from the card's seed, so a missing barrier gives other bytes. Lanes that wait for
 * ones that never come, or at different places, are an error of the kernel: reported with lines, and the test ends. */
#include "tests/emu/emu.h"
#include "tests/emu/fiber.h"

#include <cuda_runtime.h>

#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

enum { MAX_LANES = 1024, MAX_WARPS = MAX_LANES / EMU_WARP, MAX_SHARED = 227 * 1024, FREE_SHARED = 48 * 1024 };

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    int group;
};

struct warp {
    emu_slot slot[2][EMU_WARP];
    int waiting, line;
};

struct block {
    dim3 at;
    struct fiber lane[MAX_LANES];
    struct warp warp[MAX_WARPS];
    bool begun[MAX_LANES];  /* called kernel_begin */
    int parity[MAX_LANES];  /* which slot a lane's next exchange uses */
    int ready[MAX_LANES], n_ready;
    int n_lanes, n_done, n_waiting, line, current;
    int n_meeting;          /* lanes at the grid's barrier */
    uint32_t *arrivals, until;  /* of it */
    std::vector<struct copy> copies[MAX_LANES];     /* under way, oldest first */
    int groups[MAX_LANES];  /* closed so far */
    alignas(16) unsigned char shared[MAX_SHARED];
};

static struct {
    struct fiber main;
    std::vector<std::unique_ptr<struct block>> blocks; /* as many as ever were alive at once */
    const std::function<void()> *body;
    uint64_t random;
    int allowed_shared;
} grid_now;

static struct block *now;

dim3 threadIdx, blockIdx, blockDim, gridDim;

void emu_fail(const char *what, int line, int other)
{
    fprintf(stderr, "emu: %s: block (%u, %u, %u), lane %d, lines %d and %d\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
            now->current, line, other);
    exit(1);
}

void *emu_dynamic_shared(void)
{
    return now->shared;
}

int emu_lane(void)
{
    return now->current % EMU_WARP;
}

static void wait(void)
{
    int me = now->current;
    fiber_switch(&now->lane[me], &grid_now.main);
}

static void make_ready(int first, int n)
{
    for (int i = 0; i < n; i++)
        now->ready[now->n_ready++] = first + i;
}

void emu_barrier(int line)
{
    if (now->n_waiting++ == 0)
        now->line = line;
    if (now->line != line)
        emu_fail("lanes at different barriers", line, now->line);
    if (now->n_waiting == now->n_lanes) {
        now->n_waiting = 0;
        make_ready(0, now->n_lanes);
    }
    wait();
}

const emu_slot *emu_exchange(const void *mine, size_t bytes, int line)
{
    int me = now->current, parity = now->parity[me];
    struct warp *w = &now->warp[me / EMU_WARP];
    now->parity[me] = 1 - parity;
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

void emu_grid_barrier(uint32_t *arrivals, uint32_t until, int line)
{
    if (now->n_meeting++ == 0) {
        now->line = line;
        now->arrivals = arrivals;
        now->until = until;
    }
    if (now->line != line || now->arrivals != arrivals || now->until != until)
        emu_fail("lanes at different barriers of the grid", line, now->line);
    wait();
}

void emu_begin(void)
{
    now->begun[now->current] = true;
}

void emu_copy(void *shared, const void *global, int bytes)
{
    if (((uintptr_t)shared | (uintptr_t)global) % (uintptr_t)bytes != 0)
        emu_fail("a copy that is not aligned", 0, 0);
    memset(shared, 0xFF, (size_t)bytes);
    now->copies[now->current].push_back({shared, global, (size_t)bytes, now->groups[now->current]});
}

void emu_copy_close(void)
{
    now->groups[now->current]++;
}

void emu_copy_wait(int left)
{
    std::vector<struct copy> &all = now->copies[now->current];
    size_t n = 0;
    for (; n < all.size() && all[n].group < now->groups[now->current] - left; n++)
        memcpy(all[n].to, all[n].from, all[n].bytes);
    all.erase(all.begin(), all.begin() + (ptrdiff_t)n);
}

cudaError_t emu_raise_shared(int bytes)
{
    grid_now.allowed_shared = bytes > grid_now.allowed_shared ? bytes : grid_now.allowed_shared;
    return bytes <= emu_card()->shared && bytes <= MAX_SHARED ? cudaSuccess : cudaErrorInvalidValue;
}

static void lane_entry(void)
{
    (*grid_now.body)();
    if (!now->begun[now->current])
        emu_fail("a kernel that does not begin with kernel_begin", 0, 0);
    now->n_done++;
    wait();
}

static uint64_t draw(void)
{
    grid_now.random ^= grid_now.random << 13;
    grid_now.random ^= grid_now.random >> 7;
    grid_now.random ^= grid_now.random << 17;
    return grid_now.random;
}

static void start_block(struct block *b, dim3 at, int n_lanes, size_t smem)
{
    now = b;
    b->at = at;
    b->n_lanes = n_lanes;
    b->n_done = b->n_waiting = b->n_meeting = b->n_ready = 0;
    for (int i = 0; i < n_lanes; i++) {
        fiber_start(&b->lane[i], lane_entry);
        b->begun[i] = false;
        b->parity[i] = b->groups[i] = 0;
        b->copies[i].clear();
        b->warp[i / EMU_WARP].waiting = 0;
    }
    memset(b->shared, 0xFF, smem);
    make_ready(0, n_lanes);
}

/* Until its lanes have ended (true) or wait for the grid. */
static bool run_block(struct block *b)
{
    now = b;
    blockIdx = b->at;
    while (b->n_ready > 0) {
        int pick = (int)(draw() % (uint64_t)b->n_ready);
        b->current = b->ready[pick];
        b->ready[pick] = b->ready[--b->n_ready];
        threadIdx = dim3((unsigned)b->current, 0, 0);
        fiber_switch(&grid_now.main, &b->lane[b->current]);
    }
    if (b->n_done != b->n_lanes && b->n_meeting != b->n_lanes)
        emu_fail("lanes wait for ones that ended or wait elsewhere", b->line, 0);
    return b->n_done == b->n_lanes;
}

static struct block *block_of(unsigned i)
{
    while (grid_now.blocks.size() <= i)
        grid_now.blocks.push_back(std::make_unique<struct block>());
    return grid_now.blocks[i].get();
}

/* One barrier of the grid after the other. */
static void run_together(unsigned n, int n_lanes, size_t smem)
{
    for (unsigned i = 0; i < n; i++)
        start_block(block_of(i), dim3(i, 0, 0), n_lanes, smem);
    for (unsigned n_ended = 0; n_ended < n;) {
        for (unsigned i = n; i-- > 1;)
            std::swap(grid_now.blocks[i], grid_now.blocks[draw() % (i + 1)]);
        for (unsigned i = 0; i < n; i++)
            n_ended += run_block(grid_now.blocks[i].get());
        for (unsigned i = 0; i < n && n_ended < n; i++) {
            struct block *b = now = grid_now.blocks[i].get();
            if (n_ended > 0 || b->until != grid_now.blocks[0]->until || b->arrivals != grid_now.blocks[0]->arrivals)
                emu_fail("blocks that do not meet at one barrier of the grid", b->line, 0);
            *b->arrivals += 1;
            if (i + 1 == n && *b->arrivals != b->until)
                emu_fail("a barrier of the grid that miscounts", b->line, (int)(*b->arrivals - b->until));
            b->n_meeting = 0;
            make_ready(0, n_lanes);
        }
    }
}

void emu_run_grid(dim3 grid, dim3 block, size_t smem, bool together, const std::function<void()> &lane)
{
    if (block.x % EMU_WARP != 0 || block.x > MAX_LANES || block.y != 1 || block.z != 1 || (smem > FREE_SHARED && smem > (size_t)grid_now.allowed_shared) || smem > (size_t)emu_card()->shared || grid.y > 65535 ||
        grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0)
        emu_fail("a launch no card takes, or not whole warps", (int)block.x, (int)smem);
    gridDim = grid;
    blockDim = block;
    grid_now.body = &lane;
    grid_now.random = emu_card()->seed * 2 + 1;
    if (together) {
        run_together(grid.x, (int)block.x, smem);
        return;
    }
    std::vector<unsigned> order(grid.x * grid.y * grid.z);
    for (unsigned i = 0; i < order.size(); i++) { /* each somewhere among those before it: any order is as likely */
        unsigned at = (unsigned)(draw() % (i + 1));
        order[i] = order[at];
        order[at] = i;
    }
    for (unsigned i : order) {
        start_block(block_of(0), dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y), (int)block.x, smem);
        if (!run_block(block_of(0)))
            emu_fail("a barrier of the grid without a cooperative launch", now->line, 0);
    }
}
