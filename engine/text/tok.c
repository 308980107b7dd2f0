#define _GNU_SOURCE /* mempcpy */
#include "engine/text/tok.h"

#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tok_impl.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SPACE_MARK "\xE2\x96\x81" /* U+2581, SPM's space */

/* ---- opening ---- */

static int32_t find_name(const struct tok *t, const char *name)
{
    return vocab_find(&t->vocab, name, strlen(name));
}

/* A token id of the metadata; *id keeps its default when the key is missing. */
static bool read_id(const struct tok *t, const struct gguf *g, const char *key, int32_t *id,
                    struct err *err)
{
    uint32_t v;
    if (gguf_u32(g, key, 0, (uint32_t)t->vocab.n - 1, &v, err))
        *id = (int32_t)v;
    else if (err->code != ERR_NONE)
        return false;
    else if (*id >= t->vocab.n)
        *id = -1; /* the default of a vocabulary too small to have it */
    return true;
}

static bool read_flag(const struct gguf *g, const char *key, bool *flag, struct err *err)
{
    return gguf_bool(g, key, flag, err) || err->code == ERR_NONE;
}

/* Whether prompts get BOS and EOS. What a kind of model does by default needs no such token. */
static bool read_adds(struct tok *t, const struct gguf *g, struct err *err)
{
    static const char missing[] =
        "key tokenizer.ggml.%s_token_id: missing, but add_%s_token is true";
    t->add_bos = t->add_bos && t->bos >= 0;
    if (!read_flag(g, "tokenizer.ggml.add_bos_token", &t->add_bos, err) ||
        !read_flag(g, "tokenizer.ggml.add_eos_token", &t->add_eos, err))
        return false;
    if (t->add_bos && t->bos < 0)
        return err_set(err, ERR_MODEL, missing, "bos", "bos");
    return !t->add_eos || t->eos >= 0 || err_set(err, ERR_MODEL, missing, "eos", "eos");
}

static void add_end(struct tok *t, int32_t id)
{
    for (int i = 0; i < t->n_ends; i++)
        if (t->ends[i] == id)
            return;
    if (id >= 0 && t->n_ends < TOK_MAX_ENDS)
        t->ends[t->n_ends++] = id;
}

static bool read_ends(struct tok *t, const struct gguf *g, struct err *err)
{
    static const char *const names[] = {
        "</s>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<|return|>",
        "<|call|>",
        "<|eom_id|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<\xEF\xBD\x9C"
        "end" SPACE_MARK "of" SPACE_MARK "sentence\xEF\xBD\x9C>",
    };
    int32_t eot = -1, eom = -1;
    if (!read_id(t, g, "tokenizer.ggml.eot_token_id", &eot, err) ||
        !read_id(t, g, "tokenizer.ggml.eom_token_id", &eom, err))
        return false;
    add_end(t, t->eos);
    add_end(t, eot);
    add_end(t, eom);
    /* In gpt-oss a turn is several messages: <|end|> closes one of them, <|return|> and <|call|>
     * the turn. */
    bool messages = find_name(t, "<|return|>") >= 0 && find_name(t, "<|call|>") >= 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = find_name(t, names[i]);
        if (id < 0 || (messages && strcmp(names[i], "<|end|>") == 0))
            continue;
        if (strcmp(names[i], "</s>") == 0 && !t->strip_after && t->vocab.kind[id] != TOKEN_CONTROL)
            continue; /* an HTML tag, in Qwen2's vocabulary for one */
        /* Some converters call them user-defined, which would let user text end a turn. */
        t->vocab.kind[id] = TOKEN_CONTROL;
        add_end(t, id);
    }
    return true;
}

static bool str_is(const struct gguf_str *s, const char *want)
{
    return s->len == strlen(want) && memcmp(s->s, want, s->len) == 0;
}

/* The original tokenizer of Phi-3 drops white space after its special tokens; GGUF has no key for
 * that. */
