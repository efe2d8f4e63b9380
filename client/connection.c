/* SPDX-License-Identifier: Apache-2.0 */
#include "client/connection.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/jobs.h"
#include "client/workers.h"
#include "codec/codec.h"

#define TIMEOUT_MS_DEFAULT 10000u
#define SECOND_NS          1000000000ull
/* How long calls fail without trying again: after a refused connection, and after a daemon that
 * took the connection but did not answer. */
#define RETRY_REFUSED_NS (20 * 1000000ull)
#define RETRY_SILENT_NS  SECOND_NS
/* Within this after reading, the socket is not looked at again just to see whether it is open. */
#define MOMENT_NS (2 * 1000000ull)
/* Slabs of one tenant that a client keeps mapped: 16 TiB of the default size. */
#define SLABS_MAX 65536u
/* Descriptors taken from one frame; all but the expected one are closed. The kernel allows 253. */
#define FRAME_FDS_MAX 253
#define PARTS_MAX     3u

uint64_t client_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static struct timespec timespec_of(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};
}

static void close_fds(const int *fds, int count)
{
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

/* --- frames ---------------------------------------------------------------------------------- */

/* Receives one frame if there is one: its bytes, 0 when there is none now, or a negative code. *fd
 * is the descriptor that came with it, or -1. */
static int receive_frame(struct larder_link *link, int *fd)
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

/* Ends the link for all who wait on it. */
static void fail_locked(struct larder_link *link, int code, const char *why)
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
    fail_locked(link, code, why);
    pthread_mutex_unlock(&link->larder->lock);
}

/* --- slabs ----------------------------------------------------------------------------------- */

