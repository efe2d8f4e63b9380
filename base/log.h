/* SPDX-License-Identifier: Apache-2.0 */
/* log.h - lines for people on stderr; with a priority prefix when stderr is the journal.
 * Threads: any; a line is written whole.
 */
#ifndef LARDER_BASE_LOG_H
#define LARDER_BASE_LOG_H

enum larder_log_level {
    LARDER_LOG_ERROR = 0, /* something is lost or refused; an operator should act */
    LARDER_LOG_WARN = 1,  /* handled, but worth knowing */
    LARDER_LOG_INFO = 2,  /* start, stop, recovery */
    LARDER_LOG_DEBUG = 3,
};

/* Lines above `level` are dropped. Default: LARDER_LOG_INFO. */
void larder_log_set_level(enum larder_log_level level);

/* 0 and the level of "error", "warn", "info" or "debug"; -EINVAL with a message otherwise. */
int larder_log_parse_level(enum larder_log_level *out, const char *text);

void larder_log(enum larder_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
