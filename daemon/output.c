/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/output.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

struct output_frame {
    struct output_frame *next;
    int fd; /* -1: none */
    uint32_t bytes;
    uint8_t data[];
};

void output_init(struct output *output)
{
    output->first = NULL;
    output->last_next = &output->first;
    output->bytes = 0;
}

static void drop_first(struct output *output)
{
    struct output_frame *frame = output->first;
    output->first = frame->next;
    if (!output->first)
        output->last_next = &output->first;
    output->bytes -= frame->bytes;
    if (frame->fd >= 0)
        close(frame->fd);
    larder_free(frame);
}

void output_clear(struct output *output)
{
    while (output->first)
        drop_first(output);
}

/* 0, -EAGAIN, or what makes the connection useless. */
static int send_now(int socket_fd, const struct iovec *parts, int part_count, int pass_fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)parts,
                             .msg_iovlen = (size_t)part_count};
    if (pass_fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &pass_fd, sizeof(int));
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == EAGAIN)
        return -EAGAIN;
    return sent < 0 ? larder_fail(-errno, "sendmsg: %m") : 0;
}

static int enqueue(struct output *output, const struct iovec *parts, int part_count, int pass_fd)
{
    size_t bytes = 0;
    for (int i = 0; i < part_count; i++)
        bytes += parts[i].iov_len;
    assert(bytes <= LARDER_FRAME_BYTES_MAX);
    if (output->bytes + bytes > LARDER_OUTPUT_BYTES_MAX)
        return larder_fail(-ENOBUFS, "%llu bytes wait for a client that does not read; at most %u",
                           (unsigned long long)output->bytes, LARDER_OUTPUT_BYTES_MAX);
    struct output_frame *frame = larder_alloc(sizeof(*frame) + bytes);
    if (!frame)
        return larder_fail(-ENOMEM, "no memory for an answer of %zu bytes", bytes);
    frame->next = NULL;
    frame->bytes = (uint32_t)bytes;
    frame->fd = -1;
    /* The store may close its own before this one's turn has come. */
    if (pass_fd >= 0 && (frame->fd = fcntl(pass_fd, F_DUPFD_CLOEXEC, 0)) < 0) {
        int err = larder_fail(-errno, "cannot duplicate a slab's descriptor: %m");
        larder_free(frame);
        return err;
    }
    size_t at = 0;
    for (int i = 0; i < part_count; i++) {
        if (parts[i].iov_len)
            memcpy(frame->data + at, parts[i].iov_base, parts[i].iov_len);
        at += parts[i].iov_len;
    }
    *output->last_next = frame;
    output->last_next = &frame->next;
    output->bytes += bytes;
    return 0;
}

int output_send(struct output *output, int socket_fd, const struct iovec *parts, int part_count,
                int pass_fd)
{
    assert(part_count <= OUTPUT_PARTS_MAX);
    if (!output->first) {
        int err = send_now(socket_fd, parts, part_count, pass_fd);
        if (err != -EAGAIN)
            return err;
    }
    return enqueue(output, parts, part_count, pass_fd);
}

int output_flush(struct output *output, int socket_fd)
{
    while (output->first) {
        struct output_frame *frame = output->first;
        struct iovec part = {.iov_base = frame->data, .iov_len = frame->bytes};
        int err = send_now(socket_fd, &part, 1, frame->fd);
        if (err == -EAGAIN)
            return 0;
        LARDER_TRY(err);
        drop_first(output);
    }
    return 0;
}
