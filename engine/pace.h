/* What rows cost, learned from the steps so far: how many prompt rows a step may hold so that those
 * who decode beside them wait at most PACE_STRETCH times as long as without. A step is taken to
 * cost decode_s and row_s for each prompt row. Steps of decode rows alone show decode_s, the rest
 * of the others shows row_s. While a prompt is read there would be none of the former: the pace
 * asks for one now and then, and at once when a step took another time than expected, so that a
 * machine that slows down as a whole leaves the number of rows as it was. */
#ifndef ENGINE_PACE_H
#define ENGINE_PACE_H

#include <stdbool.h>

/* A step with decoding neighbours may take this many times what it takes without prompt rows. */
#define PACE_STRETCH 3.0

struct pace {        /* running averages in seconds; 0 = not known yet */
    double decode_s; /* a step of decode rows alone */
    double row_s;    /* a prompt row more in a step */
    int n_mixed;     /* steps with prompt and decode rows since decode_s was measured */
};

/* Prompt rows of a step; the caller has his own limits. */
double pace_rows(const struct pace *p, bool beside_decode);
/* The next step should hold decode rows alone, if there are any. */
bool pace_wants_decode(const struct pace *p);
void pace_measure(struct pace *p, int n_decode, int n_prompt, double seconds);

#endif
