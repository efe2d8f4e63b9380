/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   decoding stays within its memory and gives the same answer whatever lay there before,
 *         for any bytes; encoding any planes and decoding that gives them back, if the recipe is
 *         exact, within the bound, and is refused when there is less room than that.
 * Input:  5 bytes that choose recipe, kind, dtype and shape; the section. The same bytes are used
 *         again as planes. */
#include "codec/codec.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/profile_writer.h"
#include "codec/rans.h"
#include "codec/steps.h"
#include "tests/fuzz/fuzz.h"

#define GUARD_BYTES         64u
#define GUARD_VALUE         0x5a
#define WORKSPACE_BYTES_MAX (8u << 20)

/* zstd is not built with a sanitizer: what it writes behind its room is seen here. */
struct room {
    uint8_t *bytes;
    uint64_t count;
};

static struct room fill_room(uint8_t *bytes, uint64_t count, uint8_t fill)
{
    memset(bytes, fill, count);
    memset(bytes + count, GUARD_VALUE, GUARD_BYTES);
    return (struct room){.bytes = bytes, .count = count};
}

static struct room make_room(uint64_t count, uint8_t fill)
{
    uint8_t *bytes = aligned_alloc(64, larder_round_up(count + GUARD_BYTES, 64));
    assert(bytes);
    return fill_room(bytes, count, fill);
}

/* One for all calls: half a megabyte made anew each time would be most of the work. */
static struct room make_workspace(uint64_t count, uint8_t fill)
{
    static _Alignas(64) uint8_t bytes[WORKSPACE_BYTES_MAX];
    assert(count + GUARD_BYTES <= sizeof(bytes));
    return fill_room(bytes, count, fill);
}

static void check_guard(const struct room *room)
{
    for (uint32_t i = 0; i < GUARD_BYTES; i++)
        assert(room->bytes[room->count + i] == GUARD_VALUE);
}

static void close_room(struct room *room)
{
    check_guard(room);
    free(room->bytes);
}

struct scene {
    struct larder_recipe *recipe;
    struct larder_profile *profile; /* NULL where the recipe needs none */
    void *profile_bytes;
    struct larder_model_desc model;
    struct larder_block block; /* of the model above */
    uint32_t section;
    uint64_t raw_bytes;
    uint64_t workspace_bytes;
};

/* What the house recipe reads: a basis that is little more than the channels themselves, scales
 * from tiny to large, tables of a few symbols. */
static void put_house(struct larder_profile_writer *writer, const struct larder_model_desc *model,
                      char side)
{
    static float matrix[4 * 65 * 65];
    float mean[4 * 65];
    int32_t scale[4 * 65];
    uint32_t dims = side == 'v' ? model->v_dims : model->k_dims;
    uint32_t channels = model->kv_heads * dims;
    uint64_t shape[] = {1, model->kv_heads, dims, dims};
    for (uint32_t i = 0; i < channels; i++) {
        mean[i] = (float)(i % 3) - 1;
        scale[i] = (int32_t)(i % 40) - 20;
        for (uint32_t j = 0; j < dims; j++)
            matrix[i * dims + j] = (i % dims == j ? 1.f : 0) + (float)((i + j) % 5) * .01f;
    }
    static const char *const names[] = {"mean", "forward", "back", "scale"};
    const void *const data[] = {mean, matrix, matrix, scale};
    for (uint32_t i = 0; i < 4; i++) {
        char name[32];
        snprintf(name, sizeof(name), "larder.%c.%s", side, names[i]);
        assert(larder_profile_put(writer, name, i < 3 ? LARDER_PROFILE_F32 : LARDER_PROFILE_I32,
                                  shape, i == 1 || i == 2 ? 4 : 3, data[i]) == 0);
    }
}

