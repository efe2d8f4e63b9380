/* SPDX-License-Identifier: Apache-2.0 */
/* larder-bench(1): what larder does a second, each path beside the plainest way to do the same work
 * on this machine, measured in the same run with the order alternated. Starts its own larderd on a
 * fresh directory, and says honestly what fell short.
 */
#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/codec.h"
#include "tools/bench/bench.h"
#include "tools/bench/process.h"
#include "tools/bench/rows.h"

#define TMPFS_MAGIC_NUMBER 0x01021994

const char *argp_program_version = "larder-bench " LARDER_VERSION;

enum aim {
    AIM_NONE,
    RATIO_AT_LEAST,
    RATIO_AT_MOST,
    VALUE_AT_LEAST,
    VALUE_AT_MOST,
};

struct row {
    const char *name;
    const char *what;
    const char *plain; /* NULL: no counterpart */
    const char *unit;
    enum aim aim;
    double limit;
    int (*run)(const struct bench *bench, struct bench_result *out);
    const char *recipe; /* NULL: not about one */
};

#define PRESETS_MAX 64u
/* Encoding may be slower than decoding: it happens once. */
#define ENCODE_AIM 0.25

static const struct row rows[] = {
    {"get_host_vs_memcpy", "GET, host tier, raw", "memcpy", "GB/s", RATIO_AT_LEAST, 0.9,
     row_get_host, NULL},
    {"get_host_first_vs_memcpy", "the same, first touch", "memcpy", "GB/s", RATIO_AT_LEAST, 0.7,
     row_get_host_first, NULL},
    {"get_host_exact", "GET, host tier, exact, one core", NULL, "GB/s", VALUE_AT_LEAST, 1.0,
     row_get_host_exact, NULL},
    {"get_ssd_vs_raw_read", "GET, SSD, raw", "io_uring read", "GB/s", RATIO_AT_LEAST, 0.95,
     row_get_ssd, NULL},
    {"put_durable_vs_raw_write", "PUT, durable, raw", "io_uring write + sync", "GB/s",
     RATIO_AT_LEAST, 0.85, row_put_durable, NULL},
    {"get_ssd_encrypted_vs_plain", "GET, SSD, raw, encrypted", "not encrypted", "GB/s", AIM_NONE, 0,
     row_get_ssd_encrypted, NULL},
    {"put_durable_encrypted_vs_plain", "PUT, durable, raw, encrypted", "not encrypted", "GB/s",
     AIM_NONE, 0, row_put_durable_encrypted, NULL},
    {"put_small_durable_vs_sync", "small PUT, durable, p50", "4 KiB write + sync", "us",
     RATIO_AT_MOST, 4, row_put_small, NULL},
    {"stall_ms_max", "longest PUT or GET, SSD tier full", "longest write or read", "ms",
     VALUE_AT_MOST, 50, row_stall, NULL},
    {"lookup_128k_vs_hash", "lookup of 128k tokens, p50", "hashing them", "us", RATIO_AT_MOST, 2,
     row_lookup, NULL},
    {"rtt_vs_pingpong", "small request, p50", "socket ping-pong", "us", RATIO_AT_MOST, 2,
     row_round_trip, NULL},
    {"clients_8_vs_1", "GET, host tier, raw, 8 clients", "one client", "GB/s", RATIO_AT_LEAST, 0.9,
     row_clients_8, NULL},
    {"clients_64_vs_1", "the same, 64 clients", "one client", "GB/s", RATIO_AT_LEAST, 0.9,
     row_clients_64, NULL},
    {"lookups_8_vs_1", "lookups, 8 clients", "one client", "k/s", RATIO_AT_LEAST, 0.9,
     row_lookups_8, NULL},
    {"lookups_64_vs_1", "lookups, 64 clients", "one client", "k/s", RATIO_AT_LEAST, 0.9,
     row_lookups_64, NULL},
    {"blend_link", "12 chunks, link k=16: 1st token", "prefill", "s", RATIO_AT_MOST, 0.125,
     row_blend_link, NULL},
    {"blend_cacheblend", "the same, cacheblend r=.15", "prefill", "s", RATIO_AT_MOST, 0.333,
     row_blend_cacheblend, NULL},
    {"start", "start, of many entries", NULL, "us/entry", VALUE_AT_MOST, 1, row_start, NULL},
    {"exact_size", "exact: stored size", "raw size", "GB", RATIO_AT_MOST, 0.72, row_exact_size,
     "exact"},
    {"decode_exact", "exact: decode, one core", "memcpy", "GB/s", VALUE_AT_LEAST, 1.5,
     row_codec_decode, "exact"},
    {"decode_kivi4", "kivi4: decode, one core", "memcpy", "GB/s", RATIO_AT_LEAST, 1.0,
     row_codec_decode, "kivi4"},
    {"decode_kivi4_rans", "the same behind rans", "memcpy", "GB/s", VALUE_AT_LEAST, 2.0,
     row_codec_decode,
     "k{quant bits=4 axis=channel group=32 | rans} v{quant bits=4 group=32 | rans}"},
    {"decode_turned4", "4 bits, rope-off, hadamard", "memcpy", "GB/s", RATIO_AT_LEAST, 0.4,
     row_codec_decode, "rope-off | hadamard | quant bits=4 group=128"},
    {"encode_turned4", "the same: encode", "decode", "GB/s", RATIO_AT_LEAST, ENCODE_AIM,
     row_codec_encode, "rope-off | hadamard | quant bits=4 group=128"},
    {"rans_avx512", "rans, AVX-512, symbols", "memcpy", "G/s", VALUE_AT_LEAST, 1.5, row_rans_avx512,
     NULL},
    {"rans_avx2", "rans, AVX2, symbols", "memcpy", "G/s", VALUE_AT_LEAST, 0.3, row_rans_avx2, NULL},
    {"rans_scalar", "rans, scalar, symbols", "memcpy", "G/s", AIM_NONE, 0, row_rans_scalar, NULL},
};

