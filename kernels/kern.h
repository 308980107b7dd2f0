/* The seam between the engine and a device: one entry per phase of a layer, plus memory and step begin/end.
 *
 * A phase ends where every row needs the result of the one before; it fuses all operators up to there. The seam fixes
 * values and their order (numerics.h), not launches: a device may split a phase or join several.
 *
 * A step computes n_rows rows; prompt, decode and draft rows are the same thing. The residual stream x (n_rows, dim),
 * the pending branch y (n_rows, dim), attention inputs and outputs live inside the device. A branch is left *pending* by
 * attn_out and ffn_out; the phase that comes next adds it (x += norm(y)), so that a post-norm costs no extra barrier.
 *
 * Threads: only the engine thread calls these. Everything is allocated by open; a step allocates nothing. */
#ifndef KERNELS_KERN_H
#define KERNELS_KERN_H

#include "base/err.h"
#include "kernels/numerics.h"
#include "kernels/qtype.h"

#include <stddef.h>
#include <stdint.h>

struct kern;    /* an open device: first member is `const struct kern_device *dev` in every implementation */

enum kv_type { KV_F16, KV_Q8_0, KV_F32, KV_TYPE_N };

/* Which instructions the CPU device may use; for tests (same bytes on all). ISA_BEST in production. */
enum isa { ISA_BEST, ISA_SCALAR, ISA_AVX2, ISA_AVX_VNNI, ISA_AVX512, ISA_AVX512_VNNI, ISA_N };

/* One rope table set: pairs i < n_rot/2 turn by pos * inv_freq[i]; sine and cosine are scaled by mscale. */
struct rope {
    double *inv_freq;   /* (n_rot / 2), owned by the model */
    double mscale;
    int n_rot;          /* dimensions that rotate, even, <= head_dim */
    bool neox;          /* pairs (i, i + n_rot/2); else (2i, 2i + 1) */
};
enum { ROPE_MAX = 2 };

enum ffn_act { ACT_SILU, ACT_GELU, ACT_SWIGLU_CLAMPED };

/* What a device must know to allocate: the model's shape and the largest step. */
struct kern_config {
    int n_layer, dim, n_head, n_kv_head, head_dim, n_vocab;
    int n_ff;                   /* widest FFN row (of one expert in a MoE) */
    int n_expert, n_expert_used;/* 0 when dense */
    float norm_eps;
    enum ffn_act act;
    float embed_scale;          /* 1 except gemma */
    float attn_scale;           /* q is multiplied by it after rope: 1/sqrt(head_dim) but for Gemma 3 27B */
    struct rope rope[ROPE_MAX];
    int n_rope;
    int max_rows;               /* rows of one step */
    int max_logits;             /* rows of one step that want logits */
    int n_pages;                /* KV pages of NUM_TILE positions, each for all layers */
    enum kv_type kv_type;
    size_t weight_bytes;        /* sum of mat_bytes and vector bytes to be loaded */
    int n_threads;              /* CPU: worker threads, the caller's included; 0 = physical cores */
    enum isa isa;
    int device_index;           /* CUDA */
};

/* A matrix in the device's packed layout. rows = outputs, cols = inputs. */
struct mat {
    enum qtype type;
    int rows, cols;
    int n_mat;                  /* matrices stacked (experts); 1 when plain */
    void *data;                 /* device memory; NULL = absent */
    size_t bytes;
};

/* Vectors (norms, biases, sinks) are float32 in device memory; NULL = absent. */
struct attn_in_params {
    const float *pending_norm;  /* (dim) post-norm of the branch that is added first; NULL = plain add */
    bool has_pending;           /* false in the first layer */
    const float *norm;          /* (dim) */
    struct mat q, k, v;         /* (n_head|n_kv_head * head_dim, dim) */
    const float *q_bias, *k_bias, *v_bias;
    const float *q_norm, *k_norm; /* (head_dim), per head, before rope */
    int rope;                   /* index into config.rope */
};
struct attn_params {
    int window;                 /* keys visible, the row itself included; 0 = all */
    const float *sinks;         /* (n_head) extra logits that take weight and give nothing */
};
struct attn_out_params {
    struct mat o;               /* (dim, n_head * head_dim) */
    const float *o_bias;
};
struct route_params {           /* MoE; router.data NULL = dense */
    struct mat router;          /* (n_expert, dim) */
    const float *router_bias;
};
struct ffn_params {
    const float *pending_norm;  /* of the attention branch */
    const float *norm;
    struct mat gate, up, down;  /* (n_ff, dim) x2, (dim, n_ff); n_mat = n_expert in a MoE */
    const float *gate_bias, *up_bias, *down_bias; /* (n_mat, rows) */
};
struct layer {
    int index;
    struct attn_in_params attn_in;
    struct attn_params attn;
    struct attn_out_params attn_out;
    struct route_params route;
    struct ffn_params ffn;
};
struct head_params {
    const float *pending_norm;
    const float *norm;          /* (dim) */
    struct mat out;             /* (n_vocab, dim) */
};

/* One token to compute. Rows of one sequence are consecutive and in rising position; a row sees the KV of its
 * sequence at positions 0..pos, those of this step included. */
struct row {
    int32_t seq;                /* row of the page table */
    int32_t pos;
    int32_t token;
    bool want_logits;
};

