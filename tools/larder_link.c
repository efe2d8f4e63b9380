/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/larder_link.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

/* One entry is read from a disk that may be busy; more is a daemon that hangs. */
#define ANSWER_S_MAX 60
/* Candidates named for a key that is not whole. */
#define CANDIDATES_MAX 5

static int connect_to(int fd, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return larder_fail(-EINVAL, "socket path of %zu bytes is longer than %zu: %s", strlen(path),
                           sizeof(address.sun_path) - 1, path);
    strcpy(address.sun_path, path);
    const struct timeval limit = {.tv_sec = ANSWER_S_MAX};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return 0;
    switch (errno) {
    case EACCES:
    case EPERM:
        return larder_fail(LARDER_EDOWN,
                           "%s: no permission; larder runs as root or as larderd's user", path);
    default:
        return larder_fail(LARDER_EDOWN,
                           "no larderd at %s (%s); start one, or name its control socket with "
                           "--socket or LARDER_CONTROL_SOCKET",
                           path, strerror(errno));
    }
}

const char *link_socket(const char *path)
{
    if (!path)
        path = getenv("LARDER_CONTROL_SOCKET");
    return path && *path ? path : LINK_SOCKET_DEFAULT;
}

int link_open(struct link **out, const char *path)
{
    *out = NULL;
    path = link_socket(path);
    struct link *link = larder_alloc_zero(1, sizeof(*link));
    if (!link)
        return larder_fail(-ENOMEM, "no memory for a connection");
    int err;
    link->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (link->fd < 0) {
        err = larder_fail(-errno, "socket: %m");
        goto fail_free;
    }
    err = connect_to(link->fd, path);
    if (err < 0)
        goto fail_close;
    const struct wire_hello hello = {WIRE_MAGIC, WIRE_VERSION, WIRE_VERSION, 0};
    const void *answer;
    err = link_request(link, &answer, WIRE_HELLO, &hello, sizeof(hello), WIRE_HELLO_OK,
                       sizeof(struct wire_hello_ok));
    if (err < 0)
        goto fail_close;
    *out = link;
    return 0;

fail_close:
    close(link->fd);
fail_free:
    larder_free(link);
    return err;
}

void link_close(struct link *link)
{
    if (!link)
        return;
    close(link->fd);
    larder_free(link);
}

static int transmit(struct link *link, enum wire_type type, const void *body, size_t body_bytes)
{
    struct wire_frame frame = {.bytes = (uint32_t)(sizeof(frame) + body_bytes),
                               .type = (uint16_t)type,
                               .request = ++link->request};
    struct iovec parts[] = {{&frame, sizeof(frame)}, {(void *)(uintptr_t)body, body_bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (sendmsg(link->fd, &message, MSG_NOSIGNAL) < 0)
        return larder_fail(LARDER_EDOWN, "larderd has closed the connection: %m");
    return 0;
}

/* The answer as it came; *fd: the descriptor with it, -1: none. */
static ssize_t receive(struct link *link, int *fd)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {link->answer, sizeof(link->answer)};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    *fd = -1;
    ssize_t got = recvmsg(link->fd, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(*fd)))
        memcpy(fd, CMSG_DATA(header), sizeof(*fd));
    return got;
}

static int request(struct link *link, const void **out, int *fd, enum wire_type type,
                   const void *body, size_t body_bytes, enum wire_type answer_type,
                   size_t answer_bytes_min)
{
    *out = NULL;
    /* Without a right to connect, the daemon's reason is already there and it does not read. */
    int send_err = transmit(link, type, body, body_bytes);
    ssize_t got = receive(link, fd);
    if (got <= 0 && send_err < 0)
        return send_err;
    if (got < 0)
        return larder_fail(LARDER_EDOWN, "no answer from larderd: %m");
    if (got == 0)
        return larder_fail(LARDER_EDOWN, "larderd has closed the connection");

    const struct wire_frame *frame = (const struct wire_frame *)link->answer;
    const struct wire_error *error = (const struct wire_error *)(frame + 1);
    size_t bytes = (size_t)got;
    if (bytes >= sizeof(*frame) && frame->bytes == bytes) {
        if (frame->type == WIRE_ERROR && bytes == sizeof(*frame) + sizeof(*error) &&
            error->code < 0)
            return larder_fail(error->code, "%.*s", (int)sizeof(error->message) - 1,
                               error->message);
        if (frame->type == answer_type && frame->request == link->request &&
            bytes >= sizeof(*frame) + answer_bytes_min) {
            *out = frame + 1;
            return 0;
        }
    }
    return larder_fail(LARDER_EPROTO,
                       "larderd's answer of %zu bytes is not understood; use a "
                       "larder of the same release",
                       bytes);
}

