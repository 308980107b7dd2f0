/* Private to kernels/cuda/: the open device, and the launchers of its kernels (.cu files), one line each. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/cuda/layout.h"
#include "kernels/kern.h"

#include <cuda_runtime_api.h>

/* Rows of activations: as float, rounded to the weights' type, and quantised: codes in blocks of 32, their scale and the
 * sums of their halves. A form that no product reads is NULL and not written. */
struct act_scale {
    float d;
    int16_t sum[2];
};
struct act_terms {          /* of a segment's blocks: scale, and what a minimum is multiplied by, scale x sum of both halves */
    float d[SEGMENT_BLOCKS], m[SEGMENT_BLOCKS];
};
struct act {
    float *x;               /* (rows, ld) */
    uint16_t *f16, *bf16;   /* (rows, ld), zeros up to a multiple of 32 */
    int8_t *q;              /* (rows, ld) */
    struct act_scale *s;    /* (rows, ld / 32) */
    struct act_terms *t;    /* (rows, ld / SEGMENT): the same again, where q is, for the tensor cores */
    int ld;                 /* a multiple of SEGMENT */
};

/* What the code that runs must have been compiled for. */
enum { CODE_TILE = 80, CODE_OVERLAP = 90, CODE_GRID = 90 };
enum { OVERLAP_CUDA = 12030 };  /* from which on a graph may hold launches that overlap */

/* One matrix of a product: out (columns, rows) = w x activations + bias. */
struct product_part {
    const void *w;
    const float *bias;
    float *out;
    int rows, n_tile;
};

/* Products of up to three matrices of one type with the same activations. A column is a row of the step, or one of its
 * experts: then which[column] is the matrix and column / act_div the row of activations. */
enum { MAX_PARTS = 3, GROUP_COLS = 64, MAX_GROUPED = 1024 };

/* Columns of one matrix: n of them, at most GROUP_COLS, from order[first] on. */
struct col_group {
    int32_t mat, first, n;
};

struct product {
    struct product_part part[MAX_PARTS];
    int n_part, n_tile;     /* tiles of all parts */
    int cols, n_seg, n_mat;
    struct act act;
    int act_div;
    const int32_t *which;   /* NULL: matrix 0 */
    const int32_t *order;   /* columns by matrix, and groups of them, some empty: for the kernels that multiply many columns */
    const struct col_group *group;  /* (n_group); NULL: columns in order */
    int n_group, n_col;
    bool prefetch;          /* of weights, before the kernel before has ended */
};

/* What a product of one column makes its row of activations from: they are there (product.act); x as it is; or its norm, with
 * the pending branch added first: sum, if not NULL, takes that (x itself others still read). */
enum source_kind { SOURCE_ACT, SOURCE_ROW, SOURCE_NORM };
struct source {
    enum source_kind kind;
    const float *x, *y;     /* y: NULL = nothing pending */
    const float *pending_norm, *norm;
    float *sum, eps;
};

/* That product. With h, part 0 is a gate and part 1 what it gates: h = ffn(part 0) x part 1 is all that is stored. */
struct one {
    struct product p;
    struct source source;
    float *h;
    enum ffn_act ffn;
    int wave, rounds;       /* segments of a row that a block takes at once; how often */
    int tiles_at_once, n_tile, n_unit;  /* tiles (pairs of them) it takes at once; of these, all; units of tiles_at_once */
};

/* The step's rows in device memory; step.c fills the copy on the host and uploads it at once. */
struct dev_step {
    int32_t *pos, *token;   /* (n_rows) */
    int32_t *page_at;       /* (n_rows): where the sequence's pages begin in pages */
    int32_t *logit_row;     /* (max_logits): rows that want logits */
    int32_t *run;           /* (n_rows, 2): first row and number of rows of one sequence that flash.cu takes together */
    double *inv_freq;       /* (n_rope, head_dim / 2) */
    float *cos, *sin;       /* (n_rows, n_rope, head_dim / 2), made on the card */
    int32_t *pages;         /* page tables of the step's sequences */
    struct draw *draw;      /* (n_logits); what they point to lies behind the pages */
};

/* KV cache: bytes of [page][layer][k, v][n_kv_head] blocks of NUM_TILE positions. Inside a block, K lies as
 * [dims / n][64][n] with n values in 16 bytes, V as [64][dims]; dims is head_dim rounded up to 16. Q8_0 adds
 * [64][blocks of 32] halves. */
struct kv_cache {
    uint8_t *data;
    size_t block_bytes;
    int n_layer, n_kv_head, head_dim, dims;
};

/* Attention of up to ATTN_WHOLE_ROWS rows can be one launch. */
enum { SPLIT_SLOTS = 512, ATTN_WHOLE_ROWS = 64, MAX_GRAPHS = 32 };

