/* The CUDA device: opening a card, its one slab of memory, the first failure, and the table of phases (step.c). Nothing is
 * ever kept in host memory that belongs on the card: no managed or mapped memory, no fall-back. */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

enum { MIN_CAPABILITY = 75 };

void cuda_note(struct cuda *k, const char *where)
{
    cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess && k->failed == cudaSuccess) {
        k->failed = e;
        k->failed_at = where;
    }
}

static size_t page_bytes(const struct kern_config *c)
{
    struct kv_cache kv;
    cuda_kv_shape(c, &kv);
    return kv.block_bytes * 2 * (size_t)c->n_kv_head * (size_t)c->n_layer;
}

static size_t work_bytes(const struct kern_config *c)
{
    struct cuda_sizes s;
    cuda_plan(c, NULL, &s);
    return s.work;
}

/* ---- open ---- */

/* A card that can be used: driver there, index in range, new enough. */
static bool choose_card(struct cuda *k, struct err *err)
{
    int n = 0, driver = 0, index = k->cfg.device_index;
    cudaError_t e = cudaGetDeviceCount(&n);
    (void)cudaDriverGetVersion(&driver);
    if (e == cudaErrorInsufficientDriver && driver == 0)
        return err_set(err, ERR_DEVICE, "device cuda: no NVIDIA driver on this machine");
    if (e == cudaErrorInsufficientDriver)
        return err_set(err, ERR_DEVICE, "device cuda: the NVIDIA driver is for CUDA %d.%d, needed is %d.%d or later",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e == cudaErrorNoDevice || (e == cudaSuccess && n == 0))
        return err_set(err, ERR_DEVICE, "device cuda: no NVIDIA GPU on this machine");
    if (e != cudaSuccess)
        return err_set(err, ERR_DEVICE, "device cuda: %s", cudaGetErrorString(e));
    if (index < 0 || index >= n)
        return err_set(err, ERR_DEVICE, "device cuda:%d: this machine has %d (cuda:0 to cuda:%d)", index, n, n - 1);
    struct cudaDeviceProp prop;
    e = cudaSetDevice(index);
    e = e == cudaSuccess ? cudaGetDeviceProperties(&prop, index) : e;
    if (e != cudaSuccess)
        return err_set(err, ERR_DEVICE, "device cuda:%d: %s", index, cudaGetErrorString(e));
    k->capability = prop.major * 10 + prop.minor;
    k->n_sm = prop.multiProcessorCount;
    k->shared_most = (int)prop.sharedMemPerBlockOptin;
    snprintf(k->name, sizeof k->name, "%.200s", prop.name);
    if (k->capability < MIN_CAPABILITY)
        return err_set(err, ERR_DEVICE, "device cuda:%d (%s): compute capability %d.%d, needed is %d.%d or later", index,
                       k->name, prop.major, prop.minor, MIN_CAPABILITY / 10, MIN_CAPABILITY % 10);
    k->code = tile_code();
    if (k->code == 0) /* no machine code for it, and PTX that is not there or newer than the driver */
        return err_set(err, ERR_DEVICE, "device cuda:%d (%s): compute capability %d.%d, and no code of this build runs there: %s; "
                       "build with CUDA_ARCHS=%d", index, k->name, prop.major, prop.minor, cudaGetErrorString(cudaGetLastError()),
                       k->capability);
    k->can_overlap = k->code >= CODE_OVERLAP && driver >= OVERLAP_CUDA && CUDART_VERSION >= OVERLAP_CUDA;
    if (k->code >= CODE_TILE && (!half_open() || !few_open(k) || !one_open(k)))
        return err_set(err, ERR_DEVICE, "device cuda:%d (%s): %s", index, k->name, cudaGetErrorString(cudaGetLastError()));
    return true;
}

static bool card_memory(int index, size_t *available, struct err *err)
{
    struct cuda k = {.cfg.device_index = index};
    size_t total;
    *available = 0;
    if (!choose_card(&k, err))
        return false;
    cudaError_t e = cudaMemGetInfo(available, &total);
    return e == cudaSuccess || err_set(err, ERR_DEVICE, "device cuda:%d: %s", index, cudaGetErrorString(e));
}

