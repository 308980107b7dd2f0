/* Speculation: what is guessed, when a guess is tried, and that nobody can tell from the tokens. */
#include "engine/scheduler.h"
#include "tests/rig.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* ---- the look-up ---- */

enum { ROOM = 4096 };

struct text {
    struct draft draft;
    int32_t token[ROOM], link[ROOM], head[ROOM];
    int n;
};

static void text_init(struct text *t)
{
    memset(t, 0, sizeof *t);
    draft_init(&t->draft, t->head, draft_heads(ROOM), t->link);
}

static void say(struct text *t, const char *words)
{
    for (; *words != 0; words++)
        t->token[t->n++] = *words;
}

static bool find(struct text *t)
{
    return draft_find(&t->draft, t->token, t->n);
}

static void assert_guess(struct text *t, const char *want)
{
    ck_assert_msg(find(t), "no guess, expected %s", want);
    for (int i = 0; want[i] != 0; i++)
        ck_assert_int_eq(draft_token(&t->draft, t->token, i), want[i]);
}

START_TEST(test_no_guess_without_a_pair_seen_before)
{
    static struct text t;
    text_init(&t);
    const char *words = "abcadbdcba";
    for (int i = 0; words[i] != 0; i++) {
        say(&t, (const char[]){words[i], 0});
        ck_assert(!find(&t));
    }
}
END_TEST

START_TEST(test_the_longest_match_wins_and_of_equals_the_latest)
{
    static struct text t;
    text_init(&t);
    say(&t, "xabcd1 yabc2 abc3 ");
    say(&t, "bc");
    assert_guess(&t, "3 bc");
    text_init(&t);
    say(&t, "xabcd1 yabc2 zbc3 xabc");
    assert_guess(&t, "d1 yabc");
    ck_assert_int_eq(t.draft.n_match, 4);
}
END_TEST

START_TEST(test_a_loop_goes_on_for_ever)
{
    static struct text t;
    text_init(&t);
    say(&t, "aaa");
    assert_guess(&t, "aaaaaaaaaaaa");
    text_init(&t);
    say(&t, "abcabc");
    assert_guess(&t, "abcabcabcabcabc");
}
END_TEST

START_TEST(test_looking_up_again_gives_the_same)
{
    static struct text t;
    text_init(&t);
    say(&t, "one two one t");
    for (int i = 0; i < 3; i++)
        assert_guess(&t, "wo one two");
    say(&t, "wo"); /* several tokens between two look-ups */
    assert_guess(&t, " one two");
}
END_TEST

/* Against a plain search, on a text that is full of repetitions. */
START_TEST(test_agrees_with_a_plain_search)
{
    static struct text t;
    unsigned seed = 1;
    text_init(&t);
    for (int i = 0; i < 2000; i++) {
        int back = i > 40 && rand_r(&seed) % 10 > 0 ? 7 + i / 400 * 9 : 0;
        t.token[t.n] = back > 0 ? t.token[t.n - back] : (int32_t)(1000 + rand_r(&seed) % 500);
        t.n++;
        int longest = 0;
        for (int at = 1; at < t.n - 1; at++) {
            int len = 0;
            while (len < 16 && len <= at && t.token[at - len] == t.token[t.n - 1 - len])
                len++;
            longest = len > longest ? len : longest;
        }
        ck_assert_int_eq(find(&t), longest >= 2);
        if (longest >= 2) /* so many pairs may lie between that the longest is not looked at */
            ck_assert_int_ge(t.draft.n_match, longest < 4 ? 2 : longest);
    }
}
END_TEST

START_TEST(test_what_came_teaches)
{
    static struct text t;
    text_init(&t);
    say(&t, "abcd abcd abcd ab");
    find(&t);
    float before = draft_chance(&t.draft, 0);
    ck_assert(draft_check(&t.draft, t.token, t.n, 'c'));
    ck_assert_float_gt(draft_chance(&t.draft, 0), before);
    say(&t, "c");
    ck_assert(draft_check(&t.draft, t.token, t.n, 'd')); /* the same guess goes on */
    say(&t, "d");
    before = draft_chance(&t.draft, 2);
    ck_assert(!draft_check(&t.draft, t.token, t.n, 'x'));
    ck_assert_float_lt(draft_chance(&t.draft, 2), before);
    before = draft_chance(&t.draft, 0);
    ck_assert(!draft_check(&t.draft, t.token, t.n, 'x')); /* it was wrong: nothing more to learn */
    ck_assert_float_eq(draft_chance(&t.draft, 0), before);
}
END_TEST

