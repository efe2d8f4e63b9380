/* SPDX-License-Identifier: Apache-2.0 */
/* process.h - a larderd of our own, and connections to it.
 * Owns:    the child process; it is stopped by bench_daemon_stop(), and dies with us.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_BENCH_PROCESS_H
#define LARDER_TOOLS_BENCH_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

#include "base/wire.h"
#include "client/larder.h"
#include "tools/bench/bench.h"

struct bench_daemon {
    pid_t pid;
    char store[320];
    char socket[108];
    char control[108];
};

/* Starts larderd over bench->directory/NAME with these lines of configuration, and waits until it
 * answers. */
int bench_daemon_start(const struct bench *bench, struct bench_daemon *out, const char *name,
                       const char *settings);
void bench_daemon_stop(struct bench_daemon *daemon);
/* Stops it and removes its store. */
void bench_daemon_remove(struct bench_daemon *daemon);

int bench_daemon_status(const struct bench_daemon *daemon, struct wire_admin_status_ok *out);
/* Until everything stored is on disk. */
int bench_daemon_settle(const struct bench_daemon *daemon);

/* A connection and a model on it. */
struct bench_client {
    struct larder *larder;
    struct larder_model *model;
};
int bench_client_open(struct bench_client *out, const struct bench_daemon *daemon,
                      const struct larder_model_desc *model);
void bench_client_close(struct bench_client *client);
/* larder's code as ours, its message kept. */
int bench_client_failed(int code, const char *what);

void bench_remove_tree(const char *path);

#endif
