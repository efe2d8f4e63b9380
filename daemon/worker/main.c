/* SPDX-License-Identifier: Apache-2.0 */
/* larder-worker(8): its command line and its frames. */
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "daemon/worker/worker.h"
#include "kernels/blend/blend.h"

const char *argp_program_version = "larder-worker " LARDER_VERSION;

enum {
    OPTION_KV = 256,
    OPTION_METHOD,
    OPTION_CORE_DUMPS,
};

static const struct argp_option option_list[] = {
    {"name", 'n', "NAME", 0, "The model's name in larderd's configuration", 0},
    {"model", 'm', "DIR", 0, "Model directory: config.json and .safetensors files", 0},
    {"control-socket", 's', "PATH", 0, "Larderd's control socket", 0},
    {"threads", 't', "N", 0, "Threads to compute with; 0: one a CPU", 0},
    {"kv", OPTION_KV, "DTYPE", 0, "Type of K and V: f32, f16, bf16; as the weights", 0},
    {"method", OPTION_METHOD, "TEXT", 0, "Of blends that name none", 0},
    {"core-dumps", OPTION_CORE_DUMPS, NULL, 0, "Allow core dumps", 0},
    {0},
};

static uint32_t parse_dtype(const char *text)
{
    return strcmp(text, "f32") == 0    ? LARDER_F32
           : strcmp(text, "f16") == 0  ? LARDER_F16
           : strcmp(text, "bf16") == 0 ? LARDER_BF16
                                       : 0;
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct worker_options *options = state->input;
    switch (key) {
    case 'n':
        options->name = argument;
        return 0;
    case 'm':
        options->directory = argument;
        return 0;
    case 's':
        options->control_socket = argument;
        return 0;
    case 't':
        options->threads = (uint32_t)strtoul(argument, NULL, 10);
        return 0;
    case OPTION_KV:
        options->kv_dtype = parse_dtype(argument);
        if (!options->kv_dtype)
            argp_error(state, "--kv=%s is not one of f32, f16, bf16", argument);
        return 0;
    case OPTION_METHOD:
        options->method = argument;
        return 0;
    case OPTION_CORE_DUMPS:
        options->core_dumps = true;
        return 0;
    case ARGP_KEY_END:
        if (!options->name || !options->directory || !options->control_socket)
            argp_error(state, "larderd starts this program, with --name, --model and "
                              "--control-socket");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* --- frames ---------------------------------------------------------------------------------- */

struct received {
    uint64_t bytes; /* 0: nothing now */
    int fd;         /* that came along; -1: none */
    union {
        struct wire_frame frame;
        _Alignas(8) uint8_t raw[1024];
    };
};

/* 0, or LARDER_EDOWN when larderd has closed its end. */
static int receive(struct received *out, int flags)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {out->raw, sizeof(out->raw)};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    out->bytes = 0;
    out->fd = -1;
    ssize_t got = recvmsg(WORK_FD, &message, flags | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (got <= 0)
        return larder_fail(LARDER_EDOWN, "larderd has ended");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(&out->fd, CMSG_DATA(header), sizeof(int));
    if ((size_t)got < sizeof(out->frame) || out->frame.bytes != (size_t)got)
        return larder_fail(LARDER_EPROTO, "larderd sent %zd bytes that are no frame", got);
    out->bytes = (uint64_t)got;
    return 0;
}

static int reply(uint16_t type, uint64_t serial, const void *body, size_t body_bytes)
{
    struct wire_frame frame = {
        .bytes = (uint32_t)(sizeof(frame) + body_bytes), .type = type, .request = serial};
    struct iovec parts[] = {{&frame, sizeof(frame)}, {(void *)(uintptr_t)body, body_bytes}};
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (sendmsg(WORK_FD, &message, MSG_NOSIGNAL) < 0)
        return larder_fail(LARDER_EDOWN, "larderd takes no answer: %m");
    return 0;
}

static int reply_error(uint64_t serial, int code)
{
    struct wire_error error = {.code = code};
    snprintf(error.message, sizeof(error.message), "%s", larder_error_message());
    return reply(WIRE_ERROR, serial, &error, sizeof(error));
}

bool worker_is_cancelled(struct worker *worker)
{
    struct received received;
    if (worker->cancelled)
        return true;
    int err = receive(&received, MSG_DONTWAIT);
    if (received.fd >= 0)
        close(received.fd);
    if (err < 0)
        worker->ended = true;
    /* Nothing else may come while a blend is being done. */
    if (err < 0 || received.bytes > 0)
        worker->cancelled = true;
    return worker->cancelled;
}

/* --- requests -------------------------------------------------------------------------------- */

static void forget_blend(struct worker *worker)
{
    larder_kv_cache_close(worker->cache);
    worker->cache = NULL;
    if (worker->staging)
        munmap(worker->staging, worker->staging_bytes);
    worker->staging = NULL;
    worker->serial = 0;
}

static int map_staging(struct worker *worker, int fd, const struct work_blend *work)
{
    const struct wire_blend *wire = &work->blend;
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat) < 0 || (uint64_t)stat.st_size < work->staging_bytes ||
        wire->staging_bytes > work->staging_bytes ||
        wire->staging_offset > work->staging_bytes - wire->staging_bytes)
        return larder_fail(LARDER_EPROTO, "a blend came without its staging");
    void *map = mmap(NULL, work->staging_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping staging of %llu bytes: %m",
                           (unsigned long long)work->staging_bytes);
    madvise(map, work->staging_bytes, MADV_DONTDUMP);
    worker->staging = map;
    worker->staging_bytes = work->staging_bytes;
    return 0;
}

