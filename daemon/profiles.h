/* SPDX-License-Identifier: Apache-2.0 */
/* profiles.h - the profiles of a store: DIR/profiles/NAME.safetensors, NAME in 64 hex digits, and
 * which of them is the default of a model (docs/FORMAT.md, "Profiles").
 *
 * A file is read when somebody first needs it, checked against its name, and from then on kept in
 * sealed memory, which clients map too.
 * Owns:    the files, their memory, the opened profiles.
 * Threads: workers: all of it may wait for the disk. One lock of its own, under which no other is
 *          taken.
 */
#ifndef LARDER_DAEMON_PROFILES_H
#define LARDER_DAEMON_PROFILES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"

struct larder_profile;
struct profiles;

/* Looks at what is there, and takes away what an addition left that did not end; `store_directory`
 * exists, and outlives this. */
int profiles_open(struct profiles **out, const char *store_directory);
/* Nobody holds one any more. */
void profiles_close(struct profiles *profiles);

/* The profile of that name, which stays until it is let go. LARDER_ENOPROFILE when there is none,
 * or its file has other bytes. */
int profiles_hold(struct profiles *profiles, const struct larder_profile **out,
                  const uint8_t name[32]);
void profiles_let_go(struct profiles *profiles, const uint8_t name[32]);
/* Its bytes as a descriptor that nobody can write through; the caller closes it. Errors as above.
 */
int profiles_share(struct profiles *profiles, int *out_fd, uint64_t *out_bytes,
                   const uint8_t name[32]);

/* Stores these bytes, which may change meanwhile and are read once: durably, if they are a profile
 * of that name; also in place of a damaged file. *existed: it was there. */
int profiles_add(struct profiles *profiles, bool *existed, const volatile void *bytes,
                 uint64_t byte_count, const uint8_t name[32]);
/* In two steps, so that the caller can see whether a record needs it while no other can come:
 * -EBUSY while somebody holds it; from then on nobody can, until the end. */
int profiles_begin_removal(struct profiles *profiles, const uint8_t name[32]);
/* It goes, and is nobody's default any more; or it stays. */
int profiles_end_removal(struct profiles *profiles, const uint8_t name[32], bool goes);

/* From now on, durably, the default of the model that it was made for. */
int profiles_set_default(struct profiles *profiles, const uint8_t name[32]);
/* False: the model has none. */
bool profiles_default(struct profiles *profiles, uint8_t out[32],
                      const struct larder_model_desc *model);

struct profile_info {
    uint8_t name[32];
    uint64_t bytes;
    bool is_default;
};
/* index = 0, 1, ...; false at the end. */
bool profiles_at(struct profiles *profiles, struct profile_info *out, uint32_t index);

#endif
