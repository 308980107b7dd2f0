/* Steps of few rows that all want logits as CUDA graphs (prompts seldom come twice): launching one graph costs about as much
 * as launching one kernel, and a step has five to ten kernels a layer. Launches depend on the step only by its rows, whether tokens
 * are drawn, and the splits its longest context has (rounded up to a power of two); all else is read from device memory. The
 * first step of such a class runs plainly (which loads its kernels), the second is captured, later ones replay it. */
#include "kernels/cuda/cuda.h"

#include <string.h>

enum { GRAPH_ROWS = 64 };

/* A step that can be a graph: its place, or the one that went unused the longest. */
static struct graph_slot *slot_of(struct cuda *k)
{
    struct graph_slot *oldest = &k->graph[0];
    k->graph_steps++;
    for (int i = 0; i < MAX_GRAPHS; i++) {
        struct graph_slot *s = &k->graph[i];
        if (s->n_rows == k->n_rows && s->splits == k->splits && s->draws == k->draws) {
            s->used = k->graph_steps;
            return s;
        }
        oldest = s->used < oldest->used ? s : oldest;
    }
    if (k->persist.slot == oldest)
        k->persist.slot = NULL;
    if (oldest->exec != NULL)
        (void)cudaGraphExecDestroy(oldest->exec);
    *oldest = (struct graph_slot){.n_rows = k->n_rows, .splits = k->splits, .draws = k->draws, .used = k->graph_steps};
    return oldest;
}

void cuda_graph_begin(struct cuda *k)
{
    k->mode = STEP_PLAIN;
    k->slot = NULL;
    k->has_head = false;
    if (k->n_rows > GRAPH_ROWS || k->n_logits != k->n_rows || k->failed != cudaSuccess)
        return;
    k->slot = slot_of(k);
    if (k->persist.blocks > 0 && k->n_rows == 1)
        k->mode = persist_begin(k);
    else if (k->slot->exec != NULL)
        k->mode = STEP_REPLAY;
    else if (k->slot->seen && cudaStreamBeginCapture(k->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess)
        k->mode = STEP_CAPTURE;
    CU_NOTE(k, "graph");
}

/* A step that was stopped half way has no head: its graph is dropped, and with it the work, which nobody waits for. */
void cuda_graph_end(struct cuda *k)
{
    cudaGraph_t graph = NULL;
    if (k->mode == STEP_CAPTURE) {
        (void)cudaStreamEndCapture(k->stream, &graph);
        if (graph != NULL && k->has_head)
            (void)cudaGraphInstantiate(&k->slot->exec, graph, 0);
        if (graph != NULL)
            (void)cudaGraphDestroy(graph);
    }
    if (k->mode == STEP_RECORD || k->mode == STEP_RERUN)
        persist_end(k);
    else if (k->mode != STEP_PLAIN && k->has_head && k->slot->exec != NULL)
        (void)cudaGraphLaunch(k->slot->exec, k->stream);
    if (k->slot != NULL && k->has_head)
        k->slot->seen = true;
    k->mode = STEP_PLAIN;
    CU_NOTE(k, "graph");
}

void cuda_graph_close(struct cuda *k)
{
    for (int i = 0; i < MAX_GRAPHS; i++)
        if (k->graph[i].exec != NULL)
            (void)cudaGraphExecDestroy(k->graph[i].exec);
    memset(k->graph, 0, sizeof k->graph);
    k->persist.slot = NULL;
}
