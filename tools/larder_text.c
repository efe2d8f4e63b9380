/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/larder_text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/wire.h"

#define BAR_WIDTH     40
#define SHOW_AFTER_MS 1000
#define DRAW_EVERY_MS 100

static unsigned long long llu(uint64_t value)
{
    return (unsigned long long)value;
}

char *text_age(char out[16], uint64_t seconds)
{
    if (seconds < 60)
        snprintf(out, 16, "%us", (unsigned)seconds);
    else if (seconds < 3600)
        snprintf(out, 16, "%um", (unsigned)(seconds / 60));
    else if (seconds < 2 * 86400)
        snprintf(out, 16, "%uh", (unsigned)(seconds / 3600));
    else
        snprintf(out, 16, "%ud", (unsigned)(seconds / 86400));
    return out;
}

char *text_duration(char out[32], uint64_t seconds)
{
    if (seconds < 60)
        snprintf(out, 32, "%llus", llu(seconds));
    else if (seconds < 3600)
        snprintf(out, 32, "%llum %llus", llu(seconds / 60), llu(seconds % 60));
    else if (seconds < 86400)
        snprintf(out, 32, "%lluh %llum", llu(seconds / 3600), llu(seconds / 60 % 60));
    else
        snprintf(out, 32, "%llud %lluh", llu(seconds / 86400), llu(seconds / 3600 % 24));
    return out;
}

char *text_marks(char out[8], const struct wire_admin_entry *entry)
{
    char priority[8] = "";
    if (entry->priority)
        snprintf(priority, sizeof(priority), "%+d", entry->priority);
    snprintf(out, 8, "%s%s%.3s",
             entry->pinned ? "P"
             : entry->held ? "h"
                           : "",
             entry->expires_s ? "t" : "", priority);
    if (out[0] == '\0')
        snprintf(out, 8, "-");
    return out;
}

char *text_ratio(char out[16], uint64_t raw_bytes, uint64_t stored_bytes)
{
    if (stored_bytes == 0 || raw_bytes == 0)
        snprintf(out, 16, "-");
    else
        snprintf(out, 16, "%.2fx", (double)raw_bytes / (double)stored_bytes);
    return out;
}

char *text_share(char out[16], uint64_t part, uint64_t all)
{
    if (all == 0)
        snprintf(out, 16, "-");
    else
        snprintf(out, 16, "%.1f %%", 100 * (double)part / (double)all);
    return out;
}

const char *text_quality(uint32_t quality)
{
    static const char *const names[] = {"exact", "lossy", "blended"};
    return quality <= LARDER_QUALITY_BLENDED ? names[quality] : "?";
}

const char *text_dtype(uint32_t dtype)
{
    static const char *const names[] = {"?", "f32", "f16", "bf16"};
    return dtype <= LARDER_BF16 ? names[dtype] : "?";
}

const char *text_rope(uint32_t kind)
{
    static const char *const names[] = {"none", "plain", "linear", "llama3", "yarn"};
    return kind <= LARDER_ROPE_YARN ? names[kind] : "?";
}

const char *text_tier(const struct wire_admin_entry *entry)
{
    if (entry->in_host)
        return entry->durable ? "host+ssd" : "host";
    return entry->durable ? "ssd" : "-";
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void progress_start(struct progress *progress)
{
    progress->shown = false;
    progress->is_terminal = isatty(STDERR_FILENO) != 0;
    progress->started_ms = now_ms();
    progress->drawn_ms = progress->started_ms;
}

void progress_step(struct progress *progress, const char *what, uint64_t done, uint64_t all)
{
    uint64_t now = now_ms();
    if (!progress->is_terminal || now - progress->started_ms < SHOW_AFTER_MS ||
        (progress->shown && now - progress->drawn_ms < DRAW_EVERY_MS))
        return;
    char bar[BAR_WIDTH + 1];
    size_t full = all ? (size_t)(done * BAR_WIDTH / all) : 0;
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', full < BAR_WIDTH ? full : BAR_WIDTH);
    bar[BAR_WIDTH] = 0;
    double per_s = (double)done * 1000 / (double)(now - progress->started_ms);
    double left_s = per_s > 0 ? (double)(all - done) / per_s : 0;
    fprintf(stderr, "\r%s [%s] %llu of %llu, %.0f/s, %.0f s left ", what, bar, llu(done), llu(all),
            per_s, left_s);
    fflush(stderr);
    progress->shown = true;
    progress->drawn_ms = now;
}

void progress_end(struct progress *progress)
{
    if (progress->shown)
        fprintf(stderr, "\r%*s\r", 99, "");
    progress->shown = false;
}
