/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/server.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "daemon/completions.h"
#include "daemon/larderd.h"
#include "daemon/served.h"
#include "daemon/session.h"

#define BACKLOG 128
/* Deadlines are met to within this. */
#define TICK_MS 100
/* After SIGTERM, for what is in flight. */
#define STOP_MS 10000
/* Connections taken before others have their turn. */
#define ACCEPTS_MAX 16

struct listener {
    struct server *server;
    struct event *event;
    enum frame_side side;
    int fd; /* -1: none */
    char path[CONFIG_SOCKET_BYTES_MAX];
};

struct server {
    struct larderd *daemon;
    void (*reload)(struct larderd *daemon);
    int spare_fd; /* given up for a moment to refuse a client when descriptors are used up */
    struct event *completion_event;
    struct event *tick_event;
    struct event *signal_events[3];
    uint64_t stop_ms;
    bool read_only_told;
    uint32_t listener_count;
    struct listener listeners[];
};

/* --- sockets ---------------------------------------------------------------------------------- */

static int make_folder(const char *path)
{
    char copy[CONFIG_SOCKET_BYTES_MAX];
    memcpy(copy, path, sizeof(copy));
    const char *folder = dirname(copy);
    if (mkdir(folder, 0750) < 0 && errno != EEXIST)
        return larder_fail(-errno, "cannot create %s for the socket: %m", folder);
    return 0;
}

/* Removes a socket that nobody listens on. */
static int clear_path(const struct sockaddr_un *address)
{
    struct stat status;
    const char *path = address->sun_path;
    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : larder_fail(-errno, "%s: %m", path);
    if (!S_ISSOCK(status.st_mode))
        return larder_fail(-EEXIST, "%s is there and is no socket; remove it or use another path",
                           path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return larder_fail(-errno, "socket: %m");
    int err = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;
    close(fd);
    if (err != -ECONNREFUSED)
        return larder_fail(-EADDRINUSE,
                           "somebody listens on %s; stop that daemon or use another path", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return larder_fail(-errno, "cannot remove %s, left by a daemon that died: %m", path);
    return 0;
}

static int listen_at(struct listener *listener)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, listener->path, sizeof(listener->path));
    LARDER_TRY(make_folder(listener->path));
    LARDER_TRY(clear_path(&address));

    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return larder_fail(-errno, "socket: %m");
    /* The mode of an unbound socket is that of the file bind() makes: never open for a moment. */
    mode_t mode = listener->side == FRAME_CONTROL ? 0600 : 0660;
    if (fchmod(fd, mode) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, BACKLOG) < 0) {
        int err = larder_fail(-errno, "cannot listen on %s: %m", listener->path);
        close(fd);
        return err;
    }
    listener->fd = fd;
    return 0;
}

static void close_listener(struct listener *listener)
{
    if (listener->event)
        event_free(listener->event);
    listener->event = NULL;
    if (listener->fd >= 0) {
        unlink(listener->path);
        close(listener->fd);
    }
    listener->fd = -1;
}

/* Descriptors are used up: takes the client with the spare one, to close it, instead of leaving it
 * in the queue, which would keep the socket readable for ever. */
static void refuse_one(struct server *server, int listen_fd)
{
    larder_log(LARDER_LOG_ERROR, "no descriptor for a new client: it is refused; raise the limit "
                                 "of open files");
    close(server->spare_fd);
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        close(fd);
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void on_connect(evutil_socket_t listen_fd, short what, void *argument)
{
    struct listener *listener = argument;
    (void)what;
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            session_open(listener->server->daemon, fd, listener->side, listener->path);
        } else if (errno == EMFILE || errno == ENFILE) {
            refuse_one(listener->server, listen_fd);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            if (errno != EAGAIN)
                larder_log(LARDER_LOG_ERROR, "accept on %s: %s", listener->path, strerror(errno));
            return;
        }
    }
}

/* --- the loop --------------------------------------------------------------------------------- */

static void begin_stop(struct server *server)
{
    if (server->daemon->stopping)
        return;
    server->daemon->stopping = true;
    notify_tell(&server->daemon->notify, "STOPPING=1\nSTATUS=Stops: %u requests in flight",
                server->daemon->in_flight);
    server->stop_ms = larderd_now_ms() + STOP_MS;
    for (uint32_t i = 0; i < server->listener_count; i++)
        close_listener(&server->listeners[i]);
    session_stop_all(server->daemon);
    /* Their workers are clients, too, whose requests are not read any more. */
    served_stop(server->daemon->served);
}

static void end_if_idle(struct server *server)
{
    const struct larderd *daemon = server->daemon;
    if (!daemon->stopping)
        return;
    if (daemon->in_flight > 0 && larderd_now_ms() < server->stop_ms)
        return;
    if (daemon->in_flight > 0)
        larder_log(LARDER_LOG_WARN, "%u requests were not answered in %u s after the stop",
                   daemon->in_flight, STOP_MS / 1000);
    event_base_loopbreak(daemon->events);
}

