/* SPDX-License-Identifier: Apache-2.0 */
/* staging.h - memory that a client writes and the daemon reads: one memfd of a connection.
 *
 * It is the daemon's, sealed against shrinking and growing, so that reading it cannot fault. The
 * client can change or punch it at any time: what is read twice may differ.
 * Threads: open and close from the event thread; the bytes from any.
 */
#ifndef LARDER_DAEMON_STAGING_H
#define LARDER_DAEMON_STAGING_H

#include <stdint.h>

struct staging {
    int fd; /* -1: none */
    uint64_t bytes;
    const volatile uint8_t *memory;
};

int staging_open(struct staging *out, uint64_t bytes);
void staging_close(struct staging *staging);

#endif
