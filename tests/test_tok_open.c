/* Vocabularies made for one purpose each: malformed ones, and rules that the published ones of
 * test_tok.c do not have. */
#include "base/mem.h"
#include "engine/text/tok.h"
#include "tests/ggufw.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };

struct piece {
    const char *text;
    int32_t type;
    float score;
};

struct made {
    struct ggufw *w;
    struct buf image;
    struct gguf *gguf;
    struct tok *tok;
    struct err err;
};

static void set_pieces(struct ggufw *w, const struct piece *p, size_t n)
{
    struct buf texts = {0};
    int32_t types[64];
    float scores[64];
    ck_assert_uint_le(n, 64);
    for (size_t i = 0; i < n; i++) {
        ggufw_put_str(&texts, p[i].text, strlen(p[i].text));
        types[i] = p[i].type;
        scores[i] = p[i].score;
    }
    ggufw_strs(w, "tokenizer.ggml.tokens", &texts, n);
    ggufw_arr(w, "tokenizer.ggml.token_type", 5, types, n, sizeof *types);
    ggufw_arr(w, "tokenizer.ggml.scores", 6, scores, n, sizeof *scores);
    buf_free(&texts);
}

static void set_merges(struct ggufw *w, const char *const *merge, size_t n)
{
    struct buf texts = {0};
    for (size_t i = 0; i < n; i++)
        ggufw_put_str(&texts, merge[i], strlen(merge[i]));
    ggufw_strs(w, "tokenizer.ggml.merges", &texts, n);
    buf_free(&texts);
}

static const struct piece spm_pieces[] = {
    {"<unk>", UNKNOWN, 0},
    {"<s>", CONTROL, 0},
    {"</s>", CONTROL, 0},
    {"\xE2\x96\x81", NORMAL, -9},
    {"a", NORMAL, -8},
    {"b", NORMAL, -7},
    {"ab", NORMAL, -1},
    {"\xE2\x96\x81"
     "a",
     NORMAL, -2},
    {"b\xE2\x96\x81", NORMAL, -3},
    {"ba", NORMAL, -1},
    {"<tag>", USER, 0},
    {"<tag>x", USER, 0},
    {"<s", NORMAL, -4},
    {"<", NORMAL, -9},
    {"s", NORMAL, -9},
    {">", NORMAL, -9},
};
static const struct piece bpe_pieces[] = {
    {"a", NORMAL, 0},        {"b", NORMAL, 0},           {"c", NORMAL, 0},
    {"ab", NORMAL, 0},       {"bc", NORMAL, 0},          {"abc", NORMAL, 0},
    {"<|end|>", CONTROL, 0}, {"<|return|>", CONTROL, 0}, {"<|call|>", CONTROL, 0},
    {"", UNUSED, 0},         {"<|im_end|>", USER, 0},    {"cc", NORMAL, 0},
    {"\xC4\xA0", NORMAL, 0},
};
static const char *const bpe_merges[] = {"b c", "a b", "a bc", "x y", "c c"};

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void begin(struct made *m, bool bpe)
{
    *m = (struct made){.w = ggufw_open()};
    ck_assert_ptr_nonnull(m->w);
    ggufw_str(m->w, "general.architecture", "llama");
    ggufw_str(m->w, "tokenizer.ggml.model", bpe ? "gpt2" : "llama");
    ggufw_str(m->w, "tokenizer.ggml.pre", bpe ? "gpt-2" : "default");
    if (bpe)
        set_merges(m->w, bpe_merges, COUNT(bpe_merges));
    set_pieces(m->w, bpe ? bpe_pieces : spm_pieces, bpe ? COUNT(bpe_pieces) : COUNT(spm_pieces));
}

static bool open_made(struct made *m)
{
    ck_assert(ggufw_image(m->w, &m->image));
    m->gguf = gguf_from_memory(m->image.data, m->image.len, &m->err);
    ck_assert_msg(m->gguf != NULL, "%s", m->err.msg);
    m->tok = tok_open(m->gguf, &m->err);
    return m->tok != NULL;
}

static void end(struct made *m)
{
    tok_close(m->tok);
    gguf_close(m->gguf);
    buf_free(&m->image);
    ggufw_close(m->w);
}

