/* gguf: good files are read as they were written; malformed ones are refused with file, offset,
 * name, found and allowed. The tests A01 to A22 go by the classes of hostile model files. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "engine/gguf.h"
#include "tests/ggufw.h"
#include "tests/tiny.h"

#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum {
    T_U8 = 0,
    T_I8,
    T_U16,
    T_I16,
    T_U32,
    T_I32,
    T_F32,
    T_BOOL,
    T_STR,
    T_ARR,
    T_U64,
    T_I64,
    T_F64
};

/* ---- helpers ---- */

/* A small model with a key of each kind and three tensors. */
static struct ggufw *sample(void)
{
    struct ggufw *w = ggufw_open();
    ck_assert_ptr_nonnull(w);
    ggufw_str(w, "general.architecture", "llama");
    ggufw_u32(w, "llama.block_count", 1);
    ggufw_i32(w, "an.i32", -5);
    ggufw_f32(w, "an.f32", 0.5f);
    ggufw_bool(w, "a.bool", true);
    ggufw_arr(w, "some.i32", T_I32, (int32_t[]){1, -2, 3}, 3, 4);
    ggufw_arr(w, "some.f32", T_F32, (float[]){1.5f, -2.5f}, 2, 4);
    struct buf strs = {0};
    ggufw_put_str(&strs, "one", 3);
    ggufw_put_str(&strs, "", 0);
    ggufw_put_str(&strs, "\xff three", 7);
    ggufw_strs(w, "some.strings", &strs, 3);
    buf_free(&strs);
    ggufw_tensor(w, "token_embd.weight", QTYPE_Q8_0, 64, 5, 1);
    ggufw_tensor(w, "blk.0.attn_norm.weight", QTYPE_F32, 64, 1, 1);
    ggufw_tensor(w, "blk.0.exps.weight", QTYPE_Q4_K, 256, 2, 3);
    return w;
}

static struct buf image_of(struct ggufw *w)
{
    struct buf b = {0};
    ck_assert(ggufw_image(w, &b));
    ggufw_close(w);
    return b;
}

/* Opens a copy that ends where the image ends, so that the address sanitizer sees any read behind
 * it. */
static struct gguf *open_copy(const void *data, size_t n, void **copy, struct err *err)
{
    *copy = malloc(n > 0 ? n : 1);
    ck_assert_ptr_nonnull(*copy);
    memcpy(*copy, data, n);
    *err = (struct err){0};
    return gguf_from_memory(*copy, n, err);
}

/* The bytes must be refused as a malformed model, with a message that holds every given piece (NULL
 * ends them). */
static void refused(const void *data, size_t n, ...)
{
    void *copy;
    struct err err;
    struct gguf *g = open_copy(data, n, &copy, &err);
    ck_assert_msg(g == NULL, "accepted a malformed file of %zu bytes", n);
    free(copy);
    ck_assert_msg(err.code == ERR_MODEL, "code %d: %s", err.code, err.msg);
    ck_assert_msg(strncmp(err.msg, "memory: ", 8) == 0, "no file name in: %s", err.msg);
    va_list ap;
    va_start(ap, n);
    for (const char *piece = va_arg(ap, const char *); piece != NULL;
         piece = va_arg(ap, const char *))
        ck_assert_msg(strstr(err.msg, piece) != NULL, "\"%s\" not in: %s", piece, err.msg);
    va_end(ap);
}

static void accepted(const void *data, size_t n)
{
    void *copy;
    struct err err;
    struct gguf *g = open_copy(data, n, &copy, &err);
    ck_assert_msg(g != NULL, "refused: %s", err.msg);
    gguf_close(g);
    free(copy);
}

/* Refuses what a sample becomes with one more key. */
#define refused_key(type, value, n, ...)                                                           \
    do {                                                                                           \
        struct ggufw *w_ = sample();                                                               \
        ggufw_raw(w_, "bad.key", type, value, n);                                                  \
        struct buf b_ = image_of(w_);                                                              \
        refused(b_.data, b_.len, "bad.key", "offset", __VA_ARGS__, NULL);                          \
        buf_free(&b_);                                                                             \
    } while (0)

/* Hostile counts must fail by comparison, not by an allocation: with little memory to have, the
 * code tells which. */
static void little_memory(void)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    struct rlimit limit = {256u << 20, 256u << 20};
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &limit), 0);
#endif
}

