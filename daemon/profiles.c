/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/profiles.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "codec/profile.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define NAME_DIGITS         64
#define FILE_TAIL           ".safetensors"
#define UNFINISHED_TAIL     FILE_TAIL ".new" /* larder_file_replace() */
#define DEFAULTS_FILE       "defaults"
#define DEFAULTS_BYTES_MAX  (LARDER_PROFILES_MAX * 2 * (NAME_DIGITS + 1))
#define DEFAULTS_LINE_BYTES (2 * (NAME_DIGITS + 1))

struct known {
    uint8_t name[32];
    uint64_t bytes;
    /* once somebody needed it */
    struct larder_profile *profile; /* NULL: not read yet */
    int fd;
    void *memory;
    uint32_t holds;
    bool leaves; /* somebody is looking whether it may go */
};

struct default_of {
    uint8_t weights[32];
    uint8_t name[32];
};

struct profiles {
    char *directory; /* DIR/profiles */
    pthread_mutex_t lock;
    struct known *known[LARDER_PROFILES_MAX];
    uint32_t count;
    struct default_of defaults[LARDER_PROFILES_MAX];
    uint32_t default_count;
};

/* --- memory ----------------------------------------------------------------------------------- */

static void forget_memory(struct known *known)
{
    larder_profile_close(known->profile);
    if (known->memory)
        munmap(known->memory, known->bytes);
    if (known->fd >= 0)
        close(known->fd);
    known->profile = NULL;
    known->memory = NULL;
    known->fd = -1;
}

