#include "engine/text/ids.h"
#include "base/mem.h"

bool ids_add(struct ids *l, int32_t id, struct err *err)
{
    if (l->max != 0 && l->n >= l->max)
        return err_set(err, ERR_CONTEXT, "the text has more than %zu tokens", l->max);
    if (l->n == l->cap) {
        size_t cap = l->cap + l->cap / 2 + 64;
        int32_t *p = mem_grow(l->id, cap, sizeof *p);
        if (p == NULL)
            return err_set(err, ERR_OOM, "no memory for %zu tokens", cap);
        l->id = p;
        l->cap = cap;
    }
    l->id[l->n++] = id;
    return true;
}
