#include "engine/scheduler.h"
#include "base/clock.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* Prompt rows come in fours: the width of the devices' smallest tile. */
enum { ROW_QUANTUM = 4, MAX_RETRY_S = 600 };

#define EWMA 0.2

bool sched_init(struct sched *s, struct adapter *a, int max_queue, int max_jobs_per_key,
                struct err *err)
{
    *s = (struct sched){
        .max_seqs = adapter_max_seqs(a),
        .max_rows = adapter_max_rows(a),
        .max_logits = adapter_max_logits(a),
        .max_queue = max_queue,
        .max_jobs_per_key = max_jobs_per_key,
    };
    size_t seqs = (size_t)s->max_seqs;
    s->running = mem_alloc(seqs, sizeof *s->running);
    s->prompts = mem_alloc(seqs, sizeof *s->prompts);
    s->bids = mem_alloc(seqs, sizeof *s->bids);
    s->step.members = mem_alloc(seqs, sizeof *s->step.members);
    s->step.rows = mem_alloc((size_t)s->max_rows, sizeof *s->step.rows);
    if (s->running == NULL || s->prompts == NULL || s->bids == NULL || s->step.members == NULL ||
        s->step.rows == NULL) {
        sched_free(s);
        return err_set(err, ERR_OOM, "no memory for a step of %d rows of %d sequences", s->max_rows,
                       s->max_seqs);
    }
    if (kv_init(&s->kv, a, err))
        return true;
    sched_free(s);
    return false;
}

void sched_free(struct sched *s)
{
    kv_free(&s->kv);
    free(s->running);
    free(s->prompts);
    free(s->bids);
    free(s->step.members);
    free(s->step.rows);
    *s = (struct sched){0};
}

static void average(double *mean, double sample)
{
    *mean = *mean > 0 ? *mean + EWMA * (sample - *mean) : sample;
}

/* ---- the queue ---- */

static void append(struct sched *s, struct gen *g)
{
    struct gen **at = &s->queue[g->priority];
    while (*at != NULL)
        at = &(*at)->next;
    *at = g;
    g->next = NULL;
    s->n_queued++;
}

static void unlink_gen(struct sched *s, struct gen *g)
{
    struct gen **at = &s->queue[g->priority];
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    g->next = NULL;
    s->n_queued--;
}

static bool same_key(const struct gen *a, const struct gen *b)
{
    return a->key == b->key || (a->key != NULL && b->key != NULL && strcmp(a->key, b->key) == 0);
}

static int jobs_running(const struct sched *s, const struct gen *of)
{
    int n = 0;
    for (int i = 0; i < s->max_seqs; i++)
        n += s->running[i] != NULL && !gen_ended(s->running[i]) && same_key(s->running[i], of);
    return n;
}

static int jobs_of(const struct sched *s, const struct gen *of)
{
    int n = jobs_running(s, of);
    for (int p = 0; p < 2; p++)
        for (const struct gen *g = s->queue[p]; g != NULL; g = g->next)
            n += same_key(g, of);
    return n;
}

/* Who is admitted next. With a limit per key the keys share: the one with the fewest running jobs
 * comes first. */
static struct gen *next_in_queue(const struct sched *s)
{
    struct gen *first =
        s->queue[GEN_INTERACTIVE] != NULL ? s->queue[GEN_INTERACTIVE] : s->queue[GEN_BATCH];
    if (first == NULL || s->max_jobs_per_key <= 0)
        return first;
    struct gen *best = first;
    int fewest = jobs_running(s, first);
    for (struct gen *g = first->next; g != NULL && fewest > 0; g = g->next) {
        int n = jobs_running(s, g);
        if (n < fewest) {
            best = g;
            fewest = n;
        }
    }
    return best;
}

static bool open_seq(struct sched *s, struct gen *g)
{
    if (g->tried == s->kv.n_changes)
        return false; /* without looking at its prompt again */
    g->tried = s->kv.n_changes;
    struct kv_want want = {g->n_pages, g->cache_scope, g->history, g->n_history};
    g->seq = kv_open(&s->kv, &want, &g->n_cached);
    g->n_computed = g->n_cached;
    return g->seq >= 0;
}

void sched_admit(struct sched *s)
{
    for (struct gen *g = next_in_queue(s); g != NULL; g = next_in_queue(s)) {
        if (!open_seq(s, g))
            return; /* nobody overtakes it: else a large request would starve */
        unlink_gen(s, g);
        g->order = s->n_admitted++;
        s->running[g->seq] = g;
        s->n_running++;
    }
}

/* Seconds until n more requests have ended, when n_running of them run at a time. */
static int retry_after(const struct sched *s, int n, int n_running)
{
    double seconds = s->service_s * n / n_running;
    return seconds < 1 ? 1 : seconds < MAX_RETRY_S ? (int)(seconds + 0.999) : MAX_RETRY_S;
}

