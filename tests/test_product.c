/* Packing and products: the packed form gives the source's values back; the scalar products are the
 * numeric contract, computed here literally from the unpacked source; every instruction set of this
 * machine gives the scalar's bytes. */
#include "kernels/cpu/product.h"
#include "tests/weights.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ROWS = 13, MAX_OUT = 29 };

/* What activations look like. */
enum fill_act { ACT_RANDOM, ACT_EXTREME, ACT_ZERO, ACT_SPECIAL, ACT_FILL_N };

static float activation(enum fill_act fill, uint64_t *state)
{
    float x = weights_uniform(state);
    switch (fill) {
    case ACT_RANDOM:
        return x * 4;
    case ACT_EXTREME:
        return x < -0.95f ? -1.0f : 1.0f; /* nearly all codes 127 */
    case ACT_SPECIAL:
        switch (weights_random(state) % 400) {
        case 0:
            return INFINITY;
        case 1:
            return -INFINITY;
        case 2:
        case 3:
            return NAN;
        case 4:
            return 3e38f;
        case 5:
            return 1e-38f;
        default:
            return x;
        }
    default:
        return 0;
    }
}

/* A matrix in both forms and activation rows in both forms. */
struct problem {
    enum qtype type;
    int n_out, cols, n_rows;
    size_t row_bytes, group_bytes, act_stride;
    uint8_t *src, *groups, *acts;
    float *x;
};