/* ---- when it pays ---- */

struct market {
    struct speculate sp;
    struct draft draft[8];
    struct bid bids[8];
};

/* n generations whose guesses are right with these chances, whatever the match. */
static int offer(struct market *m, int n, const double *chance, int max, int room)
{
    for (int i = 0; i < n; i++) {
        for (int c = 0; c < DRAFT_CLASSES; c++)
            m->draft[i].chance[c] = (float)chance[i];
        m->draft[i].n_match = 2;
        m->bids[i] = (struct bid){.draft = &m->draft[i], .max = chance[i] > 0 ? max : 0};
    }
    return speculate_choose(&m->sp, m->bids, n, room);
}

/* Steps of up to n rows become known: rows up to `cheap` cost nothing, each further one a base. */
static void learn_cost(struct market *m, int n, int cheap)
{
    for (int again = 0; again < 20; again++)
        for (int i = 1; i <= n; i++)
            speculate_measure(&m->sp, i, i <= cheap ? 0.004 : 0.004 * (1 + i - cheap));
}

START_TEST(test_drafts_where_tokens_outweigh_time)
{
    static struct market m;
    m = (struct market){.sp.mode = SPECULATE_ON};
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, 15), 0); /* what a step costs is not known */
    learn_cost(&m, 16, 4);
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, 15), 3); /* the cheap rows */
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 2, 15), 2); /* no more than it can use */
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, 1), 1);  /* or than there is room for */
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, -1), 0);
    ck_assert_int_eq(offer(&m, 1, (double[]){0.02}, 7, 15), 0); /* hardly ever right */
    learn_cost(&m, 16, 1);
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, 15), 0); /* a row costs as much as a step */
    m.sp.mode = SPECULATE_OFF;
    learn_cost(&m, 16, 16);
    ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, 15), 0);
    m.sp.mode = SPECULATE_ALWAYS;
    learn_cost(&m, 16, 1);
    ck_assert_int_eq(offer(&m, 1, (double[]){0.02}, 7, 15), 7);
}
END_TEST

START_TEST(test_the_surest_guess_comes_first)
{
    static struct market m;
    m = (struct market){.sp.mode = SPECULATE_ON};
    learn_cost(&m, 16, 16);
    ck_assert_int_eq(offer(&m, 3, (double[]){0.6, 0.9, 0.2}, 7, 5), 5);
    ck_assert(m.bids[0].n == 1 && m.bids[1].n == 4 && m.bids[2].n == 0);
}
END_TEST

START_TEST(test_no_neighbour_pays_for_drafts)
{
    static struct market m;
    m = (struct market){.sp.mode = SPECULATE_ON};
    learn_cost(&m, 16, 4);
    double one[4] = {0.95, 0, 0, 0}, all[4] = {0.95, 0.95, 0.95, 0.95};
    ck_assert_int_eq(offer(&m, 4, one, 7, 12), 0); /* it alone would gain, the others wait */
    ck_assert_int_eq(offer(&m, 3, one, 7, 13), 1); /* a row that costs nothing */
    for (int i = 0; i < 100; i++)
        speculate_measure(&m.sp, 8, 0.005);
    ck_assert_int_eq(offer(&m, 4, all, 7, 12), 4); /* all gain more than they wait */
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(m.bids[i].n, 1);
}
END_TEST

START_TEST(test_unknown_costs_are_tried_one_row_at_a_time)
{
    static struct market m;
    m = (struct market){.sp.mode = SPECULATE_ON};
    learn_cost(&m, 1, 1);
    for (int n = 1; n <= 7; n++) {
        ck_assert_int_eq(offer(&m, 1, (double[]){0.9}, 7, 15), n);
        speculate_measure(&m.sp, 1 + n, 0.004);
    }
    for (int i = 8; i >= 2; i--) /* one bad day */
        for (int again = 0; again < 20; again++)
            speculate_measure(&m.sp, i, 0.1);
    int n_steps = 0;
    while (offer(&m, 1, (double[]){0.9}, 7, 15) == 0 && n_steps++ < 100000)
        speculate_measure(&m.sp, 1, 0.004);
    ck_assert_msg(n_steps > 100 && n_steps < 10000, "tried again after %d steps", n_steps);
}
END_TEST

