/* SPDX-License-Identifier: Apache-2.0 */
/* larder_status.c - `larder status`, `larder models`, `larder tenants`. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"

static unsigned long long llu(uint64_t value)
{
    return (unsigned long long)value;
}

/* Prints and frees it. */
static int print_json(json_t *json)
{
    if (!json)
        return command_failed(larder_fail(-ENOMEM, "no memory for JSON"));
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(json);
    return COMMAND_OK;
}

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* --- status ----------------------------------------------------------------------------------- */

#define STATUS_NUMBERS(X)                                                                          \
    X(pid)                                                                                         \
    X(uptime_s)                                                                                    \
    X(block_tokens)                                                                                \
    X(threads)                                                                                     \
    X(connections)                                                                                 \
    X(leases)                                                                                      \
    X(in_flight)                                                                                   \
    X(entries)                                                                                     \
    X(entries_host)                                                                                \
    X(entries_durable)                                                                             \
    X(raw_bytes)                                                                                   \
    X(bytes_host)                                                                                  \
    X(bytes_ssd)                                                                                   \
    X(host_bytes_max)                                                                              \
    X(slab_bytes)                                                                                  \
    X(ssd_bytes_max)                                                                               \
    X(segment_bytes)                                                                               \
    X(segments)                                                                                    \
    X(staging_bytes)                                                                               \
    X(puts)                                                                                        \
    X(puts_refused)                                                                                \
    X(gets)                                                                                        \
    X(blocks_hit_host)                                                                             \
    X(blocks_hit_ssd)                                                                              \
    X(blocks_missed)                                                                               \
    X(corrupt)                                                                                     \
    X(evicted_host)                                                                                \
    X(evicted_ssd)                                                                                 \
    X(removed)                                                                                     \
    X(synced_groups)                                                                               \
    X(bytes_written)                                                                               \
    X(bytes_read)                                                                                  \
    X(io_errors)                                                                                   \
    X(recovered_entries)                                                                           \
    X(recovered_from_tail)                                                                         \
    X(recovery_us)                                                                                 \
    X(frames_refused)                                                                              \
    X(bytes_not_admitted)                                                                          \
    X(bytes_demoted)                                                                               \
    X(bytes_hit_host)                                                                              \
    X(bytes_hit_ssd)                                                                               \
    X(fell_back)                                                                                   \
    X(slab_bytes_retired)                                                                          \
    X(demote_entries)                                                                              \
    X(demote_saved_bytes)

static json_t *status_json(const struct wire_admin_status_ok *status)
{
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:b}", "version", status->version, "directory",
                  status->directory, "io", status->io, "recipe", status->recipe, "read_only",
                  status->read_only != 0, "index_rebuilt", status->index_rebuilt != 0);
    if (!json)
        return NULL;
#define STATUS_NUMBER(field) json_object_set_new(json, #field, number(status->field));
    STATUS_NUMBERS(STATUS_NUMBER)
#undef STATUS_NUMBER
    return json;
}

static void print_tiers(const struct wire_admin_status_ok *status)
{
    char a[16], b[16], c[16], d[16];
    printf("entries     %llu, %s raw\n", llu(status->entries),
           larder_human_bytes(a, status->raw_bytes));
    printf("host tier   %llu entries, %s of %s; %s mapped in slabs", llu(status->entries_host),
           larder_human_bytes(a, status->bytes_host), larder_human_bytes(b, status->host_bytes_max),
           larder_human_bytes(c, status->slab_bytes));
    if (status->slab_bytes_retired > 0)
        printf(", and %s kept by clients", larder_human_bytes(d, status->slab_bytes_retired));
    printf("\n");
    printf("SSD tier    %llu entries, %s of %s; %llu segments of %s together\n",
           llu(status->entries_durable), larder_human_bytes(a, status->bytes_ssd),
           larder_human_bytes(b, status->ssd_bytes_max), llu(status->segments),
           larder_human_bytes(c, status->segment_bytes));
    printf("evicted     %llu from host, %llu from SSD; removed %llu\n", llu(status->evicted_host),
           llu(status->evicted_ssd), llu(status->removed));
    printf("demoted     %llu entries not used for long are smaller now, %s saved\n",
           llu(status->demote_entries), larder_human_bytes(a, status->demote_saved_bytes));
    printf("staging     %s\n", larder_human_bytes(d, status->staging_bytes));
}

