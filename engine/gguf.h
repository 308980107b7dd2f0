/* GGUF files (v2 and v3), one or several shards, mapped read-only and validated completely at open: every count, length,
 * offset, type, shape and alignment, in checked arithmetic, without allocating by a number the file claims. After open,
 * what is returned may be trusted. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 * Errors: ERR_NO_MODEL (missing, not a regular file, unreadable, shard missing), ERR_SYSTEM (no memory for the index),
 * ERR_MODEL (everything else); messages name file, byte offset, key or tensor, what was found and what is allowed. */
#ifndef ENGINE_GGUF_H
#define ENGINE_GGUF_H

#include "base/err.h"
#include "kernels/qtype.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gguf;

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
    GGUF_U64, GGUF_I64, GGUF_F64, GGUF_TYPE_N
};

struct gguf_str {
    const char *s;    /* into the mapping, not NUL-terminated */
    size_t len;
};

/* A tensor: name and shape as in the file. ne[0] is the row length (inputs), ne[1] the rows (outputs), ne[2] stacked
 * matrices; absent dimensions are 1. */
struct gguf_tensor {
    const char *name;     /* NUL-terminated copy owned by the gguf */
    enum qtype type;
    int n_dims;
    int64_t ne[4];
    const void *data;     /* into the mapping */
    size_t bytes;
    size_t offset;        /* in its file, for messages */
};

struct gguf *gguf_open(const char *path, struct err *err);
void gguf_close(struct gguf *g);

const char *gguf_path(const struct gguf *g);
size_t gguf_file_bytes(const struct gguf *g);          /* of all shards */

size_t gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i);
const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name);    /* NULL when absent */

/* Metadata (of the first shard). gguf_u32 takes an integer of any width, gguf_f32 also f64; strings are valid UTF-8,
 * array elements any bytes. The getters return false and set err (ERR_MODEL, naming key, found and expected type) when the key has another
 * type or a value outside [min, max]; a missing key is false with err->code == ERR_NONE, so `*out` keeps its default:
 *     uint32_t n = 4; if (!gguf_u32(g, "x.y", 1, 100, &n, err) && err->code) return false; */
bool gguf_has(const struct gguf *g, const char *key);
bool gguf_u32(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *out, struct err *err);
bool gguf_f32(const struct gguf *g, const char *key, float *out, struct err *err);       /* finite */
bool gguf_bool(const struct gguf *g, const char *key, bool *out, struct err *err);
bool gguf_str(const struct gguf *g, const char *key, struct gguf_str *out, struct err *err);

/* Arrays: element type must be the given one (GGUF_I32 also takes U32 and the reverse). Elements of strings are reached
 * through gguf_arr_str in O(1) after an index made at open; number arrays are unaligned little-endian bytes at data. */
struct gguf_arr {
    enum gguf_type type;
    size_t n;
    const void *data;
    const struct gguf_str *strs;    /* for GGUF_STRING, owned by the gguf */
};
bool gguf_arr(const struct gguf *g, const char *key, enum gguf_type type, struct gguf_arr *out, struct err *err);
int32_t gguf_arr_i32(const struct gguf_arr *a, size_t i);
float gguf_arr_f32(const struct gguf_arr *a, size_t i);

/* Tells the kernel that the tensor data is wanted soon. */
void gguf_prefetch(const struct gguf *g);

/* Lets go of a tensor's pages that [p, p + n) covers; read again, they come from the file again. */
void gguf_drop_part(const struct gguf *g, const void *p, size_t n);

/* The tensors' data will not be read again (after packing): it is unmapped, the metadata copied in place. From then on
 * a file that is cut or overwritten cannot reach the process; tensor->data must not be read. */
void gguf_drop_data(const struct gguf *g);

/* For fuzzing: parses a file image in memory (one shard). The bytes must outlive the gguf. */
struct gguf *gguf_from_memory(const void *data, size_t size, struct err *err);

#endif
