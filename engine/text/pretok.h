/* Pre-tokenizers: how byte-level BPE models cut text into words before merging, by the name in
 * tokenizer.ggml.pre. A name is a row of patterns; each is applied inside the pieces that the one
 * before left, and what it does not match is a piece too. Private to the tok files. */
#ifndef ENGINE_TEXT_PRETOK_H
#define ENGINE_TEXT_PRETOK_H

#include "base/err.h"

#include <stddef.h>

#define PRETOK_STAGES 6 /* most patterns of one name */

struct pretok;
/* An unknown name is ERR_MODEL with the known ones. */
struct pretok *pretok_open(const char *name, size_t len, struct err *err);
void pretok_close(struct pretok *p);
bool pretok_ignores_merges(const struct pretok *p); /* a word that is a token is taken whole */
bool pretok_adds_bos(const struct pretok *p);       /* unless the file says otherwise */
bool pretok_tidies(const struct pretok *p);         /* see tok_tidy */

/* A walk over the words of a text; a constant amount of memory. Valid UTF-8 of at most INT32_MAX
 * bytes. */
struct pretok_walk {
    const struct pretok *pre;
    const char *text;
    void *match; /* pcre2_match_data */
    int depth;   /* the stage that cuts now */
    struct {
        size_t from, end;           /* what is left of the stage's piece */
        size_t match_at, match_end; /* a match found beyond a gap; match_at == match_end: none */
    } stage[PRETOK_STAGES];
};

bool pretok_begin(struct pretok_walk *w, const struct pretok *p, const char *text, size_t len,
                  struct err *err);
/* False: done (err->code is ERR_NONE), or failed. err must not be NULL. */
bool pretok_next(struct pretok_walk *w, size_t *at, size_t *len, struct err *err);
void pretok_end(struct pretok_walk *w);

#endif
