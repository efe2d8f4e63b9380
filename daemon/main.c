/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - larderd(8): command line, start, stop. */
#include <argp.h>
#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "daemon/completions.h"
#include "daemon/larderd.h"
#include "daemon/measures.h"
#include "daemon/profiles.h"
#include "daemon/recipes.h"
#include "daemon/served.h"
#include "daemon/server.h"
#include "daemon/session.h"
#include "daemon/workers.h"

/* Exit codes: larderd(8). */
enum {
    EXIT_USAGE = 2,
    EXIT_LOCKED = 3,
    EXIT_VERSION = 4,
};

const char *argp_program_version = "larderd " LARDER_VERSION;

struct command_line {
    const char *config_path; /* NULL: the default, which may be missing */
    const char *directory;
    const char *socket;
    const char *control_socket;
    const char *new_key_file;
    const char *models[LARDER_SERVED_MAX];
    uint32_t model_count;
    bool check_config;
};

enum {
    OPTION_CHECK_CONFIG = 256,
    OPTION_CONTROL,
    OPTION_NEW_KEY_FILE,
    OPTION_MODEL,
};

static const struct argp_option options[] = {
    {"config", 'c', "FILE", 0, "Read FILE instead of " CONFIG_FILE_DEFAULT, 0},
    {"dir", 'd', "DIR", 0, "Keep the store in DIR", 0},
    {"socket", 's', "PATH", 0, "Listen on PATH", 0},
    {"control-socket", OPTION_CONTROL, "PATH", 0, "Listen for larder(1) on PATH", 0},
    {"model", OPTION_MODEL, "NAME=DIR", 0,
     "Start a worker for the model in DIR, so that prompts can be blended; may be repeated", 0},
    {"new-key-file", OPTION_NEW_KEY_FILE, "FILE", 0,
     "Wrap the store's keys with that of FILE instead of key_file, then exit", 0},
    {"check-config", OPTION_CHECK_CONFIG, NULL, 0, "Check the configuration, then exit", 0},
    {0},
};

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct command_line *line = state->input;
    switch (key) {
    case 'c':
        line->config_path = argument;
        return 0;
    case 'd':
        line->directory = argument;
        return 0;
    case 's':
        line->socket = argument;
        return 0;
    case OPTION_CONTROL:
        line->control_socket = argument;
        return 0;
    case OPTION_MODEL:
        if (line->model_count == LARDER_SERVED_MAX)
            argp_error(state, "more than %u models", LARDER_SERVED_MAX);
        else
            line->models[line->model_count++] = argument;
        return 0;
    case OPTION_NEW_KEY_FILE:
        line->new_key_file = argument;
        return 0;
    case OPTION_CHECK_CONFIG:
        line->check_config = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is no option", argument);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .doc = "larderd - keeps KV caches of language models on SSD and in host memory\v"
           "It stays in the foreground; SIGHUP reloads what can change, SIGTERM stops it. Options "
           "stand over the configuration file. See larderd(8), larderd.conf(5).",
};

static struct command_line command_line;

/* --- configuration ---------------------------------------------------------------------------- */

static int apply_command_line(struct config *config)
{
    if (command_line.directory)
        LARDER_TRY(config_set(config, "directory", command_line.directory));
    if (command_line.socket)
        LARDER_TRY(config_set(config, "socket", command_line.socket));
    if (command_line.control_socket)
        LARDER_TRY(config_set(config, "control_socket", command_line.control_socket));
    for (uint32_t i = 0; i < command_line.model_count; i++)
        LARDER_TRY(config_set_model(config, command_line.models[i]));
    return 0;
}

static int load_config(struct config *config)
{
    const char *path = command_line.config_path ? command_line.config_path : CONFIG_FILE_DEFAULT;
    config_init(config);
    int err = config_read_file(config, path);
    if (err == -ENOENT && !command_line.config_path)
        err = 0;
    if (err == 0)
        err = apply_command_line(config);
    if (err == 0)
        err = config_finish(config, path);
    if (err < 0)
        config_free(config);
    return err;
}

