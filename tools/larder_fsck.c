/* SPDX-License-Identifier: Apache-2.0 */
/* larder_fsck.c - `larder fsck`: checks a store that no larderd uses. Exit codes as fsck(8)'s. */
#include <jansson.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "storage/fsck.h"
#include "tools/larder_commands.h"
#include "tools/larder_text.h"

enum {
    FSCK_CLEAN = 0,
    FSCK_REPAIRED = 1,
    FSCK_LEFT = 4,
    FSCK_FAILED = 8,
};

struct work {
    const struct command_options *options;
    struct progress progress;
    json_t *findings; /* of the last check; NULL: printed as they come */
};

static void on_finding(void *context, const char *text)
{
    struct work *work = context;
    progress_end(&work->progress);
    if (work->findings)
        json_array_append_new(work->findings, json_string(text));
    else
        printf("%s\n", text);
}

static void on_progress(void *context, const char *what, uint64_t done, uint64_t all)
{
    struct work *work = context;
    progress_step(&work->progress, what, done, all);
}

static const char *index_text(uint32_t state)
{
    static const char *const texts[] = {"sound", "missing", "damaged"};
    return texts[state];
}

static void print_report(const struct larder_fsck_report *report, const char *directory, bool data)
{
    char bytes[16], read[16];
    uint64_t left = larder_fsck_findings(report);
    printf("%s: %llu entries, %llu tenants, %llu models, %llu segments of %s\n", directory,
           (unsigned long long)report->entries, (unsigned long long)report->tenants,
           (unsigned long long)report->models, (unsigned long long)report->segments,
           larder_human_bytes(bytes, report->segment_bytes));
    if (report->tail > 0)
        printf("%llu entries were written last and are not in the index yet: the next start puts "
               "them there\n",
               (unsigned long long)report->tail);
    if (report->unindexed > 0)
        printf("%llu records are not in the index: evicted, or given up\n",
               (unsigned long long)report->unindexed);
    if (data)
        printf("%s of entries were read and their tags checked\n",
               larder_human_bytes(read, report->read_bytes));
    if (report->findings_before > 0)
        printf(
            "%s: of %llu things that were wrong, %llu are left; %llu entries fewer than before\n",
            left ? "NOT REPAIRED" : "repaired", (unsigned long long)report->findings_before,
            (unsigned long long)left, (unsigned long long)report->dropped);
    else if (left > report->unreadable)
        printf("%llu things are wrong; larder fsck --repair mends them\n",
               (unsigned long long)(left - report->unreadable));
    else if (left > 0)
        printf("all else is sound\n");
    else
        printf("clean\n");
}

static void print_json(const struct larder_fsck_report *report, json_t *findings)
{
#define N(field) #field, (json_int_t)report->field
    json_t *json = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:O}",
        N(entries), N(tenants), N(models), N(segments), N(segment_bytes), N(unindexed), N(tail),
        N(read_bytes), "index", index_text(report->index), N(bad_tenant_copies), N(bad_rows),
        N(stale_rows), N(bad_entries), N(unreadable), N(findings_before), N(dropped),
        "findings_left", (json_int_t)larder_fsck_findings(report), "findings", findings);
#undef N
    if (json)
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(json);
}

int command_fsck(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    struct work work = {.options = options, .findings = options->json ? json_array() : NULL};
    const struct larder_fsck_options ask = {
        .store = {.directory = argv[0], .key_file = options->key_file},
        .data = options->data,
        .repair = options->repair,
        .finding = on_finding,
        .progress = on_progress,
        .context = &work};
    struct larder_fsck_report report;
    larder_log_set_level(LARDER_LOG_WARN);
    progress_start(&work.progress);
    int err = larder_store_fsck(&report, &ask);
    progress_end(&work.progress);
    if (err < 0) {
        json_decref(work.findings);
        command_failed(err);
        return FSCK_FAILED;
    }
    if (options->json)
        print_json(&report, work.findings);
    else
        print_report(&report, argv[0], options->data);
    json_decref(work.findings);
    if (larder_fsck_findings(&report) > 0)
        return FSCK_LEFT;
    return report.findings_before > 0 ? FSCK_REPAIRED : FSCK_CLEAN;
}
