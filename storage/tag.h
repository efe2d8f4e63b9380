/* SPDX-License-Identifier: Apache-2.0 */
/* tag.h - tags of heads and sections (docs/FORMAT.md, "Tags"): XXH3-128 with a seed that binds the
 * bytes to their key, place and generation.
 * Threads: plain functions over the caller's bytes.
 */
#ifndef LARDER_STORAGE_TAG_H
#define LARDER_STORAGE_TAG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/record.h"

/* Tags every section, then the head (whose directory holds the sections' tags). The record is
 * complete otherwise: location and generation too. */
void tag_record(struct larder_record *record);

/* The head of a record that larder_record_check() accepted. */
bool tag_head_matches(const struct larder_record *record);
/* A section of a record whose head matched. */
bool tag_section_matches(const struct larder_record *record, uint32_t section);
/* Head and all sections. */
bool tag_record_matches(const struct larder_record *record);

#endif
