/* SPDX-License-Identifier: Apache-2.0 */
/* larder_why.c - `larder why`: why a lookup missed.
 *
 * Of tokens, the daemon is asked block by block which key it has and whether that is stored, down
 * the chain until it ends; then what became of the first block that is missing, and whether another
 * tenant or model has more of these tokens.
 */
#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/event.h"
#include "base/mem.h"
#include "tools/larder_commands.h"
#include "tools/larder_link.h"
#include "tools/larder_text.h"
#include "tools/larder_tokens.h"

/* Digits of a key that an event remembers. */
#define PRINT_DIGITS 16u

/* --- events ----------------------------------------------------------------------------------- */

static int ask_history(struct link *link, struct wire_admin_history_ok *out, const uint8_t key[32])
{
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_HISTORY, key, 32, WIRE_ADMIN_HISTORY_OK,
                            sizeof(*out)));
    memcpy(out, body, sizeof(*out));
    return out->count <= LARDER_EVENTS_FOUND_MAX
               ? 0
               : larder_fail(LARDER_EPROTO, "larderd names %u events", out->count);
}

static void print_events(const struct wire_admin_history_ok *history)
{
    for (uint32_t i = 0; i < history->count; i++) {
        time_t when = (time_t)history->events[i].when_s;
        struct tm local;
        char text[32] = "?";
        if (localtime_r(&when, &local))
            strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local);
        printf("  %s  %s\n", text, larder_event_text(history->events[i].what));
    }
}

static void say_unknown(void)
{
    printf("  nothing is remembered of it: it was never stored, or it left before the latest\n"
           "  65,536 events, or before larderd was killed\n");
}

static json_t *events_json(const struct wire_admin_history_ok *history)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i < history->count; i++)
        json_array_append_new(array, json_pack("{s:I, s:s, s:s}", "when_s",
                                               (json_int_t)history->events[i].when_s, "event",
                                               larder_event_label(history->events[i].what), "text",
                                               larder_event_text(history->events[i].what)));
    return array;
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

/* --- a key ------------------------------------------------------------------------------------ */

/* A key that is not stored has to be given in as many digits as events remember. */
static int parse_print(uint8_t key[32], const char *text)
{
    size_t digits = strlen(text);
    memset(key, 0, 32);
    if (digits < PRINT_DIGITS)
        return larder_fail(LARDER_ENOTFOUND,
                           "no entry's key begins with %s; of one that is not stored, give %u "
                           "digits or more",
                           text, PRINT_DIGITS);
    char print[PRINT_DIGITS + 1];
    memcpy(print, text, PRINT_DIGITS);
    print[PRINT_DIGITS] = 0;
    return larder_unhex(key, PRINT_DIGITS / 2, print);
}

static int why_key(struct link *link, const struct command_options *options, const char *text,
                   bool *stored)
{
    struct wire_admin_entry entry;
    struct wire_admin_history_ok history;
    uint8_t key[32];
    int err = link_find(link, &entry, text);
    *stored = err == 0;
    if (err == LARDER_ENOTFOUND)
        err = parse_print(key, text);
    LARDER_TRY(err);
    LARDER_TRY(ask_history(link, &history, *stored ? entry.key : key));
    if (options->json)
        return print_json(json_pack("{s:s, s:b, s:o}", "key", text, "stored", *stored, "events",
                                    events_json(&history)));
    if (*stored)
        printf("stored: %s, %s, %u tokens, %u blocks before it\n", text_tier(&entry),
               text_quality(entry.quality), entry.token_count, entry.depth);
    else
        printf("not stored\n");
    print_events(&history);
    if (!*stored && history.count == 0)
        say_unknown();
    return 0;
}

/* --- tokens ----------------------------------------------------------------------------------- */

struct prompt {
    const uint32_t *tokens;
    size_t token_count;
    const char *extra;
    uint32_t block_tokens;
};

/* How far a chain is stored. */
struct reach {
    uint32_t blocks;
    size_t tokens;
    uint32_t worst;         /* quality */
    uint32_t exact_blocks;  /* leading ones */
    uint32_t host_blocks;   /* of them all */
    struct larder_key miss; /* key of the first that is not stored */
};

