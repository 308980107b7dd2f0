#include "base/buf.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tok_impl.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

const char *tok_piece(const struct tok *t, int32_t id, bool special, size_t *len)
{
    *len = 0;
    if (id < 0 || id >= t->vocab.n || (!special && tok_is_special(t, id)))
        return "";
    *len = t->vocab.piece_at[id + 1] - t->vocab.piece_at[id];
    return t->vocab.pieces + t->vocab.piece_at[id];
}

bool tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool special, char **text,
                size_t *len, struct err *err)
{
    struct buf out = {0};
    bool ok = buf_add(&out, "", 0); /* so that no tokens are an empty text, not NULL */
    for (size_t i = 0; ok && i < n; i++) {
        size_t piece_len;
        const char *piece = tok_piece(t, ids[i], special, &piece_len);
        size_t skip = i == 0 && t->space_prefix && piece_len > 0 && piece[0] == ' ';
        ok = buf_add(&out, piece + skip, piece_len - skip);
    }
    *text = out.data;
    *len = out.len;
    if (!ok) {
        buf_free(&out);
        *text = NULL;
        *len = 0;
        return err_set(err, ERR_OOM, "no memory for the text of %zu tokens", n);
    }
    return true;
}

/* Whether the space at s[0] goes; n: bytes from there on. */
static bool before_mark(const char *s, size_t n)
{
    return n > 1 && (s[1] == '.' || s[1] == ',' || s[1] == '?' || s[1] == '!');
}

static bool before_contraction(const char *s, size_t n)
{
    if (n < 3 || s[1] != '\'')
        return false;
    return s[2] == 's' || s[2] == 'm' || (n > 3 && s[3] == 'e' && (s[2] == 'r' || s[2] == 'v'));
}

static size_t drop_spaces(char *s, size_t n, bool (*drop)(const char *s, size_t n))
{
    size_t out = 0;
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' || !drop(s + i, n - i))
            s[out++] = s[i];
    return out;
}

static size_t join_apostrophes(char *s, size_t n)
{
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        bool lone = n - i > 2 && s[i] == ' ' && s[i + 1] == '\'' && s[i + 2] == ' ';
        s[out++] = lone ? '\'' : s[i];
        i += lone ? 2 : 0;
    }
    return out;
}

void tok_tidy(const struct tok *t, char *text, size_t *len)
{
    if (!t->bpe || !pretok_tidies(t->pre))
        return;
    *len = drop_spaces(text, *len, before_mark);
    *len = join_apostrophes(text, *len);
    *len = drop_spaces(text, *len, before_contraction);
    text[*len] = 0;
}

/* ---- streaming ---- */

void tok_stream_init(struct tok_stream *s, const struct tok *t)
{
    memset(s, 0, sizeof *s);
    s->tok = t;
}

/* Appends what is complete of s[0..n), invalid bytes as U+FFFD (one for each beginning of a
 * character that breaks off, one for each byte that cannot begin one). Returns how many bytes are
 * left at the end: the beginning of a character. */
static size_t add_complete(struct buf *out, const char *s, size_t n)
{
    size_t done = 0, i = 0; /* s[done..i) is good and not yet added */
    while (i < n) {
        uint32_t cp;
        int len = utf8_decode(s + i, n - i, &cp);
        if (len < 0)
            break;
        if (len > 0) {
            i += (size_t)len;
            continue;
        }
        buf_add(out, s + done, i - done);
        buf_add(out, REPLACEMENT, 3);
        size_t bad = 1; /* the longest part of it that was still the beginning of a character */
        while (i + bad < n && bad < 3 && utf8_decode(s + i, bad + 1, &cp) < 0)
            bad++;
        i += bad;
        done = i;
    }
    buf_add(out, s + done, i - done);
    return n - i;
}

bool tok_stream_push(struct tok_stream *s, int32_t id, struct buf *out)
{
    size_t len, take = 0;
    const char *piece = tok_piece(s->tok, id, false, &len);
    /* What is held is completed byte by byte: at most 3 more decide about it. */
    while (s->n_held > 0 && take < len) {
        s->held[s->n_held++] = piece[take++];
        size_t left = add_complete(out, s->held, s->n_held);
        memmove(s->held, s->held + s->n_held - left, left);
        s->n_held = left;
    }
    if (s->n_held == 0) {
        s->n_held = add_complete(out, piece + take, len - take);
        memcpy(s->held, piece + len - s->n_held, s->n_held);
    }
    return !out->failed;
}

bool tok_stream_end(struct tok_stream *s, struct buf *out)
{
    if (s->n_held > 0)
        buf_add(out, REPLACEMENT, 3);
    s->n_held = 0;
    return !out->failed;
}