/* A class of steps, and its graph once it was captured (graph.c). */
struct graph_slot {
    int n_rows, splits;
    bool draws;
    bool seen;              /* ran once, plainly */
    uint64_t used;          /* graph_steps when it last was */
    cudaGraphExec_t exec;
};
enum step_mode { STEP_PLAIN, STEP_CAPTURE, STEP_REPLAY, STEP_RECORD, STEP_RERUN }; /* the last two: persist.cu */

/* Steps of one row as one kernel: the program of one class of them. */
enum op_kind { OP_ANGLES, OP_EMBED, OP_NORM, OP_PRODUCT, OP_ONE, OP_HEADS, OP_ATTN, OP_MERGE, OP_GATE, OP_CHOOSE, OP_BLEND };
struct persist {
    unsigned blocks;        /* of the kernel: as many as the card holds at once; 0: off */
    size_t shared, room;    /* bytes of shared memory a block, and of these for what an operation does */
    struct op *ops, *host_ops;  /* (max_op): on the card, part of the slab; pinned */
    int n_op, max_op;
    struct graph_slot *slot;    /* whose program it is; NULL: nobody's */
    uint32_t *arrivals;     /* on the card, part of the slab: the barrier's count ... */
    uint32_t arrived;       /* ... and what it is once all launches so far are through */
};

struct cuda {
    struct kern kern;
    struct kern_config cfg;
    char name[256];
    int capability;         /* 90 = 9.0 */
    int code;               /* what the code that runs was compiled for, see CODE_* */
    bool overlap;           /* kernels start before the one before has ended (gpu-bench measures it; off else) */
    bool can_overlap;       /* also inside a graph */
    bool fuse;              /* one row's norms and gates inside its products, few rows' heads and merge inside attention (gpu-bench
                             * measures both; on else) */
    int n_sm;               /* multiprocessors */
    int shared_most;        /* bytes of shared memory that a block can have */
    cudaStream_t stream;
    cudaError_t failed;     /* the first failure */
    const char *failed_at;
    size_t memory_total;    /* the card's */

    uint8_t *slab;          /* everything on the device: weights, KV, work */
    size_t slab_bytes;
    uint8_t *mat_at, *vec_at;   /* weights: matrices from the front, vectors from the back */
    struct kv_cache kv;
    uint8_t *stage;         /* KV cache and work space: raw rows on their way in lie there while weights are loaded */
    size_t stage_bytes;
    struct upload *upload;  /* load.c: while weights are loaded */
    uint32_t *damaged;      /* on the card: a weight or scale that was packed is NaN or infinite */

    float *x, *y;           /* (max_rows, dim): residual, pending branch */
    float *x_next;          /* (dim): where a fused norm leaves one row's residual; the two change places then */
    float *x_home;          /* x when a step begins */
    struct act xn, attn, h; /* normed rows; attention's output; gated FFN rows (slots) */
    float *cos, *sin;       /* (max_rows, n_rope, head_dim / 2) */
    float *q, *k, *v;       /* (max_rows, heads * head_dim) */
    float *gate, *up;       /* (slots, n_ff) */
    float *branch;          /* (slots, dim): outputs of experts */
    float *router;          /* (max_rows, n_expert) */
    int32_t *expert;        /* (slots), by rising id in each row */
    int32_t *order;         /* (slots): slots by expert */
    struct col_group *group;
    float *expert_w;
    float *part_o, *part_ml;    /* (slots, n_head, head_dim), (slots, n_head, 2): attention's splits */
    int n_part;             /* slots of it */
    size_t arrival_bytes;
    uint32_t *arrivals;     /* (ATTN_WHOLE_ROWS, n_head): splits of a row's head that are done; 0 between launches */
    float *logits;          /* (max_logits, n_vocab) */
    float *host_logits;     /* the same, pinned */
    int32_t *token, *host_token;    /* (max_logits): tokens drawn; the same, pinned */

    uint8_t *step_dev, *step_host;  /* the two copies of dev_step's arrays */
    size_t step_bytes;
    struct dev_step step, host;
    int n_rows, n_logits;
    int n_runs;             /* 0: not for flash.cu */
    bool draws;             /* some row's token is drawn here */
    int splits;             /* of the longest context, rounded up to a power of two */

    struct graph_slot graph[MAX_GRAPHS];
    struct graph_slot *slot;    /* the step's; NULL: it is not to be a graph */
    uint64_t graph_steps;       /* that could be one */
    enum step_mode mode;
    struct persist persist;
    bool has_head;          /* the step came to its last phase */
};

/* Remembers the first failure; step_end reports it. */
void cuda_note(struct cuda *k, const char *where);
#define CU_NOTE(k, where) cuda_note(k, where)

static inline int cuda_slots(const struct kern_config *c)
{
    return c->n_expert > 0 ? c->n_expert_used : 1;
}

/* plan.c: carves the slab; with k NULL it only counts. */
struct cuda_sizes {
    size_t work, kv, weights;
};
void cuda_plan(const struct kern_config *c, struct cuda *k, struct cuda_sizes *out);
void cuda_kv_shape(const struct kern_config *c, struct kv_cache *kv);

