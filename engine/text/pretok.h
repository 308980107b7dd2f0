/* Pre-tokenizers: how a byte-level BPE cuts text into words before merging, by the name in tokenizer.ggml.pre. One table
 * of patterns, run by PCRE2. */
#ifndef ENGINE_TEXT_PRETOK_H
#define ENGINE_TEXT_PRETOK_H

#include "base/err.h"

#include <stddef.h>

struct pretok;

/* What else hangs on the name. */
struct pretok_rules {
    bool ignore_merges;    /* a word that is a token is that token, whatever the merges say */
    bool add_bos;          /* unless the metadata says otherwise */
};

/* Errors: ERR_MODEL naming the unknown name and the known ones. */
struct pretok *pretok_open(const char *name, size_t len, struct pretok_rules *rules, struct err *err);
void pretok_close(struct pretok *p);

/* Calls word(arg, text, n) for every word of valid UTF-8, in order. False: word returned false, or the matcher failed
 * (ERR_INVALID). */
bool pretok_split(const struct pretok *p, const char *text, size_t len, bool (*word)(void *arg, const char *s, size_t n),
                  void *arg, struct err *err);

#endif
