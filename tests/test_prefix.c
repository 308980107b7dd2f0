/* The prefix cache: what is found, who may find it, what is forgotten first, and that nobody's
 * bytes change by it. */
#include "base/mem.h"
#include "engine/prefix.h"
#include "tests/rig.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the map ---- */

enum { MAP_PAGES = 500 };

static void tokens_of(int i, int32_t tokens[NUM_TILE])
{
    memset(tokens, 0, NUM_TILE * sizeof *tokens);
    tokens[i % NUM_TILE] = 1 + i / NUM_TILE; /* they differ in one token only */
}

/* n_buckets 1: every entry has the same hash, tokens alone decide. */
static void check_map(int n_buckets)
{
    struct prefix p;
    struct err err = {0};
    int32_t tokens[NUM_TILE];
    ck_assert(prefix_init(&p, MAP_PAGES, n_buckets, &err));
    struct prefix_scope a = prefix_scope(&p, "a"), b = prefix_scope(&p, "b");
    for (int i = 0; i < MAP_PAGES; i++) {
        tokens_of(i / 2, tokens);
        ck_assert(!prefix_has(&p, i));
        prefix_add(&p, i, i % 2 ? a : b, i / 2 % 3 - 1, tokens);
    }
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < MAP_PAGES; i++) {
            bool there = again == 0 || i % 3 != 0;
            tokens_of(i / 2, tokens);
            ck_assert(prefix_has(&p, i) == there);
            ck_assert_int_eq(prefix_find(&p, i % 2 ? a : b, i / 2 % 3 - 1, tokens), there ? i : -1);
            ck_assert_int_eq(prefix_find(&p, i % 2 ? a : b, i / 2 % 3 + 2, tokens), -1);
            tokens[NUM_TILE - 1] += 100;
            ck_assert_int_eq(prefix_find(&p, i % 2 ? a : b, i / 2 % 3 - 1, tokens), -1);
        }
        for (int i = 0; again == 0 && i < MAP_PAGES; i += 3)
            prefix_remove(&p, i);
    }
    ck_assert_int_eq(prefix_find(&p, prefix_scope(&p, ""), -1, tokens), -1);
    prefix_free(&p);
}

START_TEST(test_tokens_decide_not_the_hash)
{
    check_map(0);
    check_map(1);
    check_map(7);
}
END_TEST

START_TEST(test_the_hash_is_keyed_per_process)
{
    struct prefix p, q;
    struct err err = {0};
    ck_assert(prefix_init(&p, 1, 0, &err) && prefix_init(&q, 1, 0, &err));
    struct prefix_scope a = prefix_scope(&p, "name"), b = prefix_scope(&q, "name");
    ck_assert(a.id[0] != b.id[0] && a.id[1] != b.id[1] && a.id[0] != a.id[1]);
    prefix_free(&p);
    prefix_free(&q);
}
END_TEST

/* ---- what is found ---- */

static void run(struct rig *r, struct gen_request *q, const char *scope, struct reader *rd)
{
    q->cache_scope = scope;
    reader_start(rd, r, q);
    reader_finish(rd);
    reader_free(rd);
    rig_wait_idle(r); /* its pages are free now */
}

static void assert_same(const struct reader *a, const struct reader *b)
{
    ck_assert_int_eq(a->n_tokens, b->n_tokens);
    ck_assert_mem_eq(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    ck_assert_mem_eq(a->logprobs, b->logprobs, (size_t)a->n_tokens * sizeof *a->logprobs);
}

/* Step by step, on a held device. */
static void step_until_tokens(struct reader *rd, int n)
{
    rig_wait_held();
    while (!reader_poll(rd) && rd->n_tokens < n) {
        rig_let(1);
        rig_wait_held();
    }
}

START_TEST(test_full_pages_but_the_last_token_are_found)
{
    static const struct {
        int n_prompt, n_cached;
    } cases[] = {{1, 0}, {63, 0}, {64, 0}, {65, 64}, {128, 64}, {129, 128}, {200, 192}};
    static struct reader cold, warm;
    struct rig r;
    struct engine_stats s;
    uint64_t queries = 0, hits = 0;
    rig_open(&r, &(struct rig_options){0});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gen_request q = rig_request(cases[i].n_prompt, i, 12);
        q.n_logprobs = 0;
        run(&r, &q, "", &cold);
        run(&r, &q, "", &warm);
        ck_assert_int_eq(cold.n_cached, 0);
        ck_assert_int_eq(warm.n_cached, cases[i].n_cached);
        assert_same(&warm, &cold);
        queries += 2 * (uint64_t)cases[i].n_prompt;
        hits += (uint64_t)cases[i].n_cached;
        engine_stats_get(r.engine, &s);
        ck_assert_uint_eq(s.prefix_queries, queries);
        ck_assert_uint_eq(s.prefix_hits, hits);
    }
    rig_close(&r);
}
END_TEST

