#include "tests/ggufw.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GGUF's numbers of value types; engine/gguf.h is not used, so that a wrong number there shows. */
enum {
    VALUE_U32 = 4,
    VALUE_I32 = 5,
    VALUE_F32 = 6,
    VALUE_BOOL = 7,
    VALUE_STRING = 8,
    VALUE_ARRAY = 9
};

struct key {
    char *name;
    struct buf value; /* type number and value as in the file */
};

struct ggufw {
    struct key *keys;
    size_t n_keys;
    struct ggufw_tensor *tensors;
    size_t n_tensors;
    bool failed;
};

struct ggufw *ggufw_open(void)
{
    return mem_alloc(1, sizeof(struct ggufw));
}

void ggufw_close(struct ggufw *w)
{
    if (w == NULL)
        return;
    for (size_t i = 0; i < w->n_keys; i++) {
        free(w->keys[i].name);
        buf_free(&w->keys[i].value);
    }
    free(w->keys);
    free(w->tensors);
    free(w);
}

static struct key *find_key(struct ggufw *w, const char *name)
{
    for (size_t i = 0; i < w->n_keys; i++)
        if (strcmp(w->keys[i].name, name) == 0)
            return &w->keys[i];
    return NULL;
}

/* The emptied value of a key, with its type number. */
static struct buf *begin(struct ggufw *w, const char *name, uint32_t type)
{
    struct key *k = find_key(w, name);
    if (k == NULL) {
        struct key *keys = mem_grow(w->keys, w->n_keys + 1, sizeof *keys);
        if (keys != NULL)
            w->keys = keys;
        char *copy = keys != NULL ? mem_strdup(name) : NULL;
        if (copy == NULL) {
            w->failed = true;
            return NULL;
        }
        k = &w->keys[w->n_keys++];
        *k = (struct key){.name = copy};
    }
    buf_reset(&k->value);
    buf_add(&k->value, &type, 4);
    return &k->value;
}

void ggufw_raw(struct ggufw *w, const char *key, uint32_t type, const void *value, size_t n)
{
    struct buf *b = begin(w, key, type);
    if (b != NULL)
        buf_add(b, value, n);
}

void ggufw_u32(struct ggufw *w, const char *key, uint32_t v)
{
    ggufw_raw(w, key, VALUE_U32, &v, 4);
}

void ggufw_i32(struct ggufw *w, const char *key, int32_t v)
{
    ggufw_raw(w, key, VALUE_I32, &v, 4);
}

void ggufw_f32(struct ggufw *w, const char *key, float v)
{
    ggufw_raw(w, key, VALUE_F32, &v, 4);
}

void ggufw_bool(struct ggufw *w, const char *key, bool v)
{
    uint8_t byte = v;
    ggufw_raw(w, key, VALUE_BOOL, &byte, 1);
}

void ggufw_put_str(struct buf *b, const void *s, size_t n)
{
    uint64_t len = n;
    buf_add(b, &len, 8);
    buf_add(b, s, n);
}

void ggufw_str(struct ggufw *w, const char *key, const char *v)
{
    struct buf *b = begin(w, key, VALUE_STRING);
    if (b != NULL)
        ggufw_put_str(b, v, strlen(v));
}

void ggufw_arr(struct ggufw *w, const char *key, uint32_t type, const void *data, size_t n,
               size_t size)
{
    struct buf *b = begin(w, key, VALUE_ARRAY);
    uint64_t count = n;
    if (b == NULL)
        return;
    buf_add(b, &type, 4);
    buf_add(b, &count, 8);
    buf_add(b, data, n * size);
}

void ggufw_strs(struct ggufw *w, const char *key, const struct buf *strs, size_t n)
{
    struct buf *b = begin(w, key, VALUE_ARRAY);
    uint32_t type = VALUE_STRING;
    uint64_t count = n;
    if (b == NULL)
        return;
    buf_add(b, &type, 4);
    buf_add(b, &count, 8);
    buf_add(b, strs->data, strs->len);
    w->failed = w->failed || strs->failed;
}

void ggufw_drop(struct ggufw *w, const char *key)
{
    struct key *k = find_key(w, key);
    if (k == NULL)
        return;
    free(k->name);
    buf_free(&k->value);
    size_t i = (size_t)(k - w->keys);
    memmove(k, k + 1, (--w->n_keys - i) * sizeof *k);
}

