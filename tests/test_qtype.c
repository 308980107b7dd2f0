/* Weight formats: names, sizes, and every decoder against values that another implementation gives
 * (tests/data/qtypes.txt, made by scripts/make-qtype-data with gguf-py). */
#include "kernels/numerics.h"
#include "kernels/qtype.h"
#include "tests/decode.h"
#include "tests/weights.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

enum { COLS = 256 };

static unsigned hex(const char *s, int digits)
{
    unsigned x = 0;
    for (int i = 0; i < digits; i++)
        x = x << 4 | (unsigned)(s[i] <= '9' ? s[i] - '0' : s[i] - 'a' + 10);
    return x;
}

START_TEST(decodes_as_gguf_py)
{
    static const char path[] = "tests/data/qtypes.txt";
    char name[16], bytes[1024], values[COLS * 8 + 1];
    uint8_t row[512];
    float out[COLS];
    int n_formats = 0;
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "no %s: run from the repository", path);
    while (fscanf(f, "%15s %1023s %2048s", name, bytes, values) == 3) {
        enum qtype t = 0;
        while (t < QTYPE_N && strcmp(qtype_name(t), name) != 0)
            t++;
        ck_assert_msg(t < QTYPE_N, "unknown format %s", name);
        ck_assert_uint_eq(strlen(bytes), 2 * qtype_row_bytes(t, COLS));
        for (size_t i = 0; i < qtype_row_bytes(t, COLS); i++)
            row[i] = (uint8_t)hex(bytes + 2 * i, 2);
        qtype_dequant_row(t, row, COLS, out);
        for (int k = 0; k < COLS; k++) {
            float want = num_from_bits(hex(values + 8 * k, 8));
            ck_assert_msg(out[k] == want, "%s weight %d: expected %.9g, got %.9g", name, k, want,
                          out[k]);
        }
        n_formats++;
    }
    fclose(f);
    ck_assert_int_eq(n_formats, QTYPE_N - 3);
}
END_TEST

/* Random rows and extreme codes against a decoder in double precision that shares no code. */
START_TEST(decodes_as_the_second_opinion)
{
    _Alignas(8) uint8_t row[4 * COLS];
    float got[COLS];
    double want[COLS];
    uint64_t state = 3;
    for (int t = 0; t < QTYPE_N; t++) {
        for (int i = 0; i < 64; i++) {
            weights_row((enum qtype)t, (enum weights_fill)(i % WEIGHTS_FILL_N), &state, COLS, row);
            qtype_dequant_row((enum qtype)t, row, COLS, got);
            ck_assert(decode_weights(qtype_info((enum qtype)t)->gguf_id, row, COLS, want));
            for (int k = 0; k < COLS; k++) /* a float rounds twice; a minimum may cancel what it rounded */
                ck_assert_msg(fabs((double)got[k] - want[k]) <= 1e-5 + 2e-7 * fabs(want[k]),
                              "%s row %d weight %d: expected %.9g, got %.9g", qtype_name((enum qtype)t), i,
                              k, want[k], (double)got[k]);
        }
    }
}
END_TEST

START_TEST(decodes_floats)
{
    const float f32[3] = {1.5f, -0.0f, 3e38f};
    const uint16_t f16[4] = {0x3C00, 0xC001, 0x0001, 0x7C00}, bf16[3] = {0x3F80, 0xC040, 0x0001};
    float out[4];
    qtype_dequant_row(QTYPE_F32, f32, 3, out);
    ck_assert_mem_eq(out, f32, sizeof f32);
    qtype_dequant_row(QTYPE_F16, f16, 4, out);
    ck_assert(out[0] == 1.0f && out[1] == -2.001953125f && out[2] == 5.9604644775390625e-8f &&
              isinf(out[3]));
    qtype_dequant_row(QTYPE_BF16, bf16, 3, out);
    ck_assert(out[0] == 1.0f && out[1] == -3.0f && num_bits(out[2]) == 0x10000);
}
END_TEST

/* The parts give the whole, and a half without sub-scale or minimum says so. */
START_TEST(terms_of_a_block)
{
    struct block_q4_1 q4_1 = {.d = 0x3C00, .m = 0xBC00, .qs = {0x21, 0x43}};
    struct block_q2_k q2_k = {
        .scales = {[2] = 0x31, [3] = 0x52}, .qs = {[0] = 0x08}, .d = 0x4000, .dmin = 0x3C00};
    struct qblock32 b;
    qtype_unpack32(QTYPE_Q4_1, &q4_1, 0, &b);
    ck_assert(b.d == 1 && b.min[0] == -1 && b.min[1] == -1 && b.scale[0] == 1 && b.scale[1] == 1);
    ck_assert(b.code[0] == 1 && b.code[1] == 3 && b.code[16] == 2 && b.code[17] == 4 &&
              b.code[31] == 0);
    qtype_unpack32(QTYPE_Q2_K, &q2_k, 1, &b);
    ck_assert(b.d == 2 && b.scale[0] == 1 && b.scale[1] == 2 && b.min[0] == -3 && b.min[1] == -5);
    ck_assert(b.code[0] == 2 && b.code[1] == 0);
}
END_TEST

START_TEST(names_and_sizes)
{
    enum qtype t;
    for (int i = 0; i < QTYPE_N; i++) {
        const struct qtype_info *info = qtype_info((enum qtype)i);
        ck_assert(qtype_from_gguf(info->gguf_id, &t) && t == (enum qtype)i);
        ck_assert_str_eq(qtype_gguf_name(info->gguf_id), info->name);
        ck_assert_uint_eq(qtype_row_bytes(t, 512),
                          512 / (size_t)info->block_weights * info->block_bytes);
        ck_assert(info->quantised == (info->block_weights > 1));
    }
    ck_assert_uint_eq(qtype_row_bytes(QTYPE_Q6_K, 1024), 840);
    ck_assert(!qtype_from_gguf(16, &t) && !qtype_from_gguf(42, &t) &&
              !qtype_from_gguf(UINT32_MAX, &t));
    ck_assert_str_eq(qtype_gguf_name(16), "IQ2_XXS");
    ck_assert_str_eq(qtype_gguf_name(34), "TQ1_0");
    ck_assert_ptr_null(qtype_gguf_name(7777));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qtype");
    TCase *c = tcase_create("qtype");
    SRunner *r = srunner_create(s);
    tcase_add_test(c, decodes_as_gguf_py);
    tcase_add_test(c, decodes_as_the_second_opinion);
    tcase_add_test(c, decodes_floats);
    tcase_add_test(c, terms_of_a_block);
    tcase_add_test(c, names_and_sizes);
    suite_add_tcase(s, c);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