START_TEST(test_common_beginnings_and_where_they_part)
{
    static struct reader rd, cold;
    struct rig r;
    int32_t prompt[200];
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(200, 1, 8);
    memcpy(prompt, q.prompt, sizeof prompt);
    q.prompt = prompt;
    run(&r, &q, "", &rd);
    static const struct {
        int changed, n_cached;
    } cases[] = {{199, 192}, {192, 192}, {191, 128}, {128, 128}, {127, 64}, {63, 0}, {0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *token = &prompt[cases[i].changed];
        *token ^= 1;
        run(&r, &q, NULL, &cold);
        run(&r, &q, "", &rd);
        *token ^= 1;
        ck_assert_int_eq(rd.n_cached, cases[i].n_cached);
        assert_same(&rd, &cold);
    }
    /* the second page of one prompt is no first page of another */
    q.prompt = prompt + NUM_TILE;
    q.n_prompt = 100;
    run(&r, &q, "", &rd);
    ck_assert_int_eq(rd.n_cached, 0);
    rig_close(&r);
}
END_TEST

START_TEST(test_the_next_turn_of_a_chat_finds_what_was_generated)
{
    static struct reader rd, cold;
    struct rig r;
    int32_t chat[1000];
    int n = 50, known = 0;
    rig_open(&r, &(struct rig_options){.n_ctx = 1000});
    memcpy(chat, rig_request(50, 1, 1).prompt, 50 * sizeof *chat);
    for (int turn = 0; turn < 5; turn++) {
        struct gen_request q = rig_request(1, 1, 100);
        q.prompt = chat;
        q.n_prompt = n;
        run(&r, &q, NULL, &cold);
        run(&r, &q, "", &rd);
        ck_assert_int_eq(rd.n_cached, known);
        assert_same(&rd, &cold);
        memcpy(chat + n, rd.tokens, (size_t)rd.n_tokens * sizeof *chat);
        n += rd.n_tokens;
        known = (n - 1) / NUM_TILE * NUM_TILE; /* all that was computed: all but the last token */
        memcpy(chat + n, rig_request(30, (uint64_t)turn + 2, 1).prompt, 30 * sizeof *chat);
        n += 30;
    }
    rig_close(&r);
}
END_TEST

/* Tokens generated elsewhere are looked up too; of the prompt no more is said to be cached than it
 * has. */
START_TEST(test_resumed_tokens_are_found)
{
    static struct reader whole, part;
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(70, 5, 100);
    run(&r, &q, "", &whole);
    for (int n = 0; n <= 100; n += 20) {
        q.resume = whole.tokens;
        q.n_resume = n;
        q.max_tokens = 100;
        q.cache_scope = "";
        struct engine_stats before, after;
        engine_stats_get(r.engine, &before);
        run(&r, &q, "", &part);
        engine_stats_get(r.engine, &after);
        ck_assert_int_eq(part.n_tokens, 100 - n);
        ck_assert_mem_eq(part.tokens, whole.tokens + n, (size_t)(100 - n) * sizeof *whole.tokens);
        ck_assert_uint_eq(after.prefix_hits - before.prefix_hits,
                          (uint64_t)((70 + n - 1) / NUM_TILE * NUM_TILE));
        ck_assert_int_eq(part.n_cached, n < 59 ? 64 : 70);
    }
    /* Resumed with more than it may still generate: ends at once, whatever is found. */
    q.max_tokens = 1;
    run(&r, &q, "", &part);
    ck_assert_int_eq(part.n_tokens, 0);
    rig_close(&r);
}
END_TEST

START_TEST(test_scopes_are_apart)
{
    static const char *const scopes[] = {"", "a", "b", "a ", NULL};
    static struct reader rd, cold;
    struct rig r;
    struct engine_stats s;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(150, 1, 5);
    run(&r, &q, NULL, &cold); /* leaves nothing */
    for (int i = 0; i < 5; i++) {
        run(&r, &q, scopes[i], &rd);
        ck_assert_int_eq(rd.n_cached, 0);
        assert_same(&rd, &cold);
    }
    for (int i = 0; i < 5; i++) {
        run(&r, &q, scopes[i], &rd);
        ck_assert_int_eq(rd.n_cached, scopes[i] == NULL ? 0 : 128);
    }
    engine_stats_get(r.engine, &s);
    ck_assert_uint_eq(s.prefix_queries, 8 * 150);
    ck_assert_uint_eq(s.prefix_hits, 4 * 128);
    rig_close(&r);
}
END_TEST

/* ---- what is forgotten ---- */

/* 8 pages; a request with a prompt of 130 and one token to generate holds 3, and leaves 2. */
static int cached_of(struct rig *r, uint64_t seed)
{
    static struct reader rd;
    struct gen_request q = rig_request(130, seed, 1);
    run(r, &q, "", &rd);
    return rd.n_cached;
}

START_TEST(test_the_longest_unused_is_forgotten_first)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){.n_pages = 8});
    for (uint64_t seed = 1; seed <= 3; seed++)
        ck_assert_int_eq(cached_of(&r, seed), 0);
    ck_assert_int_eq(cached_of(&r, 1), 128); /* 1 is newer than 2 now */
    ck_assert_int_eq(cached_of(&r, 4), 0);   /* needs 3 of 2 empty ones: the end of 2 goes */
    ck_assert_int_eq(cached_of(&r, 1), 128);
    ck_assert_int_eq(cached_of(&r, 4), 128);
    ck_assert_int_eq(cached_of(&r, 3), 128);
    ck_assert_int_eq(cached_of(&r, 2),
                     64); /* its beginning is still there, and the end of 1 went */
    ck_assert_int_eq(cached_of(&r, 3), 128);
    ck_assert_int_eq(cached_of(&r, 1), 64);
    rig_close(&r);
}
END_TEST

