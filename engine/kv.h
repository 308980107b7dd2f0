/* KV pages and sequence slots: who has what, and what is promised. A sequence is admitted with its
 * worst case, so that taking a page never fails later; pages are taken when positions need them.
 *
 * Full pages may be shared: sequences whose tokens begin alike hold the same pages, which nobody
 * writes any more. A page that nobody holds is free; if its content is known (prefix.h) it stays
 * findable until it is needed, the one longest without a holder first. Whoever holds a page holds
 * all pages before it, and lets go of the later one first: so a page is never forgotten before
 * those that follow it.
 *
 * Not thread-safe: the engine's lock guards it. The page table of a sequence is written when it is
 * opened and then by the engine thread alone, between steps. */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include "engine/adapter.h"
#include "engine/prefix.h"

struct kv_seq {
    int32_t *table; /* the adapter's page table row */
    int n;          /* pages in it */
    int n_known;    /* the first so many are in the prefix map */
    int promised;   /* pages it may still take */
    bool open, shares;
    struct prefix_scope scope;
};

struct kv_page {
    int holders;
    int32_t older, newer; /* in the list of idle pages; -1 = none */
};

struct kv {
    int n_pages, n_free, n_promised; /* free: empty or idle */
    uint64_t n_changes;              /* counts what may let a sequence fit that did not */
    int n_empty;
    int32_t *empty;         /* (n_pages), a stack: what was used last is used first */
    int32_t oldest, newest; /* of the idle pages: known content, no holder */
    struct kv_page *page;   /* (n_pages) */
    struct prefix prefix;
    int n_seqs;
    struct kv_seq *seq; /* (n_seqs) */
};

/* What a sequence needs and what it begins with. */
struct kv_want {
    int n_pages;       /* at most */
    const char *scope; /* shares pages with others of the same scope; NULL = with nobody */
    const int32_t *tokens;
    int n_tokens; /* >= 1; the last is never taken as known: somebody wants its logits */
};

bool kv_init(struct kv *kv, struct adapter *a, struct err *err); /* ERR_OOM */
void kv_free(struct kv *kv);

int kv_pages_for(int n_pos);
/* A sequence with the promise of its pages; -1 when there is no slot or not enough of them.
 * Positions 0..*n_cached-1 are there already. */
int kv_open(struct kv *kv, const struct kv_want *want, int *n_cached);
/* Gives seq the pages of positions 0..n_pos-1, within its promise. */
void kv_cover(struct kv *kv, int seq, int n_pos);
/* Positions 0..n_pos-1 of seq have been computed from these tokens: from now on its full pages can
 * be found. Where an equal page is known already, seq goes on with that one. */
void kv_publish(struct kv *kv, int seq, const int32_t *tokens, int n_pos);
void kv_close(struct kv *kv, int seq);

#endif
