/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/bench/corpus.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "tools/bench/data.h"

#define PUT_RETRY_S 60.0

static int map_shared(void **out, uint64_t bytes)
{
    *out = NULL;
    int fd = memfd_create("larder-bench", MFD_CLOEXEC);
    if (fd < 0)
        return larder_fail(-errno, "memfd_create: %s", strerror(errno));
    int err = ftruncate(fd, (off_t)bytes) < 0 ? -errno : 0;
    if (err == 0) {
        *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
        err = *out == MAP_FAILED ? -errno : 0;
    }
    close(fd);
    if (err < 0) {
        *out = NULL;
        return larder_fail(err, "%llu MiB of shared memory: %s; --quick needs an eighth",
                           (unsigned long long)(bytes >> 20), strerror(-err));
    }
    return 0;
}

int corpus_open(struct corpus *out, uint64_t bytes, uint64_t seed)
{
    *out = (struct corpus){0};
    bench_model_large(&out->model);
    out->token_count = bytes / larder_model_kv_bytes(&out->model, 1);
    out->kv_bytes = larder_model_kv_bytes(&out->model, out->token_count);
    out->tokens = larder_alloc(out->token_count * sizeof(*out->tokens));
    int err = out->tokens ? 0 : larder_fail(-ENOMEM, "no memory for tokens");
    if (err == 0)
        err = map_shared(&out->kv, out->kv_bytes);
    if (err == 0)
        err = bench_map(&out->fetched, out->kv_bytes);
    if (err < 0) {
        corpus_close(out);
        return err;
    }
    corpus_rename(out, seed);
    bench_fill_kv(out->kv, out->kv_bytes / 2, out->model.kv_heads * out->model.k_dims, seed);
    return 0;
}

void corpus_close(struct corpus *corpus)
{
    bench_unmap(corpus->fetched, corpus->kv_bytes);
    bench_unmap(corpus->kv, corpus->kv_bytes);
    larder_free(corpus->tokens);
}

void corpus_rename(struct corpus *corpus, uint64_t seed)
{
    bench_fill_tokens(corpus->tokens, corpus->token_count, seed, &corpus->model);
}

static struct larder_prompt prompt_of(const struct corpus *corpus)
{
    return (struct larder_prompt){.tokens = corpus->tokens, .token_count = corpus->token_count};
}

int corpus_put(const struct corpus *corpus, const struct bench_client *client, const char *recipe,
               enum larder_wait wait)
{
    struct larder_layout layout;
    const struct larder_prompt prompt = prompt_of(corpus);
    struct larder_put_options options = {.wait = wait, .recipe = recipe};
    LARDER_TRY(bench_client_failed(
        larder_layout_plain(&layout, &corpus->model, corpus->kv, corpus->token_count), "layout"));
    double until = bench_now_s() + PUT_RETRY_S;
    for (;;) {
        struct larder_put_result result;
        int err = larder_put(client->model, &result, &prompt, &layout, &options);
        if (err == 0 && result.tokens == corpus->token_count)
            return 0;
        if (err == 0)
            return larder_fail(-EIO, "put: %llu of %llu tokens are stored",
                               (unsigned long long)result.tokens,
                               (unsigned long long)corpus->token_count);
        if (err != -EBUSY || bench_now_s() > until)
            return bench_client_failed(err, "put");
        options.tokens_stored = result.tokens;
        const struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
}

int corpus_get(const struct corpus *corpus, const struct bench_client *client,
               struct larder_get_result *result)
{
    struct larder_layout layout;
    const struct larder_prompt prompt = prompt_of(corpus);
    LARDER_TRY(bench_client_failed(
        larder_layout_plain(&layout, &corpus->model, corpus->fetched, corpus->token_count),
        "layout"));
    int err = larder_get(client->model, result, &prompt, &layout, NULL);
    if (err < 0)
        return bench_client_failed(err, "get");
    if (result->tokens != corpus->token_count)
        return larder_fail(
            LARDER_ENOTFOUND, "get: %llu of %llu tokens came back, then status %u: %s",
            (unsigned long long)result->tokens, (unsigned long long)corpus->token_count,
            result->stop_status, larder_strerror(result->stop_error));
    return 0;
}

int corpus_check(const struct corpus *corpus)
{
    if (memcmp(corpus->kv, corpus->fetched, corpus->kv_bytes) != 0)
        return larder_fail(LARDER_ECORRUPT, "what was fetched is not what was stored");
    return 0;
}

double corpus_copy(const struct corpus *corpus)
{
    double started = bench_now_s();
    memcpy(corpus->fetched, corpus->kv, corpus->kv_bytes);
    return (double)corpus->kv_bytes / 1e9 / (bench_now_s() - started);
}
