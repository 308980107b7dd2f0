/* inferd-eval: what a model says, without a server. Log-probabilities at every position of given ids and along a greedy
 * continuation, their divergence from reference values, tokenizing and detokenizing, perplexity of a text. JSON on standard
 * output. */
#include "base/buf.h"
#include "base/mem.h"
#include "bench/kl.h"
#include "engine/adapter.h"
#include "engine/sampler.h"
#include "engine/text/tok.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64 };

struct options {
    const char *model, *ids, *perplexity, *kl;
    int top, greedy;
    bool tokenize, detokenize, add_special, parse_special, help;
    struct adapter_options adapter;
};

static const char usage[] =
    "inferd-eval --model FILE, and one of\n"
    "  --ids 1,2,3 [--top 20] [--greedy N]     log-probabilities at every position, then N greedy tokens\n"
    "  --tokenize [--add-special] [--parse-special]   standard input to [ids]\n"
    "  --detokenize                            JSON array of ids on standard input to bytes\n"
    "  --perplexity TEXTFILE                   as llama-perplexity: whole windows of the context, each one's second half\n"
    "  --kl REFERENCE [--ids 1,2,3]            divergence from values that --ids printed (or another program, in its format):\n"
    "                                          mean and worst KL(reference || model), share of equal best tokens. Tokens\n"
    "                                          that are not in a position's list count as one. --ids: for cases without ids\n"
    "with\n"
    "  --ctx N                  context, tokens (default: the model's own; perplexity: 512)\n"
    "  --kv-type f16|q8_0|f32   KV cache element type (default f16)\n"
    "  --device cpu|ref         engine (default cpu); ref is the slow scalar oracle\n"
    "  --threads N              CPU threads (default: physical cores)";

/* ---- one sequence ---- */

static bool any_number(const float *logits, int n)
{
    for (int i = 0; i < n; i++)
        if (isfinite(logits[i]))
            return true;
    return false;
}

/* Runs ids through the model and hands every position's logits to `each`. Where none is a number there is nothing to say. */
static bool run_ids(struct adapter *a, const int32_t *ids, int n, int pos,
                    void (*each)(void *arg, int pos, const float *logits), void *arg, struct err *err)
{
    struct row rows[CHUNK];
    struct step_out out;
    for (int done = 0; done < n;) {
        int chunk = n - done < CHUNK ? n - done : CHUNK;
        for (int i = 0; i < chunk; i++)
            rows[i] = (struct row){0, pos + done + i, ids[done + i], true};
        if (!adapter_step(a, rows, chunk, &out, NULL, err))
            return false;
        for (int i = 0; i < chunk; i++) {
            if (!any_number(out.logits[i], adapter_vocab_size(a)))
                return err_set(err, ERR_MODEL, "position %d: the model gives no numbers (its weights may be damaged)", pos + done + i);
            each(arg, pos + done + i, out.logits[i]);
        }
        done += chunk;
    }
    return true;
}

static bool fits(const struct adapter *a, int n, struct err *err)
{
    return n <= adapter_n_ctx(a) || err_set(err, ERR_CONTEXT, "%d tokens, but the context has %d: see --ctx", n, adapter_n_ctx(a));
}

static void use_all_pages(struct adapter *a)
{
    int n = adapter_n_pages(a), need = (adapter_n_ctx(a) + NUM_TILE - 1) / NUM_TILE;
    for (int i = 0; i < need && i < n; i++)
        adapter_pages(a, 0)[i] = i;
}

/* ---- log-probabilities ---- */

struct printer {
    struct buf out;
    struct sampler *sampler;
    struct token_logprob *top;
    int n_top;
    bool first;
    int32_t best;
};

static void print_position(void *arg, int pos, const float *logits)
{
    struct printer *p = arg;
    int n = sampler_top_logprobs(p->sampler, logits, p->n_top, p->top);
    buf_printf(&p->out, "%s{\"pos\":%d,\"top\":[", p->first ? "" : ",", pos);
    for (int i = 0; i < n; i++)
        buf_printf(&p->out, "%s[%d,%.6f]", i ? "," : "", p->top[i].token, (double)p->top[i].logprob);
    buf_puts(&p->out, "]}");
    p->first = false;
    p->best = p->top[0].token;
}

