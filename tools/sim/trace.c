/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c - reads traces. */
#include "tools/sim/trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

#define COUNT_MAX (1u << 27) /* of references: ids of blocks stay below LARDER_POLICY_ID_MAX */

struct loader {
    struct trace *trace;
    const char *path;
    uint32_t line;
    uint32_t block_tokens;
    uint32_t request_room;
    uint32_t ref_room;
    uint32_t block_room;
    uint32_t *buckets; /* blocks by id */
    uint32_t bucket_count;
};

/* Room for one more at the least. */
static int grow(void **array, uint32_t *room, uint32_t count, size_t bytes)
{
    if (count < *room)
        return 0;
    uint32_t wanted = *room ? *room * 2 : 1024;
    void *larger = wanted <= COUNT_MAX ? larder_realloc(*array, wanted * bytes) : NULL;
    if (!larger)
        return larder_fail(-ENOMEM, "no memory for %u parts of the trace", wanted);
    *array = larger;
    *room = wanted;
    return 0;
}

static uint32_t bucket_of(const struct loader *loader, uint64_t id)
{
    return (uint32_t)((id * 0x9E3779B97F4A7C15ull) >> 32) & (loader->bucket_count - 1);
}

static int rehash(struct loader *loader)
{
    uint32_t bucket_count = loader->bucket_count ? loader->bucket_count * 2 : 4096;
    uint32_t *buckets = larder_alloc_zero(bucket_count, sizeof(*buckets));
    if (!buckets)
        return larder_fail(-ENOMEM, "no memory for the trace's ids");
    larder_free(loader->buckets);
    loader->buckets = buckets;
    loader->bucket_count = bucket_count;
    for (uint32_t i = 1; i <= loader->trace->block_count; i++) {
        uint32_t at = bucket_of(loader, loader->trace->blocks[i].id);
        while (buckets[at])
            at = (at + 1) & (bucket_count - 1);
        buckets[at] = i;
    }
    return 0;
}

/* The block of that id behind `parent`, made when it is new. */
static int find_block(struct loader *loader, uint32_t *out, uint64_t id, uint32_t parent,
                      uint32_t token_count)
{
    struct trace *trace = loader->trace;
    if (trace->block_count * 2 >= loader->bucket_count)
        LARDER_TRY(rehash(loader));
    uint32_t at = bucket_of(loader, id);
    while (loader->buckets[at] && trace->blocks[loader->buckets[at]].id != id)
        at = (at + 1) & (loader->bucket_count - 1);
    if (loader->buckets[at]) {
        *out = loader->buckets[at];
        if (trace->blocks[*out].parent != parent)
            return larder_fail(LARDER_EPROTO,
                               "%s:%u: block %llu stands behind two different blocks; an id names "
                               "a whole prefix",
                               loader->path, loader->line, (unsigned long long)id);
        return 0;
    }
    LARDER_TRY(grow((void **)&trace->blocks, &loader->block_room, trace->block_count + 1,
                    sizeof(*trace->blocks)));
    *out = ++trace->block_count;
    trace->blocks[*out] = (struct trace_block){
        .id = id,
        .parent = parent,
        .depth = parent ? trace->blocks[parent].depth + 1 : 0,
        .token_count = token_count,
    };
    loader->buckets[at] = *out;
    return 0;
}

static int add_request(struct loader *loader, const json_t *object)
{
    struct trace *trace = loader->trace;
    const json_t *ids = json_object_get(object, "hash_ids");
    const json_t *time = json_object_get(object, "timestamp");
    const json_t *length = json_object_get(object, "input_length");
    if (!json_is_array(ids) || !json_is_number(time) || !json_is_integer(length) ||
        json_number_value(time) < 0)
        return larder_fail(LARDER_EPROTO,
                           "%s:%u: not a request; each needs timestamp, input_length and hash_ids",
                           loader->path, loader->line);
    LARDER_TRY(grow((void **)&trace->requests, &loader->request_room, trace->request_count,
                    sizeof(*trace->requests)));
    struct trace_request *request = &trace->requests[trace->request_count];
    request->time_ms = (uint64_t)json_number_value(time);
    request->first = trace->ref_count;
    request->count = (uint32_t)json_array_size(ids);
    int64_t left = json_integer_value(length);
    uint32_t parent = 0;
    for (uint32_t i = 0; i < request->count; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id))
            return larder_fail(LARDER_EPROTO, "%s:%u: hash_ids holds something else than integers",
                               loader->path, loader->line);
        int64_t tokens = left < loader->block_tokens ? left : loader->block_tokens;
        LARDER_TRY(
            grow((void **)&trace->refs, &loader->ref_room, trace->ref_count, sizeof(*trace->refs)));
        LARDER_TRY(find_block(loader, &parent, (uint64_t)json_integer_value(id), parent,
                              tokens > 0 ? (uint32_t)tokens : 1));
        trace->refs[trace->ref_count++] = parent;
        left -= tokens;
    }
    trace->request_count++;
    return 0;
}

static int add_line(struct loader *loader, const char *text)
{
    json_error_t why;
    json_t *object = json_loads(text, 0, &why);
    if (!object)
        return larder_fail(LARDER_EPROTO, "%s:%u: %s", loader->path, loader->line, why.text);
    int err = add_request(loader, object);
    json_decref(object);
    return err;
}

int trace_load(struct trace *trace, const char *path, uint32_t block_tokens, uint32_t requests_max)
{
    *trace = (struct trace){0};
    FILE *file = fopen(path, "re");
    if (!file)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    struct loader loader = {.trace = trace, .path = path, .block_tokens = block_tokens};
    char *text = NULL;
    size_t room = 0;
    int err = 0;
    while (err == 0 && (requests_max == 0 || trace->request_count < requests_max)) {
        errno = 0;
        if (getline(&text, &room, file) < 0) {
            if (ferror(file))
                err = larder_fail(-EIO, "%s: %s", path, strerror(errno));
            break;
        }
        loader.line++;
        if (text[strspn(text, " \t\r\n")])
            err = add_line(&loader, text);
    }
    if (err == 0 && trace->ref_count == 0)
        err = larder_fail(LARDER_EPROTO, "%s: no request in it", path);
    free(text);
    fclose(file);
    larder_free(loader.buckets);
    if (err < 0)
        trace_free(trace);
    return err;
}

void trace_free(struct trace *trace)
{
    larder_free(trace->requests);
    larder_free(trace->refs);
    larder_free(trace->blocks);
    *trace = (struct trace){0};
}