START_TEST(test_the_cache_never_stands_in_the_way)
{
    static struct reader rd[2];
    struct rig r;
    struct engine_stats s;
    rig_open(&r, &(struct rig_options){.n_pages = 8, .n_ctx = 512});
    for (uint64_t seed = 1; seed <= 4; seed++)
        cached_of(&r, seed);
    engine_stats_get(r.engine, &s);
    ck_assert_int_eq(s.kv_pages_used, 0);
    struct gen_request q = rig_request(500, 9, 13); /* all pages */
    run(&r, &q, "", &rd[0]);
    ck_assert_int_eq(rd[0].n_tokens, 13);
    ck_assert_int_eq(cached_of(&r, 4), 0);
    /* Two that need 5 each, of 8: together only because they share 3. */
    rig_hold();
    q = rig_request(200, 20, 100);
    q.cache_scope = "";
    reader_start(&rd[0], &r, &q);
    step_until_tokens(&rd[0], 1); /* then three pages are known */
    reader_start(&rd[1], &r, &q);
    rig_let(1);
    rig_wait_held();
    engine_stats_get(r.engine, &s);
    ck_assert_int_eq(s.running, 2);
    ck_assert_int_eq(s.kv_pages_used, 5); /* 3 of both, 1 of each */
    rig_go();
    reader_finish(&rd[0]);
    reader_finish(&rd[1]);
    ck_assert_int_eq(rd[1].n_cached, 192);
    assert_same(&rd[0], &rd[1]);
    reader_free(&rd[0]);
    reader_free(&rd[1]);
    rig_close(&r);
}
END_TEST

/* ---- neighbours ---- */

START_TEST(test_the_same_prompt_at_once)
{
    static struct reader rd[4], cold;
    struct rig r;
    struct engine_stats s;
    rig_open(&r, &(struct rig_options){0});
    struct gen_request q = rig_request(200, 1, 40);
    run(&r, &q, NULL, &cold);
    rig_hold();
    q.cache_scope = "";
    for (int i = 0; i < 4; i++)
        reader_start(&rd[i], &r, &q);
    for (int i = 0; i < 4; i++)
        step_until_tokens(&rd[i], 1);
    engine_stats_get(r.engine, &s);
    ck_assert_int_le(s.kv_pages_used, 3 + 4); /* the full pages once */
    rig_go();
    for (int i = 0; i < 4; i++) {
        reader_finish(&rd[i]);
        assert_same(&rd[i], &cold);
        reader_free(&rd[i]);
    }
    rig_wait_idle(&r);
    run(&r, &q, "", &rd[0]);
    ck_assert_int_eq(rd[0].n_cached, 192);
    rig_close(&r);
}
END_TEST

START_TEST(test_a_cancelled_one_leaves_complete_pages_only)
{
    static struct reader rd, cold;
    const struct rig_step *steps;
    struct rig r;
    rig_open(&r, &(struct rig_options){.max_rows = 80});
    struct gen_request q = rig_request(200, 1, 40);
    run(&r, &q, NULL, &cold);
    q.cache_scope = "";
    rig_hold();
    reader_start(&rd, &r, &q);
    for (int i = 0; i < 2; i++) {
        rig_let(1);
        rig_wait_held();
    }
    int n_steps = rig_steps(&steps),
        n_computed = steps[n_steps - 1].n_rows + steps[n_steps - 2].n_rows;
    gen_cancel(rd.gen, ERR_CANCELLED, "in the step that goes on with the rest");
    rig_go();
    reader_free(&rd);
    rig_wait_idle(&r);
    run(&r, &q, "", &rd);
    ck_assert_int_eq(rd.n_cached, n_computed / NUM_TILE * NUM_TILE);
    assert_same(&rd, &cold);
    rig_close(&r);
}
END_TEST

