#include "kernels/cuda/act.cuh"

extern "C" {
#include "bench/gpu_probe.h"
}

#include <stdlib.h>

enum {
    THREADS = 256, BLOCKS = 1024, N_FLOATS = 1 << 20, N_ANGLES = 1 << 16, N_HALVES = 1 << 16,
    ROWS = 16, COLS = 8, MAX_K = 32,        /* of an instruction */
    COPY_UNITS = 4 * THREADS, COPY_PITCH = 9
};

/* ---- what is compared ---- */

/* The contract's functions of one float. */
struct results {
    float exp, silu, gelu, clamped, root, quotient, tiny, scale, inverse, from_bf16;
    uint32_t f16, bf16, code;
};

__host__ __device__ static struct results results_of(uint32_t bits)
{
    float x = num_from_bits(bits), y = num_from_bits(bits * 2654435761u);
    struct results r;
    r.exp = num_exp(x);
    r.silu = num_silu(x);
    r.gelu = num_gelu(x);
    r.clamped = num_swiglu_clamped(x, y);
    r.root = 1.0f / sqrtf(fabsf(x) + 1e-5f);
    r.quotient = x / y;
    r.tiny = fmaf(x, 1e-38f, x * 1e-20f); /* not flushed to zero */
    r.scale = num_quant_scale(fabsf(x), &r.inverse);
    r.from_bf16 = num_bf16_to_f32((uint16_t)bits);
    r.f16 = num_f32_to_f16(x);
    r.bf16 = x != x ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    r.code = (uint8_t)num_quant(y, r.inverse);
    return r;
}

struct turn {
    double sine, cosine;
};

__host__ __device__ static double angle_of(int i)
{
    return (double)i * 2.0 / (1 + i % 7919);
}

/* One instruction's matrices, small integers: every order of additions gives the same. */
struct matrices {
    int8_t a[ROWS][MAX_K], b[MAX_K][COLS];
    int32_t c[ROWS][COLS];
};

enum mma_kind { MMA_S8_K32, MMA_S8_K16, MMA_F16, MMA_BF16, MMA_KINDS };

__host__ __device__ static int k_of(enum mma_kind kind)
{
    return kind == MMA_S8_K32 ? 32 : 16;
}

/* ---- kernels ---- */

__device__ static uint32_t half_bits(enum mma_kind kind, int x)
{
    return kind == MMA_F16 ? num_f32_to_f16((float)x) : num_bits((float)x) >> 16;
}

/* One warp. Rows and columns of a lane's elements are the formulas of the PTX ISA, "Matrix Fragments for mma": g is its groupID,
 * t its threadID_in_group. */
__global__ static void k_mma(enum mma_kind kind, const struct matrices *in, struct matrices *out)
{
    kernel_begin();
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    bool bytes = kind == MMA_S8_K32 || kind == MMA_S8_K16;
    uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < (kind == MMA_S8_K32 ? 16 : 8); i++) {
        int row = kind == MMA_S8_K32   ? (i < 4 || (i >= 8 && i < 12) ? g : g + 8)
                  : kind == MMA_S8_K16 ? (i < 4 ? g : g + 8)
                                       : (i < 2 || (i >= 4 && i < 6) ? g : g + 8);
        int col = bytes ? 4 * t + (i & 3) + (i < 8 ? 0 : 16) : 2 * t + (i & 1) + (i < 4 ? 0 : 8);
        int x = in->a[row][col];
        a[bytes ? i / 4 : i / 2] |= bytes ? (uint32_t)(uint8_t)x << 8 * (i % 4) : half_bits(kind, x) << 16 * (i % 2);
    }
    for (int i = 0; i < (kind == MMA_S8_K32 ? 8 : 4); i++) {
        int row = bytes ? 4 * t + (i & 3) + (i < 4 ? 0 : 16) : 2 * t + (i & 1) + (i < 2 ? 0 : 8);
        int x = in->b[row][g];
        b[bytes ? i / 4 : i / 2] |= bytes ? (uint32_t)(uint8_t)x << 8 * (i % 4) : half_bits(kind, x) << 16 * (i % 2);
    }
    int32_t c[4];
    float f[4];
    for (int i = 0; i < 4; i++) {
        c[i] = in->c[i < 2 ? g : g + 8][2 * t + (i & 1)];
        f[i] = (float)c[i];
    }
    if (kind == MMA_S8_K32)
        mma_16x8x32(c, a, b[0], b[1]);
    else if (kind == MMA_S8_K16)
        mma_16x8x16(c, a[0], a[1], b[0]);
    else if (kind == MMA_F16)
        mma_f16(f, a, b[0], b[1]);
    else
        mma_bf16(f, a, b[0], b[1]);
    for (int i = 0; i < 4; i++)
        out->c[i < 2 ? g : g + 8][2 * t + (i & 1)] = bytes ? c[i] : (int32_t)f[i];
}

