/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors.h - the weights of a model directory, mapped read-only and looked up by name.
 * Owns:    the mappings of one or several .safetensors files; what it hands out points into them,
 *          or into the bytes that the caller opened.
 * Threads: after open everything is read-only and may be shared.
 *
 * A file is: u64 LE header length | header, a JSON object | data. It is taken iff
 *   the header lies within the file, is at most LARDER_SAFETENSORS_HEADER_BYTES_MAX long and is one
 *   JSON object without duplicate names;
 *   each member but "__metadata__" has a known dtype, a shape of at most 8 integers >= 0, and two
 *   integers data_offsets [begin, end] with end - begin = the shape's product x the dtype's size;
 *   and the tensors' ranges cover the data without a hole, an overlap or a rest.
 * Everything else is LARDER_EFORMAT with the value, the limit and a remedy. A file that shrinks
 * while it is mapped ends the process (SIGBUS): replace model files by renaming.
 */
#ifndef LARDER_KERNELS_SAFETENSORS_H
#define LARDER_KERNELS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/larder_base.h"

#define LARDER_WEIGHT_RANK_MAX 8

struct larder_weight {
    const char *name;
    const char *dtype_name; /* as the file says: "BF16" */
    uint32_t dtype;         /* enum larder_dtype; 0 for one that we do not compute with */
    uint32_t rank;
    uint64_t shape[LARDER_WEIGHT_RANK_MAX];
    const void *data;
    uint64_t bytes;
};

struct larder_weights;

/* One file. */
int larder_weights_open_file(struct larder_weights **out, const char *path);
/* A file's bytes, which stay the caller's and must outlive what is opened; `name` is for
 * messages. */
int larder_weights_open_bytes(struct larder_weights **out, const char *name, const void *bytes,
                              uint64_t byte_count);
/* DIR/model.safetensors, or the files that DIR/model.safetensors.index.json names. */
int larder_weights_open(struct larder_weights **out, const char *directory);
void larder_weights_close(struct larder_weights *weights);

/* Sorted by name (bytewise). */
size_t larder_weights_count(const struct larder_weights *weights);
const struct larder_weight *larder_weights_at(const struct larder_weights *weights, size_t index);
/* NULL when there is none of this name. */
const struct larder_weight *larder_weights_find(const struct larder_weights *weights,
                                                const char *name);

/* A text of the __metadata__ (of several files: the last one that has any); NULL: none of this
 * name. */
const char *larder_weights_metadata(const struct larder_weights *weights, const char *name);

/* The same by index = 0, 1, ..., with its name; NULL at the end, or where it is no text. */
const char *larder_weights_metadata_at(const struct larder_weights *weights, size_t index,
                                       const char **name);

/* SHA-256 over "larder weights 1" and, for each tensor in the order of names: name, dtype name,
 * rank and shape as u64 LE, bytes; every part behind its length as u64 LE. How tensors are spread
 * over files makes no difference. Reads all of the weights. */
int larder_weights_digest(uint8_t out[32], const struct larder_weights *weights);

#endif
