/* SPDX-License-Identifier: Apache-2.0 */
/* rows_blend.c - time to the first token of a prompt of twelve chunks that were computed apart:
 * loaded from the disk, moved and repaired; beside a prefill of the same prompt by the same model.
 *
 * The model is a made-up one of 24 layers, since only the time is looked at: with few layers those
 * before a check layer, which run in full, would be most of it. The chunks lie in a plain file,
 * layer by layer, and are read with O_DIRECT as each layer is next.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/blend/blend.h"
#include "kernels/llama.h"
#include "tools/bench/data.h"
#include "tools/bench/disk.h"
#include "tools/bench/rows.h"

#define LAYERS        24u
#define CHUNKS        12u
#define SUFFIX_TOKENS 32u
#define VOCAB         256u
#define HEAD_DIMS     64u
#define HEADER_BYTES  (1u << 16)

struct blend_bench {
    const char *method;
    uint32_t hidden; /* four to six times fewer in a quick look */
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t feedforward;
    uint32_t chunk_tokens;
    uint32_t token_count;
    struct larder_device *device;
    struct larder_llama *model;
    struct larder_kv_cache *cache;
    struct larder_blend *blend;
    uint32_t *tokens;
    float *logits;
    void *layer; /* as it was read */
    int fd;      /* all layers, as in a cache */
    double share;
};

/* --- a model on the disk --------------------------------------------------------------------- */

struct weights {
    FILE *file;
    char header[HEADER_BYTES];
    size_t header_bytes;
    uint64_t data_bytes;
};

static void name_tensor(struct weights *weights, const char *name, uint64_t rows, uint64_t columns)
{
    uint64_t bytes = rows * columns * sizeof(uint16_t);
    char shape[64];
    if (rows > 1)
        snprintf(shape, sizeof(shape), "%" PRIu64 ",%" PRIu64, rows, columns);
    else
        snprintf(shape, sizeof(shape), "%" PRIu64, columns);
    weights->header_bytes += (size_t)snprintf(
        weights->header + weights->header_bytes, HEADER_BYTES - weights->header_bytes,
        "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
        weights->data_bytes ? "," : "{", name, shape, weights->data_bytes,
        weights->data_bytes + bytes);
    weights->data_bytes += bytes;
}

/* Random numbers of the mean square 1 / columns, so that sums stay near 1; ones for a norm. */
static bool write_tensor(FILE *file, uint64_t rows, uint64_t columns, uint64_t *state)
{
    uint16_t row[8192];
    float scale = rows > 1 ? sqrtf(3.0f / (float)columns) : 0;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; i < columns; i++) {
            *state = *state * 6364136223846793005u + 1442695040888963407u;
            float x = rows > 1 ? ((float)(*state >> 40) / 0x1p23f - 1) * scale : 1;
            uint32_t bits;
            memcpy(&bits, &x, sizeof(bits));
            row[i] = (uint16_t)(bits >> 16);
        }
        if (fwrite(row, sizeof(*row), columns, file) != columns)
            return false;
    }
    return true;
}

/* Calls for each tensor of the model, in the order of the file. */
static bool each_tensor(const struct blend_bench *bench, struct weights *weights, bool write)
{
    uint64_t state = 1;
    const uint64_t q = (uint64_t)bench->heads * HEAD_DIMS;
    const uint64_t kv = (uint64_t)bench->kv_heads * HEAD_DIMS;
    const struct {
        const char *name;
        uint64_t rows;
        uint64_t columns;
    } parts[] = {
        {"input_layernorm", 1, bench->hidden},
        {"post_attention_layernorm", 1, bench->hidden},
        {"self_attn.q_proj", q, bench->hidden},
        {"self_attn.k_proj", kv, bench->hidden},
        {"self_attn.v_proj", kv, bench->hidden},
        {"self_attn.o_proj", bench->hidden, q},
        {"mlp.gate_proj", bench->feedforward, bench->hidden},
        {"mlp.up_proj", bench->feedforward, bench->hidden},
        {"mlp.down_proj", bench->hidden, bench->feedforward},
    };
    bool good = true;
    if (write)
        good = write_tensor(weights->file, VOCAB, bench->hidden, &state) &&
               write_tensor(weights->file, 1, bench->hidden, &state);
    else {
        name_tensor(weights, "model.embed_tokens.weight", VOCAB, bench->hidden);
        name_tensor(weights, "model.norm.weight", 1, bench->hidden);
    }
    for (uint32_t i = 0; good && i < LAYERS * LARDER_COUNT_OF(parts); i++) {
        uint32_t part = i % LARDER_COUNT_OF(parts);
        char name[96];
        snprintf(name, sizeof(name), "model.layers.%u.%s.weight",
                 i / (uint32_t)LARDER_COUNT_OF(parts), parts[part].name);
        if (write)
            good = write_tensor(weights->file, parts[part].rows, parts[part].columns, &state);
        else
            name_tensor(weights, name, parts[part].rows, parts[part].columns);
    }
    return good;
}

