/* SPDX-License-Identifier: Apache-2.0 */
/* Many clients at once beside one: what all of them get a second from the host tier, and how often
 * they look up. Each client is a thread with a connection of its own, a prompt of its own and
 * memory of its own; the one client beside them goes around the same prompts and the same memory,
 * so that caches help neither side. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "tools/bench/data.h"
#include "tools/bench/process.h"

#define CLIENTS_MAX   64u
#define PROMPT_TOKENS 64u /* 8 MiB of KV */

struct clients_bench;

struct client {
    struct clients_bench *all;
    struct bench_client connection;
    uint32_t tokens[PROMPT_TOKENS];
    char *memory;
    pthread_t thread;
    uint64_t done; /* its thread's, until joined */
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
};

struct clients_bench {
    const struct bench *bench;
    struct bench_daemon daemon;
    struct larder_model_desc model;
    uint32_t count;
    uint64_t prompt_bytes; /* of KV */
    char *memory;          /* of all clients */
    int (*once)(const struct client *client, const struct bench_client *connection);
    atomic_bool stop; /* relaxed: only ends loops */
    struct client clients[CLIENTS_MAX];
};

static struct larder_prompt prompt_of(const struct client *client)
{
    return (struct larder_prompt){.tokens = client->tokens, .token_count = PROMPT_TOKENS};
}

static int get_one(const struct client *client, const struct bench_client *connection)
{
    struct larder_layout layout;
    struct larder_get_result result;
    const struct larder_prompt prompt = prompt_of(client);
    LARDER_TRY(bench_client_failed(
        larder_layout_plain(&layout, &client->all->model, client->memory, PROMPT_TOKENS),
        "layout"));
    LARDER_TRY(
        bench_client_failed(larder_get(connection->model, &result, &prompt, &layout, NULL), "get"));
    if (result.tokens != PROMPT_TOKENS || result.bytes_ssd != 0)
        return larder_fail(LARDER_ENOTFOUND, "get: %llu of %u tokens, %llu bytes from SSD",
                           (unsigned long long)result.tokens, PROMPT_TOKENS,
                           (unsigned long long)result.bytes_ssd);
    return 0;
}

static int look_up_one(const struct client *client, const struct bench_client *connection)
{
    struct larder_lookup_result result;
    const struct larder_prompt prompt = prompt_of(client);
    LARDER_TRY(bench_client_failed(
        larder_lookup(connection->model, &result, &prompt, LARDER_QUALITY_EXACT), "lookup"));
    return result.tokens == PROMPT_TOKENS ? 0
                                          : larder_fail(LARDER_ENOTFOUND, "lookup: %llu tokens",
                                                        (unsigned long long)result.tokens);
}

/* --- rounds ----------------------------------------------------------------------------------- */

static void *client_main(void *argument)
{
    struct client *client = argument;
    struct clients_bench *all = client->all;
    while (client->err == 0 && !atomic_load_explicit(&all->stop, memory_order_relaxed)) {
        client->err = all->once(client, &client->connection);
        client->done++;
    }
    if (client->err < 0)
        snprintf(client->message, sizeof(client->message), "%s", larder_error_message());
    return NULL;
}

/* Times a second, all clients together. */
static int together(void *context, double *measure)
{
    struct clients_bench *all = context;
    atomic_store_explicit(&all->stop, false, memory_order_relaxed);
    double started = bench_now_s();
    uint32_t count = 0;
    int err = 0;
    for (; count < all->count && err == 0; count++) {
        all->clients[count].done = 0;
        err = -pthread_create(&all->clients[count].thread, NULL, client_main, &all->clients[count]);
        if (err < 0)
            break;
    }
    const double pause_s = all->bench->seconds;
    const struct timespec pause = {.tv_sec = (time_t)pause_s,
                                   .tv_nsec = (long)((pause_s - (double)(time_t)pause_s) * 1e9)};
    if (err == 0)
        nanosleep(&pause, NULL);
    atomic_store_explicit(&all->stop, true, memory_order_relaxed);
    uint64_t done = 0;
    if (err < 0)
        (void)larder_fail(err, "starting %u threads: %s", all->count, strerror(-err));
    for (uint32_t i = 0; i < count; i++) {
        const struct client *client = &all->clients[i];
        pthread_join(client->thread, NULL);
        done += client->done;
        if (client->err < 0)
            err = larder_fail(client->err, "%s", client->message);
    }
    *measure = (double)done / (bench_now_s() - started);
    return err;
}

