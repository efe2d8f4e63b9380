/* SPDX-License-Identifier: Apache-2.0 */
/* index_check.h - is the index's LMDB file sound? LMDB trusts every byte of it: a flipped bit can
 * give a wrong value, a lost key, a page used twice at the next write, or a crash (seen: 305 wrong
 * values and 3 crashes in 1,500 flips; every truncation a SIGBUS). So before LMDB opens the file, a
 * child process walks it whole: both meta pages, every page of every tree, the order and bounds of
 * all keys, the list of free pages, the check of every value. The child is there for what the walk
 * cannot guard against: a file that gets shorter, or a disk that fails, under the map.
 * Threads: plain functions; index_check_file() forks.
 */
#ifndef LARDER_STORAGE_INDEX_CHECK_H
#define LARDER_STORAGE_INDEX_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The databases, and the sizes of their keys and values. */
enum index_database {
    INDEX_ENTRIES,
    INDEX_SEGMENTS,
    INDEX_MODELS,
    INDEX_META,
    INDEX_MARKS, /* not in stores that no release with marks has opened */
    INDEX_DATABASES,
};

struct index_database_kind {
    const char *name;
    size_t key_bytes; /* 0: any */
    size_t value_bytes;
};
extern const struct index_database_kind index_databases[INDEX_DATABASES];

/* XXH3-64 over key and the value's bytes before its last 8, which hold it. */
uint64_t index_value_check(const void *key, size_t key_bytes, const void *value,
                           size_t value_bytes);

/* 0 when sound, -ENOENT when there is no such file or it is empty, LARDER_ECORRUPT with the first
 * thing found wrong, other -errno. */
int index_check_file(const char *path);

/* The walk alone, over the bytes of such a file: is it sound, and if not, the first thing wrong. */
bool index_check_image(const void *image, uint64_t image_bytes, char *reason, size_t reason_bytes);

#endif
