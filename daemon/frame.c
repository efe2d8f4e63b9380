/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/frame.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/wire.h"

static int bad(const char *what, uint64_t value, const char *rule)
{
    return larder_fail(LARDER_EPROTO, "%s=%llu is not valid: %s; see PROTOCOL.md", what,
                       (unsigned long long)value, rule);
}

/* A number that is not negative, and finite. */
static bool is_kl(float kl)
{
    return isfinite(kl) && kl >= 0;
}

static int bad_kl(const char *what)
{
    return larder_fail(LARDER_EPROTO,
                       "%s is not valid: must be finite and not negative; see "
                       "PROTOCOL.md",
                       what);
}

static int check_hello(const void *body)
{
    const struct wire_hello *hello = body;
    if (hello->magic != WIRE_MAGIC)
        return bad("magic", hello->magic, "this is larder's socket, it wants LDR1");
    if (hello->version_min > hello->version_max)
        return bad("version_min", hello->version_min, "must not be above version_max");
    return hello->reserved ? bad("reserved", hello->reserved, "must be 0") : 0;
}

static int check_model(const void *body)
{
    const struct wire_model *model = body;
    /* The rest is larder_model_check's, whose refusals leave the connection open. */
    if (!memchr(model->desc.name, 0, sizeof(model->desc.name)))
        return bad("name", 0, "must end with a NUL");
    return 0;
}

static int check_keys(const void *body)
{
    const struct wire_keys *keys = body;
    if (keys->worst > LARDER_QUALITY_BLENDED)
        return bad("worst", keys->worst, "must be an enum larder_quality");
    if (keys->flags & ~(uint32_t)WIRE_KEYS_SMALLEST)
        return bad("flags", keys->flags, "must be bits of enum wire_keys_flag");
    if (!is_kl(keys->max_kl))
        return bad_kl("max_kl");
    if (keys->reserved)
        return bad("reserved", keys->reserved, "must be 0");
    if (keys->layer_first >= LARDER_LAYERS_MAX)
        return bad("layer_first", keys->layer_first, "must be below 1024");
    if (keys->layer_count > LARDER_LAYERS_MAX)
        return bad("layer_count", keys->layer_count, "must be at most 1024");
    /* Zeros stand for the root of all chains, which is no block. */
    const uint8_t *key = (const uint8_t *)(keys + 1);
    for (uint32_t i = 0; i < keys->key_count; i++, key += 32) {
        if (larder_all_zero(key, 32))
            return bad("zero key at", i, "zeros may be the parent, never a key");
    }
    return 0;
}

static int check_lookup(const void *body)
{
    const struct wire_keys *keys = body;
    if (keys->layer_first || keys->layer_count)
        return bad("layer_first", keys->layer_first, "a lookup is of all layers: must be 0");
    return check_keys(body);
}

static int check_release(const void *body)
{
    const struct wire_release *release = body;
    return release->reserved ? bad("reserved", release->reserved, "must be 0") : 0;
}

static int check_staging(const void *body)
{
    const struct wire_staging *staging = body;
    return staging->bytes ? 0 : bad("bytes", 0, "must be at least 1");
}

static int check_put(const void *body)
{
    const struct wire_put *put = body;
    uint64_t end;
    if (put->wait > LARDER_DURABLE)
        return bad("wait", put->wait, "must be an enum larder_wait");
    if (put->computed_on > LARDER_QUALITY_BLENDED)
        return bad("computed_on", put->computed_on, "must be an enum larder_quality");
    if (put->flags & ~(uint32_t)(WIRE_PUT_BESIDE | WIRE_PUT_IMPORTANCE | WIRE_PUT_Q_MAX))
        return bad("flags", put->flags, "must be bits of enum wire_put_flag");
    if (put->reserved)
        return bad("reserved", put->reserved, "must be 0");
    if (!(put->computed_on_kl >= 0))
        return bad_kl("computed_on_kl");
    if (!is_kl(put->max_kl))
        return bad_kl("max_kl");
    if (put->token_count < 1 || put->token_count > LARDER_BLOCK_TOKENS_MAX)
        return bad("token_count", put->token_count, "must be 1..4096");
    if (put->extra_bytes > LARDER_EXTRA_BYTES_MAX)
        return bad("extra_bytes", put->extra_bytes, "must be at most 1024");
    if (put->recipe_bytes > LARDER_RECIPE_BYTES_MAX)
        return bad("recipe_bytes", put->recipe_bytes, "must be at most 1024");
    if (memchr(put->recipe, 0, put->recipe_bytes))
        return bad("recipe_bytes", put->recipe_bytes, "the text must not hold a NUL");
    if (!larder_all_zero(put->recipe + put->recipe_bytes, sizeof(put->recipe) - put->recipe_bytes))
        return bad("recipe_bytes", put->recipe_bytes, "what is behind the text must be 0");
    if (put->staging_offset % 64 != 0)
        return bad("staging_offset", put->staging_offset, "must be a multiple of 64");
    if (!larder_add_u64(&end, put->staging_offset, put->staging_bytes))
        return bad("staging_bytes", put->staging_bytes, "must not overflow with the offset");
    return 0;
}

