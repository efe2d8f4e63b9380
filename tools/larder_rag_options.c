/* SPDX-License-Identifier: Apache-2.0 */
/* larder_rag_options.c - options of `larder rag`. */
#include <argp.h>
#include <errno.h>
#include <stdlib.h>

#include "tools/larder_commands.h"

enum {
    OPTION_CATALOGUE = 512,
    OPTION_CHUNKS,
    OPTION_CHUNK_BYTES,
    OPTION_COMPARE,
    OPTION_DEADLINE,
    OPTION_LINES,
    OPTION_METHOD,
    OPTION_NAME,
    OPTION_TEMPLATE,
    OPTION_THREADS,
    OPTION_TOP,
};

static const struct argp_option rag_options[] = {
    {"model", 'm', "DIR", 0, "The model's directory", 0},
    {"catalogue", OPTION_CATALOGUE, "FILE", 0, "Default: ~/.local/share/larder/rag", 0},
    {"threads", OPTION_THREADS, "N", 0, "Default: as many as there are cores", 0},
    {0, 0, 0, 0, "Of add FILE...:", 2},
    {"chunk-bytes", OPTION_CHUNK_BYTES, "N", 0, "At most so long; default: 1024", 0},
    {"name", OPTION_NAME, "NAME", 0, "What the chunks of FILE are called; default: as it is", 0},
    {0, 0, 0, 0, "Of ask QUESTION:", 3},
    {"chunks", OPTION_CHUNKS, "NAME,...", 0, "In this order; wildcards too; default: all", 0},
    {"top", OPTION_TOP, "K", 0, "Of these only the K that share most words with the question", 0},
    {"method", OPTION_METHOD, "TEXT", 0,
     "How to blend: \"cacheblend r=.15\"; default: the worker's", 0},
    {"deadline-ms", OPTION_DEADLINE, "N", 0, "Of blending; then all is computed; default: 60000",
     0},
    {"template", OPTION_TEMPLATE, "TEXT", 0,
     "What stands behind the chunks, {} in it for the question; default: \"Q: {}\", and \"A: \" on "
     "a line of its own",
     0},
    {"tokens", 'n', "N", 0, "At most so many in the answer; default: 64", 0},
    {"lines", OPTION_LINES, NULL, 0, "The answer does not end with its first line", 0},
    {"compare", OPTION_COMPARE, NULL, 0, "Answer a second time, with everything computed", 0},
    {0},
};

static uint32_t parse_number(struct argp_state *state, const char *text, uint32_t least,
                             uint32_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || text[0] < '0' || text[0] > '9' || value < least || value > most)
        argp_error(state, "'%s' is not a number from %u to %u", text, least, most);
    return (uint32_t)value;
}

static error_t parse_rag(int key, char *text, struct argp_state *state)
{
    struct command_options *options = state->input;
    struct rag_options *rag = &options->rag;
    switch (key) {
    case 'm':
        options->model = text;
        return 0;
    case 'n':
        rag->tokens = parse_number(state, text, 1, 1u << 22);
        return 0;
    case OPTION_CATALOGUE:
        rag->catalogue = text;
        return 0;
    case OPTION_CHUNKS:
        rag->chunks = text;
        return 0;
    case OPTION_CHUNK_BYTES:
        rag->chunk_bytes = parse_number(state, text, 16, 4u << 20);
        return 0;
    case OPTION_COMPARE:
        rag->compare = true;
        return 0;
    case OPTION_DEADLINE:
        rag->deadline_ms = parse_number(state, text, 1, UINT32_MAX);
        return 0;
    case OPTION_LINES:
        rag->lines = true;
        return 0;
    case OPTION_METHOD:
        rag->method = text;
        return 0;
    case OPTION_NAME:
        rag->name = text;
        return 0;
    case OPTION_TEMPLATE:
        rag->template = text;
        return 0;
    case OPTION_THREADS:
        options->threads = parse_number(state, text, 0, 1024);
        return 0;
    case OPTION_TOP:
        rag->top = parse_number(state, text, 1, UINT32_MAX);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp rag_parser = {.options = rag_options, .parser = parse_rag};
