/* The x86 products: one source for every format, tile and instruction set. A product_<isa>.c sets
 * PRODUCT_BITS, PRODUCT_VNNI and PRODUCT_TABLE and includes this; it is compiled with its own
 * flags. Everything is inlined with a constant format and tile size, so each instance folds to the
 * few instructions its format needs.
 *
 * A tile is nv vectors of outputs times nc activation rows. Every output is one lane, and a lane
 * does the sums of product.h in their order whatever the tile: that is why all tiles and sets give
 * the same bytes. */
#include "kernels/cpu/packed.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/product_vec.h"

/* NO_UNROLL: with sanitizers, because GCC cannot unroll an instrumented loop and warns about it. */
#if defined(NO_UNROLL)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum {
    MAX_NV = 4,
    MAX_NC = 4,
    AHEAD = 2048, /* bytes of prefetch: more than the hardware's on Zen 3, +20 % from memory */
    L2_BYTES = 128 << 10, /* float weights that many activation rows go through together */
    PANEL_NV = 2,
    PANEL_BYTES = 16 << 10, /* with the activations of a tile it stays in L1 */
};

/* The groups of one vector: the first, and how far the next lies; 0 when there is none and its
 * lanes repeat the first. */
struct lanes {
    const uint8_t *p;
    size_t next;
};

INLINE bool is_float(enum qtype t)
{
    return t == QTYPE_F32 || t == QTYPE_F16 || t == QTYPE_BF16;
}

/* Codes that are signed bytes of full range. */
INLINE bool is_wide(enum qtype t)
{
    return !PRODUCT_VNNI && (t == QTYPE_Q8_0 || t == QTYPE_IQ4_NL || t == QTYPE_IQ4_XS);
}

/* What codes() adds to the true code to make it unsigned. */
INLINE int code_offset(enum qtype t)
{
    switch (t) {
    case QTYPE_Q3_K:
        return 4;
    case QTYPE_Q4_0:
        return 8;
    case QTYPE_MXFP4:
        return 12;
    case QTYPE_Q5_0:
        return 16;
    case QTYPE_Q6_K:
        return 32;
    case QTYPE_Q8_0:
    case QTYPE_IQ4_NL:
    case QTYPE_IQ4_XS:
        return PRODUCT_VNNI ? 128 : 0;
    default:
        return 0;
    }
}

INLINE int n_min_terms(enum qtype t)
{
    switch (t) {
#define QTYPE(name, id, n, block, mins)                                                            \
    case QTYPE_##name:                                                                             \
        return mins;
#include "kernels/qtypes.def"
#undef QTYPE
    default:
        return 0;
    }
}

/* A block is summed in two halves where sub-scales differ, or where 16 bits do not hold it: a 5-bit
 * code without offset gives up to 31 * 127 * 8 a half. */
INLINE int n_halves(enum qtype t)
{
    return packed_format(t).n_scales == 2 || (!PRODUCT_VNNI && (t == QTYPE_Q5_1 || t == QTYPE_Q5_K))
               ? 2
               : 1;
}

/* Codes of quad q (0..7) of a block: unsigned bytes with the offset added, signed bytes if is_wide.
 */
INLINE vi codes(enum qtype t, struct lanes block, int q)
{
    const struct packed_format f = packed_format(t);
    const struct packed_layout l = packed_layout(t);
    const int offset = code_offset(t);
    if (f.byte) {
        vi u = v_load(block.p + 32 * q, block.next);
        return offset ? V_BITS(xor)(u, V(set1_epi8)((char)offset)) : u;
    }
    vi u = V_BITS(setzero)();
    int shift = 0;
    if (f.nibble) {
        u = V_BITS(and)(v_shift16(v_load(block.p + 32 * (q % 4), block.next), q < 4 ? 0 : -4),
                        V(set1_epi8)(15));
        shift = 4;
    }
    if (f.two) {
        vi two = v_shift16(v_load(block.p + l.two + 32 * (q / 4), block.next), shift - 2 * (q % 4));
        u = V_BITS(or)(u, V_BITS(and)(two, V(set1_epi8)((char)(3 << shift))));
        shift += 2;
    }
    if (f.bit) {
        vi bit = v_shift16(v_load(block.p + l.bit, block.next), shift - q);
        u = V_BITS(or)(u, V_BITS(and)(bit, V(set1_epi8)((char)(1 << shift))));
    }
    if (t == QTYPE_MXFP4 || t == QTYPE_IQ4_NL || t == QTYPE_IQ4_XS) {
        vi table = v_table(t == QTYPE_MXFP4 ? mxfp4_values : iq4_values);
        u = V(shuffle_epi8)(V(add_epi8)(table, V(set1_epi8)((char)offset)), u);
    }
    return u;
}

