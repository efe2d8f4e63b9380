/* SPDX-License-Identifier: Apache-2.0 */
/* Two panels over the same recomputed share: cross accuracy, and KL of the answers. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tools/eval/blend_methods.h"
#include "tools/eval/blend_report.h"
#include "tools/eval/gnuplot.h"

#define FAMILIES_MAX 16u
#define KL_LEAST     1e-5 /* what is as good as dense prefill has none */

static const char *const colours[] = {"#7d6b5d", "#111111", "#e08214", "#c8102e",
                                      "#e2808f", "#8e5ea2", "#5b5bd6", "#9a9a9a",
                                      "#2a9d6f", "#3b6ea8", "#b0882b", "#17a2b8"};

/* What one picture shows: raw chunks, one number of people. */
struct picture {
    const struct eval_blend_rows *rows;
    const struct eval_blend_row *prefill;
    const char *families[FAMILIES_MAX];
    uint32_t family_count;
};

static bool is_shown(const struct picture *picture, const struct eval_blend_row *row)
{
    return row->trial && row->people == picture->prefill->people &&
           strcmp(row->trial->chunks->text, EVAL_BLEND_RAW) == 0;
}

static int open_picture(struct picture *out, const struct eval_blend_rows *rows)
{
    *out = (struct picture){.rows = rows};
    for (uint32_t i = 0; i < rows->count; i++)
        if (!rows->list[i].trial && (!out->prefill || rows->list[i].people > out->prefill->people))
            out->prefill = &rows->list[i];
    for (uint32_t i = 0; i < rows->count; i++) {
        uint32_t known = 0;
        if (!is_shown(out, &rows->list[i]))
            continue;
        const char *family = rows->list[i].trial->family;
        while (known < out->family_count && strcmp(out->families[known], family) != 0)
            known++;
        if (known < out->family_count)
            continue;
        if (out->family_count == FAMILIES_MAX)
            return larder_fail(LARDER_ELIMIT, "more than %u families in a picture", FAMILIES_MAX);
        out->families[out->family_count++] = family;
    }
    return 0;
}

/* A data block for each family: share, cross, its error, KL. */
static void write_data(FILE *out, const struct picture *picture)
{
    for (uint32_t i = 0; i < picture->family_count; i++) {
        fprintf(out, "$family%u << EOD\n", i);
        for (uint32_t k = 0; k < picture->rows->count; k++) {
            const struct eval_blend_row *row = &picture->rows->list[k];
            if (is_shown(picture, row) && strcmp(row->trial->family, picture->families[i]) == 0)
                fprintf(out, "%.5f %.5f %.5f %.7f\n", row->share, row->right[EVAL_CROSS].value,
                        row->right[EVAL_CROSS].error, fmax(row->kl.value, KL_LEAST));
        }
        fputs("EOD\n", out);
    }
}

static void write_frame(FILE *out, const struct picture *picture, const char *model)
{
    const struct eval_blend_row *prefill = picture->prefill;
    fputs("set terminal pngcairo size 1500,760 font 'DejaVu Sans,12' background '#ffffff'\n"
          "set border 3 lc rgb '#888888'\nset tics nomirror out tc rgb '#333333'\n"
          "set grid xtics ytics lc rgb '#e8e8e8' lt 1\nset xrange [-.02:1.04]\n"
          "set xlabel 'share of the facts computed again' font ',13'\n",
          out);
    fprintf(out,
            "set label 1 'What repairing moved chunks costs, and what it gives back' at screen "
            ".06,.965 font ',18' tc rgb '#111111'\n"
            "set label 2 'Model \"%s\", %u people in %u chunks, %u questions of each kind. Bars: "
            "standard errors over %u samples.' at screen .06,.92 font ',12' tc rgb '#555555'\n",
            model, prefill->people, prefill->people * EVAL_CHUNKS_OF_PERSON,
            prefill->asked[EVAL_CROSS], prefill->samples);
}

static void write_level(FILE *out, double value, const char *what)
{
    fprintf(out,
            "set arrow from graph 0,first %g to graph 1,first %g nohead lc rgb '#b0b0b0' dt 2 lw "
            "1.5\nset label '%s' at graph .995,first %g right offset 0,.6 tc rgb '#777777' "
            "font ',11'\n",
            value, value, what, value);
}

static void write_cross(FILE *out, const struct picture *picture)
{
    const struct eval_blend_row *prefill = picture->prefill;
    fputs("set origin 0,0\nset size .5,.9\nset ylabel 'cross questions answered' font ',13'\n"
          "set yrange [0:1.02]\nset key bottom right box lc rgb '#dddddd' opaque\n",
          out);
    write_level(out, eval_blend_row_chance(prefill), "a guess");
    write_level(out, prefill->right[EVAL_CROSS].value, "dense prefill");
    fputs("plot ", out);
    for (uint32_t i = 0; i < picture->family_count; i++)
        fprintf(
            out,
            "%s$family%u using 1:2:3 with yerrorlines lc rgb '%s' lw 1.8 pt 7 ps .9 title \"%s\"",
            i > 0 ? ", " : "", i, colours[i % LARDER_COUNT_OF(colours)], picture->families[i]);
    fputc('\n', out);
}

static void write_kl(FILE *out, const struct picture *picture)
{
    fputs("unset arrow\nunset label\nset origin .5,0\nset size .5,.9\nset logscale y\n"
          "set ylabel 'KL of the answers to dense prefill, nats a byte (log scale)' font ',13'\n"
          "set format y '%g'\nset autoscale y\nunset key\nplot ",
          out);
    for (uint32_t i = 0; i < picture->family_count; i++)
        fprintf(out, "%s$family%u using 1:4 with linespoints lc rgb '%s' lw 1.8 pt 7 ps .9",
                i > 0 ? ", " : "", i, colours[i % LARDER_COUNT_OF(colours)]);
    fputc('\n', out);
}

int eval_blend_plot(const struct eval_blend_report *report, const char *path)
{
    struct picture picture;
    FILE *out;
    LARDER_TRY(open_picture(&picture, report->rows));
    if (picture.family_count == 0)
        return larder_fail(-EINVAL, "nothing over raw chunks was measured: no picture");
    LARDER_TRY(eval_gnuplot_open(&out, path));
    write_data(out, &picture);
    write_frame(out, &picture, report->model);
    fprintf(out, "set output '%s'\nset multiplot\n", path);
    write_cross(out, &picture);
    write_kl(out, &picture);
    fputs("unset multiplot\n", out);
    return eval_gnuplot_close(out, path);
}