/* How the token that follows a row is drawn, on a device that does it (kern_device.token): a draw of engine/sampler.h, whose
 * stages these are, with everything that the logits do not decide done already. */
struct draw_edit {
    int32_t token;              /* of the vocabulary */
    float x;                    /* what is subtracted after the repetition penalty; what is added; nothing */
};
#define DRAW_WHOLE ((uint64_t)1 << 32)
enum { DRAW_MAX_EDITS = 4096, DRAW_NOTHING = -2 };
struct draw {
    bool here;                  /* false: the row's logits are wanted, not a token */
    float temperature, repetition;
    int top_k;                  /* 0 = off */
    uint64_t share;             /* top-p in units of 2^-32; DRAW_WHOLE = off */
    int64_t floor;              /* min-p in units of 2^-40 */
    uint64_t random;            /* the position's 64 random bits */
    const struct draw_edit *edits; /* tokens seen (each once), then biases, then bans; DRAW_MAX_EDITS at most */
    int n_seen, n_bias, n_ban;
};

struct step {
    const struct row *rows;
    int n_rows;
    const int32_t *page_table;  /* page of (seq, pos): page_table[seq * page_stride + pos / NUM_TILE] */
    int page_stride;
    const struct draw *draws;   /* one for each row that wants logits; NULL: all want logits, or the device cannot draw */
};

/* What /health says of a card. */
struct kern_facts {
    size_t memory_total;        /* bytes of the card */
    int sm;                     /* compute capability, 90 = 9.0 */
    char runtime[16];           /* version of the CUDA runtime, "13.0" */
};

struct kern_device {
    const char *name;           /* "cpu", "cuda", "ref" */
    int step_rows;              /* of a prompt that keep it busy: the largest step, where none is asked for */

    /* Bytes of device memory that are free; false with the reason (ERR_DEVICE) when card `index` cannot be used. NULL: the
     * device is the host, always there. */
    bool (*memory)(int index, size_t *available, struct err *err);

    /* Allocates everything (all or nothing). Errors: ERR_DEVICE with required and available bytes. */
    struct kern *(*open)(const struct kern_config *cfg, struct err *err);
    void (*close)(struct kern *k);

    /* Bytes a matrix takes once packed: what open's weight_bytes must count. */
    size_t (*mat_bytes)(enum qtype type, int rows, int cols, int n_mat);
    /* Bytes of KV cache one page takes, and of everything else that open allocates besides weights. */
    size_t (*page_bytes)(const struct kern_config *cfg);
    size_t (*work_bytes)(const struct kern_config *cfg);

    /* Packs rows [row0, row0 + n) of a GGUF tensor (n_mat of them stacked, mat_stride bytes apart) into m. m->type, rows,
     * cols, n_mat are set by the caller; data and bytes are set here. ERR_MODEL: weights that are NaN or infinite; cuda
     * says that in load_end, of all matrices. */
    bool (*mat_load)(struct kern *k, struct mat *m, const void *src, size_t mat_stride, struct err *err);
    /* Copies n floats to the device; NULL = no room (a planning bug). */
    float *(*vec_load)(struct kern *k, const float *src, size_t n, struct err *err);
    /* After the last of them: waits until all is in place, and gives back what loading needed. NULL: nothing to do. */
    bool (*load_end)(struct kern *k, struct err *err);
    /* False, with the reason (ERR_CUDA): the weights are not in the device's memory any more. NULL: the device is the host. */
    bool (*resident)(struct kern *k, struct err *err);

    void (*step_begin)(struct kern *k, const struct step *s);
    void (*embed)(struct kern *k, const struct mat *table);
    void (*attn_in)(struct kern *k, const struct layer *l);
    void (*attn)(struct kern *k, const struct layer *l);
    void (*attn_out)(struct kern *k, const struct layer *l);
    void (*route)(struct kern *k, const struct layer *l);   /* MoE only: adds pending, norms, chooses experts */
    void (*ffn_in)(struct kern *k, const struct layer *l);
    void (*ffn_out)(struct kern *k, const struct layer *l);
    void (*head)(struct kern *k, const struct head_params *p);
    /* Waits for the step. False: the device failed (ERR_CUDA); the process cannot go on with it. */
    bool (*step_end)(struct kern *k, struct err *err);

    /* After step_end: the (n_vocab) logits of the i-th row that wanted them, in host memory, until the next step. */
    const float *(*logits)(struct kern *k, int i);
    /* After step_end: the token drawn for it; -1 = none was, there are logits; DRAW_NOTHING = no logit was left to draw
     * from (sampler_draw's -1). NULL: the device does not draw. */
    int32_t (*token)(struct kern *k, int i);

    /* Facts for /health and the logs. */
    void (*describe)(const struct kern *k, char *out, size_t size);    /* "avx2, 2 threads" */
    void (*facts)(const struct kern *k, struct kern_facts *out);       /* NULL: no card */
};

struct kern {
    const struct kern_device *dev;
};

extern const struct kern_device kern_ref;   /* scalar, single-threaded, literal: the oracle */
extern const struct kern_device kern_cpu;   /* packed weights, SIMD chosen at run time, worker pool */

/* The CUDA device, or NULL when this build has none. */
const struct kern_device *kern_cuda(void);

/* What `auto` means: CUDA when this build has it and card 0 can be used, else the CPU. */
const struct kern_device *kern_auto(void);

#endif
