/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/larder_tokens.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

/* --- tokens ----------------------------------------------------------------------------------- */

struct tokens {
    uint32_t *values;
    size_t count;
    size_t capacity;
};

static int add_token(struct tokens *tokens, uint32_t value)
{
    if (tokens->count == LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "more than %u tokens", LARDER_PROMPT_TOKENS_MAX);
    if (tokens->count == tokens->capacity) {
        size_t capacity = tokens->capacity ? tokens->capacity * 2 : 4096;
        uint32_t *values = larder_realloc(tokens->values, capacity * sizeof(*values));
        if (!values)
            return larder_fail(-ENOMEM, "no memory for tokens");
        tokens->values = values;
        tokens->capacity = capacity;
    }
    tokens->values[tokens->count++] = value;
    return 0;
}

static int read_numbers(struct tokens *tokens, FILE *file, const char *path)
{
    uint64_t value = 0;
    bool in_number = false;
    for (;;) {
        int c = getc(file);
        if (c != EOF && isdigit(c)) {
            value = value * 10 + (uint64_t)(c - '0');
            in_number = true;
            if (value >= LARDER_VOCAB_MAX)
                return larder_fail(LARDER_EFORMAT, "%s: token %zu is not below %u", path,
                                   tokens->count, LARDER_VOCAB_MAX);
            continue;
        }
        if (in_number)
            LARDER_TRY(add_token(tokens, (uint32_t)value));
        value = 0;
        in_number = false;
        if (c == EOF)
            break;
        if (!isspace(c) && c != ',' && c != '[' && c != ']')
            return larder_fail(LARDER_EFORMAT,
                               "%s: character %d behind token %zu; tokens are decimal numbers with "
                               "spaces or commas between them",
                               path, c, tokens->count);
    }
    if (ferror(file))
        return larder_fail(-EIO, "cannot read %s: %m", path);
    return tokens->count ? 0 : larder_fail(LARDER_EFORMAT, "%s holds no token", path);
}

int tokens_read(const char *path, uint32_t **out, size_t *count)
{
    *out = NULL;
    *count = 0;
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(path, "re");
    if (!file)
        return larder_fail(-errno, "cannot open %s: %m", path);
    struct tokens tokens = {0};
    int err = read_numbers(&tokens, file, path);
    if (!is_stdin)
        fclose(file);
    if (err < 0) {
        larder_free(tokens.values);
        return err;
    }
    *out = tokens.values;
    *count = tokens.count;
    return 0;
}

/* --- whose ------------------------------------------------------------------------------------ */

int tokens_tenant(struct link *link, struct wire_admin_tenant_ok *out, const char *name)
{
    struct wire_admin_tenant_ok *tenants;
    size_t count;
    LARDER_TRY(link_tenants(link, &tenants, &count));
    size_t found = count;
    for (size_t i = 0; i < count; i++) {
        if (name ? strcmp(tenants[i].name, name) == 0 : count == 1)
            found = i;
    }
    int err = 0;
    if (found < count)
        *out = tenants[found];
    else if (name)
        err = larder_fail(LARDER_ENOTFOUND, "there is no tenant '%s'; see larder tenants", name);
    else
        err = larder_fail(-EINVAL, "there are %zu tenants: say which, with --tenant", count);
    larder_free(tenants);
    return err;
}

static bool is_model(const struct wire_admin_model_ok *model, const char *name)
{
    char fingerprint[65];
    larder_hex(fingerprint, model->fingerprint, 32);
    return strcmp(model->desc.name, name) == 0 ||
           (strlen(name) >= 4 && strncmp(fingerprint, name, strlen(name)) == 0);
}

int tokens_model(struct link *link, struct wire_admin_model_ok *out, const char *name)
{
    uint32_t matches = 0;
    for (uint32_t i = 0;; i++) {
        struct wire_admin_model_ok model;
        int err = link_model(link, &model, i);
        if (err == LARDER_ENOTFOUND)
            break;
        LARDER_TRY(err);
        if (!name || is_model(&model, name)) {
            *out = model;
            matches++;
        }
    }
    if (matches == 1)
        return 0;
    if (matches == 0)
        return larder_fail(LARDER_ENOTFOUND, "there is no model%s%s; see larder models",
                           name ? " " : "", name ? name : "");
    return larder_fail(-EINVAL,
                       "%u models are meant: say which, with --model and a name or the first "
                       "digits of a fingerprint",
                       matches);
}
