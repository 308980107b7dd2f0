#include "engine/kv.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

bool kv_init(struct kv *kv, struct adapter *a, struct err *err)
{
    *kv = (struct kv){
        .n_pages = adapter_n_pages(a),
        .n_seqs = adapter_max_seqs(a),
        .n_changes = 1,
        .oldest = -1,
        .newest = -1,
    };
    kv->empty = mem_alloc((size_t)kv->n_pages, sizeof *kv->empty);
    kv->page = mem_alloc((size_t)kv->n_pages, sizeof *kv->page);
    kv->seq = mem_alloc((size_t)kv->n_seqs, sizeof *kv->seq);
    if (kv->empty == NULL || kv->page == NULL || kv->seq == NULL) {
        kv_free(kv);
        return err_set(err, ERR_OOM, "no memory for the lists of %d KV pages and %d sequences",
                       kv->n_pages, kv->n_seqs);
    }
    if (!prefix_init(&kv->prefix, kv->n_pages, 0, err)) {
        kv_free(kv);
        return false;
    }
    kv->n_free = kv->n_empty = kv->n_pages;
    for (int i = 0; i < kv->n_pages; i++)
        kv->empty[i] = kv->n_pages - 1 - i;
    for (int i = 0; i < kv->n_seqs; i++)
        kv->seq[i].table = adapter_pages(a, i);
    return true;
}

void kv_free(struct kv *kv)
{
    prefix_free(&kv->prefix);
    free(kv->empty);
    free(kv->page);
    free(kv->seq);
    *kv = (struct kv){0};
}

int kv_pages_for(int n_pos)
{
    return (n_pos + NUM_TILE - 1) / NUM_TILE;
}

/* ---- one page ---- */

static void add_idle(struct kv *kv, int page)
{
    kv->page[page].older = kv->newest;
    kv->page[page].newer = -1;
    if (kv->newest >= 0)
        kv->page[kv->newest].newer = page;
    else
        kv->oldest = page;
    kv->newest = page;
}

static void remove_idle(struct kv *kv, int page)
{
    int older = kv->page[page].older, newer = kv->page[page].newer;
    if (older >= 0)
        kv->page[older].newer = newer;
    else
        kv->oldest = newer;
    if (newer >= 0)
        kv->page[newer].older = older;
    else
        kv->newest = older;
}

/* A page to write: what it held is forgotten. */
static int take(struct kv *kv)
{
    int page = kv->n_empty > 0 ? kv->empty[--kv->n_empty] : kv->oldest;
    if (prefix_has(&kv->prefix, page)) {
        remove_idle(kv, page);
        prefix_remove(&kv->prefix, page);
    }
    kv->n_free--;
    kv->page[page].holders = 1;
    return page;
}

/* One holder more of a known page. */
static void hold(struct kv *kv, int page)
{
    if (kv->page[page].holders++ > 0)
        return;
    remove_idle(kv, page);
    kv->n_free--;
}

static void drop(struct kv *kv, int page)
{
    if (--kv->page[page].holders > 0)
        return;
    kv->n_free++;
    if (prefix_has(&kv->prefix, page))
        add_idle(kv, page);
    else
        kv->empty[kv->n_empty++] = page;
}

/* ---- sequences ---- */

/* Writes the known pages that want begins with into s; *n_idle: how many of them nobody holds. */
static int find_known(struct kv *kv, const struct kv_want *want, struct kv_seq *s, int *n_idle)
{
    int n_most = (want->n_tokens - 1) / NUM_TILE, before = PREFIX_ROOT, n = 0;
    n_most = n_most < want->n_pages ? n_most : want->n_pages;
    for (; n < n_most; n++) {
        int page = prefix_find(&kv->prefix, s->scope, before, want->tokens + n * NUM_TILE);
        if (page < 0)
            break;
        *n_idle += kv->page[page].holders == 0;
        s->table[n] = before = page;
    }
    return n;
}

int kv_open(struct kv *kv, const struct kv_want *want, int *n_cached)
{
    int seq = 0, n = 0, n_idle = 0;
    while (seq < kv->n_seqs && kv->seq[seq].open)
        seq++;
    if (seq == kv->n_seqs)
        return -1;
    struct kv_seq *s = &kv->seq[seq];
    s->shares = want->scope != NULL;
    if (s->shares) {
        s->scope = prefix_scope(&kv->prefix, want->scope);
        n = find_known(kv, want, s, &n_idle);
    }
    if (want->n_pages - n + n_idle > kv->n_free - kv->n_promised)
        return -1;
    for (int i = 0; i < n; i++)
        hold(kv, s->table[i]);
    s->open = true;
    s->n = s->n_known = n;
    s->promised = want->n_pages - n;
    kv->n_promised += s->promised;
    *n_cached = n * NUM_TILE;
    return seq;
}

void kv_cover(struct kv *kv, int seq, int n_pos)
{
    struct kv_seq *s = &kv->seq[seq];
    for (; s->n < kv_pages_for(n_pos); s->n++) {
        assert(s->promised > 0);
        s->promised--;
        kv->n_promised--;
        s->table[s->n] = take(kv);
    }
}

void kv_publish(struct kv *kv, int seq, const int32_t *tokens, int n_pos)
{
    struct kv_seq *s = &kv->seq[seq];
    for (; s->shares && s->n_known < n_pos / NUM_TILE; s->n_known++) {
        int before = s->n_known > 0 ? s->table[s->n_known - 1] : PREFIX_ROOT;
        int own = s->table[s->n_known];
        const int32_t *held = tokens + s->n_known * NUM_TILE;
        int known = prefix_find(&kv->prefix, s->scope, before, held);
        if (known < 0) {
            prefix_add(&kv->prefix, own, s->scope, before, held);
        } else {
            hold(kv, known);
            s->table[s->n_known] = known;
            drop(kv, own);
        }
        kv->n_changes++;
    }
}

void kv_close(struct kv *kv, int seq)
{
    struct kv_seq *s = &kv->seq[seq];
    kv->n_promised -= s->promised;
    while (s->n > 0) /* the last first: see above */
        drop(kv, s->table[--s->n]);
    s->promised = 0;
    s->open = false;
    kv->n_changes++;
}