/* ---- the same bytes ---- */

enum { N_CASES = 12, N_TOKENS = 120 };

/* Only these tokens are likely: at any temperature the text repeats itself. */
static const struct logit_bias few[] = {{40, 60}, {41, 60}, {42, 60}, {300, 59}};

static struct gen_request case_request(int i)
{
    struct gen_request q = rig_request(20 + i, (uint64_t)i, N_TOKENS);
    q.sample.temperature = i % 2 == 0 ? 0 : 0.8f;
    if (i % 4 > 1) {
        q.sample.bias = few;
        q.sample.n_bias = sizeof few / sizeof *few;
    }
    if (i >= 4)
        q.sample.repetition_penalty = 1.05f;
    if (i >= 6)
        q.sample.presence_penalty = 0.2f, q.sample.frequency_penalty = 0.01f;
    if (i >= 8)
        q.n_logprobs = i % 3;
    if (i == 9)
        q.sample.top_k = 3;
    if (i == 11)
        q.sample.top_p = 0.8f;
    return q;
}

static void open_rig(struct rig *r, enum speculation mode)
{
    rig_open(r, &(struct rig_options){.max_seqs = 16, .max_logits = 48, .engine.speculate = mode});
}

static void run(struct rig *r, struct reader *rd, struct gen_request *q)
{
    reader_start(rd, r, q);
    reader_finish(rd);
    reader_free(rd);
}

static void assert_same(const struct reader *a, const struct reader *b, const char *what, int i)
{
    ck_assert_msg(a->n_tokens == b->n_tokens, "%s %d: %d tokens, expected %d", what, i, a->n_tokens,
                  b->n_tokens);
    ck_assert_mem_eq(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    ck_assert_mem_eq(a->logprobs, b->logprobs, (size_t)a->n_tokens * sizeof *a->logprobs);
    ck_assert(a->last.type == b->last.type && a->last.stop == b->last.stop &&
              a->last.code == b->last.code);
}

static uint64_t accepted(const struct rig *r)
{
    struct engine_stats s;
    engine_stats_get(r->engine, &s);
    ck_assert_uint_le(s.draft_accepted, s.draft_tokens);
    return s.draft_accepted;
}

static void run_cases(enum speculation mode, struct reader *rd)
{
    struct rig r;
    open_rig(&r, mode);
    for (int i = 0; i < N_CASES; i++) {
        struct gen_request q = case_request(i);
        run(&r, &rd[i], &q);
    }
    rig_close(&r);
}

START_TEST(test_same_bytes_alone_and_together)
{
    static struct reader want[N_CASES], got[N_CASES];
    struct rig r;
    run_cases(SPECULATE_OFF, want);
    for (int mode = SPECULATE_ON; mode <= SPECULATE_ALWAYS; mode++) {
        open_rig(&r, (enum speculation)mode);
        for (int i = 0; i < N_CASES; i++) {
            struct gen_request q = case_request(i);
            run(&r, &got[i], &q);
            assert_same(&got[i], &want[i], "alone", i);
        }
        if (mode == SPECULATE_ALWAYS)
            ck_assert_uint_gt(accepted(&r), N_CASES * N_TOKENS / 5);
        rig_hold();
        for (int i = 0; i < N_CASES; i++) {
            struct gen_request q = case_request(i);
            reader_start(&got[i], &r, &q);
        }
        rig_go();
        for (int i = 0; i < N_CASES; i++) {
            reader_finish(&got[i]);
            reader_free(&got[i]);
            assert_same(&got[i], &want[i], "together", i);
        }
        rig_close(&r);
    }
}
END_TEST

/* A request for a loop: one token is likelier than all others. */
static struct gen_request loop_request(int max_tokens)
{
    struct gen_request q = rig_request(30, 7, max_tokens);
    q.sample.temperature = 0;
    q.sample.bias = few;
    q.sample.n_bias = 1;
    return q;
}

START_TEST(test_a_repetitive_text_takes_fewer_steps)
{
    static struct reader rd;
    struct engine_stats s;
    struct rig r;
    open_rig(&r, SPECULATE_ALWAYS);
    struct gen_request q = loop_request(200);
    run(&r, &rd, &q);
    ck_assert_int_eq(rd.n_tokens, 200);
    rig_wait_idle(&r);
    engine_stats_get(r.engine, &s);
    ck_assert_msg(s.draft_accepted > 120, "%d of %d accepted", (int)s.draft_accepted,
                  (int)s.draft_tokens);
    ck_assert_uint_eq(s.tokens_out, 200);
    ck_assert_uint_eq(s.steps + s.draft_accepted, 200); /* each step draws one token, and those */
    ck_assert_int_le(atomic_load(&rd.n_wakes), (int)s.steps + 1);
    rig_close(&r);
}
END_TEST

START_TEST(test_every_length_and_the_context_end_where_they_should)
{
    static struct reader want, rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){.n_ctx = 90, .engine.speculate = SPECULATE_OFF});
    struct gen_request q = loop_request(1000);
    run(&r, &want, &q);
    ck_assert_int_eq(want.last.stop, STOP_CONTEXT);
    ck_assert_int_eq(want.n_tokens, 61);
    rig_close(&r);
    rig_open(&r, &(struct rig_options){.n_ctx = 90, .engine.speculate = SPECULATE_ALWAYS});
    for (int n = 1; n <= 70; n++) { /* also in the middle of what would be accepted */
        q = loop_request(n);
        run(&r, &rd, &q);
        ck_assert_int_eq(rd.n_tokens, n < 61 ? n : 61);
        ck_assert_int_eq(rd.last.stop, n <= 61 ? STOP_MAX_TOKENS : STOP_CONTEXT);
        ck_assert_mem_eq(rd.tokens, want.tokens, (size_t)rd.n_tokens * sizeof *rd.tokens);
    }
    rig_close(&r);
}
END_TEST

