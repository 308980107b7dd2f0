/* The CUDA device on the host shim (tests/emu/): whole tiny models against the reference, logits compared by memcmp. The
 * kernels are the files of kernels/cuda/ as they are; lanes run in random order. Without an argument each family and each
 * type once; `test_cuda full` runs what that leaves out, every family with every weight type in several orders, for minutes. */
#include "tests/rig.h"
#include "tests/shim.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

/* Sanitizers see the host side alone, and to that side weights of any type are the same calls. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { TYPES = 4, KINDS = 1, ROW_CASES = 1 };
#else
enum { TYPES = QTYPE_N, KINDS = 4, ROW_CASES = 6 };
#endif

static struct kern *open_apart(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL)
        ((struct cuda *)k)->fuse = false;
    return k;
}

/* One row with its norms and gates inside its products, in fewer launches, against the reference (halves: against them apart).
 * Rows are wider than what a block takes at once, cards of one multiprocessor and of more tiles than there are. */
START_TEST(one_row)
{
    enum { STEPS = 4, LAUNCHES = 8 }; /* angles, embed, Q/K/V, attention, output, gate and up, down, head */
    static const char *const types[] = {"Q8_0", "Q4_K", "Q2_K", "Q6_K", "Q5_1", "F16", "BF16"};
    static const int n_sm[] = {1, 3, 400};
    static struct kern_device apart;
    const char *type = types[_i];
    bool half = strstr(type, "F16") != NULL;
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 8};
    struct tiny_spec spec = spec_of("llama3", type);
    struct err err = {0};
    struct pair p;
    apart = *kern_cuda();
    apart.open = open_apart;
    spec.n_layer = 1;
    spec.n_ff = half ? 1280 : 4608;
    spec.dim = half ? 1056 : spec.dim;
    emu_card()->n_sm = n_sm[_i % 3];
    ck_assert_msg(pair_open(&p, &spec, o, half ? &apart : &kern_ref, kern_cuda(), &err), "%s", err.msg);
    pair_pages(&p, 1, 1);
    for (int pos = 0; pos < STEPS; pos++) {
        struct row row = pair_row(0, pos, 0);
        struct step_out want, got;
        ck_assert(adapter_step(p.want, &row, 1, &want, NULL, &err));
        long before = emu_launches();
        ck_assert(adapter_step(p.got, &row, 1, &got, NULL, &err));
        ck_assert_int_eq(emu_launches() - before, pos == 0 ? LAUNCHES : pos == 1 ? LAUNCHES + 1 : 1);
        ck_assert_msg(memcmp(want.logits[0], got.logits[0], (size_t)p.n_vocab * sizeof(float)) == 0, "%s at %d", type, pos);
    }
    close_pair(&p);
}
END_TEST

static const char *const presets[] = {"llama2",   "llama3",   "llama32", "smollm2", "qwen2",     "phi3",
                                      "phi3swa",  "phi3long", "qwen3",   "gemma3",  "gemma3lin", "gptoss"};
enum { N_PRESETS = sizeof presets / sizeof *presets };

START_TEST(every_family)
{
    run_model(presets[_i], "Q4_0", (enum kv_type)(_i % KV_TYPE_N));
}
END_TEST

START_TEST(every_type)
{
    run_model("llama3", qtype_name((enum qtype)_i), KV_F16);
}
END_TEST

START_TEST(mixtures)
{
    run_model("qwen2", "Q4_K_M", KV_Q8_0);
    run_model("llama2", "Q5_K_M", KV_F32);
}
END_TEST

/* The card before tensor cores for bytes: many columns, the product for few. */
START_TEST(old_card)
{
    emu_card()->capability = 75; /* also what the code is compiled for */
    run_model("llama3", "Q4_1", KV_F16);
}
END_TEST

/* A row has the same logits in a step of 310 as in one of 1, 8, 9 ... 65: every kernel of a product meets every other. */
START_TEST(any_number_of_rows)
{
    static const char *const cases[][2] = {{"llama3", "F16"}, {"qwen2", "BF16"}, {"smollm2", "F32"}, {"phi3", "Q4_K"},
                                            {"gptoss", "BF16"}, {"gptoss", "Q5_1"}};
    struct err err = {0};
    ck_assert_msg(pair_run_chunks(cases[_i][0], cases[_i][1], 0, kern_cuda(), kern_cuda(), &err), "%s %s: %s", cases[_i][0],
                  cases[_i][1], err.msg);
}
END_TEST

