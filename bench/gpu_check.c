/* gpu-check: the CUDA device against the CPU engine on the card that is there, byte for byte (F16 and BF16 near, and the same
 * in any company): single instructions first, then every tiny family with every weight type, mixtures, long contexts, published
 * shapes, every way to do a step. A test that fails or hangs costs itself alone. Needs the CUDA toolkit and a compiler, nothing
 * else. --quick: one family a type; --small: a few models in one process, for compute-sanitizer. */
#include "base/clock.h"
#include "bench/gpu_probe.h"
#include "tests/apart.h"
#include "tests/pair.h"

#include <stdio.h>
#include <string.h>

/* Seconds after which no further test begins, and what one takes at most: the reference computes on the CPU. */
enum { FULL_SECONDS = 240, QUICK_SECONDS = 60, SMALL_SECONDS = 35, TEST_SECONDS = 60 };

/* How steps are done: as in service, or the ways of which gpu-bench tells which is the fastest, with the same bytes. */
enum way { USUAL, SEPARATE, OVERLAPPED, ONE_KERNEL, WAYS };

/* What a test does: pair_run and its siblings (tests/pair.h); AGAIN is pair_run_again with `rows` sequences. */
enum kind { INSTRUCTIONS, PAIR, LONG, CHUNKS, AGAIN };
struct test {
    enum kind kind;
    const char *preset, *type;
    enum way way;
    enum kv_type kv;
    int window, rows;
};
enum { MAX_TESTS = 512 };

static const char *const presets[] = {"llama2",  "llama3",   "llama32", "smollm2", "qwen2",     "phi3",
                                      "phi3swa", "phi3long", "qwen3",   "gemma3",  "gemma3lin", "gptoss"};
static const struct test first[] = {
    {.kind = INSTRUCTIONS, .preset = "single", .type = "instructions"},
    {LONG, "smollm2", "Q8_0", USUAL, KV_F16, 0, 0},
    {LONG, "phi3swa", "Q8_0", USUAL, KV_Q8_0, 300, 0},
    {LONG, "gptoss", "Q8_0", USUAL, KV_F32, 270, 0},
    {.kind = CHUNKS, .preset = "llama3", .type = "F16"},
    {.kind = CHUNKS, .preset = "qwen2", .type = "BF16"},
    {.kind = CHUNKS, .preset = "llama3", .type = "Q8_0"},
    {.kind = CHUNKS, .preset = "qwen2.5-0.5b", .type = "F16"}, /* fills a large card with the largest tiles */
    {.kind = PAIR, .preset = "qwen2", .type = "Q4_K_M"},
    {.kind = PAIR, .preset = "qwen2", .type = "Q5_K_M"},
    {.kind = PAIR, .preset = "qwen2.5-0.5b", .type = "Q8_0"},
    {.kind = PAIR, .preset = "llama-3.2-1b", .type = "Q4_K"},
    {.kind = PAIR, .preset = "smollm2-135m", .type = "Q4_1"},
};
static const char *const in_ways[][2] = {{"smollm2-135m", "Q8_0"}, {"llama3", "Q4_K"}, {"gptoss", "MXFP4"}, {"llama3", "F16"}};
static const struct test small[] = {
    {.kind = INSTRUCTIONS, .preset = "single", .type = "instructions"},
    {.kind = PAIR, .preset = "llama3", .type = "Q4_0"},
    {.kind = PAIR, .preset = "smollm2", .type = "F16"},
    {.kind = PAIR, .preset = "gptoss", .type = "MXFP4"},
    {.kind = PAIR, .preset = "llama3", .type = "Q4_K"},
};

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* What the program and its parts share. */
struct tally {
    char card[256];
    struct err err;             /* no card: why */
    bool can[WAYS];
    struct test test[MAX_TESTS];
    int n, run, failed, left;
    uint64_t start;
    int seconds, times;         /* times: of a step that is repeated */
    atomic_int at;              /* the test under way */
};

/* ---- devices ---- */

static struct kern *open_separate(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL)
        ((struct cuda *)k)->fuse = false;
    return k;
}

static struct kern *open_overlapped(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL)
        ((struct cuda *)k)->overlap = true;
    return k;
}

static struct kern *open_one_kernel(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k == NULL || persist_open((struct cuda *)k, err))
        return k;
    kern_cuda()->close(k);
    return NULL;
}

static const struct {
    const char *name;
    struct kern *(*open)(const struct kern_config *c, struct err *err);
} ways[WAYS] = {[USUAL] = {"", NULL}, [SEPARATE] = {", apart", open_separate}, [OVERLAPPED] = {", overlapped", open_overlapped},
                [ONE_KERNEL] = {", one kernel", open_one_kernel}};

static struct kern_device device_of(enum way way)
{
    struct kern_device d = *kern_cuda();
    d.open = ways[way].open != NULL ? ways[way].open : d.open;
    return d;
}

/* A device with nothing but room for weights. */
static struct cuda *open_plain(size_t bytes, struct err *err)
{
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = 32, .n_ff = 32,
                            .max_rows = 1, .max_logits = 1, .n_pages = 1, .weight_bytes = bytes};
    return (struct cuda *)kern_cuda()->open(&c, err);
}

