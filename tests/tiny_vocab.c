/* A generated vocabulary: bytes and letters, the prefixes of frequent English pieces (so that text
 * becomes longer tokens by real merges), syllables until it is full, and the special tokens of its
 * family. */
#include "tests/tiny_vocab.h"

#include "base/mem.h"
#include "base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GGUF's numbers. */
enum token_type { TOKEN_NORMAL = 1, TOKEN_UNKNOWN = 2, TOKEN_CONTROL = 3, TOKEN_BYTE = 6 };
enum { TYPE_I32 = 5, TYPE_F32 = 6 };
enum { TOKEN_MAX = 64 }; /* bytes of the longest token */

/* clang-format off */
static const struct family {
    const char *model, *pre;
    const char *bos, *eos;
    bool spm, specials_first, add_bos;
    const char *specials[12];
} families[] = {
    [TINY_LLAMA3] = {"gpt2", "llama-bpe", "<|begin_of_text|>", "<|end_of_text|>", false, false, true,
        {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"}},
    [TINY_QWEN2] = {"gpt2", "qwen2", "<|endoftext|>", "<|im_end|>", false, false, false,
        {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}},
    [TINY_SMOLLM] = {"gpt2", "smollm", "<|im_start|>", "<|im_end|>", false, true, false,
        {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"}},
    [TINY_GPT_OSS] = {"gpt2", "gpt-4o", "<|startoftext|>", "<|return|>", false, false, false,
        {"<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
         "<|start|>", "<|end|>", "<|message|>", "<|call|>"}},
    [TINY_LLAMA2] = {"llama", "default", "<s>", "</s>", true, true, true,
        {"<unk>", "<s>", "</s>"}},
    [TINY_PHI3] = {"llama", "default", "<s>", "<|endoftext|>", true, true, true,
        {"<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>",
         "<|user|>"}},
    [TINY_GEMMA] = {"llama", "default", "<bos>", "<eos>", true, true, true,
        {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}},
};
/* clang-format on */

static const char *const pieces[] = {
    " the",   " of",       " and",   " to",       " in",     " is",    " that",  " for",    " it",
    " was",   " with",     " you",   " are",      " this",   " not",   " have",  " be",     " from",
    " or",    " one",      " by",    " what",     " all",    " were",  " we",    " when",   " your",
    " can",   " said",     " there", " use",      " each",   " which", " how",   " their",  " will",
    " other", " about",    " out",   " many",     " then",   " them",  " these", " some",   " her",
    " would", " make",     " like",  " him",      " into",   " time",  " has",   " look",   " two",
    " more",  " write",    " go",    " see",      " number", " way",   " could", " people", " than",
    " first", " water",    " been",  " called",   " who",    " now",   " find",  " long",   " down",
    " day",   " did",      " get",   " come",     " made",   " may",   " part",  "ing",     "er",
    "tion",   "ed",        "es",     "The",       "Hello",   " world", " a",     " I",      "user",
    "system", "assistant", "\n\n",   "  ",        "    ",    " -",     ".\n",    ", ",      "{\"",
    "\":",    "\",",       "return", " function",
};

/* The tokens so far, and a hash of their texts so that none comes twice. */
struct vocab {
    const struct family *f;
    struct buf tokens, merges;
    int32_t *types;
    float *scores;
    uint32_t *offsets; /* of each text in tokens.data */
    uint32_t *slots;   /* id + 1 */
    size_t n_slots;
    int n, max, n_merges;
    int bos, eos, unk;
};

static uint32_t *find_slot(const struct vocab *v, const char *s, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    for (size_t i = h % v->n_slots;; i = (i + 1) % v->n_slots) {
        uint32_t *slot = &v->slots[i];
        if (*slot == 0)
            return slot;
        const char *text = v->tokens.data + v->offsets[*slot - 1];
        uint64_t len;
        memcpy(&len, text - 8, 8);
        if (len == n && memcmp(text, s, n) == 0)
            return slot;
    }
}

/* False when the vocabulary is full or has the token already. */
static bool add(struct vocab *v, const char *s, size_t n, enum token_type type)
{
    if (v->n == v->max)
        return false;
    uint32_t *slot = find_slot(v, s, n);
    if (*slot != 0)
        return false;
    v->offsets[v->n] = (uint32_t)v->tokens.len + 8;
    v->types[v->n] = (int32_t)type;
    v->scores[v->n] = type == TOKEN_NORMAL ? -(float)v->n : 0.0f; /* earlier pieces merge first */
    ggufw_put_str(&v->tokens, s, n);
    if (v->tokens.failed)
        return false;
    *slot = (uint32_t)++v->n;
    return true;
}

static void add_specials(struct vocab *v)
{
    for (int i = 0; i < 12 && v->f->specials[i] != NULL; i++) {
        const char *s = v->f->specials[i];
        bool unk = strcmp(s, "<unk>") == 0;
        if (strcmp(s, v->f->bos) == 0)
            v->bos = v->n;
        if (strcmp(s, v->f->eos) == 0)
            v->eos = v->n;
        if (unk)
            v->unk = v->n;
        add(v, s, strlen(s), unk ? TOKEN_UNKNOWN : TOKEN_CONTROL);
    }
}

/* The character that stands for a byte in a byte-level vocabulary (the GPT-2 table). */
static int byte_char(unsigned char byte, char out[4])
{
    bool self = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    uint32_t cp = byte;
    if (!self) /* the others are numbered from 256 on, in order */
        cp = 256u + (byte <= 32 ? byte : byte == 173 ? 67u : byte - 94u);
    return utf8_encode(cp, out);
}

static void add_bytes(struct vocab *v)
{
    for (int byte = 0; byte < 256; byte++) {
        char s[8];
        if (v->f->spm) {
            snprintf(s, sizeof s, "<0x%02X>", byte);
            add(v, s, 6, TOKEN_BYTE);
        } else {
            add(v, s, (size_t)byte_char((unsigned char)byte, s), TOKEN_NORMAL);
        }
    }
}

/* The text of a piece in the vocabulary's alphabet; its length. */
static size_t spell(const struct vocab *v, const char *piece, char out[TOKEN_MAX])
{
    size_t n = 0;
    for (; *piece != 0 && n + 4 < TOKEN_MAX; piece++) {
        if (!v->f->spm) {
            n += (size_t)byte_char((unsigned char)*piece, out + n);
        } else if (*piece == ' ') {
            memcpy(out + n, "\xE2\x96\x81", 3);
            n += 3;
        } else {
            out[n++] = *piece;
        }
    }
    return n;
}

/* Adds the token a + b that lies in s, with its merge. */
static void add_pair(struct vocab *v, const char *s, size_t a, size_t b)
{
    if (!add(v, s, a + b, TOKEN_NORMAL) || v->f->spm)
        return;
    char merge[TOKEN_MAX + 1];
    memcpy(merge, s, a);
    merge[a] = ' ';
    memcpy(merge + a + 1, s + a, b);
    ggufw_put_str(&v->merges, merge, a + 1 + b);
    v->n_merges++;
}

static void add_pieces(struct vocab *v)
{
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        char s[TOKEN_MAX];
        size_t n = spell(v, pieces[i], s), at = 0;
        while (at < n) { /* every prefix is a token, so the merges lead from one to the next */
            uint32_t cp;
            size_t k = (size_t)utf8_decode(s + at, n - at, &cp);
            if (at > 0)
                add_pair(v, s, at, k);
            at += k;
        }
    }
}

/* Two, three and four letters: half a million, more than any vocabulary needs. */
static void add_syllables(struct vocab *v)
{
    for (size_t len = 2; len <= 4 && v->n < v->max; len++) {
        size_t count = len == 2 ? 676 : len == 3 ? 17576 : 456976;
        for (size_t i = 0; i < count && v->n < v->max; i++) {
            char s[4];
            for (size_t k = 0, x = i; k < len; k++, x /= 26)
                s[len - 1 - k] = (char)('a' + x % 26);
            add_pair(v, s, len - 1, 1);
        }
    }
}

static void add_letters(struct vocab *v)
{
    add(v, "\xE2\x96\x81", 3, TOKEN_NORMAL);
    for (char c = '!'; c <= '~'; c++)
        add(v, &c, 1, TOKEN_NORMAL);
}

static void fill(struct vocab *v, int n_vocab)
{
    int n_specials = 0;
    while (n_specials < 12 && v->f->specials[n_specials] != NULL)
        n_specials++;
    v->max = n_vocab;
    if (v->f->specials_first)
        add_specials(v);
    add_bytes(v);
    if (v->f->spm)
        add_letters(v);
    if (!v->f->specials_first)
        v->max -= n_specials;
    add_pieces(v);
    add_syllables(v);
    v->max = n_vocab;
    if (!v->f->specials_first)
        add_specials(v);
}

static void write_keys(const struct vocab *v, struct ggufw *w)
{
    const struct family *f = v->f;
    size_t n = (size_t)v->n;
    ggufw_str(w, "tokenizer.ggml.model", f->model);
    ggufw_str(w, "tokenizer.ggml.pre", f->pre);
    ggufw_strs(w, "tokenizer.ggml.tokens", &v->tokens, n);
    if (f->spm)
        ggufw_arr(w, "tokenizer.ggml.scores", TYPE_F32, v->scores, n, 4);
    ggufw_arr(w, "tokenizer.ggml.token_type", TYPE_I32, v->types, n, 4);
    if (!f->spm)
        ggufw_strs(w, "tokenizer.ggml.merges", &v->merges, (size_t)v->n_merges);
    ggufw_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    ggufw_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    if (f->spm)
        ggufw_u32(w, "tokenizer.ggml.unknown_token_id", (uint32_t)v->unk);
    ggufw_bool(w, "tokenizer.ggml.add_bos_token", f->add_bos);
}

bool tiny_vocab(struct ggufw *w, enum tiny_vocab kind, int n_vocab, struct err *err)
{
    if (n_vocab < TINY_VOCAB_MIN || n_vocab > 400000)
        return err_set(err, ERR_USAGE, "vocabulary of %d tokens, allowed %d to 400000", n_vocab,
                       TINY_VOCAB_MIN);
    size_t n = (size_t)n_vocab;
    struct vocab v = {.f = &families[kind], .n_slots = 2 * n + 1};
    v.types = mem_alloc(n, sizeof *v.types);
    v.scores = mem_alloc(n, sizeof *v.scores);
    v.offsets = mem_alloc(n, sizeof *v.offsets);
    v.slots = mem_alloc(v.n_slots, sizeof *v.slots);
    bool ok = v.types != NULL && v.scores != NULL && v.offsets != NULL && v.slots != NULL;
    if (ok) {
        fill(&v, n_vocab);
        ok = v.n == n_vocab;
        write_keys(&v, w);
    }
    if (!ok)
        err_set(err, ERR_INTERNAL, "no memory for a vocabulary of %d tokens", n_vocab);
    free(v.types);
    free(v.scores);
    free(v.offsets);
    free(v.slots);
    buf_free(&v.tokens);
    buf_free(&v.merges);
    return ok;
}
