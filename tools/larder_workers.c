/* SPDX-License-Identifier: Apache-2.0 */
/* larder_workers.c - `larder workers`: the models whose weights larderd has. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"

static const char *state_name(uint32_t state)
{
    return state == WIRE_WORKER_READY ? "ready" : state == WIRE_WORKER_LOADING ? "loading" : "down";
}

static json_t *worker_json(const struct wire_admin_worker_ok *row)
{
    char fingerprint[65];
    const struct wire_worker_ok *worker = &row->worker;
    larder_hex(fingerprint, row->fingerprint, sizeof(row->fingerprint));
    return json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:f, s:f, s:s, s:s}", "name",
        worker->name, "fingerprint", fingerprint, "state", state_name(row->state), "pid",
        (json_int_t)row->pid, "starts", (json_int_t)row->starts, "blends", (json_int_t)row->blends,
        "failures", (json_int_t)row->failures, "busy_us", (json_int_t)row->busy_us, "waiting",
        (int)worker->waiting, "positions_max", (int)worker->positions_max, "row_ns", worker->row_ns,
        "pair_ns", worker->pair_ns, "device", worker->device, "method", worker->method);
}

static void print_row(const struct wire_admin_worker_ok *row)
{
    char fingerprint[17];
    const struct wire_worker_ok *worker = &row->worker;
    larder_hex(fingerprint, row->fingerprint, 8);
    printf("%-24.24s %-16s %-7s %8llu %6llu %8llu %6llu %7u %10.3f  %.64s\n", worker->name,
           fingerprint, state_name(row->state), (unsigned long long)row->pid,
           (unsigned long long)row->starts, (unsigned long long)row->blends,
           (unsigned long long)row->failures, worker->waiting, worker->row_ns / 1e6,
           worker->device);
}

/* All rows, printed as they come, or into `array`. Is each of them ready? */
static int list(struct link *link, json_t *array, bool *all_ready)
{
    int err = 0;
    *all_ready = true;
    for (struct wire_admin_index index = {0}; err == 0; index.index++) {
        const void *body;
        err = link_request(link, &body, WIRE_ADMIN_WORKERS, &index, sizeof(index),
                           WIRE_ADMIN_WORKER_OK, sizeof(struct wire_admin_worker_ok));
        if (err < 0)
            break;
        const struct wire_admin_worker_ok *row = body;
        *all_ready = *all_ready && row->state == WIRE_WORKER_READY;
        if (!array)
            print_row(row);
        else if (json_array_append_new(array, worker_json(row)) < 0)
            err = larder_fail(-ENOMEM, "no memory for JSON");
    }
    return err == LARDER_ENOTFOUND ? 0 : err;
}

int command_workers(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct link *link;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    json_t *array = options->json ? json_array() : NULL;
    bool all_ready;
    if (!options->json)
        printf("%-24s %-16s %-7s %8s %6s %8s %6s %7s %10s  %s\n", "MODEL", "FINGERPRINT", "STATE",
               "PID", "STARTS", "BLENDS", "FAILED", "WAITING", "MS/TOKEN", "DEVICE");
    err = list(link, array, &all_ready);
    link_close(link);
    if (err == 0 && array) {
        json_dumpf(array, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
    }
    json_decref(array);
    if (err < 0)
        return command_failed(err);
    return all_ready ? COMMAND_OK : COMMAND_PROBLEM;
}