/* Quantised types in steps of as many rows against the reference, on cards of few and many multiprocessors with more and less
 * shared memory: few.cu's blocks of every shape, and tile.cu. One type of each kind first. */
static const enum qtype quantised[] = {QTYPE_Q8_0, QTYPE_Q4_K,   QTYPE_Q2_K,   QTYPE_Q5_1, QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_Q5_0,
                                       QTYPE_Q5_K, QTYPE_IQ4_NL, QTYPE_IQ4_XS, QTYPE_Q3_K, QTYPE_Q6_K, QTYPE_MXFP4};
enum { QUANTISED = sizeof quantised / sizeof *quantised };

START_TEST(any_number_of_columns)
{
    static const int n_sm[] = {1, 4, 132}, shared[] = {227 * 1024, 99 * 1024, 163 * 1024, 227 * 1024};
    const char *type = qtype_name(quantised[_i]);
    struct err err = {0};
    emu_card()->n_sm = n_sm[_i % 3];
    emu_card()->shared = shared[_i % 4];
    ck_assert_msg(pair_run_chunks("llama3", type, 1280, &kern_ref, kern_cuda(), &err), "%s: %s", type, err.msg);
}
END_TEST

/* Widths of 96 and 160: segments end early, and a stage of two blocks of 32 too. */
START_TEST(odd_widths)
{
    static const char *const types[] = {"F32", "F16", "BF16"};
    run_model("smollm2", types[_i], KV_F16);
}
END_TEST

/* Contexts of several splits: shared out over blocks for few rows, run through by one block for many, with and without a
 * window and sinks. The chunks are those of a long prompt. */
START_TEST(long_context)
{
    static const struct {
        const char *preset;
        int window;         /* 0: the preset's */
        enum kv_type kv;
    } cases[] = {{"smollm2", 0, KV_F16}, {"phi3swa", 300, KV_Q8_0}, {"gptoss", 270, KV_F32}};
    struct err err = {0};
    ck_assert_msg(pair_run_long(cases[_i].preset, "Q8_0", cases[_i].window, cases[_i].kv, &kern_ref, kern_cuda(), &err),
                  "%s: %s", cases[_i].preset, err.msg);
}
END_TEST

static long launches_of(struct pair *p, const struct row *rows, int n)
{
    long before = emu_launches();
    step_both(p, rows, n);
    return emu_launches() - before;
}

/* Few rows beside contexts of several splits, in one launch that makes their heads, attends and merges: rows of one sequence
 * that see each other's keys on both sides of a split's border, another sequence beside them, one row alone; blocks in other
 * orders each step, plainly, captured and replayed. Windows that end among the step's own rows and before. */
START_TEST(few_rows)
{
    enum { SEQS = 2, STEPS = 6, LAUNCHES = 12 };
    static const int first[SEQS] = {236, 260}, own[SEQS] = {7, 3}, windows[] = {0, 3, 270};
    struct adapter_options o = {.n_ctx = 320, .max_seqs = SEQS, .max_rows = first[1], .max_logits = own[0] + own[1],
                                .kv_type = (enum kv_type)(_i % KV_TYPE_N), .kv_bytes = 64 << 20};
    struct tiny_spec spec = spec_of(presets[_i], "Q8_0");
    static struct row rows[320];
    spec.n_layer = 1;
    spec.window = spec.window > 0 ? windows[_i % 3] : 0;
    spec.head_dim = spec.head_dim % 32 == 0 ? spec.head_dim : 32; /* others go apart */
    struct pair p = open_spec(&spec, o);
    pair_pages(&p, SEQS, 5);
    for (int seq = 0; seq < SEQS; seq++) {
        for (int i = 0; i < first[seq]; i++) {
            rows[i] = pair_row(seq, i, 0);
            rows[i].want_logits = false;
        }
        step_both(&p, rows, first[seq]);
    }
    for (int step = 0; step < STEPS; step++) {
        int n = 0;
        emu_card()->seed = (uint64_t)(_i * STEPS + step + 1);
        for (int seq = 0; seq < SEQS; seq++)
            for (int i = 0; i < own[seq]; i++)
                rows[n++] = pair_row(seq, first[seq] + step * own[seq] + i, step);
        long launches = launches_of(&p, rows, n);
        ck_assert(step > 1 ? launches == 1 : step == 1 || spec.n_expert > 0 || launches == LAUNCHES);
    }
    for (int step = 0; step < STEPS / 2; step++) {
        rows[0] = pair_row(0, first[0] + STEPS * own[0] + step, step);
        step_both(&p, rows, 1);
    }
    close_pair(&p);
}
END_TEST

