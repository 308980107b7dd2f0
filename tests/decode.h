/* Weights as the GGUF specification defines them, in double precision, byte by byte. Shares nothing with kernels/: the
 * tests' second opinion about every format. */
#ifndef TESTS_DECODE_H
#define TESTS_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* n weights (whole blocks) of the type with this GGUF number; false when the number is not known. */
bool decode_weights(uint32_t gguf_type, const void *data, size_t n, double *out);

#endif
