/* SPDX-License-Identifier: Apache-2.0 */
/* GETs from the host tier: one prompt of distinct blocks, tokens verified, one thread. */
#include "tools/bench/rows.h"

#include <stdio.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tools/bench/corpus.h"
#include "tools/bench/process.h"

struct host_bench {
    struct bench_daemon daemon;
    struct bench_client client;
    struct corpus corpus;
};

static void host_close(struct host_bench *host)
{
    bench_client_close(&host->client);
    bench_daemon_remove(&host->daemon);
    corpus_close(&host->corpus);
}

/* A daemon whose host tier holds the corpus, and with nothing left to write. */
static int host_open(const struct bench *bench, struct host_bench *out, const char *recipe)
{
    *out = (struct host_bench){.daemon.pid = -1};
    char settings[256];
    snprintf(settings, sizeof(settings),
             "host_bytes = %lluM\nssd_bytes = 16G\nlog_level = warn\nrecipe = %s\n",
             (unsigned long long)(bench->corpus_bytes >> 20) * 5 / 4 + 512, recipe);
    LARDER_TRY(corpus_open(&out->corpus, bench->corpus_bytes, 1));
    int err = bench_daemon_start(bench, &out->daemon, "host", settings);
    if (err == 0)
        err = bench_client_open(&out->client, &out->daemon, &out->corpus.model);
    if (err == 0)
        err = corpus_put(&out->corpus, &out->client, NULL, LARDER_CACHED);
    if (err == 0)
        err = bench_daemon_settle(&out->daemon);
    if (err < 0)
        host_close(out);
    return err;
}

static int get_all(void *context, double *measure)
{
    struct host_bench *host = context;
    struct larder_get_result result;
    double started = bench_now_s();
    LARDER_TRY(corpus_get(&host->corpus, &host->client, &result));
    *measure = (double)host->corpus.kv_bytes / 1e9 / (bench_now_s() - started);
    if (result.bytes_ssd != 0)
        return larder_fail(LARDER_ENOTFOUND, "%llu bytes came from SSD: host_bytes is too small",
                           (unsigned long long)result.bytes_ssd);
    return 0;
}

/* The same over a connection that has not mapped any slab yet. */
static int get_all_anew(void *context, double *measure)
{
    struct host_bench *host = context;
    bench_client_close(&host->client);
    LARDER_TRY(bench_client_open(&host->client, &host->daemon, &host->corpus.model));
    return get_all(host, measure);
}

static int copy_all(void *context, double *measure)
{
    struct host_bench *host = context;
    *measure = corpus_copy(&host->corpus);
    return 0;
}

static int run(const struct bench *bench, struct bench_result *out, const char *recipe,
               bench_side ours, bench_side plain)
{
    struct host_bench host;
    LARDER_TRY(host_open(bench, &host, recipe));
    double first;
    int err = get_all(&host, &first);
    if (err == 0)
        err = corpus_check(&host.corpus);
    if (err == 0)
        err = plain ? bench_compare(bench, out, ours, plain, &host)
                    : bench_measure(bench, out, ours, &host);
    char human[16];
    bench_note(out, "%s in %llu tokens", larder_human_bytes(human, host.corpus.kv_bytes),
               (unsigned long long)host.corpus.token_count);
    host_close(&host);
    return err;
}

int row_get_host(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, "raw", get_all, copy_all);
}

int row_get_host_first(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, "raw", get_all_anew, copy_all);
}

int row_get_host_exact(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, "exact", get_all, NULL);
}
