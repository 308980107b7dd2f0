/* Fuzzes the reading of model files (libFuzzer; make fuzz). An input is either a file image (first
 * byte even) or, so that the depths are reached from the start, changes to the metadata of a good
 * model: the first byte chooses the family, then records of a 16-bit offset, a length up to 15 and
 * as many bytes. */
#include "engine/model.h"
#include "tests/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const families[] = {"llama32",   "qwen2",  "phi3long",
                                       "gemma3lin", "gptoss", "qwen3"};
enum { N_FAMILIES = sizeof families / sizeof *families };

/* A short vocabulary: the bytes that matter are not lost among thousands of tokens. */
static void shorten(struct ggufw *w, void *arg)
{
    struct buf strs = {0};
    (void)arg;
    ggufw_put_str(&strs, "a", 1);
    ggufw_put_str(&strs, "b", 1);
    ggufw_strs(w, "tokenizer.ggml.tokens", &strs, 2);
    buf_free(&strs);
    ggufw_drop(w, "tokenizer.ggml.merges");
    ggufw_drop(w, "tokenizer.ggml.scores");
    ggufw_drop(w, "tokenizer.ggml.token_type");
    ggufw_drop(w, "tokenizer.chat_template");
}

static const struct buf *base_of(int family)
{
    static struct buf bases[N_FAMILIES];
    struct buf *b = &bases[family];
    if (b->len == 0) {
        struct tiny_spec spec;
        struct err err = {0};
        bool ok = tiny_preset(families[family], "Q4_0", &spec, &err);
        spec.n_layer = 1;
        spec.n_vocab = TINY_VOCAB_MIN;
        spec.edit = shorten;
        if (!ok || !tiny_image(&spec, b, &err)) {
            fprintf(stderr, "fuzz_gguf: %s\n", err.msg);
            exit(1);
        }
    }
    return b;
}

static void use(const struct gguf *g)
{
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        const uint8_t *p = t->data;
        sum = (uint8_t)(sum + p[0] + p[t->bytes - 1]);
        if (gguf_tensor(g, t->name) != t)
            abort();
    }
    struct err err = {0};
    struct model *m = model_open(g, &err);
    if (m == NULL && (err.code == ERR_NONE || err.msg[0] == 0))
        abort();
    struct rope rope[ROPE_MAX] = {0};
    if (m != NULL && model_rope(m, 4096, rope, &err) && rope[0].inv_freq[0] < 0)
        abort();
    for (int i = 0; i < ROPE_MAX; i++)
        free(rope[i].inv_freq);
    model_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const struct buf *base = data[0] & 1 ? base_of(data[0] / 2 % N_FAMILIES) : NULL;
    size_t n = base != NULL ? base->len : size - 1;
    uint8_t *image = malloc(n + 1);
    if (image == NULL)
        return 0;
    memcpy(image, base != NULL ? (const uint8_t *)base->data : data + 1, n);
    for (size_t i = 1; base != NULL && i + 3 < size;) {
        size_t at = data[i] | (size_t)data[i + 1] << 8, len = data[i + 2] & 15;
        i += 3;
        for (; len > 0 && i < size; len--, at++, i++)
            if (at < n)
                image[at] = data[i];
    }
    struct err err = {0};
    struct gguf *g = gguf_from_memory(image, n, &err);
    if (g != NULL)
        use(g);
    else if (err.code != ERR_MODEL || err.msg[0] == 0)
        abort();
    gguf_close(g);
    free(image);
    return 0;
}