/* Heads that no tiny family has, in a prompt and one by one: of more than 128 values, of an odd number of eights. */
static const struct {
    int head_dim;
    enum kv_type kv;
} heads[] = {{160, KV_F16}, {160, KV_Q8_0}, {160, KV_F32}, {8, KV_Q8_0}, {40, KV_Q8_0}, {104, KV_Q8_0}, {24, KV_F16}};

START_TEST(odd_heads)
{
    enum { ROWS = 72 };
    struct adapter_options o = {.n_ctx = 128, .max_seqs = 1, .max_rows = ROWS, .max_logits = 4, .kv_type = heads[_i].kv};
    struct tiny_spec spec = spec_of("gemma3", "Q8_0");
    static struct row rows[ROWS];
    spec.n_layer = 2;
    spec.head_dim = heads[_i].head_dim;
    spec.n_head = 4;
    struct pair p = open_spec(&spec, o);
    pair_pages(&p, 1, 2);
    for (int i = 0; i < ROWS; i++) {
        rows[i] = pair_row(0, i, 0);
        rows[i].want_logits = i % 24 == 23;
    }
    step_both(&p, rows, ROWS);
    rows[0] = pair_row(0, ROWS, 0);
    step_both(&p, rows, 1);
    close_pair(&p);
}
END_TEST

/* Steps of one class run plainly, then as a captured graph, then as a replay of it: one launch. A step that was stopped
 * while it was captured leaves nothing behind. Contexts grow past a split, classes are more than there are graphs; prompts
 * take none, and what goes is what went unused the longest. */
START_TEST(graphs)
{
    enum { GRAPHS = 32, STEPS = 6, ROWS = 40, FILL = 56, FILLED = 5 * FILL };
    struct adapter_options o = {.n_ctx = 320, .max_seqs = 2, .max_rows = 64, .max_logits = 64};
    struct tiny_spec spec = spec_of("smollm2", "Q4_1");
    spec.n_layer = 1;
    struct pair p = open_spec(&spec, o);
    struct row rows[ROWS];
    atomic_bool stop = true;
    struct step_out out;
    struct err err = {0};
    pair_pages(&p, 2, 5);
    for (int pos = 0; pos < STEPS; pos++) {
        rows[0] = pair_row(0, pos, 0);
        rows[1] = pair_row(1, pos, 0);
        ck_assert(pos != 1 || !adapter_step(p.got, rows, 2, &out, &stop, &err));
        ck_assert_int_eq(launches_of(&p, rows, 2) == 1, pos > 1);
    }
    for (int pos = 0; pos < FILLED; pos += FILL) {
        static struct row fill[FILL];
        for (int i = 0; i < FILL; i++) {
            fill[i] = pair_row(0, pos + i, 1);
            fill[i].want_logits = false;
        }
        step_both(&p, fill, FILL);
    }
    for (int n = 1; n <= ROWS; n++)
        for (int again = 0; again < 2; again++) {
            for (int i = 0; i < n; i++)
                rows[i] = pair_row(0, (n % 7) * 40 + i, again);
            step_both(&p, rows, n < 4 || n > 34 ? n : 1 + n % 3);
        }
    for (int i = 0; i < ROWS; i++)
        rows[i] = pair_row(0, i, 0);
    for (int again = 0; again < 3; again++)
        step_both(&p, rows, 2);
    for (int n = 3; n < 3 + GRAPHS; n++) {
        rows[n - 1].want_logits = false;
        step_both(&p, rows, n);
    }
    ck_assert_int_eq(launches_of(&p, rows, 2), 1);
    for (int n = 3; n < 3 + GRAPHS; n++) {
        rows[n - 1].want_logits = true;
        step_both(&p, rows, n);
        if (n == GRAPHS / 2)
            ck_assert_int_eq(launches_of(&p, rows, 2), 1);
    }
    ck_assert_int_eq(launches_of(&p, rows, 2), 1);
    close_pair(&p);
}
END_TEST

/* ---- a step as one kernel ---- */

/* Steps of one row, of two sequences in turn, recorded and then run again, behind a prompt of n_first; between them a step of
 * two, which is no such kernel. F16 and BF16 are compared with the plain launches, the others with the reference: the same
 * bytes. */
