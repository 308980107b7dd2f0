/* The source of every cpu_ops table: included once per instruction set after v8 (eight floats), its operations, and the WIDE
 * lanes of vw with theirs, VW(name), are defined. Lanes never mix except where the contract says how. */

enum { MOST_QUERIES = 6 };    /* of a block */

/* The sum of 64 lanes: strides 32 and 16, as long as there are vectors 8 over vectors, then the rest inside one. */
static float tree64(vw s[64 / WIDE])
{
    for (int stride = 32 / WIDE; stride > 0; stride /= 2)
        for (int i = 0; i < stride; i++)
            s[i] = VW(add)(s[i], s[i + stride]);
    return VW(tree)(s[0]);
}

static inline __attribute__((always_inline)) void prefetch(const void *p, size_t at, const size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + at + i);
}

static float norm_scale(const float *x, int n, float eps)
{
    vw s[64 / WIDE];
    for (int j = 0; j < 64 / WIDE; j++)
        s[j] = VW(set1)(0);
    for (int i = 0; i < n; i += 64) {
        float t[64];
        const float *p = x + i;
        if (n - i < 64) {    /* lanes past the end add exact zeros */
            memset(t, 0, sizeof t);
            p = memcpy(t, p, (size_t)(n - i) * sizeof *p);
        }
        for (int j = 0; j < 64 / WIDE; j++) {
            vw v = VW(load)(p + WIDE * j);
            s[j] = VW(fma)(v, v, s[j]);
        }
    }
    return 1.0f / sqrtf(tree64(s) / (float)n + eps);
}

static void op_norm(const float *x, const float *w, int n, float eps, float *out)
{
    float scale = norm_scale(x, n, eps);
    v8 sc = v8_set1(scale);
    int i = 0;
    for (; i + 8 <= n; i += 8)
        v8_store(out + i, v8_mul(v8_mul(v8_load(x + i), sc), v8_load(w + i)));
    for (; i < n; i++)
        out[i] = x[i] * scale * w[i];
}

static void op_add(float *x, const float *y, int n)
{
    int i = 0;
    for (; i + 8 <= n; i += 8)
        v8_store(x + i, v8_add(v8_load(x + i), v8_load(y + i)));
    for (; i < n; i++)
        x[i] = x[i] + y[i];
}

static void op_add_branch(float *x, float *y, const float *w, int n, float eps)
{
    if (w != NULL)
        op_norm(y, w, n, eps, y);
    op_add(x, y, n);
}

static void op_rotate(float *head, const float *cos, const float *sin, int half, bool neox)
{
    int i = 0;
    for (; neox && i + 8 <= half; i += 8) {
        v8 a = v8_load(head + i), b = v8_load(head + half + i), c = v8_load(cos + i), s = v8_load(sin + i);
        v8_store(head + i, v8_fnma(b, s, a, c));
        v8_store(head + half + i, v8_fma(a, s, v8_mul(b, c)));
    }
    for (; i < half; i++)
        num_rotate(neox ? head + i : head + 2 * i, neox ? head + half + i : head + 2 * i + 1, cos[i], sin[i]);
}

static void op_scale(float *x, float s, int n)
{
    v8 v = v8_set1(s);
    int i = 0;
    for (; i + 8 <= n; i += 8)
        v8_store(x + i, v8_mul(v8_load(x + i), v));
    for (; i < n; i++)
        x[i] = x[i] * s;
}

/* num_silu, num_gelu and num_swiglu_clamped times up, lane by lane. */
static v8 activate(enum ffn_act act, v8 g, v8 u)
{
    v8 one = v8_set1(1);
    if (act == ACT_GELU) {
        v8 t = v8_fma(v8_mul(v8_set1(0.044715f), g), v8_mul(g, g), g);
        v8 e = v8_exp(v8_mul(t, v8_set1(1.5957691216057308f)));
        return v8_mul(v8_sub(g, v8_div(g, v8_add(one, e))), u);
    }
    if (act == ACT_SWIGLU_CLAMPED) {
        g = v8_min(g, v8_set1(7));
        u = v8_max(v8_min(u, v8_set1(7)), v8_set1(-7));
        v8 e = v8_exp(v8_mul(v8_set1(-1.702f), g));
        return v8_mul(v8_div(g, v8_add(one, e)), v8_add(u, one));
    }
    return v8_mul(v8_div(g, v8_add(one, v8_exp(v8_neg(g)))), u);
}

static void op_activate(enum ffn_act act, float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += 8)    /* n is whole groups of rows */
        v8_store(gate + i, activate(act, v8_load(gate + i), v8_load(up + i)));
}

static void op_axpy(float *y, float w, const float *x, int n)
{
    v8 v = v8_set1(w);
    int i = 0;
    for (; i + 8 <= n; i += 8)
        v8_store(y + i, v8_fma(v, v8_load(x + i), v8_load(y + i)));
    for (; i < n; i++)
        y[i] = fmaf(w, x[i], y[i]);
}

