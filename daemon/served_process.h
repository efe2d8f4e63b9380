/* SPDX-License-Identifier: Apache-2.0 */
/* served_process.h - starting a larder-worker, and frames to and from it. For served.c.
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_SERVED_PROCESS_H
#define LARDER_DAEMON_SERVED_PROCESS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/config.h"

/* Starts the program beside larderd's own. *fd: our end of its socket. */
int served_spawn(const struct config *config, const struct served_model *model, pid_t *pid,
                 int *fd);

/* Sends a frame, with a descriptor unless pass_fd is -1; never waits. */
int served_send(int fd, uint16_t type, uint64_t serial, const void *body, size_t body_bytes,
                int pass_fd);
/* The next frame's bytes; 0: none now. LARDER_EDOWN at its end, LARDER_EPROTO for what is no
 * frame. `buffer` is aligned to 8. */
int served_receive(int fd, void *buffer, size_t capacity);

#endif
