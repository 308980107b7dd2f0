/* Tokenizers against the vectors of five published vocabularies (tests/data/tok), through tok.h. */
#include "base/buf.h"
#include "engine/text/tok.h"
#include "tests/vocabs.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *load_vectors(const char *name)
{
    char path[128];
    json_error_t e;
    snprintf(path, sizeof path, "tests/data/tok/%s.json", name);
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &e);
    ck_assert_msg(j != NULL, "%s: %s (run from the repository's root)", path, e.text);
    return j;
}

static void from_hex(const char *hex, struct buf *out)
{
    for (; hex[0] != 0; hex += 2) {
        char byte[3] = {hex[0], hex[1], 0}, c = (char)strtol(byte, NULL, 16);
        buf_add(out, &c, 1);
    }
    buf_add(out, "", 0);
}

static void check_case(const struct tok *t, const json_t *c, size_t index)
{
    const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, "ids");
    int32_t *ids;
    size_t n;
    struct err err = {0};
    bool add = json_is_true(json_object_get(c, "add_special")), parse = json_is_true(json_object_get(c, "parse_special"));
    ck_assert_msg(tok_encode(t, json_string_value(text), json_string_length(text), add ? TOK_ADD_ALWAYS : TOK_ADD_NONE, parse, 0, &ids, &n, &err), "case %zu: %s",
                  index, err.msg);
    ck_assert_msg(n == json_array_size(want), "case %zu \"%s\": %zu ids, expected %zu", index, json_string_value(text), n,
                  json_array_size(want));
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(ids[i] == json_integer_value(json_array_get(want, i)), "case %zu \"%s\": id %zu is %d", index,
                      json_string_value(text), i, ids[i]);
    ck_assert_uint_le(tok_at_least(t, json_string_value(text), json_string_length(text)), n);
    free(ids);
}

START_TEST(texts_encode_to_the_expected_ids)
{
    struct vocab_file v;
    vocab_file_open(&v, vocab_names[_i]);
    json_t *j = load_vectors(vocab_names[_i]), *c;
    size_t i;
    json_array_foreach (json_object_get(j, "cases"), i, c)
        check_case(v.tok, c, i);
    ck_assert_uint_gt(i, 600);
    json_decref(j);
    vocab_file_close(&v);
}
END_TEST

START_TEST(ids_decode_to_the_expected_bytes)
{
    struct vocab_file v;
    vocab_file_open(&v, vocab_names[_i]);
    json_t *j = load_vectors(vocab_names[_i]), *c, *p;
    size_t i, k;
    json_array_foreach (json_object_get(j, "decode"), i, c) {
        int32_t ids[64];
        struct buf want = {0};
        struct err err = {0};
        json_array_foreach (json_object_get(c, "pieces"), k, p) {
            struct buf piece = {0};
            size_t len;
            ids[k] = (int32_t)json_integer_value(json_array_get(json_object_get(c, "ids"), k));
            from_hex(json_string_value(p), &piece);
            const char *got = tok_piece(v.tok, ids[k], true, &len);
            ck_assert_uint_eq(len, piece.len);
            ck_assert_mem_eq(got, piece.data, len);
            buf_free(&piece);
        }
        char *text;
        size_t len;
        from_hex(json_string_value(json_object_get(c, "text")), &want);
        ck_assert(tok_decode(v.tok, ids, k, true, &text, &len, &err));
        tok_tidy(v.tok, text, &len);
        ck_assert_uint_eq(len, want.len);
        ck_assert_mem_eq(text, want.data, len);
        free(text);
        buf_free(&want);
    }
    ck_assert_uint_eq(i, 40);
    json_decref(j);
    vocab_file_close(&v);
}
END_TEST

/* Ids with special tokens shown, tidied, are the text that the reference decoder gives: "detok", or the text itself. */
START_TEST(encoded_texts_decode_again)
{
    struct vocab_file v;
    vocab_file_open(&v, vocab_names[_i]);
    json_t *j = load_vectors(vocab_names[_i]), *c;
    size_t i;
    json_array_foreach (json_object_get(j, "cases"), i, c) {
        const json_t *list = json_object_get(c, "ids"), *want = json_object_get(c, "detok");
        size_t n = json_array_size(list), len;
        int32_t *ids = calloc(n + 1, sizeof *ids);
        char *text;
        struct err err = {0};
        ck_assert_ptr_nonnull(ids);
        for (size_t k = 0; k < n; k++)
            ids[k] = (int32_t)json_integer_value(json_array_get(list, k));
        ck_assert(tok_decode(v.tok, ids, n, true, &text, &len, &err));
        tok_tidy(v.tok, text, &len);
        want = want != NULL ? want : json_object_get(c, "text");
        ck_assert_msg(len == json_string_length(want) && memcmp(text, json_string_value(want), len) == 0,
                      "case %zu: \"%s\", expected \"%s\"", i, text, json_string_value(want));
        free(text);
        free(ids);
    }
    json_decref(j);
    vocab_file_close(&v);
}
END_TEST

