/* SPDX-License-Identifier: Apache-2.0 */
/* larder_rag.c - `larder rag add`, `ls` and `rm`: files cut into chunks, whose KV is stored. */
#include "tools/larder_rag.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/larder_text.h"
#include "tools/rag_catalogue.h"

struct run_options rag_run_options(const struct command_options *options)
{
    return (struct run_options){.model = options->model,
                                .socket = options->socket,
                                .tokens = options->rag.tokens,
                                .threads = options->threads,
                                .silent = options->json};
}

int rag_print_json(json_t *json)
{
    if (!json)
        return larder_fail(-ENOMEM, "no memory for JSON");
    int err =
        json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(json);
    return err < 0 ? larder_fail(-EIO, "the report cannot be written") : 0;
}

json_t *rag_string_json(const char *text)
{
    return run_text_json(text, strlen(text));
}

/* --- add ------------------------------------------------------------------------------------- */

struct file {
    char *path; /* absolute: realpath's */
    const char *name;
    char *text;
    size_t bytes;
    uint32_t chunks;
    uint32_t tokens;
    uint32_t stored; /* chunks, by this call */
};

static int read_file(struct file *file, const char *argument, const char *name)
{
    file->path = realpath(argument, NULL);
    if (!file->path)
        return larder_fail(LARDER_ENOTFOUND, "%s: %m", argument);
    file->name = name ? name : strrchr(file->path, '/') + 1;
    return run_read_prompt(&file->text, &file->bytes, file->path);
}

/* The catalogue as it will be: its chunks of this file are numbered and stored. */
static int store_file(struct file *file, struct rag_catalogue *catalogue, struct run_engine *engine)
{
    const bool starts = engine->config->bos >= 0;
    file->chunks = 0;
    file->tokens = 0;
    for (size_t i = 0; i < catalogue->count; i++) {
        struct rag_chunk *chunk = &catalogue->chunks[i];
        if (strcmp(chunk->path, file->path) != 0)
            continue;
        chunk->tokens = chunk->bytes + starts;
        file->chunks++;
        file->tokens += chunk->tokens;
        LARDER_TRY(run_chunk_store(file->text + chunk->offset, chunk->bytes, engine->stored_model,
                                   engine->model, LARDER_DURABLE, &file->stored));
    }
    return 0;
}

static int replace_files(struct rag_catalogue *catalogue, const struct file *files, int count,
                         uint32_t chunk_bytes)
{
    for (int i = 0; i < count; i++)
        LARDER_TRY(rag_replace(catalogue, files[i].path, files[i].name, files[i].text,
                               files[i].bytes, chunk_bytes));
    return 0;
}

/* Computing takes long: the catalogue is read and tried before, and changed when all is stored. */
static int store_files(const struct command_options *options, struct file *files, int count,
                       struct rag_catalogue *catalogue)
{
    int err = rag_open(catalogue, options->rag.catalogue, RAG_READ);
    if (err < 0 && err != LARDER_ENOTFOUND)
        return err;
    LARDER_TRY(replace_files(catalogue, files, count, options->rag.chunk_bytes));
    struct run_options run = rag_run_options(options);
    struct run_engine engine;
    run.store_needed = true;
    err = run_open(&engine, &run);
    for (int i = 0; err == 0 && i < count; i++)
        err = store_file(&files[i], catalogue, &engine);
    run_close(&engine);
    return err;
}

/* What was found out with the lock not held goes into the catalogue that is there now. */
static int note_files(const struct command_options *options, const struct file *files, int count,
                      const struct rag_catalogue *stored)
{
    struct rag_catalogue catalogue;
    int err = rag_open(&catalogue, options->rag.catalogue, RAG_MAKE);
    if (err == 0)
        err = replace_files(&catalogue, files, count, options->rag.chunk_bytes);
    for (size_t i = 0; err == 0 && i < catalogue.count; i++)
        for (size_t k = 0; catalogue.chunks[i].tokens == 0 && k < stored->count; k++)
            if (memcmp(catalogue.chunks[i].hash, stored->chunks[k].hash, 32) == 0)
                catalogue.chunks[i].tokens = stored->chunks[k].tokens;
    if (err == 0)
        err = rag_save(&catalogue);
    rag_close(&catalogue);
    return err;
}

