/* What it costs that every sum has one order. A product of rows x columns with its columns split freely in S parts reads the
 * same bytes and multiplies as much as one of S rows x columns / S, whose sums are then added: so the free split is that
 * product by the same kernels, and a kernel that adds; S is the best for each number of columns of activations. */
#include "bench/gpu_run.h"

#include <stdio.h>

enum { MAX_SPLIT = 8, COLD_BYTES = 192 << 20 /* more than any card's cache */, LAUNCHES = 24 };

struct shape {
    const char *of;
    int rows, cols;
    bool quick;
};

static const struct shape shapes[] = {
    {"0.5B attention output", 896, 896, false}, {"0.5B up", 4864, 896, false},     {"0.5B down", 896, 4864, true},
    {"8B attention output", 4096, 4096, false}, {"8B up", 14336, 4096, true},      {"8B down", 4096, 14336, true},
};
static const struct {
    enum qtype type;
    bool quick;
} types[] = {{QTYPE_Q8_0, true}, {QTYPE_Q4_0, false}, {QTYPE_F16, true}};

struct trial {
    struct cuda *k;
    struct product p;
    const uint8_t *data;        /* copies of the matrix, so that none is in the cache when its turn comes */
    size_t bytes;
    int copies, split, rows;
    enum qtype type;
    float *parts, *out;
};

static void multiply(void *arg, int i)
{
    struct trial *t = arg;
    struct product p = t->p;
    p.part[0].w = t->data + (size_t)(i % t->copies) * t->bytes;
    p.part[0].out = t->split > 1 ? t->parts : t->out;
    cuda_launch_product(t->k, t->type, &p);
    if (t->split > 1)
        gpu_combine(t->k, t->parts, t->split, t->rows * p.n_col, t->out);
}

static double time_split(struct trial *t, const struct shape *s, int split, int n_col)
{
    int rows = s->rows * split, cols = (layout_segments(s->cols) + split - 1) / split * SEGMENT;
    t->split = split;
    t->p = (struct product){
        .part = {{.rows = rows, .n_tile = layout_tiles(rows)}}, .n_part = 1, .n_tile = layout_tiles(rows), .cols = cols,
        .n_seg = layout_segments(cols), .n_mat = 1, .act = t->k->h, .act_div = 1, .n_col = n_col,
    };
    return run_graph(t->k, multiply, t, t->copies > LAUNCHES ? t->copies : LAUNCHES);
}

static bool cost_shape(struct run *r, struct cuda *k, const struct shape *s, enum qtype type, struct err *err)
{
    static const int columns[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
    struct trial t = {.k = k, .type = type, .rows = s->rows, .bytes = cuda_mat_bytes(type, s->rows, s->cols, 1)};
    t.copies = r->smoke ? 1 : (int)(COLD_BYTES / t.bytes) + 1;
    t.data = k->mat_at;
    t.parts = (float *)(void *)(k->mat_at + (size_t)(t.copies + 1) * t.bytes); /* uneven parts read past the last copy */
    t.out = t.parts + (size_t)MAX_SPLIT * (size_t)s->rows * MAX_ROWS;
    for (int i = 0; i < t.copies; i++) {
        struct mat m = {.type = type, .rows = s->rows, .cols = s->cols, .n_mat = 1, .data = k->mat_at + (size_t)i * t.bytes};
        gpu_fill(k, &m, (uint32_t)i);
    }
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        int best_split = 1;
        if (columns[i] > k->cfg.max_rows)
            break;
        double fixed = time_split(&t, s, 1, columns[i]), best = fixed;
        for (int split = 2; split <= MAX_SPLIT && split <= layout_segments(s->cols); split *= 2) {
            double x = time_split(&t, s, split, columns[i]);
            best_split = x < best ? split : best_split;
            best = x < best ? x : best;
        }
        if (k->failed != cudaSuccess)
            return err_set(err, ERR_CUDA, "%s: %s", k->failed_at, cudaGetErrorString(k->failed));
        run_line(r, "order");
        printf(",\"product\":\"%s\",\"rows\":%d,\"cols\":%d,\"type\":\"%s\",\"n\":%d,\"fixed_us\":%.2f,\"free_us\":%.2f,\"splits\":%d,"
               "\"loss\":%.3f,\"share\":%.3f}\n", s->of, s->rows, s->cols, qtype_name(type), columns[i], fixed * 1e6, best * 1e6,
               best_split, fixed / best - 1, (double)t.bytes / fixed * 1e-9 / r->read_gb_s);
    }
    return true;
}