static void op_to_f16(const float *x, uint16_t *out, int n)
{
    for (int i = 0; i < n; i += 8)    /* head_dim is a multiple of 8 */
        v8_store_f16(out + i, v8_load(x + i));
}

static void op_from_f16(const uint16_t *x, float *out, int n)
{
    for (int i = 0; i < n; i += 8)
        v8_store(out + i, v8_load_f16(x + i));
}

static inline __attribute__((always_inline)) vw load_kv(bool half, const void *p, size_t i)
{
    return half ? VW(load_f16)((const uint16_t *)p + i) : VW(load)((const float *)p + i);
}

/* Scores of n queries with the 64 keys of a tile, w vectors of keys at a time: a chain over the head dimension in each lane;
 * the n queries share the loads of keys. */
static inline __attribute__((always_inline)) void scores(const struct tile *t, bool half, int first, const int n, const int w)
{
    const int hd = t->head_dim;
    const float *q = t->q + (size_t)first * (size_t)hd;
    for (int j0 = 0; j0 < NUM_TILE; j0 += WIDE * w) {
        vw a[MOST_QUERIES][8];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < w; j++)
                a[i][j] = VW(set1)(0);
        for (int d = 0; d < hd; d++) {
            prefetch(t->values, (size_t)(d * NUM_TILE + j0) * (half ? 2 : 4), (size_t)(WIDE * w * (half ? 2 : 4)));
            vw qd[MOST_QUERIES];
            for (int i = 0; i < n; i++)
                qd[i] = VW(set1)(q[i * hd + d]);
            for (int j = 0; j < w; j++) {
                vw k = load_kv(half, t->keys, (size_t)(d * NUM_TILE + j0 + WIDE * j));
                for (int i = 0; i < n; i++)
                    a[i][j] = VW(fma)(qd[i], k, a[i][j]);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < w; j++)
                VW(store)(t->s[first + i] + j0 + WIDE * j, a[i][j]);
    }
}

/* Scores of n queries become weights, and it is settled how their parts and this tile's are merged. Step by step for all
 * of them: each step is a chain of operations that another query's can hide. */
static inline __attribute__((always_inline)) void weigh(const struct tile *t, int first, const int n)
{
    float m[MOST_QUERIES], l[MOST_QUERIES], power[16] = {0};
    for (int i = 0; i < n; i++) {
        float *s = t->s[first + i];
        vw max = VW(set1)(-INFINITY);
        for (int j = 0; j < t->lo[first]; j++)
            s[j] = -INFINITY;
        for (int j = t->hi[first] + 1; j < NUM_TILE; j++)
            s[j] = -INFINITY;
        for (int j = 0; j < NUM_TILE; j += WIDE)
            max = VW(max)(VW(load)(s + j), max);
        m[i] = VW(largest)(max);
    }
    for (int j = 0; j < NUM_TILE; j += WIDE)
        for (int i = 0; i < n; i++)
            VW(store)(t->s[first + i] + j, VW(exp)(VW(sub)(VW(load)(t->s[first + i] + j), VW(set1)(m[i]))));
    for (int i = 0; i < n; i++) {
        float *s = t->s[first + i];
        const struct part *out = t->out[first + i];
        vw p[NUM_TILE / WIDE];
        for (int j = 0; !(m[i] > -INFINITY) && j < NUM_TILE; j++) /* -inf - -inf is NaN, of which exp makes a number: */
            s[j] = j < t->lo[first] || j > t->hi[first] ? 0 : s[j]; /* masked keys weigh nothing even then */
        for (int j = 0; j < NUM_TILE / WIDE; j++)
            p[j] = VW(load)(s + WIDE * j);
        l[i] = tree64(p);
        float both = out->m >= m[i] ? out->m : m[i];    /* num_merge, of all queries at once */
        power[2 * i] = out->m - both;
        power[2 * i + 1] = m[i] - both;
    }
    for (int j = 0; j < 2 * n; j += WIDE)
        VW(store)(power + j, VW(exp)(VW(load)(power + j)));
    for (int i = 0; i < n; i++) {
        struct part *out = t->out[first + i];
        t->first[first + i] = out->l < 0;
        t->fa[first + i] = power[2 * i];
        t->fb[first + i] = power[2 * i + 1];
        out->l = out->l < 0 ? l[i] : fmaf(l[i], power[2 * i + 1], out->l * power[2 * i]);
        out->m = t->first[first + i] || !(out->m >= m[i]) ? m[i] : out->m;
    }
}

