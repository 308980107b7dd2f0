/* A vocabulary: token texts to ids (hashed), kinds, SPM priorities, and the bytes each token stands
 * for. Filled once from a GGUF file's tokenizer.ggml.* arrays, then read-only. Private to the tok
 * files. */
#ifndef ENGINE_TEXT_VOCAB_H
#define ENGINE_TEXT_VOCAB_H

#include "engine/gguf.h"

/* The numbers of tokenizer.ggml.token_type. */
enum token_kind {
    TOKEN_UNDEFINED,
    TOKEN_NORMAL,
    TOKEN_UNKNOWN,
    TOKEN_CONTROL,
    TOKEN_USER,
    TOKEN_UNUSED,
    TOKEN_BYTE,
    TOKEN_KIND_N
};

struct vocab {
    int n;
    const struct gguf_str *text; /* (n) as in the file, which owns them */
    uint8_t *kind;               /* (n) enum token_kind */
    uint32_t *order;  /* (n) SPM: the lower, the earlier a pair merges into it; NULL for BPE */
    size_t max_len;   /* of the longest text, bytes; at least 1 */
    size_t max_cover; /* the most bytes of a text that one token takes; at least 1 */
    bool words_apart; /* SPM: no token of plain text has U+2581 behind another character */
    struct vocab_slot *slots; /* open addressing, mask + 1 of them */
    uint32_t mask;
    uint32_t *piece_at; /* (n + 1) offsets into pieces */
    char *pieces;
    int32_t byte_id[256]; /* the token of a lone byte, -1 when the vocabulary has none */
};

/* bpe: pieces are byte-level (GPT-2's printable stand-ins for bytes); else SPM's, and scores are
 * read. */
bool vocab_read(struct vocab *v, const struct gguf *g, bool bpe, struct err *err);
void vocab_free(struct vocab *v);

/* -1 when absent; the first of equal texts. */
int32_t vocab_find(const struct vocab *v, const char *s, size_t n);
/* vocab_find for n <= VOCAB_BLOCK texts at once, their cache misses overlapping. */
#define VOCAB_BLOCK 32
void vocab_find_block(const struct vocab *v, const struct gguf_str *s, size_t n, int32_t *ids);
/* vocab_find, but only tokens that plain text may turn into: never a control, unknown or byte
 * token. */
int32_t vocab_find_plain(const struct vocab *v, const char *s, size_t n);
bool vocab_is_plain(const struct vocab *v, int32_t id);

/* GPT-2's stand-in for a byte, as UTF-8: 1 or 2 bytes; returns how many. */
int vocab_byte_text(uint8_t byte, char out[2]);

#endif
