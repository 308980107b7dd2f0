/* What the parts of gpu-bench share: the card's own speeds, the time that is left, and the lines that are printed. */
#ifndef BENCH_GPU_RUN_H
#define BENCH_GPU_RUN_H

#include "bench/gpu_model.h"

#include <stdatomic.h>

/* What may hang, or fail on a card that does everything else. */
enum risk { RISK_OVERLAP = 1, RISK_ONE_KERNEL = 2 };

/* Shared by the program and its parts (tests/apart.h). */
struct run {
    char card[256];
    double read_gb_s, upload_gb_s;      /* as measured first */
    double mma_byte_t, mma_half_t;      /* 10^12 operations a second by mma.sync, a multiply-add being two */
    double start, limit;                /* seconds */
    bool quick, smoke;                  /* smoke: on the host shim, smallest of everything */
    int n_dropped, n_failed;
    int trying, avoid;                  /* risks: under way, and no more to be tried */
    enum err_code code;                 /* of the part that failed */
    atomic_int lines;                   /* printed: progress */
};

/* False, and says so, when `need` more seconds are not left. */
bool run_allows(struct run *r, double need, const char *what);

/* Begins a line of output with the card and the test; the caller ends it with "}\n". */
void run_line(struct run *r, const char *test);

/* gpu_card.c: fills the speeds, prints what a launch and a barrier cost, and loads a file. */
bool card_measure(struct run *r, struct err *err);
bool card_launches(struct run *r, struct err *err);
bool card_load(struct run *r, const char *model, const char *type, struct err *err);

/* gpu_cost.c: what the fixed order of sums costs, and attention alone. */
bool cost_products(struct run *r, struct err *err);
bool cost_attention(struct run *r, struct bench *b, struct err *err);

/* Seconds of one of n calls of launch(arg, i), replayed as a graph; the best of three. -1: the card failed. */
double run_graph(struct cuda *k, void (*launch)(void *arg, int i), void *arg, int n);

#endif
