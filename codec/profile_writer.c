/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/profile_writer.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "codec/text.h"
#include "kernels/safetensors.h"

/* The data begins at a multiple of it, and tensors stand by the size of their elements: so each is
 * aligned without holes between them. */
#define DATA_ALIGN 64u

struct item {
    char *name;
    uint8_t *data;
    uint64_t bytes;
    uint64_t shape[LARDER_PROFILE_RANK_MAX];
    uint32_t rank;
    enum larder_profile_type type;
    bool is_text;
};

struct larder_profile_writer {
    struct item *items; /* texts first, then tensors as they stand in the file; by name in each */
    size_t count;
};

static const struct {
    const char *name;
    uint32_t bytes;
} types[] = {
    [LARDER_PROFILE_F32] = {"F32", 4},
    [LARDER_PROFILE_I32] = {"I32", 4},
    [LARDER_PROFILE_U16] = {"U16", 2},
    [LARDER_PROFILE_U8] = {"U8", 1},
};

static void drop_item(struct item *item)
{
    larder_free(item->name);
    larder_free(item->data);
}

static int by_place(const void *a, const void *b)
{
    const struct item *x = a;
    const struct item *y = b;
    if (x->is_text != y->is_text)
        return x->is_text ? -1 : 1;
    if (!x->is_text && x->type != y->type)
        return x->type < y->type ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Takes over what the item points to, also when it fails. */
static int put_item(struct larder_profile_writer *writer, struct item item)
{
    if (!item.name || !item.data) {
        drop_item(&item);
        return larder_fail(-ENOMEM, "no memory for a profile");
    }
    for (size_t i = 0; i < writer->count; i++) {
        struct item *old = &writer->items[i];
        if (old->is_text != item.is_text || strcmp(old->name, item.name) != 0)
            continue;
        drop_item(old);
        *old = item;
        return 0;
    }
    struct item *items =
        larder_realloc(writer->items, (writer->count + 1) * sizeof(*writer->items));
    if (!items) {
        drop_item(&item);
        return larder_fail(-ENOMEM, "no memory for a profile");
    }
    writer->items = items;
    items[writer->count++] = item;
    return 0;
}

static int check_text(const char *text)
{
    for (const char *at = text; *at; at++) {
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\')
            return larder_fail(-EINVAL,
                               "profile: '%.60s' holds a character that is not printable ASCII, a "
                               "quote or a backslash",
                               text);
    }
    return 0;
}

int larder_profile_put_text(struct larder_profile_writer *writer, const char *key,
                            const char *value)
{
    LARDER_TRY(check_text(key));
    LARDER_TRY(check_text(value));
    return put_item(writer, (struct item){.name = larder_strdup(key),
                                          .data = (uint8_t *)larder_strdup(value),
                                          .is_text = true});
}

int larder_profile_put(struct larder_profile_writer *writer, const char *name,
                       enum larder_profile_type type, const uint64_t *shape, uint32_t rank,
                       const void *data)
{
    assert(rank <= LARDER_PROFILE_RANK_MAX);
    LARDER_TRY(check_text(name));
    struct item item = {.type = type, .rank = rank, .bytes = types[type].bytes};
    for (uint32_t i = 0; i < rank; i++) {
        item.shape[i] = shape[i];
        if (!larder_mul_u64(&item.bytes, item.bytes, shape[i]) ||
            item.bytes > LARDER_PROFILE_BYTES_MAX)
            return larder_fail(LARDER_ELIMIT, "profile: tensor %s is larger than %llu bytes", name,
                               (unsigned long long)LARDER_PROFILE_BYTES_MAX);
    }
    item.name = larder_strdup(name);
    item.data = larder_alloc(item.bytes ? item.bytes : 1);
    if (item.data)
        memcpy(item.data, data, item.bytes);
    return put_item(writer, item);
}

/* --- open ------------------------------------------------------------------------------------- */

static int put_number(struct larder_profile_writer *writer, const char *key, uint32_t value)
{
    char text[16];
    snprintf(text, sizeof(text), "%u", value);
    return larder_profile_put_text(writer, key, text);
}

static int put_model(struct larder_profile_writer *writer, const struct larder_model_desc *model)
{
    char digest[2 * sizeof(model->weights) + 1];
    larder_hex(digest, model->weights, sizeof(model->weights));
    LARDER_TRY(larder_profile_put_text(writer, "larder_profile", "1"));
    LARDER_TRY(larder_profile_put_text(writer, "weights", digest));
    LARDER_TRY(put_number(writer, "layers", model->layers));
    LARDER_TRY(put_number(writer, "kv_heads", model->kv_heads));
    LARDER_TRY(put_number(writer, "k_dims", model->k_dims));
    return put_number(writer, "v_dims", model->v_dims);
}

static int put_all(struct larder_profile_writer *writer, const struct larder_weights *tensors)
{
    const char *key;
    const char *text;
    for (size_t i = 0; (text = larder_weights_metadata_at(tensors, i, &key)); i++)
        LARDER_TRY(larder_profile_put_text(writer, key, text));
    for (size_t i = 0; i < larder_weights_count(tensors); i++) {
        const struct larder_weight *tensor = larder_weights_at(tensors, i);
        size_t type = 0;
        while (type < LARDER_COUNT_OF(types) && strcmp(types[type].name, tensor->dtype_name) != 0)
            type++;
        if (type == LARDER_COUNT_OF(types) || tensor->rank > LARDER_PROFILE_RANK_MAX)
            return larder_fail(LARDER_EFORMAT, "profile: tensor %s has type %s and %u dimensions",
                               tensor->name, tensor->dtype_name, tensor->rank);
        LARDER_TRY(larder_profile_put(writer, tensor->name, (enum larder_profile_type)type,
                                      tensor->shape, tensor->rank, tensor->data));
    }
    return 0;
}

static int new_writer(struct larder_profile_writer **out)
{
    *out = larder_alloc_zero(1, sizeof(**out));
    return *out ? 0 : larder_fail(-ENOMEM, "no memory for a profile");
}

/* Ends an open: what was made is handed out, or closed again. */
static int hand_out(struct larder_profile_writer **out, struct larder_profile_writer *writer,
                    int err)
{
    if (err < 0) {
        larder_profile_writer_close(writer);
        return err;
    }
    *out = writer;
    return 0;
}

int larder_profile_writer_open(struct larder_profile_writer **out,
                               const struct larder_model_desc *model)
{
    *out = NULL;
    struct larder_profile_writer *writer;
    LARDER_TRY(new_writer(&writer));
    return hand_out(out, writer, put_model(writer, model));
}

int larder_profile_writer_open_copy(struct larder_profile_writer **out,
                                    const struct larder_profile *profile)
{
    *out = NULL;
    struct larder_profile_writer *writer;
    LARDER_TRY(new_writer(&writer));
    return hand_out(out, writer, put_all(writer, larder_profile_tensors(profile)));
}

void larder_profile_writer_close(struct larder_profile_writer *writer)
{
    if (!writer)
        return;
    for (size_t i = 0; i < writer->count; i++)
        drop_item(&writer->items[i]);
    larder_free(writer->items);
    larder_free(writer);
}

/* --- the file --------------------------------------------------------------------------------- */

static void say_tensor(struct text *out, const struct item *item, uint64_t begin)
{
    text_say(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", item->name, types[item->type].name);
    for (uint32_t i = 0; i < item->rank; i++)
        text_say(out, "%s%llu", i ? "," : "", (unsigned long long)item->shape[i]);
    text_say(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
             (unsigned long long)(begin + item->bytes));
}

/* Returns the bytes of all tensors. */
static uint64_t say_header(struct text *out, const struct larder_profile_writer *writer)
{
    uint64_t data = 0;
    bool in_texts = true;
    text_say(out, "{\"__metadata__\":{");
    for (size_t i = 0; i < writer->count; i++) {
        const struct item *item = &writer->items[i];
        if (item->is_text) {
            text_say(out, "%s\"%s\":\"%s\"", i ? "," : "", item->name, (const char *)item->data);
            continue;
        }
        text_say(out, "%s", in_texts ? "}" : "");
        in_texts = false;
        say_tensor(out, item, data);
        data += item->bytes;
    }
    text_say(out, in_texts ? "}}" : "}");
    return data;
}

int larder_profile_finish(const struct larder_profile_writer *writer, void **bytes,
                          uint64_t *byte_count)
{
    *bytes = NULL;
    *byte_count = 0;
    qsort(writer->items, writer->count, sizeof(*writer->items), by_place);
    struct text text = {0};
    uint64_t data_bytes = say_header(&text, writer);
    /* Room for the zero behind the text, which a space then takes the place of. */
    uint64_t data_at = larder_round_up(sizeof(uint64_t) + text.bytes + 1, DATA_ALIGN);
    if (data_at + data_bytes > LARDER_PROFILE_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "a profile of %llu bytes; the limit is %llu",
                           (unsigned long long)(data_at + data_bytes),
                           (unsigned long long)LARDER_PROFILE_BYTES_MAX);
    uint8_t *file = larder_alloc(data_at + data_bytes);
    if (!file)
        return larder_fail(-ENOMEM, "no memory for a profile of %llu bytes",
                           (unsigned long long)(data_at + data_bytes));
    uint64_t length = data_at - sizeof(uint64_t);
    memcpy(file, &length, sizeof(length));
    text = (struct text){.out = (char *)file + sizeof(length), .room = length};
    say_header(&text, writer);
    memset(file + sizeof(length) + text.bytes, ' ', length - text.bytes);
    uint8_t *at = file + data_at;
    for (size_t i = 0; i < writer->count; i++) {
        const struct item *item = &writer->items[i];
        if (item->is_text || item->bytes == 0)
            continue;
        memcpy(at, item->data, item->bytes);
        at += item->bytes;
    }
    *bytes = file;
    *byte_count = data_at + data_bytes;
    return 0;
}
