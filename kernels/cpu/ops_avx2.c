/* Eight lanes of AVX2, everywhere. */
#include "kernels/cpu/ops.h"

#if defined(__AVX2__)
#include "kernels/cpu/ops_avx2.h"

enum { WIDE = 8 };
typedef v8 vw;
#define VW(name) v8_##name
#include "kernels/cpu/ops_body.h"

const struct cpu_ops cpu_ops_avx2 = CPU_OPS_TABLE("avx2");
#endif
