/* SPDX-License-Identifier: Apache-2.0 */
/* file.h - small files that are read and replaced as a whole.
 * Threads: plain functions; one writer at a time for a path.
 */
#ifndef LARDER_BASE_FILE_H
#define LARDER_BASE_FILE_H

#include <stddef.h>

/* All of a regular file of at most `bytes_max` bytes, in memory for larder_free() with a NUL behind
 * it. -ENOENT when there is none; LARDER_ELIMIT for a larger one. */
int larder_file_read(void **out, size_t *out_bytes, const char *path, size_t bytes_max);

/* DIR/name holds these bytes, durably, or what it held before; mode 0600. Written beside it as
 * name.new first. */
int larder_file_replace(const char *directory, const char *name, const void *bytes, size_t count);

#endif
