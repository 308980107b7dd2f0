#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/pretok.h"

#include "base/mem.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* White_Space of Unicode, spelled out: PCRE2's own \s has U+180E too, which no tokenizer counts as
 * a space. */
#define SPACES                                                                                     \
    "\\t-\\r "                                                                                     \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SP "[" SPACES "]"
#define NOT_SP "[^" SPACES "]"

/* The alternatives most patterns share. None needs more back-tracking than the length of what it
 * then takes, so that a text costs time linear in its length. */
#define CONTRACTION "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
#define TAIL "|" SP "*[\\r\\n]+|" SP "+(?!" NOT_SP ")|" SP "+"

#define GPT2                                                                                       \
    "'(?:[stmd]|re|ve|ll)| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|" SP "+(?!" NOT_SP      \
    ")|" SP "+"
#define LLAMA3(digits)                                                                             \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" SPACES                            \
                "\\p{L}\\p{N}]+[\\r\\n]*" TAIL
#define QWEN35                                                                                     \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" SPACES                        \
                "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" TAIL
/* Words by case: capitals, then small letters; either may be missing. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define BY_CASE(suffix, digits)                                                                    \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" suffix "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER  \
    "*" suffix "|" digits "| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n/]*" TAIL
#define DEEPSEEK3                                                                                  \
    "[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "                      \
    "?[\\p{P}\\p{S}]+[\\r\\n]*" TAIL
#define CJK_KANA "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"
#define CJK_HANGUL "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
/* Letters with case, as of the Unicode version DeepSeek's authors had. */
/* clang-format off */
#define CASED                                                                                      \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}"                 \
    "\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}"         \
    "\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}"                           \
    "\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}"                 \
    "\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}"          \
    "\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}"                  \
    "\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}"         \
    "\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}"                  \
    "\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}"                 \
    "\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}"                 \
    "\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}"         \
    "\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"
/* clang-format on */

enum {
    WHOLE_WORDS = 1, /* a word that is a token is taken whole, whatever the merges say */
    ADD_BOS = 2,     /* unless the file says otherwise */
    TIDY = 4,        /* the reference decoder tidies spaces */
};

static const struct row {
    const char *names; /* separated by spaces */
    const char *pattern[PRETOK_STAGES];
    int flags;
} rows[] = {
    {"gpt-2 gpt2 phi-2 olmo mellum a.x-4.0", {GPT2}, TIDY},
    {"trillion", {GPT2}, 0},
    {"smollm command-r", {"\\p{N}", GPT2}, 0},
    {"starcoder refact minerva-7b mellum2", {"\\p{N}", GPT2}, TIDY},
    {"llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0",
     {LLAMA3("\\p{N}{1,3}")},
     WHOLE_WORDS | ADD_BOS | TIDY},
    {"dbrx smaug-bpe", {LLAMA3("\\p{N}{1,3}")}, TIDY},
    {"qwen2 deepseek-r1-qwen kormo f2llmv2", {LLAMA3("\\p{N}")}, 0},
    {"stablelm2 megrez", {LLAMA3("\\p{N}")}, TIDY},
    {"qwen35", {QWEN35}, 0},
    {"gpt-4o o200k llama4 kanana2 talkie", {BY_CASE("(?:" CONTRACTION ")?", "\\p{N}{1,3}")}, 0},
    {"tekken", {BY_CASE("", "\\p{N}")}, WHOLE_WORDS | ADD_BOS},
    {"deepseek-llm",
     {"[\\r\\n]", SP "?[" CASED "]+",
      SP "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
      /* The run of spaces at the end, looked for once a run, not once a space. */
      "(?<!" SP ")" SP "++\\z", CJK_HANGUL, "\\p{N}+"},
     0},
    {"deepseek-coder", {"[\\r\\n]", SP "?\\p{L}+", SP "?\\p{P}+", CJK_HANGUL, "\\p{N}"}, 0},
    {"deepseek-v3 deepseek-r1", {"\\p{N}{1,3}", CJK_KANA, DEEPSEEK3}, 0},
    {"default", {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, TIDY},
};

struct pretok {
    const struct row *row;
    int n_stages;
    pcre2_code *code[PRETOK_STAGES];
    pcre2_match_context *limits;
};

static bool has_name(const char *names, const char *name, size_t len)
{
    for (const char *at = names; *at != 0;) {
        size_t n = strcspn(at, " ");
        if (n == len && memcmp(at, name, n) == 0)
            return true;
        at += n + (at[n] == ' ');
    }
    return false;
}

static const struct row *find_row(const char *name, size_t len, struct err *err)
{
    char known[400] = "";
    size_t n = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (has_name(rows[i].names, name, len))
            return &rows[i];
        if (n < sizeof known)
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? " " : "", rows[i].names);
    }
    err_set(err, ERR_MODEL, "key tokenizer.ggml.pre: \"%.*s\" is not supported; supported: %s",
            (int)(len < 48 ? len : 48), name, known);
    return NULL;
}

