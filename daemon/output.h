/* SPDX-License-Identifier: Apache-2.0 */
/* output.h - frames on their way to one client.
 *
 * A frame is sent at once when nothing waits before it; else it is copied and waits, in order, with
 * its own duplicate of a descriptor. What waits is capped; the session watches for how long.
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_OUTPUT_H
#define LARDER_DAEMON_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct output_frame;

struct output {
    struct output_frame *first;
    struct output_frame **last_next;
    uint64_t bytes; /* waiting */
};

#define OUTPUT_PARTS_MAX 4

void output_init(struct output *output);
void output_clear(struct output *output);
static inline bool output_waiting(const struct output *output)
{
    return output->first != NULL;
}

/* Sends one frame made of `parts`, with a descriptor unless pass_fd is -1. An error means that the
 * connection is of no use any more. */
int output_send(struct output *output, int socket_fd, const struct iovec *parts, int part_count,
                int pass_fd);
/* Sends what waits, as far as it goes. */
int output_flush(struct output *output, int socket_fd);

#endif
