/* SPDX-License-Identifier: Apache-2.0 */
/* config.h - larderd.conf(5): `key = value` lines, and the rules that map peers to tenants.
 *
 * A value that was accepted is within its limits; relations between values are checked at the end
 * of a file. Everything that is wrong is LARDER_ECONFIG with file:line, value, limit and remedy.
 * Threads: plain data; the event thread owns the one in use.
 */
#ifndef LARDER_DAEMON_CONFIG_H
#define LARDER_DAEMON_CONFIG_H

#include <linux/limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "base/limits.h"
#include "base/log.h"

#define CONFIG_FILE_DEFAULT "/etc/larder/larderd.conf"
/* sun_path, with its NUL. */
#define CONFIG_SOCKET_BYTES_MAX 108

enum rule_kind {
    RULE_UID,
    RULE_GID,
    RULE_SOCKET,
};

/* Who is which tenant: a peer's listening socket counts first, then its UID, then its groups. */
struct tenant_rule {
    enum rule_kind kind;
    uint32_t id; /* UID or GID */
    char name[LARDER_TENANT_NAME_MAX];
    char path[CONFIG_SOCKET_BYTES_MAX];
};

/* What a tenant may have; 0 in one of them: no limit. */
struct tenant_quota {
    char name[LARDER_TENANT_NAME_MAX]; /* "*": of every tenant that no other names */
    uint64_t ssd_bytes;
    uint64_t host_bytes;
};

/* How what is put without a recipe is encoded. */
struct recipe_choice {
    char text[LARDER_RECIPE_BYTES_MAX + 1];
    /* what it keeps, known once it was checked */
    enum larder_quality quality;
    float max_kl; /* 0: the text is a recipe; else chosen by what was measured */
};

/* For whom a line is; "*": everybody, every model. */
struct config_whom {
    char tenant[LARDER_TENANT_NAME_MAX];
    char model[72]; /* a name, or digits of a fingerprint */
};

struct recipe_rule {
    struct config_whom whom;
    struct recipe_choice choice;
};

/* A model whose weights are here: larderd starts a larder-worker for it. */
struct served_model {
    char name[LARDER_MODEL_NAME_MAX];
    char directory[PATH_MAX];
    uint32_t kv_dtype;                    /* enum larder_dtype; 0: as the weights */
    char method[LARDER_METHOD_BYTES_MAX]; /* of blends that name none */
};

/* What a block that nobody used for so long is kept as. */
struct demote_step {
    uint64_t age_s;
    char recipe[LARDER_RECIPE_BYTES_MAX + 1];
};

#define DEMOTE_STEPS_MAX 8u

/* Ages rise, sizes fall. */
struct demote_rule {
    struct config_whom whom;
    uint32_t count; /* 0: off */
    struct demote_step steps[DEMOTE_STEPS_MAX];
};

struct config {
    char directory[PATH_MAX];
    char socket[CONFIG_SOCKET_BYTES_MAX];
    char control_socket[CONFIG_SOCKET_BYTES_MAX]; /* empty in a file: beside `socket` */
    char io[16];
    char eviction[16];
    struct recipe_choice recipe; /* where no rule says otherwise */
    char key_file[PATH_MAX];     /* empty: the store is not encrypted */
    uint64_t host_bytes;
    uint64_t ssd_bytes;
    uint64_t slab_bytes;
    uint64_t segment_bytes;
    uint32_t ssd_high; /* percent of ssd_bytes */
    uint32_t ssd_low;
    uint64_t staging_bytes_max; /* of a connection */
    uint64_t staging_bytes_all; /* of all connections */
    uint32_t block_tokens;
    uint32_t io_depth;
    uint32_t threads;        /* 0 in a file: one a CPU */
    uint32_t worker_threads; /* of each larder-worker; 0: one a CPU */
    uint32_t lease_ms;
    uint32_t lease_grace_ms; /* of who has more than its fair share while another starves */
    uint32_t hello_ms;
    uint32_t send_ms;
    uint32_t connections_max; /* of a UID, as the next two */
    uint32_t leases_max;
    uint32_t in_flight_max;
    uint64_t scrub_rate_bytes;  /* a second */
    uint32_t scrub_interval_s;  /* 0: only by request */
    uint64_t demote_rate_bytes; /* a second */
    uint32_t core_dumps;        /* 0: off */
    uint32_t admission;         /* 0: off: all that is put is written */
    enum larder_log_level log_level;
    uint32_t rule_count;
    struct tenant_rule *rules;
    uint32_t recipe_count;
    struct recipe_rule *recipes;
    uint32_t demote_count;
    struct demote_rule *demotes;
    uint32_t quota_count;
    struct tenant_quota *quotas;
    uint32_t model_count;
    struct served_model *models;
    /* While reading: the line that set a key, so that a second one can name it. */
    uint32_t lines[32];
};

