/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/bench/process.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

#define START_S  20.0
#define SETTLE_S 120.0
#define STOP_S   20.0

static void sleep_ms(long ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* --- the daemon ------------------------------------------------------------------------------ */

static int write_config(const char *path, const char *settings)
{
    FILE *file = fopen(path, "w");
    if (!file || fputs(settings, file) < 0 || fclose(file) != 0)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    return 0;
}

static int is_up(struct bench_daemon *daemon)
{
    struct larder *larder;
    const struct larder_options options = {.socket = daemon->socket, .timeout_ms = 2000};
    int err = larder_connect(&larder, &options);
    if (err == 0)
        larder_close(larder);
    return err;
}

int bench_daemon_start(const struct bench *bench, struct bench_daemon *out, const char *name,
                       const char *settings)
{
    *out = (struct bench_daemon){.pid = -1};
    char program[300];
    char config[300];
    snprintf(program, sizeof(program), "%s/larderd", bench->programs);
    snprintf(config, sizeof(config), "%s/%s.conf", bench->directory, name);
    snprintf(out->store, sizeof(out->store), "%s/%s", bench->directory, name);
    snprintf(out->socket, sizeof(out->socket), "%s/%s.sock", bench->sockets, name);
    snprintf(out->control, sizeof(out->control), "%s/%s.control", bench->sockets, name);
    if (access(program, X_OK) < 0)
        return larder_fail(-errno, "%s: %s; larder-bench starts the larderd beside itself", program,
                           strerror(errno));
    LARDER_TRY(write_config(config, settings));
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid < 0)
        return larder_fail(-errno, "fork: %s", strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent)
            _exit(1);
        execl(program, program, "--config", config, "--dir", out->store, "--socket", out->socket,
              "--control-socket", out->control, (char *)NULL);
        _exit(127);
    }
    out->pid = pid;
    double until = bench_now_s() + START_S;
    while (is_up(out) < 0) {
        int status;
        if (waitpid(pid, &status, WNOHANG) == pid) {
            out->pid = -1;
            return larder_fail(LARDER_EDOWN, "larderd ended at once, with status %d",
                               WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
        }
        if (bench_now_s() > until) {
            bench_daemon_stop(out);
            return larder_fail(-ETIMEDOUT, "larderd did not answer within %.0f s: %s", START_S,
                               larder_last_error());
        }
        sleep_ms(1);
    }
    return 0;
}

void bench_daemon_stop(struct bench_daemon *daemon)
{
    if (daemon->pid <= 0)
        return;
    kill(daemon->pid, SIGTERM);
    double until = bench_now_s() + STOP_S;
    while (waitpid(daemon->pid, NULL, WNOHANG) == 0) {
        if (bench_now_s() > until) {
            fprintf(stderr, "larder-bench: larderd did not stop within %.0f s: killed\n", STOP_S);
            kill(daemon->pid, SIGKILL);
            waitpid(daemon->pid, NULL, 0);
            break;
        }
        sleep_ms(2);
    }
    daemon->pid = -1;
}

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *walk)
{
    (void)stat;
    (void)type;
    (void)walk;
    return remove(path);
}

void bench_remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void bench_daemon_remove(struct bench_daemon *daemon)
{
    bench_daemon_stop(daemon);
    if (daemon->store[0])
        bench_remove_tree(daemon->store);
}

/* --- its control socket ---------------------------------------------------------------------- */

/* One request on a fresh connection; the answer is of exactly that type and size. */
static int ask(int fd, uint16_t type, const void *body, size_t body_bytes, uint16_t answer_type,
               void *answer, size_t answer_bytes)
{
    struct wire_frame frame = {
        .bytes = (uint32_t)(sizeof(frame) + body_bytes), .type = type, .request = 1};
    struct iovec out[] = {{&frame, sizeof(frame)}, {(void *)(uintptr_t)body, body_bytes}};
    struct iovec in[] = {{&frame, sizeof(frame)}, {answer, answer_bytes}};
    errno = EIO;
    if (writev(fd, out, 2) != (ssize_t)(sizeof(frame) + body_bytes) ||
        readv(fd, in, 2) != (ssize_t)(sizeof(frame) + answer_bytes))
        return larder_fail(-errno, "control socket: %s", strerror(errno));
    if (frame.type != answer_type)
        return larder_fail(LARDER_EPROTO, "control socket: an answer of type %u", frame.type);
    return 0;
}

int bench_daemon_status(const struct bench_daemon *daemon, struct wire_admin_status_ok *out)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    assert(strlen(daemon->control) < sizeof(address.sun_path));
    strcpy(address.sun_path, daemon->control);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return larder_fail(-errno, "socket: %s", strerror(errno));
    const struct wire_hello hello = {
        .magic = WIRE_MAGIC, .version_min = WIRE_VERSION, .version_max = WIRE_VERSION};
    struct wire_hello_ok hello_ok;
    int err = 0;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        err = larder_fail(-errno, "%s: %s", daemon->control, strerror(errno));
    if (err == 0)
        err =
            ask(fd, WIRE_HELLO, &hello, sizeof(hello), WIRE_HELLO_OK, &hello_ok, sizeof(hello_ok));
    if (err == 0)
        err = ask(fd, WIRE_ADMIN_STATUS, NULL, 0, WIRE_ADMIN_STATUS_OK, out, sizeof(*out));
    close(fd);
    return err;
}

int bench_daemon_settle(const struct bench_daemon *daemon)
{
    double until = bench_now_s() + SETTLE_S;
    for (;;) {
        struct wire_admin_status_ok status;
        LARDER_TRY(bench_daemon_status(daemon, &status));
        if (status.entries_durable == status.entries)
            return 0;
        if (bench_now_s() > until)
            return larder_fail(-ETIMEDOUT, "%llu of %llu entries are on disk after %.0f s",
                               (unsigned long long)status.entries_durable,
                               (unsigned long long)status.entries, SETTLE_S);
        sleep_ms(5);
    }
}

/* --- connections ----------------------------------------------------------------------------- */

int bench_client_failed(int code, const char *what)
{
    return code < 0 ? larder_fail(code, "%s: %s", what, larder_last_error()) : 0;
}

int bench_client_open(struct bench_client *out, const struct bench_daemon *daemon,
                      const struct larder_model_desc *model)
{
    *out = (struct bench_client){0};
    const struct larder_options options = {
        .socket = daemon->socket, .timeout_ms = 60000, .threads = 1};
    LARDER_TRY(bench_client_failed(larder_connect(&out->larder, &options), "connect"));
    int err = bench_client_failed(larder_model_open(out->larder, &out->model, model), "model");
    if (err < 0)
        bench_client_close(out);
    return err;
}

void bench_client_close(struct bench_client *client)
{
    if (client->model)
        larder_model_close(client->model);
    if (client->larder)
        larder_close(client->larder);
    *client = (struct bench_client){0};
}
