/* Byte-level BPE (GPT-2's kind): words by a pre-tokenizer, bytes as printable characters, pairs merged by rank. */
#ifndef ENGINE_TEXT_BPE_H
#define ENGINE_TEXT_BPE_H

#include "engine/text/ids.h"
#include "engine/text/pretok.h"
#include "engine/text/vocab.h"

struct bpe;

struct bpe *bpe_open(const struct vocab *v, const struct gguf *g, struct pretok_rules *rules, struct err *err);
void bpe_close(struct bpe *b);
bool bpe_encode(const struct bpe *b, const char *text, size_t len, struct ids *out, struct err *err);

/* The bytes that a piece of printable characters stands for; returns their number (at most the piece's length). Characters
 * outside the alphabet stand for themselves. */
size_t bpe_bytes(const struct gguf_str *piece, char *out);

#endif
