/* SPDX-License-Identifier: Apache-2.0 */
/* json_file.h - a JSON file of a model directory, and numbers out of it with their errors.
 * Threads: any. Inside kernels/ only.
 */
#ifndef LARDER_KERNELS_JSON_FILE_H
#define LARDER_KERNELS_JSON_FILE_H

#include <jansson.h>
#include <stdint.h>

/* One object, without duplicate names; at most LARDER_MODEL_JSON_BYTES_MAX. The caller drops it
 * with json_decref(). -errno when it cannot be read, LARDER_EFORMAT when it is something else. */
int json_file_load(json_t **out, const char *path);

/* "DIRECTORY/NAME" in memory of larder_alloc(); NULL without memory, with a message. */
char *join_path(const char *directory, const char *name);

#endif