static void put_steps(struct larder_profile_writer *writer)
{
    static uint16_t tables[STEPS_TABLES][RANS_LEVELS_MAX];
    for (uint32_t i = 0; i < STEPS_TABLES; i++) {
        tables[i][STEPS_ESCAPE] = 1;
        for (uint32_t j = 1; j <= i; j++)
            tables[i][STEPS_ZERO - j] = tables[i][STEPS_ZERO + j] = (uint16_t)(40 / j + 1);
        tables[i][STEPS_ZERO] = 0;
        uint32_t sum = 0;
        for (uint32_t j = 0; j < RANS_LEVELS_MAX; j++)
            sum += tables[i][j];
        tables[i][STEPS_ZERO] = (uint16_t)(RANS_SCALE - sum);
    }
    assert(larder_profile_put(writer, "larder.tables", LARDER_PROFILE_U16,
                              (uint64_t[]){STEPS_TABLES, RANS_LEVELS_MAX}, 2, tables) == 0);
    assert(larder_profile_put(writer, "larder.kl", LARDER_PROFILE_F32, (uint64_t[]){2}, 1,
                              (float[]){.01f, .1f}) == 0);
    assert(larder_profile_put(writer, "larder.step", LARDER_PROFILE_I32, (uint64_t[]){2}, 1,
                              (int32_t[]){-9, 3}) == 0);
}

/* Tables for the symbols of one of the recipes, which names its pipes so; a level that hardly
 * occurs, and one that has most of the slots. */
static void put_tables(struct larder_profile_writer *writer, const struct larder_model_desc *model)
{
    static const char *const pipes[2] = {"cfe328e59787d30b", "f1e801a8f7a2a822"};
    static const uint16_t frequency[2][5] = {{1, 4000, 60, 30, 5}, {800, 800, 896, 800, 800}};
    for (int side = 0; side < 2; side++) {
        uint64_t channels = model->kv_heads * (side ? model->v_dims : model->k_dims);
        uint8_t group[4 * 65];
        char name[48];
        for (uint64_t i = 0; i < channels; i++)
            group[i] = i % 3 == 0;
        snprintf(name, sizeof(name), "rans.%s.frequency", pipes[side]);
        assert(larder_profile_put(writer, name, LARDER_PROFILE_U16, (uint64_t[]){1, 2, 5}, 3,
                                  frequency) == 0);
        snprintf(name, sizeof(name), "rans.%s.group", pipes[side]);
        assert(larder_profile_put(writer, name, LARDER_PROFILE_U8, (uint64_t[]){1, channels}, 2,
                                  group) == 0);
    }
    static const uint8_t maps[2][2] = {{0, 0}, {1, 0}};
    assert(larder_profile_put(writer, "map.kvtuner", LARDER_PROFILE_U8, (uint64_t[]){1, 2}, 2,
                              maps[0]) == 0);
    assert(larder_profile_put(writer, "map.cachegen2", LARDER_PROFILE_U8, (uint64_t[]){1, 2}, 2,
                              maps[1]) == 0);
}

/* Code books, ranges of channels around zero, some of them no wider than a point, and channels in
 * an order that is not the model's. */