static int check_worker(const void *body)
{
    const struct wire_worker *worker = body;
    return worker->reserved ? bad("reserved", worker->reserved, "must be 0") : 0;
}

static int check_blend(const void *body)
{
    const struct wire_blend *blend = body;
    uint64_t end;
    if (blend->piece_count < 1 || blend->piece_count > LARDER_PIECES_MAX)
        return bad("piece_count", blend->piece_count, "must be 1..1024");
    if (blend->token_count < 2 || blend->token_count > LARDER_PROMPT_TOKENS_MAX)
        return bad("token_count", blend->token_count, "must be 2..4194304");
    if (blend->suffix_tokens < 1 || blend->suffix_tokens >= blend->token_count)
        return bad("suffix_tokens", blend->suffix_tokens, "must be 1..token_count - 1");
    if (blend->extra_bytes > LARDER_EXTRA_BYTES_MAX)
        return bad("extra_bytes", blend->extra_bytes, "must be at most 1024");
    if (blend->deadline_ms == 0)
        return bad("deadline_ms", 0, "must be at least 1");
    if (blend->worst > LARDER_QUALITY_BLENDED)
        return bad("worst", blend->worst, "must be an enum larder_quality");
    if (!is_kl(blend->max_kl))
        return bad_kl("max_kl");
    if (blend->flags & ~(uint32_t)(WIRE_BLEND_SMALLEST | WIRE_BLEND_KEEP | WIRE_BLEND_DURABLE))
        return bad("flags", blend->flags, "must be bits of enum wire_blend_flag");
    const char *text_end = memchr(blend->method, 0, sizeof(blend->method));
    if (!text_end ||
        !larder_all_zero(text_end, (size_t)(blend->method + sizeof(blend->method) - text_end)))
        return bad("method", 0, "must end with a NUL, and zeros behind it");
    if (blend->staging_offset % 64 != 0)
        return bad("staging_offset", blend->staging_offset, "must be a multiple of 64");
    if (!larder_add_u64(&end, blend->staging_offset, blend->staging_bytes))
        return bad("staging_bytes", blend->staging_bytes, "must not overflow with the offset");
    return 0;
}

static int check_blend_read(const void *body)
{
    const struct wire_blend_read *read = body;
    uint64_t end;
    if (read->token_count < 1 || read->token_count > LARDER_PROMPT_TOKENS_MAX ||
        read->token_first > LARDER_PROMPT_TOKENS_MAX)
        return bad("token_count", read->token_count, "must be 1..4194304, as the first at most");
    if (read->layer_count < 1 || read->layer_count > LARDER_LAYERS_MAX ||
        read->layer_first >= LARDER_LAYERS_MAX)
        return bad("layer_count", read->layer_count, "must be 1..1024, the first below 1024");
    if (read->staging_offset % 64 != 0)
        return bad("staging_offset", read->staging_offset, "must be a multiple of 64");
    if (!larder_add_u64(&end, read->staging_offset, read->staging_bytes))
        return bad("staging_bytes", read->staging_bytes, "must not overflow with the offset");
    return 0;
}

static int check_variant(const void *body)
{
    const struct wire_admin_variant *wire = body;
    if (wire->variant >= LARDER_VARIANTS_MAX)
        return bad("variant", wire->variant, "must be below 8");
    return wire->reserved ? bad("reserved", wire->reserved, "must be 0") : 0;
}

