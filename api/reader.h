/* From the engine's events to text: whole UTF-8 characters, stop strings, counts. What a stream, a collected answer and
 * (later) other answer shapes are made of. Used by one thread at a time. */
#ifndef API_READER_H
#define API_READER_H

#include "api/request.h"
#include "api/stop.h"
#include "engine/text/tok.h"

enum piece_type { PIECE_STARTED, PIECE_TOKEN, PIECE_END, PIECE_ERROR };

struct piece {
    enum piece_type type;
    const char *text;           /* TOKEN: what became certain with it; END: what was still held. Until the next call */
    size_t len;
    int32_t id;                 /* TOKEN */
    int index;
    enum stop_reason stop;      /* END */
    struct gen_event ev;        /* STARTED, ERROR: as the engine said it */
};

struct reader {
    struct gen *gen;            /* not owned */
    struct tok_stream chars;
    struct stop stop;
    struct buf whole, text;     /* scratch: characters of one token, text of one piece */
    int min_tokens;             /* stop strings are looked for after that many */
    int n_tokens;               /* read so far, resumed ones included */
    bool stopped, ended;        /* a stop string matched; END or ERROR was given */
};

/* The tokens of resume_from are text that was given out elsewhere. false: a stop string ends within it. */
bool reader_init(struct reader *r, const struct tok *t, const struct request *q);
void reader_free(struct reader *r);

bool reader_next(struct reader *r, struct piece *out);    /* false: nothing for now */

#endif
