/* gpu-bench: speeds of the CUDA device on the card that is there, for generated models of published shapes whose weights
 * are made on the card. Prints one JSON object a line; "share" is bytes that a token must read, times tokens per second,
 * over the card's read bandwidth as measured first. Needs the CUDA toolkit and a compiler, nothing else. */
#include "base/clock.h"
#include "bench/gpu_kernels.h"
#include "tests/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 256, MAX_BATCH = 256, MAX_LAYERS = 64, REPEATS = 5, BATCH_PAGES = 3 };
#define ENOUGH_SECONDS 4.0      /* of one test: no further repetition */
#define LAST_START 420.0        /* seconds after which no further test begins */

/* A model on the card: matrices filled, norms all ones. */
struct bench {
    struct cuda *k;
    struct kern_config cfg;
    struct layer layer[MAX_LAYERS];
    struct mat embed;
    struct head_params head;
    double inv_freq[512];
    int32_t *pages;
    int stride, seqs;
    size_t weight_bytes;        /* that a token reads: all matrices but the embedding, unless tied */
    double read_gb_s;           /* the card's */
    double start;
    const char *card, *model, *type;
};

static double seconds(void)
{
    return (double)clock_ns() * 1e-9;
}

/* ---- the model ---- */

static struct mat make_mat(struct bench *b, enum qtype t, int rows, int cols, uint32_t seed)
{
    struct cuda *k = b->k;
    struct mat m = {.type = t, .rows = rows, .cols = cols, .n_mat = 1, .bytes = cuda_mat_bytes(t, rows, cols, 1)};
    b->weight_bytes += m.bytes;
    if (k == NULL)
        return m; /* counting */
    m.data = k->mat_at;
    k->mat_at += m.bytes;
    gpu_fill(k, &m, seed);
    return m;
}

static const float *ones(struct bench *b, int n, struct err *err)
{
    float *host = calloc((size_t)n, sizeof *host);
    for (int i = 0; host != NULL && i < n; i++)
        host[i] = 1;
    const float *p = host == NULL ? NULL : cuda_vec_load(&b->k->kern, host, (size_t)n, err);
    free(host);
    return p;
}

static void make_weights(struct bench *b, const struct tiny_spec *s, enum qtype t)
{
    /* K formats need rows of whole blocks of 256; files fall back as llama-quantize does */
    int heads = s->n_head * s->head_dim, kv = s->n_kv_head * s->head_dim;
    for (int i = 0; i < s->n_layer; i++) {
        struct layer *l = &b->layer[i];
        uint32_t seed = (uint32_t)i * 64;
        l->index = i;
        l->attn_in.has_pending = i > 0;
        l->attn.window = 0;
        l->attn_in.q = make_mat(b, t, heads, s->dim, seed + 1);
        l->attn_in.k = make_mat(b, t, kv, s->dim, seed + 3);
        l->attn_in.v = make_mat(b, t, kv, s->dim, seed + 5);
        l->attn_out.o = make_mat(b, t, s->dim, heads, seed + 7);
        l->ffn.gate = make_mat(b, t, s->n_ff, s->dim, seed + 9);
        l->ffn.up = make_mat(b, t, s->n_ff, s->dim, seed + 11);
        l->ffn.down = make_mat(b, t, s->dim, s->n_ff, seed + 13);
    }
    enum qtype ends = qtype_info(t)->quantised ? QTYPE_Q8_0 : t; /* as files have them */
    b->head.out = make_mat(b, ends, s->n_vocab, s->dim, 7777);
    b->embed = b->head.out;
}

static bool make_norms(struct bench *b, struct err *err)
{
    for (int i = 0; i < b->cfg.n_layer; i++) {
        b->layer[i].attn_in.norm = ones(b, b->cfg.dim, err);
        b->layer[i].ffn.norm = ones(b, b->cfg.dim, err);
        if (b->layer[i].attn_in.norm == NULL || b->layer[i].ffn.norm == NULL)
            return false;
    }
    b->head.norm = ones(b, b->cfg.dim, err);
    return b->head.norm != NULL;
}

