/* Private to tests/tiny*.c: generated vocabularies of any size, written as tokenizer.ggml.* keys.
 */
#ifndef TESTS_TINY_VOCAB_H
#define TESTS_TINY_VOCAB_H

#include "base/err.h"
#include "tests/ggufw.h"

/* Which vocabulary: the algorithm, the name of its pre-tokenizer and its special tokens. */
enum tiny_vocab {
    TINY_LLAMA3,
    TINY_QWEN2,
    TINY_SMOLLM,
    TINY_GPT_OSS,
    TINY_LLAMA2,
    TINY_PHI3,
    TINY_GEMMA
};

/* The smallest vocabulary that holds all bytes, letters and special tokens fits in this. */
enum { TINY_VOCAB_MIN = 384 };

bool tiny_vocab(struct ggufw *w, enum tiny_vocab kind, int n_vocab, struct err *err);

#endif
