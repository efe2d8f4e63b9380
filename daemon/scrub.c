/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/scrub.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/demote.h"
#include "daemon/larderd.h"

/* A longer pause (of the process, of the clock) is not made up for. */
#define CREDIT_MS_MAX 200u
/* When gc begins by itself: each segment is an open file. */
#define GC_SEGMENTS_MAX   512u
#define GC_SEGMENTS_SPARE 4u
#define GC_LOOK_MS        10000u
#define GC_PAUSE_S        600u

/* --- DIR/scrubbed ----------------------------------------------------------------------------- */

static uint64_t read_stamp(const struct scrub *scrub)
{
    char path[PATH_MAX];
    void *text;
    size_t bytes;
    const char *directory = scrub->daemon->config.directory;
    if (snprintf(path, sizeof(path), "%s/scrubbed", directory) >= (int)sizeof(path) ||
        larder_file_read(&text, &bytes, path, 64) < 0)
        return 0;
    uint64_t stamp = strtoull(text, NULL, 10);
    larder_free(text);
    return stamp;
}

/* Without it the next pass comes early, which is no harm. */
static void write_stamp(const struct scrub *scrub)
{
    char text[32];
    int bytes = snprintf(text, sizeof(text), "%llu\n", (unsigned long long)scrub->state.ended_s);
    if (larder_file_replace(scrub->daemon->config.directory, "scrubbed", text, (size_t)bytes) < 0)
        larder_log(LARDER_LOG_WARN, "%s", larder_error_message());
}

/* --- a pass ----------------------------------------------------------------------------------- */

static void go_on(struct scrub *scrub);

static void end_pass(struct scrub *scrub)
{
    struct wire_admin_scrub_ok *state = &scrub->state;
    state->running = 0;
    state->cancelled = scrub->cancelled;
    state->ended_s = (uint64_t)time(NULL);
    char read[16];
    if (!scrub->cancelled)
        state->passes++;
    if (scrub->kind == SCRUB_DEMOTE) {
        const struct demote *demote = scrub->demote;
        larder_log(demote->demoted + state->failed > 0 ? LARDER_LOG_INFO : LARDER_LOG_DEBUG,
                   "demote: %s: %llu of %llu entries are smaller now, %s saved; %llu failed",
                   scrub->cancelled ? "ended early" : "done", (unsigned long long)demote->demoted,
                   (unsigned long long)state->entries_done,
                   larder_human_bytes(read, demote->saved_bytes),
                   (unsigned long long)state->failed);
        return;
    }
    if (scrub->kind == SCRUB_MOVE) {
        larder_log(LARDER_LOG_INFO, "gc: %s: %llu of %llu entries moved, %s; %llu failed",
                   scrub->cancelled ? "cancelled" : "done", (unsigned long long)scrub->moved,
                   (unsigned long long)state->entries_done,
                   larder_human_bytes(read, scrub->moved_bytes),
                   (unsigned long long)(state->failed + state->bad));
        return;
    }
    if (!scrub->cancelled) {
        state->whole_s = state->ended_s;
        write_stamp(scrub);
    }
    larder_log(state->bad > 0 || state->failed > 0 ? LARDER_LOG_ERROR : LARDER_LOG_INFO,
               "scrub: %s: %llu entries, %s read in %llu s; %llu damaged and dropped, %llu could "
               "not be read",
               scrub->cancelled ? "cancelled" : "done", (unsigned long long)state->entries_done,
               larder_human_bytes(read, state->bytes_done),
               (unsigned long long)(state->ended_s - state->started_s),
               (unsigned long long)state->bad, (unsigned long long)state->failed);
}

/* On a worker: a list walks many entries under the store's lock. */
static void list_run(struct job *job, struct scratch *scratch)
{
    struct scrub *scrub = (struct scrub *)((char *)job - offsetof(struct scrub, job));
    (void)scratch;
    scrub->err = larder_store_list(scrub->daemon->store, scrub->entries, &scrub->count,
                                   &scrub->cursor, SCRUB_LIST_MAX);
    completions_post(scrub->daemon->completions, &scrub->completion);
}

static void list_done(struct completion *completion)
{
    struct scrub *scrub = (struct scrub *)((char *)completion - offsetof(struct scrub, completion));
    scrub->busy = false;
    scrub->next = 0;
    if (scrub->err < 0)
        scrub->count = 0;
    scrub->listed_all = scrub->err < 0 || scrub->cursor == 0;
    go_on(scrub);
}

/* On the storage thread, or at once. */
static void record_read(void *context, int err)
{
    struct scrub *scrub = context;
    scrub->err = err;
    completions_post(scrub->daemon->completions, &scrub->completion);
}

