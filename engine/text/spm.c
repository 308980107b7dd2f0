#include "engine/text/spm.h"
#include "base/buf.h"
#include "base/utf8.h"
#include "engine/text/merge.h"

#include <stdio.h>
#include <string.h>

#define SPACE "\xE2\x96\x81"    /* U+2581 */

void spm_init(struct spm *s, const struct vocab *v)
{
    s->vocab = v;
    for (unsigned b = 0; b < 256; b++) {
        char name[8], c = (char)b;
        snprintf(name, sizeof name, "<0x%02X>", b);
        s->byte_id[b] = vocab_find(v, name, 6);
        if (s->byte_id[b] < 0)
            s->byte_id[b] = vocab_find(v, &c, 1);
    }
}

struct encoder {
    const struct spm *spm;
    const char *text;
};

static int32_t merge_pair(void *arg, const struct merger *m, const struct symbol *left, const struct symbol *right, double *key)
{
    (void)m;
    const struct encoder *e = arg;
    int32_t id = vocab_find(e->spm->vocab, e->text + left->at, left->len + right->len);
    if (id >= 0)
        *key = -(double)vocab_score(e->spm->vocab, id);
    return id;
}

static bool escape(const char *text, size_t len, bool prefix, struct buf *out)
{
    if (prefix)
        buf_puts(out, SPACE);
    for (size_t i = 0; i < len;) {
        size_t run = 0;
        while (i + run < len && text[i + run] != ' ')
            run++;
        buf_add(out, text + i, run);
        i += run;
        if (i < len) {
            buf_puts(out, SPACE);
            i++;
        }
    }
    return !out->failed;
}

static bool put_bytes(const struct spm *s, const char *text, size_t len, struct ids *out, struct err *err)
{
    for (size_t i = 0; i < len; i++) {
        int32_t id = s->byte_id[(unsigned char)text[i]];
        if (id >= 0 && !ids_add(out, id, err))
            return false;
    }
    return true;
}

static bool put_symbols(const struct encoder *e, const struct merger *m, struct ids *out, struct err *err)
{
    for (int32_t i = m->n > 0 ? 0 : -1; i >= 0; i = m->symbol[i].next) {
        const struct symbol *y = &m->symbol[i];
        bool ok = y->id >= 0 ? ids_add(out, y->id, err) : put_bytes(e->spm, e->text + y->at, y->len, out, err);
        if (!ok)
            return false;
    }
    return true;
}

bool spm_encode(const struct spm *s, const char *text, size_t len, bool prefix, struct ids *out, struct err *err)
{
    struct buf escaped = {0};
    struct merger m = {0};
    bool ok = escape(text, len, prefix, &escaped) || err_set(err, ERR_OOM, "no memory for %zu bytes of text", len);
    struct encoder e = {s, escaped.data};
    for (size_t i = 0; ok && i < escaped.len;) {
        uint32_t cp;
        int n = utf8_decode(escaped.data + i, escaped.len - i, &cp);
        n = n > 0 ? n : 1;
        ok = merger_add(&m, vocab_find(s->vocab, escaped.data + i, (size_t)n), i, (size_t)n, err);
        i += (size_t)n;
    }
    ok = ok && merger_run(&m, merge_pair, &e, err) && put_symbols(&e, &m, out, err);
    merger_free(&m);
    buf_free(&escaped);
    return ok;
}
