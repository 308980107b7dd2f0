#include "engine/draft.h"

#include <string.h>

enum {
    MIN_HEADS = 64,
    MAX_HEADS = 1 << 16,
    MAX_TRIES = 16, /* ends of the same pair that a look-up compares, the latest first */
    MAX_MATCH = 16, /* tokens it compares of each */
};

#define LEARN 0.1f

size_t draft_heads(size_t n)
{
    size_t heads = MIN_HEADS;
    while (heads < n && heads < MAX_HEADS)
        heads *= 2;
    return heads;
}

void draft_init(struct draft *d, int32_t *head, size_t n_heads, int32_t *link)
{
    *d = (struct draft){.head = head, .link = link, .n_heads = (int)n_heads};
    static const float at_first[DRAFT_CLASSES] = {0.3f, 0.4f, 0.6f, 0.8f};
    memcpy(d->chance, at_first, sizeof at_first);
}

static int class_of(int n_match)
{
    return n_match < 3 ? 0 : n_match < 4 ? 1 : n_match < 8 ? 2 : 3;
}

/* The pair that ends at position at >= 1. */
static int32_t *head_of(const struct draft *d, const int32_t *history, int at)
{
    uint32_t h = (uint32_t)history[at - 1] * 0x9E3779B1u ^ (uint32_t)history[at];
    h = (h ^ h >> 15) * 0x85EBCA6Bu;
    return &d->head[(h ^ h >> 16) & (uint32_t)(d->n_heads - 1)];
}

/* Tokens before a and b, themselves included, that are the same; a < b. */
static int match(const int32_t *history, int a, int b)
{
    int n = 0;
    while (n < MAX_MATCH && n <= a && history[a - n] == history[b - n])
        n++;
    return n;
}

bool draft_find(struct draft *d, const int32_t *history, int n)
{
    int last = n - 1;
    for (int at = d->n_indexed > 0 ? d->n_indexed : 1; at < last; at++) {
        int32_t *head = head_of(d, history, at);
        d->link[at] = *head;
        *head = at + 1;
    }
    if (last > d->n_indexed)
        d->n_indexed = last; /* the last pair itself comes in next time: it would find itself */
    d->n_seen = n;
    d->n_match = 0;
    if (n < 2)
        return false;
    int at = *head_of(d, history, last) - 1;
    for (int i = 0; i < MAX_TRIES && at >= 0; i++, at = d->link[at] - 1) {
        int len = match(history, at, last);
        if (len < 2 || len <= d->n_match) /* below 2: another pair with the same hash */
            continue;
        d->n_match = len;
        d->from = at + 1;
    }
    return d->n_match > 0;
}

int32_t draft_token(const struct draft *d, const int32_t *history, int i)
{
    return history[d->from + i % (d->n_seen - d->from)];
}

float draft_chance(const struct draft *d, int i)
{
    return d->chance[class_of(d->n_match + i)];
}

bool draft_check(struct draft *d, const int32_t *history, int n, int32_t token)
{
    if (d->n_match == 0)
        return false;
    int i = n - d->n_seen;
    bool right = draft_token(d, history, i) == token;
    float *chance = &d->chance[class_of(d->n_match + i)];
    *chance += LEARN * ((right ? 1.0f : 0.0f) - *chance);
    if (!right)
        d->n_match = 0; /* what it says further is about another text */
    return right;
}
