/* The body of struct tok, shared by tok.c (open, encode) and tok_decode.c. Immutable after open. */
#ifndef ENGINE_TEXT_TOK_IMPL_H
#define ENGINE_TEXT_TOK_IMPL_H

#include "engine/text/tok.h"
#include "engine/text/merge.h"
#include "engine/text/pretok.h"
#include "engine/text/special.h"

#define TOK_MAX_ENDS 16 /* the keys and names that tok.c knows are fewer */

struct tok {
    struct vocab vocab;
    bool bpe;
    struct merges merges; /* BPE */
    struct pretok *pre;   /* BPE */
    struct special special;
    int32_t bos, eos, unk; /* -1 = none */
    bool add_bos, add_eos;
    bool space_prefix; /* SPM: a space is put in front of text */
    bool strip_after;  /* white space after special tokens is dropped (phi-3) */
    int32_t ends[TOK_MAX_ENDS];
    int n_ends;
};

#endif
