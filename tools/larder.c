/* SPDX-License-Identifier: Apache-2.0 */
/* larder.c - larder(1), the operator's command: options and subcommands. */
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/wire.h"
#include "tools/larder_commands.h"
#include "tools/larder_text.h"

const char *argp_program_version = "larder " LARDER_VERSION;

struct command {
    const char *name;
    const char *arguments; /* for the usage line */
    const char *summary;
    int arguments_min;
    int arguments_max;
    const struct argp *own; /* its own options; NULL: none */
    int (*run)(const struct command_options *options, int argc, char **argv);
};

static const struct argp calibrate_parser;
static const struct argp export_parser;
static const struct argp fsck_parser;
static const struct argp import_parser;
static const struct argp list_parser;
static const struct argp metrics_parser;
static const struct argp profile_parser;
static const struct argp purge_parser;
static const struct argp rm_parser;
static const struct argp scrub_parser;
static const struct argp gc_parser;
static const struct argp demote_parser;
static const struct argp top_parser;
static const struct argp why_parser;
static const struct argp pin_parser;
static const struct argp priority_parser;

static const struct command commands[] = {
    {"status", "", "What larderd holds, and is it healthy", 0, 0, NULL, command_status},
    {"top", "", "What larderd does, again each second", 0, 0, &top_parser, command_top},
    {"metrics", "", "All numbers, for Prometheus", 0, 0, &metrics_parser, command_metrics},
    {"ls", "", "List entries", 0, 0, &list_parser, command_ls},
    {"show", "KEY", "All about one entry", 1, 1, NULL, command_show},
    {"verify", "[KEY...]", "Check entries (all) on SSD; drop bad ones", 0, 1 << 16, NULL,
     command_verify},
    {"scrub", "", "Check all entries on SSD slowly; drop bad ones", 0, 0, &scrub_parser,
     command_scrub},
    {"gc", "", "Empty segments of which little is live", 0, 0, &gc_parser, command_gc},
    {"demote", "", "Keep smaller what nobody used for long", 0, 0, &demote_parser, command_demote},
    {"why", "[KEY]", "Why a lookup missed: of a key, or of --tokens", 0, 1, &why_parser,
     command_why},
    {"pin", "KEY...", "Keep entries, and all before them", 1, 1 << 16, &pin_parser, command_pin},
    {"unpin", "KEY...", "Let go of what was pinned", 1, 1 << 16, NULL, command_unpin},
    {"ttl", "TIME|never KEY...", "Remove entries when that time is over", 2, 1 << 16, NULL,
     command_ttl},
    {"priority", "KEY...", "Make entries worth more or less to eviction", 1, 1 << 16,
     &priority_parser, command_priority},
    {"rm", "KEY...", "Remove entries and what is behind them", 1, 1 << 16, &rm_parser, command_rm},
    {"purge", "TENANT", "Remove all that a tenant has, for good", 1, 1, &purge_parser,
     command_purge},
    {"export", "[KEY]", "Write a chain, of a key or of --tokens, to a file", 0, 1, &export_parser,
     command_export},
    {"import", "FILE", "Store a chain from a file", 1, 1, &import_parser, command_import},
    {"fsck", "DIR", "Check a store that no larderd uses", 1, 1, &fsck_parser, command_fsck},
    {"models", "", "List models", 0, 0, NULL, command_models},
    {"tenants", "", "List tenants and what each holds", 0, 0, NULL, command_tenants},
    {"workers", "", "List models that can be blended, and how their workers do", 0, 0, NULL,
     command_workers},
    {"calibrate", "", "Make a model's profile from a text", 0, 0, &calibrate_parser,
     command_calibrate},
    {"profile", "add FILE | ls | show | rm", "Profiles that recipes read; --default: of its model",
     1, 1 << 16, &profile_parser, command_profile},
    {"quality", "load FILE | ls", "What larder-eval measured of recipes", 1, 2, NULL,
     command_quality},
    {"rag", "add|ask|ls|rm ...", "Answer from chunks of files, stored apart and blended", 1,
     1 << 16, &rag_parser, command_rag},
    {"recipe", "ls | show RECIPE", "List recipes; show the stages of one", 1, 2, NULL,
     command_recipe},
};

