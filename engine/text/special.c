#include "engine/text/special.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

struct special_node {
    int32_t child, sibling; /* -1 = none */
    int32_t id;             /* the token that ends here, -1 */
    unsigned char byte;
};

/* Each is looked for at every place of a text: its length bounds the time. Published ones have up to 40 bytes. */
enum { LONGEST = 256 };

static bool is_special(const struct vocab *v, int32_t id)
{
    uint8_t kind = v->kind[id];
    return v->text[id].len > 0 &&
           (kind == TOKEN_USER || kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN);
}

/* The child of *link for byte, made if it is new. Links are re-read through the array: it moves
 * when it grows. */
static int32_t step(struct special *s, int32_t parent, unsigned char byte)
{
    int32_t first = parent < 0 ? s->root[byte] : s->nodes[parent].child;
    for (int32_t i = first; i >= 0; i = s->nodes[i].sibling)
        if (s->nodes[i].byte == byte)
            return i;
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 256;
        struct special_node *nodes = mem_grow(s->nodes, cap, sizeof *nodes);
        if (nodes == NULL)
            return -1;
        s->nodes = nodes;
        s->cap = cap;
    }
    int32_t new = (int32_t)s->n++;
    s->nodes[new] = (struct special_node){.child = -1, .sibling = first, .id = -1, .byte = byte};
    if (parent < 0)
        s->root[byte] = new;
    else
        s->nodes[parent].child = new;
    return new;
}

bool special_build(struct special *s, const struct vocab *v, struct err *err)
{
    memset(s->root, -1, sizeof s->root);
    for (int32_t id = 0; id < v->n; id++) {
        if (!is_special(v, id))
            continue;
        const struct gguf_str *t = &v->text[id];
        int32_t node = -1;
        if (t->len > LONGEST)
            return err_set(err, ERR_MODEL, "key tokenizer.ggml.tokens: token %d, a special one, has %zu bytes, allowed are %d",
                           (int)id, t->len, LONGEST);
        for (size_t i = 0; i < t->len; i++) {
            node = step(s, node, (unsigned char)t->s[i]);
            if (node < 0)
                return err_set(err, ERR_OOM, "no memory for the special tokens");
        }
        if (s->nodes[node].id < 0)
            s->nodes[node].id = id;
    }
    return true;
}

void special_free(struct special *s)
{
    free(s->nodes);
}

bool special_find(const struct special *s, const struct vocab *v, const char *text, size_t from,
                  size_t len, bool control, size_t *at, int32_t *id)
{
    for (; from < len; from++) {
        int32_t node = s->root[(unsigned char)text[from]];
        *id = -1;
        for (size_t i = from + 1; node >= 0; i++) {
            int32_t found = s->nodes[node].id;
            if (found >= 0 && (control || v->kind[found] == TOKEN_USER))
                *id = found;
            node = i < len ? s->nodes[node].child : -1;
            while (node >= 0 && s->nodes[node].byte != (unsigned char)text[i])
                node = s->nodes[node].sibling;
        }
        if (*id >= 0) {
            *at = from;
            return true;
        }
    }
    return false;
}
