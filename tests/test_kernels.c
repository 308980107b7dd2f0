/* Phases of a device against the reference, byte for byte: small random layers built directly on kern.h. The reference
 * computes every position of every sequence once; a device under test then gets the same sequences in steps of random
 * chunks, pages out of order, and each logit it returns must be the reference's. So one comparison covers the arithmetic
 * and its independence of neighbours, chunks, threads and instruction sets. */
#include "base/mem.h"
#include "kernels/cpu/product.h"
#include "kernels/kern.h"
#include "tests/tiny_weights.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

enum { N_LAYER = 2, N_SEQ = 3, MAX_ROWS = 40, N_VOCAB = 45, PAGE_STRIDE = 16, N_PAGES = N_SEQ * PAGE_STRIDE };

/* What a net looks like; zero means the plain choice. */
struct spec {
    const char *name;
    enum qtype type;            /* of every matrix but the router, which is F32 */
    int dim, n_head, n_kv_head, head_dim, n_ff;
    int n_expert, n_expert_used;
    int n_rot;                  /* 0 = head_dim */
    int window[N_LAYER];
    enum ffn_act act;
    enum kv_type kv;
    bool interleaved;           /* rope pairs (2i, 2i + 1) */
    bool two_ropes;             /* the second layer has its own table, scaled */
    bool biases, head_norms, post_norms, sinks;
    float embed_scale;
    int len[N_SEQ];             /* tokens of each sequence */
};

static const struct spec specs[] = {
    {.name = "plain", .type = QTYPE_Q4_1, .dim = 96, .n_head = 3, .n_kv_head = 1, .head_dim = 32, .n_ff = 160, .len = {90, 33, 5}},
    {.name = "long", .type = QTYPE_Q8_0, .dim = 64, .n_head = 6, .n_kv_head = 2, .head_dim = 16, .n_ff = 64, .len = {700, 300, 64}},
    {.name = "long, kv f32", .type = QTYPE_Q4_0, .dim = 64, .n_head = 2, .n_kv_head = 2, .head_dim = 32, .n_ff = 64, .kv = KV_F32,
     .len = {330, 60, 257}},
    {.name = "long, kv q8_0", .type = QTYPE_Q5_0, .dim = 64, .n_head = 4, .n_kv_head = 2, .head_dim = 40, .n_ff = 96, .kv = KV_Q8_0,
     .interleaved = true, .len = {300, 70, 9}},
    {.name = "window and sinks", .type = QTYPE_Q5_1, .dim = 64, .n_head = 8, .n_kv_head = 2, .head_dim = 16, .n_ff = 64,
     .window = {0, 70}, .sinks = true, .biases = true, .len = {420, 80, 65}},
    {.name = "narrow window", .type = QTYPE_IQ4_NL, .dim = 64, .n_head = 4, .n_kv_head = 1, .head_dim = 24, .n_ff = 64,
     .window = {1, 300}, .len = {400, 20, 130}},
    {.name = "gelu and post-norms", .type = QTYPE_Q4_K, .dim = 256, .n_head = 4, .n_kv_head = 1, .head_dim = 64, .n_ff = 512,
     .act = ACT_GELU, .post_norms = true, .head_norms = true, .two_ropes = true, .embed_scale = 16, .window = {32, 0},
     .len = {70, 20, 3}},
    {.name = "experts", .type = QTYPE_MXFP4, .dim = 64, .n_head = 4, .n_kv_head = 2, .head_dim = 16, .n_ff = 96, .n_expert = 9,
     .n_expert_used = 3, .act = ACT_SWIGLU_CLAMPED, .biases = true, .sinks = true, .len = {70, 20, 3}},
    {.name = "experts, float", .type = QTYPE_F32, .dim = 64, .n_head = 4, .n_kv_head = 2, .head_dim = 8, .n_ff = 64, .n_expert = 4,
     .n_expert_used = 4, .len = {40, 9, 3}},
    {.name = "part of a head rotates", .type = QTYPE_F16, .dim = 64, .n_head = 4, .n_kv_head = 4, .head_dim = 80, .n_rot = 20,
     .n_ff = 64, .len = {70, 20, 3}},
    {.name = "wide heads", .type = QTYPE_BF16, .dim = 64, .n_head = 2, .n_kv_head = 1, .head_dim = 256, .n_ff = 64, .len = {70, 9, 3}},
    {.name = "one KV head for all", .type = QTYPE_Q6_K, .dim = 256, .n_head = 32, .n_kv_head = 1, .head_dim = 8, .n_ff = 256,
     .biases = true, .len = {70, 20, 3}},
    {.name = "q2_k", .type = QTYPE_Q2_K, .dim = 256, .n_head = 4, .n_kv_head = 2, .head_dim = 64, .n_ff = 256, .len = {20, 9, 3}},
    {.name = "q3_k", .type = QTYPE_Q3_K, .dim = 256, .n_head = 4, .n_kv_head = 2, .head_dim = 64, .n_ff = 256, .len = {20, 9, 3}},
    {.name = "q5_k", .type = QTYPE_Q5_K, .dim = 256, .n_head = 4, .n_kv_head = 2, .head_dim = 64, .n_ff = 256, .len = {20, 9, 3}},
    {.name = "iq4_xs", .type = QTYPE_IQ4_XS, .dim = 256, .n_head = 4, .n_kv_head = 2, .head_dim = 64, .n_ff = 256, .len = {20, 9, 3}},
};
enum { N_SPEC = sizeof specs / sizeof *specs };