static bool open_bench(struct bench *b, const char *model, const char *type, int n_ctx, int seqs, struct err *err)
{
    struct tiny_spec s;
    enum qtype t = QTYPE_N;
    for (int i = 0; i < QTYPE_N; i++)
        t = strcmp(type, qtype_name((enum qtype)i)) == 0 ? (enum qtype)i : t;
    if (t == QTYPE_N)
        return err_set(err, ERR_USAGE, "weight type %s: not in kernels/qtypes.def", type);
    if (!tiny_preset(model, type, &s, err))
        return false;
    if (s.n_expert > 0 || s.n_layer > MAX_LAYERS || s.dim % qtype_info(t)->block_weights != 0)
        return err_set(err, ERR_USAGE, "%s %s is not benched: experts, too many layers, or rows that are not whole blocks", model,
                       type);
    b->model = model;
    b->type = type;
    b->seqs = seqs;
    b->stride = (n_ctx + NUM_TILE - 1) / NUM_TILE;
    for (int i = 0; i < s.head_dim / 2; i++)
        b->inv_freq[i] = num_pow((double)s.rope_base, -2.0 * i / s.head_dim);
    b->weight_bytes = 0;
    b->k = NULL;
    make_weights(b, &s, t);
    b->cfg = (struct kern_config){
        .n_layer = s.n_layer, .dim = s.dim, .n_head = s.n_head, .n_kv_head = s.n_kv_head, .head_dim = s.head_dim,
        .n_vocab = s.n_vocab, .n_ff = s.n_ff, .norm_eps = 1e-5f, .embed_scale = 1,
        .attn_scale = 1.0f / sqrtf((float)s.head_dim), .n_rope = 1, .max_rows = MAX_ROWS, .max_logits = MAX_BATCH,
        .n_pages = b->stride + (seqs - 1) * BATCH_PAGES, .kv_type = KV_F16,
        .rope = {{.inv_freq = b->inv_freq, .mscale = 1, .n_rot = s.head_dim, .neox = true}},
        .weight_bytes = b->weight_bytes + (size_t)(2 * s.n_layer + 1) * ((size_t)s.dim * 4 + 64),
    };
    b->k = (struct cuda *)kern_cuda()->open(&b->cfg, err);
    b->pages = calloc((size_t)(seqs * b->stride), sizeof *b->pages);
    if (b->k == NULL || b->pages == NULL)
        return false;
    for (int i = 0; i < b->stride; i++)
        b->pages[i] = i;
    for (int seq = 1; seq < seqs; seq++) /* the others are short */
        for (int i = 0; i < BATCH_PAGES && i < b->stride; i++)
            b->pages[seq * b->stride + i] = b->stride + (seq - 1) * BATCH_PAGES + i;
    b->weight_bytes = 0;
    make_weights(b, &s, t);
    return make_norms(b, err);
}

static void close_bench(struct bench *b)
{
    if (b->k != NULL)
        kern_cuda()->close(&b->k->kern);
    free(b->pages);
    b->k = NULL;
    b->pages = NULL;
}

static bool step(struct bench *b, const struct row *rows, int n, struct err *err)
{
    const struct kern_device *d = kern_cuda();
    struct kern *k = &b->k->kern;
    struct step s = {.rows = rows, .n_rows = n, .page_table = b->pages, .page_stride = b->stride};
    bool logits = false;
    d->step_begin(k, &s);
    d->embed(k, &b->embed);
    for (int i = 0; i < b->cfg.n_layer; i++) {
        d->attn_in(k, &b->layer[i]);
        d->attn(k, &b->layer[i]);
        d->attn_out(k, &b->layer[i]);
        d->ffn_in(k, &b->layer[i]);
        d->ffn_out(k, &b->layer[i]);
    }
    for (int i = 0; i < n; i++)
        logits = logits || rows[i].want_logits;
    if (logits)
        d->head(k, &b->head);
    return d->step_end(k, err);
}

/* ---- measurements ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static void print_row(const struct bench *b, const char *test, int n, int depth, double tok_s, double bytes)
{
    double gb_s = bytes * 1e-9;
    printf("{\"card\":\"%s\",\"model\":\"%s\",\"type\":\"%s\",\"test\":\"%s\",\"n\":%d,\"depth\":%d,\"tok_s\":%.1f,"
           "\"gb_s\":%.1f,\"read_gb_s\":%.1f,\"share\":%.3f}\n",
           b->card, b->model, b->type, test, n, depth, tok_s, gb_s, b->read_gb_s, b->read_gb_s > 0 ? gb_s / b->read_gb_s : 0);
    fflush(stdout);
}

/* `batch` sequences decode one token each at `depth`, several steps; the first ones (plain, captured) do not count. */
static bool run_decode(struct bench *b, int batch, int depth, int steps, struct err *err)
{
    struct row rows[MAX_BATCH];
    double times[64];
    for (int i = -3; i < steps; i++) {
        for (int s = 0; s < batch; s++)
            rows[s] = (struct row){s, depth, (s * 131 + i * 17 + 1000) % b->cfg.n_vocab, true};
        double t = seconds();
        if (!step(b, rows, batch, err))
            return false;
        if (i >= 0)
            times[i] = seconds() - t;
    }
    double t = median(times, steps);
    double kv = (double)kern_cuda()->page_bytes(&b->cfg) / NUM_TILE * depth * batch;
    print_row(b, batch == 1 ? "decode" : "batch", batch, depth, batch / t, ((double)b->weight_bytes + kv) / t);
    return true;
}

/* A prompt of n tokens in steps of at most MAX_ROWS; "gb_s" is of no interest there and printed as 0. */
static bool run_prompt(struct bench *b, int n, struct err *err)
{
    struct row rows[MAX_ROWS];
    double times[REPEATS], begin = seconds();
    int n_times = 0;
    for (int r = -1; r < 1 || (r < REPEATS && seconds() - begin < ENOUGH_SECONDS); r++) {
        double t = seconds();
        for (int at = 0; at < n; at += MAX_ROWS) {
            int chunk = n - at < MAX_ROWS ? n - at : MAX_ROWS;
            for (int i = 0; i < chunk; i++)
                rows[i] = (struct row){0, at + i, (at * 7 + i * 31 + 5) % b->cfg.n_vocab, at + i == n - 1};
            if (!step(b, rows, chunk, err))
                return false;
        }
        if (r >= 0)
            times[n_times++] = seconds() - t;
    }
    print_row(b, "prompt", n, 0, n / median(times, n_times), 0);
    return true;
}

