/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_pool.h - a fixed set of threads that share the items of one job after the other.
 * Owns:    its threads. The caller of cpu_pool_run() is one of the workers, number 0.
 * Threads: cpu_pool_run() from one thread at a time; it returns when every item is done.
 */
#ifndef LARDER_KERNELS_CPU_POOL_H
#define LARDER_KERNELS_CPU_POOL_H

#include <stdint.h>

struct cpu_pool;

typedef void cpu_job(void *context, uint64_t item, uint32_t worker);

/* `threads` counts the caller too; 1 makes no thread. */
int cpu_pool_open(struct cpu_pool **out, uint32_t threads);
void cpu_pool_close(struct cpu_pool *pool);
uint32_t cpu_pool_threads(const struct cpu_pool *pool);

/* Calls job(context, item, worker) once for each item below `count`, in any order. */
void cpu_pool_run(struct cpu_pool *pool, cpu_job *job, void *context, uint64_t count);

#endif
