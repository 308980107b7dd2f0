/* The scalar functions of the numeric contract: exactness where it is promised, accuracy elsewhere (libm as the judge). */
#include "kernels/numerics.h"

#include <check.h>
#include <stdlib.h>

/* Every half value survives the round trip; every NaN stays one. */
START_TEST(f16_round_trip)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = num_f16_to_f32((uint16_t)h);
        uint16_t back = num_f32_to_f16(x);
        if ((h & 0x7C00) == 0x7C00 && (h & 0x3FF) != 0)
            ck_assert(isnan(x) && (back & 0x7E00) == 0x7E00);
        else
            ck_assert_uint_eq(back, h);
    }
}
END_TEST

/* Between two neighbouring halves the nearer one is taken, and the even one at the middle. */
START_TEST(f16_rounds_to_nearest_even)
{
    for (uint32_t h = 0; h < 0x7BFF; h++) {
        double lo = (double)num_f16_to_f32((uint16_t)h), hi = (double)num_f16_to_f32((uint16_t)(h + 1));
        float middle = (float)((lo + hi) / 2);
        ck_assert_uint_eq(num_f32_to_f16(middle), h % 2 == 0 ? h : h + 1);
        ck_assert_uint_eq(num_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        ck_assert_uint_eq(num_f32_to_f16(nextafterf(middle, 0.0f)), h);
    }
    ck_assert_uint_eq(num_f32_to_f16(65519.0f), 0x7BFF);
    ck_assert_uint_eq(num_f32_to_f16(65520.0f), 0x7C00);
    ck_assert_uint_eq(num_f32_to_f16(-1e30f), 0xFC00);
}
END_TEST

START_TEST(exp_is_accurate_and_total)
{
    double worst = 0;
    for (float x = -87.0f; x <= 88.0f; x += 0.00137f) {
        double want = exp((double)x), rel = fabs((double)num_exp(x) - want) / want;
        worst = rel > worst ? rel : worst;
    }
    ck_assert_double_lt(worst, 2e-7);
    ck_assert_float_eq(num_exp(0.0f), 1.0f);
    ck_assert_float_eq(num_exp(-INFINITY), 0.0f);
    ck_assert_float_eq(num_exp(-87.5f), 0.0f);
    ck_assert_float_eq(num_exp(INFINITY), num_exp(88.0f));
    ck_assert_float_eq(num_exp(NAN), num_exp(88.0f));
}
END_TEST

START_TEST(activations_are_accurate)
{
    for (float x = -30.0f; x <= 30.0f; x += 0.0071f) {
        double xd = (double)x, silu = xd / (1 + exp(-xd));
        double gelu = 0.5 * xd * (1 + tanh(0.7978845608028654 * (xd + 0.044715 * xd * xd * xd)));
        ck_assert_double_lt(fabs((double)num_silu(x) - silu), 1e-6 * (1 + fabs(silu)));
        ck_assert_double_lt(fabs((double)num_gelu(x) - gelu), 2e-6 * (1 + fabs(gelu)));
    }
}
END_TEST

START_TEST(double_functions_match_libm)
{
    for (double x = 1e-6; x < 1e9; x *= 1.0173)
        ck_assert_double_lt(fabs(num_log(x) - log(x)), 1e-14 * (1 + fabs(log(x))));
    for (int i = 0; i < 256; i++)
        ck_assert_double_lt(fabs(num_pow(5e5, -i / 256.0) / pow(5e5, -i / 256.0) - 1), 1e-13);
    for (double a = 0; a < 2e6; a = a * 1.0031 + 0.37) {
        double s, c;
        num_sincos(a, &s, &c);
        ck_assert_double_lt(fabs(s - sin(a)), 1e-10);
        ck_assert_double_lt(fabs(c - cos(a)), 1e-10);
    }
}
END_TEST

START_TEST(quantisation_is_bounded)
{
    float inv;
    ck_assert_float_eq(num_quant_scale(0.0f, &inv), 0.0f);
    ck_assert_float_eq(num_quant_scale(1e-40f, &inv), 0.0f);
    ck_assert_float_eq(num_quant_scale(INFINITY, &inv), 0.0f);
    ck_assert_float_eq(inv, 0.0f);
    ck_assert_int_eq(num_quant(NAN, 1.0f), -127);
    ck_assert_int_eq(num_quant(1e30f, 1.0f), 127);
    srand(1);
    for (int i = 0; i < 200000; i++) {
        float amax = (float)exp(rand() / (double)RAND_MAX * 150 - 68);
        if (num_quant_scale(amax, &inv) == 0.0f)
            continue;
        ck_assert_int_eq(num_quant(amax, inv), 127);
        ck_assert_int_eq(num_quant(-amax, inv), -127);
    }
    ck_assert_int_eq(num_quant(0.5f, 1.0f), 0);
    ck_assert_int_eq(num_quant(1.5f, 1.0f), 2);
}
END_TEST

/* A merge with an empty weight (far below) leaves the first part as it is; order of maxima does not matter. */
START_TEST(merge_scales_the_smaller_part)
{
    float fa, fb;
    ck_assert_float_eq(num_merge(3.0f, -200.0f, &fa, &fb), 3.0f);
    ck_assert_float_eq(fa, 1.0f);
    ck_assert_float_eq(fb, 0.0f);
    ck_assert_float_eq(num_merge(1.0f, 2.0f, &fa, &fb), 2.0f);
    ck_assert_float_eq(fa, num_exp(-1.0f));
    ck_assert_float_eq(fb, 1.0f);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("numerics");
    TCase *t = tcase_create("numerics");
    tcase_add_test(t, f16_round_trip);
    tcase_add_test(t, f16_rounds_to_nearest_even);
    tcase_add_test(t, exp_is_accurate_and_total);
    tcase_add_test(t, activations_are_accurate);
    tcase_add_test(t, double_functions_match_libm);
    tcase_add_test(t, quantisation_is_bounded);
    tcase_add_test(t, merge_scales_the_smaller_part);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
