/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/session.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

/* What the kernel shows for users that do not exist in the daemon's user namespace. */
#define OVERFLOW_UID 65534u
/* Groups of a peer that tenant rules are looked up for. */
#define PEER_GROUPS_MAX 256u

/* --- life ------------------------------------------------------------------------------------- */

void session_ref(struct session *session)
{
    assert(session->refs > 0);
    session->refs++;
}

void session_unref(struct session *session)
{
    assert(session->refs > 0);
    if (--session->refs > 0)
        return;
    assert(session->state == SESSION_CLOSED);
    assert(session->lease_count == 0);
    assert(!session->put_first);
    assert(!session->blend);
    struct larderd *daemon = session->daemon;
    session_staging_count(session, 0);
    staging_close(&session->staging);
    staging_close(&session->upload);
    session_models_free(session);
    accounts_leave(&daemon->accounts, session->account);
    larder_free(session->slabs_sent);
    larder_free(session);
    daemon->busy_count--;
}

/* Requests that were not read would make the kernel reset the connection: the client would then see
 * ECONNRESET in place of the error that says why it is closed. */
static void close_read_out(int fd)
{
    uint8_t byte;
    shutdown(fd, SHUT_RD);
    while (recv(fd, &byte, sizeof(byte), MSG_DONTWAIT | MSG_TRUNC) > 0)
        continue;
    close(fd);
}

void session_close(struct session *session)
{
    /* Without a link it is refused, and session_open() ends it. */
    if (session->state == SESSION_CLOSED || !session->link)
        return;
    session->state = SESSION_CLOSED;
    struct larderd *daemon = session->daemon;
    *session->link = session->next;
    if (session->next)
        session->next->link = session->link;
    daemon->session_count--;
    session->account->connections--;
    event_free(session->read_event);
    event_free(session->write_event);
    output_clear(&session->output);
    close_read_out(session->fd);
    session->fd = -1;
    session_release_all(session);
    session_blend_close(session);
    session_unref(session);
}

/* --- answers ---------------------------------------------------------------------------------- */

void session_pause(struct session *session, enum session_pause why)
{
    if (session->state != SESSION_CLOSED && session->pause == 0)
        event_del(session->read_event);
    session->pause |= why;
}

void session_resume(struct session *session, enum session_pause why)
{
    if (!(session->pause & why))
        return;
    session->pause &= ~(uint32_t)why;
    if (session->state != SESSION_CLOSED && session->pause == 0)
        event_add(session->read_event, NULL);
}

void session_reply_parts(struct session *session, enum wire_type type, uint64_t request,
                         const struct iovec *parts, int part_count, int pass_fd)
{
    if (session->state == SESSION_CLOSED)
        return;
    struct wire_frame header = {.bytes = sizeof(header), .type = (uint16_t)type};
    header.request = request;
    struct iovec all[OUTPUT_PARTS_MAX] = {{&header, sizeof(header)}};
    assert(part_count < OUTPUT_PARTS_MAX);
    for (int i = 0; i < part_count; i++) {
        all[i + 1] = parts[i];
        header.bytes += (uint32_t)parts[i].iov_len;
    }
    assert(header.bytes <= LARDER_FRAME_BYTES_MAX);
    int err = output_send(&session->output, session->fd, all, part_count + 1, pass_fd);
    if (err < 0) {
        if (err != -EPIPE && err != -ECONNRESET)
            larder_log(LARDER_LOG_WARN, "pid %d (uid %u): %s; closed", session->pid, session->uid,
                       larder_error_message());
        session_close(session);
        return;
    }
    if (session->link && output_waiting(&session->output) && !(session->pause & PAUSE_OUTPUT)) {
        session->output_since_ms = larderd_now_ms();
        session_pause(session, PAUSE_OUTPUT);
        event_add(session->write_event, NULL);
    }
}

void session_reply(struct session *session, enum wire_type type, uint64_t request, const void *body,
                   size_t body_bytes)
{
    struct iovec part = {(void *)(uintptr_t)body, body_bytes};
    session_reply_parts(session, type, request, &part, 1, -1);
}

void session_fail_text(struct session *session, uint64_t request, int code, const char *message)
{
    assert(code < 0);
    struct wire_error error = {.code = code};
    snprintf(error.message, sizeof(error.message), "%s",
             *message ? message : larder_error_text(code));
    session_reply(session, WIRE_ERROR, request, &error, sizeof(error));
}

void session_fail(struct session *session, uint64_t request, int code)
{
    session_fail_text(session, request, code, larder_error_message());
}

void session_refuse(struct session *session, uint64_t request)
{
    session->daemon->frames_refused++;
    larder_log(LARDER_LOG_WARN, "pid %d (uid %u) breaks the protocol: %s; closed", session->pid,
               session->uid, larder_error_message());
    session_fail(session, request, LARDER_EPROTO);
    session_close(session);
}

