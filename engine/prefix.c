#include "engine/prefix.h"
#include "base/clock.h"
#include "base/mem.h"
#include "kernels/numerics.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

struct prefix_what { /* no padding: it is hashed and compared as bytes */
    struct prefix_scope scope;
    int64_t before;
    int32_t tokens[NUM_TILE];
};
_Static_assert(sizeof(struct prefix_what) == 24 + 4 * NUM_TILE, "padding");

struct prefix_entry {
    struct prefix_what what;
    int32_t bucket; /* -1 = not in the map */
    int32_t next;   /* page in the same bucket; -1 = none */
};

/* ---- SipHash-2-4 (Aumasson and Bernstein) ---- */

static uint64_t rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static void mix(uint64_t v[4], int n_rounds)
{
    for (int i = 0; i < n_rounds; i++) {
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

static void absorb(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    mix(v, 2);
    v[0] ^= word;
}

static uint64_t hash(const uint64_t key[2], const void *data, size_t n)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                     key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    const uint8_t *p = data;
    uint64_t word, last = (uint64_t)n << 56;
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        absorb(v, word);
    }
    word = 0;
    memcpy(&word, p, n);
    absorb(v, word | last);
    v[2] ^= 0xff;
    mix(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* ---- the map ---- */

bool prefix_init(struct prefix *p, int n_pages, int n_buckets, struct err *err)
{
    *p = (struct prefix){.n_buckets = 1};
    while (p->n_buckets < (n_buckets > 0 ? n_buckets : n_pages) && p->n_buckets < 1 << 30)
        p->n_buckets *= 2;
    p->bucket = mem_alloc((size_t)p->n_buckets, sizeof *p->bucket);
    p->entry = mem_alloc((size_t)n_pages, sizeof *p->entry);
    if (p->bucket == NULL || p->entry == NULL) {
        prefix_free(p);
        return err_set(err, ERR_OOM, "no memory for the contents of %d KV pages", n_pages);
    }
    for (int i = 0; i < p->n_buckets; i++)
        p->bucket[i] = -1;
    for (int i = 0; i < n_pages; i++)
        p->entry[i].bucket = -1;
    if (getrandom(p->key, sizeof p->key, 0) != sizeof p->key)
        p->key[0] = clock_ns(); /* a kernel without randomness: the comparison still decides */
    return true;
}

void prefix_free(struct prefix *p)
{
    free(p->bucket);
    free(p->entry);
    *p = (struct prefix){0};
}

struct prefix_scope prefix_scope(const struct prefix *p, const char *name)
{
    size_t n = strlen(name);
    return (struct prefix_scope){{hash(p->key, name, n), hash(p->key + 2, name, n)}};
}

static struct prefix_what describe(struct prefix_scope scope, int before, const int32_t *tokens)
{
    struct prefix_what what = {.scope = scope, .before = before};
    memcpy(what.tokens, tokens, sizeof what.tokens);
    return what;
}

static int bucket_of(const struct prefix *p, const struct prefix_what *what)
{
    return (int)(hash(p->key, what, sizeof *what) & (uint64_t)(p->n_buckets - 1));
}

int prefix_find(const struct prefix *p, struct prefix_scope scope, int before,
                const int32_t *tokens)
{
    struct prefix_what what = describe(scope, before, tokens);
    int page = p->bucket[bucket_of(p, &what)];
    while (page >= 0 && memcmp(&p->entry[page].what, &what, sizeof what) != 0)
        page = p->entry[page].next;
    return page;
}

void prefix_add(struct prefix *p, int page, struct prefix_scope scope, int before,
                const int32_t *tokens)
{
    struct prefix_entry *e = &p->entry[page];
    e->what = describe(scope, before, tokens);
    e->bucket = bucket_of(p, &e->what);
    e->next = p->bucket[e->bucket];
    p->bucket[e->bucket] = page;
}

bool prefix_has(const struct prefix *p, int page)
{
    return p->entry[page].bucket >= 0;
}

void prefix_remove(struct prefix *p, int page)
{
    struct prefix_entry *e = &p->entry[page];
    int32_t *at = &p->bucket[e->bucket];
    while (*at != page)
        at = &p->entry[*at].next;
    *at = e->next;
    e->bucket = -1;
}
