/* What test_cuda and test_cuda_card share: tiny models on the reference and on the shim, and the device whose steps are one
 * kernel where it can. */
#ifndef TESTS_SHIM_H
#define TESTS_SHIM_H

#include "kernels/cuda/cuda.h"
#include "tests/emu/emu.h"
#include "tests/pair.h"

#include <check.h>

static inline struct tiny_spec spec_of(const char *preset, const char *type)
{
    struct tiny_spec spec;
    struct err err = {0};
    ck_assert_msg(tiny_preset(preset, type, &spec, &err), "%s", err.msg);
    return spec;
}

static inline struct pair open_spec(const struct tiny_spec *spec, struct adapter_options o)
{
    struct pair p;
    struct err err = {0};
    ck_assert_msg(pair_open(&p, spec, o, &kern_ref, kern_cuda(), &err), "%s", err.msg);
    return p;
}

static inline void close_pair(struct pair *p)
{
    pair_close(p);
    ck_assert_uint_eq(emu_taken(), 0);
}

static inline void step_both(struct pair *p, const struct row *rows, int n)
{
    struct err err = {0};
    ck_assert_msg(pair_step(p, rows, n, &err), "%s", err.msg);
}

static inline void run_model(const char *preset, const char *type, enum kv_type kv)
{
    struct err err = {0};
    ck_assert_msg(pair_run(preset, type, kv, &kern_ref, kern_cuda(), &err), "%s %s, KV type %d, order %llu: %s", preset, type,
                  (int)kv, (unsigned long long)emu_card()->seed, err.msg);
    ck_assert_uint_eq(emu_taken(), 0);
}

static inline struct kern *open_persistent(const struct kern_config *c, struct err *err)
{
    struct kern *k = kern_cuda()->open(c, err);
    if (k != NULL && !persist_open((struct cuda *)k, err)) {
        kern_cuda()->close(k);
        return NULL;
    }
    return k;
}

static inline const struct kern_device *persistent(void)
{
    static struct kern_device d;
    d = *kern_cuda();
    d.open = open_persistent;
    return &d;
}

#endif