static int write_model(const struct blend_bench *bench, const char *directory)
{
    char path[384];
    if (mkdir(directory, 0700) < 0 && errno != EEXIST)
        return larder_fail(-errno, "cannot make '%s'", directory);
    snprintf(path, sizeof(path), "%s/config.json", directory);
    FILE *file = fopen(path, "w");
    if (!file)
        return larder_fail(-errno, "cannot write '%s'", path);
    bool good = fprintf(file,
                        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\","
                        " \"vocab_size\": %u, \"hidden_size\": %u, \"intermediate_size\": %u,"
                        " \"num_hidden_layers\": %u, \"num_attention_heads\": %u,"
                        " \"num_key_value_heads\": %u, \"head_dim\": %u, \"rms_norm_eps\": 1e-5,"
                        " \"max_position_embeddings\": 8192, \"rope_theta\": 10000.0,"
                        " \"tie_word_embeddings\": true, \"hidden_act\": \"silu\"}\n",
                        VOCAB, bench->hidden, bench->feedforward, LAYERS, bench->heads,
                        bench->kv_heads, HEAD_DIMS) > 0;
    good = fclose(file) == 0 && good;

    struct weights *weights = larder_alloc_zero(1, sizeof(*weights));
    if (!weights)
        return larder_fail(-ENOMEM, "no memory");
    snprintf(path, sizeof(path), "%s/model.safetensors", directory);
    weights->file = good ? fopen(path, "w") : NULL;
    if (weights->file) {
        each_tensor(bench, weights, false);
        weights->header[weights->header_bytes++] = '}';
        while (weights->header_bytes % 8 != 0)
            weights->header[weights->header_bytes++] = ' ';
        uint64_t bytes = weights->header_bytes;
        good = fwrite(&bytes, sizeof(bytes), 1, weights->file) == 1 &&
               fwrite(weights->header, bytes, 1, weights->file) == 1 &&
               each_tensor(bench, weights, true);
        good = fclose(weights->file) == 0 && good;
    }
    bool opened = weights->file != NULL;
    larder_free(weights);
    return good && opened ? 0 : larder_fail(-EIO, "cannot write a model to '%s'", directory);
}

static void remove_model(const char *directory)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char path[384];
    for (size_t i = 0; i < LARDER_COUNT_OF(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, files[i]);
        unlink(path);
    }
    rmdir(directory);
}

/* --- the two sides --------------------------------------------------------------------------- */

static int prefill(void *context, double *measure)
{
    struct blend_bench *bench = context;
    double started = bench_now_s();
    bench->cache->count = 0;
    int err = larder_llama_forward(bench->model, bench->cache, bench->logits, LARDER_LOGITS_LAST,
                                   bench->tokens, bench->token_count);
    *measure = bench_now_s() - started;
    return bench_stop ? -EINTR : err;
}

/* Reads a layer and copies the runs of rows that are wanted into the cache. */
static int fetch(void *context, uint32_t layer)
{
    struct blend_bench *bench = context;
    struct larder_kv_cache *cache = bench->cache;
    struct disk_range range = {
        .fd = bench->fd, .offset = layer * cache->layer_bytes, .bytes = cache->layer_bytes};
    LARDER_TRY(disk_read(bench->layer, &range, 1));
    uint64_t token_bytes = cache->k_token_bytes;
    for (uint32_t token = 0; token < bench->token_count;) {
        uint32_t run = 0;
        while (token + run < bench->token_count &&
               larder_blend_reads(bench->blend, layer, token + run))
            run++;
        for (int kv = LARDER_K; kv <= LARDER_V; kv++)
            memcpy((char *)larder_kv_cache_rows(cache, layer, (enum larder_kv)kv) +
                       token * token_bytes,
                   (char *)bench->layer + (kv == LARDER_V ? cache->v_bytes : 0) +
                       token * token_bytes,
                   run * token_bytes);
        token += run + 1;
    }
    return 0;
}

