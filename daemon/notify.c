/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/log.h"

#define SEND_S_MAX 1

/* The value of a variable that is a whole number; 0 when it is none. */
static uint64_t read_number(const char *name)
{
    const char *text = getenv(name);
    char *end;
    if (!text || *text < '0' || *text > '9')
        return 0;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    return errno || *end ? 0 : value;
}

/* Half of what the manager waits, as sd_watchdog_enabled(3) has it. */
static uint64_t watchdog_interval_ms(void)
{
    uint64_t us = read_number("WATCHDOG_USEC");
    if (getenv("WATCHDOG_PID") && read_number("WATCHDOG_PID") != (uint64_t)getpid())
        return 0;
    return us == 0 ? 0 : us / 2000 > 0 ? us / 2000 : 1;
}

static bool set_address(struct notify *notify, const char *text)
{
    size_t length = strlen(text);
    if ((text[0] != '/' && text[0] != '@') || length < 2 ||
        length >= sizeof(notify->address.sun_path))
        return false;
    notify->address.sun_family = AF_UNIX;
    memcpy(notify->address.sun_path, text, length);
    notify->address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (text[0] == '@')
        notify->address.sun_path[0] = 0; /* abstract: its length ends it */
    else
        notify->address_bytes++; /* a path: its NUL does */
    return true;
}

void notify_open(struct notify *notify)
{
    const char *text = getenv("NOTIFY_SOCKET");
    memset(notify, 0, sizeof(*notify));
    notify->fd = -1;
    if (!text || !*text)
        return;
    if (!set_address(notify, text)) {
        larder_log(LARDER_LOG_WARN,
                   "NOTIFY_SOCKET=%s is neither a path nor an abstract address "
                   "of at most %zu bytes: the service manager is told nothing",
                   text, sizeof(notify->address.sun_path) - 1);
        return;
    }
    notify->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (notify->fd < 0) {
        larder_log(LARDER_LOG_WARN, "the service manager is told nothing: socket: %s",
                   strerror(errno));
        return;
    }
    const struct timeval limit = {.tv_sec = SEND_S_MAX};
    setsockopt(notify->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    notify->watchdog_ms = watchdog_interval_ms();
}

void notify_close(struct notify *notify)
{
    if (notify->fd >= 0)
        close(notify->fd);
    notify->fd = -1;
}

static bool transmit(struct notify *notify, const char *text, int flags)
{
    ssize_t sent;
    do {
        sent = sendto(notify->fd, text, strlen(text), flags | MSG_NOSIGNAL,
                      (const struct sockaddr *)&notify->address, notify->address_bytes);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0 && !notify->failed) {
        notify->failed = true;
        larder_log(LARDER_LOG_WARN, "the service manager cannot be told '%s': %s", text,
                   strerror(errno));
    }
    return sent >= 0;
}

void notify_tell(struct notify *notify, const char *format, ...)
{
    char text[NOTIFY_BYTES_MAX];
    if (notify->fd < 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    transmit(notify, text, 0);
}

void notify_alive(struct notify *notify, uint64_t now_ms)
{
    if (notify->fd < 0 || notify->watchdog_ms == 0 || now_ms < notify->next_ms)
        return;
    /* One that did not go out is tried again on the next call. */
    if (transmit(notify, "WATCHDOG=1", MSG_DONTWAIT))
        notify->next_ms = now_ms + notify->watchdog_ms;
}
