/* SPDX-License-Identifier: Apache-2.0 */
/* notify.h - tells the service manager how the daemon is doing: the datagrams of sd_notify(3).
 *
 * $NOTIFY_SOCKET is a path or, when it begins with @, an abstract address; $WATCHDOG_USEC asks for
 * signs of life, from the process $WATCHDOG_PID when that is set. Without them nothing is sent. A
 * manager that cannot be told is logged, once, and is no reason to fail.
 *
 * Owns:    a socket.
 * Threads: the event thread, and main before and after it.
 */
#ifndef LARDER_DAEMON_NOTIFY_H
#define LARDER_DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

/* A text may be so long, with its NUL; longer ones are cut. */
#define NOTIFY_BYTES_MAX 1024

struct notify {
    int fd; /* -1: nobody wants to know */
    socklen_t address_bytes;
    struct sockaddr_un address;
    bool failed;          /* told already */
    uint64_t watchdog_ms; /* between two signs of life; 0: none are wanted */
    uint64_t next_ms;
};

void notify_open(struct notify *notify);
void notify_close(struct notify *notify);

/* Lines of NAME=value, such as "READY=1\nSTATUS=serves /var/lib/larder". Waits for a manager that
 * does not read, but no longer than a second. */
void notify_tell(struct notify *notify, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A sign of life when one is due; never waits. For the event loop, every 100 ms or so: a loop that
 * hangs gives none. */
void notify_alive(struct notify *notify, uint64_t now_ms);

#endif
