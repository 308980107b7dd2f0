/* A model: the hyper-parameters of a GGUF file and its tensors by role, read through the family table (family.c). No device
 * and no weights' values: what adapter.c loads from and what --check prints. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include "engine/gguf.h"
#include "kernels/kern.h"

/* Rows [row0, row0 + rows) of a tensor: fused QKV and gate-up tensors are taken apart by rows. tensor NULL = absent. */
struct weight {
    const struct gguf_tensor *tensor;
    int row0, rows, cols, n_mat;
};

struct model_layer {
    const struct gguf_tensor *attn_norm, *q_norm, *k_norm, *post_attn_norm, *ffn_norm, *post_ffn_norm, *sinks;
    const struct gguf_tensor *router, *router_bias;
    struct weight q, k, v, o, gate, up, down;
    struct weight q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;   /* rows of vectors */
    int window;             /* 0 = full attention */
    int rope;               /* index into model.rope */
};

struct model {
    const struct gguf *gguf;
    char arch[32];          /* "qwen2" */
    char type[32];          /* the contract's model_type: "qwen2.5", "phi3", "llama2", "llama3", ... */
    char name[128];         /* general.name or "" */
    char quant[24];         /* "Q4_K_M", from general.file_type, else the commonest tensor type */
    int n_layer, dim, n_head, n_kv_head, head_dim, n_ff, n_vocab;
    int n_ctx_train;        /* context length the file names */
    int n_expert, n_expert_used;
    float norm_eps, embed_scale, attn_scale;
    enum ffn_act act;
    struct rope rope[ROPE_MAX];
    int n_rope;
    const struct gguf_tensor *token_embd, *output_norm, *output;    /* output == token_embd when tied */
    struct model_layer *layer;
};

/* Reads and validates everything but the tokenizer. n_ctx: the context the worker will be opened with (0 = the model's
 * own): long rope factors depend on it. Keeps pointers into g, which must outlive it. Errors: ERR_MODEL. */
struct model *model_open(const struct gguf *g, int n_ctx, struct err *err);
void model_close(struct model *m);

#endif