static size_t find_bytes(const struct buf *b, const char *text)
{
    const char *p = memmem(b->data, b->len, text, strlen(text));
    ck_assert_ptr_nonnull(p);
    return (size_t)(p - b->data);
}

static void put_u64(struct buf *b, size_t at, uint64_t v)
{
    ck_assert_uint_le(at + 8, b->len);
    memcpy(b->data + at, &v, 8);
}

/* Where the data offset of the second tensor (one dimension) stands. */
static size_t norm_offset_at(const struct buf *b)
{
    return find_bytes(b, "blk.0.attn_norm.weight") + strlen("blk.0.attn_norm.weight") + 4 + 8 + 4;
}

/* ---- good files ---- */

START_TEST(reads_what_was_written)
{
    struct buf b = image_of(sample());
    void *copy;
    struct err err;
    struct gguf *g = open_copy(b.data, b.len, &copy, &err);
    ck_assert_msg(g != NULL, "%s", err.msg);
    ck_assert_uint_eq(gguf_file_bytes(g), b.len);

    struct gguf_str s;
    ck_assert(gguf_str(g, "general.architecture", &s, &err));
    ck_assert(s.len == 5 && memcmp(s.s, "llama", 5) == 0);
    uint32_t n;
    float f;
    bool flag = false;
    ck_assert(gguf_u32(g, "llama.block_count", 1, 1, &n, &err) && n == 1);
    ck_assert(gguf_f32(g, "an.f32", &f, &err) && f == 0.5f);
    ck_assert(gguf_bool(g, "a.bool", &flag, &err) && flag);
    ck_assert(gguf_has(g, "a.bool") && !gguf_has(g, "a.boo") && !gguf_has(g, "a.booll"));

    struct gguf_arr a;
    ck_assert(gguf_arr(g, "some.i32", GGUF_I32, &a, &err) && a.n == 3);
    ck_assert(gguf_arr_i32(&a, 0) == 1 && gguf_arr_i32(&a, 1) == -2 && gguf_arr_i32(&a, 2) == 3);
    ck_assert(gguf_arr(g, "some.i32", GGUF_U32, &a, &err));
    ck_assert(gguf_arr(g, "some.f32", GGUF_F32, &a, &err) && gguf_arr_f32(&a, 1) == -2.5f);
    ck_assert(gguf_arr(g, "some.strings", GGUF_STRING, &a, &err) && a.n == 3);
    ck_assert(a.strs[0].len == 3 && a.strs[1].len == 0 &&
              memcmp(a.strs[2].s, "\xff three", 7) == 0);

    ck_assert_uint_eq(gguf_n_tensors(g), 3);
    ck_assert_str_eq(gguf_tensor_at(g, 2)->name, "blk.0.exps.weight");
    const struct gguf_tensor *t = gguf_tensor(g, "blk.0.exps.weight");
    ck_assert_ptr_eq(t, gguf_tensor_at(g, 2));
    ck_assert(t->type == QTYPE_Q4_K && t->n_dims == 3);
    ck_assert(t->ne[0] == 256 && t->ne[1] == 2 && t->ne[2] == 3 && t->ne[3] == 1);
    ck_assert_uint_eq(t->bytes, 144 * 6);
    ck_assert(t->offset % 32 == 0 && (const char *)t->data == (const char *)copy + t->offset);
    ck_assert_int_eq(((const uint8_t *)t->data)[0], 3);
    ck_assert_ptr_null(gguf_tensor(g, "blk.0.exps.weigh"));
    ck_assert_ptr_null(gguf_tensor(g, ""));
    gguf_close(g);
    free(copy);
    buf_free(&b);
}
END_TEST

/* A key that is missing leaves the default alone and sets no error; a wrong type or value names all
 * there is to know. */
