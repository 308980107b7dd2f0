#include "engine/text/vocab.h"

#include "base/mem.h"
#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct vocab_slot {
    uint32_t
        tag; /* upper half of the hash: decides nearly every mismatch without touching the text */
    int32_t id_1; /* id + 1; 0 = empty */
};

/* ---- hash ---- */

static uint64_t hash_text(const char *s, size_t n)
{
    const uint64_t k = 0x9E3779B97F4A7C15u;
    uint64_t h = n * k, w;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * k;
        h ^= h >> 32;
    }
    if (n > 0) {
        w = 0;
        memcpy(&w, s, n);
        h = (h ^ w) * k;
    }
    h ^= h >> 29;
    h *= k;
    return h ^ h >> 32;
}

/* The slot that holds s, or the empty one where it belongs. */
static struct vocab_slot *find_slot(const struct vocab *v, const char *s, size_t n, uint64_t h)
{
    uint32_t tag = (uint32_t)(h >> 32);
    for (uint32_t i = (uint32_t)h & v->mask;; i = (i + 1) & v->mask) {
        struct vocab_slot *slot = &v->slots[i];
        if (slot->id_1 == 0)
            return slot;
        const struct gguf_str *t = &v->text[slot->id_1 - 1];
        if (slot->tag == tag && t->len == n && memcmp(t->s, s, n) == 0)
            return slot;
    }
}

int32_t vocab_find(const struct vocab *v, const char *s, size_t n)
{
    if (n == 0 || n > v->max_len)
        return -1;
    return find_slot(v, s, n, hash_text(s, n))->id_1 - 1;
}

void vocab_find_block(const struct vocab *v, const struct gguf_str *s, size_t n, int32_t *ids)
{
    uint64_t h[VOCAB_BLOCK];
    for (size_t i = 0; i < n; i++) {
        h[i] = hash_text(s[i].s, s[i].len);
        __builtin_prefetch(&v->slots[(uint32_t)h[i] & v->mask]);
    }
    for (size_t i = 0; i < n; i++) {
        int32_t id_1 = v->slots[(uint32_t)h[i] & v->mask].id_1;
        if (id_1 > 0)
            __builtin_prefetch(&v->text[id_1 - 1]);
    }
    for (size_t i = 0; i < n; i++)
        ids[i] = s[i].len == 0 ? -1 : find_slot(v, s[i].s, s[i].len, h[i])->id_1 - 1;
}

bool vocab_is_plain(const struct vocab *v, int32_t id)
{
    uint8_t kind = v->kind[id];
    return kind != TOKEN_CONTROL && kind != TOKEN_UNKNOWN && kind != TOKEN_BYTE;
}

int32_t vocab_find_plain(const struct vocab *v, const char *s, size_t n)
{
    int32_t id = vocab_find(v, s, n);
    return id >= 0 && vocab_is_plain(v, id) ? id : -1;
}

/* Blocks, as in vocab_find_block: the slots are far apart, so their cache misses are better taken
 * together. */
static void index_block(struct vocab *v, int from, int to)
{
    uint64_t h[VOCAB_BLOCK];
    for (int i = from; i < to; i++) {
        h[i - from] = hash_text(v->text[i].s, v->text[i].len);
        __builtin_prefetch(&v->slots[(uint32_t)h[i - from] & v->mask], 1);
    }
    for (int i = from; i < to; i++) {
        const struct gguf_str *t = &v->text[i];
        if (t->len == 0)
            continue; /* padding: never found, decodes to nothing */
        struct vocab_slot *slot = find_slot(v, t->s, t->len, h[i - from]);
        if (slot->id_1 == 0)
            *slot = (struct vocab_slot){.tag = (uint32_t)(h[i - from] >> 32), .id_1 = i + 1};
        if (t->len > v->max_len)
            v->max_len = t->len;
    }
}

static bool index_texts(struct vocab *v, struct err *err)
{
    uint32_t n_slots = 16;
    while (n_slots < (uint64_t)v->n * 3 / 2)
        n_slots *= 2;
    v->slots = mem_alloc(n_slots, sizeof *v->slots);
    if (v->slots == NULL)
        return err_set(err, ERR_OOM, "no memory to index %d tokens", v->n);
    v->mask = n_slots - 1;
    for (int from = 0; from < v->n; from += VOCAB_BLOCK)
        index_block(v, from, v->n - from < VOCAB_BLOCK ? v->n : from + VOCAB_BLOCK);
    return v->max_len > 0 ||
           err_set(err, ERR_MODEL, "key tokenizer.ggml.tokens: all %d are empty", v->n);
}