static bool eval_ids(struct adapter *a, const struct options *o, const int32_t *ids, int n, struct err *err)
{
    int n_vocab = adapter_vocab_size(a);
    struct printer p = {.n_top = o->top < n_vocab ? o->top : n_vocab, .first = true, .sampler = sampler_new(n_vocab)};
    p.top = mem_alloc((size_t)p.n_top, sizeof *p.top);
    struct buf greedy = {0};
    bool ok = p.sampler != NULL && p.top != NULL;
    if (!ok)
        err_set(err, ERR_OOM, "no memory for the results");
    use_all_pages(a);
    buf_puts(&p.out, "{\"cases\":[{\"ids\":[");
    for (int i = 0; i < n; i++)
        buf_printf(&p.out, "%s%d", i ? "," : "", ids[i]);
    buf_puts(&p.out, "],\"positions\":[");
    ok = ok && fits(a, n + o->greedy, err) && run_ids(a, ids, n, 0, print_position, &p, err);
    for (int i = 0; ok && i < o->greedy; i++) {
        int32_t next = p.best;
        buf_printf(&greedy, "%s%d", i ? "," : "", next);
        if (i + 1 < o->greedy)
            ok = run_ids(a, &next, 1, n + i, print_position, &p, err);
    }
    buf_printf(&p.out, "],\"greedy\":[%s]}]}\n", greedy.data != NULL ? greedy.data : "");
    if (ok)
        fwrite(p.out.data, 1, p.out.len, stdout);
    buf_free(&p.out);
    buf_free(&greedy);
    free(p.top);
    sampler_free(p.sampler);
    return ok;
}

/* ---- divergence from a reference ---- */

struct judge {
    struct kl *kl;
    int i;
};

static void judge_position(void *arg, int pos, const float *logits)
{
    struct judge *j = arg;
    kl_score(j->kl, j->i, pos, logits);
}

/* A model opened for a context of its own: opening gives up the mapped file, so another context opens the file again. */
struct session {
    struct gguf *gguf;
    struct model *model;
    struct adapter *adapter;
};

static void close_session(struct session *s)
{
    adapter_close(s->adapter);
    model_close(s->model);
    gguf_close(s->gguf);
    *s = (struct session){0};
}

static bool open_session(struct session *s, const struct options *o, int n_ctx, struct err *err)
{
    struct adapter_options with = o->adapter;
    with.n_ctx = n_ctx;
    with.n_ctx_given = n_ctx > 0;
    s->gguf = gguf_open(o->model, err);
    s->model = s->gguf == NULL ? NULL : model_open(s->gguf, err);
    s->adapter = s->model == NULL ? NULL : adapter_open(s->model, &with, err);
    if (s->adapter == NULL)
        return false;
    use_all_pages(s->adapter);
    return true;
}

/* Every case with the context that it names, unless the command line names one. */
static bool eval_kl(const struct options *o, const int32_t *ids, size_t n_ids, int n_vocab, struct err *err)
{
    struct judge j = {.kl = kl_open(o->kl, ids, n_ids, n_vocab, err)};
    struct session s = {0};
    int opened = -1;
    bool ok = j.kl != NULL;
    for (; ok && j.i < kl_n_cases(j.kl); j.i++) {
        int n, n_ctx = o->adapter.n_ctx_given ? o->adapter.n_ctx : kl_n_ctx(j.kl, j.i);
        const int32_t *feed = kl_ids(j.kl, j.i, &n);
        if (n_ctx != opened) {
            close_session(&s);
            ok = open_session(&s, o, n_ctx, err);
            opened = n_ctx;
        }
        ok = ok && fits(s.adapter, n, err) && run_ids(s.adapter, feed, n, 0, judge_position, &j, err);
    }
    if (ok)
        kl_print(j.kl);
    close_session(&s);
    kl_close(j.kl);
    return ok;
}