static int derive(struct link *link, struct larder_key *out, uint32_t tenant, uint32_t model,
                  const struct larder_key *parent, const struct prompt *prompt, size_t first)
{
    struct {
        struct wire_admin_derive head;
        uint32_t tokens[LARDER_BLOCK_TOKENS_MAX];
    } ask = {.head = {.tenant = tenant, .model = model}};
    uint32_t count = (uint32_t)larder_min_u64(prompt->token_count - first, prompt->block_tokens);
    ask.head.token_count = count;
    memcpy(ask.head.parent, parent->bytes, sizeof(ask.head.parent));
    if (prompt->extra) {
        ask.head.extra_bytes = (uint32_t)strlen(prompt->extra);
        memcpy(ask.head.extra, prompt->extra, ask.head.extra_bytes);
    }
    memcpy(ask.tokens, prompt->tokens + first, count * sizeof(ask.tokens[0]));
    const void *body;
    LARDER_TRY(link_request(link, &body, WIRE_ADMIN_DERIVE, &ask,
                            sizeof(ask.head) + count * sizeof(ask.tokens[0]), WIRE_ADMIN_DERIVE_OK,
                            sizeof(out->bytes)));
    memcpy(out->bytes, body, sizeof(out->bytes));
    return 0;
}

static int walk(struct link *link, struct reach *out, uint32_t tenant, uint32_t model,
                const struct prompt *prompt)
{
    struct larder_key parent = {{0}};
    *out = (struct reach){0};
    while (out->tokens < prompt->token_count) {
        LARDER_TRY(derive(link, &out->miss, tenant, model, &parent, prompt, out->tokens));
        const void *body;
        int err = link_request(link, &body, WIRE_ADMIN_SHOW, out->miss.bytes, 32,
                               WIRE_ADMIN_SHOW_OK, sizeof(struct wire_admin_show_ok));
        if (err == LARDER_ENOTFOUND)
            return 0;
        LARDER_TRY(err);
        const struct wire_admin_entry *entry = &((const struct wire_admin_show_ok *)body)->entry;
        if (entry->quality > out->worst)
            out->worst = entry->quality;
        if (out->worst == LARDER_QUALITY_EXACT)
            out->exact_blocks++;
        out->host_blocks += entry->in_host != 0;
        out->blocks++;
        out->tokens += larder_min_u64(prompt->token_count - out->tokens, prompt->block_tokens);
        parent = out->miss;
    }
    return 0;
}

/* Who else has more of these tokens, into `array` or printed. */
static int walk_others(struct link *link, json_t *array, const struct reach *own, uint32_t tenant,
                       uint32_t model, const struct prompt *prompt)
{
    struct wire_admin_tenant_ok *tenants;
    size_t tenant_count;
    LARDER_TRY(link_tenants(link, &tenants, &tenant_count));
    int err = 0;
    for (uint32_t m = 0; err == 0; m++) {
        struct wire_admin_model_ok other;
        err = link_model(link, &other, m);
        for (uint32_t t = 0; err == 0 && t < tenant_count; t++) {
            struct reach reach;
            if ((t == tenant && m == model) || tenants[t].stat.entries == 0)
                continue;
            err = walk(link, &reach, t, m, prompt);
            if (err < 0 || reach.tokens <= own->tokens)
                continue;
            if (array)
                json_array_append_new(array, json_pack("{s:s, s:s, s:I}", "tenant", tenants[t].name,
                                                       "model", other.desc.name, "tokens_stored",
                                                       (json_int_t)reach.tokens));
            else
                printf("tenant %s, model %s has %zu of them: not for this one\n", tenants[t].name,
                       other.desc.name, reach.tokens);
        }
    }
    larder_free(tenants);
    return err == LARDER_ENOTFOUND ? 0 : err;
}