/* Weighted values of n queries that see the same keys, WIDE * w dimensions from d on: a chain over the keys in each lane. */
static inline __attribute__((always_inline)) void values(const struct tile *t, bool half, int first, int d, const int n,
                                                         const int w)
{
    const int hd = t->head_dim, lo = t->lo[first], hi = t->hi[first];
    vw a[MOST_QUERIES][8];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < w; j++)
            a[i][j] = VW(set1)(0);
    for (int k = lo; k <= hi; k++) {
        prefetch(t->next, (size_t)(k * hd + d) * (half ? 2 : 4), (size_t)(WIDE * w * (half ? 2 : 4)));
        vw p[MOST_QUERIES];
        for (int i = 0; i < n; i++)
            p[i] = VW(set1)(t->s[first + i][k]);
        for (int j = 0; j < w; j++) {
            vw v = load_kv(half, t->values, (size_t)(k * hd + d + WIDE * j));
            for (int i = 0; i < n; i++)
                a[i][j] = VW(fma)(p[i], v, a[i][j]);
        }
    }
    for (int i = 0; i < n; i++) {
        float *o = t->out[first + i]->o + d;
        vw fa = VW(set1)(t->fa[first + i]), fb = VW(set1)(t->fb[first + i]);
        for (int j = 0; j < w; j++)
            VW(store)(o + WIDE * j, t->first[first + i] ? a[i][j] : VW(fma)(a[i][j], fb, VW(mul)(VW(load)(o + WIDE * j), fa)));
    }
}

/* What is left of a head dimension that is no multiple of WIDE: eight dimensions of one query. */
static void values_8(const struct tile *t, int i, int d)
{
    float *o = t->out[i]->o + d;
    v8 a = v8_set1(0);
    for (int k = t->lo[i]; k <= t->hi[i]; k++) {
        size_t at = (size_t)(k * t->head_dim + d);
        v8 v = t->half ? v8_load_f16((const uint16_t *)t->values + at) : v8_load((const float *)t->values + at);
        a = v8_fma(v8_set1(t->s[i][k]), v, a);
    }
    v8_store(o, t->first[i] ? a : v8_fma(a, v8_set1(t->fb[i]), v8_mul(v8_load(o), v8_set1(t->fa[i]))));
}

#define ATTEND_BLOCK(n, w)                                                                                             \
    static void block_##n(const struct tile *t, bool half, int first)                                                  \
    {                                                                                                                  \
        int d = 0;                                                                                                     \
        if (half)                                                                                                      \
            scores(t, true, first, n, w);                                                                              \
        else                                                                                                           \
            scores(t, false, first, n, w);                                                                             \
        weigh(t, first, n);                                                                                            \
        for (; half && d + WIDE * w <= t->head_dim; d += WIDE * w)                                                     \
            values(t, true, first, d, n, w);                                                                           \
        for (; !half && d + WIDE * w <= t->head_dim; d += WIDE * w)                                                    \
            values(t, false, first, d, n, w);                                                                          \
        for (; d + WIDE <= t->head_dim; d += WIDE)                                                                     \
            values(t, half, first, d, n, 1);                                                                           \
        for (int i = 0; d < t->head_dim && i < n; i++)                                                                 \
            values_8(t, first + i, d);                                                                                 \
    }

/* Queries of a block that see the same keys, of `run` that follow each other: as many as hide the latency of fma and share a
 * key's load with accumulators in registers, and no single one left behind. */
#if defined(__AVX512F__)
ATTEND_BLOCK(1, 4)
ATTEND_BLOCK(2, 4)
ATTEND_BLOCK(3, 4)
ATTEND_BLOCK(4, 4)
ATTEND_BLOCK(6, 4)
static void (*const block[])(const struct tile *t, bool half, int first) = {NULL, block_1, block_2, block_3, block_4, NULL, block_6};

static int block_size(int run)
{
    return run >= 8 ? 6 : run == 7 ? 4 : run == 5 ? 3 : run;
}
#else
ATTEND_BLOCK(1, 8)
ATTEND_BLOCK(2, 4)
ATTEND_BLOCK(3, 4)
ATTEND_BLOCK(4, 2)
static void (*const block[])(const struct tile *t, bool half, int first) = {NULL, block_1, block_2, block_3, block_4};

static int block_size(int run)
{
    return run > 4 ? 3 : run;
}
#endif

static void op_attend(const struct tile *t)
{
    for (int i = 0, n; i < t->n_q; i += n) {
        int run = 1;
        while (i + run < t->n_q && t->lo[i + run] == t->lo[i] && t->hi[i + run] == t->hi[i])
            run++;
        n = block_size(run);
        block[n](t, t->half, i);
    }
}

static void op_merge(struct part *a, const struct part *b, int hd)
{
    float fa, fb;
    a->m = num_merge(a->m, b->m, &fa, &fb);
    a->l = fmaf(b->l, fb, a->l * fa);
    v8 va = v8_set1(fa), vb = v8_set1(fb);
    for (int d = 0; d < hd; d += 8)
        v8_store(a->o + d, v8_fma(v8_load(b->o + d), vb, v8_mul(v8_load(a->o + d), va)));
}

#define CPU_OPS_TABLE(label)                                                                                           \
    {                                                                                                                  \
        .name = label, .add_branch = op_add_branch, .add = op_add, .norm = op_norm, .rotate = op_rotate,               \
        .scale = op_scale, .activate = op_activate, .axpy = op_axpy, .to_f16 = op_to_f16, .from_f16 = op_from_f16,     \
        .attend = op_attend, .merge = op_merge,                                \
    }