static int check_remove(const void *body)
{
    const struct wire_admin_remove *wire = body;
    if (wire->variant >= LARDER_VARIANTS_MAX && wire->variant != WIRE_VARIANT_ALL)
        return bad("variant", wire->variant, "must be below 8, or all");
    return wire->pinned > 1 ? bad("pinned", wire->pinned, "must be 0 or 1") : 0;
}

static int check_index(const void *body)
{
    const struct wire_admin_index *index = body;
    return index->reserved ? bad("reserved", index->reserved, "must be 0") : 0;
}

static int check_list(const void *body)
{
    const struct wire_admin_list *list = body;
    if (list->count_max < 1 || list->count_max > LARDER_ADMIN_LIST_MAX)
        return bad("count_max", list->count_max, "must be 1..128");
    if (list->prefix_digits > 64)
        return bad("prefix_digits", list->prefix_digits, "must be at most 64");
    uint32_t whole = list->prefix_digits / 2;
    bool odd = list->prefix_digits % 2 != 0;
    if ((odd && (list->prefix[whole] & 0x0f)) ||
        !larder_all_zero(list->prefix + whole + odd, sizeof(list->prefix) - whole - odd))
        return bad("prefix_digits", list->prefix_digits, "what is behind the prefix must be 0");
    return 0;
}

static int check_derive(const void *body)
{
    const struct wire_admin_derive *derive = body;
    if (derive->extra_bytes > LARDER_EXTRA_BYTES_MAX)
        return bad("extra_bytes", derive->extra_bytes, "must be at most 1024");
    if (!larder_all_zero(derive->extra + derive->extra_bytes,
                         sizeof(derive->extra) - derive->extra_bytes))
        return bad("extra_bytes", derive->extra_bytes, "what is behind `extra` must be 0");
    return 0;
}

static int check_scrub(const void *body)
{
    const struct wire_admin_scrub *scrub = body;
    if (scrub->action > WIRE_SCRUB_CANCEL)
        return bad("action", scrub->action, "must be 0..2");
    return scrub->reserved ? bad("reserved", scrub->reserved, "must be 0") : 0;
}

static int check_gc(const void *body)
{
    const struct wire_admin_gc *gc = body;
    if (gc->action > WIRE_SCRUB_CANCEL)
        return bad("action", gc->action, "must be 0..2");
    return gc->live_percent > 100 ? bad("live_percent", gc->live_percent, "must be 0..100") : 0;
}

static int check_purge(const void *body)
{
    const struct wire_admin_purge *purge = body;
    if (!memchr(purge->tenant, 0, sizeof(purge->tenant)))
        return bad("tenant", 0, "must end with a NUL");
    if (purge->confirm != WIRE_PURGE_CONFIRM)
        return bad("confirm", purge->confirm, "must be WIRE_PURGE_CONFIRM");
    return purge->reserved ? bad("reserved", purge->reserved, "must be 0") : 0;
}

static int check_profile_add(const void *body)
{
    const struct wire_admin_profile_add *add = body;
    if (add->is_default > 1)
        return bad("is_default", add->is_default, "must be 0 or 1");
    return add->reserved ? bad("reserved", add->reserved, "must be 0") : 0;
}

static int check_measure(const void *body)
{
    const struct wire_admin_measure *measure = body;
    return measure->reserved ? bad("reserved", measure->reserved, "must be 0") : 0;
}

static int check_act(const void *body)
{
    const struct wire_admin_act *act = body;
    return memchr(act->tenant, 0, sizeof(act->tenant)) ? 0
                                                       : bad("tenant", 0, "must end with a NUL");
}

/* What a type's frame holds. Items are `item_bytes` each; the u32 at `count_offset` of the body
 * says how many, 1..item_max. */
struct shape {
    uint16_t type;
    uint8_t side; /* enum frame_side */
    bool one_way; /* answers nothing and gets no answer: its request is not looked at */
    uint32_t body_bytes;
    uint32_t count_offset;
    uint32_t item_bytes; /* 0: no items */
    uint32_t item_max;
    int (*check)(const void *body); /* with its items behind it: their count was checked */
};

static const struct shape engine_hello = {
    WIRE_HELLO, FRAME_ENGINE, false, sizeof(struct wire_hello), 0, 0, 0, check_hello};

