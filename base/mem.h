/* SPDX-License-Identifier: Apache-2.0 */
/* mem.h - the one place that allocates, so that tests can make any allocation fail.
 * Threads: any.
 */
#ifndef LARDER_BASE_MEM_H
#define LARDER_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

/* NULL when there is no memory. larder_free() takes what any of these gave, and NULL. */
void *larder_alloc(size_t bytes);
void *larder_alloc_zero(size_t count, size_t bytes);
void *larder_realloc(void *old, size_t bytes);
/* `align` is a power of two; the size is rounded up to it. */
void *larder_alloc_aligned(size_t align, size_t bytes);
char *larder_strdup(const char *text);
void larder_free(void *memory);
/* Gives what was freed back to the system, as far as whole pages of it are free. Takes milliseconds
 * a hundred MB. */
void larder_mem_trim(void);

/* Tests: the Nth allocation from now on (counting from 1) fails, once; 0 switches it off. */
void larder_mem_fail_at(uint64_t n);
/* Allocations since start. */
uint64_t larder_mem_count(void);

#endif
