/* A step on the card: its rows uploaded at once, and every phase as a few launches on one stream. */
#include "kernels/cuda/cuda.h"

#include <assert.h>
#include <string.h>

enum { FEW_COLUMNS = 8 };

/* ---- the rows ---- */

/* The arrays of dev_step one after the other, for this step's sizes; pages come last and grow. */
static struct dev_step lay_out(const struct cuda *k, uint8_t *base, size_t *bytes)
{
    size_t n = (size_t)k->n_rows, freqs = (size_t)k->cfg.n_rope * (size_t)(k->cfg.head_dim / 2);
    struct draw *draw = (struct draw *)(void *)base;
    double *inv_freq = (double *)(void *)(draw + k->n_logits);
    int32_t *at = (int32_t *)(void *)(inv_freq + freqs);
    struct dev_step s = {.draw = draw, .inv_freq = inv_freq, .pos = at, .token = at + n, .page_at = at + 2 * n, .run = at + 3 * n,
                         .logit_row = at + 5 * n, .cos = k->cos, .sin = k->sin};
    s.pages = s.logit_row + k->n_logits;
    *bytes = (size_t)((uint8_t *)s.pages - base);
    return s;
}

static void fill_frequencies(struct cuda *k)
{
    size_t half = (size_t)(k->cfg.head_dim / 2);
    for (int set = 0; set < k->cfg.n_rope; set++)
        memcpy(k->host.inv_freq + (size_t)set * half, k->cfg.rope[set].inv_freq,
               (size_t)(k->cfg.rope[set].n_rot / 2) * sizeof(double));
}

/* Copies each sequence's pages once, up to its last row here; returns how many there are. */
static int fill_pages(struct cuda *k, const struct step *s)
{
    int n = 0;
    for (int i = 0, last; i < s->n_rows; i = last) {
        int most = 0;
        for (last = i; last < s->n_rows && s->rows[last].seq == s->rows[i].seq; last++) {
            k->host.page_at[last] = n;
            most = s->rows[last].pos > most ? s->rows[last].pos : most;
        }
        const int32_t *pages = s->page_table + (size_t)s->rows[i].seq * (size_t)s->page_stride;
        for (int j = 0; j <= most / NUM_TILE; j++)
            k->host.pages[n++] = pages[j];
        while (k->splits * NUM_SPLIT <= most)
            k->splits *= 2;
    }
    return n;
}

/* Rows of one sequence in pieces for flash.cu. */
static void fill_runs(struct cuda *k, const struct step *s)
{
    int most = flash_rows(&k->cfg);
    k->n_runs = 0;
    for (int i = 0, last; most > 0 && i < s->n_rows; i = last) {
        for (last = i + 1; last < s->n_rows && last - i < most && s->rows[last].seq == s->rows[i].seq; last++)
            ;
        k->host.run[2 * k->n_runs] = i;
        k->host.run[2 * k->n_runs++ + 1] = last - i;
    }
}

/* The draws and, behind `bytes`, their edits; returns where these end. */
static size_t fill_draws(struct cuda *k, const struct draw *draws, size_t bytes)
{
    size_t at = (bytes + sizeof(struct draw_edit) - 1) / sizeof(struct draw_edit) * sizeof(struct draw_edit);
    for (int i = 0; i < k->n_logits; i++) {
        struct draw *d = &k->host.draw[i];
        *d = draws[i];
        size_t n = d->here ? (size_t)(d->n_seen + d->n_bias + d->n_ban) * sizeof *d->edits : 0;
        if (n > 0)
            memcpy(k->step_host + at, d->edits, n);
        d->edits = (const struct draw_edit *)(const void *)(k->step_dev + at);
        at += n;
    }
    return at;
}

