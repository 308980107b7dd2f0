/* gpu-bench: speeds of the CUDA device on the card that is there. First what the card itself can do, then generated models of
 * published shapes, loading a file, memory over many steps, and what the fixed order of sums costs. One JSON object a line:
 * "share" is bytes that must be read, times how often a second, over the card's read bandwidth as measured first. Tests that
 * would not end in time are dropped, the largest models first. Needs the CUDA toolkit and a compiler, nothing else. */
#include "bench/gpu_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 5, FULL_SECONDS = 330, QUICK_SECONDS = 100, N_CTX = 4160 };
#define ENOUGH_SECONDS 1.5      /* of one test: no further repetition */

/* ---- what all parts use ---- */

bool run_allows(struct run *r, double need, const char *what)
{
    double left = r->limit - (seconds() - r->start);
    if (need <= left)
        return true;
    fprintf(stderr, "gpu-bench: dropped %s: %.0f s left\n", what, left > 0 ? left : 0);
    run_line(r, "dropped");
    printf(",\"what\":\"%s\"}\n", what);
    r->n_dropped++;
    return false;
}

void run_line(const struct run *r, const char *test)
{
    fflush(stdout);
    printf("{\"card\":\"%s\",\"test\":\"%s\",\"at_s\":%.1f", r->card, test, seconds() - r->start);
}

double run_graph(struct cuda *k, void (*launch)(void *arg, int i), void *arg, int n)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    double best = -1;
    launch(arg, 0); /* loads its kernels, which a capture may not */
    (void)cudaStreamSynchronize(k->stream);
    (void)cudaStreamBeginCapture(k->stream, cudaStreamCaptureModeThreadLocal);
    for (int i = 0; i < n; i++)
        launch(arg, i);
    (void)cudaStreamEndCapture(k->stream, &graph);
    if (graph != NULL)
        (void)cudaGraphInstantiate(&exec, graph, 0);
    for (int i = 0; i < 4 && exec != NULL; i++) {
        double t = seconds();
        (void)cudaGraphLaunch(exec, k->stream);
        (void)cudaStreamSynchronize(k->stream);
        t = (seconds() - t) / n;
        best = i > 0 && (best < 0 || t < best) ? t : best;
    }
    if (exec != NULL)
        (void)cudaGraphExecDestroy(exec);
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    CU_NOTE(k, "graph");
    return best;
}

/* ---- models ---- */

static void model_line(const struct run *r, const struct bench *b, const char *test, int n, int depth, double s, double bytes)
{
    run_line(r, test);
    printf(",\"model\":\"%s\",\"type\":\"%s\",\"n\":%d,\"depth\":%d,\"overlap\":%d,\"one_kernel\":%d,\"apart\":%d,\"ms\":%.4f,\"tok_s\":%.1f", b->model, b->type, n,
           depth, b->k->overlap, b->k->persist.blocks > 0, !b->k->fuse, s * 1e3, n / s);
    if (bytes > 0)
        printf(",\"gb_s\":%.1f,\"share\":%.3f", bytes / s * 1e-9, bytes / s * 1e-9 / r->read_gb_s);
}

/* `batch` sequences decode one token each at `depth`, several steps; the first ones (plain, captured) do not count. */
static bool run_decode(struct run *r, struct bench *b, int batch, int depth, int steps, struct err *err)
{
    struct row rows[MAX_BATCH];
    double times[64], begin = seconds();
    int n = 0;
    for (int i = -3; i < steps && (n < 3 || seconds() - begin < ENOUGH_SECONDS); i++) {
        for (int s = 0; s < batch; s++)
            rows[s] = (struct row){s, depth, (s * 131 + i * 17 + 1000) % b->cfg.n_vocab, true};
        double t = seconds();
        if (!bench_step(b, rows, batch, err))
            return false;
        if (i >= 0)
            times[n++] = seconds() - t;
    }
    double kv = (double)kern_cuda()->page_bytes(&b->cfg) / NUM_TILE * depth * batch;
    model_line(r, b, batch == 1 ? "decode" : "batch", batch, depth, median(times, n), (double)b->weight_bytes + kv);
    printf("}\n");
    return true;
}

