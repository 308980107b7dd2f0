/* A growing list of token ids with a maximum: the output of encoding. */
#ifndef ENGINE_TEXT_IDS_H
#define ENGINE_TEXT_IDS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct ids {
    int32_t *id;
    size_t n, cap;
    size_t max;    /* 0 = no limit */
};

/* Errors: ERR_CONTEXT over max, ERR_OOM. */
bool ids_add(struct ids *l, int32_t id, struct err *err);

#endif
