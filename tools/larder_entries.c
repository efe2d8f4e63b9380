/* SPDX-License-Identifier: Apache-2.0 */
/* larder_entries.c - `larder ls`, `show`, `verify`, `rm`. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_sections.h"
#include "tools/larder_text.h"

/* --- names ------------------------------------------------------------------------------------ */

/* Names of tenants or models by index, asked for when first needed. */
struct names {
    struct link *link;
    uint32_t tenant_count;
    char (*tenants)[LARDER_TENANT_NAME_MAX];
    uint32_t model_count;
    char (*models)[64];
};

static const char *tenant_name(struct names *names, uint32_t index)
{
    while (index >= names->tenant_count) {
        const struct wire_admin_index ask = {names->tenant_count, 0};
        const void *body;
        if (link_request(names->link, &body, WIRE_ADMIN_TENANTS, &ask, sizeof(ask),
                         WIRE_ADMIN_TENANT_OK, sizeof(struct wire_admin_tenant_ok)) < 0)
            return "?";
        const struct wire_admin_tenant_ok *ok = body;
        void *grown =
            larder_realloc(names->tenants, (names->tenant_count + 1) * sizeof(names->tenants[0]));
        if (!grown)
            return "?";
        names->tenants = grown;
        snprintf(names->tenants[names->tenant_count++], LARDER_TENANT_NAME_MAX, "%.63s", ok->name);
    }
    return names->tenants[index];
}

static const char *model_name(struct names *names, uint32_t index)
{
    while (index >= names->model_count) {
        const struct wire_admin_index ask = {names->model_count, 0};
        const void *body;
        if (link_request(names->link, &body, WIRE_ADMIN_MODELS, &ask, sizeof(ask),
                         WIRE_ADMIN_MODEL_OK, sizeof(struct wire_admin_model_ok)) < 0)
            return "?";
        const struct wire_admin_model_ok *ok = body;
        void *grown =
            larder_realloc(names->models, (names->model_count + 1) * sizeof(names->models[0]));
        if (!grown)
            return "?";
        names->models = grown;
        snprintf(names->models[names->model_count++], 64, "%.63s", ok->desc.name);
    }
    return names->models[index];
}

static void free_names(struct names *names)
{
    larder_free(names->tenants);
    larder_free(names->models);
}

static uint64_t age_s(const struct wire_admin_entry *entry)
{
    uint64_t now = (uint64_t)time(NULL);
    return now > entry->created_s ? now - entry->created_s : 0;
}

static json_t *entry_json(const struct wire_admin_entry *entry, const char *tenant,
                          const char *model)
{
    char key[65];
    char parent[65];
    larder_hex(key, entry->key, 32);
    larder_hex(parent, entry->parent, 32);
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:i, s:I, s:s, s:s, "
        "s:b, s:b, s:b, s:b, s:i, s:I, s:I, s:I, s:i, s:i, s:s, s:I}",
        "key", key, "parent", parent, "tenant", tenant, "model", model, "tokens",
        (int)entry->token_count, "depth", (int)entry->depth, "children", (int)entry->children,
        "leases", (int)entry->lease_count, "stored_bytes", (json_int_t)entry->record_bytes,
        "raw_bytes", (json_int_t)entry->raw_bytes, "created_s", (json_int_t)entry->created_s,
        "position", (json_int_t)entry->position, "uses", (json_int_t)entry->uses, "segment",
        (int)entry->segment_id, "segment_offset",
        (json_int_t)entry->segment_page * LARDER_PAGE_BYTES, "quality",
        text_quality(entry->quality), "computed_on", text_quality(entry->computed_on), "in_host",
        entry->in_host != 0, "durable", entry->durable != 0, "pinned", entry->pinned != 0, "held",
        entry->held != 0, "priority", (int)entry->priority, "expires_s",
        (json_int_t)entry->expires_s, "pin_expires_s", (json_int_t)entry->pin_expires_s,
        "priority_expires_s", (json_int_t)entry->priority_expires_s, "variant", (int)entry->variant,
        "variants", (int)entry->variants, "recipe", entry->recipe, "idle_s",
        (json_int_t)entry->idle_s);
}

/* --- ls --------------------------------------------------------------------------------------- */

struct listing {
    const struct command_options *options;
    struct names names;
    uint64_t count;
};

