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

/* What encoding adds around the text: BOS and EOS, where the model's metadata says so. */
enum tok_add {
    TOK_ADD_NONE = 0,
    TOK_ADD_ONCE = 1,      /* no BOS when the parsed text already begins with it: for prompts */
    TOK_ADD_ALWAYS = 2,    /* BOS even then: what the reference implementations' add_special does */
};

/* Encodes valid UTF-8. parse_special: special tokens in the text are recognised, else they are plain text (user-defined
 * tokens always are recognised). *ids is allocated (free()), *n its length.
 * max: stop with ERR_CONTEXT once more than max ids were made (0 = no limit). */
bool tok_encode(const struct tok *t, const char *text, size_t len, enum tok_add add, bool parse_special, size_t max,
                int32_t **ids, size_t *n, struct err *err);
/* No encoding of the text has fewer tokens. Costs next to nothing: it lets a far too long text be refused unread. */
size_t tok_at_least(const struct tok *t, const char *text, size_t len);

/* The bytes of one token as they appear in generated text (SPM's leading space included; special tokens give their text only
 * when `special` is true, else ""). Bytes, not always whole UTF-8. Points into the tok; ids out of range give "". */
const char *tok_piece(const struct tok *t, int32_t id, bool special, size_t *len);

/* Decodes a sequence as the reference implementations do (SPM: without the space that encoding put in front). Allocated. */
bool tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool special, char **text, size_t *len, struct err *err);

/* What the reference decoders of some models then do to a text of *len bytes, in place: they drop the space before . , ? ! and
 * 's 'm 're 've, and both around a lone apostrophe. For comparing with them only: it changes the text. */
void tok_tidy(const struct tok *t, char *text, size_t *len);

/* Streaming: pieces in, whole UTF-8 characters out; what is incomplete is held back. */
struct tok_stream {
    const struct tok *tok;
    char held[8];
    size_t n_held;
};
void tok_stream_init(struct tok_stream *s, const struct tok *t);
/* Appends the text that became complete to out (base/buf.h). Invalid bytes become U+FFFD: one for each beginning of a character
 * that breaks off, one for each byte that cannot begin one. */
struct buf;
bool tok_stream_push(struct tok_stream *s, int32_t id, struct buf *out);
bool tok_stream_end(struct tok_stream *s, struct buf *out);     /* what is still held, as U+FFFD */

#endif
