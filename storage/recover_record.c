/* SPDX-License-Identifier: Apache-2.0 */
/* recover_record.c - what records say at a start, whichever way they are met: whose they are, which
 * variant, which model, what a tombstone removes.
 * Threads: the one that opens the store.
 */
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "storage/recover_priv.h"

bool recovery_tenant(const struct recovery *recovery, const uint8_t id[16], uint16_t *out)
{
    const struct larder_identity *identity = recovery->store->identity;
    uint32_t count = larder_identity_tenant_count(identity);
    for (uint32_t i = 0; i < count; i++) {
        if (memcmp(larder_identity_tenant(identity, i)->id, id, 16) == 0) {
            *out = (uint16_t)i;
            return true;
        }
    }
    return false;
}

void recovery_variant(struct entry_variant *out, struct larder_store *store,
                      const struct larder_record *record)
{
    *out = (struct entry_variant){
        .generation = record->generation,
        .created_s = table_narrow(record->created_s),
        .position = table_narrow(record->position),
        .raw_bytes = (uint32_t)record->raw_bytes,
        .record_pages = (uint32_t)(record->record_bytes / LARDER_PAGE_BYTES),
        .head_bytes = record->head_bytes,
        .segment_id = record->segment_id,
        .segment_page = record->segment_page,
        .recipe = table_recipe(&store->table, larder_record_recipe(record), record->recipe_bytes,
                               measure_profile(record->profile)),
        .quality = record->quality,
        .computed_on = record->computed_on,
        .computed_on_kl = record->computed_on_kl,
    };
}

int recovery_model(struct recovery *recovery, uint32_t *out, const struct larder_record *record)
{
    struct larder_model_desc desc;
    memcpy(&desc, larder_record_extra(record), sizeof(desc));
    LARDER_TRY(larder_model_check(&desc));
    struct larder_key fingerprint;
    LARDER_TRY(larder_model_fingerprint(&fingerprint, &desc));
    if (memcmp(fingerprint.bytes, record->model, sizeof(record->model)) != 0)
        return larder_fail(LARDER_ECORRUPT, "recovery: a model record of another fingerprint");
    return store_add_model_locked(recovery->store, out, &fingerprint, &desc);
}

bool recovery_removed(struct recovery *recovery, struct removed_key *out,
                      const struct larder_record *record)
{
    *out = (struct removed_key){.generation = record->generation, .all = record->variant == 0};
    if (!out->all) {
        struct entry_variant variant;
        recovery_variant(&variant, recovery->store, record);
        out->name = variant_name_of(&variant);
        out->number = (uint8_t)(record->variant - 1);
    }
    return recovery_tenant(recovery, record->tenant, &out->tenant);
}

uint32_t recovery_find_removed(const struct recovery *recovery, const struct removed_key *removed)
{
    const struct table *table = &recovery->store->table;
    uint32_t id = table_find(table, &removed->key);
    for (; id != TABLE_NONE; id = table_next_variant(table, id)) {
        const struct entry *entry = table_entry(table, id);
        if (entry->tenant == removed->tenant && entry->variant.generation < removed->generation &&
            (removed->all || entry->number == removed->number ||
             variant_is_same(&entry->variant, &removed->name)))
            break;
    }
    return id;
}

int recovery_next(struct recovery *recovery, const struct larder_record **out,
                  const struct segment *segment, uint64_t *offset, enum recovery_read how)
{
    for (;;) {
        int err = how == READ_WHOLE ? scan_record(&recovery->scan, out, segment, *offset)
                                    : scan_head(&recovery->scan, out, segment, *offset);
        if (err != LARDER_ECORRUPT || how == READ_HEAD)
            return err;
        bool unreadable = recovery->scan.unreadable;
        const struct larder_record *torn;
        LARDER_TRY(scan_head(&recovery->scan, &torn, segment, *offset));
        if (unreadable) {
            /* Perhaps it can be read another time; then its sections' tags will tell. */
            *out = torn;
            return 0;
        }
        uint64_t bytes = torn->record_bytes;
        if (recovery->store->log.punches)
            (void)seglog_punch(&recovery->store->log, segment, *offset, bytes);
        *offset += bytes;
    }
}
