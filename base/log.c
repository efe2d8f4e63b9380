/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"

#define LOG_LINE_BYTES_MAX 1024

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const char *const journal_prefixes[] = {"<3>", "<4>", "<6>", "<7>"};

/* Relaxed: a line more or less while the level changes does not matter. */
static _Atomic int max_level = LARDER_LOG_INFO;

void larder_log_set_level(enum larder_log_level level)
{
    atomic_store_explicit(&max_level, level, memory_order_relaxed);
}

int larder_log_parse_level(enum larder_log_level *out, const char *text)
{
    for (int i = 0; i <= LARDER_LOG_DEBUG; i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *out = (enum larder_log_level)i;
            return 0;
        }
    }
    return larder_fail(-EINVAL, "log level '%s' is not one of error, warn, info, debug", text);
}

/* $JOURNAL_STREAM is "DEVICE:INODE" of the stream that the service manager made. It is inherited by
 * programs whose stderr has been sent elsewhere meanwhile, where a prefix would only be noise. */
static bool is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat status;
    char own[64];
    if (!stream || fstat(STDERR_FILENO, &status) < 0)
        return false;
    snprintf(own, sizeof(own), "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    return strcmp(stream, own) == 0;
}

void larder_log(enum larder_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed))
        return;

    char line[LOG_LINE_BYTES_MAX];
    size_t used;
    if (is_journal()) {
        used = (size_t)snprintf(line, sizeof(line), "%s", journal_prefixes[level]);
    } else {
        time_t now = time(NULL);
        struct tm utc;
        gmtime_r(&now, &utc);
        used = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%SZ ", &utc);
        used += (size_t)snprintf(line + used, sizeof(line) - used, "%-5s ", level_names[level]);
    }

    va_list args;
    va_start(args, format);
    int wanted = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    va_end(args);
    size_t room = sizeof(line) - used - 2;
    used += wanted < 0 ? 0 : (size_t)wanted < room ? (size_t)wanted : room;
    line[used++] = '\n';
    /* One write, so that lines of several threads do not mix; a closed stderr is ignored. */
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
}