int session_begin(struct session *session)
{
    uint32_t max = session->daemon->config.in_flight_max;
    if (session->account->in_flight >= max)
        return larder_fail(-EBUSY,
                           "%u requests of uid %u are unanswered, in_flight_max is %u; wait for "
                           "some",
                           session->account->in_flight, session->uid, max);
    session->account->in_flight++;
    session->daemon->in_flight++;
    session_ref(session);
    return 0;
}

int session_may_work(struct session *session)
{
    uint32_t waiting = workers_waiting(session->daemon->workers, session->tenant.index);
    if (waiting >= LARDER_TENANT_WAITING_MAX)
        return larder_fail(-EBUSY,
                           "%u requests of tenant %s wait for a worker, at most %u may; wait for "
                           "some",
                           waiting, session->tenant_name, LARDER_TENANT_WAITING_MAX);
    return 0;
}

void session_end(struct session *session)
{
    assert(session->account->in_flight > 0);
    session->account->in_flight--;
    session->daemon->in_flight--;
    session_unref(session);
}

/* --- requests --------------------------------------------------------------------------------- */

static int engine_request(struct session *session, const struct frame *frame)
{
    switch (frame->type) {
    case WIRE_MODEL:
        return session_model(session, frame);
    case WIRE_LOOKUP:
        return session_lookup(session, frame);
    case WIRE_GET:
        return session_get(session, frame);
    case WIRE_PREFETCH:
        return session_prefetch(session, frame);
    case WIRE_RELEASE:
        return session_release(session, frame);
    case WIRE_STAGING:
        return session_staging(session, frame);
    case WIRE_PUT:
        return session_put(session, frame);
    case WIRE_REMOVE:
        return session_remove(session, frame);
    case WIRE_STAT:
        return session_stat(session, frame);
    case WIRE_MARK:
        return session_mark(session, frame);
    case WIRE_PROFILE:
        return session_profile(session, frame);
    case WIRE_WORKER:
        return session_worker(session, frame);
    case WIRE_BLEND:
        return session_blend(session, frame);
    case WIRE_BLEND_READ:
        return session_blend_read(session, frame);
    default:
        assert(0 && "frame_parse() lets no other type through");
        return LARDER_EPROTO;
    }
}

static int dispatch(struct session *session, const struct frame *frame)
{
    bool is_hello = frame->type == WIRE_HELLO;
    if (is_hello != (session->state == SESSION_NEW))
        return larder_fail(LARDER_EPROTO, "a frame of type %u %s; see PROTOCOL.md", frame->type,
                           is_hello ? "came twice" : "came before the hello");
    if (is_hello)
        return session_hello(session, frame);
    return session->side == FRAME_CONTROL ? admin_request(session, frame)
                                          : engine_request(session, frame);
}

static void handle(struct session *session, const void *bytes, size_t byte_count)
{
    struct frame frame;
    int err = frame_parse(&frame, session->side, bytes, byte_count);
    if (err == 0)
        err = dispatch(session, &frame);
    if (err == LARDER_EPROTO)
        session_refuse(session, frame.request);
    else if (err < 0)
        session_fail(session, frame.request, err);
}

static void on_readable(evutil_socket_t fd, short what, void *argument)
{
    /* One byte more than a frame, so that a longer one shows. The event thread's. */
    static _Alignas(8) uint8_t buffer[LARDER_FRAME_BYTES_MAX + 8];
    struct session *session = argument;
    (void)what;
    struct iovec part = {buffer, sizeof(buffer)};
    /* No room for control data: descriptors that a client sends are dropped by the kernel. */
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;

    session_ref(session);
    if (got <= 0) {
        session_close(session);
    } else if (message.msg_flags & MSG_CTRUNC) {
        larder_fail(LARDER_EPROTO, "descriptors came along; larderd takes none");
        session_refuse(session, 0);
    } else if (message.msg_flags & MSG_TRUNC) {
        larder_fail(LARDER_EPROTO, "a frame is longer than %u bytes", LARDER_FRAME_BYTES_MAX);
        session_refuse(session, 0);
    } else {
        handle(session, buffer, (size_t)got);
    }
    session_unref(session);
}

static void on_writable(evutil_socket_t fd, short what, void *argument)
{
    struct session *session = argument;
    (void)what;
    uint64_t before = session->output.bytes;
    if (output_flush(&session->output, fd) < 0) {
        session_close(session);
        return;
    }
    if (session->output.bytes != before)
        session->output_since_ms = larderd_now_ms();
    if (!output_waiting(&session->output)) {
        event_del(session->write_event);
        session_resume(session, PAUSE_OUTPUT);
    }
}

/* --- who is it -------------------------------------------------------------------------------- */

