/* SPDX-License-Identifier: Apache-2.0 */
/* larder-eval blend: what methods of blending get out of chunks whose KV was computed apart, on
 * fresh made-up facts.
 */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/blend/blend.h"
#include "tools/eval/blend_claims.h"
#include "tools/eval/blend_measure.h"
#include "tools/eval/blend_methods.h"
#include "tools/eval/blend_report.h"
#include "tools/eval/blend_rows.h"
#include "tools/larder_eval.h"
#include "tools/larder_text.h"

#define NAMES_MAX         64u
#define GROUPS_MAX        (EVAL_PEOPLE_MAX - 1)
#define QUESTIONS_MAX     1000000u
#define QUESTIONS_DEFAULT 2000u
#define QUESTIONS_QUICK   96u
#define TURNS_DEFAULT     5u

struct command_line {
    const char *model;
    const char *profile; /* NULL: the model's profile.safetensors, if there is one */
    const char *csv;
    const char *png;
    const char *methods[NAMES_MAX];
    const char *recipes[NAMES_MAX];
    uint32_t people[GROUPS_MAX];
    uint32_t method_count;
    uint32_t recipe_count;
    uint32_t people_count;
    uint32_t questions;
    uint32_t turns;
    uint32_t seed;
    uint32_t jobs;
    bool quick;
    bool json;
    bool list;
};

enum {
    OPTION_CSV = 256,
    OPTION_LIST,
    OPTION_PNG,
};

static const struct argp_option options[] = {
    {"model", 'm', "DIR", 0, "Model directory (" EVAL_MODEL_DEFAULT ")", 0},
    {"method", 'M', "TEXT", 0, "Measure this method, not the table; may be given several times", 0},
    {"recipe", 'r', "TEXT", 0, "Chunks come back from this recipe; may be given several times", 0},
    {"profile", 'p', "FILE", 0, "Profile for recipes (DIR/profile.safetensors, if it is there)", 0},
    {"people", 'P', "N", 0, "Facts are about so many, two chunks each; may be given several times",
     0},
    {"questions", 'n', "N", 0, "At least so many of each kind, for each number of people (2000)",
     0},
    {"turns", 'T', "N", 0, "Questions asked one after another, besides (5)", 0},
    {"seed", 's', "N", 0, "Other facts (1)", 0},
    {"jobs", 'J', "N", 0, "Threads (as many as there are cores)", 0},
    {"quick", 'q', NULL, 0, "A hundred questions of each kind, main methods: less than 45 s", 0},
    {"json", 'j', NULL, 0, "Print JSON for programs", 0},
    {"csv", OPTION_CSV, "FILE", 0, "Write the rows as CSV", 0},
    {"png", OPTION_PNG, "FILE", 0, "Draw recomputed share against accuracy and KL (gnuplot)", 0},
    {"list", OPTION_LIST, NULL, 0, "List the table's methods, and how each is written", 0},
    {0},
};

static void add_name(struct argp_state *state, const char **list, uint32_t *count, const char *name)
{
    if (*count == NAMES_MAX)
        argp_error(state, "more than %u methods or recipes", NAMES_MAX);
    list[(*count)++] = name;
}

