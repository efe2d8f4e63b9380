/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_message[LARDER_MESSAGE_BYTES_MAX];

int larder_fail(int code, const char *format, ...)
{
    assert(code < 0);
    /* Formatted apart first: an argument may be the old message itself. */
    char fresh[LARDER_MESSAGE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(fresh, sizeof(fresh), format, args);
    va_end(args);
    memcpy(last_message, fresh, sizeof(fresh));
    return code;
}

const char *larder_error_message(void)
{
    return last_message;
}

const char *larder_error_text(int code)
{
    switch (code) {
#define TEXT_CASE(name, value, text)                                                               \
    case (value):                                                                                  \
        return text;
        LARDER_ERRORS(TEXT_CASE)
#undef TEXT_CASE
    case 0:
        return "success";
    default:
        return strerror(-code);
    }
}

const char *larder_error_name(int code)
{
    switch (code) {
#define NAME_CASE(name, value, text)                                                               \
    case (value):                                                                                  \
        return #name;
        LARDER_ERRORS(NAME_CASE)
#undef NAME_CASE
    default: {
        const char *name = strerrorname_np(-code);
        return name ? name : "?";
    }
    }
}
