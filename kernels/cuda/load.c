/* Weights into the card. Raw GGUF rows are copied by several threads into a ring of pinned buffers, go up on a stream of
 * their own and are packed there on the step's stream: the three overlap. On the card the raw rows lie where the KV cache
 * and the work space will be, which nothing uses before the first step; so loading takes no memory of the card's. */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"
#include "kernels/cpu/pool.h"

#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { MAT_ALIGN = 256, VEC_ALIGN = 64, RING = 4, MAX_READERS = 8, STRIPE = 512 << 10, SLOT_BYTES = 8 << 20, SLOT_ALIGN = 4096 };

/* A pinned buffer and its place on the card. */
struct slot {
    uint8_t *pinned, *stage;
    cudaEvent_t copied;     /* what it holds is on the card: the host may write it */
    cudaEvent_t packed;     /* ... and packed: its place may be written */
    size_t used;
};

/* There while weights are loaded. */
struct upload {
    struct pool *readers;
    cudaStream_t stream;
    struct slot slot[RING];
    size_t slot_bytes;
    int turn;
};

size_t cuda_mat_bytes(enum qtype type, int rows, int cols, int n_mat)
{
    struct layout l = layout_of((int)type);
    size_t bytes = (layout_code_bytes(l, rows, cols) + layout_head_bytes(l, rows, cols)) * (size_t)n_mat;
    return (bytes + MAT_ALIGN - 1) / MAT_ALIGN * MAT_ALIGN;
}

static bool check(struct cuda *k, struct err *err)
{
    return k->failed == cudaSuccess || err_set(err, ERR_DEVICE, "device cuda:%d (%s): %s: %s", k->cfg.device_index, k->name,
                                               k->failed_at, cudaGetErrorString(k->failed));
}

/* ---- copying to pinned memory ---- */

/* Past the caches: the card reads it next, from memory. Measured 14 GB/s against memcpy's 8 to 10, Zen 3. */
static void copy_past_caches(uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t i = 0;
#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__) /* the sanitizer sees memcpy */
    for (; (uintptr_t)dst % 16 == 0 && i + 64 <= n; i += 64) {
        const __m128i *from = (const __m128i *)(const void *)(src + i);
        __m128i *to = (__m128i *)(void *)(dst + i);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, d);
    }
    _mm_sfence();
#endif
    memcpy(dst + i, src + i, n - i);
}

struct copy {
    uint8_t *dst;
    const uint8_t *src;
    size_t n;
    struct counter stripe;
};

static void copy_stripes(void *arg)
{
    struct copy *c = arg;
    for (int i = counter_take(&c->stripe); i >= 0; i = counter_take(&c->stripe)) {
        size_t at = (size_t)i * STRIPE, n = c->n - at < STRIPE ? c->n - at : STRIPE;
        copy_past_caches(c->dst + at, c->src + at, n);
    }
}

static void copy_in(struct upload *u, uint8_t *dst, const void *src, size_t n)
{
    struct copy c = {.dst = dst, .src = src, .n = n};
    counter_init(&c.stripe, (int)((n + STRIPE - 1) / STRIPE));
    if (n > STRIPE)
        pool_run(u->readers, copy_stripes, &c);
    else
        copy_stripes(&c);
}

/* ---- the ring ---- */

void cuda_load_close(struct cuda *k)
{
    struct upload *u = k->upload;
    if (u == NULL)
        return;
    if (u->stream != NULL)
        (void)cudaStreamSynchronize(u->stream);
    for (int i = 0; i < RING; i++) {
        (void)cudaFreeHost(u->slot[i].pinned);
        if (u->slot[i].copied != NULL)
            (void)cudaEventDestroy(u->slot[i].copied);
        if (u->slot[i].packed != NULL)
            (void)cudaEventDestroy(u->slot[i].packed);
    }
    if (u->stream != NULL)
        (void)cudaStreamDestroy(u->stream);
    pool_close(u->readers);
    free(u);
    k->upload = NULL;
}

/* Small slots: pinning memory takes longer than sending as much, and transfers of some MiB are as fast as larger ones. */
static size_t slot_bytes(const struct cuda *k)
{
    size_t n = SLOT_BYTES, weights = (k->cfg.weight_bytes / RING + SLOT_ALIGN) / SLOT_ALIGN * SLOT_ALIGN;
    n = weights < n ? weights : n;
    return k->stage_bytes / RING < n ? k->stage_bytes / RING / MAT_ALIGN * MAT_ALIGN : n;
}

static bool begin_upload(struct cuda *k, struct err *err)
{
    if (k->upload != NULL)
        return true;
    struct upload *u = k->upload = mem_alloc(1, sizeof *u);
    if (u == NULL)
        return err_set(err, ERR_DEVICE, "device cuda: no host memory");
    int readers = pool_default();
    u->readers = pool_open(readers < MAX_READERS ? readers : MAX_READERS);
    if (u->readers == NULL)
        return err_set(err, ERR_SYSTEM, "cannot start the threads that read the weights");
    u->slot_bytes = slot_bytes(k);
    cudaError_t e = cudaMemsetAsync(k->damaged, 0, sizeof *k->damaged, k->stream);
    e = e == cudaSuccess ? cudaMemsetAsync(k->arrivals, 0, k->arrival_bytes, k->stream) : e;
    e = e == cudaSuccess ? cudaStreamCreateWithFlags(&u->stream, cudaStreamNonBlocking) : e;
    for (int i = 0; i < RING && e == cudaSuccess; i++) {
        struct slot *s = &u->slot[i];
        s->stage = k->stage + (size_t)i * u->slot_bytes;
        e = cudaMallocHost((void **)&s->pinned, u->slot_bytes);
        e = e == cudaSuccess ? cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming) : e;
        e = e == cudaSuccess ? cudaEventCreateWithFlags(&s->packed, cudaEventDisableTiming) : e;
    }
    return e == cudaSuccess || err_set(err, ERR_DEVICE, "device cuda:%d (%s): %d pinned buffers of %zu bytes: %s",
                                       k->cfg.device_index, k->name, RING, u->slot_bytes, cudaGetErrorString(e));
}

