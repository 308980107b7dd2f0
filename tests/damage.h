/* Models with one weight that is NaN or infinite: the device must refuse them when they are loaded, with the tensor's name. */
#ifndef TESTS_DAMAGE_H
#define TESTS_DAMAGE_H

#include "kernels/kern.h"

void damage_each_type(const struct kern_device *device);    /* of weights: its scales and minimums */
void damage_each_tensor(const struct kern_device *device);  /* of those a model has */

#endif
