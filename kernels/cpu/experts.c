/* Mixture of experts: rows are gathered by expert, so that an expert's weights are read once a step. */
#include "kernels/cpu/cpu.h"

/* The best experts of one row by logit, then lower id; softmax over them in rank order; kept by rising id. */
static void choose(const struct kern_config *cfg, const float *logit, int *expert, float *weight)
{
    int used = cfg->n_expert_used;
    float sum = 0;
    for (int rank = 0; rank < used; rank++) {
        int best = -1;
        for (int e = 0; e < cfg->n_expert; e++) {
            bool taken = false;
            for (int j = 0; j < rank; j++)
                taken = taken || expert[j] == e;
            if (!taken && (best < 0 || logit[e] > logit[best]))
                best = e;
        }
        expert[rank] = best;
        weight[rank] = num_exp(logit[best] - logit[expert[0]]);
        sum = sum + weight[rank];
    }
    for (int i = 0; i < used; i++)
        weight[i] = weight[i] / sum;
    for (int i = 1; i < used; i++) {
        for (int j = i; j > 0 && expert[j - 1] > expert[j]; j--) {
            int e = expert[j];
            float w = weight[j];
            expert[j] = expert[j - 1];
            weight[j] = weight[j - 1];
            expert[j - 1] = e;
            weight[j - 1] = w;
        }
    }
}

/* Counts rows per expert, gives every pair its slot, and gathers the rows. */
static void route_rows(struct cpu *c)
{
    struct routing *r = &c->route;
    const struct kern_config *cfg = &c->cfg;
    int used = cfg->n_expert_used, n = c->step.n_rows, stride = pack_n_groups(cfg->n_expert) * PACK_ROWS;
    memset(r->first, 0, (size_t)(cfg->n_expert + 1) * sizeof *r->first);
    for (int i = 0; i < n; i++) {
        choose(cfg, r->logits + (size_t)i * (size_t)stride, r->expert + i * used, r->weight + i * used);
        for (int j = 0; j < used; j++)
            r->first[r->expert[i * used + j] + 1]++;
    }
    r->n_active = 0;
    for (int e = 0; e < cfg->n_expert; e++) {
        if (r->first[e + 1] > 0)
            r->active[r->n_active++] = e;
        r->first[e + 1] += r->first[e];
    }
    for (int i = 0; i < n * used; i++) {    /* first[e] runs ahead while slots are given, and is set back below */
        int slot = r->slot[i] = r->first[r->expert[i]]++;
        memcpy(r->in.f + (size_t)slot * r->in.f_stride, c->xn.f + (size_t)(i / used) * c->xn.f_stride,
               (size_t)cfg->dim * sizeof(float));
        memcpy(r->in.q + (size_t)slot * r->in.q_stride, c->xn.q + (size_t)(i / used) * c->xn.q_stride,
               act_row_bytes(cfg->dim));
    }
    for (int e = cfg->n_expert; e > 0; e--)
        r->first[e] = r->first[e - 1];
    r->first[0] = 0;
}

static const float *bias_of(const float *bias, const struct mat *m, int e)
{
    return bias == NULL ? NULL : bias + (size_t)e * (size_t)m->rows;
}

void experts_in(struct cpu *c, const struct layer *l)
{
    struct routing *r = &c->route;
    const struct ffn_params *p = &l->ffn;
    struct ffn_job jobs[MAX_JOBS];
    route_rows(c);
    for (int done = 0, n; done < r->n_active; done += n) {
        n = r->n_active - done < MAX_JOBS ? r->n_active - done : MAX_JOBS;
        for (int i = 0; i < n; i++) {
            int e = r->active[done + i], first = r->first[e], rows = r->first[e + 1] - first;
            jobs[i] = (struct ffn_job){
                .gate = {&p->gate, e, bias_of(p->gate_bias, &p->gate, e), &r->in, first, rows, c->h.f, c->h.f_stride},
                .up = {&p->up, e, bias_of(p->up_bias, &p->up, e), &r->in, first, rows, c->up, c->h.f_stride},
                .h = &c->h,
                .quantise = qtype_info(p->down.type)->quantised,
            };
        }
        run_ffn_jobs(c, jobs, n);
    }
}

static void combine_row(struct cpu *c, void *arg, int i)
{
    (void)arg;
    const struct routing *r = &c->route;
    int dim = c->cfg.dim, used = c->cfg.n_expert_used;
    float *y = c->y + (size_t)i * (size_t)dim;
    memset(y, 0, (size_t)dim * sizeof *y);
    for (int j = i * used; j < (i + 1) * used; j++)
        c->ops->axpy(y, r->weight[j], r->out + (size_t)r->slot[j] * (size_t)dim, dim);
}

void experts_out(struct cpu *c, const struct layer *l)
{
    struct routing *r = &c->route;
    const struct ffn_params *p = &l->ffn;
    struct job jobs[MAX_JOBS];
    for (int done = 0, n; done < r->n_active; done += n) {
        n = r->n_active - done < MAX_JOBS ? r->n_active - done : MAX_JOBS;
        for (int i = 0; i < n; i++) {
            int e = r->active[done + i], first = r->first[e];
            jobs[i] = (struct job){&p->down, e, bias_of(p->down_bias, &p->down, e), &c->h, first, r->first[e + 1] - first,
                                   r->out, (size_t)c->cfg.dim};
        }
        run_jobs(c, jobs, n);
    }
    run_rows(c, combine_row, NULL, c->step.n_rows);
}