static void *get(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

static void make(struct problem *p, const struct product_isa *isa, enum weights_fill wf,
                 enum fill_act af, uint64_t seed)
{
    bool quantised = qtype_info(p->type)->quantised;
    p->row_bytes = qtype_row_bytes(p->type, (size_t)p->cols);
    p->group_bytes = pack_group_bytes(p->type, p->cols);
    p->act_stride = quantised ? act_row_bytes(p->cols) : sizeof(float) * (size_t)p->cols;
    p->src = get(p->row_bytes * (size_t)p->n_out);
    p->groups = get(p->group_bytes * (size_t)pack_n_groups(p->n_out));
    p->x = get(sizeof(float) * (size_t)(p->cols * p->n_rows));
    p->acts = get(p->act_stride * (size_t)p->n_rows);
    for (int o = 0; o < p->n_out; o++)
        weights_row(p->type, wf, &seed, (size_t)p->cols, p->src + (size_t)o * p->row_bytes);
    for (int g = 0; g < pack_n_groups(p->n_out); g++) {
        int left = p->n_out - g * PACK_ROWS;
        pack_group(p->type, p->src + (size_t)(g * PACK_ROWS) * p->row_bytes, p->row_bytes,
                   left < PACK_ROWS ? left : PACK_ROWS, p->cols,
                   p->groups + (size_t)g * p->group_bytes);
    }
    for (int k = 0; k < p->cols * p->n_rows; k++)
        p->x[k] = activation(af, &seed);
    for (int r = 0; r < p->n_rows; r++) {
        float *x = p->x + r * p->cols;
        uint8_t *act = p->acts + (size_t)r * p->act_stride;
        if (quantised)
            isa->quantise(x, p->cols, (struct act_block *)act);
        else
            memcpy(act, x, p->act_stride);
    }
}

static void drop(struct problem *p)
{
    free(p->src);
    free(p->groups);
    free(p->x);
    free(p->acts);
}

/* Bytes, except that one NaN is as good as another. */
static bool same(float a, float b)
{
    return num_bits(a) == num_bits(b) || (isnan(a) && isnan(b));
}

static float literal_quantised(const struct problem *p, int o, const float *x)
{
    float total = 0;
    for (int i0 = 0; i0 < p->cols / 32; i0 += 4) {
        float acc = 0;
        for (int i = i0; i < i0 + 4 && i < p->cols / 32; i++) {
            struct qblock32 w;
            int sum[2] = {0}, dot[2] = {0};
            float amax = 0, inv;
            qtype_unpack32(p->type, p->src + (size_t)o * p->row_bytes, (size_t)i, &w);
            for (int k = 0; k < 32; k++)
                amax = fabsf(x[32 * i + k]) > amax ? fabsf(x[32 * i + k]) : amax;
            float da = num_quant_scale(amax, &inv);
            for (int k = 0; k < 32; k++) {
                int q = num_quant(x[32 * i + k], inv);
                sum[k / 16] += q;
                dot[k / 16] += q * w.code[k];
            }
            int isum = w.scale[0] * dot[0] + w.scale[1] * dot[1];
            ck_assert_int_lt(abs(isum), 1 << 24);
            acc = fmaf((float)isum, w.d * da, acc);
            if (qtype_info(p->type)->n_mins == 1)
                acc = fmaf(w.min[0], da * (float)(sum[0] + sum[1]), acc);
            if (qtype_info(p->type)->n_mins == 2) {
                acc = fmaf(w.min[0], da * (float)sum[0], acc);
                acc = fmaf(w.min[1], da * (float)sum[1], acc);
            }
        }
        total = i0 == 0 ? acc : total + acc;
    }
    return total;
}

static float literal_float(const struct problem *p, int o, const float *x)
{
    float w[1024], total = 0;
    qtype_dequant_row(p->type, p->src + (size_t)o * p->row_bytes, (size_t)p->cols, w);
    for (int k0 = 0; k0 < p->cols; k0 += 128) {
        float acc = 0;
        for (int k = k0; k < k0 + 128 && k < p->cols; k++)
            acc = fmaf(w[k], x[k], acc);
        total = k0 == 0 ? acc : total + acc;
    }
    return total;
}

static int block_weights(int t)
{
    int n = qtype_info((enum qtype)t)->block_weights;
    return n < 32 ? 32 : n;
}

/* Packed rows are the source's rows. _i is the format. */
START_TEST(pack_keeps_values)
{
    struct problem p = {
        .type = (enum qtype)_i, .n_out = MAX_OUT, .cols = 3 * block_weights(_i), .n_rows = 1};
    float a[768], b[768];
    make(&p, &product_scalar, WEIGHTS_RANDOM, ACT_ZERO, 1);
    for (int o = 0; o < p.n_out; o++) {
        qtype_dequant_row(p.type, p.src + (size_t)o * p.row_bytes, (size_t)p.cols, a);
        pack_dequant_row(p.type, p.groups + (size_t)(o / PACK_ROWS) * p.group_bytes, o % PACK_ROWS,
                         p.cols, b);
        for (int k = 0; k < p.cols; k++)
            ck_assert_msg(same(a[k], b[k]), "%s row %d weight %d: %g, packed %g",
                          qtype_name(p.type), o, k, a[k], b[k]);
    }
    drop(&p);
}
END_TEST

START_TEST(scalar_is_the_contract)
{
    for (int cols = block_weights(_i); cols <= 1024;
         cols += cols < 160 ? block_weights(_i) : 7 * block_weights(_i)) {
        struct problem p = {.type = (enum qtype)_i, .n_out = 11, .cols = cols, .n_rows = 2};
        float out[2][16];
        make(&p, &product_scalar, WEIGHTS_RANDOM, ACT_RANDOM, (uint64_t)cols);
        product_scalar.product[_i](p.groups, 2, cols, p.acts, p.act_stride, 2, out[0], 16);
        for (int r = 0; r < 2; r++)
            for (int o = 0; o < 11; o++) {
                const float *x = p.x + r * cols;
                float want = qtype_info(p.type)->quantised ? literal_quantised(&p, o, x)
                                                           : literal_float(&p, o, x);
                ck_assert_msg(same(want, out[r][o]),
                              "%s cols %d row %d output %d: expected %.9g, got %.9g",
                              qtype_name(p.type), cols, r, o, want, out[r][o]);
            }
        drop(&p);
    }
}
END_TEST

static void compare(const struct product_isa *isa, struct problem *p, enum weights_fill wf,
                    enum fill_act af)
{
    enum { PAD = 3 };
    int n_groups = pack_n_groups(p->n_out), stride = n_groups * PACK_ROWS + PAD;
    size_t n = (size_t)(stride * p->n_rows);
    float *want = get(sizeof(float) * n), *got = get(sizeof(float) * n);
    for (size_t i = 0; i < n; i++)
        want[i] = got[i] = 12345;
    make(p, isa, wf, af, (uint64_t)(p->cols + p->n_rows));
    product_scalar.product[p->type](p->groups, n_groups, p->cols, p->acts, p->act_stride, p->n_rows,
                                    want, (size_t)stride);
    isa->product[p->type](p->groups, n_groups, p->cols, p->acts, p->act_stride, p->n_rows, got,
                          (size_t)stride);
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(same(want[i], got[i]),
                      "%s %s cols %d rows %d fill %d/%d at [%zu][%zu]: expected %.9g, got %.9g",
                      isa->name, qtype_name(p->type), p->cols, p->n_rows, wf, af,
                      i / (size_t)stride, i % (size_t)stride, want[i], got[i]);
    free(want);
    free(got);
    drop(p);
}

static const struct product_isa *isa_table(enum isa isa)
{
    const struct product_isa *table = product_isa(isa);
    return isa == ISA_SCALAR || isa == ISA_BEST ? NULL : table;
}

/* Shapes: short, ragged and long rows, odd numbers of groups, every tile width. */
START_TEST(isa_shapes)
{
    for (int isa = 0; isa < ISA_N; isa++) {
        const struct product_isa *table = isa_table((enum isa)isa);
        for (int units = 1; table && units <= 40; units += units < 6 ? 1 : 11)
            for (int rows = 1; rows <= MAX_ROWS && units * block_weights(_i) <= 1536; rows++) {
                struct problem p = {.type = (enum qtype)_i,
                                    .n_out = rows % 3 == 0 ? MAX_OUT : 8 * (rows % 4 + 1)};
                p.cols = units * block_weights(_i);
                p.n_rows = rows;
                compare(table, &p, WEIGHTS_RANDOM, ACT_RANDOM);
            }
    }
}
END_TEST

/* Values: no intermediate sum saturates, and specials go the same way. */
START_TEST(isa_extremes)
{
    for (int isa = 0; isa < ISA_N; isa++) {
        const struct product_isa *table = isa_table((enum isa)isa);
        for (int i = 0; table && i < WEIGHTS_FILL_N * ACT_FILL_N; i++) {
            struct problem p = {.type = (enum qtype)_i, .n_out = 24, .cols = 1024, .n_rows = 5};
            compare(table, &p, (enum weights_fill)(i / ACT_FILL_N),
                    (enum fill_act)(i % ACT_FILL_N));
        }
    }
}
END_TEST

START_TEST(quantise_bytes)
{
    enum { COLS = 4096 };
    float *x = get(sizeof(float) * COLS);
    struct act_block *want = get(act_row_bytes(COLS)), *got = get(act_row_bytes(COLS));
    uint64_t seed = 7;
    for (int i = 0; i < COLS; i++) /* blocks of every kind, halfway cases included */
        x[i] = i / 32 % 5 == 4 ? (float)(i % 255 - 127) * 0.5f
                               : activation((enum fill_act)(i / 32 % 5), &seed);
    for (int k = 0; k < 32; k++) {
        x[k] = k == 9 ? NUM_QUANT_TINY * 0.99f : 0; /* below the range, at both ends, above it */
        x[32 + k] = k == 9 ? NUM_QUANT_TINY : NUM_QUANT_TINY / 3;
        x[64 + k] = k == 9 ? NUM_QUANT_HUGE : NUM_QUANT_HUGE / 3;
        x[96 + k] = k == 9 ? NUM_QUANT_HUGE * 1.01f : NAN;
        x[128 + k] = NAN;
        x[160 + k] = k % 2 ? -0.0f : -5e-30f;
    }
    product_scalar.quantise(x, COLS, want);
    for (int isa = 0; isa < ISA_N; isa++) {
        const struct product_isa *table = isa_table((enum isa)isa);
        memset(got, 0x55, act_row_bytes(COLS));
        if (table)
            table->quantise(x, COLS, got);
        for (int i = 0; table && i < COLS / 32; i++)
            ck_assert_msg(memcmp(&got[i], &want[i], sizeof got[i]) == 0, "%s: block %d differs",
                          table->name, i);
    }
    free(x);
    free(want);
    free(got);
}
END_TEST

START_TEST(best_is_present)
{
    ck_assert_ptr_nonnull(product_isa(ISA_BEST));
    ck_assert_ptr_eq(product_isa(ISA_SCALAR), &product_scalar);
    for (int isa = 0; isa < ISA_N; isa++)
        for (int t = 0; product_isa((enum isa)isa) && t < QTYPE_N; t++)
            ck_assert_msg(product_isa((enum isa)isa)->product[t] != NULL, "no product for %s",
                          qtype_name((enum qtype)t));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("product");
    TCase *c = tcase_create("product");
    SRunner *r = srunner_create(s);
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, pack_keeps_values, 0, QTYPE_N);
    tcase_add_loop_test(c, scalar_is_the_contract, 0, QTYPE_N);
    tcase_add_loop_test(c, isa_shapes, 0, QTYPE_N);
    tcase_add_loop_test(c, isa_extremes, 0, QTYPE_N);
    tcase_add_test(c, quantise_bytes);
    tcase_add_test(c, best_is_present);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