START_TEST(test_stop_tokens_and_min_tokens_at_drafted_positions)
{
    static struct reader want[16], rd;
    struct rig r;
    int n_stopped = 0;
    for (int mode = SPECULATE_OFF; mode <= SPECULATE_ALWAYS; mode += SPECULATE_ALWAYS) {
        open_rig(&r, (enum speculation)mode);
        for (int i = 0; i < 16; i++) {
            struct gen_request q = case_request(3);
            q.stop_tokens = &few[i % 4].token;
            q.n_stop_tokens = 1;
            q.min_tokens = i / 4 * 37;
            run(&r, mode == SPECULATE_OFF ? &want[i] : &rd, &q);
            if (mode == SPECULATE_OFF)
                continue;
            assert_same(&rd, &want[i], "stop", i);
            n_stopped += rd.last.stop == STOP_TOKEN;
        }
        rig_close(&r);
    }
    ck_assert_int_ge(n_stopped, 8);
}
END_TEST

START_TEST(test_resumed_in_the_middle_of_a_run)
{
    static struct reader whole, part;
    struct rig r;
    open_rig(&r, SPECULATE_ALWAYS);
    for (int c = 2; c < 8; c += 5) {
        struct gen_request q = case_request(c);
        run(&r, &whole, &q);
        for (int n = 1; n < N_TOKENS; n += 17) {
            q = case_request(c);
            q.resume = whole.tokens;
            q.n_resume = n;
            run(&r, &part, &q);
            ck_assert_int_eq(part.n_tokens, N_TOKENS - n);
            ck_assert_int_eq(part.first_index, n);
            ck_assert_mem_eq(part.tokens, whole.tokens + n,
                             (size_t)part.n_tokens * sizeof *part.tokens);
        }
    }
    rig_close(&r);
}
END_TEST

START_TEST(test_a_full_ring_stops_it_at_the_same_token)
{
    static struct reader want, rd;
    struct rig r;
    for (int mode = SPECULATE_OFF; mode <= SPECULATE_ALWAYS; mode += SPECULATE_ALWAYS) {
        rig_open(&r, &(struct rig_options){.engine.ring_events = 29,
                                           .engine.speculate = (enum speculation)mode});
        struct gen_request q = loop_request(100);
        reader_start(&rd, &r, &q);
        rig_wait_idle(&r);
        reader_finish(&rd);
        ck_assert_int_eq(rd.n_tokens, 29);
        ck_assert_int_eq(rd.last.code, ERR_CANCELLED);
        if (mode == SPECULATE_OFF)
            want = rd;
        assert_same(&rd, &want, "ring", mode);
        reader_free(&rd);
        rig_close(&r);
    }
}
END_TEST