enum {
    OPTION_JSON = 256,
    OPTION_TENANT,
    OPTION_MODEL,
    OPTION_LONG,
    OPTION_TOKENS,
    OPTION_EXTRA,
    OPTION_TEXTFILE,
    OPTION_DATA,
    OPTION_REPAIR,
    OPTION_VARIANT,
    OPTION_RATE,
    OPTION_RECIPE,
    OPTION_STATUS,
    OPTION_CANCEL,
    OPTION_LIVE,
    OPTION_BACKGROUND,
    OPTION_FOR,
    OPTION_LEVEL,
    OPTION_PINNED,
    OPTION_YES,
    OPTION_KEY_FILE,
    OPTION_DEFAULT,
    OPTION_TEXT,
    OPTION_WINDOW,
    OPTION_KL_WINDOWS,
    OPTION_BUDGET,
    OPTION_THREADS,
};

struct input {
    struct command_options options; /* first: parsers may take it for the options */
    const struct command *command;
    int argument_first; /* of argv */
};

static const struct argp_option common_options[] = {
    {"socket", 's', "PATH", 0, "larderd's control socket; of rag: that of its clients", 0},
    {"json", OPTION_JSON, NULL, 0, "Print JSON", 0},
    {0},
};

static const struct argp_option list_options[] = {
    {"tenant", OPTION_TENANT, "NAME", 0, "Only entries of this tenant", 0},
    {"model", OPTION_MODEL, "NAME", 0, "Only entries of this model", 0},
    {"limit", 'n', "N", 0, "At most N entries", 0},
    {"long", OPTION_LONG, NULL, 0, "Whole keys", 0},
    {0},
};

static const struct argp_option fsck_options[] = {
    {"data", OPTION_DATA, NULL, 0, "Read every entry, and check all its tags", 0},
    {"repair", OPTION_REPAIR, NULL, 0, "Mend what is wrong; drop what is damaged", 0},
    {"key-file", OPTION_KEY_FILE, "FILE", 0, "Of an encrypted store: larderd's key_file", 0},
    {0},
};

static const struct argp_option scrub_options[] = {
    {"rate", OPTION_RATE, "MB/S", 0, "Read so much a second; default: scrub_rate_bytes", 0},
    {"background", OPTION_BACKGROUND, NULL, 0, "Start it, and do not wait", 0},
    {"status", OPTION_STATUS, NULL, 0, "Only say how far it is, or how the last one ended", 0},
    {"cancel", OPTION_CANCEL, NULL, 0, "End the one that runs", 0},
    {0},
};

static const struct argp_option gc_options[] = {
    {"live", OPTION_LIVE, "PERCENT", 0, "Of which less is live; default: 50", 0},
    {"rate", OPTION_RATE, "MB/S", 0, "Move so much a second; default: scrub_rate_bytes", 0},
    {"background", OPTION_BACKGROUND, NULL, 0, "Start it, and do not wait", 0},
    {"status", OPTION_STATUS, NULL, 0, "Only say how far it is, or how the last one ended", 0},
    {"cancel", OPTION_CANCEL, NULL, 0, "End the one that runs", 0},
    {0},
};

static const struct argp_option demote_options[] = {
    {"rate", OPTION_RATE, "MB/S", 0, "Read and write so much a second; default: demote_rate_bytes",
     0},
    {"background", OPTION_BACKGROUND, NULL, 0, "Start it, and do not wait", 0},
    {"status", OPTION_STATUS, NULL, 0, "Only say how far it is, or how the last one ended", 0},
    {"cancel", OPTION_CANCEL, NULL, 0, "End the one that runs", 0},
    {0},
};

