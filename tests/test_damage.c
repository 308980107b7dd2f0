/* Weights that are NaN or infinite, and models that give no numbers: refused when they are loaded, by the name of the tensor;
 * what only shows later ends the requests that meet it with an error, and no others. */
#define _GNU_SOURCE
#include "engine/adapter.h"
#include "tests/client.h"
#include "tests/proc.h"
#include "tests/tiny.h"

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64], path[96];
static struct proc p;

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/inferd-test-damage-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model.gguf", dir);
}

static void teardown(void)
{
    proc_free(&p);
    unlink(path);
    rmdir(dir);
}

/* ---- at load ---- */

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

static void refused(const char *preset, const char *type, const struct damage *d, const char *where)
{
    static const struct kern_device *const devices[] = {&kern_cpu, &kern_ref};
    for (int i = 0; i < 2; i++) {
        struct err err;
        open_damaged(preset, type, devices[i], d, &err);
        ck_assert_msg(err.code == ERR_MODEL && strncmp(err.msg, "memory: tensor ", 15) == 0 && strstr(err.msg, where) != NULL,
                      "%s %s on %s: code %d, %s; expected %s", preset, type, devices[i]->name, err.code, err.msg, where);
    }
}

/* Each type's scales and minimums where they lie in the last block of a row (blocks.h). */
START_TEST(each_weight_type)
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
            refused("llama3", types[i].type, &d, "blk.1.ffn_up.weight: row 77: a weight or scale is NaN or infinite");
        }
    }
}
END_TEST

START_TEST(each_kind_of_tensor)
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
        refused(at[i].preset, "Q8_0", &at[i].d, at[i].where);
}
END_TEST

/* ---- in service ---- */

/* Gemma multiplies embeddings: that of `token`, of finite values, becomes infinite. The matrix is output, too: of its logits one
 * alone is lost. */
static void write_overflowing(int32_t token)
{
    struct tiny_spec spec;
    struct err err = {0};
    ck_assert(tiny_preset("gemma3", "F32", &spec, &err));
    ck_assert_msg(tiny_write(&spec, path, &err), "%s", err.msg);
    struct gguf *g = gguf_open(path, &err);
    const struct gguf_tensor *t = gguf_tensor(g, "token_embd.weight");
    float *row = calloc((size_t)t->ne[0], sizeof *row);
    for (int64_t i = 0; i < t->ne[0]; i++)
        row[i] = 3e38f;
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    size_t n = (size_t)t->ne[0] * sizeof *row;
    ck_assert_int_eq((int)pwrite(fd, row, n, (off_t)(t->offset + n * (size_t)token)), (int)n);
    close(fd);
    free(row);
    gguf_close(g);
}

enum { LOST = 395 };    /* " b" of Gemma's tiny vocabulary */

START_TEST(requests_that_meet_no_numbers)
{
    static const char *const params[] = {"\"temperature\":0", "\"temperature\":0.8,\"seed\":3", "\"temperature\":2,\"top_p\":0.5,\"top_k\":3",
                                         "\"temperature\":0.8,\"min_p\":0.1,\"min_tokens\":4", "\"temperature\":0,\"repetition_penalty\":1.5",
                                         "\"temperature\":1,\"stop\":[\"xyz\"],\"logit_bias\":{\"5\":3}"};
    char body[512];
    write_overflowing(LOST);
    proc_start(&p, (const char *[]){"--model", path, "--port", "0", "--ctx-size", "256", NULL}, NULL);
    proc_listening(&p);
    proc_ready(&p);
    for (int round = 0; round < 2; round++)
        for (size_t i = 0; i < sizeof params / sizeof *params; i++)
            for (int stream = 0; stream < 2; stream++) {
                struct buf answer = {0};
                snprintf(body, sizeof body, "{\"job_id\":\"a\",\"prompt\":\"the cat b\",\"max_tokens\":6,\"stream\":%s,%s}",
                         stream ? "true" : "false", params[i]);
                int status = client_request(p.port, "/execute", body, &answer);
                ck_assert_int_eq(status, stream ? 200 : 500);
                ck_assert_msg(strstr(answer.data, "\"code\":\"INTERNAL\",\"message\":\"the model gives no numbers after ") != NULL,
                              "%s: %s", body, answer.data);
                ck_assert_msg(strstr(answer.data, "event: token") == NULL, "%s: %s", body, answer.data);
                buf_free(&answer);
                /* others go on as if nothing had been */
                status = client_request(p.port, "/execute", "{\"job_id\":\"b\",\"prompt\":\"the\",\"max_tokens\":3,\"stream\":false,"
                                        "\"temperature\":0,\"logit_bias\":{\"395\":-100}}", &answer);
                ck_assert_msg(status == 200, "%d: %s", status, answer.data);
                buf_free(&answer);
            }
    proc_signal(&p, SIGTERM);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 0);
}
END_TEST

/* The first token gives no numbers: nothing ever would. */
START_TEST(refused_before_it_is_ready)
{
    write_overflowing(2);    /* Gemma's BOS */
    proc_start(&p, (const char *[]){"--model", path, "--port", "0", "--ctx-size", "256", NULL}, NULL);
    ck_assert_int_eq(proc_wait(&p, PROC_WAIT_MS), 65);
    ck_assert_msg(strstr(proc_log(&p), "model.gguf: the model gives no numbers after token 2") != NULL, "%s", proc_log(&p));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("damage");
    TCase *load = tcase_create("load"), *service = tcase_create("service");
    tcase_set_timeout(load, 60);
    tcase_set_timeout(service, 120);
    tcase_add_test(load, each_weight_type);
    tcase_add_test(load, each_kind_of_tensor);
    tcase_add_checked_fixture(service, setup, teardown);
    tcase_add_test(service, requests_that_meet_no_numbers);
    tcase_add_test(service, refused_before_it_is_ready);
    suite_add_tcase(s, load);
    suite_add_tcase(s, service);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