START_TEST(test_cancelled_and_finished_among_drafts)
{
    static struct reader want, rd[8];
    struct rig r;
    open_rig(&r, SPECULATE_OFF);
    struct gen_request q = case_request(2);
    run(&r, &want, &q);
    rig_close(&r);
    open_rig(&r, SPECULATE_ALWAYS);
    for (int i = 0; i < 8; i++) {
        q = case_request(2);
        reader_start(&rd[i], &r, &q);
    }
    for (int i = 0; i < 6; i++) {
        reader_wait_tokens(&rd[i], 5 * i);
        if (i % 2 == 0)
            gen_cancel(rd[i].gen, ERR_CANCELLED, "by the client");
        else
            gen_finish(rd[i].gen); /* as after a stop string */
        reader_poll(&rd[i]);
        ck_assert_mem_eq(rd[i].tokens, want.tokens, (size_t)rd[i].n_tokens * sizeof *want.tokens);
        reader_free(&rd[i]);
    }
    for (int i = 6; i < 8; i++) {
        reader_finish(&rd[i]);
        assert_same(&rd[i], &want, "neighbour", i);
        reader_free(&rd[i]);
    }
    rig_close(&r);
}
END_TEST

/* Pages that drafts were written to, and then what was really said, are offered to the next turn.
 */
START_TEST(test_pages_written_among_drafts_are_good_to_share)
{
    static struct reader want[4], rd;
    static int32_t talk[4][512];
    struct engine_stats s;
    struct rig r;
    for (int shared = 0; shared < 2; shared++) {
        rig_open(&r,
                 &(struct rig_options){
                     .n_ctx = 512, .engine.speculate = shared ? SPECULATE_ALWAYS : SPECULATE_OFF});
        for (int turn = 0; turn < 4; turn++) {
            struct gen_request q = case_request(turn % 2 == 0 ? 3 : 2);
            int n = turn == 0 ? q.n_prompt : 30 + 110 * turn;
            if (turn == 0)
                memcpy(talk[0], q.prompt, (size_t)n * sizeof **talk);
            q.prompt = talk[turn];
            q.n_prompt = n;
            q.cache_scope = shared ? "" : NULL;
            run(&r, shared ? &rd : &want[turn], &q);
            if (shared) {
                assert_same(&rd, &want[turn], "turn", turn);
            } else if (turn < 3) { /* the next turn begins with all of this one */
                memcpy(talk[turn + 1], talk[turn], sizeof *talk);
                memcpy(talk[turn + 1] + n, want[turn].tokens, N_TOKENS * sizeof **talk);
            }
        }
        engine_stats_get(r.engine, &s);
        ck_assert(!shared || (s.prefix_hits >= 3 * NUM_TILE && s.draft_accepted > 50));
        rig_close(&r);
    }
}
END_TEST

/* ---- the rows of a step ---- */

static struct gen *admitted(struct sched *s, const int32_t *prompt, int n_prompt, int max_tokens)
{
    struct err err = {0};
    int retry;
    struct gen_request q = rig_request(1, 1, max_tokens);
    q.prompt = prompt;
    q.n_prompt = n_prompt;
    struct gen *g = gen_new(&q, 256, 512, 0, &err);
    ck_assert_msg(g != NULL && sched_submit(s, g, &retry, &err), "%s", err.msg);
    g->n_computed = n_prompt - 1; /* as if its prompt were behind it */
    kv_cover(&s->kv, g->seq, n_prompt - 1);
    return g;
}

static int draft_rows(const struct sched *s, const struct gen *g)
{
    for (int i = 0; i < s->step.n_members; i++)
        if (s->step.members[i].gen == g)
            return s->step.members[i].n_draft;
    return -1;
}