static const struct argp_option export_options[] = {
    {"output", 'o', "FILE", 0, "Where to", 0},
    {"tokens", OPTION_TOKENS, "FILE", 0, "Token ids, as decimal numbers; '-' is standard input", 0},
    {"tenant", OPTION_TENANT, "NAME", 0, "With --tokens: whose; default: the only one", 0},
    {"model", OPTION_MODEL, "NAME", 0, "With --tokens: which; default: as above", 0},
    {"extra", OPTION_EXTRA, "TEXT", 0, "With --tokens: what else was hashed", 0},
    {0},
};

static const struct argp_option import_options[] = {
    {"tenant", OPTION_TENANT, "NAME", 0, "For this tenant; default: the only one", 0},
    {"recipe", OPTION_RECIPE, "RECIPE", 0, "Encode with this one; default: exact", 0},
    {0},
};

static const struct argp_option calibrate_options[] = {
    {"model", OPTION_MODEL, "DIR", 0, "The model's directory", 0},
    {"text", OPTION_TEXT, "FILE", 0, "What it reads, each byte a token", 0},
    {"tokens", OPTION_TOKENS, "FILE", 0, "Instead: token ids, as decimal numbers", 0},
    {"output", 'o', "FILE", 0, "Where to; default: profile.safetensors", 0},
    {"out", 'o', "FILE", OPTION_ALIAS, NULL, 0},
    {"budget", OPTION_BUDGET, "BITS", 0, "Bits an element of the bit map, 2 to 8; default: 3.25",
     0},
    {"window", OPTION_WINDOW, "N", 0, "Tokens read in one piece; default: 1024", 0},
    {"kl-windows", OPTION_KL_WINDOWS, "N", 0,
     "Measure what layers cost on N windows; 0: not at all; default: 8", 0},
    {"threads", OPTION_THREADS, "N", 0, "Default: as many as there are cores", 0},
    {0},
};

static const struct argp_option metrics_options[] = {
    {"output", 'o', "FILE", 0, "Replace FILE, whole, instead of printing", 0},
    {"textfile", OPTION_TEXTFILE, "FILE", OPTION_ALIAS, NULL, 0},
    {0},
};

static const struct argp_option why_options[] = {
    {"tokens", OPTION_TOKENS, "FILE", 0, "Token ids, as decimal numbers; '-' is standard input", 0},
    {"tenant", OPTION_TENANT, "NAME", 0, "Of this tenant; default: the only one", 0},
    {"model", OPTION_MODEL, "NAME", 0, "Of this model, by name or fingerprint; default: as above",
     0},
    {"extra", OPTION_EXTRA, "TEXT", 0, "What else was hashed: a LoRA's name, a salt", 0},
    {0},
};

static const struct argp_option pin_options[] = {
    {"for", OPTION_FOR, "TIME", 0, "So long: 90s, 15m, 12h, 7d; default: until it is unpinned", 0},
    {0},
};

static const struct argp_option priority_options[] = {
    {"level", OPTION_LEVEL, "N", 0, "-8 to 8: each step doubles what it is worth; 0: as before", 0},
    {"for", OPTION_FOR, "TIME", 0, "So long: 90s, 15m, 12h, 7d; default: without end", 0},
    {0},
};

static const struct argp_option profile_options[] = {
    {"default", OPTION_DEFAULT, NULL, 0, "Of its model from now on, for recipes that need one", 0},
    {"long", OPTION_LONG, NULL, 0, "Whole names", 0},
    {0},
};

static const struct argp_option purge_options[] = {
    {"yes", OPTION_YES, NULL, 0, "Do not ask", 0},
    {0},
};

static const struct argp_option rm_options[] = {
    {"variant", OPTION_VARIANT, "N", 0, "Only this variant; others stay, and what is behind", 0},
    {"pinned", OPTION_PINNED, NULL, 0, "Also what is pinned, or before what is", 0},
    {0},
};

static const struct argp_option top_options[] = {
    {"interval", 'i', "SECONDS", 0, "Time between views, 0.1 to 3600; default 1", 0},
    {"count", 'n', "N", 0, "End after N views", 0},
    {0},
};

