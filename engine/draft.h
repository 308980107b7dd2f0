/* Prompt look-up: what followed the last time that a history ended as it does now. One per
 * generation; an index of pairs of tokens makes a look-up a few steps whatever the length, and
 * every token drawn afterwards, drafted or not, tells how far such a guess can be trusted. It
 * allocates nothing: the gen that holds it has the arrays. */
#ifndef ENGINE_DRAFT_H
#define ENGINE_DRAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DRAFT_CLASSES = 4 };

struct draft {
    int32_t *head; /* (draft_heads): by hash of a pair, 1 + where it ended last; 0 = nowhere */
    int32_t *link; /* (as long as the history may get): 1 + where the same hash ended before */
    int n_heads;
    int n_indexed; /* tokens of the history whose pairs are in the index */
    int n_seen;    /* length of the history when it was last looked up */
    int from;      /* position of what may follow it, */
    int n_match;   /* which so many tokens led to, as they lead to the end; 0 = no guess */
    float chance[DRAFT_CLASSES]; /* that a guess is right, by length of the match */
};

/* How many heads serve a history of at most n tokens. */
size_t draft_heads(size_t n);
void draft_init(struct draft *d, int32_t *head, size_t n_heads, int32_t *link);

/* Guesses what follows history[0..n), n >= 1; histories only grow. Returns whether there is a
 * guess. */
bool draft_find(struct draft *d, const int32_t *history, int n);
/* The i-th token of the guess, i = 0, 1, ...; a guess has no end: it repeats. */
int32_t draft_token(const struct draft *d, const int32_t *history, int i);
/* The chance that the i-th is right if those before it are. */
float draft_chance(const struct draft *d, int i);
/* Token is what really came at position n of the history: was it guessed? */
bool draft_check(struct draft *d, const int32_t *history, int n, int32_t token);

#endif
