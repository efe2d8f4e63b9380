/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/io.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

int larder_io_open(struct larder_io **out, const char *name, const char *directory, uint32_t depth)
{
    *out = NULL;
    if (strcmp(name, "uring") == 0)
        return larder_io_uring_open(out, directory, depth);
    if (strcmp(name, "threads") == 0)
        return larder_io_threads_open(out, directory, depth);
    if (strcmp(name, "auto") != 0)
        return larder_fail(LARDER_ECONFIG, "io=%s is not known; use auto, uring or threads", name);

    if (larder_io_uring_open(out, directory, depth) == 0)
        return 0;
    /* Containers forbid io_uring (EPERM), old kernels lack it (ENOSYS), small memlock limits refuse
     * it (ENOMEM): threads do the same work with more CPU. */
    larder_log(LARDER_LOG_INFO, "storage: io_uring is not usable here (%s): using threads",
               larder_error_message());
    return larder_io_threads_open(out, directory, depth);
}

struct run_state {
    bool is_done;
};

static void run_done(struct larder_io_request *request)
{
    struct run_state *state = request->context;
    state->is_done = true;
}

int larder_io_run(struct larder_io *io, enum larder_io_op op, struct larder_file *file,
                  void *buffer, uint64_t offset, uint32_t bytes)
{
    struct run_state state = {.is_done = false};
    struct larder_io_request request = {
        .op = op,
        .file = file,
        .buffer = buffer,
        .offset = offset,
        .bytes = bytes,
        .done = run_done,
        .context = &state,
    };
    io->ops->submit(io, &request);
    while (!state.is_done) {
        int count = io->ops->poll(io, -1);
        /* A backend that cannot wait still owns the request, so it cannot be left behind. */
        assert(count >= 0);
    }
    if (request.result < 0) {
        const char *what = op == LARDER_IO_READ ? "read" : op == LARDER_IO_WRITE ? "write" : "sync";
        return larder_fail(request.result, "%s of %u bytes at %llu: %s", what, bytes,
                           (unsigned long long)offset, larder_error_text(request.result));
    }
    return 0;
}
