#include "engine/text/merge.h"
#include "base/mem.h"

#include <stdlib.h>

void merger_free(struct merger *m)
{
    free(m->symbol);
    free(m->heap);
    *m = (struct merger){0};
}

bool merger_add(struct merger *m, int32_t id, size_t at, size_t len, struct err *err)
{
    if (m->n == m->cap) {
        size_t cap = m->cap * 2 + 64;
        struct symbol *p = cap > INT32_MAX ? NULL : mem_grow(m->symbol, cap, sizeof *p);
        if (p == NULL)
            return err_set(err, ERR_OOM, "no memory for a word of %zu characters", cap);
        m->symbol = p;
        m->cap = cap;
    }
    int32_t i = (int32_t)m->n++;
    m->symbol[i] = (struct symbol){id, (uint32_t)at, (uint32_t)len, i - 1, -1};
    if (i > 0)
        m->symbol[i - 1].next = i;
    return true;
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->key != b->key ? a->key < b->key : a->left < b->left;
}

static void sift_up(struct candidate *h, size_t i)
{
    while (i > 0 && before(&h[i], &h[(i - 1) / 2])) {
        struct candidate t = h[i];
        h[i] = h[(i - 1) / 2];
        h[(i - 1) / 2] = t;
        i = (i - 1) / 2;
    }
}

static void sift_down(struct candidate *h, size_t n, size_t i)
{
    for (;;) {
        size_t best = i;
        for (size_t c = 2 * i + 1; c <= 2 * i + 2 && c < n; c++)
            if (before(&h[c], &h[best]))
                best = c;
        if (best == i)
            return;
        struct candidate t = h[i];
        h[i] = h[best];
        h[best] = t;
        i = best;
    }
}

static bool push(struct merger *m, int32_t left, pair_fn *pair, void *arg, struct err *err)
{
    if (left < 0 || m->symbol[left].next < 0)
        return true;
    const struct symbol *l = &m->symbol[left], *r = &m->symbol[l->next];
    struct candidate c = {.left = left, .len = l->len + r->len};
    c.merged = pair(arg, m, l, r, &c.key);
    if (c.merged < 0)
        return true;
    if (m->n_heap == m->heap_cap) {
        size_t cap = m->heap_cap * 2 + 64;
        struct candidate *p = mem_grow(m->heap, cap, sizeof *p);
        if (p == NULL)
            return err_set(err, ERR_OOM, "no memory for %zu pairs", cap);
        m->heap = p;
        m->heap_cap = cap;
    }
    m->heap[m->n_heap] = c;
    sift_up(m->heap, m->n_heap++);
    return true;
}

bool merger_run(struct merger *m, pair_fn *pair, void *arg, struct err *err)
{
    m->n_heap = 0;
    for (size_t i = 0; i + 1 < m->n; i++)
        if (!push(m, (int32_t)i, pair, arg, err))
            return false;
    while (m->n_heap > 0) {
        struct candidate c = m->heap[0];
        m->heap[0] = m->heap[--m->n_heap];
        sift_down(m->heap, m->n_heap, 0);
        struct symbol *l = &m->symbol[c.left];
        if (l->len == 0 || l->next < 0 || l->len + m->symbol[l->next].len != c.len)
            continue;
        struct symbol *r = &m->symbol[l->next];
        l->id = c.merged;
        l->len = c.len;
        l->next = r->next;
        r->len = 0;
        if (l->next >= 0)
            m->symbol[l->next].prev = c.left;
        if (!push(m, l->prev, pair, arg, err) || !push(m, c.left, pair, arg, err))
            return false;
    }
    return true;
}
