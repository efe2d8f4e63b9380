/* SPDX-License-Identifier: Apache-2.0 */
/* Requests without data: a lookup of a long prompt, and the round trip of a short one. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/wire.h"
#include "tools/bench/data.h"
#include "tools/bench/process.h"

#define LONG_TOKENS  131072u
#define SHORT_TOKENS 16u
#define BLOCK_TOKENS LARDER_BLOCK_TOKENS_DEFAULT
#define SAMPLES_MAX  100000u

struct request_bench {
    const struct bench *bench;
    struct bench_daemon daemon;
    struct bench_client client;
    struct larder_model_desc model;
    struct larder_hasher *hasher;
    uint32_t *tokens;
    uint64_t token_count;
    int pong; /* the socket to a process that answers */
    pid_t ponger;
    double *samples;
};

static void request_close(struct request_bench *request)
{
    bench_client_close(&request->client);
    bench_daemon_remove(&request->daemon);
    larder_hasher_close(request->hasher);
    larder_free(request->tokens);
    larder_free(request->samples);
    if (request->pong >= 0)
        close(request->pong);
    if (request->ponger > 0)
        waitpid(request->ponger, NULL, 0);
}

/* A daemon with one stored prompt of that many tokens. */
static int request_open(const struct bench *bench, struct request_bench *out, uint64_t token_count)
{
    *out = (struct request_bench){.bench = bench, .daemon.pid = -1, .pong = -1};
    bench_model_small(&out->model);
    out->token_count = token_count;
    out->tokens = larder_alloc(token_count * sizeof(*out->tokens));
    out->samples = larder_alloc(SAMPLES_MAX * sizeof(*out->samples));
    void *kv = larder_alloc_zero(token_count, larder_model_kv_bytes(&out->model, 1));
    int err = out->tokens && out->samples && kv ? 0 : larder_fail(-ENOMEM, "no memory");
    if (err == 0)
        err = bench_daemon_start(bench, &out->daemon, "request",
                                 "host_bytes = 256M\nssd_bytes = 1G\nlog_level = warn\n");
    if (err == 0)
        err = bench_client_open(&out->client, &out->daemon, &out->model);
    if (err == 0) {
        struct larder_layout layout;
        struct larder_put_result result;
        const struct larder_prompt prompt = {.tokens = out->tokens, .token_count = token_count};
        const struct larder_put_options options = {.wait = LARDER_DURABLE};
        bench_fill_tokens(out->tokens, token_count, 1, &out->model);
        err = larder_layout_plain(&layout, &out->model, kv, token_count);
        if (err == 0)
            err = larder_put(out->client.model, &result, &prompt, &layout, &options);
        err = bench_client_failed(err, "put");
    }
    larder_free(kv);
    if (err < 0)
        request_close(out);
    return err;
}

/* Microseconds, p50. */
static int sample(struct request_bench *request, int (*once)(struct request_bench *),
                  double *measure)
{
    double until = bench_now_s() + request->bench->seconds;
    size_t count = 0;
    while (count < SAMPLES_MAX && (count == 0 || bench_now_s() < until)) {
        double started = bench_now_s();
        LARDER_TRY(once(request));
        request->samples[count++] = (bench_now_s() - started) * 1e6;
    }
    *measure = bench_median(request->samples, count);
    return 0;
}

static int look_up(struct request_bench *request)
{
    struct larder_lookup_result result;
    const struct larder_prompt prompt = {.tokens = request->tokens,
                                         .token_count = request->token_count};
    LARDER_TRY(bench_client_failed(
        larder_lookup(request->client.model, &result, &prompt, LARDER_QUALITY_EXACT), "lookup"));
    if (result.tokens != request->token_count)
        return larder_fail(LARDER_ENOTFOUND, "lookup: %llu of %llu tokens are found",
                           (unsigned long long)result.tokens,
                           (unsigned long long)request->token_count);
    return 0;
}

static int lookup_samples(void *context, double *measure)
{
    return sample(context, look_up, measure);
}

/* --- a long prompt --------------------------------------------------------------------------- */

static int hash_prompt(struct request_bench *request)
{
    struct larder_key key = larder_key_root;
    for (uint64_t at = 0; at < request->token_count; at += BLOCK_TOKENS) {
        struct larder_key parent = key;
        LARDER_TRY(larder_hasher_block(request->hasher, &key, &parent, NULL, 0,
                                       request->tokens + at, BLOCK_TOKENS));
    }
    return 0;
}

static int hash_samples(void *context, double *measure)
{
    return sample(context, hash_prompt, measure);
}

int row_lookup(const struct bench *bench, struct bench_result *out)
{
    struct request_bench request;
    const uint8_t tenant_key[32] = {1};
    LARDER_TRY(request_open(bench, &request, LONG_TOKENS));
    int err = larder_hasher_open(&request.hasher, tenant_key, &larder_key_root);
    if (err == 0)
        err = bench_compare(bench, out, lookup_samples, hash_samples, &request);
    bench_note(out, "%u blocks, all stored", LONG_TOKENS / BLOCK_TOKENS);
    request_close(&request);
    return err;
}

/* --- a round trip ---------------------------------------------------------------------------- */

/* What a lookup of one key sends and gets. */
#define PING_BYTES                                                                                 \
    (sizeof(struct wire_frame) + sizeof(struct wire_keys) + sizeof(struct larder_key))
#define PONG_BYTES (sizeof(struct wire_frame) + sizeof(struct wire_lookup_ok))

static int start_ponger(struct request_bench *request)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return larder_fail(-errno, "socketpair: %s", strerror(errno));
    request->ponger = fork();
    if (request->ponger == 0) {
        char frame[PING_BYTES > PONG_BYTES ? PING_BYTES : PONG_BYTES] = {0};
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        close(ends[0]);
        while (recv(ends[1], frame, PING_BYTES, 0) > 0 &&
               send(ends[1], frame, PONG_BYTES, MSG_NOSIGNAL) > 0)
            continue;
        _exit(0);
    }
    close(ends[1]);
    request->pong = ends[0];
    return request->ponger < 0 ? larder_fail(-errno, "fork: %s", strerror(errno)) : 0;
}

static int ping(struct request_bench *request)
{
    char frame[PING_BYTES > PONG_BYTES ? PING_BYTES : PONG_BYTES] = {0};
    if (send(request->pong, frame, PING_BYTES, MSG_NOSIGNAL) != (ssize_t)PING_BYTES ||
        recv(request->pong, frame, PONG_BYTES, 0) != (ssize_t)PONG_BYTES)
        return larder_fail(-EIO, "ping-pong: %s", strerror(errno));
    return 0;
}

static int ping_samples(void *context, double *measure)
{
    return sample(context, ping, measure);
}

int row_round_trip(const struct bench *bench, struct bench_result *out)
{
    struct request_bench request;
    LARDER_TRY(request_open(bench, &request, SHORT_TOKENS));
    int err = start_ponger(&request);
    if (err == 0)
        err = bench_compare(bench, out, lookup_samples, ping_samples, &request);
    bench_note(out, "a lookup of %u tokens, hashing included", SHORT_TOKENS);
    request_close(&request);
    return err;
}