/* Sub-scales of half h. */
INLINE vi sub_scale(enum qtype t, struct lanes block, int h)
{
    const struct packed_format f = packed_format(t);
    const uint8_t *p = block.p + packed_layout(t).scale + (f.n_scales == 2 ? PACK_ROWS * h : 0);
    vi s = V_BITS(setzero)();
    if (f.n_scales)
        s = t == QTYPE_Q2_K ? V_BITS(and)(v_load_u8(p, block.next), V(set1_epi32)(15))
                            : v_load_i8(p, block.next);
    return dot_scale(is_wide(t), f.n_scales > 0, s);
}

/* The block's scale; d is where d and m are counted from. */
INLINE vf scale(enum qtype t, struct lanes d)
{
    const uint8_t *p = d.p + packed_layout(t).d;
    if (t != QTYPE_MXFP4)
        return v_load_f16(p, d.next);
    /* num_e8m0_half */
    vi e = v_load_u8(p, d.next), tiny = V(sllv_epi32)(V(set1_epi32)(0x00200000), e);
    return v_as_float(
        v_if_less(e, V(set1_epi32)(2), tiny, V(slli_epi32)(V(sub_epi32)(e, V(set1_epi32)(1)), 23)));
}

/* The minimum term of half h; in the K formats dmin * m, which is to be subtracted. */
INLINE vf minimum(enum qtype t, struct lanes block, struct lanes d, int h)
{
    const struct packed_format f = packed_format(t);
    const struct packed_layout l = packed_layout(t);
    vf m = v_load_f16(d.p + l.m, d.next);
    if (t == QTYPE_Q2_K)
        return V(mul_ps)(m, V(cvtepi32_ps)(V(srli_epi32)(
                                v_load_u8(block.p + l.scale + PACK_ROWS * h, block.next), 4)));
    return f.n_mins ? V(mul_ps)(m, V(cvtepi32_ps)(v_load_u8(block.p + l.min, block.next))) : m;
}

INLINE vf add_minimum(enum qtype t, vf min, float s, vf acc)
{
    return packed_format(t).super ? V(fnmadd_ps)(min, V(set1_ps)(s), acc)
                                  : V(fmadd_ps)(min, V(set1_ps)(s), acc);
}

/* ---- panels ----
 * With many rows the weights of a tile are unpacked once: the first rows leave what they unpacked in
 * L1, the others find it ready. Per block and vector: the codes of 8 quads, the sub-scales, the
 * scale, the minimum terms. */

struct panel_layout {
    int scale, d, min, block; /* bytes */
};

INLINE struct panel_layout panel_layout(enum qtype t)
{
    struct panel_layout l = {.scale = 8 * V_BYTES};
    l.d = l.scale + packed_format(t).n_scales * V_BYTES;
    l.min = l.d + V_BYTES;
    l.block = l.min + n_min_terms(t) * V_BYTES;
    return l;
}

/* Blocks of a panel: whole segments, in parts of about the same size. */
INLINE int panel_blocks(enum qtype t, int n_blocks)
{
    const int segment = NUM_SEGMENT / NUM_BLOCK;
    const int most = PANEL_BYTES / (PANEL_NV * panel_layout(t).block) / segment * segment;
    int n_parts = (n_blocks + most - 1) / most;
    return (n_blocks + n_parts * segment - 1) / (n_parts * segment) * segment;
}