void config_init(struct config *config);
void config_free(struct config *config);

/* Adds what `text` says; `name` stands in messages. */
int config_parse(struct config *config, const char *name, const char *text, size_t text_bytes);
int config_read_file(struct config *config, const char *path);
/* A command line's value for a key; it stands over the file's. */
int config_set(struct config *config, const char *key, const char *value);
/* Fills in what follows from other values, then checks relations and the recipe. */
int config_finish(struct config *config, const char *name);

/* Takes from `fresh` what can change while running and logs the rest as needing a restart. */
void config_reload(struct config *config, struct config *fresh);

/* Of the files config*.c: is it 1 to 63 of the characters that a tenant's name may have? */
int config_check_name(const char *name);
/* Cuts spaces at both ends. */
char *config_trim(char *text);
/* "TENANT [MODEL]", taken apart; NULL: for everybody. `key`: of the line. */
int config_parse_whom(struct config_whom *whom, char *names, const char *key);
bool config_same_whom(const struct config_whom *a, const struct config_whom *b);
/* One that names both comes before one that names the tenant, that before one for the model, that
 * before one for all; -1: it is for others. */
int config_rank_whom(const struct config_whom *whom, const char *tenant,
                     const struct larder_model_desc *model, const struct larder_key *fingerprint);
/* Takes `value` apart. */
int config_add_quota(struct config *config, const char *name, char *value);

/* The same of `recipe TENANT [MODEL] = TEXT`, and what follows from a text. */
int config_add_recipe(struct config *config, char *names, const char *value);
int config_check_recipe(struct recipe_choice *choice);

/* The same of `model NAME = DIR [kv=DTYPE] [method=TEXT]`; of a command line's --model NAME=DIR. */
int config_add_model(struct config *config, const char *name, const char *value);
int config_set_model(struct config *config, const char *argument);
bool config_same_models(const struct config *a, const struct config *b);

/* The same of `demote [TENANT [MODEL]] = STEPS`; sizes are compared when all else is known. */
int config_add_demote(struct config *config, char *names, char *value);
int config_check_demotes(const struct config *config, const char *name);
/* What becomes of a tenant's blocks of a model as they age; NULL: nothing. */
const struct demote_rule *config_find_demote(const struct config *config, const char *tenant,
                                             const struct larder_model_desc *model,
                                             const struct larder_key *fingerprint);

/* What a tenant's blocks of a model are encoded with unless it says otherwise. */
const struct recipe_choice *config_find_recipe(const struct config *config, const char *tenant,
                                               const struct larder_model_desc *model,
                                               const struct larder_key *fingerprint);

/* NULL: the tenant has none. */
const struct tenant_quota *config_find_quota(const struct config *config, const char *name);

/* Which rule meets a peer: NULL for none. `socket` is the path it connected to. */
const struct tenant_rule *config_find_rule(const struct config *config, const char *socket,
                                           uint32_t uid, const uint32_t *gids, size_t gid_count);

#endif
