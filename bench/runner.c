#include "bench/runner.h"

#include "base/clock.h"
#include "base/mem.h"
#include "bench/bandwidth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runner {
    struct runner_options o;
    struct gguf *gguf;
    struct model *model;
    struct adapter *adapter;
    struct bandwidth *bandwidth; /* NULL: the device's memory is not this machine's */
    struct row *rows;            /* (max_rows) */
    int *filled;      /* (max_batch) positions of each sequence whose KV is that of token_at */
    uint64_t *hashes; /* (max_batch) of logits */
    size_t n_logit_bytes;
    int n_checked;
};

/* Random ids, as in llama-bench: a function of sequence and position, so that KV can be kept
 * between tests. */
static int32_t token_at(const struct model *m, int seq, int pos)
{
    uint64_t x = ((uint64_t)seq << 32 | (uint32_t)pos) + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (int32_t)((x ^ (x >> 31)) % (uint64_t)m->n_vocab);
}

/* ---- the reference ---- */

/* Positions that the scalar reference computes in a few seconds: it does about 0.3 billion products
 * a second (AMD EPYC, 2026). */
static int affordable_positions(const struct model *m)
{
    double n = 1e9 / ((double)m->n_params + 1);
    return n > 12 ? 12 : n < 2 ? 2 : (int)n;
}

/* Logits of n positions of sequence 0: the first n - 1 as one prompt, the last one alone. */
static bool first_logits(struct adapter *a, const struct model *m, int n, float *out,
                         struct err *err)
{
    struct row rows[16];
    struct step_out step;
    int n_done = 0;
    for (int i = 0; i < (adapter_n_ctx(a) + NUM_TILE - 1) / NUM_TILE; i++)
        adapter_pages(a, 0)[i] = i;
    while (n_done < n) {
        int chunk = n_done == 0 ? n - 1 : 1;
        for (int i = 0; i < chunk; i++)
            rows[i] = (struct row){0, n_done + i, token_at(m, 0, n_done + i), true};
        if (!adapter_step(a, rows, chunk, &step, NULL, err))
            return false;
        for (int i = 0; i < chunk; i++)
            memcpy(out + (size_t)(n_done + i) * (size_t)m->n_vocab, step.logits[i],
                   (size_t)m->n_vocab * sizeof *out);
        n_done += chunk;
    }
    return true;
}

/* Opens the file once more for the reference: an adapter takes the tensors' data with it. The same
 * context, since rope factors may depend on it. */
static bool reference_logits(const struct runner_options *o, int n_ctx, int n, float *out,
                             struct err *err)
{
    struct gguf *g = gguf_open(o->path, err);
    struct model *m = g != NULL ? model_open(g, err) : NULL;
    struct adapter_options ao = {
        .device = &kern_ref,
        .n_ctx = n_ctx,
        .n_ctx_given = true,
        .max_seqs = 1,
        .max_rows = n,
        .max_logits = n,
        .kv_type = o->kv_type,
        .n_threads = 1,
    };
    struct adapter *a = m != NULL ? adapter_open(m, &ao, err) : NULL;
    bool ok = a != NULL && first_logits(a, m, n, out, err);
    adapter_close(a);
    model_close(m);
    gguf_close(g);
    return ok;
}