/* A word of four matrices of 8 rows of 16 bytes for every lane, and copies of both sizes behind a barrier. */
__global__ static void k_shared(const uint32_t *in, uint32_t *words, uint32_t *copied)
{
    DYNAMIC_SHARED(uint4, room);
    kernel_begin();
    int tid = (int)threadIdx.x, lane = tid % WARP;
    for (int i = 0; i < COPY_UNITS / THREADS - 1; i++) {
        copy_async(room + i * THREADS + tid, in + 4 * (i * THREADS + tid));
        copy_close();
    }
    for (int i = 0; i < 4; i++) {
        int word = COPY_UNITS - THREADS + i * THREADS / 4;
        copy_async_word((uint32_t *)(room + word) + tid, in + 4 * word + tid);
    }
    copy_close();
    copy_wait<0>();
    __syncthreads();
    const uint32_t *from = (const uint32_t *)room;
    for (int i = THREADS - 1 - tid; i < 4 * COPY_UNITS; i += THREADS)
        copied[i] = from[i];
    uint32_t w[4];
    load_matrices(w, room + lane * COPY_PITCH);
    for (int m = 0; m < 4; m++)
        words[(tid / WARP * 4 + m) * WARP + lane] = w[m];
}

__global__ static void k_results(const uint32_t *bits, int n, struct results *out)
{
    kernel_begin();
    for (int i = (int)(blockIdx.x * THREADS + threadIdx.x); i < n; i += (int)gridDim.x * THREADS)
        out[i] = results_of(bits[i]);
}

__global__ static void k_turns(int n, struct turn *out, float *halves)
{
    kernel_begin();
    int step = (int)gridDim.x * THREADS, begin = (int)(blockIdx.x * THREADS + threadIdx.x);
    for (int i = begin; i < n; i += step)
        num_sincos(angle_of(i), &out[i].sine, &out[i].cosine);
    for (int i = begin; i < N_HALVES; i += step)
        halves[i] = half_to_float((uint16_t)i);
}

/* ---- host ---- */

static uint32_t next(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state ^ *state >> 15;
}

/* The device's memory for weights, and room for what comes back. */
struct room {
    struct cuda *k;
    uint8_t *host;
};

/* Sends n bytes to the front of it, and fetches n bytes from `at`. */
static void to_card(const struct room *r, const void *from, size_t n)
{
    (void)cudaMemcpyAsync(r->k->mat_at, from, n, cudaMemcpyHostToDevice, r->k->stream);
}

static bool from_card(const struct room *r, size_t at, size_t n, struct err *err)
{
    (void)cudaMemcpyAsync(r->host, r->k->mat_at + at, n, cudaMemcpyDeviceToHost, r->k->stream);
    cudaError_t e = cudaStreamSynchronize(r->k->stream);
    CU_NOTE(r->k, "probe");
    return (e == cudaSuccess && r->k->failed == cudaSuccess) ||
           err_set(err, ERR_CUDA, "%s", cudaGetErrorString(e != cudaSuccess ? e : r->k->failed));
}

