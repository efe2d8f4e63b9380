/* SPDX-License-Identifier: Apache-2.0 */
/* larder_chain.c - `larder export` and `larder import`: a chain to a file and back, through the
 * client library, as the tenant it belongs to. The file lies mapped: KV goes between it and
 * larderd's shared memory without a copy of it in between.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "client/larder.h"
#include "tools/chain_file.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"
#include "tools/larder_tokens.h"

/* A disk that is slow, or a larderd that waits for room. */
#define TIMEOUT_MS 60000u

/* The library keeps its messages for itself; its codes are ours. */
static int of_library(int err)
{
    return err < 0 ? larder_fail(err, "%s", larder_last_error()) : 0;
}

/* Token after token, as in a chain file. */
static void token_layout(struct larder_layout *out, const struct larder_model_desc *model,
                         void *data, uint64_t token_count)
{
    int64_t element = (int64_t)larder_dtype_bytes(model->dtype);
    *out = (struct larder_layout){
        .base = data,
        .layer_stride = element * model->kv_heads * ((int64_t)model->k_dims + model->v_dims),
        .kv_stride = element * model->kv_heads * model->k_dims,
        .token_stride = (int64_t)larder_model_kv_bytes(model, 1),
        .head_stride = element * model->k_dims,
        .v_head_stride = element * model->v_dims,
        .k_dim_stride = element,
        .v_dim_stride = element,
        .dtype = model->dtype,
        .token_capacity = token_count,
    };
}

/* A file that gets shorter, or a disk that fails, under the map. */
static void on_bus_error(int signal)
{
    static const char text[] = "larder: the file was changed, or its disk failed, while in use\n";
    (void)signal;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)ignored;
    _exit(COMMAND_USAGE);
}

/* --- a connection as a tenant ----------------------------------------------------------------- */

struct engine {
    struct larder *larder;
    struct larder_model *model;
};

static void close_engine(struct engine *engine)
{
    larder_model_close(engine->model);
    larder_close(engine->larder);
}

static int open_engine(struct engine *engine, const struct command_options *options,
                       const char *tenant, const struct larder_model_desc *model)
{
    const struct larder_options as = {
        .socket = link_socket(options->socket), .timeout_ms = TIMEOUT_MS, .tenant = tenant};
    *engine = (struct engine){0};
    int err = of_library(larder_connect(&engine->larder, &as));
    if (err == 0)
        err = of_library(larder_model_open(engine->larder, &engine->model, model));
    if (err < 0)
        close_engine(engine);
    return err;
}

/* --- export: which tokens --------------------------------------------------------------------- */

struct chain {
    char tenant[LARDER_TENANT_NAME_MAX];
    struct larder_model_desc model;
    uint32_t *tokens;
    size_t token_count;
    uint8_t extra[LARDER_EXTRA_BYTES_MAX];
    uint32_t extra_bytes;
};

/* The tokens of a block in front of those that are known. */
static int prepend_block(struct link *link, struct chain *chain, const uint8_t key[32], bool first)
{
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_TOKENS, key, 32, WIRE_ADMIN_TOKENS_OK,
                            sizeof(struct wire_admin_tokens_ok)));
    const struct wire_admin_tokens_ok *ok = body;
    size_t bytes = ((const struct wire_frame *)link->answer)->bytes;
    if (ok->token_count > LARDER_BLOCK_TOKENS_MAX || ok->extra_bytes > LARDER_EXTRA_BYTES_MAX ||
        bytes != sizeof(struct wire_frame) + sizeof(*ok) + ok->token_count * sizeof(uint32_t))
        return larder_fail(LARDER_EPROTO, "larderd's answer is not understood");
    if (ok->token_count == 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "a block of this chain is stored without its tokens, under a key that "
                           "only its engine can make: it cannot be exported");
    if (!first && (ok->extra_bytes != chain->extra_bytes ||
                   memcmp(ok->extra, chain->extra, ok->extra_bytes) != 0))
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the blocks of this chain differ in what else was hashed (extra)");
    chain->extra_bytes = ok->extra_bytes;
    memcpy(chain->extra, ok->extra, ok->extra_bytes);
    size_t count = chain->token_count + ok->token_count;
    if (count > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "more than %u tokens", LARDER_PROMPT_TOKENS_MAX);
    uint32_t *tokens = larder_realloc(chain->tokens, count * sizeof(*tokens));
    if (!tokens)
        return larder_fail(-ENOMEM, "no memory for tokens");
    memmove(tokens + ok->token_count, tokens, chain->token_count * sizeof(*tokens));
    memcpy(tokens, ok + 1, ok->token_count * sizeof(*tokens));
    chain->tokens = tokens;
    chain->token_count = count;
    return 0;
}

