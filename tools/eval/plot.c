/* SPDX-License-Identifier: Apache-2.0 */
/* The picture's frame is fixed in pixels, so that names can be put where they cover nothing: each
 * family's at the place of least cost around the points of its hull. */
#include "tools/eval/plot.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/eval/gnuplot.h"
#include "tools/eval/recipes.h"

#define WIDTH      1500.0
#define HEIGHT     1000.0
#define LEFT       110.0
#define RIGHT      1460.0
#define BOTTOM     90.0
#define TOP        900.0
#define FONT_PX    17.0
#define LETTER_PX  9.6
#define POINT_PX   5.0
#define KL_LEAST   2e-4
#define KL_MOST    1.0
#define BITS_MOST  6.0
#define FAMILY_MAX 48u

static const char *const colours[] = {
    "#3b6ea8", "#e08214", "#2a9d6f", "#8e5ea2", "#b0882b", "#17a2b8", "#a8557a",
    "#6b8e23", "#7d6b5d", "#5b5bd6", "#c26a4a", "#2f7f7f", "#d1558f", "#4d7c2a",
    "#8a7fd0", "#00838f", "#9c6b1f", "#6a7f99", "#b05fc4", "#5f9ea0",
};
#define HOUSE_COLOUR "#c8102e"
#define EVEN_COLOUR  "#e2808f"
#define BAND_COLOUR  "#e3e3e3"

struct place {
    double x;
    double y; /* pixels, from the bottom */
};

struct box {
    double x0;
    double y0;
    double x1;
    double y1;
};

struct family {
    const char *name;
    const char *colour;
    struct eval_point *hull;
    size_t hull_count;
    struct place anchor; /* on the hull */
    struct box label;
    bool is_house;
    bool is_labelled; /* some of it lies in the picture */
};

struct picture {
    const struct eval_rows *rows;
    double bits_least;
    struct family families[FAMILY_MAX];
    size_t family_count;
    struct eval_point *points; /* of all hulls */
    struct place *dots;        /* of all rows in the picture */
    size_t dot_count;
    struct eval_point *others; /* hull of all but the house */
    size_t others_count;
};

/* --- where things are ------------------------------------------------------------------------- */

static struct place place_of(const struct picture *picture, double bits, double kl)
{
    double kl_here = kl > 1e-9 ? kl : 1e-9;
    return (struct place){
        .x = LEFT +
             (RIGHT - LEFT) * (bits - picture->bits_least) / (BITS_MOST - picture->bits_least),
        .y = BOTTOM + (TOP - BOTTOM) * log(kl_here / KL_LEAST) / log(KL_MOST / KL_LEAST),
    };
}

static bool is_inside(struct place place)
{
    return place.x >= LEFT && place.x <= RIGHT && place.y >= BOTTOM && place.y <= TOP;
}

static bool is_shown(const struct eval_row *row)
{
    return !row->is_exact;
}

static bool is_of(const struct eval_row *row, const char *family)
{
    return strcmp(row->trial->family, family) == 0;
}

static struct family *find_family(struct picture *picture, const char *name)
{
    for (size_t i = 0; i < picture->family_count; i++)
        if (strcmp(picture->families[i].name, name) == 0)
            return &picture->families[i];
    return NULL;
}

/* `family` NULL: all but the project's own. */
static size_t gather(struct eval_point *out, const struct eval_rows *rows, const char *family)
{
    size_t count = 0;
    for (uint32_t i = 0; i < rows->count; i++) {
        const struct eval_row *row = &rows->rows[i];
        bool wanted = family ? is_of(row, family) : !eval_is_house(row->trial->family);
        if (is_shown(row) && wanted)
            out[count++] = (struct eval_point){row->bits_per_element, row->kl, i};
    }
    return eval_hull(out, count);
}

static const char *colour_of(const char *family, size_t index)
{
    if (strcmp(family, EVAL_HOUSE) == 0)
        return HOUSE_COLOUR;
    if (strcmp(family, EVAL_HOUSE_EVEN) == 0)
        return EVEN_COLOUR;
    return colours[index % LARDER_COUNT_OF(colours)];
}

