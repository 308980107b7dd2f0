/* One tiny model opened on two devices: the oracle and the one under test. They must give the same bytes, but for F16 and BF16
 * weights on tensor cores (docs/numerics.md), which must come near. No test framework, so that a program for another
 * machine can use it too. */
#ifndef TESTS_PAIR_H
#define TESTS_PAIR_H

#include "engine/adapter.h"
#include "tests/tiny.h"

struct pair {
    struct buf image;
    struct gguf *gguf;
    struct model *model;
    struct adapter *want, *got;
    int n_vocab;
    float tolerance;    /* |got - want| / |want| of a row of logits; 0 = the same bytes */
};

bool pair_open(struct pair *p, const struct tiny_spec *spec, struct adapter_options o, const struct kern_device *want,
               const struct kern_device *got, struct err *err);
void pair_close(struct pair *p);

/* Pages of every sequence, spread so that neighbours in a table are not neighbours in memory. */
void pair_pages(struct pair *p, int seqs, int per_seq);

/* A row with some token, its logits wanted. */
struct row pair_row(int seq, int pos, int salt);

/* The same step on both; false, with the place, when a logit has other bytes (or a row is not near). */
bool pair_step(struct pair *p, const struct row *rows, int n, struct err *err);

/* A prompt of 310 rows in one step on want and in steps of every size on got: the same bytes for every row. n_ff 0: the
 * preset's. */
bool pair_run_chunks(const char *preset, const char *type, int n_ff, const struct kern_device *want, const struct kern_device *got,
                     struct err *err);

/* The same step of n sequences' single rows, of which the first has several splits behind it, many times on got: the bytes
 * that want gives once. What only sometimes goes wrong. */
bool pair_run_again(const char *preset, const char *type, int n, int times, const struct kern_device *want,
                    const struct kern_device *got, struct err *err);

/* A model through a prompt of 18 rows, a mixed step of two sequences, and one row alone three times. */
bool pair_run(const char *preset, const char *type, enum kv_type kv, const struct kern_device *want,
              const struct kern_device *got, struct err *err);

/* A context of several splits in chunks of 270 rows, then a row of it beside a prompt, then two sequences' single rows. window 0: the preset's. */
bool pair_run_long(const char *preset, const char *type, int window, enum kv_type kv, const struct kern_device *want,
                   const struct kern_device *got, struct err *err);

#endif
