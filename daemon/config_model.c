/* SPDX-License-Identifier: Apache-2.0 */
/* config_model.c - `model NAME = DIR`: models whose weights are here, for a worker to blend. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "daemon/config.h"
#include "kernels/blend/blend.h"

static int check_name(const char *name)
{
    const size_t length = strlen(name);
    if (length == 0 || length >= LARDER_MODEL_NAME_MAX)
        return larder_fail(-EINVAL, "a model's name has 1 to %u characters: model NAME = DIR",
                           LARDER_MODEL_NAME_MAX - 1);
    for (const char *c = name; *c; c++) {
        if (!isgraph((unsigned char)*c))
            return larder_fail(-EINVAL, "model '%s': a name has no spaces", name);
    }
    return 0;
}

/* What follows `key` in the text, which is cut there; NULL: it is not there. */
static const char *cut_option(char *text, const char *key)
{
    char *at = strstr(text, key);
    if (!at)
        return NULL;
    const char *value = at + strlen(key);
    while (at > text && at[-1] == ' ')
        at--;
    *at = 0;
    return value;
}

static int set_dtype(struct served_model *out, const char *name)
{
    static const struct {
        const char *text;
        uint32_t dtype;
    } dtypes[] = {{"f32", LARDER_F32}, {"f16", LARDER_F16}, {"bf16", LARDER_BF16}};
    for (size_t i = 0; i < LARDER_COUNT_OF(dtypes); i++) {
        if (strcmp(name, dtypes[i].text) == 0)
            out->kv_dtype = dtypes[i].dtype;
    }
    return out->kv_dtype
               ? 0
               : larder_fail(-EINVAL, "'kv=%s' is not one of kv=f32, kv=f16, kv=bf16", name);
}

/* "DIR", "DIR kv=f16", "DIR method=link k=16", "DIR kv=f16 method=link k=16". */
static int parse_place(struct served_model *out, const char *value)
{
    char text[PATH_MAX + 256];
    if (strlen(value) >= sizeof(text))
        return larder_fail(-EINVAL, "a model's text of %zu bytes is longer than %zu", strlen(value),
                           sizeof(text) - 1);
    strcpy(text, value);
    const char *method = cut_option(text, " method=");
    const char *kv = cut_option(text, " kv=");
    if (text[0] != '/')
        return larder_fail(-EINVAL, "folder '%s' of a model is relative; start it with '/'", text);
    if (strlen(text) >= sizeof(out->directory))
        return larder_fail(-EINVAL, "a folder's path of %zu bytes is longer than %zu", strlen(text),
                           sizeof(out->directory) - 1);
    strcpy(out->directory, text);
    if (!method)
        method = LARDER_BLEND_METHOD_DEFAULT;
    if (!method[0] || strlen(method) >= sizeof(out->method))
        return larder_fail(-EINVAL, "a method's text has 1 to %zu bytes", sizeof(out->method) - 1);
    strcpy(out->method, method);
    return kv ? set_dtype(out, kv) : 0;
}

int config_add_model(struct config *config, const char *name, const char *value)
{
    struct served_model model = {.kv_dtype = 0};
    LARDER_TRY(check_name(name));
    LARDER_TRY(parse_place(&model, value));
    snprintf(model.name, sizeof(model.name), "%s", name);
    for (uint32_t i = 0; i < config->model_count; i++) {
        if (strcmp(config->models[i].name, name) == 0)
            return larder_fail(-EINVAL, "model %s is there already, from %s; remove one", name,
                               config->models[i].directory);
    }
    if (config->model_count == LARDER_SERVED_MAX)
        return larder_fail(-EINVAL, "more than %u models", LARDER_SERVED_MAX);
    struct served_model *models =
        larder_realloc(config->models, (config->model_count + 1) * sizeof(*models));
    if (!models)
        return larder_fail(-ENOMEM, "no memory for models");
    models[config->model_count++] = model;
    config->models = models;
    return 0;
}

int config_set_model(struct config *config, const char *argument)
{
    char name[LARDER_MODEL_NAME_MAX];
    const char *equals = strchr(argument, '=');
    const size_t length = equals ? (size_t)(equals - argument) : 0;
    if (length == 0 || length >= sizeof(name))
        return larder_fail(LARDER_ECONFIG, "--model %s: write --model NAME=DIR", argument);
    memcpy(name, argument, length);
    name[length] = 0;
    if (config_add_model(config, name, equals + 1) < 0)
        return larder_fail(LARDER_ECONFIG, "--model %s: %s", argument, larder_error_message());
    return 0;
}

bool config_same_models(const struct config *a, const struct config *b)
{
    if (a->model_count != b->model_count)
        return false;
    for (uint32_t i = 0; i < a->model_count; i++) {
        if (strcmp(a->models[i].name, b->models[i].name) != 0 ||
            strcmp(a->models[i].directory, b->models[i].directory) != 0 ||
            strcmp(a->models[i].method, b->models[i].method) != 0 ||
            a->models[i].kv_dtype != b->models[i].kv_dtype)
            return false;
    }
    return true;
}