/* ---- bytes ---- */

/* Bytes that GPT-2's alphabet shows as themselves; the others are U+0100 and up, in order. */
static bool is_shown(int byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

int vocab_byte_text(uint8_t byte, char out[2])
{
    uint32_t cp = byte;
    if (!is_shown(byte)) /* 0x00..0x20, 0x7F..0xA0, 0xAD */
        cp = 0x100u + (byte <= 0x20 ? byte : byte == 0xAD ? 67u : byte - 0x7Fu + 33u);
    char utf8[4];
    int n = utf8_encode(cp, utf8);
    memcpy(out, utf8, (size_t)n);
    return n;
}

/* The byte a character of a byte-level text stands for; -1 when it stands for none. */
static int byte_of(uint32_t cp)
{
    if (cp < 0x100)
        return is_shown((int)cp) ? (int)cp : -1;
    uint32_t i = cp - 0x100;
    return i < 33 ? (int)i : i < 67 ? (int)(i - 33 + 0x7F) : i == 67 ? 0xAD : -1;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* "<0xE2>" as a byte, else -1. */
static int byte_token(const struct gguf_str *t)
{
    if (t->len != 6 || memcmp(t->s, "<0x", 3) != 0 || t->s[5] != '>')
        return -1;
    int hi = hex_digit(t->s[3]), lo = hex_digit(t->s[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

static void find_bytes(struct vocab *v, bool bpe)
{
    static const char hex[] = "0123456789ABCDEF";
    for (int b = 0; b < 256; b++) {
        char text[6] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'};
        size_t n = bpe ? (size_t)vocab_byte_text((uint8_t)b, text) : sizeof text;
        v->byte_id[b] = bpe ? vocab_find_plain(v, text, n) : vocab_find(v, text, n);
        if (v->byte_id[b] < 0 && !bpe) {
            text[0] = (char)b;
            v->byte_id[b] = vocab_find(v, text, 1);
        }
    }
}

static bool is_mark(const struct gguf_str *t, size_t i)
{
    return t->len - i >= 3 && memcmp(t->s + i, "\xE2\x96\x81", 3) == 0;
}

static bool has_inner_mark(const struct gguf_str *t)
{
    size_t i = 0;
    while (is_mark(t, i))
        i += 3;
    for (; i < t->len; i++)
        if (is_mark(t, i))
            return true;
    return false;
}

static bool words_apart(const struct vocab *v)
{
    for (int i = 0; i < v->n; i++)
        if (vocab_is_plain(v, i) && has_inner_mark(&v->text[i]))
            return false;
    return true;
}

/* ---- pieces ---- */

/* Byte-level text to the bytes it stands for; a character outside the alphabet is kept as it is. */
static size_t unpack_bytes(const struct gguf_str *t, char *out)
{
    size_t n = 0, i = 0;
    while (i < t->len) {
        if ((unsigned char)t->s[i] <
            0x80) { /* most of every vocabulary; the fast way halves the time of this pass */
            out[n++] = t->s[i++];
            continue;
        }
        uint32_t cp;
        int len = utf8_decode(t->s + i, t->len - i, &cp);
        int byte = len > 0 ? byte_of(cp) : -1;
        if (len <= 0)
            len = 1;
        if (byte >= 0) {
            out[n++] = (char)byte;
        } else {
            memcpy(out + n, t->s + i, (size_t)len);
            n += (size_t)len;
        }
        i += (size_t)len;
    }
    return n;
}

/* SPM text to bytes: U+2581 is a space. */
static size_t unpack_spaces(const struct gguf_str *t, char *out)
{
    size_t n = 0, i = 0;
    while (i < t->len) {
        if (is_mark(t, i)) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = t->s[i++];
        }
    }
    return n;
}

static bool unpack_pieces(struct vocab *v, bool bpe, struct err *err)
{
    size_t total = 0; /* pieces are never longer than texts */
    for (int i = 0; i < v->n; i++)
        total += v->text[i].len;
    if (total > INT32_MAX)
        return err_set(err, ERR_MODEL,
                       "key tokenizer.ggml.tokens: %zu bytes of text, at most 2 GiB", total);
    v->pieces = mem_alloc(total, 1);
    v->piece_at = mem_alloc((size_t)v->n + 1, sizeof *v->piece_at);
    if (v->pieces == NULL || v->piece_at == NULL)
        return err_set(err, ERR_OOM, "no memory for the text of %d tokens", v->n);
    size_t at = 0;
    for (int i = 0; i < v->n; i++) {
        const struct gguf_str *t = &v->text[i];
        char *out = v->pieces + at;
        int byte;
        v->piece_at[i] = (uint32_t)at;
        switch (v->kind[i]) {
        case TOKEN_NORMAL:
            at += bpe ? unpack_bytes(t, out) : unpack_spaces(t, out);
            break;
        case TOKEN_BYTE:
            byte = byte_token(t);
            if (byte < 0)
                return err_set(
                    err, ERR_MODEL,
                    "key tokenizer.ggml.tokens[%d]: byte token \"%.*s\", expected <0x00> to <0xFF>",
                    i, (int)(t->len < 64 ? t->len : 64), t->s);
            *out = (char)byte;
            at++;
            break;
        case TOKEN_CONTROL:
        case TOKEN_UNKNOWN:
        case TOKEN_USER:
            if (t->len > 0)
                memcpy(out, t->s, t->len);
            at += t->len;
            break;
        default: /* undefined and unused tokens stand for nothing */
            break;
        }
        size_t cover = at > v->piece_at[i] ? at - v->piece_at[i] : t->len;
        if (cover > v->max_cover)
            v->max_cover = cover;
    }
    v->piece_at[v->n] = (uint32_t)at;
    return true;
}

/* ---- reading ---- */

static bool read_kinds(struct vocab *v, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.token_type";
    struct gguf_arr a;
    v->kind = mem_alloc((size_t)v->n, 1);
    if (v->kind == NULL)
        return err_set(err, ERR_OOM, "no memory for the types of %d tokens", v->n);
    if (!gguf_arr(g, key, GGUF_I32, &a, err)) {
        memset(v->kind, TOKEN_NORMAL, (size_t)v->n); /* optional in the format */
        return err->code == ERR_NONE;
    }
    if (a.n != (size_t)v->n)
        return err_set(err, ERR_MODEL,
                       "key %s: %zu values, expected %d as in tokenizer.ggml.tokens", key, a.n,
                       v->n);
    for (int i = 0; i < v->n; i++) {
        int32_t kind = gguf_arr_i32(&a, (size_t)i);
        if (kind < 0 || kind >= TOKEN_KIND_N)
            return err_set(err, ERR_MODEL, "key %s[%d]: %d, expected 0 to %d", key, i, kind,
                           TOKEN_KIND_N - 1);
        v->kind[i] = (uint8_t)kind;
    }
    return true;
}

/* A float as an integer that sorts the other way round: the highest score gets the lowest number.
 */
static uint32_t order_of(float score)
{
    score += 0.0f; /* -0 and 0 are one score */
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~bits & 0x7FFFFFFFu;
}

static bool read_scores(struct vocab *v, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.scores";
    struct gguf_arr a;
    if (!gguf_arr(g, key, GGUF_F32, &a, err))
        return gguf_has(g, key)
                   ? false
                   : err_set(err, ERR_MODEL, "key %s: missing, SPM vocabularies need it", key);
    if (a.n != (size_t)v->n)
        return err_set(err, ERR_MODEL,
                       "key %s: %zu values, expected %d as in tokenizer.ggml.tokens", key, a.n,
                       v->n);
    v->order = mem_alloc((size_t)v->n, sizeof *v->order);
    if (v->order == NULL)
        return err_set(err, ERR_OOM, "no memory for %d scores", v->n);
    for (int i = 0; i < v->n; i++) {
        float score = gguf_arr_f32(&a, (size_t)i);
        if (isnan(score))
            return err_set(err, ERR_MODEL, "key %s[%d]: NaN, expected a number", key, i);
        v->order[i] = order_of(score);
    }
    return true;
}

bool vocab_read(struct vocab *v, const struct gguf *g, bool bpe, struct err *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    struct gguf_arr a;
    if (!gguf_arr(g, key, GGUF_STRING, &a, err))
        return gguf_has(g, key) ? false : err_set(err, ERR_MODEL, "key %s: missing", key);
    if (a.n == 0 || a.n > INT32_MAX / 4)
        return err_set(err, ERR_MODEL, "key %s: %zu tokens, expected 1 to %d", key, a.n,
                       INT32_MAX / 4);
    v->n = (int)a.n;
    v->text = a.strs;
    if (!read_kinds(v, g, err) || (!bpe && !read_scores(v, g, err)))
        return false;
    if (!index_texts(v, err) || !unpack_pieces(v, bpe, err))
        return false;
    find_bytes(v, bpe);
    v->words_apart = !bpe && words_apart(v);
    return true;
}

void vocab_free(struct vocab *v)
{
    free(v->kind);
    free(v->order);
    free(v->slots);
    free(v->piece_at);
    free(v->pieces);
}