static void tell_serves(struct larderd *daemon)
{
    struct larder_store_stats stats;
    larder_store_stats(daemon->store, &stats);
    notify_tell(&daemon->notify, "READY=1\nSTATUS=%s %s on %s",
                stats.read_only ? "READ-ONLY after a failed sync, serves" : "Serves",
                daemon->config.directory, daemon->config.socket);
}

static void read_config_again(struct larderd *daemon)
{
    struct config fresh;
    if (load_config(&fresh) < 0) {
        larder_log(LARDER_LOG_ERROR, "reload: nothing was changed: %s", larder_error_message());
        return;
    }
    config_reload(&daemon->config, &fresh);
    config_free(&fresh);
    larderd_set_quotas(daemon);
    larder_log_set_level(daemon->config.log_level);
    larder_log(LARDER_LOG_INFO, "reload: done");
}

static void reload(struct larderd *daemon)
{
    notify_tell(&daemon->notify, "RELOADING=1\nMONOTONIC_USEC=%llu",
                (unsigned long long)larderd_now_ms() * 1000);
    read_config_again(daemon);
    tell_serves(daemon);
}

/* --- process ---------------------------------------------------------------------------------- */

/* Memory of the daemon is other people's prompts: no core dumps unless asked for. */
static void forbid_core_dumps(void)
{
    const struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_CORE, &none) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0)
        larder_log(LARDER_LOG_WARN, "core dumps cannot be switched off: %s", strerror(errno));
}

static void raise_open_files(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* Signals are the event thread's: threads started meanwhile inherit the block. */
static void block_signals(int how)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(how, &set, NULL);
}

static void tell_start(const struct larderd *daemon)
{
    struct larder_store_stats stats;
    larder_store_stats(daemon->store, &stats);
    larder_log(LARDER_LOG_INFO,
               "larderd " LARDER_VERSION " serves %s on %s: %llu entries found in %.1f ms%s, "
               "%llu of them not yet in the index",
               daemon->config.directory, daemon->config.socket,
               (unsigned long long)stats.recovered_entries, (double)stats.recovery_us / 1000,
               stats.index_rebuilt ? ", the index made anew" : "",
               (unsigned long long)stats.recovered_from_tail);
}

static int open_events(struct larderd *daemon)
{
    struct event_config *config = event_config_new();
    if (config) {
        event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_IGNORE_ENV);
        daemon->events = event_base_new_with_config(config);
        event_config_free(config);
    }
    return daemon->events ? 0 : larder_fail(-ENOMEM, "libevent cannot start");
}

static int open_store(struct larderd *daemon)
{
    const struct config *config = &daemon->config;
    const struct larder_store_options store = {.directory = config->directory,
                                               .io = config->io,
                                               .io_depth = config->io_depth,
                                               .host_bytes = config->host_bytes,
                                               .ssd_bytes = config->ssd_bytes,
                                               .ssd_high = config->ssd_high,
                                               .ssd_low = config->ssd_low,
                                               .slab_bytes = config->slab_bytes,
                                               .segment_bytes = config->segment_bytes,
                                               .eviction = config->eviction,
                                               .admits_all = !config->admission,
                                               .key_file =
                                                   config->key_file[0] ? config->key_file : NULL};
    LARDER_TRY(larder_store_open(&daemon->store, &store));
    larderd_set_quotas(daemon);
    LARDER_TRY(profiles_open(&daemon->profiles, config->directory));
    LARDER_TRY(recipes_open(&daemon->recipes, daemon->profiles, RECIPES_IDLE_BYTES));
    return measures_open(&daemon->measures, daemon->store, config->directory);
}

/* Nothing is in flight. */
static void shut_down(struct larderd *daemon)
{
    session_close_all(daemon);
    served_close(daemon->served);
    workers_close(daemon->workers);
    daemon->workers = NULL;
    if (daemon->completions)
        completions_drain(daemon->completions);
    scrub_close(&daemon->demote);
    assert(daemon->busy_count == 0);
    measures_close(daemon->measures);
    recipes_close(daemon->recipes);
    profiles_close(daemon->profiles);
    if (daemon->store)
        larder_store_close(daemon->store);
    /* Nobody waited for the record that a scrub, or gc, was at: the store has ended that too. */
    if (daemon->completions)
        completions_drain(daemon->completions);
    larder_free(daemon->demote.demote);
    completions_close(daemon->completions);
    if (daemon->events)
        event_base_free(daemon->events);
    session_free_pool(daemon);
    larder_free(daemon->tenants);
    config_free(&daemon->config);
}

