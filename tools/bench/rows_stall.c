/* SPDX-License-Identifier: Apache-2.0 */
/* The longest that anybody waits while the SSD tier is full: at a steady pace one PUT and one GET
 * of a block, by turns, each PUT of a new prompt, so that the store evicts, gives space back and
 * begins segments all the time. Beside it writes and reads of as many bytes, at the same pace, of
 * a file of the same size. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "tools/bench/data.h"
#include "tools/bench/disk.h"
#include "tools/bench/process.h"

#define BLOCK_TOKENS 16u /* 2 MiB of KV */
/* From the beginning of one request to that of the next: 100 MB/s written, 100 MB/s read. */
#define PACE_S 0.01
/* A PUT that is told EBUSY comes again; all of that is one wait. */
#define RETRY_S 30.0
#define FILL_S  120.0

struct stall_bench {
    const struct bench *bench;
    struct bench_daemon daemon;
    struct bench_client client;
    struct larder_model_desc model;
    uint64_t ssd_bytes;
    uint64_t block_bytes;
    void *kv;
    void *fetched;
    int fd; /* of the plain file */
    uint64_t put_count;
    uint64_t plain_count;
    uint64_t refusals;
    uint64_t hits;
};

static void sleep_s(double seconds)
{
    const struct timespec pause = {.tv_nsec = (long)(seconds * 1e9)};
    if (seconds > 0)
        nanosleep(&pause, NULL);
}

static int put_new(struct stall_bench *stall)
{
    uint32_t tokens[BLOCK_TOKENS];
    struct larder_layout layout;
    const struct larder_prompt prompt = {.tokens = tokens, .token_count = BLOCK_TOKENS};
    const struct larder_put_options options = {.wait = LARDER_CACHED};
    bench_fill_tokens(tokens, BLOCK_TOKENS, ++stall->put_count, &stall->model);
    LARDER_TRY(bench_client_failed(
        larder_layout_plain(&layout, &stall->model, stall->kv, BLOCK_TOKENS), "layout"));
    double until = bench_now_s() + RETRY_S;
    for (;;) {
        struct larder_put_result result;
        int err = larder_put(stall->client.model, &result, &prompt, &layout, &options);
        if (err != -EBUSY || bench_now_s() > until)
            return bench_client_failed(err, "put");
        stall->refusals++;
        sleep_s(0.0005);
    }
}

/* One of those that may be there still: in the host tier, on SSD, or gone. */
static int get_old(struct stall_bench *stall)
{
    uint32_t tokens[BLOCK_TOKENS];
    struct larder_layout layout;
    struct larder_get_result result;
    const struct larder_prompt prompt = {.tokens = tokens, .token_count = BLOCK_TOKENS};
    uint64_t kept = stall->ssd_bytes / stall->block_bytes;
    uint64_t back = stall->put_count * 2654435761u % kept;
    uint64_t seed = back < stall->put_count ? stall->put_count - back : 1;
    bench_fill_tokens(tokens, BLOCK_TOKENS, seed, &stall->model);
    LARDER_TRY(bench_client_failed(
        larder_layout_plain(&layout, &stall->model, stall->fetched, BLOCK_TOKENS), "layout"));
    LARDER_TRY(bench_client_failed(larder_get(stall->client.model, &result, &prompt, &layout, NULL),
                                   "get"));
    stall->hits += result.tokens > 0;
    if (result.tokens > 0 && memcmp(stall->kv, stall->fetched, stall->block_bytes) != 0)
        return larder_fail(LARDER_ECORRUPT, "what was fetched is not what was stored");
    memset(stall->fetched, 0, LARDER_PAGE_BYTES);
    return 0;
}

static int write_plain(struct stall_bench *stall)
{
    uint64_t blocks = stall->ssd_bytes / stall->block_bytes;
    uint64_t at = stall->plain_count++ % blocks * stall->block_bytes;
    return disk_write_at(stall->fd, stall->kv, stall->block_bytes, at);
}

static int read_plain(struct stall_bench *stall)
{
    uint64_t blocks = stall->ssd_bytes / stall->block_bytes;
    uint64_t at = stall->plain_count * 2654435761u % blocks * stall->block_bytes;
    const struct disk_range range = {.fd = stall->fd, .offset = at, .bytes = stall->block_bytes};
    return disk_read(stall->fetched, &range, 1);
}

