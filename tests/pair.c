#include "tests/pair.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Rounding activations to 8 bits of mantissa (BF16) or 11 (F16) in every product of a few layers. Where something is then
 * rounded to 8 bits (a KV cache of Q8_0), a value that falls on the other side moves by 1/127; a router's near tie chooses
 * another expert (seen: 0.19). */
static float tolerance_of(const struct tiny_spec *spec, enum kv_type kv, const struct kern_device *want,
                          const struct kern_device *got)
{
    float base = strcmp(spec->type, "BF16") == 0 ? 0.03f : strcmp(spec->type, "F16") == 0 ? 0.004f : 0;
    if (base == 0 || strcmp(want->name, got->name) == 0 || strcmp(got->name, "cuda") != 0)
        return 0;
    return spec->n_expert > 0 ? 0.3f : base + (kv == KV_Q8_0 ? 0.03f : 0);
}

bool pair_open(struct pair *p, const struct tiny_spec *spec, struct adapter_options o, const struct kern_device *want,
               const struct kern_device *got, struct err *err)
{
    *p = (struct pair){0};
    if (!tiny_image(spec, &p->image, err))
        return false;
    p->gguf = gguf_from_memory(p->image.data, p->image.len, err);
    p->model = p->gguf == NULL ? NULL : model_open(p->gguf, err);
    if (p->model == NULL)
        goto fail;
    o.device = want;
    p->want = adapter_open(p->model, &o, err);
    o.device = got;
    p->got = p->want == NULL ? NULL : adapter_open(p->model, &o, err);
    if (p->got == NULL)
        goto fail;
    p->n_vocab = adapter_vocab_size(p->want);
    p->tolerance = tolerance_of(spec, o.kv_type, want, got);
    return true;
fail:
    pair_close(p);
    return false;
}

void pair_close(struct pair *p)
{
    adapter_close(p->got);
    adapter_close(p->want);
    model_close(p->model);
    gguf_close(p->gguf);
    buf_free(&p->image);
    *p = (struct pair){0};
}

void pair_pages(struct pair *p, int seqs, int per_seq)
{
    for (int s = 0; s < seqs; s++)
        for (int i = 0; i < per_seq; i++)
            adapter_pages(p->want, s)[i] = adapter_pages(p->got, s)[i] = (per_seq - 1 - i) * seqs + s;
}

struct row pair_row(int seq, int pos, int salt)
{
    return (struct row){seq, pos, (pos * 37 + seq * 11 + salt * 5 + 3) % 256, true};
}

static bool check_same(const float *want, const float *got, int n, struct err *err)
{
    for (int j = 0; j < n; j++)
        if (memcmp(&want[j], &got[j], sizeof(float)) != 0)
            return err_set(err, ERR_INTERNAL, "token %d: expected %a, got %a", j, (double)want[j], (double)got[j]);
    return true;
}

static bool check_near(const float *want, const float *got, int n, float tolerance, struct err *err)
{
    double error = 0, size = 0;
    for (int j = 0; j < n; j++) {
        error += (double)(got[j] - want[j]) * (double)(got[j] - want[j]);
        size += (double)want[j] * (double)want[j];
    }
    double off = sqrt(error / size);
    return off <= (double)tolerance || err_set(err, ERR_INTERNAL, "off by %g of its size, allowed %g", off, (double)tolerance);
}

bool pair_step(struct pair *p, const struct row *rows, int n, struct err *err)
{
    struct step_out want, got;
    if (!adapter_step(p->want, rows, n, &want, NULL, err) || !adapter_step(p->got, rows, n, &got, NULL, err))
        return false;
    if (want.n_logits != got.n_logits)
        return err_set(err, ERR_INTERNAL, "step of %d rows: %d logits, expected %d", n, got.n_logits, want.n_logits);
    for (int i = 0; i < want.n_logits; i++) {
        bool same = p->tolerance > 0 ? check_near(want.logits[i], got.logits[i], p->n_vocab, p->tolerance, err)
                                     : check_same(want.logits[i], got.logits[i], p->n_vocab, err);
        if (!same)
            return err_prefix(err, "step of %d rows, logits %d", n, i);
    }
    return true;
}

bool pair_run(const char *preset, const char *type, enum kv_type kv, const struct kern_device *want,
              const struct kern_device *got, struct err *err)
{
    enum { PROMPT = 18, SEQS = 2 };
    struct adapter_options o = {.n_ctx = 64, .max_seqs = SEQS, .max_rows = PROMPT, .max_logits = PROMPT, .kv_type = kv,
                                .kv_bytes = 64 << 20};
    struct tiny_spec spec;
    struct pair p;
    struct row rows[PROMPT];
    if (!tiny_preset(preset, type, &spec, err) || !pair_open(&p, &spec, o, want, got, err))
        return false;
    pair_pages(&p, SEQS, 1);
    for (int i = 0; i < PROMPT; i++)
        rows[i] = pair_row(0, i, 0);
    bool ok = pair_step(&p, rows, PROMPT, err);
    rows[0] = pair_row(0, PROMPT, 1);
    for (int i = 1; i < 5; i++)
        rows[i] = pair_row(1, i - 1, 1);
    rows[2].want_logits = false;
    ok = ok && pair_step(&p, rows, 5, err);
    for (int i = 0; i < 3; i++) {
        rows[0] = pair_row(1, 4 + i, 2);
        ok = ok && pair_step(&p, rows, 1, err);
    }
    pair_close(&p);
    return ok;
}

