/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/served_process.h"

#include <errno.h>
#include <libgen.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "daemon/work.h"

#define ARGUMENTS_MAX 16

/* --- starting --------------------------------------------------------------------------------- */

static int program_path(char out[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (bytes < 0)
        return larder_fail(-errno, "/proc/self/exe: %m");
    self[bytes] = 0;
    int length = snprintf(out, PATH_MAX, "%s/larder-worker", dirname(self));
    return length < PATH_MAX ? 0 : larder_fail(-ENAMETOOLONG, "%s: no room for a name", self);
}

static const char *dtype_name(uint32_t dtype)
{
    return dtype == LARDER_F32 ? "f32" : dtype == LARDER_F16 ? "f16" : "bf16";
}

/* Signals as a program expects them, and the socket in place; whatever else larderd has open closes
 * by itself. */
static int spawn_with(pid_t *pid, const char *program, char *const *arguments, int socket_fd)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int err = posix_spawn_file_actions_init(&actions);
    if (err)
        return larder_fail(-err, "posix_spawn: %s", strerror(err));
    err = posix_spawnattr_init(&attributes);
    if (err) {
        posix_spawn_file_actions_destroy(&actions);
        return larder_fail(-err, "posix_spawn: %s", strerror(err));
    }
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    err = posix_spawn_file_actions_adddup2(&actions, socket_fd, WORK_FD);
    if (!err)
        err = posix_spawn(pid, program, &actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return err ? larder_fail(-err, "cannot start %s: %s", program, strerror(err)) : 0;
}

int served_spawn(const struct config *config, const struct served_model *model, pid_t *pid, int *fd)
{
    char program[PATH_MAX], threads[16];
    LARDER_TRY(program_path(program));
    snprintf(threads, sizeof(threads), "%u", config->worker_threads);
    const char *arguments[ARGUMENTS_MAX] = {program,
                                            "--name",
                                            model->name,
                                            "--model",
                                            model->directory,
                                            "--control-socket",
                                            config->control_socket,
                                            "--threads",
                                            threads,
                                            "--method",
                                            model->method};
    int count = 11;
    if (model->kv_dtype) {
        arguments[count++] = "--kv";
        arguments[count++] = dtype_name(model->kv_dtype);
    }
    if (config->core_dumps)
        arguments[count++] = "--core-dumps";
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return larder_fail(-errno, "socketpair: %m");
    int err = spawn_with(pid, program, (char *const *)(uintptr_t)arguments, pair[1]);
    close(pair[1]);
    if (err < 0)
        close(pair[0]);
    else
        *fd = pair[0];
    return err;
}

/* --- frames ----------------------------------------------------------------------------------- */

int served_send(int fd, uint16_t type, uint64_t serial, const void *body, size_t body_bytes,
                int pass_fd)
{
    struct wire_frame frame = {
        .bytes = (uint32_t)(sizeof(frame) + body_bytes), .type = type, .request = serial};
    struct iovec parts[] = {{&frame, sizeof(frame)}, {(void *)(uintptr_t)body, body_bytes}};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {{0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (pass_fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &pass_fd, sizeof(int));
    }
    if (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return larder_fail(LARDER_EDOWN, "it takes no frame: %m");
    return 0;
}

int served_receive(int fd, void *buffer, size_t capacity)
{
    ssize_t got = recv(fd, buffer, capacity, MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        return larder_fail(LARDER_EDOWN, "it ended");
    const struct wire_frame *frame = buffer;
    if ((size_t)got < sizeof(*frame) || (size_t)got > capacity || frame->bytes != (size_t)got)
        return larder_fail(LARDER_EPROTO, "it sent %zd bytes that are no frame", got);
    return (int)got;
}