/* Where a block's weights come from. */
enum from { PACKED, PACKED_TO_PANEL, PANEL };
struct source {
    struct lanes block, d; /* packed */
    uint8_t *panel;
};

INLINE vi through_panel(enum from from, uint8_t *panel, vi packed)
{
    if (from == PANEL)
        return v_get(panel);
    if (from == PACKED_TO_PANEL)
        v_put(panel, packed);
    return packed;
}

INLINE vi get_codes(enum qtype t, enum from from, const struct source *s, int q)
{
    return through_panel(from, s->panel + q * V_BYTES, codes(t, s->block, q));
}

INLINE vi get_sub_scale(enum qtype t, enum from from, const struct source *s, int h)
{
    const int n = packed_format(t).n_scales;
    vi scale = sub_scale(t, s->block, h);
    return n == 0 ? scale
                  : through_panel(from, s->panel + panel_layout(t).scale + (n == 2 ? h * V_BYTES : 0),
                                  scale);
}

INLINE vf get_scale(enum qtype t, enum from from, const struct source *s)
{
    return v_as_float(through_panel(from, s->panel + panel_layout(t).d, v_as_int(scale(t, s->d))));
}

INLINE vf get_minimum(enum qtype t, enum from from, const struct source *s, int h)
{
    return v_as_float(through_panel(from, s->panel + panel_layout(t).min + h * V_BYTES,
                                    v_as_int(minimum(t, s->block, s->d, h))));
}

/* ---- tiles ---- */

/* The integer sums of one block. */
INLINE void dot_block(enum qtype t, enum from from, const int nv, const int nc,
                      const struct source *w, const struct act_block *const *a, int i,
                      vi sum[MAX_NV][MAX_NC])
{
    const int halves = n_halves(t), offset = code_offset(t);
    const bool wide = is_wide(t), scaled = packed_format(t).n_scales > 0;
    UNROLL
    for (int h = 0; h < halves; h++) {
        vi dot[MAX_NV][MAX_NC];
        UNROLL
        for (int j = 0; j < 8 / halves; j++) {
            const int q =
                halves == 2 ? 4 * h + j : j / 2 + j % 2 * 4; /* both nibbles of a vector in turn */
            vi u[MAX_NV];
            UNROLL
            for (int v = 0; v < nv; v++)
                u[v] = get_codes(t, from, &w[v], q);
            UNROLL
            for (int c = 0; c < nc; c++) {
                vi x = v_quad(a[c][i].q + 4 * q);
                UNROLL
                for (int v = 0; v < nv; v++)
                    dot[v][c] = dot_add(wide, j == 0, dot[v][c], u[v], x);
            }
        }
        UNROLL
        for (int v = 0; v < nv; v++) {
            vi s = get_sub_scale(t, from, &w[v], h);
            UNROLL
            for (int c = 0; c < nc; c++) {
                vi x = dot[v][c];
                if (offset)
                    x = dot_offset(x, v_quad(halves == 2 ? a[c][i].pair[h] : a[c][i].pair32),
                                   offset);
                x = dot_finish(wide, scaled, x, s);
                sum[v][c] = h == 0 ? x : V(add_epi32)(sum[v][c], x);
            }
        }
    }
}

INLINE void add_block(enum qtype t, enum from from, const int nv, const int nc,
                      const struct source *w, const struct act_block *const *a, int i,
                      vf acc[MAX_NV][MAX_NC])
{
    const int n_mins = n_min_terms(t);
    vi sum[MAX_NV][MAX_NC];
    dot_block(t, from, nv, nc, w, a, i, sum);
    UNROLL
    for (int v = 0; v < nv; v++) {
        vf dw = get_scale(t, from, &w[v]), min[2] = {dw, dw};
        UNROLL
        for (int h = 0; h < n_mins; h++)
            min[h] = get_minimum(t, from, &w[v], h);
        UNROLL
        for (int c = 0; c < nc; c++) {
            vf x = V(fmadd_ps)(V(cvtepi32_ps)(sum[v][c]), V(mul_ps)(dw, V(set1_ps)(a[c][i].d)),
                               acc[v][c]);
            UNROLL
            for (int h = 0; h < n_mins; h++)
                x = add_minimum(t, min[h], n_mins == 1 ? a[c][i].s : a[c][i].s16[h], x);
            acc[v][c] = x;
        }
    }
}

