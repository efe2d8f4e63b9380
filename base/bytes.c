/* SPDX-License-Identifier: Apache-2.0 */
#include "base/bytes.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/larder_base.h"

bool larder_all_zero(const void *bytes, size_t count)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < count; i++) {
        if (at[i] != 0)
            return false;
    }
    return true;
}

void larder_hex(char *out, const void *bytes, size_t count)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *at = bytes;
    for (size_t i = 0; i < count; i++) {
        out[2 * i] = digits[at[i] >> 4];
        out[2 * i + 1] = digits[at[i] & 15];
    }
    out[2 * count] = '\0';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int larder_unhex(void *out, size_t count, const char *text)
{
    uint8_t *to = out;
    if (strlen(text) != 2 * count)
        return larder_fail(-EINVAL, "'%.80s' is not %zu hex digits", text, 2 * count);
    for (size_t i = 0; i < count; i++) {
        int high = hex_digit(text[2 * i]);
        int low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return larder_fail(-EINVAL, "'%.80s' is not %zu hex digits", text, 2 * count);
        to[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

char *larder_human_bytes(char out[16], uint64_t bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 999.95 && unit + 1 < LARDER_COUNT_OF(units)) {
        value /= 1000;
        unit++;
    }
    if (unit == 0)
        snprintf(out, 16, "%u B", (unsigned)bytes);
    else
        snprintf(out, 16, "%.1f %s", value, units[unit]);
    return out;
}

int larder_parse_bytes(uint64_t *out, const char *text)
{
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    unsigned shift = 0;
    bool ok = isdigit((unsigned char)text[0]) && errno == 0;
    if (ok && *end) {
        static const char units[] = "KMGT";
        const char *at = strchr(units, toupper((unsigned char)*end));
        ok = at && end[1] == '\0';
        if (ok)
            shift = 10 * (unsigned)(1 + (at - units));
    }
    if (ok && shift)
        ok = value <= (UINT64_MAX >> shift);
    if (!ok)
        return larder_fail(-EINVAL, "'%s' is not a size; write for instance 4096, 64M or 2G", text);
    *out = (uint64_t)value << shift;
    return 0;
}

int larder_parse_seconds(uint64_t *out, const char *text)
{
    static const char units[] = "smhd";
    static const uint64_t seconds[] = {1, 60, 3600, 86400};
    char *end;
    errno = 0;
    uint64_t number = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : units;
    if (errno || end == text || *text < '0' || *text > '9' || !unit || (*end && end[1]) ||
        number == 0 || number > LARDER_MARK_SECONDS_MAX / seconds[unit - units])
        return larder_fail(-EINVAL,
                           "'%s' is no time like 90s, 15m, 12h or 7d, of at most 100 years", text);
    *out = number * seconds[unit - units];
    return 0;
}
