/* SPDX-License-Identifier: Apache-2.0 */
/* Recipe `exact` alone: sections of an 8B model's shape from memory to memory, one core. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "tools/bench/data.h"

#define BLOCK_TOKENS 256u

struct codec_bench {
    struct larder_model_desc model;
    struct larder_block block;
    struct larder_recipe *recipe;
    uint32_t section_count; /* all as large as the first: one after the other in `raw` */
    uint64_t raw_bytes;     /* of one section */
    uint64_t bound;
    uint8_t *raw;
    uint8_t *encoded; /* `bound` apart */
    uint64_t *encoded_bytes;
    uint8_t *decoded;
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
    larder_free(codec->workspace);
    larder_recipe_close(codec->recipe);
}

static int codec_open(const struct bench *bench, struct codec_bench *out)
{
    *out = (struct codec_bench){0};
    bench_model_large(&out->model);
    out->block = (struct larder_block){.model = &out->model, .token_count = BLOCK_TOKENS};
    LARDER_TRY(larder_recipe_open(&out->recipe, "exact", NULL));
    out->raw_bytes = (uint64_t)out->model.kv_heads * BLOCK_TOKENS * out->model.k_dims * 2;
    out->section_count = (uint32_t)(bench->corpus_bytes / 4 / out->raw_bytes);
    out->bound = larder_recipe_bound(out->recipe, &out->model, 0, BLOCK_TOKENS);
    out->workspace_bytes = larder_recipe_workspace_bytes(out->recipe, &out->model, BLOCK_TOKENS);
    out->workspace = larder_alloc_aligned(64, out->workspace_bytes);
    out->encoded_bytes = larder_alloc_zero(out->section_count, sizeof(*out->encoded_bytes));
    uint64_t all = out->section_count * out->raw_bytes;
    int err = out->workspace && out->encoded_bytes ? 0 : larder_fail(-ENOMEM, "no memory");
    if (err == 0)
        err = bench_map((void **)&out->raw, all);
    if (err == 0)
        err = bench_map((void **)&out->encoded, out->section_count * out->bound);
    if (err == 0)
        err = bench_map((void **)&out->decoded, all);
    if (err < 0) {
        codec_close(out);
        return err;
    }
    /* Planes are [head][token][dim]: the channels of a head repeat every 128 elements. */
    uint64_t head_elems = (uint64_t)BLOCK_TOKENS * out->model.k_dims;
    for (uint64_t head = 0; head * head_elems * 2 < all; head++)
        bench_fill_kv(out->raw + head * head_elems * 2, head_elems, out->model.k_dims, head);
    return 0;
}

static int encode_all(void *context, double *measure)
{
    struct codec_bench *codec = context;
    double started = bench_now_s();
    for (uint32_t i = 0; i < codec->section_count; i++) {
        struct larder_section_error error;
        LARDER_TRY(larder_recipe_encode(codec->recipe, codec->encoded + i * codec->bound,
                                        codec->bound, &codec->encoded_bytes[i], &error,
                                        &codec->block, 0, codec->raw + i * codec->raw_bytes,
                                        codec->workspace, codec->workspace_bytes));
    }
    *measure = (double)(codec->section_count * codec->raw_bytes) / 1e9 / (bench_now_s() - started);
    return 0;
}

static int decode_all(void *context, double *measure)
{
    struct codec_bench *codec = context;
    double started = bench_now_s();
    for (uint32_t i = 0; i < codec->section_count; i++)
        LARDER_TRY(larder_recipe_decode(codec->recipe, codec->decoded + i * codec->raw_bytes,
                                        codec->raw_bytes, &codec->block, 0,
                                        codec->encoded + i * codec->bound, codec->encoded_bytes[i],
                                        codec->workspace, codec->workspace_bytes));
    *measure = (double)(codec->section_count * codec->raw_bytes) / 1e9 / (bench_now_s() - started);
    return 0;
}

static int copy_all(void *context, double *measure)
{
    struct codec_bench *codec = context;
    uint64_t all = codec->section_count * codec->raw_bytes;
    double started = bench_now_s();
    memcpy(codec->decoded, codec->raw, all);
    *measure = (double)all / 1e9 / (bench_now_s() - started);
    return 0;
}

int row_exact_encode(const struct bench *bench, struct bench_result *out)
{
    struct codec_bench codec;
    LARDER_TRY(codec_open(bench, &codec));
    int err = bench_compare(bench, out, encode_all, copy_all, &codec);
    codec_close(&codec);
    return err;
}

int row_exact_decode(const struct bench *bench, struct bench_result *out)
{
    struct codec_bench codec;
    double ignored;
    LARDER_TRY(codec_open(bench, &codec));
    int err = encode_all(&codec, &ignored);
    if (err == 0)
        err = bench_compare(bench, out, decode_all, copy_all, &codec);
    uint64_t all = codec.section_count * codec.raw_bytes;
    double measure;
    if (err == 0)
        err = decode_all(&codec, &measure);
    if (err == 0 && memcmp(codec.raw, codec.decoded, all) != 0)
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
    uint64_t stored = 0;
    for (uint32_t i = 0; i < codec.section_count; i++)
        stored += codec.encoded_bytes[i];
    out->value = (double)stored / 1e9;
    out->plain = (double)(codec.section_count * codec.raw_bytes) / 1e9;
    out->ratio = out->value / out->plain;
    bench_note(out, "made-up KV; of a small real model: 0.66 (tests/codec)");
    codec_close(&codec);
    return err;
}