static void run_persistent(const char *preset, const char *type, enum kv_type kv, int n_layer, int n_first)
{
    enum { STEPS = 6, FIRST = 254 };
    struct adapter_options o = {.n_ctx = 320, .max_seqs = 2, .max_rows = FIRST, .max_logits = 2, .kv_type = kv,
                                .kv_bytes = 64 << 20};
    bool half = strcmp(type, "F16") == 0 || strcmp(type, "BF16") == 0;
    struct tiny_spec spec = spec_of(preset, type);
    struct err err = {0};
    struct pair p;
    static struct row rows[FIRST];
    spec.n_layer = spec.n_layer > n_layer ? n_layer : spec.n_layer;
    ck_assert_msg(pair_open(&p, &spec, o, half ? kern_cuda() : &kern_ref, persistent(), &err), "%s", err.msg);
    pair_pages(&p, 2, 5);
    for (int i = 0; i < n_first; i++) {
        rows[i] = pair_row(0, i, 0);
        rows[i].want_logits = i == n_first - 1;
    }
    step_both(&p, rows, n_first);
    for (int i = 0, pos[2] = {n_first, 0}; i < STEPS; i++) {
        int n = i == STEPS / 2 ? 2 : 1;
        for (int r = 0; r < n; r++) {
            int seq = n == 2 ? r : i % 2;
            rows[r] = pair_row(seq, pos[seq]++, i);
        }
        long launches = emu_launches();
        ck_assert_msg(pair_step(&p, rows, n, &err), "%s %s, KV type %d, order %llu: %s", preset, type, (int)kv,
                      (unsigned long long)emu_card()->seed, err.msg);
        ck_assert(half || n == 2 || emu_launches() - launches == 1);
    }
    pair_close(&p);
    ck_assert_int_eq(emu_alive(), 0);
}

START_TEST(one_kernel_every_family)
{
    run_persistent(presets[_i], "Q4_0", (enum kv_type)(_i % KV_TYPE_N), 2, 12);
}
END_TEST

START_TEST(one_kernel_every_type)
{
    run_persistent(_i % 2 == 0 ? "llama3" : "gptoss", qtype_name((enum qtype)_i), (enum kv_type)(_i % KV_TYPE_N), 1, 12);
}
END_TEST

START_TEST(one_kernel_past_a_split)
{
    run_persistent("smollm2", "Q8_0", KV_F16, 1, 254);
}
END_TEST

START_TEST(one_kernel_mixtures)
{
    run_persistent("qwen2", "Q4_K_M", KV_Q8_0, 2, 12);
    run_persistent("llama2", "Q5_K_M", KV_F32, 2, 12);
}
END_TEST

/* Tokens drawn after it; another class of steps between; a step that was stopped while it was recorded. */
START_TEST(one_kernel_in_service)
{
    enum { N = 40 };
    static struct reader rd[2][3];
    for (int one = 0; one < 2; one++) {
        struct rig r;
        rig_open(&r, &(struct rig_options){.device = one ? persistent() : kern_cuda(), .n_layer = 1, .type = "Q4_1"});
        for (int i = 0; i < 3; i++) {
            struct gen_request q = rig_request(20 + i, 1, N - 9 * i);
            q.n_logprobs = 0;
            reader_start(&rd[one][i], &r, &q);
        }
        for (int i = 0; i < 3; i++)
            reader_finish(&rd[one][i]);
        rig_close(&r);
    }
    for (int i = 0; i < 3; i++) {
        ck_assert_mem_eq(rd[0][i].tokens, rd[1][i].tokens, (size_t)(N - 9 * i) * sizeof *rd[0][i].tokens);
        reader_free(&rd[0][i]);
        reader_free(&rd[1][i]);
    }
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 4};
    struct tiny_spec spec = spec_of("smollm2", "Q8_0");
    struct pair p;
    struct err err = {0};
    struct step_out out;
    atomic_bool stop = true;
    struct row row = pair_row(0, 0, 0);
    ck_assert_msg(pair_open(&p, &spec, o, &kern_ref, persistent(), &err), "%s", err.msg);
    pair_pages(&p, 1, 1);
    ck_assert(!adapter_step(p.got, &row, 1, &out, &stop, &err));
    step_both(&p, &row, 1);
    step_both(&p, &row, 1);
    close_pair(&p);
}
END_TEST