static void add_people(struct argp_state *state, struct command_line *line, const char *argument)
{
    uint32_t people = eval_option_number(state, "people", argument, EVAL_PEOPLE_MAX);
    if (people < 2)
        argp_error(state,
                   "--people=1: at least 2 are needed for a question to have a wrong answer");
    for (uint32_t i = 0; i < line->people_count; i++)
        if (line->people[i] == people)
            return;
    line->people[line->people_count++] = people;
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct command_line *line = state->input;
    switch (key) {
    case 'm':
        line->model = argument;
        return 0;
    case 'M':
        add_name(state, line->methods, &line->method_count, argument);
        return 0;
    case 'r':
        add_name(state, line->recipes, &line->recipe_count, argument);
        return 0;
    case 'p':
        line->profile = argument;
        return 0;
    case 'P':
        add_people(state, line, argument);
        return 0;
    case 'n':
        line->questions = eval_option_number(state, "questions", argument, QUESTIONS_MAX);
        return 0;
    case 'T':
        line->turns = eval_option_number(state, "turns", argument, EVAL_TURNS_MAX);
        return 0;
    case 's':
        line->seed = eval_option_number(state, "seed", argument, UINT32_MAX);
        return 0;
    case 'J':
        line->jobs = eval_option_number(state, "jobs", argument, EVAL_JOBS_MAX);
        return 0;
    case 'q':
        line->quick = true;
        return 0;
    case 'j':
        line->json = true;
        return 0;
    case OPTION_CSV:
        line->csv = argument;
        return 0;
    case OPTION_PNG:
        line->png = argument;
        return 0;
    case OPTION_LIST:
        line->list = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .doc = "larder-eval blend - measures what a model still knows when the KV of its prompt is put "
           "together from chunks\v"
           "Without --method, --recipe and --people the whole table is measured. larder-eval(1) "
           "explains the figures, docs/BLENDING.md the methods.",
};

/* --- what is measured ------------------------------------------------------------------------- */

struct plan {
    const struct command_line *line;
    struct eval_profile profile;
    int64_t check_layer;
    struct eval_blend_recipe recipes[NAMES_MAX + 1];
    uint32_t recipe_count;
    struct eval_blend_work works[GROUPS_MAX];
    uint32_t work_count;
};

static bool is_table(const struct command_line *line)
{
    return line->method_count == 0 && line->recipe_count == 0 && line->people_count == 0;
}

static int add_recipe(struct plan *plan, const char *text)
{
    struct eval_blend_recipe *recipe = &plan->recipes[plan->recipe_count];
    *recipe = (struct eval_blend_recipe){.text = text};
    if (strcmp(text, EVAL_BLEND_RAW) != 0)
        LARDER_TRY(larder_recipe_open(&recipe->recipe, text, plan->profile.profile));
    plan->recipe_count++;
    return 0;
}

static int add_trial(struct eval_blend_work *work, const char *family, const char *method,
                     const struct eval_blend_recipe *chunks)
{
    void *list = larder_realloc(work->trials, (work->trial_count + 1) * sizeof(*work->trials));
    if (!list)
        return larder_fail(-ENOMEM, "no memory for %u methods", work->trial_count + 1);
    work->trials = list;
    LARDER_TRY(
        eval_blend_trial_open(&work->trials[work->trial_count], work, family, method, chunks));
    work->trial_count++;
    return 0;
}

/* Of the table: all where the promises are made, the main ones elsewhere. */
static bool is_wanted(const struct plan *plan, const struct eval_blend_work *work,
                      const struct eval_blend_recipe *chunks,
                      const struct eval_blend_method *method)
{
    const struct command_line *line = plan->line;
    if (line->quick)
        return method->is_quick;
    bool is_whole = line->people_count > 0 || work->people == EVAL_BLEND_PEOPLE;
    return method->is_main || (is_whole && !chunks->recipe);
}

static int add_trials(struct plan *plan, struct eval_blend_work *work,
                      const struct eval_blend_recipe *chunks)
{
    const struct command_line *line = plan->line;
    for (uint32_t i = 0; i < line->method_count; i++)
        LARDER_TRY(add_trial(work, "named", line->methods[i], chunks));
    for (uint32_t i = 0; i < eval_blend_method_count && line->method_count == 0; i++)
        if (is_wanted(plan, work, chunks, &eval_blend_methods[i]))
            LARDER_TRY(
                add_trial(work, eval_blend_methods[i].family, eval_blend_methods[i].text, chunks));
    return 0;
}

static int add_work(struct plan *plan, uint32_t people)
{
    const struct command_line *line = plan->line;
    uint32_t of_sample = people * EVAL_QUESTIONS_OF_EACH;
    struct eval_blend_work *work = &plan->works[plan->work_count++];
    *work = (struct eval_blend_work){.model = line->model,
                                     .people = people,
                                     .samples = (line->questions + of_sample - 1) / of_sample,
                                     .turns = line->turns,
                                     .jobs = line->jobs,
                                     .seed = line->seed,
                                     .check_layer = plan->check_layer};
    work->references = larder_alloc_zero(work->samples, sizeof(*work->references));
    if (!work->references)
        return larder_fail(-ENOMEM, "no memory for the answers of %u samples", work->samples);
    /* Recipes of the table cost as much again as its methods: with one number of people. */
    bool has_recipes = !is_table(line) || people == EVAL_BLEND_PEOPLE;
    for (uint32_t i = 0; i < (has_recipes ? plan->recipe_count : 1); i++)
        LARDER_TRY(add_trials(plan, work, &plan->recipes[i]));
    return 0;
}

static int check_methods(const struct command_line *line)
{
    struct larder_model_config config;
    LARDER_TRY(larder_model_config_load(&config, line->model));
    for (uint32_t i = 0; i < line->method_count; i++) {
        if (strlen(line->methods[i]) >= EVAL_BLEND_TEXT_MAX)
            return larder_fail(-EINVAL, "a method of %zu bytes; at most %u fit",
                               strlen(line->methods[i]), EVAL_BLEND_TEXT_MAX - 1);
        LARDER_TRY(larder_blend_check_method(line->methods[i], config.layers));
    }
    return 0;
}

/* The check layer that `larder calibrate` chose for this model. */
static int find_check_layer(struct plan *plan)
{
    const struct larder_profile *profile = plan->profile.profile;
    plan->check_layer = -1;
    if (!profile || !larder_profile_has(profile, LARDER_PROFILE_CHECK_LAYER))
        return 0;
    const void *layer;
    uint64_t shape = 1;
    LARDER_TRY(larder_profile_find(profile, &layer, LARDER_PROFILE_CHECK_LAYER, LARDER_PROFILE_I32,
                                   &shape, 1));
    plan->check_layer = *(const int32_t *)layer;
    return 0;
}

static int open_plan(struct plan *plan)
{
    const struct command_line *line = plan->line;
    char path[PATH_MAX];
    LARDER_TRY(check_methods(line));
    LARDER_TRY(
        eval_profile_open(&plan->profile, eval_choose_file(path, line->model, line->profile,
                                                           "profile.safetensors", EVAL_IF_THERE)));
    LARDER_TRY(find_check_layer(plan));
    for (uint32_t i = 0; i < line->recipe_count; i++)
        LARDER_TRY(add_recipe(plan, line->recipes[i]));
    if (line->recipe_count == 0)
        LARDER_TRY(add_recipe(plan, EVAL_BLEND_RAW));
    for (uint32_t i = 0; i < eval_blend_recipe_count && is_table(line) && !line->quick; i++)
        LARDER_TRY(add_recipe(plan, eval_blend_recipes[i]));
    static const uint32_t table[] = {EVAL_BLEND_PEOPLE, 4, 2};
    for (uint32_t i = 0; i < LARDER_COUNT_OF(table) && line->people_count == 0; i++)
        if (table[i] == EVAL_BLEND_PEOPLE || (is_table(line) && !line->quick))
            LARDER_TRY(add_work(plan, table[i]));
    for (uint32_t i = 0; i < line->people_count; i++)
        LARDER_TRY(add_work(plan, line->people[i]));
    return 0;
}

static void close_plan(struct plan *plan)
{
    for (uint32_t i = 0; i < plan->work_count; i++) {
        struct eval_blend_work *work = &plan->works[i];
        for (uint32_t k = 0; k < work->trial_count; k++)
            eval_blend_trial_close(&work->trials[k]);
        larder_free(work->trials);
        larder_free(work->references);
    }
    for (uint32_t i = 0; i < plan->recipe_count; i++)
        larder_recipe_close(plan->recipes[i].recipe);
    eval_profile_close(&plan->profile);
}

/* --- the work --------------------------------------------------------------------------------- */

static void show_step(void *context, uint64_t done, uint64_t all)
{
    progress_step(context, "methods on samples", done, all);
}

static int measure(struct plan *plan, struct eval_blend_rows *rows)
{
    for (uint32_t i = 0; i < plan->work_count; i++) {
        struct eval_blend_work *work = &plan->works[i];
        struct progress progress;
        work->progress = (struct eval_progress){show_step, &progress};
        progress_start(&progress);
        int err = eval_blend_measure(work);
        progress_end(&progress);
        LARDER_TRY(err);
        LARDER_TRY(eval_blend_rows_add(rows, work));
    }
    return 0;
}

static int write_csv(const struct eval_blend_report *report, const char *path)
{
    FILE *file;
    LARDER_TRY(eval_create(&file, path));
    eval_blend_csv(report, file);
    return eval_finish(file, path);
}

static int print(const struct eval_blend_report *report, const struct command_line *line)
{
    if (line->csv)
        LARDER_TRY(write_csv(report, line->csv));
    if (line->png)
        LARDER_TRY(eval_blend_plot(report, line->png));
    if (line->json)
        return eval_print_json(eval_blend_json(report));
    eval_blend_print(report, stdout);
    return 0;
}

static int run(const struct command_line *line)
{
    struct plan plan = {.line = line};
    struct eval_blend_rows rows = {0};
    struct eval_claim_list claims;
    int err = open_plan(&plan);
    if (err == 0)
        err = measure(&plan, &rows);
    if (err == 0) {
        eval_blend_claims_make(&claims, &rows, plan.check_layer);
        const struct eval_blend_report report = {.rows = &rows,
                                                 .works = plan.works,
                                                 .work_count = plan.work_count,
                                                 .claims = line->method_count == 0 ? &claims : NULL,
                                                 .model = line->model};
        err = print(&report, line);
    }
    eval_blend_rows_close(&rows);
    close_plan(&plan);
    return err;
}

static void print_list(void)
{
    for (uint32_t i = 0; i < eval_blend_method_count; i++)
        printf("%-20s %s\n", eval_blend_methods[i].family, eval_blend_methods[i].text);
    puts("\nmethods, with what they take where nothing is said:");
    const struct larder_blend_method *method;
    for (uint32_t i = 0; (method = larder_blend_method(i)); i++)
        printf("%-48s %s\n", method->form, method->summary);
}

int eval_blend_command(int argc, char **argv)
{
    static char name[] = "larder-eval blend";
    struct command_line line = {.model = EVAL_MODEL_DEFAULT, .turns = TURNS_DEFAULT, .seed = 1};
    argv[0] = name;
    argp_parse(&parser, argc, argv, 0, NULL, &line);
    if (line.list) {
        print_list();
        return 0;
    }
    if (line.jobs == 0)
        line.jobs = eval_jobs_default();
    if (line.questions == 0)
        line.questions = line.quick ? QUESTIONS_QUICK : QUESTIONS_DEFAULT;
    int err = run(&line);
    if (err < 0)
        fprintf(stderr, "larder-eval blend: %s\n", larder_error_message());
    return err < 0 ? 1 : 0;
}
