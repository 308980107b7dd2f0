/* Weights into the card: raw GGUF rows go through two pinned buffers in bounded pieces and are packed on the device, so
 * that copying to pinned memory, the upload and the packing overlap. */
#include "kernels/cuda/cuda.h"

#include <string.h>

enum { MAT_ALIGN = 256, VEC_ALIGN = 64 };

size_t cuda_mat_bytes(enum qtype type, int rows, int cols, int n_mat)
{
    struct layout l = layout_of((int)type);
    size_t bytes = (layout_code_bytes(l, rows, cols) + layout_head_bytes(l, rows, cols)) * (size_t)n_mat;
    return (bytes + MAT_ALIGN - 1) / MAT_ALIGN * MAT_ALIGN;
}

static bool check(struct cuda *k, struct err *err)
{
    return k->failed == cudaSuccess || err_set(err, ERR_DEVICE, "device cuda:%d (%s): %s: %s", k->cfg.device_index, k->name,
                                               k->failed_at, cudaGetErrorString(k->failed));
}

bool cuda_mat_load(struct kern *kern, struct mat *m, const void *src, size_t mat_stride, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    size_t row_bytes = qtype_row_bytes(m->type, (size_t)m->cols), room = cuda_stage_bytes() / row_bytes;
    int piece = room < (size_t)m->rows ? (int)room : m->rows;
    m->bytes = cuda_mat_bytes(m->type, m->rows, m->cols, m->n_mat);
    if (piece == 0)
        return err_set(err, ERR_DEVICE, "device cuda: rows of %zu bytes, allowed are %zu", row_bytes, cuda_stage_bytes());
    if (m->bytes > (size_t)(k->vec_at - k->mat_at))
        return err_set(err, ERR_DEVICE, "device cuda: weights larger than planned (%zu bytes)", k->cfg.weight_bytes);
    (void)cudaSetDevice(k->cfg.device_index);
    m->data = k->mat_at;
    k->mat_at += m->bytes;
    for (int i = 0; i < m->n_mat; i++) {
        const char *from = (const char *)src + (size_t)i * mat_stride;
        for (int row = 0; row < m->rows; row += piece) {
            int n = m->rows - row < piece ? m->rows - row : piece;
            uint8_t *pinned = k->pinned[k->turn];
            (void)cudaEventSynchronize(k->copied[k->turn]);
            memcpy(pinned, from + (size_t)row * row_bytes, (size_t)n * row_bytes);
            (void)cudaMemcpyAsync(k->stage, pinned, (size_t)n * row_bytes, cudaMemcpyHostToDevice, k->stream);
            (void)cudaEventRecord(k->copied[k->turn], k->stream);
            CU_NOTE(k, "upload");
            k->turn = 1 - k->turn;
            launch_pack(k, m->type, k->stage, m->data, m->rows, m->cols, m->n_mat, i, row, n);
        }
    }
    return check(k, err);
}

float *cuda_vec_load(struct kern *kern, const float *src, size_t n, struct err *err)
{
    struct cuda *k = (struct cuda *)kern;
    size_t bytes = (n * sizeof *src + VEC_ALIGN - 1) / VEC_ALIGN * VEC_ALIGN;
    if (bytes > (size_t)(k->vec_at - k->mat_at)) {
        err_set(err, ERR_DEVICE, "device cuda: weights larger than planned (%zu bytes)", k->cfg.weight_bytes);
        return NULL;
    }
    (void)cudaSetDevice(k->cfg.device_index);
    k->vec_at -= bytes;
    (void)cudaMemcpyAsync(k->vec_at, src, n * sizeof *src, cudaMemcpyHostToDevice, k->stream);
    (void)cudaStreamSynchronize(k->stream); /* src is the caller's again */
    CU_NOTE(k, "upload");
    return check(k, err) ? (float *)(void *)k->vec_at : NULL;
}
