/* Weights that are NaN or infinite, and models that give no numbers: refused when they are loaded, by the name of the tensor;
 * what only shows later ends the requests that meet it with an error, and no others. */
#define _GNU_SOURCE
#include "engine/adapter.h"
#include "tests/client.h"
#include "tests/damage.h"
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

static const struct kern_device *const devices[] = {&kern_cpu, &kern_ref};

START_TEST(each_weight_type)
{
    damage_each_type(devices[_i]);
}
END_TEST

START_TEST(each_kind_of_tensor)
{
    damage_each_tensor(devices[_i]);
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
    tcase_add_loop_test(load, each_weight_type, 0, 2);
    tcase_add_loop_test(load, each_kind_of_tensor, 0, 2);
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
