#define _GNU_SOURCE
#include "base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Allocations left before one fails; <= 0 = never. The one global of base: a hook that tests set. */
static _Atomic int64_t fail_countdown;

void mem_fail_after(int64_t n)
{
    atomic_store(&fail_countdown, n);
}

static bool fails_now(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) <= 0)
        return false;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

bool mem_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

bool mem_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

void *mem_alloc(size_t n, size_t size)
{
    if (fails_now())
        return NULL;
    return calloc(n ? n : 1, size ? size : 1);
}

void *mem_grow(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (fails_now() || !mem_mul(n, size, &bytes))
        return NULL;
    return realloc(p, bytes ? bytes : 1);
}

char *mem_strndup(const char *s, size_t n)
{
    char *p = mem_alloc(n + 1, 1);
    if (p != NULL)
        memcpy(p, s, n);
    return p;
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

void *mem_map(size_t bytes)
{
    if (fails_now() || bytes == 0)
        return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

void mem_unmap(void *p, size_t bytes)
{
    if (p != NULL)
        munmap(p, bytes);
}

static size_t read_number(const char *path, const char *key, size_t unit)
{
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return SIZE_MAX;
    char line[256];
    size_t value = SIZE_MAX, len = strlen(key);
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, key, len) != 0)
            continue;
        char *end;
        unsigned long long v = strtoull(line + len, &end, 10);
        if (end != line + len && !mem_mul((size_t)v, unit, &value))
            value = SIZE_MAX;
        break;
    }
    fclose(f);
    return value;
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

size_t mem_available(void)
{
    size_t avail = read_number("/proc/meminfo", "MemAvailable:", 1024);
    size_t limit = read_number("/sys/fs/cgroup/memory.max", "", 1);
    if (limit != SIZE_MAX) {
        size_t used = read_number("/sys/fs/cgroup/memory.current", "", 1);
        avail = min_size(avail, used < limit ? limit - used : 0);
    }
    struct rlimit rl;
    if (getrlimit(RLIMIT_AS, &rl) == 0 && rl.rlim_cur != RLIM_INFINITY) {
        size_t used = read_number("/proc/self/statm", "", (size_t)sysconf(_SC_PAGESIZE));
        avail = min_size(avail, used < rl.rlim_cur ? rl.rlim_cur - used : 0);
    }
    return avail;
}