static void ls_row(const struct listing *listing, const struct wire_admin_entry *entry,
                   const char *tenant, const char *model)
{
    char key[65], stored[16], ratio[16], age[16], marks[8];
    bool is_long = listing->options->long_keys;
    larder_hex(key, entry->key, is_long ? 32 : 6);
    printf("%s %-11.11s %-12.12s %6u %5u %8s %6s %-7s %-8s %5s %5llu %s\n", key, tenant, model,
           entry->token_count, entry->depth, larder_human_bytes(stored, entry->record_bytes),
           text_ratio(ratio, entry->raw_bytes, entry->record_bytes), text_quality(entry->quality),
           text_tier(entry), text_age(age, age_s(entry)), (unsigned long long)entry->uses,
           text_marks(marks, entry));
}

static int ls_entry(void *context, const struct wire_admin_entry *entry)
{
    struct listing *listing = context;
    const struct command_options *options = listing->options;
    const char *tenant = tenant_name(&listing->names, entry->tenant);
    const char *model = model_name(&listing->names, entry->model);
    if ((options->tenant && strcmp(options->tenant, tenant) != 0) ||
        (options->model && strcmp(options->model, model) != 0))
        return 0;
    if (options->json) {
        json_t *json = entry_json(entry, tenant, model);
        if (!json)
            return larder_fail(-ENOMEM, "no memory for JSON");
        fputs(listing->count ? ",\n" : "\n", stdout);
        json_dumpf(json, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        json_decref(json);
    } else {
        ls_row(listing, entry, tenant, model);
    }
    listing->count++;
    return options->limit && listing->count >= options->limit;
}

int command_ls(const struct command_options *options, int argc, char **argv)
{
    static const uint8_t any[32];
    struct listing listing = {.options = options};
    (void)argc;
    (void)argv;
    int err = link_open(&listing.names.link, options->socket);
    if (err < 0)
        return command_failed(err);
    if (options->json)
        fputs("[", stdout);
    else
        printf("%-*s %-11s %-12s %6s %5s %8s %6s %-7s %-8s %5s %5s %s\n",
               options->long_keys ? 64 : 12, "KEY", "TENANT", "MODEL", "TOKENS", "DEPTH", "STORED",
               "RATIO", "QUALITY", "TIER", "AGE", "USES", "MARK");
    err = link_each_entry(listing.names.link, any, 0, ls_entry, &listing);
    if (options->json)
        fputs("\n]\n", stdout);
    free_names(&listing.names);
    link_close(listing.names.link);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}

/* --- show ------------------------------------------------------------------------------------- */

static void show_end(const char *what, uint64_t end_s)
{
    char left[32];
    uint64_t now = (uint64_t)time(NULL);
    if (end_s == 0)
        printf("%s\n", what);
    else
        printf("%s for %s more\n", what, text_duration(left, end_s > now ? end_s - now : 0));
}

static void show_marks(const struct wire_admin_entry *entry)
{
    char priority[40];
    if (entry->pinned)
        show_end("pin          pinned", entry->pin_expires_s);
    else if (entry->held)
        printf("pin          held by what is pinned behind it\n");
    if (entry->expires_s)
        show_end("ttl          stored", entry->expires_s);
    snprintf(priority, sizeof(priority), "priority     %+d", entry->priority);
    if (entry->priority)
        show_end(priority, entry->priority_expires_s);
}

static void show_text(const struct wire_admin_show_ok *show)
{
    const struct wire_admin_entry *entry = &show->entry;
    char hex[65], bytes[16], ratio[16], age[16], when[32];
    time_t created = (time_t)entry->created_s;
    struct tm local;
    larder_hex(hex, entry->key, 32);
    printf("key          %s\n", hex);
    larder_hex(hex, entry->parent, 32);
    printf("parent       %s\n", larder_all_zero(entry->parent, 32) ? "none: begins a chain" : hex);
    printf("chain        %u blocks before it, %u directly behind\n", entry->depth, entry->children);
    printf("tokens       %u, first at position %llu\n", entry->token_count,
           (unsigned long long)entry->position);
    printf("tenant       %.63s\n", show->tenant_name);
    larder_hex(hex, show->fingerprint, 32);
    printf("model        %.63s\nfingerprint  %s\n", show->model_name, hex);
    printf("recipe       %.63s\n", entry->recipe);
    printf("quality      %s, computed on %s\n", text_quality(entry->quality),
           text_quality(entry->computed_on));
    printf("raw          %s\n", larder_human_bytes(bytes, entry->raw_bytes));
    printf("stored       %s (%s)\n", larder_human_bytes(bytes, entry->record_bytes),
           text_ratio(ratio, entry->raw_bytes, entry->record_bytes));
    printf("tier         %s\n", text_tier(entry));
    if (entry->segment_id)
        printf("segment      %08u.seg at %llu\n", entry->segment_id,
               (unsigned long long)entry->segment_page * LARDER_PAGE_BYTES);
    if (localtime_r(&created, &local) && strftime(when, sizeof(when), "%F %T", &local))
        printf("created      %s, %s ago\n", when, text_age(age, age_s(entry)));
    show_marks(entry);
    printf("uses         %llu since larderd started, %u leases now; unused for %s\n",
           (unsigned long long)entry->uses, entry->lease_count, text_age(age, entry->idle_s));
}

/* All variants of a key, the one that leads too. */
struct variants {
    struct wire_admin_show_ok show;
    struct larder_model_desc model;
    uint32_t count;
    struct wire_admin_entry entries[LARDER_VARIANTS_MAX];
    struct record_sections sections[LARDER_VARIANTS_MAX];
};

static int add_variant(void *context, const struct wire_admin_entry *entry)
{
    struct variants *variants = context;
    if (variants->count < LARDER_VARIANTS_MAX)
        variants->entries[variants->count++] = *entry;
    return 0;
}

static int ask_variants(struct link *link, struct variants *out, const char *name)
{
    struct wire_admin_entry entry;
    struct wire_admin_model_ok model;
    const void *body;
    LARDER_TRY(link_find(link, &entry, name));
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_SHOW, entry.key, sizeof(entry.key),
                            WIRE_ADMIN_SHOW_OK, sizeof(out->show)));
    memcpy(&out->show, body, sizeof(out->show));
    LARDER_TRY(link_model(link, &model, out->show.entry.model));
    out->model = model.desc;
    LARDER_TRY(link_each_entry(link, entry.key, 64, add_variant, out));
    for (uint32_t i = 0; i < out->count; i++)
        LARDER_TRY(sections_ask(link, &out->sections[i], entry.key, out->entries[i].variant));
    return 0;
}

