/* SPDX-License-Identifier: Apache-2.0 */
/* larder_scrub.c - `larder scrub` and `larder gc`: have larderd go over all entries on SSD, to
 * check them or to move them out of segments that are almost empty, and watch it. */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"

#define LOOK_EVERY_MS 100

static volatile sig_atomic_t told_to_end;

static void on_end(int signal)
{
    (void)signal;
    told_to_end = 1;
}

/* A pass of either kind. */
struct pass {
    bool moves;
    const struct command_options *options;
    struct wire_admin_gc_ok state;
};

static int ask(struct link *link, struct pass *pass, enum wire_scrub_action action)
{
    const struct command_options *options = pass->options;
    if (!pass->moves)
        return link_scrub(link, &pass->state.pass, action, options->rate_bytes);
    const struct wire_admin_gc gc = {
        .action = action, .live_percent = options->live_percent, .rate_bytes = options->rate_bytes};
    return link_gc(link, &pass->state, &gc);
}

/* Until it has ended, or a signal cancels it. */
static int watch(struct link *link, struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state.pass;
    const struct timespec pause = {.tv_nsec = LOOK_EVERY_MS * 1000000};
    struct sigaction end = {.sa_handler = on_end};
    struct progress progress;
    int err = 0;
    sigaction(SIGINT, &end, NULL);
    sigaction(SIGTERM, &end, NULL);
    progress_start(&progress);
    while (err == 0 && state->running) {
        nanosleep(&pause, NULL);
        err = ask(link, pass, told_to_end ? WIRE_SCRUB_CANCEL : WIRE_SCRUB_ASK);
        bool more = state->bytes_all > state->bytes_done;
        progress_step(&progress, "MB", state->bytes_done / 1000000,
                      (more ? state->bytes_all : state->bytes_done) / 1000000);
    }
    progress_end(&progress);
    return err;
}

static int print_json(const struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state.pass;
#define N(field) #field, (json_int_t)state->field
    json_t *json =
        json_pack("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "running",
                  (int)state->running, "cancelled", (int)state->cancelled, N(rate_bytes),
                  N(entries_done), N(entries_all), N(bytes_done), N(bytes_all), N(bad), N(failed),
                  N(started_s), N(ended_s), N(whole_s), N(passes));
#undef N
#define N(field) #field, (json_int_t)pass->state.field
    json_t *moved = json_pack("{s:I, s:I, s:I, s:I}", N(moved), N(moved_bytes), N(segments_before),
                              N(segments));
#undef N
    if (json && moved && pass->moves)
        json_object_update(json, moved);
    json_decref(moved);
    if (!json)
        return larder_fail(-ENOMEM, "no memory for JSON");
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(json);
    return 0;
}

static void print_state(const struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state.pass;
    char done[16], all[16], rate[16];
    if (state->started_s == 0) {
        printf("nothing was %s since larderd started\n", pass->moves ? "moved" : "scrubbed");
        return;
    }
    printf("%s: %llu of %llu entries, %s of %s, at %s/s at most\n",
           state->running     ? "running"
           : state->cancelled ? "cancelled"
                              : "done",
           (unsigned long long)state->entries_done, (unsigned long long)state->entries_all,
           larder_human_bytes(done, state->bytes_done), larder_human_bytes(all, state->bytes_all),
           larder_human_bytes(rate, state->rate_bytes));
    if (pass->moves)
        printf("%llu entries moved, %s; %llu segments, %llu before\n",
               (unsigned long long)pass->state.moved,
               larder_human_bytes(done, pass->state.moved_bytes),
               (unsigned long long)pass->state.segments,
               (unsigned long long)pass->state.segments_before);
    printf("%llu damaged and dropped, %llu could not be %s\n", (unsigned long long)state->bad,
           (unsigned long long)state->failed, pass->moves ? "moved" : "read");
}

static int command(struct pass *pass)
{
    const struct command_options *options = pass->options;
    if (options->scrub_status + options->scrub_cancel + options->scrub_background > 1)
        return command_failed(
            larder_fail(-EINVAL, "only one of --status, --cancel and --background makes sense"));
    struct link *link;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    err = ask(link, pass,
              options->scrub_status   ? WIRE_SCRUB_ASK
              : options->scrub_cancel ? WIRE_SCRUB_CANCEL
                                      : WIRE_SCRUB_START);
    if (err == 0 && !options->scrub_status && !options->scrub_background)
        err = watch(link, pass);
    link_close(link);
    if (err == 0 && options->json)
        err = print_json(pass);
    else if (err == 0)
        print_state(pass);
    if (err < 0)
        return command_failed(err);
    return pass->state.pass.bad > 0 || pass->state.pass.failed > 0 ? COMMAND_PROBLEM : COMMAND_OK;
}

int command_scrub(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct pass pass = {.options = options};
    return command(&pass);
}

int command_gc(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct pass pass = {.options = options, .moves = true};
    return command(&pass);
}
