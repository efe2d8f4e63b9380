/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tools/eval/crew.h"
#include "tools/larder_eval.h"

uint32_t eval_option_number(struct argp_state *state, const char *name, const char *argument,
                            uint32_t most)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(argument, &end, 10);
    if (errno || *end || end == argument || argument[0] == '-' || value == 0 || value > most)
        argp_error(state, "--%s=%s is not within 1..%u", name, argument, most);
    return (uint32_t)value;
}

uint32_t eval_jobs_default(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 0 ? (uint32_t)larder_min_u64((uint64_t)cores, EVAL_JOBS_MAX) : 1;
}

const char *eval_choose_file(char *out, const char *model, const char *named, const char *name,
                             enum eval_need need)
{
    if (named)
        return named;
    snprintf(out, PATH_MAX, "%s/%s", model, name);
    return need == EVAL_IS_NEEDED || access(out, F_OK) == 0 ? out : NULL;
}

int eval_profile_open(struct eval_profile *out, const char *path)
{
    *out = (struct eval_profile){0};
    if (!path)
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat stat;
    if (fd < 0 || fstat(fd, &stat) < 0) {
        int err = larder_fail(-errno, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return err;
    }
    out->byte_count = (size_t)stat.st_size;
    out->bytes = mmap(NULL, out->byte_count, PROT_READ, MAP_PRIVATE, fd, 0);
    int err = out->bytes == MAP_FAILED ? larder_fail(-errno, "%s: %s", path, strerror(errno)) : 0;
    close(fd);
    if (err < 0) {
        out->bytes = NULL;
        return err;
    }
    return larder_profile_open(&out->profile, out->bytes, out->byte_count);
}

void eval_profile_close(struct eval_profile *file)
{
    larder_profile_close(file->profile);
    if (file->bytes)
        munmap(file->bytes, file->byte_count);
}

int eval_create(FILE **out, const char *path)
{
    *out = fopen(path, "w");
    return *out ? 0 : larder_fail(-errno, "%s: %s", path, strerror(errno));
}

int eval_finish(FILE *file, const char *path)
{
    bool failed = ferror(file) != 0;
    failed = fclose(file) != 0 || failed;
    return failed ? larder_fail(-EIO, "%s: cannot be written", path) : 0;
}

int eval_print_json(json_t *json)
{
    if (!json)
        return larder_fail(-ENOMEM, "no memory for JSON");
    json_dumpf(json, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(json);
    return 0;
}