/* Memory of so many bytes, to be filled in. */
static int new_memory(struct known *known)
{
    const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    known->fd = memfd_create("larder-profile", flags | MFD_NOEXEC_SEAL);
    if (known->fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        known->fd = memfd_create("larder-profile", flags);
    if (known->fd < 0 || ftruncate(known->fd, (off_t)known->bytes) < 0)
        return larder_fail(-errno, "memory of %llu bytes for a profile: %m",
                           (unsigned long long)known->bytes);
    void *memory = mmap(NULL, known->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, known->fd, 0);
    if (memory == MAP_FAILED)
        return larder_fail(-errno, "mapping %llu bytes for a profile: %m",
                           (unsigned long long)known->bytes);
    known->memory = memory;
    return 0;
}

/* From here on nobody can change it, this daemon neither. */
static int seal_memory(struct known *known)
{
    munmap(known->memory, known->bytes);
    known->memory = NULL;
    if (fcntl(known->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return larder_fail(-errno, "sealing a profile's memory: %m");
    void *memory = mmap(NULL, known->bytes, PROT_READ, MAP_SHARED, known->fd, 0);
    if (memory == MAP_FAILED)
        return larder_fail(-errno, "mapping a profile: %m");
    known->memory = memory;
    return 0;
}

static int open_memory(struct known *known)
{
    uint8_t name[32];
    LARDER_TRY(seal_memory(known));
    LARDER_TRY(larder_profile_open(&known->profile, known->memory, known->bytes));
    larder_profile_name(known->profile, name);
    if (memcmp(name, known->name, sizeof(name)) != 0)
        return larder_fail(LARDER_ECORRUPT, "the bytes of a profile are not those of its name");
    return 0;
}

/* --- files ------------------------------------------------------------------------------------ */

static void file_name(char out[NAME_DIGITS + sizeof(FILE_TAIL)], const uint8_t name[32])
{
    larder_hex(out, name, 32);
    strcpy(out + NAME_DIGITS, FILE_TAIL);
}

static int fill_from_file(struct known *known, int fd)
{
    uint8_t *out = known->memory;
    for (uint64_t at = 0; at < known->bytes;) {
        const ssize_t got = read(fd, out + at, known->bytes - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return larder_fail(got < 0 ? -errno : LARDER_ECORRUPT, "a profile's file ends early");
        at += (uint64_t)got;
    }
    return 0;
}

static int load(const struct profiles *profiles, struct known *known)
{
    char path[PATH_MAX], name[NAME_DIGITS + sizeof(FILE_TAIL)];
    file_name(name, known->name);
    snprintf(path, sizeof(path), "%s/%s", profiles->directory, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int err = fd < 0 ? larder_fail(-errno, "cannot open it: %m") : new_memory(known);
    if (err == 0)
        err = fill_from_file(known, fd);
    if (err == 0)
        err = open_memory(known);
    if (fd >= 0)
        close(fd);
    if (err == 0)
        return 0;
    forget_memory(known);
    larder_log(LARDER_LOG_ERROR, "%s: %s", path, larder_error_message());
    return err == -ENOMEM ? err
                          : larder_fail(LARDER_ENOPROFILE,
                                        "profile %.16s... is damaged in the store; larder profile "
                                        "add brings it back",
                                        name);
}

static struct known *find_locked(const struct profiles *profiles, const uint8_t name[32])
{
    for (uint32_t i = 0; i < profiles->count; i++) {
        if (memcmp(profiles->known[i]->name, name, 32) == 0)
            return profiles->known[i];
    }
    return NULL;
}

static int find_loaded_locked(const struct profiles *profiles, struct known **out,
                              const uint8_t name[32])
{
    char hex[NAME_DIGITS + 1];
    *out = find_locked(profiles, name);
    larder_hex(hex, name, 32);
    if (!*out)
        return larder_fail(LARDER_ENOPROFILE,
                           "profile %.16s... is not in the store; larder profile add stores one",
                           hex);
    if ((*out)->leaves)
        return larder_fail(LARDER_ENOPROFILE, "profile %.16s... is being removed", hex);
    return (*out)->profile ? 0 : load(profiles, *out);
}

static struct known *new_known(const uint8_t name[32], uint64_t bytes)
{
    struct known *known = larder_alloc_zero(1, sizeof(*known));
    if (!known) {
        larder_fail(-ENOMEM, "no memory for a profile");
        return NULL;
    }
    memcpy(known->name, name, sizeof(known->name));
    known->bytes = bytes;
    known->fd = -1;
    return known;
}

/* What larder_file_replace() had not renamed when a daemon was killed. */
static void remove_unfinished(const char *path)
{
    if (unlink(path) < 0)
        larder_log(LARDER_LOG_WARN, "%s is of an addition that did not end, and stays: %m", path);
    else
        larder_log(LARDER_LOG_INFO, "%s was of an addition that did not end: removed", path);
}

static int note_file(struct profiles *profiles, const char *name)
{
    char path[PATH_MAX];
    uint8_t digits[32];
    struct stat stat;
    char hex[NAME_DIGITS + 1];
    snprintf(hex, sizeof(hex), "%s", name);
    if (strlen(name) < NAME_DIGITS || larder_unhex(digits, sizeof(digits), hex) < 0)
        return 0;
    const char *tail = name + NAME_DIGITS;
    const bool is_unfinished = strcmp(tail, UNFINISHED_TAIL) == 0;
    snprintf(path, sizeof(path), "%s/%s", profiles->directory, name);
    if ((!is_unfinished && strcmp(tail, FILE_TAIL) != 0) || lstat(path, &stat) < 0 ||
        !S_ISREG(stat.st_mode))
        return 0;
    if (is_unfinished) {
        remove_unfinished(path);
        return 0;
    }
    if (stat.st_size <= 0 || (uint64_t)stat.st_size > LARDER_PROFILE_BYTES_MAX ||
        profiles->count == LARDER_PROFILES_MAX) {
        larder_log(LARDER_LOG_WARN, "%s is empty, too large or one too many: passed over", path);
        return 0;
    }
    profiles->known[profiles->count] = new_known(digits, (uint64_t)stat.st_size);
    if (!profiles->known[profiles->count])
        return -ENOMEM;
    profiles->count++;
    return 0;
}

static int note_files(struct profiles *profiles)
{
    DIR *directory = opendir(profiles->directory);
    if (!directory)
        return errno == ENOENT ? 0 : larder_fail(-errno, "%s: %m", profiles->directory);
    int err = 0;
    for (struct dirent *at; err == 0 && (at = readdir(directory));)
        err = note_file(profiles, at->d_name);
    closedir(directory);
    return err;
}

/* --- defaults --------------------------------------------------------------------------------- */

/* Lines of a digest of weights and a name. What cannot be read is no default. */
static void read_defaults(struct profiles *profiles)
{
    char path[PATH_MAX];
    void *text;
    size_t bytes;
    snprintf(path, sizeof(path), "%s/" DEFAULTS_FILE, profiles->directory);
    int err = larder_file_read(&text, &bytes, path, DEFAULTS_BYTES_MAX);
    if (err == -ENOENT)
        return;
    bool good = err == 0 && bytes % DEFAULTS_LINE_BYTES == 0;
    for (size_t at = 0; good && at < bytes; at += DEFAULTS_LINE_BYTES) {
        char *line = (char *)text + at;
        struct default_of *of = &profiles->defaults[profiles->default_count];
        good = line[NAME_DIGITS] == ' ' && line[DEFAULTS_LINE_BYTES - 1] == '\n';
        line[NAME_DIGITS] = line[DEFAULTS_LINE_BYTES - 1] = 0;
        good = good && larder_unhex(of->weights, 32, line) == 0 &&
               larder_unhex(of->name, 32, line + NAME_DIGITS + 1) == 0;
        profiles->default_count += good;
    }
    larder_free(text);
    if (!good)
        larder_log(LARDER_LOG_WARN,
                   "%s is damaged: some models have no default profile; larder profile add "
                   "--default sets it",
                   path);
}

static int write_defaults(const struct profiles *profiles, const struct default_of *defaults,
                          uint32_t count)
{
    char *text = larder_alloc((size_t)count * DEFAULTS_LINE_BYTES + 1);
    if (!text)
        return larder_fail(-ENOMEM, "no memory for default profiles");
    for (uint32_t i = 0; i < count; i++) {
        char *line = text + (size_t)i * DEFAULTS_LINE_BYTES;
        larder_hex(line, defaults[i].weights, 32);
        line[NAME_DIGITS] = ' ';
        larder_hex(line + NAME_DIGITS + 1, defaults[i].name, 32);
        line[DEFAULTS_LINE_BYTES - 1] = '\n';
    }
    int err = larder_file_replace(profiles->directory, DEFAULTS_FILE, text,
                                  (size_t)count * DEFAULTS_LINE_BYTES);
    larder_free(text);
    return err;
}

/* With `name` as that of these weights; NULL: with none. */
static int change_default_locked(struct profiles *profiles, const uint8_t weights[32],
                                 const uint8_t *name)
{
    struct default_of fresh[LARDER_PROFILES_MAX + 1];
    uint32_t count = 0;
    for (uint32_t i = 0; i < profiles->default_count; i++) {
        if (memcmp(profiles->defaults[i].weights, weights, 32) != 0)
            fresh[count++] = profiles->defaults[i];
    }
    if (name) {
        memcpy(fresh[count].weights, weights, 32);
        memcpy(fresh[count++].name, name, 32);
    }
    if (count > LARDER_PROFILES_MAX)
        return larder_fail(LARDER_ELIMIT, "%u models have a default profile; that is the most",
                           LARDER_PROFILES_MAX);
    LARDER_TRY(write_defaults(profiles, fresh, count));
    memcpy(profiles->defaults, fresh, count * sizeof(fresh[0]));
    profiles->default_count = count;
    return 0;
}

int profiles_set_default(struct profiles *profiles, const uint8_t name[32])
{
    struct known *known;
    pthread_mutex_lock(&profiles->lock);
    int err = find_loaded_locked(profiles, &known, name);
    if (err == 0)
        err = change_default_locked(profiles, larder_profile_model(known->profile)->weights, name);
    pthread_mutex_unlock(&profiles->lock);
    return err;
}

bool profiles_default(struct profiles *profiles, uint8_t out[32],
                      const struct larder_model_desc *model)
{
    bool found = false;
    pthread_mutex_lock(&profiles->lock);
    for (uint32_t i = 0; i < profiles->default_count && !found; i++) {
        const struct default_of *of = &profiles->defaults[i];
        found = memcmp(of->weights, model->weights, sizeof(of->weights)) == 0;
        if (found)
            memcpy(out, of->name, sizeof(of->name));
    }
    pthread_mutex_unlock(&profiles->lock);
    return found;
}

/* --- holding ---------------------------------------------------------------------------------- */

int profiles_hold(struct profiles *profiles, const struct larder_profile **out,
                  const uint8_t name[32])
{
    struct known *known;
    *out = NULL;
    pthread_mutex_lock(&profiles->lock);
    int err = find_loaded_locked(profiles, &known, name);
    if (err == 0) {
        known->holds++;
        *out = known->profile;
    }
    pthread_mutex_unlock(&profiles->lock);
    return err;
}

void profiles_let_go(struct profiles *profiles, const uint8_t name[32])
{
    pthread_mutex_lock(&profiles->lock);
    struct known *known = find_locked(profiles, name);
    assert(known);
    assert(known->holds > 0);
    known->holds--;
    pthread_mutex_unlock(&profiles->lock);
}

int profiles_share(struct profiles *profiles, int *out_fd, uint64_t *out_bytes,
                   const uint8_t name[32])
{
    struct known *known;
    *out_fd = -1;
    pthread_mutex_lock(&profiles->lock);
    int err = find_loaded_locked(profiles, &known, name);
    if (err == 0) {
        *out_bytes = known->bytes;
        *out_fd = fcntl(known->fd, F_DUPFD_CLOEXEC, 0);
        if (*out_fd < 0)
            err = larder_fail(-errno, "no descriptor for a profile: %m");
    }
    pthread_mutex_unlock(&profiles->lock);
    return err;
}

/* --- adding and removing ---------------------------------------------------------------------- */

static int add_locked(struct profiles *profiles, struct known *known)
{
    char name[NAME_DIGITS + sizeof(FILE_TAIL)];
    if (profiles->count == LARDER_PROFILES_MAX)
        return larder_fail(LARDER_ELIMIT,
                           "%u profiles are stored, the most there may be; remove "
                           "one with larder profile rm",
                           LARDER_PROFILES_MAX);
    if (mkdir(profiles->directory, 0700) < 0 && errno != EEXIST)
        return larder_fail(-errno, "cannot make %s: %m", profiles->directory);
    file_name(name, known->name);
    LARDER_TRY(larder_file_replace(profiles->directory, name, known->memory, known->bytes));
    profiles->known[profiles->count++] = known;
    return 0;
}

/* What cannot be read any more gives way to the same, whole. */
static void drop_damaged_locked(struct profiles *profiles, const uint8_t name[32])
{
    for (uint32_t i = 0; i < profiles->count; i++) {
        struct known *known = profiles->known[i];
        if (memcmp(known->name, name, sizeof(known->name)) != 0 || known->profile ||
            known->leaves || load(profiles, known) == 0)
            continue;
        profiles->known[i] = profiles->known[--profiles->count];
        larder_free(known);
        return;
    }
}

int profiles_add(struct profiles *profiles, bool *existed, const volatile void *bytes,
                 uint64_t byte_count, const uint8_t name[32])
{
    *existed = false;
    if (byte_count == 0 || byte_count > LARDER_PROFILE_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "a profile of %llu bytes; it has 1 to %llu",
                           (unsigned long long)byte_count,
                           (unsigned long long)LARDER_PROFILE_BYTES_MAX);
    struct known *known = new_known(name, byte_count);
    if (!known)
        return -ENOMEM;
    int err = new_memory(known);
    if (err == 0) {
        memcpy(known->memory, (const void *)(uintptr_t)bytes, byte_count);
        err = open_memory(known);
    }
    if (err == 0) {
        pthread_mutex_lock(&profiles->lock);
        drop_damaged_locked(profiles, name);
        const struct known *same = find_locked(profiles, name);
        *existed = same != NULL;
        if (same && same->leaves)
            err = larder_fail(-EBUSY, "the profile is being removed; try again");
        else if (!same)
            err = add_locked(profiles, known);
        pthread_mutex_unlock(&profiles->lock);
    }
    if (err < 0 || *existed) {
        forget_memory(known);
        larder_free(known);
    }
    return err;
}

int profiles_begin_removal(struct profiles *profiles, const uint8_t name[32])
{
    int err = 0;
    pthread_mutex_lock(&profiles->lock);
    struct known *known = find_locked(profiles, name);
    if (!known)
        err = larder_fail(LARDER_ENOPROFILE, "there is no such profile");
    else if (known->holds > 0 || known->leaves)
        err = larder_fail(-EBUSY, "the profile is in use; try again");
    else
        known->leaves = true;
    pthread_mutex_unlock(&profiles->lock);
    return err;
}

static int remove_locked(struct profiles *profiles, struct known *known)
{
    char path[PATH_MAX], file[NAME_DIGITS + sizeof(FILE_TAIL)];
    for (uint32_t i = 0; i < profiles->default_count; i++) {
        if (memcmp(profiles->defaults[i].name, known->name, 32) == 0)
            LARDER_TRY(change_default_locked(profiles, profiles->defaults[i--].weights, NULL));
    }
    file_name(file, known->name);
    snprintf(path, sizeof(path), "%s/%s", profiles->directory, file);
    if (unlink(path) < 0 && errno != ENOENT)
        return larder_fail(-errno, "cannot remove %s: %m", path);
    uint32_t at = 0;
    while (profiles->known[at] != known)
        at++;
    profiles->known[at] = profiles->known[--profiles->count];
    forget_memory(known);
    larder_free(known);
    return 0;
}

int profiles_end_removal(struct profiles *profiles, const uint8_t name[32], bool goes)
{
    pthread_mutex_lock(&profiles->lock);
    struct known *known = find_locked(profiles, name);
    assert(known);
    assert(known->leaves);
    known->leaves = false;
    int err = goes ? remove_locked(profiles, known) : 0;
    pthread_mutex_unlock(&profiles->lock);
    return err;
}

bool profiles_at(struct profiles *profiles, struct profile_info *out, uint32_t index)
{
    pthread_mutex_lock(&profiles->lock);
    const bool there = index < profiles->count;
    if (there) {
        const struct known *known = profiles->known[index];
        *out = (struct profile_info){.bytes = known->bytes};
        memcpy(out->name, known->name, sizeof(out->name));
        for (uint32_t i = 0; i < profiles->default_count; i++)
            out->is_default |= memcmp(profiles->defaults[i].name, known->name, 32) == 0;
    }
    pthread_mutex_unlock(&profiles->lock);
    return there;
}

/* --- open and close --------------------------------------------------------------------------- */

int profiles_open(struct profiles **out, const char *store_directory)
{
    *out = NULL;
    struct profiles *profiles = larder_alloc_zero(1, sizeof(*profiles));
    const size_t bytes = strlen(store_directory) + sizeof("/profiles");
    if (!profiles)
        return larder_fail(-ENOMEM, "no memory for profiles");
    pthread_mutex_init(&profiles->lock, NULL);
    profiles->directory = larder_alloc(bytes);
    int err = profiles->directory ? 0 : larder_fail(-ENOMEM, "no memory for profiles");
    if (err == 0) {
        snprintf(profiles->directory, bytes, "%s/profiles", store_directory);
        err = note_files(profiles);
    }
    if (err == 0)
        read_defaults(profiles);
    if (err < 0) {
        profiles_close(profiles);
        return err;
    }
    *out = profiles;
    return 0;
}

void profiles_close(struct profiles *profiles)
{
    if (!profiles)
        return;
    for (uint32_t i = 0; i < profiles->count; i++) {
        assert(profiles->known[i]->holds == 0);
        forget_memory(profiles->known[i]);
        larder_free(profiles->known[i]);
    }
    pthread_mutex_destroy(&profiles->lock);
    larder_free(profiles->directory);
    larder_free(profiles);
}