/* The first client does the work of all in turns. */
static int alone(void *context, double *measure)
{
    struct clients_bench *all = context;
    double started = bench_now_s();
    uint64_t done = 0;
    do {
        for (uint32_t i = 0; i < all->count; i++, done++)
            LARDER_TRY(all->once(&all->clients[i], &all->clients[0].connection));
    } while (bench_now_s() < started + all->bench->seconds);
    *measure = (double)done / (bench_now_s() - started);
    return 0;
}

/* --- setting up ------------------------------------------------------------------------------- */

static void clients_close(struct clients_bench *all)
{
    for (uint32_t i = 0; i < all->count; i++)
        bench_client_close(&all->clients[i].connection);
    bench_daemon_remove(&all->daemon);
    bench_unmap(all->memory, all->count * all->prompt_bytes);
    larder_free(all);
}

static int open_client(struct clients_bench *all, uint32_t index)
{
    struct client *client = &all->clients[index];
    struct larder_layout layout;
    struct larder_put_result result;
    const struct larder_prompt prompt = prompt_of(client);
    const struct larder_put_options durable = {.wait = LARDER_DURABLE};
    client->all = all;
    client->memory = all->memory + index * all->prompt_bytes;
    bench_fill_tokens(client->tokens, PROMPT_TOKENS, index + 1, &all->model);
    LARDER_TRY(bench_client_open(&client->connection, &all->daemon, &all->model));
    LARDER_TRY(bench_client_failed(
        larder_layout_plain(&layout, &all->model, client->memory, PROMPT_TOKENS), "layout"));
    LARDER_TRY(bench_client_failed(
        larder_put(client->connection.model, &result, &prompt, &layout, &durable), "put"));
    /* What a first get maps and touches is not what is measured; `alone` maps all of it too. */
    LARDER_TRY(get_one(client, &client->connection));
    return get_one(client, &all->clients[0].connection);
}

static int clients_open(const struct bench *bench, struct clients_bench **out, uint32_t count)
{
    struct clients_bench *all = larder_alloc_zero(1, sizeof(*all));
    *out = NULL;
    if (!all)
        return larder_fail(-ENOMEM, "no memory");
    all->bench = bench;
    all->daemon.pid = -1;
    bench_model_large(&all->model);
    all->prompt_bytes = larder_model_kv_bytes(&all->model, PROMPT_TOKENS);
    void *memory;
    int err = bench_map(&memory, count * all->prompt_bytes);
    if (err < 0) {
        larder_free(all);
        return err;
    }
    all->memory = memory;
    all->count = count;
    bench_fill_kv(memory, count * all->prompt_bytes / 2, all->model.kv_heads * all->model.k_dims,
                  1);
    err = bench_daemon_start(bench, &all->daemon, "clients",
                             "host_bytes = 1G\nssd_bytes = 4G\nlog_level = warn\nrecipe = raw\n");
    for (uint32_t i = 0; err == 0 && i < count; i++)
        err = open_client(all, i);
    if (err < 0) {
        clients_close(all);
        return err;
    }
    *out = all;
    return 0;
}

static int run(const struct bench *bench, struct bench_result *out, uint32_t count,
               int (*once)(const struct client *, const struct bench_client *), double scale)
{
    struct clients_bench *all;
    LARDER_TRY(clients_open(bench, &all, count));
    all->once = once;
    int err = bench_compare(bench, out, together, alone, all);
    const double each = scale > 0 ? scale : (double)all->prompt_bytes / 1e9;
    out->value *= each;
    out->plain *= each;
    clients_close(all);
    return err;
}

int row_clients_8(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, 8, get_one, 0);
}

int row_clients_64(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, CLIENTS_MAX, get_one, 0);
}

int row_lookups_8(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, 8, look_up_one, 1e-3);
}

int row_lookups_64(const struct bench *bench, struct bench_result *out)
{
    return run(bench, out, CLIENTS_MAX, look_up_one, 1e-3);
}