/* The pieces of the ids, special ones too, with '|' between. */
static void check_encoding(const struct tok *t, const char *text, bool parse, const char *want)
{
    struct buf got = {0};
    struct err err = {0};
    int32_t *ids;
    size_t n;
    ck_assert_msg(tok_encode(t, text, strlen(text), TOK_ADD_NONE, parse, 0, &ids, &n, &err), "%s",
                  err.msg);
    buf_add(&got, "", 0);
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *p = tok_piece(t, ids[i], true, &len);
        buf_puts(&got, i ? "|" : "");
        buf_add(&got, p, len);
    }
    ck_assert_msg(strcmp(got.data, want) == 0, "\"%s\": %s, expected %s", text, got.data, want);
    buf_free(&got);
    free(ids);
}

static bool is_end(const struct tok *t, const char *piece)
{
    int n;
    const int32_t *end_ids = tok_end_ids(t, &n);
    for (int i = 0; i < n; i++)
        if (end_ids[i] == tok_find(t, piece, strlen(piece)))
            return true;
    return false;
}

/* ---- malformed ---- */

static void no_tokens(struct ggufw *w)
{
    ggufw_drop(w, "tokenizer.ggml.tokens");
}
static void number_tokens(struct ggufw *w)
{
    int32_t n[3] = {1, 2, 3};
    ggufw_arr(w, "tokenizer.ggml.tokens", 5, n, 3, sizeof *n);
}
static void zero_tokens(struct ggufw *w)
{
    struct buf none = {0};
    ggufw_strs(w, "tokenizer.ggml.tokens", &none, 0);
}
static void few_types(struct ggufw *w)
{
    int32_t n[3] = {1, 2, 3};
    ggufw_arr(w, "tokenizer.ggml.token_type", 5, n, 3, sizeof *n);
}
static void float_types(struct ggufw *w)
{
    float n[3] = {1, 2, 3};
    ggufw_arr(w, "tokenizer.ggml.token_type", 6, n, 3, sizeof *n);
}
static void bad_type(struct ggufw *w)
{
    struct piece p[] = {{"a", NORMAL, 0}, {"b", 7, 0}};
    set_pieces(w, p, 2);
}
static void bad_byte(struct ggufw *w)
{
    struct piece p[] = {{"a", NORMAL, 0}, {"<0xZZ>", BYTE, 0}};
    set_pieces(w, p, 2);
}
static void empty_texts(struct ggufw *w)
{
    struct piece p[] = {{"", NORMAL, 0}, {"", NORMAL, 0}};
    set_pieces(w, p, 2);
}
static void no_scores(struct ggufw *w)
{
    ggufw_drop(w, "tokenizer.ggml.scores");
}
static void few_scores(struct ggufw *w)
{
    float n[2] = {1, 2};
    ggufw_arr(w, "tokenizer.ggml.scores", 6, n, 2, sizeof *n);
}
static void nan_score(struct ggufw *w)
{
    struct piece p[] = {{"a", NORMAL, 0}, {"b", NORMAL, __builtin_nanf("")}};
    set_pieces(w, p, 2);
}
static void no_model(struct ggufw *w)
{
    ggufw_drop(w, "tokenizer.ggml.model");
}
static void other_model(struct ggufw *w)
{
    ggufw_str(w, "tokenizer.ggml.model", "bert");
}
static void number_model(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.model", 1);
}
static void no_pre(struct ggufw *w)
{
    ggufw_drop(w, "tokenizer.ggml.pre");
}
static void other_pre(struct ggufw *w)
{
    ggufw_str(w, "tokenizer.ggml.pre", "gpt-5");
}
static void no_merges(struct ggufw *w)
{
    ggufw_drop(w, "tokenizer.ggml.merges");
}
static void odd_merge(struct ggufw *w)
{
    static const char *const m[] = {"a b", "bc"};
    set_merges(w, m, 2);
}
static void half_merge(struct ggufw *w)
{
    static const char *const m[] = {"a "};
    set_merges(w, m, 1);
}
static void high_bos(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.bos_token_id", 16);
}
static void high_eos(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.eos_token_id", 4294967295u);
}
static void high_unk(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.unknown_token_id", 99);
}
static void high_eot(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.eot_token_id", 99);
}
static void high_eom(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.eom_token_id", 99);
}
static void text_bos(struct ggufw *w)
{
    ggufw_str(w, "tokenizer.ggml.bos_token_id", "<s>");
}
static void number_add(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.add_bos_token", 1);
}
static void add_no_bos(struct ggufw *w)
{
    ggufw_bool(w, "tokenizer.ggml.add_bos_token", true);
}
static void add_no_eos(struct ggufw *w)
{
    ggufw_bool(w, "tokenizer.ggml.add_eos_token", true);
}
static void number_space(struct ggufw *w)
{
    ggufw_u32(w, "tokenizer.ggml.add_space_prefix", 1);
}
static void endless_special(struct ggufw *w)
{
    char text[258] = {0};
    struct piece p[] = {{"<unk>", UNKNOWN, 0}, {"<s>", CONTROL, 0}, {"</s>", CONTROL, 0}, {text, USER, 0}};
    memset(text, 'a', sizeof text - 1);
    ggufw_drop(w, "tokenizer.ggml.tokens");
    ggufw_drop(w, "tokenizer.ggml.token_type");
    ggufw_drop(w, "tokenizer.ggml.scores");
    set_pieces(w, p, sizeof p / sizeof *p);
}

