/* Host-side transcendental functions from IEEE basic operations only. Naive series on purpose: they fill tables at load,
 * never an inner loop. */
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
