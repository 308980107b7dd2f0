/* The parser of one file image. Every number the file claims is compared with the bytes that are
 * left before anything is done by it, and each failure says where it is, what was found and what is
 * allowed. */
#include "engine/gguf_parse.h"

#include "base/mem.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the format is read as it lies in memory");

/* Caps far above any published model (which have some 50 keys, 2,000 tensors, 800,000 strings):
 * they bound the memory of the index, about 48 MiB at worst, whatever the size of the file. */
enum {
    MAX_KEYS = 1 << 16,
    MAX_TENSORS = 1 << 16,
    MAX_STRINGS = 1 << 21, /* in all arrays together */
    MAX_KEY_LEN = 65535,   /* the specification's */
    MAX_NAME_LEN = 255,    /* the specification says 64 */
    MAX_ALIGNMENT = 1 << 16,
    DEFAULT_ALIGNMENT = 32,
    /* length, a letter, type, value */
    MIN_KEY_BYTES = 8 + 1 + 4 + 1,
    /* length, a letter, number of dimensions, one dimension, type, offset */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
};

static const struct {
    const char *name;
    uint8_t size; /* bytes of a value; 0 for those with a length of their own */
} types[GGUF_TYPE_N] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_U64] = {"u64", 8},
    [GGUF_I64] = {"i64", 8},     [GGUF_F64] = {"f64", 8},   [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0},
};

const char *gguf_type_name(enum gguf_type t)
{
    return types[t].name;
}

struct reader {
    const uint8_t *data;
    size_t size, pos;
    const char *label;
    char where[96];   /* the key or tensor being read */
    size_t n_strings; /* array elements so far */
    struct err *err;
};

