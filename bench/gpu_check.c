/* gpu-check: the CUDA device against the CPU engine on the card that is there, byte for byte (F16 and BF16 near, and the same
 * in any company): every tiny family with every weight type, mixtures, long contexts, published shapes. Needs the CUDA
 * toolkit and a compiler, nothing else. --quick: one family a type; --small: a few models, for compute-sanitizer. */
#include "base/clock.h"
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

static void note(struct tally *t, bool ok, const char *preset, const char *type, const struct err *err)
{
    t->run++;
    t->failed += !ok;
    if (!ok)
        printf("FAILED %s %s: %s\n", preset, type, err->msg);
    fflush(stdout);
}

static void run_pair(struct tally *t, const char *preset, const char *type, enum kv_type kv)
{
    struct err err = {0};
    if (begins(t))
        note(t, pair_run(preset, type, kv, &kern_cpu, t->cuda, &err), preset, type, &err);
}

/* The card's name, or why it cannot be used. */
static bool describe(const struct kern_device *cuda, char *out, size_t size, struct err *err)
{
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = 32, .n_ff = 32,
                            .max_rows = 1, .max_logits = 1, .n_pages = 1};
    if (cuda == NULL)
        return err_set(err, ERR_DEVICE, "this build has no CUDA engine: nvcc was not found");
    struct kern *k = cuda->open(&c, err);
    if (k == NULL)
        return false;
    cuda->describe(k, out, size);
    cuda->close(k);
    return true;
}

static void run_all(struct tally *t, bool quick)
{
    struct err err = {0};
    for (int i = 0; i < COUNT(longs); i++)
        if (begins(t))
            note(t, pair_run_long(longs[i].preset, "Q8_0", longs[i].window, longs[i].kv, &kern_cpu, t->cuda, &err),
                 longs[i].preset, "long context", &err);
    for (int i = 0; i < COUNT(chunked); i++)
        if (begins(t))
            note(t, pair_run_chunks(chunked[i][0], chunked[i][1], 0, t->cuda, t->cuda, &err), chunked[i][0], "in chunks", &err);
    for (int i = 0; i < COUNT(pairs); i++)
        run_pair(t, pairs[i][0], pairs[i][1], KV_F16);
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
    if (!describe(t.cuda, card, sizeof card, &err)) {
        fprintf(stderr, "gpu-check: %s\n", err.msg);
        return 69;
    }
    t.seconds = strcmp(how, "--quick") == 0 ? QUICK_SECONDS : FULL_SECONDS;
    printf("gpu-check: %s\n", card);
    if (strcmp(how, "--small") == 0)
        for (int i = 0; i < COUNT(small); i++)
            run_pair(&t, small[i][0], small[i][1], KV_F16);
    else
        run_all(&t, strcmp(how, "--quick") == 0);
    printf("gpu-check: %d models, %d failed, %d not run for want of time\n", t.run, t.failed, t.left);
    return t.failed == 0 ? 0 : 1;
}