static const struct shape shapes[] = {
    {WIRE_MODEL, FRAME_ENGINE, false, sizeof(struct wire_model), 0, 0, 0, check_model},
    {WIRE_LOOKUP, FRAME_ENGINE, false, sizeof(struct wire_keys),
     offsetof(struct wire_keys, key_count), 32, LARDER_REQUEST_KEYS_MAX, check_lookup},
    {WIRE_GET, FRAME_ENGINE, false, sizeof(struct wire_keys), offsetof(struct wire_keys, key_count),
     32, LARDER_REQUEST_KEYS_MAX, check_keys},
    {WIRE_PREFETCH, FRAME_ENGINE, false, sizeof(struct wire_keys),
     offsetof(struct wire_keys, key_count), 32, LARDER_REQUEST_KEYS_MAX, check_keys},
    {WIRE_RELEASE, FRAME_ENGINE, true, sizeof(struct wire_release),
     offsetof(struct wire_release, count), 8, LARDER_REQUEST_KEYS_MAX, check_release},
    {WIRE_STAGING, FRAME_ENGINE, false, sizeof(struct wire_staging), 0, 0, 0, check_staging},
    {WIRE_PUT, FRAME_ENGINE, false, sizeof(struct wire_put), 0, 0, 0, check_put},
    {WIRE_REMOVE, FRAME_ENGINE, false, sizeof(struct wire_remove), 0, 0, 0, NULL},
    {WIRE_STAT, FRAME_ENGINE, false, 0, 0, 0, 0, NULL},
    {WIRE_WORKER, FRAME_ENGINE, false, sizeof(struct wire_worker), 0, 0, 0, check_worker},
    {WIRE_BLEND, FRAME_ENGINE, false, sizeof(struct wire_blend), 0, 0, 0, check_blend},
    {WIRE_BLEND_READ, FRAME_ENGINE, false, sizeof(struct wire_blend_read), 0, 0, 0,
     check_blend_read},
    {WIRE_MARK, FRAME_ENGINE, false, sizeof(struct wire_mark), 0, 0, 0, NULL},
    {WIRE_ADMIN_MARK, FRAME_CONTROL, false, sizeof(struct wire_mark), 0, 0, 0, NULL},
    {WIRE_ADMIN_STATUS, FRAME_CONTROL, false, 0, 0, 0, 0, NULL},
    {WIRE_ADMIN_LIST, FRAME_CONTROL, false, sizeof(struct wire_admin_list), 0, 0, 0, check_list},
    {WIRE_ADMIN_SHOW, FRAME_CONTROL, false, sizeof(struct wire_admin_key), 0, 0, 0, NULL},
    {WIRE_ADMIN_VERIFY, FRAME_CONTROL, false, sizeof(struct wire_admin_variant), 0, 0, 0,
     check_variant},
    {WIRE_ADMIN_REMOVE, FRAME_CONTROL, false, sizeof(struct wire_admin_remove), 0, 0, 0,
     check_remove},
    {WIRE_ADMIN_MODELS, FRAME_CONTROL, false, sizeof(struct wire_admin_index), 0, 0, 0,
     check_index},
    {WIRE_ADMIN_TENANTS, FRAME_CONTROL, false, sizeof(struct wire_admin_index), 0, 0, 0,
     check_index},
    {WIRE_ADMIN_COUNTERS, FRAME_CONTROL, false, 0, 0, 0, 0, NULL},
    {WIRE_ADMIN_HISTORY, FRAME_CONTROL, false, sizeof(struct wire_admin_key), 0, 0, 0, NULL},
    {WIRE_ADMIN_TOKENS, FRAME_CONTROL, false, sizeof(struct wire_admin_key), 0, 0, 0, NULL},
    {WIRE_PROFILE, FRAME_ENGINE, false, sizeof(struct wire_profile), 0, 0, 0, NULL},
    {WIRE_PROFILE, FRAME_CONTROL, false, sizeof(struct wire_profile), 0, 0, 0, NULL},
    {WIRE_ADMIN_PROFILE_NEW, FRAME_CONTROL, false, sizeof(struct wire_staging), 0, 0, 0,
     check_staging},
    {WIRE_ADMIN_PROFILE_ADD, FRAME_CONTROL, false, sizeof(struct wire_admin_profile_add), 0, 0, 0,
     check_profile_add},
    {WIRE_ADMIN_PROFILES, FRAME_CONTROL, false, sizeof(struct wire_admin_index), 0, 0, 0,
     check_index},
    {WIRE_ADMIN_PROFILE_RM, FRAME_CONTROL, false, sizeof(struct wire_profile), 0, 0, 0, NULL},
    {WIRE_ADMIN_MEASURE, FRAME_CONTROL, false, sizeof(struct wire_admin_measure),
     offsetof(struct wire_admin_measure, count), sizeof(struct wire_measure),
     LARDER_ADMIN_MEASURES_MAX, check_measure},
    {WIRE_ADMIN_MEASURES, FRAME_CONTROL, false, sizeof(struct wire_admin_index), 0, 0, 0,
     check_index},
    {WIRE_ADMIN_WORKERS, FRAME_CONTROL, false, sizeof(struct wire_admin_index), 0, 0, 0,
     check_index},
    {WIRE_ADMIN_SECTIONS, FRAME_CONTROL, false, sizeof(struct wire_admin_variant), 0, 0, 0,
     check_variant},
    {WIRE_ADMIN_PURGE, FRAME_CONTROL, false, sizeof(struct wire_admin_purge), 0, 0, 0, check_purge},
    {WIRE_ADMIN_ACT, FRAME_CONTROL, false, sizeof(struct wire_admin_act), 0, 0, 0, check_act},
    {WIRE_ADMIN_SCRUB, FRAME_CONTROL, false, sizeof(struct wire_admin_scrub), 0, 0, 0, check_scrub},
    {WIRE_ADMIN_DEMOTE, FRAME_CONTROL, false, sizeof(struct wire_admin_scrub), 0, 0, 0,
     check_scrub},
    {WIRE_ADMIN_GC, FRAME_CONTROL, false, sizeof(struct wire_admin_gc), 0, 0, 0, check_gc},
    {WIRE_ADMIN_DERIVE, FRAME_CONTROL, false, sizeof(struct wire_admin_derive),
     offsetof(struct wire_admin_derive, token_count), 4, LARDER_BLOCK_TOKENS_MAX, check_derive},
};

