/* SPDX-License-Identifier: Apache-2.0 */
/* temp_model.h - a model directory that a test fills and that disappears with it. */
#ifndef LARDER_TESTS_KERNELS_TEMP_MODEL_H
#define LARDER_TESTS_KERNELS_TEMP_MODEL_H

#include <check.h>
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct temp_model {
    char directory[64];
    char path[384]; /* of the last file named */
};

static inline void temp_model_open(struct temp_model *model)
{
    strcpy(model->directory, "/tmp/larder-model-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(model->directory));
}

static inline const char *temp_model_path(struct temp_model *model, const char *name)
{
    snprintf(model->path, sizeof(model->path), "%s/%s", model->directory, name);
    return model->path;
}

static inline void temp_model_write(struct temp_model *model, const char *name, const void *bytes,
                                    size_t count)
{
    FILE *file = fopen(temp_model_path(model, name), "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, count, file), count);
    ck_assert_int_eq(fclose(file), 0);
}

/* A .safetensors file of this header and as many bytes of data, 0, 1, 2, ... */
static inline void temp_model_weights(struct temp_model *model, const char *name,
                                      const char *header, size_t data_bytes)
{
    uint64_t length = strlen(header);
    unsigned char *file = malloc(8 + length + data_bytes);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        file[8 + length + i] = (unsigned char)i;
    temp_model_write(model, name, file, 8 + length + data_bytes);
    free(file);
}

static inline void temp_model_close(struct temp_model *model)
{
    DIR *directory = opendir(model->directory);
    ck_assert_ptr_nonnull(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        unlink(temp_model_path(model, entry->d_name));
    closedir(directory);
    ck_assert_int_eq(rmdir(model->directory), 0);
}

#endif