START_TEST(test_running_allocates_nothing)
{
    static struct reader rd;
    struct rig r;
    rig_open(&r, &(struct rig_options){.n_pages = 8});
    for (uint64_t seed = 0; seed < 6; seed++) {
        struct gen_request q = rig_request(130, seed % 3, 70);
        q.cache_scope = "s";
        rig_hold();
        reader_start(&rd, &r, &q);
        mem_fail_after(1);
        rig_go();
        reader_finish(&rd);
        mem_fail_after(0);
        ck_assert_int_eq(rd.n_tokens, 70);
        reader_free(&rd);
        rig_wait_idle(&r);
    }
    rig_close(&r);
}
END_TEST

/* ---- all of it, at random, on a device: the bytes of the same request alone and uncached ---- */

enum { STORM = 24, STORM_LONGEST = 400 };

/* Prompts from few blocks, so that they begin alike in many ways. */
static struct gen_request storm_request(unsigned *seed, int32_t *prompt)
{
    int n = 1 + (int)(rand_r(seed) % STORM_LONGEST), n_blocks = rand_r(seed) % 3;
    for (int i = 0; i < n; i++) {
        bool common = i < n_blocks * 80;
        prompt[i] =
            common ? (i * 7 + i / 80 * (n_blocks % 2)) % 500 : (int32_t)(rand_r(seed) % 500);
    }
    struct gen_request q = rig_request(1, rand_r(seed), 1 + (int)(rand_r(seed) % 60));
    q.prompt = prompt;
    q.n_prompt = n;
    q.sample.temperature = rand_r(seed) % 2 ? 0.8f : 0;
    q.n_logprobs = 0;
    return q;
}

START_TEST(test_storm_of_cached_and_cancelled_neighbours)
{
    static const char *const scopes[] = {"", "", "", "other", NULL};
    static struct reader cold[STORM], rd[STORM], victim;
    static int32_t prompt[STORM][STORM_LONGEST];
    struct gen_request q[STORM];
    struct rig r;
    struct engine_stats s;
    unsigned seed = 7;
    rig_open(&r, &(struct rig_options){.n_ctx = 512, .max_seqs = 6, .n_pages = 26, .n_layer = 2});
    for (int i = 0; i < STORM; i++) {
        q[i] = storm_request(&seed, prompt[i]);
        run(&r, &q[i], NULL, &cold[i]);
    }
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < STORM; i++) {
            q[i].cache_scope = scopes[rand_r(&seed) % 5];
            reader_start(&rd[i], &r, &q[i]);
            struct gen_request v = q[rand_r(&seed) % STORM];
            v.cache_scope = scopes[rand_r(&seed) % 5];
            reader_start(&victim, &r, &v);
            usleep(rand_r(&seed) % 3000);
            gen_cancel(victim.gen, ERR_CANCELLED, "");
            reader_free(&victim);
        }
        for (int i = 0; i < STORM; i++) {
            reader_finish(&rd[i]);
            ck_assert_int_eq(rd[i].last.type, GEN_EV_END);
            assert_same(&rd[i], &cold[i]);
            reader_free(&rd[i]);
        }
        rig_wait_idle(&r);
    }
    engine_stats_get(r.engine, &s);
    ck_assert_uint_gt(s.prefix_hits, 0);
    rig_close(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("prefix");
    TCase *t = tcase_create("prefix");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, test_tokens_decide_not_the_hash);
    tcase_add_test(t, test_the_hash_is_keyed_per_process);
    tcase_add_test(t, test_full_pages_but_the_last_token_are_found);
    tcase_add_test(t, test_common_beginnings_and_where_they_part);
    tcase_add_test(t, test_the_next_turn_of_a_chat_finds_what_was_generated);
    tcase_add_test(t, test_resumed_tokens_are_found);
    tcase_add_test(t, test_scopes_are_apart);
    tcase_add_test(t, test_the_longest_unused_is_forgotten_first);
    tcase_add_test(t, test_the_cache_never_stands_in_the_way);
    tcase_add_test(t, test_the_same_prompt_at_once);
    tcase_add_test(t, test_a_cancelled_one_leaves_complete_pages_only);
    tcase_add_test(t, test_running_allocates_nothing);
    tcase_add_test(t, test_storm_of_cached_and_cancelled_neighbours);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