static void print_use(const struct wire_admin_status_ok *status)
{
    char a[16], b[16], c[16], share[16];
    uint64_t hits = status->blocks_hit_host + status->blocks_hit_ssd;
    printf("gets        %llu; blocks: %llu from host, %llu from SSD, %llu missed (%s hit)\n",
           llu(status->gets), llu(status->blocks_hit_host), llu(status->blocks_hit_ssd),
           llu(status->blocks_missed), text_share(share, hits, hits + status->blocks_missed));
    printf("puts        %llu, and %llu refused for want of room\n", llu(status->puts),
           llu(status->puts_refused));
    printf("disk        %s written in %llu synced groups, %s read, through %s\n",
           larder_human_bytes(a, status->bytes_written), llu(status->synced_groups),
           larder_human_bytes(b, status->bytes_read), status->io);
    printf("admission   %s put and not worth the write, %s of it written later; %s hit on SSD\n",
           larder_human_bytes(a, status->bytes_not_admitted),
           larder_human_bytes(b, status->bytes_demoted),
           larder_human_bytes(c, status->bytes_hit_ssd));
    printf("clients     %u connections, %u leases, %u requests in flight\n", status->connections,
           status->leases, status->in_flight);
    printf(
        "recipes     %llu times K or V of a layer was stored exact: the recipe could not hold it\n",
        llu(status->fell_back));
    printf("errors      %llu corrupt records, %llu I/O errors, %llu malformed frames\n",
           llu(status->corrupt), llu(status->io_errors), llu(status->frames_refused));
    printf("start       %llu entries found in %.1f ms, %llu of them not yet in the index%s\n",
           llu(status->recovered_entries), (double)status->recovery_us / 1000,
           llu(status->recovered_from_tail),
           status->index_rebuilt ? "; the index was made anew" : "");
}

int command_status(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct link *link;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    struct wire_admin_status_ok status;
    err = link_status(link, &status);
    link_close(link);
    if (err < 0)
        return command_failed(err);

    int code = status.read_only ? COMMAND_PROBLEM : COMMAND_OK;
    if (options->json) {
        int printed = print_json(status_json(&status));
        return printed ? printed : code;
    }
    char uptime[32];
    printf("larderd %.32s, pid %llu, up %s\n", status.version, llu(status.pid),
           text_duration(uptime, status.uptime_s));
    printf("directory   %.256s\n", status.directory);
    printf("state       %s\n", status.read_only
                                   ? "READ-ONLY: a sync failed, nothing new is kept; check the "
                                     "disk, then restart larderd"
                                   : "healthy");
    printf("recipe      %.64s, blocks of %u tokens, %u threads\n", status.recipe,
           status.block_tokens, status.threads);
    print_tiers(&status);
    print_use(&status);
    return code;
}

/* --- models ----------------------------------------------------------------------------------- */

static json_t *model_json(const struct wire_admin_model_ok *model)
{
    char fingerprint[65];
    char weights[65];
    const struct larder_model_desc *desc = &model->desc;
    larder_hex(fingerprint, model->fingerprint, 32);
    larder_hex(weights, desc->weights, 32);
    return json_pack("{s:i, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:i, s:s, s:f}", "index",
                     (int)model->index, "name", desc->name, "fingerprint", fingerprint, "weights",
                     weights, "layers", (int)desc->layers, "kv_heads", (int)desc->kv_heads,
                     "k_dims", (int)desc->k_dims, "v_dims", (int)desc->v_dims, "dtype",
                     text_dtype(desc->dtype), "vocab", (int)desc->vocab, "rope",
                     text_rope(desc->rope.kind), "rope_theta", desc->rope.theta);
}

static void model_row(const struct wire_admin_model_ok *model)
{
    char fingerprint[17];
    char size[16];
    const struct larder_model_desc *desc = &model->desc;
    larder_hex(fingerprint, model->fingerprint, 8);
    uint64_t token_bytes = (uint64_t)desc->layers * desc->kv_heads * (desc->k_dims + desc->v_dims) *
                           larder_dtype_bytes(desc->dtype);
    printf("%-28.28s %-16s %6u %5u %5u %5u %-5s %-7s %9s\n", desc->name, fingerprint, desc->layers,
           desc->kv_heads, desc->k_dims, desc->v_dims, text_dtype(desc->dtype),
           text_rope(desc->rope.kind), larder_human_bytes(size, token_bytes));
}

