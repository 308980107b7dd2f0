/* Finds special and user-defined tokens in text: the leftmost, and there the longest. Private to
 * the tok files. */
#ifndef ENGINE_TEXT_SPECIAL_H
#define ENGINE_TEXT_SPECIAL_H

#include "engine/text/vocab.h"

/* A trie: nodes of one byte, children as sibling lists (they are short but for the root, which has
 * a table). */
struct special {
    struct special_node *nodes;
    size_t n, cap;
    int32_t root[256]; /* first nodes, -1 */
};

bool special_build(struct special *s, const struct vocab *v, struct err *err);
void special_free(struct special *s);

/* The first token in text[from..len). control: control and unknown tokens too, not only
 * user-defined ones. False when there is none. */
bool special_find(const struct special *s, const struct vocab *v, const char *text, size_t from,
                  size_t len, bool control, size_t *at, int32_t *id);

#endif
