/* KV pages and sequence slots: who has what, and what is promised. A sequence is admitted with its
 * worst case, so that taking a page never fails later; pages are taken when positions need them.
 * Not thread-safe: the engine's lock guards it (page tables are written by the engine thread alone,
 * between steps). */
#ifndef ENGINE_KV_H
#define ENGINE_KV_H

#include "engine/adapter.h"

struct kv_seq {
    int32_t *table; /* the adapter's page table row */
    int n;          /* pages in it */
    int promised;   /* pages it may still take */
    bool open;
};

struct kv {
    int n_pages, n_free, n_promised;
    int32_t *free; /* (n_pages), a stack: what was used last is used first */
    int n_seqs;
    struct kv_seq *seq; /* (n_seqs) */
};

bool kv_init(struct kv *kv, struct adapter *a, struct err *err); /* ERR_OOM */
void kv_free(struct kv *kv);

int kv_pages_for(int n_pos);
/* A sequence with the promise of n_pages; -1 when there is no slot or not enough pages. */
int kv_open(struct kv *kv, int n_pages);
/* Gives seq the pages of positions 0..n_pos-1, within its promise. */
void kv_cover(struct kv *kv, int seq, int n_pos);
void kv_close(struct kv *kv, int seq);

#endif
