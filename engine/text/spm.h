/* SentencePiece's unigram-scored merging, as the Llama and Gemma vocabularies use it: neighbours become the piece with the
 * best score until none fits; what is no piece falls back to byte tokens. */
#ifndef ENGINE_TEXT_SPM_H
#define ENGINE_TEXT_SPM_H

#include "engine/text/ids.h"
#include "engine/text/vocab.h"

struct spm {
    const struct vocab *vocab;
    int32_t byte_id[256];    /* "<0x0A>" tokens, else the byte itself as a piece, else -1 */
};

void spm_init(struct spm *s, const struct vocab *v);

/* prefix: a space goes in front. Spaces become U+2581. */
bool spm_encode(const struct spm *s, const char *text, size_t len, bool prefix, struct ids *out, struct err *err);

#endif
