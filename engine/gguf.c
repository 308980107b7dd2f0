#define _GNU_SOURCE
#include "engine/gguf.h"

#include "base/mem.h"
#include "base/utf8.h"
#include "engine/gguf_parse.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct gguf {
    char *path;
    struct gguf_image *images; /* one a shard; metadata is the first one's */
    size_t n_images;
    bool mapped;                        /* false: the bytes are the caller's */
    const struct gguf_tensor **tensors; /* of all shards, in file order */
    const struct gguf_tensor **by_name; /* the same, sorted */
    size_t n_tensors;
};

/* ---- files ---- */

static bool no_model(struct err *err, const struct gguf_image *im, const char *what)
{
    return err_set(err, ERR_NO_MODEL, "%s: %s", im->label, what);
}

static const char *file_kind(mode_t mode)
{
    if (S_ISDIR(mode))
        return "is a directory, expected a regular file";
    if (S_ISFIFO(mode))
        return "is a FIFO, expected a regular file";
    if (S_ISSOCK(mode))
        return "is a socket, expected a regular file";
    return "is a device, expected a regular file";
}

/* Maps the file read-only into im->data, im->size; an empty file is not mapped. */
static bool map_file(struct gguf_image *im, const char *path, struct err *err)
{
    gguf_image_name(im, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* opening a FIFO must not block */
    if (fd < 0) {
        struct stat link;
        int code = errno;
        if (code == ENOENT && lstat(path, &link) == 0)
            return no_model(err, im, "is a link to a file that does not exist");
        if (code == ENXIO)
            return no_model(err, im, "is a socket or device, expected a regular file");
        return no_model(err, im, strerror(code));
    }
    struct stat st;
    bool ok = false;
    if (fstat(fd, &st) != 0) {
        no_model(err, im, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        no_model(err, im, file_kind(st.st_mode));
    } else if (st.st_size == 0) {
        ok = true;
    } else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        ok = p != MAP_FAILED;
        if (ok) {
            im->data = p;
            im->size = (size_t)st.st_size;
        } else if (errno == ENOMEM) {
            err_set(err, ERR_SYSTEM, "%s: no address space to map %jd bytes", im->label,
                    (intmax_t)st.st_size);
        } else {
            no_model(err, im, strerror(errno));
        }
    }
    close(fd);
    return ok;
}

static bool open_image(struct gguf_image *im, const char *path, struct err *err)
{
    return map_file(im, path, err) && gguf_image_parse(im, err);
}

/* ---- metadata ---- */

static bool bad_value(const struct gguf_image *im, const struct gguf_kv *kv, const char *found,
                      const char *expected, struct err *err)
{
    return err_set(err, ERR_MODEL, "%s: offset %zu: key %.*s: %s, expected %s", im->label,
                   kv->offset, (int)(kv->key.len < 80 ? kv->key.len : 80), kv->key.s, found,
                   expected);
}

static bool bad_type(const struct gguf_image *im, const struct gguf_kv *kv, const char *expected,
                     struct err *err)
{
    char found[48];
    snprintf(found, sizeof found, "type %s%s%s", gguf_type_name(kv->type),
             kv->type == GGUF_ARRAY ? " of " : "",
             kv->type == GGUF_ARRAY ? gguf_type_name(kv->arr.type) : "");
    return bad_value(im, kv, found, expected, err);
}

/* NULL with err->code == ERR_NONE when there is no such key. */
static const struct gguf_kv *find(const struct gguf_image *im, const char *key, struct err *err)
{
    const struct gguf_kv *kv = gguf_image_find(im, key);
    if (kv == NULL && err != NULL)
        err->code = ERR_NONE;
    return kv;
}

/* An integer of any width: writers differ in what they choose. False when it is none or does not
 * fit. */
static bool kv_integer(const struct gguf_kv *kv, int64_t *out)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v = {0};
    static const uint8_t size[GGUF_TYPE_N] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
        [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_U64] = 8, [GGUF_I64] = 8,
    };
    if (size[kv->type] == 0)
        return false;
    memcpy(&v, kv->value, size[kv->type]);
    switch (kv->type) {
    case GGUF_I8:
        *out = v.i8;
        break;
    case GGUF_I16:
        *out = v.i16;
        break;
    case GGUF_I32:
        *out = v.i32;
        break;
    case GGUF_U64:
        *out = v.u64 > INT64_MAX ? INT64_MAX
                                 : (int64_t)v.u64; /* above every range that is asked for */
        break;
    default:
        *out = v.i64;
    }
    return true;
}