static void tell_alarm(struct server *server)
{
    if (server->read_only_told)
        return;
    struct larder_store_stats stats;
    larder_store_stats(server->daemon->store, &stats);
    if (!stats.read_only)
        return;
    server->read_only_told = true;
    larder_log(LARDER_LOG_ERROR,
               "ALARM: a sync of %s failed; the store is read-only now: nothing "
               "new is kept; check the disk, then restart larderd",
               server->daemon->config.directory);
    notify_tell(&server->daemon->notify,
                "STATUS=READ-ONLY: a sync failed; check the disk, then restart");
}

static void on_tick(evutil_socket_t fd, short what, void *argument)
{
    struct server *server = argument;
    (void)fd;
    (void)what;
    uint64_t now_ms = larderd_now_ms();
    session_tick_all(server->daemon, now_ms);
    notify_alive(&server->daemon->notify, now_ms);
    served_tick(server->daemon->served, now_ms);
    scrub_tick(&server->daemon->scrub, now_ms);
    scrub_tick(&server->daemon->gc, now_ms);
    scrub_tick(&server->daemon->demote, now_ms);
    tell_alarm(server);
    end_if_idle(server);
}

static void on_completion(evutil_socket_t fd, short what, void *argument)
{
    struct server *server = argument;
    (void)fd;
    (void)what;
    completions_drain(server->daemon->completions);
    end_if_idle(server);
}

static void on_signal(evutil_socket_t signal, short what, void *argument)
{
    struct server *server = argument;
    (void)what;
    if (signal == SIGHUP) {
        server->reload(server->daemon);
        return;
    }
    larder_log(LARDER_LOG_INFO, "signal %d: stopping", (int)signal);
    begin_stop(server);
    end_if_idle(server);
}

static int add_events(struct server *server)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    struct event_base *events = server->daemon->events;
    const struct timeval tick = {.tv_usec = TICK_MS * 1000};
    for (uint32_t i = 0; i < server->listener_count; i++) {
        struct listener *listener = &server->listeners[i];
        listener->event =
            event_new(events, listener->fd, EV_READ | EV_PERSIST, on_connect, listener);
        if (!listener->event || event_add(listener->event, NULL) < 0)
            return larder_fail(-ENOMEM, "no memory for events");
    }
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        server->signal_events[i] = evsignal_new(events, signals[i], on_signal, server);
        if (!server->signal_events[i] || event_add(server->signal_events[i], NULL) < 0)
            return larder_fail(-ENOMEM, "no memory for events");
    }
    server->completion_event = event_new(events, completions_fd(server->daemon->completions),
                                         EV_READ | EV_PERSIST, on_completion, server);
    server->tick_event = event_new(events, -1, EV_PERSIST, on_tick, server);
    if (!server->completion_event || event_add(server->completion_event, NULL) < 0 ||
        !server->tick_event || event_add(server->tick_event, &tick) < 0)
        return larder_fail(-ENOMEM, "no memory for events");
    return 0;
}

static void add_listener(struct server *server, enum frame_side side, const char *path)
{
    struct listener *listener = &server->listeners[server->listener_count++];
    listener->server = server;
    listener->side = side;
    listener->fd = -1;
    snprintf(listener->path, sizeof(listener->path), "%s", path);
}

int server_open(struct server **out, struct larderd *daemon, void (*reload)(struct larderd *))
{
    *out = NULL;
    const struct config *config = &daemon->config;
    size_t bytes = (2 + config->rule_count) * sizeof(struct listener);
    struct server *server = larder_alloc_zero(1, sizeof(*server) + bytes);
    if (!server)
        return larder_fail(-ENOMEM, "no memory for the sockets");
    server->daemon = daemon;
    server->reload = reload;
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    add_listener(server, FRAME_ENGINE, config->socket);
    add_listener(server, FRAME_CONTROL, config->control_socket);
    for (uint32_t i = 0; i < config->rule_count; i++) {
        if (config->rules[i].kind == RULE_SOCKET)
            add_listener(server, FRAME_ENGINE, config->rules[i].path);
    }

    int err = 0;
    for (uint32_t i = 0; err == 0 && i < server->listener_count; i++)
        err = listen_at(&server->listeners[i]);
    if (err == 0)
        err = add_events(server);
    if (err < 0) {
        server_close(server);
        return err;
    }
    *out = server;
    return 0;
}

bool server_run(struct server *server)
{
    event_base_dispatch(server->daemon->events);
    return server->daemon->in_flight == 0;
}

static void free_event(struct event *event)
{
    if (event)
        event_free(event);
}

void server_close(struct server *server)
{
    if (!server)
        return;
    for (uint32_t i = 0; i < server->listener_count; i++)
        close_listener(&server->listeners[i]);
    for (size_t i = 0; i < sizeof(server->signal_events) / sizeof(server->signal_events[0]); i++)
        free_event(server->signal_events[i]);
    free_event(server->completion_event);
    free_event(server->tick_event);
    if (server->spare_fd >= 0)
        close(server->spare_fd);
    larder_free(server);
}
