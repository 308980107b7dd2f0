#include "daemon/loader.h"

#include <math.h>
#include <stdio.h>

enum { BATCH_CUDA = 32, BATCH_CPU = 8 };

bool loader_device(const struct options *o, struct loader_device *d, struct err *err)
{
    const struct kern_device *cuda = kern_cuda();
    *d = (struct loader_device){.kern = &kern_cpu, .name = "cpu"};
    if (o->device == DEVICE_CPU || (o->device == DEVICE_AUTO && kern_auto() == &kern_cpu))
        return true;
    *d = (struct loader_device){.kern = cuda, .index = o->device_index, .vram = true};
    snprintf(d->name, sizeof d->name, "cuda:%d", o->device_index);
    if (cuda == NULL)
        return err_set(err, ERR_DEVICE, "device %s: this build has no CUDA engine; model %s needs --device cpu or a CUDA build",
                       d->name, o->model);
    return true;
}

static struct adapter_options adapter_options(const struct options *o, const struct loader_device *d, int max_batch)
{
    return (struct adapter_options){
        .device = d->kern,
        .device_index = d->index,
        .n_ctx = (int)o->ctx_size,
        .n_ctx_given = o->ctx_size != 0,
        .max_seqs = max_batch,
        .kv_bytes = (size_t)o->kv_cache_size_mb << 20,
        .kv_type = o->kv_type == CLI_KV_Q8_0 ? KV_Q8_0 : KV_F16,
        .n_threads = (int)o->threads,
    };
}

/* The host's part: the file, its model and its tokenizer. */
static bool open_file(const struct options *o, struct loaded *l, struct err *err)
{
    l->gguf = gguf_open(o->model, err);
    if (l->gguf == NULL)
        return false;
    l->model = model_open(l->gguf, err);
    if (l->model == NULL)
        return false;
    l->tok = tok_open(l->gguf, err);
    if (l->tok == NULL)
        return false;
    if (tok_n_vocab(l->tok) > l->model->n_vocab)
        return err_set(err, ERR_MODEL, "%s: key tokenizer.ggml.tokens: %d tokens, tensor token_embd.weight has rows for %d", o->model,
                       tok_n_vocab(l->tok), l->model->n_vocab);
    return true;
}

/* One token through every layer: a device that cannot compute, or a model that gives no numbers, shows it before the worker is
 * called ready. */
static bool warm_up(const struct options *o, struct loaded *l, struct err *err)
{
    const float *logits;
    int32_t token = tok_bos(l->tok) >= 0 ? tok_bos(l->tok) : 0;
    if (!adapter_prefill(l->adapter, 0, 0, &token, 1, &logits, err))
        return err_prefix(err, "warm-up");
    for (int i = 0; i < l->model->n_vocab; i++)
        if (isfinite(logits[i]))
            return true;
    return err_set(err, ERR_MODEL, "%s: the model gives no numbers after token %d: its weights may be damaged", o->model, (int)token);
}

bool loader_open(const struct options *o, const struct loader_device *d, void (*progress)(void *arg, int percent), void *arg,
                 struct loaded *l, struct err *err)
{
    *l = (struct loaded){.max_batch = o->max_batch > 0 ? (int)o->max_batch : d->vram ? BATCH_CUDA : BATCH_CPU};
    if (!open_file(o, l, err))
        goto fail;
    struct adapter_options ao = adapter_options(o, d, l->max_batch);
    ao.progress = progress;
    ao.progress_arg = arg;
    l->adapter = adapter_open(l->model, &ao, err);
    if (l->adapter == NULL || !warm_up(o, l, err))
        goto fail;
    gguf_drop_data(l->gguf);
    struct engine_options eo = {
        .max_queue = (int)o->max_queue,
        .inference_timeout_s = (double)o->inference_timeout_sec,
        .speculate = o->speculate == CLI_SPECULATE_ON ? SPECULATE_ON : SPECULATE_OFF,
    };
    l->engine = engine_open(l->adapter, &eo, err);
    if (l->engine != NULL)
        return true;
fail:
    loader_close(l);
    return false;
}

void loader_close(struct loaded *l)
{
    if (l->engine != NULL)
        engine_close(l->engine);
    else
        adapter_close(l->adapter);
    tok_close(l->tok);
    model_close(l->model);
    gguf_close(l->gguf);
    *l = (struct loaded){0};
}

static void add_mib(struct buf *out, const char *what, size_t bytes)
{
    buf_printf(out, "  %-12s %10.1f MiB\n", what, (double)bytes / (1 << 20));
}

bool loader_check(const struct options *o, const struct loader_device *d, struct buf *out, struct err *err)
{
    struct loaded l = {0};
    struct adapter_plan plan;
    int max_batch = o->max_batch > 0 ? (int)o->max_batch : d->vram ? BATCH_CUDA : BATCH_CPU;
    struct adapter_options ao = adapter_options(o, d, max_batch);
    bool ok = open_file(o, &l, err) && adapter_plan(l.model, &ao, &plan, err);
    if (ok) {
        const struct model *m = l.model;
        buf_printf(out, "model    %s\n", o->model);
        buf_printf(out, "         %s, %s, %d layers, hidden %d, vocabulary %d, tokenizer %s\n", m->type, m->quant, m->n_layer,
                   m->dim, m->n_vocab, tok_kind(l.tok));
        buf_printf(out, "device   %s\n", d->name);
        buf_printf(out, "context  %d tokens, %d requests at once, room for %lld tokens of them all\n", plan.n_ctx, max_batch,
                   (long long)plan.n_pages * NUM_TILE);
        if (o->ctx_size == 0 && plan.n_ctx < m->n_ctx_train)
            buf_printf(out, "         lowered from %d, the KV cache has no room for more; see --kv-cache-size-mb\n", m->n_ctx_train);
        buf_puts(out, "memory\n");
        add_mib(out, "weights", plan.weights);
        add_mib(out, "kv cache", plan.kv);
        add_mib(out, "work", plan.work);
        add_mib(out, "total", plan.total);
        add_mib(out, "available", plan.available);
        ok = !out->failed || err_set(err, ERR_INTERNAL, "out of memory");
    }
    loader_close(&l);
    return ok;
}
