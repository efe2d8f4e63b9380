/* SPDX-License-Identifier: Apache-2.0 */
/* grid.h - leaves whose numbers are a level of a fixed grid times the scale of their group.
 *
 *   unit, where scales are f16 | scales of each block of groups | symbols | raw tokens
 *
 * A leaf says how elements are grouped (groups.h), which levels there are, and which scale suits a
 * group; the rest is done here: x = level of the symbol * scale, one multiplication, so that every
 * machine gives the same bits. Symbols and raw tokens: symbols.h, groups.h.
 *
 * Scales are f16 times the section's unit (node.h), or a power of two in a byte, biased by 127 as
 * an f32's exponent: the scale of the OCP Microscaling formats.
 */
#ifndef LARDER_CODEC_GRID_H
#define LARDER_CODEC_GRID_H

#include <stdbool.h>
#include <stdint.h>

#include "codec/groups.h"
#include "codec/node.h"

/* Levels that a lookup knows; others are computed. */
#define GRID_TABLE_LEVELS 16u

struct grid;

/* How symbols become numbers and numbers symbols. `scale` is one for all elements where `step` is
 * 0, and one each where it is 1. */
struct grid_form {
    void (*restore)(const struct grid *grid, float *x, const uint8_t *q, uint64_t count,
                    const float *scale, uint32_t step);
    /* The symbol of the level that is nearest to each number, which is in scales. */
    void (*find)(const struct grid *grid, uint8_t *q, const float *x, uint64_t count);
};

struct grid {
    struct groups groups;
    const struct grid_form *form;
    bool power_scales;
    uint32_t levels; /* 2..256 */
    uint32_t rule;   /* the leaf's own */
    /* Of grid_form_table: the symbols' values, 0 behind the last. */
    float level[GRID_TABLE_LEVELS];
    /* For finding symbols, of levels that are the same on both sides of 0: a magnitude in scales
     * has as many of the bounds, which ascend, below it as there are magnitudes of levels below
     * that of its own. */
    float bounds[GRID_TABLE_LEVELS / 2];
    uint32_t bound_count;
};

struct grid_leaf {
    struct codec_node_ops ops; /* the first: a node points to it */
    /* Everything of the grid, from the node's parameters. */
    void (*open)(struct grid *out, const struct codec_node *node, const struct codec_size *size);
    /* The scale for a group's numbers, which are in units; 0 for zeros. Of grids with powers a
     * power of two. It is rounded to what is stored before anything is quantized with it. */
    float (*fit)(const struct grid *grid, const float *x, uint64_t count);
};

/* By a table of at most GRID_TABLE_LEVELS; and whole numbers, the lowest -(levels / 2). */
extern const struct grid_form grid_form_table;
extern const struct grid_form grid_form_whole;

/* Of the ops of every leaf. */
uint64_t grid_bound(const struct codec_node *node, const struct codec_size *size);
uint64_t grid_scratch(const struct codec_node *node, const struct codec_size *size);
int grid_encode(const struct codec_node *node, struct codec_run *run, struct codec_tile *tile);
int grid_decode_begin(const struct codec_node *node, struct codec_run *run,
                      const struct codec_size *size, void **state);
void grid_decode_rows(const struct codec_node *node, const struct codec_run *run, void *state,
                      uint32_t first, struct codec_tile *tile);

/* Of a group, summed in 16 lanes: the same bits on every machine. */
float grid_mean_magnitude(const float *x, uint64_t count);
float grid_mean_square(const float *x, uint64_t count);
/* The scale by which the levels that `scale` gives are nearest to the numbers in the sum of
 * squares; `scale` itself where all of them are 0. */
float grid_refit(const struct grid *grid, const float *x, uint64_t count, float scale);
/* The power of two at or below a positive number, within 2^-126 .. 2^127. */
float grid_power_below(float x);

extern const struct grid_leaf codec_node_bfp;
extern const struct grid_leaf codec_node_fp8;
extern const struct grid_leaf codec_node_lloyd;
extern const struct grid_leaf codec_node_fp4;
extern const struct grid_leaf codec_node_ternary;

/* The lookup of grid_form_table: the specification, and versions with the same answers; NULL where
 * they cannot run. */
typedef void (*grid_lookup_function)(const float level[GRID_TABLE_LEVELS], float *x,
                                     const uint8_t *q, uint64_t count, const float *scale,
                                     uint32_t step);
void grid_lookup_scalar(const float level[GRID_TABLE_LEVELS], float *x, const uint8_t *q,
                        uint64_t count, const float *scale, uint32_t step);
grid_lookup_function grid_lookup_avx2(void);
grid_lookup_function grid_lookup_avx512(void);

#endif