START_TEST(getters_tell_missing_from_wrong)
{
    struct ggufw *w = sample();
    ggufw_raw(w, "a.u64", T_U64, (uint64_t[]){UINT64_MAX}, 8);
    ggufw_raw(w, "a.u8", T_U8, (uint8_t[]){200}, 1);
    ggufw_raw(w, "a.i8", T_I8, (int8_t[]){-1}, 1);
    ggufw_raw(w, "a.i16", T_I16, (int16_t[]){300}, 2);
    ggufw_raw(w, "a.f64", T_F64, (double[]){0.25}, 8);
    ggufw_f32(w, "a.nan", (float)strtod("nan", NULL));
    ggufw_str(w, "latin1", "caf\xe9");
    struct buf b = image_of(w);
    struct err err = {0};
    struct gguf *g = gguf_from_memory(b.data, b.len, &err);
    ck_assert_msg(g != NULL, "%s", err.msg);

    uint32_t n = 4;
    float f = 4;
    struct gguf_str s;
    struct gguf_arr a;
    bool flag;
    err.code = ERR_MODEL;
    ck_assert(!gguf_u32(g, "no.such", 0, 9, &n, &err) && err.code == ERR_NONE && n == 4);
    ck_assert(!gguf_u32(g, "no.such", 0, 9, &n, NULL));

    static const struct {
        const char *key, *piece;
    } bad[] = {
        {"a.u64", "value 9223372036854775807, expected 0 to 100"},
        {"a.u8", "value 200, expected 0 to 100"},
        {"a.i8", "value -1, expected 0 to 100"},
        {"an.i32", "value -5, expected 0 to 100"},
        {"an.f32", "type f32, expected an integer"},
        {"some.f32", "type array of f32, expected an integer"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert(!gguf_u32(g, bad[i].key, 0, 100, &n, &err) && err.code == ERR_MODEL && n == 4);
        ck_assert_msg(strstr(err.msg, bad[i].piece) && strstr(err.msg, bad[i].key), "%s", err.msg);
    }
    ck_assert(gguf_u32(g, "a.i16", 0, 300, &n, &err) && n == 300);
    ck_assert(gguf_f32(g, "a.f64", &f, &err) && f == 0.25f);
    ck_assert(!gguf_f32(g, "a.nan", &f, &err) && strstr(err.msg, "finite"));
    ck_assert(!gguf_f32(g, "a.u8", &f, &err) && strstr(err.msg, "type u8, expected f32"));
    ck_assert(!gguf_bool(g, "a.u8", &flag, &err) && strstr(err.msg, "expected bool"));
    ck_assert(!gguf_str(g, "a.u8", &s, &err) && strstr(err.msg, "expected string"));
    ck_assert(!gguf_str(g, "latin1", &s, &err) && strstr(err.msg, "UTF-8"));
    ck_assert(!gguf_arr(g, "a.u8", GGUF_I32, &a, &err) && strstr(err.msg, "expected array of i32"));
    ck_assert(!gguf_arr(g, "no.such", GGUF_I32, &a, &err) && err.code == ERR_NONE);
    gguf_close(g);
    buf_free(&b);
}
END_TEST

START_TEST(every_failing_allocation_is_reported)
{
    struct buf b = image_of(sample());
    int64_t n = 0;
    struct gguf *g = NULL;
    for (; g == NULL && n < 100; n++) {
        struct err err = {0};
        mem_fail_after(n + 1);
        g = gguf_from_memory(b.data, b.len, &err);
        mem_fail_after(0);
        ck_assert_msg(g != NULL || err.code == ERR_SYSTEM, "allocation %d: %s", (int)n, err.msg);
    }
    ck_assert_ptr_nonnull(g);
    ck_assert_int_gt(n, 8);
    gguf_close(g);
    buf_free(&b);
}
END_TEST

/* ---- hostile files ---- */

START_TEST(A01_empty)
{
    refused("", 0, "empty file", NULL);
}
END_TEST

START_TEST(A02_wrong_magic)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *piece;
    } files[] = {
#define BYTES(s) s, sizeof s - 1
        {BYTES("GGML\3\0\0\0"), "old GGML"},
        {BYTES("lmgg\3\0\0\0"), "old GGML"},
        {BYTES("tjgg\3\0\0\0"), "GGJT"},
        {BYTES("\x89PNG\r\n\x1a\n"), "PNG"},
        {BYTES("\x20\0\0\0\0\0\0\0{\"__metadata__\":{}}"), "safetensors"},
        {BYTES("version https://git-lfs.github.com/spec/v1\noid sha256:00"), "Git LFS pointer"},
        {BYTES("\n<!DOCTYPE html><html>"), "HTML"},
        {BYTES("<HTML>"), "HTML"},
        {BYTES("{\"error\":\"Not found\"}"), "JSON"},
        {BYTES("PK\3\4"), "ZIP"},
        {BYTES("\x1f\x8b\x08"), "gzip"},
        {BYTES("random text"), "no known"},
        {BYTES("G"), "truncated"},
        {BYTES("GGUX"), "not a GGUF file"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        refused(files[i].bytes, files[i].n, "offset", files[i].piece, NULL);
}
END_TEST

START_TEST(A03_version)
{
    struct buf b = image_of(sample());
    static const uint32_t bad[] = {0, 1, 4, 0xFFFFFFFF};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(b.data + 4, &bad[i], 4);
        refused(b.data, b.len, "version", "offset 4", "2 and 3", NULL);
    }
    memcpy(b.data + 4, (uint32_t[]){0x03000000}, 4);
    refused(b.data, b.len, "big-endian", NULL);
    memcpy(b.data + 4, (uint32_t[]){2}, 4);
    accepted(b.data, b.len);
    buf_free(&b);
}
END_TEST

