/* gguf: what concerns files rather than bytes: mapping, shards, paths, and files larger than what
 * they hold. */
#define _GNU_SOURCE
#include "engine/gguf.h"
#include "tests/ggufw.h"
#include "tests/tiny.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { T_U16 = 2 }; /* GGUF's number */

static char dir[64];

static void make_dir(void)
{
    snprintf(dir, sizeof dir, "/tmp/test_gguf.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    ck_assert_int_eq(system(command), 0);
}

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static const char *save(const char *name, const struct buf *b)
{
    const char *path = path_of(name);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(b->data, 1, b->len, f), b->len);
    ck_assert_int_eq(fclose(f), 0);
    return path;
}

static void refused_file(const char *path, enum err_code code, const char *piece)
{
    struct err err = {0};
    struct gguf *g = gguf_open(path, &err);
    ck_assert_msg(g == NULL, "accepted %s", path);
    ck_assert_msg(err.code == code, "code %d: %s", err.code, err.msg);
    ck_assert_msg(strstr(err.msg, piece) != NULL, "\"%s\" not in: %s", piece, err.msg);
}

/* The caps must refuse by comparison: see test_gguf.c. */
static void little_memory(void)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    struct rlimit limit = {256u << 20, 256u << 20};
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &limit), 0);
#endif
}

/* A model of one tensor. */
static void save_sample(const char *name)
{
    struct ggufw *w = ggufw_open();
    ck_assert_ptr_nonnull(w);
    ggufw_str(w, "general.architecture", "llama");
    ggufw_tensor(w, "token_embd.weight", QTYPE_Q8_0, 64, 5, 1);
    struct buf b = {0};
    ck_assert(ggufw_image(w, &b));
    save(name, &b);
    buf_free(&b);
    ggufw_close(w);
}

START_TEST(reads_every_tiny_model)
{
    make_dir();
    for (int i = 0; i < 12; i++) {
        struct tiny_spec spec;
        struct err err = {0};
        struct gguf_arr a;
        ck_assert(tiny_preset(tiny_preset_name(i), "Q4_K_M", &spec, &err));
        ck_assert_msg(tiny_write(&spec, path_of("m.gguf"), &err), "%s", err.msg);
        struct gguf *g = gguf_open(path_of("m.gguf"), &err);
        ck_assert_msg(g != NULL, "%s", err.msg);
        ck_assert_str_eq(gguf_path(g), path_of("m.gguf"));
        ck_assert(gguf_arr(g, "tokenizer.ggml.tokens", GGUF_STRING, &a, &err));
        ck_assert_uint_eq(a.n, (size_t)spec.n_vocab);
        ck_assert_ptr_nonnull(gguf_tensor(g, "token_embd.weight"));
        gguf_close(g);
    }
    remove_dir();
}
END_TEST

/* After gguf_drop_data the file may be cut: metadata stays as it was. Before it, a cut file would
 * end the process. */
START_TEST(drop_data_detaches_the_file)
{
    make_dir();
    save_sample("m.gguf");
    struct err err = {0};
    struct gguf_str s;
    struct gguf *g = gguf_open(path_of("m.gguf"), &err);
    ck_assert_msg(g != NULL, "%s", err.msg);
    ck_assert(gguf_str(g, "general.architecture", &s, &err));
    gguf_prefetch(g);
    gguf_drop_data(g);
    ck_assert_int_eq(truncate(path_of("m.gguf"), 0), 0);
    ck_assert(memcmp(s.s, "llama", 5) == 0);
    ck_assert(gguf_has(g, "general.architecture"));
    gguf_close(g);
    remove_dir();
}
END_TEST