static const struct {
    void (*spoil)(struct ggufw *w);
    bool bpe;
    const char *key;
} malformed[] = {
    {no_tokens, false, "tokens"},
    {number_tokens, false, "tokens"},
    {zero_tokens, true, "tokens"},
    {few_types, false, "token_type"},
    {float_types, false, "token_type"},
    {bad_type, false, "token_type[1]: 7"},
    {bad_byte, false, "tokens[1]"},
    {empty_texts, true, "tokens"},
    {no_scores, false, "scores"},
    {few_scores, false, "scores"},
    {nan_score, false, "scores[1]"},
    {no_model, false, "model"},
    {other_model, false, "model"},
    {number_model, false, "model"},
    {no_pre, true, "pre"},
    {other_pre, true, "pre"},
    {no_merges, true, "merges"},
    {odd_merge, true, "merges[1]: \"bc\""},
    {half_merge, true, "merges[0]"},
    {high_bos, false, "bos_token_id"},
    {high_eos, true, "eos_token_id"},
    {high_unk, false, "unknown_token_id"},
    {high_eot, true, "eot_token_id"},
    {high_eom, true, "eom_token_id"},
    {text_bos, true, "bos_token_id"},
    {number_add, true, "add_bos_token"},
    {add_no_bos, true, "bos_token_id"},
    {add_no_eos, true, "eos_token_id"},
    {number_space, false, "add_space_prefix"},
    {endless_special, false, "tokens: token 3, a special one, has 257 bytes"},
};

START_TEST(malformed_vocabularies_name_their_key)
{
    struct made m;
    begin(&m, malformed[_i].bpe);
    malformed[_i].spoil(m.w);
    ck_assert(!open_made(&m));
    ck_assert_int_eq(m.err.code, ERR_MODEL);
    char key[64];
    snprintf(key, sizeof key, "key tokenizer.ggml.%s", malformed[_i].key);
    ck_assert_msg(strstr(m.err.msg, key) != NULL, "%s: %s", key, m.err.msg);
    ck_assert_msg(strncmp(m.err.msg, gguf_path(m.gguf), strlen(gguf_path(m.gguf))) == 0, "%s",
                  m.err.msg);
    end(&m);
}
END_TEST

/* ---- rules ---- */

START_TEST(bpe_takes_the_earliest_merge)
{
    struct made m;
    begin(&m, true);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    check_encoding(m.tok, "abc", false, "abc"); /* b c, then a bc */
    check_encoding(m.tok, "ab", false, "ab");
    check_encoding(m.tok, "abab", false, "ab|ab");
    check_encoding(m.tok, "ccc", false, "cc|c"); /* of equals the leftmost */
    check_encoding(m.tok, "axb", false, "a|b");  /* a byte without a token is dropped */
    check_encoding(m.tok, "", false, "");
    ck_assert_int_eq(tok_bos(m.tok), -1);
    ck_assert(!tok_adds_bos(m.tok));
    ck_assert_str_eq(tok_kind(m.tok), "gguf-bpe");
    ck_assert_int_eq(tok_find(m.tok, "", 0), -1);
    end(&m);
}
END_TEST

START_TEST(whole_words_go_before_merges_for_some_names)
{
    static const struct piece pieces[] = {
        {"a", NORMAL, 0}, {"b", NORMAL, 0}, {"ab", NORMAL, 0}, {"ba", CONTROL, 0}};
    struct made m;
    begin(&m, true);
    ggufw_str(m.w, "tokenizer.ggml.pre", "llama-bpe");
    set_pieces(m.w, pieces, 4);
    set_merges(m.w, NULL, 0);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    check_encoding(m.tok, "ab", false, "ab");
    check_encoding(m.tok, "ba", false, "b|a"); /* never a control token */
    check_encoding(m.tok, "ba", true, "ba");
    check_encoding(m.tok, "abb", false, "a|b|b");
    ck_assert(!tok_adds_bos(m.tok)); /* the default of llama-bpe, but there is none */
    end(&m);
}
END_TEST

