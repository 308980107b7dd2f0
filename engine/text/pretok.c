#include "engine/text/pretok.h"
#include "base/mem.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STAGES = 6, JIT_STACK = 256 << 10 };

/* Patterns are facts of the published tokenizers (their tokenizer.json). Alternatives that only differ in what may follow a
 * run of white space are kept in their order. */
#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3                                                                                                         \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" SPACES
#define QWEN2 CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" SPACES
#define QWEN35                                                                                                         \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" SPACES
#define GPT4O                                                                                                          \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" CONTRACTIONS "?|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER              \
    "*" CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES
#define TEKKEN                                                                                                         \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER                               \
    "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES

/* Several stages: each cuts what the one before left, into its matches and what lies between. Letters of deepseek-llm are
 * \p{L} with case, its last stages CJK and digits. */
static const struct rule {
    const char *names;                   /* separated by blanks */
    const char *stages[MAX_STAGES];
    struct pretok_rules rules;
} table[] = {
    {"gpt-2 gpt2 phi-2 mpt olmo jais trillion granite-docling modern-bert mellum", {GPT2}, {false, false}},
    {"smollm starcoder refact command-r codeshell exaone minerva-7b", {"\\p{N}", GPT2}, {false, false}},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2", {LLAMA3}, {true, true}},
    {"dbrx smaug-bpe chatglm-bpe glm4", {LLAMA3}, {false, false}},
    {"qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez solar-open grok-2", {QWEN2}, {false, false}},
    {"qwen35", {QWEN35}, {false, false}},
    {"gpt-4o o200k llama4 minimax-m2", {GPT4O}, {false, false}},
    {"tekken", {TEKKEN}, {true, true}},
    {"deepseek-llm",
     {"[\\r\\n]", "\\s?[\\p{Lu}\\p{Ll}\\p{Lt}]+", "\\s?[!-/:-~\xEF\xBC\x81-\xEF\xBC\x8F\xEF\xBC\x9A-\xEF\xBD\x9E\xE2\x80\x98-\xE2\x80\x9F\xE3\x80\x80-\xE3\x80\x82]+",
      "(?<!\\s)\\s+$|^\\s+$", "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB8\x80\xEA\xB0\x80-\xED\x9F\xBF]+", "\\p{N}+"},
     {false, false}},
    {"deepseek-coder",
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB8\x80\xEA\xB0\x80-\xED\x9F\xBF]+",
      "\\p{N}"},
     {false, false}},
    {"deepseek-v3 deepseek-r1",
     {"\\p{N}{1,3}", "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-\xE3\x83\xBF]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
      "| ?[\\p{P}\\p{S}]+[\\r\\n]*" SPACES},
     {false, false}},
};

struct pretok {
    int n_stages;
    pcre2_code *stage[MAX_STAGES];
};

static bool name_in(const char *names, const char *name, size_t len)
{
    for (const char *p = names; *p != 0;) {
        size_t n = strcspn(p, " ");
        if (n == len && memcmp(p, name, n) == 0)
            return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

static bool unknown_name(const char *name, size_t len, struct err *err)
{
    char known[400];
    size_t n = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table && n < sizeof known; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? " " : "", table[i].names);
    return err_set(err, ERR_MODEL, "key tokenizer.ggml.pre: pre-tokenizer \"%.*s\" is not supported; supported: %s",
                   (int)(len < 64 ? len : 64), name, known);
}

struct pretok *pretok_open(const char *name, size_t len, struct pretok_rules *rules, struct err *err)
{
    const struct rule *rule = NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table && rule == NULL; i++)
        rule = name_in(table[i].names, name, len) ? &table[i] : NULL;
    if (rule == NULL) {
        unknown_name(name, len, err);
        return NULL;
    }
    struct pretok *p = mem_alloc(1, sizeof *p);
    if (p == NULL) {
        err_set(err, ERR_OOM, "no memory for the pre-tokenizer");
        return NULL;
    }
    *rules = rule->rules;
    for (; p->n_stages < MAX_STAGES && rule->stages[p->n_stages] != NULL; p->n_stages++) {
        int code;
        PCRE2_SIZE at;
        pcre2_code *re = pcre2_compile((PCRE2_SPTR)rule->stages[p->n_stages], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY,
                                       &code, &at, NULL);
        p->stage[p->n_stages] = re;
        if (re == NULL) {
            err_set(err, ERR_INTERNAL, "pattern %d of pre-tokenizer %.*s: error %d at %zu", p->n_stages, (int)len, name, code,
                    (size_t)at);
            pretok_close(p);
            return NULL;
        }
        pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);    /* without a JIT the interpreter serves */
    }
    return p;
}

void pretok_close(struct pretok *p)
{
    if (p == NULL)
        return;
    for (int i = 0; i < MAX_STAGES; i++)
        pcre2_code_free(p->stage[i]);
    free(p);
}

struct splitter {
    const struct pretok *p;
    pcre2_match_data *match[MAX_STAGES];
    pcre2_match_context *context;
    bool (*word)(void *arg, const char *s, size_t n);
    void *arg;
    struct err *err;
};

/* Cuts a text with stage i and hands the pieces on. Depth is the number of stages. */
static bool split_stage(struct splitter *s, int i, const char *text, size_t len)
{
    if (i == s->p->n_stages)
        return s->word(s->arg, text, len);
    size_t at = 0;
    while (at < len) {
        int rc = pcre2_match(s->p->stage[i], (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, s->match[i],
                             s->context);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            return err_set(s->err, ERR_INVALID, "the text cannot be split into words (matcher error %d)", rc);
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(s->match[i]);
        size_t from = rc < 0 ? len : v[0], to = rc < 0 ? len : v[1];
        if (from > at && !split_stage(s, i + 1, text + at, from - at))
            return false;
        if (to > from && !split_stage(s, i + 1, text + from, to - from))
            return false;
        at = to;
    }
    return true;
}

bool pretok_split(const struct pretok *p, const char *text, size_t len, bool (*word)(void *arg, const char *s, size_t n),
                  void *arg, struct err *err)
{
    struct splitter s = {.p = p, .word = word, .arg = arg, .err = err, .context = pcre2_match_context_create(NULL)};
    pcre2_jit_stack *stack = pcre2_jit_stack_create(32 << 10, JIT_STACK, NULL);
    bool ok = s.context != NULL && stack != NULL;
    for (int i = 0; i < p->n_stages; i++) {
        s.match[i] = pcre2_match_data_create(1, NULL);
        ok = ok && s.match[i] != NULL;
    }
    if (ok) {
        pcre2_jit_stack_assign(s.context, NULL, stack);
        ok = split_stage(&s, 0, text, len);
    } else {
        err_set(err, ERR_OOM, "no memory to split the text into words");
    }
    for (int i = 0; i < p->n_stages; i++)
        pcre2_match_data_free(s.match[i]);
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(s.context);
    return ok;
}
