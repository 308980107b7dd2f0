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
    float t[8];
    v8_store(t, s[0]);
    for (int stride = 4; stride > 0; stride /= 2)
        for (int i = 0; i < stride; i++)
            t[i] += t[i + stride];
    return t[0];
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

static float activate_one(enum ffn_act act, float g, float u)
{
    return act == ACT_GELU ? num_gelu(g) * u : act == ACT_SWIGLU_CLAMPED ? num_swiglu_clamped(g, u) : num_silu(g) * u;
}

static void op_activate(enum ffn_act act, float *gate, const float *up, int n)
{
    int i = 0;
    for (; act == ACT_SILU && i + 8 <= n; i += 8) {
        v8 g = v8_load(gate + i), e = v8_exp(v8_neg(g));
        v8_store(gate + i, v8_mul(v8_div(g, v8_add(v8_set1(1), e)), v8_load(up + i)));
    }
    for (; i < n; i++)
        gate[i] = activate_one(act, gate[i], up[i]);
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

/* Scores of one head: 64 keys in eight vectors, a chain over the head dimension in each lane. */
static void scores1(const float *keys, int hd, const float *q, float *s)
{
    v8 a[8];
    for (int j = 0; j < 8; j++)
        a[j] = v8_set1(0);
    for (int d = 0; d < hd; d++) {
        v8 qd = v8_set1(q[d]);
        for (int j = 0; j < 8; j++)
            a[j] = v8_fma(qd, v8_load(keys + (size_t)d * NUM_TILE + 8 * j), a[j]);
    }
    for (int j = 0; j < 8; j++)
        v8_store(s + 8 * j, a[j]);
}

/* Three heads by 32 keys: twelve accumulators share the loads of keys. */
static void scores3(const float *keys, int hd, const float *q, size_t q_stride, float (*s)[NUM_TILE])
{
    for (int half = 0; half < NUM_TILE; half += 32) {
        v8 a[3][4];
        for (int h = 0; h < 3; h++)
            for (int j = 0; j < 4; j++)
                a[h][j] = v8_set1(0);
        for (int d = 0; d < hd; d++) {
            const float *k = keys + (size_t)d * NUM_TILE + half;
            v8 q0 = v8_set1(q[d]), q1 = v8_set1(q[q_stride + (size_t)d]), q2 = v8_set1(q[2 * q_stride + (size_t)d]);
            for (int j = 0; j < 4; j++) {
                v8 kj = v8_load(k + 8 * j);
                a[0][j] = v8_fma(q0, kj, a[0][j]);
                a[1][j] = v8_fma(q1, kj, a[1][j]);
                a[2][j] = v8_fma(q2, kj, a[2][j]);
            }
        }
        for (int h = 0; h < 3; h++)
            for (int j = 0; j < 4; j++)
                v8_store(s[h] + half + 8 * j, a[h][j]);
    }
}

static void op_scores(const float *keys, int hd, const float *q, size_t q_stride, int n_q, float (*s)[NUM_TILE])
{
    int i = 0;
    for (; i + 3 <= n_q; i += 3)
        scores3(keys, hd, q + (size_t)i * q_stride, q_stride, s + i);
    for (; i < n_q; i++)
        scores1(keys, hd, q + (size_t)i * q_stride, s[i]);
}

static void op_weigh(float *s, int lo, int hi, struct part *out)
{
    float m = -INFINITY;
    for (int j = lo; j <= hi; j++)
        m = s[j] > m ? s[j] : m;
    for (int j = 0; j < lo; j++)
        s[j] = -INFINITY;
    for (int j = hi + 1; j < NUM_TILE; j++)
        s[j] = -INFINITY;
    v8 t[8], vm = v8_set1(m);
    for (int j = 0; j < 8; j++) {
        t[j] = v8_exp(v8_sub(v8_load(s + 8 * j), vm));
        v8_store(s + 8 * j, t[j]);
    }
    for (int j = 0; j < lo; j++)    /* -inf - -inf is NaN when every score is -inf; masked keys weigh nothing even then */
        s[j] = 0;
    for (int j = hi + 1; j < NUM_TILE; j++)
        s[j] = 0;
    for (int j = 0; j < 8; j++)
        t[j] = v8_load(s + 8 * j);
    out->m = m;
    out->l = tree64(t);
}

/* n heads by 8 * w dimensions from dimension d on; a chain over the keys in each lane. */
#define VALUES_BLOCK(n, w)                                                                                             \
    static void values_##n##_##w(const float *v, int hd, float (*p)[NUM_TILE], int lo, int hi, int d,                  \
                                 struct part *const *out)                                                              \
    {                                                                                                                  \
        v8 a[n][w];                                                                                                    \
        for (int h = 0; h < n; h++)                                                                                    \
            for (int j = 0; j < w; j++)                                                                                \
                a[h][j] = v8_set1(0);                                                                                  \
        for (int k = lo; k <= hi; k++) {                                                                               \
            const float *row = v + (size_t)k * (size_t)hd + d;                                                         \
            for (int j = 0; j < w; j++) {                                                                              \
                v8 vj = v8_load(row + 8 * j);                                                                          \
                for (int h = 0; h < n; h++)                                                                            \
                    a[h][j] = v8_fma(v8_set1(p[h][k]), vj, a[h][j]);                                                   \
            }                                                                                                          \
        }                                                                                                              \
        for (int h = 0; h < n; h++)                                                                                    \
            for (int j = 0; j < w; j++)                                                                                \
                v8_store(out[h]->o + d + 8 * j, a[h][j]);                                                              \
    }
VALUES_BLOCK(3, 4)
VALUES_BLOCK(3, 1)
VALUES_BLOCK(1, 8)
VALUES_BLOCK(1, 1)

static void op_values(const float *values, int hd, float (*p)[NUM_TILE], const int *lo, const int *hi, int n_q,
                      struct part *const *out)
{
    int i = 0;
    while (i < n_q) {
        int d = 0;
        if (i + 3 <= n_q && lo[i] == lo[i + 2] && hi[i] == hi[i + 2]) {    /* heads of one row see the same keys */
            for (; d + 32 <= hd; d += 32)
                values_3_4(values, hd, p + i, lo[i], hi[i], d, out + i);
            for (; d < hd; d += 8)
                values_3_1(values, hd, p + i, lo[i], hi[i], d, out + i);
            i += 3;
            continue;
        }
        for (; d + 64 <= hd; d += 64)
            values_1_8(values, hd, p + i, lo[i], hi[i], d, out + i);
        for (; d < hd; d += 8)
            values_1_1(values, hd, p + i, lo[i], hi[i], d, out + i);
        i++;
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
        .scores = op_scores, .weigh = op_weigh, .values = op_values, .merge = op_merge,                                \
    }
