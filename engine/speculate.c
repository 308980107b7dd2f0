#include "engine/speculate.h"

/* What a step with drafts must bring at least, beyond its cost: estimates are noisy. And what a
 * neighbour without drafts may lose by it. */
#define MARGIN 1.03
#define TOLERANCE 1.03
#define EWMA 0.2
/* A step that was found slow once must be tried again some day: with each step measured, what more
 * rows are thought to cost moves towards what this one cost. Fewer rows never cost more. */
#define FORGET (1.0 / 1024)

/* What n_rows rows are taken to cost: what is known of the next fewer ones, as if more were free;
 * 0 = nothing is known. */
static double assumed(const struct speculate *sp, int n_rows)
{
    while (n_rows > 1 && sp->step_s[n_rows] <= 0)
        n_rows--;
    return sp->step_s[n_rows];
}

void speculate_measure(struct speculate *sp, int n_rows, double seconds)
{
    if (n_rows > SPECULATE_ROWS)
        return;
    double before = assumed(sp, n_rows), *mean = &sp->step_s[n_rows];
    if (before <= 0)
        before = seconds;
    double limit = 2 * before; /* one hiccup of the machine must not look like a price */
    *mean = before + EWMA * ((seconds < limit ? seconds : limit) - before);
    for (int n = 1; n <= SPECULATE_ROWS; n++)
        if (sp->step_s[n] > *mean)
            sp->step_s[n] -= (n < n_rows ? EWMA : FORGET) * (sp->step_s[n] - *mean);
}

static void give(struct bid *b)
{
    b->chance *= draft_chance(b->draft, b->n++);
    b->gain += b->chance;
}

/* The bid to which one draft more brings most; NULL = none has use for one. */
static struct bid *best_bid(struct bid *bids, int n_bids)
{
    struct bid *best = NULL;
    double most = 0;
    for (struct bid *b = bids; b < bids + n_bids; b++) {
        double more = b->n < b->max ? b->chance * draft_chance(b->draft, b->n) : 0;
        if (more > most) {
            best = b;
            most = more;
        }
    }
    return best;
}

static double least_gain(const struct bid *bids, int n_bids)
{
    double least = bids[0].gain;
    for (int i = 1; i < n_bids; i++)
        least = bids[i].gain < least ? bids[i].gain : least;
    return least;
}

static void clear(struct bid *bids, int n_bids)
{
    for (int i = 0; i < n_bids; i++) {
        bids[i].n = 0;
        bids[i].chance = 1;
        bids[i].gain = 0;
    }
}

/* How many of the best drafts are worth their rows. Nothing is considered beyond the first unknown
 * cost: so costs become known one row at a time. */
static int worthwhile(const struct speculate *sp, struct bid *bids, int n_bids, int room)
{
    double base = sp->step_s[n_bids], cost = base, gain = 0, best = MARGIN;
    int n_best = 0;
    for (int n = 1; n <= room; n++) {
        struct bid *b = best_bid(bids, n_bids);
        if (b == NULL)
            break;
        gain -= b->gain;
        give(b);
        gain += b->gain;
        double known = sp->step_s[n_bids + n];
        cost = known > cost ? known : cost;
        double value = (1 + gain / n_bids) * base / cost;
        if (value > best && cost <= base * TOLERANCE * (1 + least_gain(bids, n_bids))) {
            best = value;
            n_best = n;
        }
        if (known <= 0)
            break;
    }
    return n_best;
}

int speculate_choose(const struct speculate *sp, struct bid *bids, int n_bids, int room)
{
    clear(bids, n_bids);
    if (sp->mode == SPECULATE_OFF || n_bids == 0 || n_bids >= SPECULATE_ROWS)
        return 0;
    room = room < SPECULATE_ROWS - n_bids ? room : SPECULATE_ROWS - n_bids;
    if (sp->mode == SPECULATE_ON) {
        if (sp->step_s[n_bids] <= 0)
            return 0;
        room = worthwhile(sp, bids, n_bids, room);
        clear(bids, n_bids);
    }
    int n = 0;
    for (struct bid *b = NULL; n < room; n++) {
        b = best_bid(bids, n_bids);
        if (b == NULL)
            break;
        give(b);
    }
    return n;
}