/* The slot under way, or the next when that has no room for n bytes. */
static struct slot *slot_for(struct cuda *k, size_t n)
{
    struct upload *u = k->upload;
    struct slot *s = &u->slot[u->turn];
    if (u->slot_bytes - s->used >= n)
        return s;
    u->turn = (u->turn + 1) % RING;
    s = &u->slot[u->turn];
    (void)cudaEventSynchronize(s->copied);
    (void)cudaStreamWaitEvent(u->stream, s->packed, 0);
    CU_NOTE(k, "upload");
    s->used = 0;
    return s;
}

/* Sends n bytes, for which the slot has room, to dst. */
static void send(struct cuda *k, struct slot *s, const void *src, size_t n, void *dst)
{
    uint8_t *at = s->pinned + s->used;
    copy_in(k->upload, at, src, n);
    (void)cudaMemcpyAsync(dst, at, n, cudaMemcpyHostToDevice, k->upload->stream);
    (void)cudaEventRecord(s->copied, k->upload->stream);
    CU_NOTE(k, "upload");
    s->used += (n + VEC_ALIGN - 1) / VEC_ALIGN * VEC_ALIGN;
    s->used = s->used < k->upload->slot_bytes ? s->used : k->upload->slot_bytes;
}

/* ---- the device's entries ---- */

static bool has_room(const struct cuda *k, size_t bytes, struct err *err)
{
    return bytes <= (size_t)(k->vec_at - k->mat_at) ||
           err_set(err, ERR_DEVICE, "device cuda: weights larger than planned (%zu bytes)", k->cfg.weight_bytes);
}

bool cuda_mat_load(struct kern *kern, struct mat *m, const void *src, size_t mat_stride, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    size_t row_bytes = qtype_row_bytes(m->type, (size_t)m->cols);
    m->bytes = cuda_mat_bytes(m->type, m->rows, m->cols, m->n_mat);
    (void)cudaSetDevice(k->cfg.device_index); /* the current device is the thread's */
    if (!has_room(k, m->bytes, err) || !begin_upload(k, err))
        return false;
    size_t slot = k->upload->slot_bytes;
    if (row_bytes > slot)
        return err_set(err, ERR_DEVICE, "device cuda: rows of %zu bytes, allowed are %zu", row_bytes, slot);
    m->data = k->mat_at;
    k->mat_at += m->bytes;
    for (int i = 0; i < m->n_mat; i++)
        for (int row = 0, n; row < m->rows && k->failed == cudaSuccess; row += n) {
            struct slot *s = slot_for(k, row_bytes);
            size_t room = (slot - s->used) / row_bytes;
            uint8_t *stage = s->stage + s->used;
            n = (size_t)(m->rows - row) < room ? m->rows - row : (int)room;
            send(k, s, (const char *)src + (size_t)i * mat_stride + (size_t)row * row_bytes, (size_t)n * row_bytes, stage);
            (void)cudaStreamWaitEvent(k->stream, s->copied, 0);
            launch_pack(k, m->type, stage, m->data, m->rows, m->cols, m->n_mat, i, row, n);
            (void)cudaEventRecord(s->packed, k->stream);
            CU_NOTE(k, "upload");
        }
    return check(k, err);
}

float *cuda_vec_load(struct kern *kern, const float *src, size_t n, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    size_t bytes = (n * sizeof *src + VEC_ALIGN - 1) / VEC_ALIGN * VEC_ALIGN;
    (void)cudaSetDevice(k->cfg.device_index);
    if (!has_room(k, bytes, err) || !begin_upload(k, err))
        return NULL;
    k->vec_at -= bytes;
    size_t piece = k->upload->slot_bytes / sizeof *src;
    for (size_t i = 0, now; i < n && k->failed == cudaSuccess; i += now) {
        now = n - i < piece ? n - i : piece;
        send(k, slot_for(k, now * sizeof *src), src + i, now * sizeof *src, k->vec_at + i * sizeof *src);
    }
    return check(k, err) ? (float *)(void *)k->vec_at : NULL;
}

/* Whether what was packed is all finite. Waits for it, once for all matrices: that keeps none waiting for the one before. */
static bool is_finite(struct cuda *k, struct err *err)
{
    uint32_t *damaged = (uint32_t *)(void *)k->step_host; /* no step was yet */
    (void)cudaStreamSynchronize(k->upload->stream);         /* vectors are not packed */
    (void)cudaMemcpyAsync(damaged, k->damaged, sizeof *damaged, cudaMemcpyDeviceToHost, k->stream);
    (void)cudaStreamSynchronize(k->stream);
    CU_NOTE(k, "upload");
    return check(k, err) && (*damaged == 0 || err_set(err, ERR_MODEL, "a weight or scale is NaN or infinite"));
}

/* The memory that was used on the way is filled with NaNs: whoever reads what no step wrote shall see them, not weights. */
bool cuda_load_end(struct kern *kern, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    if (k->upload == NULL)
        return true;
    (void)cudaSetDevice(k->cfg.device_index);
    (void)cudaMemsetAsync(k->stage, 0xFF, RING * k->upload->slot_bytes, k->stream);
    bool ok = is_finite(k, err);
    cuda_load_close(k);
    return ok;
}
