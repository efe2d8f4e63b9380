/* SPDX-License-Identifier: Apache-2.0 */
/* tag.h - tags of heads and sections (docs/FORMAT.md, "Tags"), bound to key, place and generation:
 * XXH3-128 with a seed, or AES-256-GCM in an encrypted store (seal.h).
 * Threads: plain functions over the caller's bytes; a `seal` belongs to one thread.
 */
#ifndef LARDER_STORAGE_TAG_H
#define LARDER_STORAGE_TAG_H

#include <assert.h>
#include <stdint.h>

#include "base/record.h"

struct seal;

#define TAG_HEAD_SECTION UINT32_MAX

/* What a tag is bound to, packed as docs/FORMAT.md lists it. */
struct __attribute__((packed)) tag_binding {
    uint8_t key[32];
    uint32_t variant;
    uint32_t segment_id;
    uint32_t segment_page;
    uint64_t generation;
    uint32_t section;
};
static_assert(sizeof(struct tag_binding) == 56, "format");

void tag_bind(struct tag_binding *out, const struct larder_record *record, uint32_t section);

/* Plain stores. Tags every section, then the head (whose directory holds the sections' tags). The
 * record is complete otherwise: location and generation too. */
void tag_record(struct larder_record *record);

/* A head as it came from the disk, `available_bytes` (>= 256) of it: its form, its tag, its
 * directory; decrypts it in place when there is a `seal` (NULL: a plain store; a record of the
 * other kind is not valid). Once for bytes that were read once. 0; -EAGAIN: it is longer, and
 * nothing was done; LARDER_ECORRUPT, LARDER_EVERSION; -ENOMEM: not known. */
int tag_open_head(struct seal *seal, struct larder_record *record, uint64_t available_bytes);
/* The same of a section, of a record whose head was opened. */
int tag_open_section(struct seal *seal, struct larder_record *record, uint32_t section);

#endif
