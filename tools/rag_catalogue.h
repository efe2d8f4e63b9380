/* SPDX-License-Identifier: Apache-2.0 */
/* rag_catalogue.h - the catalogue of larder rag: a text file that says which parts of which files
 * are chunks. KV is not in it, nor are texts: these are read from their files again, and compared
 * with what they were.
 *
 * Its first line is RAG_HEAD. Then there is a line a chunk, with tabs between: name, where it
 * begins in its file, bytes, SHA-256, tokens, how many questions were asked with it, and the
 * file's path. It is written anew beside its place and then renamed.
 * Errors: 0 or negative with a message. What is no such file is LARDER_EFORMAT, and is left alone.
 */
#ifndef LARDER_TOOLS_RAG_CATALOGUE_H
#define LARDER_TOOLS_RAG_CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RAG_HEAD       "larder rag catalogue 1"
#define RAG_CHUNKS_MAX (1u << 16)

struct rag_chunk {
    char *name;
    char *path; /* absolute */
    uint64_t offset;
    uint64_t asked;
    uint32_t bytes;
    uint32_t tokens;
    uint8_t hash[32]; /* SHA-256 of its text */
};

struct rag_catalogue {
    char *path;
    int lock; /* -1: not held */
    struct rag_chunk *chunks;
    size_t count;
};

enum rag_open {
    RAG_READ,   /* it must be there: LARDER_ENOTFOUND */
    RAG_CHANGE, /* alone until closed; it must be there */
    RAG_MAKE,   /* as before, or an empty one, and its folders */
};

/* `path` NULL: $XDG_DATA_HOME/larder/rag, else ~/.local/share/larder/rag. To be closed whatever
 * came of it. */
int rag_open(struct rag_catalogue *catalogue, const char *path, enum rag_open how);
int rag_save(const struct rag_catalogue *catalogue);
void rag_close(struct rag_catalogue *catalogue);

/* Bytes of the first chunk of a text, at most `limit` (4 or more): it ends behind an empty line if
 * there is one in the second half, else behind a line, else a space, else between characters. */
size_t rag_cut(const char *text, size_t bytes, size_t limit);
/* Puts the chunks of a file in place of those it had; a chunk whose text stayed keeps `asked`. They
 * are called `name`, or name:1, name:2, ... LARDER_EEXISTS when another file's are. */
int rag_replace(struct rag_catalogue *catalogue, const char *path, const char *name,
                const char *text, size_t bytes, size_t limit);
/* By a name or pattern, with or without the number: facts.txt and f* are all of facts.txt:1. */
bool rag_is_named(const struct rag_chunk *chunk, const char *pattern);
/* Takes a chunk out. */
void rag_drop(struct rag_catalogue *catalogue, size_t index);

/* The chunk's text, for larder_free(), if its file still has it. */
int rag_read(const struct rag_chunk *chunk, char **out);

/* Of the words of `question`, how many are in the text, case aside. */
uint32_t rag_overlap(const char *question, const char *text, size_t bytes);

#endif