static bool probe_mma(const struct room *r, enum mma_kind kind, struct err *err)
{
    static const char *const names[] = {"m16n8k32 of bytes", "m16n8k16 of bytes", "m16n8k16 of halves", "m16n8k16 of bfloats"};
    struct matrices m;
    uint32_t state = (uint32_t)kind + 1;
    bool bytes = kind < MMA_F16;
    for (int i = 0; i < ROWS * MAX_K; i++)
        m.a[i / MAX_K][i % MAX_K] = (int8_t)(bytes ? next(&state) >> 8 : (next(&state) >> 8) % 17 - 8);
    for (int i = 0; i < MAX_K * COLS; i++)
        m.b[i / COLS][i % COLS] = (int8_t)(bytes ? next(&state) >> 8 : (next(&state) >> 8) % 17 - 8);
    for (int i = 0; i < ROWS * COLS; i++)
        m.c[i / COLS][i % COLS] = (int32_t)(next(&state) % 2000) - 1000;
    to_card(r, &m, sizeof m);
    const struct matrices *in = (const struct matrices *)r->k->mat_at;
    LAUNCH(r->k, k_mma, dim3(1), dim3(WARP), 0, kind, in, (struct matrices *)(void *)(r->k->mat_at + sizeof m));
    if (!from_card(r, sizeof m, sizeof m, err))
        return err_prefix(err, "mma.%s", names[kind]);
    const struct matrices *got = (const struct matrices *)(void *)r->host;
    for (int i = 0; i < ROWS * COLS; i++) {
        int32_t want = m.c[i / COLS][i % COLS];
        for (int k = 0; k < k_of(kind); k++)
            want += m.a[i / COLS][k] * m.b[k][i % COLS];
        if (got->c[i / COLS][i % COLS] != want)
            return err_set(err, ERR_INTERNAL, "mma.%s: row %d, column %d: expected %d, got %d", names[kind], i / COLS, i % COLS, want,
                           got->c[i / COLS][i % COLS]);
    }
    return true;
}

static bool probe_shared(const struct room *r, struct err *err)
{
    static uint32_t in[4 * COPY_UNITS];
    const size_t words = 4 * THREADS;
    for (uint32_t i = 0; i < 4 * COPY_UNITS; i++)
        in[i] = i * 2654435761u;
    to_card(r, in, sizeof in);
    uint32_t *at = (uint32_t *)(void *)r->k->mat_at;
    LAUNCH(r->k, k_shared, dim3(1), dim3(THREADS), sizeof in, (const uint32_t *)at, at + 4 * COPY_UNITS, at + 4 * COPY_UNITS + words);
    if (!from_card(r, sizeof in, words * 4 + sizeof in, err))
        return err_prefix(err, "shared memory");
    const uint32_t *got = (const uint32_t *)(void *)r->host;
    for (size_t i = 0; i < 4 * COPY_UNITS; i++)
        if (got[words + i] != in[i])
            return err_set(err, ERR_INTERNAL, "cp.async: word %zu: expected %08x, got %08x", i, in[i], got[words + i]);
    for (size_t i = 0; i < words; i++) {
        size_t lane = i % WARP, m = i / WARP % 4;
        uint32_t want = in[4 * (8 * m + lane / 4) * COPY_PITCH + lane % 4];
        if (got[i] != want)
            return err_set(err, ERR_INTERNAL, "ldmatrix: lane %zu, matrix %zu: expected %08x, got %08x", lane, m, want, got[i]);
    }
    return true;
}

/* The same bits, or both are NaN. */
static bool same(float a, float b)
{
    return num_bits(a) == num_bits(b) || (a != a && b != b);
}

