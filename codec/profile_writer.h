/* SPDX-License-Identifier: Apache-2.0 */
/* profile_writer.h - makes the bytes of a profile (profile.h) from texts and tensors.
 * Owns:    copies of what it was given.
 * Threads: belongs to one thread.
 * The same contents give the same bytes, in whatever order they were put.
 */
#ifndef LARDER_CODEC_PROFILE_WRITER_H
#define LARDER_CODEC_PROFILE_WRITER_H

#include "codec/profile.h"

struct larder_profile_writer;

/* For a model that larder_model_check() accepted. */
int larder_profile_writer_open(struct larder_profile_writer **out,
                               const struct larder_model_desc *model);
/* Everything of a profile, to add to it or to replace some of it. */
int larder_profile_writer_open_copy(struct larder_profile_writer **out,
                                    const struct larder_profile *profile);
void larder_profile_writer_close(struct larder_profile_writer *writer);

/* Metadata, which replaces what stood there under this key. Printable ASCII without quotes and
 * backslashes, or -EINVAL. */
int larder_profile_put_text(struct larder_profile_writer *writer, const char *key,
                            const char *value);
/* A tensor of `rank` dimensions, which replaces what stood there under this name. */
int larder_profile_put(struct larder_profile_writer *writer, const char *name,
                       enum larder_profile_type type, const uint64_t *shape, uint32_t rank,
                       const void *data);

/* The bytes, the caller's to larder_free(). */
int larder_profile_finish(const struct larder_profile_writer *writer, void **bytes,
                          uint64_t *byte_count);

#endif