static int chain_of_key(struct link *link, struct chain *chain, const char *text)
{
    struct wire_admin_entry entry;
    struct wire_admin_model_ok model;
    LARDER_TRY(link_find(link, &entry, text));
    LARDER_TRY(link_model(link, &model, entry.model));
    chain->model = model.desc;
    uint8_t key[32];
    memcpy(key, entry.key, sizeof(key));
    for (bool first = true; !larder_all_zero(key, sizeof(key)); first = false) {
        const void *body;
        LARDER_TRY(link_request(link, &body, WIRE_ADMIN_SHOW, key, sizeof(key), WIRE_ADMIN_SHOW_OK,
                                sizeof(struct wire_admin_show_ok)));
        struct wire_admin_show_ok show;
        memcpy(&show, body, sizeof(show));
        memcpy(chain->tenant, show.tenant_name, sizeof(chain->tenant));
        chain->tenant[sizeof(chain->tenant) - 1] = 0;
        LARDER_TRY(prepend_block(link, chain, key, first));
        memcpy(key, show.entry.parent, sizeof(key));
    }
    return 0;
}

static int chain_of_tokens(struct link *link, struct chain *chain,
                           const struct command_options *options)
{
    struct wire_admin_tenant_ok tenant;
    struct wire_admin_model_ok model;
    LARDER_TRY(tokens_tenant(link, &tenant, options->tenant));
    LARDER_TRY(tokens_model(link, &model, options->model));
    memcpy(chain->tenant, tenant.name, sizeof(chain->tenant));
    chain->tenant[sizeof(chain->tenant) - 1] = 0;
    chain->model = model.desc;
    if (options->extra && strlen(options->extra) > sizeof(chain->extra))
        return larder_fail(LARDER_ELIMIT, "--extra is longer than %zu bytes", sizeof(chain->extra));
    chain->extra_bytes = options->extra ? (uint32_t)strlen(options->extra) : 0;
    if (chain->extra_bytes > 0)
        memcpy(chain->extra, options->extra, chain->extra_bytes);
    return tokens_read(options->tokens, &chain->tokens, &chain->token_count);
}

/* --- export: the file ------------------------------------------------------------------------- */

/* A file of that size with room for all of it: a store through a map must not meet a full disk. */
static int make_file(const char *path, uint64_t bytes, void **map)
{
    *map = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return larder_fail(-errno, "cannot write %s: %m", path);
    int err = -posix_fallocate(fd, 0, (off_t)bytes);
    void *at = err < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (err == 0 && at == MAP_FAILED)
        err = -errno;
    close(fd);
    if (err < 0)
        return larder_fail(err, "cannot make %s, of %llu bytes: %s", path,
                           (unsigned long long)bytes, strerror(-err));
    *map = at;
    return 0;
}

/* Of the worst block, as far as it was measured; null: nobody knows. */
static json_t *kl_json(const struct chain_head *head)
{
    const bool known = head->quality == LARDER_QUALITY_EXACT || head->kl > 0;
    return known ? json_real((double)head->kl) : json_null();
}

static int fetch(struct engine *engine, const struct chain *chain, const struct chain_head *head,
                 uint8_t *file, const struct chain_layout *layout)
{
    const struct larder_prompt prompt = {.tokens = chain->tokens,
                                         .token_count = head->token_count,
                                         .extra = chain->extra,
                                         .extra_bytes = chain->extra_bytes};
    struct larder_layout memory;
    struct larder_get_result result;
    token_layout(&memory, &head->model, file + layout->data, head->token_count);
    const struct larder_get_options get = {.worst = LARDER_QUALITY_BLENDED};
    LARDER_TRY(of_library(larder_get(engine->model, &result, &prompt, &memory, &get)));
    if (result.tokens < head->token_count)
        return larder_fail(result.stop_error < 0 ? result.stop_error : LARDER_ENOTFOUND,
                           "only %llu of %u tokens could be read; some left meanwhile: try again",
                           (unsigned long long)result.tokens, head->token_count);
    memcpy(file, head, sizeof(*head));
    ((struct chain_head *)file)->quality = result.quality;
    if (result.quality == LARDER_QUALITY_LOSSY && isfinite(result.kl))
        ((struct chain_head *)file)->kl = result.kl;
    memcpy(file + layout->extra, chain->extra, chain->extra_bytes);
    memcpy(file + layout->tokens, chain->tokens, 4ull * head->token_count);
    struct progress progress;
    progress_start(&progress);
    for (uint64_t i = 0; i < layout->piece_count; i++) {
        progress_step(&progress, "checks", i, layout->piece_count);
        chain_file_seal_piece(file, layout, i);
    }
    progress_end(&progress);
    chain_file_seal_head(file, layout);
    return 0;
}

