/* SPDX-License-Identifier: Apache-2.0 */
/* error.h - error codes and the message that goes with the last one.
 * Threads: the message is the calling thread's own.
 */
#ifndef LARDER_BASE_ERROR_H
#define LARDER_BASE_ERROR_H

#include "base/larder_base.h"

#define LARDER_MESSAGE_BYTES_MAX 512

/* Return on error; only where nothing needs undoing. */
#define LARDER_TRY(call)                                                                           \
    do {                                                                                           \
        int try_err_ = (call);                                                                     \
        if (try_err_ < 0)                                                                          \
            return try_err_;                                                                       \
    } while (0)

/* Sets the thread's message (value, limit, remedy) and returns `code`, which is negative. */
int larder_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3), cold));

/* The thread's last message; "" before the first. Valid until the thread's next failure. */
const char *larder_error_message(void);

/* Short text of a code: ours from the table, the system's from strerror. Never NULL. */
const char *larder_error_text(int code);

/* "LARDER_ECORRUPT", "ENOSPC"; "?" when unknown. */
const char *larder_error_name(int code);

#endif
