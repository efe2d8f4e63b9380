/* SPDX-License-Identifier: Apache-2.0 */
/* make_corpus.c - writes the binary seeds of tests/fuzz/corpus: make_corpus FOLDER. What is text
 * there was written by hand, and inputs that once failed (regression-*) are kept as they were. */
#include <stdio.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/record.h"
#include "base/wire.h"
#include "codec/codec.h"
#include "codec/profile_writer.h"
#include "storage/tag.h"
#include "tests/fuzz/fuzz.h"
#include "tools/chain_file.h"

static const char *corpus;

static void save(const char *target, const char *name, const void *first, size_t first_bytes,
                 const void *rest, size_t rest_bytes)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", corpus, target);
    mkdir(path, 0777);
    snprintf(path, sizeof(path), "%s/%s/%s", corpus, target, name);
    FILE *file = fopen(path, "we");
    assert(file);
    assert(fwrite(first, 1, first_bytes, file) == first_bytes);
    assert(fwrite(rest, 1, rest_bytes, file) == rest_bytes);
    assert(fclose(file) == 0);
}

/* --- frames ----------------------------------------------------------------------------------- */

static void save_frame(const char *name, uint8_t side, uint16_t type, const void *body,
                       size_t body_bytes, size_t item_bytes)
{
    uint8_t frame[8192] = {0};
    const struct wire_frame head = {
        .bytes = (uint32_t)(sizeof(head) + body_bytes + item_bytes), .type = type, .request = 7};
    assert(head.bytes <= sizeof(frame));
    memcpy(frame, &head, sizeof(head));
    if (body_bytes > 0)
        memcpy(frame + sizeof(head), body, body_bytes);
    save("frame", name, &side, 1, frame, head.bytes);
}

static void make_frames(void)
{
    const struct wire_hello hello = {.magic = WIRE_MAGIC, .version_min = 1, .version_max = 1};
    const struct wire_model model = {.desc = {.name = "m", .layers = 2, .dtype = LARDER_BF16}};
    const struct wire_keys keys = {.key_count = 3};
    const struct wire_release release = {.count = 2};
    const struct wire_staging staging = {.bytes = 1 << 20};
    const struct wire_put put = {
        .wait = 1, .token_count = 256, .staging_bytes = 4096, .recipe_bytes = 5, .recipe = "exact"};
    const struct wire_worker worker = {.model = 1};
    const struct wire_blend blend = {.piece_count = 2,
                                     .staging_bytes = 4096,
                                     .token_count = 40,
                                     .suffix_tokens = 3,
                                     .deadline_ms = 1000,
                                     .method = "cacheblend r=.15"};
    const struct wire_blend_read blend_read = {
        .blend = 7, .token_count = 40, .layer_count = 2, .staging_bytes = 4096};
    const struct wire_admin_list list = {
        .count_max = 16, .prefix_digits = 3, .prefix = {0xab, 0xc0}};
    const struct wire_admin_key key = {{1}};
    const struct wire_admin_variant variant = {.key = {1}, .variant = 3};
    const struct wire_admin_index number = {.index = 1};
    save_frame("hello", 0, WIRE_HELLO, &hello, sizeof(hello), 0);
    save_frame("hello-control", 1, WIRE_HELLO, &hello, sizeof(hello), 0);
    save_frame("model", 0, WIRE_MODEL, &model, sizeof(model), 0);
    save_frame("lookup", 0, WIRE_LOOKUP, &keys, sizeof(keys), 96);
    save_frame("get", 0, WIRE_GET, &keys, sizeof(keys), 96);
    save_frame("release", 0, WIRE_RELEASE, &release, sizeof(release), 16);
    save_frame("staging", 0, WIRE_STAGING, &staging, sizeof(staging), 0);
    save_frame("put", 0, WIRE_PUT, &put, sizeof(put), 0);
    save_frame("worker", 0, WIRE_WORKER, &worker, sizeof(worker), 0);
    save_frame("blend", 0, WIRE_BLEND, &blend, sizeof(blend), 0);
    save_frame("blend-read", 0, WIRE_BLEND_READ, &blend_read, sizeof(blend_read), 0);
    save_frame("remove", 0, WIRE_REMOVE, &key, sizeof(key), 0);
    save_frame("stat", 0, WIRE_STAT, NULL, 0, 0);
    save_frame("admin-status", 1, WIRE_ADMIN_STATUS, NULL, 0, 0);
    save_frame("admin-list", 1, WIRE_ADMIN_LIST, &list, sizeof(list), 0);
    save_frame("admin-show", 1, WIRE_ADMIN_SHOW, &key, sizeof(key), 0);
    save_frame("admin-verify", 1, WIRE_ADMIN_VERIFY, &variant, sizeof(variant), 0);
    save_frame("admin-models", 1, WIRE_ADMIN_MODELS, &number, sizeof(number), 0);
}

