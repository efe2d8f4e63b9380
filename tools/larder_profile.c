/* SPDX-License-Identifier: Apache-2.0 */
/* larder_profile.c - `larder profile`: the profiles of a store. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/mem.h"
#include "codec/profile.h"
#include "kernels/safetensors.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"

/* --- talking ---------------------------------------------------------------------------------- */

static int list_one(struct link *link, struct wire_admin_profile_ok *out, uint32_t index)
{
    const struct wire_admin_index ask = {index, 0};
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_PROFILES, &ask, sizeof(ask),
                            WIRE_ADMIN_PROFILES_OK, sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

/* The one whose name begins with `text`. */
static int find(struct link *link, struct wire_admin_profile_ok *out, const char *text)
{
    uint32_t found = 0;
    int err = 0;
    const size_t length = strlen(text);
    for (uint32_t i = 0; err == 0; i++) {
        struct wire_admin_profile_ok at;
        char hex[65];
        err = list_one(link, &at, i);
        larder_hex(hex, at.name, err == 0 ? sizeof(at.name) : 0);
        if (err < 0 || strncmp(hex, text, length) != 0)
            continue;
        *out = at;
        found++;
    }
    if (err != LARDER_ENOTFOUND)
        return err;
    if (found == 1 && length > 0)
        return 0;
    return found == 0
               ? larder_fail(LARDER_ENOTFOUND, "no profile's name begins with '%s'", text)
               : larder_fail(-EINVAL, "'%s' begins the names of %u profiles; give more of it", text,
                             found);
}

/* A profile as the daemon has it, mapped. */
struct fetched {
    void *map;
    uint64_t bytes;
    struct larder_profile *profile;
};

static void unfetch(struct fetched *fetched)
{
    larder_profile_close(fetched->profile);
    if (fetched->map)
        munmap(fetched->map, fetched->bytes);
}

static int fetch(struct link *link, struct fetched *out, const uint8_t name[32])
{
    struct wire_profile ask;
    const void *body;
    int fd;
    *out = (struct fetched){.map = NULL};
    memcpy(ask.name, name, sizeof(ask.name));
    LARDER_TRY(link_request_fd(link, &body, &fd, WIRE_PROFILE, &ask, sizeof(ask), WIRE_PROFILE_OK,
                               sizeof(struct wire_profile_ok)));
    const uint64_t bytes = ((const struct wire_profile_ok *)body)->bytes;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping a profile: %m");
    out->map = map;
    out->bytes = bytes;
    int err = larder_profile_open(&out->profile, map, bytes);
    if (err < 0)
        unfetch(out);
    return err;
}

/* --- add -------------------------------------------------------------------------------------- */

static int send_profile(struct link *link, struct wire_admin_profile_add_ok *out,
                        const struct wire_admin_profile_add *add, const void *bytes, size_t count)
{
    const struct wire_staging ask = {.bytes = count};
    const void *body;
    int fd;
    LARDER_TRY(link_request_fd(link, &body, &fd, WIRE_ADMIN_PROFILE_NEW, &ask, sizeof(ask),
                               WIRE_ADMIN_PROFILE_NEW_OK, sizeof(struct wire_staging_ok)));
    void *map = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping larderd's memory: %m");
    memcpy(map, bytes, count);
    munmap(map, count);
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_PROFILE_ADD, add, sizeof(*add),
                            WIRE_ADMIN_PROFILE_ADD_OK, sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return 0;
}

static int add(const struct command_options *options, const char *name)
{
    void *bytes;
    size_t count;
    char path[PATH_MAX];
    struct larder_profile *profile = NULL;
    struct link *link = NULL;
    struct wire_admin_profile_add ask = {.is_default = options->is_default};
    struct wire_admin_profile_add_ok ok;
    if (!realpath(name, path)) /* model directories are often full of links */
        return larder_fail(-errno, "%s: %m", name);
    LARDER_TRY(larder_file_read(&bytes, &count, path, LARDER_PROFILE_BYTES_MAX));
    int err = larder_profile_open(&profile, bytes, count);
    if (err == 0) {
        larder_profile_name(profile, ask.name);
        err = link_open(&link, options->socket);
    }
    if (err == 0)
        err = send_profile(link, &ok, &ask, bytes, count);
    link_close(link);
    larder_profile_close(profile);
    larder_free(bytes);
    LARDER_TRY(err);
    char hex[65];
    larder_hex(hex, ask.name, sizeof(ask.name));
    if (options->json)
        printf("{\"name\": \"%s\", \"existed\": %s, \"default\": %s}\n", hex,
               ok.existed ? "true" : "false", options->is_default ? "true" : "false");
    else
        printf("profile %s %s%s\n", hex, ok.existed ? "was stored already" : "stored",
               options->is_default ? ", and is its model's default" : "");
    return 0;
}

/* --- ls, show, rm ----------------------------------------------------------------------------- */

/* `profile` NULL: its file is damaged. */
static json_t *profile_json(const struct wire_admin_profile_ok *at,
                            const struct larder_profile *profile)
{
    char hex[65], weights[65];
    larder_hex(hex, at->name, sizeof(at->name));
    json_t *json = json_pack("{s:s, s:I, s:I, s:b, s:b}", "name", hex, "bytes",
                             (json_int_t)at->bytes, "entries", (json_int_t)at->uses, "default",
                             at->is_default != 0, "damaged", profile == NULL);
    if (!profile)
        return json;
    const struct larder_profile_model *model = larder_profile_model(profile);
    larder_hex(weights, model->weights, sizeof(model->weights));
    json_object_set_new(json, "weights", json_string(weights));
    json_object_set_new(json, "layers", json_integer(model->layers));
    json_object_set_new(json, "kv_heads", json_integer(model->kv_heads));
    json_object_set_new(json, "k_dims", json_integer(model->k_dims));
    json_object_set_new(json, "v_dims", json_integer(model->v_dims));
    const struct larder_weights *tensors = larder_profile_tensors(profile);
    json_t *metadata = json_object();
    json_t *names = json_array();
    const char *key;
    const char *text;
    for (size_t i = 0; (text = larder_weights_metadata_at(tensors, i, &key)); i++)
        json_object_set_new(metadata, key, json_string(text));
    for (size_t i = 0; i < larder_weights_count(tensors); i++)
        json_array_append_new(names, json_string(larder_weights_at(tensors, i)->name));
    json_object_set_new(json, "metadata", metadata);
    json_object_set_new(json, "tensors", names);
    return json;
}

/* The store's name of the model that it was made for; "-" when the store has not met it. */
static void model_name(struct link *link, char out[64], const struct larder_profile *profile)
{
    const struct larder_profile_model *of = larder_profile_model(profile);
    struct wire_admin_model_ok model;
    snprintf(out, 64, "-");
    for (uint32_t i = 0; link_model(link, &model, i) == 0; i++) {
        if (memcmp(model.desc.weights, of->weights, sizeof(of->weights)) == 0)
            snprintf(out, 64, "%.63s", model.desc.name);
    }
}

/* `profile` NULL: its file is damaged. */
static void profile_row(struct link *link, const struct wire_admin_profile_ok *at,
                        const struct larder_profile *profile, bool whole)
{
    char hex[65], weights[17] = "damaged", bytes[16], name[64] = "-";
    larder_hex(hex, at->name, whole ? 32 : 6);
    if (profile) {
        model_name(link, name, profile);
        larder_hex(weights, larder_profile_model(profile)->weights, 8);
    }
    printf("%s %-16.16s %-16s %9s %9llu %s\n", hex, name, weights,
           larder_human_bytes(bytes, at->bytes), (unsigned long long)at->uses,
           at->is_default ? "default" : "");
}

static int ls(const struct command_options *options)
{
    struct link *link;
    LARDER_TRY(link_open(&link, options->socket));
    json_t *array = options->json ? json_array() : NULL;
    if (!array)
        printf("%-*s %-16s %-16s %9s %9s\n", options->long_keys ? 64 : 12, "PROFILE", "MODEL",
               "WEIGHTS", "BYTES", "ENTRIES");
    int err = 0;
    for (uint32_t i = 0; err == 0; i++) {
        struct wire_admin_profile_ok at;
        struct fetched fetched = {.map = NULL};
        err = list_one(link, &at, i);
        if (err == 0)
            err = fetch(link, &fetched, at.name);
        if (err == LARDER_ENOPROFILE) /* one that is damaged does not hide the others */
            err = 0;
        if (err == 0 && array)
            json_array_append_new(array, profile_json(&at, fetched.profile));
        else if (err == 0)
            profile_row(link, &at, fetched.profile, options->long_keys);
        unfetch(&fetched);
    }
    link_close(link);
    if (err == LARDER_ENOTFOUND && array) {
        json_dumpf(array, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
    }
    json_decref(array);
    return err == LARDER_ENOTFOUND ? 0 : err;
}

static void show_text(const struct wire_admin_profile_ok *at, const struct larder_profile *profile)
{
    char hex[65], bytes[16];
    const struct larder_profile_model *model = larder_profile_model(profile);
    larder_hex(hex, at->name, sizeof(at->name));
    printf("name      %s\nbytes     %s\n", hex, larder_human_bytes(bytes, at->bytes));
    larder_hex(hex, model->weights, sizeof(model->weights));
    printf("weights   %s\nshape     %u layers, %u KV heads, K %u, V %u\n", hex, model->layers,
           model->kv_heads, model->k_dims, model->v_dims);
    printf("entries   %llu were encoded with it%s\n", (unsigned long long)at->uses,
           at->is_default ? "; its model's default" : "");
    const struct larder_weights *tensors = larder_profile_tensors(profile);
    const char *key;
    const char *text;
    for (size_t i = 0; (text = larder_weights_metadata_at(tensors, i, &key)); i++)
        printf("  %-24s %s\n", key, text);
    for (size_t i = 0; i < larder_weights_count(tensors); i++) {
        const struct larder_weight *tensor = larder_weights_at(tensors, i);
        printf("  %-24s %s [", tensor->name, tensor->dtype_name);
        for (uint32_t d = 0; d < tensor->rank; d++)
            printf("%s%llu", d > 0 ? ", " : "", (unsigned long long)tensor->shape[d]);
        printf("]\n");
    }
}

static int show(const struct command_options *options, const char *text)
{
    struct link *link;
    struct wire_admin_profile_ok at;
    struct fetched fetched = {.map = NULL};
    LARDER_TRY(link_open(&link, options->socket));
    int err = find(link, &at, text);
    if (err == 0)
        err = fetch(link, &fetched, at.name);
    link_close(link);
    LARDER_TRY(err);
    if (options->json) {
        json_t *json = profile_json(&at, fetched.profile);
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(json);
    } else {
        show_text(&at, fetched.profile);
    }
    unfetch(&fetched);
    return 0;
}

static int rm(const struct command_options *options, int argc, char **argv)
{
    struct link *link;
    int err = link_open(&link, options->socket);
    LARDER_TRY(err);
    int removed = 0;
    for (int i = 0; err == 0 && i < argc; i++) {
        struct wire_admin_profile_ok at;
        const void *body;
        err = find(link, &at, argv[i]);
        if (err == 0)
            err = link_request(link, &body, WIRE_ADMIN_PROFILE_RM, at.name, sizeof(at.name),
                               WIRE_ADMIN_PROFILE_RM_OK, 0);
        removed += err == 0;
    }
    link_close(link);
    if (options->json)
        printf("{\"removed\": %d}\n", removed);
    else if (removed > 0)
        printf("removed %d profile%s\n", removed, removed == 1 ? "" : "s");
    return err;
}

int command_profile(const struct command_options *options, int argc, char **argv)
{
    int err;
    if (strcmp(argv[0], "add") == 0 && argc == 2) {
        err = add(options, argv[1]);
    } else if (strcmp(argv[0], "ls") == 0 && argc == 1) {
        err = ls(options);
    } else if (strcmp(argv[0], "show") == 0 && argc == 2) {
        err = show(options, argv[1]);
    } else if (strcmp(argv[0], "rm") == 0 && argc >= 2) {
        err = rm(options, argc - 1, argv + 1);
    } else {
        fprintf(stderr, "larder: usage: larder profile add [--default] FILE, ls, show NAME, or rm "
                        "NAME...\n");
        return COMMAND_USAGE;
    }
    return err < 0 ? command_failed(err) : COMMAND_OK;
}
