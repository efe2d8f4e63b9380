/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/blend_rows.h"

#include <assert.h>
#include <errno.h>
#include <math.h>

#include "base/error.h"
#include "base/mem.h"

/* --- means over samples ----------------------------------------------------------------------- */

/* A figure of a sample: nats a byte or right answers a question, of one kind or all. */
typedef double (*figure)(const struct eval_answers *answers, int kind);

#define ALL_KINDS (-1)

static double kl_of(const struct eval_answers *answers, int kind)
{
    double kl = 0;
    double bytes = 0;
    for (int i = 0; i < EVAL_KINDS; i++) {
        if (kind != ALL_KINDS && kind != i)
            continue;
        kl += answers->kl[i];
        bytes += answers->bytes[i];
    }
    return kl / bytes;
}

static double right_of(const struct eval_answers *answers, int kind)
{
    return (double)answers->right[kind] / answers->asked[kind];
}

/* Of a row, or of the difference to another. */
static struct eval_mean mean_of(const struct eval_blend_row *row,
                                const struct eval_blend_row *minus, figure of, int kind)
{
    double sum = 0;
    double squares = 0;
    assert(row->samples > 0);
    assert(!minus || minus->samples == row->samples);
    for (uint32_t i = 0; i < row->samples; i++) {
        double value = of(&row->answers[i], kind);
        if (minus)
            value -= of(&minus->answers[i], kind);
        sum += value;
        squares += value * value;
    }
    double n = row->samples;
    double mean = sum / n;
    double variance = n > 1 ? fmax(squares - n * mean * mean, 0) / (n - 1) : 0;
    return (struct eval_mean){.value = mean, .error = sqrt(variance / n)};
}

struct eval_mean eval_blend_kl_difference(const struct eval_blend_row *a,
                                          const struct eval_blend_row *b)
{
    return mean_of(a, b, kl_of, ALL_KINDS);
}

struct eval_mean eval_blend_right_difference(const struct eval_blend_row *a,
                                             const struct eval_blend_row *b, enum eval_kind kind)
{
    return mean_of(a, b, right_of, (int)kind);
}

/* --- rows ------------------------------------------------------------------------------------- */

static void add_turns(struct eval_blend_row *row, const struct eval_answers *answers,
                      uint32_t turns)
{
    for (uint32_t i = 0; i < turns; i++) {
        uint32_t kind = answers->turn_kind[i];
        row->turn_asked[kind]++;
        row->turn_right[kind] += answers->turn_right[i];
        if (kind != EVAL_CROSS)
            continue;
        row->turns[i].asked++;
        row->turns[i].right += answers->turn_right[i];
    }
}

static double over(double part, uint32_t all)
{
    return all > 0 ? part / all : 0;
}

static void fill_row(struct eval_blend_row *row, const struct eval_blend_work *work)
{
    double blend_s = 0;
    double prefill_s = 0;
    for (uint32_t i = 0; i < row->samples; i++) {
        const struct eval_answers *answers = &row->answers[i];
        for (int kind = 0; kind < EVAL_KINDS; kind++)
            row->asked[kind] += answers->asked[kind];
        add_turns(row, answers, work->turns);
        row->share += answers->share / row->samples;
        blend_s += answers->blend_s;
        prefill_s += work->references[i].blend_s;
    }
    row->time = blend_s / prefill_s;
    row->kl = mean_of(row, NULL, kl_of, ALL_KINDS);
    for (int kind = 0; kind < EVAL_KINDS; kind++) {
        row->right[kind] = mean_of(row, NULL, right_of, kind);
        row->kl_of[kind] = mean_of(row, NULL, kl_of, kind);
        row->turn_right[kind] = over(row->turn_right[kind], row->turn_asked[kind]);
    }
    for (uint32_t i = 0; i < work->turns; i++)
        row->turns[i].right = over(row->turns[i].right, row->turns[i].asked);
}

int eval_blend_rows_add(struct eval_blend_rows *rows, const struct eval_blend_work *work)
{
    uint32_t capacity = rows->count + work->trial_count + 1;
    void *list = larder_realloc(rows->list, capacity * sizeof(*rows->list));
    if (!list)
        return larder_fail(-ENOMEM, "no memory for %u rows", capacity);
    rows->list = list;
    for (uint32_t i = 0; i <= work->trial_count; i++) {
        const struct eval_blend_trial *trial = i > 0 ? &work->trials[i - 1] : NULL;
        if (trial && trial->error[0])
            continue;
        struct eval_blend_row *row = &rows->list[rows->count++];
        *row = (struct eval_blend_row){.trial = trial,
                                       .answers = trial ? trial->answers : work->references,
                                       .people = work->people,
                                       .samples = work->samples};
        fill_row(row, work);
    }
    return 0;
}

void eval_blend_rows_close(struct eval_blend_rows *rows)
{
    larder_free(rows->list);
    *rows = (struct eval_blend_rows){0};
}

const char *eval_blend_row_method(const struct eval_blend_row *row)
{
    return row->trial ? row->trial->method : "prefill";
}

const char *eval_blend_row_family(const struct eval_blend_row *row)
{
    return row->trial ? row->trial->family : "prefill";
}

const char *eval_blend_row_chunks(const struct eval_blend_row *row)
{
    return row->trial ? row->trial->chunks->text : "-";
}

double eval_blend_row_chance(const struct eval_blend_row *row)
{
    return 1.0 / row->people;
}