/* The slab, if the card has room for all of it. */
static bool take_memory(struct cuda *k, struct err *err)
{
    struct cuda_sizes s;
    size_t available = 0;
    cuda_plan(&k->cfg, NULL, &s);
    size_t required = s.weights + s.kv + s.work;
    cudaError_t e = cudaMemGetInfo(&available, &k->memory_total);
    if (e == cudaSuccess && required > available)
        e = cudaErrorMemoryAllocation;
    else if (e == cudaSuccess)
        e = cudaMalloc((void **)&k->slab, required);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        k->slab = NULL;
        return err_set(err, ERR_DEVICE, "VRAM_OOM: device cuda:%d (%s): required %zu bytes, available %zu bytes",
                       k->cfg.device_index, k->name, required, available);
    }
    if (e != cudaSuccess)
        return err_set(err, ERR_DEVICE, "device cuda:%d (%s): %s", k->cfg.device_index, k->name, cudaGetErrorString(e));
    k->slab_bytes = required;
    cuda_plan(&k->cfg, k, &s);
    return true;
}

/* Pinned buffers and the stream. */
static bool take_host_side(struct cuda *k, struct err *err)
{
    size_t logits = (size_t)k->cfg.max_logits * (size_t)k->cfg.n_vocab * sizeof(float);
    cudaError_t e = cudaStreamCreateWithFlags(&k->stream, cudaStreamNonBlocking);
    e = e == cudaSuccess ? cudaMallocHost((void **)&k->step_host, k->step_bytes) : e;
    e = e == cudaSuccess ? cudaMallocHost((void **)&k->host_logits, logits) : e;
    e = e == cudaSuccess ? cudaMallocHost((void **)&k->host_token, (size_t)k->cfg.max_logits * sizeof *k->host_token) : e;
    return e == cudaSuccess || err_set(err, ERR_DEVICE, "device cuda:%d (%s): pinned host memory: %s", k->cfg.device_index,
                                       k->name, cudaGetErrorString(e));
}

static void close_cuda(struct kern *kern)
{
    struct cuda *k = (struct cuda *)kern;
    if (k == NULL)
        return;
    (void)cudaSetDevice(k->cfg.device_index); /* the current device is the thread's */
    /* After a failure these fail too; there is nothing more to do about it. */
    if (k->stream != NULL)
        (void)cudaStreamSynchronize(k->stream);
    cuda_load_close(k);
    cuda_graph_close(k);
    persist_close(k);
    (void)cudaFreeHost(k->step_host);
    (void)cudaFreeHost(k->host_logits);
    (void)cudaFreeHost(k->host_token);
    (void)cudaFree(k->slab);
    if (k->stream != NULL)
        (void)cudaStreamDestroy(k->stream);
    (void)cudaGetLastError();
    free(k);
}

static struct kern *open_cuda(const struct kern_config *c, struct err *err)
{
    struct cuda *k = mem_alloc(1, sizeof *k);
    if (k == NULL) {
        err_set(err, ERR_DEVICE, "device cuda: no host memory");
        return NULL;
    }
    k->kern.dev = kern_cuda();
    k->fuse = true;
    k->cfg = *c;
    if (!choose_card(k, err)) {
        free(k); /* nothing was taken, and without a driver nothing can be given back */
        return NULL;
    }
    if (!take_memory(k, err) || !take_host_side(k, err)) {
        close_cuda(&k->kern);
        return NULL;
    }
    return &k->kern;
}

/* ---- the end of a step, facts ---- */

static bool drawn_here(const struct cuda *k, int i)
{
    return k->draws && k->host.draw[i].here;
}

/* Copies the logits that the host draws from, neighbours together. */
static void fetch_logits(struct cuda *k)
{
    size_t row = (size_t)k->cfg.n_vocab;
    for (int i = 0, end; i < k->n_logits; i = end) {
        for (end = i; end < k->n_logits && !drawn_here(k, end); end++)
            ;
        if (end > i)
            (void)cudaMemcpyAsync(k->host_logits + (size_t)i * row, k->logits + (size_t)i * row,
                                  (size_t)(end - i) * row * sizeof(float), cudaMemcpyDeviceToHost, k->stream);
        end += end == i;
    }
}

