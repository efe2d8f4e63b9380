/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/history.h"

/* For a state on the stack. */
#define XXH_STATIC_LINKING_ONLY

#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"

#define HISTORY_MAGIC   0x315453494844524cull /* "LRDHIST1" */
#define HISTORY_VERSION 1u

/* In front of the events, oldest first. */
struct history_head {
    uint64_t magic;   /* 00-07 */
    uint32_t version; /* 08-11 */
    uint32_t count;   /* 12-15 */
    uint64_t check;   /* 16-23  XXH3-64 of the events */
};
static_assert(sizeof(struct history_head) == 24, "on-disk size");

static uint64_t print_of(const struct larder_key *key)
{
    uint64_t print;
    memcpy(&print, key->bytes, sizeof(print));
    return print;
}

int history_open(struct history *history)
{
    memset(history, 0, sizeof(*history));
    history->events = larder_alloc_zero(HISTORY_EVENTS_MAX, sizeof(*history->events));
    return history->events ? 0 : larder_fail(-ENOMEM, "history: no memory");
}

void history_close(struct history *history)
{
    larder_free(history->events);
    history->events = NULL;
}

void history_note(struct history *history, const struct larder_key *key, enum larder_event what)
{
    assert(what > LARDER_EVENT_NONE && what < LARDER_EVENT_END);
    const struct history_event event = {
        .print = print_of(key), .when_s = (uint32_t)time(NULL), .what = (uint8_t)what};
    history->counts[what]++;
    /* Who is refused tries again and again: that is one event. */
    struct history_event *last =
        &history->events[(history->noted + HISTORY_EVENTS_MAX - 1) % HISTORY_EVENTS_MAX];
    if (last->print == event.print && last->what == event.what)
        *last = event;
    else
        history->events[history->noted++ % HISTORY_EVENTS_MAX] = event;
}

/* Events that the ring holds. */
static uint32_t held(const struct history *history)
{
    return history->noted < HISTORY_EVENTS_MAX ? (uint32_t)history->noted : HISTORY_EVENTS_MAX;
}

uint32_t history_find(const struct history *history, struct history_event *out, uint32_t count_max,
                      const struct larder_key *key)
{
    uint64_t print = print_of(key);
    uint32_t count = 0;
    for (uint32_t back = 1; back <= held(history) && count < count_max; back++) {
        const struct history_event *event =
            &history->events[(history->noted - back) % HISTORY_EVENTS_MAX];
        if (event->print == print)
            out[count++] = *event;
    }
    return count;
}

/* --- DIR/history ------------------------------------------------------------------------------ */

static bool transfer(int fd, void *data, size_t bytes, bool write_it)
{
    uint8_t *at = data;
    while (bytes > 0) {
        ssize_t done = write_it ? write(fd, at, bytes) : read(fd, at, bytes);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        at += done;
        bytes -= (size_t)done;
    }
    return true;
}

static bool read_events(struct history *history, int fd)
{
    struct history_head head;
    if (!transfer(fd, &head, sizeof(head), false) || head.magic != HISTORY_MAGIC ||
        head.version != HISTORY_VERSION || head.count > HISTORY_EVENTS_MAX)
        return false;
    size_t bytes = sizeof(*history->events) * head.count;
    if (!transfer(fd, history->events, bytes, false) ||
        XXH3_64bits(history->events, bytes) != head.check)
        return false;
    for (uint32_t i = 0; i < head.count; i++) {
        if (history->events[i].what == LARDER_EVENT_NONE)
            return false;
    }
    history->noted = head.count;
    return true;
}

void history_load(struct history *history, const char *directory)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/history", directory);
    if (length >= (int)sizeof(path))
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return;
    if (fd < 0 || !read_events(history, fd)) {
        larder_log(LARDER_LOG_WARN,
                   "%s cannot be read or is damaged: `larder why` knows only what "
                   "happens from now on",
                   path);
        memset(history->events, 0, sizeof(*history->events) * HISTORY_EVENTS_MAX);
    }
    if (fd >= 0)
        close(fd);
}

static bool write_events(const struct history *history, int fd)
{
    uint32_t count = held(history);
    /* The older part of the ring lies behind the newer one. */
    uint32_t first =
        history->noted > HISTORY_EVENTS_MAX ? (uint32_t)(history->noted % HISTORY_EVENTS_MAX) : 0;
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, history->events + first, sizeof(*history->events) * (count - first));
    XXH3_64bits_update(&state, history->events, sizeof(*history->events) * first);
    struct history_head head = {.magic = HISTORY_MAGIC,
                                .version = HISTORY_VERSION,
                                .count = count,
                                .check = XXH3_64bits_digest(&state)};
    return transfer(fd, &head, sizeof(head), true) &&
           transfer(fd, history->events + first, sizeof(*history->events) * (count - first),
                    true) &&
           transfer(fd, history->events, sizeof(*history->events) * first, true);
}

void history_save(const struct history *history, const char *directory)
{
    char path[PATH_MAX], fresh[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/history", directory) >= (int)sizeof(path) ||
        snprintf(fresh, sizeof(fresh), "%s/history.new", directory) >= (int)sizeof(fresh))
        return;
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool good = fd >= 0 && write_events(history, fd);
    if (fd >= 0 && close(fd) < 0)
        good = false;
    if (good && rename(fresh, path) == 0)
        return;
    larder_log(LARDER_LOG_WARN, "%s cannot be written (%s): `larder why` forgets what happened",
               path, strerror(errno));
    unlink(fresh);
}
