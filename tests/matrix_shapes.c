/* Published shapes with random weights in the real worker: how many parameters it sees, what /health says, memory by part,
 * and that it generates, the same twice. `matrix_shapes all` also tries those that take long (24 GiB of memory, 8 of disk);
 * `matrix_shapes NAME TYPE` one of them. -v prints what is measured. */
#include "base/clock.h"
#include "engine/adapter.h"
#include "tests/fixture.h"
#include "tests/proc.h"
#include "tests/tiny.h"

#include <check.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { READY_MS = 300 * 1000, N_TOKENS = 6 };

/* n_params: the published count (gpt-oss: of two of the 24 layers of gpt-oss-20b). */
static const struct shape {
    const char *preset, *type, *model_type;
    size_t n_params;
    int n_vocab, dim, n_layer, n_ctx;
    double weights_gb;    /* of the file's types, 1e9 bytes */
    bool slow;
} shapes[] = {
    {"qwen2.5-0.5b", "Q8_0", "qwen2.5", 494032768, 151936, 896, 24, 32768, 0.525, false},
    {"gpt-oss-2layer", "Q4_0", "gpt-oss", 2804643712, 201088, 2880, 2, 131072, 1.54, false},
    {"qwen2.5-0.5b", "F16", "qwen2.5", 494032768, 151936, 896, 24, 32768, 0.988, true},
    {"llama-3.2-1b", "Q8_0", "llama3", 1235814400 + 32, 128256, 2048, 16, 131072, 1.313, true},
    {"phi-3-mini", "Q4_0", "phi3", 3821079552, 32064, 3072, 32, 4096, 2.150, true},
    {"phi-3-mini", "F16", "phi3", 3821079552, 32064, 3072, 32, 4096, 7.642, true},
    {"gpt-oss-2layer", "F16", "gpt-oss", 2804643712, 201088, 2880, 2, 131072, 3.27, true},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static bool verbose;
static char path[128];
static struct proc worker;

static void setup(void)
{
    fixture_open();
    snprintf(path, sizeof path, "%s/shape.gguf", fixture_dir);
}

static void teardown(void)
{
    proc_free(&worker);
    fixture_close();
}

static json_t *body_of(const struct buf *answer)
{
    const char *body = strstr(answer->data, "\r\n\r\n");
    json_t *json = body != NULL ? json_loads(body, 0, NULL) : NULL;
    ck_assert_msg(json != NULL, "%s", answer->data);
    return json;
}

static long long whole(const json_t *json, const char *key)
{
    const json_t *v = json_object_get(json, key);
    ck_assert_msg(json_is_integer(v), "no integer %s", key);
    return json_integer_value(v);
}

/* What the file says, without a worker. */
static struct adapter_plan plan_of(const struct shape *s)
{
    struct err err = {0};
    struct gguf *g = gguf_open(path, &err);
    struct model *m = g == NULL ? NULL : model_open(g, &err);
    struct adapter_options o = {.device = &kern_cpu, .max_seqs = 8};
    struct adapter_plan plan = {0};
    ck_assert_msg(m != NULL && adapter_plan(m, &o, &plan, &err), "%s", err.msg);
    ck_assert_uint_eq(m->n_params, s->n_params);
    ck_assert_msg(plan.weights > 0.99e9 * s->weights_gb && plan.weights < 1.02e9 * s->weights_gb, "%s %s: %zu bytes of weights",
                  s->preset, s->type, plan.weights);
    model_close(m);
    gguf_close(g);
    return plan;
}

static void wait_ready(void)
{
    uint64_t start = clock_ns();
    proc_listening(&worker);
    for (int status = 0; status != 200; status = http_request(worker.port, "GET", "/health/ready", NULL, NULL)) {
        ck_assert_msg(status >= 0 && clock_ms_since(start) < READY_MS, "not ready; log: %s", proc_log(&worker));
        usleep(20000);
    }
    if (verbose)
        printf("  ready after %.1f s\n", (double)clock_ms_since(start) / 1000);
}

static void check_health(const struct shape *s, const struct adapter_plan *plan)
{
    struct buf answer = {0};
    ck_assert_int_eq(http_request(worker.port, "GET", "/health", NULL, &answer), 200);
    json_t *h = body_of(&answer);
    ck_assert_str_eq(json_string_value(json_object_get(h, "model_type")), s->model_type);
    ck_assert_str_eq(json_string_value(json_object_get(h, "quant_kind")), s->type);
    ck_assert_int_eq(whole(h, "vocab_size"), s->n_vocab);
    ck_assert_int_eq(whole(h, "hidden_dim"), s->dim);
    ck_assert_int_eq(whole(h, "num_layers"), s->n_layer);
    ck_assert_int_eq(whole(h, "context_length"), plan->n_ctx < s->n_ctx ? plan->n_ctx : s->n_ctx);
    long long memory = whole(h, "memory_bytes");
    ck_assert_msg(memory > (long long)plan->weights && memory < (long long)(plan->weights + plan->kv + plan->work) * 11 / 10,
                  "memory_bytes %lld, weights %zu, KV %zu, work %zu", memory, plan->weights, plan->kv, plan->work);
    if (verbose)
        printf("  memory_bytes %.3f GB: weights %.3f, KV %.3f, work %.3f\n", (double)memory / 1e9, (double)plan->weights / 1e9,
               (double)plan->kv / 1e9, (double)plan->work / 1e9);
    json_decref(h);
    buf_free(&answer);
}

static json_t *generate(int i)
{
    char body[256];
    struct buf answer = {0};
    snprintf(body, sizeof body,
             "{\"job_id\":\"%d\",\"prompt\":\"the cat and the dog and the day\",\"max_tokens\":%d,\"temperature\":0,"
             "\"ignore_eos\":true,\"stream\":false}",
             i, N_TOKENS);
    int status = http_request(worker.port, "POST", "/execute", body, &answer);
    ck_assert_msg(status == 200, "%d: %s", status, answer.data);
    json_t *json = body_of(&answer), *tokens = json_incref(json_object_get(json, "tokens"));
    ck_assert_uint_eq(json_array_size(tokens), N_TOKENS);
    if (verbose)
        printf("  %lld prompt tokens %.0f ms, %d tokens %.0f ms\n", whole(json, "prompt_tokens"),
               json_number_value(json_object_get(json, "prefill_time_ms")), N_TOKENS,
               json_number_value(json_object_get(json, "decode_time_ms")));
    json_decref(json);
    buf_free(&answer);
    return tokens;
}

static long resident_kb(void)
{
    char name[64], line[256];
    long kb = 0;
    snprintf(name, sizeof name, "/proc/%d/status", (int)worker.pid);
    FILE *f = fopen(name, "r");
    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, "VmRSS:", 6) == 0)
            kb = strtol(line + 6, NULL, 10);
    fclose(f);
    return kb;
}