/* A prompt of n tokens in steps of at most MAX_ROWS; of 16 tokens it is the time to the first token. */
static bool run_prompt(struct run *r, struct bench *b, int n, struct err *err)
{
    struct row rows[MAX_ROWS];
    double times[REPEATS], begin = seconds();
    int n_times = 0;
    for (int i = -1; i < 1 || (i < REPEATS && seconds() - begin < ENOUGH_SECONDS); i++) {
        double t = seconds();
        for (int at = 0; at < n; at += MAX_ROWS) {
            int chunk = n - at < MAX_ROWS ? n - at : MAX_ROWS;
            for (int j = 0; j < chunk; j++)
                rows[j] = (struct row){0, at + j, (at * 7 + j * 31 + 5) % b->cfg.n_vocab, at + j == n - 1};
            if (!bench_step(b, rows, chunk, err))
                return false;
        }
        if (i >= 0)
            times[n_times++] = seconds() - t;
    }
    double s = median(times, n_times), tflops = 2 * (b->layer_weights * n + b->head_weights) / s * 1e-12;
    double peak = bench_type(b->type) == QTYPE_F16 || bench_type(b->type) == QTYPE_BF16 ? r->mma_half_t : r->mma_byte_t;
    model_line(r, b, "prompt", n, 0, s, 0);
    printf(",\"tflops\":%.1f,\"peak_share\":%.3f}\n", tflops, peak > 0 ? tflops / peak : 0);
    return true;
}

static const struct {
    const char *model, *type;
    double gb;              /* of weights, about */
    bool quick;
} models[] = { /* smallest first: the last are those that are dropped */
    {"qwen2.5-0.5b", "Q4_0", 0.4, false}, {"qwen2.5-0.5b", "Q8_0", 0.5, true}, {"llama-3.2-1b", "Q4_K", 0.8, false},
    {"qwen2.5-0.5b", "F16", 1, false},    {"llama-3.2-1b", "Q8_0", 1.3, false}, {"phi-3-mini", "Q4_0", 2.2, true},
    {"llama-3.2-1b", "F16", 2.5, false},  {"phi-3-mini", "Q8_0", 4, false},     {"llama-3-8b", "Q4_K", 4.7, true},
    {"phi-3-mini", "F16", 7.6, false},    {"llama-3-8b", "Q8_0", 8.5, true},    {"llama-3-8b", "F16", 16, true},
};

/* One row with norms and gates as kernels of their own. */
static bool run_apart(struct run *r, struct bench *b, struct err *err)
{
    cuda_graph_close(b->k);
    b->k->fuse = false;
    bool ok = run_decode(r, b, 1, 16, r->smoke ? 3 : 32, err);
    b->k->fuse = true;
    cuda_graph_close(b->k);
    return ok;
}

/* The same steps with kernels that start before the one before has ended. */
static bool run_overlapped(struct run *r, struct bench *b, struct err *err)
{
    if (!b->k->can_overlap)
        return true;
    cuda_graph_close(b->k);
    b->k->overlap = true;
    bool ok = run_decode(r, b, 1, 16, r->smoke ? 3 : 32, err) && run_decode(r, b, r->smoke ? 2 : 8, 16, r->smoke ? 3 : 16, err);
    b->k->overlap = false;
    cuda_graph_close(b->k);
    return ok;
}

/* One row's steps as one kernel each. */
static bool run_one_kernel(struct run *r, struct bench *b, struct err *err)
{
    struct err why = {0};
    if (!persist_open(b->k, &why)) {
        fprintf(stderr, "gpu-bench: %s\n", why.msg);
        return true;
    }
    bool ok = run_decode(r, b, 1, 16, r->smoke ? 3 : 32, err);
    persist_close(b->k);
    cuda_graph_close(b->k);
    return ok;
}

static bool run_tests(struct run *r, struct bench *b, struct err *err)
{
    static const int prompts[] = {16, 128, 512, 1024, 2048, 4096}, batches[] = {2, 4, 8, 16, 32, 64, 128, 256};
    if (r->smoke)
        return run_prompt(r, b, 16, err) && run_decode(r, b, 1, 16, 3, err) && run_decode(r, b, 4, 16, 3, err) &&
               run_apart(r, b, err) && run_overlapped(r, b, err) && run_one_kernel(r, b, err);
    bool ok = run_prompt(r, b, 16, err) && run_decode(r, b, 1, 16, 32, err) && run_decode(r, b, 1, 2048, 16, err);
    for (size_t i = 0; ok && i < sizeof batches / sizeof *batches; i++)
        if (!r->quick || batches[i] == 8 || batches[i] == 64)
            ok = run_decode(r, b, batches[i], 128, 8, err);
    for (size_t i = 1; ok && i < sizeof prompts / sizeof *prompts; i++)
        if (!r->quick || prompts[i] == 512 || prompts[i] == 2048)
            ok = run_prompt(r, b, prompts[i], err);
    return ok && run_apart(r, b, err) && run_overlapped(r, b, err) && run_one_kernel(r, b, err);
}

