#include "engine/pace.h"

enum {
    FIRST_ROWS = 32,
    FIRST_ROWS_BESIDE_DECODE = 16,
    MAX_MIXED = 16,    /* costs 1/48 of a prompt's time */
    FEW_ROWS = 4,      /* fewer tell nothing */
    TRUSTED_ROWS = 32, /* so many tell row_s well */
};

/* No step shall take longer: it bounds how long an arrival, a freed page or a sign of life waits.
 */
#define MAX_STEP_S 0.5
#define EWMA 0.2
/* A step that takes this many times longer or shorter than expected is a surprise. */
#define SURPRISE 1.25

double pace_rows(const struct pace *p, bool beside_decode)
{
    if (!beside_decode)
        return p->row_s > 0 ? MAX_STEP_S / p->row_s : FIRST_ROWS;
    if (p->row_s > 0 && p->decode_s > 0)
        return (PACE_STRETCH - 1) * p->decode_s / p->row_s;
    return FIRST_ROWS_BESIDE_DECODE;
}

bool pace_wants_decode(const struct pace *p)
{
    return p->decode_s <= 0 || p->n_mixed >= MAX_MIXED;
}

/* A running average that one hiccup of the machine cannot throw off. */
static void track(double *mean, double sample, double weight)
{
    double low = *mean / 2, high = *mean * 2;
    sample = sample > low ? sample : low;
    *mean += weight * ((sample < high ? sample : high) - *mean);
}

static void track_row(struct pace *p, int n, double seconds)
{
    double rest = seconds - p->decode_s > seconds / 10 ? seconds - p->decode_s : seconds / 10;
    double sample = rest / n, weight = EWMA;
    if (p->row_s <= 0) {
        p->row_s = sample;
        return;
    }
    /* Hiccups only add time: few rows may say that they are cheaper than thought, but hardly that
     * they are dearer. Else a loaded machine would keep prompts at few rows for long. */
    if (n < TRUSTED_ROWS && sample > p->row_s)
        weight *= (double)n / TRUSTED_ROWS;
    track(&p->row_s, sample, weight);
}

void pace_measure(struct pace *p, int n_decode, int n_prompt, double seconds)
{
    if (n_prompt == 0) {
        p->n_mixed = 0;
        if (p->decode_s > 0)
            track(&p->decode_s, seconds, EWMA);
        else
            p->decode_s = seconds;
        return;
    }
    if (n_decode > 0)
        p->n_mixed++;
    /* While decode_s is unknown all of the step is taken for rows. */
    if (n_prompt < (p->decode_s > 0 ? FEW_ROWS : TRUSTED_ROWS))
        return;
    double expected = p->decode_s + p->row_s * n_prompt;
    if (n_decode > 0 && p->row_s > 0 &&
        (seconds > SURPRISE * expected || seconds * SURPRISE < expected))
        p->n_mixed = MAX_MIXED;
    track_row(p, n_prompt, seconds);
}
