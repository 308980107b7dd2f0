/* Runs and times tests of one model on one device, over engine/adapter.h. Nothing is timed that was
 * not checked before: when the runner is opened, the device must give the scalar reference's
 * logits, byte for byte, for a first few positions; before each test, the test's last logits,
 * computed in its own shape (chunks, depth, batch), must equal those of the same position computed
 * alone. */
#ifndef BENCH_RUNNER_H
#define BENCH_RUNNER_H

#include "engine/adapter.h"

struct runner;

struct runner_options {
    const char *path;
    const struct kern_device *device;
    int device_index, n_threads;
    int max_rows; /* rows of one prompt step */
    enum kv_type kv_type;
    int max_batch, max_pos; /* of all tests that will be run */
};

struct runner_test {
    int n_prompt, n_gen; /* one of them is 0 */
    int n_depth, n_batch;
};

struct runner_result {
    double avg_ts, best_ts, stddev_ts; /* tokens per second, of all sequences together */
    double gb_s; /* weights and keys and values that a repetition must read, over the best time */
    double read_gb_s; /* what the machine reads, measured just before; 0 when the device has other
                         memory */
};

struct runner *runner_open(const struct runner_options *o, struct err *err);
void runner_close(struct runner *r);

bool runner_run(struct runner *r, const struct runner_test *t, int n_reps,
                struct runner_result *out, struct err *err);

const struct model *runner_model(const struct runner *r);
size_t runner_file_bytes(const struct runner *r);
int runner_n_checked(const struct runner *r); /* positions compared with the reference */
void runner_describe(const struct runner *r, char *out, size_t size);

#endif
