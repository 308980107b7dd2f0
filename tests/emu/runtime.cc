/* The runtime API of the shim: memory, streams that run when waited for, events, the card that tests describe. */
#include "tests/emu/emu.h"

#include <sys/mman.h>

#include <cuda_runtime.h>

#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

struct emu_graph {
    std::vector<std::function<void()>> work;
};
struct emu_stream {
    std::vector<std::function<void()>> work;
    emu_graph *capture = NULL;  /* where work goes instead while a graph is captured */
};
struct emu_event {
    emu_stream *stream;
};

enum { PAGE = 4096 };

static struct {
    struct emu_card card = {1, cudaSuccess, 13000, 90, (size_t)4 << 30, 1, 0};
    std::map<void *, size_t> allocated;
    size_t taken = 0;
    long launches = 0;
    cudaError_t last = cudaSuccess;
} emu;

extern "C" struct emu_card *emu_card(void)
{
    return &emu.card;
}

extern "C" size_t emu_taken(void)
{
    return emu.taken;
}

extern "C" long emu_launches(void)
{
    return emu.launches;
}

void emu_enqueue(cudaStream_t s, std::function<void()> work)
{
    emu.launches++;
    if (emu.card.fail_launch > 0 && --emu.card.fail_launch == 0)
        emu.last = cudaErrorIllegalAddress;
    else
        (s->capture != NULL ? s->capture->work : s->work).push_back(work);
}

static cudaError_t remember(cudaError_t e)
{
    emu.last = e != cudaSuccess ? e : emu.last;
    return e;
}

/* ---- the card ---- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = emu.card.n_devices;
    return remember((cudaError_t)emu.card.probe);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = emu.card.driver;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int index)
{
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "emulated card %d", index);
    prop->major = emu.card.capability / 10;
    prop->minor = emu.card.capability % 10;
    prop->multiProcessorCount = 4;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int index)
{
    return index >= 0 && index < emu.card.n_devices ? cudaSuccess : remember(cudaErrorInvalidDevice);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = emu.card.memory;
    *available = emu.card.memory - emu.taken;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = emu.last;
    emu.last = cudaSuccess;
    return e;
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    default: return "an error of the emulated card";
    }
}

/* ---- memory ---- */

/* Filled with NaNs; the last byte is just before a page that faults. */
static cudaError_t take(void **p, size_t bytes)
{
    size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    char *base = (char *)mmap(NULL, room + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + room, PAGE, PROT_NONE) != 0)
        return remember(cudaErrorMemoryAllocation);
    memset(base, 0xFF, room);
    *p = base + (room - bytes) / 256 * 256;
    emu.allocated[*p] = room;
    return cudaSuccess;
}

static cudaError_t give_back(void *p, bool device)
{
    if (p == NULL)
        return cudaSuccess;
    auto it = emu.allocated.find(p);
    if (it == emu.allocated.end())
        return remember(cudaErrorInvalidValue);
    if (device)
        emu.taken -= it->second;
    munmap((void *)((uintptr_t)p / PAGE * PAGE), it->second + PAGE);
    emu.allocated.erase(it);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    if (bytes > emu.card.memory - emu.taken)
        return remember(cudaErrorMemoryAllocation);
    cudaError_t e = take(p, bytes);
    emu.taken += e == cudaSuccess ? emu.allocated[*p] : 0;
    return e;
}

cudaError_t cudaFree(void *p)
{
    return give_back(p, true);
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return take(p, bytes);
}

cudaError_t cudaFreeHost(void *p)
{
    return give_back(p, false);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind, cudaStream_t s)
{
    (s->capture != NULL ? s->capture->work : s->work).push_back([=] { memcpy(dst, src, bytes); });
    return cudaSuccess;
}

cudaError_t emu_attributes(struct cudaFuncAttributes *a)
{
    a->ptxVersion = emu.card.capability;
    return cudaSuccess;
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = new emu_stream;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    if (s->capture != NULL)
        return remember(cudaErrorInvalidValue);
    for (auto &work : s->work)
        work();
    s->work.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode)
{
    if (s->capture != NULL)
        return remember(cudaErrorInvalidValue);
    s->capture = new emu_graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = s->capture;
    s->capture = NULL;
    return *g != NULL ? cudaSuccess : remember(cudaErrorInvalidValue);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    *e = new emu_graph(*g);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    emu_enqueue(s, [=] {
        for (auto &work : e->work)
            work();
    });
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new emu_event{NULL};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    e->stream = s;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    return e->stream == NULL ? cudaSuccess : cudaStreamSynchronize(e->stream);
}