/* Those, and behind them each preset that needs no profile. */
struct row_list {
    struct row rows[LARDER_COUNT_OF(rows) + 2 * PRESETS_MAX];
    size_t count;
    char names[2 * PRESETS_MAX][48];
    char texts[2 * PRESETS_MAX][64];
    size_t made;
};

static struct row_list all;

static bool is_listed(const char *name)
{
    for (size_t i = 0; i < all.count; i++)
        if (strcmp(all.rows[i].name, name) == 0)
            return true;
    return false;
}

static void add_preset(const char *preset, const char *verb, const struct row *like)
{
    char *name = all.names[all.made];
    char *text = all.texts[all.made];
    snprintf(name, sizeof(all.names[0]), "%s_%.30s", verb, preset);
    if (is_listed(name))
        return;
    snprintf(text, sizeof(all.texts[0]), "%.30s: %s, one core", preset, verb);
    all.made++;
    all.rows[all.count] = *like;
    all.rows[all.count].name = name;
    all.rows[all.count].what = text;
    all.rows[all.count++].recipe = preset;
}

static void add_presets(void)
{
    const struct row decode = {.plain = "memcpy", .unit = "GB/s", .run = row_codec_decode};
    const struct row encode = {.plain = "decode",
                               .unit = "GB/s",
                               .aim = RATIO_AT_LEAST,
                               .limit = ENCODE_AIM,
                               .run = row_codec_encode};
    const char *name;
    const char *summary;
    for (uint32_t i = 0; i < PRESETS_MAX && (name = larder_recipe_preset(i, &summary)); i++) {
        struct larder_recipe *recipe;
        if (larder_recipe_open(&recipe, name, NULL) < 0)
            continue;
        bool alone = !larder_recipe_needs_profile(recipe);
        larder_recipe_close(recipe);
        if (!alone || strcmp(name, "raw") == 0)
            continue;
        add_preset(name, "decode", &decode);
        add_preset(name, "encode", &encode);
    }
}

static void make_rows(void)
{
    for (size_t i = 0; i < LARDER_COUNT_OF(rows); i++)
        all.rows[all.count++] = rows[i];
    add_presets();
}

/* --- command line ---------------------------------------------------------------------------- */

struct command_line {
    const char *directory;
    double seconds;
    bool json;
    bool quick;
    bool list;
    bool verbose;
    bool wanted[LARDER_COUNT_OF(all.rows)];
    bool any_wanted;
};

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print JSON for programs", 0},
    {"seconds", 's', "S", 0, "Sample each round of a latency row for S seconds (default 2)", 0},
    {"dir", 'd', "DIR", 0, "Measure the disk that DIR is on (default: the current directory)", 0},
    {"quick", 'q', NULL, 0, "An eighth of the data, three rounds: to see that it works", 0},
    {"list", 'l', NULL, 0, "List the rows", 0},
    {"verbose", 'v', NULL, 0, "Print every round on stderr", 0},
    {0},
};

