/* SPDX-License-Identifier: Apache-2.0 */
/* larder-sim(1): how often prompts of a trace would have been found, by capacity and policy. Runs
 * the very policies of storage/, and a clairvoyant one beside them.
 */
#include <argp.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "storage/policy.h"
#include "tools/larder_text.h"
#include "tools/sim/simulate.h"
#include "tools/sim/trace.h"

#define CAPACITIES_MAX 64u
#define NUMBER_MAX     (1u << 28)
#define POLICIES_MAX   16u

const char *argp_program_version = "larder-sim " LARDER_VERSION;

struct command_line {
    const char *trace;
    uint32_t capacities[CAPACITIES_MAX];
    uint32_t capacity_count;
    const char *policies[POLICIES_MAX];
    uint32_t policy_count;
    uint32_t requests;
    uint32_t mark;
    uint32_t block_tokens;
    bool admission;
    bool holes;
    bool json;
};

static const struct argp_option options[] = {
    {"trace", 't', "FILE", 0, "The requests, a JSON object a line", 0},
    {"capacity-blocks", 'c', "N", 0, "Blocks that the tier holds; may be given several times", 0},
    {"policy", 'p', "NAME", 0,
     "value (default), lru, fifo, lfu, s3fifo, arc, belady, or all; may be given several times", 0},
    {"requests", 'n', "N", 0, "Only the first N requests of the trace", 0},
    {"mark", 'm', "N", 0, "With --json: hits of the first N requests beside those of all", 0},
    {"block-tokens", 'b', "N", 0, "Tokens of a block of the trace (default 512)", 0},
    {"admission", 'a', NULL, 0,
     "Store a block in a full tier only if the policy finds it worth the write", 0},
    {"holes", 'h', NULL, 0,
     "Policies as in their papers, which know no chains and leave holes in them", 0},
    {"json", 'j', NULL, 0, "Print JSON for programs, an object a line", 0},
    {0},
};

static uint32_t parse_number(struct argp_state *state, const char *name, const char *argument)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(argument, &end, 10);
    if (errno || *end || end == argument || value == 0 || value > NUMBER_MAX)
        argp_error(state, "--%s=%s is not within 1..%u", name, argument, NUMBER_MAX);
    return (uint32_t)value;
}

static void add_policy(struct argp_state *state, struct command_line *line, const char *name)
{
    if (line->policy_count == POLICIES_MAX)
        argp_error(state, "more than %u policies", POLICIES_MAX);
    line->policies[line->policy_count++] = name;
}

