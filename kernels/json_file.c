/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/json_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

char *join_path(const char *directory, const char *name)
{
    size_t bytes = strlen(directory) + strlen(name) + 2;
    char *path = larder_alloc(bytes);
    if (!path) {
        larder_fail(-ENOMEM, "no memory for a path");
        return NULL;
    }
    snprintf(path, bytes, "%s/%s", directory, name);
    return path;
}

int json_file_load(json_t **out, const char *path)
{
    *out = NULL;
    FILE *file = fopen(path, "re");
    if (!file)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    struct stat status;
    int err = 0;
    json_error_t error;
    if (fstat(fileno(file), &status) < 0)
        err = larder_fail(-errno, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(status.st_mode))
        err = larder_fail(LARDER_EFORMAT, "%s: not a regular file", path);
    else if (status.st_size > LARDER_MODEL_JSON_BYTES_MAX)
        err = larder_fail(LARDER_EFORMAT, "%s: %lld bytes are more than %u; is this JSON?", path,
                          (long long)status.st_size, LARDER_MODEL_JSON_BYTES_MAX);
    else
        *out = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
    if (err == 0 && !*out)
        err =
            larder_fail(LARDER_EFORMAT, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    if (err == 0 && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        err = larder_fail(LARDER_EFORMAT, "%s: not a JSON object", path);
    }
    fclose(file);
    return err;
}
