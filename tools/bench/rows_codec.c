/* SPDX-License-Identifier: Apache-2.0 */
/* Recipes alone: sections of an 8B model's shape from memory to memory, one core. Times are the
 * processor's, so that a busy machine disturbs them less. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "tools/bench/data.h"

#define BLOCK_TOKENS 256u
/* Where the blocks stand in their prompt: far enough for angles that are no small numbers. */
#define POSITION 4096u

struct codec_bench {
    struct larder_model_desc model;
    struct larder_block block;
    struct larder_recipe *recipe;
    uint32_t section_count; /* all as large as the first, K and V in turns, one after the other */
    uint64_t raw_bytes;     /* of one section */
    uint64_t bound;
    uint8_t *raw;
    uint8_t *encoded; /* `bound` apart */
    uint64_t *encoded_bytes;
    uint8_t *decoded;
    float *importance; /* what may come with a PUT */
    float *q_max;
    void *tables;
    void *workspace;
    uint64_t workspace_bytes;
};

static void codec_close(struct codec_bench *codec)
{
    uint64_t all = codec->section_count * codec->raw_bytes;
    bench_unmap(codec->decoded, all);
    bench_unmap(codec->encoded, codec->section_count * codec->bound);
    bench_unmap(codec->raw, all);
    larder_free(codec->encoded_bytes);
    larder_free(codec->importance);
    larder_free(codec->q_max);
    larder_free(codec->tables);
    larder_free(codec->workspace);
    larder_recipe_close(codec->recipe);
}

/* Uniform numbers. */
static int fill_inputs(struct codec_bench *codec)
{
    uint64_t heads = (uint64_t)codec->model.layers * codec->model.kv_heads;
    uint64_t scores = heads * BLOCK_TOKENS;
    uint64_t channels = heads * codec->model.k_dims;
    codec->importance = larder_alloc(scores * sizeof(float));
    codec->q_max = larder_alloc(channels * sizeof(float));
    if (!codec->importance || !codec->q_max)
        return larder_fail(-ENOMEM, "no memory");
    uint32_t state = 1;
    for (uint64_t i = 0; i < scores; i++)
        codec->importance[i] = (float)(state = state * 1664525u + 1013904223u) * 0x1p-32f;
    for (uint64_t i = 0; i < channels; i++)
        codec->q_max[i] = 1 + (float)(state = state * 1664525u + 1013904223u) * 0x1p-32f;
    return 0;
}

static int open_recipe(struct codec_bench *codec, const char *text)
{
    LARDER_TRY(larder_recipe_open(&codec->recipe, text, NULL));
    LARDER_TRY(larder_recipe_fits(codec->recipe, &codec->model));
    if (larder_recipe_needs(codec->recipe) & LARDER_INPUT_PROFILE)
        return larder_fail(LARDER_EUNSUPPORTED, "'%s' needs a profile; larder-eval measures it",
                           text);
    uint64_t bytes = larder_recipe_tables_bytes(codec->recipe, &codec->model, BLOCK_TOKENS);
    codec->tables = larder_alloc_aligned(64, larder_max_u64(bytes, 64));
    if (!codec->tables)
        return larder_fail(-ENOMEM, "no memory");
    codec->block = (struct larder_block){.model = &codec->model,
                                         .position = POSITION,
                                         .tables = codec->tables,
                                         .token_count = BLOCK_TOKENS,
                                         .importance = codec->importance,
                                         .q_max = codec->q_max};
    return larder_recipe_fill_tables(codec->recipe, codec->tables, &codec->model, POSITION,
                                     BLOCK_TOKENS);
}

static int open_memory(struct codec_bench *codec, uint64_t corpus_bytes)
{
    codec->raw_bytes = (uint64_t)codec->model.kv_heads * BLOCK_TOKENS * codec->model.k_dims * 2;
    codec->section_count = (uint32_t)(corpus_bytes / codec->raw_bytes) & ~1u;
    codec->bound =
        larder_max_u64(larder_recipe_bound(codec->recipe, &codec->model, 0, BLOCK_TOKENS),
                       larder_recipe_bound(codec->recipe, &codec->model, 1, BLOCK_TOKENS));
    codec->workspace_bytes =
        larder_recipe_workspace_bytes(codec->recipe, &codec->model, BLOCK_TOKENS);
    codec->workspace = larder_alloc_aligned(64, codec->workspace_bytes);
    codec->encoded_bytes = larder_alloc_zero(codec->section_count, sizeof(*codec->encoded_bytes));
    if (!codec->workspace || !codec->encoded_bytes)
        return larder_fail(-ENOMEM, "no memory");
    uint64_t all = codec->section_count * codec->raw_bytes;
    LARDER_TRY(bench_map((void **)&codec->raw, all));
    LARDER_TRY(bench_map((void **)&codec->encoded, codec->section_count * codec->bound));
    LARDER_TRY(bench_map((void **)&codec->decoded, all));
    /* Planes are [head][token][dim]: the channels of a head repeat every 128 elements. */
    uint64_t head_elems = (uint64_t)BLOCK_TOKENS * codec->model.k_dims;
    for (uint64_t head = 0; head * head_elems * 2 < all; head++)
        bench_fill_kv(codec->raw + head * head_elems * 2, head_elems, codec->model.k_dims, head);
    return 0;
}

