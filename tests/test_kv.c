/* Pages at random: thousands of admissions, steps and cancels against an oracle that knows from the
 * rows alone what every page holds. No page is free and held, none is lost, a shared page is never
 * written, everything that could be found is found, and nothing else. */
#include "engine/scheduler.h"
#include "tests/rig.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = 512, MAX_PAGES = 32, MAX_SEQS = 8, MAX_GENS = 24, N_BLOCKS = 6 };

struct world {
    struct sched s;
    struct gen *gens[MAX_GENS]; /* the submitter's references; NULL = none */
    uint64_t held[MAX_PAGES]
                 [NUM_TILE]; /* what was written: a hash of scope and all tokens so far */
    int before[MAX_PAGES];   /* the page before, when it became known */
    int32_t blocks[N_BLOCKS][NUM_TILE + 9]; /* of prompts; their length is no page's */
    unsigned seed;
    long n_cached;
};

static int below(struct world *w, int n)
{
    return (int)(rand_r(&w->seed) % (unsigned)n);
}

/* h[i]: what position i holds when scope and tokens 0..i are these. */
static void expected(const struct gen *g, uint64_t h[N_CTX + 1])
{
    uint64_t x = g->cache_scope == NULL ? (uint64_t)(uintptr_t)g : 1469598103934665603u;
    for (const char *c = g->cache_scope; c != NULL && *c != 0; c++)
        x = (x ^ (uint64_t)*c) * 1099511628211u;
    for (int i = 0; i < g->n_history; i++)
        h[i] = x = (x ^ (uint64_t)(g->history[i] + 1)) * 1099511628211u;
}