/* GB/s of reading half of what is free, at most 8 GB, on a device opened with nothing else. */
static bool measure_read(double *gb_s, char *card, size_t size, size_t bytes, struct err *err)
{
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = 32, .n_ff = 32,
                            .max_rows = 1, .max_logits = 1, .n_pages = 1, .weight_bytes = bytes};
    struct kern *kern = kern_cuda()->open(&c, err);
    if (kern == NULL)
        return false;
    struct cuda *k = (struct cuda *)kern;
    double best = 0;
    struct mat all = {.type = QTYPE_F32, .rows = (int)(bytes / 4 / SEGMENT), .cols = SEGMENT, .n_mat = 1, .data = k->mat_at};
    kern_cuda()->describe(kern, card, size);
    gpu_fill(k, &all, 1);
    for (int i = 0; i < 8; i++) {
        (void)cudaStreamSynchronize(k->stream);
        double t = seconds();
        gpu_read(k, k->mat_at, bytes, (uint32_t *)(void *)k->logits);
        (void)cudaStreamSynchronize(k->stream);
        t = seconds() - t;
        best = (double)bytes / t > best ? (double)bytes / t : best;
    }
    *gb_s = best * 1e-9;
    bool ok = k->failed == cudaSuccess || err_set(err, ERR_CUDA, "%s: %s", k->failed_at, cudaGetErrorString(k->failed));
    kern_cuda()->close(kern);
    return ok;
}

/* ---- what is run ---- */

static const struct {
    const char *model, *type;
    bool quick;
} models[] = {
    {"qwen2.5-0.5b", "F16", false}, {"qwen2.5-0.5b", "Q8_0", true}, {"qwen2.5-0.5b", "Q4_0", false},
    {"llama-3.2-1b", "F16", false}, {"llama-3.2-1b", "Q8_0", false}, {"llama-3.2-1b", "Q4_K", false},
    {"phi-3-mini", "F16", false},   {"phi-3-mini", "Q8_0", false},   {"phi-3-mini", "Q4_0", true},
    {"llama-3-8b", "F16", false},   {"llama-3-8b", "Q8_0", true},    {"llama-3-8b", "Q4_K", true},
};

static bool run_model(struct bench *b, const char *model, const char *type, bool quick, bool smoke, struct err *err)
{
    static const int prompts[] = {16, 128, 512, 2048, 4096}, batches[] = {2, 4, 8, 16, 32, 64, 128, 256};
    int n_ctx = smoke ? 64 : 4160, seqs = smoke ? 4 : MAX_BATCH;
    bool ok = open_bench(b, model, type, n_ctx, seqs, err);
    ok = ok && run_prompt(b, prompts[0], err) && run_decode(b, 1, 16, smoke ? 3 : 32, err);
    if (smoke)
        ok = ok && run_decode(b, 4, 16, 3, err);
    for (size_t i = 1; !smoke && ok && i < sizeof prompts / sizeof *prompts; i++)
        if (!quick || prompts[i] == 2048)
            ok = run_prompt(b, prompts[i], err);
    for (size_t i = 0; !smoke && ok && i < sizeof batches / sizeof *batches; i++)
        if (batches[i] <= seqs && (!quick || batches[i] == 64))
            ok = run_decode(b, batches[i], 128, 8, err);
    ok = ok && (smoke || run_decode(b, 1, 2048, 16, err));
    close_bench(b);
    return ok;
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err err = {0};
    char card[256] = "";
    const char *one = NULL, *type = NULL;
    bool quick = false, smoke = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            quick = true;
        } else if (strcmp(argv[i], "--smoke") == 0) {
            smoke = true;
        } else if (i + 1 < argc && argv[i][0] != '-') {
            one = argv[i];
            type = argv[++i];
        } else {
            fprintf(stderr, "usage: gpu-bench [--quick] [--smoke] [MODEL TYPE]\n");
            return 64;
        }
    }
    if (kern_cuda() == NULL) {
        fprintf(stderr, "gpu-bench: this build has no CUDA engine: nvcc was not found\n");
        return 69;
    }
    if (!measure_read(&b.read_gb_s, card, sizeof card, smoke ? (size_t)1 << 20 : (size_t)4 << 30, &err))
        goto fail;
    b.card = card;
    b.start = seconds();
    for (size_t i = 0; one == NULL && i < sizeof models / sizeof *models; i++)
        if ((!quick || models[i].quick) && seconds() - b.start < LAST_START && !run_model(&b, models[i].model, models[i].type, quick, smoke, &err))
            goto fail;
    if (one != NULL && !run_model(&b, one, type, quick, smoke, &err))
        goto fail;
    return 0;
fail:
    fprintf(stderr, "gpu-bench: %s\n", err.msg);
    return err.code == ERR_DEVICE ? 69 : 1;
}
