/* SPDX-License-Identifier: Apache-2.0 */
/* larder_metrics.c - `larder metrics`: Prometheus' text format, version 0.0.4.
 *
 * Each table below is one list of metrics: rows with the same name follow each other, as the format
 * asks, and only the first of them says what it is. Names end in their unit, counters in _total.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/event.h"
#include "base/mem.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"

enum kind {
    GAUGE,
    COUNTER,
    HISTOGRAM,
};

struct metric {
    const char *name;
    enum kind kind;
    const char *label; /* "" or NAME="VALUE" */
    size_t offset;     /* in the answer */
    size_t bytes;      /* 4 or 8 */
    const char *help;
};

#define HOST "tier=\"host\""
#define SSD  "tier=\"ssd\""

#define STATUS(field)                                                                              \
    offsetof(struct wire_admin_status_ok, field), sizeof(((struct wire_admin_status_ok *)0)->field)

static const struct metric status_metrics[] = {
    {"larder_uptime_seconds", GAUGE, "", STATUS(uptime_s), "Time since larderd started"},
    {"larder_read_only", GAUGE, "", STATUS(read_only), "1 after a failed sync: an alarm"},
    {"larder_connections", GAUGE, "", STATUS(connections), "Clients that are connected"},
    {"larder_leases", GAUGE, "", STATUS(leases), "Leases that clients hold"},
    {"larder_in_flight_requests", GAUGE, "", STATUS(in_flight), "Requests not yet answered"},
    {"larder_entries", GAUGE, "", STATUS(entries), "Entries stored"},
    {"larder_tier_entries", GAUGE, HOST, STATUS(entries_host), "Entries in a tier"},
    {"larder_tier_entries", GAUGE, SSD, STATUS(entries_durable), ""},
    {"larder_raw_bytes", GAUGE, "", STATUS(raw_bytes), "All entries as they were before encoding"},
    {"larder_tier_bytes", GAUGE, HOST, STATUS(bytes_host), "Stored bytes in a tier"},
    {"larder_tier_bytes", GAUGE, SSD, STATUS(bytes_ssd), ""},
    {"larder_tier_limit_bytes", GAUGE, HOST, STATUS(host_bytes_max), "What a tier may hold"},
    {"larder_tier_limit_bytes", GAUGE, SSD, STATUS(ssd_bytes_max), ""},
    {"larder_slab_bytes", GAUGE, "", STATUS(slab_bytes), "Shared memory mapped for the host tier"},
    {"larder_retired_slab_bytes", GAUGE, "", STATUS(slab_bytes_retired),
     "Shared memory that went to other tenants and that clients still keep"},
    {"larder_segments", GAUGE, "", STATUS(segments), "Segment files"},
    {"larder_segment_bytes", GAUGE, "", STATUS(segment_bytes), "Segment files together"},
    {"larder_staging_bytes", GAUGE, "", STATUS(staging_bytes), "Memory granted for PUTs"},
    {"larder_puts_total", COUNTER, "", STATUS(puts), "PUTs"},
    {"larder_puts_refused_total", COUNTER, "", STATUS(puts_refused), "PUTs without room"},
    {"larder_gets_total", COUNTER, "", STATUS(gets), "GETs"},
    {"larder_hit_blocks_total", COUNTER, HOST, STATUS(blocks_hit_host), "Blocks found, by tier"},
    {"larder_hit_blocks_total", COUNTER, SSD, STATUS(blocks_hit_ssd), ""},
    {"larder_hit_bytes_total", COUNTER, HOST, STATUS(bytes_hit_host), "Bytes of records found"},
    {"larder_hit_bytes_total", COUNTER, SSD, STATUS(bytes_hit_ssd), ""},
    {"larder_missed_blocks_total", COUNTER, "", STATUS(blocks_missed), "Blocks not found"},
    {"larder_corrupt_total", COUNTER, "", STATUS(corrupt), "Records dropped for a bad tag"},
    {"larder_evicted_total", COUNTER, HOST, STATUS(evicted_host), "Entries evicted, by tier"},
    {"larder_evicted_total", COUNTER, SSD, STATUS(evicted_ssd), ""},
    {"larder_removed_total", COUNTER, "", STATUS(removed), "Entries removed on request"},
    {"larder_synced_groups_total", COUNTER, "", STATUS(synced_groups), "Groups written and synced"},
    {"larder_written_bytes_total", COUNTER, "", STATUS(bytes_written), "Bytes written to SSD"},
    {"larder_not_admitted_bytes_total", COUNTER, "", STATUS(bytes_not_admitted),
     "Bytes of records put that were not worth the write to a full SSD"},
    {"larder_demoted_bytes_total", COUNTER, "", STATUS(bytes_demoted),
     "Bytes of those that were written when they left the host tier"},
    {"larder_demote_entries_total", COUNTER, "", STATUS(demote_entries),
     "Entries kept smaller because nobody used them for long"},
    {"larder_demote_saved_bytes_total", COUNTER, "", STATUS(demote_saved_bytes),
     "Bytes of records that this saved"},
    {"larder_read_bytes_total", COUNTER, "", STATUS(bytes_read), "Bytes read from SSD"},
    {"larder_io_errors_total", COUNTER, "", STATUS(io_errors), "Reads and writes that failed"},
    {"larder_fell_back_sections_total", COUNTER, "", STATUS(fell_back),
     "Sections stored exact, because their recipe could not hold them"},
    {"larder_refused_frames_total", COUNTER, "", STATUS(frames_refused), "Malformed messages"},
    {"larder_recovered_entries", GAUGE, "", STATUS(recovered_entries),
     "Entries that the last start found"},
    {"larder_recovered_tail_entries", GAUGE, "", STATUS(recovered_from_tail),
     "Of those, not yet in the index"},
    {"larder_index_rebuilt", GAUGE, "", STATUS(index_rebuilt),
     "1 when the last start made the index anew"},
};

