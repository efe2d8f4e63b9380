/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

/* A configuration is a page of text; more is the wrong file. */
#define FILE_BYTES_MAX (1u << 20)
#define LINE_BYTES_MAX 2048u
#define RULES_MAX      LARDER_TENANTS_MAX

enum value_kind {
    VALUE_BYTES,
    VALUE_COUNT,
    VALUE_PATH,
    VALUE_TEXT,
    VALUE_LEVEL,
    VALUE_SWITCH,
};

enum change {
    CHANGE_RESTART,
    CHANGE_RELOAD,
};

struct key {
    const char *name;
    enum value_kind kind;
    enum change change;
    size_t offset;
    size_t bytes; /* of the field */
    uint64_t min;
    uint64_t max;
};

#define FIELD(field) offsetof(struct config, field), sizeof(((struct config *)0)->field)

static const struct key keys[] = {
    {"directory", VALUE_PATH, CHANGE_RESTART, FIELD(directory), 0, 0},
    {"socket", VALUE_PATH, CHANGE_RESTART, FIELD(socket), 0, 0},
    {"control_socket", VALUE_PATH, CHANGE_RESTART, FIELD(control_socket), 0, 0},
    {"io", VALUE_TEXT, CHANGE_RESTART, FIELD(io), 0, 0},
    {"io_depth", VALUE_COUNT, CHANGE_RESTART, FIELD(io_depth), 1, 1024},
    {"key_file", VALUE_PATH, CHANGE_RESTART, FIELD(key_file), 0, 0},
    {"recipe", VALUE_TEXT, CHANGE_RESTART, FIELD(recipe.text), 0, 0},
    {"eviction", VALUE_TEXT, CHANGE_RESTART, FIELD(eviction), 0, 0},
    {"admission", VALUE_SWITCH, CHANGE_RESTART, FIELD(admission), 0, 1},
    {"host_bytes", VALUE_BYTES, CHANGE_RESTART, FIELD(host_bytes), LARDER_SLAB_BYTES_MIN,
     1ull << 46},
    {"ssd_bytes", VALUE_BYTES, CHANGE_RESTART, FIELD(ssd_bytes), LARDER_SEGMENT_BYTES_MIN,
     1ull << 50},
    {"ssd_high", VALUE_COUNT, CHANGE_RESTART, FIELD(ssd_high), 2, 100},
    {"ssd_low", VALUE_COUNT, CHANGE_RESTART, FIELD(ssd_low), 1, 99},
    {"slab_bytes", VALUE_BYTES, CHANGE_RESTART, FIELD(slab_bytes), LARDER_SLAB_BYTES_MIN,
     1ull << 40},
    {"segment_bytes", VALUE_BYTES, CHANGE_RESTART, FIELD(segment_bytes), LARDER_SEGMENT_BYTES_MIN,
     1ull << 36},
    {"block_tokens", VALUE_COUNT, CHANGE_RESTART, FIELD(block_tokens), 1, LARDER_BLOCK_TOKENS_MAX},
    {"threads", VALUE_COUNT, CHANGE_RESTART, FIELD(threads), 0, 256},
    {"worker_threads", VALUE_COUNT, CHANGE_RESTART, FIELD(worker_threads), 0, 256},
    {"core_dumps", VALUE_SWITCH, CHANGE_RESTART, FIELD(core_dumps), 0, 1},
    {"staging_bytes_max", VALUE_BYTES, CHANGE_RELOAD, FIELD(staging_bytes_max), 4096,
     LARDER_STAGING_BYTES_MAX},
    {"staging_bytes_all", VALUE_BYTES, CHANGE_RELOAD, FIELD(staging_bytes_all), 4096, 1ull << 46},
    {"lease_ms", VALUE_COUNT, CHANGE_RELOAD, FIELD(lease_ms), 100, 3600 * 1000},
    {"lease_grace_ms", VALUE_COUNT, CHANGE_RELOAD, FIELD(lease_grace_ms), 100, 3600 * 1000},
    {"hello_ms", VALUE_COUNT, CHANGE_RELOAD, FIELD(hello_ms), 100, 3600 * 1000},
    {"send_ms", VALUE_COUNT, CHANGE_RELOAD, FIELD(send_ms), 100, 3600 * 1000},
    {"connections_max", VALUE_COUNT, CHANGE_RELOAD, FIELD(connections_max), 1, 1u << 20},
    {"leases_max", VALUE_COUNT, CHANGE_RELOAD, FIELD(leases_max), 1, 1u << 20},
    {"in_flight_max", VALUE_COUNT, CHANGE_RELOAD, FIELD(in_flight_max), 1, 1u << 20},
    {"scrub_interval_s", VALUE_COUNT, CHANGE_RELOAD, FIELD(scrub_interval_s), 0, UINT32_MAX},
    {"scrub_rate_bytes", VALUE_BYTES, CHANGE_RELOAD, FIELD(scrub_rate_bytes), 1u << 20, 1ull << 40},
    {"demote_rate_bytes", VALUE_BYTES, CHANGE_RELOAD, FIELD(demote_rate_bytes), 1u << 20,
     1ull << 40},
    {"log_level", VALUE_LEVEL, CHANGE_RELOAD, FIELD(log_level), 0, 0},
};
static_assert(LARDER_COUNT_OF(keys) <= LARDER_COUNT_OF(((struct config *)0)->lines),
              "a line is kept for every key");