/* The block AHEAD of this one in the order of reading. */
INLINE void prefetch(const struct source *block, const int bytes)
{
    UNROLL
    for (int k = 0; k < bytes; k += 64)
        _mm_prefetch((const char *)block->block.p + AHEAD + k, _MM_HINT_T0);
}

/* Some bytes of a block that lies `distance` bytes ahead, into L2. */
INLINE void prefetch_far(const int nv, const struct source *block, size_t distance, const int from,
                         const int to)
{
    UNROLL
    for (int v = 0; v < nv; v++)
        UNROLL
    for (int g = 0; g < V_GROUPS; g++)
        UNROLL
    for (int k = from; k < to; k += 64)
        _mm_prefetch((const char *)block[v].block.p + (size_t)g * block[v].block.next + distance + k,
                     _MM_HINT_T1);
}

INLINE void fill(const int nv, const int nc, float x, vf y[MAX_NV][MAX_NC])
{
    UNROLL
    for (int v = 0; v < nv; v++)
        UNROLL
    for (int c = 0; c < nc; c++)
        y[v][c] = V(set1_ps)(x);
}

INLINE void add(const int nv, const int nc, vf y[MAX_NV][MAX_NC], vf x[MAX_NV][MAX_NC])
{
    UNROLL
    for (int v = 0; v < nv; v++)
        UNROLL
    for (int c = 0; c < nc; c++)
        y[v][c] = V(add_ps)(y[v][c], x[v][c]);
}

/* Sums of blocks [i0, i0 + n) of a quantised format; i0 begins a segment, a and panel begin there.
 * far: bytes to the next tile, which is fetched meanwhile; with a panel by the first two tiles of rows
 * together so that memory works evenly; 0 for the others. A tile of one group is a single near stream. */
INLINE void tile_quantised(enum qtype t, enum from from, const int nv, const int nc,
                           const struct lanes *w, uint8_t *panel, int i0, int n, size_t far,
                           const struct act_block *const *a, vf total[MAX_NV][MAX_NC])
{
    const struct packed_layout l = packed_layout(t);
    const int panel_bytes = panel_layout(t).block, half = l.block / 128 * 64;
    for (int j0 = 0; j0 < n; j0 += NUM_SEGMENT / NUM_BLOCK) {
        int end = j0 + NUM_SEGMENT / NUM_BLOCK < n ? j0 + NUM_SEGMENT / NUM_BLOCK : n;
        struct source s[MAX_NV];
        vf acc[MAX_NV][MAX_NC];
        fill(nv, nc, 0, acc);
        UNROLL
        for (int v = 0; v < nv; v++) /* a segment never crosses a super-block */
            s[v] = (struct source){{w[v].p + packed_block(t, i0 + j0), w[v].next},
                                   {w[v].p + packed_d(t, i0 + j0), w[v].next},
                                   panel + (j0 * nv + v) * panel_bytes};
        for (int j = j0; j < end; j++) {
            if (from == PACKED && nv * V_GROUPS == 1)
                prefetch(s, l.block);
            else if (from == PACKED)
                prefetch_far(nv, s, far, 0, l.block);
            else if (from == PACKED_TO_PANEL)
                prefetch_far(nv, s, far, 0, half);
            else if (far > 0)
                prefetch_far(nv, s, far, half, l.block);
            add_block(t, from, nv, nc, s, a, j, acc);
            UNROLL
            for (int v = 0; v < nv; v++) {
                s[v].block.p += l.block;
                s[v].d.p += l.head ? 0 : l.block;
                s[v].panel += nv * panel_bytes;
            }
        }
        add(nv, nc, total, acc);
    }
}