/* As the tenant that asks. */
static int connect_as(struct worker *worker, const char *tenant)
{
    if (worker->larder && strcmp(worker->tenant, tenant) == 0)
        return 0;
    larder_model_close(worker->model);
    larder_close(worker->larder);
    worker->model = NULL;
    worker->larder = NULL;
    snprintf(worker->tenant, sizeof(worker->tenant), "%s", tenant);
    const struct larder_options options = {
        .socket = worker->options->control_socket,
        .threads = worker->options->threads < 64 ? worker->options->threads : 64,
        .tenant = worker->tenant};
    int err = larder_connect(&worker->larder, &options);
    if (err == 0)
        err = larder_model_open(worker->larder, &worker->model, &worker->desc);
    if (err == 0)
        return 0;
    char why[LARDER_MESSAGE_BYTES_MAX];
    snprintf(why, sizeof(why), "%s", larder_last_error());
    larder_close(worker->larder);
    worker->larder = NULL;
    return larder_fail(err, "the worker as tenant %s: %s", tenant, why);
}

static int do_blend(struct worker *worker, struct received *received)
{
    const struct work_blend *work = (const void *)(&received->frame + 1);
    const uint64_t serial = received->frame.request;
    struct work_blend_ok answer = {.ok = {.span_count = 0}};
    forget_blend(worker);
    worker->serial = serial;
    worker->cancelled = false;
    int err = map_staging(worker, received->fd, work);
    if (err == 0)
        err = memchr(work->tenant, 0, sizeof(work->tenant))
                  ? connect_as(worker, work->tenant)
                  : larder_fail(LARDER_EPROTO, "a blend came without its tenant");
    if (err == 0)
        err = worker_blend(worker, &answer.ok, &work->blend);
    if (err == 0) {
        answer.rates = worker->rates;
        err = reply(WORK_BLEND_OK, serial, &answer, sizeof(answer));
    } else {
        err = reply_error(serial, err);
    }
    if (worker->cancelled && err == 0)
        err = reply(WORK_END_OK, serial, NULL, 0);
    if (worker->cancelled || answer.ok.span_count == 0)
        forget_blend(worker);
    return err;
}