static bool run_model(struct run *r, const char *model, const char *type, bool with_attention, struct err *err)
{
    struct bench b;
    fprintf(stderr, "gpu-bench: %s %s, %.0f s\n", model, type, seconds() - r->start);
    bool ok = bench_open(&b, model, type, r->smoke ? 512 : N_CTX, r->smoke ? 4 : MAX_BATCH, err) && run_tests(r, &b, err);
    ok = ok && (!with_attention || cost_attention(r, &b, err));
    bench_close(&b);
    return ok;
}

/* Free memory of the card before and after many steps of changing sizes, once every size has been seen. */
static bool run_memory(struct run *r, struct err *err)
{
    struct bench b;
    int n = r->smoke ? 8 : r->quick ? 2000 : 10000, sizes = r->smoke ? 2 : 48;
    size_t before = 0, after = 0, total;
    bool ok = bench_open(&b, r->smoke ? "smollm2" : "qwen2.5-0.5b", "Q8_0", r->smoke ? 64 : 512, sizes, err);
    for (int i = -3 * sizes; ok && i < n; i++) {
        struct row rows[MAX_BATCH];
        int batch = (i + 3 * sizes) / 3 % sizes + 1; /* plain, captured, replayed: then the next size */
        if (i == 0)
            (void)cudaMemGetInfo(&before, &total);
        for (int s = 0; s < batch; s++)
            rows[s] = (struct row){s, (i + 1000) % 60, (s * 131 + i + 1000) % b.cfg.n_vocab, true};
        ok = bench_step(&b, rows, batch, err);
    }
    (void)cudaMemGetInfo(&after, &total);
    bench_close(&b);
    if (!ok)
        return false;
    run_line(r, "memory");
    printf(",\"steps\":%d,\"grown_bytes\":%lld}\n", n, (long long)before - (long long)after);
    return true;
}

/* ---- the program ---- */

/* A model that does not fit this card costs its rows, not the report. */
static bool dropped(const char *what, const struct err *err)
{
    if (err->code != ERR_DEVICE)
        return false;
    fprintf(stderr, "gpu-bench: %s dropped: %s\n", what, err->msg);
    return true;
}

static bool run_all(struct run *r, struct err *err)
{
    bool ok = card_launches(r, err);
    for (size_t i = 0; ok && i < sizeof models / sizeof *models; i++) {
        char what[64];
        snprintf(what, sizeof what, "%s %s", models[i].model, models[i].type);
        /* measured nothing yet: opening and twenty tests take about this long where a third of the bandwidth is reached */
        if ((!r->quick || models[i].quick) && run_allows(r, 4 + 0.6 * models[i].gb, what))
            ok = run_model(r, models[i].model, models[i].type, strcmp(models[i].type, "Q8_0") == 0, err) || dropped(what, err);
    }
    ok = ok && (!run_allows(r, 10, "memory over many steps") || run_memory(r, err));
    ok = ok && cost_products(r, err);
    ok = ok && (!run_allows(r, 12, "loading a file") || card_load(r, "llama-3.2-1b", "Q8_0", err));
    return ok && (r->quick || !run_allows(r, 25, "loading a file of 4.7 GB") || card_load(r, "llama-3-8b", "Q4_0", err));
}

static bool run_smoke(struct run *r, const char *model, const char *type, struct err *err)
{
    return card_launches(r, err) && run_model(r, model, type, true, err) && run_memory(r, err) && card_load(r, model, type, err) &&
           cost_products(r, err);
}

int main(int argc, char **argv)
{
    struct run r = {.limit = FULL_SECONDS};
    struct err err = {0};
    const char *model = NULL, *type = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            r.quick = true;
            r.limit = QUICK_SECONDS;
        } else if (strcmp(argv[i], "--smoke") == 0) {
            r.smoke = true;
        } else if (i + 1 < argc && argv[i][0] != '-') {
            model = argv[i];
            type = argv[++i];
        } else {
            fprintf(stderr, "usage: gpu-bench [--quick] [--smoke] [MODEL TYPE]\n");
            return 64;
        }
    }
    r.start = seconds();
    bool ok = card_measure(&r, &err);
    if (ok && r.smoke)
        ok = run_smoke(&r, model != NULL ? model : "smollm2", type != NULL ? type : "Q4_0", &err);
    else if (ok && model != NULL)
        ok = run_model(&r, model, type, true, &err);
    else if (ok)
        ok = run_all(&r, &err);
    fflush(stdout);
    if (!ok)
        fprintf(stderr, "gpu-bench: %s\n", err.msg);
    else
        fprintf(stderr, "gpu-bench: %.0f s, %d tests dropped\n", seconds() - r.start, r.n_dropped);
    return ok ? 0 : err.code == ERR_DEVICE ? 69 : 1;
}