/* A file that has room for what it claims: the named caps refuse it, without memory for it. */
START_TEST(A05_A06_caps)
{
    make_dir();
    little_memory();
    struct buf b = {0};
    buf_add(&b, "GGUF\3\0\0\0", 8);
    buf_add(&b, (uint64_t[]){0, 1u << 20}, 16);
    const char *path = save("m.gguf", &b);
    ck_assert_int_eq(truncate(path, 100 << 20), 0); /* sparse */
    refused_file(path, ERR_MODEL, "metadata_kv_count 1048576, allowed at most 65536");
    memcpy(b.data + 8, (uint64_t[]){1 << 20}, 8);
    path = save("m.gguf", &b);
    ck_assert_int_eq(truncate(path, 100 << 20), 0);
    refused_file(path, ERR_MODEL, "tensor_count 1048576, allowed at most 65536");
    b.len = 8;
    buf_add(&b, (uint64_t[]){0, 1, 1}, 24);
    buf_add(&b, "k\x09\0\0\0\x08\0\0\0", 9);
    buf_add(&b, (uint64_t[]){10 << 20}, 8);
    path = save("m.gguf", &b);
    ck_assert_int_eq(truncate(path, 100 << 20), 0);
    refused_file(path, ERR_MODEL, "array of 10485760 strings");
    buf_free(&b);
    remove_dir();
}
END_TEST

/* ---- split models ---- */

struct shard {
    int no, count, n_tensors;
    const char *arch, *tensor;
};

static void save_shard(const char *name, const struct shard *s)
{
    struct ggufw *w = ggufw_open();
    ggufw_str(w, "general.architecture", s->arch);
    ggufw_raw(w, "split.no", T_U16, (uint16_t[]){(uint16_t)s->no}, 2);
    ggufw_raw(w, "split.count", T_U16, (uint16_t[]){(uint16_t)s->count}, 2);
    ggufw_i32(w, "split.tensors.count", s->n_tensors);
    ggufw_tensor(w, s->tensor, QTYPE_F32, 64, 1, 1);
    struct buf b = {0};
    ck_assert(ggufw_image(w, &b));
    ggufw_close(w);
    save(name, &b);
    buf_free(&b);
}

START_TEST(opens_all_shards)
{
    make_dir();
    save_shard("m-00001-of-00003.gguf", &(struct shard){0, 3, 3, "llama", "one"});
    save_shard("m-00002-of-00003.gguf", &(struct shard){1, 3, 3, "llama", "two"});
    save_shard("m-00003-of-00003.gguf", &(struct shard){2, 3, 3, "llama", "three"});
    struct err err = {0};
    struct gguf *g = gguf_open(path_of("m-00001-of-00003.gguf"), &err);
    ck_assert_msg(g != NULL, "%s", err.msg);
    ck_assert_uint_eq(gguf_n_tensors(g), 3);
    ck_assert_str_eq(gguf_tensor_at(g, 2)->name, "three");
    const struct gguf_tensor *t = gguf_tensor(g, "two");
    ck_assert(t == gguf_tensor_at(g, 1) && ((const uint8_t *)t->data)[255] == 1);
    gguf_drop_data(g);
    ck_assert_str_eq(t->name, "two");
    gguf_close(g);
    remove_dir();
}
END_TEST

