/* inferd-eval as a program: log-probabilities and their divergence from a reference, perplexity, tokens, exit codes. */
#define _GNU_SOURCE
#include "tests/tiny.h"

#include <check.h>
#include <jansson.h>
#include <stdarg.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64], model[96], other[96], file[96];

/* inferd-eval lies beside this program. Both streams go into *out, to be freed; returns the exit status. */
static int run_eval(char **out, const char *fmt, ...)
{
    char self[PATH_MAX], args[4096];
    struct buf command = {0}, b = {0};
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    ck_assert_int_gt(n, 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(args, sizeof args, fmt, ap);
    va_end(ap);
    ck_assert(buf_printf(&command, "%s/inferd-eval 2>&1 %s", self, args));
    FILE *p = popen(command.data, "r");
    ck_assert_ptr_nonnull(p);
    buf_free(&command);
    char chunk[4096];
    for (size_t got; (got = fread(chunk, 1, sizeof chunk, p)) > 0;)
        ck_assert(buf_add(&b, chunk, got));
    ck_assert(buf_add(&b, "", 0));
    *out = b.data;
    int status = pclose(p);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* It must succeed; the last line of what it wrote. */
static json_t *run_json(const char *args)
{
    char *out;
    ck_assert_msg(run_eval(&out, "%s", args) == 0, "%s: %s", args, out);
    char *end = out + strlen(out);
    while (end > out && end[-1] == '\n')
        *--end = 0;
    const char *line = strrchr(out, '\n');
    json_error_t error;
    json_t *json = json_loads(line != NULL ? line + 1 : out, 0, &error);
    ck_assert_msg(json != NULL, "%s: %s", error.text, out);
    free(out);
    return json;
}

static double number(const json_t *json, const char *key)
{
    const json_t *v = json_object_get(json, key);
    ck_assert_msg(json_is_number(v), "no number %s", key);
    return json_number_value(v);
}

static void write_file(const char *text)
{
    FILE *f = fopen(file, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
}

static void setup(void)
{
    struct tiny_spec spec;
    struct err err = {0};
    snprintf(dir, sizeof dir, "/tmp/inferd-test-eval-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(model, sizeof model, "%s/model.gguf", dir);
    snprintf(other, sizeof other, "%s/other.gguf", dir);
    snprintf(file, sizeof file, "%s/file", dir);
    ck_assert(tiny_preset("phi3long", "F16", &spec, &err));
    spec.n_layer = 1;
    ck_assert_msg(tiny_write(&spec, model, &err), "%s", err.msg);
    spec.seed = 2;
    ck_assert_msg(tiny_write(&spec, other, &err), "%s", err.msg);
}

static void teardown(void)
{
    unlink(model);
    unlink(other);
    unlink(file);
    rmdir(dir);
}

/* A position for every id and along the continuation; the best token of one is the continuation's next. */
START_TEST(positions_and_continuation)
{
    char args[256];
    snprintf(args, sizeof args, "--model %s --ids 1,2,3 --top 3 --greedy 4 --ctx 64", model);
    json_t *json = run_json(args), *one = json_array_get(json_object_get(json, "cases"), 0);
    json_t *positions = json_object_get(one, "positions"), *greedy = json_object_get(one, "greedy");
    ck_assert_uint_eq(json_array_size(json_object_get(json, "cases")), 1);
    ck_assert_uint_eq(json_array_size(json_object_get(one, "ids")), 3);
    ck_assert_uint_eq(json_array_size(positions), 6);
    ck_assert_uint_eq(json_array_size(greedy), 4);
    for (int i = 0; i < 6; i++) {
        json_t *p = json_array_get(positions, (size_t)i), *top = json_object_get(p, "top");
        ck_assert_int_eq((int)number(p, "pos"), i);
        ck_assert_uint_eq(json_array_size(top), 3);
        double last = 0;
        for (size_t k = 0; k < 3; k++) {
            double lp = json_number_value(json_array_get(json_array_get(top, k), 1));
            ck_assert(lp <= last);
            last = lp;
        }
        if (i >= 2)
            ck_assert(json_equal(json_array_get(json_array_get(top, 0), 0), json_array_get(greedy, (size_t)i - 2)));
    }
    json_decref(json);
}
END_TEST

/* The model against itself: nothing; with halves in the KV: little; against another model: much. */
START_TEST(divergence_from_a_reference)
{
    char args[512];
    char *out;
    snprintf(args, sizeof args, "--model %s --ids 1,2,3,250,77 --greedy 3 --kv-type f32", model);
    ck_assert_int_eq(run_eval(&out, "%s", args), 0);
    write_file(out);
    free(out);
    const struct {
        const char *model, *kv;
        double least, most, top1;
    } runs[] = {{model, "f32", 0, 1e-9, 1}, {model, "f16", 0, 1e-4, 1}, {other, "f32", 0.5, 100, 0}};
    for (int i = 0; i < 3; i++) {
        snprintf(args, sizeof args, "--model %s --kl %s --kv-type %s", runs[i].model, file, runs[i].kv);
        json_t *json = run_json(args);
        double mean = number(json, "kl_mean"), max = number(json, "kl_max");
        ck_assert_msg(mean >= runs[i].least && mean <= runs[i].most && max >= mean, "%d: %g, %g", i, mean, max);
        ck_assert(number(json, "top1") >= runs[i].top1);
        ck_assert(number(json, "positions") == 7 && number(json, "cases") == 1);
        json_decref(json);
    }
}
END_TEST

/* The definition, on a list of two tokens whose probabilities are known; the rest of the vocabulary is one bucket. */
START_TEST(divergence_by_hand)
{
    char args[512];
    snprintf(args, sizeof args, "--model %s --ids 9 --top 2 --ctx 64 --kv-type f32", model);
    json_t *json = run_json(args);
    json_t *top = json_object_get(
        json_array_get(json_object_get(json_array_get(json_object_get(json, "cases"), 0), "positions"), 0), "top");
    int id[2];
    double q[2];
    for (size_t k = 0; k < 2; k++) {
        id[k] = (int)json_integer_value(json_array_get(json_array_get(top, k), 0));
        q[k] = exp(json_number_value(json_array_get(json_array_get(top, k), 1)));
    }
    json_decref(json);
    char text[256];
    snprintf(text, sizeof text,
             "{\"cases\":[{\"ids\":[9],\"n_ctx\":64,\"positions\":[{\"pos\":0,\"top\":[[%d,%.9f],[%d,%.9f]]}]},"
             "{\"ids\":[9],\"window_applied\":false,\"positions\":[]}]}",
             id[1], log(0.5), id[0], log(0.25));
    write_file(text);
    snprintf(args, sizeof args, "--model %s --kl %s --kv-type f32", model, file);
    json = run_json(args);
    double want = 0.5 * log(0.5 / q[1]) + 0.25 * log(0.25 / q[0]) + 0.25 * log(0.25 / (1 - q[0] - q[1]));
    ck_assert_double_eq_tol(number(json, "kl_mean"), want, 1e-3 * want);
    ck_assert(number(json, "top1") == 0 && number(json, "cases") == 1);
    json_decref(json);
}
END_TEST

/* Each case is judged with the context it names: long factors beyond 256 positions. */
START_TEST(context_of_a_case)
{
    char args[512];
    char *out;
    snprintf(args, sizeof args, "--model %s --ids 1,2,3,4,5,6 --kv-type f32 --ctx 512", model);
    ck_assert_int_eq(run_eval(&out, "%s", args), 0);
    char *cases = strchr(out, '['), *text = NULL;
    ck_assert_int_gt(asprintf(&text, "{\"cases\":[{\"n_ctx\":512,%s", cases + 2), 0);
    write_file(text);
    free(text);
    for (int given = 0; given < 2; given++) {
        snprintf(args, sizeof args, "--model %s --kl %s --kv-type f32 %s", model, file, given ? "--ctx 256" : "");
        json_t *json = run_json(args);
        ck_assert((number(json, "kl_mean") > 1e-6) == (given == 1));
        json_decref(json);
    }
    free(out);
}
END_TEST

/* The mean of what --ids says about the tokens of the second half of each window. */
START_TEST(perplexity_of_a_text)
{
    char args[3072], ids[2048];
    char *out;
    write_file("the cat and the dog and the end of the day; one and two and three and four, he said.\n");
    ck_assert_int_eq(run_eval(&out, "--model %s --tokenize --add-special <%s", model, file), 0);
    snprintf(ids, sizeof ids, "%s", out + 1);
    free(out);
    ids[strcspn(ids, "]")] = 0;
    int32_t id[512];
    int n = 0;
    for (char *p = ids; n < 512 && *p != 0; p += *p == ',')
        id[n++] = (int32_t)strtol(p, &p, 10);
    ck_assert_int_ge(n, 33);
    double sum = 0;
    int count = 0;
    for (int w = 0; w + 16 <= n - 1; w += 16) {    /* the last line break is no part of the text */
        char window[256] = "";
        for (int i = 0; i < 16; i++)
            snprintf(window + strlen(window), sizeof window - strlen(window), "%s%d", i ? "," : "", i ? id[w + i] : id[0]);
        snprintf(args, sizeof args, "--model %s --ids %s --top 512 --ctx 16", model, window);
        json_t *json = run_json(args);
        json_t *positions = json_object_get(json_array_get(json_object_get(json, "cases"), 0), "positions");
        for (int i = 8; i < 15; i++) {
            json_t *top = json_object_get(json_array_get(positions, (size_t)i), "top");
            for (size_t k = 0; k < json_array_size(top); k++)
                if (json_integer_value(json_array_get(json_array_get(top, k), 0)) == id[w + i + 1])
                    sum -= json_number_value(json_array_get(json_array_get(top, k), 1));
            count++;
        }
        json_decref(json);
    }
    snprintf(args, sizeof args, "--model %s --perplexity %s --ctx 16", model, file);
    json_t *json = run_json(args);
    ck_assert_int_eq((int)number(json, "tokens"), count);
    ck_assert_double_eq_tol(number(json, "perplexity") / exp(sum / count), 1, 1e-5);
    json_decref(json);
    ck_assert_int_eq(run_eval(&out, "--model %s --perplexity %s --ctx 2", model, file), 64);
    ck_assert_msg(strstr(out, "expected 3 or more") != NULL, "%s", out);
    free(out);
    ck_assert_int_eq(run_eval(&out, "--model %s --perplexity %s --ctx 512", model, file), 65);
    ck_assert_msg(strstr(out, "at least one context of 512") != NULL, "%s", out);
    free(out);
}
END_TEST

START_TEST(tokens_and_back)
{
    char *out;
    write_file("the <|end|> day");
    ck_assert_int_eq(run_eval(&out, "--model %s --tokenize <%s | tee %s.ids", model, file, model), 0);
    free(out);
    ck_assert_int_eq(run_eval(&out, "--model %s --detokenize <%s.ids; rm %s.ids", model, model, model), 0);
    ck_assert_msg(strstr(out, "the <|end|> day") != NULL, "%s", out);
    free(out);
}
END_TEST

START_TEST(wrong_usage)
{
    const struct {
        const char *args, *message;
        int status;
    } bad[] = {
        {"--help", "--kl REFERENCE", 0},
        {"--nonsense", "see --help", 64},
        {"--model %s", "one of --ids", 64},
        {"--model %s --ids 1 --tokenize", "one of --ids", 64},
        {"--model %s --ids ''", "no token ids", 64},
        {"--model %s --ids 1,512", "expected 0 to 511", 64},
        {"--model %s --ids 1,-2", "expected 0 to 511", 64},
        {"--model %s --ids 1 --top 0", "expected a number from 1", 64},
        {"--model %s --ids 1 --ctx 4k", "--ctx 4k: expected a number", 64},
        {"--model %s --ids 1 2 3", "\"2\" belongs to no option", 64},
        {"--model %s --ids 1 --top 1 >/dev/full", "cannot write the output", 65},
        {"--model %s --ids 1 --kv-type f64", "allowed f16, q8_0, f32", 64},
        {"--model %s --ids 1 --device gpu", "allowed cpu, ref", 64},
        {"--model %s --ids 1,2,3,4 --ctx 3", "the context has 3", 65},
        {"--model %s --ids 1,2 --greedy 2 --ctx 3", "the context has 3", 65},
        {"--model %s.no --ids 1", "model.gguf.no", 65},
        {"--model %s --perplexity /nonexistent", "/nonexistent", 65},
        {"--model %s --kl /nonexistent", "/nonexistent", 64},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char args[512];
        char *out;
        const char *at = strstr(bad[i].args, "%s");
        if (at == NULL)
            snprintf(args, sizeof args, "%s", bad[i].args);
        else
            snprintf(args, sizeof args, "%.*s%s%s", (int)(at - bad[i].args), bad[i].args, model, at + 2);
        int status = run_eval(&out, "%s", args);
        ck_assert_msg(status == bad[i].status && strstr(out, bad[i].message) != NULL, "%s: %d, %s", args, status, out);
        free(out);
    }
}
END_TEST

#define AT "{\"cases\":[{\"ids\":[1,2],\"positions\":["

START_TEST(wrong_references)
{
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", "line 1"},
        {"[]", "the document: found an array of 0, expected {\"cases\""},
        {"7", "line 1"},
        {"{}", "\"cases\" is missing"},
        {"{\"cases\":[]}", "\"cases\": found an array of 0"},
        {"{\"cases\":{\"a\":1}}", "\"cases\": found an object of 1"},
        {"{\"cases\":[7]}", "cases[0]: the case: found 7, expected an object"},
        {"{\"cases\":[{}]}", "cases[0]: \"ids\" is missing: give them with --ids"},
        {"{\"cases\":[{\"ids\":null}]}", "\"ids\": found null, expected an array"},
        {"{\"cases\":[{\"ids\":[]}]}", "\"ids\": found 0, the continuation included, expected 1 to"},
        {"{\"cases\":[{\"ids\":[1]}]}", "\"positions\" is missing"},
        {"{\"cases\":[{\"ids\":[1],\"positions\":[]}]}", "\"positions\": found an array of 0"},
        {"{\"cases\":[{\"ids\":[1],\"positions\":[3]}]}", "positions[0]: the element: found 3"},
        {"{\"cases\":[{\"ids\":[1,\"x\"]}]}", "\"ids\"[1]: found \"x\", expected a whole number from 0 to 511"},
        {"{\"cases\":[{\"ids\":[1,2.0]}]}", "\"ids\"[1]: found 2.0, expected a whole number"},
        {"{\"cases\":[{\"ids\":[512]}]}", "\"ids\"[0]: found 512, expected a whole number from 0 to 511"},
        {"{\"cases\":[{\"ids\":[1],\"greedy\":[-1]}]}", "\"greedy\"[0]: found -1"},
        {"{\"cases\":[{\"ids\":[1],\"greedy\":{}}]}", "\"greedy\" is missing, expected an array"},
        {"{\"cases\":[{\"ids\":[1],\"n_ctx\":-1}]}", "\"n_ctx\": found -1"},
        {"{\"cases\":[{\"ids\":[1,2,3],\"greedy\":[4],\"n_ctx\":3}]}", "found 4, the continuation included, expected 1 to 3"},
        {"{\"cases\":[{\"ids\":[1],\"window_applied\":1}]}", "\"window_applied\": found 1, expected true or false"},
        {"{\"cases\":[{\"window_applied\":false}]}", "all 1 are without the model's window"},
        {"{\"cases\":[{\"ids\":[1],\"ids\":[2]}]}", "duplicate object key"},
        {"{\"cases\":[{\"ids\":[1],\"positions\":[", "line 1, column"},
        {"{\"cases\":[{\"ids\":[1]}]} 8", "line 1, column"},
        {AT "{\"pos\":2,\"top\":[[1,-1]]}]}]}", "\"pos\": found 2, expected a whole number from 0 to 1"},
        {AT "{\"top\":[[1,-1]]}]}]}", "positions[0]: \"pos\" is missing"},
        {AT "{\"pos\":0,\"top\":[[1,-1]]},{\"pos\":0,\"top\":[[1,-1]]}]}]}", "positions[1]: \"pos\": found 0 twice"},
        {AT "{\"pos\":0}]}]}", "positions[0]: \"top\" is missing"},
        {AT "{\"pos\":0,\"top\":[[512,-1]]}]}]}", "\"top\"[0]: found 512, expected a whole number from 0 to 511"},
        {AT "{\"pos\":0,\"top\":[[5]]}]}]}", "\"top\"[0]: found an array of 1, expected [id, log-probability]"},
        {AT "{\"pos\":0,\"top\":[[5,-1,2]]}]}]}", "\"top\"[0]: found an array of 3"},
        {AT "{\"pos\":0,\"top\":[[5,-1],[6,-2],[5,-3]]}]}]}", "\"top\": found id 5 twice"},
        {AT "{\"pos\":0,\"top\":[[5,0.5]]}]}]}", "\"top\"[0]: found 0.5, expected a log-probability from -10000 to 0"},
        {AT "{\"pos\":0,\"top\":[[5,-1e300]]}]}]}", "\"top\"[0]: found -1e300"},
        {AT "{\"pos\":0,\"top\":[[5,NaN]]}]}]}", "line 1, column"},
        {AT "{\"pos\":0,\"top\":[[5,-1e999]]}]}]}", "line 1, column"},
        {AT "{\"pos\":0,\"top\":[[5,\"NaN\"]]}]}]}", "\"top\"[0]: found \"NaN\""},
        {AT "{\"pos\":0,\"top\":[[5,-0.1],[6,-1]]}]}]}", "found probabilities that sum to 1.272717, expected 1 at most"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *out;
        write_file(bad[i].text);
        int status = run_eval(&out, "--model %s --kl %s", model, file);
        ck_assert_msg(status == 64 && strstr(out, file) != NULL && strstr(out, bad[i].message) != NULL, "%s: %d, %s", bad[i].text,
                      status, out);
        free(out);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("eval");
    TCase *t = tcase_create("eval");
    tcase_set_timeout(t, 30);
    tcase_add_unchecked_fixture(t, setup, teardown);
    tcase_add_test(t, positions_and_continuation);
    tcase_add_test(t, divergence_from_a_reference);
    tcase_add_test(t, divergence_by_hand);
    tcase_add_test(t, context_of_a_case);
    tcase_add_test(t, perplexity_of_a_text);
    tcase_add_test(t, tokens_and_back);
    tcase_add_test(t, wrong_usage);
    tcase_add_test(t, wrong_references);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
