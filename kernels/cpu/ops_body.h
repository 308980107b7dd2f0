/* The source of every cpu_ops table: included once per instruction set after V8 (eight floats) and its operations are
 * defined. Lanes never mix except where the contract says how. */

static v8 v8_load_n(const float *p, int n)
{
    float t[8] = {0};
    memcpy(t, p, (size_t)n * sizeof *p);
    return v8_load(t);
}

/* The sum of 64 lanes kept as eight vectors: strides 32, 16, 8 over vectors, then 4, 2, 1 inside one. */
static float tree64(v8 s[8])
{
    for (int stride = 4; stride > 0; stride /= 2)
        for (int i = 0; i < stride; i++)
            s[i] = v8_add(s[i], s[i + stride]);
    return v8_tree(s[0]);
}

static inline __attribute__((always_inline)) void prefetch(const void *p, size_t at, const size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + at + i);
}

static float norm_scale(const float *x, int n, float eps)
{
    v8 s[8];
    for (int j = 0; j < 8; j++)
        s[j] = v8_set1(0);
    int i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 8; j++) {
            v8 v = v8_load(x + i + 8 * j);
            s[j] = v8_fma(v, v, s[j]);
        }
    for (int j = 0; i < n; i += 8, j++) {    /* lanes past the end add exact zeros */
        v8 v = v8_load_n(x + i, n - i < 8 ? n - i : 8);
        s[j] = v8_fma(v, v, s[j]);
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

static inline __attribute__((always_inline)) v8 load_kv(bool half, const void *p, size_t i)
{
    return half ? v8_load_f16((const uint16_t *)p + i) : v8_load((const float *)p + i);
}

/* Scores of n queries with the 64 keys of a tile, w vectors of keys at a time: a chain over the head dimension in each lane;
 * the n queries share the loads of keys. */
static inline __attribute__((always_inline)) void scores(const struct tile *t, bool half, int first, const int n, const int w)
{
    const int hd = t->head_dim;
    const float *q = t->q + (size_t)first * (size_t)hd;
    for (int j0 = 0; j0 < NUM_TILE; j0 += 8 * w) {
        v8 a[4][8];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < w; j++)
                a[i][j] = v8_set1(0);
        for (int d = 0; d < hd; d++) {
            prefetch(t->values, (size_t)(d * NUM_TILE + j0) * (half ? 2 : 4), (size_t)(8 * w * (half ? 2 : 4)));
            v8 qd[4];
            for (int i = 0; i < n; i++)
                qd[i] = v8_set1(q[i * hd + d]);
            for (int j = 0; j < w; j++) {
                v8 k = load_kv(half, t->keys, (size_t)(d * NUM_TILE + j0 + 8 * j));
                for (int i = 0; i < n; i++)
                    a[i][j] = v8_fma(qd[i], k, a[i][j]);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < w; j++)
                v8_store(t->s[first + i] + j0 + 8 * j, a[i][j]);
    }
}

/* Scores of n queries become weights, and it is settled how their parts and this tile's are merged. Step by step for all
 * of them: each step is a chain of operations that another query's can hide. */
static inline __attribute__((always_inline)) void weigh(const struct tile *t, int first, const int n)
{
    float m[4], l[4], power[8] = {0};
    for (int i = 0; i < n; i++) {
        float *s = t->s[first + i];
        v8 max = v8_set1(-INFINITY);
        for (int j = 0; j < t->lo[first]; j++)
            s[j] = -INFINITY;
        for (int j = t->hi[first] + 1; j < NUM_TILE; j++)
            s[j] = -INFINITY;
        for (int j = 0; j < NUM_TILE; j += 8)
            max = v8_max(v8_load(s + j), max);
        m[i] = v8_largest(max);
    }
    for (int j = 0; j < NUM_TILE; j += 8)
        for (int i = 0; i < n; i++)
            v8_store(t->s[first + i] + j, v8_exp(v8_sub(v8_load(t->s[first + i] + j), v8_set1(m[i]))));
    for (int i = 0; i < n; i++) {
        float *s = t->s[first + i];
        const struct part *out = t->out[first + i];
        v8 p[8];
        for (int j = 0; !(m[i] > -INFINITY) && j < NUM_TILE; j++) /* -inf - -inf is NaN, of which v8_exp makes a number: */
            s[j] = j < t->lo[first] || j > t->hi[first] ? 0 : s[j]; /* masked keys weigh nothing even then */
        for (int j = 0; j < 8; j++)
            p[j] = v8_load(s + 8 * j);
        l[i] = tree64(p);
        float both = out->m >= m[i] ? out->m : m[i];    /* num_merge, of all queries at once */
        power[2 * i] = out->m - both;
        power[2 * i + 1] = m[i] - both;
    }
    v8_store(power, v8_exp(v8_load(power)));
    for (int i = 0; i < n; i++) {
        struct part *out = t->out[first + i];
        t->first[first + i] = out->l < 0;
        t->fa[first + i] = power[2 * i];
        t->fb[first + i] = power[2 * i + 1];
        out->l = out->l < 0 ? l[i] : fmaf(l[i], power[2 * i + 1], out->l * power[2 * i]);
        out->m = t->first[first + i] || !(out->m >= m[i]) ? m[i] : out->m;
    }
}

/* Weighted values of n queries that see the same keys, 8 * w dimensions from d on: a chain over the keys in each lane. */
static inline __attribute__((always_inline)) void values(const struct tile *t, bool half, int first, int d, const int n,
                                                         const int w)
{
    const int hd = t->head_dim, lo = t->lo[first], hi = t->hi[first];
    v8 a[4][8];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < w; j++)
            a[i][j] = v8_set1(0);
    for (int k = lo; k <= hi; k++) {
        prefetch(t->next, (size_t)(k * hd + d) * (half ? 2 : 4), (size_t)(8 * w * (half ? 2 : 4)));
        v8 p[4];
        for (int i = 0; i < n; i++)
            p[i] = v8_set1(t->s[first + i][k]);
        for (int j = 0; j < w; j++) {
            v8 v = load_kv(half, t->values, (size_t)(k * hd + d + 8 * j));
            for (int i = 0; i < n; i++)
                a[i][j] = v8_fma(p[i], v, a[i][j]);
        }
    }
    for (int i = 0; i < n; i++) {
        float *o = t->out[first + i]->o + d;
        v8 fa = v8_set1(t->fa[first + i]), fb = v8_set1(t->fb[first + i]);
        for (int j = 0; j < w; j++)
            v8_store(o + 8 * j, t->first[first + i] ? a[i][j] : v8_fma(a[i][j], fb, v8_mul(v8_load(o + 8 * j), fa)));
    }
}

