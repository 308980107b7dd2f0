/* Tokenizers: text to ids and back, from a GGUF file's vocabulary. Byte-level BPE and SentencePiece (SPM) models; pre-tokenizer
 * patterns by the name in tokenizer.ggml.pre (an unknown name is an error, never a guess).
 *
 * A struct tok is immutable after open and may be used from any thread; encoding scratch is per call. Encoding is linear in the
 * input (n log n in the longest word) and does not recurse. Errors: ERR_MODEL at open, ERR_INVALID for bad text, ERR_OOM. */
#ifndef ENGINE_TEXT_TOK_H
#define ENGINE_TEXT_TOK_H

#include "engine/gguf.h"

struct tok;

struct tok *tok_open(const struct gguf *g, struct err *err);    /* keeps pointers into g, which must outlive it */
void tok_close(struct tok *t);

const char *tok_kind(const struct tok *t);      /* the contract's tokenizer_kind: "gguf-bpe", "gguf-spm" */
int tok_n_vocab(const struct tok *t);
int32_t tok_bos(const struct tok *t);           /* -1 when the model has none */
int32_t tok_eos(const struct tok *t);
bool tok_adds_bos(const struct tok *t);
/* Ids that end generation: EOS, EOT, EOM ids of the metadata and the well-known end-of-turn tokens of the vocabulary. */
const int32_t *tok_end_ids(const struct tok *t, int *n);
bool tok_is_special(const struct tok *t, int32_t id);           /* control token: its piece is "" in generated text */
int32_t tok_find(const struct tok *t, const char *piece, size_t n);    /* exact vocabulary entry, -1 when absent */

/* Encodes valid UTF-8. add_special: BOS/EOS as the model's metadata says, also when the text
 * begins with one.
 * parse_special: special tokens in the text are recognised, else they are plain text. *ids is allocated (free()), *n its length.
 * max: stop with ERR_CONTEXT once more than max ids were made (0 = no limit). */
bool tok_encode(const struct tok *t, const char *text, size_t len, bool add_special, bool parse_special, size_t max,
                int32_t **ids, size_t *n, struct err *err);
/* No encoding of the text has fewer tokens. Costs next to nothing: it lets a far too long text be refused unread. */
size_t tok_at_least(const struct tok *t, const char *text, size_t len);

/* The bytes of one token as they appear in generated text (SPM's leading space included; special tokens give their text only
 * when `special` is true, else ""). Bytes, not always whole UTF-8. Points into the tok; ids out of range give "". */
const char *tok_piece(const struct tok *t, int32_t id, bool special, size_t *len);

/* Decodes a sequence as the reference implementations do (SPM: without the space that encoding put in front). Allocated. */
bool tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool special, char **text, size_t *len, struct err *err);

/* Streaming: pieces in, whole UTF-8 characters out; what is incomplete is held back. */
struct tok_stream {
    const struct tok *tok;
    char held[8];
    size_t n_held;
};
void tok_stream_init(struct tok_stream *s, const struct tok *t);
/* Appends the text that became complete to out (base/buf.h); invalid bytes become U+FFFD. */
struct buf;
bool tok_stream_push(struct tok_stream *s, int32_t id, struct buf *out);
bool tok_stream_end(struct tok_stream *s, struct buf *out);     /* what is still held, as U+FFFD */

#endif
