#define PRODUCT_BITS 512
#define PRODUCT_VNNI 1
#define PRODUCT_DPBUSD _mm512_dpbusd_epi32
#define PRODUCT_NAME "avx512vnni"
#define PRODUCT_TABLE product_avx512vnni
#include "kernels/cpu/product_x86.h"
