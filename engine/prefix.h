/* What full KV pages hold, so that a request whose prompt begins alike can use them again: a map
 * from (the page before, scope, NUM_TILE tokens) to a page. It says nothing about who holds a page;
 * kv.h does.
 *
 * The hash, keyed by a random key of this process, only finds candidates; tokens, scope and the
 * page before decide. As the page before was found in the same way, its number stands for all the
 * tokens up to there: so a page must be removed before any page that follows it. Allocates when it
 * is made, never later; not thread-safe. */
#ifndef ENGINE_PREFIX_H
#define ENGINE_PREFIX_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { PREFIX_ROOT = -1 }; /* the page before the first */

/* Who may use a page: requests with the same scope. Keyed as well: nobody can make two alike. */
struct prefix_scope {
    uint64_t id[2];
};

struct prefix_entry;

struct prefix {
    uint64_t key[4];
    int n_buckets;              /* a power of two */
    int32_t *bucket;            /* (n_buckets), the first page of its list; -1 = none */
    struct prefix_entry *entry; /* (n_pages) */
};

/* n_buckets 0 = as many as pages; tests force collisions. ERR_OOM. */
bool prefix_init(struct prefix *p, int n_pages, int n_buckets, struct err *err);
void prefix_free(struct prefix *p);

struct prefix_scope prefix_scope(const struct prefix *p, const char *name);

/* The page after `before` that holds these NUM_TILE tokens; -1 = none. */
int prefix_find(const struct prefix *p, struct prefix_scope scope, int before,
                const int32_t *tokens);
/* The page is not in the map, nor is an equal one. */
void prefix_add(struct prefix *p, int page, struct prefix_scope scope, int before,
                const int32_t *tokens);
bool prefix_has(const struct prefix *p, int page);
void prefix_remove(struct prefix *p, int page); /* it is in the map */

#endif
