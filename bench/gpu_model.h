/* A generated model of a published shape whose weights are made on the card, and steps of it; and the clock of gpu-bench. */
#ifndef BENCH_GPU_MODEL_H
#define BENCH_GPU_MODEL_H

#include "bench/gpu_kernels.h"

enum { MAX_ROWS = 1024, MAX_BATCH = 256, MAX_LAYERS = 64 };

struct bench {
    struct cuda *k;
    struct kern_config cfg;
    struct layer layer[MAX_LAYERS];     /* norms all ones */
    struct mat embed;
    struct head_params head;
    double inv_freq[512];
    int32_t *pages;
    int stride, seqs;
    size_t weight_bytes;        /* that a token reads: all matrices, the embedding being the head */
    double layer_weights;       /* weights of all layers: multiply-adds of a row, the head's aside */
    double head_weights;
    const char *model, *type;
};

/* seqs sequences: the first may be n_ctx long, the others are short. Closed also after a failure. */
bool bench_open(struct bench *b, const char *model, const char *type, int n_ctx, int seqs, struct err *err);
void bench_close(struct bench *b);
bool bench_step(struct bench *b, const struct row *rows, int n, struct err *err);

/* The type of that name; QTYPE_N: there is none. */
enum qtype bench_type(const char *name);

double seconds(void);
double median(double *v, int n);    /* sorts v */

#endif
