#include "kernels/cpu/features.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Bits that not every compiler knows by name; the registers are theirs whose state AVX2 needs, which is asked for too. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29) != 0;
}

bool cpu_has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool cpu_has_avxvnni(void)
{
    unsigned a, b, c, d;
    return cpu_has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0;
}

bool cpu_has_avx512(void)
{
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool cpu_has_avx512vnni(void)
{
    return cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
}
#endif
