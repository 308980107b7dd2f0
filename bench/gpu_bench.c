/* gpu-bench: speeds of the CUDA device on the card that is there. First what the card itself can do, then generated models of
 * published shapes, loading a file, memory over many steps, and what the fixed order of sums costs. One JSON object a line:
 * "share" is bytes that must be read, times how often a second, over the card's read bandwidth as measured first. Tests that
 * would not end in time are dropped, the largest models first. Each model is a process of its own, so that one that fails or
 * hangs costs its own rows. Needs the CUDA toolkit and a compiler, nothing else. */
#include "bench/gpu_run.h"
#include "tests/apart.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 5, FULL_SECONDS = 330, QUICK_SECONDS = 100, N_CTX = 4160, HANG_SECONDS = 60 };
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

void run_line(struct run *r, const char *test)
{
    r->lines++;
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

static void model_line(struct run *r, const struct bench *b, const char *test, int n, int depth, double s, double bytes)
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
    if (!b->k->can_overlap || (r->avoid & RISK_OVERLAP))
        return true;
    cuda_graph_close(b->k);
    b->k->overlap = true;
    r->trying = RISK_OVERLAP;
    bool ok = run_decode(r, b, 1, 16, r->smoke ? 3 : 32, err) && run_decode(r, b, r->smoke ? 2 : 8, 16, r->smoke ? 3 : 16, err);
    r->trying = ok ? 0 : r->trying;
    b->k->overlap = false;
    cuda_graph_close(b->k);
    return ok;
}

/* One row's steps as one kernel each. */
static bool run_one_kernel(struct run *r, struct bench *b, struct err *err)
{
    struct err why = {0};
    if (r->avoid & RISK_ONE_KERNEL)
        return true;
    r->trying = RISK_ONE_KERNEL;
    if (!persist_open(b->k, &why)) {
        r->trying = 0;
        fprintf(stderr, "gpu-bench: %s\n", why.msg);
        return true;
    }
    bool ok = run_decode(r, b, 1, 16, r->smoke ? 3 : 32, err);
    r->trying = ok ? 0 : r->trying;
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

/* ---- the parts ---- */

struct part {
    struct run *r;
    const char *what, *model, *type;
    bool (*body)(const struct part *p, struct err *err);
};

static bool measure(const struct part *p, struct err *err)
{
    return card_measure(p->r, err);
}

static bool launches(const struct part *p, struct err *err)
{
    return card_launches(p->r, err);
}

static bool model(const struct part *p, struct err *err)
{
    return run_model(p->r, p->model, p->type, p->r->smoke || strcmp(p->type, "Q8_0") == 0, err);
}

static bool memory(const struct part *p, struct err *err)
{
    return run_memory(p->r, err);
}

static bool products(const struct part *p, struct err *err)
{
    return cost_products(p->r, err);
}

static bool load(const struct part *p, struct err *err)
{
    return card_load(p->r, p->model, p->type, err);
}

static bool run_body(void *arg)
{
    const struct part *p = arg;
    struct err err = {0};
    if (p->body(p, &err))
        return true;
    p->r->code = err.code;
    fprintf(stderr, "gpu-bench: %s: %s\n", p->what, err.msg);
    return false;
}

/* A part that fails, or a model that does not fit this card, costs its rows, not the report. */
static bool run_part(struct part p)
{
    struct run *r = p.r;
    char why[64];
    r->code = ERR_INTERNAL;
    r->trying = 0;
    if (apart_run(run_body, &p, &r->lines, HANG_SECONDS, why))
        return true;
    if (why[0] != 0)
        fprintf(stderr, "gpu-bench: %s: %s\n", p.what, why);
    bool failed = why[0] != 0 || r->code != ERR_DEVICE;
    r->avoid |= r->trying;
    r->n_failed += failed;
    r->n_dropped += !failed;
    run_line(r, failed ? "failed" : "dropped");
    printf(",\"what\":\"%s\"}\n", p.what);
    return false;
}

static void run_all(struct run *r)
{
    (void)run_part((struct part){r, "launches", NULL, NULL, launches});
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char what[64];
        snprintf(what, sizeof what, "%s %s", models[i].model, models[i].type);
        /* measured nothing yet: opening and twenty tests take about this long where a third of the bandwidth is reached */
        if ((!r->quick || models[i].quick) && run_allows(r, 4 + 0.6 * models[i].gb, what))
            (void)run_part((struct part){r, what, models[i].model, models[i].type, model});
    }
    if (run_allows(r, 10, "memory over many steps"))
        (void)run_part((struct part){r, "memory over many steps", NULL, NULL, memory});
    (void)run_part((struct part){r, "what the fixed order costs", NULL, NULL, products});
    if (run_allows(r, 12, "loading a file"))
        (void)run_part((struct part){r, "loading a file", "llama-3.2-1b", "Q8_0", load});
    if (!r->quick && run_allows(r, 25, "loading a file of 4.7 GB"))
        (void)run_part((struct part){r, "loading a file of 4.7 GB", "llama-3-8b", "Q4_0", load});
}

static void run_smoke(struct run *r, const char *name, const char *type)
{
    (void)(run_part((struct part){r, "launches", NULL, NULL, launches}) && run_part((struct part){r, name, name, type, model}) &&
           run_part((struct part){r, "memory", NULL, NULL, memory}) && run_part((struct part){r, "loading", name, type, load}) &&
           run_part((struct part){r, "order", NULL, NULL, products}));
}

int main(int argc, char **argv)
{
    struct run *r = apart_shared(sizeof *r);
    const char *name = NULL, *type = NULL;
    if (r == NULL) {
        fprintf(stderr, "gpu-bench: no memory\n");
        return 69;
    }
    r->limit = FULL_SECONDS;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            r->quick = true;
            r->limit = QUICK_SECONDS;
        } else if (strcmp(argv[i], "--smoke") == 0) {
            r->smoke = true;
        } else if (i + 1 < argc && argv[i][0] != '-') {
            name = argv[i];
            type = argv[++i];
        } else {
            fprintf(stderr, "usage: gpu-bench [--quick] [--smoke] [MODEL TYPE]\n");
            return 64;
        }
    }
    (void)setvbuf(stdout, NULL, _IOLBF, 0); /* a part that is killed leaves whole lines */
    r->start = seconds();
    if (!run_part((struct part){r, "the card", NULL, NULL, measure}))
        return r->code == ERR_DEVICE ? 69 : 1;
    if (r->smoke)
        run_smoke(r, name != NULL ? name : "smollm2", type != NULL ? type : "Q4_0");
    else if (name != NULL)
        (void)run_part((struct part){r, name, name, type, model});
    else
        run_all(r);
    fprintf(stderr, "gpu-bench: %.0f s, %d tests dropped, %d failed\n", seconds() - r->start, r->n_dropped, r->n_failed);
    return r->n_failed == 0 ? 0 : 1;
}