static int print_files(const struct command_options *options, const struct file *files, int count)
{
    if (!options->json) {
        for (int i = 0; i < count; i++)
            printf("%s: %u chunks, %u tokens; %u stored now, the others were\n", files[i].name,
                   files[i].chunks, files[i].tokens, files[i].stored);
        return 0;
    }
    json_t *array = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(
            array, json_pack("{s:o, s:o, s:i, s:i, s:i}", "name", rag_string_json(files[i].name),
                             "path", rag_string_json(files[i].path), "chunks", (int)files[i].chunks,
                             "tokens", (int)files[i].tokens, "stored_now", (int)files[i].stored));
    return rag_print_json(array);
}

static int add(const struct command_options *options, int argc, char **argv)
{
    if (options->rag.name && argc > 1)
        return larder_fail(-EINVAL, "--name is of one FILE");
    struct file *files = larder_alloc_zero((size_t)argc, sizeof(*files));
    struct rag_catalogue catalogue = {.lock = -1};
    int err = files ? 0 : larder_fail(-ENOMEM, "no memory for files");
    for (int i = 0; err == 0 && i < argc; i++)
        err = read_file(&files[i], argv[i], options->rag.name);
    if (err == 0)
        err = store_files(options, files, argc, &catalogue);
    if (err == 0)
        err = note_files(options, files, argc, &catalogue);
    if (err == 0)
        err = print_files(options, files, argc);
    rag_close(&catalogue);
    for (int i = 0; files && i < argc; i++) {
        free(files[i].path);
        larder_free(files[i].text);
    }
    larder_free(files);
    return err;
}

/* --- ls -------------------------------------------------------------------------------------- */

/* Where the stored bytes of a chunk are. */
static const char *tier_text(const struct larder_lookup_result *found)
{
    return found->tokens == 0                  ? "-"
           : found->bytes_host == 0            ? "ssd"
           : found->bytes_host >= found->bytes ? "host"
                                               : "both";
}

static int look_up(struct larder_lookup_result *found, const struct rag_chunk *chunk,
                   const char *text, const struct run_engine *engine)
{
    uint32_t *tokens;
    struct larder_prompt prompt;
    LARDER_TRY(run_chunk_tokens(&prompt, &tokens, text, chunk->bytes, engine->config));
    int err = larder_lookup(engine->stored_model, found, &prompt, LARDER_QUALITY_LOSSY);
    larder_free(tokens);
    return err < 0 ? larder_fail(err, "%s", larder_last_error()) : 0;
}

static int list_chunk(const struct rag_chunk *chunk, const struct run_engine *engine, json_t *array,
                      bool *all_good)
{
    char *text;
    char bytes[16];
    struct larder_lookup_result found = {0};
    const bool good = rag_read(chunk, &text) == 0;
    const int err = good ? look_up(&found, chunk, text, engine) : 0;
    larder_free(text);
    LARDER_TRY(err);
    *all_good = *all_good && good;
    const char *quality = found.tokens ? text_quality(found.quality) : "-";
    if (!array)
        printf("%-24s %7u %7" PRIu64 " %-5s %9s %-8s %6" PRIu64 " %-7s %s\n", chunk->name,
               chunk->tokens, found.tokens, tier_text(&found),
               larder_human_bytes(bytes, found.bytes), quality, chunk->asked,
               good ? "same" : "changed", chunk->path);
    else
        json_array_append_new(
            array,
            json_pack("{s:o, s:o, s:I, s:i, s:i, s:I, s:b, s:I, s:s, s:I, s:I, s:s}", "name",
                      rag_string_json(chunk->name), "path", rag_string_json(chunk->path), "offset",
                      (json_int_t)chunk->offset, "bytes", (int)chunk->bytes, "tokens",
                      (int)chunk->tokens, "asked", (json_int_t)chunk->asked, "text_same", (int)good,
                      "stored_tokens", (json_int_t)found.tokens, "tier", tier_text(&found),
                      "stored_bytes", (json_int_t)found.bytes, "stored_bytes_host",
                      (json_int_t)found.bytes_host, "quality", quality));
    return 0;
}

