/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"

#include <assert.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Relaxed: the counters order nothing, they only count. */
static _Atomic uint64_t allocation_count;
static _Atomic uint64_t fail_at;

static int must_fail(void)
{
    uint64_t now = atomic_fetch_add_explicit(&allocation_count, 1, memory_order_relaxed) + 1;
    return now == atomic_load_explicit(&fail_at, memory_order_relaxed);
}

void *larder_alloc(size_t bytes)
{
    return must_fail() ? NULL : malloc(bytes);
}

void *larder_alloc_zero(size_t count, size_t bytes)
{
    return must_fail() ? NULL : calloc(count, bytes);
}

void *larder_realloc(void *old, size_t bytes)
{
    assert(bytes > 0);
    return must_fail() ? NULL : realloc(old, bytes);
}

void *larder_alloc_aligned(size_t align, size_t bytes)
{
    assert(align > 0);
    assert((align & (align - 1)) == 0);
    if (bytes > SIZE_MAX - align)
        return NULL;
    return must_fail() ? NULL : aligned_alloc(align, (bytes + align - 1) & ~(align - 1));
}

char *larder_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = larder_alloc(bytes);
    return copy ? memcpy(copy, text, bytes) : NULL;
}

void larder_free(void *memory)
{
    free(memory);
}

void larder_mem_trim(void)
{
    (void)malloc_trim(0);
}

void larder_mem_fail_at(uint64_t n)
{
    uint64_t now = atomic_load_explicit(&allocation_count, memory_order_relaxed);
    atomic_store_explicit(&fail_at, n ? now + n : 0, memory_order_relaxed);
}

uint64_t larder_mem_count(void)
{
    return atomic_load_explicit(&allocation_count, memory_order_relaxed);
}
