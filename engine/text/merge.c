#include "engine/text/merge.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* ---- the table of merges ---- */

struct merge_slot {
    uint64_t pair;   /* left id << 32 | right id */
    uint32_t rank_1; /* rank + 1; 0 = empty */
    int32_t id;      /* of the token they make */
};

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static uint32_t first_slot(const struct merges *m, uint64_t pair)
{
    return (uint32_t)(pair * 0x9E3779B97F4A7C15u >> 32) & m->mask;
}

/* The slot that holds the pair, or the empty one where it belongs. */
static struct merge_slot *find_merge(const struct merges *m, uint64_t pair)
{
    for (uint32_t i = first_slot(m, pair);; i = (i + 1) & m->mask) {
        struct merge_slot *slot = &m->slots[i];
        if (slot->rank_1 == 0 || slot->pair == pair)
            return slot;
    }
}

/* The token whose text is the two halves. Merges stand in the order of the tokens they make, so it
 * is nearly always `near` or the one after; asking those first spares a look-up. text: room for the
 * longest token. */
static int32_t find_joined(const struct vocab *v, const struct gguf_str half[2], int32_t near,
                           char *text)
{
    size_t n = half[0].len + half[1].len;
    for (int32_t id = near; id <= near + 1 && id < v->n; id++) {
        const struct gguf_str *t = &v->text[id];
        if (t->len == n && memcmp(t->s, half[0].s, half[0].len) == 0 &&
            memcmp(t->s + half[0].len, half[1].s, half[1].len) == 0)
            return vocab_is_plain(v, id) ? id : -1;
    }
    if (n > v->max_len)
        return -1;
    memcpy(text, half[0].s, half[0].len);
    memcpy(text + half[0].len, half[1].s, half[1].len);
    return vocab_find_plain(v, text, n);
}

static bool split_merge(const struct gguf_str *s, size_t rank, struct gguf_str half[2],
                        struct err *err)
{
    /* The first byte belongs to the left half even when it is a space. */
    const char *space = s->len > 2 ? memchr(s->s + 1, ' ', s->len - 2) : NULL;
    if (space == NULL)
        return err_set(
            err, ERR_MODEL,
            "key tokenizer.ggml.merges[%zu]: \"%.*s\", expected two texts with a space between",
            rank, (int)(s->len < 64 ? s->len : 64), s->s);
    half[0] = (struct gguf_str){s->s, (size_t)(space - s->s)};
    half[1] = (struct gguf_str){space + 1, s->len - half[0].len - 1};
    return true;
}

/* The merges first to first + n, n <= VOCAB_BLOCK / 2; in three passes so that their cache misses
 * overlap. */
static bool read_block(struct merges *m, const struct vocab *v, const struct gguf_arr *a,
                       size_t first, size_t n, int32_t *near, char *text, struct err *err)
{
    struct gguf_str half[VOCAB_BLOCK];
    int32_t id[VOCAB_BLOCK], joined[VOCAB_BLOCK / 2];
    for (size_t i = 0; i < n; i++)
        if (!split_merge(&a->strs[first + i], first + i, &half[2 * i], err))
            return false;
    vocab_find_block(v, half, 2 * n, id);
    for (size_t i = 0; i < n; i++) {
        joined[i] = -1;
        /* A vocabulary cut down without its merges has some that can never make a token. */
        if (id[2 * i] < 0 || id[2 * i + 1] < 0 || !vocab_is_plain(v, id[2 * i]) ||
            !vocab_is_plain(v, id[2 * i + 1]))
            continue;
        joined[i] = find_joined(v, &half[2 * i], *near, text);
        if (joined[i] >= 0)
            *near = joined[i];
        __builtin_prefetch(&m->slots[first_slot(m, pair_of(id[2 * i], id[2 * i + 1]))], 1);
    }
    for (size_t i = 0; i < n; i++) {
        if (joined[i] < 0)
            continue;
        uint64_t pair = pair_of(id[2 * i], id[2 * i + 1]);
        struct merge_slot *slot = find_merge(m, pair);
        if (slot->rank_1 == 0) /* of two equal merges the first counts */
            *slot = (struct merge_slot){
                .pair = pair, .rank_1 = (uint32_t)(first + i) + 1, .id = joined[i]};
    }
    return true;
}

bool merges_read(struct merges *m, const struct gguf *g, const struct vocab *v, struct err *err)
{
    static const char key[] = "tokenizer.ggml.merges";
    struct gguf_arr a;
    if (!gguf_arr(g, key, GGUF_STRING, &a, err))
        return gguf_has(g, key)
                   ? false
                   : err_set(err, ERR_MODEL, "key %s: missing, BPE vocabularies need it", key);
    if (a.n > INT32_MAX / 4)
        return err_set(err, ERR_MODEL, "key %s: %zu merges, expected at most %d", key, a.n,
                       INT32_MAX / 4);
    size_t n_slots = 16;
    while (n_slots < a.n * 3 / 2)
        n_slots *= 2;
    m->slots = mem_alloc(n_slots, sizeof *m->slots);
    char *text = mem_alloc(v->max_len, 1);
    bool ok = m->slots != NULL && text != NULL;
    if (!ok)
        err_set(err, ERR_OOM, "no memory for %zu merges", a.n);
    m->mask = (uint32_t)(n_slots - 1);
    int32_t near = 0;
    for (size_t i = 0; ok && i < a.n; i += VOCAB_BLOCK / 2)
        ok = read_block(m, v, &a, i, a.n - i < VOCAB_BLOCK / 2 ? a.n - i : VOCAB_BLOCK / 2, &near,
                        text, err);
    free(text);
    return ok;
}

