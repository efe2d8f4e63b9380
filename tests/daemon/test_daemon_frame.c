/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   frame_parse() accepts exactly the frames of PROTOCOL.md, "Valid frames", and is safe on
 *         anything else.
 * Method: a good frame of every type, then each rule broken alone; every length of every type;
 *         random bytes behind a good header (run it under the sanitizers).
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/wire.h"
#include "daemon/frame.h"

union buffer {
    uint64_t align;
    uint8_t bytes[LARDER_FRAME_BYTES_MAX + 64];
    struct wire_frame frame;
};

static union buffer buffer;

/* A good frame of a type; returns its length, 0 for a type that no client may send. */
static size_t make(uint16_t type)
{
    memset(&buffer, 0, sizeof(buffer));
    void *body = buffer.bytes + sizeof(struct wire_frame);
    size_t bytes = sizeof(struct wire_frame);
    switch (type) {
    case WIRE_HELLO: {
        const struct wire_hello hello = {WIRE_MAGIC, 1, 1, 0};
        memcpy(body, &hello, sizeof(hello));
        bytes += sizeof(hello);
        break;
    }
    case WIRE_MODEL:
        bytes += sizeof(struct wire_model);
        break;
    case WIRE_LOOKUP:
    case WIRE_GET:
        ((struct wire_keys *)body)->key_count = 3;
        bytes += sizeof(struct wire_keys);
        for (int i = 0; i < 3; i++, bytes += 32)
            buffer.bytes[bytes + 31] = 1;
        break;
    case WIRE_RELEASE:
        ((struct wire_release *)body)->count = 2;
        bytes += sizeof(struct wire_release) + 2 * 8;
        break;
    case WIRE_STAGING:
        ((struct wire_staging *)body)->bytes = 4096;
        bytes += sizeof(struct wire_staging);
        break;
    case WIRE_PUT:
        ((struct wire_put *)body)->token_count = 16;
        bytes += sizeof(struct wire_put);
        break;
    case WIRE_WORKER:
        bytes += sizeof(struct wire_worker);
        break;
    case WIRE_BLEND: {
        struct wire_blend *blend = body;
        blend->piece_count = 2;
        blend->token_count = 20;
        blend->suffix_tokens = 3;
        blend->deadline_ms = 1000;
        memcpy(blend->method, "none", 4);
        bytes += sizeof(*blend);
        break;
    }
    case WIRE_BLEND_READ:
        ((struct wire_blend_read *)body)->token_count = 1;
        ((struct wire_blend_read *)body)->layer_count = 1;
        bytes += sizeof(struct wire_blend_read);
        break;
    case WIRE_REMOVE:
        bytes += sizeof(struct wire_remove);
        break;
    case WIRE_STAT:
    case WIRE_ADMIN_STATUS:
    case WIRE_ADMIN_COUNTERS:
        break;
    case WIRE_ADMIN_LIST:
        ((struct wire_admin_list *)body)->count_max = 10;
        bytes += sizeof(struct wire_admin_list);
        break;
    case WIRE_ADMIN_VERIFY:
    case WIRE_ADMIN_SECTIONS:
        bytes += sizeof(struct wire_admin_variant);
        break;
    case WIRE_ADMIN_SHOW:
    case WIRE_ADMIN_HISTORY:
    case WIRE_ADMIN_TOKENS:
        bytes += sizeof(struct wire_admin_key);
        break;
    case WIRE_ADMIN_PURGE:
        ((struct wire_admin_purge *)body)->confirm = WIRE_PURGE_CONFIRM;
        bytes += sizeof(struct wire_admin_purge);
        break;
    case WIRE_ADMIN_ACT:
        bytes += sizeof(struct wire_admin_act);
        break;
    case WIRE_ADMIN_SCRUB:
    case WIRE_ADMIN_DEMOTE:
        bytes += sizeof(struct wire_admin_scrub);
        break;
    case WIRE_ADMIN_GC:
        bytes += sizeof(struct wire_admin_gc);
        break;
    case WIRE_ADMIN_REMOVE:
        bytes += sizeof(struct wire_admin_remove);
        break;
    case WIRE_MARK:
    case WIRE_ADMIN_MARK:
        bytes += sizeof(struct wire_mark);
        break;
    case WIRE_ADMIN_DERIVE:
        ((struct wire_admin_derive *)body)->token_count = 3;
        bytes += sizeof(struct wire_admin_derive) + 3 * 4;
        break;
    case WIRE_PROFILE:
    case WIRE_ADMIN_PROFILE_RM:
        bytes += sizeof(struct wire_profile);
        break;
    case WIRE_ADMIN_PROFILE_NEW:
        ((struct wire_staging *)body)->bytes = 4096;
        bytes += sizeof(struct wire_staging);
        break;
    case WIRE_ADMIN_PROFILE_ADD:
        bytes += sizeof(struct wire_admin_profile_add);
        break;
    case WIRE_ADMIN_MEASURE:
        ((struct wire_admin_measure *)body)->count = 2;
        bytes += sizeof(struct wire_admin_measure) + 2 * sizeof(struct wire_measure);
        break;
    case WIRE_ADMIN_MODELS:
    case WIRE_ADMIN_TENANTS:
    case WIRE_ADMIN_PROFILES:
    case WIRE_ADMIN_MEASURES:
    case WIRE_ADMIN_WORKERS:
        bytes += sizeof(struct wire_admin_index);
        break;
    default:
        return 0;
    }
    buffer.frame.bytes = (uint32_t)bytes;
    buffer.frame.type = type;
    buffer.frame.request = 7;
    return bytes;
}