static void make_profile(struct scene *scene)
{
    static const float levels[] = {-1,    -.8f, -.6f, -.5f, -.4f, -.3f, -.2f, -.1f,
                                   -.05f, 0,    .1f,  .2f,  .3f,  .5f,  .7f,  .9f};
    static const float norm[] = {1.1f, -.05f};
    const struct larder_model_desc *model = &scene->model;
    struct larder_profile_writer *writer;
    assert(larder_profile_writer_open(&writer, model) == 0);
    for (int side = 0; side < 2; side++) {
        uint32_t channels = model->kv_heads * (side ? model->v_dims : model->k_dims);
        float low[4 * 65];
        float high[4 * 65];
        for (uint32_t i = 0; i < channels; i++) {
            low[i] = -(float)(i % 5);
            high[i] = (float)(i % 5) * .5f;
        }
        struct {
            const char *name;
            const float *data;
            uint64_t count;
        } tensors[] = {{side ? "kvquant.v.low" : "kvquant.k.low", low, channels},
                       {side ? "kvquant.v.high" : "kvquant.k.high", high, channels},
                       {side ? "kvquant.v.lut4" : "kvquant.k.lut4", levels + 5, 4},
                       {side ? "kvquant.v.lut8" : "kvquant.k.lut8", levels + 3, 8},
                       {side ? "kvquant.v.lut16" : "kvquant.k.lut16", levels, 16},
                       {side ? "kvquant.v.norm4" : "kvquant.k.norm4", norm, 2},
                       {side ? "kvquant.v.norm16" : "kvquant.k.norm16", norm, 2}};
        for (size_t i = 0; i < LARDER_COUNT_OF(tensors); i++)
            assert(larder_profile_put(writer, tensors[i].name, LARDER_PROFILE_F32,
                                      (uint64_t[]){1, tensors[i].count}, 2, tensors[i].data) == 0);
    }
    int32_t order[4 * 65];
    uint64_t shape[2] = {1, (uint64_t)model->kv_heads * model->k_dims};
    for (uint64_t i = 0; i < shape[1]; i++)
        order[i] = (int32_t)((i + 3) % shape[1]);
    assert(larder_profile_put(writer, "bfp.order", LARDER_PROFILE_I32, shape, 2, order) == 0);
    assert(larder_profile_put(writer, "rotatekv.order", LARDER_PROFILE_I32, shape, 2, order) == 0);
    put_house(writer, model, 'k');
    put_house(writer, model, 'v');
    put_steps(writer);
    put_tables(writer, model);
    uint64_t bytes;
    assert(larder_profile_finish(writer, &scene->profile_bytes, &bytes) == 0);
    larder_profile_writer_close(writer);
    assert(larder_profile_open(&scene->profile, scene->profile_bytes, bytes) == 0);
}

static void close_scene(struct scene *scene)
{
    larder_recipe_close(scene->recipe);
    larder_profile_close(scene->profile);
    larder_free(scene->profile_bytes);
}