/* ---- a net on a device ---- */

struct net {
    const struct spec *spec;
    const struct kern_device *dev;
    struct kern *kern;
    struct kern_config cfg;
    struct mat embed;
    struct layer layer[N_LAYER];
    struct head_params head;
    double inv_freq[ROPE_MAX][128];
    int32_t pages[N_PAGES];
    size_t bytes;               /* counted before open */
    bool counting;
};

static void load_mat(struct net *n, const char *name, enum qtype type, int rows, int cols, int n_mat, struct mat *m)
{
    if (n->counting) {
        n->bytes += (n->dev->mat_bytes(type, rows, cols, n_mat) + 63) / 64 * 64;
        return;
    }
    struct err err = {0};
    size_t one = qtype_row_bytes(type, (size_t)cols) * (size_t)rows;
    char *src = malloc(one * (size_t)n_mat);
    ck_assert_ptr_nonnull(src);
    struct rng rng = rng_of(7, name);
    weights_fill(type, 1.5f / sqrtf((float)cols), &rng, src, (size_t)rows * (size_t)cols * (size_t)n_mat);
    *m = (struct mat){.type = type, .rows = rows, .cols = cols, .n_mat = n_mat};
    ck_assert_msg(n->dev->mat_load(n->kern, m, src, one, &err), "%s", err.msg);
    free(src);
}

static void load_vec(struct net *n, const char *name, size_t len, float mean, const float **out)
{
    if (n->counting) {
        n->bytes += (len * sizeof(float) + 63) / 64 * 64;
        return;
    }
    struct err err = {0};
    float v[1024];
    ck_assert_uint_le(len, sizeof v / sizeof *v);
    struct rng rng = rng_of(11, name);
    for (size_t i = 0; i < len; i++)
        v[i] = mean + 0.3f * rng_normal(&rng);
    *out = n->dev->vec_load(n->kern, v, len, &err);
    ck_assert_msg(*out != NULL, "%s", err.msg);
}