/* SPM cannot tell U+2581 from a space. */
static void expected_text(const struct tok *t, const json_t *text, struct buf *out)
{
    const char *s = json_string_value(text), *end = s + json_string_length(text);
    bool spm = strcmp(tok_kind(t), "gguf-spm") == 0;
    while (s < end) {
        bool space = spm && end - s >= 3 && memcmp(s, "\xE2\x96\x81", 3) == 0;
        buf_add(out, space ? " " : s, 1);
        s += space ? 3 : 1;
    }
    buf_add(out, "", 0);
}

/* The pieces of a text, one by one through the stream, give the text back; what was pushed is whole UTF-8 at every step. */
START_TEST(streams_give_the_text_back)
{
    struct vocab_file v;
    vocab_file_open(&v, vocab_names[_i]);
    json_t *j = load_vectors(vocab_names[_i]), *c;
    size_t i;
    json_array_foreach (json_object_get(j, "cases"), i, c) {
        const json_t *text = json_object_get(c, "text"), *list = json_object_get(c, "ids");
        if (json_is_true(json_object_get(c, "parse_special")))
            continue;    /* special tokens are not shown in generated text */
        struct tok_stream s;
        struct buf out = {0}, pieces = {0};
        tok_stream_init(&s, v.tok);
        for (size_t k = 0; k < json_array_size(list); k++) {
            int32_t id = (int32_t)json_integer_value(json_array_get(list, k));
            size_t len;
            const char *p = tok_piece(v.tok, id, false, &len);
            buf_add(&pieces, p, len);
            ck_assert(tok_stream_push(&s, id, &out));
            ck_assert_uint_eq(out.len + s.n_held, pieces.len);
        }
        ck_assert(tok_stream_end(&s, &out));
        struct buf want = {0};
        expected_text(v.tok, text, &want);
        size_t skip = out.len == want.len + 1 ? 1 : 0;    /* SPM's space in front */
        ck_assert_uint_eq(out.len - skip, want.len);
        if (out.len > 0)
            ck_assert_mem_eq(out.data + skip, want.data, want.len);
        buf_free(&want);
        buf_free(&out);
        buf_free(&pieces);
    }
    json_decref(j);
    vocab_file_close(&v);
}
END_TEST

static void push_bytes(struct tok_stream *s, const char *bytes, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned char)bytes[i]);
        ck_assert(tok_stream_push(s, tok_find(s->tok, name, 6), out));
    }
}

/* What browsers and Python make of broken UTF-8: one U+FFFD for a beginning that breaks off, one for a byte that cannot
 * begin a character. */
START_TEST(streams_replace_broken_characters)
{
#define BAD "\xEF\xBF\xBD"
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"\xE2" "a", BAD "a"},
        {"\xFF\xE2", BAD BAD},
        {"\xF0\x9F\x98" "a", BAD "a"},
        {"\xF0\x9F\x98", BAD},
        {"\xF0\x9F\xF0\x9F\x98\x80", BAD "\xF0\x9F\x98\x80"},
        {"\xC0\xAF", BAD BAD},
        {"\xED\xA0\x80", BAD BAD BAD},
        {"\xF4\x90\x80\x80", BAD BAD BAD BAD},
        {"\xE2\x82\xE2\x82\xAC\x82", BAD "\xE2\x82\xAC" BAD},
    };
    struct vocab_file v;
    vocab_file_open(&v, "llama-spm");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tok_stream s;
        struct buf out = {0};
        tok_stream_init(&s, v.tok);
        push_bytes(&s, cases[i].bytes, strlen(cases[i].bytes), &out);
        ck_assert(tok_stream_end(&s, &out));
        ck_assert_msg(strcmp(out.data, cases[i].text) == 0, "case %zu", i);
        buf_free(&out);
    }
    vocab_file_close(&v);
}
END_TEST