/* load.c */
size_t cuda_mat_bytes(enum qtype type, int rows, int cols, int n_mat);
bool cuda_mat_load(struct kern *k, struct mat *m, const void *src, size_t mat_stride, struct err *err);
float *cuda_vec_load(struct kern *k, const float *src, size_t n, struct err *err);
bool cuda_load_end(struct kern *k, struct err *err);
void cuda_load_close(struct cuda *k);   /* gives back what loading took, also when it was not ended */

/* graph.c: around the launches of a step; forgetting all graphs. */
void cuda_graph_begin(struct cuda *k);
void cuda_graph_end(struct cuda *k);
void cuda_graph_close(struct cuda *k);

/* persist.cu. Off until persist_open, after open, says true; false: why not, and all stays as it was. While a step is recorded
 * (STEP_RECORD) launchers add an operation instead: nx x ny blocks of 256 threads. */
size_t persist_bytes(const struct kern_config *c);  /* of a program at most, 190 KB for 32 layers: part of every plan */
bool persist_open(struct cuda *k, struct err *err);
void persist_close(struct cuda *k);
enum step_mode persist_begin(struct cuda *k);
void persist_end(struct cuda *k);
void persist_add(struct cuda *k, enum op_kind kind, int type, int nx, int ny, const void *args, size_t bytes);
void persist_product(struct cuda *k, enum qtype type, const struct product *p);
void persist_one(struct cuda *k, enum qtype type, const struct one *o);

/* step.c */
void cuda_launch_product(struct cuda *k, enum qtype t, const struct product *p);  /* by the kernel for its type and columns */
void cuda_step_begin(struct kern *k, const struct step *s);
void cuda_embed(struct kern *k, const struct mat *table);
void cuda_attn_in(struct kern *k, const struct layer *l);
void cuda_attn(struct kern *k, const struct layer *l);
void cuda_attn_out(struct kern *k, const struct layer *l);
void cuda_route(struct kern *k, const struct layer *l);
void cuda_ffn_in(struct kern *k, const struct layer *l);
void cuda_ffn_out(struct kern *k, const struct layer *l);
void cuda_head(struct kern *k, const struct head_params *p);

/* pack.cu: rows row0.. of a matrix from raw (GGUF's layout, n rows) into dst; embed from the packed form. */
void launch_pack(struct cuda *k, enum qtype type, const uint8_t *raw, void *dst, int rows, int cols, int n_mat, int mat,
                 int row0, int n);
void launch_embed(struct cuda *k, const struct mat *table);

/* out = w x act. product.cu: any type, up to 8 columns. few.cu and tile.cu: quantised types, up to 64 columns (of a group) and
 * more. half.cu: F16 and BF16, any number of columns. The last three need CODE_TILE. */
void launch_product(struct cuda *k, enum qtype type, const struct product *p);
void launch_few(struct cuda *k, enum qtype type, const struct product *p);
void launch_tile(struct cuda *k, enum qtype type, const struct product *p);
void launch_half(struct cuda *k, enum qtype type, const struct product *p);
/* one.cu: one column of a matrix of quantised or half weights. one_suits: whether it can be that product. */
void launch_one(struct cuda *k, enum qtype type, struct one *o);
bool one_suits(const struct cuda *k, enum qtype type, const struct one *o);
bool one_open(const struct cuda *k);
bool half_open(void);   /* takes the shared memory that its kernels need */
bool few_open(const struct cuda *k);
int tile_code(void);    /* what the kernels that run here were compiled for: 90 = sm_90; 0: none does */

/* row.cu */
struct norm_args {
    float *x, *y;           /* (rows, dim) */
    const float *pending_norm, *norm;
    bool has_pending;
    const int32_t *rows;    /* which rows; NULL: all in order */
    int n, dim;
    float eps;
    struct act out;
};
void launch_norm(struct cuda *k, const struct norm_args *a);
void launch_gate(struct cuda *k, int n_col, int n_ff, const struct act *out);
void launch_choose(struct cuda *k);
void launch_group(struct cuda *k, int n_slot, int n_group); /* the chosen slots by expert: order and group */
void launch_blend(struct cuda *k);

/* rope.cu: the step's sines and cosines. */
void launch_angles(struct cuda *k);

/* draw.cu: tokens from logits, where the step's draws say so. */
void launch_draw(struct cuda *k);
bool draw_usable(int n_vocab);

/* attn.cu, and flash.cu for prompts: rows that one block takes (0: the heads are not for it). Where attention makes its heads
 * itself, launch_heads does nothing. */
struct attn_args;
void launch_heads(struct cuda *k, const struct layer *l);
void launch_attn(struct cuda *k, const struct layer *l, const struct act *out);
void launch_flash(struct cuda *k, const struct attn_args *a);
void persist_attn(struct cuda *k, const struct attn_args *a, int splits);
int flash_rows(const struct kern_config *c);

#endif