static void load_layer(struct net *n, int i)
{
    const struct spec *s = n->spec;
    struct layer *l = &n->layer[i];
    int q_dim = s->n_head * s->head_dim, kv_dim = s->n_kv_head * s->head_dim, experts = s->n_expert > 0 ? s->n_expert : 1;
    char name[32];
    const struct {
        const char *what;
        enum qtype type;
        int rows, cols, n_mat;
        bool there;
        struct mat *m;
    } mats[] = {
        {"q", s->type, q_dim, s->dim, 1, true, &l->attn_in.q},
        {"k", s->type, kv_dim, s->dim, 1, true, &l->attn_in.k},
        {"v", s->type, kv_dim, s->dim, 1, true, &l->attn_in.v},
        {"o", s->type, s->dim, q_dim, 1, true, &l->attn_out.o},
        {"router", QTYPE_F32, s->n_expert, s->dim, 1, s->n_expert > 0, &l->route.router},
        {"gate", s->type, s->n_ff, s->dim, experts, true, &l->ffn.gate},
        {"up", s->type, s->n_ff, s->dim, experts, true, &l->ffn.up},
        {"down", s->type, s->dim, s->n_ff, experts, true, &l->ffn.down},
    };
    const struct {
        const char *what;
        int len;
        float mean;
        bool there;
        const float **v;
    } vecs[] = {
        {"attn_norm", s->dim, 1, true, &l->attn_in.norm},
        {"ffn_norm", s->dim, 1, true, &l->ffn.norm},
        {"q_bias", q_dim, 0, s->biases, &l->attn_in.q_bias},
        {"k_bias", kv_dim, 0, s->biases, &l->attn_in.k_bias},
        {"v_bias", kv_dim, 0, s->biases, &l->attn_in.v_bias},
        {"o_bias", s->dim, 0, s->biases, &l->attn_out.o_bias},
        {"router_bias", s->n_expert, 0, s->biases && s->n_expert > 0, &l->route.router_bias},
        {"gate_bias", s->n_ff * experts, 0, s->biases, &l->ffn.gate_bias},
        {"up_bias", s->n_ff * experts, 0, s->biases, &l->ffn.up_bias},
        {"down_bias", s->dim * experts, 0, s->biases, &l->ffn.down_bias},
        {"q_norm", s->head_dim, 1, s->head_norms, &l->attn_in.q_norm},
        {"k_norm", s->head_dim, 1, s->head_norms, &l->attn_in.k_norm},
        {"sinks", s->n_head, 0, s->sinks, &l->attn.sinks},
        {"attn_post", s->dim, 1, s->post_norms, &l->ffn.pending_norm},
        {"prev_post", s->dim, 1, s->post_norms && i > 0, &l->attn_in.pending_norm},
    };
    *l = (struct layer){.index = i, .attn_in = {.has_pending = i > 0, .rope = s->two_ropes ? i : 0}, .attn = {.window = s->window[i]}};
    for (size_t j = 0; j < sizeof mats / sizeof *mats; j++) {
        snprintf(name, sizeof name, "%d.%s", i, mats[j].what);
        if (mats[j].there)
            load_mat(n, name, mats[j].type, mats[j].rows, mats[j].cols, mats[j].n_mat, mats[j].m);
    }
    for (size_t j = 0; j < sizeof vecs / sizeof *vecs; j++) {
        snprintf(name, sizeof name, "%d.%s", i, vecs[j].what);
        if (vecs[j].there)
            load_vec(n, name, (size_t)vecs[j].len, vecs[j].mean, vecs[j].v);
    }
}

/* Counts the bytes of all weights (before open), or loads them. */
static void load_all(struct net *n, bool counting)
{
    const struct spec *s = n->spec;
    n->counting = counting;
    load_mat(n, "embed", s->type, N_VOCAB, s->dim, 1, &n->embed);
    load_mat(n, "head", s->type, N_VOCAB, s->dim, 1, &n->head.out);
    load_vec(n, "head_norm", (size_t)s->dim, 1, &n->head.norm);
    if (s->post_norms)
        load_vec(n, "head_post", (size_t)s->dim, 1, &n->head.pending_norm);
    for (int i = 0; i < N_LAYER; i++)
        load_layer(n, i);
}