INLINE vf weight(enum qtype t, struct lanes w, int k)
{
    if (t == QTYPE_F32)
        return v_as_float(v_load(w.p + (size_t)k * 32, w.next));
    const uint8_t *p = w.p + (size_t)k * 16;
    return t == QTYPE_F16 ? v_load_f16(p, w.next) : v_load_bf16(p, w.next);
}

/* The same of a float format: rows of floats. */
INLINE void tile_float(enum qtype t, const int nv, const int nc, const struct lanes *w, int cols,
                       const void *const *rows, vf total[MAX_NV][MAX_NC])
{
    const float *x[MAX_NC];
    UNROLL
    for (int c = 0; c < nc; c++)
        x[c] = rows[c];
    for (int k0 = 0; k0 < cols; k0 += NUM_SEGMENT) {
        int end = k0 + NUM_SEGMENT < cols ? k0 + NUM_SEGMENT : cols;
        vf acc[MAX_NV][MAX_NC];
        fill(nv, nc, 0, acc);
        for (int k = k0; k < end; k++) {
            vf wk[MAX_NV];
            UNROLL
            for (int v = 0; v < nv; v++)
                wk[v] = weight(t, w[v], k);
            UNROLL
            for (int c = 0; c < nc; c++)
                UNROLL
            for (int v = 0; v < nv; v++)
                acc[v][c] = V(fmadd_ps)(wk[v], V(set1_ps)(x[c][k]), acc[v][c]);
        }
        add(nv, nc, total, acc);
    }
}

/* The groups of vector v of a tile that begins at group g. */
INLINE struct lanes lanes_at(const uint8_t *groups, size_t group_bytes, int n_groups, int g, int v)
{
    int at = g + v * V_GROUPS < n_groups ? g + v * V_GROUPS : g;
    return (struct lanes){groups + (size_t)at * group_bytes, at + 1 < n_groups ? group_bytes : 0};
}

/* n_rows (at most nc; the last is repeated) rows times all groups. */
INLINE void sweep(enum qtype t, const int nv, const int nc, const uint8_t *groups, int n_groups,
                  int cols, const uint8_t *acts, size_t act_stride, int n_rows, float *out,
                  size_t out_stride)
{
    const size_t group_bytes = pack_group_bytes(t, cols);
    const void *rows[MAX_NC];
    const struct act_block *a[MAX_NC];
    UNROLL
    for (int c = 0; c < nc; c++)
        a[c] = rows[c] = acts + (size_t)(c < n_rows ? c : n_rows - 1) * act_stride;
    for (int g = 0; g < n_groups; g += nv * V_GROUPS) {
        struct lanes w[MAX_NV];
        vf total[MAX_NV][MAX_NC];
        fill(nv, nc, -0.0f,
             total); /* plus the first segment is that segment, zeros of both signs included */
        UNROLL
        for (int v = 0; v < nv; v++)
            w[v] = lanes_at(groups, group_bytes, n_groups, g, v);
        if (is_float(t))
            tile_float(t, nv, nc, w, cols, rows, total);
        else
            tile_quantised(t, PACKED, nv, nc, w, NULL, 0, cols / NUM_BLOCK,
                           (size_t)(nv * V_GROUPS) * group_bytes, a, total);
        UNROLL
        for (int c = 0; c < nc; c++)
            UNROLL
        for (int v = 0; v < nv; v++)
            v_store(out + (size_t)c * out_stride + (size_t)(g + v * V_GROUPS) * PACK_ROWS,
                    total[v][c], c < n_rows ? n_groups - g - v * V_GROUPS : 0);
    }
}

/* A part of the columns of one tile of groups. */
struct part {
    struct lanes w[PANEL_NV];
    int n_groups; /* of the tile and behind it */
    int i0, n;    /* blocks */
    uint8_t *panel;
};

