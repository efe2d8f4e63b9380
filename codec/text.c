/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/text.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

void text_say(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t left = text->bytes < text->room ? text->room - text->bytes : 0;
    int written = vsnprintf(left ? text->out + text->bytes : NULL, left, format, arguments);
    va_end(arguments);
    assert(written >= 0);
    text->bytes += (size_t)written;
}