static bool is_phi3(const struct gguf *g)
{
    struct gguf_str s = {0};
    if (gguf_str(g, "general.architecture", &s, NULL) && str_is(&s, "phi3"))
        return true;
    if (!gguf_str(g, "general.name", &s, NULL))
        return false;
    for (size_t i = 0; i + 4 <= s.len; i++)
        if (strncasecmp(s.s + i, "phi3", 4) == 0 ||
            (i + 5 <= s.len && strncasecmp(s.s + i, "phi-3", 5) == 0))
            return true;
    return false;
}

static bool open_bpe(struct tok *t, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.pre";
    struct gguf_str name = {0};
    if (!gguf_str(g, key, &name, err))
        return err->code != ERR_NONE
                   ? false
                   : err_set(err, ERR_MODEL, "key %s: missing, BPE vocabularies need it", key);
    t->pre = pretok_open(name.s, name.len, err);
    if (t->pre == NULL)
        return false;
    t->add_bos = pretok_adds_bos(t->pre);
    t->bos = t->eos = t->unk = -1;
    return vocab_read(&t->vocab, g, true, err) && merges_read(&t->merges, g, &t->vocab, err);
}

static bool open_spm(struct tok *t, const struct gguf *g, struct err *err)
{
    t->add_bos = true;
    t->space_prefix = true;
    t->unk = 0;
    t->bos = 1;
    t->eos = 2;
    t->strip_after = is_phi3(g);
    return vocab_read(&t->vocab, g, false, err) &&
           read_flag(g, "tokenizer.ggml.add_space_prefix", &t->space_prefix, err);
}

static bool open_any(struct tok *t, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.model";
    struct gguf_str model = {0};
    if (!gguf_str(g, key, &model, err))
        return err->code != ERR_NONE ? false : err_set(err, ERR_MODEL, "key %s: missing", key);
    t->bpe = str_is(&model, "gpt2");
    if (!t->bpe && !str_is(&model, "llama"))
        return err_set(err, ERR_MODEL, "key %s: \"%.*s\", expected gpt2 (BPE) or llama (SPM)", key,
                       (int)(model.len < 64 ? model.len : 64), model.s);
    return (t->bpe ? open_bpe(t, g, err) : open_spm(t, g, err)) &&
           read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err) &&
           read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err) &&
           read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, err) && read_adds(t, g, err) &&
           read_ends(t, g, err) && special_build(&t->special, &t->vocab, err);
}

struct tok *tok_open(const struct gguf *g, struct err *err)
{
    struct err unasked;
    if (err == NULL)
        err = &unasked;
    struct tok *t = mem_alloc(1, sizeof *t);
    if (t == NULL) {
        err_set(err, ERR_OOM, "no memory for the tokenizer");
        return NULL;
    }
    if (!open_any(t, g, err)) {
        if (strncmp(err->msg, "key ", 4) == 0) /* ours: those of gguf.h name the file themselves */
            err_prefix(err, "%s", gguf_path(g));
        tok_close(t);
        return NULL;
    }
    return t;
}

void tok_close(struct tok *t)
{
    if (t == NULL)
        return;
    vocab_free(&t->vocab);
    merges_free(&t->merges);
    pretok_close(t->pre);
    special_free(&t->special);
    free(t);
}

const char *tok_kind(const struct tok *t)
{
    return t->bpe ? "gguf-bpe" : "gguf-spm";
}

int tok_n_vocab(const struct tok *t)
{
    return t->vocab.n;
}

int32_t tok_bos(const struct tok *t)
{
    return t->bos;
}

int32_t tok_eos(const struct tok *t)
{
    return t->eos;
}

bool tok_adds_bos(const struct tok *t)
{
    return t->add_bos;
}

const int32_t *tok_end_ids(const struct tok *t, int *n)
{
    *n = t->n_ends;
    return t->ends;
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n &&
           (t->vocab.kind[id] == TOKEN_CONTROL || t->vocab.kind[id] == TOKEN_UNKNOWN);
}