START_TEST(A04_cut_anywhere)
{
    struct buf b = image_of(sample());
    struct err err = {0};
    struct gguf *g = gguf_from_memory(b.data, b.len, &err);
    ck_assert_ptr_nonnull(g);
    size_t first = gguf_tensor_at(g, 0)->offset, last = 0;
    for (size_t n = 1; n <= first; n++)
        refused(b.data, n, "truncated", "offset", NULL);
    for (size_t i = 0; i < 3; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        size_t end = t->offset + t->bytes;
        last = end > last ? end : last;
        refused(b.data, t->offset, "truncated", "needs", NULL);
        refused(b.data, t->offset + 1, "truncated", "needs", NULL);
        refused(b.data, end - 1, t->name, "truncated", "needs", NULL);
    }
    accepted(b.data, last); /* only the padding is missing */
    gguf_close(g);
    buf_free(&b);
}
END_TEST

/* A whole model's metadata, cut at every 61st byte. */
START_TEST(A04_cut_model)
{
    struct tiny_spec spec;
    struct err err = {0};
    struct buf b = {0};
    ck_assert(tiny_preset("llama2", "F32", &spec, &err));
    ck_assert(tiny_image(&spec, &b, &err));
    for (size_t n = 1; n < 24000; n += 61)
        refused(b.data, n, "truncated", NULL);
    buf_free(&b);
}
END_TEST

START_TEST(A05_tensor_count)
{
    little_memory();
    struct buf b = image_of(sample());
    static const uint64_t bad[] = {UINT64_MAX, 1ull << 63, 1ull << 32, 1000};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_u64(&b, 8, bad[i]);
        refused(b.data, b.len, "offset 8", "tensor_count", "at most", NULL);
    }
    buf_free(&b);
}
END_TEST

START_TEST(A06_key_count)
{
    little_memory();
    struct buf b = image_of(sample());
    static const uint64_t bad[] = {UINT64_MAX, 1ull << 63, 1ull << 32, 1000};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_u64(&b, 16, bad[i]);
        refused(b.data, b.len, "offset 16", "metadata_kv_count", "at most", NULL);
    }
    buf_free(&b);
}
END_TEST

START_TEST(A07_string_length)
{
    little_memory();
    struct buf b = image_of(sample());
    size_t name = find_bytes(&b, "blk.0.attn_norm.weight") - 8;
    const uint64_t bad[] = {UINT64_MAX, 1ull << 63, b.len + 1};
    for (size_t i = 0; i < 3; i++) {
        put_u64(&b, 24, bad[i]);
        refused(b.data, b.len, "metadata key 1 of 8", "truncated", NULL);
        put_u64(&b, 24, strlen("general.architecture"));
        uint64_t len = b.len;
        memcpy(&len, b.data + name, 8);
        put_u64(&b, name, bad[i]);
        refused(b.data, b.len, "tensor 2 of 3", "truncated", NULL);
        put_u64(&b, name, len);
        refused_key(T_STR, &bad[i], 8, "string value", "truncated");
    }
    put_u64(&b, 24, 0);
    refused(b.data, b.len, "metadata key 1", "0 bytes", NULL);
    buf_free(&b);
}
END_TEST

START_TEST(A08_array_length)
{
    little_memory();
    struct {
        uint32_t type;
        uint64_t n;
    } __attribute__((packed)) a = {T_U64, 1ull << 61};
    refused_key(T_ARR, &a, 12, "array of 2305843009213693952 x u64", "truncated");
    a.type = T_STR;
    a.n = 1ull << 32;
    refused_key(T_ARR, &a, 12, "array of 4294967296 x string", "truncated");
    a.type = T_U8;
    a.n = UINT64_MAX;
    refused_key(T_ARR, &a, 12, "x u8", "truncated");
}
END_TEST