/* n_rows (at most nc count) rows times a part; the sums go on from out unless it is the first part. */
INLINE void tile_part(enum qtype t, enum from from, const int nc, const struct part *p,
                      size_t far, const uint8_t *acts, size_t act_stride, int n_rows, float *out,
                      size_t out_stride)
{
    const struct act_block *a[MAX_NC];
    vf total[MAX_NV][MAX_NC];
    UNROLL
    for (int c = 0; c < nc; c++)
        a[c] = (const struct act_block *)(acts + (size_t)(c < n_rows ? c : n_rows - 1) * act_stride) +
               p->i0;
    UNROLL
    for (int c = 0; c < nc; c++)
        UNROLL
    for (int v = 0; v < PANEL_NV; v++)
        total[v][c] = p->i0 == 0 ? V(set1_ps)(-0.0f)
                                 : v_fetch(out + (size_t)c * out_stride + v * V_GROUPS * PACK_ROWS,
                                           c < n_rows ? p->n_groups - v * V_GROUPS : 0);
    tile_quantised(t, from, PANEL_NV, nc, p->w, p->panel, p->i0, p->n, far, a, total);
    UNROLL
    for (int c = 0; c < nc; c++)
        UNROLL
    for (int v = 0; v < PANEL_NV; v++)
        v_store(out + (size_t)c * out_stride + v * V_GROUPS * PACK_ROWS, total[v][c],
                c < n_rows ? p->n_groups - v * V_GROUPS : 0);
}

/* Many rows of a quantised format: a tile of groups stays, all rows pass. */
INLINE void product_many(enum qtype t, const uint8_t *groups, int n_groups, int cols,
                         const uint8_t *acts, size_t act_stride, int n_rows, float *out,
                         size_t out_stride)
{
    _Alignas(64) uint8_t panel[PANEL_BYTES];
    const size_t group_bytes = pack_group_bytes(t, cols), tile_bytes = PANEL_NV * V_GROUPS * group_bytes;
    const int n_blocks = cols / NUM_BLOCK, step = panel_blocks(t, n_blocks);
    for (int g = 0; g < n_groups; g += PANEL_NV * V_GROUPS) {
        struct part p = {.n_groups = n_groups - g, .panel = panel};
        UNROLL
        for (int v = 0; v < PANEL_NV; v++)
            p.w[v] = lanes_at(groups, group_bytes, n_groups, g, v);
        for (; p.i0 < n_blocks; p.i0 += step) {
            float *y = out + (size_t)g * PACK_ROWS;
            p.n = n_blocks - p.i0 < step ? n_blocks - p.i0 : step;
            tile_part(t, PACKED_TO_PANEL, MAX_NC, &p, tile_bytes, acts, act_stride, MAX_NC, y,
                      out_stride);
            for (int r = MAX_NC; r < n_rows; r += MAX_NC) {
                const uint8_t *a = acts + (size_t)r * act_stride;
                float *yr = y + (size_t)r * out_stride;
                size_t far = r == MAX_NC ? tile_bytes : 0;
                if (n_rows - r > 2)
                    tile_part(t, PANEL, MAX_NC, &p, far, a, act_stride, n_rows - r, yr, out_stride);
                else
                    tile_part(t, PANEL, 2, &p, far, a, act_stride, n_rows - r, yr, out_stride);
            }
        }
    }
}