/* Pages left by another request, prompt and generated tokens: the same tokens and log-probabilities as on empty ones. */
START_TEST(prefix_cache)
{
    static struct reader cold, first, warm;
    struct rig r;
    rig_open(&r, &(struct rig_options){.device = kern_cuda(), .n_layer = 1, .type = "Q4_1"});
    struct gen_request q = rig_request(100, 1, 40);
    q.n_logprobs = 0;
    reader_start(&cold, &r, &q);
    reader_finish(&cold);
    q.cache_scope = "";
    reader_start(&first, &r, &q);
    reader_finish(&first);
    q.resume = cold.tokens;
    q.n_resume = 30;
    rig_wait_idle(&r);
    reader_start(&warm, &r, &q);
    reader_finish(&warm);
    ck_assert_int_eq(warm.n_cached, 100);
    ck_assert_mem_eq(first.tokens, cold.tokens, 40 * sizeof *cold.tokens);
    ck_assert_mem_eq(first.logprobs, cold.logprobs, 40 * sizeof *cold.logprobs);
    ck_assert_mem_eq(warm.tokens, cold.tokens + 30, 10 * sizeof *cold.tokens);
    ck_assert_mem_eq(warm.logprobs, cold.logprobs + 30, 10 * sizeof *cold.logprobs);
    reader_free(&cold);
    reader_free(&first);
    reader_free(&warm);
    rig_close(&r);
    ck_assert_uint_eq(emu_taken(), 0);
}
END_TEST

/* Every family with every type, every KV type, several orders. */
START_TEST(everything)
{
    for (int t = 0; t < QTYPE_N; t++) {
        emu_card()->seed = (uint64_t)(_i * QTYPE_N + t) * 7919 + 5;
        run_model(presets[_i], qtype_name((enum qtype)t), (enum kv_type)(t % KV_TYPE_N));
        run_persistent(presets[_i], qtype_name((enum qtype)t), (enum kv_type)(t % KV_TYPE_N), 1, 12);
    }
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("cuda");
    TCase *t = tcase_create("models");
    tcase_set_timeout(t, 600);
    tcase_add_loop_test(t, every_family, 0, N_PRESETS);
    tcase_add_loop_test(t, every_type, 0, TYPES);
    tcase_add_test(t, mixtures);
    tcase_add_test(t, old_card);
    tcase_add_loop_test(t, any_number_of_rows, 0, ROW_CASES);
    tcase_add_loop_test(t, one_row, 0, 7);
    tcase_add_loop_test(t, odd_widths, 0, 3);
    tcase_add_loop_test(t, long_context, 0, 3);
    tcase_add_loop_test(t, odd_heads, 0, sizeof heads / sizeof *heads);
    tcase_add_test(t, graphs);
    tcase_add_test(t, prefix_cache);
    suite_add_tcase(s, t);
    TCase *columns = tcase_create("columns");
    tcase_set_timeout(columns, 600);
    tcase_add_loop_test(columns, any_number_of_columns, 0, KINDS);
    suite_add_tcase(s, columns);
    TCase *few = tcase_create("few rows");
    tcase_set_timeout(few, 600);
    tcase_add_loop_test(few, few_rows, 0, N_PRESETS);
    suite_add_tcase(s, few);
    TCase *one = tcase_create("one kernel");
    tcase_set_timeout(one, 60);
    tcase_add_loop_test(one, one_kernel_every_family, 0, N_PRESETS);
    tcase_add_loop_test(one, one_kernel_every_type, 0, TYPES);
    tcase_add_test(one, one_kernel_past_a_split);
    tcase_add_test(one, one_kernel_mixtures);
    tcase_add_test(one, one_kernel_in_service);
    suite_add_tcase(s, one);
    return s;
}

/* Cases of about the same length: make cuda-full runs them side by side. */
static Suite *full_suite(void)
{
    const struct {
        const char *name;
        const TTest *test;
        int from, to;
    } cases[] = {{"columns", any_number_of_columns, KINDS, QUANTISED},
                 {"first", everything, 0, N_PRESETS / 2},
                 {"second", everything, N_PRESETS / 2, N_PRESETS}};
    Suite *s = suite_create("cuda full");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TCase *t = tcase_create(cases[i].name);
        tcase_set_timeout(t, 600);
        tcase_add_loop_test(t, cases[i].test, cases[i].from, cases[i].to);
        suite_add_tcase(s, t);
    }
    return s;
}

int main(int argc, char **argv)
{
    SRunner *r = srunner_create(argc > 1 && strcmp(argv[1], "full") == 0 ? full_suite() : suite());
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
