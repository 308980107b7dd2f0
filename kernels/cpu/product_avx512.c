#define PRODUCT_BITS 512
#define PRODUCT_VNNI 0
#define PRODUCT_NAME "avx512"
#define PRODUCT_TABLE product_avx512
#include "kernels/cpu/product_x86.h"
