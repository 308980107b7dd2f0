#include "engine/kv.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

bool kv_init(struct kv *kv, struct adapter *a, struct err *err)
{
    *kv = (struct kv){.n_pages = adapter_n_pages(a), .n_seqs = adapter_max_seqs(a)};
    kv->free = mem_alloc((size_t)kv->n_pages, sizeof *kv->free);
    kv->seq = mem_alloc((size_t)kv->n_seqs, sizeof *kv->seq);
    if (kv->free == NULL || kv->seq == NULL) {
        kv_free(kv);
        return err_set(err, ERR_OOM, "no memory for the lists of %d KV pages and %d sequences",
                       kv->n_pages, kv->n_seqs);
    }
    kv->n_free = kv->n_pages;
    for (int i = 0; i < kv->n_pages; i++)
        kv->free[i] = kv->n_pages - 1 - i;
    for (int i = 0; i < kv->n_seqs; i++)
        kv->seq[i].table = adapter_pages(a, i);
    return true;
}

void kv_free(struct kv *kv)
{
    free(kv->free);
    free(kv->seq);
    *kv = (struct kv){0};
}

int kv_pages_for(int n_pos)
{
    return (n_pos + NUM_TILE - 1) / NUM_TILE;
}

int kv_open(struct kv *kv, int n_pages)
{
    if (n_pages > kv->n_free - kv->n_promised)
        return -1;
    for (int i = 0; i < kv->n_seqs; i++) {
        if (kv->seq[i].open)
            continue;
        kv->seq[i].open = true;
        kv->seq[i].promised = n_pages;
        kv->n_promised += n_pages;
        return i;
    }
    return -1;
}

void kv_cover(struct kv *kv, int seq, int n_pos)
{
    struct kv_seq *s = &kv->seq[seq];
    for (; s->n < kv_pages_for(n_pos); s->n++) {
        assert(s->promised > 0);
        s->promised--;
        kv->n_promised--;
        s->table[s->n] = kv->free[--kv->n_free];
    }
}

void kv_close(struct kv *kv, int seq)
{
    struct kv_seq *s = &kv->seq[seq];
    kv->n_promised -= s->promised;
    while (s->n > 0)
        kv->free[kv->n_free++] = s->table[--s->n];
    s->promised = 0;
    s->open = false;
}