START_TEST(A09_value_type)
{
    static const uint32_t bad[] = {13, 255, 1u << 31};
    char zeros[64] = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        refused_key(bad[i], zeros, sizeof zeros, "value type", "allowed 0 to 12");
        memcpy(zeros, &bad[i], 4);
        refused_key(T_ARR, zeros, sizeof zeros, "array element type", "allowed");
    }
    memcpy(zeros, (uint32_t[]){T_ARR}, 4);
    refused_key(T_ARR, zeros, sizeof zeros, "array element type 9 (array)", "allowed");
    refused_key(T_BOOL, "\2", 1, "bool value 2");
    refused_key(T_ARR, "\7\0\0\0\2\0\0\0\0\0\0\0\1\x80", 14, "bool value 128");
}
END_TEST

/* Changes the third tensor of a sample and expects a refusal. */
#define refused_tensor(change, ...)                                                                \
    do {                                                                                           \
        struct ggufw *w_ = sample();                                                               \
        struct ggufw_tensor *t = ggufw_find(w_, "blk.0.exps.weight");                              \
        change;                                                                                    \
        struct buf b_ = image_of(w_);                                                              \
        refused(b_.data, b_.len, "tensor blk.0.exps.weight", "offset", __VA_ARGS__, NULL);         \
        buf_free(&b_);                                                                             \
    } while (0)

START_TEST(A10_huge_shapes)
{
    refused_tensor((t->ne[0] = t->ne[1] = 1ull << 33), "dimension 0 is 8589934592");
    refused_tensor((t->ne[0] = INT64_MAX, t->ne[1] = 2), "9223372036854775807");
    refused_tensor((t->ne[2] = UINT64_MAX), "dimension 2 is 18446744073709551615");
    refused_tensor((t->ne[0] = 1 << 30, t->ne[1] = 1 << 30, t->ne[2] = 1 << 4), "bytes");
    refused_tensor((t->ne[0] = 1 << 30, t->ne[1] = 1 << 30, t->ne[2] = 1 << 30), "2^63");
    refused_tensor((t->ne[0] = 1 << 20, t->ne[1] = 1 << 20), "truncated");
    refused_tensor(t->ne[0] = 255, "row length 255", "Q4_K", "multiples of 256");
}
END_TEST

