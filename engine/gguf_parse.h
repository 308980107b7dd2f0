/* Private to engine/gguf*.c: one GGUF file image, parsed and validated. Owns the index over the
 * bytes, not the bytes. */
#ifndef ENGINE_GGUF_PARSE_H
#define ENGINE_GGUF_PARSE_H

#include "engine/gguf.h"

struct gguf_kv {
    struct gguf_str key;
    enum gguf_type type;
    size_t offset;        /* of the value, for messages */
    const uint8_t *value; /* numbers and booleans: unaligned, little-endian */
    struct gguf_str str;  /* GGUF_STRING */
    struct gguf_arr arr;  /* GGUF_ARRAY */
};

struct gguf_image {
    char label[192]; /* the path as messages show it: valid UTF-8, its end if it is long */
    const uint8_t *data;
    size_t size;
    size_t data_start;  /* where tensor data begins: everything before is metadata */
    struct gguf_kv *kv; /* sorted by key */
    size_t n_kv;
    struct gguf_tensor *tensors; /* in file order */
    size_t n_tensors;
};

/* Sets label from path. */
void gguf_image_name(struct gguf_image *im, const char *path);

/* Parses im->data[0..size). label, data and size are set by the caller; the rest is set here. On
 * failure (ERR_MODEL, ERR_SYSTEM for no memory) call gguf_image_free all the same. */
bool gguf_image_parse(struct gguf_image *im, struct err *err);
void gguf_image_free(struct gguf_image *im);

const struct gguf_kv *gguf_image_find(const struct gguf_image *im, const char *key);

/* "u32", "string", ... */
const char *gguf_type_name(enum gguf_type t);

#endif
