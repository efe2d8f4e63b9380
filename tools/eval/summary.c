/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/summary.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"

static int compare_doubles(const void *a, const void *b)
{
    const double *x = a;
    const double *y = b;
    return (*x > *y) - (*x < *y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare_doubles);
    return values[count / 2];
}

static double share(const uint8_t *flags, size_t count)
{
    size_t set = 0;
    for (size_t i = 0; i < count; i++)
        set += flags[i];
    return count ? (double)set / (double)count : 1;
}

static void sum_kl(struct eval_row *row, const struct eval_samples *samples, float *scratch)
{
    const struct eval_trial *trial = row->trial;
    uint8_t first[EVAL_FIRST_TOKENS];
    size_t same = 0;
    size_t count = 0;
    for (uint32_t i = 0; i < samples->text_count; i++) {
        uint32_t place = samples->prefixes[i].runs[0].place;
        memcpy(scratch + count, trial->kl + place, EVAL_FIRST_TOKENS * sizeof(*scratch));
        memcpy(first, trial->agree + place, EVAL_FIRST_TOKENS);
        for (uint32_t k = 0; k < EVAL_FIRST_TOKENS; k++)
            same += first[k];
        count += EVAL_FIRST_TOKENS;
    }
    eval_spread_of(&row->first, scratch, count);
    row->top1_first = count ? (double)same / (double)count : 1;
    memcpy(scratch, trial->kl + samples->text_scored, samples->answer_scored * sizeof(*scratch));
    eval_spread_of(&row->answers, scratch, samples->answer_scored);
    row->top1_answers = share(trial->agree + samples->text_scored, samples->answer_scored);
    memcpy(scratch, trial->kl, samples->text_scored * sizeof(*scratch));
    eval_spread_of(&row->all, scratch, samples->text_scored);
    row->top1_all = share(trial->agree, samples->text_scored);
    row->kl = fmax(row->first.mean, row->answers.mean);
    row->kl_p99 = fmax(row->first.p99, row->answers.p99);
    row->top1 = fmin(row->top1_first, row->top1_answers);
    double nats = 0;
    for (uint32_t i = 0; i < samples->text_scored; i++)
        nats += (double)trial->nats[i];
    row->bits_per_byte = nats / samples->text_scored / M_LN2;
}

static double relative(double error, double energy)
{
    return energy > 0 ? sqrt(error / energy) : 0;
}

static void sum_errors(struct eval_row *row, const struct eval_work *work, uint32_t layers)
{
    double error_all[EVAL_PARTS] = {0};
    double energy_all[EVAL_PARTS] = {0};
    size_t each = (size_t)layers * EVAL_PARTS;
    for (size_t i = 0; i < each; i++) {
        double error = 0;
        double energy = 0;
        for (uint32_t prefix = 0; prefix < work->samples->count; prefix++) {
            error += row->trial->errors[prefix * each + i];
            energy += work->energies[prefix * each + i];
        }
        row->error[i] = relative(error, energy);
        error_all[i % EVAL_PARTS] += error;
        energy_all[i % EVAL_PARTS] += energy;
    }
    for (int part = 0; part < EVAL_PARTS; part++)
        row->error_of[part] = relative(error_all[part], energy_all[part]);
}

/* Of those prefixes that the recipe coded. */
static void sum_outcomes(struct eval_row *row, const struct eval_work *work,
                         const struct larder_model_desc *model, double *scratch)
{
    const struct eval_outcome *outcomes = row->trial->outcomes;
    uint32_t count = work->samples->count;
    uint64_t raw_bytes = larder_model_kv_bytes(model, EVAL_PREFIX_TOKENS);
    double gb = (double)raw_bytes / 1e9;
    double *encode = scratch;
    double *decode = scratch + count;
    double *copy = scratch + 2 * (size_t)count;
    uint64_t records = 0;
    uint64_t sections = 0;
    uint32_t coded = 0;
    row->is_exact = true;
    for (uint32_t i = 0; i < count; i++) {
        row->is_exact = row->is_exact && outcomes[i].is_exact;
        if (!outcomes[i].is_coded)
            continue;
        records += outcomes[i].record_bytes;
        sections += outcomes[i].section_bytes;
        row->fell_back += outcomes[i].fell_back;
        encode[coded] = gb / outcomes[i].encode_s;
        decode[coded] = gb / outcomes[i].decode_s;
        copy[coded++] = gb / outcomes[i].copy_s;
    }
    double elems = (double)raw_bytes / (double)larder_dtype_bytes(model->dtype) * coded;
    row->bits_per_element = 8 * (double)records / elems;
    row->section_bits = 8 * (double)sections / elems;
    row->encode_gb_s = median(encode, coded);
    row->decode_gb_s = median(decode, coded);
    row->copy_gb_s = median(copy, coded);
}

int eval_rows_open(struct eval_rows *out, const struct eval_work *work,
                   const struct larder_model_desc *model)
{
    const struct eval_samples *samples = work->samples;
    size_t each = (size_t)model->layers * EVAL_PARTS;
    *out = (struct eval_rows){.layers = model->layers};
    out->rows = larder_alloc_zero(work->trial_count, sizeof(*out->rows));
    out->errors = larder_alloc_zero(work->trial_count * each, sizeof(*out->errors));
    float *kl =
        larder_alloc_zero((size_t)samples->text_scored + samples->answer_scored, sizeof(*kl));
    double *speeds = larder_alloc_zero(3 * (size_t)samples->count, sizeof(*speeds));
    int err = 0;
    if (!out->rows || !out->errors || !kl || !speeds)
        err = larder_fail(-ENOMEM, "no memory for the figures");
    for (uint32_t i = 0; i < work->trial_count && err == 0; i++) {
        if (work->trials[i].error[0])
            continue;
        struct eval_row *row = &out->rows[out->count];
        row->trial = &work->trials[i];
        row->error = out->errors + out->count++ * each;
        sum_kl(row, samples, kl);
        sum_errors(row, work, model->layers);
        sum_outcomes(row, work, model, speeds);
    }
    larder_free(speeds);
    larder_free(kl);
    if (err < 0)
        eval_rows_close(out);
    return err;
}

void eval_rows_close(struct eval_rows *rows)
{
    larder_free(rows->rows);
    larder_free(rows->errors);
    *rows = (struct eval_rows){0};
}
