/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/clock.h"

#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

static void read_system(void *context, struct larder_clock_reading *out)
{
    (void)context;
    struct timespec elapsed;
    clock_gettime(CLOCK_BOOTTIME, &elapsed);
    *out = (struct larder_clock_reading){.wall_s = (uint64_t)time(NULL),
                                         .elapsed_s = (uint64_t)elapsed.tv_sec};
}

static uint64_t this_boot(void)
{
    char id[36];
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, id, sizeof(id));
    close(fd);
    return got == (ssize_t)sizeof(id) ? XXH3_64bits(id, sizeof(id)) : 0;
}

void clock_open(struct clock *clock, larder_clock_read read, void *context)
{
    struct larder_clock_reading reading;
    clock->read = read ? read : read_system;
    clock->context = context;
    clock->read(context, &reading);
    clock->boot = read ? reading.boot : this_boot();
    /* A wall clock that stands before its machine's boot is wrong; time begins at the boot then. */
    clock->epoch_s = reading.wall_s > reading.elapsed_s ? reading.wall_s - reading.elapsed_s : 1;
}

uint64_t clock_now_s(const struct clock *clock)
{
    struct larder_clock_reading reading;
    clock->read(clock->context, &reading);
    return clock->epoch_s + reading.elapsed_s;
}