INLINE void product(enum qtype t, const uint8_t *groups, int n_groups, int cols,
                    const uint8_t *acts, size_t act_stride, int n_rows, float *out,
                    size_t out_stride)
{
    if (n_rows > MAX_NC && !is_float(t)) {
        product_many(t, groups, n_groups, cols, acts, act_stride, n_rows, out, out_stride);
        return;
    }
    const size_t group_bytes = pack_group_bytes(t, cols);
    int step = (int)(L2_BYTES / group_bytes) & ~(MAX_NV - 1);
    if (n_rows <= MAX_NC)
        step = n_groups;
    else if (step < MAX_NV)
        step = MAX_NV;
    for (int g = 0; g < n_groups; g += step) {
        const uint8_t *w = groups + (size_t)g * group_bytes;
        int n = n_groups - g < step ? n_groups - g : step;
        for (int r = 0; r < n_rows; r += MAX_NC) {
            const uint8_t *a = acts + (size_t)r * act_stride;
            float *y = out + (size_t)r * out_stride + (size_t)g * PACK_ROWS;
            const int left = n_rows - r;
            if (left > 2)
                sweep(t, 2, MAX_NC, w, n, cols, a, act_stride, left, y, out_stride);
            else if (left == 2)
                sweep(t, 2, 2, w, n, cols, a, act_stride, left, y, out_stride);
            else if (is_float(t)) /* a sum is a chain of fused multiply-adds: 4 of them hide its
                                     latency */
                sweep(t, 4, 1, w, n, cols, a, act_stride, left, y, out_stride);
            else /* one vector: of one group a single stream of memory, the fastest on Zen 3 */
                sweep(t, 1, 1, w, n, cols, a, act_stride, left, y, out_stride);
        }
    }
}

#define QTYPE(name, id, n, block, mins)                                                            \
    static void product_##name(const void *groups, int n_groups, int cols, const void *acts,       \
                               size_t act_stride, int n_rows, float *out, size_t out_stride)       \
    {                                                                                              \
        product(QTYPE_##name, groups, n_groups, cols, acts, act_stride, n_rows, out, out_stride);  \
    }
#include "kernels/qtypes.def"
#undef QTYPE

/* Codes and sums of one block; the same in all sets, so 256 bits are enough. */
static void quantise(const float *x, int cols, struct act_block *out)
{
    const __m256 abs = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m128i first = _mm_setr_epi32(-1, 0, 0, 0);
    for (int i = 0; i < cols / NUM_BLOCK; i++, x += NUM_BLOCK, out++) {
        __m256 max = _mm256_setzero_ps();
        __m256i q[4];
        for (int v = 0; v < 4; v++) /* max(NaN, max) is max */
            max = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + 8 * v), abs), max);
        __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
        max4 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
        float inv,
            d = num_quant_scale(_mm_cvtss_f32(_mm_max_ss(max4, _mm_movehdup_ps(max4))), &inv);
        for (int v = 0; v < 4;
             v++) { /* max(NaN, -127) is -127; clamping before rounding gives the same codes */
            __m256 y = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * v), _mm256_set1_ps(inv));
            y = _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-127)), _mm256_set1_ps(127));
            q[v] = _mm256_cvtps_epi32(y);
        }
        __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
        __m256i all = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
        _mm256_storeu_si256((__m256i *)out->q, all);
        __m256i pairs =
            _mm256_maddubs_epi16(_mm256_set1_epi8(1), all); /* bytes 2 p and 2 p + 1 of each quad */
        pairs = _mm256_add_epi16(pairs, _mm256_srli_si256(pairs, 8));
        pairs = _mm256_add_epi16(pairs, _mm256_srli_si256(pairs, 4));
        /* pair, pair32, unused: one store; their sums times d: another */
        __m128i pair = _mm_unpacklo_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        __m128i both = _mm_add_epi16(pair, _mm_shuffle_epi32(pair, 0x01));
        pair = _mm_unpacklo_epi64(pair, _mm_and_si128(both, first));
        _mm_storeu_si128((__m128i *)out->pair, pair);
        __m128 sum = _mm_cvtepi32_ps(_mm_madd_epi16(pair, _mm_set1_epi16(1)));
        sum = _mm_mul_ps(_mm_shuffle_ps(sum, sum, _MM_SHUFFLE(1, 0, 2, 3)), _mm_set1_ps(d));
        _mm_storeu_ps(&out->d, _mm_move_ss(sum, _mm_set_ss(d)));
    }
}

const struct product_isa PRODUCT_TABLE = {
    .name = PRODUCT_NAME,
    .quantise = quantise,
    .product =
        {
#define QTYPE(name, id, n, block, mins) [QTYPE_##name] = product_##name,
#include "kernels/qtypes.def"
#undef QTYPE
        },
};