/* Reports a failure at `offset`; always false. */
static bool fail_at(struct reader *r, size_t offset, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool fail_at(struct reader *r, size_t offset, const char *fmt, ...)
{
    char what[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(r->err, ERR_MODEL, "%s: offset %zu: %s: %s", r->label, offset, r->where, what);
}

static bool no_memory(struct reader *r, size_t n, size_t size)
{
    return err_set(r->err, ERR_SYSTEM, "%s: no memory for %zu bytes of index", r->label, n * size);
}

/* Copies n bytes of text for a message: cut when long, what is not valid UTF-8 or not printable as
 * '?'. */
static void show(char *out, size_t size, const char *s, size_t n)
{
    size_t len = 0, i = 0;
    while (i < n) {
        uint32_t cp;
        int k = utf8_decode(s + i, n - i, &cp);
        bool good = k > 0 && cp >= 0x20 && cp != 0x7F;
        size_t step = good ? (size_t)k : 1;
        if (len + step + 4 > size) {
            memcpy(out + len, "...", 3);
            len += 3;
            break;
        }
        memcpy(out + len, good ? s + i : "?", step);
        len += step;
        i += step;
    }
    out[len] = 0;
}

void gguf_image_name(struct gguf_image *im, const char *path)
{
    size_t n = strlen(path), room = sizeof im->label - 8;
    if (n <= room) {
        show(im->label, sizeof im->label, path, n);
        return;
    }
    memcpy(im->label, "...", 3);
    show(im->label + 3, sizeof im->label - 3, path + n - room, room);
}

static void name_where(struct reader *r, const char *kind, const struct gguf_str *s)
{
    char text[80];
    show(text, sizeof text, s->s, s->len);
    snprintf(r->where, sizeof r->where, "%s %s", kind, text);
}

/* The next n bytes, or NULL after a message. */
static const uint8_t *take(struct reader *r, uint64_t n, const char *what)
{
    if (n > r->size - r->pos) {
        uint64_t needs;
        if (__builtin_add_overflow(n, (uint64_t)r->pos, &needs))
            needs = UINT64_MAX;
        fail_at(r, r->pos, "%s: truncated at offset %zu, needs %" PRIu64, what, r->size, needs);
        return NULL;
    }
    const uint8_t *p = r->data + r->pos;
    r->pos += (size_t)n;
    return p;
}

static bool take_u32(struct reader *r, uint32_t *out, const char *what)
{
    const uint8_t *p = take(r, 4, what);
    if (p != NULL)
        memcpy(out, p, 4);
    return p != NULL;
}

static bool take_u64(struct reader *r, uint64_t *out, const char *what)
{
    const uint8_t *p = take(r, 8, what);
    if (p != NULL)
        memcpy(out, p, 8);
    return p != NULL;
}

static bool take_str(struct reader *r, struct gguf_str *out, const char *what)
{
    uint64_t len;
    if (!take_u64(r, &len, what))
        return false;
    const uint8_t *p = take(r, len, what);
    if (p == NULL)
        return false;
    *out = (struct gguf_str){(const char *)p, (size_t)len};
    return true;
}

/* A key or tensor name: it is shown in messages and compared with ours, so it must be text. */
static bool take_name(struct reader *r, struct gguf_str *out, size_t max, const char *kind)
{
    size_t start = r->pos;
    if (!take_str(r, out, "name"))
        return false;
    if (out->len == 0 || out->len > max)
        return fail_at(r, start, "name of %zu bytes, allowed 1 to %zu", out->len, max);
    name_where(r, kind, out);
    if (!utf8_valid(out->s, out->len))
        return fail_at(r, start, "name is not valid UTF-8");
    if (memchr(out->s, 0, out->len) != NULL)
        return fail_at(r, start, "name holds a NUL byte");
    return true;
}

/* What a file that is not GGUF seems to be. */
static const char *guess_kind(const uint8_t *p, size_t n)
{
    static const struct {
        const char *magic;
        uint16_t len, at;
        const char *kind;
    } kinds[] = {
        {"lmgg", 4, 0, "an old GGML file (convert it to GGUF)"},
        {"fmgg", 4, 0, "an old GGML file (GGMF; convert it to GGUF)"},
        {"tjgg", 4, 0, "an old GGML file (GGJT; convert it to GGUF)"},
        {"algg", 4, 0, "an old GGML LoRA file"},
        {"GGML", 4, 0, "an old GGML file (convert it to GGUF)"},
        {"FUGG", 4, 0, "a byte-swapped GGUF file"},
        {"\x89PNG", 4, 0, "a PNG image"},
        {"\xff\xd8\xff", 3, 0, "a JPEG image"},
        {"%PDF", 4, 0, "a PDF document"},
        {"version https://git-lfs", 23, 0,
         "a Git LFS pointer, not the file itself (run git lfs pull)"},
        {"PK\x03\x04", 4, 0, "a ZIP archive (perhaps a PyTorch checkpoint)"},
        {"\x80\x02", 2, 0, "a Python pickle (perhaps a PyTorch checkpoint)"},
        {"\x1f\x8b", 2, 0, "a gzip archive (unpack it first)"},
        {"\3757zXZ", 5, 0, "an xz archive (unpack it first)"},
        {"\x28\xb5\x2f\xfd", 4, 0, "a zstd archive (unpack it first)"},
        {"\177ELF", 4, 0, "a program"},
        {"\x89HDF", 4, 0, "an HDF5 file"},
        {"{\"", 2, 8, "a safetensors file (convert it to GGUF)"},
        {"ustar", 5, 257, "a tar archive (unpack it first)"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t at = kinds[i].at, len = kinds[i].len;
        if (n >= at + len && memcmp(p + at, kinds[i].magic, len) == 0)
            return kinds[i].kind;
    }
    size_t i = 0;
    while (i < n && i < 64 && (p[i] == ' ' || p[i] == '\t' || p[i] == '\r' || p[i] == '\n'))
        i++;
    const char *text = (const char *)p + i;
    if (n - i >= 5 && (strncasecmp(text, "<html", 5) == 0 || strncasecmp(text, "<!doc", 5) == 0))
        return "an HTML page (a failed download?)";
    if (n - i >= 5 && strncasecmp(text, "<?xml", 5) == 0)
        return "an XML document (a failed download?)";
    if (n - i >= 1 && *text == '{')
        return "a JSON document (a failed download?)";
    return "no known model format";
}

static bool read_magic(struct reader *r)
{
    snprintf(r->where, sizeof r->where, "header");
    if (r->size == 0)
        return err_set(r->err, ERR_MODEL, "%s: empty file", r->label);
    size_t n = r->size < 4 ? r->size : 4;
    if (memcmp(r->data, "GGUF", n) != 0)
        return fail_at(r, 0, "not a GGUF file: it seems to be %s", guess_kind(r->data, r->size));
    uint32_t version;
    if (take(r, 4, "magic") == NULL || !take_u32(r, &version, "version"))
        return false;
    if (version != 0 && (version & 0xFFFF) == 0)
        return fail_at(r, 4,
                       "a big-endian GGUF file (version 0x%08" PRIX32
                       "); only little-endian ones are supported",
                       version);
    if (version != 2 && version != 3)
        return fail_at(r, 4, "GGUF version %" PRIu32 ", supported are 2 and 3", version);
    return true;
}

/* A count of things that take at least min_bytes each, compared with the bytes that are left after
 * the header. */
static bool take_count(struct reader *r, const char *name, size_t min_bytes, size_t max,
                       size_t *out)
{
    uint64_t n;
    size_t start = r->pos;
    if (!take_u64(r, &n, name))
        return false;
    size_t room = (r->size - r->pos) / min_bytes;
    if (n > room)
        return fail_at(r, start,
                       "%s %" PRIu64 ", but the file is truncated or has room for at most %zu",
                       name, n, room);
    if (n > max)
        return fail_at(r, start, "%s %" PRIu64 ", allowed at most %zu", name, n, max);
    *out = (size_t)n;
    return true;
}

static bool read_array(struct reader *r, struct gguf_kv *kv)
{
    struct gguf_arr *a = &kv->arr;
    uint32_t type;
    uint64_t n;
    size_t start = r->pos;
    if (!take_u32(r, &type, "array element type") || !take_u64(r, &n, "array length"))
        return false;
    if (type >= GGUF_TYPE_N || type == GGUF_ARRAY)
        return fail_at(r, start, "array element type %" PRIu32 "%s, allowed 0 to 12 but 9", type,
                       type == GGUF_ARRAY ? " (array)" : "");
    size_t size = type == GGUF_STRING ? 8 : types[type].size; /* the least an element takes */
    if (n > (r->size - r->pos) / size)
        return fail_at(r, start + 4,
                       "array of %" PRIu64 " x %s: truncated at offset %zu, room for at most %zu",
                       n, types[type].name, r->size, (r->size - r->pos) / size);
    a->type = (enum gguf_type)type;
    a->n = (size_t)n;
    a->data = r->data + r->pos;
    if (type != GGUF_STRING) {
        for (size_t i = 0; type == GGUF_BOOL && i < a->n; i++)
            if (r->data[r->pos + i] > 1)
                return fail_at(r, r->pos + i, "bool value %d, allowed 0 and 1",
                               r->data[r->pos + i]);
        r->pos += a->n * size;
        return true;
    }
    if (a->n > MAX_STRINGS - r->n_strings)
        return fail_at(r, start + 4,
                       "array of %zu strings, allowed at most %d in all arrays together", a->n,
                       MAX_STRINGS);
    r->n_strings += a->n;
    struct gguf_str *strs = mem_alloc(a->n, sizeof *strs);
    if (strs == NULL)
        return no_memory(r, a->n, sizeof *strs);
    a->strs = strs;
    for (size_t i = 0; i < a->n; i++)
        if (!take_str(r, &strs[i], "array element"))
            return false;
    return true;
}

static bool read_value(struct reader *r, struct gguf_kv *kv)
{
    uint32_t type;
    size_t start = r->pos;
    if (!take_u32(r, &type, "value type"))
        return false;
    if (type >= GGUF_TYPE_N)
        return fail_at(r, start, "value type %" PRIu32 ", allowed 0 to %d", type, GGUF_TYPE_N - 1);
    kv->type = (enum gguf_type)type;
    kv->offset = r->pos;
    if (type == GGUF_STRING)
        return take_str(r, &kv->str, "string value");
    if (type == GGUF_ARRAY)
        return read_array(r, kv);
    kv->value = take(r, types[type].size, "value");
    if (kv->value == NULL)
        return false;
    if (type == GGUF_BOOL && *kv->value > 1)
        return fail_at(r, kv->offset, "bool value %d, allowed 0 and 1", *kv->value);
    return true;
}

static int compare_bytes(const char *a, size_t na, const char *b, size_t nb)
{
    int c = memcmp(a, b, na < nb ? na : nb);
    return c != 0 ? c : (na > nb) - (na < nb);
}

static int by_key(const void *a, const void *b)
{
    const struct gguf_kv *x = a, *y = b;
    return compare_bytes(x->key.s, x->key.len, y->key.s, y->key.len);
}

/* The array grows as keys are found, so that a count which the file's size would allow takes no
 * memory by itself. */
static bool read_keys(struct reader *r, struct gguf_image *im, size_t count)
{
    size_t cap = 0;
    for (size_t i = 0; i < count; i++) {
        if (im->n_kv == cap) {
            cap += cap / 2 + 64;
            struct gguf_kv *p = mem_grow(im->kv, cap, sizeof *p);
            if (p == NULL)
                return no_memory(r, cap, sizeof *p);
            im->kv = p;
        }
        struct gguf_kv *kv = &im->kv[im->n_kv++];
        *kv = (struct gguf_kv){0};
        snprintf(r->where, sizeof r->where, "metadata key %zu of %zu", i + 1, count);
        if (!take_name(r, &kv->key, MAX_KEY_LEN, "key") || !read_value(r, kv))
            return false;
    }
    if (im->n_kv > 0)
        qsort(im->kv, im->n_kv, sizeof *im->kv, by_key);
    for (size_t i = 1; i < im->n_kv; i++)
        if (by_key(&im->kv[i - 1], &im->kv[i]) == 0) {
            name_where(r, "key", &im->kv[i].key);
            return fail_at(r, im->kv[i].offset, "two values, at offsets %zu and %zu; allowed one",
                           im->kv[i - 1].offset, im->kv[i].offset);
        }
    return true;
}

const struct gguf_kv *gguf_image_find(const struct gguf_image *im, const char *key)
{
    struct gguf_kv want = {.key = {key, strlen(key)}};
    return im->n_kv == 0 ? NULL : bsearch(&want, im->kv, im->n_kv, sizeof want, by_key);
}

static bool read_alignment(struct reader *r, const struct gguf_image *im, size_t *out)
{
    *out = DEFAULT_ALIGNMENT;
    const struct gguf_kv *kv = gguf_image_find(im, "general.alignment");
    if (kv == NULL)
        return true;
    name_where(r, "key", &kv->key);
    if (kv->type != GGUF_U32)
        return fail_at(r, kv->offset, "type %s, expected u32", types[kv->type].name);
    uint32_t a;
    memcpy(&a, kv->value, 4);
    if (a < 8 || a > MAX_ALIGNMENT || (a & (a - 1)) != 0)
        return fail_at(r, kv->offset, "value %" PRIu32 ", allowed are powers of two from 8 to %d",
                       a, MAX_ALIGNMENT);
    *out = a;
    return true;
}

static bool bad_type(struct reader *r, size_t offset, uint32_t id)
{
    char list[200];
    size_t len = 0;
    for (int t = 0; t < QTYPE_N && len < sizeof list; t++)
        len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", t ? ", " : "",
                                qtype_name((enum qtype)t));
    const char *name = qtype_gguf_name(id);
    return fail_at(r, offset, "type %" PRIu32 " (%s) is not supported; supported are %s", id,
                   name != NULL ? name : "unknown or removed", list);
}

static bool read_shape(struct reader *r, struct gguf_tensor *t)
{
    uint32_t n_dims;
    size_t start = r->pos;
    if (!take_u32(r, &n_dims, "number of dimensions"))
        return false;
    if (n_dims < 1 || n_dims > 4)
        return fail_at(r, start, "%" PRIu32 " dimensions, allowed 1 to 4", n_dims);
    t->n_dims = (int)n_dims;
    for (int d = 0; d < 4; d++) {
        uint64_t n = 1;
        start = r->pos;
        if (d < t->n_dims && !take_u64(r, &n, "dimension"))
            return false;
        if (n < 1 || n > INT32_MAX)
            return fail_at(r, start, "dimension %d is %" PRIu64 ", allowed 1 to %d", d, n,
                           INT32_MAX);
        t->ne[d] = (int64_t)n;
    }
    return true;
}

/* Type and bytes; the offset relative to the data section goes into t->offset for now. */
static bool read_tensor(struct reader *r, struct gguf_tensor *t, size_t alignment)
{
    struct gguf_str name;
    if (!take_name(r, &name, MAX_NAME_LEN, "tensor"))
        return false;
    t->name = mem_strndup(name.s, name.len);
    if (t->name == NULL)
        return no_memory(r, name.len, 1);
    size_t start = r->pos;
    uint32_t type;
    uint64_t offset;
    if (!read_shape(r, t))
        return false;
    size_t type_at = r->pos;
    if (!take_u32(r, &type, "type"))
        return false;
    if (!qtype_from_gguf(type, &t->type))
        return bad_type(r, type_at, type);
    const struct qtype_info *q = qtype_info(t->type);
    if (t->ne[0] % q->block_weights != 0)
        return fail_at(r, start, "row length %" PRId64 ", for type %s allowed are multiples of %d",
                       t->ne[0], q->name, q->block_weights);
    t->bytes = qtype_row_bytes(t->type, (size_t)t->ne[0]);
    for (int d = 1; d < 4; d++)
        if (!mem_mul(t->bytes, (size_t)t->ne[d], &t->bytes) || t->bytes > PTRDIFF_MAX)
            return fail_at(r, start,
                           "shape %" PRId64 " x %" PRId64 " x %" PRId64 " x %" PRId64
                           " takes more bytes than 2^63",
                           t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    start = r->pos;
    if (!take_u64(r, &offset, "offset"))
        return false;
    if (offset % alignment != 0)
        return fail_at(r, start,
                       "data offset %" PRIu64 ", allowed are multiples of the alignment %zu",
                       offset, alignment);
    if (offset > r->size)
        return fail_at(r, start, "data offset %" PRIu64 ": truncated at offset %zu, needs more than %" PRIu64,
                       offset, r->size, offset);
    t->offset = (size_t)offset;
    return true;
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->offset > (*y)->offset) - ((*x)->offset < (*y)->offset);
}

/* Tensors that share bytes are refused: so all tensors together are never more than the file. */
static bool check_overlap(struct reader *r, const struct gguf_image *im)
{
    const struct gguf_tensor **t = mem_alloc(im->n_tensors, sizeof *t);
    if (t == NULL)
        return no_memory(r, im->n_tensors, sizeof *t);
    for (size_t i = 0; i < im->n_tensors; i++)
        t[i] = &im->tensors[i];
    qsort(t, im->n_tensors, sizeof *t, by_offset);
    bool ok = true;
    for (size_t i = 1; i < im->n_tensors && ok; i++)
        if (t[i]->offset - t[i - 1]->offset < t[i - 1]->bytes) {
            name_where(r, "tensor", &(struct gguf_str){t[i]->name, strlen(t[i]->name)});
            ok = fail_at(r, t[i]->offset,
                         "data begins inside tensor %.64s, which takes %zu bytes from offset %zu",
                         t[i - 1]->name, t[i - 1]->bytes, t[i - 1]->offset);
        }
    free(t);
    return ok;
}

static bool place_tensors(struct reader *r, struct gguf_image *im, size_t alignment)
{
    if (!mem_add(r->pos, alignment - 1, &im->data_start))
        return fail_at(r, r->pos, "data section out of range");
    im->data_start -= im->data_start % alignment;
    for (size_t i = 0; i < im->n_tensors; i++) {
        struct gguf_tensor *t = &im->tensors[i];
        size_t end;
        name_where(r, "tensor", &(struct gguf_str){t->name, strlen(t->name)});
        if (!mem_add(im->data_start, t->offset, &t->offset) || !mem_add(t->offset, t->bytes, &end))
            return fail_at(r, r->pos, "data at %zu with %zu bytes is out of range", t->offset,
                           t->bytes);
        if (end > im->size)
            return fail_at(r, t->offset, "data of %zu bytes: truncated at offset %zu, needs %zu",
                           t->bytes, im->size, end);
        t->data = im->data + t->offset;
    }
    return im->n_tensors == 0 || check_overlap(r, im);
}

static bool read_tensors(struct reader *r, struct gguf_image *im, size_t count, size_t alignment)
{
    size_t cap = 0;
    for (size_t i = 0; i < count; i++) {
        if (im->n_tensors == cap) {
            cap += cap / 2 + 64;
            struct gguf_tensor *p = mem_grow(im->tensors, cap, sizeof *p);
            if (p == NULL)
                return no_memory(r, cap, sizeof *p);
            im->tensors = p;
        }
        struct gguf_tensor *t = &im->tensors[im->n_tensors++];
        *t = (struct gguf_tensor){0};
        snprintf(r->where, sizeof r->where, "tensor %zu of %zu", i + 1, count);
        if (!read_tensor(r, t, alignment))
            return false;
    }
    return place_tensors(r, im, alignment);
}

bool gguf_image_parse(struct gguf_image *im, struct err *err)
{
    struct reader r = {.data = im->data, .size = im->size, .label = im->label, .err = err};
    size_t n_tensors, n_kv, alignment;
    return read_magic(&r) &&
           take_count(&r, "tensor_count", MIN_TENSOR_BYTES, MAX_TENSORS, &n_tensors) &&
           take_count(&r, "metadata_kv_count", MIN_KEY_BYTES, MAX_KEYS, &n_kv) &&
           read_keys(&r, im, n_kv) && read_alignment(&r, im, &alignment) &&
           read_tensors(&r, im, n_tensors, alignment);
}

void gguf_image_free(struct gguf_image *im)
{
    for (size_t i = 0; i < im->n_kv; i++)
        free((void *)im->kv[i].arr.strs);
    for (size_t i = 0; i < im->n_tensors; i++)
        free((void *)im->tensors[i].name);
    free(im->kv);
    free(im->tensors);
    im->kv = NULL;
    im->tensors = NULL;
    im->n_kv = im->n_tensors = 0;
}
