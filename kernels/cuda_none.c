/* Stands in where the build has no CUDA engine: the Makefile compiles this file when nvcc was not found. */
#include "kernels/kern.h"

const struct kern_device *kern_cuda(void)
{
    return NULL;
}