static void record_done(struct completion *completion)
{
    struct scrub *scrub = (struct scrub *)((char *)completion - offsetof(struct scrub, completion));
    struct wire_admin_scrub_ok *state = &scrub->state;
    const struct larder_entry_info *entry = &scrub->entries[scrub->next++];
    scrub->busy = false;
    state->entries_done++;
    /* What has left SSD meanwhile is no fault; what stays where it is was not read. */
    bool passed_over = scrub->err == LARDER_ENOTFOUND || scrub->err == -EALREADY;
    if (scrub->err != LARDER_ENOTFOUND)
        state->bytes_done += entry->record_bytes;
    if (!passed_over)
        scrub->credit_bytes -= (int64_t)entry->record_bytes;
    if (scrub->err == LARDER_ECORRUPT)
        state->bad++;
    else if (scrub->err < 0 && !passed_over)
        state->failed++;
    if (scrub->err == 0 && scrub->kind == SCRUB_MOVE) {
        scrub->moved++;
        scrub->moved_bytes += entry->record_bytes;
    }
    go_on(scrub);
}

static void note_demotion(struct scrub *scrub, int err)
{
    const uint64_t bytes = scrub->demote->demotion.bytes_moved;
    scrub->state.bytes_done += bytes;
    scrub->credit_bytes -= (int64_t)bytes;
    switch (demote_note(scrub->demote, err)) {
    case DEMOTE_DONE:
        break;
    case DEMOTE_BUSY: /* for a second */
        scrub->credit_bytes -= (int64_t)scrub->state.rate_bytes;
        break;
    case DEMOTE_NO_ROOM:
        scrub->state.failed++;
        scrub->cancelled = true;
        break;
    case DEMOTE_FAILED:
        scrub->state.failed++;
        break;
    }
}

static void demoted(void *context, int err)
{
    struct scrub *scrub = context;
    scrub->next++;
    scrub->busy = false;
    scrub->state.entries_done++;
    note_demotion(scrub, err);
    go_on(scrub);
}

/* Whether the pass has to do with the entry. */
static bool wants(struct scrub *scrub, const struct larder_entry_info *entry)
{
    if (entry->segment_id == 0)
        return false;
    return scrub->kind != SCRUB_DEMOTE || demote_prepare(scrub->demote, entry);
}

/* The next step, if there is one and it may be taken now. */
static void go_on(struct scrub *scrub)
{
    if (!scrub->state.running || scrub->busy || scrub->daemon->stopping)
        return;
    while (scrub->next < scrub->count && !wants(scrub, &scrub->entries[scrub->next])) {
        scrub->state.entries_done += scrub->entries[scrub->next].segment_id != 0;
        scrub->next++;
    }
    bool more = scrub->next < scrub->count;
    if (scrub->cancelled || (!more && scrub->listed_all)) {
        end_pass(scrub);
        return;
    }
    if (scrub->credit_bytes <= 0)
        return;
    scrub->busy = true;
    if (!more) {
        scrub->completion.run = list_done;
        workers_submit(scrub->daemon->workers, WORKERS_OWN, &scrub->job);
        return;
    }
    if (scrub->kind == SCRUB_DEMOTE) {
        scrub->demote->demotion.done = demoted;
        scrub->demote->demotion.context = scrub;
        demotion_start(&scrub->demote->demotion);
        return;
    }
    scrub->completion.run = record_done;
    const struct larder_entry_info *entry = &scrub->entries[scrub->next];
    if (scrub->kind == SCRUB_MOVE)
        larder_store_move(scrub->daemon->store, &entry->key, entry->variant, scrub->live_percent,
                          record_read, scrub);
    else
        larder_store_verify(scrub->daemon->store, &entry->key, entry->variant, record_read, scrub);
}

/* --- from outside ----------------------------------------------------------------------------- */

int scrub_open(struct scrub *scrub, struct larderd *daemon, enum scrub_kind kind)
{
    if (kind == SCRUB_DEMOTE) {
        scrub->demote = larder_alloc_zero(1, sizeof(*scrub->demote));
        if (!scrub->demote)
            return larder_fail(-ENOMEM, "no memory to demote entries");
    }
    scrub->daemon = daemon;
    scrub->kind = kind;
    scrub->job.run = list_run;
    scrub->segments_max = GC_SEGMENTS_MAX;
    if (kind != SCRUB_CHECK)
        return 0;
    scrub->state.whole_s = read_stamp(scrub);
    /* A store that was never scrubbed has an interval from now. */
    if (scrub->state.whole_s == 0)
        scrub->state.whole_s = (uint64_t)time(NULL);
    return 0;
}