static void variants_text(const struct variants *variants)
{
    for (uint32_t i = 0; i < variants->count; i++) {
        const struct wire_admin_entry *entry = &variants->entries[i];
        char bytes[16], ratio[16];
        if (variants->count > 1)
            printf("\nvariant %u    %s, %s, %s (%s), %s\n", entry->variant, entry->recipe,
                   text_quality(entry->quality), larder_human_bytes(bytes, entry->record_bytes),
                   text_ratio(ratio, entry->raw_bytes, entry->record_bytes), text_tier(entry));
        sections_text(&variants->sections[i], &variants->model);
    }
}

static void show_json(const struct variants *variants)
{
    const struct wire_admin_show_ok *show = &variants->show;
    char fingerprint[65];
    larder_hex(fingerprint, show->fingerprint, 32);
    json_t *json = entry_json(&show->entry, show->tenant_name, show->model_name);
    json_object_set_new(json, "fingerprint", json_string(fingerprint));
    json_t *records = json_array();
    for (uint32_t i = 0; i < variants->count; i++) {
        json_t *record = entry_json(&variants->entries[i], show->tenant_name, show->model_name);
        sections_json(record, &variants->sections[i], &variants->model);
        json_array_append_new(records, record);
    }
    json_object_set_new(json, "records", records);
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(json);
}

int command_show(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    struct link *link;
    struct variants *variants = larder_alloc_zero(1, sizeof(*variants));
    if (!variants)
        return command_failed(larder_fail(-ENOMEM, "no memory for an entry's variants"));
    int err = link_open(&link, options->socket);
    if (err == 0) {
        err = ask_variants(link, variants, argv[0]);
        link_close(link);
    }
    if (err == 0 && options->json) {
        show_json(variants);
    } else if (err == 0) {
        show_text(&variants->show);
        variants_text(variants);
    }
    larder_free(variants);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}

/* --- verify ----------------------------------------------------------------------------------- */

struct keys {
    uint64_t count;
    uint64_t room;
    struct wire_admin_variant *keys;
};

static int add_key(void *context, const struct wire_admin_entry *entry)
{
    struct keys *keys = context;
    if (keys->count == keys->room) {
        uint64_t room = keys->room ? keys->room * 2 : 1024;
        void *grown = larder_realloc(keys->keys, room * sizeof(keys->keys[0]));
        if (!grown)
            return larder_fail(-ENOMEM, "no memory for %llu keys", (unsigned long long)room);
        keys->keys = grown;
        keys->room = room;
    }
    struct wire_admin_variant *key = &keys->keys[keys->count++];
    *key = (struct wire_admin_variant){.variant = entry->variant};
    memcpy(key->key, entry->key, sizeof(key->key));
    return 0;
}

