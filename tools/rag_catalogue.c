/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/rag_catalogue.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"

#define CHUNK_BYTES_MAX (4u << 20)
#define FIELDS          7

/* --- lines ----------------------------------------------------------------------------------- */

static void free_chunk(struct rag_chunk *chunk)
{
    larder_free(chunk->name);
    larder_free(chunk->path);
}

/* Takes the chunk, whatever comes of it. */
static int append(struct rag_catalogue *catalogue, struct rag_chunk *chunk)
{
    int err = 0;
    if (!chunk->name || !chunk->path)
        err = larder_fail(-ENOMEM, "no memory for a chunk's name");
    else if (catalogue->count == RAG_CHUNKS_MAX)
        err = larder_fail(LARDER_ELIMIT,
                          "%s: a catalogue has at most %u chunks; make them longer "
                          "(--chunk-bytes), or use a second one (--catalogue)",
                          catalogue->path, RAG_CHUNKS_MAX);
    struct rag_chunk *chunks = NULL;
    if (err == 0) {
        chunks = larder_realloc(catalogue->chunks, (catalogue->count + 1) * sizeof(*chunks));
        err = chunks ? 0 : larder_fail(-ENOMEM, "no memory for chunks");
    }
    if (err < 0) {
        free_chunk(chunk);
        return err;
    }
    catalogue->chunks = chunks;
    chunks[catalogue->count++] = *chunk;
    return 0;
}

static bool parse_number(uint64_t *out, const char *text, uint64_t most)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return isdigit((unsigned char)text[0]) && !*end && errno == 0 && *out <= most;
}

/* A line without its end. */
static int parse_line(struct rag_catalogue *catalogue, char *line, size_t number)
{
    char *fields[FIELDS];
    char *rest = line;
    struct rag_chunk chunk = {0};
    uint64_t bytes = 0;
    uint64_t tokens = 0;
    size_t count = 0;
    while (rest && count < FIELDS)
        fields[count++] = strsep(&rest, "\t");
    if (rest || count < FIELDS || !fields[0][0] || fields[6][0] != '/' ||
        !parse_number(&chunk.offset, fields[1], INT64_MAX - CHUNK_BYTES_MAX) ||
        !parse_number(&bytes, fields[2], CHUNK_BYTES_MAX) || bytes == 0 ||
        larder_unhex(chunk.hash, sizeof(chunk.hash), fields[3]) < 0 ||
        !parse_number(&tokens, fields[4], UINT32_MAX) ||
        !parse_number(&chunk.asked, fields[5], INT64_MAX))
        return larder_fail(LARDER_EFORMAT,
                           "%s: line %zu is no chunk of a catalogue; mend it or remove the file",
                           catalogue->path, number);
    chunk.bytes = (uint32_t)bytes;
    chunk.tokens = (uint32_t)tokens;
    chunk.name = larder_strdup(fields[0]);
    chunk.path = larder_strdup(fields[6]);
    return append(catalogue, &chunk);
}

static int read_lines(struct rag_catalogue *catalogue, FILE *file)
{
    char *line = NULL;
    size_t room = 0;
    int err = 0;
    ssize_t length;
    for (size_t number = 1; err == 0 && (length = getline(&line, &room, file)) > 0; number++) {
        if (line[length - 1] == '\n')
            line[--length] = 0;
        if (strlen(line) != (size_t)length || (number == 1 && strcmp(line, RAG_HEAD) != 0))
            err = larder_fail(LARDER_EFORMAT, "%s is no catalogue of larder rag", catalogue->path);
        else if (number > 1)
            err = parse_line(catalogue, line, number);
    }
    if (err == 0 && ferror(file))
        err = larder_fail(-EIO, "%s cannot be read", catalogue->path);
    free(line); /* getline's */
    return err;
}

/* --- the file -------------------------------------------------------------------------------- */

static int default_path(char **out)
{
    const char *data = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");
    const bool has_data = data && data[0] == '/';
    *out = NULL;
    if (!has_data && (!home || home[0] != '/'))
        return larder_fail(-EINVAL, "neither XDG_DATA_HOME nor HOME is set; say --catalogue FILE");
    if (asprintf(out, "%s%s", has_data ? data : home,
                 has_data ? "/larder/rag" : "/.local/share/larder/rag") < 0)
        return larder_fail(-ENOMEM, "no memory for a path");
    return 0;
}

