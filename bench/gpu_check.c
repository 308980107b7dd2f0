/* gpu-check: the CUDA device against the CPU engine on the card that is there, byte for byte (F16 and BF16 near, and the same
 * in any company): single instructions first, then every tiny family with every weight type, mixtures, long contexts, published
 * shapes. Needs the CUDA toolkit and a compiler, nothing else. --quick: one family a type; --small: a few models, for compute-sanitizer. */
#include "base/clock.h"
#include "bench/gpu_probe.h"
#include "tests/pair.h"

#include <stdio.h>
#include <string.h>

/* Seconds after which no further model begins. */
enum { FULL_SECONDS = 240, QUICK_SECONDS = 60 };

static const char *const presets[] = {"llama2",  "llama3",   "llama32", "smollm2", "qwen2",     "phi3",
                                      "phi3swa", "phi3long", "qwen3",   "gemma3",  "gemma3lin", "gptoss"};
static const char *const pairs[][2] = {{"qwen2", "Q4_K_M"}, {"qwen2", "Q5_K_M"}, {"qwen2.5-0.5b", "Q8_0"}, {"llama-3.2-1b", "Q4_K"},
                                       {"smollm2-135m", "Q4_1"}};
static const char *const chunked[][2] = {{"llama3", "F16"}, {"qwen2", "BF16"}, {"llama3", "Q8_0"},
                                         {"qwen2.5-0.5b", "F16"}}; /* the last fills a large card with the largest tiles */
static const char *const small[][2] = {{"llama3", "Q4_0"}, {"smollm2", "F16"}, {"gptoss", "MXFP4"}, {"llama3", "Q4_K"}};
static const struct {
    const char *preset;
    int window;
    enum kv_type kv;
} longs[] = {{"smollm2", 0, KV_F16}, {"phi3swa", 300, KV_Q8_0}, {"gptoss", 270, KV_F32}};

/* The other ways to do a step, of which gpu-bench tells which is the fastest: the bytes of the usual one. */
static struct kern *open_apart(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL)
        ((struct cuda *)k)->fuse = false;
    return k;
}

static struct kern *open_overlapped(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL)
        ((struct cuda *)k)->overlap = ((struct cuda *)k)->can_overlap;
    return k;
}

/* A card that cannot, as gpu-bench says, goes on with graphs. */
static struct kern *open_one_kernel(const struct kern_config *c, struct err *err)
{
    struct err why = {0};
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL && !persist_open((struct cuda *)k, &why))
        fprintf(stderr, "gpu-check: %s\n", why.msg);
    return k;
}

static const struct {
    const char *name;
    struct kern *(*open)(const struct kern_config *c, struct err *err);
} ways[] = {{"apart", open_apart}, {"overlapped", open_overlapped}, {"one kernel", open_one_kernel}};
static const char *const in_ways[][2] = {{"smollm2-135m", "Q8_0"}, {"llama3", "Q4_K"}, {"gptoss", "MXFP4"}, {"llama3", "F16"}};

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

struct tally {
    const struct kern_device *cuda;
    uint64_t start;
    int seconds;
    int run, failed, left;
};

/* Time for one more. */
static bool begins(struct tally *t)
{
    bool ok = clock_ms_since(t->start) < t->seconds * 1e3;
    t->left += !ok;
    return ok;
}

static void note(struct tally *t, bool ok, const char *preset, const char *type, const char *how, const struct err *err)
{
    t->run++;
    t->failed += !ok;
    if (!ok)
        printf("FAILED %s %s%s%s: %s\n", preset, type, *how == '\0' ? "" : ", ", how, err->msg);
    fflush(stdout);
}

static void run_pair(struct tally *t, const char *preset, const char *type, enum kv_type kv)
{
    struct err err = {0};
    if (begins(t))
        note(t, pair_run(preset, type, kv, &kern_cpu, t->cuda, &err), preset, type, "", &err);
}

/* One model as one way does its steps: alone and in company, once and many times. What a race does shows only now and then. */
static void run_way(struct tally *t, const char *preset, const char *type, const char *name, const struct kern_device *way, int times)
{
    static const int rows[] = {1, 5, 40};
    struct err err = {0};
    if (begins(t) && way != t->cuda)
        note(t, pair_run(preset, type, KV_F16, t->cuda, way, &err), preset, type, name, &err);
    for (int i = 0; i < COUNT(rows); i++)
        if (begins(t))
            note(t, pair_run_again(preset, type, rows[i], times, t->cuda, way, &err), preset, type, name, &err);
}