static void net_config(struct net *n, const struct spec *s, const struct kern_device *dev, enum isa isa, int n_threads)
{
    memset(n, 0, sizeof *n);
    n->spec = s;
    n->dev = dev;
    n->cfg = (struct kern_config){
        .n_layer = N_LAYER, .dim = s->dim, .n_head = s->n_head, .n_kv_head = s->n_kv_head, .head_dim = s->head_dim,
        .n_vocab = N_VOCAB, .n_ff = s->n_ff, .n_expert = s->n_expert, .n_expert_used = s->n_expert_used, .norm_eps = 1e-5f,
        .act = s->act, .embed_scale = s->embed_scale != 0 ? s->embed_scale : 1, .attn_scale = 2.0f / sqrtf((float)s->head_dim),
        .n_rope = s->two_ropes ? 2 : 1, .max_rows = MAX_ROWS, .max_logits = MAX_ROWS, .n_pages = N_PAGES, .kv_type = s->kv,
        .n_threads = n_threads, .isa = isa,
    };
    for (int r = 0; r < n->cfg.n_rope; r++) {
        int n_rot = s->n_rot > 0 ? s->n_rot : s->head_dim;
        for (int i = 0; i < n_rot / 2; i++)
            n->inv_freq[r][i] = 1 / num_pow(r == 0 ? 10000 : 100, 2.0 * i / n_rot);
        n->cfg.rope[r] = (struct rope){n->inv_freq[r], r == 0 ? 1 : 1.25, n_rot, !s->interleaved};
    }
    for (int i = 0; i < N_PAGES; i++)    /* a permutation: neighbours in a table are not neighbours in memory */
        n->pages[i] = (i * 29 + 5) % N_PAGES;
    load_all(n, true);
    n->cfg.weight_bytes = n->bytes;
}

static void net_open(struct net *n, const struct spec *s, const struct kern_device *dev, enum isa isa, int n_threads)
{
    struct err err = {0};
    net_config(n, s, dev, isa, n_threads);
    n->kern = dev->open(&n->cfg, &err);
    ck_assert_msg(n->kern != NULL, "%s", err.msg);
    load_all(n, false);
}

static void net_close(struct net *n)
{
    n->dev->close(n->kern);
}

static void net_step(struct net *n, const struct row *rows, int n_rows)
{
    const struct step step = {.rows = rows, .n_rows = n_rows, .page_table = n->pages, .page_stride = PAGE_STRIDE};
    struct err err = {0};
    n->dev->step_begin(n->kern, &step);
    n->dev->embed(n->kern, &n->embed);
    for (int i = 0; i < N_LAYER; i++) {
        const struct layer *l = &n->layer[i];
        n->dev->attn_in(n->kern, l);
        n->dev->attn(n->kern, l);
        n->dev->attn_out(n->kern, l);
        if (n->spec->n_expert > 0)
            n->dev->route(n->kern, l);
        n->dev->ffn_in(n->kern, l);
        n->dev->ffn_out(n->kern, l);
    }
    n->dev->head(n->kern, &n->head);
    ck_assert_msg(n->dev->step_end(n->kern, &err), "%s", err.msg);
}

/* ---- sequences ---- */

static struct row row_at(int seq, int pos, bool want_logits)
{
    return (struct row){seq, pos, (pos * 7 + seq * 13 + pos / 5) % N_VOCAB, want_logits};
}

/* Logits of every position by the reference. */
struct truth {
    float *logits[N_SEQ];
};

