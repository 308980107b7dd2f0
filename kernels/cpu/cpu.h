/* The inside of the CPU device, shared by its files: cpu.c (memory, steps), layer.c (products of a layer), attend.c
 * (attention), experts.c (mixture of experts). */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/cpu/ops.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/product.h"

/* Rows as products read them: float rows, and quantised ones where the weights are. */
struct input {
    float *f;
    size_t f_stride;            /* floats */
    struct act_block *q;
    size_t q_stride;            /* blocks */
};

/* Pairs of row and expert of a step, grouped by rising expert: slots first[e]..first[e + 1] - 1 are expert e's. */
struct routing {
    int *expert;                /* (max_rows, n_expert_used), by rising id within a row */
    float *weight;
    int *slot;                  /* (max_rows, n_expert_used): where the pair went */
    int *first;                 /* (n_expert + 1) */
    int *active;                /* experts with rows */
    int n_active;
    float *logits;              /* (max_rows, n_expert rounded up to 8) */
    struct input in;            /* (max slots, dim): rows gathered by slot */
    float *out;                 /* (max slots, dim) */
};

/* Rows of one sequence that attention takes together. */
struct block {
    int row0, n_rows;
};

struct cpu {
    struct kern kern;
    struct kern_config cfg;
    const struct product_isa *product;
    const struct cpu_ops *ops;
    struct pool *pool;
    char *slab;                 /* weights */
    size_t slab_bytes, slab_used;
    char *kv;                   /* pages; see attend.c */
    size_t kv_bytes;
    char *work;                 /* everything below, one allocation */
    size_t work_bytes;

    struct step step;
    float *x, *y;               /* (max_rows, dim): residual, pending branch */
    struct input xn;            /* (max_rows, dim): normed */
    float *q;                   /* (max_rows, q_dim) */
    float *k, *v;               /* (max_rows, kv_dim) */
    struct input attn;          /* (max_rows, q_dim) */
    struct input h;             /* (max slots, n_ff) */
    float *up;                  /* (max slots, n_ff) */
    float *cos, *sin;           /* (max_rows, n_rope, head_dim / 2) */
    float *logits;              /* (max_logits, vocab rounded up to 8) */
    size_t logits_stride;
    char *tiles;                /* per thread: attention scratch */
    size_t tile_bytes;
    char *parts;                /* partial attention of few rows: see attend.c */
    atomic_int *splits_left;    /* (attend_max_cut): splits of a task that are not done yet */
    struct row *wanted;         /* (max_rows): the step's rows from the last layer's attention on */
    struct block *blocks;       /* (max_rows): runs of rows of one sequence, see attend.c */
    struct routing route;
    atomic_int thread_next;     /* hands out scratch in a run */
};

static inline struct cpu *cpu_self(struct kern *k)
{
    return (struct cpu *)k;
}

/* Bytes of the KV element types, of a page, of a layer's keys and values in it. */
size_t kv_page_bytes(const struct kern_config *c);

/* Sizes of the attention scratch (attend.c). */
size_t attend_tile_bytes(const struct kern_config *c);
size_t attend_part_bytes(const struct kern_config *c);
int attend_max_cut(int n_threads);
enum { ATTEND_MAX_PARTS = 4096 };

/* One product of a run: rows of in times (one matrix of) m, plus bias, to out. */
struct job {
    const struct mat *m;
    int which;                  /* matrix of a stack */
    const float *bias;          /* of that matrix, or NULL */
    const struct input *in;
    int row0, n_rows;           /* rows of in and out */
    float *out;
    size_t out_stride;
};

/* Groups [g0, g0 + n) of a job. */
void job_groups(struct cpu *c, const struct job *j, int g0, int n);
enum { MAX_JOBS = 64 };         /* of one run */
/* Runs jobs on the pool, cut into chunks of weights and blocks of rows. */
void run_jobs(struct cpu *c, const struct job *jobs, int n_jobs);
/* Runs fn(c, arg, i) for i < n: on the pool when that pays, else here. */
void run_rows(struct cpu *c, void (*fn)(struct cpu *c, void *arg, int i), void *arg, int n);
/* Quantises row i of in when a product needs it. */
void quantise_row(struct cpu *c, const struct input *in, int i, int cols);

void cpu_attn_in(struct kern *k, const struct layer *l);
void cpu_attn(struct kern *k, const struct layer *l);
void cpu_attn_out(struct kern *k, const struct layer *l);
void cpu_route(struct kern *k, const struct layer *l);
void cpu_ffn_in(struct kern *k, const struct layer *l);
void cpu_ffn_out(struct kern *k, const struct layer *l);

/* Mixture of experts (experts.c). */
void experts_in(struct cpu *c, const struct layer *l);
void experts_out(struct cpu *c, const struct layer *l);

/* Stores one row's keys and values of a layer (attend.c). */
void kv_store_row(struct cpu *c, int layer, const struct row *row, const float *k, const float *v);

/* gate and up of jobs with equal shapes, activation, quantisation of h for the down product. */
struct ffn_job {
    struct job gate, up;
    const struct input *h;
    bool quantise;              /* the down product wants codes */
};
void run_ffn_jobs(struct cpu *c, const struct ffn_job *jobs, int n_jobs);

#endif
