/* SPDX-License-Identifier: Apache-2.0 */
/* text.h - text written piece by piece into the caller's room; what does not fit is counted.
 * Threads: a text belongs to one thread. Inside codec/ only. */
#ifndef LARDER_CODEC_TEXT_H
#define LARDER_CODEC_TEXT_H

#include <stddef.h>

struct text {
    char *out; /* may be NULL with room 0: only counted */
    size_t room;
    size_t bytes; /* wanted, without the zero behind it: it fits when less than `room` */
};

__attribute__((format(printf, 2, 3))) void text_say(struct text *text, const char *format, ...);

#endif
