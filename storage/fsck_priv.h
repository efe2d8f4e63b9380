/* SPDX-License-Identifier: Apache-2.0 */
/* fsck_priv.h - parts of a check, for fsck.c. Threads: one. */
#ifndef LARDER_STORAGE_FSCK_PRIV_H
#define LARDER_STORAGE_FSCK_PRIV_H

#include "storage/store_priv.h"

/* Entries of a loaded store whose profile is missing from DIR/profiles, or damaged there. */
uint64_t fsck_count_unreadable(const struct larder_store *store, const char *store_directory);

#endif
