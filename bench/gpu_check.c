/* gpu-check: the CUDA device against the scalar reference on the card that is there, byte for byte: every tiny family with
 * every weight type, mixtures, long contexts. Needs the CUDA toolkit and a compiler, nothing else. */
#include "tests/pair.h"

#include <stdio.h>
#include <string.h>

static const char *const presets[] = {"llama2",  "llama3",   "llama32", "smollm2", "qwen2",     "phi3",
                                      "phi3swa", "phi3long", "qwen3",   "gemma3",  "gemma3lin", "gptoss"};
static const char *const mixtures[] = {"Q4_K_M", "Q5_K_M"};
static const struct {
    const char *preset;
    int window;
    enum kv_type kv;
} longs[] = {{"smollm2", 0, KV_F16}, {"phi3swa", 300, KV_Q8_0}, {"gptoss", 270, KV_F32}};

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

struct tally {
    int run, failed;
};

static void note(struct tally *t, bool ok, const char *preset, const char *type, const struct err *err)
{
    t->run++;
    t->failed += !ok;
    if (!ok)
        printf("FAILED %s %s: %s\n", preset, type, err->msg);
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

int main(int argc, char **argv)
{
    const struct kern_device *cuda = kern_cuda();
    struct tally t = {0};
    struct err err = {0};
    char card[256];
    bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0; /* one family for each type */
    if (!describe(cuda, card, sizeof card, &err)) {
        fprintf(stderr, "gpu-check: %s\n", err.msg);
        return 69;
    }
    printf("gpu-check: %s\n", card);
    for (int i = 0; i < COUNT(presets); i++) {
        for (int type = quick ? i : 0; type < QTYPE_N; type += quick ? COUNT(presets) : 1) {
            const char *name = qtype_name((enum qtype)type);
            note(&t, pair_run(presets[i], name, (enum kv_type)(type % KV_TYPE_N), &kern_ref, cuda, &err), presets[i], name, &err);
        }
        printf("%s\n", presets[i]);
        fflush(stdout);
    }
    for (int i = 0; i < COUNT(mixtures); i++)
        note(&t, pair_run("qwen2", mixtures[i], KV_F16, &kern_ref, cuda, &err), "qwen2", mixtures[i], &err);
    for (int i = 0; i < COUNT(longs) - (quick ? 2 : 0); i++)
        note(&t, pair_run_long(longs[i].preset, "Q8_0", longs[i].window, longs[i].kv, &kern_ref, cuda, &err), longs[i].preset,
             "long context", &err);
    printf("gpu-check: %d models, %d failed\n", t.run, t.failed);
    return t.failed == 0 ? 0 : 1;
}