static int codec_open(const struct bench *bench, struct codec_bench *out)
{
    *out = (struct codec_bench){0};
    bench_model_large(&out->model);
    int err = fill_inputs(out);
    if (err == 0)
        err = open_recipe(out, bench->recipe);
    if (err == 0)
        err = open_memory(out, bench->corpus_bytes / 16);
    if (err < 0)
        codec_close(out);
    return err;
}

static int encode_all(void *context, double *measure)
{
    struct codec_bench *codec = context;
    double started = bench_cpu_s();
    for (uint32_t i = 0; i < codec->section_count; i++) {
        struct larder_section_error error;
        LARDER_TRY(larder_recipe_encode(codec->recipe, codec->encoded + i * codec->bound,
                                        codec->bound, &codec->encoded_bytes[i], &error,
                                        &codec->block, i % 2, codec->raw + i * codec->raw_bytes,
                                        codec->workspace, codec->workspace_bytes));
    }
    *measure = (double)(codec->section_count * codec->raw_bytes) / 1e9 / (bench_cpu_s() - started);
    return 0;
}

static int decode_all(void *context, double *measure)
{
    struct codec_bench *codec = context;
    double started = bench_cpu_s();
    for (uint32_t i = 0; i < codec->section_count; i++)
        LARDER_TRY(larder_recipe_decode(codec->recipe, codec->decoded + i * codec->raw_bytes,
                                        codec->raw_bytes, &codec->block, i % 2,
                                        codec->encoded + i * codec->bound, codec->encoded_bytes[i],
                                        codec->workspace, codec->workspace_bytes));
    *measure = (double)(codec->section_count * codec->raw_bytes) / 1e9 / (bench_cpu_s() - started);
    return 0;
}

static int copy_all(void *context, double *measure)
{
    struct codec_bench *codec = context;
    uint64_t all = codec->section_count * codec->raw_bytes;
    double started = bench_cpu_s();
    memcpy(codec->decoded, codec->raw, all);
    *measure = (double)all / 1e9 / (bench_cpu_s() - started);
    return 0;
}

static uint64_t stored_bytes(const struct codec_bench *codec)
{
    uint64_t stored = 0;
    for (uint32_t i = 0; i < codec->section_count; i++)
        stored += codec->encoded_bytes[i];
    return stored;
}

static void note_size(struct bench_result *out, const struct codec_bench *codec)
{
    double elems = (double)(codec->section_count * codec->raw_bytes) /
                   (double)larder_dtype_bytes(codec->model.dtype);
    bench_note(out, "%.2f bits an element of made-up KV", 8 * (double)stored_bytes(codec) / elems);
}

int row_codec_encode(const struct bench *bench, struct bench_result *out)
{
    struct codec_bench codec;
    double ignored;
    LARDER_TRY(codec_open(bench, &codec));
    int err = encode_all(&codec, &ignored);
    if (err == 0)
        err = bench_compare(bench, out, encode_all, decode_all, &codec);
    codec_close(&codec);
    return err;
}

int row_codec_decode(const struct bench *bench, struct bench_result *out)
{
    struct codec_bench codec;
    double ignored;
    LARDER_TRY(codec_open(bench, &codec));
    int err = encode_all(&codec, &ignored);
    if (err == 0)
        err = bench_compare(bench, out, decode_all, copy_all, &codec);
    if (err == 0)
        note_size(out, &codec);
    uint64_t all = codec.section_count * codec.raw_bytes;
    if (err == 0)
        err = decode_all(&codec, &ignored);
    if (err == 0 && larder_recipe_quality(codec.recipe) == LARDER_QUALITY_EXACT &&
        memcmp(codec.raw, codec.decoded, all) != 0)
        err = larder_fail(LARDER_ECORRUPT, "what was decoded is not what was encoded");
    codec_close(&codec);
    return err;
}

int row_exact_size(const struct bench *bench, struct bench_result *out)
{
    struct codec_bench codec;
    double ignored;
    LARDER_TRY(codec_open(bench, &codec));
    int err = encode_all(&codec, &ignored);
    out->value = (double)stored_bytes(&codec) / 1e9;
    out->plain = (double)(codec.section_count * codec.raw_bytes) / 1e9;
    out->ratio = out->value / out->plain;
    bench_note(out, "made-up KV; of a small real model: 0.66 (tests/codec)");
    codec_close(&codec);
    return err;
}
