/* Writes the header of GGUF files for tests: keys and tensors are declared, may be changed or
 * dropped again, then become bytes. Nothing is validated, so malformed files can be made as easily
 * as good ones. A failed allocation sticks and shows when the header is made. */
#ifndef TESTS_GGUFW_H
#define TESTS_GGUFW_H

#include "base/buf.h"
#include "kernels/qtype.h"

#include <stdint.h>

enum { GGUFW_ALIGNMENT = 32 };

struct ggufw;

struct ggufw_tensor {
    char name[100];
    uint32_t type; /* GGUF's number */
    uint32_t n_dims;
    uint64_t ne[4];
    size_t bytes;    /* of data; follows from type and shape when the tensor is added */
    uint64_t offset; /* in the data section; set by ggufw_header */
    int fill;        /* for whoever writes the data: how, and two parameters */
    float a, b;
};

struct ggufw *ggufw_open(void);
void ggufw_close(struct ggufw *w);

/* Each sets a key; a key that is there is replaced in its place. */
void ggufw_u32(struct ggufw *w, const char *key, uint32_t v);
void ggufw_i32(struct ggufw *w, const char *key, int32_t v);
void ggufw_f32(struct ggufw *w, const char *key, float v);
void ggufw_bool(struct ggufw *w, const char *key, bool v);
void ggufw_str(struct ggufw *w, const char *key, const char *v);
/* type, n and data of an array of numbers; an array of strings that were added to `strs` with
 * ggufw_put_str. */
void ggufw_arr(struct ggufw *w, const char *key, uint32_t type, const void *data, size_t n,
               size_t size);
void ggufw_strs(struct ggufw *w, const char *key, const struct buf *strs, size_t n);
/* Any bytes as the value, under any type number. */
void ggufw_raw(struct ggufw *w, const char *key, uint32_t type, const void *value, size_t n);
void ggufw_drop(struct ggufw *w, const char *key);
void ggufw_put_str(struct buf *b, const void *s, size_t n);

/* Adds a tensor (unused dimensions 1). The pointer is good until the next one is added; NULL
 * without memory. */
struct ggufw_tensor *ggufw_tensor(struct ggufw *w, const char *name, enum qtype type, uint64_t ne0,
                                  uint64_t ne1, uint64_t ne2);
struct ggufw_tensor *ggufw_find(struct ggufw *w, const char *name);
void ggufw_drop_tensor(struct ggufw *w, const char *name);
/* Sets the shape, and the bytes with it. */
void ggufw_reshape(struct ggufw_tensor *t, uint64_t ne0, uint64_t ne1, uint64_t ne2);
size_t ggufw_n_tensors(const struct ggufw *w);
struct ggufw_tensor *ggufw_tensor_at(struct ggufw *w, size_t i);

/* Lays the tensors out and appends header, metadata, tensor infos and the padding up to the data
 * section. */
bool ggufw_header(struct ggufw *w, struct buf *out);

/* The header, and data: every byte of tensor i is i + 1. */
bool ggufw_image(struct ggufw *w, struct buf *out);

#endif