bool pair_run_long(const char *preset, const char *type, int window, enum kv_type kv, const struct kern_device *want,
                   const struct kern_device *got, struct err *err)
{
    enum { CHUNK = 270, N = 540, OTHER = 90 };
    struct adapter_options o = {.n_ctx = N + 64, .max_seqs = 2, .max_rows = CHUNK, .max_logits = 4, .kv_type = kv,
                                .kv_bytes = 256 << 20};
    struct tiny_spec spec;
    struct pair p;
    struct row rows[CHUNK];
    if (!tiny_preset(preset, type, &spec, err))
        return false;
    spec.window = window > 0 ? window : spec.window;
    spec.n_layer = 1 + (spec.n_expert > 0);
    if (!pair_open(&p, &spec, o, want, got, err))
        return false;
    pair_pages(&p, 2, N / NUM_TILE + 1);
    bool ok = true;
    for (int pos = 0; ok && pos < N; pos += CHUNK) {
        for (int i = 0; i < CHUNK; i++) {
            rows[i] = pair_row(0, pos + i, 0);
            rows[i].want_logits = i % 90 == 89;
        }
        ok = pair_step(&p, rows, CHUNK, err);
    }
    rows[0] = pair_row(0, N, 0);
    for (int i = 1; i <= OTHER; i++) {
        rows[i] = pair_row(1, i - 1, 0);
        rows[i].want_logits = i == 1 || i == OTHER;
    }
    ok = ok && pair_step(&p, rows, 1 + OTHER, err);
    rows[0] = pair_row(0, N + 1, 0);
    rows[1] = pair_row(1, OTHER, 0);
    ok = ok && pair_step(&p, rows, 2, err);
    pair_close(&p);
    return ok;
}

bool pair_run_again(const char *preset, const char *type, int n, int times, const struct kern_device *want,
                    const struct kern_device *got, struct err *err)
{
    enum { LONG = 300, SHORT = 3 };
    struct adapter_options o = {.n_ctx = LONG + 20, .max_seqs = n, .max_rows = LONG, .max_logits = LONG, .kv_bytes = 256 << 20};
    struct tiny_spec spec;
    struct pair p;
    struct row rows[LONG];
    struct step_out first, out;
    int n_short = (n - 1) * SHORT;
    assert(n_short <= LONG);
    if (!tiny_preset(preset, type, &spec, err) || !pair_open(&p, &spec, o, want, got, err))
        return false;
    pair_pages(&p, n, LONG / NUM_TILE + 1);
    for (int i = 0; i < LONG; i++) {
        rows[i] = pair_row(0, i, 0);
        rows[i].want_logits = i == LONG - 1;
    }
    bool ok = pair_step(&p, rows, LONG, err);
    for (int i = 0; i < n_short; i++)
        rows[i] = pair_row(1 + i / SHORT, i % SHORT, 0);
    ok = ok && (n_short == 0 || pair_step(&p, rows, n_short, err));
    for (int seq = 0; seq < n; seq++)
        rows[seq] = pair_row(seq, seq == 0 ? LONG : SHORT, 1);
    ok = ok && adapter_step(p.want, rows, n, &first, NULL, err);
    for (int t = 0; ok && t < times; t++) {
        ok = adapter_step(p.got, rows, n, &out, NULL, err);
        for (int i = 0; ok && i < n; i++)
            ok = check_same(first.logits[i], out.logits[i], p.n_vocab, err) || err_prefix(err, "row %d, time %d", i, t);
    }
    pair_close(&p);
    return ok;
}

bool pair_run_chunks(const char *preset, const char *type, int n_ff, const struct kern_device *want, const struct kern_device *got,
                     struct err *err)
{
    enum { N = 310 };
    static const int chunks[] = {1, 8, 9, 65, 32, 33, 16, 17, 64, 63, 2};
    struct adapter_options o = {.n_ctx = 320, .max_seqs = 2, .max_rows = N, .max_logits = N, .kv_bytes = 64 << 20};
    struct tiny_spec spec;
    struct pair p;
    struct row rows[N];
    struct step_out all, some;
    if (!tiny_preset(preset, type, &spec, err))
        return false;
    spec.expert_type = spec.n_expert > 0 ? type : NULL;
    spec.n_layer = 1;
    spec.n_ff = n_ff > 0 ? n_ff : spec.n_ff;
    if (!pair_open(&p, &spec, o, want, got, err))
        return false;
    pair_pages(&p, 2, 5);
    for (int i = 0; i < N; i++)
        rows[i] = pair_row(0, i, 0);
    bool ok = adapter_step(p.want, rows, N, &all, NULL, err);
    for (int at = 0, c = 0; ok && at < N; at += chunks[c++]) {
        ok = adapter_step(p.got, rows + at, chunks[c], &some, NULL, err);
        for (int i = 0; ok && i < chunks[c]; i++) {
            ok = check_same(all.logits[at + i], some.logits[i], p.n_vocab, err);
            if (!ok)
                err_prefix(err, "row %d, in a step of %d", at + i, chunks[c]);
        }
    }
    pair_close(&p);
    return ok;
}