/* --- records ---------------------------------------------------------------------------------- */

/* The head and, of entries, the padding to the first section: the check looks at nothing more. */
static void save_record(const char *name, uint16_t type, uint32_t extra_bytes, uint32_t token_count,
                        uint16_t section_count)
{
    static uint64_t image[16 * LARDER_PAGE_BYTES / 8];
    memset(image, 0, sizeof(image));
    struct larder_record *record = (struct larder_record *)(void *)image;
    uint16_t recipe_bytes = section_count ? 5 : 0;
    struct larder_head_layout layout;
    larder_head_layout(&layout, extra_bytes, recipe_bytes, token_count, section_count);
    *record = (struct larder_record){
        .magic = LARDER_RECORD_MAGIC,
        .version = LARDER_RECORD_VERSION,
        .type = type,
        .tag_kind = LARDER_TAG_XXH3_128,
        .record_bytes = sizeof(image),
        .raw_bytes = 4096,
        .generation = 3,
        .segment_id = 1,
        .created_s = 1700000000,
        .head_bytes = layout.head_bytes,
        .extra_bytes = extra_bytes,
        .token_count = token_count,
        .section_count = section_count,
        .recipe_bytes = recipe_bytes,
    };
    memcpy((uint8_t *)image + layout.recipe, "exact", recipe_bytes);
    struct larder_section *sections =
        (struct larder_section *)(void *)((uint8_t *)image + layout.directory);
    for (uint16_t i = 0; i < section_count; i++)
        sections[i] = (struct larder_section){.layer_first = i / 2,
                                              .layer_count = 1,
                                              .head_count = 2,
                                              .kind = i % 2,
                                              .offset = layout.sections + i * 1024ull,
                                              .bytes = 1000};
    tag_record(record);
    save("record", name, image, layout.sections, NULL, 0);
}

/* --- sections --------------------------------------------------------------------------------- */

/* Planes like K: loud channels, small noise. */
static void save_section(const char *name, uint8_t recipe_and_kind, uint8_t tokens, uint8_t dims)
{
    static const char *const recipes[] = {"exact", "raw"};
    const uint8_t choice[5] = {recipe_and_kind, 1, (uint8_t)(tokens - 1), (uint8_t)(dims - 1),
                               (uint8_t)(dims - 1)};
    const struct larder_model_desc model = {.layers = 1,
                                            .kv_heads = 2,
                                            .k_dims = dims,
                                            .v_dims = dims,
                                            .dtype =
                                                recipe_and_kind & 16 ? LARDER_F32 : LARDER_BF16,
                                            .vocab = 256};
    static float wide[1 << 16];
    static uint16_t narrow[1 << 16];
    size_t count = 2u * tokens * dims;
    uint32_t state = 12345;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525 + 1013904223;
        wide[i] = (float)(i % dims + 1) * (1.0f + (float)(state >> 16) / 65536);
        uint32_t bits;
        memcpy(&bits, &wide[i], sizeof(bits));
        narrow[i] = (uint16_t)(bits >> 16);
    }
    struct larder_recipe *recipe;
    assert(larder_recipe_open(&recipe, recipes[recipe_and_kind & 1], NULL) == 0);
    uint64_t bound = larder_recipe_bound(recipe, &model, 0, tokens), bytes;
    uint64_t workspace_bytes = larder_recipe_workspace_bytes(recipe, &model, tokens);
    void *encoded = malloc(bound);
    void *workspace = aligned_alloc(64, workspace_bytes + 64);
    struct larder_section_error error;
    struct larder_block block = {.model = &model, .token_count = tokens};
    assert(encoded && workspace);
    assert(larder_recipe_encode(recipe, encoded, bound, &bytes, &error, &block, 0,
                                recipe_and_kind & 16 ? (void *)wide : (void *)narrow, workspace,
                                workspace_bytes) == 0);
    save("section", name, choice, sizeof(choice), encoded, bytes);
    free(workspace);
    free(encoded);
    larder_recipe_close(recipe);
}