/* Twelve accumulators for three queries, eight else: enough to hide the latency of fma in 16 registers. */
#define ATTEND_BLOCK(n, w)                                                                                             \
    static void block_##n(const struct tile *t, bool half, int first)                                                  \
    {                                                                                                                  \
        int d = 0;                                                                                                     \
        if (half)                                                                                                      \
            scores(t, true, first, n, w);                                                                              \
        else                                                                                                           \
            scores(t, false, first, n, w);                                                                             \
        weigh(t, first, n);                                                                                            \
        for (; half && d + 8 * w <= t->head_dim; d += 8 * w)                                                           \
            values(t, true, first, d, n, w);                                                                           \
        for (; !half && d + 8 * w <= t->head_dim; d += 8 * w)                                                          \
            values(t, false, first, d, n, w);                                                                          \
        for (; d < t->head_dim; d += 8)                                                                                \
            values(t, half, first, d, n, 1);                                                                           \
    }
ATTEND_BLOCK(1, 8)
ATTEND_BLOCK(2, 4)
ATTEND_BLOCK(3, 4)
ATTEND_BLOCK(4, 2)

/* Blocks of queries that see the same keys: threes, as long as no single one is left behind. */
static void op_attend(const struct tile *t)
{
    for (int i = 0, n; i < t->n_q; i += n) {
        n = 1;
        while (n < 4 && i + n < t->n_q && t->lo[i + n] == t->lo[i] && t->hi[i + n] == t->hi[i])
            n++;
        bool four_left = n == 4 && (i + 4 == t->n_q || t->hi[i + 4] != t->hi[i] || t->lo[i + 4] != t->lo[i]);
        if (n == 4 && !four_left)
            n = 3;
        if (n == 1)
            block_1(t, t->half, i);
        else if (n == 2)
            block_2(t, t->half, i);
        else if (n == 3)
            block_3(t, t->half, i);
        else
            block_4(t, t->half, i);
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
