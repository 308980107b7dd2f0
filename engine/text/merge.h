/* The merging both tokenizers share: a chain of symbols, a heap of candidate pairs, the best pair first (lowest key, then
 * leftmost), until none is left. n log n in the number of symbols; no recursion. */
#ifndef ENGINE_TEXT_MERGE_H
#define ENGINE_TEXT_MERGE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct symbol {
    int32_t id;           /* token, -1 = none */
    uint32_t at, len;     /* bytes of the text */
    int32_t prev, next;   /* chain; -1 = end */
};

struct candidate {
    double key;           /* smaller merges first */
    int32_t left;         /* symbol */
    int32_t merged;       /* token it becomes */
    uint32_t len;         /* bytes of both: a candidate whose parts have changed since is stale */
};

/* Scratch that grows with the longest word; one per encoding. */
struct merger {
    struct symbol *symbol;
    size_t n, cap;
    struct candidate *heap;
    size_t n_heap, heap_cap;
};

void merger_free(struct merger *m);
bool merger_add(struct merger *m, int32_t id, size_t at, size_t len, struct err *err);    /* a symbol at the end of the chain */

/* pair(arg, m, left, right, &key): the token that two neighbours become, -1 = none. */
typedef int32_t pair_fn(void *arg, const struct merger *m, const struct symbol *left, const struct symbol *right, double *key);
bool merger_run(struct merger *m, pair_fn *pair, void *arg, struct err *err);

#endif