void cuda_step_begin(struct kern *kern, const struct step *s)
{
    struct cuda *k = (struct cuda *)kern;
    size_t bytes;
    (void)cudaSetDevice(k->cfg.device_index); /* the current device is the thread's; open may have run in another */
    k->n_rows = s->n_rows;
    k->n_logits = 0;
    k->draws = false;
    k->splits = 1;
    k->x_next = k->x == k->x_home ? k->x_next : k->x; /* a step begins where graphs of its class began */
    k->x = k->x_home;
    for (int i = 0; i < s->n_rows; i++)
        k->n_logits += s->rows[i].want_logits;
    for (int i = 0; s->draws != NULL && draw_usable(k->cfg.n_vocab) && i < k->n_logits; i++)
        k->draws = k->draws || s->draws[i].here;
    k->host = lay_out(k, k->step_host, &bytes);
    k->step = lay_out(k, k->step_dev, &bytes);
    for (int i = 0, n = 0; i < s->n_rows; i++) {
        k->host.pos[i] = s->rows[i].pos;
        k->host.token[i] = s->rows[i].token;
        if (s->rows[i].want_logits)
            k->host.logit_row[n++] = i;
    }
    fill_frequencies(k);
    fill_runs(k, s);
    bytes += (size_t)fill_pages(k, s) * sizeof(int32_t);
    bytes = k->draws ? fill_draws(k, s->draws, bytes) : bytes;
    assert(bytes <= k->step_bytes);
    (void)cudaMemcpyAsync(k->step_dev, k->step_host, bytes, cudaMemcpyHostToDevice, k->stream);
    CU_NOTE(k, "rows");
    cuda_graph_begin(k);
}

/* ---- products ---- */

static bool is_half(enum qtype t)
{
    return t == QTYPE_F16 || t == QTYPE_BF16;
}

struct output {
    const struct mat *m;
    const float *bias;
    float *out;
};

/* The forms of a that these matrices read, the others taken out. */
static struct act read_by(const struct cuda *k, struct act a, const struct output *o, int n)
{
    bool x = false, f16 = false, bf16 = false, q = false;
    for (int i = 0; i < n; i++) {
        enum qtype t = o[i].m->type;
        bool half = is_half(t) && k->code >= CODE_TILE;
        f16 = f16 || (half && t == QTYPE_F16);
        bf16 = bf16 || (half && t == QTYPE_BF16);
        q = q || qtype_info(t)->quantised;
        x = x || (!half && !qtype_info(t)->quantised);
    }
    a.x = x ? a.x : NULL;
    a.f16 = f16 ? a.f16 : NULL;
    a.bf16 = bf16 ? a.bf16 : NULL;
    a.q = q ? a.q : NULL;
    return a;
}

/* tile.cu takes more than 32 columns with fewer instructions, where its blocks fill the card. */
static bool few_suits(const struct cuda *k, const struct product *p)
{
    if (p->group != NULL || p->n_col <= GROUP_COLS / 2)
        return true;
    return p->n_col <= GROUP_COLS && p->n_tile * TILE_ROWS < 2 * 64 * k->n_sm;
}

void cuda_launch_product(struct cuda *k, enum qtype t, const struct product *p)
{
    struct one one = {.p = *p};
    if (k->fuse && p->n_col == 1 && one_suits(k, t, &one))
        launch_one(k, t, &one);
    else if (k->mode == STEP_RECORD)
        persist_product(k, t, p);
    else if (is_half(t) && k->code >= CODE_TILE)
        launch_half(k, t, p);
    else if (qtype_info(t)->quantised && k->code >= CODE_TILE && p->n_col > FEW_COLUMNS && (p->which == NULL || p->group != NULL))
        (few_suits(k, p) ? launch_few : launch_tile)(k, t, p);
    else
        launch_product(k, t, p);
}

/* With many rows, an expert's weights are read once for all rows that chose it. */
static bool is_grouped(const struct cuda *k)
{
    return k->n_rows > FEW_COLUMNS && k->code >= CODE_TILE && k->cfg.n_expert <= MAX_GROUPED;
}

/* As many as there can be. */
static int n_groups(const struct cuda *k)
{
    int slots = k->n_rows * cuda_slots(&k->cfg);
    return slots / GROUP_COLS + (k->cfg.n_expert < slots ? k->cfg.n_expert : slots);
}

/* The product of o[i] and those after it of its type. */
static struct product product_of(const struct cuda *k, const struct output *o, int i, int n, const struct act *act, int n_col)
{
    struct product p = {
        .cols = o[i].m->cols, .n_seg = layout_segments(o[i].m->cols), .n_mat = o[i].m->n_mat, .act = *act, .act_div = 1,
        .n_col = n_col,       .prefetch = k->overlap,
    };
    for (int j = i; j < n; j++)
        if (o[j].m->type == o[i].m->type) {
            p.part[p.n_part++] =
                (struct product_part){o[j].m->data, o[j].bias, o[j].out, o[j].m->rows, layout_tiles(o[j].m->rows)};
            p.n_tile += layout_tiles(o[j].m->rows);
        }
    return p;
}

