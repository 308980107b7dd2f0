#include "engine/text/bpe.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/merge.h"

#include <stdlib.h>
#include <string.h>

struct merge {
    int32_t left, right, merged;
    uint32_t rank;
};

struct bpe {
    const struct vocab *vocab;
    struct pretok *pretok;
    bool ignore_merges;
    int32_t byte_id[256];    /* token of a single byte, -1 = none */
    char byte_text[256][2];  /* its printable character in UTF-8, one or two bytes */
    uint8_t byte_len[256];
    struct merge *merges;    /* open addressing; merged < 0 = empty */
    uint32_t mask;
};

/* ---- the alphabet: printable bytes stand for themselves, the others for U+0100 onwards in order ---- */

static bool is_printable(unsigned b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

static uint32_t char_of_byte(unsigned b)
{
    uint32_t next = 0x100;
    if (is_printable(b))
        return b;
    for (unsigned i = 0; i < b; i++)
        next += !is_printable(i);
    return next;
}

static int byte_of_char(uint32_t cp)
{
    if (cp < 0x100)
        return is_printable(cp) ? (int)cp : -1;
    uint32_t next = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        if (is_printable(b))
            continue;
        if (next++ == cp)
            return (int)b;
    }
    return -1;
}

size_t bpe_bytes(const struct gguf_str *piece, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < piece->len;) {
        uint32_t cp;
        int len = utf8_decode(piece->s + i, piece->len - i, &cp), b = len > 0 ? byte_of_char(cp) : -1;
        if (len <= 0)
            len = 1;
        if (b >= 0) {
            out[n++] = (char)b;
        } else {
            memcpy(out + n, piece->s + i, (size_t)len);
            n += (size_t)len;
        }
        i += (size_t)len;
    }
    return n;
}

/* ---- merges ---- */

static uint32_t pair_hash(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32);
}

static struct merge *find_merge(const struct bpe *b, int32_t left, int32_t right)
{
    uint32_t i = pair_hash(left, right) & b->mask;
    while (b->merges[i].merged >= 0 && (b->merges[i].left != left || b->merges[i].right != right))
        i = (i + 1) & b->mask;
    return &b->merges[i];
}

/* "left right": both and their union are tokens, or the merge can never apply. The first of two equal merges counts. */
static void add_merge(struct bpe *b, const struct gguf_str *s, uint32_t rank)
{
    const char *blank = s->len < 2 ? NULL : memchr(s->s + 1, ' ', s->len - 1);
    char joined[512];
    if (blank == NULL || s->len > sizeof joined)
        return;
    size_t n = (size_t)(blank - s->s), rest = s->len - n - 1;
    memcpy(joined, s->s, n);
    memcpy(joined + n, blank + 1, rest);
    struct merge m = {vocab_find(b->vocab, s->s, n), vocab_find(b->vocab, blank + 1, rest), vocab_find(b->vocab, joined, n + rest),
                      rank};
    if (m.left < 0 || m.right < 0 || m.merged < 0)
        return;
    struct merge *slot = find_merge(b, m.left, m.right);
    if (slot->merged < 0)
        *slot = m;
}

static bool read_merges(struct bpe *b, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    struct gguf_arr a;
    struct err e = {0};
    if (!gguf_arr(g, key, GGUF_STRING, &a, &e))
        return e.code != ERR_NONE ? err_set(err, e.code, "%s", e.msg) : err_set(err, ERR_MODEL, "missing metadata: %s", key);
    if (a.n > 1 << 22)
        return err_set(err, ERR_MODEL, "key %s: %zu elements, allowed up to %d", key, a.n, 1 << 22);
    uint32_t size = 64;
    while (size < a.n * 2)
        size *= 2;
    b->mask = size - 1;
    b->merges = mem_alloc(size, sizeof *b->merges);
    if (b->merges == NULL)
        return err_set(err, ERR_OOM, "no memory for %zu merges", a.n);
    for (uint32_t i = 0; i < size; i++)
        b->merges[i].merged = -1;
    for (size_t i = 0; i < a.n; i++)
        add_merge(b, &a.strs[i], (uint32_t)i);
    return true;
}

