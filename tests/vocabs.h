/* The published vocabularies of tests/data/tok, unpacked and opened. */
#ifndef TESTS_VOCABS_H
#define TESTS_VOCABS_H

#include "engine/text/tok.h"

enum { N_VOCABS = 5 };
extern const char *const vocab_names[N_VOCABS];

struct vocab_file {
    char *image;
    size_t size;
    struct gguf *gguf;
    struct tok *tok;
};

/* Fails the test when it cannot. */
void vocab_file_open(struct vocab_file *v, const char *name);
void vocab_file_close(struct vocab_file *v);

#endif