static int add_families(struct picture *picture)
{
    const struct eval_rows *rows = picture->rows;
    struct eval_point *points = picture->points;
    for (uint32_t i = 0; i < rows->count; i++) {
        const char *name = rows->rows[i].trial->family;
        if (!is_shown(&rows->rows[i]) || find_family(picture, name))
            continue;
        if (picture->family_count == FAMILY_MAX)
            return larder_fail(LARDER_ELIMIT, "more than %u families in a picture", FAMILY_MAX);
        struct family *family = &picture->families[picture->family_count];
        family->name = name;
        family->is_house = strcmp(name, EVAL_HOUSE) == 0;
        family->colour = colour_of(name, picture->family_count);
        family->hull = points;
        family->hull_count = gather(points, rows, name);
        points += family->hull_count;
        picture->family_count++;
    }
    return 0;
}

static int open_picture(struct picture *picture, const struct eval_rows *rows)
{
    *picture = (struct picture){.rows = rows, .bits_least = BITS_MOST - 1};
    /* A hull has no more points than its family; scratch beyond them while one is made. */
    picture->points = larder_alloc_zero(2 * (size_t)rows->count + 1, sizeof(struct eval_point));
    picture->others = larder_alloc_zero((size_t)rows->count + 1, sizeof(struct eval_point));
    picture->dots = larder_alloc_zero((size_t)rows->count + 1, sizeof(struct place));
    if (!picture->points || !picture->others || !picture->dots)
        return larder_fail(-ENOMEM, "no memory for a picture");
    for (uint32_t i = 0; i < rows->count; i++)
        picture->bits_least = fmin(picture->bits_least, rows->rows[i].bits_per_element);
    picture->bits_least = floor(picture->bits_least * 4 - .2) / 4;
    for (uint32_t i = 0; i < rows->count; i++) {
        struct place place = place_of(picture, rows->rows[i].bits_per_element, rows->rows[i].kl);
        if (is_shown(&rows->rows[i]) && is_inside(place))
            picture->dots[picture->dot_count++] = place;
    }
    picture->others_count = gather(picture->others, rows, NULL);
    return add_families(picture);
}

static void close_picture(struct picture *picture)
{
    larder_free(picture->dots);
    larder_free(picture->others);
    larder_free(picture->points);
}

/* --- names that cover nothing ----------------------------------------------------------------- */

static double overlap(const struct box *a, const struct box *b)
{
    double wide = fmin(a->x1, b->x1) - fmax(a->x0, b->x0);
    double high = fmin(a->y1, b->y1) - fmax(a->y0, b->y0);
    return wide > 0 && high > 0 ? wide * high : 0;
}

/* How much of a line, in steps of a pixel or two, runs through the box. */
static double line_in_box(struct place from, struct place to, const struct box *box)
{
    double steps = ceil(fmax(fabs(to.x - from.x), fabs(to.y - from.y)) / 2) + 1;
    double inside = 0;
    for (double i = 0; i <= steps; i++) {
        double x = from.x + (to.x - from.x) * i / steps;
        double y = from.y + (to.y - from.y) * i / steps;
        inside += x > box->x0 && x < box->x1 && y > box->y0 && y < box->y1 ? 1 : 0;
    }
    return inside;
}

static double cost_of_hulls(const struct picture *picture, const struct box *box)
{
    double cost = 0;
    for (size_t i = 0; i < picture->family_count; i++) {
        const struct family *family = &picture->families[i];
        for (size_t k = 1; k < family->hull_count; k++)
            cost += line_in_box(place_of(picture, family->hull[k - 1].bits, family->hull[k - 1].kl),
                                place_of(picture, family->hull[k].bits, family->hull[k].kl), box);
    }
    return cost;
}