static int handle(struct worker *worker, struct received *received)
{
    const struct wire_frame *frame = &received->frame;
    const uint64_t bytes = frame->bytes - sizeof(*frame);
    if (frame->type == WORK_BLEND && bytes == sizeof(struct work_blend))
        return do_blend(worker, received);
    if (frame->type == WORK_READ && bytes == sizeof(struct wire_blend_read)) {
        int err = frame->request == worker->serial && worker->cache
                      ? worker_read(worker, (const void *)(frame + 1))
                      : larder_fail(LARDER_ESTALE, "the worker does not have that blend");
        return err < 0 ? reply_error(frame->request, err)
                       : reply(WORK_READ_OK, frame->request, NULL, 0);
    }
    if (frame->type == WORK_END && bytes == 0) {
        if (frame->request == worker->serial)
            forget_blend(worker);
        return reply(WORK_END_OK, frame->request, NULL, 0);
    }
    return larder_fail(LARDER_EPROTO, "larderd sent a frame of type %u", frame->type);
}

/* --- life ------------------------------------------------------------------------------------ */

static int serve(struct worker *worker)
{
    struct work_ready ready = {.desc = worker->desc,
                               .rates = worker->rates,
                               .positions_max = worker->config->positions_max,
                               .start = worker->config->bos >= 0 ? (uint32_t)worker->config->bos
                                                                 : WIRE_TOKEN_NONE};
    snprintf(ready.device, sizeof(ready.device), "%s", larder_device_describe(worker->device));
    LARDER_TRY(reply(WORK_READY, 0, &ready, sizeof(ready)));
    while (!worker->ended) {
        struct received received;
        LARDER_TRY(receive(&received, 0));
        int err = received.bytes > 0 ? handle(worker, &received) : 0;
        if (received.fd >= 0)
            close(received.fd);
        LARDER_TRY(err);
    }
    return 0;
}

static int open_model(struct worker *worker)
{
    const struct worker_options *options = worker->options;
    LARDER_TRY(larder_device_open(&worker->device, "cpu",
                                  &(struct larder_device_options){.threads = options->threads}));
    LARDER_TRY(larder_llama_open(&worker->llama, worker->device, options->directory));
    worker->config = larder_llama_config(worker->llama);
    LARDER_TRY(larder_blend_check_method(options->method, worker->config->layers));
    LARDER_TRY(larder_llama_describe(worker->llama, &worker->desc, options->kv_dtype));
    return worker_measure(worker);
}

/* It dies with larderd, has its descriptors and no others, and leaves nobody's prompts behind. */
static void settle(const struct worker_options *options)
{
    const struct rlimit none = {0, 0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    close_range(WORK_FD + 1, ~0u, 0);
    if (!options->core_dumps) {
        setrlimit(RLIMIT_CORE, &none);
        prctl(PR_SET_DUMPABLE, 0);
    }
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .options = option_list,
        .parser = parse_option,
        .doc = "larder-worker - computes blends for larderd, which starts it for each model of its "
               "configuration. See larder-worker(8).",
    };
    struct worker_options options = {.method = LARDER_BLEND_METHOD_DEFAULT};
    struct worker worker = {.options = &options};
    argp_parse(&argp, argc, argv, 0, NULL, &options);
    settle(&options);
    int err = open_model(&worker);
    if (err == 0)
        err = serve(&worker);
    if (err < 0 && err != LARDER_EDOWN)
        larder_log(LARDER_LOG_ERROR, "larder-worker of model %s: %s", options.name,
                   larder_error_message());
    forget_blend(&worker);
    larder_model_close(worker.model);
    larder_close(worker.larder);
    larder_llama_close(worker.llama);
    larder_device_close(worker.device);
    return err < 0 && err != LARDER_EDOWN ? EXIT_FAILURE : EXIT_SUCCESS;
}