/* ---- perplexity ---- */

struct scorer {
    struct sampler *sampler;
    const int32_t *ids;     /* of the window */
    int n, from;            /* positions from..n-2 count */
    double sum;
    long count;
};

static void score_position(void *arg, int pos, const float *logits)
{
    struct scorer *s = arg;
    if (pos < s->from || pos + 1 >= s->n)
        return;
    s->sum -= (double)sampler_logprob(s->sampler, logits, s->ids[pos + 1]);
    s->count++;
}

/* llama-perplexity's method, so that numbers compare: the text without its last line break, tokenized as one with BOS as the
 * model says; whole windows of n_ctx tokens, the first of each replaced by BOS when the model has one; in each, the tokens
 * after the first half count. */
static bool eval_perplexity(struct adapter *a, const struct tok *tok, const int32_t *ids, size_t n, struct err *err)
{
    int n_ctx = adapter_n_ctx(a), windows = (int)(n / (size_t)n_ctx);
    if (n_ctx < 3)
        return err_set(err, ERR_USAGE, "--ctx %d: no token counts, expected 3 or more", n_ctx);
    if (windows < 1)
        return err_set(err, ERR_INVALID, "the text has %zu tokens, at least one context of %d is needed", n, n_ctx);
    struct scorer s = {.sampler = sampler_new(adapter_vocab_size(a)), .n = n_ctx, .from = n_ctx / 2};
    int32_t *window = mem_alloc((size_t)n_ctx, sizeof *window);
    bool ok = s.sampler != NULL && window != NULL;
    if (!ok)
        err_set(err, ERR_OOM, "no memory for a window of %d tokens", n_ctx);
    use_all_pages(a);
    for (int w = 0; ok && w < windows; w++) {
        memcpy(window, ids + (size_t)w * (size_t)n_ctx, (size_t)n_ctx * sizeof *window);
        if (tok_adds_bos(tok))
            window[0] = tok_bos(tok);
        s.ids = window;
        ok = run_ids(a, window, n_ctx, 0, score_position, &s, err);
        if (ok)
            fprintf(stderr, "window %d/%d: perplexity %.4f\n", w + 1, windows, exp(s.sum / (double)s.count));
    }
    if (ok && !isfinite(exp(s.sum / (double)s.count)))
        ok = err_set(err, ERR_MODEL, "the perplexity is beyond all numbers: %g a token in the exponent", s.sum / (double)s.count);
    if (ok)
        printf("{\"perplexity\":%.5f,\"tokens\":%ld,\"windows\":%d,\"ctx\":%d}\n", exp(s.sum / (double)s.count), s.count,
               windows, n_ctx);
    free(window);
    sampler_free(s.sampler);
    return ok;
}

/* ---- input and output ---- */

static bool read_all(FILE *f, struct buf *out, struct err *err)
{
    char chunk[65536];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0)
        buf_add(out, chunk, n);
    if (ferror(f) || out->failed)
        return err_set(err, ERR_SYSTEM, "cannot read the input");
    return buf_add(out, "", 0);
}

/* Integers separated by commas, blanks or brackets. */
static bool parse_ids(const char *text, int n_vocab, int32_t **ids, size_t *n, struct err *err)
{
    *ids = NULL;
    *n = 0;
    for (const char *p = text;;) {
        p += strspn(p, ", \t\r\n[]");
        if (*p == 0)
            return *n > 0 || err_set(err, ERR_USAGE, "no token ids given");
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 0 || v >= n_vocab)
            return err_set(err, ERR_USAGE, "token id \"%.20s\": expected 0 to %d", p, n_vocab - 1);
        int32_t *grown = mem_grow(*ids, *n + 1, sizeof **ids);
        if (grown == NULL)
            return err_set(err, ERR_OOM, "no memory for %zu ids", *n);
        *ids = grown;
        (*ids)[(*n)++] = (int32_t)v;
        p = end;
    }
}