START_TEST(test_drafts_take_only_what_is_left)
{
    static const int32_t loop[] = {1, 2, 3, 1, 2, 3, 1, 2, 3}, plain[] = {1, 2, 3, 4, 5, 6};
    struct rig r;
    struct sched s;
    struct err err = {0};
    rig_open_adapter(&r, &(struct rig_options){.max_seqs = 4, .max_rows = 12, .max_logits = 8});
    ck_assert(sched_init(&s, r.adapter, 10, 0, &err));
    s.spec.mode = SPECULATE_ALWAYS;
    struct gen *g[4] = {admitted(&s, loop, 9, 3), admitted(&s, plain, 6, 20),
                        admitted(&s, loop, 9, 20)};
    ck_assert(sched_choose(&s));
    ck_assert_int_eq(draft_rows(&s, g[0]), 2); /* with them it gives its last token */
    ck_assert_int_eq(draft_rows(&s, g[1]), 0); /* nothing to go by */
    ck_assert_int_eq(draft_rows(&s, g[2]), 3); /* 8 logits, 3 of them for who decodes */
    ck_assert(s.step.n_rows == 8 && s.step.n_decode == 8 && s.step.n_draft == 5);
    for (int i = 0; i < s.step.n_rows; i++) { /* a gen's rows are consecutive, all want logits */
        const struct row *row = &s.step.rows[i];
        ck_assert(row->want_logits);
        ck_assert(i == 0 || row[-1].seq != row->seq || row[-1].pos + 1 == row->pos);
        ck_assert_int_eq(row->token, row->seq == g[1]->seq ? 6 : 1 + row->pos % 3);
    }
    g[3] = admitted(&s, loop, 9, 20);
    g[3]->n_computed = 0; /* a prompt to compute */
    ck_assert(sched_choose(&s));
    ck_assert_int_eq(s.step.n_draft, 0);
    ck_assert_int_eq(s.step.n_decode, 3);
    for (int i = 0; i < 4; i++)
        gen_release(g[i]);
    sched_reap(&s, true);
    ck_assert_int_eq(s.kv.n_free, s.kv.n_pages);
    ck_assert_int_eq(s.kv.n_promised, 0);
    sched_free(&s);
    rig_close(&r);
}
END_TEST

/* Guesses that are right now and then: tried where rows are cheap, given up where they are dear.
 * The limits are wide, since times are real. */
START_TEST(test_the_engine_learns_what_a_row_costs)
{
    static const struct {
        enum speculation mode;
        int us_per_step, us_per_row;
    } runs[3] = {{SPECULATE_ALWAYS, 0, 0}, {SPECULATE_ON, 3000, 0}, {SPECULATE_ON, 100, 2000}};
    static struct reader rd;
    struct engine_stats s[3];
    struct rig r;
    for (int i = 0; i < 3; i++) {
        open_rig(&r, runs[i].mode);
        rig_slow(runs[i].us_per_step, runs[i].us_per_row);
        struct gen_request q = case_request(3);
        q.max_tokens = 220;
        run(&r, &rd, &q);
        engine_stats_get(r.engine, &s[i]);
        rig_close(&r);
    }
    ck_assert_uint_gt(s[1].draft_tokens, s[0].draft_tokens / 10);
    ck_assert_uint_lt(s[2].draft_tokens, s[0].draft_tokens / 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("speculate");
    TCase *t = tcase_create("speculate");
    tcase_set_timeout(t, 240); /* for the thread sanitizer */
    tcase_add_test(t, test_no_guess_without_a_pair_seen_before);
    tcase_add_test(t, test_the_longest_match_wins_and_of_equals_the_latest);
    tcase_add_test(t, test_a_loop_goes_on_for_ever);
    tcase_add_test(t, test_looking_up_again_gives_the_same);
    tcase_add_test(t, test_agrees_with_a_plain_search);
    tcase_add_test(t, test_what_came_teaches);
    tcase_add_test(t, test_drafts_where_tokens_outweigh_time);
    tcase_add_test(t, test_the_surest_guess_comes_first);
    tcase_add_test(t, test_no_neighbour_pays_for_drafts);
    tcase_add_test(t, test_unknown_costs_are_tried_one_row_at_a_time);
    tcase_add_test(t, test_same_bytes_alone_and_together);
    tcase_add_test(t, test_a_repetitive_text_takes_fewer_steps);
    tcase_add_test(t, test_every_length_and_the_context_end_where_they_should);
    tcase_add_test(t, test_stop_tokens_and_min_tokens_at_drafted_positions);
    tcase_add_test(t, test_resumed_in_the_middle_of_a_run);
    tcase_add_test(t, test_a_full_ring_stops_it_at_the_same_token);
    tcase_add_test(t, test_cancelled_and_finished_among_drafts);
    tcase_add_test(t, test_pages_written_among_drafts_are_good_to_share);
    tcase_add_test(t, test_drafts_take_only_what_is_left);
    tcase_add_test(t, test_the_engine_learns_what_a_row_costs);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