int command_models(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct link *link;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    json_t *array = options->json ? json_array() : NULL;
    if (!options->json)
        printf("%-28s %-16s %6s %5s %5s %5s %-5s %-7s %9s\n", "MODEL", "FINGERPRINT", "LAYERS",
               "HEADS", "K", "V", "DTYPE", "ROPE", "KV/TOKEN");
    for (struct wire_admin_index index = {0}; err == 0; index.index++) {
        const void *body;
        err = link_request(link, &body, WIRE_ADMIN_MODELS, &index, sizeof(index),
                           WIRE_ADMIN_MODEL_OK, sizeof(struct wire_admin_model_ok));
        if (err == 0 && array)
            json_array_append_new(array, model_json(body));
        else if (err == 0)
            model_row(body);
    }
    link_close(link);
    if (err != LARDER_ENOTFOUND) {
        json_decref(array);
        return command_failed(err);
    }
    return options->json ? print_json(array) : COMMAND_OK;
}

/* --- tenants ---------------------------------------------------------------------------------- */

static json_t *tenant_json(const struct wire_admin_tenant_ok *tenant)
{
    char id[33];
    larder_hex(id, tenant->id, 16);
    const struct wire_stat_ok *stat = &tenant->stat;
    return json_pack(
        "{s:i, s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:I, "
        "s:I, s:I, s:I}",
        "index", (int)tenant->index, "name", tenant->name, "id", id, "connections",
        (int)tenant->connections, "entries", (json_int_t)stat->entries, "entries_host",
        (json_int_t)stat->entries_host, "entries_durable", (json_int_t)stat->entries_durable,
        "bytes_host", (json_int_t)stat->bytes_host, "bytes_ssd", (json_int_t)stat->bytes_ssd,
        "gets", (json_int_t)stat->gets, "puts", (json_int_t)stat->puts, "blocks_hit_host",
        (json_int_t)stat->blocks_hit_host, "blocks_hit_ssd", (json_int_t)stat->blocks_hit_ssd,
        "blocks_missed", (json_int_t)stat->blocks_missed, "corrupt", (json_int_t)stat->corrupt,
        "bytes_pinned", (json_int_t)stat->bytes_pinned, "bytes_slabs",
        (json_int_t)stat->bytes_slabs, "ssd_bytes_max", (json_int_t)stat->ssd_bytes_max,
        "host_bytes_max", (json_int_t)stat->host_bytes_max, "fell_back",
        (json_int_t)stat->fell_back, "bytes_slabs_retired", (json_int_t)stat->bytes_slabs_retired);
}

/* "1.2 GB/4.0 GB"; without a quota the first alone. */
static const char *of_quota(char out[40], uint64_t bytes, uint64_t max)
{
    char used[16], limit[16];
    larder_human_bytes(used, bytes);
    snprintf(out, 40, max ? "%s/%s" : "%s", used, larder_human_bytes(limit, max));
    return out;
}

static void tenant_row(const struct wire_admin_tenant_ok *tenant)
{
    char host[40], ssd[40], pinned[16], share[16];
    const struct wire_stat_ok *stat = &tenant->stat;
    uint64_t hits = stat->blocks_hit_host + stat->blocks_hit_ssd;
    printf("%-16.16s %5u %8llu %17s %17s %8s %8llu %6s %7llu\n", tenant->name, tenant->connections,
           llu(stat->entries), of_quota(host, stat->bytes_slabs, stat->host_bytes_max),
           of_quota(ssd, stat->bytes_ssd, stat->ssd_bytes_max),
           larder_human_bytes(pinned, stat->bytes_pinned), llu(stat->gets),
           text_share(share, hits, hits + stat->blocks_missed), llu(stat->corrupt));
}

int command_tenants(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct link *link;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    struct wire_admin_tenant_ok *tenants;
    size_t count;
    err = link_tenants(link, &tenants, &count);
    link_close(link);
    if (err < 0)
        return command_failed(err);
    json_t *array = options->json ? json_array() : NULL;
    if (!options->json)
        printf("%-16s %5s %8s %17s %17s %8s %8s %6s %7s\n", "TENANT", "CONNS", "ENTRIES", "HOST",
               "SSD", "PINNED", "GETS", "HIT", "CORRUPT");
    for (size_t i = 0; i < count; i++) {
        if (array)
            json_array_append_new(array, tenant_json(&tenants[i]));
        else
            tenant_row(&tenants[i]);
    }
    larder_free(tenants);
    return options->json ? print_json(array) : COMMAND_OK;
}