/* --- files of weights ------------------------------------------------------------------------- */

static void save_weights(const char *name, const char *header, size_t data_bytes)
{
    static const uint8_t data[64] = {1, 2, 3};
    uint8_t first[512];
    uint64_t length = strlen(header);
    assert(length + 8 <= sizeof(first) && data_bytes <= sizeof(data));
    memcpy(first, &length, 8);
    memcpy(first + 8, header, length);
    save("safetensors", name, first, 8 + length, data, data_bytes);
}

/* --- profiles --------------------------------------------------------------------------------- */

static void save_profile(const char *name, const struct larder_profile_writer *writer)
{
    void *bytes;
    uint64_t count;
    assert(larder_profile_finish(writer, &bytes, &count) == 0);
    save("profile", name, bytes, count, NULL, 0);
    larder_free(bytes);
}

static void make_profiles(void)
{
    const struct larder_model_desc model = {
        .weights = {1}, .layers = 1, .kv_heads = 1, .k_dims = 2, .v_dims = 2};
    const float numbers[2] = {-1, 1};
    struct larder_profile_writer *writer;
    assert(larder_profile_writer_open(&writer, &model) == 0);
    save_profile("bare", writer);
    assert(larder_profile_put(writer, "some", LARDER_PROFILE_F32, (uint64_t[]){1, 2}, 2, numbers) ==
           0);
    assert(larder_profile_put_text(writer, "tokens", "7") == 0);
    save_profile("tensor", writer);
    const uint8_t map[2] = {0, 2};
    const int32_t order[2] = {1, 0};
    const uint16_t frequency[4] = {1, 2, 4000, 93};
    assert(larder_profile_put(writer, "map.kvtuner", LARDER_PROFILE_U8, (uint64_t[]){1, 2}, 2,
                              map) == 0);
    assert(larder_profile_put(writer, "bfp.order", LARDER_PROFILE_I32, (uint64_t[]){1, 2}, 2,
                              order) == 0);
    /* Of K in "quant bits=2 | rans". */
    assert(larder_profile_put(writer, "rans.e3e4f586cd25ddf0.frequency", LARDER_PROFILE_U16,
                              (uint64_t[]){1, 1, 4}, 3, frequency) == 0);
    assert(larder_profile_put(writer, "rans.e3e4f586cd25ddf0.group", LARDER_PROFILE_U8,
                              (uint64_t[]){1, 2}, 2, (uint8_t[]){0, 0}) == 0);
    save_profile("stages", writer);
    assert(larder_profile_put_text(writer, "larder_profile", "2") == 0);
    save_profile("version", writer);
    larder_profile_writer_close(writer);
}

/* --- edits of the index ----------------------------------------------------------------------- */

#define SAVE_EDITS(name, ...)                                                                      \
    save("index", name, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}),    \
         NULL, 0)

