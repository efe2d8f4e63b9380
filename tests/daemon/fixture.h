/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.h - a real larderd on a directory of its own, for tests.
 *
 *   struct fixture fixture;
 *   fixture_start(&fixture, "host_bytes = 8M\n");
 *   ... connect to fixture.socket ...
 *   fixture_stop(&fixture);
 *
 * Runs $LARDER_BUILD/larderd, else the one beside the folder of the test's program. Its log goes to
 * DIR/log. Whatever fails is a bug of the test's world: a message and abort().
 */
#ifndef LARDER_TESTS_DAEMON_FIXTURE_H
#define LARDER_TESTS_DAEMON_FIXTURE_H

#include <stdbool.h>
#include <sys/types.h>

struct fixture {
    char directory[64];      /* made by start, removed by stop; the store is in DIR/store */
    char config_path[80];    /* DIR/larderd.conf */
    char socket[80];         /* DIR/larder.sock */
    char control_socket[80]; /* DIR/control.sock */
    char log_path[80];       /* DIR/log */
    pid_t pid;               /* 0: does not run */
    /* Set between fixture_prepare() and a start: */
    const char *program;       /* of the build; NULL: larderd */
    const char *const *prefix; /* a program and its arguments that run it in their place, NULL at
                                  the end: strace -D; NULL: none */
    int wait_ms;               /* for a start or an end, before the test aborts; 0: 30 s */
};

/* Starts on a fresh directory. `config` (NULL: nothing) stands behind small defaults and may name
 * any key they do not: a store of 64 MiB host, 256 MiB SSD, slabs of 8 MiB, segments of 16 MiB,
 * block_tokens 16, recipe exact, io threads, 2 threads. Lines with "DIR/" get the directory. */
void fixture_start(struct fixture *fixture, const char *config);
/* The same without starting it: for tests of what starting says. */
void fixture_prepare(struct fixture *fixture, const char *config);
/* Starts again what was stopped or killed, on the same directory, and waits until it serves. */
void fixture_restart(struct fixture *fixture);
/* The same of one that may not start: 0 when it serves, else how it ended, as fixture_terminate()
 * gives it. */
int fixture_try_restart(struct fixture *fixture);
/* Runs larderd with these arguments (NULL at the end) until it exits; its exit code. Its output is
 * added to the log. */
int fixture_run(struct fixture *fixture, const char *const *arguments);
/* SIGKILL, and waits. */
void fixture_kill(struct fixture *fixture);
/* SIGTERM, and waits; returns its exit code, or -N when signal N ended it. */
int fixture_terminate(struct fixture *fixture);
/* Ends it if it runs (and then cleanly, or aborts) and removes the directory. */
void fixture_stop(struct fixture *fixture);

bool fixture_alive(const struct fixture *fixture);
/* Does its log hold this text? */
bool fixture_log_has(const struct fixture *fixture, const char *text);
/* Open descriptors of the daemon. */
int fixture_fd_count(const struct fixture *fixture);
/* Path of a program of the build. */
void fixture_program(char out[512], const char *name);

#endif