static enum frame_side side_of(uint16_t type)
{
    return type >= WIRE_ADMIN_STATUS ? FRAME_CONTROL : FRAME_ENGINE;
}

static int parse(enum frame_side side, size_t bytes)
{
    struct frame frame;
    return frame_parse(&frame, side, buffer.bytes, bytes);
}

static void *body_of(void)
{
    return buffer.bytes + sizeof(struct wire_frame);
}

START_TEST(good_frames)
{
    for (uint32_t type = 0; type < 256; type++) {
        struct frame frame;
        size_t bytes = make((uint16_t)type);
        if (!bytes) {
            make(WIRE_STAT);
            buffer.frame.type = (uint16_t)type;
            ck_assert_int_eq(parse(FRAME_ENGINE, 16), LARDER_EPROTO);
            ck_assert_int_eq(parse(FRAME_CONTROL, 16), LARDER_EPROTO);
            continue;
        }
        enum frame_side side = side_of((uint16_t)type);
        ck_assert_msg(frame_parse(&frame, side, buffer.bytes, bytes) == 0, "type %u: %s", type,
                      larder_error_message());
        ck_assert_uint_eq(frame.type, type);
        ck_assert_uint_eq(frame.request, 7);
        ck_assert_ptr_eq(frame.body, body_of());
        /* The other socket takes only the hello, and what profiles are. */
        side = side == FRAME_ENGINE ? FRAME_CONTROL : FRAME_ENGINE;
        ck_assert_int_eq(parse(side, bytes),
                         type == WIRE_HELLO || type == WIRE_PROFILE ? 0 : LARDER_EPROTO);
    }
}
END_TEST

START_TEST(every_other_length)
{
    for (uint32_t type = 0; type < 256; type++) {
        size_t good = make((uint16_t)type);
        if (!good)
            continue;
        for (size_t bytes = 0; bytes < good + 64; bytes++) {
            /* Once with the header's own length kept, once with it in step. */
            make((uint16_t)type);
            int in_message = parse(side_of((uint16_t)type), bytes);
            buffer.frame.bytes = (uint32_t)bytes;
            int in_both = parse(side_of((uint16_t)type), bytes);
            ck_assert_int_eq(in_message, bytes == good ? 0 : LARDER_EPROTO);
            ck_assert_int_eq(in_both, bytes == good ? 0 : LARDER_EPROTO);
        }
    }
    size_t bytes = make(WIRE_STAT);
    buffer.frame.bytes = LARDER_FRAME_BYTES_MAX + 1;
    ck_assert_int_eq(parse(FRAME_ENGINE, LARDER_FRAME_BYTES_MAX + 1), LARDER_EPROTO);
    buffer.frame.bytes = UINT32_MAX;
    ck_assert_int_eq(parse(FRAME_ENGINE, bytes), LARDER_EPROTO);
}
END_TEST

