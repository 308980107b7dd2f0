/* Special tokens, BOS and EOS, and the way back to text; the merging is in bpe.c and spm.c. */
#define _GNU_SOURCE
#include "engine/text/tok.h"
#include "base/buf.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/bpe.h"
#include "engine/text/spm.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* A token found in text as it stands, longest first. */
struct special {
    int32_t id;
    const char *s;
    size_t len;
    bool user_defined;    /* also where special tokens are not parsed */
    bool rstrip;          /* white space after it is dropped */
};

struct tok {
    struct vocab vocab;
    struct bpe *bpe;      /* or spm */
    struct spm spm;
    int32_t bos, eos;
    bool add_bos, add_eos, add_space;
    struct special *special;
    size_t n_special;
    int32_t *end;
    int n_end;
    uint32_t *piece_at;   /* (n + 1): where the bytes of each piece lie in pieces */
    char *pieces;
    size_t longest;       /* bytes of the longest piece */
    bool strips;          /* a special token drops white space */
};

/* ---- open ---- */

static const char *const end_pieces[] = {
    "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>",
    "<|eom_id|>", "<|end_of_turn|>", "</s>", "<EOT>", "_<EOT>",
};

static bool read_id(const struct tok *t, const struct gguf *g, const char *key, int32_t *id, struct err *err)
{
    uint32_t v;
    struct err e = {0};
    if (gguf_u32(g, key, 0, (uint32_t)t->vocab.n - 1, &v, &e))
        *id = (int32_t)v;
    else if (e.code != ERR_NONE)
        return err_set(err, e.code, "%s", e.msg);
    return true;
}

static bool read_flag(const struct gguf *g, const char *key, bool *flag, struct err *err)
{
    struct err e = {0};
    if (!gguf_bool(g, key, flag, &e) && e.code != ERR_NONE)
        return err_set(err, e.code, "%s", e.msg);
    return true;
}

/* A token that ends generation is a control token, whatever the file says: text must not produce it. */
static void add_end(struct tok *t, int32_t id)
{
    for (int i = 0; i < t->n_end; i++)
        if (t->end[i] == id)
            return;
    if (id < 0)
        return;
    t->end[t->n_end++] = id;
    if (t->vocab.type[id] == TOKEN_USER_DEFINED)
        t->vocab.type[id] = TOKEN_CONTROL;
}

static bool read_ids(struct tok *t, const struct gguf *g, struct err *err)
{
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    if (!read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err) ||
        !read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err) ||
        !read_flag(g, "tokenizer.ggml.add_bos_token", &t->add_bos, err) ||
        !read_flag(g, "tokenizer.ggml.add_eos_token", &t->add_eos, err) ||
        !read_flag(g, "tokenizer.ggml.add_space_prefix", &t->add_space, err))
        return false;
    size_t n = sizeof end_pieces / sizeof *end_pieces;
    t->end = mem_alloc(n + 3, sizeof *t->end);
    if (t->end == NULL)
        return err_set(err, ERR_OOM, "no memory for the end tokens");
    add_end(t, t->eos);
    for (size_t i = 0; i < 2; i++) {
        int32_t id = -1;
        if (!read_id(t, g, keys[i], &id, err))
            return false;
        add_end(t, id);
    }
    for (size_t i = 0; i < n; i++) {
        int32_t id = vocab_find(&t->vocab, end_pieces[i], strlen(end_pieces[i]));
        if (id >= 0 && (t->vocab.type[id] == TOKEN_CONTROL || t->vocab.type[id] == TOKEN_USER_DEFINED))
            add_end(t, id);
    }
    return true;
}

static int longest_first(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    return x->len != y->len ? (x->len > y->len ? -1 : 1) : (x->id > y->id) - (x->id < y->id);
}

static bool piece_is(const struct gguf_str *p, const char *s)
{
    return p->len == strlen(s) && memcmp(p->s, s, p->len) == 0;
}

/* Phi-3's tokenizer drops white space after its special tokens, but for three of them; its GGUF files do not say so. */
static bool strips_right(const struct gguf *g, const struct gguf_str *piece)
{
    struct gguf_str name;
    char lower[128];
    if (!gguf_str(g, "general.name", &name, NULL))
        return false;
    size_t n = name.len < sizeof lower - 1 ? name.len : sizeof lower - 1;
    for (size_t i = 0; i < n; i++)
        lower[i] = (char)tolower((unsigned char)name.s[i]);
    lower[n] = 0;
    if (strstr(lower, "phi-3") == NULL && strstr(lower, "phi3") == NULL)
        return false;
    return !piece_is(piece, "<unk>") && !piece_is(piece, "<s>") && !piece_is(piece, "<|endoftext|>");
}