void config_init(struct config *config)
{
    memset(config, 0, sizeof(*config));
    strcpy(config->directory, "/var/lib/larder");
    strcpy(config->socket, "/run/larder/larder.sock");
    strcpy(config->io, "auto");
    strcpy(config->recipe.text, "exact");
    strcpy(config->eviction, "value");
    config->admission = 1;
    config->host_bytes = LARDER_HOST_BYTES_DEFAULT;
    config->ssd_bytes = LARDER_SSD_BYTES_DEFAULT;
    config->ssd_high = LARDER_SSD_HIGH_DEFAULT;
    config->ssd_low = LARDER_SSD_LOW_DEFAULT;
    config->slab_bytes = LARDER_SLAB_BYTES_DEFAULT;
    config->segment_bytes = LARDER_SEGMENT_BYTES_DEFAULT;
    config->staging_bytes_max = LARDER_STAGING_BYTES_DEFAULT;
    config->staging_bytes_all = 16 * LARDER_STAGING_BYTES_DEFAULT;
    config->block_tokens = LARDER_BLOCK_TOKENS_DEFAULT;
    config->io_depth = 64;
    config->lease_ms = LARDER_LEASE_MS_DEFAULT;
    config->lease_grace_ms = LARDER_LEASE_GRACE_MS_DEFAULT;
    config->hello_ms = LARDER_HELLO_MS_DEFAULT;
    config->send_ms = LARDER_SEND_MS_DEFAULT;
    config->connections_max = LARDER_CONNECTIONS_DEFAULT;
    config->leases_max = LARDER_LEASES_DEFAULT;
    config->in_flight_max = LARDER_IN_FLIGHT_DEFAULT;
    config->scrub_interval_s = 7 * 86400;
    config->scrub_rate_bytes = 32u << 20;
    config->demote_rate_bytes = 16u << 20;
    config->log_level = LARDER_LOG_INFO;
}

void config_free(struct config *config)
{
    larder_free(config->rules);
    config->rules = NULL;
    config->rule_count = 0;
    larder_free(config->quotas);
    config->quotas = NULL;
    config->quota_count = 0;
    larder_free(config->recipes);
    config->recipes = NULL;
    config->recipe_count = 0;
    larder_free(config->models);
    config->models = NULL;
    config->model_count = 0;
    larder_free(config->demotes);
    config->demotes = NULL;
    config->demote_count = 0;
}

static int set_number(void *field, const struct key *key, const char *value)
{
    uint64_t number;
    if (key->kind == VALUE_BYTES) {
        LARDER_TRY(larder_parse_bytes(&number, value));
    } else {
        char *end;
        errno = 0;
        number = strtoull(value, &end, 10);
        if (!isdigit((unsigned char)value[0]) || *end || errno)
            return larder_fail(-EINVAL, "'%s' is not a whole number", value);
    }
    if (number < key->min || number > key->max)
        return larder_fail(-EINVAL, "%s is outside %llu..%llu", value, (unsigned long long)key->min,
                           (unsigned long long)key->max);
    if (key->bytes == sizeof(uint64_t)) {
        memcpy(field, &number, sizeof(number));
    } else {
        uint32_t narrow = (uint32_t)number;
        assert(key->bytes == sizeof(narrow));
        memcpy(field, &narrow, sizeof(narrow));
    }
    return 0;
}

