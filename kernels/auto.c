#include "kernels/kern.h"

const struct kern_device *kern_auto(void)
{
    const struct kern_device *cuda = kern_cuda();
    size_t available;
    return cuda != NULL && cuda->memory(0, &available, NULL) ? cuda : &kern_cpu;
}