#define BREAKS(type, statement)                                                                    \
    do {                                                                                           \
        size_t bytes_ = make(type);                                                                \
        statement;                                                                                 \
        ck_assert_msg(parse(side_of(type), bytes_) == LARDER_EPROTO, "accepted: %s", #statement);  \
    } while (0)

START_TEST(each_rule)
{
    struct wire_hello *hello = body_of();
    struct wire_model *model = body_of();
    struct wire_keys *keys = body_of();
    struct wire_release *release = body_of();
    struct wire_staging *staging = body_of();
    struct wire_put *put = body_of();
    struct wire_worker *worker = body_of();
    struct wire_blend *blend = body_of();
    struct wire_blend_read *read = body_of();
    struct wire_admin_profile_add *add = body_of();
    struct wire_admin_measure *measure = body_of();
    struct wire_admin_list *list = body_of();
    struct wire_admin_index *index = body_of();
    struct wire_admin_variant *variant = body_of();
    struct wire_admin_remove *removal = body_of();
    struct wire_admin_purge *purge = body_of();

    BREAKS(WIRE_STAT, buffer.frame.reserved = 1);
    BREAKS(WIRE_STAT, buffer.frame.request = 0);
    BREAKS(WIRE_HELLO, hello->magic = 1);
    BREAKS(WIRE_HELLO, hello->version_min = 2);
    BREAKS(WIRE_HELLO, hello->reserved = 1);
    BREAKS(WIRE_MODEL, memset(model->desc.name, 'x', sizeof(model->desc.name)));
    BREAKS(WIRE_LOOKUP, keys->worst = 3);
    BREAKS(WIRE_GET, keys->layer_first = 1024);
    BREAKS(WIRE_GET, keys->layer_count = 1025);
    BREAKS(WIRE_GET, keys->layer_count = UINT16_MAX);
    BREAKS(WIRE_LOOKUP, keys->layer_first = 1);
    BREAKS(WIRE_LOOKUP, keys->layer_count = 1);
    BREAKS(WIRE_PREFETCH, keys->layer_first = 1024);
    BREAKS(WIRE_PREFETCH, keys->worst = 3);
    BREAKS(WIRE_GET, keys->flags = 2);
    BREAKS(WIRE_ADMIN_PURGE, purge->confirm = 1);
    BREAKS(WIRE_ADMIN_PURGE, purge->reserved = 1);
    BREAKS(WIRE_ADMIN_PURGE, memset(purge->tenant, 'x', sizeof(purge->tenant)));
    BREAKS(WIRE_ADMIN_VERIFY, variant->variant = 8);
    BREAKS(WIRE_ADMIN_VERIFY, variant->reserved = 1);
    BREAKS(WIRE_ADMIN_REMOVE, removal->variant = 8);
    BREAKS(WIRE_ADMIN_REMOVE, removal->pinned = 2);
    BREAKS(WIRE_GET, keys->key_count = 0);
    BREAKS(WIRE_GET, keys->key_count = 4);
    BREAKS(WIRE_GET, keys->key_count = 1025);
    BREAKS(WIRE_GET, keys->key_count = UINT32_MAX);
    BREAKS(WIRE_GET, keys->key_count = 3 + (1u << 27)); /* 32 x count wraps to 3 x 32 */
    for (size_t i = 0; i < 3; i++) {
        BREAKS(WIRE_GET, memset((uint8_t *)(keys + 1) + 32 * i, 0, 32));
        BREAKS(WIRE_LOOKUP, memset((uint8_t *)(keys + 1) + 32 * i, 0, 32));
    }
    BREAKS(WIRE_RELEASE, release->count = 0);
    BREAKS(WIRE_RELEASE, release->count = 3);
    BREAKS(WIRE_RELEASE, release->count = 2 + (1u << 29));
    BREAKS(WIRE_RELEASE, release->reserved = 1);
    BREAKS(WIRE_STAGING, staging->bytes = 0);
    BREAKS(WIRE_PUT, put->wait = 2);
    BREAKS(WIRE_PUT, put->flags = 8);
    BREAKS(WIRE_PUT, put->reserved = 1);
    BREAKS(WIRE_PUT, put->max_kl = NAN);
    BREAKS(WIRE_PUT, put->max_kl = INFINITY);
    BREAKS(WIRE_PUT, put->max_kl = -1);
    BREAKS(WIRE_PUT, put->computed_on_kl = NAN);
    BREAKS(WIRE_PUT, put->computed_on_kl = -1e-30f);
    BREAKS(WIRE_GET, keys->max_kl = NAN);
    BREAKS(WIRE_GET, keys->max_kl = -INFINITY);
    BREAKS(WIRE_LOOKUP, keys->max_kl = INFINITY);
    BREAKS(WIRE_LOOKUP, keys->reserved = 1);
    BREAKS(WIRE_ADMIN_PROFILE_NEW, staging->bytes = 0);
    BREAKS(WIRE_ADMIN_PROFILE_ADD, add->is_default = 2);
    BREAKS(WIRE_ADMIN_PROFILE_ADD, add->reserved = 1);
    BREAKS(WIRE_ADMIN_MEASURE, measure->count = 0);
    BREAKS(WIRE_ADMIN_MEASURE, measure->count = 1);
    BREAKS(WIRE_ADMIN_MEASURE, measure->count = LARDER_ADMIN_MEASURES_MAX + 1);
    BREAKS(WIRE_ADMIN_MEASURE, measure->reserved = 1);
    BREAKS(WIRE_ADMIN_SECTIONS, variant->variant = 8);
    BREAKS(WIRE_PUT, put->computed_on = 3);
    BREAKS(WIRE_PUT, put->token_count = 0);
    BREAKS(WIRE_PUT, put->token_count = LARDER_BLOCK_TOKENS_MAX + 1);
    BREAKS(WIRE_PUT, put->token_count = UINT32_MAX);
    BREAKS(WIRE_PUT, put->extra_bytes = LARDER_EXTRA_BYTES_MAX + 1);
    BREAKS(WIRE_PUT, put->recipe_bytes = LARDER_RECIPE_BYTES_MAX + 1);
    BREAKS(WIRE_PUT, put->recipe_bytes = 3); /* NULs as text */
    BREAKS(WIRE_PUT, put->recipe[100] = 'x');
    BREAKS(WIRE_PUT, put->staging_offset = 32);
    BREAKS(WIRE_PUT, (put->staging_offset = 64, put->staging_bytes = UINT64_MAX));
    BREAKS(WIRE_WORKER, worker->reserved = 1);
    BREAKS(WIRE_BLEND, blend->piece_count = 0);
    BREAKS(WIRE_BLEND, blend->piece_count = LARDER_PIECES_MAX + 1);
    BREAKS(WIRE_BLEND, blend->token_count = 1);
    BREAKS(WIRE_BLEND, blend->token_count = LARDER_PROMPT_TOKENS_MAX + 1);
    BREAKS(WIRE_BLEND, blend->suffix_tokens = 0);
    BREAKS(WIRE_BLEND, blend->suffix_tokens = 20);
    BREAKS(WIRE_BLEND, blend->extra_bytes = LARDER_EXTRA_BYTES_MAX + 1);
    BREAKS(WIRE_BLEND, blend->deadline_ms = 0);
    BREAKS(WIRE_BLEND, blend->worst = 3);
    BREAKS(WIRE_BLEND, blend->max_kl = -1);
    BREAKS(WIRE_BLEND, blend->max_kl = NAN);
    BREAKS(WIRE_BLEND, blend->flags = 8);
    BREAKS(WIRE_BLEND, blend->method[100] = 'x');
    BREAKS(WIRE_BLEND, memset(blend->method, 'x', sizeof(blend->method)));
    BREAKS(WIRE_BLEND, blend->staging_offset = 32);
    BREAKS(WIRE_BLEND, (blend->staging_offset = 64, blend->staging_bytes = UINT64_MAX));
    BREAKS(WIRE_BLEND_READ, read->token_count = 0);
    BREAKS(WIRE_BLEND_READ, read->token_count = UINT64_MAX);
    BREAKS(WIRE_BLEND_READ, read->token_first = UINT64_MAX);
    BREAKS(WIRE_BLEND_READ, read->layer_count = 0);
    BREAKS(WIRE_BLEND_READ, read->layer_count = LARDER_LAYERS_MAX + 1);
    BREAKS(WIRE_BLEND_READ, read->layer_first = LARDER_LAYERS_MAX);
    BREAKS(WIRE_BLEND_READ, read->staging_offset = 32);
    BREAKS(WIRE_BLEND_READ, (read->staging_offset = 64, read->staging_bytes = UINT64_MAX));
    BREAKS(WIRE_ADMIN_LIST, list->count_max = 0);
    BREAKS(WIRE_ADMIN_LIST, list->count_max = LARDER_ADMIN_LIST_MAX + 1);
    BREAKS(WIRE_ADMIN_LIST, list->prefix_digits = 65);
    BREAKS(WIRE_ADMIN_LIST, list->prefix[0] = 1);
    BREAKS(WIRE_ADMIN_LIST, (list->prefix_digits = 1, list->prefix[0] = 0xab));
    BREAKS(WIRE_ADMIN_MODELS, index->reserved = 1);
    BREAKS(WIRE_ADMIN_WORKERS, index->reserved = 1);

    /* What a RELEASE carries as its request is not looked at. */
    size_t bytes = make(WIRE_RELEASE);
    buffer.frame.request = 0;
    ck_assert_int_eq(parse(FRAME_ENGINE, bytes), 0);
}
END_TEST

START_TEST(random_bytes)
{
    static const uint16_t types[] = {WIRE_HELLO,      WIRE_MODEL,  WIRE_GET,       WIRE_RELEASE,
                                     WIRE_PUT,        WIRE_REMOVE, WIRE_STAGING,   WIRE_ADMIN_LIST,
                                     WIRE_ADMIN_SHOW, WIRE_BLEND,  WIRE_BLEND_READ};
    srand(1);
    uint32_t accepted = 0;
    for (uint32_t round = 0; round < 200000; round++) {
        uint16_t type = types[(uint32_t)rand() % LARDER_COUNT_OF(types)];
        size_t bytes = make(type);
        uint32_t changes = 1 + (uint32_t)rand() % 4;
        for (uint32_t i = 0; i < changes; i++)
            buffer.bytes[(uint32_t)rand() % bytes] = (uint8_t)rand();
        if (rand() % 4 == 0)
            bytes = (uint32_t)rand() % (bytes + 16);
        struct frame frame;
        if (frame_parse(&frame, side_of(type), buffer.bytes, bytes) == 0) {
            accepted++;
            const uint8_t *end = buffer.bytes + bytes;
            ck_assert((const uint8_t *)frame.items <= end);
            if (frame.item_count)
                ck_assert(frame.item_count <= 1024);
        }
    }
    ck_assert_uint_gt(accepted, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_frame");
    TCase *tests = tcase_create("frame");
    tcase_add_test(tests, good_frames);
    tcase_add_test(tests, every_other_length);
    tcase_add_test(tests, each_rule);
    tcase_add_test(tests, random_bytes);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