void merges_free(struct merges *m)
{
    free(m->slots);
}

/* ---- the heap ---- */

static void sift_down(struct cand *heap, size_t n, size_t i)
{
    struct cand c = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].key < heap[child].key)
            child++;
        if (c.key <= heap[child].key)
            break;
        heap[i] = heap[child];
    }
    heap[i] = c;
}

static void push(struct merger *m, struct cand c)
{
    size_t i = m->n_heap++;
    while (i > 0 && c.key < m->heap[(i - 1) / 2].key) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
}

static struct cand pop(struct merger *m)
{
    struct cand top = m->heap[0];
    m->heap[0] = m->heap[--m->n_heap];
    if (m->n_heap > 1)
        sift_down(m->heap, m->n_heap, 0);
    return top;
}

/* ---- a word ---- */

/* Room for n symbols and their candidates: n - 1 pairs at first, and each of at most n - 1 merges
 * adds one more than it took. */
static bool reserve(struct merger *m, size_t n)
{
    if (n > m->cap_syms) {
        struct sym *syms = mem_grow(m->syms, n, sizeof *syms);
        if (syms == NULL)
            return false;
        m->syms = syms;
        m->cap_syms = n;
    }
    if (n * 2 > m->cap_heap) {
        struct cand *heap = mem_grow(m->heap, n * 2, sizeof *heap);
        if (heap == NULL)
            return false;
        m->heap = heap;
        m->cap_heap = n * 2;
    }
    return true;
}

static size_t char_len(unsigned char lead)
{
    return lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

static void split_word(struct merger *m, const struct vocab *v, bool bpe, const char *word,
                       size_t n)
{
    size_t i = 0, k = 0;
    while (i < n) {
        size_t len = bpe ? 1 : char_len((unsigned char)word[i]);
        m->syms[k] = (struct sym){.prev = (int32_t)k - 1,
                                  .next = (int32_t)k + 1,
                                  .at = (uint32_t)i,
                                  .len = (uint32_t)len,
                                  .id = bpe ? v->byte_id[(unsigned char)word[i]]
                                            : vocab_find_plain(v, word + i, len)};
        k++;
        i += len;
    }
    m->syms[k - 1].next = -1;
    m->n_syms = k;
}

/* What the symbol left and the one after it would make, if anything. */
static bool pair_up(const struct merger *m, const struct vocab *v, const struct merges *merges,
                    const char *word, int32_t left, struct cand *c)
{
    if (left < 0 || m->syms[left].next < 0)
        return false;
    const struct sym *l = &m->syms[left], *r = &m->syms[l->next];
    uint32_t order;
    c->len = l->len + r->len;
    if (merges != NULL) {
        if (l->id < 0 || r->id < 0)
            return false;
        const struct merge_slot *slot = find_merge(merges, pair_of(l->id, r->id));
        if (slot->rank_1 == 0)
            return false;
        c->id = slot->id;
        order = slot->rank_1;
    } else {
        c->id = vocab_find_plain(v, word + l->at, c->len);
        if (c->id < 0)
            return false;
        order = v->order[c->id];
    }
    c->key = (uint64_t)order << 32 | (uint32_t)left;
    return true;
}

bool merger_run(struct merger *m, const struct vocab *v, const struct merges *merges,
                const char *word, size_t n)
{
    if (!reserve(m, n))
        return false;
    split_word(m, v, merges != NULL, word, n);
    struct cand c;
    m->n_heap = 0;
    for (size_t i = 1; i < m->n_syms; i++)
        if (pair_up(m, v, merges, word, (int32_t)i - 1, &c))
            m->heap[m->n_heap++] = c;
    for (size_t i = m->n_heap / 2; i-- > 0;)
        sift_down(m->heap, m->n_heap, i);
    while (m->n_heap > 0) {
        c = pop(m);
        int32_t left = (int32_t)(uint32_t)c.key;
        struct sym *l = &m->syms[left];
        if (l->len == 0 || l->next < 0)
            continue; /* merged into another symbol since, or with all that followed */
        struct sym *r = &m->syms[l->next];
        if (l->len + r->len != c.len)
            continue;
        l->len += r->len;
        l->id = c.id;
        r->len = 0;
        l->next = r->next;
        if (l->next >= 0)
            m->syms[l->next].prev = left;
        if (pair_up(m, v, merges, word, l->prev, &c))
            push(m, c);
        if (pair_up(m, v, merges, word, left, &c))
            push(m, c);
    }
    return true;
}

void merger_free(struct merger *m)
{
    free(m->syms);
    free(m->heap);
}
