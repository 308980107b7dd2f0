/* inferd-bench as a program: the rows it prints, the numbers in them, and its exit codes. */
#include "tests/tiny.h"

#include <check.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char model[64];

/* inferd-bench lies beside this program. Returns the exit status; the output, to be freed, goes
 * into *out. */
static int run_bench(const char *args, char **out)
{
    char self[PATH_MAX], command[PATH_MAX + 512];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    ck_assert_int_gt(n, 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    snprintf(command, sizeof command, "%s/inferd-bench %s 2>&1", self, args);
    FILE *p = popen(command, "r");
    ck_assert_ptr_nonnull(p);
    struct buf b = {0};
    char chunk[4096];
    for (size_t got; (got = fread(chunk, 1, sizeof chunk, p)) > 0;)
        ck_assert(buf_add(&b, chunk, got));
    ck_assert(buf_puts(&b, ""));
    *out = b.data;
    int status = pclose(p);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void make_model(void)
{
    struct tiny_spec spec;
    struct err err = {0};
    snprintf(model, sizeof model, "/tmp/test_bench.%d.gguf", (int)getpid());
    ck_assert(tiny_preset("qwen2", "Q4_0", &spec, &err));
    ck_assert_msg(tiny_write(&spec, model, &err), "%s", err.msg);
}

static void remove_model(void)
{
    unlink(model);
}

static int number(const json_t *row, const char *key)
{
    return (int)json_integer_value(json_object_get(row, key));
}

START_TEST(a_row_for_each_test)
{
    static const int want[][4] = {
        {16, 0, 0, 1}, {0, 4, 0, 1}, {0, 4, 0, 3}, {16, 0, 70, 1}, {0, 4, 70, 1}, {0, 4, 70, 3},
    };
    char args[256], *out;
    snprintf(args, sizeof args, "-m %s -dev ref -p 16 -n 4 -d 0,70 -b 1,3 -t 1 -r 2 -o json",
             model);
    ck_assert_int_eq(run_bench(args, &out), 0);
    json_error_t error;
    json_t *rows = json_loads(out, 0, &error);
    ck_assert_msg(rows != NULL, "%s: %s", error.text, out);
    ck_assert_uint_eq(json_array_size(rows), 6);
    for (size_t i = 0; i < 6; i++) {
        const json_t *row = json_array_get(rows, i);
        ck_assert_int_eq(number(row, "n_prompt"), want[i][0]);
        ck_assert_int_eq(number(row, "n_gen"), want[i][1]);
        ck_assert_int_eq(number(row, "n_depth"), want[i][2]);
        ck_assert_int_eq(number(row, "n_batch"), want[i][3]);
        ck_assert_int_eq(number(row, "n_checked"), 12);
        double avg = json_number_value(json_object_get(row, "avg_ts"));
        ck_assert_double_gt(avg, 0);
        ck_assert_double_ge(json_number_value(json_object_get(row, "best_ts")), avg - 0.001);
        ck_assert_double_gt(json_number_value(json_object_get(row, "gb_s")), 0);
        ck_assert_double_gt(json_number_value(json_object_get(row, "read_gb_s")), 0.1);
        ck_assert(json_is_number(json_object_get(row, "bandwidth_share")));
        ck_assert_str_eq(json_string_value(json_object_get(row, "model_type")), "qwen2.5");
        ck_assert_str_eq(json_string_value(json_object_get(row, "quant")), "Q4_0");
    }
    json_decref(rows);
    free(out);
}
END_TEST

START_TEST(a_table_for_people)
{
    char args[256], *out;
    snprintf(args, sizeof args, "-m %s -dev ref -p 0 -n 2 -d 3 -b 2 -t 1 -r 1", model);
    ck_assert_int_eq(run_bench(args, &out), 0);
    ck_assert_msg(strstr(out, "| tg2 @ d3 x 2 |") != NULL, "%s", out);
    ck_assert_msg(strstr(out, "12 positions checked against the reference") != NULL, "%s", out);
    free(out);
}
END_TEST

START_TEST(speculation_in_its_own_rows)
{
    char args[256], ids[64], *out;
    snprintf(ids, sizeof ids, "/tmp/test_bench.%d.json", (int)getpid());
    FILE *f = fopen(ids, "w");
    ck_assert_ptr_nonnull(f);
    fputs(" [1, 2,3,\n4,5, 1,2,3 ]\n", f);
    fclose(f);
    snprintf(args, sizeof args, "-m %s -dev cpu -s %s -n 40 -b 1,2 -t 1 -r 1 -temp 0 -o json",
             model, ids);
    ck_assert_int_eq(run_bench(args, &out), 0);
    json_error_t error;
    json_t *rows = json_loads(out, 0, &error);
    ck_assert_msg(rows != NULL, "%s: %s", error.text, out);
    ck_assert_uint_eq(json_array_size(rows), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *row = json_array_get(rows, i);
        ck_assert(json_is_true(json_object_get(row, "speculation")));
        ck_assert_int_eq(number(row, "n_prompt"), 8);
        ck_assert_int_eq(number(row, "n_gen"), 40);
        ck_assert_int_eq(number(row, "n_batch"), (int)i + 1);
        double drafted = json_number_value(json_object_get(row, "drafted"));
        double accepted = json_number_value(json_object_get(row, "accepted"));
        ck_assert(accepted >= 0 && accepted <= drafted);
        ck_assert_double_gt(json_number_value(json_object_get(row, "off_ts")), 0);
        ck_assert_double_gt(json_number_value(json_object_get(row, "on_ts")), 0);
    }
    json_decref(rows);
    free(out);
    snprintf(args, sizeof args, "-m %s -s %s -n 40 -t 1 -r 1", model, ids);
    ck_assert_int_eq(run_bench(args, &out), 0);
    ck_assert_msg(strstr(out, "| 8 | 0 | tg40 x 1 |") != NULL, "%s", out);
    free(out);
    f = fopen(ids, "w");
    fputs("[1, x]", f);
    fclose(f);
    ck_assert_int_eq(run_bench(args, &out), 64);
    ck_assert_msg(strstr(out, "not a JSON array of token ids") != NULL, "%s", out);
    free(out);
    unlink(ids);
}
END_TEST

START_TEST(exit_codes)
{
    static const struct {
        const char *args;
        int status;
        const char *piece;
    } runs[] = {
        {"--help", 0, "usage:"},
        {"", 64, "-m FILE is required"},
        {"-m x -p", 64, "option -p: no value"},
        {"-m x -p 1,", 64, "option -p"},
        {"-m x -b 0", 64, "option -b: \"0\" is not allowed"},
        {"-m x -temp 2.1", 64, "option -temp"},
        {"-m x -s /nonexistent.json", 64, "/nonexistent.json: No such file"},
        {"-m x -s y -b 65", 64, "with -s at most 64"},
        {"-m x -o xml", 64, "option -o"},
        {"-m x -speed 9", 64, "option -speed"},
        {"-m /nonexistent.gguf", 66, "/nonexistent.gguf: No such file"},
        {"-m /dev/null", 66, "is a device"},
        {"-m /proc/self/exe", 65, "a program"},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char *out;
        int status = run_bench(runs[i].args, &out);
        ck_assert_msg(status == runs[i].status, "%s: exit %d: %s", runs[i].args, status, out);
        ck_assert_msg(strstr(out, runs[i].piece) != NULL, "%s: %s", runs[i].args, out);
        free(out);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bench");
    TCase *tc = tcase_create("bench");
    tcase_add_unchecked_fixture(tc, make_model, remove_model);
    tcase_add_test(tc, a_row_for_each_test);
    tcase_add_test(tc, a_table_for_people);
    tcase_add_test(tc, speculation_in_its_own_rows);
    tcase_add_test(tc, exit_codes);
    tcase_set_timeout(tc, 60);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