bool cost_products(struct run *r, struct err *err)
{
    int rows = r->smoke ? 4 : MAX_ROWS, width = r->smoke ? 512 : 14336;
    size_t room = ((size_t)MAX_SPLIT + 1) * (size_t)width * MAX_ROWS * sizeof(float) + (size_t)4 * width * 4096 + COLD_BYTES + (1 << 20);
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = 32, .n_ff = width,
                            .max_rows = rows, .max_logits = 1, .n_pages = 1, .weight_bytes = room};
    struct cuda *k = (struct cuda *)kern_cuda()->open(&c, err);
    bool ok = k != NULL;
    if (ok)
        gpu_fill_act(k, &k->h, rows);
    static const struct shape small = {"smoke", 64, 512, true};
    if (ok && r->smoke)
        ok = cost_shape(r, k, &small, QTYPE_Q8_0, err);
    for (size_t i = 0; ok && !r->smoke && i < sizeof shapes / sizeof *shapes; i++)
        for (size_t j = 0; ok && j < sizeof types / sizeof *types; j++)
            if ((!r->quick || (shapes[i].quick && types[j].quick)) && run_allows(r, 2, shapes[i].of))
                ok = cost_shape(r, k, &shapes[i], types[j].type, err);
    if (k != NULL)
        kern_cuda()->close(&k->kern);
    return ok;
}

/* ---- attention ---- */

struct attention {
    struct bench *b;
    struct attn_params p;
};

static void attend(void *arg, int i)
{
    const struct attention *t = arg;
    struct act out = t->b->k->attn;
    out.f16 = out.bf16 = NULL;
    struct layer l = {.index = i % t->b->cfg.n_layer, .attn = t->p};
    launch_attn(t->b->k, &l, &out);
}

/* Seconds of attention of one layer for these rows; -1: the card failed. */
static double time_attention(struct run *r, struct bench *b, const struct row *rows, int n, int window, struct err *err)
{
    struct step s = {.rows = rows, .n_rows = n, .page_table = b->pages, .page_stride = b->stride};
    struct attention t = {b, {.window = window}};
    kern_cuda()->step_begin(&b->k->kern, &s);
    double x = run_graph(b->k, attend, &t, r->smoke ? 1 : LAUNCHES);
    return kern_cuda()->step_end(&b->k->kern, err) ? x : -1;
}

/* The freer order: each block takes `keys` of a row's keys instead of 256. It reads and computes what depth / keys rows
 * do that see a window of so many keys each, one window after the other; n times that for n rows. 0: too many rows. */
static double time_freely(struct run *r, struct bench *b, int n, int depth, int keys, struct err *err)
{
    struct row rows[MAX_ROWS];
    int windows = depth / keys, at = 0;
    if (n * windows > MAX_ROWS)
        return 0;
    for (int i = 0; i < windows; i++)
        for (int j = 0; j < n; j++)
            rows[at++] = (struct row){.pos = (i + 1) * keys - 1, .token = j};
    return time_attention(r, b, rows, at, keys, err);
}

/* One sequence's rows read one cache, as in a prompt; n = 1 is decoding. */
static bool cost_depths(struct run *r, struct bench *b, struct err *err)
{
    static const int depths[] = {64, 512, 2048, 4096}, columns[] = {1, 4, 16, 64, 256}, keys[] = {64, 128};
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++)
        for (size_t j = 0; j < sizeof columns / sizeof *columns; j++) {
            struct row rows[MAX_ROWS];
            int depth = depths[i], n = columns[j];
            if (depth > b->stride * NUM_TILE || n > depth || (r->smoke && j > 0))
                continue;
            for (int q = 0; q < n; q++)
                rows[q] = (struct row){.pos = depth - n + q, .token = q};
            double t = time_attention(r, b, rows, n, 0, err), best = t;
            int best_keys = NUM_SPLIT;
            for (size_t f = 0; t > 0 && f < sizeof keys / sizeof *keys && depth > keys[f]; f++) {
                double x = time_freely(r, b, n, depth, keys[f], err);
                if (x < 0)
                    return false;
                best_keys = x > 0 && x < best ? keys[f] : best_keys;
                best = x > 0 && x < best ? x : best;
            }
            if (t < 0)
                return false;
            double kv = (double)kern_cuda()->page_bytes(&b->cfg) / b->cfg.n_layer / NUM_TILE * depth;
            run_line(r, "attention");
            printf(",\"model\":\"%s\",\"n\":%d,\"depth\":%d,\"us\":%.2f,\"free_us\":%.2f,\"free_keys\":%d,\"loss\":%.3f,\"kv_gb_s\":%.1f,"
                   "\"share\":%.3f,\"tflops\":%.2f}\n", b->model, n, depth, t * 1e6, best * 1e6, best_keys, t / best - 1,
                   kv / t * 1e-9, kv / t * 1e-9 / r->read_gb_s, 4.0 * b->cfg.n_head * b->cfg.head_dim * depth * n / t * 1e-12);
        }
    return true;
}

/* Attention and merge alone, without the heads before them. */
bool cost_attention(struct run *r, struct bench *b, struct err *err)
{
    bool fuse = b->k->fuse;
    b->k->fuse = false;
    bool ok = cost_depths(r, b, err);
    b->k->fuse = fuse;
    return ok;
}
