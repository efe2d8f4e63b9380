/* SPDX-License-Identifier: Apache-2.0 */
/* damage.h - changes the bytes of a store that nobody has open, as failing disks, controllers and
 * file systems do: flipped bits, overwritten runs, zeroed and swapped pages, pages of other places,
 * files cut, extended or gone.
 * Threads: any, on different directories.
 */
#ifndef LARDER_TESTS_CRASHING_DAMAGE_H
#define LARDER_TESTS_CRASHING_DAMAGE_H

#include <stdbool.h>
#include <stdint.h>

enum damage_class {
    DAMAGE_SEGMENT,  /* segments/: entries may be missing then */
    DAMAGE_INDEX,    /* index/: nothing may be missing */
    DAMAGE_IDENTITY, /* format: the start may be refused; one copy of the tenants: repaired */
    DAMAGE_OTHER,    /* helps only: nothing may be missing */
    DAMAGE_CLASSES,
};

struct damage {
    enum damage_class class;
    char file[64]; /* in the store's directory */
    char what[48];
};

enum damage_which {
    DAMAGE_ANY_FILE,
    DAMAGE_BUT_FORMAT, /* what keeps no store from starting */
};

/* One file by chance, damaged in one way by chance; mostly a segment or the index. False when there
 * was nothing to change. `*random` is the state of the caller's numbers. */
bool damage_store(struct damage *out, const char *directory, enum damage_which which,
                  uint64_t *random);

#endif