static int best_of(const float *logits, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

/* A GPU computes float weights in another order: there the token counts, not the bytes. */
static bool same_logits(const struct runner *r, const float *a, const float *b)
{
    if (memcmp(a, b, r->n_logit_bytes) == 0)
        return true;
    enum qtype t = r->model->layer[0].q.tensor->type;
    return r->o.device == kern_cuda() && !qtype_info(t)->quantised &&
           best_of(a, r->model->n_vocab) == best_of(b, r->model->n_vocab);
}

static bool check_reference(struct runner *r, struct err *err)
{
    int n = r->n_checked = affordable_positions(r->model);
    size_t n_vocab = (size_t)r->model->n_vocab;
    float *want = mem_alloc((size_t)n * n_vocab, sizeof *want),
          *got = mem_alloc((size_t)n * n_vocab, sizeof *got);
    bool ok = want != NULL && got != NULL;
    if (!ok)
        err_set(err, ERR_DEVICE, "no memory for the logits of %d positions", n);
    ok = ok && reference_logits(&r->o, adapter_n_ctx(r->adapter), n, want, err) &&
         first_logits(r->adapter, r->model, n, got, err);
    for (int i = 0; ok && i < n; i++) {
        const float *a = want + (size_t)i * n_vocab, *b = got + (size_t)i * n_vocab;
        if (!same_logits(r, a, b))
            ok = err_set(err, ERR_INTERNAL,
                         "position %d: logits differ from the reference: best token %d, expected "
                         "%d; not timed",
                         i, best_of(b, (int)n_vocab), best_of(a, (int)n_vocab));
    }
    free(want);
    free(got);
    return ok;
}

/* ---- open ---- */

static bool open_model(struct runner *r, struct err *err)
{
    r->gguf = gguf_open(r->o.path, err);
    r->model = r->gguf != NULL ? model_open(r->gguf, err) : NULL;
    if (r->model == NULL)
        return false;
    int pages = (r->o.max_pos + NUM_TILE - 1) / NUM_TILE;
    struct adapter_options ao = {
        .device = r->o.device,
        .device_index = r->o.device_index,
        .n_ctx = pages * NUM_TILE,
        .n_ctx_given = true,
        .max_seqs = r->o.max_batch,
        .max_rows = r->o.max_rows,
        .kv_type = r->o.kv_type,
        .n_threads = r->o.n_threads,
    };
    ao.max_logits = r->o.max_batch > 16 ? r->o.max_batch : 16;
    struct adapter_plan plan;
    if (!adapter_plan(r->model, &ao, &plan, err))
        return false;
    ao.kv_bytes = plan.kv_page * (size_t)pages * (size_t)r->o.max_batch;
    r->adapter = adapter_open(r->model, &ao, err);
    r->n_logit_bytes = (size_t)r->model->n_vocab * sizeof(float);
    return r->adapter != NULL;
}

struct runner *runner_open(const struct runner_options *o, struct err *err)
{
    struct runner *r = mem_alloc(1, sizeof *r);
    if (r == NULL) {
        err_set(err, ERR_DEVICE, "no memory");
        return NULL;
    }
    r->o = *o;
    int least = o->max_batch > 12 ? o->max_batch : 12;
    if (r->o.max_rows < least)
        r->o.max_rows = least;
    if (r->o.max_pos < NUM_TILE)
        r->o.max_pos = NUM_TILE;
    r->rows = mem_alloc((size_t)r->o.max_rows, sizeof *r->rows);
    r->filled = mem_alloc((size_t)o->max_batch, sizeof *r->filled);
    r->hashes = mem_alloc((size_t)o->max_batch, sizeof *r->hashes);
    if (r->rows == NULL || r->filled == NULL || r->hashes == NULL) {
        err_set(err, ERR_DEVICE, "no memory");
        goto fail;
    }
    if (!open_model(r, err) || !check_reference(r, err))
        goto fail;
    if (o->device != kern_cuda()) {
        r->bandwidth = bandwidth_open(o->n_threads, err);
        if (r->bandwidth == NULL)
            goto fail;
    }
    int stride = (r->o.max_pos + NUM_TILE - 1) / NUM_TILE;
    for (int seq = 0; seq < o->max_batch; seq++)
        for (int i = 0; i < stride; i++)
            adapter_pages(r->adapter, seq)[i] = seq * stride + i;
    return r;
fail:
    runner_close(r);
    return NULL;
}

void runner_close(struct runner *r)
{
    if (r == NULL)
        return;
    bandwidth_close(r->bandwidth);
    adapter_close(r->adapter);
    model_close(r->model);
    gguf_close(r->gguf);
    free(r->rows);
    free(r->filled);
    free(r->hashes);
    free(r);
}

const struct model *runner_model(const struct runner *r)
{
    return r->model;
}

size_t runner_file_bytes(const struct runner *r)
{
    return gguf_file_bytes(r->gguf);
}

int runner_n_checked(const struct runner *r)
{
    return r->n_checked;
}

void runner_describe(const struct runner *r, char *out, size_t size)
{
    adapter_describe(r->adapter, out, size);
}

/* ---- steps ---- */

/* Positions [pos, pos + n) of a sequence in steps of at most max_rows; logits of the last one. */
static bool run_prompt(struct runner *r, int seq, int pos, int n, struct step_out *out,
                       struct err *err)
{
    for (int done = 0; done < n;) {
        int chunk = n - done < r->o.max_rows ? n - done : r->o.max_rows;
        for (int i = 0; i < chunk; i++)
            r->rows[i] = (struct row){seq, pos + done + i, token_at(r->model, seq, pos + done + i),
                                      done + i == n - 1};
        if (!adapter_step(r->adapter, r->rows, chunk, out, NULL, err))
            return false;
        done += chunk;
    }
    return true;
}

/* One position of each of the first n_batch sequences. */
static bool run_batch(struct runner *r, int n_batch, int pos, struct step_out *out, struct err *err)
{
    for (int seq = 0; seq < n_batch; seq++)
        r->rows[seq] = (struct row){seq, pos, token_at(r->model, seq, pos), true};
    return adapter_step(r->adapter, r->rows, n_batch, out, NULL, err);
}

/* Fills the first n_batch sequences up to depth. */
static bool fill(struct runner *r, int n_batch, int depth, struct err *err)
{
    struct step_out out;
    for (int seq = 0; seq < n_batch; seq++) {
        if (r->filled[seq] >= depth)
            continue;
        if (!run_prompt(r, seq, r->filled[seq], depth - r->filled[seq], &out, err))
            return false;
        r->filled[seq] = depth;
    }
    return true;
}

static bool run_once(struct runner *r, const struct runner_test *t, struct step_out *out,
                     struct err *err)
{
    if (t->n_prompt > 0)
        return run_prompt(r, 0, t->n_depth, t->n_prompt, out, err);
    for (int i = 0; i < t->n_gen; i++)
        if (!run_batch(r, t->n_batch, t->n_depth + i, out, err))
            return false;
    return true;
}

/* ---- checks ---- */

static uint64_t hash_logits(const struct runner *r, const float *logits)
{
    uint64_t h = 0xCBF29CE484222325u;
    for (int i = 0; i < r->model->n_vocab; i++)
        h = (h ^ num_bits(logits[i])) * 0x100000001B3u;
    return h;
}

/* The last position of the test, alone or (where it was alone) as the end of a prompt of up to four
 * rows. */
static bool recompute(struct runner *r, const struct runner_test *t, int seq, int pos,
                      struct step_out *out, struct err *err)
{
    bool was_alone = t->n_prompt == 0 && t->n_batch == 1;
    int n = was_alone ? (pos + 1 < 4 ? pos + 1 : 4) : 1;
    return run_prompt(r, seq, pos - n + 1, n, out, err);
}

/* Runs the test once: a warm-up, and the proof that its shape does not change what comes out. */
static bool check_shape(struct runner *r, const struct runner_test *t, struct err *err)
{
    struct step_out out;
    int n_seqs = t->n_prompt > 0 ? 1 : t->n_batch, pos = t->n_depth + t->n_prompt + t->n_gen - 1;
    if (!run_once(r, t, &out, err))
        return false;
    for (int seq = 0; seq < n_seqs; seq++)
        r->hashes[seq] = hash_logits(r, out.logits[seq]);
    for (int seq = 0; seq < n_seqs; seq++) {
        if (!recompute(r, t, seq, pos, &out, err))
            return false;
        if (hash_logits(r, out.logits[0]) != r->hashes[seq])
            return err_set(err, ERR_INTERNAL,
                           "sequence %d, position %d: logits depend on the step's shape; not timed",
                           seq, pos);
    }
    return true;
}

/* ---- bytes ---- */

/* Weights that a step of n_rows rows must read, in the file's format. */
static double weight_bytes(const struct model *m, int n_rows)
{
    double bytes = 0, experts = 1;
    if (m->n_expert > 0) /* expected share of the experts that at least one row chooses */
        experts = 1 - pow(1 - (double)m->n_expert_used / m->n_expert, n_rows);
    for (size_t i = 0; i < gguf_n_tensors(m->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(m->gguf, i);
        if (t == m->token_embd && m->output != m->token_embd)
            continue; /* rows are looked up */
        bytes += (double)t->bytes * (t->ne[2] > 1 ? experts : 1);
    }
    return bytes;
}

/* Keys and values that one row at pos reads. */
static double kv_bytes(const struct runner *r, int pos)
{
    double n = 0;
    const struct model *m = r->model;
    for (int i = 0; i < m->n_layer; i++) {
        int window = m->layer[i].window;
        n += window > 0 && window < pos + 1 ? window : pos + 1;
    }
    return n * (double)adapter_planned(r->adapter)->kv_page / NUM_TILE / m->n_layer;
}

static double test_bytes(const struct runner *r, const struct runner_test *t)
{
    double bytes = 0;
    for (int i = 0; i < t->n_gen; i++)
        bytes += weight_bytes(r->model, t->n_batch) + t->n_batch * kv_bytes(r, t->n_depth + i);
    for (int done = 0; done < t->n_prompt; done += r->o.max_rows) {
        int chunk = t->n_prompt - done < r->o.max_rows ? t->n_prompt - done : r->o.max_rows;
        bytes += weight_bytes(r->model, chunk) + kv_bytes(r, t->n_depth + done + chunk - 1);
    }
    return bytes;
}

/* ---- a test ---- */

bool runner_run(struct runner *r, const struct runner_test *t, int n_reps,
                struct runner_result *out, struct err *err)
{
    struct step_out step;
    double tokens = t->n_prompt > 0 ? t->n_prompt : (double)t->n_gen * t->n_batch;
    double sum = 0, squares = 0, best = 0;
    int n_seqs = t->n_prompt > 0 ? 1 : t->n_batch;
    if (!fill(r, n_seqs, t->n_depth, err) || !check_shape(r, t, err))
        return false;
    *out = (struct runner_result){0};
    if (r->bandwidth != NULL)
        out->read_gb_s = bandwidth_measure(r->bandwidth) * 1e-9;
    for (int i = 0; i < n_reps; i++) {
        uint64_t start = clock_ns();
        if (!run_once(r, t, &step, err))
            return false;
        double ts = tokens / ((double)(clock_ns() - start) * 1e-9);
        sum += ts;
        squares += ts * ts;
        best = ts > best ? ts : best;
    }
    for (int seq = 0; seq < n_seqs;
         seq++) /* what lies behind depth is the same tokens: KV stays good */
        if (r->filled[seq] < t->n_depth + t->n_prompt + t->n_gen)
            r->filled[seq] = t->n_depth + t->n_prompt + t->n_gen;
    double var = n_reps > 1 ? (squares - sum * sum / n_reps) / (n_reps - 1) : 0;
    out->avg_ts = sum / n_reps;
    out->stddev_ts = var > 0 ? sqrt(var) : 0;
    out->best_ts = best;
    out->gb_s = test_bytes(r, t) * best / tokens * 1e-9;
    return true;
}