int32_t tok_find(const struct tok *t, const char *piece, size_t n)
{
    return vocab_find(&t->vocab, piece, n);
}

/* ---- encoding ---- */

/* One call's work: scratch and result. */
struct run {
    const struct tok *t;
    struct merger merger;
    char *word; /* text as the vocabulary spells it */
    size_t cap_word;
    int32_t *ids;
    size_t n, cap, max;
    struct err *err;
};

static bool push(struct run *r, int32_t id)
{
    if (r->max != 0 && r->n == r->max)
        return err_set(r->err, ERR_CONTEXT, "the text has more than %zu tokens", r->max);
    if (r->n == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 64;
        int32_t *ids = mem_grow(r->ids, cap, sizeof *ids);
        if (ids == NULL)
            return err_set(r->err, ERR_OOM, "no memory for %zu tokens", cap);
        r->ids = ids;
        r->cap = cap;
    }
    r->ids[r->n++] = id;
    return true;
}

static bool reserve_word(struct run *r, size_t n)
{
    if (n <= r->cap_word)
        return true;
    char *word = mem_grow(r->word, n, 1);
    if (word == NULL)
        return err_set(r->err, ERR_OOM, "no memory to encode %zu bytes", n);
    r->word = word;
    r->cap_word = n;
    return true;
}

/* A character without a token: its bytes' tokens, or else the unknown token once. BPE vocabularies
 * have symbols of one byte; where that has no token it is dropped, as everywhere. */
static bool push_bytes(struct run *r, const char *s, size_t n)
{
    const struct tok *t = r->t;
    for (size_t i = 0; i < n; i++)
        if (t->vocab.byte_id[(unsigned char)s[i]] < 0)
            return t->unk < 0 || t->bpe || push(r, t->unk);
    for (size_t i = 0; i < n; i++)
        if (!push(r, t->vocab.byte_id[(unsigned char)s[i]]))
            return false;
    return true;
}

static bool encode_word(struct run *r, const char *word, size_t n)
{
    const struct tok *t = r->t;
    if (!merger_run(&r->merger, &t->vocab, t->bpe ? &t->merges : NULL, word, n))
        return err_set(r->err, ERR_OOM, "no memory to encode a word of %zu bytes", n);
    const struct sym *syms = r->merger.syms;
    for (int32_t i = 0; i >= 0; i = syms[i].next)
        if (!(syms[i].id >= 0 ? push(r, syms[i].id)
                              : push_bytes(r, word + syms[i].at, syms[i].len)))
            return false;
    return true;
}

/* The token whose text is the whole word, -1. */
static int32_t find_word(struct run *r, const char *word, size_t n)
{
    if (n > r->t->vocab.max_len)
        return -1; /* a byte is at least one byte of token text */
    size_t len = 0;
    for (size_t i = 0; i < n; i++)
        len += (size_t)vocab_byte_text((uint8_t)word[i], r->word + len);
    return vocab_find_plain(&r->t->vocab, r->word, len);
}

static bool encode_bpe(struct run *r, const char *text, size_t len)
{
    struct pretok_walk walk;
    if (!pretok_begin(&walk, r->t->pre, text, len, r->err))
        return false;
    bool whole = pretok_ignores_merges(r->t->pre),
         ok = !whole || reserve_word(r, r->t->vocab.max_len * 2);
    size_t at, n;
    while (ok && (ok = pretok_next(&walk, &at, &n, r->err))) {
        int32_t id = n == 1  ? r->t->vocab.byte_id[(unsigned char)text[at]]
                     : whole ? find_word(r, text + at, n)
                             : -1;
        ok = id >= 0 ? push(r, id) : encode_word(r, text + at, n);
    }
    pretok_end(&walk);
    return ok || r->err->code == ERR_NONE;
}

static bool is_mark(const char *s, const char *end)
{
    return end - s >= 3 && memcmp(s, SPACE_MARK, 3) == 0;
}

/* Spaces become marks; then words are merged one by one. No token of the vocabulary has a mark
 * behind another character (else words_apart is false), so no merge can cross from one word to the
 * next. */
