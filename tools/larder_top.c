/* SPDX-License-Identifier: Apache-2.0 */
/* larder_top.c - `larder top`: what larderd does, again and again.
 *
 * A view is text of at most 80 columns, made whole and then written once: over the last one on a
 * terminal (where it fits the window, and the terminal is given back as it was), behind it
 * elsewhere. Rates are those since the last view; of the first one, since larderd started.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/event.h"
#include "base/mem.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"

#define COLUMNS_DEFAULT 80
#define ROWS_DEFAULT    24
/* Of numbers that are not a terminal's: no row is left out. */
#define ROWS_ANY       UINT32_MAX
#define LINE_MAX_BYTES 512

static unsigned long long llu(uint64_t value)
{
    return (unsigned long long)value;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* --- numbers ---------------------------------------------------------------------------------- */

struct sample {
    double at_s;
    struct wire_admin_status_ok status;
    struct wire_admin_counters_ok counters;
    struct wire_admin_tenant_ok *tenants;
    size_t tenant_count;
};

struct tenant_row {
    const struct wire_admin_tenant_ok *now;
    struct wire_stat_ok since; /* the last sample: only its counters mean something */
};

static int take(struct link *link, struct sample *sample)
{
    memset(sample, 0, sizeof(*sample));
    LARDER_TRY(link_status(link, &sample->status));
    LARDER_TRY(link_counters(link, &sample->counters));
    LARDER_TRY(link_tenants(link, &sample->tenants, &sample->tenant_count));
    sample->at_s = now_s();
    return 0;
}

static void free_sample(struct sample *sample)
{
    larder_free(sample->tenants);
    memset(sample, 0, sizeof(*sample));
}

/* "1234", "56.7", "0": at most 7 characters for what a machine can do. Returns out. */
static char *text_rate(char out[16], uint64_t count, double seconds)
{
    double rate = (double)count / seconds;
    snprintf(out, 16, rate > 0 && rate < 100 ? "%.1f" : "%.0f", rate);
    return out;
}

static char *text_byte_rate(char out[16], uint64_t bytes, double seconds)
{
    return larder_human_bytes(out, (uint64_t)((double)bytes / seconds));
}

/* The busiest since the last view first; among equals, the busiest ever. */
static int compare_rows(const void *a, const void *b)
{
    const struct tenant_row *x = a, *y = b;
    uint64_t x_since = x->since.gets + x->since.puts, y_since = y->since.gets + y->since.puts;
    uint64_t x_ever = x->now->stat.gets + x->now->stat.puts;
    uint64_t y_ever = y->now->stat.gets + y->now->stat.puts;
    if (x_since != y_since)
        return x_since < y_since ? 1 : -1;
    if (x_ever != y_ever)
        return x_ever < y_ever ? 1 : -1;
    return strncmp(x->now->name, y->now->name, sizeof(x->now->name));
}

/* Tenants keep their index as long as the daemon lives; new ones come behind. */
static void fill_rows(struct tenant_row *rows, const struct sample *now, const struct sample *last)
{
    for (size_t i = 0; i < now->tenant_count; i++) {
        static const struct wire_stat_ok nothing;
        const struct wire_stat_ok *new = &now->tenants[i].stat;
        const struct wire_stat_ok *old = i < last->tenant_count ? &last->tenants[i].stat : &nothing;
        rows[i] = (struct tenant_row){
            .now = &now->tenants[i],
            .since = {.gets = new->gets - old->gets,
                      .puts = new->puts - old->puts,
                      .blocks_hit_host = new->blocks_hit_host - old->blocks_hit_host,
                      .blocks_hit_ssd = new->blocks_hit_ssd - old->blocks_hit_ssd,
                      .blocks_missed = new->blocks_missed - old->blocks_missed},
        };
    }
    qsort(rows, now->tenant_count, sizeof(rows[0]), compare_rows);
}

/* --- view ------------------------------------------------------------------------------------- */

struct view {
    FILE *out;
    const char *line_end;
    uint32_t columns;
    uint32_t rows_left;
};

static void line(struct view *view, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void line(struct view *view, const char *format, ...)
{
    char text[LINE_MAX_BYTES];
    if (view->rows_left == 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    /* On a terminal every line but the last ends, so that a full window does not scroll. */
    fprintf(view->out, "%.*s", (int)view->columns, text);
    view->rows_left--;
    if (view->rows_left > 0)
        fputs(view->line_end, view->out);
}

/* The least bound that `share` of the requests since the last view kept; "-" when there were none.
 * Returns out. */
static char *text_latency(char out[16], const struct sample *now, const struct sample *last,
                          enum wire_latency_kind kind, double share)
{
    static const uint32_t bounds_us[WIRE_LATENCY_BUCKETS - 1] = WIRE_LATENCY_BOUNDS_US;
    const struct wire_latency *new = &now->counters.latencies[kind];
    const struct wire_latency *old = &last->counters.latencies[kind];
    uint64_t all = new->count - old->count;
    uint64_t below = 0;
    uint32_t b = 0;
    for (; all > 0 && b < WIRE_LATENCY_BUCKETS - 1; b++) {
        below += new->buckets[b] - old->buckets[b];
        if ((double)below >= share * (double)all)
            break;
    }
    if (all == 0)
        snprintf(out, 16, "-");
    else if (b == WIRE_LATENCY_BUCKETS - 1)
        snprintf(out, 16, ">3s");
    else if (bounds_us[b] < 1000)
        snprintf(out, 16, "%uus", bounds_us[b]);
    else
        snprintf(out, 16, "%ums", bounds_us[b] / 1000);
    return out;
}

static void show_latency(struct view *view, const struct sample *now, const struct sample *last)
{
    char half[WIRE_LATENCY_KINDS][16], most[WIRE_LATENCY_KINDS][16];
    for (unsigned i = 0; i < WIRE_LATENCY_KINDS; i++) {
        text_latency(half[i], now, last, (enum wire_latency_kind)i, 0.5);
        text_latency(most[i], now, last, (enum wire_latency_kind)i, 0.99);
    }
    line(view, "latency    lookup %s, get %s, put %s; of 99 %%: %s, %s, %s", half[0], half[1],
         half[2], most[0], most[1], most[2]);
}

static void show_decisions(struct view *view, const struct sample *now, const struct sample *last)
{
    uint64_t count[LARDER_WIRE_EVENTS];
    for (unsigned i = 0; i < LARDER_WIRE_EVENTS; i++)
        count[i] = now->counters.events[i] - last->counters.events[i];
    line(view,
         "decisions  %llu evicted, %llu by quota, %llu expired, %llu not admitted, %llu refused",
         llu(count[LARDER_EVENT_EVICTED_HOST] + count[LARDER_EVENT_EVICTED_SSD] +
             count[LARDER_EVENT_EVICTED_SLAB]),
         llu(count[LARDER_EVENT_EVICTED_QUOTA]), llu(count[LARDER_EVENT_EXPIRED]),
         llu(count[LARDER_EVENT_NOT_ADMITTED]), llu(count[LARDER_EVENT_REFUSED]));
}

static void show_machine(struct view *view, const struct sample *sample, const struct sample *last,
                         double seconds)
{
    const struct wire_admin_status_ok *now = &sample->status, *old = &last->status;
    char a[16], b[16], c[16], uptime[32];
    uint64_t host = now->blocks_hit_host - old->blocks_hit_host;
    uint64_t ssd = now->blocks_hit_ssd - old->blocks_hit_ssd;
    uint64_t all = host + ssd + now->blocks_missed - old->blocks_missed;
    line(view, "larderd %.32s, pid %llu, up %s, %s", now->version, llu(now->pid),
         text_duration(uptime, now->uptime_s),
         now->read_only ? "READ-ONLY: a sync failed; check the disk" : "healthy");
    line(view, "directory  %.256s", now->directory);
    line(view, "hit ratio  %s: %s from host, %s from SSD", text_share(a, host + ssd, all),
         text_share(b, host, all), text_share(c, ssd, all));
    line(view, "requests   %s gets/s, %s puts/s, %s refused/s",
         text_rate(a, now->gets - old->gets, seconds), text_rate(b, now->puts - old->puts, seconds),
         text_rate(c, now->puts_refused - old->puts_refused, seconds));
    line(view, "host tier  %s of %s, %llu entries, %llu evicted",
         larder_human_bytes(a, now->bytes_host), larder_human_bytes(b, now->host_bytes_max),
         llu(now->entries_host), llu(now->evicted_host));
    line(view, "SSD tier   %s of %s, %llu entries, %llu evicted",
         larder_human_bytes(a, now->bytes_ssd), larder_human_bytes(b, now->ssd_bytes_max),
         llu(now->entries_durable), llu(now->evicted_ssd));
    line(view, "disk       %s/s read, %s/s written, %s syncs/s",
         text_byte_rate(a, now->bytes_read - old->bytes_read, seconds),
         text_byte_rate(b, now->bytes_written - old->bytes_written, seconds),
         text_rate(c, now->synced_groups - old->synced_groups, seconds));
    show_latency(view, sample, last);
    show_decisions(view, sample, last);
    line(view, "demoted    %llu entries, %s saved", llu(now->demote_entries),
         larder_human_bytes(a, now->demote_saved_bytes));
    line(view, "clients    %u connections, %u leases, %u requests in flight", now->connections,
         now->leases, now->in_flight);
    line(view, "errors     %llu corrupt, %llu I/O errors, %llu malformed frames", llu(now->corrupt),
         llu(now->io_errors), llu(now->frames_refused));
}

static void show_tenant(struct view *view, const struct tenant_row *row, double seconds)
{
    char host[16], ssd[16], gets[16], puts[16], share[16];
    const struct wire_stat_ok *since = &row->since;
    uint64_t hits = since->blocks_hit_host + since->blocks_hit_ssd;
    line(view, "%-20.20s %5u %8llu %8s %8s %7s %7s %7s", row->now->name, row->now->connections,
         llu(row->now->stat.entries), larder_human_bytes(host, row->now->stat.bytes_host),
         larder_human_bytes(ssd, row->now->stat.bytes_ssd), text_rate(gets, since->gets, seconds),
         text_rate(puts, since->puts, seconds),
         text_share(share, hits, hits + since->blocks_missed));
}

static int show(struct view *view, const struct sample *now, const struct sample *last)
{
    double seconds = now->at_s - last->at_s;
    if (last->at_s == 0)
        seconds = (double)now->status.uptime_s;
    /* A daemon's first second counts as one. */
    if (last->at_s == 0 && seconds < 1)
        seconds = 1;
    struct tenant_row *rows = larder_alloc_zero(now->tenant_count + 1, sizeof(*rows));
    if (!rows)
        return larder_fail(-ENOMEM, "no memory for %zu tenants", now->tenant_count);
    fill_rows(rows, now, last);
    show_machine(view, now, last, seconds);
    line(view, "%s", "");
    line(view, "%-20s %5s %8s %8s %8s %7s %7s %7s", "TENANT", "CONNS", "ENTRIES", "HOST", "SSD",
         "GETS/S", "PUTS/S", "HIT");
    for (size_t i = 0; i < now->tenant_count; i++) {
        if (view->rows_left == 1 && i + 1 < now->tenant_count) {
            line(view, "and %zu more; see larder tenants", now->tenant_count - i);
            break;
        }
        show_tenant(view, &rows[i], seconds);
    }
    larder_free(rows);
    return 0;
}

/* --- terminal --------------------------------------------------------------------------------- */

static volatile sig_atomic_t told_to_end;

static void on_end(int signal)
{
    (void)signal;
    told_to_end = 1;
}

static void on_resize(int signal)
{
    (void)signal; /* ends the wait, so that the view is drawn anew */
}

struct terminal {
    bool shows; /* stdout is one */
    bool reads; /* stdin is one, and its settings are in `saved` */
    struct termios saved;
    sigset_t waiting; /* mask while it waits: signals come only there */
};

static void open_terminal(struct terminal *terminal)
{
    memset(terminal, 0, sizeof(*terminal));
    terminal->shows = isatty(STDOUT_FILENO) != 0;

    sigset_t blocked;
    struct sigaction end = {.sa_handler = on_end}, resize = {.sa_handler = on_resize};
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGHUP);
    sigaddset(&blocked, SIGWINCH);
    sigprocmask(SIG_BLOCK, &blocked, &terminal->waiting);
    sigaction(SIGINT, &end, NULL);
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGHUP, &end, NULL);
    sigaction(SIGWINCH, &resize, NULL);
    if (!terminal->shows)
        return;

    if (tcgetattr(STDIN_FILENO, &terminal->saved) == 0) {
        struct termios keys = terminal->saved;
        keys.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        keys.c_cc[VMIN] = 0;
        keys.c_cc[VTIME] = 0;
        /* A shell would get the terminal as it is here. */
        keys.c_cc[VSUSP] = _POSIX_VDISABLE;
        terminal->reads = tcsetattr(STDIN_FILENO, TCSANOW, &keys) == 0;
    }
    fputs("\033[?25l\033[2J", stdout); /* no cursor, an empty window */
}

static void close_terminal(struct terminal *terminal)
{
    if (terminal->shows) {
        fputs("\n\033[?25h", stdout); /* the last view stays */
        fflush(stdout);
    }
    if (terminal->reads)
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal->saved);
}