bool sched_submit(struct sched *s, struct gen *g, int *retry_after_s, struct err *err)
{
    g->n_pages = kv_pages_for(g->n_prompt + g->max_out - 1);
    if (g->n_pages > s->kv.n_pages)
        return err_set(err, ERR_OOM, "the request may need %d KV pages, the cache has %d",
                       g->n_pages, s->kv.n_pages);
    sched_reap(s, false);
    int n_jobs = s->max_jobs_per_key > 0 && g->key != NULL ? jobs_of(s, g) : 0;
    if (n_jobs > 0 && n_jobs >= s->max_jobs_per_key) {
        *retry_after_s = retry_after(s, 1, n_jobs);
        return err_set(err, ERR_BUSY, "%d requests of this key are running or waiting, allowed %d",
                       n_jobs, s->max_jobs_per_key);
    }
    append(s, g);
    sched_admit(s);
    if (s->n_queued <= s->max_queue)
        return true;
    unlink_gen(s, g); /* the queue was full, so that it was not g that was admitted */
    *retry_after_s = retry_after(s, s->n_queued + 1, s->max_seqs);
    return err_set(err, ERR_BUSY, "%d requests are waiting, allowed %d", s->n_queued, s->max_queue);
}

static void drop_running(struct sched *s, struct gen *g)
{
    kv_close(&s->kv, g->seq);
    s->running[g->seq] = NULL;
    s->n_running--;
    struct gen_stats stats;
    gen_stats_get(g, &stats);
    average(&s->service_s, (stats.prefill_ms + stats.decode_ms) / 1e3);
    gen_unref(g);
}

void sched_reap(struct sched *s, bool running)
{
    for (int p = 0; p < 2; p++) {
        struct gen *g = s->queue[p];
        while (g != NULL) {
            struct gen *next = g->next;
            if (gen_ended(g)) {
                unlink_gen(s, g);
                gen_unref(g);
            }
            g = next;
        }
    }
    for (int i = 0; running && i < s->max_seqs; i++)
        if (s->running[i] != NULL && gen_ended(s->running[i]))
            drop_running(s, s->running[i]);
}

struct gen *sched_find(const struct sched *s, bool (*match)(const struct gen *g, const void *arg),
                       const void *arg)
{
    for (int i = 0; i < s->max_seqs; i++)
        if (s->running[i] != NULL && match(s->running[i], arg))
            return s->running[i];
    for (int p = 0; p < 2; p++)
        for (struct gen *g = s->queue[p]; g != NULL; g = g->next)
            if (match(g, arg))
                return g;
    return NULL;
}

/* ---- the next step ---- */

static int add_rows(struct sched *s, struct gen *g, int n)
{
    struct sched_step *st = &s->step;
    int n_logits = 0;
    for (int i = 0; i < st->n_members; i++)
        n_logits += st->members[i].sample;
    n = n < s->max_rows - st->n_rows ? n : s->max_rows - st->n_rows;
    if (n == gen_todo(g) && n_logits == s->max_logits)
        n--; /* its last row gives logits: another step */
    if (n <= 0)
        return 0;
    bool sample = n == gen_todo(g);
    st->members[st->n_members++] = (struct member){g, n, sample, 0};
    for (int i = 0; i < n; i++) {
        int pos = g->n_computed + i;
        st->rows[st->n_rows++] = (struct row){g->seq, pos, g->history[pos], sample && i == n - 1};
    }
    kv_cover(&s->kv, g->seq, g->n_computed + n);
    return n;
}

/* How many prompt rows this step may hold. */
static int prompt_budget(const struct sched *s)
{
    int n_decode = s->step.n_decode, limit = s->max_rows - n_decode;
    double rows = pace_rows(&s->pace, n_decode > 0);
    int n = rows < limit ? (int)rows : limit;
    n -= n % ROW_QUANTUM;
    return n > ROW_QUANTUM ? n : ROW_QUANTUM;
}

static bool before(const struct gen *a, const struct gen *b)
{
    if (a->priority != b->priority)
        return a->priority == GEN_INTERACTIVE;
    if (gen_todo(a) != gen_todo(b))
        return gen_todo(a) < gen_todo(b);
    return a->order < b->order;
}

/* Gens with prompts to compute, the shortest first. */
static int collect_prompts(struct sched *s)
{
    int n = 0;
    for (int i = 0; i < s->max_seqs; i++) {
        struct gen *g = s->running[i];
        if (g == NULL || gen_ended(g) || gen_todo(g) <= 1)
            continue;
        int at = n++;
        for (; at > 0 && before(g, s->prompts[at - 1]); at--)
            s->prompts[at] = s->prompts[at - 1];
        s->prompts[at] = g;
    }
    return n;
}

