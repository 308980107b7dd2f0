/* Model families as data: what distinguishes an architecture, in flags and numbers that model.c reads. To add a family, add
 * a row; a new kind of layer is a new flag, a field of a phase's parameters and one `if` in the phases. */
#ifndef ENGINE_FAMILY_H
#define ENGINE_FAMILY_H

#include "kernels/kern.h"

#include <stddef.h>

enum family_flag {
    FAM_SPLIT_QKV = 1 << 0,       /* attn_q, attn_k, attn_v */
    FAM_FUSED_QKV = 1 << 1,       /* attn_qkv: rows of q, then k, then v */
    FAM_SPLIT_FFN = 1 << 2,       /* ffn_gate, ffn_up */
    FAM_FUSED_FFN = 1 << 3,       /* ffn_up: rows of gate, then up */
    FAM_QKV_BIAS = 1 << 4,
    FAM_QK_NORM = 1 << 5,         /* RMS norm on every q and k head before rope */
    FAM_POST_NORM = 1 << 6,       /* norms on both branches before they are added */
    FAM_FFN_NORM = 1 << 7,        /* ffn_norm; else post_attention_norm plays that part */
    FAM_MOE = 1 << 8,             /* experts with biases, softmax over the chosen ones */
    FAM_SINKS = 1 << 9,           /* attention sinks and a bias on the output product */
    FAM_EMBED_SCALE = 1 << 10,    /* embeddings times sqrt(dim) */
    FAM_NEOX = 1 << 11,           /* rope on pairs (i, i + n/2) */
    FAM_UNTIED = 1 << 12,         /* the output matrix is always one of its own */
    FAM_OWN_BASE = 1 << 13,       /* rope.freq_base must be there: its models have none of the usual 10,000 */
};

struct family {
    const char *arch;             /* general.architecture */
    const char *type;             /* model_type; NULL: decided by the tokenizer (llama) */
    unsigned flags;
    enum ffn_act act;
    /* Sliding window, if the file has one: of every `window_period` layers the last is global, unless the file's
     * sliding_window_pattern says otherwise. 0 = it applies to all layers. */
    int window_period;
    float rope_base_local;        /* sliding layers' own rope base, without scaling; 0 = as the others, but for the base if
                                   * the file has rope.freq_base_swa */
    int by_dim_layers;            /* the model with so many layers divides scores by sqrt(dim / heads): no key says so */
    int window_4k;                /* of files without the key whose context is 4,096: Phi-3's first conversions */
};

const struct family *family_find(const char *arch);
/* "llama, qwen2, ..." for messages. */
void family_list(char *out, size_t size);

#endif