static int set_text(char *field, const struct key *key, const char *value)
{
    size_t length = strlen(value);
    if (length == 0)
        return larder_fail(-EINVAL, "a value is missing behind '='");
    if (length >= key->bytes)
        return larder_fail(-EINVAL, "a value of %zu bytes is longer than %zu; use a shorter one",
                           length, key->bytes - 1);
    if (key->kind == VALUE_PATH && value[0] != '/')
        return larder_fail(-EINVAL, "path '%s' is relative; start it with '/'", value);
    memset(field, 0, key->bytes);
    memcpy(field, value, length);
    return 0;
}

static int set_switch(void *field, const char *value)
{
    uint32_t on = strcmp(value, "on") == 0;
    if (!on && strcmp(value, "off") != 0)
        return larder_fail(-EINVAL, "'%s' is neither 'on' nor 'off'", value);
    memcpy(field, &on, sizeof(on));
    return 0;
}

static int set_value(struct config *config, const struct key *key, const char *value)
{
    void *field = (char *)config + key->offset;
    switch (key->kind) {
    case VALUE_BYTES:
    case VALUE_COUNT:
        return set_number(field, key, value);
    case VALUE_PATH:
    case VALUE_TEXT:
        return set_text(field, key, value);
    case VALUE_SWITCH:
        return set_switch(field, value);
    case VALUE_LEVEL:
        return larder_log_parse_level(field, value);
    }
    assert(0 && "a kind without a case");
    return -EINVAL;
}

static const struct key *find_key(const char *name)
{
    for (size_t i = 0; i < LARDER_COUNT_OF(keys); i++) {
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    }
    return NULL;
}

int config_set(struct config *config, const char *name, const char *value)
{
    const struct key *key = find_key(name);
    assert(key);
    int err = set_value(config, key, value);
    return err < 0 ? larder_fail(LARDER_ECONFIG, "--%s: %s", name, larder_error_message()) : 0;
}

int config_check_name(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length >= LARDER_TENANT_NAME_MAX)
        return larder_fail(-EINVAL, "a tenant's name has 1 to %u characters",
                           LARDER_TENANT_NAME_MAX - 1);
    for (const char *c = name; *c; c++) {
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
            return larder_fail(-EINVAL, "'%c' in tenant '%s' is not one of A-Za-z0-9._-", *c, name);
    }
    return 0;
}

static int check_tenant_name(const char *name)
{
    LARDER_TRY(config_check_name(name));
    if (strncmp(name, "uid-", 4) == 0)
        return larder_fail(-EINVAL,
                           "tenant '%s': names that begin with uid- are those of unlisted users; "
                           "choose another",
                           name);
    return 0;
}

static int parse_id(uint32_t *out, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end || errno || number >= UINT32_MAX)
        return larder_fail(-EINVAL, "'%s' is not a numeric id", text);
    *out = (uint32_t)number;
    return 0;
}

static int add_rule(struct config *config, const char *name, const char *value)
{
    struct tenant_rule rule = {0};
    LARDER_TRY(check_tenant_name(name));
    strcpy(rule.name, name);
    const char *argument = strchr(value, ' ');
    argument = argument ? argument + strspn(argument, " \t") : "";
    if (strncmp(value, "uid ", 4) == 0) {
        rule.kind = RULE_UID;
        LARDER_TRY(parse_id(&rule.id, argument));
    } else if (strncmp(value, "gid ", 4) == 0) {
        rule.kind = RULE_GID;
        LARDER_TRY(parse_id(&rule.id, argument));
    } else if (strncmp(value, "socket ", 7) == 0) {
        rule.kind = RULE_SOCKET;
        if (argument[0] != '/')
            return larder_fail(-EINVAL, "path '%s' is relative; start it with '/'", argument);
        if (strlen(argument) >= sizeof(rule.path))
            return larder_fail(-EINVAL, "a socket's path of %zu bytes is longer than %zu",
                               strlen(argument), sizeof(rule.path) - 1);
        strcpy(rule.path, argument);
    } else {
        return larder_fail(-EINVAL, "'%s' is not 'uid N', 'gid N' or 'socket PATH'", value);
    }

    for (uint32_t i = 0; i < config->rule_count; i++) {
        const struct tenant_rule *other = &config->rules[i];
        if (other->kind == rule.kind && other->id == rule.id && !strcmp(other->path, rule.path))
            return larder_fail(-EINVAL, "'%s' is tenant '%s' already; remove one", value,
                               other->name);
    }
    if (config->rule_count == RULES_MAX)
        return larder_fail(-EINVAL, "more than %u tenant rules", RULES_MAX);
    struct tenant_rule *rules =
        larder_realloc(config->rules, (config->rule_count + 1) * sizeof(*rules));
    if (!rules)
        return larder_fail(-ENOMEM, "no memory for tenant rules");
    rules[config->rule_count++] = rule;
    config->rules = rules;
    return 0;
}

