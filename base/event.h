/* SPDX-License-Identifier: Apache-2.0 */
/* event.h - why an entry is not, or no longer, where a lookup would have found it.
 * The numbers stand in DIR/history and in frames: they never change, and none is used again.
 */
#ifndef LARDER_BASE_EVENT_H
#define LARDER_BASE_EVENT_H

/* name, number, label of metrics, sentence for people */
#define LARDER_EVENTS(X)                                                                           \
    X(EVICTED_HOST, 1, "evicted_host", "evicted from host memory, its last copy, to make room")    \
    X(EVICTED_SSD, 2, "evicted_ssd", "evicted from SSD to make room")                              \
    X(EVICTED_QUOTA, 3, "evicted_quota", "evicted because its tenant was over its quota")          \
    X(EVICTED_SLAB, 4, "evicted_slab", "evicted when its memory was given to another tenant")      \
    X(EXPIRED, 5, "expired", "expired")                                                            \
    X(REMOVED, 6, "removed", "removed by request, or with a block that it followed")               \
    X(PURGED, 7, "purged", "purged with its tenant")                                               \
    X(CORRUPT, 8, "corrupt", "dropped: its record on SSD, or one that it followed, was damaged")   \
    X(REPLACED, 9, "replaced", "replaced by a longer block that begins with its tokens")           \
    X(NOT_ADMITTED, 10, "not_admitted", "kept in host memory only: not worth writing to SSD")      \
    X(WRITE_FAILED, 11, "write_failed",                                                            \
      "not written to SSD: the write failed, or the disk is full")                                 \
    X(REFUSED, 12, "refused", "refused when it was to be stored: no room")                         \
    X(LOST, 13, "lost", "could not be kept when larderd started")                                  \
    X(DEMOTED, 14, "demoted", "not used for long: a smaller record of it took its place")

enum larder_event {
    LARDER_EVENT_NONE = 0,
#define LARDER_EVENT_ENUM(name, number, label, text) LARDER_EVENT_##name = (number),
    LARDER_EVENTS(LARDER_EVENT_ENUM)
#undef LARDER_EVENT_ENUM
        LARDER_EVENT_END
};

/* "" for a number that is none. */
const char *larder_event_label(unsigned event);
const char *larder_event_text(unsigned event);

#endif