static void run_ways(struct tally *t, const char *preset, const char *type, int times)
{
    run_way(t, preset, type, "again", t->cuda, times);
    for (int i = 0; i < COUNT(ways); i++) {
        struct kern_device way = *t->cuda;
        way.open = ways[i].open;
        run_way(t, preset, type, ways[i].name, &way, times);
    }
}

/* A device with nothing but room for weights. */
static struct cuda *open_plain(size_t bytes, struct err *err)
{
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = 32, .n_ff = 32,
                            .max_rows = 1, .max_logits = 1, .n_pages = 1, .weight_bytes = bytes};
    return (struct cuda *)kern_cuda()->open(&c, err);
}

/* The card's name, or why it cannot be used. */
static bool describe(char *out, size_t size, struct err *err)
{
    struct cuda *k = open_plain(0, err);
    if (k == NULL)
        return false;
    kern_cuda()->describe(&k->kern, out, size);
    kern_cuda()->close(&k->kern);
    return true;
}

static void run_instructions(struct tally *t)
{
    struct err err = {0};
    struct cuda *k = open_plain(probe_bytes(), &err);
    note(t, k != NULL && probe_run(k, &err), "instructions", "alone", "", &err);
    if (k != NULL)
        kern_cuda()->close(&k->kern);
}

static void run_all(struct tally *t, bool quick)
{
    struct err err = {0};
    for (int i = 0; i < COUNT(longs); i++)
        if (begins(t))
            note(t, pair_run_long(longs[i].preset, "Q8_0", longs[i].window, longs[i].kv, &kern_cpu, t->cuda, &err),
                 longs[i].preset, "Q8_0", "long context", &err);
    for (int i = 0; i < COUNT(chunked); i++)
        if (begins(t))
            note(t, pair_run_chunks(chunked[i][0], chunked[i][1], 0, t->cuda, t->cuda, &err), chunked[i][0],
                 chunked[i][1], "in chunks", &err);
    for (int i = 0; i < COUNT(pairs); i++)
        run_pair(t, pairs[i][0], pairs[i][1], KV_F16);
    for (int i = 0; i < COUNT(in_ways); i++)
        run_ways(t, in_ways[i][0], in_ways[i][1], quick ? 50 : 200);
    for (int i = 0; i < COUNT(presets); i++) {
        for (int type = quick ? i : 0; type < QTYPE_N; type += quick ? COUNT(presets) : 1)
            run_pair(t, presets[i], qtype_name((enum qtype)type), (enum kv_type)(type % KV_TYPE_N));
        fprintf(stderr, "gpu-check: %s, %.0f s\n", presets[i], clock_ms_since(t->start) / 1e3);
    }
}

int main(int argc, char **argv)
{
    struct tally t = {.cuda = kern_cuda(), .start = clock_ns()};
    struct err err = {0};
    char card[256];
    const char *how = argc > 1 ? argv[1] : "";
    if (argc > 2 || (argc > 1 && strcmp(how, "--quick") != 0 && strcmp(how, "--small") != 0)) {
        fprintf(stderr, "usage: gpu-check [--quick | --small]\n");
        return 64;
    }
    if (!describe(card, sizeof card, &err)) {
        fprintf(stderr, "gpu-check: %s\n", err.msg);
        return 69;
    }
    t.seconds = strcmp(how, "--quick") == 0 ? QUICK_SECONDS : FULL_SECONDS;
    printf("gpu-check: %s\n", card);
    run_instructions(&t);
    if (strcmp(how, "--small") == 0) {
        for (int i = 0; i < COUNT(small); i++)
            run_pair(&t, small[i][0], small[i][1], KV_F16);
        run_ways(&t, "smollm2", "Q8_0", 3);
    } else {
        run_all(&t, strcmp(how, "--quick") == 0);
    }
    printf("gpu-check: %d tests, %d failed, %d not run for want of time\n", t.run, t.failed, t.left);
    return t.failed == 0 ? 0 : 1;
}