START_TEST(spm_takes_the_best_score)
{
    struct made m;
    begin(&m, false);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    check_encoding(m.tok, "ab", false, " |ab"); /* ab before _a */
    check_encoding(m.tok, "a", false, " a");
    check_encoding(m.tok, "aba", false, " |ab|a"); /* ab and ba score the same: the leftmost */
    check_encoding(m.tok, "b b", false,
                   " |b |b"); /* a token with a space behind a letter joins words */
    check_encoding(m.tok, "\xC3\xA9", false, " |<unk>");
    check_encoding(m.tok, "<s>", false,
                   " |<s|>"); /* text does not become a control token, whatever its score */
    check_encoding(m.tok, "<s>", true, "<s>");
    check_encoding(m.tok, "a<s>a", true, " a|<s>| a");
    ck_assert_str_eq(tok_kind(m.tok), "gguf-spm");
    ck_assert_int_eq(tok_bos(m.tok), 1);
    ck_assert_int_eq(tok_eos(m.tok), 2);
    end(&m);
}
END_TEST

START_TEST(spm_without_a_space_in_front)
{
    struct made m;
    char *text;
    size_t len;
    int32_t ids[] = {7, 4};
    begin(&m, false);
    ggufw_bool(m.w, "tokenizer.ggml.add_space_prefix", false);
    ggufw_bool(m.w, "tokenizer.ggml.add_eos_token", true);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    check_encoding(m.tok, "a", false, "a");
    check_encoding(m.tok, " a", false, " a");
    ck_assert(tok_decode(m.tok, ids, 2, false, &text, &len, NULL));
    ck_assert_str_eq(text, " aa");
    free(text);
    int32_t *got;
    size_t n;
    ck_assert(tok_encode(m.tok, "a", 1, TOK_ADD_ONCE, false, 0, &got, &n, NULL));
    ck_assert_uint_eq(n, 3);
    ck_assert(got[0] == 1 && got[1] == 4 && got[2] == 2);
    free(got);
    ck_assert(!tok_encode(m.tok, "a", 1, TOK_ADD_ONCE, false, 2, &got, &n, &m.err));
    ck_assert_int_eq(m.err.code, ERR_CONTEXT);
    end(&m);
}
END_TEST

START_TEST(user_defined_tokens_are_always_found_the_longest_first)
{
    struct made m;
    begin(&m, false);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    check_encoding(m.tok, "<tag>a", false, "<tag>| a");
    check_encoding(m.tok, "<tag>xa", false, "<tag>x| a");
    check_encoding(m.tok, "<ta<tag>", false, " |<|<unk>|a|<tag>");
    ck_assert(!tok_is_special(m.tok, tok_find(m.tok, "<tag>", 5)));
    end(&m);
}
END_TEST

START_TEST(end_tokens_by_name)
{
    struct made m;
    begin(&m, true);
    ggufw_u32(m.w, "tokenizer.ggml.eot_token_id", 0);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    ck_assert(is_end(m.tok, "<|return|>") && is_end(m.tok, "<|call|>") && is_end(m.tok, "a"));
    ck_assert(!is_end(m.tok, "<|end|>")); /* closes a message of gpt-oss, not the turn */
    ck_assert(
        is_end(m.tok, "<|im_end|>")); /* user-defined in the file: still no text may become one */
    ck_assert(tok_is_special(m.tok, tok_find(m.tok, "<|im_end|>", 10)));
    check_encoding(m.tok, "<|im_end|>a", true, "<|im_end|>|a");
    check_encoding(m.tok, "<|im_end|>a", false, "a");
    end(&m);
    static const struct piece html[] = {
        {"<unk>", UNKNOWN, 0}, {"a", NORMAL, 0}, {"b", NORMAL, 0}, {"</s>", USER, 0}};
    begin(&m, false);
    set_pieces(m.w, html, 4);
    ck_assert_msg(open_made(&m), "%s", m.err.msg);
    ck_assert(!is_end(m.tok, "</s>") && !tok_is_special(m.tok, 3));
    end(&m);
}
END_TEST

/* Every allocation of opening and encoding fails once: an error, no crash, nothing left behind. */
/* Vocabularies that make no sense but hold together: whatever the texts and kinds are, encoding ends, gives ids of the
 * vocabulary, and these decode to valid pieces. */