char *config_trim(char *text)
{
    text += strspn(text, " \t\r");
    size_t length = strlen(text);
    while (length > 0 && strchr(" \t\r", text[length - 1]))
        text[--length] = 0;
    return text;
}

/* Cuts a comment: '#' at the start or behind a space. */
static void cut_comment(char *line)
{
    for (char *c = line; *c; c++) {
        if (*c == '#' && (c == line || c[-1] == ' ' || c[-1] == '\t')) {
            *c = 0;
            return;
        }
    }
}

static int parse_line(struct config *config, char *line, uint32_t line_number)
{
    cut_comment(line);
    char *name = config_trim(line);
    if (!*name)
        return 0;
    char *equals = strchr(name, '=');
    if (!equals)
        return larder_fail(-EINVAL, "'%s' has no '='; write key = value", name);
    *equals = 0;
    char *value = config_trim(equals + 1);
    name = config_trim(name);

    if (strncmp(name, "tenant ", 7) == 0 || strncmp(name, "tenant\t", 7) == 0)
        return add_rule(config, config_trim(name + 7), value);
    if (strncmp(name, "quota ", 6) == 0 || strncmp(name, "quota\t", 6) == 0)
        return config_add_quota(config, config_trim(name + 6), value);
    if (strncmp(name, "recipe ", 7) == 0 || strncmp(name, "recipe\t", 7) == 0)
        return config_add_recipe(config, config_trim(name + 7), value);
    if (strncmp(name, "model ", 6) == 0 || strncmp(name, "model\t", 6) == 0)
        return config_add_model(config, config_trim(name + 6), value);
    if (strcmp(name, "demote") == 0 || strncmp(name, "demote ", 7) == 0 ||
        strncmp(name, "demote\t", 7) == 0)
        return config_add_demote(config, config_trim(name + 6), value);
    const struct key *key = find_key(name);
    if (!key)
        return larder_fail(-EINVAL, "'%s' is not a key; larderd.conf(5) lists them", name);
    uint32_t *set_at = &config->lines[key - keys];
    if (*set_at)
        return larder_fail(-EINVAL, "%s is set twice, first in line %u; remove one", name, *set_at);
    *set_at = line_number;
    if (set_value(config, key, value) < 0) {
        char why[LARDER_MESSAGE_BYTES_MAX];
        snprintf(why, sizeof(why), "%s", larder_error_message());
        return larder_fail(-EINVAL, "%s: %s", name, why);
    }
    return 0;
}

int config_parse(struct config *config, const char *name, const char *text, size_t text_bytes)
{
    uint32_t line_number = 0;
    memset(config->lines, 0, sizeof(config->lines));
    for (size_t at = 0; at < text_bytes;) {
        const char *end = memchr(text + at, '\n', text_bytes - at);
        size_t length = end ? (size_t)(end - text) - at : text_bytes - at;
        line_number++;
        char line[LINE_BYTES_MAX + 1];
        if (length > LINE_BYTES_MAX)
            return larder_fail(LARDER_ECONFIG, "%s:%u: a line of %zu bytes is longer than %u", name,
                               line_number, length, LINE_BYTES_MAX);
        if (memchr(text + at, 0, length))
            return larder_fail(LARDER_ECONFIG, "%s:%u: holds a NUL; this is no text file", name,
                               line_number);
        memcpy(line, text + at, length);
        line[length] = 0;
        if (parse_line(config, line, line_number) < 0)
            return larder_fail(LARDER_ECONFIG, "%s:%u: %s", name, line_number,
                               larder_error_message());
        at += length + 1;
    }
    return 0;
}

