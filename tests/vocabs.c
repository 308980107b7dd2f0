#include "tests/vocabs.h"
#include "base/buf.h"

#include <check.h>
#include <stdio.h>

const char *const vocab_names[N_VOCABS] = {"qwen2", "llama-bpe", "smollm2", "llama-spm", "phi-3"};

void vocab_file_open(struct vocab_file *v, const char *name)
{
    char command[128], chunk[65536];
    struct buf b = {0};
    struct err err = {0};
    snprintf(command, sizeof command, "gzip -dc tests/data/tok/%s.gguf.gz", name);
    FILE *f = popen(command, "r");
    ck_assert(f != NULL);
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        buf_add(&b, chunk, n);
    ck_assert_int_eq(pclose(f), 0);
    *v = (struct vocab_file){.image = b.data, .size = b.len};
    v->gguf = gguf_from_memory(v->image, v->size, &err);
    ck_assert_msg(v->gguf != NULL, "%s: %s", name, err.msg);
    v->tok = tok_open(v->gguf, &err);
    ck_assert_msg(v->tok != NULL, "%s: %s", name, err.msg);
}

void vocab_file_close(struct vocab_file *v)
{
    struct buf b = {.data = v->image};
    tok_close(v->tok);
    gguf_close(v->gguf);
    buf_free(&b);
}
