/* A vocabulary as tokenizers use it: pieces, types, scores, and the id of a piece by hash. Immutable after open. */
#ifndef ENGINE_TEXT_VOCAB_H
#define ENGINE_TEXT_VOCAB_H

#include "engine/gguf.h"

enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNUSED, TOKEN_BYTE };

struct vocab {
    int n;
    const struct gguf_str *piece;   /* (n), as in the file */
    uint8_t *type;                  /* (n), enum token_type */
    struct gguf_arr scores;         /* n floats, or none */
    uint32_t *slots;                /* open addressing: id + 1, 0 = empty */
    uint32_t mask;
};

bool vocab_open(struct vocab *v, const struct gguf *g, struct err *err);
void vocab_close(struct vocab *v);

int32_t vocab_find(const struct vocab *v, const char *s, size_t n);    /* -1 when absent; the last of equal pieces */
float vocab_score(const struct vocab *v, int32_t id);                  /* 0 without scores */

#endif
