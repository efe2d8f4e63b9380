/* SPDX-License-Identifier: Apache-2.0 */
/* latency.c - clocks, and how long requests take. */
#include <time.h>

#include "daemon/larderd.h"

uint64_t larderd_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t larderd_now_ms(void)
{
    return larderd_now_us() / 1000;
}

void larderd_note_latency(struct larderd *daemon, enum wire_latency_kind kind, uint64_t began_us)
{
    static const uint32_t bounds_us[WIRE_LATENCY_BUCKETS - 1] = WIRE_LATENCY_BOUNDS_US;
    struct wire_latency *latency = &daemon->latencies[kind];
    uint64_t us = larderd_now_us() - began_us;
    uint32_t bucket = 0;
    while (bucket < WIRE_LATENCY_BUCKETS - 1 && us > bounds_us[bucket])
        bucket++;
    latency->buckets[bucket]++;
    latency->count++;
    latency->sum_us += us;
}