/* The card's name and what it can do, or why it cannot be used. */
static bool describe(void *arg)
{
    struct tally *t = arg;
    struct cuda *k = open_plain(0, &t->err);
    if (k == NULL)
        return false;
    kern_cuda()->describe(&k->kern, t->card, sizeof t->card);
    t->can[USUAL] = t->can[SEPARATE] = true;
    t->can[OVERLAPPED] = k->can_overlap;
    t->can[ONE_KERNEL] = k->code >= CODE_GRID;
    kern_cuda()->close(&k->kern);
    return true;
}

/* ---- tests ---- */

static bool run_instructions(struct err *err)
{
    struct cuda *k = open_plain(probe_bytes(), err);
    bool ok = k != NULL && probe_run(k, err);
    if (k != NULL)
        kern_cuda()->close(&k->kern);
    return ok;
}

/* Ways are compared with the usual one, byte for byte for every type of weights. */
static bool run_test(const struct tally *tally, const struct test *t, struct err *err)
{
    const struct kern_device got = device_of(t->way), *usual = kern_cuda(), *want = t->way == USUAL ? &kern_cpu : usual;
    switch (t->kind) {
    case INSTRUCTIONS: return run_instructions(err);
    case LONG: return pair_run_long(t->preset, t->type, t->window, t->kv, want, &got, err);
    case CHUNKS: return pair_run_chunks(t->preset, t->type, 0, usual, &got, err);
    case AGAIN: return pair_run_again(t->preset, t->type, t->rows, tally->times, usual, &got, err);
    case PAIR: break;
    }
    return pair_run(t->preset, t->type, t->kv, want, &got, err);
}

static void say_failed(struct tally *t, const char *why)
{
    static const char *const kinds[] = {"", "", ", long context", ", in chunks", ", again and again"};
    const struct test *test = &t->test[t->at];
    t->run++;
    t->failed++;
    printf("FAILED %s %s%s%s: %s\n", test->preset, test->type, kinds[test->kind], ways[test->way].name, why);
    fflush(stdout);
}

/* From t->at on, up to one that fails: the card's error may stay. */
static bool run_tests(void *arg)
{
    struct tally *t = arg;
    for (bool ok = true; t->at < t->n && ok; t->at++) {
        struct err err = {0};
        if (clock_ms_since(t->start) >= t->seconds * 1e3) {
            t->left++;
            continue;
        }
        ok = run_test(t, &t->test[t->at], &err);
        if (ok)
            t->run++;
        else
            say_failed(t, err.msg);
    }
    return true;
}

static void run_apart(struct tally *t)
{
    char why[64];
    while (t->at < t->n)
        if (!apart_run(run_tests, t, &t->at, TEST_SECONDS, why)) {
            say_failed(t, why);
            t->at++;
        }
}

/* ---- lists of them ---- */

static void add(struct tally *t, struct test test)
{
    if (t->can[test.way] && t->n < MAX_TESTS)
        t->test[t->n++] = test;
}

/* One model as every way does its steps: alone and in company, once and many times. What a race does shows only now and then. */
static void add_ways(struct tally *t, const char *preset, const char *type)
{
    static const int rows[] = {1, 5, 40};
    for (int way = 0; way < WAYS; way++) {
        if (way != USUAL)
            add(t, (struct test){.kind = PAIR, .preset = preset, .type = type, .way = (enum way)way});
        for (int i = 0; i < COUNT(rows); i++)
            add(t, (struct test){.kind = AGAIN, .preset = preset, .type = type, .way = (enum way)way, .rows = rows[i]});
    }
}

static void list(struct tally *t, bool quick)
{
    for (int i = 0; i < COUNT(first); i++)
        add(t, first[i]);
    for (int i = 0; i < COUNT(in_ways); i++)
        add_ways(t, in_ways[i][0], in_ways[i][1]);
    for (int i = 0; i < COUNT(presets); i++)
        for (int type = quick ? i : 0; type < QTYPE_N; type += quick ? COUNT(presets) : 1)
            add(t, (struct test){PAIR, presets[i], qtype_name((enum qtype)type), USUAL, (enum kv_type)(type % KV_TYPE_N), 0, 0});
}

static void list_small(struct tally *t)
{
    for (int i = 0; i < COUNT(small); i++)
        add(t, small[i]);
    add_ways(t, "smollm2", "Q8_0");
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    bool is_quick = strcmp(how, "--quick") == 0, is_small = strcmp(how, "--small") == 0;
    struct tally *t = apart_shared(sizeof *t);
    char why[64] = "";
    if (argc > 2 || (argc > 1 && !is_quick && !is_small)) {
        fprintf(stderr, "usage: gpu-check [--quick | --small]\n");
        return 64;
    }
    if (t == NULL || !(is_small ? describe(t) : apart_run(describe, t, &t->at, TEST_SECONDS, why))) {
        fprintf(stderr, "gpu-check: %s\n", t == NULL ? "no memory" : why[0] != 0 ? why : t->err.msg);
        return 69;
    }
    printf("gpu-check: %s\n", t->card);
    t->start = clock_ns();
    t->seconds = is_quick ? QUICK_SECONDS : is_small ? SMALL_SECONDS : FULL_SECONDS;
    t->times = is_quick ? 50 : is_small ? 3 : 200;
    if (is_small) {
        list_small(t);
        (void)run_tests(t);
        t->left += t->n - t->at;
    } else {
        list(t, is_quick);
        run_apart(t);
    }
    printf("gpu-check: %d tests, %d failed, %d not run for want of time\n", t->run, t->failed, t->left);
    return t->failed == 0 ? 0 : 1;
}
