/* Pre-tokenizers: the words of every pattern against those of the original tokenizers' patterns
 * (tests/data/tok/splits.json), unknown names, and long texts. */
#include "engine/text/pretok.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
    "gpt-2", "smollm", "llama-bpe",    "qwen2",          "qwen35",      "gpt-4o",
    "dbrx",  "tekken", "deepseek-llm", "deepseek-coder", "deepseek-v3", "default",
};
enum { N_NAMES = sizeof names / sizeof *names };

static struct pretok *open_name(const char *name)
{
    struct err err = {0};
    struct pretok *p = pretok_open(name, strlen(name), &err);
    ck_assert_msg(p != NULL, "%s", err.msg);
    return p;
}

/* The lengths of the words; they must cover the text. Returns how many there are. (An assertion of
 * Check costs a system call: none a word.) */
static size_t split(const struct pretok *p, const char *text, size_t len, size_t *words, size_t max)
{
    struct pretok_walk w;
    struct err err = {0};
    size_t at, n, end = 0, count = 0;
    ck_assert(pretok_begin(&w, p, text, len, &err));
    while (pretok_next(&w, &at, &n, &err)) {
        if (at != end || n == 0)
            break;
        end = at + n;
        if (count < max)
            words[count] = n;
        count++;
    }
    ck_assert_msg(err.code == ERR_NONE, "%s", err.msg);
    ck_assert_uint_eq(end, len);
    pretok_end(&w);
    return count;
}

START_TEST(words_are_those_of_the_original_patterns)
{
    json_error_t e;
    json_t *j = json_load_file("tests/data/tok/splits.json", 0, &e);
    ck_assert_msg(j != NULL, "%s (run from the repository's root)", e.text);
    const char *name = strcmp(names[_i], "dbrx") == 0 ? "llama-bpe" : names[_i];
    json_t *texts = json_object_get(j, "texts"), *text;
    json_t *splits = json_object_get(json_object_get(j, "splits"), name);
    struct pretok *p = open_name(names[_i]);
    size_t i;
    ck_assert_uint_gt(json_array_size(texts), 100);
    json_array_foreach(texts, i, text)
    {
        size_t words[128];
        const json_t *want = json_array_get(splits, i);
        size_t n = split(p, json_string_value(text), json_string_length(text), words, 128);
        ck_assert_msg(n == json_array_size(want), "text %zu: %zu words, expected %zu", i, n,
                      json_array_size(want));
        for (size_t k = 0; k < n; k++)
            ck_assert_msg((json_int_t)words[k] == json_integer_value(json_array_get(want, k)),
                          "text %zu: word %zu has %zu bytes", i, k, words[k]);
    }
    pretok_close(p);
    json_decref(j);
}
END_TEST

START_TEST(unknown_names_are_refused_with_the_known_ones)
{
    static const char *const unknown[] = {"",           "qwen",        "qwen22",
                                          "llama-bpe ", "gpt-2 phi-2", "QWEN2"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        struct err err = {0};
        ck_assert(pretok_open(unknown[i], strlen(unknown[i]), &err) == NULL);
        ck_assert_int_eq(err.code, ERR_MODEL);
        char quoted[64];
        snprintf(quoted, sizeof quoted, "tokenizer.ggml.pre: \"%s\"", unknown[i]);
        ck_assert_msg(strstr(err.msg, quoted) != NULL, "%s", err.msg);
        for (size_t k = 0; k < N_NAMES; k++)
            ck_assert_msg(strstr(err.msg, names[k]) != NULL, "%s: %s", names[k], err.msg);
    }
}
END_TEST

/* Quadratic back-tracking would run into the time limit. */
START_TEST(long_texts_take_linear_time)
{
    enum { N = 1 << 19 };
    static const char *const units[] = {
        "a", "A", "1",  " ",     "\n",        " \t", "\xCC\x81", "\xE3\x80\x80", "\xE4\xB8\xAD",
        "!", "'", "A ", "\r\n ", "a\xCC\x81",
    };
    struct pretok *p = open_name(names[_i]);
    char *text = malloc(N + 16);
    ck_assert_ptr_nonnull(text);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t len = 0, unit = strlen(units[i]);
        for (; len + unit <= N; len += unit)
            memcpy(text + len, units[i], unit);
        split(p, text, len, NULL, 0);
        text[len++] = 'x';
        split(p, text, len, NULL, 0);
    }
    free(text);
    pretok_close(p);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pretok");
    TCase *t = tcase_create("pretok");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, words_are_those_of_the_original_patterns, 0, N_NAMES);
    tcase_add_test(t, unknown_names_are_refused_with_the_known_ones);
    tcase_add_loop_test(t, long_texts_take_linear_time, 0, N_NAMES);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