static bool check_results(uint32_t bits, const struct results *got, struct err *err)
{
    struct results want = results_of(bits);
    const struct {
        const char *name;
        float want, got;
    } floats[] = {
        {"exp", want.exp, got->exp},          {"silu", want.silu, got->silu},
        {"gelu", want.gelu, got->gelu},       {"clamped gate", want.clamped, got->clamped},
        {"1 / sqrt", want.root, got->root},   {"division", want.quotient, got->quotient},
        {"tiny", want.tiny, got->tiny},       {"scale", want.scale, got->scale},
        {"inverse", want.inverse, got->inverse}, {"from bfloat", want.from_bf16, got->from_bf16},
    };
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        if (!same(floats[i].want, floats[i].got))
            return err_set(err, ERR_INTERNAL, "%s of %08x: expected %a, got %a", floats[i].name, bits, (double)floats[i].want,
                           (double)floats[i].got);
    return (want.f16 == got->f16 && want.bf16 == got->bf16 && want.code == got->code) ||
           err_set(err, ERR_INTERNAL, "%08x rounded: expected %x, %x, %x, got %x, %x, %x", bits, want.f16, want.bf16, want.code,
                   got->f16, got->bf16, got->code);
}

static bool probe_floats(const struct room *r, struct err *err)
{
    uint32_t *bits = (uint32_t *)malloc(N_FLOATS * sizeof *bits), state = 1;
    for (int i = 0; bits != NULL && i < N_FLOATS; i++) /* any, and half of them of a size that is met */
        bits[i] = i % 2 == 0 ? next(&state) : (next(&state) & 0x83FFFFFF) | 0x3C000000;
    bool ok = bits != NULL || err_set(err, ERR_OOM, "no memory for floats");
    if (ok) {
        to_card(r, bits, N_FLOATS * sizeof *bits);
        LAUNCH(r->k, k_results, dim3(BLOCKS), dim3(THREADS), 0, (const uint32_t *)(void *)r->k->mat_at, (int)N_FLOATS,
               (struct results *)(void *)(r->k->mat_at + N_FLOATS * sizeof *bits));
        ok = from_card(r, N_FLOATS * sizeof *bits, N_FLOATS * sizeof(struct results), err);
    }
    for (int i = 0; ok && i < N_FLOATS; i++)
        ok = check_results(bits[i], (const struct results *)(void *)r->host + i, err);
    free(bits);
    return ok;
}

static bool probe_turns(const struct room *r, struct err *err)
{
    const size_t turns = N_ANGLES * sizeof(struct turn);
    LAUNCH(r->k, k_turns, dim3(BLOCKS / 4), dim3(THREADS), 0, (int)N_ANGLES, (struct turn *)(void *)r->k->mat_at,
           (float *)(void *)(r->k->mat_at + turns));
    if (!from_card(r, 0, turns + N_HALVES * sizeof(float), err))
        return err_prefix(err, "angles");
    const struct turn *got = (const struct turn *)(void *)r->host;
    const float *halves = (const float *)(void *)(r->host + turns);
    for (int i = 0; i < N_ANGLES; i++) {
        struct turn want;
        num_sincos(angle_of(i), &want.sine, &want.cosine);
        if (memcmp(&want, &got[i], sizeof want) != 0)
            return err_set(err, ERR_INTERNAL, "sine and cosine of %a: expected %a, %a, got %a, %a", angle_of(i), want.sine, want.cosine,
                           got[i].sine, got[i].cosine);
    }
    for (int i = 0; i < N_HALVES; i++)
        if (!same(num_f16_to_f32((uint16_t)i), halves[i]))
            return err_set(err, ERR_INTERNAL, "half %04x: expected %a, got %a", i, (double)num_f16_to_f32((uint16_t)i), (double)halves[i]);
    return true;
}

extern "C" size_t probe_bytes(void)
{
    return N_FLOATS * (sizeof(uint32_t) + sizeof(struct results)); /* more than the others take */
}

extern "C" bool probe_run(struct cuda *k, struct err *err)
{
    struct room r = {k, (uint8_t *)malloc(probe_bytes())};
    bool ok = r.host != NULL || err_set(err, ERR_OOM, "no memory for a card's answers");
    ok = ok && probe_floats(&r, err) && probe_turns(&r, err);
    for (int kind = 0; ok && k->code >= CODE_TILE && kind < MMA_KINDS; kind++)
        ok = probe_mma(&r, (enum mma_kind)kind, err);
    ok = ok && (k->code < CODE_TILE || probe_shared(&r, err));
    free(r.host);
    return ok;
}