static void window_size(uint32_t *columns, uint32_t *rows)
{
    struct winsize size = {0};
    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    *columns = size.ws_col ? size.ws_col : COLUMNS_DEFAULT;
    *rows = size.ws_row ? size.ws_row : ROWS_DEFAULT;
}

static int draw(const struct terminal *terminal, const struct sample *now,
                const struct sample *last, bool again)
{
    struct view view = {.line_end = "\n", .columns = COLUMNS_DEFAULT, .rows_left = ROWS_ANY};
    char *text = NULL;
    size_t bytes = 0;
    view.out = open_memstream(&text, &bytes);
    if (!view.out)
        return larder_fail(-ENOMEM, "no memory for a view");
    if (terminal->shows) {
        window_size(&view.columns, &view.rows_left);
        view.line_end = "\033[K\n"; /* what is left of the last view goes */
        fputs("\033[H", view.out);
    } else if (again) {
        fputs("\n", view.out);
    }
    int err = show(&view, now, last);
    if (terminal->shows)
        fputs("\033[K\033[J", view.out);
    fclose(view.out);
    if (err == 0 && (fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout) != 0))
        err = larder_fail(-EIO, "it could not be printed: %m");
    free(text);
    return err;
}

/* --- command ---------------------------------------------------------------------------------- */