static void set_text(struct ggufw *w, const char *text, size_t len, int every, size_t n, int32_t kind)
{
    struct buf texts = {0};
    int32_t types[64];
    float scores[64];
    for (size_t i = 0; i < n; i++) {
        char own[8];
        int k = snprintf(own, sizeof own, "%c%zu", (int)('a' + i % 3), i / 3);
        bool strange = i % (size_t)every == 0;
        ggufw_put_str(&texts, strange ? text : own, strange ? len : (size_t)k);
        types[i] = kind;
        scores[i] = i % 2 ? INFINITY : -INFINITY;
    }
    ggufw_strs(w, "tokenizer.ggml.tokens", &texts, n);
    ggufw_arr(w, "tokenizer.ggml.token_type", 5, types, n, sizeof *types);
    ggufw_arr(w, "tokenizer.ggml.scores", 6, scores, n, sizeof *scores);
    buf_free(&texts);
}

START_TEST(strange_vocabularies_still_work)
{
    static const struct {
        const char *text;
        size_t len;
    } texts[] = {{"", 0}, {"a", 1}, {"\0", 1}, {"\xff\xc3\xf0\x9f", 4}, {"\xE2\x96\x81", 3}, {"</s>", 4}, {" ", 1}};
    static const char prompt[] = "a0 a1\0 b</s>\xE2\x96\x81  <0x0A>\n\xf0\x9f\x98\x80";
    for (int bpe = 0; bpe < 2; bpe++)
        for (size_t i = 0; i < COUNT(texts) * 6 * 2; i++) {
            struct made m;
            struct err err = {0};
            int32_t *ids = NULL;
            char *out = NULL;
            size_t n, len;
            begin(&m, bpe == 1);
            size_t count = bpe ? COUNT(bpe_pieces) : COUNT(spm_pieces), at = i / 12;
            set_text(m.w, texts[at].text, texts[at].len, i % 2 ? 1 : 3, count, (int32_t)(i / 2 % 6));
            if (!open_made(&m)) { /* all are empty */
                ck_assert_msg(i % 2 == 1 && texts[at].len == 0, "%s", m.err.msg);
                end(&m);
                continue;
            }
            ck_assert_msg(tok_encode(m.tok, prompt, sizeof prompt - 1, TOK_ADD_ONCE, true, 0, &ids, &n, &err), "%s", err.msg);
            for (size_t k = 0; k < n; k++)
                ck_assert(ids[k] >= 0 && ids[k] < tok_n_vocab(m.tok));
            ck_assert_msg(tok_decode(m.tok, ids, n, true, &out, &len, &err), "%s", err.msg);
            ck_assert_uint_le(len, n * 8);
            free(ids);
            free(out);
            end(&m);
        }
}
END_TEST

START_TEST(memory_runs_out)
{
    for (int bpe = 0; bpe < 2; bpe++) {
        struct made m;
        begin(&m, bpe);
        ck_assert_msg(open_made(&m), "%s", m.err.msg);
        for (int64_t k = 1;; k++) {
            struct err err = {0};
            mem_fail_after(k);
            struct tok *t = tok_open(m.gguf, &err);
            mem_fail_after(0);
            tok_close(t);
            if (t != NULL)
                break;
            ck_assert_int_eq(err.code, ERR_OOM);
        }
        for (int64_t k = 1;; k++) {
            struct err err = {0};
            int32_t *ids;
            size_t n;
            mem_fail_after(k);
            bool ok = tok_encode(m.tok, "ab ab", 5, TOK_ADD_ONCE, true, 0, &ids, &n, &err);
            mem_fail_after(0);
            free(ids);
            if (ok)
                break;
            ck_assert_int_eq(err.code, ERR_OOM);
            ck_assert_ptr_null(ids);
        }
        end(&m);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tok_open");
    TCase *t = tcase_create("tok_open");
    tcase_add_loop_test(t, malformed_vocabularies_name_their_key, 0, (int)COUNT(malformed));
    tcase_add_test(t, bpe_takes_the_earliest_merge);
    tcase_add_test(t, whole_words_go_before_merges_for_some_names);
    tcase_add_test(t, spm_takes_the_best_score);
    tcase_add_test(t, spm_without_a_space_in_front);
    tcase_add_test(t, user_defined_tokens_are_always_found_the_longest_first);
    tcase_add_test(t, end_tokens_by_name);
    tcase_add_test(t, strange_vocabularies_still_work);
    tcase_add_test(t, memory_runs_out);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
