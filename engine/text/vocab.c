#include "engine/text/vocab.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* FNV-1a, eight bytes at a time: pieces are short and come from a file that was validated, not from clients. */
static uint32_t hash(const char *s, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u ^ n, w;
    for (; n >= 8; n -= 8, s += 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32);
}

static bool same(const struct gguf_str *p, const char *s, size_t n)
{
    return p->len == n && memcmp(p->s, s, n) == 0;
}

static uint32_t slot_of(const struct vocab *v, const char *s, size_t n)
{
    uint32_t i = hash(s, n) & v->mask;
    while (v->slots[i] != 0 && !same(&v->piece[v->slots[i] - 1], s, n))
        i = (i + 1) & v->mask;
    return i;
}

int32_t vocab_find(const struct vocab *v, const char *s, size_t n)
{
    return (int32_t)v->slots[slot_of(v, s, n)] - 1;
}

float vocab_score(const struct vocab *v, int32_t id)
{
    return v->scores.n == 0 ? 0 : gguf_arr_f32(&v->scores, (size_t)id);
}

static bool read_types(struct vocab *v, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.token_type";
    struct gguf_arr types = {0};
    struct err e = {0};
    memset(v->type, TOKEN_NORMAL, (size_t)v->n);
    if (!gguf_arr(g, key, GGUF_I32, &types, &e)) {
        if (e.code != ERR_NONE && err != NULL)
            *err = e;
        return e.code == ERR_NONE;
    }
    if (types.n != (size_t)v->n)
        return err_set(err, ERR_MODEL, "key %s: %zu elements, expected %d as the tokens", key, types.n, v->n);
    for (size_t i = 0; i < types.n; i++) {
        int32_t t = gguf_arr_i32(&types, i);
        if (t < TOKEN_NORMAL || t > TOKEN_BYTE)
            return err_set(err, ERR_MODEL, "key %s: element %zu is %d, allowed 1 to 6", key, i, t);
        v->type[i] = (uint8_t)t;
    }
    return true;
}

static bool read_scores(struct vocab *v, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.scores";
    struct err e = {0};
    if (!gguf_arr(g, key, GGUF_F32, &v->scores, &e)) {
        v->scores.n = 0;
        if (e.code != ERR_NONE && err != NULL)
            *err = e;
        return e.code == ERR_NONE;
    }
    if (v->scores.n != (size_t)v->n)
        return err_set(err, ERR_MODEL, "key %s: %zu elements, expected %d as the tokens", key, v->scores.n, v->n);
    return true;
}

bool vocab_open(struct vocab *v, const struct gguf *g, struct err *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    struct gguf_arr tokens;
    struct err e = {0};
    *v = (struct vocab){0};
    if (!gguf_arr(g, key, GGUF_STRING, &tokens, &e))
        return e.code != ERR_NONE ? err_set(err, e.code, "%s", e.msg) : err_set(err, ERR_MODEL, "missing metadata: %s", key);
    if (tokens.n < 1 || tokens.n > 1 << 20)
        return err_set(err, ERR_MODEL, "key %s: %zu elements, allowed 1 to %d", key, tokens.n, 1 << 20);
    v->n = (int)tokens.n;
    v->piece = tokens.strs;
    uint32_t size = 64;
    while (size < tokens.n * 2)
        size *= 2;
    v->mask = size - 1;
    v->slots = mem_alloc(size, sizeof *v->slots);
    v->type = mem_alloc(tokens.n, 1);
    if (v->slots == NULL || v->type == NULL) {
        vocab_close(v);
        return err_set(err, ERR_OOM, "no memory for a vocabulary of %d tokens", v->n);
    }
    for (int i = 0; i < v->n; i++)
        v->slots[slot_of(v, v->piece[i].s, v->piece[i].len)] = (uint32_t)i + 1;
    if (!read_types(v, g, err) || !read_scores(v, g, err)) {
        vocab_close(v);
        return false;
    }
    return true;
}

void vocab_close(struct vocab *v)
{
    free(v->slots);
    free(v->type);
    *v = (struct vocab){0};
}
