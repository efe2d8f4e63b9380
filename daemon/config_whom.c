/* SPDX-License-Identifier: Apache-2.0 */
/* config_whom.c - for whom a line `KEY [TENANT [MODEL]] = VALUE` is. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "daemon/config.h"

/* Digits of a fingerprint that name a model. */
#define DIGITS_MIN 8u

static bool is_any(const char *name)
{
    return strcmp(name, "*") == 0;
}

int config_parse_whom(struct config_whom *whom, char *names, const char *key)
{
    *whom = (struct config_whom){.tenant = "*", .model = "*"};
    if (!names)
        return 0;
    char *rest;
    const char *tenant = strtok_r(names, " \t", &rest);
    const char *model = strtok_r(NULL, " \t", &rest);
    if (!tenant || strtok_r(NULL, " \t", &rest))
        return larder_fail(-EINVAL,
                           "a %s is for a tenant, or a tenant and a model: %s TENANT "
                           "[MODEL] = TEXT",
                           key, key);
    if (!is_any(tenant))
        LARDER_TRY(config_check_name(tenant));
    strcpy(whom->tenant, tenant);
    if (model && strlen(model) >= sizeof(whom->model))
        return larder_fail(-EINVAL, "a model's name of %zu bytes is longer than %zu", strlen(model),
                           sizeof(whom->model) - 1);
    if (model)
        strcpy(whom->model, model);
    return 0;
}

bool config_same_whom(const struct config_whom *a, const struct config_whom *b)
{
    return strcmp(a->tenant, b->tenant) == 0 && strcmp(a->model, b->model) == 0;
}

/* By its name, or by digits that its fingerprint begins with. */
static bool is_model(const char *name, const struct larder_model_desc *model,
                     const struct larder_key *fingerprint)
{
    char digits[65];
    const size_t length = strlen(name);
    if (strcmp(name, model->name) == 0)
        return true;
    larder_hex(digits, fingerprint->bytes, sizeof(fingerprint->bytes));
    return length >= DIGITS_MIN && strncmp(digits, name, length) == 0;
}

int config_rank_whom(const struct config_whom *whom, const char *tenant,
                     const struct larder_model_desc *model, const struct larder_key *fingerprint)
{
    if ((!is_any(whom->tenant) && strcmp(whom->tenant, tenant) != 0) ||
        (!is_any(whom->model) && !is_model(whom->model, model, fingerprint)))
        return -1;
    return 2 * !is_any(whom->tenant) + !is_any(whom->model);
}