START_TEST(A21_split)
{
    make_dir();
    const char *first = "m-00001-of-00002.gguf", *second = "m-00002-of-00002.gguf";
    save_shard(first, &(struct shard){0, 2, 2, "llama", "one"});
    refused_file(path_of(first), ERR_NO_MODEL, "m-00002-of-00002.gguf");
    static const struct {
        struct shard shard;
        const char *piece;
    } bad[] = {
        {{1, 2, 7, "llama", "two"}, "a model with 7 tensors"},
        {{0, 2, 2, "llama", "two"}, "shard 1 of 2"},
        {{1, 3, 2, "llama", "two"}, "shard 2 of 3"},
        {{1, 2, 2, "qwen2", "two"}, "another architecture"},
        {{1, 2, 2, "llama", "one"}, "two tensors named one"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        save_shard(second, &bad[i].shard);
        refused_file(path_of(first), ERR_MODEL, bad[i].piece);
        refused_file(path_of(first), ERR_MODEL, second);
    }
    save_shard(first, &(struct shard){0, 2, 3, "llama", "one"});
    save_shard(second, &(struct shard){1, 2, 3, "llama", "two"});
    refused_file(path_of(first), ERR_MODEL, "have 2 tensors, expected 3");
    refused_file(path_of(second), ERR_MODEL, "expected the first one");
    save_shard(first, &(struct shard){0, 65535, 2, "llama", "one"});
    refused_file(path_of(first), ERR_MODEL, "split.count is 65535");
    save_shard("m.gguf", &(struct shard){0, 2, 2, "llama", "one"});
    refused_file(path_of("m.gguf"), ERR_MODEL, "-00001-of-00002.gguf");
    remove_dir();
}
END_TEST

/* llama-gguf-split --merge sets the count to 0 and keeps the other keys. */
START_TEST(opens_merged_shards)
{
    make_dir();
    save_shard("m.gguf", &(struct shard){0, 0, 2, "llama", "one"});
    struct err err = {0};
    struct gguf *g = gguf_open(path_of("m.gguf"), &err);
    ck_assert_msg(g != NULL, "%s", err.msg);
    ck_assert_uint_eq(gguf_n_tensors(g), 1);
    gguf_close(g);
    remove_dir();
}
END_TEST

START_TEST(A01_empty_file)
{
    make_dir();
    struct buf empty = {0};
    ck_assert(buf_puts(&empty, ""));
    refused_file(save("m.gguf", &empty), ERR_MODEL, "m.gguf: empty file");
    buf_free(&empty);
    remove_dir();
}
END_TEST

START_TEST(A22_not_a_file)
{
    make_dir();
    refused_file(dir, ERR_NO_MODEL, "directory");
    ck_assert_int_eq(mkfifo(path_of("fifo"), 0600), 0);
    refused_file(path_of("fifo"), ERR_NO_MODEL, "FIFO");
    refused_file("/dev/zero", ERR_NO_MODEL, "device");
    ck_assert_int_eq(symlink("nowhere", path_of("link")), 0);
    refused_file(path_of("link"), ERR_NO_MODEL, "does not exist");
    refused_file(path_of("absent.gguf"), ERR_NO_MODEL, "absent.gguf: No such file");
    refused_file("", ERR_NO_MODEL, "No such file");
    save_sample("secret.gguf");
    ck_assert_int_eq(chmod(path_of("secret.gguf"), 0), 0);
    if (geteuid() == 0) { /* root reads everything */
        ck_assert_int_eq(chmod(dir, 0755), 0);
        ck_assert_int_eq(seteuid(65534), 0);
        refused_file(path_of("secret.gguf"), ERR_NO_MODEL, "Permission denied");
        ck_assert_int_eq(seteuid(0), 0);
    } else {
        refused_file(path_of("secret.gguf"), ERR_NO_MODEL, "Permission denied");
    }
    remove_dir();
}
END_TEST

/* Messages go into JSON: whatever the path is, they are valid text and say what is wrong. */
START_TEST(messages_survive_any_path)
{
    char path[3000];
    memset(path, 'x', sizeof path);
    memcpy(path, "/tmp/\xff\n", 7);
    memcpy(path + sizeof path - 12, "/model.gguf", 12);
    struct err err = {0};
    ck_assert_ptr_null(gguf_open(path, &err));
    ck_assert(strlen(err.msg) < 300 && strstr(err.msg, "model.gguf: "));
    ck_assert_ptr_null(gguf_open("/tmp/\xff\nmodel.gguf", &err));
    ck_assert_str_eq(err.msg, "/tmp/??model.gguf: No such file or directory");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf_files");
    TCase *tc = tcase_create("files");
    tcase_add_test(tc, reads_every_tiny_model);
    tcase_add_test(tc, drop_data_detaches_the_file);
    tcase_add_test(tc, opens_all_shards);
    tcase_add_test(tc, opens_merged_shards);
    tcase_add_test(tc, A01_empty_file);
    tcase_add_test(tc, A05_A06_caps);
    tcase_add_test(tc, A21_split);
    tcase_add_test(tc, A22_not_a_file);
    tcase_add_test(tc, messages_survive_any_path);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