static void print_reach(const struct reach *reach, const struct prompt *prompt, const char *tenant,
                        const char *model)
{
    printf("tenant %s, model %s: %zu of %zu tokens are stored, in %u blocks, %u of them in host "
           "memory\n",
           tenant, model, reach->tokens, prompt->token_count, reach->blocks, reach->host_blocks);
    if (reach->worst != LARDER_QUALITY_EXACT)
        printf(
            "only the first %u blocks are exact; a lookup that accepts nothing less ends there\n",
            reach->exact_blocks);
    if (reach->tokens == prompt->token_count)
        return;
    char key[65];
    larder_hex(key, reach->miss.bytes, 32);
    printf("the block from token %zu on is not stored: %s\n", reach->tokens, key);
}

static int report(struct link *link, const struct command_options *options,
                  const struct prompt *prompt, bool *stored)
{
    struct wire_admin_tenant_ok tenant;
    struct wire_admin_model_ok model;
    struct reach reach;
    struct wire_admin_history_ok history = {0};
    LARDER_TRY(tokens_tenant(link, &tenant, options->tenant));
    LARDER_TRY(tokens_model(link, &model, options->model));
    LARDER_TRY(walk(link, &reach, tenant.index, model.index, prompt));
    *stored = reach.tokens == prompt->token_count;
    if (!*stored)
        LARDER_TRY(ask_history(link, &history, reach.miss.bytes));
    if (!options->json) {
        print_reach(&reach, prompt, tenant.name, model.desc.name);
        print_events(&history);
        if (!*stored && history.count == 0)
            say_unknown();
        return *stored ? 0 : walk_others(link, NULL, &reach, tenant.index, model.index, prompt);
    }
    json_t *others = json_array();
    int err = *stored ? 0 : walk_others(link, others, &reach, tenant.index, model.index, prompt);
    if (err < 0) {
        json_decref(others);
        return err;
    }
    char key[65];
    larder_hex(key, reach.miss.bytes, 32);
    json_t *json = json_pack(
        "{s:s, s:s, s:I, s:I, s:i, s:i, s:i, s:s, s:o, s:o}", "tenant", tenant.name, "model",
        model.desc.name, "tokens", (json_int_t)prompt->token_count, "tokens_stored",
        (json_int_t)reach.tokens, "blocks_stored", (int)reach.blocks, "blocks_exact",
        (int)reach.exact_blocks, "blocks_in_host", (int)reach.host_blocks, "quality",
        text_quality(reach.worst), "events", events_json(&history), "others", others);
    if (json && !*stored)
        json_object_set_new(json, "missing_key", json_string(key));
    return print_json(json);
}

static int why_tokens(struct link *link, const struct command_options *options, bool *stored)
{
    struct wire_admin_status_ok status;
    LARDER_TRY(link_status(link, &status));
    if (status.block_tokens < 1 || status.block_tokens > LARDER_BLOCK_TOKENS_MAX)
        return larder_fail(LARDER_EPROTO, "larderd's block_tokens=%u", status.block_tokens);
    if (options->extra && strlen(options->extra) > LARDER_EXTRA_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "--extra is longer than %u bytes",
                           LARDER_EXTRA_BYTES_MAX);
    uint32_t *tokens;
    struct prompt prompt = {.extra = options->extra, .block_tokens = status.block_tokens};
    LARDER_TRY(tokens_read(options->tokens, &tokens, &prompt.token_count));
    prompt.tokens = tokens;
    int err = report(link, options, &prompt, stored);
    larder_free(tokens);
    return err;
}

int command_why(const struct command_options *options, int argc, char **argv)
{
    if ((argc == 1) == (options->tokens != NULL))
        return command_failed(larder_fail(-EINVAL, "give either a KEY or --tokens FILE"));
    struct link *link;
    bool stored = false;
    int err = link_open(&link, options->socket);
    if (err < 0)
        return command_failed(err);
    err = argc == 1 ? why_key(link, options, argv[0], &stored) : why_tokens(link, options, &stored);
    link_close(link);
    if (err < 0)
        return command_failed(err);
    return stored ? COMMAND_OK : COMMAND_PROBLEM;
}
