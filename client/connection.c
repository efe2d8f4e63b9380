/* SPDX-License-Identifier: Apache-2.0 */
#include "client/connection.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/jobs.h"
#include "client/link.h"
#include "client/workers.h"

#define TIMEOUT_MS_DEFAULT 10000u
/* How long calls fail without trying again: after a refused connection, and after a daemon that
 * took the connection but did not say hello. */
#define RETRY_REFUSED_NS (20 * 1000000ull)
#define RETRY_SILENT_NS  1000000000ull
/* Within this after reading, the socket is not looked at again just to see whether it is open. */
#define MOMENT_NS (2 * 1000000ull)
/* Between two looks for slabs that the daemon has retired. */
#define SWEEP_NS (100 * 1000000ull)

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
    /* The one left is the connection's: no operation looks into slabs. */
    if (link->refs == 1 && larder->link == link) {
        const uint64_t now_ns = client_now_ns();
        if (now_ns - link->sweep_ns > SWEEP_NS) {
            link->sweep_ns = now_ns;
            client_drop_retired_slabs_locked(link);
        }
    }
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

/* One request and its answer, on a link that nobody else knows yet. */
static int exchange(struct larder_link *link, enum wire_type type, const void *body,
                    size_t body_bytes, enum wire_type answer_type, size_t answer_bytes,
                    uint64_t until_ns)
{
    struct wire_frame header = {
        .bytes = (uint32_t)(sizeof(header) + body_bytes), .type = (uint16_t)type, .request = 1};
    struct iovec parts[] = {{&header, sizeof(header)}, {(void *)(uintptr_t)body, body_bytes}};
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (sendmsg(link->fd, &message, MSG_NOSIGNAL) < 0)
        return larder_fail(LARDER_EDOWN, "the daemon closed the connection: %s", strerror(errno));
    struct pollfd poll = {.fd = link->fd, .events = POLLIN};
    uint64_t now = client_now_ns();
    struct timespec left = client_timespec(until_ns > now ? until_ns - now : 0);
    int ready = ppoll(&poll, 1, &left, NULL);
    if (ready == 0)
        return larder_fail(-ETIMEDOUT, "the daemon at %s did not say hello within %u ms",
                           link->larder->socket, link->larder->timeout_ms);
    int fd;
    int got = client_receive_frame(link, &fd);
    if (fd >= 0)
        close(fd);
    if (got < 0)
        return got;
    const struct wire_frame *frame = (const void *)link->frame;
    if (got == sizeof(*frame) + sizeof(struct wire_error) && frame->type == WIRE_ERROR) {
        const struct wire_error *error = (const void *)(frame + 1);
        if (error->code < 0 && memchr(error->message, '\0', sizeof(error->message)))
            return larder_fail(error->code, "the daemon: %s", error->message);
    }
    if ((size_t)got != sizeof(*frame) + answer_bytes || frame->type != answer_type || fd >= 0)
        return larder_fail(LARDER_EPROTO, "what listens at %s did not say hello as larderd does",
                           link->larder->socket);
    return 0;
}

static int say_hello(struct larder_link *link, uint64_t until_ns)
{
    const struct wire_hello hello = {
        .magic = WIRE_MAGIC, .version_min = WIRE_VERSION, .version_max = WIRE_VERSION};
    LARDER_TRY(exchange(link, WIRE_HELLO, &hello, sizeof(hello), WIRE_HELLO_OK, sizeof(link->hello),
                        until_ns));
    if (link->larder->tenant) {
        struct wire_admin_act act = {{0}};
        memcpy(act.tenant, link->larder->tenant, strlen(link->larder->tenant));
        LARDER_TRY(
            exchange(link, WIRE_ADMIN_ACT, &act, sizeof(act), WIRE_ADMIN_ACT_OK, 0, until_ns));
        LARDER_TRY(exchange(link, WIRE_HELLO, &hello, sizeof(hello), WIRE_HELLO_OK,
                            sizeof(link->hello), until_ns));
    }
    memcpy(&link->hello, link->frame + sizeof(struct wire_frame), sizeof(link->hello));
    return check_hello(&link->hello);
}

static int open_link_locked(struct larder *larder)
{
    uint64_t until = client_deadline_ns(larder);
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
    /* Has the daemon gone since the last call? Reading what is there tells, and saves this call
     * from failing when another is there already. A daemon needs longer than a moment to come
     * back. */
    struct larder_link *old = larder->link;
    bool last = false;
    if (old && !old->reading && client_now_ns() - old->read_ns > MOMENT_NS) {
        old->refs++;
        client_read_locked(old, 0, POLLIN);
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
    if (options && options->tenant && strlen(options->tenant) >= LARDER_TENANT_NAME_MAX)
        return larder_fail(-EINVAL, "options: a tenant's name has at most %u characters",
                           LARDER_TENANT_NAME_MAX - 1);
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
    if (options && options->tenant) {
        larder->tenant = larder_strdup(options->tenant);
        if (!larder->tenant) {
            err = larder_fail(-ENOMEM, "no memory for a tenant's name");
            goto fail_socket;
        }
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
    larder_free(larder->tenant);
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
    client_recipes_close(larder);
    larder_free(larder->tenant);
    larder_free(larder->socket);
    pthread_cond_destroy(&larder->changed);
    pthread_mutex_destroy(&larder->put_turn);
    pthread_mutex_destroy(&larder->lock);
    larder_free(larder);
}