/* Where a slab of that id stands or would. */
static uint32_t slab_index_locked(const struct larder_link *link, uint32_t slab_id)
{
    uint32_t low = 0;
    uint32_t high = link->slab_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (link->slabs[middle]->id < slab_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct client_slab *client_find_slab(struct larder_link *link, uint32_t slab_id)
{
    pthread_mutex_lock(&link->larder->lock);
    uint32_t index = slab_index_locked(link, slab_id);
    const struct client_slab *slab = NULL;
    if (index < link->slab_count && link->slabs[index]->id == slab_id)
        slab = link->slabs[index];
    pthread_mutex_unlock(&link->larder->lock);
    return slab;
}

/* A file that could shrink would turn a read into a SIGBUS: only sealed memory is mapped. */
static int check_sealed(int fd, uint64_t bytes)
{
    struct stat stat;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return larder_fail(LARDER_EPROTO, "the daemon sent memory that is not sealed");
    if (fstat(fd, &stat) < 0 || stat.st_size < 0 || (uint64_t)stat.st_size < bytes)
        return larder_fail(LARDER_EPROTO,
                           "the daemon sent memory of less than the %llu bytes it "
                           "names",
                           (unsigned long long)bytes);
    return 0;
}

static int map_slab(struct client_slab *slab, int fd, const struct wire_slab *body)
{
    if (body->bytes < LARDER_PAGE_BYTES || body->bytes > SIZE_MAX / 2)
        return larder_fail(LARDER_EPROTO, "the daemon sent a slab of %llu bytes",
                           (unsigned long long)body->bytes);
    LARDER_TRY(check_sealed(fd, body->bytes));
    void *map = mmap(NULL, body->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping a slab of %llu bytes: %s; see ulimit -v",
                           (unsigned long long)body->bytes, strerror(errno));
    const struct larder_slab *head = map;
    *slab = (struct client_slab){
        .map = map,
        .bytes = body->bytes,
        .data_offset = head->data_offset,
        .id = body->slab_id,
        .slot_count = head->slot_count,
    };
    /* slab->... are private copies now: what is checked below is what will be used. */
    if (head->magic != LARDER_SLAB_MAGIC || head->slab_bytes != slab->bytes ||
        head->slab_id != slab->id || slab->slot_count > LARDER_SLAB_SLOTS_MAX ||
        slab->data_offset > slab->bytes ||
        slab->data_offset < LARDER_PAGE_BYTES + slab->slot_count * sizeof(struct larder_slot)) {
        munmap(map, body->bytes);
        return larder_fail(LARDER_EPROTO, "slab %u of the daemon has a malformed head",
                           body->slab_id);
    }
    return 0;
}

/* Takes `fd` in any case. */
static int add_slab(struct larder_link *link, const struct wire_slab *body, int fd)
{
    struct client_slab *slab = larder_alloc_zero(1, sizeof(*slab));
    int err = slab ? map_slab(slab, fd, body) : larder_fail(-ENOMEM, "no memory for a slab");
    close(fd);
    if (err < 0)
        goto fail_free;

    pthread_mutex_lock(&link->larder->lock);
    uint32_t index = slab_index_locked(link, slab->id);
    if (index < link->slab_count && link->slabs[index]->id == slab->id)
        err = larder_fail(LARDER_EPROTO, "the daemon sent slab %u twice", slab->id);
    else if (link->slab_count == SLABS_MAX)
        err = larder_fail(LARDER_ELIMIT,
                          "the daemon sent more than %u slabs; larger slab_bytes in "
                          "larderd.conf make fewer",
                          SLABS_MAX);
    if (err == 0 && link->slab_count == link->slab_capacity) {
        uint32_t capacity = link->slab_capacity ? 2 * link->slab_capacity : 16;
        struct client_slab **slabs = larder_realloc(link->slabs, capacity * sizeof(*slabs));
        if (slabs) {
            link->slabs = slabs;
            link->slab_capacity = capacity;
        } else {
            err = larder_fail(-ENOMEM, "no memory for %u slabs", capacity);
        }
    }
    if (err == 0) {
        memmove(link->slabs + index + 1, link->slabs + index,
                (link->slab_count - index) * sizeof(*link->slabs));
        link->slabs[index] = slab;
        link->slab_count++;
    }
    pthread_mutex_unlock(&link->larder->lock);
    if (err == 0)
        return 0;

    munmap((void *)(uintptr_t)slab->map, slab->bytes);
fail_free:
    larder_free(slab);
    return err;
}

/* --- what arrives ---------------------------------------------------------------------------- */

static struct client_call *find_call_locked(struct larder_link *link, uint64_t id)
{
    struct client_call *call = link->calls;
    while (call && call->id != id)
        call = call->next;
    return call;
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
    if (!call || call->done) {
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
    if (!call || call->done || call->answer_type != frame->type || bytes > call->answer_capacity) {
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
            return add_slab(link, body, fd);
        err = larder_fail(LARDER_EPROTO, "the daemon sent a slab without its memory");
    } else if (frame->type == WIRE_STAGING_OK) {
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

/* Called and returns with the lock held, as the reader. Reads what is there; waits for it until
 * `until_ns` if nothing is. `events` may add POLLOUT. */
static void read_locked(struct larder_link *link, uint64_t until_ns, short events)
{
    struct larder *larder = link->larder;
    assert(!link->reading);
    link->reading = true;
    pthread_mutex_unlock(&larder->lock);

    uint64_t now = client_now_ns();
    struct timespec left = timespec_of(until_ns > now ? until_ns - now : 0);
    struct pollfd poll = {.fd = link->fd, .events = events};
    int err = 0;
    if (ppoll(&poll, 1, &left, NULL) > 0 && poll.revents & ~POLLOUT) {
        int fd;
        /* A few at a time, so that a daemon that never stops cannot keep the reader here. */
        for (int i = 0; i < 64; i++) {
            err = receive_frame(link, &fd);
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
        fail_locked(link, err, larder_error_message());
    else
        pthread_cond_broadcast(&larder->changed);
}

/* Reads, or waits while another thread does. */
static void progress_locked(struct larder_link *link, uint64_t until_ns)
{
    if (link->down)
        return;
    if (!link->reading) {
        read_locked(link, until_ns, POLLIN);
        return;
    }
    struct timespec until = timespec_of(until_ns);
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

static uint64_t deadline_ns(const struct larder *larder)
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
    uint64_t until = deadline_ns(link->larder);
    while (!link->down) {
        if (sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            char why[128];
            snprintf(why, sizeof(why), "the daemon closed the connection: %s", strerror(errno));
            fail_locked(link, LARDER_EDOWN, why);
            return larder_fail(LARDER_EDOWN, "%s", why);
        }
        if (client_now_ns() >= until) {
            fail_locked(link, -ETIMEDOUT, "the daemon does not read");
            return larder_fail(-ETIMEDOUT, "the daemon took no request for %u ms",
                               link->larder->timeout_ms);
        }
        if (link->reading)
            progress_locked(link, client_now_ns() + 1000000);
        else
            read_locked(link, until, POLLIN | POLLOUT);
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

int client_wait(struct larder_link *link, struct client_call *call)
{
    struct larder *larder = link->larder;
    pthread_mutex_lock(&larder->lock);
    uint64_t until = deadline_ns(larder);
    while (!call->done) {
        if (client_now_ns() >= until) {
            char why[128];
            snprintf(why, sizeof(why), "the daemon did not answer for %u ms", larder->timeout_ms);
            fail_locked(link, -ETIMEDOUT, why);
            break;
        }
        progress_locked(link, until);
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

/* --- connecting ------------------------------------------------------------------------------ */

static void free_link(struct larder_link *link)
{
    for (uint32_t i = 0; i < link->slab_count; i++) {
        munmap((void *)(uintptr_t)link->slabs[i]->map, link->slabs[i]->bytes);
        larder_free(link->slabs[i]);
    }
    larder_free(link->slabs);
    if (link->staging)
        munmap(link->staging, link->staging_bytes);
    if (link->fd >= 0)
        close(link->fd);
    larder_free(link);
}

void client_link_release(struct larder_link *link)
{
    struct larder *larder = link->larder;
    pthread_mutex_lock(&larder->lock);
    assert(link->refs > 0);
    bool last = --link->refs == 0;
    pthread_mutex_unlock(&larder->lock);
    if (last)
        free_link(link);
}

static int connect_socket(const struct larder *larder, uint64_t until_ns)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(larder->socket);
    memcpy(address.sun_path, larder->socket, length); /* its length was checked at connect */
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return larder_fail(-errno, "socket: %s", strerror(errno));
    for (;;) {
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        int err = errno;
        /* EAGAIN: the daemon's backlog is full; it gets a chance to take some. */
        if ((err == EAGAIN || err == EINTR) && client_now_ns() < until_ns) {
            poll(NULL, 0, 1);
            continue;
        }
        close(fd);
        if (err == EACCES || err == EPERM)
            return larder_fail(-err, "connecting to %s: %s; the socket's group may use it",
                               larder->socket, strerror(err));
        return larder_fail(LARDER_EDOWN, "no daemon at %s (%s); is larderd running?",
                           larder->socket, strerror(err));
    }
}

static int check_hello(const struct wire_hello_ok *hello)
{
    if (hello->magic != WIRE_MAGIC || hello->version != WIRE_VERSION)
        return larder_fail(LARDER_EVERSION, "the daemon speaks protocol %u, this library %u",
                           hello->version, WIRE_VERSION);
    if (hello->block_tokens == 0 || hello->block_tokens > LARDER_BLOCK_TOKENS_MAX ||
        !memchr(hello->tenant_name, '\0', sizeof(hello->tenant_name)) ||
        !memchr(hello->daemon_version, '\0', sizeof(hello->daemon_version)) ||
        !memchr(hello->recipe, '\0', sizeof(hello->recipe)))
        return larder_fail(LARDER_EPROTO, "the daemon's hello is malformed");
    return 0;
}

/* Says hello on a link that nobody else knows yet. */
static int say_hello(struct larder_link *link, uint64_t until_ns)
{
    struct {
        struct wire_frame frame;
        struct wire_hello hello;
    } request = {
        .frame = {.bytes = sizeof(request), .type = WIRE_HELLO, .request = 1},
        .hello = {.magic = WIRE_MAGIC, .version_min = WIRE_VERSION, .version_max = WIRE_VERSION},
    };
    if (send(link->fd, &request, sizeof(request), MSG_NOSIGNAL) < 0)
        return larder_fail(LARDER_EDOWN, "the daemon closed the connection: %s", strerror(errno));
    struct pollfd poll = {.fd = link->fd, .events = POLLIN};
    uint64_t now = client_now_ns();
    struct timespec left = timespec_of(until_ns > now ? until_ns - now : 0);
    int ready = ppoll(&poll, 1, &left, NULL);
    if (ready == 0)
        return larder_fail(-ETIMEDOUT, "the daemon at %s did not say hello within %u ms",
                           link->larder->socket, link->larder->timeout_ms);
    int fd;
    int got = receive_frame(link, &fd);
    if (fd >= 0)
        close(fd);
    if (got < 0)
        return got;
    const struct wire_frame *frame = (const void *)link->frame;
    if (got == sizeof(*frame) + sizeof(struct wire_error) && frame->type == WIRE_ERROR) {
        const struct wire_error *body = (const void *)(frame + 1);
        if (body->code < 0 && memchr(body->message, '\0', sizeof(body->message)))
            return larder_fail(body->code, "the daemon: %s", body->message);
    }
    if (got != sizeof(*frame) + sizeof(link->hello) || frame->type != WIRE_HELLO_OK || fd >= 0)
        return larder_fail(LARDER_EPROTO, "what listens at %s did not say hello as larderd does",
                           link->larder->socket);
    memcpy(&link->hello, frame + 1, sizeof(link->hello));
    return check_hello(&link->hello);
}

static int open_link_locked(struct larder *larder)
{
    uint64_t until = deadline_ns(larder);
    struct larder_link *link = larder_alloc_zero(1, sizeof(*link));
    if (!link)
        return larder_fail(-ENOMEM, "no memory for a connection");
    link->larder = larder;
    link->fd = connect_socket(larder, until);
    int err = link->fd < 0 ? link->fd : say_hello(link, until);
    if (err < 0) {
        larder->retry_at_ns =
            client_now_ns() + (err == -ETIMEDOUT ? RETRY_SILENT_NS : RETRY_REFUSED_NS);
        free_link(link);
        return err;
    }
    link->epoch = ++larder->epochs;
    link->refs = 1;
    larder->link = link;
    return 0;
}

int client_link_acquire(struct larder *larder, struct larder_link **out)
{
    *out = NULL;
    if (larder->pid != getpid())
        return larder_fail(LARDER_EUNSUPPORTED,
                           "this connection belongs to process %d; after fork() process %d opens "
                           "its own with larder_connect()",
                           (int)larder->pid, (int)getpid());
    int err = 0;
    pthread_mutex_lock(&larder->lock);
    /* Has the daemon gone since the last call? Reading what is there tells, and saves this call from
     * failing when another is there already. A daemon needs longer than a moment to come back. */
    struct larder_link *old = larder->link;
    bool last = false;
    if (old && !old->reading && client_now_ns() - old->read_ns > MOMENT_NS) {
        old->refs++;
        read_locked(old, 0, POLLIN);
        last = --old->refs == 0;
    }
    if (!larder->link) {
        if (client_now_ns() < larder->retry_at_ns)
            err = larder_fail(LARDER_EDOWN, "no daemon at %s a moment ago; trying again soon",
                              larder->socket);
        else
            err = open_link_locked(larder);
    }
    if (err == 0) {
        *out = larder->link;
        larder->link->refs++;
    }
    pthread_mutex_unlock(&larder->lock);
    if (last)
        free_link(old);
    return err;
}

static int init_locks(struct larder *larder)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    int err = pthread_cond_init(&larder->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (err)
        return larder_fail(-err, "pthread_cond_init: %s", strerror(err));
    pthread_mutex_init(&larder->lock, NULL);
    pthread_mutex_init(&larder->put_turn, NULL);
    return 0;
}

static int check_options(const struct larder_options *options, const char *socket)
{
    const struct sockaddr_un address;
    if (options && !larder_all_zero(options->reserved, sizeof(options->reserved)))
        return larder_fail(-EINVAL, "options: reserved bytes are not zero");
    if (options && options->threads > CLIENT_WORKERS_MAX)
        return larder_fail(LARDER_ELIMIT, "options: threads=%u is above %u", options->threads,
                           CLIENT_WORKERS_MAX);
    if (strlen(socket) >= sizeof(address.sun_path))
        return larder_fail(-ENAMETOOLONG, "socket path of %zu bytes is longer than %zu: %s",
                           strlen(socket), sizeof(address.sun_path) - 1, socket);
    return 0;
}

int larder_connect(struct larder **out, const struct larder_options *options)
{
    *out = NULL;
    const char *socket = options ? options->socket : NULL;
    if (!socket)
        socket = getenv("LARDER_SOCKET");
    if (!socket || socket[0] == '\0')
        socket = LARDER_SOCKET_DEFAULT;
    LARDER_TRY(check_options(options, socket));

    struct larder *larder = larder_alloc_zero(1, sizeof(*larder));
    if (!larder)
        return larder_fail(-ENOMEM, "no memory for a connection");
    larder->pid = getpid();
    larder->timeout_ms = options && options->timeout_ms ? options->timeout_ms : TIMEOUT_MS_DEFAULT;
    int err = init_locks(larder);
    if (err < 0)
        goto fail_free;
    larder->socket = larder_strdup(socket);
    if (!larder->socket) {
        err = larder_fail(-ENOMEM, "no memory for a socket's path");
        goto fail_locks;
    }
    err = client_workers_open(&larder->workers, options ? options->threads : 0);
    if (err < 0)
        goto fail_socket;
    struct larder_link *link;
    err = client_link_acquire(larder, &link);
    if (err < 0)
        goto fail_workers;
    client_link_release(link);
    *out = larder;
    return 0;

fail_workers:
    client_workers_close(larder->workers);
fail_socket:
    larder_free(larder->socket);
fail_locks:
    pthread_cond_destroy(&larder->changed);
    pthread_mutex_destroy(&larder->put_turn);
    pthread_mutex_destroy(&larder->lock);
fail_free:
    larder_free(larder);
    return err;
}

void larder_close(struct larder *larder)
{
    if (!larder)
        return;
    if (larder->pid != getpid()) {
        /* In a child of fork(): its threads do not exist and its locks may be held by none. Only
         * the descriptor is given back; the rest is a copy that ends with the process. */
        if (larder->link)
            close(larder->link->fd);
        return;
    }
    client_jobs_close(larder->jobs);
    client_workers_close(larder->workers);
    if (larder->link) {
        assert(larder->link->refs == 1); /* an operation was not ended */
        free_link(larder->link);
    }
    for (uint32_t i = 0; i < larder->recipe_count; i++) {
        larder_recipe_close(larder->recipes[i].recipe);
        larder_free(larder->recipes[i].text);
    }
    larder_free(larder->socket);
    pthread_cond_destroy(&larder->changed);
    pthread_mutex_destroy(&larder->put_turn);
    pthread_mutex_destroy(&larder->lock);
    larder_free(larder);
}

/* --- recipes --------------------------------------------------------------------------------- */

static int open_recipe_locked(struct larder *larder, const struct larder_recipe **out,
                              const char *text)
{
    if (larder->recipe_count == CLIENT_RECIPES_MAX)
        return larder_fail(LARDER_ELIMIT, "more than %u recipes on one connection",
                           CLIENT_RECIPES_MAX);
    struct client_recipe_slot slot;
    LARDER_TRY(larder_recipe_open(&slot.recipe, text));
    slot.text = larder_strdup(text);
    if (!slot.text) {
        larder_recipe_close(slot.recipe);
        return larder_fail(-ENOMEM, "no memory for a recipe's text");
    }
    larder->recipes[larder->recipe_count++] = slot;
    *out = slot.recipe;
    return 0;
}

int client_recipe(struct larder *larder, const struct larder_recipe **out, const char *text,
                  size_t bytes)
{
    *out = NULL;
    char name[LARDER_RECIPE_BYTES_MAX + 1];
    if (bytes > LARDER_RECIPE_BYTES_MAX || memchr(text, '\0', bytes))
        return larder_fail(LARDER_ECORRUPT, "a recipe's text is %zu bytes or holds a zero", bytes);
    memcpy(name, text, bytes);
    name[bytes] = '\0';

    int err = 0;
    pthread_mutex_lock(&larder->lock);
    for (uint32_t i = 0; i < larder->recipe_count && !*out; i++)
        if (strcmp(larder->recipes[i].text, name) == 0)
            *out = larder->recipes[i].recipe;
    if (!*out)
        err = open_recipe_locked(larder, out, name);
    pthread_mutex_unlock(&larder->lock);
    return err;
}