static int share(const struct gen *g, int rows, int unit)
{
    return gen_todo(g) <= rows ? gen_todo(g) : rows - rows % unit;
}

/* Short prompts first, so that one long prompt does not hold up everybody's first token; but half
 * of the rows go to the oldest, so that it ends. */
static void add_prompts(struct sched *s, int n)
{
    int budget = prompt_budget(s), ahead = 0;
    int unit = budget < 2 * ROW_QUANTUM ? 1 : ROW_QUANTUM; /* half of four is no four */
    struct gen *oldest = s->prompts[0];
    for (int i = 1; i < n; i++)
        oldest = s->prompts[i]->order < oldest->order ? s->prompts[i] : oldest;
    for (int i = 0; s->prompts[i] != oldest; i++)
        ahead += gen_todo(s->prompts[i]);
    ahead = ahead < budget / 2 ? ahead : budget / 2;
    budget -= add_rows(s, oldest, share(oldest, budget - ahead, unit));
    for (int i = 0; i < n; i++)
        if (s->prompts[i] != oldest)
            budget -= add_rows(s, s->prompts[i], share(s->prompts[i], budget, unit));
}

/* Gens that decode, in turn, as bids without drafts. */
static int collect_decodes(struct sched *s)
{
    int n = 0;
    for (int i = 0; i < s->max_seqs; i++) {
        struct gen *g = s->running[(s->turn + i) % s->max_seqs];
        if (g != NULL && !gen_ended(g) && gen_todo(g) == 1)
            s->bids[n++] = (struct bid){.gen = g, .draft = &g->draft};
    }
    return n;
}

/* How many drafts each of them gets: of the rows and logits that are left when all have a row, and
 * not more than tokens it may still give, since its pages are promised for those. */
static void choose_drafts(struct sched *s, int n)
{
    for (struct bid *b = s->bids; b < s->bids + n; b++) {
        struct gen *g = b->gen;
        int left = g->max_out - gen_n_out(g) - 1;
        left = left < DRAFT_MAX ? left : DRAFT_MAX;
        b->max = left > 0 && draft_find(&g->draft, g->history, g->n_history) ? left : 0;
    }
    int room = s->max_rows < s->max_logits ? s->max_rows : s->max_logits;
    speculate_choose(&s->spec, s->bids, n, room - n);
}

/* Behind the decode row of the last member. */
static void add_drafts(struct sched *s, int n)
{
    struct sched_step *st = &s->step;
    struct member *m = &st->members[st->n_members - 1];
    const struct gen *g = m->gen;
    for (int i = 0; i < n; i++)
        st->rows[st->n_rows++] =
            (struct row){g->seq, g->n_history + i, draft_token(&g->draft, g->history, i), true};
    kv_cover(&s->kv, g->seq, g->n_history + n);
    m->n_draft = n;
    st->n_draft += n;
}

/* One row for each gen that decodes, and its drafts; when they are more than fit, they take turns.
 */
static void add_decodes(struct sched *s, int n, int room)
{
    for (const struct bid *b = s->bids; b < s->bids + n; b++) {
        if (s->step.n_rows == room || add_rows(s, b->gen, 1) == 0) {
            s->turn = b->gen->seq;
            break;
        }
        add_drafts(s, b->n);
    }
    s->step.n_decode = s->step.n_rows;
}

bool sched_choose(struct sched *s)
{
    s->step.n_rows = s->step.n_members = s->step.n_draft = 0;
    int n = collect_prompts(s), n_decodes = collect_decodes(s), room = s->max_rows;
    bool alone = n_decodes > 0 && pace_wants_decode(&s->pace);
    if (n > 0 && !alone) /* however many decode, a prompt goes on */
        room -= s->max_rows > 2 * ROW_QUANTUM ? ROW_QUANTUM : (s->max_rows + 1) / 2;
    else if (n == 0 && s->spec.mode != SPECULATE_OFF) /* beside prompts no row is cheap */
        choose_drafts(s, n_decodes);
    add_decodes(s, n_decodes, room);
    if (n > 0 && !alone)
        add_prompts(s, n);
    return s->step.n_rows > 0;
}

void sched_publish(struct sched *s)
{
    for (int i = 0; i < s->step.n_members; i++) {
        const struct gen *g = s->step.members[i].gen;
        kv_publish(&s->kv, g->seq, g->history, g->n_computed);
    }
}

void sched_measure(struct sched *s, double seconds)
{
    const struct sched_step *st = &s->step;
    if (st->n_draft == 0) /* the pace is about steps without */
        pace_measure(&s->pace, st->n_decode, st->n_rows - st->n_decode, seconds);
}