START_TEST(published_shape)
{
    const struct shape *s = &shapes[_i];
    struct tiny_spec spec;
    struct err err = {0};
    ck_assert_msg(tiny_preset(s->preset, s->type, &spec, &err) && tiny_write(&spec, path, &err), "%s", err.msg);
    struct adapter_plan plan = plan_of(s);
    if (verbose)
        printf("%s %s\n", s->preset, s->type);
    proc_start(&worker, (const char *[]){"--model", path, "--port", "0", "--device", "cpu", NULL}, NULL);
    wait_ready();
    check_health(s, &plan);
    json_t *once = generate(1), *again = generate(2);
    ck_assert_msg(json_equal(once, again), "two runs differ");
    json_decref(once);
    json_decref(again);
    /* Weights once, in the file's types; the KV of a few positions and the code beside them. */
    double resident = 1024.0 * (double)resident_kb();
    if (verbose)
        printf("  resident %.3f GB\n", resident / 1e9);
    ck_assert_msg(resident < (double)plan.weights + (double)plan.work + 0.3e9, "%.0f bytes resident, weights %zu, work %zu",
                  resident, plan.weights, plan.work);
    proc_signal(&worker, SIGTERM);
    ck_assert_int_eq(proc_wait(&worker, PROC_WAIT_MS), 0);
}
END_TEST

int main(int argc, char **argv)
{
    bool all = false;
    const char *preset = NULL, *type = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0)
            verbose = true;
        else if (strcmp(argv[i], "all") == 0)
            all = true;
        else if (preset == NULL)
            preset = argv[i];
        else
            type = argv[i];
    }
    Suite *s = suite_create("shapes");
    TCase *t = tcase_create("shapes");
    tcase_set_timeout(t, 600);
    tcase_add_checked_fixture(t, setup, teardown);
    for (int i = 0; i < N_SHAPES; i++) {
        bool named = preset != NULL && strcmp(preset, shapes[i].preset) == 0 && (type == NULL || strcmp(type, shapes[i].type) == 0);
        if (preset == NULL ? all || !shapes[i].slow : named)
            tcase_add_loop_test(t, published_shape, i, i + 1);
    }
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
