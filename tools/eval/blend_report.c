/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/blend_report.h"

#include <math.h>
#include <string.h>

#include "base/bytes.h"

/* --- the table -------------------------------------------------------------------------------- */

static void print_head(const struct eval_blend_row *row, FILE *out)
{
    fprintf(out, "%u people: %u samples, %u questions of each kind; chance %.3f\n\n", row->people,
            row->samples, row->asked[EVAL_CROSS], eval_blend_row_chance(row));
    fprintf(out, "%-32s %-7s %6s  %14s  %14s  %-26s  %6s  %-13s\n", "", "", "recom-", "", "",
            "KL, nats a byte", "time /", "in turns");
    fprintf(out, "%-32s %-7s %6s  %6s %7s  %6s %7s  %8s %8s %8s  %6s  %6s %6s\n", "method",
            "chunks", "puted", "cross", "+-", "direct", "+-", "all", "cross", "direct", "prefill",
            "cross", "direct");
}

static void print_row(const struct eval_blend_row *row, FILE *out)
{
    fprintf(out,
            "%-32s %-7s %6.3f  %6.3f %7.4f  %6.3f %7.4f  %8.5f %8.5f %8.5f  %6.3f  %6.3f %6.3f\n",
            eval_blend_row_method(row), eval_blend_row_chunks(row), row->share,
            row->right[EVAL_CROSS].value, row->right[EVAL_CROSS].error,
            row->right[EVAL_DIRECT].value, row->right[EVAL_DIRECT].error, row->kl.value,
            row->kl_of[EVAL_CROSS].value, row->kl_of[EVAL_DIRECT].value, row->time,
            row->turn_right[EVAL_CROSS], row->turn_right[EVAL_DIRECT]);
}

void eval_blend_print(const struct eval_blend_report *report, FILE *out)
{
    const struct eval_blend_rows *rows = report->rows;
    fprintf(out, "%s: questions about made-up facts, the facts' KV put together from chunks\n",
            report->model);
    for (uint32_t i = 0; i < rows->count; i++) {
        const struct eval_blend_row *row = &rows->list[i];
        if (!row->trial) {
            fputc('\n', out);
            print_head(row, out);
        }
        print_row(row, out);
    }
    for (uint32_t i = 0; i < report->work_count; i++) {
        for (uint32_t k = 0; k < report->works[i].trial_count; k++) {
            const struct eval_blend_trial *trial = &report->works[i].trials[k];
            if (trial->error[0])
                fprintf(out, "\n%s over %s: not measured: %s", trial->method, trial->chunks->text,
                        trial->error);
        }
    }
    fputc('\n', out);
    if (report->claims)
        eval_claim_list_print(report->claims, out);
}

/* --- JSON ------------------------------------------------------------------------------------- */

static json_t *kind_to_json(const struct eval_blend_row *row, enum eval_kind kind)
{
    return json_pack("{s:f, s:f, s:i, s:f, s:f}", "right", row->right[kind].value, "error",
                     row->right[kind].error, "asked", (int)row->asked[kind], "kl",
                     row->kl_of[kind].value, "kl_error", row->kl_of[kind].error);
}

static json_t *turns_to_json(const struct eval_blend_row *row)
{
    json_t *cross = json_array();
    for (uint32_t i = 0; i < EVAL_TURNS_MAX; i++)
        if (row->turns[i].asked > 0)
            json_array_append_new(cross, json_pack("{s:i, s:f, s:i}", "turn", (int)i + 1, "right",
                                                   row->turns[i].right, "asked",
                                                   (int)row->turns[i].asked));
    return json_pack("{s:f, s:i, s:f, s:i, s:o}", "cross", row->turn_right[EVAL_CROSS],
                     "cross_asked", (int)row->turn_asked[EVAL_CROSS], "direct",
                     row->turn_right[EVAL_DIRECT], "direct_asked",
                     (int)row->turn_asked[EVAL_DIRECT], "cross_by_turn", cross);
}

static json_t *row_to_json(const struct eval_blend_row *row)
{
    return json_pack("{s:s, s:s, s:s, s:i, s:f, s:i, s:f, s:o, s:o, s:f, s:f, s:f, s:o}", "method",
                     eval_blend_row_method(row), "family", eval_blend_row_family(row), "chunks",
                     eval_blend_row_chunks(row), "people", (int)row->people, "chance",
                     eval_blend_row_chance(row), "samples", (int)row->samples, "recomputed_share",
                     row->share, "cross", kind_to_json(row, EVAL_CROSS), "direct",
                     kind_to_json(row, EVAL_DIRECT), "kl", row->kl.value, "kl_error", row->kl.error,
                     "time_over_prefill", row->time, "turns", turns_to_json(row));
}

json_t *eval_blend_json(const struct eval_blend_report *report)
{
    json_t *methods = json_array();
    json_t *skipped = json_array();
    for (uint32_t i = 0; i < report->rows->count; i++)
        json_array_append_new(methods, row_to_json(&report->rows->list[i]));
    for (uint32_t i = 0; i < report->work_count; i++) {
        for (uint32_t k = 0; k < report->works[i].trial_count; k++) {
            const struct eval_blend_trial *trial = &report->works[i].trials[k];
            if (trial->error[0])
                json_array_append_new(skipped,
                                      json_pack("{s:s, s:s, s:i, s:s}", "method", trial->method,
                                                "chunks", trial->chunks->text, "people",
                                                (int)report->works[i].people, "why", trial->error));
        }
    }
    return json_pack("{s:s, s:s, s:I, s:i, s:o, s:o, s:o*}", "version", LARDER_VERSION, "model",
                     report->model, "seed", (json_int_t)report->works[0].seed, "turns",
                     (int)report->works[0].turns, "methods", methods, "not_measured", skipped,
                     "summary", report->claims ? eval_claim_list_json(report->claims) : NULL);
}

/* --- CSV -------------------------------------------------------------------------------------- */

void eval_blend_csv(const struct eval_blend_report *report, FILE *out)
{
    fputs("family,method,chunks,people,chance,samples,questions_of_each,recomputed_share,cross,"
          "cross_error,direct,direct_error,kl,kl_error,kl_cross,kl_direct,turns_cross,"
          "turns_direct\n",
          out);
    for (uint32_t i = 0; i < report->rows->count; i++) {
        const struct eval_blend_row *row = &report->rows->list[i];
        fprintf(out,
                "\"%s\",\"%s\",%s,%u,%.4f,%u,%u,%.4f,%.4f,%.4f,%.4f,%.4f,%.6f,%.6f,%.6f,%.6f,"
                "%.4f,%.4f\n",
                eval_blend_row_family(row), eval_blend_row_method(row), eval_blend_row_chunks(row),
                row->people, eval_blend_row_chance(row), row->samples, row->asked[EVAL_CROSS],
                row->share, row->right[EVAL_CROSS].value, row->right[EVAL_CROSS].error,
                row->right[EVAL_DIRECT].value, row->right[EVAL_DIRECT].error, row->kl.value,
                row->kl.error, row->kl_of[EVAL_CROSS].value, row->kl_of[EVAL_DIRECT].value,
                row->turn_right[EVAL_CROSS], row->turn_right[EVAL_DIRECT]);
    }
}