static int write_chain(struct engine *engine, const struct chain *chain, const char *path,
                       struct chain_head *head)
{
    const struct larder_prompt prompt = {.tokens = chain->tokens,
                                         .token_count = chain->token_count,
                                         .extra = chain->extra,
                                         .extra_bytes = chain->extra_bytes};
    struct larder_lookup_result found;
    LARDER_TRY(of_library(larder_lookup(engine->model, &found, &prompt, LARDER_QUALITY_BLENDED)));
    if (found.tokens == 0)
        return larder_fail(LARDER_ENOTFOUND, "none of these tokens are stored; see larder why");
    *head = (struct chain_head){.magic = CHAIN_FILE_MAGIC,
                                .version = CHAIN_FILE_VERSION,
                                .token_count = (uint32_t)found.tokens,
                                .piece_tokens = chain_file_piece_tokens(&chain->model),
                                .extra_bytes = chain->extra_bytes,
                                .created_s = (uint64_t)time(NULL),
                                .model = chain->model};
    struct chain_layout layout;
    chain_file_layout(&layout, head);
    head->data_offset = layout.data;
    head->data_bytes = layout.bytes - layout.data;
    /* Beside it, and in its place when whole. */
    size_t bytes = strlen(path) + sizeof(".part");
    char *part = larder_alloc(bytes);
    if (!part)
        return larder_fail(-ENOMEM, "no memory for a path");
    snprintf(part, bytes, "%s.part", path);
    void *map;
    int err = make_file(part, layout.bytes, &map);
    if (err == 0) {
        err = fetch(engine, chain, head, map, &layout);
        if (err == 0 && msync(map, layout.bytes, MS_SYNC) < 0)
            err = larder_fail(-errno, "cannot write %s: %m", part);
        head->quality = ((struct chain_head *)map)->quality;
        head->kl = ((struct chain_head *)map)->kl;
        munmap(map, layout.bytes);
        if (err == 0 && rename(part, path) < 0)
            err = larder_fail(-errno, "cannot replace %s: %m", path);
        if (err < 0)
            unlink(part);
    } else {
        unlink(part);
    }
    larder_free(part);
    return err;
}

static int print_json(json_t *json)
{
    if (!json)
        return larder_fail(-ENOMEM, "no memory for JSON");
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(json);
    return 0;
}

static int export_chain(const struct command_options *options, struct chain *chain, int argc,
                        char **argv)
{
    struct link *link;
    LARDER_TRY(link_open(&link, options->socket));
    int err =
        argc == 1 ? chain_of_key(link, chain, argv[0]) : chain_of_tokens(link, chain, options);
    link_close(link);
    LARDER_TRY(err);
    struct engine engine;
    struct chain_head head;
    LARDER_TRY(open_engine(&engine, options, chain->tenant, &chain->model));
    err = write_chain(&engine, chain, options->output, &head);
    close_engine(&engine);
    LARDER_TRY(err);
    if (options->json)
        return print_json(
            json_pack("{s:s, s:s, s:I, s:I, s:I, s:s, s:o}", "tenant", chain->tenant, "model",
                      chain->model.name, "tokens", (json_int_t)head.token_count, "tokens_asked",
                      (json_int_t)chain->token_count, "bytes", (json_int_t)head.data_bytes,
                      "quality", text_quality(head.quality), "kl", kl_json(&head)));
    char bytes[16];
    printf("%s: %u of %zu tokens of tenant %s, model %s, %s, %s of KV\n", options->output,
           head.token_count, chain->token_count, chain->tenant, chain->model.name,
           text_quality(head.quality), larder_human_bytes(bytes, head.data_bytes));
    return 0;
}

int command_export(const struct command_options *options, int argc, char **argv)
{
    if ((argc == 1) == (options->tokens != NULL))
        return command_failed(larder_fail(-EINVAL, "give either a KEY or --tokens FILE"));
    if (!options->output)
        return command_failed(larder_fail(-EINVAL, "say where to, with -o FILE"));
    struct chain chain = {.tokens = NULL};
    signal(SIGBUS, on_bus_error);
    int err = export_chain(options, &chain, argc, argv);
    larder_free(chain.tokens);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}