/* Check tells its parent of each assertion it passes; there are millions here. */
#define MUST(what)                                                                                 \
    do {                                                                                           \
        if (!(what))                                                                               \
            ck_abort_msg("not so: %s", #what);                                                     \
    } while (0)

/* ---- the oracle ---- */

static int known_page(const struct world *w, uint64_t last)
{
    for (int p = 0; p < w->s.kv.n_pages; p++)
        if (prefix_has(&w->s.kv.prefix, p) && w->held[p][NUM_TILE - 1] == last)
            return p;
    return -1;
}

/* Pages of the longest known beginning; *n_idle: those that nobody holds. */
static int known_pages(const struct world *w, const struct gen *g, int *n_idle)
{
    uint64_t h[N_CTX + 1];
    int n = 0, page;
    *n_idle = 0;
    expected(g, h);
    for (; g->cache_scope != NULL && (n + 1) * NUM_TILE < g->n_history; n++) {
        page = known_page(w, h[(n + 1) * NUM_TILE - 1]);
        if (page < 0)
            break;
        *n_idle += w->s.kv.page[page].holders == 0;
    }
    return n;
}

static bool fits(const struct world *w, const struct gen *g)
{
    const struct kv *kv = &w->s.kv;
    int n_idle, n = known_pages(w, g, &n_idle);
    return w->s.n_running < kv->n_seqs && g->n_pages - n + n_idle <= kv->n_free - kv->n_promised;
}

static int idle_place(const struct kv *kv, int page)
{
    int n = 0;
    for (int p = kv->oldest; p >= 0; p = kv->page[p].newer, n++)
        if (p == page)
            return n;
    return -1;
}

static void check_sequences(struct world *w, int holders[MAX_PAGES])
{
    const struct kv *kv = &w->s.kv;
    int n_promised = 0;
    for (int i = 0; i < kv->n_seqs; i++) {
        const struct kv_seq *q = &kv->seq[i];
        MUST(q->promised >= 0);
        MUST(q->open == (w->s.running[i] != NULL));
        for (int j = 0; q->open && j < q->n; j++) {
            int page = q->table[j];
            holders[page]++;
            MUST(prefix_has(&kv->prefix, page) == (j < q->n_known));
            MUST(j < q->n_known || kv->page[page].holders == 1);
            w->before[page] = j > 0 ? q->table[j - 1] : -1;
        }
        n_promised += q->open ? q->promised : 0;
    }
    MUST(kv->n_promised == n_promised && kv->n_free >= n_promised);
}

static void check_pages(struct world *w)
{
    const struct kv *kv = &w->s.kv;
    int holders[MAX_PAGES] = {0}, places[MAX_PAGES] = {0}, n_idle = 0;
    check_sequences(w, holders);
    for (int i = 0; i < kv->n_empty; i++) {
        places[kv->empty[i]]++;
        MUST(!prefix_has(&kv->prefix, kv->empty[i]));
    }
    for (int p = kv->oldest, older = -1; p >= 0; older = p, p = kv->page[p].newer) {
        MUST(kv->page[p].older == older);
        MUST(prefix_has(&kv->prefix, p));
        places[p]++;
        n_idle++;
        int before = w->before[p];
        MUST(before < 0 || prefix_has(&kv->prefix, before));
        MUST(before < 0 || holders[before] > 0 || idle_place(kv, before) > idle_place(kv, p));
    }
    for (int p = 0; p < kv->n_pages; p++) {
        MUST(kv->page[p].holders == holders[p]);
        MUST(places[p] + (holders[p] > 0) == 1);
        if (prefix_has(&kv->prefix, p)) /* once */
            MUST(known_page(w, w->held[p][NUM_TILE - 1]) == p);
    }
    MUST(kv->n_free == kv->n_empty + n_idle);
}

/* ---- what happens ---- */

static void submit(struct world *w)
{
    static const char *const scopes[] = {"", "", "", "x", NULL};
    int32_t prompt[N_CTX];
    int at = 0, n = 0;
    while (at < MAX_GENS && w->gens[at] != NULL)
        at++;
    if (at == MAX_GENS)
        return;
    for (int i = below(w, 5); i >= 0 && n + NUM_TILE + 9 < N_CTX - 80; i--) {
        memcpy(prompt + n, w->blocks[below(w, N_BLOCKS)], sizeof w->blocks[0]);
        n += NUM_TILE + 9;
    }
    n -= below(w, 2) * below(w, NUM_TILE + 9); /* often some of the last block are missing */
    struct err err = {0};
    int retry, n_resume = below(w, 10) == 0 ? below(w, 70) : 0;
    struct gen_request q = {.prompt = prompt,
                            .n_prompt = n,
                            .max_tokens = 1 + below(w, 80),
                            .resume = w->blocks[0],
                            .n_resume = n_resume,
                            .sample = SAMPLE_DEFAULTS,
                            .n_logprobs = -1,
                            .cache_scope = scopes[below(w, 5)]};
    struct gen *g = gen_new(&q, N_CTX, 512, 0, &err);
    ck_assert_msg(g != NULL && sched_submit(&w->s, g, &retry, &err), "%s", err.msg);
    w->gens[at] = g;
}

static void release(struct world *w, int i)
{
    gen_release(w->gens[i]);
    w->gens[i] = NULL;
}

static void admit(struct world *w)
{
    struct gen *first = w->s.queue[GEN_INTERACTIVE];
    int n_known = 0, n_idle = 0;
    bool fit = first != NULL && fits(w, first);
    if (fit)
        n_known = known_pages(w, first, &n_idle);
    sched_admit(&w->s);
    if (first == NULL)
        return;
    ck_assert_int_eq(first->seq >= 0, fit);
    if (!fit)
        return;
    ck_assert_int_eq(first->n_cached, n_known * NUM_TILE);
    ck_assert_int_eq(first->n_computed, first->n_cached);
    w->n_cached += first->n_cached;
    first = w->s.queue[GEN_INTERACTIVE];
    ck_assert(first == NULL || !fits(w, first));
}

/* The rows of one gen: reads every position before, writes its own; drafts that were not accepted
 * may have written on. */
static void compute(struct world *w, const struct member *m)
{
    struct kv *kv = &w->s.kv;
    struct gen *g = m->gen;
    const int32_t *table = kv->seq[g->seq].table;
    uint64_t h[N_CTX + 1];
    expected(g, h);
    for (int i = 0; i < g->n_computed; i++)
        MUST(w->held[table[i / NUM_TILE]][i % NUM_TILE] == h[i]);
    int end = kv->seq[g->seq].n * NUM_TILE;
    for (int i = g->n_computed; i < end; i++) {
        int page = table[i / NUM_TILE];
        MUST(kv->page[page].holders == 1 && !prefix_has(&kv->prefix, page));
        w->held[page][i % NUM_TILE] = i < g->n_computed + m->n ? h[i] : 0;
    }
    g->n_computed += m->n;
    if (!m->sample || gen_ended(g))
        return;
    g->history[g->n_history++] = below(w, 4) == 0 ? 1 : 0; /* they often generate the same */
    if (gen_n_out(g) == g->max_out)
        gen_put_end(g, g->limit);
}

static void step(struct world *w)
{
    sched_reap(&w->s, true);
    admit(w);
    for (int i = 0; i < MAX_GENS;
         i++) /* as the engine does with what was resumed after its last token */
        if (w->gens[i] != NULL && w->gens[i]->seq >= 0 &&
            gen_n_out(w->gens[i]) >= w->gens[i]->max_out)
            gen_put_end(w->gens[i], w->gens[i]->limit);
    if (!sched_choose(&w->s))
        return;
    if (below(w, 20) == 0) /* a step that was abandoned */
        return;
    for (int i = 0; i < w->s.step.n_members; i++)
        compute(w, &w->s.step.members[i]);
    sched_publish(&w->s);
}

static void run(int n_pages, int n_buckets, unsigned seed)
{
    static struct world w;
    struct rig r;
    struct err err = {0};
    w = (struct world){.seed = seed};
    rig_open_adapter(&r, &(struct rig_options){
                             .n_ctx = N_CTX, .n_pages = n_pages, .max_seqs = 5, .max_rows = 100});
    ck_assert(sched_init(&w.s, r.adapter, MAX_GENS, 0, &err));
    prefix_free(&w.s.kv.prefix);
    ck_assert(prefix_init(&w.s.kv.prefix, n_pages, n_buckets, &err));
    for (int i = 0; i < N_BLOCKS; i++)
        for (int j = 0; j < NUM_TILE + 9; j++)
            w.blocks[i][j] = below(&w, 500);
    for (int i = 0; i < 10000; i++) {
        int victim = below(&w, MAX_GENS), what = below(&w, 12);
        if (what == 0 || what == 2)
            submit(&w);
        if (what == 1 && w.gens[victim] != NULL && below(&w, 4) == 0)
            release(&w, victim);
        step(&w);
        check_pages(&w);
        for (int j = 0; j < MAX_GENS; j++)
            if (w.gens[j] != NULL && gen_ended(w.gens[j]))
                release(&w, j);
    }
    for (int j = 0; j < MAX_GENS; j++)
        if (w.gens[j] != NULL)
            release(&w, j);
    sched_reap(&w.s, true);
    check_pages(&w);
    ck_assert_int_eq(w.s.kv.n_free, n_pages);
    ck_assert_int_eq(w.s.kv.n_promised, 0);
    ck_assert_int_gt(w.n_cached, 1000);
    sched_free(&w.s);
    rig_close(&r);
}

START_TEST(test_pages_at_random)
{
    static const struct {
        int n_pages, n_buckets;
    } cases[] = {{8, 0}, {12, 1}, {20, 0}, {MAX_PAGES, 1}, {MAX_PAGES, 0}};
    for (unsigned seed = 0; seed < 3; seed++)
        run(cases[_i].n_pages, cases[_i].n_buckets, seed);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kv");
    TCase *t = tcase_create("kv");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, test_pages_at_random, 0, 5);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