void scrub_close(struct scrub *scrub)
{
    if (scrub->demote)
        demotion_stop(&scrub->demote->demotion);
}

/* Use counts whole files only where the file system cannot punch. */
static bool gc_is_due(struct scrub *scrub)
{
    if (scrub->state.ended_s != 0 && (uint64_t)time(NULL) - scrub->state.ended_s < GC_PAUSE_S)
        return false;
    if (scrub->ticked_ms - scrub->looked_ms < GC_LOOK_MS)
        return false;
    scrub->looked_ms = scrub->ticked_ms;
    struct larder_store_stats stats;
    larder_store_stats(scrub->daemon->store, &stats);
    uint64_t segment_bytes = scrub->daemon->config.segment_bytes;
    bool dead =
        stats.segment_bytes > 2 * stats.record_bytes_ssd + GC_SEGMENTS_SPARE * segment_bytes;
    bool many = stats.segments > scrub->segments_max &&
                stats.segments * segment_bytes > 2 * stats.record_bytes_ssd;
    return !stats.read_only && (dead || many);
}

static bool demote_is_due(const struct scrub *scrub)
{
    uint32_t pause_s;
    struct larder_store_stats stats;
    if (!demote_is_wanted(scrub->daemon, &pause_s) ||
        (uint64_t)time(NULL) - scrub->state.ended_s < pause_s)
        return false;
    larder_store_stats(scrub->daemon->store, &stats);
    return !stats.read_only;
}

static bool is_due(struct scrub *scrub)
{
    if (scrub->kind == SCRUB_MOVE)
        return gc_is_due(scrub);
    if (scrub->kind == SCRUB_DEMOTE)
        return demote_is_due(scrub);
    uint64_t interval_s = scrub->daemon->config.scrub_interval_s;
    uint64_t now_s = (uint64_t)time(NULL);
    uint64_t last_s =
        scrub->state.ended_s > scrub->state.whole_s ? scrub->state.ended_s : scrub->state.whole_s;
    /* A stamp of the future is that of a clock since set right. */
    return interval_s > 0 && (now_s < last_s || now_s - last_s >= interval_s);
}

void scrub_tick(struct scrub *scrub, uint64_t now_ms)
{
    uint64_t passed_ms = larder_min_u64(now_ms - scrub->ticked_ms, CREDIT_MS_MAX);
    scrub->ticked_ms = now_ms;
    if (!scrub->state.running && !scrub->daemon->stopping && is_due(scrub))
        scrub_start(scrub, 0, 0);
    if (!scrub->state.running)
        return;
    int64_t more = (int64_t)(scrub->state.rate_bytes * passed_ms / 1000);
    scrub->credit_bytes += more > 0 ? more : 1;
    /* What was not used is not saved up. */
    if (scrub->credit_bytes > more)
        scrub->credit_bytes = more > 0 ? more : 1;
    go_on(scrub);
}

void scrub_start(struct scrub *scrub, uint64_t rate_bytes, uint32_t live_percent)
{
    struct wire_admin_scrub_ok *state = &scrub->state;
    const struct config *config = &scrub->daemon->config;
    uint64_t rate = rate_bytes                    ? rate_bytes
                    : scrub->kind == SCRUB_DEMOTE ? config->demote_rate_bytes
                                                  : config->scrub_rate_bytes;
    if (state->running) {
        state->rate_bytes = rate;
        return;
    }
    struct larder_store_stats stats;
    larder_store_stats(scrub->daemon->store, &stats);
    *state = (struct wire_admin_scrub_ok){.running = 1,
                                          .rate_bytes = rate,
                                          .entries_all = stats.entries_durable,
                                          .bytes_all = stats.record_bytes_ssd,
                                          .started_s = (uint64_t)time(NULL),
                                          .whole_s = state->whole_s,
                                          .passes = state->passes};
    scrub->live_percent = live_percent ? live_percent : GC_LIVE_PERCENT;
    scrub->moved = scrub->moved_bytes = 0;
    scrub->segments_before = stats.segments;
    if (scrub->demote)
        demote_begin_pass(scrub->demote, scrub->daemon);
    scrub->cancelled = false;
    scrub->listed_all = false;
    scrub->cursor = 0;
    scrub->count = scrub->next = 0;
    scrub->credit_bytes = 1;
    go_on(scrub);
}

void scrub_cancel(struct scrub *scrub)
{
    scrub->cancelled = true;
    go_on(scrub);
}
