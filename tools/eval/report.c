/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/report.h"

#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/key.h"

/* --- the table -------------------------------------------------------------------------------- */

static void print_row(const struct eval_row *row, FILE *out)
{
    const struct eval_trial *trial = row->trial;
    fprintf(out, "%-15s %-22s %6.3f  %8.5f %8.5f %8.4f %8.5f  %6.2f  %8.4f  %6.4f %6.4f %6.4f",
            trial->family, trial->name, row->bits_per_element, row->first.mean, row->answers.mean,
            row->kl_p99, row->all.mean, 100 * row->top1, row->bits_per_byte, row->error_of[EVAL_K],
            row->error_of[EVAL_V], row->error_of[EVAL_ATTENTION]);
    fprintf(out, "  %6.2f %6.2f%s\n", row->encode_gb_s, row->decode_gb_s,
            row->fell_back ? "  fell back" : "");
}

void eval_print_table(const struct eval_report *report, FILE *out)
{
    const struct eval_rows *rows = report->rows;
    const struct eval_samples *samples = report->work->samples;
    fprintf(out, "%s: %u prefixes of %u tokens before text, %u before questions\n\n",
            report->model->name, samples->text_count, EVAL_PREFIX_TOKENS,
            samples->count - samples->text_count);
    fprintf(out, "%-15s %-22s %6s  %-35s  %6s  %8s  %-20s  %-13s\n", "", "", "bits/",
            "KL, nats a byte", "top 1", "bits/", "relative error", "GB/s");
    fprintf(out, "%-15s %-22s %6s  %8s %8s %8s %8s  %6s  %8s  %6s %6s %6s  %6s %6s\n", "family",
            "recipe", "elem", "first", "answers", "p99", "all", "%", "byte", "K", "V", "attn",
            "encode", "decode");
    const char *family = "";
    for (uint32_t i = 0; i < rows->count; i++) {
        if (i > 0 && strcmp(family, rows->rows[i].trial->family) != 0)
            fputc('\n', out);
        family = rows->rows[i].trial->family;
        print_row(&rows->rows[i], out);
    }
    for (uint32_t i = 0; i < report->work->trial_count; i++) {
        const struct eval_trial *trial = &report->work->trials[i];
        if (trial->error[0])
            fprintf(out, "\n%s, %s: not measured: %s", trial->family, trial->name, trial->error);
    }
    if (rows->count > 0)
        fprintf(out, "\nmemcpy of the same KV, one core: %.2f GB/s\n", rows->rows[0].copy_gb_s);
}

/* --- JSON ------------------------------------------------------------------------------------- */

static json_t *spread_to_json(const struct eval_spread *spread, double top1)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f}", "mean", spread->mean, "mean_error",
                     spread->mean_error, "p99", spread->p99, "worst_decile", spread->worst_decile,
                     "top1", top1);
}

static json_t *errors_to_json(const struct eval_row *row, uint32_t layers, enum eval_part part)
{
    json_t *list = json_array();
    for (uint32_t layer = 0; layer < layers; layer++)
        json_array_append_new(list, json_real(row->error[layer * EVAL_PARTS + part]));
    return json_pack("{s:f, s:o}", "all", row->error_of[part], "layers", list);
}

static json_t *row_to_json(const struct eval_row *row, uint32_t layers)
{
    const struct eval_trial *trial = row->trial;
    json_t *out = json_pack(
        "{s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:I}", "name", trial->name, "family",
        trial->family, "recipe", larder_recipe_text(trial->recipe), "bits_per_element",
        row->bits_per_element, "section_bits_per_element", row->section_bits, "kl", row->kl,
        "kl_p99", row->kl_p99, "top1", row->top1, "bits_per_byte_change", row->bits_per_byte,
        "exact", (int)row->is_exact, "sections_fell_back", (json_int_t)row->fell_back);
    json_t *more = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:f}", "kl_first",
        spread_to_json(&row->first, row->top1_first), "kl_answers",
        spread_to_json(&row->answers, row->top1_answers), "kl_all",
        spread_to_json(&row->all, row->top1_all), "error_k", errors_to_json(row, layers, EVAL_K),
        "error_v", errors_to_json(row, layers, EVAL_V), "error_attention",
        errors_to_json(row, layers, EVAL_ATTENTION), "encode_gb_s", row->encode_gb_s, "decode_gb_s",
        row->decode_gb_s, "memcpy_gb_s", row->copy_gb_s);
    json_object_update_new(out, more);
    uint8_t profile[32];
    char hex[2 * sizeof(profile) + 1];
    if (larder_recipe_profile_name(trial->recipe, profile)) {
        larder_hex(hex, profile, sizeof(profile));
        json_object_set_new(out, "profile", json_string(hex));
    }
    return out;
}

json_t *eval_json(const struct eval_report *report)
{
    json_t *recipes = json_array();
    json_t *skipped = json_array();
    for (uint32_t i = 0; i < report->rows->count; i++)
        json_array_append_new(recipes, row_to_json(&report->rows->rows[i], report->rows->layers));
    for (uint32_t i = 0; i < report->work->trial_count; i++) {
        const struct eval_trial *trial = &report->work->trials[i];
        if (trial->error[0])
            json_array_append_new(skipped, json_pack("{s:s, s:s, s:s}", "name", trial->name,
                                                     "family", trial->family, "why", trial->error));
    }
    struct larder_key fingerprint;
    char hex[2 * sizeof(fingerprint.bytes) + 1] = "";
    if (larder_model_fingerprint(&fingerprint, report->model) == 0)
        larder_hex(hex, fingerprint.bytes, sizeof(fingerprint.bytes));
    const struct eval_samples *samples = report->work->samples;
    return json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:o, s:o, s:o*, s:o*}", "version", LARDER_VERSION, "model",
        report->model->name, "fingerprint", hex, "prefix_tokens", (int)EVAL_PREFIX_TOKENS,
        "text_samples", (int)samples->text_count, "question_samples",
        (int)(samples->count - samples->text_count), "recipes", recipes, "not_measured", skipped,
        "summary", report->claims ? eval_claims_json(report->claims) : NULL, "families",
        report->claims ? eval_reaches_json(report->claims) : NULL);
}

/* --- CSV -------------------------------------------------------------------------------------- */

/* Doubled quotes around what has commas. */
static void print_quoted(const char *text, FILE *out)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

void eval_print_csv(const struct eval_report *report, FILE *out)
{
    fputs("family,name,recipe,bits_per_element,section_bits_per_element,kl,kl_p99,kl_first,"
          "kl_answers,kl_all,kl_worst_decile,top1,bits_per_byte_change,error_k,error_v,"
          "error_attention\n",
          out);
    for (uint32_t i = 0; i < report->rows->count; i++) {
        const struct eval_row *row = &report->rows->rows[i];
        fprintf(out, "%s,", row->trial->family);
        print_quoted(row->trial->name, out);
        fputc(',', out);
        print_quoted(larder_recipe_text(row->trial->recipe), out);
        fprintf(out, ",%.4f,%.4f,%.6f,%.6f,%.6f,%.6f,%.6f,%.6f,%.5f,%.5f,%.5f,%.5f,%.5f\n",
                row->bits_per_element, row->section_bits, row->kl, row->kl_p99, row->first.mean,
                row->answers.mean, row->all.mean,
                fmax(row->first.worst_decile, row->answers.worst_decile), row->top1,
                row->bits_per_byte, row->error_of[EVAL_K], row->error_of[EVAL_V],
                row->error_of[EVAL_ATTENTION]);
    }
}
