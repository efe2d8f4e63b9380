/* SPDX-License-Identifier: Apache-2.0 */
/* side_file.h - small files beside the segments that a store can do without (DIR/history,
 * DIR/learned): written whole beside the old one, synced, and renamed over it.
 * Threads: plain functions; one caller at a time for a name.
 */
#ifndef LARDER_STORAGE_SIDE_FILE_H
#define LARDER_STORAGE_SIDE_FILE_H

#include <stdbool.h>
#include <stddef.h>

/* All of `bytes`, or false. */
bool side_file_read(int fd, void *data, size_t bytes);
bool side_file_write(int fd, const void *data, size_t bytes);

/* Hands DIR/name to `read`, which says whether it is sound; true when there is none. Else a warning
 * that ends in `loss`. */
bool side_file_load(const char *directory, const char *name, bool (*read)(void *context, int fd),
                    void *context, const char *loss);
/* `write` fills a new file, which then takes the place of DIR/name; else that stays as it is, with
 * a warning that ends in `loss`. */
void side_file_replace(const char *directory, const char *name,
                       bool (*write)(void *context, int fd), void *context, const char *loss);

#endif