/* The longest of all, in milliseconds. Who falls behind does not hurry afterwards. */
static int longest(struct stall_bench *stall, int (*first)(struct stall_bench *),
                   int (*second)(struct stall_bench *), double *measure)
{
    double end = bench_now_s() + stall->bench->seconds;
    *measure = 0;
    for (bool odd = false; bench_now_s() < end && !bench_stop; odd = !odd) {
        double started = bench_now_s();
        LARDER_TRY(odd ? second(stall) : first(stall));
        double took = bench_now_s() - started;
        if (took * 1e3 > *measure)
            *measure = took * 1e3;
        sleep_s(PACE_S - took);
    }
    return 0;
}

static int ours(void *context, double *measure)
{
    return longest(context, put_new, get_old, measure);
}

static int plain(void *context, double *measure)
{
    return longest(context, write_plain, read_plain, measure);
}

/* Until the SSD tier has begun to evict. */
static int fill(struct stall_bench *stall)
{
    double until = bench_now_s() + FILL_S;
    for (;;) {
        struct wire_admin_status_ok status;
        for (int i = 0; i < 8; i++)
            LARDER_TRY(put_new(stall));
        LARDER_TRY(bench_daemon_status(&stall->daemon, &status));
        if (status.evicted_ssd > 0)
            return 0;
        if (bench_now_s() > until)
            return larder_fail(-ETIMEDOUT, "%llu MiB are not full after %.0f s",
                               (unsigned long long)(stall->ssd_bytes >> 20), FILL_S);
    }
}

static int fill_plain(struct stall_bench *stall)
{
    char path[300];
    snprintf(path, sizeof(path), "%s/plain", stall->bench->directory);
    LARDER_TRY(disk_create(&stall->fd, path, stall->ssd_bytes));
    for (uint64_t at = 0; at < stall->ssd_bytes; at += stall->block_bytes)
        LARDER_TRY(write_plain(stall));
    return 0;
}

static int stall_open(struct stall_bench *stall)
{
    char settings[320];
    bench_model_large(&stall->model);
    stall->block_bytes = larder_model_kv_bytes(&stall->model, BLOCK_TOKENS);
    LARDER_TRY(bench_map(&stall->kv, stall->block_bytes));
    LARDER_TRY(bench_map(&stall->fetched, stall->block_bytes));
    bench_fill_kv(stall->kv, stall->block_bytes / 2, stall->model.kv_heads * stall->model.k_dims,
                  1);
    LARDER_TRY(fill_plain(stall));
    /* All that is put is to be written: with admission a full SSD would be left in peace. */
    snprintf(settings, sizeof(settings),
             "block_tokens = %u\nhost_bytes = 64M\nslab_bytes = 64M\nssd_bytes = %llu\n"
             "segment_bytes = %llu\nadmission = off\nlog_level = warn\nrecipe = raw\n",
             BLOCK_TOKENS, (unsigned long long)stall->ssd_bytes,
             (unsigned long long)stall->ssd_bytes / 16);
    LARDER_TRY(bench_daemon_start(stall->bench, &stall->daemon, "stall", settings));
    LARDER_TRY(bench_client_open(&stall->client, &stall->daemon, &stall->model));
    return fill(stall);
}

static int measure_stalls(struct stall_bench *stall, struct bench_result *out)
{
    struct wire_admin_status_ok before;
    struct wire_admin_status_ok after;
    stall->refusals = 0;
    stall->hits = 0;
    LARDER_TRY(bench_daemon_status(&stall->daemon, &before));
    LARDER_TRY(bench_compare_worst(stall->bench, out, ours, plain, stall));
    LARDER_TRY(bench_daemon_status(&stall->daemon, &after));
    bench_note(out, "2 MiB at 100/s; %llu evicted, %llu hits, %llu refused",
               (unsigned long long)(after.evicted_ssd - before.evicted_ssd),
               (unsigned long long)stall->hits, (unsigned long long)stall->refusals);
    return 0;
}

int row_stall(const struct bench *bench, struct bench_result *out)
{
    struct stall_bench stall = {
        .bench = bench, .daemon.pid = -1, .fd = -1, .ssd_bytes = bench->corpus_bytes};
    int err = stall_open(&stall);
    if (err == 0)
        err = measure_stalls(&stall, out);
    bench_client_close(&stall.client);
    bench_daemon_remove(&stall.daemon);
    if (stall.fd >= 0)
        close(stall.fd);
    bench_unmap(stall.fetched, stall.block_bytes);
    bench_unmap(stall.kv, stall.block_bytes);
    return err;
}