static void make_edits(void)
{
    SAVE_EDITS("sound-empty", 8);
    SAVE_EDITS("sound-rows", 9);
    SAVE_EDITS("sound-branches", 10);
    SAVE_EDITS("sound-free-list", 11);
    SAVE_EDITS("cut", 0x2a);
    SAVE_EDITS("meta-transaction", 9, 0, 0, 128 + 16, 0, 7, 9, 0, 0, 0, 0, 0, 0, 0);
    SAVE_EDITS("page-size", 9, 0, 0, 40, 0, 3, 0, 2, 0, 0);
    SAVE_EDITS("page-number", 10, 5, 0, 0, 0, 0, 6);
    SAVE_EDITS("page-bounds", 10, 5, 0, 12, 0, 3, 0xff, 0x0f, 0, 0x10);
    SAVE_EDITS("value-resealed", 13, 3, 0, 40, 0, 0x21, 1, 2);
    SAVE_EDITS("node-length", 10, 6, 0, 0, 0, 0x21, 0xff, 0xff);
    SAVE_EDITS("free-list-page", 11, 606 & 255, 606 >> 8, 16, 0, 0x21, 5, 0);
}

/* --- chain files ------------------------------------------------------------------------------ */

static void save_chain(const char *name, uint32_t token_count, uint32_t piece_tokens,
                       uint32_t extra_bytes, uint32_t dims)
{
    static uint64_t file[16 * LARDER_PAGE_BYTES / 8];
    memset(file, 0, sizeof(file));
    struct chain_head *head = (struct chain_head *)file;
    *head = (struct chain_head){.magic = CHAIN_FILE_MAGIC,
                                .version = CHAIN_FILE_VERSION,
                                .token_count = token_count,
                                .piece_tokens = piece_tokens,
                                .extra_bytes = extra_bytes,
                                .created_s = 1790000000,
                                .model = {.name = "m",
                                          .weights = {1},
                                          .layers = 2,
                                          .kv_heads = 1,
                                          .k_dims = dims,
                                          .v_dims = dims,
                                          .dtype = LARDER_BF16,
                                          .vocab = 1000}};
    struct chain_layout layout;
    chain_file_layout(&layout, head);
    assert(layout.bytes <= sizeof(file));
    head->data_offset = layout.data;
    head->data_bytes = layout.bytes - layout.data;
    uint8_t *bytes = (uint8_t *)file;
    memset(bytes + layout.extra, 'x', extra_bytes);
    for (uint32_t i = 0; i < token_count; i++)
        ((uint32_t *)(void *)(bytes + layout.tokens))[i] = i;
    for (uint64_t i = 0; i < layout.piece_count; i++)
        chain_file_seal_piece(file, &layout, i);
    chain_file_seal_head(file, &layout);
    save("import", name, file, layout.bytes, "", 0);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: make_corpus FOLDER\n");
        return 2;
    }
    corpus = argv[1];
    make_frames();
    save_record("entry", LARDER_RECORD_ENTRY, 2, 16, 4);
    save_record("entry-no-tokens", LARDER_RECORD_ENTRY, 0, 0, 2);
    save_record("tombstone", LARDER_RECORD_TOMBSTONE, 96, 0, 0);
    save_record("model", LARDER_RECORD_MODEL, sizeof(struct larder_model_desc), 0, 0);
    save_section("bf16-based", 0, 64, 32);
    save_section("bf16-short", 0, 3, 8);
    save_section("f32", 16, 40, 16);
    save_section("raw", 1, 4, 4);
    save_weights("two",
                 "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                 "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}",
                 32);
    save_weights("metadata",
                 "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F16\","
                 "\"shape\":[],\"data_offsets\":[0,2]}}",
                 2);
    save_weights("empty-tensor", "{\"e\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                 0);
    make_edits();
    make_profiles();
    save_chain("one-token", 1, 1, 0, 2);
    save_chain("pieces", 20, 8, 0, 2);
    save_chain("extra", 5, 4096, 7, 4);
    return 0;
}