/* Whether o[i] is the first of its type. */
static bool is_first(const struct output *o, int i)
{
    for (int j = 0; j < i; j++)
        if (o[j].m->type == o[i].m->type)
            return false;
    return true;
}

/* out[i] = m[i] x act for all of them, one launch for each type there is. `which`: a matrix for each column (experts). */
static void product(struct cuda *k, const struct output *o, int n, const struct act *act, int act_div, const int32_t *which,
                    int n_col)
{
    for (int i = 0; i < n; i++) {
        if (!is_first(o, i))
            continue;
        struct product p = product_of(k, o, i, n, act, n_col);
        p.act_div = act_div;
        p.which = which;
        p.prefetch = p.prefetch && which == NULL;
        if (which != NULL && is_grouped(k)) {
            p.order = k->order;
            p.group = k->group;
            p.n_group = n_groups(k);
        }
        cuda_launch_product(k, o[i].m->type, &p);
    }
}

/* ---- one row: what is between two products is in them (one.cu) ---- */

static struct one one_of(const struct cuda *k, const struct output *o, int i, int n, const struct act *act, struct source source)
{
    return (struct one){.p = product_of(k, o, i, n, act, 1), .source = source};
}

/* Whether products of all these can take their row from such a source. */
static bool can_fuse(const struct cuda *k, const struct output *o, int n, struct source source)
{
    bool can = k->fuse && k->n_rows == 1;
    for (int i = 0; can && i < n; i++) {
        struct one one = one_of(k, o, i, i + 1, &k->xn, source);
        can = one_suits(k, o[i].m->type, &one);
    }
    return can;
}

/* out[i] = m[i] x what the source makes, a launch a type; the first leaves the residual where the next phases look for it. */
static void fused_product(struct cuda *k, const struct output *o, int n, struct source source)
{
    for (int i = 0; i < n; i++) {
        if (!is_first(o, i))
            continue;
        struct one one = one_of(k, o, i, n, &k->xn, source);
        launch_one(k, o[i].m->type, &one);
        source.sum = NULL;
    }
}

static struct source norm_source(struct cuda *k, bool has_pending, const float *pending_norm, const float *w)
{
    return (struct source){.kind = SOURCE_NORM, .x = k->x, .y = has_pending ? k->y : NULL, .pending_norm = pending_norm,
                           .norm = w, .sum = has_pending ? k->x_next : NULL, .eps = k->cfg.norm_eps};
}

/* After the launches that read x: what they left in x_next is x. */
static void turn_residual(struct cuda *k)
{
    float *x = k->x;
    k->x = k->x_next;
    k->x_next = x;
}

static void norm(struct cuda *k, bool has_pending, const float *pending_norm, const float *w, const int32_t *rows, int n,
                 struct act out)
{
    struct norm_args a = {
        .x = k->x, .y = k->y, .pending_norm = pending_norm, .norm = w, .has_pending = has_pending, .rows = rows, .n = n,
        .dim = k->cfg.dim, .eps = k->cfg.norm_eps, .out = out,
    };
    launch_norm(k, &a);
}

/* out[i] = m[i] x norm(x + pending) for n_row of the step's rows: `rows`, NULL = all. */
static void normed_product(struct cuda *k, const struct output *o, int n, bool has_pending, const float *pending_norm,
                           const float *w, const int32_t *rows, int n_row)
{
    struct source source = norm_source(k, has_pending, pending_norm, w);
    if (!can_fuse(k, o, n, source)) {
        norm(k, has_pending, pending_norm, w, rows, n_row, read_by(k, k->xn, o, n));
        product(k, o, n, &k->xn, 1, NULL, n_row);
        return;
    }
    fused_product(k, o, n, source);
    if (has_pending)
        turn_residual(k);
}

/* ---- phases ---- */

/* What they launch is in a graph already, or in a program; or the card has failed: what kernels would read may not be there. */
static bool is_made(const struct cuda *k)
{
    return k->mode == STEP_REPLAY || k->mode == STEP_RERUN || k->failed != cudaSuccess;
}

void cuda_embed(struct kern *kern, const struct mat *table)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    launch_angles(k);
    launch_embed(k, table);
}

