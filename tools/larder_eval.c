/* SPDX-License-Identifier: Apache-2.0 */
/* larder-eval(1): what recipes cost. Prefixes of held-out text go through each recipe and back, and
 * the model reads on with what came back: size, divergence of its predictions, errors, speeds.
 */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "tools/eval/claims.h"
#include "tools/eval/kvtuner.h"
#include "tools/eval/measure.h"
#include "tools/eval/plot.h"
#include "tools/eval/recipes.h"
#include "tools/eval/report.h"
#include "tools/eval/summary.h"
#include "tools/larder_eval.h"
#include "tools/larder_text.h"

#define RECIPES_MAX     256u
#define SAMPLES_DEFAULT 64u
#define SAMPLES_QUICK   8u

const char *argp_program_version = "larder-eval " LARDER_VERSION;

struct command_line {
    const char *model;
    const char *text;      /* NULL: the model's heldout.txt */
    const char *questions; /* NULL: the model's eval_samples.json, if there is one */
    const char *profile;   /* NULL: the model's profile.safetensors, if there is one */
    const char *csv;
    const char *png;
    const char *recipes[RECIPES_MAX];
    const char *families[RECIPES_MAX];
    uint32_t recipe_count;
    uint32_t family_count;
    uint32_t samples;
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
    {"text", 't', "FILE", 0, "Text the model never saw (DIR/heldout.txt)", 0},
    {"questions", 'Q', "FILE", 0, "Facts and questions (DIR/eval_samples.json, if it is there)", 0},
    {"profile", 'p', "FILE", 0, "Profile of the model (DIR/profile.safetensors, if it is there)",
     0},
    {"recipe", 'r', "TEXT", 0, "Measure this recipe, not the table; may be given several times", 0},
    {"family", 'f', "NAME", 0, "Only this family of the table; may be given several times", 0},
    {"samples", 'n', "N", 0, "Prefixes of each kind (64)", 0},
    {"jobs", 'J', "N", 0, "Threads (as many as there are cores)", 0},
    {"quick", 'q', NULL, 0, "Eight samples, the main sizes: a look in less than 45 s", 0},
    {"json", 'j', NULL, 0, "Print JSON for programs", 0},
    {"csv", OPTION_CSV, "FILE", 0, "Write the rows as CSV", 0},
    {"png", OPTION_PNG, "FILE", 0, "Draw size against KL (needs gnuplot)", 0},
    {"list", OPTION_LIST, NULL, 0, "List the table's recipes", 0},
    {0},
};

static void add_name(struct argp_state *state, const char **list, uint32_t *count, const char *name)
{
    if (*count == RECIPES_MAX)
        argp_error(state, "more than %u recipes or families", RECIPES_MAX);
    list[(*count)++] = name;
}