static bool run_tokenize(const struct tok *tok, const struct options *o, struct err *err)
{
    struct buf text = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    bool ok = read_all(stdin, &text, err) &&
              tok_encode(tok, text.data, text.len, o->add_special ? TOK_ADD_ALWAYS : TOK_ADD_NONE, o->parse_special, 0, &ids, &n, err);
    if (ok) {
        putchar('[');
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i ? "," : "", ids[i]);
        puts("]");
    }
    free(ids);
    buf_free(&text);
    return ok;
}

static bool run_detokenize(const struct tok *tok, struct err *err)
{
    struct buf text = {0};
    int32_t *ids = NULL;
    char *out = NULL;
    size_t n = 0, len = 0;
    bool ok = read_all(stdin, &text, err);
    if (ok && text.len > 0 && memchr(text.data, 0, text.len) != NULL)
        ok = err_set(err, ERR_USAGE, "the ids hold a NUL byte");
    ok = ok && parse_ids(text.data, tok_n_vocab(tok), &ids, &n, err) &&
         tok_decode(tok, ids, n, true, &out, &len, err);
    if (ok)
        tok_tidy(tok, out, &len);
    if (ok)
        fwrite(out, 1, len, stdout);
    free(out);
    free(ids);
    buf_free(&text);
    return ok;
}

static bool run_perplexity(struct adapter *a, const struct gguf *g, const char *path, struct err *err)
{
    FILE *f = fopen(path, "rbe");
    if (f == NULL)
        return err_set(err, ERR_SYSTEM, "cannot open %s", path);
    struct tok *tok = tok_open(g, err);
    struct buf text = {0};
    int32_t *ids = NULL;
    size_t n = 0;
    bool ok = tok != NULL && read_all(f, &text, err);
    if (ok && text.len > 0 && text.data[text.len - 1] == '\n')
        text.len--;
    ok = ok && tok_encode(tok, text.data, text.len, TOK_ADD_ALWAYS, false, 0, &ids, &n, err) &&
         eval_perplexity(a, tok, ids, n, err);
    fclose(f);
    free(ids);
    buf_free(&text);
    tok_close(tok);
    return ok;
}

static bool run_model(const struct gguf *g, const struct options *o, struct err *err)
{
    struct model *m = model_open(g, err);
    struct adapter *a = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    bool ok = m != NULL && (o->ids == NULL || parse_ids(o->ids, m->n_vocab, &ids, &n, err));
    if (ok && o->kl != NULL) {
        ok = eval_kl(o, ids, n, m->n_vocab, err);
    } else if (ok) {
        a = adapter_open(m, &o->adapter, err);
        ok = a != NULL && (o->ids != NULL ? eval_ids(a, o, ids, (int)n, err) : run_perplexity(a, g, o->perplexity, err));
    }
    free(ids);
    adapter_close(a);
    model_close(m);
    return ok;
}

/* ---- options ---- */

static bool choose(const char *value, const char *const *names, int n, int *out)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(value, names[i]) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

