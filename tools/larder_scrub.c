/* SPDX-License-Identifier: Apache-2.0 */
/* larder_scrub.c - `larder scrub`, `larder gc` and `larder demote`: have larderd go over all
 * entries on SSD, to check them, to move them out of segments that are almost empty, or to keep
 * smaller what nobody uses, and watch it. */
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

enum pass_kind {
    PASS_SCRUB,
    PASS_GC,
    PASS_DEMOTE,
};

/* What is said of each kind. */
static const struct pass_words {
    const char *none;
    const char *failed;
} pass_words[] = {
    [PASS_SCRUB] = {"scrubbed", "read"},
    [PASS_GC] = {"moved", "moved"},
    [PASS_DEMOTE] = {"demoted", "demoted"},
};

struct pass {
    enum pass_kind kind;
    const struct command_options *options;
    struct wire_admin_scrub_ok state;
    struct wire_admin_gc_ok gc;
    struct wire_admin_demote_ok demote;
};

static int ask(struct link *link, struct pass *pass, enum wire_scrub_action action)
{
    const struct command_options *options = pass->options;
    if (pass->kind == PASS_SCRUB)
        return link_scrub(link, &pass->state, action, options->rate_bytes);
    const struct wire_admin_gc gc = {
        .action = action, .live_percent = options->live_percent, .rate_bytes = options->rate_bytes};
    int err = pass->kind == PASS_GC ? link_gc(link, &pass->gc, &gc)
                                    : link_demote(link, &pass->demote, action, options->rate_bytes);
    pass->state = pass->kind == PASS_GC ? pass->gc.pass : pass->demote.pass;
    return err;
}

static void show_progress(struct progress *progress, const struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state;
    /* How much a demotion reads and writes is not known before. */
    if (pass->kind == PASS_DEMOTE) {
        progress_step(progress, "entries", state->entries_done,
                      larder_max_u64(state->entries_all, state->entries_done));
        return;
    }
    progress_step(progress, "MB", state->bytes_done / 1000000,
                  larder_max_u64(state->bytes_all, state->bytes_done) / 1000000);
}

/* Until it has ended, or a signal cancels it. */
static int watch(struct link *link, struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state;
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
        show_progress(&progress, pass);
    }
    progress_end(&progress);
    return err;
}

/* What a pass of scrub does not have. */
static json_t *own_json(const struct pass *pass)
{
#define N(of, field) #field, (json_int_t)pass->of.field
    if (pass->kind == PASS_GC)
        return json_pack("{s:I, s:I, s:I, s:I}", N(gc, moved), N(gc, moved_bytes),
                         N(gc, segments_before), N(gc, segments));
    if (pass->kind == PASS_DEMOTE)
        return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", N(demote, demoted),
                         N(demote, saved_bytes), N(demote, demoted_all), N(demote, saved_bytes_all),
                         N(demote, failed_all), N(demote, lines));
#undef N
    return NULL;
}

static int print_json(const struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state;
#define N(field) #field, (json_int_t)state->field
    json_t *json =
        json_pack("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "running",
                  (int)state->running, "cancelled", (int)state->cancelled, N(rate_bytes),
                  N(entries_done), N(entries_all), N(bytes_done), N(bytes_all), N(bad), N(failed),
                  N(started_s), N(ended_s), N(whole_s), N(passes));
#undef N
    json_t *own = own_json(pass);
    if (json && own)
        json_object_update(json, own);
    json_decref(own);
    if (!json)
        return larder_fail(-ENOMEM, "no memory for JSON");
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(json);
    return 0;
}

static void print_own(const struct pass *pass)
{
    char bytes[16];
    if (pass->kind == PASS_GC)
        printf("%llu entries moved, %s; %llu segments, %llu before\n",
               (unsigned long long)pass->gc.moved, larder_human_bytes(bytes, pass->gc.moved_bytes),
               (unsigned long long)pass->gc.segments, (unsigned long long)pass->gc.segments_before);
    if (pass->kind == PASS_DEMOTE)
        printf("%llu entries are smaller now, %s saved; %llu since larderd started\n",
               (unsigned long long)pass->demote.demoted,
               larder_human_bytes(bytes, pass->demote.saved_bytes),
               (unsigned long long)pass->demote.demoted_all);
}

static void print_state(const struct pass *pass)
{
    const struct wire_admin_scrub_ok *state = &pass->state;
    const struct pass_words *words = &pass_words[pass->kind];
    char done[16], all[16], rate[16];
    if (pass->kind == PASS_DEMOTE && pass->demote.lines == 0)
        printf("no demote line of larderd.conf asks for anything\n");
    if (state->started_s == 0) {
        printf("nothing was %s since larderd started\n", words->none);
        return;
    }
    printf("%s: %llu of %llu entries, %s",
           state->running     ? "running"
           : state->cancelled ? "cancelled"
                              : "done",
           (unsigned long long)state->entries_done, (unsigned long long)state->entries_all,
           larder_human_bytes(done, state->bytes_done));
    if (pass->kind != PASS_DEMOTE)
        printf(" of %s", larder_human_bytes(all, state->bytes_all));
    printf(", at %s/s at most\n", larder_human_bytes(rate, state->rate_bytes));
    print_own(pass);
    if (pass->kind != PASS_DEMOTE)
        printf("%llu damaged and dropped, ", (unsigned long long)state->bad);
    printf("%llu could not be %s\n", (unsigned long long)state->failed, words->failed);
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
    return pass->state.bad > 0 || pass->state.failed > 0 ? COMMAND_PROBLEM : COMMAND_OK;
}

int command_scrub(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct pass pass = {.kind = PASS_SCRUB, .options = options};
    return command(&pass);
}

int command_gc(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct pass pass = {.kind = PASS_GC, .options = options};
    return command(&pass);
}

int command_demote(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct pass pass = {.kind = PASS_DEMOTE, .options = options};
    return command(&pass);
}
