/* SPDX-License-Identifier: Apache-2.0 */
/* What goes to and comes from the disk. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/bench/corpus.h"
#include "tools/bench/data.h"
#include "tools/bench/disk.h"
#include "tools/bench/process.h"

struct ssd_bench {
    const struct bench *bench;
    struct bench_daemon daemon;
    struct bench_client client;
    struct corpus corpus;
    uint64_t prompt; /* the seed of the last one */
    uint64_t sync_bytes;
};

enum ssd_kind {
    SSD_PLAIN,
    SSD_ENCRYPTED,
};

/* Any key will do. */
static int make_key(const char *path)
{
    const uint8_t key[32] = {1};
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = fd >= 0 && write(fd, key, sizeof(key)) == (ssize_t)sizeof(key);
    int err = good ? 0 : larder_fail(-errno, "%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return err;
}

static void ssd_close(struct ssd_bench *ssd)
{
    bench_client_close(&ssd->client);
    bench_daemon_remove(&ssd->daemon);
    corpus_close(&ssd->corpus);
}

/* Staging is sized for the model: eight of its blocks in flight. With less, gathering, encoding and
 * writing take turns instead of going on together. */
static int ssd_open(const struct bench *bench, struct ssd_bench *out, enum ssd_kind kind,
                    uint64_t corpus_bytes, uint64_t host_bytes)
{
    *out = (struct ssd_bench){.bench = bench, .daemon.pid = -1};
    char settings[640];
    int bytes =
        snprintf(settings, sizeof(settings),
                 "host_bytes = %llu\nslab_bytes = %llu\nssd_bytes = 32G\nstaging_bytes_max = 320M\n"
                 "log_level = warn\nrecipe = raw\n",
                 (unsigned long long)host_bytes, (unsigned long long)host_bytes);
    char key[300];
    snprintf(key, sizeof(key), "%s/key", bench->directory);
    if (kind == SSD_ENCRYPTED) {
        LARDER_TRY(make_key(key));
        snprintf(settings + bytes, sizeof(settings) - (size_t)bytes, "key_file = %s\n", key);
    }
    LARDER_TRY(corpus_open(&out->corpus, corpus_bytes, 1));
    int err = bench_daemon_start(bench, &out->daemon, kind == SSD_ENCRYPTED ? "encrypted" : "ssd",
                                 settings);
    if (err == 0)
        err = bench_client_open(&out->client, &out->daemon, &out->corpus.model);
    if (err < 0)
        ssd_close(out);
    return err;
}

/* --- get ------------------------------------------------------------------------------------- */

#define RANGES_MAX 4096

struct get_bench {
    struct ssd_bench ssd;
    struct disk_range ranges[RANGES_MAX];
    size_t range_count;
};

/* Two prompts are stored and the host tier holds one: each GET finds the other one there, and reads
 * into memory that was in use before, as in a daemon that has run for a while. */
static void turn_to_other(struct ssd_bench *ssd)
{
    ssd->prompt = 3 - ssd->prompt;
    corpus_rename(&ssd->corpus, ssd->prompt);
}

static int get_other(void *context, double *measure)
{
    struct get_bench *get = context;
    struct ssd_bench *ssd = &get->ssd;
    struct larder_get_result result;
    turn_to_other(ssd);
    double started = bench_now_s();
    LARDER_TRY(corpus_get(&ssd->corpus, &ssd->client, &result));
    *measure = (double)result.bytes_ssd / 1e9 / (bench_now_s() - started);
    if (result.bytes_ssd < result.bytes / 10 * 9)
        return larder_fail(LARDER_EEXISTS, "only %llu of %llu bytes came from SSD",
                           (unsigned long long)result.bytes_ssd, (unsigned long long)result.bytes);
    return 0;
}

/* The same segments, into shared memory that is there already. */
static int read_plain(void *context, double *measure)
{
    struct get_bench *get = context;
    uint64_t bytes = 0;
    for (size_t i = 0; i < get->range_count; i++)
        bytes += get->ranges[i].bytes;
    double started = bench_now_s();
    LARDER_TRY(disk_read(get->ssd.corpus.kv, get->ranges, get->range_count));
    *measure = (double)bytes / 1e9 / (bench_now_s() - started);
    return 0;
}

static void get_close(struct get_bench *get)
{
    disk_close_ranges(get->ranges, get->range_count);
    ssd_close(&get->ssd);
}

static int store_two(struct get_bench *get)
{
    struct ssd_bench *ssd = &get->ssd;
    for (ssd->prompt = 1; ssd->prompt <= 2; ssd->prompt++) {
        corpus_rename(&ssd->corpus, ssd->prompt);
        LARDER_TRY(corpus_put(&ssd->corpus, &ssd->client, NULL, LARDER_DURABLE));
    }
    ssd->prompt = 2;
    /* Both are read before anything is measured, twice, until the tier holds one of them only; what
     * came back is compared while the memory it is compared with is still the source. */
    LARDER_TRY(bench_daemon_settle(&ssd->daemon));
    for (int i = 0; i < 4; i++) {
        struct larder_get_result ignored;
        turn_to_other(ssd);
        LARDER_TRY(corpus_get(&ssd->corpus, &ssd->client, &ignored));
        LARDER_TRY(corpus_check(&ssd->corpus));
    }
    char folder[400];
    snprintf(folder, sizeof(folder), "%s/segments", ssd->daemon.store);
    return disk_open_ranges(get->ranges, &get->range_count, RANGES_MAX, folder,
                            ssd->corpus.kv_bytes);
}

/* One slab with room for one prompt: 32 MiB a block, and a little for heads and slots. */
static int get_open(const struct bench *bench, struct get_bench *get, enum ssd_kind kind)
{
    LARDER_TRY(
        ssd_open(bench, &get->ssd, kind, bench->corpus_bytes, bench->corpus_bytes + (2u << 20)));
    int err = store_two(get);
    if (err < 0)
        get_close(get);
    return err;
}

struct two_gets {
    struct get_bench encrypted;
    struct get_bench plain;
};

static int get_encrypted(void *context, double *measure)
{
    return get_other(&((struct two_gets *)context)->encrypted, measure);
}

static int get_unencrypted(void *context, double *measure)
{
    return get_other(&((struct two_gets *)context)->plain, measure);
}

int row_get_ssd_encrypted(const struct bench *bench, struct bench_result *out)
{
    struct two_gets *two = larder_alloc_zero(1, sizeof(*two));
    if (!two)
        return larder_fail(-ENOMEM, "no memory");
    int err = get_open(bench, &two->encrypted, SSD_ENCRYPTED);
    if (err == 0) {
        err = get_open(bench, &two->plain, SSD_PLAIN);
        if (err == 0) {
            err = bench_compare(bench, out, get_encrypted, get_unencrypted, two);
            get_close(&two->plain);
        }
        get_close(&two->encrypted);
    }
    larder_free(two);
    return err;
}

int row_get_ssd(const struct bench *bench, struct bench_result *out)
{
    struct get_bench *get = larder_alloc_zero(1, sizeof(*get));
    if (!get)
        return larder_fail(-ENOMEM, "no memory");
    int err = get_open(bench, get, SSD_PLAIN);
    if (err == 0) {
        err = bench_compare(bench, out, get_other, read_plain, get);
        get_close(get);
    }
    larder_free(get);
    bench_note(out, "requests of 1 MiB, depth %u", DISK_DEPTH);
    return err;
}

/* --- put ------------------------------------------------------------------------------------- */

static int put_new(void *context, double *measure)
{
    struct ssd_bench *ssd = context;
    corpus_rename(&ssd->corpus, ++ssd->prompt);
    double started = bench_now_s();
    LARDER_TRY(corpus_put(&ssd->corpus, &ssd->client, NULL, LARDER_DURABLE));
    *measure = (double)ssd->corpus.kv_bytes / 1e9 / (bench_now_s() - started);
    return 0;
}

/* As many bytes with as many bytes to an fdatasync, from memory to a preallocated file. */
static int write_plain(void *context, double *measure)
{
    struct ssd_bench *ssd = context;
    struct wire_admin_status_ok status;
    LARDER_TRY(bench_daemon_status(&ssd->daemon, &status));
    uint64_t group = status.bytes_written / (status.synced_groups ? status.synced_groups : 1);
    ssd->sync_bytes = larder_round_up(group ? group : DISK_REQUEST_BYTES, LARDER_PAGE_BYTES);
    char path[300];
    snprintf(path, sizeof(path), "%s/plain", ssd->bench->directory);
    int fd;
    LARDER_TRY(disk_create(&fd, path, ssd->corpus.kv_bytes));
    double started = bench_now_s();
    int err = disk_write(fd, ssd->corpus.kv, ssd->corpus.kv_bytes, ssd->sync_bytes);
    *measure = (double)ssd->corpus.kv_bytes / 1e9 / (bench_now_s() - started);
    close(fd);
    return err;
}

int row_put_durable(const struct bench *bench, struct bench_result *out)
{
    struct ssd_bench ssd;
    double ignored;
    LARDER_TRY(ssd_open(bench, &ssd, SSD_PLAIN, bench->corpus_bytes / 2, bench->corpus_bytes));
    /* Once before: the first touch of staging and slabs. */
    int err = put_new(&ssd, &ignored);
    if (err == 0)
        err = bench_compare(bench, out, put_new, write_plain, &ssd);
    bench_note(out, "%.1f MB to an fdatasync", (double)ssd.sync_bytes / 1e6);
    ssd_close(&ssd);
    return err;
}

struct two_puts {
    struct ssd_bench encrypted;
    struct ssd_bench plain;
};

static int put_encrypted(void *context, double *measure)
{
    return put_new(&((struct two_puts *)context)->encrypted, measure);
}

static int put_unencrypted(void *context, double *measure)
{
    return put_new(&((struct two_puts *)context)->plain, measure);
}

int row_put_durable_encrypted(const struct bench *bench, struct bench_result *out)
{
    struct two_puts two;
    double ignored;
    LARDER_TRY(ssd_open(bench, &two.encrypted, SSD_ENCRYPTED, bench->corpus_bytes / 2,
                        bench->corpus_bytes));
    int err = ssd_open(bench, &two.plain, SSD_PLAIN, bench->corpus_bytes / 2, bench->corpus_bytes);
    if (err == 0) {
        err = put_encrypted(&two, &ignored);
        if (err == 0)
            err = put_unencrypted(&two, &ignored);
        if (err == 0)
            err = bench_compare(bench, out, put_encrypted, put_unencrypted, &two);
        ssd_close(&two.plain);
    }
    ssd_close(&two.encrypted);
    return err;
}

/* --- one small put --------------------------------------------------------------------------- */

#define SMALL_TOKENS   16u
#define SAMPLES_MAX    20000u
#define PLAIN_FILE     (64u << 20)
#define SMALL_KV_BYTES (SMALL_TOKENS * 64u)

struct small_bench {
    const struct bench *bench;
    struct bench_daemon daemon;
    struct bench_client client;
    struct larder_model_desc model;
    uint64_t prompt;
    uint64_t page;
    int fd;
    void *page_bytes;
    double samples[SAMPLES_MAX];
};

static int put_small(struct small_bench *small)
{
    uint32_t tokens[SMALL_TOKENS];
    uint8_t kv[SMALL_KV_BYTES] = {1};
    struct larder_layout layout;
    struct larder_put_result result;
    const struct larder_prompt prompt = {.tokens = tokens, .token_count = SMALL_TOKENS};
    const struct larder_put_options options = {.wait = LARDER_DURABLE};
    bench_fill_tokens(tokens, SMALL_TOKENS, ++small->prompt, &small->model);
    LARDER_TRY(bench_client_failed(larder_layout_plain(&layout, &small->model, kv, SMALL_TOKENS),
                                   "layout"));
    return bench_client_failed(larder_put(small->client.model, &result, &prompt, &layout, &options),
                               "put");
}

static int write_small(struct small_bench *small)
{
    uint64_t page = small->page++ % (PLAIN_FILE / LARDER_PAGE_BYTES);
    return disk_write_page(small->fd, small->page_bytes, page);
}

/* Microseconds, p50. */
static int sample(struct small_bench *small, int (*once)(struct small_bench *), double *measure)
{
    double until = bench_now_s() + small->bench->seconds;
    size_t count = 0;
    while (count < SAMPLES_MAX && (count == 0 || bench_now_s() < until)) {
        double started = bench_now_s();
        LARDER_TRY(once(small));
        small->samples[count++] = (bench_now_s() - started) * 1e6;
    }
    *measure = bench_median(small->samples, count);
    return 0;
}

static int put_samples(void *context, double *measure)
{
    return sample(context, put_small, measure);
}

static int write_samples(void *context, double *measure)
{
    return sample(context, write_small, measure);
}

static int small_open(const struct bench *bench, struct small_bench *out)
{
    out->bench = bench;
    out->daemon.pid = -1;
    bench_model_small(&out->model);
    out->page_bytes = larder_alloc_aligned(LARDER_PAGE_BYTES, LARDER_PAGE_BYTES);
    if (!out->page_bytes)
        return larder_fail(-ENOMEM, "no memory");
    memset(out->page_bytes, 1, LARDER_PAGE_BYTES);
    char path[300];
    snprintf(path, sizeof(path), "%s/plain", bench->directory);
    LARDER_TRY(disk_create(&out->fd, path, PLAIN_FILE));
    LARDER_TRY(bench_daemon_start(bench, &out->daemon, "small",
                                  "host_bytes = 256M\nssd_bytes = 4G\nlog_level = warn\n"));
    return bench_client_open(&out->client, &out->daemon, &out->model);
}

int row_put_small(const struct bench *bench, struct bench_result *out)
{
    struct small_bench *small = larder_alloc_zero(1, sizeof(*small));
    if (!small)
        return larder_fail(-ENOMEM, "no memory");
    small->fd = -1;
    int err = small_open(bench, small);
    if (err == 0)
        err = put_small(small);
    if (err == 0)
        err = bench_compare(bench, out, put_samples, write_samples, small);
    bench_note(out, "one block of %u tokens, %u bytes", SMALL_TOKENS, SMALL_KV_BYTES);
    bench_client_close(&small->client);
    bench_daemon_remove(&small->daemon);
    if (small->fd >= 0)
        close(small->fd);
    larder_free(small->page_bytes);
    larder_free(small);
    return err;
}
