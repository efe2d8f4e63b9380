/* SPDX-License-Identifier: Apache-2.0 */
/* Frames out and in, and who waits for them. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "client/link.h"

#define SECOND_NS 1000000000ull
/* Calls fail without trying again for so long after a daemon took a request and did not answer. */
#define RETRY_SILENT_NS SECOND_NS
/* Descriptors taken from one frame; all but the expected one are closed. The kernel allows 253. */
#define FRAME_FDS_MAX 253
#define PARTS_MAX     3u

uint64_t client_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

struct timespec client_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};
}

static void close_fds(const int *fds, int count)
{
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

/* --- frames ---------------------------------------------------------------------------------- */

int client_receive_frame(struct larder_link *link, int *fd)
{
    *fd = -1;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = link->frame, .iov_len = sizeof(link->frame)};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t got;
    do
        got = recvmsg(link->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (got < 0)
        return larder_fail(LARDER_EDOWN, "the daemon's connection broke: %s", strerror(errno));

    int fds[FRAME_FDS_MAX];
    int fd_count = 0;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(&message); at; at = CMSG_NXTHDR(&message, at))
        if (at->cmsg_level == SOL_SOCKET && at->cmsg_type == SCM_RIGHTS) {
            int count = (int)((at->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            assert(fd_count + count <= FRAME_FDS_MAX);
            memcpy(fds + fd_count, CMSG_DATA(at), (size_t)count * sizeof(int));
            fd_count += count;
        }

    const struct wire_frame *frame = (const void *)link->frame;
    int err = 0;
    if (got == 0)
        err = larder_fail(LARDER_EDOWN, "the daemon closed the connection");
    else if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        err = larder_fail(LARDER_EPROTO, "a frame of the daemon is larger than %u bytes",
                          LARDER_FRAME_BYTES_MAX);
    else if ((size_t)got < sizeof(*frame) || frame->bytes != (size_t)got || frame->reserved != 0)
        err = larder_fail(LARDER_EPROTO, "a frame of the daemon is %zd bytes and says otherwise",
                          got);
    else if (fd_count > 1)
        err = larder_fail(LARDER_EPROTO,
                          "a frame of the daemon carries %d descriptors, at most 1 "
                          "is allowed",
                          fd_count);
    if (err < 0) {
        close_fds(fds, fd_count);
        return err;
    }
    if (fd_count == 1)
        *fd = fds[0];
    return (int)got;
}

void client_link_fail_locked(struct larder_link *link, int code, const char *why)
{
    struct larder *larder = link->larder;
    if (link->down)
        return;
    link->down = code;
    for (struct client_call *call = link->calls; call; call = call->next)
        if (!call->done) {
            call->done = true;
            call->err = code;
            snprintf(call->message, sizeof(call->message), "%s", why);
        }
    for (struct client_lease *lease = link->leases; lease; lease = lease->next)
        if (!lease->ended) {
            lease->ended = true;
            lease->err = code;
        }
    /* Wakes a reader in poll(); the descriptor itself stays until the last user has gone. */
    shutdown(link->fd, SHUT_RDWR);
    if (larder->link == link) {
        larder->link = NULL;
        link->refs--; /* the connection's own; the caller of this has one */
        assert(link->refs > 0);
        if (code == -ETIMEDOUT)
            larder->retry_at_ns = client_now_ns() + RETRY_SILENT_NS;
    }
    pthread_cond_broadcast(&larder->changed);
}

void client_link_fail(struct larder_link *link, int code, const char *why)
{
    pthread_mutex_lock(&link->larder->lock);
    client_link_fail_locked(link, code, why);
    pthread_mutex_unlock(&link->larder->lock);
}

/* --- what arrives ---------------------------------------------------------------------------- */

static struct client_call *find_call_locked(struct larder_link *link, uint64_t id)
{
    struct client_call *call = link->calls;
    while (call && call->id != id)
        call = call->next;
    return call;
}

/* An answer that nobody waits for any more? Then it is now passed over. */
static bool take_orphan_locked(struct larder_link *link, uint64_t id)
{
    for (uint32_t i = 0; i < link->orphan_count; i++) {
        if (link->orphans[i] == id) {
            link->orphans[i] = link->orphans[--link->orphan_count];
            return true;
        }
    }
    return false;
}

static int take_loaded(struct larder_link *link, const struct wire_frame *frame,
                       const struct wire_loaded *body)
{
    if (frame->bytes != sizeof(*frame) + sizeof(*body))
        return larder_fail(LARDER_EPROTO, "the daemon sent a malformed end of loading");
    pthread_mutex_lock(&link->larder->lock);
    /* A lease that was ended meanwhile is not listed any more: nothing to do. */
    for (struct client_lease *lease = link->leases; lease; lease = lease->next)
        if (lease->id == frame->request && !lease->ended) {
            lease->ended = true;
            lease->loaded = body->loaded;
            lease->err = body->error < 0 ? body->error : 0;
            pthread_cond_broadcast(&link->larder->changed);
        }
    pthread_mutex_unlock(&link->larder->lock);
    return 0;
}

/* An error names its request, or ends the link. */
static int take_error(struct larder_link *link, const struct wire_frame *frame,
                      const struct wire_error *body)
{
    if (frame->bytes != sizeof(*frame) + sizeof(*body) || body->code >= 0 ||
        !memchr(body->message, '\0', sizeof(body->message)))
        return larder_fail(LARDER_EPROTO, "the daemon sent a malformed error");
    pthread_mutex_lock(&link->larder->lock);
    struct client_call *call = find_call_locked(link, frame->request);
    int err = 0;
    if (!call && take_orphan_locked(link, frame->request)) {
        err = 0;
    } else if (!call || call->done) {
        err = larder_fail(body->code, "the daemon: %s", body->message);
    } else {
        call->done = true;
        call->err = body->code;
        memcpy(call->message, body->message, sizeof(call->message));
        pthread_cond_broadcast(&link->larder->changed);
    }
    pthread_mutex_unlock(&link->larder->lock);
    return err;
}

/* Takes `fd` when it returns 0. */
static int take_answer(struct larder_link *link, const struct wire_frame *frame, int fd)
{
    uint32_t bytes = frame->bytes - (uint32_t)sizeof(*frame);
    pthread_mutex_lock(&link->larder->lock);
    struct client_call *call = find_call_locked(link, frame->request);
    int err = 0;
    if (!call && take_orphan_locked(link, frame->request)) {
        if (fd >= 0)
            close(fd);
    } else if (!call || call->done || call->answer_type != frame->type ||
               bytes > call->answer_capacity) {
        err = larder_fail(LARDER_EPROTO, "the daemon sent a frame of type %u that nobody asked for",
                          frame->type);
    } else {
        memcpy(call->answer, frame + 1, bytes);
        call->answer_bytes = bytes;
        call->fd = fd;
        call->done = true;
        pthread_cond_broadcast(&link->larder->changed);
    }
    pthread_mutex_unlock(&link->larder->lock);
    return err;
}

/* Hands a received frame to whom it is for: 1 when it answered a call, 0 otherwise. */
static int dispatch(struct larder_link *link, int fd)
{
    const struct wire_frame *frame = (const void *)link->frame;
    const void *body = frame + 1;
    int err;
    if (frame->type == WIRE_SLAB) {
        if (fd >= 0 && frame->bytes == sizeof(*frame) + sizeof(struct wire_slab))
            return client_add_slab(link, body, fd);
        err = larder_fail(LARDER_EPROTO, "the daemon sent a slab without its memory");
    } else if (frame->type == WIRE_STAGING_OK || frame->type == WIRE_PROFILE_OK) {
        err = take_answer(link, frame, fd);
        if (err == 0)
            return 1;
    } else if (fd >= 0) {
        err = larder_fail(LARDER_EPROTO, "a frame of type %u came with a descriptor", frame->type);
    } else if (frame->type == WIRE_LOADED) {
        return take_loaded(link, frame, body);
    } else {
        err = frame->type == WIRE_ERROR ? take_error(link, frame, body)
                                        : take_answer(link, frame, -1);
        return err < 0 ? err : 1;
    }
    if (fd >= 0)
        close(fd);
    return err;
}

void client_read_locked(struct larder_link *link, uint64_t until_ns, short events)
{
    struct larder *larder = link->larder;
    assert(!link->reading);
    link->reading = true;
    pthread_mutex_unlock(&larder->lock);

    uint64_t now = client_now_ns();
    struct timespec left = client_timespec(until_ns > now ? until_ns - now : 0);
    struct pollfd poll = {.fd = link->fd, .events = events};
    int err = 0;
    if (ppoll(&poll, 1, &left, NULL) > 0 && poll.revents & ~POLLOUT) {
        int fd;
        /* A few at a time, so that a daemon that never stops cannot keep the reader here. */
        for (int i = 0; i < 64; i++) {
            err = client_receive_frame(link, &fd);
            if (err <= 0)
                break;
            err = dispatch(link, fd);
            /* After an answer somebody has something to do; what follows can wait. */
            if (err != 0 || events & POLLOUT)
                break;
        }
    }

    pthread_mutex_lock(&larder->lock);
    link->reading = false;
    link->read_ns = now;
    if (err < 0)
        client_link_fail_locked(link, err, larder_error_message());
    else
        pthread_cond_broadcast(&larder->changed);
}

/* Reads, or waits while another thread does. */
static void progress_locked(struct larder_link *link, uint64_t until_ns)
{
    if (link->down)
        return;
    if (!link->reading) {
        client_read_locked(link, until_ns, POLLIN);
        return;
    }
    struct timespec until = client_timespec(until_ns);
    pthread_cond_timedwait(&link->larder->changed, &link->larder->lock, &until);
}

void client_poll(struct larder_link *link, uint32_t wait_us)
{
    pthread_mutex_lock(&link->larder->lock);
    if (link->down) {
        pthread_mutex_unlock(&link->larder->lock);
        return;
    }
    progress_locked(link, client_now_ns() + wait_us * 1000ull);
    pthread_mutex_unlock(&link->larder->lock);
}

/* --- calls ----------------------------------------------------------------------------------- */

uint64_t client_deadline_ns(const struct larder *larder)
{
    return client_now_ns() + larder->timeout_ms * 1000000ull;
}

static void unlist_call_locked(struct larder_link *link, struct client_call *call)
{
    for (struct client_call **at = &link->calls; *at; at = &(*at)->next)
        if (*at == call) {
            *at = call->next;
            return;
        }
}

static void unlist_lease_locked(struct larder_link *link, struct client_lease *lease)
{
    for (struct client_lease **at = &link->leases; *at; at = &(*at)->next)
        if (*at == lease) {
            *at = lease->next;
            return;
        }
}

/* Sends a frame, waiting for room (and reading meanwhile, so that two full buffers cannot stand
 * against each other). */
static int transmit_locked(struct larder_link *link, uint16_t type, uint64_t id,
                           const struct client_part *parts, uint32_t part_count)
{
    assert(part_count <= PARTS_MAX);
    struct wire_frame frame = {.bytes = sizeof(frame), .type = type, .request = id};
    struct iovec iov[1 + PARTS_MAX] = {{.iov_base = &frame, .iov_len = sizeof(frame)}};
    for (uint32_t i = 0; i < part_count; i++) {
        iov[1 + i].iov_base = (void *)(uintptr_t)parts[i].bytes;
        iov[1 + i].iov_len = parts[i].count;
        frame.bytes += (uint32_t)parts[i].count;
    }
    assert(frame.bytes <= LARDER_FRAME_BYTES_MAX);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 1 + part_count};
    uint64_t until = client_deadline_ns(link->larder);
    while (!link->down) {
        if (sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            char why[128];
            snprintf(why, sizeof(why), "the daemon closed the connection: %s", strerror(errno));
            client_link_fail_locked(link, LARDER_EDOWN, why);
            return larder_fail(LARDER_EDOWN, "%s", why);
        }
        if (client_now_ns() >= until) {
            client_link_fail_locked(link, -ETIMEDOUT, "the daemon does not read");
            return larder_fail(-ETIMEDOUT, "the daemon took no request for %u ms",
                               link->larder->timeout_ms);
        }
        if (link->reading)
            progress_locked(link, client_now_ns() + 1000000);
        else
            client_read_locked(link, until, POLLIN | POLLOUT);
    }
    return larder_fail(link->down, "the connection to the daemon ended");
}

int client_send(struct larder_link *link, struct client_call *call, struct client_lease *lease,
                const struct client_part *parts, uint32_t part_count)
{
    struct larder *larder = link->larder;
    pthread_mutex_lock(&larder->lock);
    call->id = ++larder->next_id;
    call->answer_bytes = 0;
    call->fd = -1;
    call->done = false;
    call->err = 0;
    call->next = link->calls;
    link->calls = call;
    if (lease) {
        *lease = (struct client_lease){.id = call->id, .next = link->leases};
        link->leases = lease;
    }
    int err = transmit_locked(link, call->type, call->id, parts, part_count);
    if (err < 0) {
        unlist_call_locked(link, call);
        if (lease)
            unlist_lease_locked(link, lease);
    }
    pthread_mutex_unlock(&larder->lock);
    return err;
}

/* Leaves a call that may be left: its answer is passed over, and what a GET is granted given back.
 */
static bool abandon_locked(struct larder_link *link, struct client_call *call, int err,
                           const char *why)
{
    if (link->orphan_count == CLIENT_ORPHANS_MAX)
        return false;
    link->orphans[link->orphan_count++] = call->id;
    call->done = true;
    call->err = err;
    snprintf(call->message, sizeof(call->message), "%s", why);
    if (call->type == WIRE_GET) {
        struct wire_release body = {.count = 1};
        const struct client_part parts[] = {{&body, sizeof(body)}, {&call->id, sizeof(call->id)}};
        (void)transmit_locked(link, WIRE_RELEASE, ++link->larder->next_id, parts, 2);
    }
    return true;
}

/* Between two looks at a flag that another thread may set. */
#define CANCEL_LOOK_NS 2000000u

/* Is the call to be left now? *wake: when to look again. */
static bool leave_locked(struct larder_link *link, struct client_call *call, uint64_t *wake)
{
    if (!call->cancel && call->until_ns == 0)
        return false;
    const uint64_t now = client_now_ns();
    if (call->cancel) {
        if (atomic_load_explicit(call->cancel, memory_order_relaxed) &&
            abandon_locked(link, call, -ECANCELED, "the call was cancelled"))
            return true;
        *wake = larder_min_u64(*wake, now + CANCEL_LOOK_NS);
    }
    if (call->until_ns > now)
        *wake = larder_min_u64(*wake, call->until_ns);
    else if (call->until_ns > 0)
        return abandon_locked(link, call, -ETIMEDOUT, "the deadline passed");
    return false;
}

int client_wait(struct larder_link *link, struct client_call *call)
{
    struct larder *larder = link->larder;
    pthread_mutex_lock(&larder->lock);
    const uint64_t until = client_deadline_ns(larder) + call->patience_ms * 1000000ull;
    while (!call->done) {
        uint64_t wake = until;
        if (leave_locked(link, call, &wake))
            break;
        if (client_now_ns() >= until) {
            char why[128];
            snprintf(why, sizeof(why), "the daemon did not answer for %llu ms",
                     (unsigned long long)larder->timeout_ms + call->patience_ms);
            client_link_fail_locked(link, -ETIMEDOUT, why);
            break;
        }
        progress_locked(link, wake);
    }
    assert(call->done);
    unlist_call_locked(link, call);
    pthread_mutex_unlock(&larder->lock);
    return call->err < 0 ? larder_fail(call->err, "%s", call->message) : 0;
}

int client_call(struct larder_link *link, struct client_call *call, struct client_lease *lease,
                const struct client_part *parts, uint32_t part_count)
{
    LARDER_TRY(client_send(link, call, lease, parts, part_count));
    int err = client_wait(link, call);
    if (err < 0 && lease) {
        pthread_mutex_lock(&link->larder->lock);
        unlist_lease_locked(link, lease);
        pthread_mutex_unlock(&link->larder->lock);
    }
    return err;
}

void client_lease_granted(struct larder_link *link, struct client_lease *lease, uint32_t ref_count,
                          bool ready)
{
    pthread_mutex_lock(&link->larder->lock);
    lease->held = ref_count > 0;
    /* Its end may have been read together with its answer. */
    if (ready && !lease->ended) {
        lease->ended = true;
        lease->loaded = ref_count;
    }
    pthread_mutex_unlock(&link->larder->lock);
}

struct client_lease client_lease_state(struct larder_link *link, const struct client_lease *lease)
{
    pthread_mutex_lock(&link->larder->lock);
    struct client_lease state = *lease;
    pthread_mutex_unlock(&link->larder->lock);
    return state;
}

void client_leases_end(struct larder_link *link, struct client_lease **leases, uint32_t count)
{
    uint64_t ids[64];
    struct wire_release body = {0};
    pthread_mutex_lock(&link->larder->lock);
    for (uint32_t i = 0; i < count; i++) {
        unlist_lease_locked(link, leases[i]);
        if (leases[i]->held)
            ids[body.count++] = leases[i]->id;
        if (body.count == LARDER_COUNT_OF(ids) || (i + 1 == count && body.count > 0)) {
            const struct client_part parts[] = {{&body, sizeof(body)},
                                                {ids, body.count * sizeof(*ids)}};
            /* When it cannot be sent the link is down, and its leases with it. */
            if (!link->down)
                (void)transmit_locked(link, WIRE_RELEASE, ++link->larder->next_id, parts, 2);
            body.count = 0;
        }
    }
    pthread_mutex_unlock(&link->larder->lock);
}