static const struct shape *find_shape(enum frame_side side, uint16_t type)
{
    if (type == WIRE_HELLO)
        return &engine_hello;
    for (size_t i = 0; i < LARDER_COUNT_OF(shapes); i++) {
        if (shapes[i].type == type && shapes[i].side == side)
            return &shapes[i];
    }
    return NULL;
}

static int wrong_length(uint16_t type, size_t byte_count, uint64_t wanted)
{
    return larder_fail(LARDER_EPROTO,
                       "a frame of type %u has %zu bytes, not the %llu that its type and counts "
                       "demand; see PROTOCOL.md",
                       type, byte_count, (unsigned long long)wanted);
}

int frame_parse(struct frame *out, enum frame_side side, const void *bytes, size_t byte_count)
{
    assert((uintptr_t)bytes % 8 == 0);
    memset(out, 0, sizeof(*out));
    const struct wire_frame *header = bytes;
    if (byte_count < sizeof(*header))
        return bad("frame bytes", byte_count, "a frame has at least 16");
    out->request = header->request;
    out->type = header->type;
    if (byte_count > LARDER_FRAME_BYTES_MAX)
        return bad("frame bytes", byte_count, "a frame has at most 65536");
    if (header->bytes != byte_count)
        return wrong_length(header->type, byte_count, header->bytes);
    if (header->reserved)
        return bad("reserved", header->reserved, "must be 0");

    const struct shape *shape = find_shape(side, header->type);
    if (!shape)
        return bad("type", header->type, "no request of this socket has it");
    if (!shape->one_way && header->request == 0)
        return bad("request", 0, "0 is for frames that answer nothing");

    uint64_t wanted = sizeof(*header) + shape->body_bytes;
    if (byte_count < wanted)
        return wrong_length(header->type, byte_count, wanted);
    out->body = header + 1;
    out->items = (const uint8_t *)out->body + shape->body_bytes;
    if (shape->item_bytes) {
        memcpy(&out->item_count, (const uint8_t *)out->body + shape->count_offset, 4);
        if (out->item_count < 1 || out->item_count > shape->item_max)
            return bad("count", out->item_count, "must be at least 1, and no more than fit");
        wanted += (uint64_t)out->item_count * shape->item_bytes;
    }
    if (byte_count != wanted)
        return wrong_length(header->type, byte_count, wanted);
    return shape->check ? shape->check(out->body) : 0;
}