#define TENANT(field)                                                                              \
    offsetof(struct wire_admin_tenant_ok, field), sizeof(((struct wire_admin_tenant_ok *)0)->field)

static const struct metric tenant_metrics[] = {
    {"larder_tenant_connections", GAUGE, "", TENANT(connections), "A tenant's clients"},
    {"larder_tenant_entries", GAUGE, "", TENANT(stat.entries), "A tenant's entries"},
    {"larder_tenant_tier_entries", GAUGE, HOST, TENANT(stat.entries_host),
     "A tenant's entries in a tier"},
    {"larder_tenant_tier_entries", GAUGE, SSD, TENANT(stat.entries_durable), ""},
    {"larder_tenant_tier_bytes", GAUGE, HOST, TENANT(stat.bytes_host),
     "A tenant's stored bytes in a tier"},
    {"larder_tenant_tier_bytes", GAUGE, SSD, TENANT(stat.bytes_ssd), ""},
    {"larder_tenant_tier_quota_bytes", GAUGE, HOST, TENANT(stat.host_bytes_max),
     "What a tenant may have of a tier; 0: no quota"},
    {"larder_tenant_tier_quota_bytes", GAUGE, SSD, TENANT(stat.ssd_bytes_max), ""},
    {"larder_tenant_slab_bytes", GAUGE, "", TENANT(stat.bytes_slabs),
     "Host memory that is a tenant's"},
    {"larder_tenant_retired_slab_bytes", GAUGE, "", TENANT(stat.bytes_slabs_retired),
     "Host memory that went to other tenants and that a tenant's clients still keep"},
    {"larder_tenant_pinned_bytes", GAUGE, "", TENANT(stat.bytes_pinned),
     "Stored bytes of what a tenant has pinned, and before that"},
    {"larder_tenant_gets_total", COUNTER, "", TENANT(stat.gets), "A tenant's GETs"},
    {"larder_tenant_puts_total", COUNTER, "", TENANT(stat.puts), "A tenant's PUTs"},
    {"larder_tenant_hit_blocks_total", COUNTER, HOST, TENANT(stat.blocks_hit_host),
     "A tenant's blocks found, by tier"},
    {"larder_tenant_hit_blocks_total", COUNTER, SSD, TENANT(stat.blocks_hit_ssd), ""},
    {"larder_tenant_missed_blocks_total", COUNTER, "", TENANT(stat.blocks_missed),
     "A tenant's blocks not found"},
    {"larder_tenant_corrupt_total", COUNTER, "", TENANT(stat.corrupt),
     "A tenant's records dropped for a bad tag"},
    {"larder_tenant_fell_back_sections_total", COUNTER, "", TENANT(stat.fell_back),
     "A tenant's sections stored exact, because their recipe could not hold them"},
};

/* --- text ------------------------------------------------------------------------------------- */

/* The value of a label, in its quotes. Ends at a NUL or after `bytes`. */
static void print_quoted(FILE *file, const char *text, size_t bytes)
{
    putc('"', file);
    for (size_t i = 0; i < bytes && text[i]; i++) {
        if (text[i] == '\n')
            fputs("\\n", file);
        else if (text[i] == '"' || text[i] == '\\')
            fprintf(file, "\\%c", text[i]);
        else
            putc(text[i], file);
    }
    putc('"', file);
}

static void print_head(FILE *file, const char *name, enum kind kind, const char *help)
{
    fprintf(file, "# HELP %s %s.\n# TYPE %s %s\n", name, help, name,
            kind == COUNTER     ? "counter"
            : kind == HISTOGRAM ? "histogram"
                                : "gauge");
}

