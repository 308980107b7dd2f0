/* Memory: checked allocation, aligned blocks, and large anonymous regions with huge pages.
 *
 * Nothing here exits: NULL means "no memory", and the caller reports what it needed. mem_fail_after() is the
 * tests' hook to make the n-th allocation of this process fail. */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t n, size_t size);            /* zeroed; NULL on overflow or no memory; free with free() */
void *mem_grow(void *p, size_t n, size_t size);    /* realloc with checked product; p is untouched on NULL */
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n);        /* n bytes and a NUL; the bytes may hold NULs */

/* Anonymous zero pages, committed when first touched; huge pages are asked for. Free with mem_unmap. */
void *mem_map(size_t bytes);
void mem_unmap(void *p, size_t bytes);

/* Bytes of memory this process may still take: min of MemAvailable, cgroup limit and RLIMIT_AS. */
size_t mem_available(void);

/* a*b or a+b into *out; false on overflow. */
bool mem_mul(size_t a, size_t b, size_t *out);
bool mem_add(size_t a, size_t b, size_t *out);

/* The n-th allocation from now on (1 = the next) returns NULL, once; 0 switches it off. For tests. */
void mem_fail_after(int64_t n);

#endif