static bool image_u32(const struct gguf_image *im, const char *key, uint32_t min, uint32_t max,
                      uint32_t *out, struct err *err)
{
    const struct gguf_kv *kv = find(im, key, err);
    int64_t v;
    if (kv == NULL)
        return false;
    if (!kv_integer(kv, &v))
        return bad_type(im, kv, "an integer", err);
    if (v < (int64_t)min || v > (int64_t)max) {
        char found[48], expected[48];
        snprintf(found, sizeof found, "value %" PRId64, v);
        snprintf(expected, sizeof expected, "%" PRIu32 " to %" PRIu32, min, max);
        return bad_value(im, kv, found, expected, err);
    }
    *out = (uint32_t)v;
    return true;
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return gguf_image_find(&g->images[0], key) != NULL;
}

bool gguf_u32(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *out,
              struct err *err)
{
    return image_u32(&g->images[0], key, min, max, out, err);
}

bool gguf_f32(const struct gguf *g, const char *key, float *out, struct err *err)
{
    const struct gguf_image *im = &g->images[0];
    const struct gguf_kv *kv = find(im, key, err);
    float v;
    if (kv == NULL)
        return false;
    if (kv->type == GGUF_F32) {
        memcpy(&v, kv->value, sizeof v);
    } else if (kv->type == GGUF_F64) {
        double d;
        memcpy(&d, kv->value, sizeof d);
        v = (float)d;
    } else {
        return bad_type(im, kv, "f32", err);
    }
    if (!isfinite(v))
        return bad_value(im, kv, isnan(v) ? "value NaN" : "value infinity", "a finite number", err);
    *out = v;
    return true;
}

bool gguf_bool(const struct gguf *g, const char *key, bool *out, struct err *err)
{
    const struct gguf_kv *kv = find(&g->images[0], key, err);
    if (kv == NULL)
        return false;
    if (kv->type != GGUF_BOOL)
        return bad_type(&g->images[0], kv, "bool", err);
    *out = *kv->value != 0;
    return true;
}

bool gguf_str(const struct gguf *g, const char *key, struct gguf_str *out, struct err *err)
{
    const struct gguf_kv *kv = find(&g->images[0], key, err);
    if (kv == NULL)
        return false;
    if (kv->type != GGUF_STRING)
        return bad_type(&g->images[0], kv, "string", err);
    if (!utf8_valid(kv->str.s, kv->str.len))
        return bad_value(&g->images[0], kv, "bytes that are not UTF-8", "valid UTF-8", err);
    *out = kv->str;
    return true;
}

bool gguf_arr(const struct gguf *g, const char *key, enum gguf_type type, struct gguf_arr *out,
              struct err *err)
{
    const struct gguf_kv *kv = find(&g->images[0], key, err);
    if (kv == NULL)
        return false;
    enum gguf_type twin = type == GGUF_I32 ? GGUF_U32 : type == GGUF_U32 ? GGUF_I32 : type;
    if (kv->type != GGUF_ARRAY || (kv->arr.type != type && kv->arr.type != twin)) {
        char expected[48];
        snprintf(expected, sizeof expected, "array of %s", gguf_type_name(type));
        return bad_type(&g->images[0], kv, expected, err);
    }
    *out = kv->arr;
    return true;
}

int32_t gguf_arr_i32(const struct gguf_arr *a, size_t i)
{
    int32_t v;
    memcpy(&v, (const char *)a->data + i * sizeof v, sizeof v);
    return v;
}

float gguf_arr_f32(const struct gguf_arr *a, size_t i)
{
    float v;
    memcpy(&v, (const char *)a->data + i * sizeof v, sizeof v);
    return v;
}

/* ---- shards ---- */

struct split {
    uint32_t no, count, n_tensors;
};

/* The split.* keys of a shard; count 1 when it has none, or 0, which llama-gguf-split --merge leaves
 * in what it makes of shards. */
static bool read_split(const struct gguf_image *im, struct split *s, struct err *err)
{
    *s = (struct split){.count = 1};
    if (!image_u32(im, "split.count", 0, UINT16_MAX, &s->count, err) && err->code)
        return false;
    if (s->count == 0)
        s->count = 1;
    if (!image_u32(im, "split.no", 0, UINT16_MAX, &s->no, err) && err->code)
        return false;
    return image_u32(im, "split.tensors.count", 0, INT32_MAX, &s->n_tensors, err) || !err->code;
}

enum { SHARD_SUFFIX = sizeof "-00001-of-00002.gguf" - 1 };

