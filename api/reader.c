#include "api/reader.h"

static void forget(struct reader *r)
{
    buf_reset(&r->text);
    buf_reset(&r->whole);
}

/* Text of one token into r->text; true when a stop string is complete. */
static bool push(struct reader *r, int32_t id)
{
    forget(r);
    tok_stream_push(&r->chars, id, &r->whole);
    r->n_tokens++;
    if (r->n_tokens <= r->min_tokens) {
        buf_add(&r->text, r->whole.data, r->whole.len);
        return false;
    }
    return stop_push(&r->stop, r->whole.data, r->whole.len, &r->text);
}

bool reader_init(struct reader *r, const struct tok *t, const struct request *q)
{
    *r = (struct reader){.min_tokens = (int)q->min_tokens};
    tok_stream_init(&r->chars, t);
    stop_init(&r->stop, q->stop, q->n_stop);
    for (int i = 0; i < q->n_resume; i++)
        if (push(r, q->resume[i]))
            return false;
    forget(r);
    return true;
}

void reader_free(struct reader *r)
{
    stop_free(&r->stop);
    buf_free(&r->whole);
    buf_free(&r->text);
}

static void end(struct reader *r, struct piece *out, enum stop_reason stop)
{
    forget(r);
    if (stop != STOP_STRING) {
        stop_flush(&r->stop, &r->text);
        tok_stream_end(&r->chars, &r->text);
    }
    r->ended = true;
    *out = (struct piece){.type = PIECE_END, .text = r->text.data, .len = r->text.len, .stop = stop};
}

static void fail(struct reader *r, struct piece *out)
{
    gen_finish(r->gen);
    r->ended = true;
    *out = (struct piece){.type = PIECE_ERROR,
                          .ev = {.type = GEN_EV_ERROR, .code = ERR_INTERNAL, .message = "out of memory"}};
}

bool reader_next(struct reader *r, struct piece *out)
{
    struct gen_event ev;
    if (r->ended)
        return false;
    if (r->stopped) {
        end(r, out, STOP_STRING);
        return true;
    }
    if (!gen_next(r->gen, &ev))
        return false;
    switch (ev.type) {
    case GEN_EV_TOKEN:
        r->stopped = push(r, ev.token);
        if (r->text.failed || r->whole.failed) {
            fail(r, out);
            return true;
        }
        if (r->stopped)
            gen_finish(r->gen);
        *out = (struct piece){.type = PIECE_TOKEN,
                              .text = r->text.data,
                              .len = r->text.len,
                              .id = ev.token,
                              .index = ev.index};
        return true;
    case GEN_EV_END:
        end(r, out, ev.stop);
        return true;
    case GEN_EV_ERROR:
        r->ended = true;
        *out = (struct piece){.type = PIECE_ERROR, .ev = ev};
        return true;
    case GEN_EV_STARTED:
        break;
    }
    *out = (struct piece){.type = PIECE_STARTED, .ev = ev};
    return true;
}