/* Until the time is over, the window changes (drawn at once), or q or a signal ends it. */
static int wait_until(const struct terminal *terminal, const struct sample *now,
                      const struct sample *last, double until_s)
{
    while (!told_to_end) {
        double left_s = until_s - now_s();
        if (left_s <= 0)
            return 0;
        struct timespec limit = {.tv_sec = (time_t)left_s,
                                 .tv_nsec = (long)((left_s - (double)(time_t)left_s) * 1e9)};
        struct pollfd keys = {.fd = terminal->reads ? STDIN_FILENO : -1, .events = POLLIN};
        int ready = ppoll(&keys, 1, &limit, &terminal->waiting);
        char key = 0;
        if (ready > 0 && (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q'))
            told_to_end = 1;
        if (ready < 0 && errno == EINTR && !told_to_end && terminal->shows)
            LARDER_TRY(draw(terminal, now, last, true));
    }
    return 0;
}

static int watch(struct link *link, const struct terminal *terminal,
                 const struct command_options *options)
{
    struct sample now = {0};
    struct sample last = {0};
    int err = 0;
    double next_s = now_s();
    for (uint64_t i = 0; err == 0 && !told_to_end; i++) {
        err = take(link, &now);
        if (err == 0)
            err = draw(terminal, &now, &last, i > 0);
        if (err < 0 || i + 1 == options->count)
            break;
        next_s += options->interval_ms / 1e3;
        /* After a stop of the process or the machine: from here on. */
        if (next_s < now_s())
            next_s = now_s() + options->interval_ms / 1e3;
        err = wait_until(terminal, &now, &last, next_s);
        free_sample(&last);
        last = now;
        memset(&now, 0, sizeof(now));
    }
    free_sample(&now);
    free_sample(&last);
    return err;
}

int command_top(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    struct link *link;
    struct terminal terminal;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    open_terminal(&terminal);
    err = watch(link, &terminal, options);
    close_terminal(&terminal);
    link_close(link);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}