static void make_truth(const struct spec *s, struct truth *t)
{
    struct net ref;
    net_open(&ref, s, &kern_ref, ISA_BEST, 1);
    for (int q = 0; q < N_SEQ; q++) {
        t->logits[q] = malloc((size_t)s->len[q] * N_VOCAB * sizeof(float));
        ck_assert_ptr_nonnull(t->logits[q]);
        for (int pos = 0; pos < s->len[q]; pos += MAX_ROWS) {
            struct row rows[MAX_ROWS];
            int n = s->len[q] - pos < MAX_ROWS ? s->len[q] - pos : MAX_ROWS;
            for (int i = 0; i < n; i++)
                rows[i] = row_at(q, pos + i, true);
            net_step(&ref, rows, n);
            for (int i = 0; i < n; i++)
                memcpy(t->logits[q] + (size_t)(pos + i) * N_VOCAB, ref.dev->logits(ref.kern, i), N_VOCAB * sizeof(float));
        }
    }
    net_close(&ref);
}

static void free_truth(struct truth *t)
{
    for (int q = 0; q < N_SEQ; q++)
        free(t->logits[q]);
}

static void check_row(const struct net *n, const struct truth *t, const struct row *row, const float *got, const char *what)
{
    const float *want = t->logits[row->seq] + (size_t)row->pos * N_VOCAB;
    for (int i = 0; i < N_VOCAB; i++) {
        ck_assert_msg(isfinite(want[i]), "%s: the reference gives %g", n->spec->name, (double)want[i]);
        ck_assert_msg(num_bits(want[i]) == num_bits(got[i]), "%s, %s: sequence %d, position %d, logit %d: expected %a, got %a",
                      n->spec->name, what, row->seq, row->pos, i, (double)want[i], (double)got[i]);
    }
}

/* All sequences to their ends in steps of random chunks of at most most rows a sequence, in random order. */
static void run_chunks(struct net *n, const struct truth *t, int most, uint64_t seed, const char *what)
{
    struct rng rng = rng_of(seed, what);
    int pos[N_SEQ] = {0};
    for (;;) {
        struct row rows[MAX_ROWS];
        int n_rows = 0, first = (int)(rng_next(&rng) % N_SEQ);
        for (int i = 0; i < N_SEQ; i++) {
            int q = (first + i) % N_SEQ, left = n->spec->len[q] - pos[q], chunk = 1 + (int)(rng_next(&rng) % (uint64_t)most);
            chunk = chunk < left ? chunk : left;
            chunk = chunk < MAX_ROWS - n_rows ? chunk : MAX_ROWS - n_rows;
            for (int j = 0; j < chunk; j++, pos[q]++)
                rows[n_rows++] = row_at(q, pos[q], j == chunk - 1 || rng_next(&rng) % 4 == 0);
        }
        if (n_rows == 0)
            return;
        net_step(n, rows, n_rows);
        for (int i = 0, logits = 0; i < n_rows; i++)
            if (rows[i].want_logits)
                check_row(n, t, &rows[i], n->dev->logits(n->kern, logits++), what);
    }
}

/* ---- tests ---- */

/* Every instruction set of this machine, 1 to 3 threads, large and small chunks. _i is the spec. */
START_TEST(cpu_is_reference)
{
    static const char *const isa_name[ISA_N] = {"best", "scalar", "avx2", "avx-vnni", "avx512", "avx512-vnni"};
    struct truth t;
    make_truth(&specs[_i], &t);
    for (enum isa isa = ISA_BEST; isa < ISA_N; isa++) {
        if (product_isa(isa) == NULL)
            continue;
        for (int threads = isa == ISA_BEST ? 1 : 3; threads <= 3; threads++) {
            struct net n;
            char what[64];
            snprintf(what, sizeof what, "%s, %d threads", isa_name[isa], threads);
            net_open(&n, &specs[_i], &kern_cpu, isa, threads);
            run_chunks(&n, &t, MAX_ROWS, (uint64_t)threads, what);
            if (threads == 2)
                run_chunks(&n, &t, 2, 2, what);    /* over pages that hold older values */
            net_close(&n);
        }
    }
    free_truth(&t);
}
END_TEST

