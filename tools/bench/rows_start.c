/* SPDX-License-Identifier: Apache-2.0 */
/* How long a daemon with many entries takes to start, and what it keeps in memory for each. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "tools/bench/data.h"
#include "tools/bench/process.h"

/* Blocks of one token: the smallest entries there are, a page of the disk each. */
#define SETTINGS                                                                                   \
    "block_tokens = 1\nhost_bytes = 256M\nssd_bytes = 16G\nlog_level = warn\nrecipe = raw\n"
#define CHAIN_ENTRIES 1000u

struct start_bench {
    const struct bench *bench;
    struct bench_daemon daemon;
    uint64_t entry_count;
    double anon_bytes; /* of the daemon, after its last start */
};

static int store_chain(const struct bench_client *client, const struct larder_model_desc *model,
                       uint64_t seed, void *kv)
{
    uint32_t tokens[CHAIN_ENTRIES];
    struct larder_layout layout;
    const struct larder_prompt prompt = {.tokens = tokens, .token_count = CHAIN_ENTRIES};
    struct larder_put_options options = {.wait = LARDER_DURABLE};
    bench_fill_tokens(tokens, CHAIN_ENTRIES, seed, model);
    LARDER_TRY(
        bench_client_failed(larder_layout_plain(&layout, model, kv, CHAIN_ENTRIES), "layout"));
    struct larder_put_result result;
    int err;
    do {
        err = larder_put(client->model, &result, &prompt, &layout, &options);
        options.tokens_stored = result.tokens;
    } while (err == -EBUSY);
    return bench_client_failed(err, "put");
}

static int store_all(struct start_bench *start)
{
    struct larder_model_desc model;
    struct bench_client client;
    bench_model_small(&model);
    void *kv = larder_alloc_zero(CHAIN_ENTRIES, larder_model_kv_bytes(&model, 1));
    if (!kv)
        return larder_fail(-ENOMEM, "no memory");
    int err = bench_client_open(&client, &start->daemon, &model);
    for (uint64_t i = 0; err == 0 && i < start->entry_count / CHAIN_ENTRIES; i++)
        err = store_chain(&client, &model, i + 1, kv);
    if (err == 0)
        err = bench_daemon_settle(&start->daemon);
    bench_client_close(&client);
    larder_free(kv);
    return err;
}

/* LMDB's map is file memory and does not count. */
static int read_anon(const struct bench_daemon *daemon, double *bytes)
{
    char path[64];
    char line[128];
    unsigned long long kb = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)daemon->pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    while (fgets(line, sizeof(line), file) && sscanf(line, "RssAnon: %llu kB", &kb) != 1)
        continue;
    fclose(file);
    *bytes = (double)kb * 1024;
    return 0;
}

/* Microseconds an entry, from fork to the first answer. */
static int start_again(void *context, double *measure)
{
    struct start_bench *start = context;
    struct wire_admin_status_ok status;
    bench_daemon_stop(&start->daemon);
    double started = bench_now_s();
    LARDER_TRY(bench_daemon_start(start->bench, &start->daemon, "start", SETTINGS));
    *measure = (bench_now_s() - started) * 1e6 / (double)start->entry_count;
    LARDER_TRY(bench_daemon_status(&start->daemon, &status));
    if (status.entries != start->entry_count)
        return larder_fail(LARDER_ENOTFOUND, "%llu of %llu entries are there after a start",
                           (unsigned long long)status.entries,
                           (unsigned long long)start->entry_count);
    return read_anon(&start->daemon, &start->anon_bytes);
}

int row_start(const struct bench *bench, struct bench_result *out)
{
    struct start_bench start = {
        .bench = bench,
        .entry_count = bench->corpus_bytes >> 30 ? 1000000 : 10000,
    };
    double empty_bytes = 0;
    int err = bench_daemon_start(bench, &start.daemon, "start", SETTINGS);
    if (err == 0)
        err = read_anon(&start.daemon, &empty_bytes);
    if (err == 0)
        err = store_all(&start);
    if (err == 0)
        err = bench_measure(bench, out, start_again, &start);
    bench_note(out, "%llu entries; %.0f B of memory each", (unsigned long long)start.entry_count,
               (start.anon_bytes - empty_bytes) / (double)start.entry_count);
    bench_daemon_remove(&start.daemon);
    return err;
}