static bool compile(pcre2_code **code, const char *pattern, struct err *err)
{
    int num;
    PCRE2_SIZE at;
    *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_NO_UTF_CHECK, &num, &at, NULL);
    if (*code == NULL) {
        char msg[120];
        pcre2_get_error_message(num, (PCRE2_UCHAR *)msg, sizeof msg);
        return err_set(err, ERR_INTERNAL, "pre-tokenizer pattern at %zu: %s", (size_t)at, msg);
    }
    /* Where a process may not make executable memory this fails, and matching is interpreted:
     * slower, the same words. */
    pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE);
    return true;
}

struct pretok *pretok_open(const char *name, size_t len, struct err *err)
{
    const struct row *row = find_row(name, len, err);
    if (row == NULL)
        return NULL;
    struct pretok *p = mem_alloc(1, sizeof *p);
    if (p == NULL) {
        err_set(err, ERR_OOM, "no memory for the pre-tokenizer");
        return NULL;
    }
    p->row = row;
    p->limits = pcre2_match_context_create(NULL);
    if (p->limits == NULL) {
        err_set(err, ERR_OOM, "no memory for the pre-tokenizer");
        goto fail;
    }
    pcre2_set_match_limit(p->limits, UINT32_MAX); /* the patterns are linear; texts may be long */
    for (; p->n_stages < PRETOK_STAGES && row->pattern[p->n_stages] != NULL; p->n_stages++)
        if (!compile(&p->code[p->n_stages], row->pattern[p->n_stages], err))
            goto fail;
    return p;
fail:
    pretok_close(p);
    return NULL;
}

void pretok_close(struct pretok *p)
{
    if (p == NULL)
        return;
    for (int i = 0; i < p->n_stages; i++)
        pcre2_code_free(p->code[i]);
    pcre2_match_context_free(p->limits);
    free(p);
}

bool pretok_ignores_merges(const struct pretok *p)
{
    return p->row->flags & WHOLE_WORDS;
}

bool pretok_adds_bos(const struct pretok *p)
{
    return p->row->flags & ADD_BOS;
}

bool pretok_tidies(const struct pretok *p)
{
    return p->row->flags & TIDY;
}

/* ---- the walk ---- */

bool pretok_begin(struct pretok_walk *w, const struct pretok *p, const char *text, size_t len,
                  struct err *err)
{
    memset(w, 0, sizeof *w);
    w->pre = p;
    w->text = text;
    w->stage[0].end = len;
    w->match = pcre2_match_data_create(1, NULL);
    return w->match != NULL || err_set(err, ERR_OOM, "no memory to match the text");
}

void pretok_end(struct pretok_walk *w)
{
    pcre2_match_data_free(w->match);
    w->match = NULL;
}

/* The next piece of stage d: a match, or the gap before one. */
static bool cut(struct pretok_walk *w, int d, size_t *at, size_t *end, struct err *err)
{
    size_t from = w->stage[d].from, stop = w->stage[d].end;
    *at = from;
    if (w->stage[d].match_at == w->stage[d].match_end) {
        /* The subject is what is left of the piece: look-ahead must see nothing beyond its end. */
        int rc = pcre2_match(w->pre->code[d], (PCRE2_SPTR)w->text + from, stop - from, 0,
                             PCRE2_NO_UTF_CHECK, w->match, w->pre->limits);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            return err_set(err, rc == PCRE2_ERROR_NOMEMORY ? ERR_OOM : ERR_INTERNAL,
                           "pre-tokenizer: PCRE2 error %d", rc);
        const PCRE2_SIZE *found = pcre2_get_ovector_pointer(w->match);
        w->stage[d].match_at = rc < 0 ? stop : from + found[0];
        w->stage[d].match_end = rc < 0 ? stop : from + found[1];
    }
    bool gap = w->stage[d].match_at > from;
    *end = gap ? w->stage[d].match_at : w->stage[d].match_end;
    if (!gap)
        w->stage[d].match_at = w->stage[d].match_end = 0;
    w->stage[d].from = *end;
    return true;
}

bool pretok_next(struct pretok_walk *w, size_t *at, size_t *len, struct err *err)
{
    for (;;) {
        int d = w->depth;
        if (w->stage[d].from == w->stage[d].end) {
            if (d == 0) {
                err->code = ERR_NONE;
                return false;
            }
            w->depth--;
            continue;
        }
        size_t end = 0;
        if (!cut(w, d, at, &end, err))
            return false;
        if (d + 1 == w->pre->n_stages) {
            *len = end - *at;
            return true;
        }
        w->depth++;
        w->stage[d + 1].from = *at;
        w->stage[d + 1].end = end;
        w->stage[d + 1].match_at = w->stage[d + 1].match_end = 0;
    }
}