/* False when the recipe is not for such a model. */
static bool open_scene(struct scene *scene, const uint8_t choice[5])
{
    static const char *const recipes[] = {
        "exact",
        "raw",
        "k{exact} v{raw}",
        "k{raw}v{exact}",
        "kivi2",
        "quant bits=4 axis=channel group=16 | rans",
        "quarot-int4",
        "quarot-int2",
        "rope-off | hadamard heads=2 block=8 signs=3 | quant bits=3 group=5 mode=int clip=0.7",
        "sinks tokens=7{quant levels=3 axis=channel group=0 mode=sym}",
        "quant bits=1 group=0 | rans",
        "layers(0){rope-off | quant bits=8 axis=channel group=16} else{quant}",
        "quant bits=5 group=4096 clip=0.1",
        "quant bits=6 mode=int | rans",
        "quant bits=7 mode=sym axis=channel group=32",
        "hadamard block=2 | sinks{hadamard block=1 | quant bits=8}",
        "hadamard block=16 signs=9 | lloyd bits=3 group=7",
        "lloyd levels=11 scale=fit | rans",
        "lloyd bits=1 axis=channel group=16 scale=fit",
        "sinks{lloyd bits=4 axis=channel group=0}",
        "ternary axis=channel group=32 scale=mean | rans",
        "ternary group=0",
        "fp4",
        "hadamard block=4 | fp4 clip=none | rans",
        "fp8 format=e4m3",
        "fp8 format=e5m2 axis=channel group=16 | rans",
        "bfp mantissa=4 block=32",
        "bfp mantissa=7 block=0 | rans",
        "balance | normalize | quant group=0",
        "rfft | lloyd bits=1 axis=channel group=16 scale=fit",
        "qjl seed=3 | rans",
        "turboquant2.5",
        "turboquant3-prod",
        "vidkv-stp",
        "reorder by=bfp | bfp",
        "rope-off | reorder by=rotatekv | quant bits=2 group=128 mode=int",
        "residual{quant bits=2 axis=channel group=16 | rans}{hadamard block=1 | fp8}",
        "lowrank rank=5{quant bits=1 parts=3}",
        "lowrank rank=2 iterations=1{sinks{outliers share=.25 axis=token{quant bits=2 | rans}}}",
        "outliers share=.1 axis=channel fill=mean{ternary group=0}",
        "k{outliers by=thresholds axis=channel{codebook bits=3 axis=channel}} v{codebook | rans}",
        "rope-off | codebook bits=2 axis=channel norm=on | rans",
        "codebook bits=4 norm=on",
        "join | quant bits=3 group=50 mode=int",
        "join heads=2 | hadamard block=2 | lloyd bits=2 group=9",
        "split share=.3{quant bits=4 axis=channel group=16}{quant bits=2 | rans}",
        "split order=first share=.6{lloyd bits=3}{split share=.1{keep}{bfp}}",
        "rope-off | split by=class share=.6{quant axis=channel group=0}{normalize | quant group=0}",
        "balance | split by=class heads=each share=.2{keep}{quant bits=2 parts=2}",
        "sinks{k{rope-off | reorder by=rotatekv | join | quant bits=2 group=128 clip=.8 mode=int} "
        "v{join | quant group=128}}",
        "sinks{split by=class heads=each{lowrank rank=1{ternary}}{outliers{quant bits=2}}}",
        "larder",
        "steps kl=.5 ends=even",
        "hadamard block=1 | klt | steps kl=.02",
        "klt | quant bits=3 axis=channel group=16 | rans",
        "anchors group=5{quant bits=8 group=0 mode=sym | rans}{quant levels=5 mode=sym | rans}",
        "choose map=kvtuner{quant levels=5 group=0 mode=sym | rans}{keep}", /* put_tables() */
        "choose map=cachegen2{keep}{anchors group=16{fp8}{sinks{quant bits=3 | rans}}}",
    };
    static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F16, LARDER_F32, LARDER_BF16};
    *scene = (struct scene){.section = choice[0] >> 2 & 1};
    scene->block =
        (struct larder_block){.model = &scene->model, .token_count = choice[2] % 64 + 1u};
    scene->model = (struct larder_model_desc){
        .layers = 1,
        .kv_heads = choice[1] % 4 + 1u,
        .k_dims = choice[3] % 65 + 1u,
        .v_dims = choice[4] % 65 + 1u,
        .dtype = dtypes[choice[0] >> 3 & 3],
        .vocab = 256,
    };
    /* Any shape, but where a recipe takes the rotary embedding off. */
    scene->model.rope =
        (struct larder_rope){.kind = scene->model.k_dims > 1 ? LARDER_ROPE_PLAIN : LARDER_ROPE_NONE,
                             .interleaved = choice[3] >> 7,
                             .rotary_dims = scene->model.k_dims & ~1u,
                             .theta = 100,
                             .factor = 1};
    uint32_t recipe = (choice[0] & 3u) | (choice[0] >> 6 << 2) | (choice[1] >> 2 << 4);
    const char *text = recipes[recipe % LARDER_COUNT_OF(recipes)];
    assert(larder_recipe_open(&scene->recipe, text, NULL) == 0);
    if (larder_recipe_needs_profile(scene->recipe)) {
        larder_recipe_close(scene->recipe);
        make_profile(scene);
        assert(larder_recipe_open(&scene->recipe, text, scene->profile) == 0);
    }
    if (larder_recipe_fits(scene->recipe, &scene->model) < 0)
        return false;
    static float tables[64 * 65];
    static float inputs[4 * 65];
    for (size_t i = 0; i < sizeof(inputs); i++)
        ((uint8_t *)inputs)[i] = (uint8_t)(choice[i % 5] * (i + 1));
    assert(larder_recipe_tables_bytes(scene->recipe, &scene->model, scene->block.token_count) <=
           sizeof(tables));
    assert(larder_recipe_fill_tables(scene->recipe, tables, &scene->model, choice[4] >> 7,
                                     scene->block.token_count) == 0);
    scene->block.tables = tables;
    scene->block.importance = inputs;
    scene->block.q_max = inputs;
    scene->block.position = choice[4] >> 7;
    struct larder_slice slice;
    larder_recipe_slice(scene->recipe, &slice, &scene->model, scene->section);
    scene->raw_bytes = larder_slice_raw_bytes(&scene->model, &slice, scene->block.token_count);
    scene->workspace_bytes =
        larder_recipe_workspace_bytes(scene->recipe, &scene->model, scene->block.token_count);
    return true;
}

