/* SPDX-License-Identifier: Apache-2.0 */
/* config_quota.c - `quota NAME = ssd SIZE host SIZE`. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "daemon/config.h"

/* Less is a mistake in units. */
#define QUOTA_BYTES_MIN (1u << 20)

/* "ssd 10G host 1G", or one of them. */
static int parse_quota(struct tenant_quota *quota, char *value)
{
    char *rest;
    for (char *word = strtok_r(value, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest)) {
        uint64_t *bytes = strcmp(word, "ssd") == 0    ? &quota->ssd_bytes
                          : strcmp(word, "host") == 0 ? &quota->host_bytes
                                                      : NULL;
        char *size = strtok_r(NULL, " \t", &rest);
        if (!bytes || !size)
            return larder_fail(-EINVAL, "'%s' is not 'ssd SIZE', 'host SIZE' or both", word);
        if (*bytes)
            return larder_fail(-EINVAL, "'%s' stands there twice", word);
        LARDER_TRY(larder_parse_bytes(bytes, size));
        if (*bytes < QUOTA_BYTES_MIN)
            return larder_fail(-EINVAL, "%s %s is below %uM; leave it out for no limit", word, size,
                               QUOTA_BYTES_MIN >> 20);
    }
    return 0;
}

int config_add_quota(struct config *config, const char *name, char *value)
{
    struct tenant_quota quota = {0};
    if (strcmp(name, "*") != 0)
        LARDER_TRY(config_check_name(name));
    strcpy(quota.name, name);
    if (!*value)
        return larder_fail(-EINVAL, "a value is missing behind '='");
    LARDER_TRY(parse_quota(&quota, value));
    for (uint32_t i = 0; i < config->quota_count; i++) {
        if (strcmp(config->quotas[i].name, name) == 0)
            return larder_fail(-EINVAL, "tenant '%s' has a quota already; remove one", name);
    }
    if (config->quota_count == LARDER_TENANTS_MAX)
        return larder_fail(-EINVAL, "more than %u quotas", LARDER_TENANTS_MAX);
    struct tenant_quota *quotas =
        larder_realloc(config->quotas, (config->quota_count + 1) * sizeof(*quotas));
    if (!quotas)
        return larder_fail(-ENOMEM, "no memory for quotas");
    quotas[config->quota_count++] = quota;
    config->quotas = quotas;
    return 0;
}

const struct tenant_quota *config_find_quota(const struct config *config, const char *name)
{
    const struct tenant_quota *any = NULL;
    for (uint32_t i = 0; i < config->quota_count; i++) {
        if (strcmp(config->quotas[i].name, name) == 0)
            return &config->quotas[i];
        if (strcmp(config->quotas[i].name, "*") == 0)
            any = &config->quotas[i];
    }
    return any;
}