/* ---- open and close ---- */

static bool open_pretok(struct bpe *b, const struct gguf *g, struct pretok_rules *rules, struct err *err)
{
    static const char key[] = "tokenizer.ggml.pre";
    struct gguf_str name;
    struct err e = {0};
    if (!gguf_str(g, key, &name, &e))
        return e.code != ERR_NONE ? err_set(err, e.code, "%s", e.msg) : err_set(err, ERR_MODEL, "missing metadata: %s", key);
    b->pretok = pretok_open(name.s, name.len, rules, err);
    b->ignore_merges = rules->ignore_merges;
    return b->pretok != NULL;
}

struct bpe *bpe_open(const struct vocab *v, const struct gguf *g, struct pretok_rules *rules, struct err *err)
{
    struct bpe *b = mem_alloc(1, sizeof *b);
    if (b == NULL) {
        err_set(err, ERR_OOM, "no memory for the tokenizer");
        return NULL;
    }
    b->vocab = v;
    for (unsigned i = 0; i < 256; i++) {
        char c[4];
        b->byte_len[i] = (uint8_t)utf8_encode(char_of_byte(i), c);
        memcpy(b->byte_text[i], c, 2);
        b->byte_id[i] = vocab_find(v, c, b->byte_len[i]);
    }
    if (!open_pretok(b, g, rules, err) || !read_merges(b, g, err)) {
        bpe_close(b);
        return NULL;
    }
    return b;
}

void bpe_close(struct bpe *b)
{
    if (b == NULL)
        return;
    pretok_close(b->pretok);
    free(b->merges);
    free(b);
}

/* ---- encoding ---- */

struct encoder {
    const struct bpe *b;
    struct merger merger;
    struct ids *out;
    struct err *err;
};

static int32_t merge_pair(void *arg, const struct merger *m, const struct symbol *left, const struct symbol *right, double *key)
{
    (void)m;
    const struct bpe *b = arg;
    if (left->id < 0 || right->id < 0)
        return -1;
    const struct merge *found = find_merge(b, left->id, right->id);
    *key = found->rank;
    return found->merged;
}

/* The token of a whole word, -1 when it is none; words longer than any token are not looked up. */
static int32_t whole_word(const struct bpe *b, const char *s, size_t n)
{
    char text[512];
    size_t len = 0;
    if (n > sizeof text / 2)
        return -1;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        memcpy(text + len, b->byte_text[c], b->byte_len[c]);
        len += b->byte_len[c];
    }
    return vocab_find(b->vocab, text, len);
}

static bool encode_word(void *arg, const char *s, size_t n)
{
    struct encoder *e = arg;
    int32_t whole = e->b->ignore_merges ? whole_word(e->b, s, n) : -1;
    if (whole >= 0)
        return ids_add(e->out, whole, e->err);
    e->merger.n = 0;
    for (size_t i = 0; i < n; i++)
        if (!merger_add(&e->merger, e->b->byte_id[(unsigned char)s[i]], i, 1, e->err))
            return false;
    if (!merger_run(&e->merger, merge_pair, (void *)e->b, e->err))
        return false;
    for (int32_t i = 0; i >= 0; i = e->merger.symbol[i].next)
        if (e->merger.symbol[i].id >= 0 && !ids_add(e->out, e->merger.symbol[i].id, e->err))
            return false;
    return true;
}

bool bpe_encode(const struct bpe *b, const char *text, size_t len, struct ids *out, struct err *err)
{
    struct encoder e = {.b = b, .out = out, .err = err};
    bool ok = pretok_split(b->pretok, text, len, encode_word, &e, err);
    merger_free(&e.merger);
    return ok;
}