/* A token cut out of the middle of characters, pushed whole, gives what its bytes give one by one. */
START_TEST(streams_do_not_depend_on_the_cuts)
{
    struct vocab_file spm, bpe;
    vocab_file_open(&spm, "llama-spm");
    vocab_file_open(&bpe, "llama-bpe");
    for (int32_t id = 0; id + 7 < tok_n_vocab(bpe.tok); id += 7) {    /* any two tokens, many with parts of characters */
        struct tok_stream a, b;
        struct buf whole = {0}, bytes = {0};
        tok_stream_init(&a, bpe.tok);
        tok_stream_init(&b, spm.tok);
        for (int32_t k = id; k <= id + 7; k += 7) {
            size_t len;
            const char *piece = tok_piece(bpe.tok, k, false, &len);
            ck_assert(tok_stream_push(&a, k, &whole));
            push_bytes(&b, piece, len, &bytes);
            ck_assert_uint_eq(whole.len, bytes.len);
        }
        tok_stream_end(&a, &whole);
        tok_stream_end(&b, &bytes);
        ck_assert_uint_eq(whole.len, bytes.len);
        ck_assert(whole.len == 0 || memcmp(whole.data, bytes.data, whole.len) == 0);
        buf_free(&whole);
        buf_free(&bytes);
    }
    vocab_file_close(&spm);
    vocab_file_close(&bpe);
}
END_TEST

/* The names of all special tokens and byte tokens as plain text: only ordinary tokens come of them. */
START_TEST(plain_text_never_makes_special_tokens)
{
    struct vocab_file v;
    vocab_file_open(&v, vocab_names[_i]);
    for (int32_t id = 0; id < tok_n_vocab(v.tok); id++) {
        int32_t *ids;
        size_t n, len;
        const char *name = tok_piece(v.tok, id, true, &len);
        if (!tok_is_special(v.tok, id))
            continue;
        ck_assert(tok_encode(v.tok, name, len, TOK_ADD_NONE, false, 0, &ids, &n, NULL));
        ck_assert_uint_gt(n, 1);
        for (size_t i = 0; i < n; i++)
            ck_assert_msg(!tok_is_special(v.tok, ids[i]), "%.*s", (int)len, name);
        free(ids);
        ck_assert(tok_encode(v.tok, name, len, TOK_ADD_NONE, true, 0, &ids, &n, NULL));
        ck_assert_uint_eq(n, 1);
        ck_assert_int_eq(ids[0], id);
        free(ids);
    }
    vocab_file_close(&v);
}
END_TEST

START_TEST(prompts_get_one_bos)
{
    static const struct {
        const char *text;
        enum tok_add add;
        bool parse;
        size_t n;    /* ids that are BOS */
    } cases[] = {
        {"", TOK_ADD_ONCE, true, 1},           {"<s>", TOK_ADD_ONCE, true, 1},   {"<s>", TOK_ADD_ALWAYS, true, 2},
        {"<s>", TOK_ADD_NONE, true, 1},        {"<s>", TOK_ADD_ONCE, false, 1},  {"<s><s> a", TOK_ADD_ONCE, true, 2},
        {" <s>", TOK_ADD_ONCE, true, 2},       {"</s>", TOK_ADD_ONCE, true, 1},  {"hi", TOK_ADD_NONE, false, 0},
    };
    struct vocab_file v;
    vocab_file_open(&v, "llama-spm");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *ids;
        size_t n, found = 0;
        ck_assert(tok_encode(v.tok, cases[i].text, strlen(cases[i].text), cases[i].add, cases[i].parse, 0, &ids, &n, NULL));
        for (size_t k = 0; k < n; k++)
            found += ids[k] == tok_bos(v.tok);
        ck_assert_msg(found == cases[i].n, "case %zu: %zu", i, found);
        free(ids);
    }
    vocab_file_close(&v);
}
END_TEST

