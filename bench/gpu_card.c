/* What the card itself can do, whoever programs it: reading, uploads, the tensor cores' instructions, launches, barriers. */
#include "bench/gpu_run.h"
#include "engine/adapter.h"
#include "tests/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REPEATS = 5, MIB = 1 << 20 };
#define WARM_SECONDS 0.2        /* an idle card's clocks take that long to rise */

static double best_of(struct cuda *k, void (*launch)(struct cuda *k, void *arg), void *arg)
{
    double best = 1e9, begin = seconds();
    for (int i = 0; i < REPEATS || seconds() - begin < WARM_SECONDS; i++) {
        (void)cudaStreamSynchronize(k->stream);
        double t = seconds();
        launch(k, arg);
        (void)cudaStreamSynchronize(k->stream);
        t = seconds() - t;
        best = t < best ? t : best;
    }
    return best;
}

/* A device with nothing but `bytes` of room for weights. */
static struct cuda *open_plain(size_t bytes, struct err *err)
{
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = 32, .n_ff = 32,
                            .max_rows = 1, .max_logits = 1, .n_pages = 1, .weight_bytes = bytes};
    return (struct cuda *)kern_cuda()->open(&c, err);
}

static bool close_plain(struct cuda *k, struct err *err)
{
    bool ok = k->failed == cudaSuccess || err_set(err, ERR_CUDA, "%s: %s", k->failed_at, cudaGetErrorString(k->failed));
    kern_cuda()->close(&k->kern);
    return ok;
}

struct transfer {
    void *from;
    size_t bytes;
};

static void read_all(struct cuda *k, void *arg)
{
    gpu_read(k, k->mat_at, *(size_t *)arg, (uint32_t *)(void *)k->logits);
}

static void upload(struct cuda *k, void *arg)
{
    const struct transfer *t = arg;
    (void)cudaMemcpyAsync(k->mat_at, t->from, t->bytes, cudaMemcpyHostToDevice, k->stream);
    CU_NOTE(k, "upload");
}

struct mma {
    bool bytes;
    int n;
    double macs;
};

static void multiply(struct cuda *k, void *arg)
{
    struct mma *m = arg;
    m->macs = gpu_mma(k, m->bytes, m->n, (uint32_t *)(void *)k->logits);
}

bool card_measure(struct run *r, struct err *err)
{
    size_t bytes = r->smoke ? MIB : (size_t)4 << 30, pinned = r->smoke ? MIB : 256 * MIB;
    struct cuda *k = open_plain(bytes, err);
    if (k == NULL)
        return false;
    kern_cuda()->describe(&k->kern, r->card, sizeof r->card);
    struct mat all = {.type = QTYPE_F32, .rows = (int)(bytes / 4 / SEGMENT), .cols = SEGMENT, .n_mat = 1, .data = k->mat_at};
    struct transfer t = {.bytes = pinned};
    struct mma byte = {.bytes = true, .n = r->smoke ? 1 : 4096}, half = {.n = r->smoke ? 1 : 4096};
    gpu_fill(k, &all, 1);
    r->read_gb_s = (double)bytes / best_of(k, read_all, &bytes) * 1e-9;
    if (cudaMallocHost(&t.from, pinned) == cudaSuccess) {
        memset(t.from, 1, pinned);
        r->upload_gb_s = (double)pinned / best_of(k, upload, &t) * 1e-9;
    }
    (void)cudaFreeHost(t.from);
    if (k->code >= CODE_TILE) {
        double s = best_of(k, multiply, &byte);
        r->mma_byte_t = 2 * byte.macs / s * 1e-12;
        s = best_of(k, multiply, &half);
        r->mma_half_t = 2 * half.macs / s * 1e-12;
    }
    run_line(r, "card");
    printf(",\"read_gb_s\":%.1f,\"upload_gb_s\":%.1f,\"mma_byte_tops\":%.1f,\"mma_half_tflops\":%.1f,\"sm\":%d,\"code\":%d,"
           "\"multiprocessors\":%d}\n", r->read_gb_s, r->upload_gb_s, r->mma_byte_t, r->mma_half_t, k->capability, k->code, k->n_sm);
    return close_plain(k, err);
}

