#include "tests/damage.h"

#include "engine/adapter.h"
#include "tests/tiny.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

/* Sets n bytes to 0xFF at `at` of a row: NaN in every format's scale, minimum or value. */
struct damage {
    const char *tensor;
    int row;
    size_t at, n;
};

static void open_damaged(const char *preset, const char *type, const struct kern_device *device, const struct damage *d,
                         struct err *err)
{
    struct tiny_spec spec;
    struct buf image = {0};
    *err = (struct err){0};
    ck_assert(tiny_preset(preset, type, &spec, err));
    spec.n_layer = 2;
    spec.n_vocab = TINY_VOCAB_MIN;
    ck_assert_msg(tiny_image(&spec, &image, err), "%s", err->msg);
    struct gguf *g = gguf_from_memory(image.data, image.len, err);
    ck_assert_msg(g != NULL, "%s", err->msg);
    const struct gguf_tensor *t = gguf_tensor(g, d->tensor);
    ck_assert_ptr_nonnull(t);
    memset((char *)t->data + (size_t)d->row * qtype_row_bytes(t->type, (size_t)t->ne[0]) + d->at, 0xFF, d->n);
    struct model *m = model_open(g, err);
    ck_assert_msg(m != NULL, "%s", err->msg);
    struct adapter_options o = {.device = device, .n_ctx = 64, .max_rows = 8, .n_threads = 2};
    struct adapter *a = adapter_open(m, &o, err);
    if (a != NULL)
        *err = (struct err){0};
    adapter_close(a);
    model_close(m);
    gguf_close(g);
    buf_free(&image);
}

static void refused(const char *preset, const char *type, const struct kern_device *device, const struct damage *d,
                    const char *where)
{
    struct err err;
    open_damaged(preset, type, device, d, &err);
    ck_assert_msg(err.code == ERR_MODEL && strncmp(err.msg, "memory: tensor ", 15) == 0 && strstr(err.msg, where) != NULL,
                  "%s %s on %s: code %d, %s; expected %s", preset, type, device->name, err.code, err.msg, where);
}

/* Each type's scales and minimums where they lie in the last block of a row (blocks.h). */
void damage_each_type(const struct kern_device *device)
{
    static const struct {
        const char *type;
        int at[2], n;
    } types[] = {
        {"F32", {0, -1}, 4},   {"F16", {0, -1}, 2},   {"BF16", {0, -1}, 2},    {"Q4_0", {0, -1}, 2},    {"Q4_1", {0, 2}, 2},
        {"Q5_0", {0, -1}, 2},  {"Q5_1", {0, 2}, 2},   {"Q8_0", {0, -1}, 2},    {"Q2_K", {80, 82}, 2},   {"Q3_K", {108, -1}, 2},
        {"Q4_K", {0, 2}, 2},   {"Q5_K", {0, 2}, 2},   {"Q6_K", {208, -1}, 2},  {"IQ4_NL", {0, -1}, 2},  {"IQ4_XS", {0, -1}, 2},
        {"MXFP4", {0, -1}, 1},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct tiny_spec spec;
        struct err err = {0};
        enum qtype t = 0;
        while (strcmp(qtype_name(t), types[i].type) != 0)
            t++;
        ck_assert(tiny_preset("llama3", types[i].type, &spec, &err));
        const struct qtype_info *q = qtype_info(t);
        size_t last = ((size_t)spec.dim / (size_t)q->block_weights - 1) * q->block_bytes;
        for (int k = 0; k < 2 && types[i].at[k] >= 0; k++) {
            struct damage d = {"blk.1.ffn_up.weight", 77, last + (size_t)types[i].at[k], (size_t)types[i].n};
            refused("llama3", types[i].type, device, &d, "blk.1.ffn_up.weight: row 77: a weight or scale is NaN or infinite");
        }
    }
}

void damage_each_tensor(const struct kern_device *device)
{
    static const struct {
        const char *preset;
        struct damage d;
        const char *where;
    } at[] = {
        {"llama3", {"token_embd.weight", 383, 0, 2}, "token_embd.weight: row 383: a weight"},
        {"llama3", {"output.weight", 0, 0, 2}, "output.weight: row 0: a weight"},
        {"llama3", {"output_norm.weight", 0, 12, 4}, "output_norm.weight: value 3 is -nan, expected a finite number"},
        {"qwen2", {"blk.1.attn_k.bias", 0, 8, 4}, "blk.1.attn_k.bias: value 2 is"},
        {"phi3", {"blk.0.attn_qkv.weight", 400, 0, 2}, "blk.0.attn_qkv.weight: row 400: a weight"},
        {"phi3", {"blk.0.ffn_up.weight", 447, 0, 2}, "blk.0.ffn_up.weight: row 447: a weight"},
        {"gemma3", {"blk.1.post_ffw_norm.weight", 0, 0, 4}, "blk.1.post_ffw_norm.weight: value 0 is"},
        {"qwen3", {"blk.1.attn_q_norm.weight", 0, 0, 4}, "blk.1.attn_q_norm.weight: value 0 is"},
        {"gptoss", {"blk.1.ffn_gate_exps.weight", 100, 0, 1}, "blk.1.ffn_gate_exps.weight: row 100: a weight"},
        {"gptoss", {"blk.1.ffn_down_exps.bias", 2, 4, 4}, "blk.1.ffn_down_exps.bias: value 193 is"},
        {"gptoss", {"blk.0.ffn_gate_inp.weight", 5, 0, 4}, "blk.0.ffn_gate_inp.weight: row 5: a weight"},
        {"gptoss", {"blk.0.attn_sinks.weight", 0, 0, 4}, "blk.0.attn_sinks.weight: value 0 is"},
    };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        refused(at[i].preset, "Q8_0", device, &at[i].d, at[i].where);
}
