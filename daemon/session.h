/* SPDX-License-Identifier: Apache-2.0 */
/* session.h - one connection: from accept to the last thing in flight for it.
 *
 * States (docs/PROTOCOL.md, "Sessions"): NEW until WIRE_HELLO, SETUP while its tenant is looked up,
 * READY, CLOSED. A closed session has no descriptor and no leases; its memory stays until what
 * workers and the storage thread do for it has come back.
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_SESSION_H
#define LARDER_DAEMON_SESSION_H

#include <stdint.h>

#include "daemon/frame.h"

struct larderd;
struct session;

/* Takes `fd`, whatever comes out: a peer that is refused is told why. `socket` is the path it
 * connected to. */
void session_open(struct larderd *daemon, int fd, enum frame_side side, const char *socket);
void session_close(struct session *session);
/* Deadlines of all sessions and leases. */
void session_tick_all(struct larderd *daemon, uint64_t now_ms);
/* Stops reading from every client; answers still go out. */
void session_stop_all(struct larderd *daemon);
void session_close_all(struct larderd *daemon);
/* Frees leases kept for use again. */
void session_free_pool(struct larderd *daemon);

#endif