/* The name of the first shard says how many there are: "-00001-of-0000N.gguf". */
static bool check_first_name(const struct gguf *g, const struct split *first, struct err *err)
{
    char want[32];
    size_t n = strlen(g->path);
    const struct gguf_image *im = &g->images[0];
    if (first->no != 0)
        return err_set(err, ERR_MODEL,
                       "%s: shard %" PRIu32 " of %" PRIu32 ", expected the first one", im->label,
                       first->no + 1, first->count);
    snprintf(want, sizeof want, "-00001-of-%05" PRIu32 ".gguf", first->count);
    if (n < SHARD_SUFFIX || strcmp(g->path + n - SHARD_SUFFIX, want) != 0)
        return err_set(err, ERR_MODEL,
                       "%s: split.count is %" PRIu32 ", expected a file name that ends with %s",
                       im->label, first->count, want);
    return true;
}

/* Is this the shard `no` of the model whose first shard is given? */
static bool check_shard(const struct gguf *g, const struct split *first, uint32_t no,
                        struct err *err)
{
    const struct gguf_image *im = &g->images[no];
    struct split s;
    if (!read_split(im, &s, err))
        return false;
    if (s.no != no || s.count != first->count || s.n_tensors != first->n_tensors)
        return err_set(err, ERR_MODEL,
                       "%s: shard %" PRIu32 " of %" PRIu32 " of a model with %" PRIu32
                       " tensors, expected shard %" PRIu32 " of %" PRIu32 " with %" PRIu32,
                       im->label, s.no + 1, s.count, s.n_tensors, no + 1, first->count,
                       first->n_tensors);
    const struct gguf_kv *a = gguf_image_find(&g->images[0], "general.architecture");
    const struct gguf_kv *b = gguf_image_find(im, "general.architecture");
    if (a != NULL && b != NULL &&
        (a->str.len != b->str.len || memcmp(a->str.s, b->str.s, a->str.len) != 0))
        return err_set(err, ERR_MODEL, "%s: is of another architecture than the first shard",
                       im->label);
    return true;
}

static bool open_shards(struct gguf *g, struct err *err)
{
    struct split first;
    if (!read_split(&g->images[0], &first, err))
        return false;
    if (first.count == 1)
        return true;
    if (!check_first_name(g, &first, err))
        return false;
    struct gguf_image *images = mem_grow(g->images, first.count, sizeof *images);
    size_t path_len = strlen(g->path), prefix = path_len - SHARD_SUFFIX,
           n_tensors = images ? images[0].n_tensors : 0;
    char *path = mem_strndup(g->path, path_len);
    bool ok = images != NULL && path != NULL;
    if (images != NULL)
        g->images = images;
    if (!ok)
        err_set(err, ERR_SYSTEM, "%s: no memory for %" PRIu32 " shards", g->images[0].label,
                first.count);
    for (uint32_t i = 1; ok && i < first.count; i++) {
        g->images[i] = (struct gguf_image){0};
        g->n_images++;
        snprintf(path + prefix, SHARD_SUFFIX + 1, "-%05u-of-%05u.gguf", (i + 1) & UINT16_MAX,
                 first.count & UINT16_MAX);
        ok = open_image(&g->images[i], path, err) && check_shard(g, &first, i, err);
        n_tensors += g->images[i].n_tensors;
    }
    if (ok && n_tensors != first.n_tensors)
        ok = err_set(err, ERR_MODEL,
                     "%s: the shards have %zu tensors, expected %" PRIu32 " (split.tensors.count)",
                     g->images[0].label, n_tensors, first.n_tensors);
    free(path);
    return ok;
}

/* ---- tensors ---- */

static int by_name(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static const struct gguf_image *image_of(const struct gguf *g, const struct gguf_tensor *t)
{
    size_t i = 0;
    while (i + 1 < g->n_images &&
           (t < g->images[i].tensors || t >= g->images[i].tensors + g->images[i].n_tensors))
        i++;
    return &g->images[i];
}

/* Sorted, not hashed: no file can choose names that make it slow. */
static bool index_tensors(struct gguf *g, struct err *err)
{
    size_t n = 0, k = 0;
    for (size_t i = 0; i < g->n_images; i++)
        n += g->images[i].n_tensors;
    g->n_tensors = n;
    g->tensors = mem_alloc(n, sizeof *g->tensors);
    g->by_name = mem_alloc(n, sizeof *g->by_name);
    if (g->tensors == NULL || g->by_name == NULL)
        return err_set(err, ERR_SYSTEM, "%s: no memory to index %zu tensors", g->images[0].label,
                       n);
    for (size_t i = 0; i < g->n_images; i++)
        for (size_t j = 0; j < g->images[i].n_tensors; j++, k++)
            g->tensors[k] = g->by_name[k] = &g->images[i].tensors[j];
    qsort(g->by_name, n, sizeof *g->by_name, by_name);
    for (size_t i = 1; i < n; i++) {
        const struct gguf_tensor *a = g->by_name[i - 1], *b = g->by_name[i];
        if (strcmp(a->name, b->name) == 0)
            return err_set(err, ERR_MODEL,
                           "%s: two tensors named %.64s (data at offset %zu, and at %zu of %s)",
                           image_of(g, a)->label, a->name, a->offset, b->offset,
                           image_of(g, b)->label);
    }
    return true;
}

size_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i)
{
    return g->tensors[i];
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    struct gguf_tensor want = {.name = name};
    const struct gguf_tensor *key = &want, **found;
    found = bsearch(&key, g->by_name, g->n_tensors, sizeof *g->by_name, by_name);
    return found != NULL ? *found : NULL;
}