int link_request(struct link *link, const void **out, enum wire_type type, const void *body,
                 size_t body_bytes, enum wire_type answer_type, size_t answer_bytes_min)
{
    int fd;
    int err = request(link, out, &fd, type, body, body_bytes, answer_type, answer_bytes_min);
    if (fd >= 0)
        close(fd);
    return err;
}

int link_request_fd(struct link *link, const void **out, int *fd, enum wire_type type,
                    const void *body, size_t body_bytes, enum wire_type answer_type,
                    size_t answer_bytes_min)
{
    int err = request(link, out, fd, type, body, body_bytes, answer_type, answer_bytes_min);
    if (err == 0 && *fd < 0)
        err = larder_fail(LARDER_EPROTO, "larderd's answer came without its memory");
    if (err < 0 && *fd >= 0)
        close(*fd);
    return err;
}

int link_status(struct link *link, struct wire_admin_status_ok *out)
{
    const void *body;
    LARDER_TRY(
        link_request(link, &body, WIRE_ADMIN_STATUS, NULL, 0, WIRE_ADMIN_STATUS_OK, sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

int link_tenants(struct link *link, struct wire_admin_tenant_ok **out, size_t *count)
{
    struct wire_admin_tenant_ok *tenants = NULL;
    struct wire_admin_index index = {0};
    *out = NULL;
    *count = 0;
    for (;; index.index++) {
        const void *body;
        int err = link_request(link, &body, WIRE_ADMIN_TENANTS, &index, sizeof(index),
                               WIRE_ADMIN_TENANT_OK, sizeof(*tenants));
        if (err == LARDER_ENOTFOUND)
            break;
        struct wire_admin_tenant_ok *grown =
            err == 0 ? larder_realloc(tenants, (index.index + 1) * sizeof(*tenants)) : NULL;
        if (!grown) {
            larder_free(tenants);
            return err < 0 ? err : larder_fail(-ENOMEM, "no memory for %u tenants", index.index);
        }
        tenants = grown;
        memcpy(&tenants[index.index], body, sizeof(*tenants));
    }
    *out = tenants;
    *count = index.index;
    return 0;
}

int link_model(struct link *link, struct wire_admin_model_ok *out, uint32_t index)
{
    const struct wire_admin_index ask = {.index = index};
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_MODELS, &ask, sizeof(ask), WIRE_ADMIN_MODEL_OK,
                            sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    out->desc.name[sizeof(out->desc.name) - 1] = 0;
    return 0;
}

int link_counters(struct link *link, struct wire_admin_counters_ok *out)
{
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_COUNTERS, NULL, 0, WIRE_ADMIN_COUNTERS_OK,
                            sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

int link_scrub(struct link *link, struct wire_admin_scrub_ok *out, enum wire_scrub_action action,
               uint64_t rate_bytes)
{
    const struct wire_admin_scrub ask = {.action = action, .rate_bytes = rate_bytes};
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_SCRUB, &ask, sizeof(ask), WIRE_ADMIN_SCRUB_OK,
                            sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

int link_gc(struct link *link, struct wire_admin_gc_ok *out, const struct wire_admin_gc *ask)
{
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_GC, ask, sizeof(*ask), WIRE_ADMIN_GC_OK,
                            sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

int link_demote(struct link *link, struct wire_admin_demote_ok *out, enum wire_scrub_action action,
                uint64_t rate_bytes)
{
    const struct wire_admin_scrub ask = {.action = action, .rate_bytes = rate_bytes};
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_DEMOTE, &ask, sizeof(ask), WIRE_ADMIN_DEMOTE_OK,
                            sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

/* --- entries ---------------------------------------------------------------------------------- */

int link_each_entry(struct link *link, const uint8_t prefix[32], uint32_t digits,
                    int (*visit)(void *context, const struct wire_admin_entry *entry),
                    void *context)
{
    struct wire_admin_list list = {.count_max = LARDER_ADMIN_LIST_MAX, .prefix_digits = digits};
    memcpy(list.prefix, prefix, sizeof(list.prefix));
    /* The visitor may make requests of its own. */
    struct wire_admin_entry *page = larder_alloc(LARDER_ADMIN_LIST_MAX * sizeof(*page));
    if (!page)
        return larder_fail(-ENOMEM, "no memory for a list");
    int err = 0;
    do {
        const void *body;
        err = link_request(link, &body, WIRE_ADMIN_LIST, &list, sizeof(list), WIRE_ADMIN_LIST_OK,
                           sizeof(struct wire_admin_list_ok));
        if (err < 0)
            break;
        const struct wire_admin_list_ok *ok = body;
        size_t bytes = ((const struct wire_frame *)link->answer)->bytes;
        if (ok->count > LARDER_ADMIN_LIST_MAX ||
            bytes != sizeof(struct wire_frame) + sizeof(*ok) + ok->count * sizeof(*page)) {
            err = larder_fail(LARDER_EPROTO, "larderd's list of %u entries is not understood",
                              ok->count);
            break;
        }
        uint32_t count = ok->count;
        list.cursor = ok->cursor;
        memcpy(page, ok + 1, count * sizeof(*page));
        for (uint32_t i = 0; err == 0 && i < count; i++) {
            page[i].recipe[sizeof(page[i].recipe) - 1] = 0;
            err = visit(context, &page[i]);
        }
    } while (err == 0 && list.cursor != 0);
    larder_free(page);
    return err;
}

struct candidates {
    uint32_t count;
    struct wire_admin_entry first;
    char text[CANDIDATES_MAX * 20 + 1];
};

static int add_candidate(void *context, const struct wire_admin_entry *entry)
{
    struct candidates *found = context;
    if (found->count == 0)
        found->first = *entry;
    else if (memcmp(found->first.key, entry->key, sizeof(entry->key)) == 0)
        return 0; /* another variant of it */
    if (found->count < CANDIDATES_MAX) {
        char hex[17];
        larder_hex(hex, entry->key, 8);
        size_t used = strlen(found->text);
        snprintf(found->text + used, sizeof(found->text) - used, "%s%s", used ? ", " : "", hex);
    }
    found->count++;
    /* Enough to say that there are many. */
    return found->count > 1000 ? 1 : 0;
}

int link_find(struct link *link, struct wire_admin_entry *out, const char *text)
{
    uint8_t prefix[32] = {0};
    size_t digits = strlen(text);
    if (digits < 1 || digits > 64)
        return larder_fail(-EINVAL, "'%s' is no key: a key is 1 to 64 hex digits", text);
    for (size_t i = 0; i < digits; i++) {
        char c = (char)tolower((unsigned char)text[i]);
        if (!isxdigit((unsigned char)c))
            return larder_fail(-EINVAL, "'%s' is no key: '%c' is not a hex digit", text, text[i]);
        uint8_t digit = (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10);
        prefix[i / 2] |= (uint8_t)(i % 2 ? digit : digit << 4);
    }
    struct candidates found = {0};
    int err = link_each_entry(link, prefix, (uint32_t)digits, add_candidate, &found);
    if (err < 0)
        return err;
    if (found.count == 0)
        return larder_fail(LARDER_ENOTFOUND, "no entry's key begins with %s; see larder ls", text);
    if (found.count > 1)
        return larder_fail(-EINVAL, "%s is ambiguous, %s%u keys begin so: %s%s; use more digits",
                           text, found.count > 1000 ? "more than " : "",
                           found.count > 1000 ? 1000 : found.count, found.text,
                           found.count > CANDIDATES_MAX ? ", ..." : "");
    *out = found.first;
    return 0;
}
