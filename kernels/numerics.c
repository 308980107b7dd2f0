/* Host-side transcendental functions from IEEE basic operations only. Naive series on purpose: they fill tables at
 * load and one rope row a step (head_dim/2 pairs), never an inner loop. */
#include "kernels/numerics.h"

#define LN2_HI 6.93147180369123816490e-01
#define LN2_LO 1.90821492927058770002e-10

double num_log(double x)
{
    int e;
    double m = frexp(x, &e); /* exact: [0.5, 1) */
    if (m < 0.70710678118654752440) {
        m *= 2;
        e--;
    }
    double t = (m - 1) / (m + 1), t2 = t * t, sum = 0; /* log m = 2 atanh t, |t| <= 0.172 */
    for (int k = 21; k >= 1; k -= 2)
        sum = sum * t2 + 1.0 / k;
    return e * LN2_HI + (2 * t * sum + e * LN2_LO);
}

static double exp_series(double x)
{
    double n = rint(x * 1.44269504088896340736);
    double r = (x - n * LN2_HI) - n * LN2_LO, sum = 1;
    for (int k = 17; k >= 1; k--)
        sum = 1 + sum * r / k;
    return ldexp(sum, (int)n);
}

double num_pow(double base, double exponent)
{
    return exp_series(exponent * num_log(base));
}

void num_sincos(double angle, double *s, double *c)
{
    /* Cody-Waite reduction by pi/2 in three parts: exact products while |n| < 2^20 and good to 1e-10 far beyond,
     * which a float32 rope value does not see. */
    double n = rint(angle * 0.63661977236758134308);
    double r = angle - n * 1.57079632673412561417e+00;
    r -= n * 6.07710050630396597660e-11;
    r -= n * 2.02226624879595063154e-21;
    double r2 = r * r, sn = 0, cs = 0;
    for (int k = 19; k >= 1; k -= 2) /* sin r = r (1 - r2/6 (1 - r2/20 (...))) */
        sn = 1 - r2 / ((k + 1) * (k + 2)) * (k == 19 ? 1 : sn);
    for (int k = 18; k >= 0; k -= 2)
        cs = 1 - r2 / ((k + 1) * (k + 2)) * (k == 18 ? 1 : cs);
    sn *= r;
    switch ((int)((int64_t)n & 3)) {
    case 0: *s = sn; *c = cs; break;
    case 1: *s = cs; *c = -sn; break;
    case 2: *s = -sn; *c = -cs; break;
    default: *s = -cs; *c = sn; break;
    }
}
