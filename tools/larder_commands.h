/* SPDX-License-Identifier: Apache-2.0 */
/* larder_commands.h - the subcommands of larder(1).
 *
 * Each prints for people, or JSON, on stdout, and returns an exit code. Messages go to stderr.
 */
#ifndef LARDER_TOOLS_LARDER_COMMANDS_H
#define LARDER_TOOLS_LARDER_COMMANDS_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    COMMAND_OK = 0,
    COMMAND_PROBLEM = 1, /* asked and answered, but something is wrong: not found, corrupt */
    COMMAND_USAGE = 2,   /* could not be asked: usage, no daemon */
};

struct rag_options {
    const char *catalogue; /* NULL: the default */
    const char *chunks;    /* NULL: all */
    const char *name;      /* NULL: the file's */
    const char *method;
    const char *template;
    uint32_t chunk_bytes;
    uint32_t top; /* 0: all */
    uint32_t deadline_ms;
    uint32_t tokens;
    bool lines;
    bool compare;
};

struct command_options {
    const char *socket; /* NULL: from the environment, else the default */
    bool json;
    /* ls, why, export, import */
    const char *tenant;
    const char *model;
    uint64_t limit; /* 0: all */
    bool long_keys;
    /* rm */
    uint32_t variant; /* WIRE_VARIANT_ALL: all of a key, and what is behind */
    bool pinned;
    bool yes; /* purge */
    /* pin, priority */
    uint64_t seconds; /* 0: without end */
    int level;
    bool level_set;
    /* why, export */
    const char *tokens; /* NULL: a key */
    const char *extra;
    /* fsck */
    bool data;
    bool repair;
    /* scrub */
    uint64_t rate_bytes;
    bool scrub_status;
    bool scrub_cancel;
    bool scrub_background;
    uint32_t live_percent; /* of gc */
    const char *key_file;
    /* metrics, export */
    const char *output; /* NULL: stdout */
    /* import */
    const char *recipe;
    /* calibrate; and model, tokens, output */
    const char *text;
    uint32_t window_tokens;
    uint32_t kl_windows;
    uint32_t threads; /* 0: as many as there are cores */
    double budget_bits;
    bool is_default; /* profile add */
    /* rag; and model, threads */
    struct rag_options rag;
    /* top */
    uint32_t interval_ms;
    uint64_t count; /* 0: until it is told to end */
};

/* `argv` holds what stands behind the subcommand; argc counts it. */
int command_status(const struct command_options *options, int argc, char **argv);
int command_models(const struct command_options *options, int argc, char **argv);
int command_tenants(const struct command_options *options, int argc, char **argv);
int command_workers(const struct command_options *options, int argc, char **argv);
int command_metrics(const struct command_options *options, int argc, char **argv);
int command_top(const struct command_options *options, int argc, char **argv);
int command_ls(const struct command_options *options, int argc, char **argv);
int command_show(const struct command_options *options, int argc, char **argv);
int command_verify(const struct command_options *options, int argc, char **argv);
int command_fsck(const struct command_options *options, int argc, char **argv);
int command_scrub(const struct command_options *options, int argc, char **argv);
int command_gc(const struct command_options *options, int argc, char **argv);
int command_demote(const struct command_options *options, int argc, char **argv);
int command_export(const struct command_options *options, int argc, char **argv);
int command_import(const struct command_options *options, int argc, char **argv);
int command_why(const struct command_options *options, int argc, char **argv);
int command_pin(const struct command_options *options, int argc, char **argv);
int command_unpin(const struct command_options *options, int argc, char **argv);
int command_ttl(const struct command_options *options, int argc, char **argv);
int command_priority(const struct command_options *options, int argc, char **argv);
int command_purge(const struct command_options *options, int argc, char **argv);
int command_rm(const struct command_options *options, int argc, char **argv);
int command_calibrate(const struct command_options *options, int argc, char **argv);
int command_profile(const struct command_options *options, int argc, char **argv);
int command_quality(const struct command_options *options, int argc, char **argv);
int command_rag(const struct command_options *options, int argc, char **argv);
int command_recipe(const struct command_options *options, int argc, char **argv);

/* What rag takes: its input is a struct command_options. */
extern const struct argp rag_parser;

/* Says the last error and gives the exit code that goes with it. */
int command_failed(int err);

#endif