static double cost_of(const struct picture *picture, const struct box *box, struct place anchor,
                      double distance)
{
    if (box->x0 < LEFT + 4 || box->x1 > RIGHT - 4 || box->y0 < BOTTOM + 4 || box->y1 > TOP - 4)
        return INFINITY;
    double cost = distance / 6;
    struct place middle = {(box->x0 + box->x1) / 2, (box->y0 + box->y1) / 2};
    for (size_t i = 0; i < picture->dot_count; i++) {
        struct place dot = picture->dots[i];
        struct box around = {dot.x - POINT_PX, dot.y - POINT_PX, dot.x + POINT_PX,
                             dot.y + POINT_PX};
        cost += overlap(box, &around) > 0 ? 30 : 0;
    }
    for (size_t i = 0; i < picture->family_count; i++) {
        const struct family *other = &picture->families[i];
        if (!other->is_labelled)
            continue;
        cost += overlap(box, &other->label) > 0 ? 5000 : 0;
        cost += 3 * line_in_box(anchor, middle, &other->label);
    }
    for (size_t k = 1; k < picture->others_count; k++)
        cost +=
            line_in_box(place_of(picture, picture->others[k - 1].bits, picture->others[k - 1].kl),
                        place_of(picture, picture->others[k].bits, picture->others[k].kl), box);
    return cost + cost_of_hulls(picture, box);
}

static void place_label(const struct picture *picture, struct family *family)
{
    double half_wide = (double)strlen(family->name) * LETTER_PX / 2 + 4;
    double half_high = FONT_PX / 2 + 3;
    double best = INFINITY;
    for (size_t k = 0; k < family->hull_count; k++) {
        struct place anchor = place_of(picture, family->hull[k].bits, family->hull[k].kl);
        if (!is_inside(anchor))
            continue;
        for (int step = 0; step < 24 * 8; step++) {
            double angle = step % 24 * M_PI / 12;
            double distance = 8 + step / 24 * 14.0;
            double x = anchor.x + cos(angle) * (distance + half_wide);
            double y = anchor.y + sin(angle) * (distance + half_high);
            struct box box = {x - half_wide, y - half_high, x + half_wide, y + half_high};
            double cost = cost_of(picture, &box, anchor, distance);
            if (cost < best) {
                best = cost;
                family->anchor = anchor;
                family->label = box;
                family->is_labelled = true;
            }
        }
    }
}

/* --- gnuplot ---------------------------------------------------------------------------------- */

static void write_frame(FILE *out, const struct picture *picture, const struct eval_report *report)
{
    const struct eval_samples *samples = report->work->samples;
    fprintf(out,
            "set terminal pngcairo size %.0f,%.0f font 'DejaVu Sans,12' background '#ffffff'\n",
            WIDTH, HEIGHT);
    fprintf(out, "set lmargin at screen %g\nset rmargin at screen %g\n", LEFT / WIDTH,
            RIGHT / WIDTH);
    fprintf(out, "set bmargin at screen %g\nset tmargin at screen %g\n", BOTTOM / HEIGHT,
            TOP / HEIGHT);
    fprintf(out, "set logscale y\nset xrange [%g:%g]\nset yrange [%g:%g]\n", picture->bits_least,
            BITS_MOST, KL_LEAST, KL_MOST);
    fputs("set border 3 lc rgb '#888888'\nset tics nomirror out tc rgb '#333333'\n"
          "set xtics .5\nset format y '%g'\nunset key\n"
          "set grid xtics ytics lc rgb '#e8e8e8' lt 1\n",
          out);
    fputs("set xlabel 'bits for each number of K and V, in true records' font ',14'\n"
          "set ylabel 'KL of the predictions, nats a byte (log scale)' font ',14'\n",
          out);
    fprintf(out,
            "set label 1 'Size against what the model makes of it' at screen %g,%g "
            "font ',20' tc rgb '#111111'\n",
            LEFT / WIDTH, 1 - 38 / HEIGHT);
    fprintf(out,
            "set label 2 'Model \"%s\", prefixes of %u tokens, %u of text and %u of questions. "
            "Lines: lower convex hulls; grey band: of all but %s. Full circles: entropy-coded.' at "
            "screen %g,%g font ',12' "
            "tc rgb '#555555'\n",
            report->model->name, EVAL_PREFIX_TOKENS, samples->text_count,
            samples->count - samples->text_count, EVAL_HOUSE, LEFT / WIDTH, 1 - 72 / HEIGHT);
}

static void write_limit(FILE *out, double kl)
{
    fprintf(out,
            "set arrow from graph 0,first %g to graph 1,first %g nohead lc rgb '#b0b0b0' dt 2 "
            "lw 1.5\nset label 'KL %g' at graph .995,first %g right offset 0,.5 tc rgb '#888888' "
            "font ',11'\n",
            kl, kl, kl, kl);
}

