/* SPDX-License-Identifier: Apache-2.0 */
#include "delays.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

static _Atomic uint32_t delay_permille;
static _Atomic uint32_t delay_us_max;
static _Atomic uint64_t seeds;
static _Thread_local bool is_spared;

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);

void delays_set(uint32_t permille, uint32_t us_max)
{
    is_spared = true;
    atomic_store(&delay_us_max, us_max);
    atomic_store(&delay_permille, permille);
}

static uint32_t draw(uint32_t limit)
{
    static _Thread_local uint64_t state;
    if (state == 0)
        state = 0x9e3779b97f4a7c15ull * (atomic_fetch_add(&seeds, 1) + 1);
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % limit;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    int err = __real_pthread_mutex_unlock(mutex);
    uint32_t permille = atomic_load_explicit(&delay_permille, memory_order_relaxed);
    uint32_t us_max = atomic_load_explicit(&delay_us_max, memory_order_relaxed);
    if (!is_spared && permille > 0 && us_max > 0 && draw(1000) < permille) {
        struct timespec delay = {.tv_nsec = (long)draw(us_max) * 1000};
        nanosleep(&delay, NULL);
    }
    return err;
}
