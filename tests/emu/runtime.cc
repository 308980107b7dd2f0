/* The runtime API of the shim: memory, streams that run when waited for, events, the card that tests describe. */
#include "tests/emu/emu.h"

#include <sys/mman.h>

#include <cuda_runtime.h>

#include <deque>
#include <map>
#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

struct emu_graph {
    std::vector<std::function<void()>> work;
};
struct emu_stream {
    std::deque<std::function<void()>> work;
    size_t pushed = 0, done = 0;
    emu_graph *capture = NULL;  /* where work goes instead while a graph is captured */
};
struct emu_event {
    emu_stream *stream;
    size_t upto;                /* of the stream's work, when it was recorded */
};

enum { PAGE = 4096 };

static struct {
    struct emu_card card = {1, cudaSuccess, 13000, 90, cudaSuccess, 4, 99 * 1024, (size_t)4 << 30, 1, 0, 0, false, 4};
    std::map<void *, size_t> allocated;
    std::vector<std::unique_ptr<emu_stream>> destroyed;
    size_t taken = 0;
    long launches = 0, objects = 0;
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

extern "C" long emu_alive(void)
{
    return emu.objects + (long)emu.allocated.size();
}

/* EMU_CARD=name=number,... */
static bool read_environment(void)
{
    const char *s = getenv("EMU_CARD");
    for (long value; s != NULL && *s != 0; s += strcspn(s, ",") + (strchr(s, ',') != NULL)) {
        char name[32];
        if (sscanf(s, "%31[a-z_]=%ld", name, &value) != 2)
            break;
        if (strcmp(name, "n_devices") == 0)
            emu.card.n_devices = (int)value;
        else if (strcmp(name, "probe") == 0)
            emu.card.probe = (int)value;
        else if (strcmp(name, "driver") == 0)
            emu.card.driver = (int)value;
        else if (strcmp(name, "capability") == 0)
            emu.card.capability = (int)value;
        else if (strcmp(name, "n_sm") == 0)
            emu.card.n_sm = (int)value;
        else if (strcmp(name, "shared") == 0)
            emu.card.shared = (int)value;
        else if (strcmp(name, "memory") == 0)
            emu.card.memory = (size_t)value;
        else if (strcmp(name, "fail_launch") == 0)
            emu.card.fail_launch = value;
        else if (strcmp(name, "fail_call") == 0)
            emu.card.fail_call = value;
        else if (strcmp(name, "managed") == 0)
            emu.card.managed = value != 0;
        else if (strcmp(name, "together") == 0)
            emu.card.together = (int)value;
    }
    return s != NULL;
}
[[maybe_unused]] static const bool has_environment = read_environment();

static void push(cudaStream_t s, std::function<void()> work)
{
    if (s->capture != NULL) {
        s->capture->work.push_back(work);
        return;
    }
    s->work.push_back(work);
    s->pushed++;
}

static void run_until(cudaStream_t s, size_t upto)
{
    while (s->done < upto) {
        std::function<void()> work = s->work.front();
        s->work.pop_front();
        s->done++;
        work();
    }
}

void emu_enqueue(cudaStream_t s, std::function<void()> work)
{
    emu.launches++;
    if (emu.card.fail_launch > 0 && --emu.card.fail_launch == 0)
        emu.last = cudaErrorIllegalAddress;
    else
        push(s, work);
}

static cudaError_t remember(cudaError_t e)
{
    emu.last = e != cudaSuccess ? e : emu.last;
    return e;
}

/* Every call that a test may let fail begins with it. */
static bool fails(void)
{
    bool now = emu.card.fail_call > 0 && --emu.card.fail_call == 0;
    if (now)
        remember(cudaErrorIllegalAddress);
    return now;
}
#define MAY_FAIL()                                                                                                     \
    if (fails())                                                                                                       \
    return cudaErrorIllegalAddress

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
    MAY_FAIL();
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "emulated card %d", index);
    prop->major = emu.card.capability / 10;
    prop->minor = emu.card.capability % 10;
    prop->multiProcessorCount = emu.card.n_sm;
    prop->sharedMemPerBlockOptin = (size_t)emu.card.shared;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr, int)
{
    MAY_FAIL();
    *value = emu.card.together > 0;
    return cudaSuccess;
}

cudaError_t emu_occupancy(int *blocks)
{
    MAY_FAIL();
    *blocks = 1;
    return cudaSuccess;
}

bool emu_holds(unsigned blocks)
{
    bool ok = blocks <= (unsigned)emu.card.together;
    if (!ok)
        remember(cudaErrorCooperativeLaunchTooLarge);
    return ok;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int index)
{
    MAY_FAIL();
    return index >= 0 && index < emu.card.n_devices ? cudaSuccess : remember(cudaErrorInvalidDevice);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    MAY_FAIL();
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
    case cudaErrorUnsupportedPtxVersion: return "the provided PTX was compiled with an unsupported toolchain.";
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
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

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *)
{
    MAY_FAIL();
    *a = cudaPointerAttributes{emu.card.managed ? cudaMemoryTypeManaged : cudaMemoryTypeDevice, 0};
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    MAY_FAIL();
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
    MAY_FAIL();
    return take(p, bytes);
}

cudaError_t cudaFreeHost(void *p)
{
    return give_back(p, false);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind, cudaStream_t s)
{
    MAY_FAIL();
    push(s, [=] { memcpy(dst, src, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t s)
{
    MAY_FAIL();
    push(s, [=] { memset(p, byte, bytes); });
    return cudaSuccess;
}

cudaError_t emu_attributes(struct cudaFuncAttributes *a)
{
    a->ptxVersion = emu.card.capability;
    return remember((cudaError_t)emu.card.code);
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    MAY_FAIL();
    *s = new emu_stream;
    emu.objects++;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    run_until(s, s->pushed); /* what was pushed still happens */
    emu.objects--;
    emu.destroyed.emplace_back(s); /* freed at the end: others may wait for its events */
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    if (s->capture != NULL)
        return remember(cudaErrorInvalidValue);
    MAY_FAIL();
    run_until(s, s->pushed);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode)
{
    if (s->capture != NULL)
        return remember(cudaErrorInvalidValue);
    MAY_FAIL();
    s->capture = new emu_graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = s->capture;
    s->capture = NULL;
    if (*g == NULL)
        return remember(cudaErrorInvalidValue);
    emu.objects++;
    if (!fails())
        return cudaSuccess;
    (void)cudaGraphDestroy(*g);
    *g = NULL;
    return cudaErrorIllegalAddress;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    MAY_FAIL();
    *e = new emu_graph(*g);
    emu.objects++;
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
    emu.objects--;
    delete g;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    emu.objects--;
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    MAY_FAIL();
    *e = new emu_event{NULL, 0};
    emu.objects++;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    emu.objects--;
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    MAY_FAIL();
    *e = emu_event{s, s->pushed};
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    MAY_FAIL();
    if (e->stream != NULL)
        run_until(e->stream, e->upto);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    MAY_FAIL();
    emu_event now = *e; /* as it was recorded last */
    if (now.stream != NULL && now.stream != s)
        push(s, [=] { run_until(now.stream, now.upto); });
    return cudaSuccess;
}