static bool list_specials(struct tok *t, const struct gguf *g, struct err *err)
{
    const struct vocab *v = &t->vocab;
    size_t n = 0;
    for (int i = 0; i < v->n; i++)
        n += v->type[i] == TOKEN_CONTROL || v->type[i] == TOKEN_USER_DEFINED || v->type[i] == TOKEN_UNKNOWN;
    t->special = mem_alloc(n, sizeof *t->special);
    if (t->special == NULL)
        return err_set(err, ERR_OOM, "no memory for %zu special tokens", n);
    for (int i = 0; i < v->n; i++) {
        bool user = v->type[i] == TOKEN_USER_DEFINED;
        if ((user || v->type[i] == TOKEN_CONTROL || v->type[i] == TOKEN_UNKNOWN) && v->piece[i].len > 0) {
            bool strips = strips_right(g, &v->piece[i]);
            t->special[t->n_special++] = (struct special){i, v->piece[i].s, v->piece[i].len, user, strips};
            t->strips |= strips;
        }
    }
    qsort(t->special, t->n_special, sizeof *t->special, longest_first);
    return true;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The bytes a token stands for in text, at most its piece's length; special tokens stand for their name. */
static size_t render(const struct tok *t, int32_t id, char *out)
{
    const struct gguf_str *p = &t->vocab.piece[id];
    size_t n = 0;
    if (t->vocab.type[id] == TOKEN_BYTE && p->len == 6 && hex_digit(p->s[3]) >= 0 && hex_digit(p->s[4]) >= 0) {
        out[0] = (char)(hex_digit(p->s[3]) << 4 | hex_digit(p->s[4]));
        return 1;
    }
    if (t->vocab.type[id] == TOKEN_UNUSED)
        return 0;
    if (t->vocab.type[id] != TOKEN_NORMAL) {
        memcpy(out, p->s, p->len);
        return p->len;
    }
    if (t->bpe != NULL)
        return bpe_bytes(p, out);
    for (size_t i = 0; i < p->len;) {    /* U+2581 is a space */
        bool space = p->len - i >= 3 && memcmp(p->s + i, "\xE2\x96\x81", 3) == 0;
        out[n++] = space ? ' ' : p->s[i];
        i += space ? 3 : 1;
    }
    return n;
}

static bool render_all(struct tok *t, struct err *err)
{
    size_t all = 0, at = 0;
    for (int i = 0; i < t->vocab.n; i++)
        all += t->vocab.piece[i].len;
    t->pieces = mem_alloc(all + 1, 1);
    t->piece_at = mem_alloc((size_t)t->vocab.n + 1, sizeof *t->piece_at);
    if (t->pieces == NULL || t->piece_at == NULL || all > UINT32_MAX)
        return err_set(err, ERR_OOM, "no memory for %zu bytes of pieces", all);
    for (int i = 0; i < t->vocab.n; i++) {
        t->piece_at[i] = (uint32_t)at;
        size_t n = render(t, i, t->pieces + at);
        at += n;
        if (n > t->longest)
            t->longest = n;
    }
    t->piece_at[t->vocab.n] = (uint32_t)at;
    return true;
}

/* Which algorithm: tokenizer.ggml.model, with the defaults that hang on it. */
static bool open_model(struct tok *t, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.model";
    struct gguf_str model;
    struct err e = {0};
    if (!gguf_str(g, key, &model, &e))
        return e.code != ERR_NONE ? err_set(err, e.code, "%s", e.msg) : err_set(err, ERR_MODEL, "missing metadata: %s", key);
    if (piece_is(&model, "gpt2")) {
        struct pretok_rules rules = {0};
        t->bpe = bpe_open(&t->vocab, g, &rules, err);
        t->add_bos = rules.add_bos;
        return t->bpe != NULL;
    }
    if (!piece_is(&model, "llama"))
        return err_set(err, ERR_MODEL, "key %s: \"%.*s\" is not supported; supported: gpt2, llama", key,
                       (int)(model.len < 64 ? model.len : 64), model.s);
    if (t->vocab.scores.n == 0)
        return err_set(err, ERR_MODEL, "missing metadata: tokenizer.ggml.scores");
    spm_init(&t->spm, &t->vocab);
    t->add_bos = t->add_space = true;
    t->bos = t->vocab.n > 1 ? 1 : -1;
    t->eos = t->vocab.n > 2 ? 2 : -1;
    return true;
}

struct tok *tok_open(const struct gguf *g, struct err *err)
{
    struct tok *t = mem_alloc(1, sizeof *t);
    if (t == NULL) {
        err_set(err, ERR_OOM, "no memory for the tokenizer");
        return NULL;
    }
    t->bos = t->eos = -1;
    if (!vocab_open(&t->vocab, g, err) || !open_model(t, g, err) || !read_ids(t, g, err) || !list_specials(t, g, err) ||
        !render_all(t, err)) {
        if (err != NULL)
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
    bpe_close(t->bpe);
    vocab_close(&t->vocab);
    free(t->special);
    free(t->end);
    free(t->piece_at);
    free(t->pieces);
    free(t);
}

/* ---- facts ---- */

const char *tok_kind(const struct tok *t)
{
    return t->bpe != NULL ? "gguf-bpe" : "gguf-spm";
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
    return t->add_bos && t->bos >= 0;
}

const int32_t *tok_end_ids(const struct tok *t, int *n)
{
    *n = t->n_end;
    return t->end;
}

static bool in_vocab(const struct tok *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n;
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    return in_vocab(t, id) && (t->vocab.type[id] == TOKEN_CONTROL || t->vocab.type[id] == TOKEN_UNKNOWN);
}

int32_t tok_find(const struct tok *t, const char *piece, size_t n)
{
    return vocab_find(&t->vocab, piece, n);
}

/* ---- encode ---- */

/* Text, or a special token that was found in it. */
struct fragment {
    int32_t id;           /* -1 = text */
    const char *s;
    size_t len;
};

struct fragments {
    struct fragment *f;
    size_t n, cap;
};

static bool add_fragment(struct fragments *l, int32_t id, const char *s, size_t len, struct err *err)
{
    if (id < 0 && len == 0)
        return true;
    if (l->n == l->cap) {
        size_t cap = l->cap * 2 + 16;
        struct fragment *p = mem_grow(l->f, cap, sizeof *p);
        if (p == NULL)
            return err_set(err, ERR_OOM, "no memory for %zu pieces of text", cap);
        l->f = p;
        l->cap = cap;
    }
    l->f[l->n++] = (struct fragment){id, s, len};
    return true;
}

/* Cuts one text at every occurrence of a special token. */
static bool cut_text(struct fragments *out, const char *s, size_t len, const struct special *sp, struct err *err)
{
    while (len > 0) {
        const char *found = memmem(s, len, sp->s, sp->len);
        if (found == NULL)
            break;
        if (!add_fragment(out, -1, s, (size_t)(found - s), err) || !add_fragment(out, sp->id, NULL, 0, err))
            return false;
        len -= (size_t)(found - s) + sp->len;
        s = found + sp->len;
        while (sp->rstrip && len > 0 && isspace((unsigned char)*s)) {
            s++;
            len--;
        }
    }
    return add_fragment(out, -1, s, len, err);
}

/* Longer special tokens take precedence over shorter ones wherever they stand, so one token at a time cuts all texts. */
static bool cut_specials(const struct tok *t, const char *text, size_t len, bool parse_special, struct fragments *out,
                         struct err *err)
{
    if (!add_fragment(out, -1, text, len, err))
        return false;
    for (size_t i = 0; i < t->n_special; i++) {
        const struct special *sp = &t->special[i];
        if ((!parse_special && !sp->user_defined) || memmem(text, len, sp->s, sp->len) == NULL)
            continue;
        struct fragments next = {0};
        bool ok = true;
        for (size_t j = 0; ok && j < out->n; j++) {
            const struct fragment *f = &out->f[j];
            ok = f->id >= 0 ? add_fragment(&next, f->id, NULL, 0, err) : cut_text(&next, f->s, f->len, sp, err);
        }
        free(out->f);
        *out = next;
        if (!ok)
            return false;
    }
    return true;
}

static bool encode_fragments(const struct tok *t, const struct fragments *l, struct ids *out, struct err *err)
{
    bool after_special = true;
    for (size_t i = 0; i < l->n; i++) {
        const struct fragment *f = &l->f[i];
        bool ok;
        if (f->id >= 0)
            ok = ids_add(out, f->id, err);
        else if (t->bpe != NULL)
            ok = bpe_encode(t->bpe, f->s, f->len, out, err);
        else
            ok = spm_encode(&t->spm, f->s, f->len, t->add_space && after_special, out, err);
        if (!ok)
            return false;
        after_special = f->id >= 0;
    }
    return true;
}

bool tok_encode(const struct tok *t, const char *text, size_t len, bool add_special, bool parse_special, size_t max,
                int32_t **ids, size_t *n, struct err *err)
{
    struct ids out = {.max = max};
    struct fragments l = {0};
    *ids = NULL;
    *n = 0;
    if (!utf8_valid(text, len))
        return err_set(err, ERR_INVALID, "the text is not valid UTF-8");
    bool ok = len <= UINT32_MAX / 4 || err_set(err, ERR_INVALID, "the text has %zu bytes, allowed up to %u", len, UINT32_MAX / 4);
    ok = ok && cut_specials(t, text, len, parse_special, &l, err);
    ok = ok && (!add_special || !tok_adds_bos(t) || ids_add(&out, t->bos, err));
    ok = ok && encode_fragments(t, &l, &out, err);
    ok = ok && (!add_special || !t->add_eos || t->eos < 0 || ids_add(&out, t->eos, err));
    free(l.f);
    if (!ok) {
        free(out.id);
        return false;
    }
    *ids = out.id;
    *n = out.n;
    return true;
}

size_t tok_at_least(const struct tok *t, const char *text, size_t len)
{
    size_t n = len;
    for (size_t i = 0; t->strips && i < len; i++)
        n -= isspace((unsigned char)text[i]) != 0;
    return t->longest > 0 ? n / t->longest : 0;
}

/* ---- decode ---- */

const char *tok_piece(const struct tok *t, int32_t id, bool special, size_t *len)
{
    *len = 0;
    if (!in_vocab(t, id) || (!special && tok_is_special(t, id)))
        return "";
    *len = t->piece_at[id + 1] - t->piece_at[id];
    return t->pieces + t->piece_at[id];
}

bool tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool special, char **text, size_t *len, struct err *err)
{
    struct buf out = {0};
    for (size_t i = 0; i < n; i++) {
        size_t k;
        const char *p = tok_piece(t, ids[i], special, &k);
        bool drop = i == 0 && t->add_space && k > 0 && p[0] == ' ';    /* the space that encoding put in front */
        buf_add(&out, p + drop, k - drop);
    }
    if (!buf_add(&out, "", 0)) {
        buf_free(&out);
        return err_set(err, ERR_OOM, "no memory to decode %zu tokens", n);
    }
    *text = out.data;
    *len = out.len;
    return true;
}

void tok_stream_init(struct tok_stream *s, const struct tok *t)
{
    *s = (struct tok_stream){.tok = t};
}

/* Appends s as valid UTF-8, each byte that can never belong to a character as U+FFFD; returns what is incomplete. */
static size_t put_text(struct buf *out, const char *s, size_t n)
{
    size_t i = 0, run = 0;
    while (i < n) {
        uint32_t cp;
        int len = utf8_decode(s + i, n - i, &cp);
        if (len < 0)
            break;
        if (len == 0) {
            buf_add(out, s + run, i - run);
            buf_puts(out, "\xEF\xBF\xBD");
            run = i + 1;
        }
        i += len > 0 ? (size_t)len : 1;
    }
    buf_add(out, s + run, i - run);
    return n - i;
}

bool tok_stream_push(struct tok_stream *s, int32_t id, struct buf *out)
{
    size_t n;
    const char *p = tok_piece(s->tok, id, false, &n);
    if (s->n_held == 0) {
        s->n_held = put_text(out, p, n);
        memcpy(s->held, p + n - s->n_held, s->n_held);
        return !out->failed;
    }
    struct buf joined = {0};    /* rare: a character cut by a token border */
    buf_add(&joined, s->held, s->n_held);
    buf_add(&joined, p, n);
    if (joined.failed) {
        buf_free(&joined);
        return false;
    }
    s->n_held = put_text(out, joined.data, joined.len);
    memcpy(s->held, joined.data + joined.len - s->n_held, s->n_held);
    buf_free(&joined);
    return !out->failed;
}

bool tok_stream_end(struct tok_stream *s, struct buf *out)
{
    if (s->n_held > 0)
        buf_puts(out, "\xEF\xBF\xBD");
    s->n_held = 0;
    return !out->failed;
}
