/* The adapter: one interface to any model of any family on any device. adapter_step is the only way anything is computed;
 * prefill, decode and generate are a few lines over it, used by the tools and the tests.
 *
 * An adapter is used by one thread at a time (the engine thread). Every call on a NULL adapter (no model) fails with
 * ERR_NOT_READY and a message that begins with "MODEL_NOT_LOADED", or returns 0 / "" where it cannot fail. */
#ifndef ENGINE_ADAPTER_H
#define ENGINE_ADAPTER_H

#include "engine/model.h"

#include <stdatomic.h>

struct adapter;

struct adapter_options {
    const struct kern_device *device;
    int device_index;
    int n_ctx;                  /* largest context of one sequence; 0 = the model's own */
    bool n_ctx_given;           /* true: exit instead of lowering it when memory does not allow it */
    int max_seqs;               /* sequences (rows of the page table) */
    int max_rows;               /* rows of one step; 0 = what suits the device */
    int max_logits;             /* rows of one step that want logits; 0 = max(max_seqs, 16) */
    size_t kv_bytes;            /* 0 = a quarter of the available memory, at most what max_seqs * n_ctx needs */
    enum kv_type kv_type;
    int n_threads;
    enum isa isa;
    void (*progress)(void *arg, int percent);    /* while loading; called from the opening thread */
    void *progress_arg;
};

/* Memory by part, in bytes, planned before any of it is taken. */
struct adapter_plan {
    size_t weights, kv, work, total;    /* total = weights + kv + work */
    size_t available;
    size_t kv_page;                     /* bytes of one page (NUM_TILE positions, all layers) */
    int n_pages, n_ctx;                 /* n_ctx as it will be */
};

/* Errors: ERR_DEVICE with required and available bytes. */
bool adapter_plan(const struct model *m, const struct adapter_options *o, struct adapter_plan *plan, struct err *err);

/* Plans, takes the memory, packs the weights. Keeps m, which must outlive it. */
struct adapter *adapter_open(const struct model *m, const struct adapter_options *o, struct err *err);
void adapter_close(struct adapter *a);

const char *adapter_model_type(const struct adapter *a);
int adapter_vocab_size(const struct adapter *a);
int adapter_hidden_dim(const struct adapter *a);
int adapter_num_layers(const struct adapter *a);
int adapter_n_ctx(const struct adapter *a);
int adapter_n_pages(const struct adapter *a);
int adapter_max_rows(const struct adapter *a);
int adapter_max_seqs(const struct adapter *a);
int adapter_max_logits(const struct adapter *a);
size_t adapter_memory_usage(const struct adapter *a);     /* weights + KV + work, on any device */
size_t adapter_vram_usage(const struct adapter *a);       /* the same on CUDA; 0 on the CPU */
const struct adapter_plan *adapter_planned(const struct adapter *a);
void adapter_describe(const struct adapter *a, char *out, size_t size);
void adapter_facts(const struct adapter *a, struct kern_facts *out);    /* all 0 when there is no card */

/* False, with the reason (ERR_CUDA): the weights are no longer in the device's memory. Waits for nothing that runs there. */
bool adapter_resident(struct adapter *a, struct err *err);

/* Page table row of a sequence: the caller writes page numbers 0..n_pages-1 for positions in units of NUM_TILE before it
 * steps rows that need them. Room for n_ctx / NUM_TILE pages, rounded up. */
int32_t *adapter_pages(struct adapter *a, int seq);

/* Results of a step: logits of the rows that wanted them, in row order, valid until the next step. */
struct step_out {
    int n_logits;
    const float **logits;       /* n_logits pointers to n_vocab floats (NULL: a token was drawn); owned by the adapter */
    const int32_t *tokens;      /* (n_logits): drawn by the device; -1 = none, draw from the logits;
                                 * DRAW_NOTHING = there was none to draw */
};

/* Computes rows (1..max_rows; see struct row). When *stop becomes true the step is abandoned at the next phase boundary:
 * false, ERR_CANCELLED; the KV written so far is harmless. stop may be NULL. Other errors: ERR_INVALID for rows that
 * break the rules (a bug of the caller), ERR_CUDA. */
bool adapter_step(struct adapter *a, const struct row *rows, int n_rows, struct step_out *out, const atomic_bool *stop,
                  struct err *err);

/* The same, with a draw for each row that wants logits: whose `here` is set get a token instead, if the device can draw
 * (adapter_draws); draws may be NULL. */
bool adapter_step_draw(struct adapter *a, const struct row *rows, int n_rows, const struct draw *draws, struct step_out *out,
                       const atomic_bool *stop, struct err *err);
bool adapter_draws(const struct adapter *a);

/* Over adapter_step, for tools and tests; sequence seq's pages are assigned here (seq * pages per sequence onwards). */
bool adapter_prefill(struct adapter *a, int seq, int pos, const int32_t *tokens, int n, const float **last_logits,
                     struct err *err);
bool adapter_decode(struct adapter *a, int seq, int pos, int32_t token, const float **logits, struct err *err);
/* Generates up to n tokens after the prompt with params (NULL = greedy); writes the ids and returns how many, -1 on error. */
struct sample_params;
int adapter_generate(struct adapter *a, const int32_t *prompt, int n_prompt, const struct sample_params *params,
                     int32_t *out, int n, struct err *err);

#endif