/* Keys beyond a row's position, whatever an earlier owner of the page left there, change nothing. */
START_TEST(masked_keys_are_never_read)
{
    struct net fresh, used;
    const struct row rows[2] = {row_at(0, 0, true), row_at(0, 1, true)};
    struct row old[MAX_ROWS];
    float huge[32], infinite[32];
    for (int i = 0; i < 32; i++) {
        huge[i] = i % 2 ? 1e30f : 3e3f;
        infinite[i] = i % 3 ? INFINITY : NAN;
    }
    net_open(&fresh, &specs[0], &kern_cpu, ISA_BEST, 1);
    net_open(&used, &specs[0], &kern_cpu, ISA_BEST, 1);
    for (int i = 0; i < MAX_ROWS; i++)
        old[i] = row_at(0, i, false);
    for (int i = 0; i < N_LAYER; i++) {
        used.layer[i].attn_in.k_bias = huge;
        used.layer[i].attn_in.v_bias = infinite;
    }
    net_step(&used, old, MAX_ROWS);
    for (int i = 0; i < N_LAYER; i++)
        used.layer[i].attn_in.k_bias = used.layer[i].attn_in.v_bias = NULL;
    net_step(&used, rows, 2);
    net_step(&fresh, rows, 2);
    for (int i = 0; i < 2; i++)
        ck_assert_mem_eq(fresh.dev->logits(fresh.kern, i), used.dev->logits(used.kern, i), N_VOCAB * sizeof(float));
    net_close(&fresh);
    net_close(&used);
}
END_TEST

/* Whatever allocation fails, open says so and leaves nothing behind. */
START_TEST(open_fails_cleanly)
{
    for (int i = 1;; i++) {
        struct net n;
        struct err err = {0};
        net_config(&n, &specs[0], &kern_cpu, ISA_BEST, 2);
        mem_fail_after(i);
        n.kern = kern_cpu.open(&n.cfg, &err);
        mem_fail_after(0);
        if (n.kern != NULL) {
            ck_assert_int_gt(i, 3);
            kern_cpu.close(n.kern);
            break;
        }
        ck_assert_int_eq(err.code, ERR_DEVICE);
        ck_assert_uint_gt(strlen(err.msg), 0);
    }
    kern_cpu.close(NULL);
}
END_TEST

START_TEST(weights_beyond_the_plan_are_refused)
{
    struct net n;
    struct err err = {0};
    float v[64] = {0};
    net_config(&n, &specs[0], &kern_cpu, ISA_BEST, 1);
    n.cfg.weight_bytes = 128;
    n.kern = kern_cpu.open(&n.cfg, &err);
    ck_assert_ptr_nonnull(n.kern);
    struct mat m = {.type = QTYPE_F32, .rows = 1, .cols = 64, .n_mat = 1};
    ck_assert(!kern_cpu.mat_load(n.kern, &m, v, sizeof v, &err));
    ck_assert_int_eq(err.code, ERR_INTERNAL);
    ck_assert_ptr_nonnull(kern_cpu.vec_load(n.kern, v, 32, &err));
    ck_assert_ptr_null(kern_cpu.vec_load(n.kern, v, 1, &err));
    kern_cpu.close(n.kern);
}
END_TEST

START_TEST(describes_itself)
{
    struct net n;
    char text[64];
    net_open(&n, &specs[0], &kern_cpu, ISA_SCALAR, 2);
    kern_cpu.describe(n.kern, text, sizeof text);
    ck_assert_str_eq(text, "scalar, 2 threads");
    net_close(&n);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kernels");
    TCase *tc = tcase_create("kernels");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, cpu_is_reference, 0, N_SPEC);
    tcase_add_test(tc, masked_keys_are_never_read);
    tcase_add_test(tc, open_fails_cleanly);
    tcase_add_test(tc, weights_beyond_the_plan_are_refused);
    tcase_add_test(tc, describes_itself);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