/* --- import ----------------------------------------------------------------------------------- */

static int map_file(const char *path, void **map, uint64_t *bytes)
{
    *map = NULL;
    *bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return larder_fail(-errno, "cannot open %s: %m", path);
    struct stat status;
    int err = 0;
    if (fstat(fd, &status) < 0)
        err = larder_fail(-errno, "%s: %m", path);
    else if (!S_ISREG(status.st_mode) || status.st_size < (off_t)sizeof(struct chain_head))
        err = larder_fail(LARDER_EFORMAT, "%s is no file of larder export", path);
    void *at = MAP_FAILED;
    if (err == 0) {
        *bytes = (uint64_t)status.st_size;
        at = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (at == MAP_FAILED)
            err = larder_fail(-errno, "%s: %m", path);
    }
    close(fd);
    if (err == 0)
        *map = at;
    return err;
}

static int verify(const void *file, const struct chain_layout *layout)
{
    struct progress progress;
    int err = chain_file_verify_head(file, layout);
    progress_start(&progress);
    for (uint64_t i = 0; err == 0 && i < layout->piece_count; i++) {
        progress_step(&progress, "checks", i, layout->piece_count);
        err = chain_file_verify_piece(file, layout, i);
    }
    progress_end(&progress);
    return err;
}

static int store_chain(struct engine *engine, struct larder_put_result *result, const uint8_t *file,
                       const struct chain_layout *layout, const char *recipe)
{
    const struct chain_head *head = (const struct chain_head *)(const void *)file;
    const struct larder_prompt prompt = {
        .tokens = (const uint32_t *)(const void *)(file + layout->tokens),
        .token_count = head->token_count,
        .extra = file + layout->extra,
        .extra_bytes = head->extra_bytes};
    const struct larder_put_options put = {.wait = LARDER_DURABLE,
                                           .recipe = recipe ? recipe : "exact",
                                           .computed_on = (enum larder_quality)head->quality,
                                           .computed_on_kl = head->kl};
    struct larder_layout memory;
    /* A put only reads. */
    token_layout(&memory, &head->model, (void *)(uintptr_t)(file + layout->data),
                 head->token_count);
    return of_library(larder_put(engine->model, result, &prompt, &memory, &put));
}

static int import_file(const struct command_options *options, const void *file,
                       const struct chain_layout *layout)
{
    const struct chain_head *head = file;
    struct wire_admin_tenant_ok tenant;
    struct link *link;
    LARDER_TRY(link_open(&link, options->socket));
    int err = tokens_tenant(link, &tenant, options->tenant);
    link_close(link);
    LARDER_TRY(err);
    struct engine engine;
    struct larder_put_result result = {0};
    LARDER_TRY(open_engine(&engine, options, tenant.name, &head->model));
    err = store_chain(&engine, &result, file, layout, options->recipe);
    close_engine(&engine);
    LARDER_TRY(err);
    if (options->json)
        return print_json(json_pack("{s:s, s:s, s:I, s:I, s:I, s:s, s:o}", "tenant", tenant.name,
                                    "model", head->model.name, "tokens", (json_int_t)result.tokens,
                                    "tokens_new", (json_int_t)result.tokens_new, "stored_bytes",
                                    (json_int_t)result.bytes_stored, "quality",
                                    text_quality(head->quality), "kl", kl_json(head)));
    char bytes[16];
    printf("%llu tokens for tenant %s, model %s: %llu new, %s stored\n",
           (unsigned long long)result.tokens, tenant.name, head->model.name,
           (unsigned long long)result.tokens_new, larder_human_bytes(bytes, result.bytes_stored));
    return 0;
}

int command_import(const struct command_options *options, int argc, char **argv)
{
    (void)argc;
    void *file = NULL;
    uint64_t bytes = 0;
    struct chain_layout layout;
    signal(SIGBUS, on_bus_error);
    int err = map_file(argv[0], &file, &bytes);
    if (err == 0)
        err = chain_file_parse(&layout, file, bytes);
    if (err == 0)
        err = verify(file, &layout);
    if (err == 0)
        err = import_file(options, file, &layout);
    if (file)
        munmap(file, bytes);
    return err < 0 ? command_failed(err) : COMMAND_OK;
}
