/* Merging: one word's characters or bytes into tokens, best pair first. BPE takes pairs by the rank
 * of their merge, SPM by the score of the token they make. A heap and a linked list: n log n in the
 * length of the word, no recursion. Private to the tok files. */
#ifndef ENGINE_TEXT_MERGE_H
#define ENGINE_TEXT_MERGE_H

#include "engine/text/vocab.h"

/* BPE's merges by the ids of their halves. */
struct merges {
    struct merge_slot *slots; /* open addressing, mask + 1 of them */
    uint32_t mask;
};

bool merges_read(struct merges *m, const struct gguf *g, const struct vocab *v, struct err *err);
void merges_free(struct merges *m);

struct sym {
    int32_t prev, next; /* -1 at the ends */
    uint32_t at, len;   /* in the word; len 0: merged away */
    int32_t id;         /* -1: no token (yet) */
};

struct cand {
    uint64_t key; /* order << 32 | left symbol: the lowest is merged first */
    uint32_t len; /* of left and its next: they only grow, so another sum is another pair */
    int32_t id;   /* the token they make */
};

/* Scratch of one caller, reused from word to word. Zero-initialise. */
struct merger {
    struct sym *syms;
    size_t n_syms, cap_syms;
    struct cand *heap;
    size_t n_heap, cap_heap;
};

/* Splits word into symbols and merges them; the result is the chain that begins at syms[0].
 * BPE where merges is not NULL: symbols are bytes; SPM: characters of valid UTF-8. n is 1 to
 * INT32_MAX. False when memory ran out. */
bool merger_run(struct merger *m, const struct vocab *v, const struct merges *merges,
                const char *word, size_t n);
void merger_free(struct merger *m);

#endif
