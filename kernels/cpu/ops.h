/* Everything of a layer that is not a product, one table per instruction set: norms, rope, activations, attention tiles.
 * The tables are compiled from one source (ops_body.h) over vectors of eight lanes, or sixteen in attention, so they give the
 * same bytes; each comment of numerics.h and docs/numerics.md holds. */
#ifndef KERNELS_CPU_OPS_H
#define KERNELS_CPU_OPS_H

#include "kernels/kern.h"

/* One head's attention over a run of keys: maximum, sum of exponentials, weighted values o[head_dim] behind it. No key yet:
 * l < 0. */
struct part {
    float m, l;
    float o[];
};

/* A tile of 64 keys and values for n_q queries that share them. Query i sees keys lo[i]..hi[i]; queries that see the same
 * ones stand together. */
struct tile {
    const void *keys, *values;      /* (head_dim, 64), (64, head_dim) */
    const void *next;               /* the keys read next: prefetched meanwhile; any address */
    bool half;                      /* keys and values are IEEE half, else float */
    int head_dim, n_q;
    const float *q;                 /* (n_q, head_dim) */
    const int *lo, *hi;             /* (n_q) */
    struct part *const *out;        /* (n_q) */
    float (*s)[NUM_TILE];           /* (n_q): scratch from here on */
    float *fa, *fb;                 /* (n_q): factors of the merge */
    bool *first;                    /* (n_q): nothing to merge with */
};

struct cpu_ops {
    const char *name;
    /* x += y, y normed first when w is given. eps of the norm. */
    void (*add_branch)(float *x, float *y, const float *w, int n, float eps);
    void (*add)(float *x, const float *y, int n);
    void (*norm)(const float *x, const float *w, int n, float eps, float *out);
    /* Pairs of a head: neox (i, i + half), else (2i, 2i + 1). */
    void (*rotate)(float *head, const float *cos, const float *sin, int half, bool neox);
    void (*scale)(float *x, float s, int n);
    /* gate = act(gate) * up */
    void (*activate)(enum ffn_act act, float *gate, const float *up, int n);
    void (*axpy)(float *y, float w, const float *x, int n);    /* y = fma(w, x, y) */
    void (*to_f16)(const float *x, uint16_t *out, int n);
    void (*from_f16)(const uint16_t *x, float *out, int n);
    /* A tile's attention, merged into the parts of its queries. */
    void (*attend)(const struct tile *t);
    void (*merge)(struct part *a, const struct part *b, int head_dim);
};

const struct cpu_ops *cpu_ops(enum isa isa);    /* ISA_BEST and every level this machine runs; NULL otherwise */

extern const struct cpu_ops cpu_ops_scalar, cpu_ops_avx2, cpu_ops_avx512;

#endif