static bool step_end(struct kern *kern, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    cuda_graph_end(k);
    fetch_logits(k);
    if (k->draws)
        (void)cudaMemcpyAsync(k->host_token, k->token, (size_t)k->n_logits * sizeof *k->token, cudaMemcpyDeviceToHost, k->stream);
    CU_NOTE(k, "logits");
    cudaError_t e = cudaStreamSynchronize(k->stream);
    CU_NOTE(k, "step");
    if (k->failed == cudaSuccess && e != cudaSuccess) {
        k->failed = e;
        k->failed_at = "step";
    }
    return k->failed == cudaSuccess || err_set(err, ERR_CUDA, "CUDA_ERROR: device cuda:%d (%s): %s: %s", k->cfg.device_index,
                                               k->name, k->failed_at, cudaGetErrorString(k->failed));
}

static const float *logits(struct kern *kern, int i)
{
    struct cuda *k = (struct cuda *)kern;
    return k->host_logits + (size_t)i * (size_t)k->cfg.n_vocab;
}

static int32_t token(struct kern *kern, int i)
{
    struct cuda *k = (struct cuda *)kern;
    return drawn_here(k, i) ? k->host_token[i] : -1;
}

static void describe(const struct kern *kern, char *out, size_t size)
{
    const struct cuda *k = (const struct cuda *)kern;
    snprintf(out, size, "cuda:%d, %s, compute capability %d.%d", k->cfg.device_index, k->name, k->capability / 10,
             k->capability % 10);
}

/* The first and the last bytes of the slab: one allocation has one answer, and a slab that lost its place has none. */
static bool resident(struct kern *kern, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    (void)cudaSetDevice(k->cfg.device_index);
    for (int i = 0; i < 2; i++) {
        struct cudaPointerAttributes a = {0};
        cudaError_t e = cudaPointerGetAttributes(&a, i == 0 ? k->slab : k->slab + k->slab_bytes - 1);
        if (e != cudaSuccess)
            return err_set(err, ERR_CUDA, "CUDA_ERROR: device cuda:%d (%s): weights not resident: %s", k->cfg.device_index,
                           k->name, cudaGetErrorString(e));
        if (a.type != cudaMemoryTypeDevice || a.device != k->cfg.device_index)
            return err_set(err, ERR_CUDA, "CUDA_ERROR: device cuda:%d (%s): weights not resident: memory of type %d of device %d",
                           k->cfg.device_index, k->name, (int)a.type, a.device);
    }
    return true;
}

static void facts(const struct kern *kern, struct kern_facts *out)
{
    const struct cuda *k = (const struct cuda *)kern;
    int version = 0;
    (void)cudaRuntimeGetVersion(&version); /* the library's own number: asks no device */
    *out = (struct kern_facts){.memory_total = k->memory_total, .sm = k->capability};
    snprintf(out->runtime, sizeof out->runtime, "%d.%d", version / 1000, version % 1000 / 10);
}

static const struct kern_device device = {
    .name = "cuda",
    .step_rows = 1024, /* 256 leave half of a large card idle where a matrix has 4,096 rows */
    .memory = card_memory,
    .open = open_cuda,
    .close = close_cuda,
    .mat_bytes = cuda_mat_bytes,
    .page_bytes = page_bytes,
    .work_bytes = work_bytes,
    .mat_load = cuda_mat_load,
    .vec_load = cuda_vec_load,
    .load_end = cuda_load_end,
    .resident = resident,
    .step_begin = cuda_step_begin,
    .embed = cuda_embed,
    .attn_in = cuda_attn_in,
    .attn = cuda_attn,
    .attn_out = cuda_attn_out,
    .route = cuda_route,
    .ffn_in = cuda_ffn_in,
    .ffn_out = cuda_ffn_out,
    .head = cuda_head,
    .step_end = step_end,
    .logits = logits,
    .token = token,
    .describe = describe,
    .facts = facts,
};

const struct kern_device *kern_cuda(void)
{
    return &device;
}
