/* Whether a card's instructions are what the kernels take them for, one by one: with wrong bytes, the first question. */
#ifndef BENCH_GPU_PROBE_H
#define BENCH_GPU_PROBE_H

#include "kernels/cuda/cuda.h"

/* Bytes of weights that the device must have been opened for. */
size_t probe_bytes(void);

/* Tensor cores' operands as PTX defines them, ldmatrix, copies to shared memory, and the contract's functions for floats of all
 * sizes against the host's. False: which of them differs, and where. */
bool probe_run(struct cuda *k, struct err *err);

#endif