static bool is_family(const char *name)
{
    for (uint32_t i = 0; i < eval_method_count; i++)
        if (strcmp(eval_methods[i].family, name) == 0)
            return true;
    return false;
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    struct command_line *line = state->input;
    switch (key) {
    case 'm':
        line->model = argument;
        return 0;
    case 't':
        line->text = argument;
        return 0;
    case 'Q':
        line->questions = argument;
        return 0;
    case 'p':
        line->profile = argument;
        return 0;
    case 'r':
        add_name(state, line->recipes, &line->recipe_count, argument);
        return 0;
    case 'f':
        if (!is_family(argument))
            argp_error(state, "--family=%s is not in the table; --list shows it", argument);
        add_name(state, line->families, &line->family_count, argument);
        return 0;
    case 'n':
        line->samples = eval_option_number(state, "samples", argument, EVAL_SAMPLES_MAX);
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
    case ARGP_KEY_END:
        if (line->recipe_count > 0 && line->family_count > 0)
            argp_error(state, "--recipe and --family exclude each other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp parser = {
    .options = options,
    .parser = parse_option,
    .doc = "larder-eval - measures what recipes cost: size, and what a model makes of the KV that "
           "comes back\v"
           "Without --recipe and --family the whole table is measured. larder-eval(1) explains the "
           "figures.",
};

/* --- trials ----------------------------------------------------------------------------------- */

struct trials {
    struct eval_trial *list;
    uint32_t count;
    uint32_t capacity;
    struct eval_subject subject;
};

static int add_trial(struct trials *trials, const char *family, const char *name, const char *text)
{
    if (trials->count == trials->capacity) {
        uint32_t capacity = trials->capacity ? 2 * trials->capacity : 32;
        void *list = larder_realloc(trials->list, capacity * sizeof(*trials->list));
        if (!list)
            return larder_fail(-ENOMEM, "no memory for %u recipes", capacity);
        trials->list = list;
        trials->capacity = capacity;
    }
    LARDER_TRY(eval_trial_open(&trials->list[trials->count], &trials->subject, family, name, text));
    trials->count++;
    return 0;
}

/* The text with `coder` in place of each mark. */
static int fill_mark(char out[LARDER_RECIPE_BYTES_MAX + 1], const char *text, const char *coder)
{
    size_t used = 0;
    for (; *text; text++) {
        const char *part = *text == '%' ? coder : text;
        size_t bytes = *text == '%' ? strlen(coder) : 1;
        if (used + bytes > LARDER_RECIPE_BYTES_MAX)
            return larder_fail(LARDER_ELIMIT, "a recipe of more than %u bytes",
                               LARDER_RECIPE_BYTES_MAX);
        memcpy(out + used, part, bytes);
        used += bytes;
    }
    out[used] = 0;
    return 0;
}

/* One that cannot even be written down, with the message of why. */
static int add_failed(struct trials *trials, const struct eval_method *method)
{
    char why[256];
    snprintf(why, sizeof(why), "%s", larder_error_message());
    LARDER_TRY(add_trial(trials, method->family, method->label, "raw"));
    struct eval_trial *trial = &trials->list[trials->count - 1];
    snprintf(trial->error, sizeof(trial->error), "%s", why);
    atomic_store(&trial->failed, true);
    return 0;
}

static int add_method(struct trials *trials, const struct eval_method *method)
{
    char text[LARDER_RECIPE_BYTES_MAX + 1];
    char made[LARDER_RECIPE_BYTES_MAX + 1];
    char name[64];
    const char *marked = method->text;
    double budget;
    if (sscanf(marked, "budget=%lf", &budget) == 1) {
        int err = eval_kvtuner(made, sizeof(made), trials->subject.profile, budget);
        if (err == -ENOMEM)
            return err;
        if (err < 0) /* the reason is told with the others that were not measured */
            return add_failed(trials, method);
        marked = made;
    }
    LARDER_TRY(fill_mark(text, marked, ""));
    LARDER_TRY(add_trial(trials, method->family, method->label, text));
    if (!strchr(marked, '%'))
        return 0;
    LARDER_TRY(fill_mark(text, marked, " | rans"));
    snprintf(name, sizeof(name), "%s, rans", method->label);
    LARDER_TRY(add_trial(trials, method->family, name, text));
    trials->list[trials->count - 1].is_coded = true;
    return 0;
}

static bool is_wanted(const struct command_line *line, const struct eval_method *method)
{
    if (line->quick && !method->is_quick)
        return false;
    for (uint32_t i = 0; i < line->family_count; i++)
        if (strcmp(line->families[i], method->family) == 0)
            return true;
    return line->family_count == 0;
}

static int open_trials(struct trials *trials, const struct command_line *line)
{
    for (uint32_t i = 0; i < line->recipe_count; i++) {
        LARDER_TRY(add_trial(trials, "-", line->recipes[i], line->recipes[i]));
        if (trials->list[i].error[0])
            return larder_fail(-EINVAL, "%s: %s", line->recipes[i], trials->list[i].error);
    }
    for (uint32_t i = 0; i < eval_method_count && line->recipe_count == 0; i++)
        if (is_wanted(line, &eval_methods[i]))
            LARDER_TRY(add_method(trials, &eval_methods[i]));
    return 0;
}

/* --- the work --------------------------------------------------------------------------------- */

static void show_step(void *context, uint64_t done, uint64_t all)
{
    progress_step(context, "recipes on prefixes", done, all);
}

static int measure(struct eval_work *work, const struct larder_model_desc *model)
{
    struct progress progress;
    work->progress = (struct eval_progress){show_step, &progress};
    work->energies = larder_alloc_zero((size_t)work->samples->count * model->layers * EVAL_PARTS,
                                       sizeof(*work->energies));
    if (!work->energies)
        return larder_fail(-ENOMEM, "no memory for the figures");
    progress_start(&progress);
    int err = eval_measure(work);
    progress_end(&progress);
    return err;
}

static int write_csv(const struct eval_report *report, const char *path)
{
    FILE *file;
    LARDER_TRY(eval_create(&file, path));
    eval_print_csv(report, file);
    return eval_finish(file, path);
}

static int print(const struct eval_report *report, const struct command_line *line)
{
    if (line->csv)
        LARDER_TRY(write_csv(report, line->csv));
    if (line->png)
        LARDER_TRY(eval_plot(report, line->png));
    if (!line->json) {
        eval_print_table(report, stdout);
        if (report->claims)
            eval_claims_print(report->claims, stdout);
        return 0;
    }
    return eval_print_json(eval_json(report));
}

static int report_all(const struct eval_work *work, const struct larder_model_desc *model,
                      const struct command_line *line)
{
    struct eval_rows rows;
    struct eval_claims claims;
    LARDER_TRY(eval_rows_open(&rows, work, model));
    bool is_table = line->recipe_count == 0 && line->family_count == 0;
    int err = is_table ? eval_claims_make(&claims, &rows) : 0;
    const struct eval_report report = {
        .work = work, .rows = &rows, .claims = is_table ? &claims : NULL, .model = model};
    if (err == 0)
        err = print(&report, line);
    eval_rows_close(&rows);
    return err;
}

/* --- files ------------------------------------------------------------------------------------ */

static int open_samples(struct eval_samples *out, const struct larder_model_config *config,
                        const struct command_line *line)
{
    char text[PATH_MAX];
    char questions[PATH_MAX];
    return eval_samples_open(
        out, config, eval_choose_file(text, line->model, line->text, "heldout.txt", EVAL_IS_NEEDED),
        eval_choose_file(questions, line->model, line->questions, "eval_samples.json",
                         EVAL_IF_THERE),
        line->samples);
}

static int run(const struct command_line *line)
{
    char path[PATH_MAX];
    struct eval_engine *engine; /* for what it says of the model */
    LARDER_TRY(eval_engine_open(&engine, line->model, 1));
    struct eval_profile profile;
    struct eval_samples samples = {0};
    int err = eval_profile_open(&profile, eval_choose_file(path, line->model, line->profile,
                                                           "profile.safetensors", EVAL_IF_THERE));
    if (err == 0)
        err = open_samples(&samples, eval_engine_config(engine), line);
    struct trials trials = {.subject = {.model = eval_engine_desc(engine),
                                        .profile = profile.profile,
                                        .samples = &samples}};
    if (err == 0)
        err = open_trials(&trials, line);
    struct eval_work work = {.model_directory = line->model,
                             .samples = &samples,
                             .trials = trials.list,
                             .trial_count = trials.count,
                             .jobs = line->jobs};
    if (err == 0)
        err = measure(&work, trials.subject.model);
    if (err == 0)
        err = report_all(&work, trials.subject.model, line);
    larder_free(work.energies);
    for (uint32_t i = 0; i < trials.count; i++)
        eval_trial_close(&trials.list[i]);
    larder_free(trials.list);
    eval_samples_close(&samples);
    eval_profile_close(&profile);
    eval_engine_close(engine);
    return err;
}

static void print_list(void)
{
    for (uint32_t i = 0; i < eval_method_count; i++)
        printf("%-12s %-16s %s\n", eval_methods[i].family, eval_methods[i].label,
               eval_methods[i].text);
}

int main(int argc, char **argv)
{
    struct command_line line = {.model = EVAL_MODEL_DEFAULT};
    argp_err_exit_status = 2;
    if (argc > 1 && strcmp(argv[1], "blend") == 0)
        return eval_blend_command(argc - 1, argv + 1);
    argp_parse(&parser, argc, argv, 0, NULL, &line);
    if (line.list) {
        print_list();
        return 0;
    }
    if (line.jobs == 0)
        line.jobs = eval_jobs_default();
    if (line.samples == 0)
        line.samples = line.quick ? SAMPLES_QUICK : SAMPLES_DEFAULT;
    int err = run(&line);
    if (err < 0)
        fprintf(stderr, "larder-eval: %s\n", larder_error_message());
    return err < 0 ? 1 : 0;
}