static int make_folders(char *path)
{
    for (char *at = strchr(path + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = 0;
        const bool failed = mkdir(path, 0700) < 0 && errno != EEXIST;
        const int err = failed ? larder_fail(-errno, "cannot make %s: %m", path) : 0;
        *at = '/';
        LARDER_TRY(err);
    }
    return 0;
}

/* Beside the catalogue, which is replaced while the lock is held. */
static int take_lock(struct rag_catalogue *catalogue)
{
    char *path;
    if (asprintf(&path, "%s.lock", catalogue->path) < 0)
        return larder_fail(-ENOMEM, "no memory for a path");
    catalogue->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int err = 0;
    if (catalogue->lock < 0 || flock(catalogue->lock, LOCK_EX) < 0)
        err = larder_fail(-errno, "%s: %m", path);
    free(path); /* asprintf's */
    return err;
}

int rag_open(struct rag_catalogue *catalogue, const char *path, enum rag_open how)
{
    *catalogue = (struct rag_catalogue){.lock = -1};
    if (!path)
        LARDER_TRY(default_path(&catalogue->path));
    else if (!(catalogue->path = strdup(path)))
        return larder_fail(-ENOMEM, "no memory for a path");
    if (how == RAG_MAKE && !path)
        LARDER_TRY(make_folders(catalogue->path));
    /* A catalogue that is not there gets no lock beside it. */
    if (how == RAG_MAKE || (how == RAG_CHANGE && access(catalogue->path, F_OK) == 0))
        LARDER_TRY(take_lock(catalogue));
    FILE *file = fopen(catalogue->path, "re");
    if (!file && errno == ENOENT && how == RAG_MAKE)
        return 0;
    if (!file && errno == ENOENT)
        return larder_fail(LARDER_ENOTFOUND, "there is no catalogue %s; larder rag add makes it",
                           catalogue->path);
    if (!file)
        return larder_fail(-errno, "%s: %m", catalogue->path);
    int err = read_lines(catalogue, file);
    fclose(file);
    return err;
}

static int write_lines(const struct rag_catalogue *catalogue, FILE *file)
{
    char hash[65];
    fprintf(file, "%s\n", RAG_HEAD);
    for (size_t i = 0; i < catalogue->count; i++) {
        const struct rag_chunk *chunk = &catalogue->chunks[i];
        larder_hex(hash, chunk->hash, sizeof(chunk->hash));
        fprintf(file, "%s\t%" PRIu64 "\t%u\t%s\t%u\t%" PRIu64 "\t%s\n", chunk->name, chunk->offset,
                chunk->bytes, hash, chunk->tokens, chunk->asked, chunk->path);
    }
    const bool failed = ferror(file) || fflush(file) != 0 || fsync(fileno(file)) < 0;
    return failed ? larder_fail(-EIO, "%s cannot be written: %m", catalogue->path) : 0;
}

int rag_save(const struct rag_catalogue *catalogue)
{
    char *part;
    if (asprintf(&part, "%s.part", catalogue->path) < 0)
        return larder_fail(-ENOMEM, "no memory for a path");
    FILE *file = fopen(part, "we");
    int err = file ? write_lines(catalogue, file) : larder_fail(-errno, "%s: %m", part);
    if (file)
        fclose(file);
    if (err == 0 && rename(part, catalogue->path) < 0)
        err = larder_fail(-errno, "cannot replace %s: %m", catalogue->path);
    if (err < 0 && file)
        unlink(part);
    free(part); /* asprintf's */
    return err;
}

void rag_close(struct rag_catalogue *catalogue)
{
    for (size_t i = 0; i < catalogue->count; i++)
        free_chunk(&catalogue->chunks[i]);
    larder_free(catalogue->chunks);
    if (catalogue->lock >= 0)
        close(catalogue->lock);
    free(catalogue->path); /* asprintf's, or strdup's */
}

/* --- chunks ---------------------------------------------------------------------------------- */

size_t rag_cut(const char *text, size_t bytes, size_t limit)
{
    size_t line = 0;
    size_t word = 0;
    if (bytes <= limit)
        return bytes;
    for (size_t i = limit; i > 0; i--) {
        const bool ends_line = text[i - 1] == '\n';
        if (ends_line && i > limit / 2 && i > 1 && text[i - 2] == '\n' && text[i] != '\n')
            return i;
        if (ends_line && line == 0)
            line = i;
        if (text[i - 1] == ' ' && word == 0)
            word = i;
    }
    if (line || word)
        return line ? line : word;
    /* Not within a UTF-8 character: it has at most 3 more bytes. */
    size_t cut = limit;
    while (cut > limit - 3 && ((unsigned char)text[cut] & 0xc0) == 0x80)
        cut--;
    return cut;
}

static uint64_t asked_before(const struct rag_catalogue *catalogue, const char *path,
                             const struct rag_chunk *chunk)
{
    for (size_t i = 0; i < catalogue->count; i++) {
        const struct rag_chunk *old = &catalogue->chunks[i];
        if (strcmp(old->path, path) == 0 && memcmp(old->hash, chunk->hash, sizeof(old->hash)) == 0)
            return old->asked;
    }
    return 0;
}

static int check_name(const struct rag_catalogue *catalogue, const char *path, const char *name)
{
    const size_t length = strlen(name);
    if (strpbrk(name, "\t\n,") || !name[0] || strpbrk(path, "\t\n"))
        return larder_fail(-EINVAL,
                           "%s: a chunk's name '%s' or path has a tab, a line end or a comma in "
                           "it; say --name NAME, or rename the file",
                           path, name);
    for (size_t i = 0; i < catalogue->count; i++) {
        const struct rag_chunk *chunk = &catalogue->chunks[i];
        if (strncmp(chunk->name, name, length) == 0 &&
            (chunk->name[length] == 0 || chunk->name[length] == ':') &&
            strcmp(chunk->path, path) != 0)
            return larder_fail(LARDER_EEXISTS, "the name %s is that of %s; say --name NAME",
                               chunk->name, chunk->path);
    }
    return 0;
}

bool rag_is_named(const struct rag_chunk *chunk, const char *pattern)
{
    const char *number = strrchr(chunk->name, ':');
    if (fnmatch(pattern, chunk->name, 0) == 0)
        return true;
    if (!number || number[1] == 0 || number[1 + strspn(number + 1, "0123456789")] != 0)
        return false;
    char *file = strndup(chunk->name, (size_t)(number - chunk->name));
    const bool is = file && fnmatch(pattern, file, 0) == 0;
    free(file); /* strndup's */
    return is;
}

void rag_drop(struct rag_catalogue *catalogue, size_t index)
{
    free_chunk(&catalogue->chunks[index]);
    memmove(&catalogue->chunks[index], &catalogue->chunks[index + 1],
            (--catalogue->count - index) * sizeof(catalogue->chunks[0]));
}

static char *chunk_name(const char *name, size_t number)
{
    const size_t room = strlen(name) + 24;
    char *out = larder_alloc(room);
    if (out)
        snprintf(out, room, number ? "%s:%zu" : "%s", name, number);
    return out;
}

int rag_replace(struct rag_catalogue *catalogue, const char *path, const char *name,
                const char *text, size_t bytes, size_t limit)
{
    LARDER_TRY(check_name(catalogue, path, name));
    if (bytes == 0)
        return larder_fail(-EINVAL, "%s is empty", path);
    const size_t before = catalogue->count;
    for (size_t at = 0, number = bytes > limit; at < bytes; number++) {
        struct larder_key hash;
        const size_t count = rag_cut(text + at, bytes - at, limit);
        LARDER_TRY(larder_sha256(&hash, text + at, count));
        struct rag_chunk chunk = {.name = chunk_name(name, number),
                                  .path = larder_strdup(path),
                                  .offset = at,
                                  .bytes = (uint32_t)count};
        memcpy(chunk.hash, hash.bytes, sizeof(chunk.hash));
        chunk.asked = asked_before(catalogue, path, &chunk);
        LARDER_TRY(append(catalogue, &chunk));
        at += count;
    }
    for (size_t i = before; i-- > 0;)
        if (strcmp(catalogue->chunks[i].path, path) == 0)
            rag_drop(catalogue, i);
    return 0;
}

int rag_read(const struct rag_chunk *chunk, char **out)
{
    struct larder_key hash = {{0}};
    *out = NULL;
    const int fd = open(chunk->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return larder_fail(LARDER_ENOTFOUND, "%s: its file %s is gone: %m; larder rag rm drops it",
                           chunk->name, chunk->path);
    char *text = larder_alloc(chunk->bytes + 1);
    const ssize_t got = text ? pread(fd, text, chunk->bytes, (off_t)chunk->offset) : 0;
    close(fd);
    int err = text ? 0 : larder_fail(-ENOMEM, "no memory for a chunk");
    if (err == 0)
        err = larder_sha256(&hash, text, got > 0 ? (size_t)got : 0);
    if (err == 0 && memcmp(hash.bytes, chunk->hash, sizeof(chunk->hash)) != 0)
        err = larder_fail(LARDER_ENOTFOUND,
                          "%s: %s is not any more what it was; larder rag add it again",
                          chunk->name, chunk->path);
    if (err < 0) {
        larder_free(text);
        return err;
    }
    text[chunk->bytes] = 0;
    *out = text;
    return 0;
}

/* --- words ----------------------------------------------------------------------------------- */

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || (unsigned char)c >= 0x80;
}

/* The next word from *at on; 0: none. */
static size_t next_word(const char *text, size_t bytes, size_t *at)
{
    while (*at < bytes && !is_word(text[*at]))
        ++*at;
    size_t end = *at;
    while (end < bytes && is_word(text[end]))
        end++;
    return end - *at;
}

static bool has_word(const char *text, size_t bytes, const char *word, size_t length)
{
    for (size_t at = 0, found; (found = next_word(text, bytes, &at)) > 0; at += found)
        if (found == length && strncasecmp(text + at, word, length) == 0)
            return true;
    return false;
}

uint32_t rag_overlap(const char *question, const char *text, size_t bytes)
{
    const size_t length = strlen(question);
    uint32_t words = 0;
    for (size_t at = 0, count; (count = next_word(question, length, &at)) > 0; at += count)
        /* A word that the question has twice counts once. */
        if (!has_word(question, at, question + at, count))
            words += has_word(text, bytes, question + at, count);
    return words;
}
