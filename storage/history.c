/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/history.h"

/* For a state on the stack. */
#define XXH_STATIC_LINKING_ONLY

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/side_file.h"

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

static bool read_events(void *context, int fd)
{
    struct history *history = context;
    struct history_head head;
    if (!side_file_read(fd, &head, sizeof(head)) || head.magic != HISTORY_MAGIC ||
        head.version != HISTORY_VERSION || head.count > HISTORY_EVENTS_MAX)
        return false;
    size_t bytes = sizeof(*history->events) * head.count;
    if (!side_file_read(fd, history->events, bytes) ||
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
    if (!side_file_load(directory, "history", read_events, history,
                        "`larder why` knows only what happens from now on"))
        memset(history->events, 0, sizeof(*history->events) * HISTORY_EVENTS_MAX);
}

static bool write_events(void *context, int fd)
{
    const struct history *history = context;
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
    return side_file_write(fd, &head, sizeof(head)) &&
           side_file_write(fd, history->events + first,
                           sizeof(*history->events) * (count - first)) &&
           side_file_write(fd, history->events, sizeof(*history->events) * first);
}

void history_save(struct history *history, const char *directory)
{
    side_file_replace(directory, "history", write_events, history,
                      "`larder why` forgets what happened");
}