void ggufw_reshape(struct ggufw_tensor *t, uint64_t ne0, uint64_t ne1, uint64_t ne2)
{
    enum qtype type;
    t->ne[0] = ne0;
    t->ne[1] = ne1;
    t->ne[2] = ne2;
    t->ne[3] = 1;
    t->n_dims = ne2 > 1 ? 3 : ne1 > 1 ? 2 : 1;
    t->bytes = qtype_from_gguf(t->type, &type) ? qtype_row_bytes(type, ne0) * ne1 * ne2 : 0;
}

struct ggufw_tensor *ggufw_tensor(struct ggufw *w, const char *name, enum qtype type, uint64_t ne0,
                                  uint64_t ne1, uint64_t ne2)
{
    struct ggufw_tensor *t = mem_grow(w->tensors, w->n_tensors + 1, sizeof *t);
    if (t == NULL) {
        w->failed = true;
        return NULL;
    }
    w->tensors = t;
    t += w->n_tensors++;
    *t = (struct ggufw_tensor){.type = qtype_info(type)->gguf_id};
    snprintf(t->name, sizeof t->name, "%s", name);
    ggufw_reshape(t, ne0, ne1, ne2);
    return t;
}

struct ggufw_tensor *ggufw_find(struct ggufw *w, const char *name)
{
    for (size_t i = 0; i < w->n_tensors; i++)
        if (strcmp(w->tensors[i].name, name) == 0)
            return &w->tensors[i];
    return NULL;
}

void ggufw_drop_tensor(struct ggufw *w, const char *name)
{
    struct ggufw_tensor *t = ggufw_find(w, name);
    if (t == NULL)
        return;
    size_t i = (size_t)(t - w->tensors);
    memmove(t, t + 1, (--w->n_tensors - i) * sizeof *t);
}

size_t ggufw_n_tensors(const struct ggufw *w)
{
    return w->n_tensors;
}

struct ggufw_tensor *ggufw_tensor_at(struct ggufw *w, size_t i)
{
    return &w->tensors[i];
}

bool ggufw_header(struct ggufw *w, struct buf *out)
{
    uint32_t version = 3;
    uint64_t n_tensors = w->n_tensors, n_keys = w->n_keys, offset = 0;
    buf_add(out, "GGUF", 4);
    buf_add(out, &version, 4);
    buf_add(out, &n_tensors, 8);
    buf_add(out, &n_keys, 8);
    for (size_t i = 0; i < w->n_keys; i++) {
        const struct key *k = &w->keys[i];
        w->failed = w->failed || k->value.failed;
        ggufw_put_str(out, k->name, strlen(k->name));
        buf_add(out, k->value.data, k->value.len);
    }
    for (size_t i = 0; i < w->n_tensors; i++) {
        struct ggufw_tensor *t = &w->tensors[i];
        t->offset = offset;
        offset += (t->bytes + GGUFW_ALIGNMENT - 1) / GGUFW_ALIGNMENT * GGUFW_ALIGNMENT;
        ggufw_put_str(out, t->name, strlen(t->name));
        buf_add(out, &t->n_dims, 4);
        buf_add(out, t->ne, 8 * (t->n_dims < 4 ? t->n_dims : 4));
        buf_add(out, &t->type, 4);
        buf_add(out, &t->offset, 8);
    }
    static const char zeros[GGUFW_ALIGNMENT];
    buf_add(out, zeros, (GGUFW_ALIGNMENT - out->len % GGUFW_ALIGNMENT) % GGUFW_ALIGNMENT);
    return !w->failed && !out->failed;
}

bool ggufw_image(struct ggufw *w, struct buf *out)
{
    bool ok = ggufw_header(w, out);
    for (size_t i = 0; ok && i < w->n_tensors; i++) {
        size_t n = (w->tensors[i].bytes + GGUFW_ALIGNMENT - 1) / GGUFW_ALIGNMENT * GGUFW_ALIGNMENT;
        char *data = mem_alloc(n, 1);
        if (data == NULL)
            return false;
        memset(data, (int)i + 1, n);
        ok = buf_add(out, data, n);
        free(data);
    }
    return ok;
}
