/* SPDX-License-Identifier: Apache-2.0 */
/* replay.c - main of a fuzz target without libFuzzer: runs the files, and the files of the folders,
 * that are its arguments. Fails when there was none. */
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

#define FILE_BYTES_MAX (16u << 20)

static unsigned ran;

static int run_file(const char *path)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        perror(path);
        return 1;
    }
    uint8_t *bytes = malloc(FILE_BYTES_MAX);
    assert(bytes);
    size_t count = fread(bytes, 1, FILE_BYTES_MAX, file);
    fclose(file);
    void *exact = fuzz_copy(bytes, count);
    free(bytes);
    /* Named before it runs: a crash ends the program. */
    printf("%s: %zu bytes\n", path, count);
    fflush(stdout);
    LLVMFuzzerTestOneInput(exact, count);
    free(exact);
    ran++;
    return 0;
}

static int run_folder(const char *path)
{
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    if (count < 0) {
        perror(path);
        return 1;
    }
    int failed = 0;
    for (int i = 0; i < count; i++) {
        char file[4096];
        snprintf(file, sizeof(file), "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            failed |= run_file(file);
        free(names[i]);
    }
    free(names);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 1; i < argc; i++) {
        struct stat status;
        bool is_folder = stat(argv[i], &status) == 0 && S_ISDIR(status.st_mode);
        failed |= is_folder ? run_folder(argv[i]) : run_file(argv[i]);
    }
    if (ran == 0)
        fprintf(stderr, "usage: fuzz_NAME FILE|FOLDER...: inputs to run\n");
    return failed || ran == 0;
}