static error_t parse_common(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case 's':
        input->options.socket = argument;
        return 0;
    case OPTION_JSON:
        input->options.json = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* What counts `what`; at least 1. */
static uint64_t parse_count(struct argp_state *state, const char *text, const char *what)
{
    char *end;
    errno = 0;
    uint64_t count = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9' || count == 0)
        argp_error(state, "'%s' is not a number of %s above 0", text, what);
    return count;
}

static error_t parse_list(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case OPTION_TENANT:
        input->options.tenant = argument;
        return 0;
    case OPTION_MODEL:
        input->options.model = argument;
        return 0;
    case OPTION_LONG:
        input->options.long_keys = true;
        return 0;
    case 'n':
        input->options.limit = parse_count(state, argument, "entries");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_fsck(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case OPTION_DATA:
        input->options.data = true;
        return 0;
    case OPTION_REPAIR:
        input->options.repair = true;
        return 0;
    case OPTION_KEY_FILE:
        input->options.key_file = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_scrub(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    char *end;
    double rate;
    switch (key) {
    case OPTION_RATE:
        rate = strtod(argument, &end);
        if (*end || !*argument || !(rate >= 0.001 && rate <= 1e6))
            argp_error(state, "'%s' is not a number of MB/s from 0.001 to 1000000", argument);
        input->options.rate_bytes = (uint64_t)(rate * 1e6);
        return 0;
    case OPTION_BACKGROUND:
        input->options.scrub_background = true;
        return 0;
    case OPTION_STATUS:
        input->options.scrub_status = true;
        return 0;
    case OPTION_CANCEL:
        input->options.scrub_cancel = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_gc(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    char *end;
    if (key != OPTION_LIVE)
        return parse_scrub(key, argument, state);
    unsigned long percent = strtoul(argument, &end, 10);
    if (*end || !isdigit((unsigned char)*argument) || percent < 1 || percent > 100)
        argp_error(state, "'%s' is not a percentage from 1 to 100", argument);
    input->options.live_percent = (uint32_t)percent;
    return 0;
}

static error_t parse_why(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case OPTION_TOKENS:
        input->options.tokens = argument;
        return 0;
    case OPTION_EXTRA:
        input->options.extra = argument;
        return 0;
    case OPTION_TENANT:
        input->options.tenant = argument;
        return 0;
    case OPTION_MODEL:
        input->options.model = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* What why takes, too. */
static error_t parse_export(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    if (key != 'o')
        return parse_why(key, argument, state);
    input->options.output = argument;
    return 0;
}

static error_t parse_import(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case OPTION_TENANT:
        input->options.tenant = argument;
        return 0;
    case OPTION_RECIPE:
        input->options.recipe = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_calibrate(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    char *end;
    double bits;
    switch (key) {
    case OPTION_TEXT:
        input->options.text = argument;
        return 0;
    case OPTION_WINDOW:
        input->options.window_tokens =
            (uint32_t)larder_min_u64(parse_count(state, argument, "tokens"), UINT32_MAX);
        if (input->options.window_tokens < 2)
            argp_error(state, "a window has at least 2 tokens");
        return 0;
    case OPTION_KL_WINDOWS:
        if (strcmp(argument, "0") == 0)
            input->options.kl_windows = 0;
        else
            input->options.kl_windows =
                (uint32_t)larder_min_u64(parse_count(state, argument, "windows"), UINT32_MAX);
        return 0;
    case OPTION_THREADS:
        input->options.threads =
            (uint32_t)larder_min_u64(parse_count(state, argument, "threads"), 1024);
        return 0;
    case OPTION_BUDGET:
        bits = strtod(argument, &end);
        if (*end || !*argument || !(bits >= 2 && bits <= 8))
            argp_error(state, "'%s' is not a number of bits from 2 to 8", argument);
        input->options.budget_bits = bits;
        return 0;
    case OPTION_MODEL:
    case OPTION_TOKENS:
    case 'o':
        return parse_export(key, argument, state);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_profile(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    (void)argument;
    switch (key) {
    case OPTION_DEFAULT:
        input->options.is_default = true;
        return 0;
    case OPTION_LONG:
        input->options.long_keys = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_purge(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    (void)argument;
    if (key != OPTION_YES)
        return ARGP_ERR_UNKNOWN;
    input->options.yes = true;
    return 0;
}

static error_t parse_rm(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    if (key == OPTION_PINNED) {
        input->options.pinned = true;
        return 0;
    }
    if (key != OPTION_VARIANT)
        return ARGP_ERR_UNKNOWN;
    if (argument[0] < '0' || argument[0] >= '0' + (int)LARDER_VARIANTS_MAX || argument[1] != '\0')
        argp_error(state, "'%s' is no variant: they have numbers from 0 to %u, see larder show",
                   argument, LARDER_VARIANTS_MAX - 1);
    input->options.variant = (uint32_t)(argument[0] - '0');
    return 0;
}

static error_t parse_marks(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    char *end;
    long level;
    switch (key) {
    case OPTION_FOR:
        if (larder_parse_seconds(&input->options.seconds, argument) < 0)
            argp_error(state, "%s", larder_error_message());
        return 0;
    case OPTION_LEVEL:
        level = strtol(argument, &end, 10);
        if (*end || end == argument || level < -LARDER_PRIORITY_MAX || level > LARDER_PRIORITY_MAX)
            argp_error(state, "'%s' is not a number from %d to %d", argument, -LARDER_PRIORITY_MAX,
                       LARDER_PRIORITY_MAX);
        input->options.level = (int)level;
        input->options.level_set = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_metrics(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case 'o':
    case OPTION_TEXTFILE:
        input->options.output = argument;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_top_options(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    char *end;
    double seconds;
    switch (key) {
    case 'i':
        seconds = strtod(argument, &end);
        if (*end || !*argument || !(seconds >= 0.1 && seconds <= 3600))
            argp_error(state, "'%s' is not a number of seconds from 0.1 to 3600", argument);
        input->options.interval_ms = (uint32_t)(seconds * 1000);
        return 0;
    case 'n':
        input->options.count = parse_count(state, argument, "views");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp common_parser = {.options = common_options, .parser = parse_common};
static const struct argp list_parser = {.options = list_options, .parser = parse_list};
static const struct argp export_parser = {.options = export_options, .parser = parse_export};
static const struct argp calibrate_parser = {.options = calibrate_options,
                                             .parser = parse_calibrate};
static const struct argp import_parser = {.options = import_options, .parser = parse_import};
static const struct argp fsck_parser = {.options = fsck_options, .parser = parse_fsck};
static const struct argp scrub_parser = {.options = scrub_options, .parser = parse_scrub};
static const struct argp demote_parser = {.options = demote_options, .parser = parse_scrub};
static const struct argp gc_parser = {.options = gc_options, .parser = parse_gc};
static const struct argp why_parser = {.options = why_options, .parser = parse_why};
static const struct argp profile_parser = {.options = profile_options, .parser = parse_profile};
static const struct argp purge_parser = {.options = purge_options, .parser = parse_purge};
static const struct argp rm_parser = {.options = rm_options, .parser = parse_rm};
static const struct argp metrics_parser = {.options = metrics_options, .parser = parse_metrics};
static const struct argp pin_parser = {.options = pin_options, .parser = parse_marks};
static const struct argp priority_parser = {.options = priority_options, .parser = parse_marks};
static const struct argp top_parser = {.options = top_options, .parser = parse_top_options};

/* --- subcommand ------------------------------------------------------------------------------- */

struct arguments {
    struct input *input;
    int count;
    char **values;
};

static error_t parse_arguments(int key, char *argument, struct argp_state *state)
{
    struct arguments *arguments = state->input;
    const struct command *command = arguments->input->command;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->input;
        if (command->own)
            state->child_inputs[1] = arguments->input;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->count == command->arguments_max)
            argp_error(state, "'%s' is one argument too many", argument);
        arguments->values[arguments->count++] = argument;
        return 0;
    case ARGP_KEY_END:
        if (arguments->count < command->arguments_min)
            argp_error(state, "%s is missing", command->arguments);
        if (arguments->input->options.json &&
            (command->run == command_metrics || command->run == command_top))
            argp_error(state, "larder %s has no JSON; see larder status --json", command->name);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int run_command(struct input *input, int argc, char **argv)
{
    const struct command *command = input->command;
    const struct argp_child children[] = {
        {&common_parser, 0, NULL, 0}, {command->own, 0, NULL, 0}, {0}};
    const struct argp parser = {.parser = parse_arguments,
                                .args_doc = command->arguments,
                                .doc = command->summary,
                                .children = children};
    struct arguments arguments = {.input = input};
    arguments.values = calloc((size_t)argc + 1, sizeof(arguments.values[0]));
    if (!arguments.values)
        return command_failed(larder_fail(-ENOMEM, "no memory for arguments"));

    char name[64];
    snprintf(name, sizeof(name), "larder %s", command->name);
    argv[0] = name;
    argp_parse(&parser, argc, argv, 0, NULL, &arguments);
    int code = command->run(&input->options, arguments.count, arguments.values);
    free(arguments.values);
    return code;
}

/* --- top level -------------------------------------------------------------------------------- */

static error_t parse_top(int key, char *argument, struct argp_state *state)
{
    struct input *input = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = input;
        return 0;
    case ARGP_KEY_ARG:
        for (size_t i = 0; i < LARDER_COUNT_OF(commands); i++) {
            if (strcmp(commands[i].name, argument) == 0)
                input->command = &commands[i];
        }
        if (!input->command)
            argp_error(state, "'%s' is no command", argument);
        input->argument_first = state->next - 1;
        state->next = state->argc; /* the rest is the command's */
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_usage(state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static char *list_commands(int key, const char *text, void *input)
{
    (void)input;
    if (key != ARGP_KEY_HELP_POST_DOC)
        return (char *)(uintptr_t)text;
    size_t bytes = 4096;
    char *out = malloc(bytes);
    if (!out)
        return NULL;
    size_t used = (size_t)snprintf(out, bytes, "Commands:\n");
    for (size_t i = 0; i < LARDER_COUNT_OF(commands) && used < bytes; i++) {
        char usage[64];
        snprintf(usage, sizeof(usage), "%s %s", commands[i].name, commands[i].arguments);
        used +=
            (size_t)snprintf(out + used, bytes - used, "  %-24s %s\n", usage, commands[i].summary);
    }
    if (used < bytes)
        snprintf(
            out + used, bytes - used,
            "\nA KEY may be cut short while it is unambiguous. LARDER_CONTROL_SOCKET names the "
            "socket, too.\nExit codes: 0, 1 when something is wrong (not found, corrupt), 2 "
            "for bad usage or no larderd.");
    return out;
}

int main(int argc, char **argv)
{
    static const struct argp_child children[] = {{&common_parser, 0, NULL, 0}, {0}};
    static const struct argp parser = {.parser = parse_top,
                                       .args_doc = "COMMAND [ARGUMENT...]",
                                       .doc = "larder - looks into a running larderd\v ",
                                       .children = children,
                                       .help_filter = list_commands};
    struct input input = {
        .options = {.interval_ms = 1000,
                    .variant = WIRE_VARIANT_ALL,
                    .window_tokens = 1024,
                    .kl_windows = 8,
                    .budget_bits = 3.25,
                    .rag = {.template = "Q: {}\nA: ", .chunk_bytes = 1024, .tokens = 64}}};
    argp_err_exit_status = COMMAND_USAGE;
    argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &input);
    return run_command(&input, argc - input.argument_first, argv + input.argument_first);
}