static void add_policies(struct argp_state *state, struct command_line *line, const char *name)
{
    bool all = strcmp(name, "all") == 0;
    bool known = all;
    for (uint32_t i = 0; larder_policy_name(i); i++) {
        if (all || strcmp(name, larder_policy_name(i)) == 0) {
            add_policy(state, line, larder_policy_name(i));
            known = true;
        }
    }
    if (all || strcmp(name, BELADY) == 0)
        add_policy(state, line, BELADY);
    else if (!known)
        argp_error(state, "--policy=%s is not known; see --help", name);
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct command_line *line = state->input;
    switch (key) {
    case 't':
        line->trace = argument;
        return 0;
    case 'c':
        if (line->capacity_count == CAPACITIES_MAX)
            argp_error(state, "more than %u capacities", CAPACITIES_MAX);
        line->capacities[line->capacity_count++] = parse_number(state, "capacity-blocks", argument);
        return 0;
    case 'p':
        add_policies(state, line, argument);
        return 0;
    case 'n':
        line->requests = parse_number(state, "requests", argument);
        return 0;
    case 'm':
        line->mark = parse_number(state, "mark", argument);
        return 0;
    case 'b':
        line->block_tokens = parse_number(state, "block-tokens", argument);
        return 0;
    case 'a':
        line->admission = true;
        return 0;
    case 'h':
        line->holes = true;
        return 0;
    case 'j':
        line->json = true;
        return 0;
    case ARGP_KEY_END:
        if (!line->trace)
            argp_error(state, "--trace is missing");
        if (line->capacity_count == 0)
            argp_error(state, "--capacity-blocks is missing");
        if (line->policy_count == 0)
            add_policy(state, line, larder_policy_name(0));
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static double ratio(uint64_t part, uint64_t all)
{
    return all ? (double)part / (double)all : 0;
}

static void print_result(const struct command_line *line, const struct simulation *simulation,
                         const struct simulation_result *result)
{
    if (!line->json) {
        printf("%10u  %-8s %9.4f %9.4f %12llu %10.3f %10.2f\n", simulation->capacity_blocks,
               simulation->policy, ratio(result->hits, result->refs),
               ratio(result->hits_late, result->refs_late), (unsigned long long)result->hits,
               ratio(result->written, result->hits), (double)result->bytes_ram / (1 << 20));
        return;
    }
    json_t *object = json_pack(
        "{s:s, s:I, s:b, s:b, s:I, s:I, s:I, s:f, s:f, s:I, s:f, s:I, s:f}", "policy",
        simulation->policy, "capacity_blocks", (json_int_t)simulation->capacity_blocks, "holes",
        (int)simulation->holes, "admission", (int)simulation->admission, "references",
        (json_int_t)result->refs, "hits", (json_int_t)result->hits, "hits_marked",
        (json_int_t)result->hits_marked, "hit_ratio", ratio(result->hits, result->refs),
        "hit_ratio_second_half", ratio(result->hits_late, result->refs_late), "blocks_written",
        (json_int_t)result->written, "blocks_written_per_hit", ratio(result->written, result->hits),
        "policy_bytes", (json_int_t)result->bytes_ram, "seconds", result->seconds);
    if (object)
        json_dumpf(object, stdout, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(object);
}

struct task {
    struct progress progress;
    const struct simulation *simulation;
    uint64_t all;
};

static void show_step(void *context, uint64_t done)
{
    struct task *task = context;
    progress_step(&task->progress, task->simulation->policy, done, task->all);
}

static int run_all(const struct command_line *line, const struct trace *trace)
{
    if (!line->json) {
        printf("%s: %u requests, %u references, %u blocks\n", line->trace, trace->request_count,
               trace->ref_count, trace->block_count);
        printf("%10s  %-8s %9s %9s %12s %10s %10s\n", "capacity", "policy", "hit ratio", "2nd half",
               "hits", "writes/hit", "MiB RAM");
    }
    for (uint32_t c = 0; c < line->capacity_count; c++) {
        for (uint32_t p = 0; p < line->policy_count; p++) {
            const struct simulation simulation = {
                .policy = line->policies[p],
                .capacity_blocks = line->capacities[c],
                .mark = line->mark,
                .admission = line->admission,
                .holes = line->holes && strcmp(line->policies[p], larder_policy_name(0)) != 0,
            };
            struct simulation_result result;
            struct task task = {.simulation = &simulation, .all = trace->request_count};
            progress_start(&task.progress);
            int err = simulate(&result, trace, &simulation, show_step, &task);
            progress_end(&task.progress);
            LARDER_TRY(err);
            print_result(line, &simulation, &result);
            fflush(stdout);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct command_line line = {.block_tokens = 512};
    const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .doc =
            "Runs the eviction policies of larder's storage on a trace of prompts."
            "\vThe hit ratio counts a block only if every block before it in its prompt hit too. "
            "\"writes/hit\" counts the blocks stored for each block hit.",
    };
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    struct trace trace;
    int err = trace_load(&trace, line.trace, line.block_tokens, line.requests);
    if (err == 0) {
        err = run_all(&line, &trace);
        trace_free(&trace);
    }
    if (err < 0)
        fprintf(stderr, "larder-sim: %s\n", larder_error_message());
    return err < 0 ? 1 : 0;
}
