#define PRODUCT_BITS 256
#define PRODUCT_VNNI 1
#define PRODUCT_DPBUSD _mm256_dpbusd_avx_epi32
#define PRODUCT_NAME "avxvnni"
#define PRODUCT_TABLE product_avxvnni
#include "kernels/cpu/product_x86.h"
