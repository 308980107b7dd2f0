/* From a path to a running engine: device, file, model, tokenizer, adapter, engine, in this order, each checked before the
 * next takes anything. */
#ifndef DAEMON_LOADER_H
#define DAEMON_LOADER_H

#include "daemon/cli.h"
#include "engine/engine.h"
#include "engine/text/tok.h"

struct loader_device {
    const struct kern_device *kern;
    int index;
    char name[16];       /* "cpu", "cuda:0" */
    bool vram;
};

/* What --device means in this build. ERR_DEVICE for a device it has no engine for. */
bool loader_device(const struct options *o, struct loader_device *d, struct err *err);

struct loaded {
    struct gguf *gguf;
    struct model *model;
    struct tok *tok;
    struct adapter *adapter;    /* the engine's, once that is open */
    struct engine *engine;
    int max_batch;
};

/* Fills l. On failure everything taken is given back. progress may be NULL. */
bool loader_open(const struct options *o, const struct loader_device *d, void (*progress)(void *arg, int percent), void *arg,
                 struct loaded *l, struct err *err);
void loader_close(struct loaded *l);

/* --check: all of the above but memory and weights; writes the plan for people. */
bool loader_check(const struct options *o, const struct loader_device *d, struct buf *out, struct err *err);

#endif