static int decode(const struct scene *scene, struct room *planes, const void *encoded,
                  uint64_t encoded_bytes, uint8_t fill)
{
    *planes = make_room(scene->raw_bytes, fill);
    struct room workspace = make_workspace(scene->workspace_bytes, (uint8_t)~fill);
    int err = larder_recipe_decode(scene->recipe, planes->bytes, planes->count, &scene->block,
                                   scene->section, encoded, encoded_bytes, workspace.bytes,
                                   workspace.count);
    check_guard(&workspace);
    return err;
}

static void decode_hostile(const struct scene *scene, const uint8_t *data, size_t bytes)
{
    struct room first, second;
    uint8_t *encoded = fuzz_copy(data, bytes);
    int err = decode(scene, &first, encoded, bytes, 0x00);
    assert(err == 0 || err == LARDER_ECORRUPT || err == LARDER_EVERSION);
    assert(decode(scene, &second, encoded, bytes, 0xff) == err);
    if (err == 0)
        assert(memcmp(first.bytes, second.bytes, scene->raw_bytes) == 0);
    free(encoded);
    close_room(&first);
    close_room(&second);
}

/* Encodes, decodes, compares; encodes again into another past, and compares. */
static void round_trip(const struct scene *scene, const uint8_t *data, size_t bytes)
{
    struct room planes = make_room(scene->raw_bytes, 0);
    for (uint64_t i = 0; bytes > 0 && i < scene->raw_bytes; i++)
        planes.bytes[i] = data[i % bytes];
    uint64_t bound =
        larder_recipe_bound(scene->recipe, &scene->model, scene->section, scene->block.token_count);
    struct room encoded[2];
    uint64_t encoded_bytes[2];
    struct larder_section_error error;
    for (int i = 0; i < 2; i++) {
        encoded[i] = make_room(bound, i ? 0xff : 0);
        struct room workspace = make_workspace(scene->workspace_bytes, i ? 0 : 0xff);
        assert(larder_recipe_encode(scene->recipe, encoded[i].bytes, bound, &encoded_bytes[i],
                                    &error, &scene->block, scene->section, planes.bytes,
                                    workspace.bytes, workspace.count) == 0);
        assert(encoded_bytes[i] <= bound);
        assert(larder_recipe_encode(scene->recipe, encoded[i].bytes, bound - 1, &(uint64_t){0},
                                    &error, &scene->block, scene->section, planes.bytes,
                                    workspace.bytes, workspace.count) == -EINVAL);
        check_guard(&workspace);
    }
    assert(encoded_bytes[0] == encoded_bytes[1]);
    assert(memcmp(encoded[0].bytes, encoded[1].bytes, encoded_bytes[0]) == 0);

    struct room decoded;
    assert(decode(scene, &decoded, encoded[0].bytes, encoded_bytes[0], 0xaa) == 0);
    if (larder_recipe_quality(scene->recipe) == LARDER_QUALITY_EXACT || error.fell_back)
        assert(memcmp(decoded.bytes, planes.bytes, scene->raw_bytes) == 0);
    close_room(&decoded);
    /* Cut short it is refused, or at least nothing is read behind it. */
    decode_hostile(scene, encoded[0].bytes, encoded_bytes[0] - 1);
    close_room(&encoded[0]);
    close_room(&encoded[1]);
    close_room(&planes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 5)
        return 0;
    struct scene scene;
    if (open_scene(&scene, data)) {
        decode_hostile(&scene, data + 5, bytes - 5);
        round_trip(&scene, data + 5, bytes - 5);
    }
    close_scene(&scene);
    return 0;
}