static bool encode_spm(struct run *r, const char *text, size_t len)
{
    bool prefix = r->t->space_prefix; /* each text begins the whole or follows a special token */
    size_t n = len + (prefix ? 3 : 0);
    for (size_t i = 0; i < len; i++)
        n += text[i] == ' ' ? 2 : 0;
    if (!reserve_word(r, n))
        return false;
    char *out = r->word;
    if (prefix)
        out = mempcpy(out, SPACE_MARK, 3);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == ' ')
            out = mempcpy(out, SPACE_MARK, 3);
        else
            *out++ = text[i];
    }
    const char *end = out;
    for (const char *word = r->word, *next; word < end; word = next) {
        next = end;
        if (r->t->vocab.words_apart) {
            next = word;
            while (is_mark(next, end))
                next += 3;
            while (next < end && !is_mark(next, end))
                next++;
        }
        if (!encode_word(r, word, (size_t)(next - word)))
            return false;
    }
    return true;
}

/* Plain text between special tokens. */
static bool encode_text(struct run *r, const char *text, size_t len)
{
    return r->t->bpe ? encode_bpe(r, text, len) : encode_spm(r, text, len);
}

static bool strips_after(const struct tok *t, int32_t id)
{
    const struct gguf_str *s = &t->vocab.text[id];
    return t->strip_after && !str_is(s, "<unk>") && !str_is(s, "<s>") &&
           !str_is(s, "<|endoftext|>");
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool encode_parts(struct run *r, const char *text, size_t len, enum tok_add add,
                         bool parse_special)
{
    const struct tok *t = r->t;
    size_t from = 0, at;
    int32_t id;
    bool found = special_find(&t->special, &t->vocab, text, 0, len, parse_special, &at, &id);
    if (add != TOK_ADD_NONE && t->add_bos &&
        !(add == TOK_ADD_ONCE && found && at == 0 && id == t->bos) && !push(r, t->bos))
        return false;
    while (found) {
        if (at > from && !encode_text(r, text + from, at - from))
            return false;
        if (!push(r, id))
            return false;
        from = at + t->vocab.text[id].len;
        while (strips_after(t, id) && from < len && is_space(text[from]))
            from++;
        found = special_find(&t->special, &t->vocab, text, from, len, parse_special, &at, &id);
    }
    if (from < len && !encode_text(r, text + from, len - from))
        return false;
    return add == TOK_ADD_NONE || !t->add_eos || push(r, t->eos);
}

size_t tok_at_least(const struct tok *t, const char *text, size_t len)
{
    size_t n = 0; /* bytes that some token must cover: not those that may be dropped */
    for (size_t i = 0; i < len; i++)
        if (t->vocab.byte_id[(unsigned char)text[i]] >= 0 && !(t->strip_after && is_space(text[i])))
            n++;
    return n / t->vocab.max_cover;
}

bool tok_encode(const struct tok *t, const char *text, size_t len, enum tok_add add,
                bool parse_special, size_t max, int32_t **ids, size_t *n, struct err *err)
{
    struct err unasked;
    struct run r = {.t = t, .max = max, .err = err != NULL ? err : &unasked};
    *ids = NULL;
    *n = 0;
    if (len > INT32_MAX / 4)
        return err_set(r.err, ERR_INVALID, "a text of %zu bytes, at most %d", len, INT32_MAX / 4);
    if (!utf8_valid(text, len))
        return err_set(r.err, ERR_INVALID, "the text is not valid UTF-8");
    bool ok = encode_parts(&r, text, len, add, parse_special);
    merger_free(&r.merger);
    free(r.word);
    if (ok && r.ids == NULL)
        ok = (r.ids = mem_alloc(1, sizeof *r.ids)) != NULL ||
             err_set(r.err, ERR_OOM, "no memory for the tokens");
    if (!ok) {
        free(r.ids);
        return false;
    }
    *ids = r.ids;
    *n = r.n;
    return true;
}
