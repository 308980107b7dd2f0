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

struct family;              /* a row of family.c */

struct model {
    const struct gguf *gguf;
    const struct family *family;
    char arch[32];          /* "qwen2" */
    char type[32];          /* the API's model_type: "qwen2.5", "phi3", "llama2", "llama3", ... */
    char name[128];         /* general.name or "" */
    char quant[24];         /* "Q4_K_M", from general.file_type, else the commonest tensor type */
    int n_layer, dim, n_head, n_kv_head, head_dim, n_ff, n_vocab;
    int n_ctx_train;        /* context length the file names */
    int n_expert, n_expert_used;
    float norm_eps, embed_scale, attn_scale;
    enum ffn_act act;
    int n_rope;             /* rope table sets that model_rope makes */
    const struct gguf_tensor *token_embd, *output_norm, *output;    /* output == token_embd when tied */
    struct model_layer *layer;
    size_t n_params;
};

/* Reads and validates everything but the tokenizer. Keeps pointers into g, which must outlive it. Errors: ERR_MODEL, all
 * missing keys in one message. */
struct model *model_open(const struct gguf *g, struct err *err);
void model_close(struct model *m);

/* The rope tables for a worker opened with n_ctx positions: models with long and short factors choose by it. rope[i].inv_freq
 * is allocated; free it. */
bool model_rope(const struct model *m, int n_ctx, struct rope rope[ROPE_MAX], struct err *err);

#endif