/* ---- launches ---- */

struct ticks {
    struct cuda *k;
    uint32_t *word;
    int blocks;
};

static void tick(void *arg, int i)
{
    const struct ticks *t = arg;
    (void)i;
    gpu_tick(t->k, t->word);
}

static void tick_many(struct cuda *k, void *arg)
{
    for (int i = 0; i < *(int *)arg; i++)
        gpu_tick(k, (uint32_t *)(void *)k->logits);
}

static void sync_many(struct cuda *k, void *arg)
{
    const struct ticks *t = arg;
    (void)cudaMemsetAsync(t->word, 0, 8, k->stream);
    gpu_grid_sync(k, k->n_sm, t->blocks, t->word);
}

/* Microseconds from one tiny kernel to the next, on a stream, in a graph, and in a graph with overlap; and of one barrier
 * of a block on every multiprocessor. */
bool card_launches(struct run *r, struct err *err)
{
    int n = r->smoke ? 4 : 1000;
    struct cuda *k = open_plain(4096, err);
    if (k == NULL)
        return false;
    struct ticks t = {k, (uint32_t *)(void *)k->logits, n};
    double overlapped = 0, stream = best_of(k, tick_many, &n) / n, graph = run_graph(k, tick, &t, n);
    if (k->can_overlap) {
        k->overlap = true;
        overlapped = run_graph(k, tick, &t, n);
        k->overlap = false;
    }
    double meet = best_of(k, sync_many, &t) / n;
    run_line(r, "launch");
    printf(",\"stream_us\":%.3f,\"graph_us\":%.3f,\"graph_overlap_us\":%.3f,\"grid_sync_us\":%.3f}\n", stream * 1e6, graph * 1e6,
           overlapped * 1e6, meet * 1e6);
    return close_plain(k, err);
}

/* ---- loading a file ---- */

static bool load_file(struct run *r, const char *path, double bytes, const char *name, const char *type, struct err *err)
{
    struct adapter_options o = {.device = kern_cuda(), .n_ctx = 512, .max_seqs = 1};
    double t = seconds();
    struct gguf *g = gguf_open(path, err);
    struct model *m = g == NULL ? NULL : model_open(g, err);
    double opened = seconds() - t;
    t = seconds();
    struct adapter *a = m == NULL ? NULL : adapter_open(m, &o, err);
    t = seconds() - t;
    bool ok = a != NULL;
    double gb_s = bytes / t * 1e-9;
    if (ok) {
        run_line(r, "load");
        printf(",\"model\":\"%s\",\"type\":\"%s\",\"file_gb\":%.3f,\"open_ms\":%.1f,\"load_ms\":%.1f,\"gb_s\":%.1f,\"upload_gb_s\":%.1f,"
               "\"share\":%.3f}\n", name, type, bytes * 1e-9, opened * 1e3, t * 1e3, gb_s, r->upload_gb_s,
               r->upload_gb_s > 0 ? gb_s / r->upload_gb_s : 0);
    }
    adapter_close(a);
    model_close(m);
    gguf_close(g);
    return ok;
}

/* Writes the file (it is in the page cache then) and loads it twice: the second has no first time of anything. */
bool card_load(struct run *r, const char *model, const char *type, struct err *err)
{
    const char *dir = getenv("TMPDIR");
    char path[512];
    struct tiny_spec s;
    snprintf(path, sizeof path, "%s/gpu-bench-%d.gguf", dir != NULL ? dir : "/tmp", (int)getpid());
    bool ok = tiny_preset(model, type, &s, err) && tiny_write(&s, path, err);
    FILE *f = ok ? fopen(path, "rb") : NULL;
    ok = ok && (f != NULL || err_set(err, ERR_SYSTEM, "%s cannot be read again", path));
    double bytes = 0;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0)
        bytes = (double)ftell(f);
    if (f != NULL)
        fclose(f);
    for (int i = 0; ok && i < 2; i++)
        ok = load_file(r, path, bytes, model, type, err);
    (void)remove(path);
    return ok;
}
