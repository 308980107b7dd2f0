/* Model files with seeded random weights: any family, shape and weight type, from a few KB to the
 * published shapes. Metadata keys, tensor names, formats and vocabularies are those of real files;
 * weights are scaled so that activations stay of the order of one. The same spec writes the same
 * bytes on every machine. */
#ifndef TESTS_TINY_H
#define TESTS_TINY_H

#include "base/buf.h"
#include "base/err.h"
#include "tests/ggufw.h"
#include "tests/tiny_vocab.h"

struct tiny_spec {
    const char *family; /* "llama", "qwen2", "phi3", "qwen3", "gemma3", "gpt-oss" */
    const char *type;   /* "Q4_0" ... of kernels/qtypes.def, or a mixture: "Q4_K_M", "Q5_K_M" */
    const char *expert_type; /* NULL = MXFP4 */
    enum tiny_vocab vocab;
    int dim, n_head, n_kv_head, head_dim, n_ff, n_layer, n_vocab, n_ctx;
    int n_expert, n_expert_used;
    float rope_base, norm_eps;
    int window;                      /* attention.sliding_window; 0 = no key */
    int n_ctx_orig;                  /* rope.scaling.original_context_length; 0 = no key */
    float attn_factor, linear, yarn; /* rope scaling; 0 = no key */
    bool tied;                       /* no output.weight */
    bool qkv_bias;                   /* also for llama */
    bool rope_freqs;                 /* the tensor of Llama 3.1's scaling */
    bool long_rope;                  /* the two tensors of Phi-3's */
    uint64_t seed;
    const char *chat_template; /* NULL = ChatML; "" = none */
    /* Called when every key and tensor is declared: may change them, so that malformed files can be
     * made. */
    void (*edit)(struct ggufw *w, void *arg);
    void *edit_arg;
};

/* Fills spec with a preset; rows are multiples of the type's block. Tiny: llama2 llama3 llama32
 * smollm2 qwen2 phi3 phi3swa phi3long qwen3 gemma3 gemma3lin gptoss. Published shapes: qwen2.5-0.5b
 * phi-3-mini llama-3.2-1b llama-3-8b llama-2-7b smollm2-135m qwen3-0.6b gpt-oss-2layer. Errors:
 * ERR_USAGE. */
bool tiny_preset(const char *name, const char *type, struct tiny_spec *spec, struct err *err);

/* The i-th preset's name, tiny ones first; NULL after the last. */
const char *tiny_preset_name(int i);

bool tiny_write(const struct tiny_spec *spec, const char *path, struct err *err);
bool tiny_image(const struct tiny_spec *spec, struct buf *out,
                struct err *err); /* the same bytes */

#endif
