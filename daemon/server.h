/* SPDX-License-Identifier: Apache-2.0 */
/* server.h - the listening sockets and the event loop.
 *
 * Owns:    the sockets and their files; the timer; the signals.
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_SERVER_H
#define LARDER_DAEMON_SERVER_H

#include <stdbool.h>

struct larderd;
struct server;

/* Listens on all sockets of the configuration. A socket's folder is created (0750) when missing; a
 * file left by a dead daemon is replaced, one that somebody listens on is not (-EADDRINUSE).
 * `reload` runs on SIGHUP. */
int server_open(struct server **out, struct larderd *daemon, void (*reload)(struct larderd *));
/* Serves until SIGTERM or SIGINT, then stops accepting and reading, and waits (for some seconds)
 * until everything in flight is answered. Was it? */
bool server_run(struct server *server);
/* Closes and removes the sockets. */
void server_close(struct server *server);

#endif