int config_read_file(struct config *config, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return larder_fail(-errno, "cannot open %s: %m", path);
    int err = 0;
    size_t used = 0;
    char *text = larder_alloc(FILE_BYTES_MAX + 1);
    if (!text) {
        err = larder_fail(-ENOMEM, "no memory to read %s", path);
        goto close_file;
    }
    for (;;) {
        ssize_t got = read(fd, text + used, FILE_BYTES_MAX + 1 - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            err = larder_fail(-errno, "cannot read %s: %m", path);
        if (got <= 0)
            break;
        used += (size_t)got;
        if (used > FILE_BYTES_MAX) {
            err = larder_fail(LARDER_ECONFIG, "%s is larger than %u bytes", path, FILE_BYTES_MAX);
            break;
        }
    }
    if (!err)
        err = config_parse(config, path, text, used);
    larder_free(text);
close_file:
    close(fd);
    return err;
}

static int check_slab(const struct config *config, const char *name)
{
    if (config->slab_bytes % LARDER_PAGE_BYTES || config->segment_bytes % LARDER_PAGE_BYTES)
        return larder_fail(LARDER_ECONFIG,
                           "%s: slab_bytes=%llu and segment_bytes=%llu must be multiples of %u",
                           name, (unsigned long long)config->slab_bytes,
                           (unsigned long long)config->segment_bytes, LARDER_PAGE_BYTES);
    if (config->slab_bytes > config->host_bytes)
        return larder_fail(LARDER_ECONFIG,
                           "%s: slab_bytes=%llu is more than host_bytes=%llu; lower slab_bytes or "
                           "raise host_bytes",
                           name, (unsigned long long)config->slab_bytes,
                           (unsigned long long)config->host_bytes);
    if (config->segment_bytes > config->ssd_bytes)
        return larder_fail(LARDER_ECONFIG,
                           "%s: segment_bytes=%llu is more than ssd_bytes=%llu; lower "
                           "segment_bytes or raise ssd_bytes",
                           name, (unsigned long long)config->segment_bytes,
                           (unsigned long long)config->ssd_bytes);
    if (config->ssd_low >= config->ssd_high)
        return larder_fail(LARDER_ECONFIG,
                           "%s: ssd_low=%u is not below ssd_high=%u; lower ssd_low or raise "
                           "ssd_high",
                           name, config->ssd_low, config->ssd_high);
    if (config->staging_bytes_max > config->staging_bytes_all)
        return larder_fail(LARDER_ECONFIG,
                           "%s: staging_bytes_max=%llu is more than staging_bytes_all=%llu", name,
                           (unsigned long long)config->staging_bytes_max,
                           (unsigned long long)config->staging_bytes_all);
    return 0;
}

static int check_sockets(const struct config *config, const char *name)
{
    if (strcmp(config->socket, config->control_socket) == 0)
        return larder_fail(LARDER_ECONFIG, "%s: socket and control_socket are both %s", name,
                           config->socket);
    for (uint32_t i = 0; i < config->rule_count; i++) {
        const char *path = config->rules[i].path;
        if (strcmp(path, config->socket) == 0 || strcmp(path, config->control_socket) == 0)
            return larder_fail(LARDER_ECONFIG,
                               "%s: the socket of tenant '%s' is that of everybody: %s", name,
                               config->rules[i].name, path);
    }
    return 0;
}

static bool is_one_of(const char *value, const char *const *known)
{
    while (*known && strcmp(value, *known) != 0)
        known++;
    return *known != NULL;
}

static int check_io(const struct config *config, const char *name)
{
    static const char *const known[] = {"auto", "uring", "threads", NULL};
    if (is_one_of(config->io, known))
        return 0;
    return larder_fail(LARDER_ECONFIG, "%s: io=%s is not one of auto, uring, threads", name,
                       config->io);
}

static int check_eviction(const struct config *config, const char *name)
{
    static const char *const known[] = {"value", "lru", "fifo", NULL};
    if (is_one_of(config->eviction, known))
        return 0;
    return larder_fail(LARDER_ECONFIG, "%s: eviction=%s is not one of value, lru, fifo", name,
                       config->eviction);
}

int config_finish(struct config *config, const char *name)
{
    if (!config->control_socket[0]) {
        const char *slash = strrchr(config->socket, '/');
        size_t length = (size_t)(slash - config->socket) + 1;
        static const char file[] = "control.sock";
        if (length + sizeof(file) > sizeof(config->control_socket))
            return larder_fail(LARDER_ECONFIG,
                               "%s: no room for control.sock beside %s; set "
                               "control_socket",
                               name, config->socket);
        memcpy(config->control_socket, config->socket, length);
        memcpy(config->control_socket + length, file, sizeof(file));
    }
    if (config->threads == 0) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        config->threads = cpus < 1 ? 1 : cpus > 256 ? 256 : (uint32_t)cpus;
    }
    LARDER_TRY(check_io(config, name));
    LARDER_TRY(check_eviction(config, name));
    LARDER_TRY(check_slab(config, name));
    LARDER_TRY(check_sockets(config, name));
    if (config_check_recipe(&config->recipe) < 0)
        return larder_fail(LARDER_ECONFIG, "%s: recipe: %s", name, larder_error_message());
    return config_check_demotes(config, name);
}