static int run(struct larderd *daemon)
{
    struct server *server = NULL;
    if (getrandom(&daemon->lease_hash, sizeof(daemon->lease_hash), 0) < 0)
        return larder_fail(-errno, "getrandom: %m");
    daemon->lease_hash |= 1;
    LARDER_TRY(open_events(daemon));
    LARDER_TRY(completions_open(&daemon->completions));
    notify_tell(&daemon->notify, "STATUS=Opens %s", daemon->config.directory);
    LARDER_TRY(open_store(daemon));
    LARDER_TRY(workers_open(&daemon->workers, daemon->config.threads));
    LARDER_TRY(served_open(&daemon->served, daemon));
    LARDER_TRY(scrub_open(&daemon->scrub, daemon, SCRUB_CHECK));
    LARDER_TRY(scrub_open(&daemon->gc, daemon, SCRUB_MOVE));
    LARDER_TRY(scrub_open(&daemon->demote, daemon, SCRUB_DEMOTE));
    LARDER_TRY(server_open(&server, daemon, reload));
    tell_start(daemon);
    tell_serves(daemon);
    block_signals(SIG_UNBLOCK);
    bool all_answered = server_run(server);
    /* A second SIGTERM must not cut short what is being closed. */
    block_signals(SIG_BLOCK);
    server_close(server);
    if (!all_answered) {
        /* The disk hangs. The store survives this as it survives a kill. */
        larder_log(LARDER_LOG_ERROR, "ends without closing the store");
        _exit(EXIT_FAILURE);
    }
    return 0;
}

static int exit_code(int err)
{
    switch (err) {
    case 0:
        return EXIT_SUCCESS;
    case LARDER_ELOCKED:
        return EXIT_LOCKED;
    case LARDER_EVERSION:
        return EXIT_VERSION;
    default:
        return EXIT_FAILURE;
    }
}

/* From now on the store opens with the new file only. */
static int change_key(const struct config *config)
{
    int err =
        config->key_file[0]
            ? larder_store_rewrap(config->directory, config->key_file, command_line.new_key_file)
            : larder_fail(LARDER_ECONFIG, "--new-key-file: no key_file is set");
    if (err < 0) {
        fprintf(stderr, "larderd: %s\n", larder_error_message());
        return exit_code(err);
    }
    printf("%s opens with %s from now on: name it in key_file, then destroy %s\n",
           config->directory, command_line.new_key_file, config->key_file);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    static struct larderd daemon;
    argp_err_exit_status = EXIT_USAGE;
    argp_parse(&parser, argc, argv, 0, NULL, &command_line);
    if (load_config(&daemon.config) < 0) {
        fprintf(stderr, "larderd: %s\n", larder_error_message());
        return EXIT_USAGE;
    }
    if (command_line.check_config) {
        config_free(&daemon.config);
        return EXIT_SUCCESS;
    }

    larder_log_set_level(daemon.config.log_level);
    if (!daemon.config.core_dumps)
        forbid_core_dumps();
    if (command_line.new_key_file) {
        int code = change_key(&daemon.config);
        config_free(&daemon.config);
        return code;
    }
    raise_open_files();
    umask(0007);
    signal(SIGPIPE, SIG_IGN);
    block_signals(SIG_BLOCK);
    daemon.started_ms = larderd_now_ms();
    notify_open(&daemon.notify);
    int err = run(&daemon);
    if (err < 0) {
        larder_log(LARDER_LOG_ERROR, "cannot start: %s", larder_error_message());
        notify_tell(&daemon.notify, "STATUS=Cannot start: %s", larder_error_message());
    }
    shut_down(&daemon);
    notify_close(&daemon.notify);
    if (err == 0)
        larder_log(LARDER_LOG_INFO, "stopped");
    return exit_code(err);
}