/* A row by name; "codec": all that are about a recipe or its coder. */
static void want(struct argp_state *state, struct command_line *line, const char *name)
{
    bool found = false;
    for (size_t i = 0; i < all.count; i++) {
        const struct row *row = &all.rows[i];
        bool is_codec = row->recipe || strncmp(row->name, "rans_", 5) == 0;
        if (strcmp(name, row->name) == 0 || (is_codec && strcmp(name, "codec") == 0)) {
            line->wanted[i] = true;
            found = true;
        }
    }
    line->any_wanted = true;
    if (!found)
        argp_error(state, "'%s' is not a row; --list names them", name);
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct command_line *line = state->input;
    char *end;
    switch (key) {
    case 'j':
        line->json = true;
        return 0;
    case 's':
        line->seconds = strtod(argument, &end);
        if (*end || !(line->seconds > 0) || line->seconds > 600)
            argp_error(state, "--seconds=%s is not within 0..600", argument);
        return 0;
    case 'd':
        line->directory = argument;
        return 0;
    case 'q':
        line->quick = true;
        return 0;
    case 'l':
        line->list = true;
        return 0;
    case 'v':
        line->verbose = true;
        return 0;
    case ARGP_KEY_ARG:
        want(state, line, argument);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .args_doc = "[ROW...]",
    .doc = "larder-bench - measures larder beside the plain way to do the same\v"
           "A row passes when it meets its aim. The exit status is 0 when all rows could be "
           "measured, whether they pass or not. Let the machine be idle meanwhile.",
};

/* --- where it happens ------------------------------------------------------------------------ */

static int find_programs(struct bench *bench)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (length < 0)
        return larder_fail(-errno, "/proc/self/exe: %s", strerror(errno));
    path[length] = '\0';
    const char *folder = dirname(path);
    if (strlen(folder) >= sizeof(bench->programs))
        return larder_fail(-ENAMETOOLONG, "path '%s' is longer than %zu", folder,
                           sizeof(bench->programs) - 1);
    strcpy(bench->programs, folder);
    return 0;
}

static int make_directories(struct bench *bench, const char *under)
{
    struct statfs where;
    char full[PATH_MAX];
    if (!realpath(under, full) || statfs(full, &where) < 0)
        return larder_fail(-errno, "%s: %s", under, strerror(errno));
    if (where.f_type == TMPFS_MAGIC_NUMBER)
        return larder_fail(-EINVAL, "%s is in memory, not on a disk; name another with --dir",
                           full);
    if ((size_t)snprintf(bench->directory, sizeof(bench->directory), "%s/larder-bench.XXXXXX",
                         full) >= sizeof(bench->directory))
        return larder_fail(-ENAMETOOLONG, "path '%s' is too long; name another with --dir", full);
    strcpy(bench->sockets, "/tmp/larder-bench.XXXXXX");
    if (!mkdtemp(bench->directory) || !mkdtemp(bench->sockets))
        return larder_fail(-errno, "%s: %s", full, strerror(errno));
    return 0;
}

static struct bench bench;

static void remove_directories(void)
{
    if (bench.directory[0])
        bench_remove_tree(bench.directory);
    if (bench.sockets[0])
        bench_remove_tree(bench.sockets);
}

static void stop(int signal_number)
{
    (void)signal_number;
    bench_stop = 1;
}

/* --- rows ------------------------------------------------------------------------------------ */

static const char *verdict(const struct row *row, const struct bench_result *result)
{
    switch (row->aim) {
    case RATIO_AT_LEAST:
        return result->ratio >= row->limit ? "pass" : "short";
    case RATIO_AT_MOST:
        return result->ratio <= row->limit ? "pass" : "short";
    case VALUE_AT_LEAST:
        return result->value >= row->limit ? "pass" : "short";
    case VALUE_AT_MOST:
        return result->value <= row->limit ? "pass" : "short";
    case AIM_NONE:
        break;
    }
    return "-";
}

static bool is_of_ratio(const struct row *row)
{
    return row->aim == RATIO_AT_LEAST || row->aim == RATIO_AT_MOST;
}

static bool is_upper(const struct row *row)
{
    return row->aim == RATIO_AT_MOST || row->aim == VALUE_AT_MOST;
}

static void describe_aim(char out[32], const struct row *row)
{
    if (row->aim == AIM_NONE)
        snprintf(out, 32, "-");
    else
        snprintf(out, 32, "%s %g%s%s", is_upper(row) ? "<=" : ">=", row->limit,
                 is_of_ratio(row) ? "x" : " ", is_of_ratio(row) ? "" : row->unit);
}