static int blend(void *context, double *measure)
{
    struct blend_bench *bench = context;
    struct larder_blend_span spans[CHUNKS + 1];
    for (uint32_t i = 0; i <= CHUNKS; i++)
        spans[i] = (struct larder_blend_span){
            .first = (uint64_t)i * bench->chunk_tokens,
            .count = i < CHUNKS ? bench->chunk_tokens : SUFFIX_TOKENS,
            .source = i == 0        ? LARDER_BLEND_PREFIX
                      : i == CHUNKS ? LARDER_BLEND_SUFFIX
                                    : LARDER_BLEND_MOVED,
            .piece = i,
        };
    double started = bench_now_s();
    bench->cache->count = 0;
    LARDER_TRY(larder_blend_open(
        &bench->blend, bench->model, bench->cache,
        &(struct larder_blend_prompt){bench->tokens, spans, bench->token_count, CHUNKS + 1},
        &(struct larder_blend_options){.method = bench->method, .logits = 1}));
    int err = larder_blend_run(bench->blend, fetch, bench, bench->logits);
    *measure = bench_now_s() - started;
    if (err == 0)
        bench->share = larder_blend_result(bench->blend)->recomputed_share;
    larder_blend_close(bench->blend);
    return bench_stop ? -EINTR : err;
}

static int open_parts(struct blend_bench *bench, const char *directory)
{
    LARDER_TRY(write_model(bench, directory));
    LARDER_TRY(larder_device_open(&bench->device, "cpu", NULL));
    LARDER_TRY(larder_llama_open(&bench->model, bench->device, directory));
    /* Whole pages of rows, so that a layer can be read as it lies. */
    uint32_t capacity = (uint32_t)larder_round_up(bench->token_count, 64);
    LARDER_TRY(larder_llama_cache_open(bench->model, &bench->cache, capacity, 0));
    struct larder_kv_cache *cache = bench->cache;
    bench->tokens = larder_alloc(bench->token_count * sizeof(*bench->tokens));
    bench->logits = larder_alloc(VOCAB * sizeof(*bench->logits));
    bench->layer = larder_alloc_aligned(LARDER_PAGE_BYTES, cache->layer_bytes);
    if (!bench->tokens || !bench->logits || !bench->layer)
        return larder_fail(-ENOMEM, "no memory for a prompt of %u tokens", bench->token_count);
    struct larder_model_desc desc = {.vocab = VOCAB};
    bench_fill_tokens(bench->tokens, bench->token_count, 1, &desc);

    /* What the chunks hold does not matter to the time: each has its part of a prefill. */
    double ignored;
    LARDER_TRY(prefill(bench, &ignored));
    char path[384];
    snprintf(path, sizeof(path), "%s/kv", directory);
    LARDER_TRY(disk_create(&bench->fd, path, cache->layer_bytes * LAYERS));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        memcpy(bench->layer, larder_kv_cache_rows(cache, layer, LARDER_K), cache->layer_bytes);
        LARDER_TRY(
            disk_write_at(bench->fd, bench->layer, cache->layer_bytes, layer * cache->layer_bytes));
    }
    return 0;
}

static int blend_row(const struct bench *settings, struct bench_result *out, const char *method)
{
    bool quick = settings->corpus_bytes < 1ull << 30;
    struct blend_bench bench = {
        .method = method,
        .hidden = quick ? 128 : 512,
        .heads = quick ? 2 : 8,
        .kv_heads = quick ? 1 : 4,
        .feedforward = quick ? 256 : 1408,
        .chunk_tokens = quick ? 48 : 352,
        .fd = -1,
    };
    bench.token_count = CHUNKS * bench.chunk_tokens + SUFFIX_TOKENS;
    char directory[320];
    snprintf(directory, sizeof(directory), "%s/blend", settings->directory);
    bench_say(settings, "a model of %u layers, a prompt of %u tokens", LAYERS, bench.token_count);
    int err = open_parts(&bench, directory);
    if (err == 0)
        err = bench_compare(settings, out, blend, prefill, &bench);
    bench_note(out, "%u tokens, %.1f %% recomputed", bench.token_count, 100 * bench.share);
    if (bench.fd >= 0)
        close(bench.fd);
    larder_free(bench.layer);
    larder_free(bench.logits);
    larder_free(bench.tokens);
    larder_kv_cache_close(bench.cache);
    larder_llama_close(bench.model);
    larder_device_close(bench.device);
    remove_model(directory);
    return err;
}

int row_blend_link(const struct bench *bench, struct bench_result *out)
{
    return blend_row(bench, out, "link k=16");
}

int row_blend_cacheblend(const struct bench *bench, struct bench_result *out)
{
    return blend_row(bench, out, "cacheblend r=.15");
}
