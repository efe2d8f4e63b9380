/* SPDX-License-Identifier: Apache-2.0 */
/* planted.h - deliberate bugs, compiled only into the variant of the storage library that
 * tests/crash links (LARDER_PLANTED): a harness that has never found a bug proves nothing. In the
 * product LARDER_PLANT() is the constant 0.
 *
 *   if (LARDER_PLANT(TAG_UNCHECKED)) ...
 *
 * Threads: larder_planted is set before the store opens and does not change while it is open.
 */
#ifndef LARDER_STORAGE_PLANTED_H
#define LARDER_STORAGE_PLANTED_H

enum larder_planted_bug {
    LARDER_PLANTED_NONE = 0,
    /* What is being read from SSD is published, and its lease done, before the bytes came and were
     * verified. */
    LARDER_PLANTED_EARLY_PUBLISH = 1,
    /* Tags of heads and sections that come from SSD are not compared. */
    LARDER_PLANTED_TAG_UNCHECKED = 2,
    /* The index is committed, and DURABLE acknowledged, while the group's writes and its fdatasync
     * are still on their way. */
    LARDER_PLANTED_INDEX_BEFORE_DATA = 3,
    /* The checks of the index's values are not compared. */
    LARDER_PLANTED_CHECK_IGNORED = 4,
    /* A start does not read what stands behind the bytes that the index knows of. */
    LARDER_PLANTED_TAIL_UNREAD = 5,
    /* A record that is moved: its old place is given back while the index still names it. */
    LARDER_PLANTED_FREED_BEFORE_NAMED = 6,
    /* What is moved out of the oldest segments gets no new name in the index. */
    LARDER_PLANTED_CLEARED_UNNAMED = 7,
};

#ifdef LARDER_PLANTED
extern enum larder_planted_bug larder_planted;
#define LARDER_PLANT(bug) (larder_planted == LARDER_PLANTED_##bug)
#else
#define LARDER_PLANT(bug) 0
#endif

#endif