/* ---- the whole ---- */

static struct gguf *new_gguf(const char *path, struct err *err)
{
    struct gguf *g = mem_alloc(1, sizeof *g);
    if (g != NULL) {
        g->path = mem_strdup(path);
        g->images = mem_alloc(1, sizeof *g->images);
        g->n_images = g->images != NULL;
    }
    if (g == NULL || g->path == NULL || g->images == NULL) {
        err_set(err, ERR_SYSTEM, "no memory to open %s", path);
        gguf_close(g);
        return NULL;
    }
    return g;
}

struct gguf *gguf_open(const char *path, struct err *err)
{
    struct err own;
    struct gguf *g = new_gguf(path, err);
    if (err == NULL)
        err = &own;
    if (g == NULL)
        return NULL;
    g->mapped = true;
    if (open_image(&g->images[0], path, err) && open_shards(g, err) && index_tensors(g, err))
        return g;
    gguf_close(g);
    return NULL;
}

struct gguf *gguf_from_memory(const void *data, size_t size, struct err *err)
{
    struct gguf *g = new_gguf("memory", err);
    if (g == NULL)
        return NULL;
    struct gguf_image *im = &g->images[0];
    gguf_image_name(im, g->path);
    im->data = data;
    im->size = size;
    if (gguf_image_parse(im, err) && index_tensors(g, err))
        return g;
    gguf_close(g);
    return NULL;
}

void gguf_close(struct gguf *g)
{
    if (g == NULL)
        return;
    for (size_t i = 0; i < g->n_images; i++) {
        struct gguf_image *im = &g->images[i];
        gguf_image_free(im);
        if (g->mapped && im->data != NULL)
            munmap((void *)im->data, im->size);
    }
    free(g->images);
    free(g->tensors);
    free(g->by_name);
    free(g->path);
    free(g);
}

const char *gguf_path(const struct gguf *g)
{
    return g->path;
}

size_t gguf_file_bytes(const struct gguf *g)
{
    size_t n = 0;
    for (size_t i = 0; i < g->n_images; i++)
        n += g->images[i].size;
    return n;
}

void gguf_prefetch(const struct gguf *g)
{
    for (size_t i = 0; g->mapped && i < g->n_images; i++)
        if (g->images[i].data != NULL)
            madvise((void *)g->images[i].data, g->images[i].size, MADV_WILLNEED);
}

/* Puts a copy of the metadata where its pages were mapped, and nothing where tensor data was: the
 * addresses stay what they were, and what happens to the file from now on cannot reach the process.
 */
static bool detach(const struct gguf_image *im)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t meta = im->data_start < im->size ? im->data_start : im->size;
    size_t head = (meta + page - 1) / page * page, whole = (im->size + page - 1) / page * page;
    uint8_t *base = (uint8_t *)im->data;
    void *copy = mmap(NULL, head, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return false;
    memcpy(copy, base, meta);
    if (mprotect(copy, head, PROT_READ) != 0 ||
        mremap(copy, head, head, MREMAP_MAYMOVE | MREMAP_FIXED, base) == MAP_FAILED) {
        munmap(copy, head);
        return false;
    }
    return head == whole ||
           mmap(base + head, whole - head, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

void gguf_drop_part(const struct gguf *g, const void *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + n) / page * page;
    if (g->mapped && to > from)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

void gguf_drop_data(const struct gguf *g)
{
    for (size_t i = 0; g->mapped && i < g->n_images; i++)
        if (g->images[i].data != NULL && !detach(&g->images[i]))
            madvise((void *)g->images[i].data, g->images[i].size, MADV_DONTNEED);
}
