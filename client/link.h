/* SPDX-License-Identifier: Apache-2.0 */
/* link.h - what connection.c, link.c and slabs.c share about a link; others use connection.h.
 * Threads: as in connection.h; `_locked`: called and returns with larder->lock held.
 */
#ifndef LARDER_CLIENT_LINK_H
#define LARDER_CLIENT_LINK_H

#include <time.h>

#include "client/connection.h"

struct timespec client_timespec(uint64_t ns);
/* Until when a wait for the daemon that begins now may last. */
uint64_t client_deadline_ns(const struct larder *larder);

/* Receives one frame into link->frame if there is one: its bytes, 0 when there is none now, or a
 * negative code. *fd is the descriptor that came with it, or -1. The caller is the reader. */
int client_receive_frame(struct larder_link *link, int *fd);
/* Becomes the reader: hands out what is there; waits for it until `until_ns` if nothing is.
 * `events` is POLLIN, and may add POLLOUT. */
void client_read_locked(struct larder_link *link, uint64_t until_ns, short events);
/* Ends the link for all who wait on it. The caller holds a reference. */
void client_link_fail_locked(struct larder_link *link, int code, const char *why);

/* Maps a slab the daemon sent. Takes `fd` in any case. */
int client_add_slab(struct larder_link *link, const struct wire_slab *body, int fd);
/* Unmaps what the daemon has retired, so that its memory comes back. No operation is under way. */
void client_drop_retired_slabs_locked(struct larder_link *link);

#endif