static bool parse_options(int argc, char **argv, struct options *o, struct err *err)
{
    enum { MODEL = 1, IDS, TOP, GREEDY, CTX, KV, DEVICE, THREADS, TOKENIZE, DETOKENIZE, ADD, PARSE, PPL, KL, HELP };
    static const struct option longs[] = {
        {"model", 1, NULL, MODEL}, {"ids", 1, NULL, IDS}, {"top", 1, NULL, TOP}, {"greedy", 1, NULL, GREEDY},
        {"ctx", 1, NULL, CTX}, {"kv-type", 1, NULL, KV}, {"device", 1, NULL, DEVICE}, {"threads", 1, NULL, THREADS},
        {"tokenize", 0, NULL, TOKENIZE}, {"detokenize", 0, NULL, DETOKENIZE}, {"add-special", 0, NULL, ADD},
        {"parse-special", 0, NULL, PARSE}, {"perplexity", 1, NULL, PPL}, {"kl", 1, NULL, KL}, {"help", 0, NULL, HELP}, {0},
    };
    static const char *const kv_names[] = {"f16", "q8_0", "f32"}, *const devices[] = {"cpu", "ref"};
    int c, pick;
    while ((c = getopt_long(argc, argv, "m:h", longs, NULL)) != -1) {
        char *end = NULL;
        long v = optarg != NULL ? strtol(optarg, &end, 10) : 0;
        bool number = c == TOP || c == GREEDY || c == CTX || c == THREADS;
        if (number && (v < 1 || v > 1 << 24 || *end != 0))
            return err_set(err, ERR_USAGE, "--%s %s: expected a number from 1", longs[c - 1].name, optarg);
        switch (c) {
        case 'm':
        case MODEL: o->model = optarg; break;
        case IDS: o->ids = optarg; break;
        case TOP: o->top = (int)v; break;
        case GREEDY: o->greedy = (int)v; break;
        case CTX: o->adapter.n_ctx = (int)v; o->adapter.n_ctx_given = true; break;
        case THREADS: o->adapter.n_threads = (int)v; break;
        case TOKENIZE: o->tokenize = true; break;
        case DETOKENIZE: o->detokenize = true; break;
        case ADD: o->add_special = true; break;
        case PARSE: o->parse_special = true; break;
        case PPL: o->perplexity = optarg; break;
        case KL: o->kl = optarg; break;
        case KV:
            if (!choose(optarg, kv_names, 3, &pick))
                return err_set(err, ERR_USAGE, "--kv-type %s: allowed f16, q8_0, f32", optarg);
            o->adapter.kv_type = (enum kv_type)pick;
            break;
        case DEVICE:
            if (!choose(optarg, devices, 2, &pick))
                return err_set(err, ERR_USAGE, "--device %s: allowed cpu, ref", optarg);
            o->adapter.device = pick == 0 ? &kern_cpu : &kern_ref;
            break;
        case 'h':
        case HELP: o->help = true; return true;
        default: return err_set(err, ERR_USAGE, "see --help");
        }
    }
    if (optind < argc)
        return err_set(err, ERR_USAGE, "\"%.40s\" belongs to no option; see --help", argv[optind]);
    if (o->model == NULL || o->tokenize + o->detokenize + (o->ids != NULL && o->kl == NULL) + (o->kl != NULL) +
                                (o->perplexity != NULL) != 1)
        return err_set(err, ERR_USAGE, "expected --model and one of --ids, --kl, --perplexity, --tokenize, --detokenize; see --help");
    if (o->perplexity != NULL && o->adapter.n_ctx == 0)
        o->adapter.n_ctx = 512;
    return true;
}

int main(int argc, char **argv)
{
    struct options o = {.top = 20, .adapter = {.device = &kern_cpu, .max_seqs = 1, .max_rows = CHUNK, .max_logits = CHUNK}};
    struct err err = {0};
    struct gguf *g = NULL;
    struct tok *tok = NULL;
    bool ok = parse_options(argc, argv, &o, &err);
    if (ok && o.help) {
        puts(usage);
        return 0;
    }
    ok = ok && (g = gguf_open(o.model, &err)) != NULL;
    if (ok && (o.tokenize || o.detokenize)) {
        tok = tok_open(g, &err);
        ok = tok != NULL && (o.tokenize ? run_tokenize(tok, &o, &err) : run_detokenize(tok, &err));
    } else if (ok) {
        ok = run_model(g, &o, &err);
    }
    if (ok && (fflush(stdout) != 0 || ferror(stdout)))
        ok = err_set(&err, ERR_SYSTEM, "cannot write the output");
    if (!ok)
        fprintf(stderr, "inferd-eval: %s\n", err.msg);
    tok_close(tok);
    gguf_close(g);
    return ok ? 0 : err.code == ERR_USAGE ? 64 : 65;
}