static int list(const struct command_options *options, bool *all_good)
{
    struct rag_catalogue catalogue;
    struct run_engine engine = {0};
    struct run_options run = rag_run_options(options);
    json_t *array = options->json ? json_array() : NULL;
    run.store_needed = true;
    int err = rag_open(&catalogue, options->rag.catalogue, RAG_READ);
    if (err == 0)
        err = run_open(&engine, &run);
    if (err == 0 && !array)
        printf("%-24s %7s %7s %-5s %9s %-8s %6s %-7s %s\n", "CHUNK", "TOKENS", "STORED", "TIER",
               "BYTES", "QUALITY", "ASKED", "TEXT", "FILE");
    for (size_t i = 0; err == 0 && i < catalogue.count; i++)
        err = list_chunk(&catalogue.chunks[i], &engine, array, all_good);
    run_close(&engine);
    rag_close(&catalogue);
    if (err == 0 && options->json)
        return rag_print_json(array);
    json_decref(array);
    return err;
}

/* --- rm -------------------------------------------------------------------------------------- */

static int drop(const struct command_options *options, int argc, char **argv)
{
    struct rag_catalogue catalogue;
    size_t dropped = 0;
    int err = rag_open(&catalogue, options->rag.catalogue, RAG_CHANGE);
    for (int a = 0; err == 0 && a < argc; a++) {
        const size_t before = catalogue.count;
        for (size_t i = before; i-- > 0;)
            if (rag_is_named(&catalogue.chunks[i], argv[a]))
                rag_drop(&catalogue, i);
        if (catalogue.count == before)
            err =
                larder_fail(LARDER_ENOTFOUND, "no chunk is called %s; see larder rag ls", argv[a]);
        dropped += before - catalogue.count;
    }
    if (err == 0)
        err = rag_save(&catalogue);
    rag_close(&catalogue);
    if (err == 0 && options->json)
        return rag_print_json(json_pack("{s:I}", "dropped", (json_int_t)dropped));
    if (err == 0)
        printf("%zu chunks dropped; their KV stays in the store until others need its place\n",
               dropped);
    return err;
}

/* --- the command ----------------------------------------------------------------------------- */

int command_rag(const struct command_options *options, int argc, char **argv)
{
    const char *verb = argv[0];
    const bool is_add = strcmp(verb, "add") == 0;
    const bool is_ask = strcmp(verb, "ask") == 0;
    const bool is_list = strcmp(verb, "ls") == 0;
    const bool is_drop = strcmp(verb, "rm") == 0;
    bool all_good = true;
    if (!is_add && !is_ask && !is_list && !is_drop)
        return command_failed(
            larder_fail(-EINVAL, "'%s' is none of add, ask, ls and rm of larder rag", verb));
    if (is_list != (argc == 1) || (is_ask && argc != 2))
        return command_failed(larder_fail(-EINVAL, "larder rag %s takes %s", verb,
                                          is_list  ? "no argument"
                                          : is_ask ? "one question"
                                          : is_add ? "files"
                                                   : "names"));
    if (!is_drop && !options->model)
        return command_failed(larder_fail(-EINVAL, "say which model, with --model DIR"));
    if (is_ask)
        return rag_ask(options, argv[1]);
    int err = is_add    ? add(options, argc - 1, argv + 1)
              : is_list ? list(options, &all_good)
                        : drop(options, argc - 1, argv + 1);
    if (err < 0)
        return command_failed(err);
    return all_good ? COMMAND_OK : COMMAND_PROBLEM;
}
