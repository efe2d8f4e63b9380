/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/completions.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"

struct completions {
    int fd;
    /* any thread, under mtx */
    pthread_mutex_t mtx;
    struct completion *first;
    struct completion **last_next;
};

int completions_open(struct completions **out)
{
    *out = NULL;
    struct completions *completions = larder_alloc_zero(1, sizeof(*completions));
    if (!completions)
        return larder_fail(-ENOMEM, "no memory for the completion queue");
    completions->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (completions->fd < 0) {
        int err = larder_fail(-errno, "eventfd: %m");
        larder_free(completions);
        return err;
    }
    pthread_mutex_init(&completions->mtx, NULL);
    completions->last_next = &completions->first;
    *out = completions;
    return 0;
}

void completions_close(struct completions *completions)
{
    if (!completions)
        return;
    assert(!completions->first);
    pthread_mutex_destroy(&completions->mtx);
    close(completions->fd);
    larder_free(completions);
}

int completions_fd(const struct completions *completions)
{
    return completions->fd;
}

void completions_post(struct completions *completions, struct completion *completion)
{
    assert(completion->run);
    completion->next = NULL;
    pthread_mutex_lock(&completions->mtx);
    bool was_empty = !completions->first;
    *completions->last_next = completion;
    completions->last_next = &completion->next;
    /* Under the lock, so that the queue is not closed between the push and the write. */
    if (was_empty) {
        uint64_t one = 1;
        ssize_t written;
        do
            written = write(completions->fd, &one, sizeof(one));
        while (written < 0 && errno == EINTR);
        assert(written == sizeof(one));
    }
    pthread_mutex_unlock(&completions->mtx);
}

void completions_drain(struct completions *completions)
{
    pthread_mutex_lock(&completions->mtx);
    uint64_t count;
    ssize_t ignored = read(completions->fd, &count, sizeof(count)); /* EAGAIN: nothing posted */
    (void)ignored;
    struct completion *next = completions->first;
    completions->first = NULL;
    completions->last_next = &completions->first;
    pthread_mutex_unlock(&completions->mtx);

    while (next) {
        struct completion *completion = next;
        next = completion->next;
        completion->run(completion);
    }
}