static void write_labels(FILE *out, const struct picture *picture)
{
    for (size_t i = 0; i < picture->family_count; i++) {
        const struct family *family = &picture->families[i];
        if (!family->is_labelled)
            continue;
        const struct box *box = &family->label;
        double x = (box->x0 + box->x1) / 2;
        double y = (box->y0 + box->y1) / 2;
        fprintf(out, "set arrow from screen %g,%g to screen %g,%g nohead lc rgb '%s' lw .7 back\n",
                family->anchor.x / WIDTH, family->anchor.y / HEIGHT,
                fmax(box->x0, fmin(family->anchor.x, box->x1)) / WIDTH,
                fmax(box->y0, fmin(family->anchor.y, box->y1)) / HEIGHT, family->colour);
        fprintf(out, "set label '%s%s%s' at screen %g,%g center tc rgb '%s' font ',13' front\n",
                family->is_house ? "{/:Bold " : "", family->name, family->is_house ? "}" : "",
                x / WIDTH, y / HEIGHT, family->colour);
    }
}

static void write_points(FILE *out, const struct eval_point *points, size_t count)
{
    for (size_t i = 0; i < count; i++)
        fprintf(out, "%.6f %.9f\n", points[i].bits, fmax(points[i].kl, 1e-9));
    fputs("e\n", out);
}

static bool is_drawn(const struct eval_row *row, const char *family, bool coded)
{
    return is_shown(row) && is_of(row, family) && row->trial->is_coded == coded;
}

static size_t count_rows(const struct picture *picture, const char *family, bool coded)
{
    size_t count = 0;
    for (uint32_t i = 0; i < picture->rows->count; i++)
        count += is_drawn(&picture->rows->rows[i], family, coded);
    return count;
}

static void write_rows(FILE *out, const struct picture *picture, const char *family, bool coded)
{
    for (uint32_t i = 0; i < picture->rows->count; i++) {
        const struct eval_row *row = &picture->rows->rows[i];
        if (is_drawn(row, family, coded))
            fprintf(out, "%.6f %.9f\n", row->bits_per_element, fmax(row->kl, 1e-9));
    }
    fputs("e\n", out);
}

/* Open circles for what is packed, full ones for what is entropy-coded: the house's always is. */
static void write_plot(FILE *out, const struct picture *picture)
{
    fputs("plot '-' with lines lc rgb '" BAND_COLOUR "' lw 9 dt 1", out);
    for (size_t i = 0; i < picture->family_count; i++) {
        const struct family *family = &picture->families[i];
        fprintf(out, ", '-' with lines lc rgb '%s' lw %g", family->colour,
                family->is_house ? 4.0 : 1.6);
        for (int coded = 0; coded < 2; coded++)
            if (count_rows(picture, family->name, coded) > 0)
                fprintf(out, ", '-' with points pt %d ps %g lc rgb '%s'",
                        coded || eval_is_house(family->name) ? 7 : 6, family->is_house ? 1.3 : .9,
                        family->colour);
    }
    fputc('\n', out);
    write_points(out, picture->others, picture->others_count);
    for (size_t i = 0; i < picture->family_count; i++) {
        const struct family *family = &picture->families[i];
        write_points(out, family->hull, family->hull_count);
        for (int coded = 0; coded < 2; coded++)
            if (count_rows(picture, family->name, coded) > 0)
                write_rows(out, picture, family->name, coded);
    }
}

int eval_plot(const struct eval_report *report, const char *path)
{
    struct picture picture;
    FILE *out = NULL;
    int err = open_picture(&picture, report->rows);
    if (err == 0)
        err = eval_gnuplot_open(&out, path);
    if (err == 0) {
        for (size_t i = 0; i < picture.family_count; i++)
            place_label(&picture, &picture.families[i]);
        write_frame(out, &picture, report);
        write_limit(out, .01);
        write_limit(out, .05);
        write_labels(out, &picture);
        fprintf(out, "set output '%s'\n", path);
        write_plot(out, &picture);
        err = eval_gnuplot_close(out, path);
    }
    close_picture(&picture);
    return err;
}
