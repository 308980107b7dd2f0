/* Tokens drawn by the CUDA device (on the host shim) against the sampler: the same token for every mix of parameters. */
#include "kernels/cuda/cuda.h"
#include "tests/emu/emu.h"
#include "tests/random_draw.h"

#include <check.h>
#include <stdlib.h>

enum { ROWS = 8 };

static struct kern *open_device(int n_vocab)
{
    struct kern_config c = {.n_layer = 1, .dim = 32, .n_head = 1, .n_kv_head = 1, .head_dim = 32, .n_vocab = n_vocab, .n_ff = 32,
                            .max_rows = ROWS, .max_logits = ROWS, .n_pages = 1};
    struct err err = {0};
    struct kern *k = kern_cuda()->open(&c, &err);
    ck_assert_msg(k != NULL, "%s", err.msg);
    return k;
}

/* A step that is nothing but its draws, from these logits. */
static void run_step(struct kern *kern, const struct random_draw *c, const struct draw *draws, int n_vocab)
{
    struct cuda *k = (struct cuda *)kern;
    struct row rows[ROWS] = {0};
    int32_t page = 0;
    struct err err = {0};
    for (int i = 0; i < ROWS; i++)
        rows[i].want_logits = true;
    kern->dev->step_begin(kern, &(struct step){rows, ROWS, &page, 1, draws});
    for (int i = 0; i < ROWS; i++) /* the shim's device memory is the host's */
        memcpy(k->logits + (size_t)i * (size_t)n_vocab, c[i].logits, (size_t)n_vocab * sizeof(float));
    if (k->draws)
        launch_draw(k);
    ck_assert_msg(kern->dev->step_end(kern, &err), "%s", err.msg);
}

/* Rows that cannot be drawn there (a mask) give their logits in the same step. */
START_TEST(equals_the_sampler)
{
    static const int sizes[] = {1, 2, 31, 33, 700, 1025, 2500, N_MAX};
    static struct draw_edit edits[ROWS][DRAW_MAX_EDITS];
    int n = sizes[_i], n_here = 0, n_nothing = 0;
    struct random_draw *c = calloc(ROWS, sizeof *c);
    struct sampler *s = sampler_new(n);
    struct kern *k = open_device(n);
    uint64_t rng = 1234567 + (uint64_t)_i;
    for (int step = 0; step < 40; step++) {
        struct draw draws[ROWS];
        emu_card()->seed = (uint64_t)step;
        for (int i = 0; i < ROWS; i++) {
            random_draw_make(&c[i], n, (step * ROWS + i) % 4, &rng);
            n_here += sampler_defer(s, &c[i].in, &draws[i], edits[i]);
        }
        run_step(k, c, draws, n);
        for (int i = 0; i < ROWS; i++) {
            const struct sample_params *p = c[i].in.params;
            int32_t want = sampler_draw(s, &c[i].in), got = k->dev->token(k, i);
            ck_assert_int_eq(got != -1, draws[i].here);
            n_nothing += got == DRAW_NOTHING;
            if (got == -1)
                ck_assert_mem_eq(k->dev->logits(k, i), c[i].logits, (size_t)n * sizeof(float));
            else
                ck_assert_msg(got == (want < 0 ? DRAW_NOTHING : want), "%d tokens, step %d, row %d: token %d, expected %d (temperature %g, top-k %d, top-p %g, min-p %g)",
                              n, step, i, got, want, (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p);
        }
    }
    ck_assert_int_gt(n_here, 200);
    ck_assert(n > 2 || n_nothing > 0); /* all banned, or none a number */
    k->dev->close(k);
    sampler_free(s);
    free(c);
}
END_TEST

/* More edits than a device takes: the sampler's job. */
START_TEST(too_many_edits)
{
    enum { N = DRAW_MAX_EDITS + 10 };
    static struct draw_edit edits[DRAW_MAX_EDITS];
    static int32_t history[N];
    struct sampler *s = sampler_new(N);
    struct sample_params p = SAMPLE_DEFAULTS;
    struct draw d;
    for (int i = 0; i < N; i++)
        history[i] = i;
    p.presence_penalty = 1;
    struct sample_in in = {.params = &p, .history = history, .n_history = DRAW_MAX_EDITS};
    ck_assert(sampler_defer(s, &in, &d, edits));
    in.n_history++;
    ck_assert(!sampler_defer(s, &in, &d, edits));
    ck_assert(!d.here);
    sampler_free(s);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cuda draw");
    TCase *t = tcase_create("draw");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, equals_the_sampler, 0, 8);
    tcase_add_test(t, too_many_edits);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
