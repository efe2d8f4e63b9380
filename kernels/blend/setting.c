/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/setting.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/blend/method.h"

static const struct blend_method *const methods[] = {
    &blend_none,    &blend_full,   &blend_link,  &blend_cacheblend,
    &blend_kvshare, &blend_kvcomm, &blend_probe, &blend_random,
};

const struct larder_blend_method *larder_blend_method(uint32_t index)
{
    return index < LARDER_COUNT_OF(methods) ? &methods[index]->known : NULL;
}

static int no_such_method(const char *name)
{
    char names[256] = "";
    for (size_t i = 0; i < LARDER_COUNT_OF(methods); i++) {
        size_t at = strlen(names);
        snprintf(names + at, sizeof(names) - at, "%s%s", i ? ", " : "", methods[i]->known.name);
    }
    return larder_fail(-EINVAL, "blend method '%.40s' is not known; known are %s", name, names);
}

static int no_such_value(const struct blend_setting *setting, const struct blend_param *param,
                         const char *text)
{
    if (param->words)
        return larder_fail(-EINVAL, "blend method '%s': %s=%.40s is none of: %s",
                           setting->method->known.name, param->name, text, param->words);
    return larder_fail(-EINVAL, "blend method '%s': %s=%.40s is not a %snumber in %g..%g",
                       setting->method->known.name, param->name, text, param->whole ? "whole " : "",
                       param->low, param->high);
}

/* Which of the blank-separated words, or -1. */
static double find_word(const char *words, const char *text)
{
    size_t bytes = strlen(text);
    double number = 0;
    for (const char *at = words; *at; number++) {
        size_t length = strcspn(at, " ");
        if (length == bytes && strncmp(at, text, bytes) == 0)
            return number;
        at += length + (at[length] == ' ');
    }
    return -1;
}

static int read_value(struct blend_setting *setting, uint32_t index, const char *text)
{
    const struct blend_param *param = &setting->method->params[index];
    struct blend_values *values = &setting->value[index];
    uint32_t most = param->count_max ? param->count_max : 1;
    assert(most <= BLEND_VALUES_MAX);
    if (values->count == most)
        return larder_fail(-EINVAL, "blend method '%s': %s takes at most %u value%s",
                           setting->method->known.name, param->name, most, most == 1 ? "" : "s");
    double number;
    if (param->words) {
        number = find_word(param->words, text);
        if (number < 0)
            return no_such_value(setting, param, text);
    } else {
        char *end;
        number = strtod(text, &end);
        bool digits = isdigit((unsigned char)text[0]) || text[0] == '.';
        if (!digits || *end || !isfinite(number) || number < param->low || number > param->high ||
            (param->whole && number != floor(number)))
            return no_such_value(setting, param, text);
    }
    values->at[values->count++] = number;
    return 0;
}

/* One word of the text: "name=value,value". */
static int read_word(struct blend_setting *setting, char *word)
{
    const struct blend_method *method = setting->method;
    char *value = strchr(word, '=');
    if (value)
        *value++ = 0;
    for (uint32_t i = 0; i < method->param_count; i++) {
        if (strcmp(method->params[i].name, word) != 0)
            continue;
        if (!value)
            return larder_fail(-EINVAL, "blend method '%s': %s has no value; write %s=...",
                               method->known.name, word, word);
        if (setting->value[i].count > 0)
            return larder_fail(-EINVAL, "blend method '%s': %s stands twice", method->known.name,
                               word);
        for (char *end; value; value = end) {
            end = strchr(value, ',');
            if (end)
                *end++ = 0;
            LARDER_TRY(read_value(setting, i, value));
        }
        return 0;
    }
    return larder_fail(-EINVAL, "blend method '%s' knows no '%.40s'; it is written '%s'",
                       method->known.name, word, method->known.form);
}

int blend_setting_read(struct blend_setting *out, const char *text, uint32_t layers)
{
    char copy[BLEND_TEXT_BYTES_MAX + 1];
    if (strlen(text) > BLEND_TEXT_BYTES_MAX)
        return larder_fail(-EINVAL, "blend method of %zu bytes is above %u", strlen(text),
                           BLEND_TEXT_BYTES_MAX);
    strcpy(copy, text);
    *out = (struct blend_setting){0};
    char *rest = NULL;
    char *word = strtok_r(copy, " ", &rest);
    for (size_t i = 0; word && i < LARDER_COUNT_OF(methods); i++)
        if (strcmp(methods[i]->known.name, word) == 0)
            out->method = methods[i];
    if (!out->method)
        return no_such_method(word ? word : "");
    while ((word = strtok_r(NULL, " ", &rest)))
        LARDER_TRY(read_word(out, word));
    for (uint32_t i = 0; i < out->method->param_count; i++)
        if (out->value[i].count == 0)
            out->value[i] = (struct blend_values){{out->method->params[i].missing}, 1};
    return out->method->check ? out->method->check(out, layers) : 0;
}

int larder_blend_check_method(const char *text, uint32_t layers)
{
    struct blend_setting setting;
    return blend_setting_read(&setting, text, layers);
}
