/* Whether drafts pay. A row more in a step costs something, which this learns by the number of
 * rows; a draft brings a token with some chance. Drafts are given to the generations where the
 * tokens expected outweigh the time expected, and only as far as no neighbour pays for them. */
#ifndef ENGINE_SPECULATE_H
#define ENGINE_SPECULATE_H

#include "engine/draft.h"
#include "engine/engine.h"

enum { SPECULATE_ROWS = 64, DRAFT_MAX = 7 }; /* rows of a step with drafts; drafts of a gen in it */

struct bid {         /* one for each generation that has a row in the step */
    struct gen *gen; /* the caller's */
    const struct draft *draft;
    int max;             /* drafts it could use; 0 = it has no guess */
    int n;               /* drafts it gets */
    double chance, gain; /* of all n; tokens expected from them */
};

struct speculate {
    enum speculation mode;
    double step_s[SPECULATE_ROWS + 1]; /* what a step of so many decode rows takes; 0 = unknown */
};

/* A step of n_rows decode rows, drafts included, took so long. */
void speculate_measure(struct speculate *sp, int n_rows, double seconds);

/* Fills in n of each bid, at most room in all. Returns their sum. */
int speculate_choose(const struct speculate *sp, struct bid *bids, int n_bids, int room);

#endif