static void print_number(char out[32], double value, const char *unit)
{
    snprintf(out, 32, value >= 100 ? "%.0f %s" : value >= 10 ? "%.1f %s" : "%.2f %s", value, unit);
}

static void print_head(void)
{
    printf("%-32s %11s   %-22s %11s  %6s  %-13s %s\n", "", "larder", "beside", "", "ratio", "aim",
           "");
}

static void print_row(const struct row *row, const struct bench_result *result, int err)
{
    char value[32];
    char plain[32] = "";
    char ratio[32] = "";
    char aim[32];
    if (err < 0) {
        printf("%-32s failed: %s\n", row->what, larder_error_message());
        return;
    }
    print_number(value, result->value, row->unit);
    describe_aim(aim, row);
    if (row->plain) {
        print_number(plain, result->plain, row->unit);
        snprintf(ratio, sizeof(ratio), "%.2fx", result->ratio);
    }
    printf("%-32s %11s   %-22s %11s  %6s  %-13s %-5s  %s\n", row->what, value,
           row->plain ? row->plain : "", plain, ratio, aim, verdict(row, result), result->note);
}

static json_t *row_to_json(const struct row *row, const struct bench_result *result, int err)
{
    if (err < 0)
        return json_pack("{s:s, s:s, s:s}", "row", row->name, "error", larder_error_name(err),
                         "message", larder_error_message());
    json_t *out =
        json_pack("{s:s, s:s, s:f, s:s, s:s}", "row", row->name, "unit", row->unit, "value",
                  result->value, "verdict", verdict(row, result), "note", result->note);
    if (row->plain)
        json_object_update_new(out, json_pack("{s:s, s:f, s:f}", "counterpart", row->plain,
                                              "counterpart_value", result->plain, "ratio",
                                              result->ratio));
    if (row->aim != AIM_NONE)
        json_object_update_new(out, json_pack("{s:f, s:s, s:s}", "aim", row->limit, "aim_of",
                                              is_of_ratio(row) ? "ratio" : "value", "aim_is",
                                              is_upper(row) ? "at most" : "at least"));
    return out;
}

/* Number of rows that could not be measured. */
static int run_rows(const struct command_line *line)
{
    int failed = 0;
    json_t *list = json_array();
    if (!line->json)
        print_head();
    for (size_t i = 0; i < all.count && !bench_stop; i++) {
        const struct row *row = &all.rows[i];
        if (line->any_wanted && !line->wanted[i])
            continue;
        struct bench_result result = {0};
        bench_say(&bench, "%s", row->name);
        bench.recipe = row->recipe;
        int err = row->run(&bench, &result);
        failed += err < 0;
        if (line->json)
            json_array_append_new(list, row_to_json(row, &result, err));
        else
            print_row(row, &result, err);
        fflush(stdout);
    }
    if (line->json) {
        json_t *out = json_pack("{s:s, s:b, s:i, s:o}", "version", LARDER_VERSION, "quick",
                                (int)line->quick, "rounds", (int)bench.rounds, "rows", list);
        json_dumpf(out, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        putchar('\n');
        json_decref(out);
    } else {
        json_decref(list);
    }
    return failed;
}

int main(int argc, char **argv)
{
    struct command_line line = {.directory = ".", .seconds = 0};
    argp_err_exit_status = 2;
    make_rows();
    argp_parse(&parser, argc, argv, 0, NULL, &line);
    if (line.list) {
        for (size_t i = 0; i < all.count; i++)
            printf("%-28s %s%s%s\n", all.rows[i].name, all.rows[i].what,
                   all.rows[i].plain ? " - beside " : "",
                   all.rows[i].plain ? all.rows[i].plain : "");
        return 0;
    }
    bench.rounds = line.quick ? 3 : 5;
    bench.corpus_bytes = line.quick ? 128ull << 20 : 1ull << 30;
    bench.seconds = line.seconds > 0 ? line.seconds : line.quick ? 0.2 : 2;
    bench.verbose = line.verbose;
    atexit(remove_directories);
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    if (find_programs(&bench) < 0 || make_directories(&bench, line.directory) < 0) {
        fprintf(stderr, "larder-bench: %s\n", larder_error_message());
        return 2;
    }
    return run_rows(&line) == 0 ? 0 : 1;
}