/* `answer` is what the row's offset counts from; `tenant` NULL: none. */
static void print_sample(FILE *file, const struct metric *metric, const void *answer,
                         const struct wire_admin_tenant_ok *tenant)
{
    uint64_t value = 0;
    uint32_t narrow;
    const uint8_t *at = (const uint8_t *)answer + metric->offset;
    if (metric->bytes == sizeof(narrow)) {
        memcpy(&narrow, at, sizeof(narrow));
        value = narrow;
    } else {
        memcpy(&value, at, sizeof(value));
    }
    fputs(metric->name, file);
    if (tenant) {
        fputs("{tenant=", file);
        print_quoted(file, tenant->name, sizeof(tenant->name));
        fprintf(file, "%s%s}", *metric->label ? "," : "", metric->label);
    } else if (*metric->label) {
        fprintf(file, "{%s}", metric->label);
    }
    fprintf(file, " %" PRIu64 "\n", value);
}

static bool is_first(const struct metric *metrics, size_t i)
{
    return i == 0 || strcmp(metrics[i].name, metrics[i - 1].name) != 0;
}

static void print_status(FILE *file, const struct wire_admin_status_ok *status)
{
    print_head(file, "larder_info", GAUGE, "What runs, in its labels; always 1");
    fputs("larder_info{version=", file);
    print_quoted(file, status->version, sizeof(status->version));
    fputs(",directory=", file);
    print_quoted(file, status->directory, sizeof(status->directory));
    fputs(",io=", file);
    print_quoted(file, status->io, sizeof(status->io));
    fputs(",recipe=", file);
    print_quoted(file, status->recipe, sizeof(status->recipe));
    fputs("} 1\n", file);
    for (size_t i = 0; i < LARDER_COUNT_OF(status_metrics); i++) {
        const struct metric *metric = &status_metrics[i];
        if (is_first(status_metrics, i))
            print_head(file, metric->name, metric->kind, metric->help);
        print_sample(file, metric, status, NULL);
    }
    print_head(file, "larder_recovery_seconds", GAUGE, "Time that the last start took to recover");
    fprintf(file, "larder_recovery_seconds %" PRIu64 ".%06" PRIu64 "\n",
            status->recovery_us / 1000000, status->recovery_us % 1000000);
}

static void print_tenants(FILE *file, const struct wire_admin_tenant_ok *tenants, size_t count)
{
    for (size_t i = 0; count > 0 && i < LARDER_COUNT_OF(tenant_metrics); i++) {
        const struct metric *metric = &tenant_metrics[i];
        if (is_first(tenant_metrics, i))
            print_head(file, metric->name, metric->kind, metric->help);
        for (size_t j = 0; j < count; j++)
            print_sample(file, metric, &tenants[j], &tenants[j]);
    }
}

static void print_latencies(FILE *file, const struct wire_admin_counters_ok *counters)
{
    static const char *const names[WIRE_LATENCY_KINDS] = {"lookup", "get", "put"};
    static const uint32_t bounds_us[WIRE_LATENCY_BUCKETS - 1] = WIRE_LATENCY_BOUNDS_US;
    print_head(file, "larder_request_seconds", HISTOGRAM,
               "Time until requests were answered; of GETs, those that found something, until all "
               "of it was loaded");
    for (size_t i = 0; i < WIRE_LATENCY_KINDS; i++) {
        const struct wire_latency *latency = &counters->latencies[i];
        uint64_t below = 0;
        for (size_t b = 0; b < WIRE_LATENCY_BUCKETS - 1; b++) {
            below += latency->buckets[b];
            fprintf(file, "larder_request_seconds_bucket{request=\"%s\",le=\"%g\"} %" PRIu64 "\n",
                    names[i], bounds_us[b] / 1e6, below);
        }
        fprintf(file, "larder_request_seconds_bucket{request=\"%s\",le=\"+Inf\"} %" PRIu64 "\n",
                names[i], latency->count);
        fprintf(file, "larder_request_seconds_sum{request=\"%s\"} %" PRIu64 ".%06" PRIu64 "\n",
                names[i], latency->sum_us / 1000000, latency->sum_us % 1000000);
        fprintf(file, "larder_request_seconds_count{request=\"%s\"} %" PRIu64 "\n", names[i],
                latency->count);
    }
}

static void print_events(FILE *file, const struct wire_admin_counters_ok *counters)
{
    print_head(file, "larder_events_total", COUNTER, "What became of entries, by reason");
    for (unsigned i = 0; i < LARDER_WIRE_EVENTS; i++) {
        const char *label = larder_event_label(i);
        if (*label)
            fprintf(file, "larder_events_total{event=\"%s\"} %" PRIu64 "\n", label,
                    counters->events[i]);
    }
}