/* The tenant's name by the rules; "uid-N" for a user whom none names. */
static int find_tenant_name(struct session *session, const char *socket, gid_t gid)
{
    uint32_t gids[PEER_GROUPS_MAX] = {gid};
    socklen_t bytes = sizeof(gids) - sizeof(gids[0]);
    size_t gid_count = 1;
    /* Fails when there are more, or on old kernels: the primary group counts then. */
    if (getsockopt(session->fd, SOL_SOCKET, SO_PEERGROUPS, gids + 1, &bytes) == 0)
        gid_count += bytes / sizeof(gids[0]);

    const struct tenant_rule *rule =
        config_find_rule(&session->daemon->config, socket, session->uid, gids, gid_count);
    if (rule) {
        memcpy(session->tenant_name, rule->name, sizeof(session->tenant_name));
        return 0;
    }
    if (session->uid == OVERFLOW_UID)
        return larder_fail(-EACCES,
                           "uid %u stands for users unknown here, who must not share a tenant; "
                           "give them a socket: tenant NAME = socket PATH",
                           OVERFLOW_UID);
    snprintf(session->tenant_name, sizeof(session->tenant_name), "uid-%u", session->uid);
    return 0;
}

static int admit(struct session *session, const char *socket)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);
    if (getsockopt(session->fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
        return larder_fail(-errno, "SO_PEERCRED: %m");
    session->uid = peer.uid;
    session->pid = peer.pid;
    if (session->side == FRAME_CONTROL) {
        if (peer.uid != 0 && peer.uid != geteuid())
            return larder_fail(-EACCES, "uid %u is neither root nor larderd's own", peer.uid);
    } else {
        LARDER_TRY(find_tenant_name(session, socket, peer.gid));
    }

    session->account = accounts_join(&session->daemon->accounts, peer.uid);
    if (!session->account)
        return larder_fail(-ENOMEM, "no memory for a connection");
    uint32_t max = session->daemon->config.connections_max;
    if (session->side == FRAME_ENGINE && session->account->connections >= max)
        return larder_fail(-EBUSY,
                           "uid %u has %u connections, connections_max is %u; close some or raise "
                           "it",
                           peer.uid, session->account->connections, max);
    return 0;
}

static void link_session(struct session *session)
{
    struct larderd *daemon = session->daemon;
    session->next = daemon->sessions;
    session->link = &daemon->sessions;
    if (session->next)
        session->next->link = &session->next;
    daemon->sessions = session;
    daemon->session_count++;
    daemon->busy_count++;
    session->account->connections++;
}

void session_open(struct larderd *daemon, int fd, enum frame_side side, const char *socket)
{
    struct session *session = larder_alloc_zero(1, sizeof(*session));
    if (!session) {
        close(fd);
        return;
    }
    session->daemon = daemon;
    session->fd = fd;
    session->side = side;
    session->refs = 1;
    session->opened_ms = larderd_now_ms();
    session->staging.fd = -1;
    session->upload.fd = -1;
    session->put_last_next = &session->put_first;
    output_init(&session->output);

    int err = admit(session, socket);
    if (err == 0) {
        session->read_event =
            event_new(daemon->events, fd, EV_READ | EV_PERSIST, on_readable, session);
        session->write_event =
            event_new(daemon->events, fd, EV_WRITE | EV_PERSIST, on_writable, session);
        if (!session->read_event || !session->write_event ||
            event_add(session->read_event, NULL) < 0)
            err = larder_fail(-ENOMEM, "no memory for a connection");
    }
    if (err == 0) {
        link_session(session);
        return;
    }

    larder_log(LARDER_LOG_WARN, "connection of pid %d refused: %s", session->pid,
               larder_error_message());
    session_fail(session, 0, err);
    output_clear(&session->output);
    if (session->read_event)
        event_free(session->read_event);
    if (session->write_event)
        event_free(session->write_event);
    if (session->account)
        accounts_leave(&daemon->accounts, session->account);
    close_read_out(fd);
    larder_free(session);
}

/* --- deadlines and the end -------------------------------------------------------------------- */

static void tick(struct session *session, uint64_t now_ms)
{
    const struct config *config = &session->daemon->config;
    if (session->state == SESSION_NEW && now_ms - session->opened_ms > config->hello_ms) {
        larder_log(LARDER_LOG_WARN, "pid %d (uid %u) sent no hello in %u ms; closed", session->pid,
                   session->uid, config->hello_ms);
        session_close(session);
    } else if (output_waiting(&session->output) &&
               now_ms - session->output_since_ms > config->send_ms) {
        larder_log(LARDER_LOG_WARN, "pid %d (uid %u) did not read for %u ms; closed", session->pid,
                   session->uid, config->send_ms);
        session_close(session);
    }
}

void session_tick_all(struct larderd *daemon, uint64_t now_ms)
{
    struct session *next;
    for (struct session *session = daemon->sessions; session; session = next) {
        next = session->next;
        tick(session, now_ms);
    }
    session_expire_leases(daemon, now_ms);
    session_feed_starving(daemon, now_ms);
    /* One at a time: that takes some milliseconds. */
    (void)larder_store_free_retired(daemon->store);
    larder_store_expire(daemon->store);
}

void session_stop_all(struct larderd *daemon)
{
    for (struct session *session = daemon->sessions; session; session = session->next)
        session_pause(session, PAUSE_STOP);
}

void session_close_all(struct larderd *daemon)
{
    while (daemon->sessions)
        session_close(daemon->sessions);
}