START_TEST(A11_dimensions)
{
    refused_tensor(t->ne[1] = 0, "dimension 1 is 0");
    static const uint32_t bad[] = {0, 5, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused_tensor(t->n_dims = bad[i], "dimensions, allowed 1 to 4");
}
END_TEST

START_TEST(A12_tensor_offsets)
{
    struct buf b = image_of(sample());
    size_t at = norm_offset_at(&b);
    uint64_t good;
    memcpy(&good, b.data + at, 8);
    put_u64(&b, at, (b.len + 31) / 32 * 32);
    refused(b.data, b.len, "blk.0.attn_norm.weight", "offset", NULL);
    put_u64(&b, at, (b.len - 200) / 32 * 32);
    refused(b.data, b.len, "blk.0.attn_norm.weight", "truncated", NULL);
    put_u64(&b, at, UINT64_MAX - 31);
    refused(b.data, b.len, "blk.0.attn_norm.weight", "truncated", "needs more than 18446744073709551584", NULL);
    put_u64(&b, at, good + 4);
    refused(b.data, b.len, "blk.0.attn_norm.weight", "multiples of the alignment 32", NULL);
    put_u64(&b, at, 0);
    refused(b.data, b.len, "blk.0.attn_norm.weight", "token_embd.weight", "inside", NULL);
    put_u64(&b, at, good);
    accepted(b.data, b.len);
    buf_free(&b);
}
END_TEST

START_TEST(A13_alignment)
{
    static const struct {
        uint32_t type;
        uint64_t value;
        size_t n;
        const char *piece;
    } bad[] = {
        {T_U32, 0, 4, "powers of two"},           {T_U32, 3, 4, "powers of two"},
        {T_U32, 1u << 31, 4, "powers of two"},    {T_STR, 0, 8, "type string, expected u32"},
        {T_I64, 32, 8, "type i64, expected u32"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ggufw *w = sample();
        ggufw_raw(w, "general.alignment", bad[i].type, &bad[i].value, bad[i].n);
        struct buf b = image_of(w);
        refused(b.data, b.len, "general.alignment", "offset", bad[i].piece, NULL);
        buf_free(&b);
    }
    struct ggufw *w = sample();
    ggufw_u32(w, "general.alignment", 32);
    struct buf b = image_of(w);
    accepted(b.data, b.len);
    buf_free(&b);
}
END_TEST

START_TEST(A14_tensor_type)
{
    static const uint32_t bad[] = {4, 5, 31, 32, 33, 36, 37, 38, 200, 1u << 31};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused_tensor(t->type = bad[i], "is not supported", "Q4_K, Q5_K");
    refused_tensor(t->type = 16, "IQ2_XXS", "is not supported", "Q4_K, Q5_K");
    refused_tensor(t->type = 28, "F64", "is not supported");
}
END_TEST

START_TEST(A15_same_name_twice)
{
    struct ggufw *w = sample();
    ggufw_tensor(w, "token_embd.weight", QTYPE_F32, 64, 1, 1);
    struct buf b = image_of(w);
    refused(b.data, b.len, "two tensors", "token_embd.weight", NULL);
    buf_free(&b);
    b = image_of(sample());
    memcpy(b.data + find_bytes(&b, "an.i32"), "an.f32", 6);
    refused(b.data, b.len, "key an.f32", "two values", NULL);
    buf_free(&b);
}
END_TEST

START_TEST(A15_names_are_text)
{
    struct buf b = image_of(sample());
    size_t key = find_bytes(&b, "an.i32"), name = find_bytes(&b, "token_embd.weight");
    b.data[key] = 0;
    refused(b.data, b.len, "key ?n.i32", "NUL", NULL);
    b.data[key] = (char)0xFF;
    refused(b.data, b.len, "key ?n.i32", "UTF-8", NULL);
    b.data[key] = 'a';
    b.data[name] = 0;
    refused(b.data, b.len, "tensor ?oken_embd.weight", "NUL", NULL);
    buf_free(&b);
}
END_TEST

START_TEST(A18_element_type)
{
    struct ggufw *w = sample();
    static const uint8_t bytes[64];
    ggufw_arr(w, "tokenizer.ggml.scores", T_U8, bytes, 64, 1);
    ggufw_arr(w, "tokenizer.ggml.token_type", T_U8, bytes, 64, 1);
    struct buf b = image_of(w);
    struct err err = {0};
    struct gguf *g = gguf_from_memory(b.data, b.len, &err);
    ck_assert_msg(g != NULL, "%s", err.msg);
    struct gguf_arr a;
    ck_assert(!gguf_arr(g, "tokenizer.ggml.scores", GGUF_F32, &a, &err) && err.code == ERR_MODEL);
    ck_assert(strstr(err.msg, "tokenizer.ggml.scores: type array of u8, expected array of f32"));
    ck_assert(!gguf_arr(g, "tokenizer.ggml.token_type", GGUF_I32, &a, &err) &&
              err.code == ERR_MODEL);
    gguf_close(g);
    buf_free(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf");
    TCase *good = tcase_create("good files"), *bad = tcase_create("hostile files");
    tcase_add_test(good, reads_what_was_written);
    tcase_add_test(good, getters_tell_missing_from_wrong);
    tcase_add_test(good, every_failing_allocation_is_reported);
    tcase_add_test(bad, A01_empty);
    tcase_add_test(bad, A02_wrong_magic);
    tcase_add_test(bad, A03_version);
    tcase_add_test(bad, A04_cut_anywhere);
    tcase_add_test(bad, A04_cut_model);
    tcase_add_test(bad, A05_tensor_count);
    tcase_add_test(bad, A06_key_count);
    tcase_add_test(bad, A07_string_length);
    tcase_add_test(bad, A08_array_length);
    tcase_add_test(bad, A09_value_type);
    tcase_add_test(bad, A10_huge_shapes);
    tcase_add_test(bad, A11_dimensions);
    tcase_add_test(bad, A12_tensor_offsets);
    tcase_add_test(bad, A13_alignment);
    tcase_add_test(bad, A14_tensor_type);
    tcase_add_test(bad, A15_same_name_twice);
    tcase_add_test(bad, A15_names_are_text);
    tcase_add_test(bad, A18_element_type);
    suite_add_tcase(s, good);
    suite_add_tcase(s, bad);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
