#define PRODUCT_BITS 256
#define PRODUCT_VNNI 0
#define PRODUCT_NAME "avx2"
#define PRODUCT_TABLE product_avx2
#include "kernels/cpu/product_x86.h"