void cuda_attn_in(struct kern *kern, const struct layer *l)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    const struct attn_in_params *p = &l->attn_in;
    const struct output out[] = {{&p->q, p->q_bias, k->q}, {&p->k, p->k_bias, k->k}, {&p->v, p->v_bias, k->v}};
    normed_product(k, out, 3, p->has_pending, p->pending_norm, p->norm, NULL, k->n_rows);
    launch_heads(k, l);
}

void cuda_attn(struct kern *kern, const struct layer *l)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    const struct output reader = {&l->attn_out.o, NULL, NULL};
    struct act out = read_by(k, k->attn, &reader, 1);
    launch_attn(k, l, &out);
}

void cuda_attn_out(struct kern *kern, const struct layer *l)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    const struct output out[] = {{&l->attn_out.o, l->attn_out.o_bias, k->y}};
    product(k, out, 1, &k->attn, 1, NULL, k->n_rows);
}

void cuda_route(struct kern *kern, const struct layer *l)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    const struct output out[] = {{&l->route.router, l->route.router_bias, k->router},
                                 {&l->ffn.gate, NULL, NULL}, {&l->ffn.up, NULL, NULL}};
    norm(k, true, l->ffn.pending_norm, l->ffn.norm, NULL, k->n_rows, read_by(k, k->xn, out, 3));
    product(k, out, 1, &k->xn, 1, NULL, k->n_rows);
    launch_choose(k);
    if (is_grouped(k))
        launch_group(k, k->n_rows * cuda_slots(&k->cfg), n_groups(k));
}

/* Gated rows as one.cu leaves them. */
static struct source gated_source(const struct cuda *k)
{
    return (struct source){.kind = SOURCE_ROW, .x = k->gate};
}

/* Whether the product of gate and up stores what comes out of both alone, and the one of down takes it from there. */
static bool gates_inside(struct cuda *k, const struct layer *l)
{
    const struct ffn_params *p = &l->ffn;
    const struct output pair[] = {{&p->gate, NULL, NULL}, {&p->up, NULL, NULL}}, down = {&p->down, NULL, NULL};
    return l->route.router.data == NULL && p->gate.type == p->up.type &&
           can_fuse(k, pair, 2, norm_source(k, true, p->pending_norm, p->norm)) && can_fuse(k, &down, 1, gated_source(k));
}

void cuda_ffn_in(struct kern *kern, const struct layer *l)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    const struct ffn_params *p = &l->ffn;
    const struct output out[] = {{&p->gate, p->gate_bias, k->gate}, {&p->up, p->up_bias, k->up}};
    bool moe = l->route.router.data != NULL;
    int used = cuda_slots(&k->cfg), n = k->n_rows * used;
    if (gates_inside(k, l)) {
        struct one one = one_of(k, out, 0, 2, &k->xn, norm_source(k, true, p->pending_norm, p->norm));
        one.h = k->gate;
        one.ffn = k->cfg.act;
        launch_one(k, p->gate.type, &one);
        turn_residual(k);
        return;
    }
    if (!moe)
        norm(k, true, p->pending_norm, p->norm, NULL, k->n_rows, read_by(k, k->xn, out, 2));
    product(k, out, 2, &k->xn, used, moe ? k->expert : NULL, n);
    const struct output reader = {&p->down, NULL, NULL};
    struct act h = read_by(k, k->h, &reader, 1);
    launch_gate(k, n, p->gate.rows, &h);
}

void cuda_ffn_out(struct kern *kern, const struct layer *l)
{
    struct cuda *k = (struct cuda *)kern;
    if (is_made(k))
        return;
    bool moe = l->route.router.data != NULL;
    const struct output out[] = {{&l->ffn.down, l->ffn.down_bias, moe ? k->branch : k->y}};
    if (gates_inside(k, l)) {
        fused_product(k, out, 1, gated_source(k));
        return;
    }
    product(k, out, 1, &k->h, 1, moe ? k->expert : NULL, k->n_rows * cuda_slots(&k->cfg));
    if (moe)
        launch_blend(k);
}

void cuda_head(struct kern *kern, const struct head_params *p)
{
    struct cuda *k = (struct cuda *)kern;
    k->has_head = true;
    if (is_made(k))
        return;
    const struct output out[] = {{&p->out, NULL, k->logits}};
    normed_product(k, out, 1, true, p->pending_norm, p->norm, k->step.logit_row, k->n_logits);
    if (k->draws && k->mode != STEP_RECORD)
        launch_draw(k);
}