static bool same_sockets(const struct config *a, const struct config *b)
{
    for (uint32_t i = 0; i < a->rule_count; i++) {
        const struct tenant_rule *rule = &a->rules[i];
        if (rule->kind != RULE_SOCKET)
            continue;
        const struct tenant_rule *other = config_find_rule(b, rule->path, UINT32_MAX, NULL, 0);
        if (!other || strcmp(other->name, rule->name) != 0)
            return false;
    }
    return true;
}

void config_reload(struct config *config, struct config *fresh)
{
    for (size_t i = 0; i < LARDER_COUNT_OF(keys); i++) {
        const struct key *key = &keys[i];
        void *old = (char *)config + key->offset;
        const void *new = (const char *)fresh + key->offset;
        if (memcmp(old, new, key->bytes) == 0)
            continue;
        if (key->change == CHANGE_RELOAD) {
            memcpy(old, new, key->bytes);
            larder_log(LARDER_LOG_INFO, "reload: %s has its new value", key->name);
        } else {
            larder_log(LARDER_LOG_WARN, "reload: %s has changed; restart larderd for it",
                       key->name);
        }
    }
    if (!config_same_models(config, fresh))
        larder_log(LARDER_LOG_WARN, "reload: models have changed; restart larderd for it");
    larder_free(config->quotas);
    config->quotas = fresh->quotas;
    config->quota_count = fresh->quota_count;
    fresh->quotas = NULL;
    fresh->quota_count = 0;
    /* Models that are open keep the one they had. */
    larder_free(config->recipes);
    config->recipes = fresh->recipes;
    config->recipe_count = fresh->recipe_count;
    fresh->recipes = NULL;
    fresh->recipe_count = 0;
    larder_free(config->demotes);
    config->demotes = fresh->demotes;
    config->demote_count = fresh->demote_count;
    fresh->demotes = NULL;
    fresh->demote_count = 0;
    /* Rules name sockets that are being listened on: those stay until a restart. */
    if (!same_sockets(config, fresh) || !same_sockets(fresh, config)) {
        larder_log(LARDER_LOG_WARN, "reload: sockets of tenants have changed; restart larderd for "
                                    "it; no tenant rule was reloaded");
        return;
    }
    larder_free(config->rules);
    config->rules = fresh->rules;
    config->rule_count = fresh->rule_count;
    fresh->rules = NULL;
    fresh->rule_count = 0;
}

const struct tenant_rule *config_find_rule(const struct config *config, const char *socket,
                                           uint32_t uid, const uint32_t *gids, size_t gid_count)
{
    for (uint32_t i = 0; i < config->rule_count; i++) {
        const struct tenant_rule *rule = &config->rules[i];
        if (rule->kind == RULE_SOCKET && strcmp(rule->path, socket) == 0)
            return rule;
    }
    for (uint32_t i = 0; i < config->rule_count; i++) {
        if (config->rules[i].kind == RULE_UID && config->rules[i].id == uid)
            return &config->rules[i];
    }
    for (size_t g = 0; g < gid_count; g++) {
        for (uint32_t i = 0; i < config->rule_count; i++) {
            if (config->rules[i].kind == RULE_GID && config->rules[i].id == gids[g])
                return &config->rules[i];
        }
    }
    return NULL;
}