/* A quarter of a megabyte of whatever defeats heaps, tries and patterns; quadratic work would run into the time limit. */
START_TEST(long_texts_take_linear_time)
{
    enum { N = 1 << 18 };
    static const char *const units[] = {
        "a", "qzjx", " ", "\t ", "\n", "\r\n \n", "<", "1", "\xCC\x81", "\xF0\x9F\x98\x80", "\xE3\x80\x80", "\xE2\x96\x81",
        "<|im_start|", "<|im_start|>", "</s", "'s", "!?", "A", "Aa1 ", "\xC3\xA9\xE4\xB8\xAD", "\x01",
    };
    struct vocab_file v;
    vocab_file_open(&v, vocab_names[_i]);
    char *text = malloc(N + 16);
    ck_assert_ptr_nonnull(text);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t len = 0, unit = strlen(units[i]), n;
        int32_t *ids;
        struct err err = {0};
        for (; len + unit <= N; len += unit)
            memcpy(text + len, units[i], unit);
        text[len++] = 'x';    /* not the end of the run: look-ahead has to go back */
        ck_assert_msg(tok_encode(v.tok, text, len, TOK_ADD_NONE, true, 0, &ids, &n, &err), "unit %zu: %s", i, err.msg);
        free(ids);
    }
    free(text);
    vocab_file_close(&v);
}
END_TEST

START_TEST(end_tokens_are_those_of_the_model)
{
    static const struct {
        const char *vocab, *piece;
        bool bos;
    } want[] = {
        {"qwen2", "<|im_end|>", false}, {"llama-bpe", "<|eot_id|>", true},     {"smollm2", "<|im_end|>", false},
        {"llama-spm", "</s>", true},    {"phi-3", "<|end|>", true},
    };
    const char *name = want[_i].vocab;
    struct vocab_file v;
    int n;
    bool found = false;
    vocab_file_open(&v, name);
    const int32_t *end = tok_end_ids(v.tok, &n);
    for (int i = 0; i < n; i++)
        found = found || end[i] == tok_find(v.tok, want[_i].piece, strlen(want[_i].piece));
    ck_assert_msg(found, "%s", name);
    ck_assert_int_eq(tok_adds_bos(v.tok), want[_i].bos);
    vocab_file_close(&v);
}
END_TEST

START_TEST(far_too_long_texts_are_known_without_encoding)
{
    enum { N = 1 << 20 };
    struct vocab_file v;
    char *text = malloc(N);
    ck_assert_ptr_nonnull(text);
    memset(text, ' ', N);
    vocab_file_open(&v, "smollm2");
    ck_assert_uint_gt(tok_at_least(v.tok, text, N), 8192);
    ck_assert_uint_eq(tok_at_least(v.tok, text, 1), 0);
    vocab_file_close(&v);
    vocab_file_open(&v, "phi-3");    /* its end tokens take the white space after them */
    ck_assert_uint_eq(tok_at_least(v.tok, text, N), 0);
    vocab_file_close(&v);
    free(text);
}
END_TEST

START_TEST(bad_input_is_refused)
{
    struct vocab_file v;
    vocab_file_open(&v, "smollm2");
    int32_t *ids;
    size_t n;
    struct err err = {0};
    ck_assert(!tok_encode(v.tok, "a\xFF", 2, false, false, 0, &ids, &n, &err));
    ck_assert_int_eq(err.code, ERR_INVALID);
    ck_assert(!tok_encode(v.tok, "one two three four", 18, false, false, 3, &ids, &n, &err));
    ck_assert_int_eq(err.code, ERR_CONTEXT);
    ck_assert(tok_encode(v.tok, "one two three", 13, false, false, 3, &ids, &n, &err));
    free(ids);
    size_t len;
    ck_assert_str_eq(tok_piece(v.tok, -1, true, &len), "");
    ck_assert_str_eq(tok_piece(v.tok, 1 << 30, true, &len), "");
    vocab_file_close(&v);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tok");
    TCase *t = tcase_create("tok");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, texts_encode_to_the_expected_ids, 0, N_VOCABS);
    tcase_add_loop_test(t, ids_decode_to_the_expected_bytes, 0, N_VOCABS);
    tcase_add_loop_test(t, encoded_texts_decode_again, 0, N_VOCABS);
    tcase_add_loop_test(t, streams_give_the_text_back, 0, N_VOCABS);
    tcase_add_loop_test(t, plain_text_never_makes_special_tokens, 0, N_VOCABS);
    tcase_add_loop_test(t, long_texts_take_linear_time, 0, N_VOCABS);
    tcase_add_test(t, streams_do_not_depend_on_the_cuts);
    tcase_add_test(t, prompts_get_one_bos);
    tcase_add_loop_test(t, end_tokens_are_those_of_the_model, 0, 5);
    tcase_add_test(t, streams_replace_broken_characters);
    tcase_add_test(t, far_too_long_texts_are_known_without_encoding);
    tcase_add_test(t, bad_input_is_refused);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
