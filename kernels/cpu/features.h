/* What this CPU and its operating system can run. */
#ifndef KERNELS_CPU_FEATURES_H
#define KERNELS_CPU_FEATURES_H

#include <stdbool.h>

bool cpu_has_avx2(void);       /* with FMA and F16C */
bool cpu_has_avxvnni(void);
bool cpu_has_avx512(void);     /* F, BW, VL, DQ */
bool cpu_has_avx512vnni(void);

#endif
