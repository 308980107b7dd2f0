/* Speed of the packed products on one thread. For each format and instruction set: validated
 * against the scalar table first, then GB/s of packed weights with one row, in L2 and from memory,
 * with 4 and 8 rows from memory, and GMAC/s with 2 to 256 rows. Best of several repeats: test machines
 * are noisy. Usage: bench-product [format [isa]] */
#include "kernels/cpu/product.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { COLS = 1536, MAX_ROWS = 256, L2_BYTES = 160 << 10, MEMORY_BYTES = 128 << 20 };

struct bench {
    enum qtype type;
    int n_small, n_big; /* groups that fit L2, groups that fit no cache */
    uint8_t *groups, *acts;
    float *out;
    size_t act_stride;
};

static void fill(uint8_t *p, size_t n)
{
    uint64_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        p[i] = ((uint8_t)(s >> 56) & 0x3F) | 0x20; /* halves and exponents of ordinary size */
    }
}

/* The thread's own time: other programs on the machine do not count. */
static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double seconds(const struct bench *b, const struct product_isa *isa, int n_groups,
                      int n_rows, int repeats)
{
    double best = 1e9;
    for (int i = 0; i < repeats; i++) {
        double start = thread_seconds();
        isa->product[b->type](b->groups, n_groups, COLS, b->acts, b->act_stride, n_rows, b->out,
                              (size_t)(b->n_big * PACK_ROWS));
        double t = thread_seconds() - start;
        best = t < best ? t : best;
    }
    return best;
}

static bool validate(const struct bench *b, const struct product_isa *isa)
{
    enum { ROWS = 9 };
    int n = b->n_small < 5 ? b->n_small : 5;
    size_t stride = (size_t)(n * PACK_ROWS);
    float *want = mem_alloc(ROWS * stride, sizeof(float)),
          *got = mem_alloc(ROWS * stride, sizeof(float));
    bool ok = want && got;
    if (ok) {
        product_scalar.product[b->type](b->groups, n, COLS, b->acts, b->act_stride, ROWS, want,
                                        stride);
        isa->product[b->type](b->groups, n, COLS, b->acts, b->act_stride, ROWS, got, stride);
        ok = memcmp(want, got, ROWS * stride * sizeof(float)) == 0;
    }
    free(want);
    free(got);
    return ok;
}

static void run(struct bench *b, const struct product_isa *isa)
{
    static const int rows[] = {2, 4, 8, 16, 64, 256};
    size_t group_bytes = pack_group_bytes(b->type, COLS);
    if (!validate(b, isa)) {
        printf("%-7s %-10s WRONG\n", qtype_name(b->type), isa->name);
        return;
    }
    double small = seconds(b, isa, b->n_small, 1, 400), big = seconds(b, isa, b->n_big, 1, 3);
    double big4 = seconds(b, isa, b->n_big, 4, 3), big8 = seconds(b, isa, b->n_big, 8, 3);
    printf("%-7s %-10s %6.1f %6.1f %6.1f %6.1f |", qtype_name(b->type), isa->name,
           (double)group_bytes * b->n_small / small * 1e-9,
           (double)group_bytes * b->n_big / big * 1e-9,
           (double)group_bytes * b->n_big / big4 * 1e-9,
           (double)group_bytes * b->n_big / big8 * 1e-9);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double t = seconds(b, isa, b->n_small, rows[i], 4000 / (rows[i] * 4) + 3);
        printf(" %6.1f", (double)b->n_small * PACK_ROWS * COLS * rows[i] / t * 1e-9);
    }
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    size_t act_stride = sizeof(float) * COLS;
    b.groups = mem_map(MEMORY_BYTES);
    b.acts = mem_map(act_stride * MAX_ROWS);
    b.out = mem_map((size_t)MAX_ROWS * PACK_ROWS * sizeof(float) *
                    (MEMORY_BYTES / (PACK_ROWS * COLS / 4)));
    float *x = mem_alloc(COLS, sizeof *x);
    if (!b.groups || !b.acts || !b.out || !x)
        return 1;
    fill(b.groups, MEMORY_BYTES);
    printf("format  isa         GB/s in L2, memory, memory at 4, 8 rows | GMAC/s at 2, 4, 8, 16, 64, "
           "256 rows (%d "
           "columns)\n",
           COLS);
    for (int t = 0; t < QTYPE_N; t++) {
        size_t group_bytes = pack_group_bytes((enum qtype)t, COLS);
        bool quantised = qtype_info((enum qtype)t)->quantised;
        if (argc > 1 && strcmp(argv[1], qtype_name((enum qtype)t)) != 0)
            continue;
        b.type = (enum qtype)t;
        b.n_small = (int)(L2_BYTES / group_bytes);
        b.n_big = (int)(MEMORY_BYTES / group_bytes);
        b.act_stride = quantised ? act_row_bytes(COLS) : act_stride;
        for (int r = 0; r < MAX_ROWS; r++) {
            void *act = b.acts + (size_t)r * b.act_stride;
            for (int k = 0; k < COLS; k++)
                x[k] = (float)((k * 37 + r * 11) % 101 - 50) * 0.02f;
            if (quantised)
                product_scalar.quantise(x, COLS, act);
            else
                memcpy(act, x, b.act_stride);
        }
        for (int isa = ISA_AVX2; isa < ISA_N; isa++) {
            const struct product_isa *table = product_isa((enum isa)isa);
            if (table && (argc < 3 || strcmp(argv[2], table->name) == 0))
                run(&b, table);
        }
    }
    return 0;
}