static void print_scrub(FILE *file, const struct wire_admin_scrub_ok *scrub)
{
    const struct {
        const char *name;
        const char *help;
        uint64_t value;
    } rows[] = {
        {"larder_scrub_running", "1 while all entries on SSD are read and checked", scrub->running},
        {"larder_scrub_done_bytes", "What this pass, or the last one, has read", scrub->bytes_done},
        {"larder_scrub_all_bytes", "What it has to read", scrub->bytes_all},
        {"larder_scrub_damaged_entries", "What it found damaged, and dropped", scrub->bad},
        {"larder_scrub_unread_entries", "What it could not read", scrub->failed},
        {"larder_scrub_last_whole_timestamp_seconds", "When the last whole pass ended",
         scrub->whole_s},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(rows); i++) {
        print_head(file, rows[i].name, GAUGE, rows[i].help);
        fprintf(file, "%s %" PRIu64 "\n", rows[i].name, rows[i].value);
    }
}

static void print_up(FILE *file, int up)
{
    print_head(file, "larder_up", GAUGE, "1 when larderd answers, else 0 and nothing more is said");
    fprintf(file, "larder_up %d\n", up);
}

/* --- file ------------------------------------------------------------------------------------- */

/* Where the text goes: stdout, or a file that takes the place of another when it is whole. */
struct output {
    FILE *file;
    const char *path;
    char *temporary_path; /* NULL: stdout */
};

static void drop_output(struct output *output)
{
    if (output->temporary_path)
        unlink(output->temporary_path);
    larder_free(output->temporary_path);
}

static int open_output(struct output *output, const char *path)
{
    *output = (struct output){.file = stdout, .path = path};
    if (!path)
        return 0;
    /* In the same folder, for the rename; no reader of *.prom takes it for another file. */
    size_t bytes = strlen(path) + sizeof(".XXXXXX");
    output->temporary_path = larder_alloc(bytes);
    if (!output->temporary_path)
        return larder_fail(-ENOMEM, "no memory for a path");
    snprintf(output->temporary_path, bytes, "%s.XXXXXX", path);
    int fd = mkstemp(output->temporary_path);
    if (fd < 0) {
        int err = larder_fail(-errno, "cannot write beside %s: %m", path);
        larder_free(output->temporary_path);
        return err;
    }
    /* For a collector that runs as another user. */
    output->file = fchmod(fd, 0644) < 0 ? NULL : fdopen(fd, "w");
    if (!output->file) {
        int err = larder_fail(-errno, "cannot write %s: %m", output->temporary_path);
        close(fd);
        drop_output(output);
        return err;
    }
    return 0;
}

static int close_output(struct output *output)
{
    bool failed = ferror(output->file) != 0;
    if (output->temporary_path)
        failed = fclose(output->file) != 0 || failed;
    else
        failed = fflush(output->file) != 0 || failed;
    int err = 0;
    if (failed)
        err = larder_fail(-EIO, "%s could not be written: %m", output->path ? output->path : "it");
    else if (output->temporary_path && rename(output->temporary_path, output->path) < 0)
        err = larder_fail(-errno, "cannot replace %s: %m", output->path);
    if (err < 0)
        drop_output(output);
    else
        larder_free(output->temporary_path);
    return err;
}

/* --- command ---------------------------------------------------------------------------------- */

static int ask(const char *socket, struct wire_admin_status_ok *status,
               struct wire_admin_counters_ok *counters, struct wire_admin_scrub_ok *scrub,
               struct wire_admin_tenant_ok **tenants, size_t *count)
{
    struct link *link;
    LARDER_TRY(link_open(&link, socket));
    int err = link_status(link, status);
    if (err == 0)
        err = link_counters(link, counters);
    if (err == 0)
        err = link_scrub(link, scrub, WIRE_SCRUB_ASK, 0);
    if (err == 0)
        err = link_tenants(link, tenants, count);
    link_close(link);
    return err;
}

int command_metrics(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct wire_admin_status_ok status;
    struct wire_admin_counters_ok counters;
    struct wire_admin_scrub_ok scrub;
    struct wire_admin_tenant_ok *tenants = NULL;
    size_t count = 0;
    struct output output;
    int asked = ask(options->socket, &status, &counters, &scrub, &tenants, &count);
    /* A collector must not go on with the numbers of a daemon that is gone: that is told, too. */
    int code = asked < 0 ? command_failed(asked) : COMMAND_OK;
    int err = open_output(&output, options->output);
    if (err == 0) {
        print_up(output.file, asked == 0);
        if (asked == 0) {
            print_status(output.file, &status);
            print_latencies(output.file, &counters);
            print_events(output.file, &counters);
            print_scrub(output.file, &scrub);
            print_tenants(output.file, tenants, count);
        }
        err = close_output(&output);
    }
    larder_free(tenants);
    return err < 0 ? command_failed(err) : code;
}