static int collect_keys(struct link *link, struct keys *keys, int argc, char **argv)
{
    static const uint8_t any[32];
    if (argc == 0)
        return link_each_entry(link, any, 0, add_key, keys);
    for (int i = 0; i < argc; i++) {
        struct wire_admin_entry entry;
        LARDER_TRY(link_find(link, &entry, argv[i]));
        LARDER_TRY(link_each_entry(link, entry.key, 64, add_key, keys));
    }
    return 0;
}

struct verdict {
    uint64_t good;
    uint64_t corrupt;
    uint64_t not_on_ssd;
    uint64_t failed;
    json_t *bad; /* keys, with --json */
};

static int verify_one(struct link *link, struct verdict *verdict,
                      const struct wire_admin_variant *variant)
{
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_VERIFY, variant, sizeof(*variant),
                            WIRE_ADMIN_VERIFY_OK, sizeof(struct wire_admin_verify_ok)));
    int result = ((const struct wire_admin_verify_ok *)body)->result;
    if (result == 0) {
        verdict->good++;
        return 0;
    }
    if (result == LARDER_ENOTFOUND) {
        verdict->not_on_ssd++;
        return 0;
    }
    char hex[65];
    larder_hex(hex, variant->key, 32);
    if (result == LARDER_ECORRUPT)
        verdict->corrupt++;
    else
        verdict->failed++;
    fprintf(stderr, "%s: %s%s\n", hex, larder_error_text(result),
            result == LARDER_ECORRUPT ? "; dropped, with what only it carried" : "");
    if (verdict->bad)
        json_array_append_new(verdict->bad, json_string(hex));
    return 0;
}

int command_verify(const struct command_options *options, int argc, char **argv)
{
    struct link *link;
    struct keys keys = {0};
    struct verdict verdict = {0};
    struct progress progress;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    if (options->json)
        verdict.bad = json_array();
    err = collect_keys(link, &keys, argc, argv);
    progress_start(&progress);
    for (uint64_t i = 0; err == 0 && i < keys.count; i++) {
        progress_step(&progress, "verify", i, keys.count);
        err = verify_one(link, &verdict, &keys.keys[i]);
    }
    progress_end(&progress);
    larder_free(keys.keys);
    link_close(link);
    if (err < 0) {
        json_decref(verdict.bad);
        return command_failed(err);
    }
    if (options->json) {
        json_t *json =
            json_pack("{s:I, s:I, s:I, s:I, s:o}", "good", (json_int_t)verdict.good, "corrupt",
                      (json_int_t)verdict.corrupt, "not_on_ssd", (json_int_t)verdict.not_on_ssd,
                      "failed", (json_int_t)verdict.failed, "bad_keys", verdict.bad);
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(json);
    } else {
        printf("%llu good, %llu corrupt, %llu not readable, %llu not on SSD\n",
               (unsigned long long)verdict.good, (unsigned long long)verdict.corrupt,
               (unsigned long long)verdict.failed, (unsigned long long)verdict.not_on_ssd);
    }
    return verdict.corrupt || verdict.failed ? COMMAND_PROBLEM : COMMAND_OK;
}

/* --- rm --------------------------------------------------------------------------------------- */

int command_rm(const struct command_options *options, int argc, char **argv)
{
    struct link *link;
    uint64_t removed = 0;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    for (int i = 0; err == 0 && i < argc; i++) {
        struct wire_admin_entry entry;
        const void *body;
        struct wire_admin_remove ask = {.variant = options->variant, .pinned = options->pinned};
        err = link_find(link, &entry, argv[i]);
        if (err == 0) {
            memcpy(ask.key, entry.key, sizeof(ask.key));
            err = link_request(link, &body, WIRE_ADMIN_REMOVE, &ask, sizeof(ask),
                               WIRE_ADMIN_REMOVE_OK, sizeof(struct wire_remove_ok));
        }
        if (err == 0)
            removed += ((const struct wire_remove_ok *)body)->removed;
    }
    link_close(link);
    if (options->json)
        printf("{\"removed\": %llu}\n", (unsigned long long)removed);
    else if (err == 0 || removed)
        printf("removed %llu %s\n", (unsigned long long)removed,
               removed == 1 ? "entry" : "entries");
    return err < 0 ? command_failed(err) : COMMAND_OK;
}
