/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h - the time by which marks end: Unix seconds that no change of the wall clock moves.
 *
 * At a start the wall clock is read once; from then on the machine's monotonic clock counts (with
 * the time it was suspended). What another life of the daemon stored in the same boot of the
 * machine is read by that life's clock, so that the wall clock may jump between the two as well.
 * Over a reboot there is nothing but the wall clock to go by.
 * Threads: plain functions.
 */
#ifndef LARDER_STORAGE_CLOCK_H
#define LARDER_STORAGE_CLOCK_H

#include <stdint.h>

struct larder_clock_reading {
    uint64_t wall_s;    /* Unix time */
    uint64_t elapsed_s; /* since the machine booted */
    uint64_t boot;      /* names this boot; 0: unknown */
};

/* Reads the system's clocks; tests have others (struct larder_store_options). */
typedef void (*larder_clock_read)(void *context, struct larder_clock_reading *out);

struct clock {
    larder_clock_read read;
    void *context;
    uint64_t boot;
    uint64_t epoch_s; /* this clock's time at the boot */
};

/* `read` NULL: the system's. */
void clock_open(struct clock *clock, larder_clock_read read, void *context);
uint64_t clock_now_s(const struct clock *clock);

#endif
