/* SPDX-License-Identifier: Apache-2.0 */
/* larder_text.h - how larder(1) writes numbers for people, and whether it may. */
#ifndef LARDER_TOOLS_LARDER_TEXT_H
#define LARDER_TOOLS_LARDER_TEXT_H

#include <stdbool.h>
#include <stdint.h>

struct wire_admin_entry;

/* "12s", "5m", "3h", "9d". Returns out. */
char *text_age(char out[16], uint64_t seconds);
/* "1h 5m", "3d 2h". Returns out. */
char *text_duration(char out[32], uint64_t seconds);
/* "2.41x"; "-" when nothing is stored. Returns out. */
char *text_ratio(char out[16], uint64_t raw_bytes, uint64_t stored_bytes);
/* "93.1 %"; "-" when there was nothing. Returns out. */
char *text_share(char out[16], uint64_t part, uint64_t all);
const char *text_quality(uint32_t quality);
const char *text_dtype(uint32_t dtype);
const char *text_rope(uint32_t kind);
const char *text_tier(const struct wire_admin_entry *entry);

/* "Pt+3": pinned (h: before what is), with a time, a priority; "-" without marks. Returns out. */
char *text_marks(char out[8], const struct wire_admin_entry *entry);

/* A bar on stderr, when that is a terminal and the work takes longer than a second. */
struct progress {
    bool shown;
    bool is_terminal;
    uint64_t started_ms;
    uint64_t drawn_ms;
};
void progress_start(struct progress *progress);
void progress_step(struct progress *progress, const char *what, uint64_t done, uint64_t all);
void progress_end(struct progress *progress);

#endif
