/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_simd.h - products and attention in tiles, included once by each vector instruction set's
 * file, which gives (everything in f32, columns a multiple of 16):
 *   tile_product()     out[rows][columns] = (or +=) a[rows][depth] * b[depth][columns]
 *   pack_transposed()  out[k][r] = row r, element k; missing rows up to a multiple of 16 are zeros
 *   pack_rows()        out[r][k] = row r, element k
 * A tile only decides which results are computed beside each other: each is still the chain over
 * k, or over the keys, that cpu_scalar.c writes down.
 */
#ifndef LARDER_KERNELS_CPU_SIMD_H
#define LARDER_KERNELS_CPU_SIMD_H

#include "kernels/cpu/cpu_elementwise.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/cpu_math.h"

/* Rows of a tile whose sums stay in registers. */
#define TILE_ROWS 6u

static const char *row_at(const void *data, uint32_t dtype, uint64_t index)
{
    return (const char *)data + index * larder_dtype_bytes(dtype);
}

/* A panel narrower than a multiple of 16 columns goes through a copy, so that nothing beyond it is
 * written. */
static void edge_product(float *out, uint64_t out_stride, const float *x, uint64_t x_stride,
                         const float *panel, uint64_t rows, uint64_t columns, uint64_t depth,
                         bool accumulate)
{
    float edge[TILE_ROWS * CPU_PANEL_COLUMNS];
    for (uint64_t row = 0; row < rows; row += TILE_ROWS) {
        uint64_t count = larder_min_u64(TILE_ROWS, rows - row);
        if (accumulate)
            for (uint64_t i = 0; i < count; i++) {
                memset(edge + i * CPU_PANEL_COLUMNS, 0, CPU_PANEL_COLUMNS * sizeof(*edge));
                memcpy(edge + i * CPU_PANEL_COLUMNS, out + (row + i) * out_stride,
                       columns * sizeof(*edge));
            }
        tile_product(edge, CPU_PANEL_COLUMNS, x + row * x_stride, x_stride, panel,
                     CPU_PANEL_COLUMNS, count, larder_round_up(columns, 16), depth, accumulate);
        for (uint64_t i = 0; i < count; i++)
            memcpy(out + (row + i) * out_stride, edge + i * CPU_PANEL_COLUMNS,
                   columns * sizeof(*edge));
    }
}

static void matmul(struct cpu_scratch *scratch, const struct cpu_product *p, uint64_t row0,
                   uint64_t row1, uint64_t column0, uint64_t column1)
{
    uint64_t rows = row1 - row0;
    uint64_t columns = column1 - column0;
    float *out = p->out + row0 * p->out_stride + column0;
    for (uint64_t k = 0; k < p->depth; k += CPU_PANEL_DEPTH) {
        uint64_t depth = larder_min_u64(CPU_PANEL_DEPTH, p->depth - k);
        const float *x = p->x + row0 * p->x_stride + k;
        pack_transposed(scratch->panel, CPU_PANEL_COLUMNS,
                        row_at(p->weight, p->weight_dtype, column0 * p->weight_stride + k),
                        p->weight_dtype, p->weight_stride, columns, depth);
        if (columns % 16 == 0)
            tile_product(out, p->out_stride, x, p->x_stride, scratch->panel, CPU_PANEL_COLUMNS,
                         rows, columns, depth, k > 0);
        else
            edge_product(out, p->out_stride, x, p->x_stride, scratch->panel, rows, columns, depth,
                         k > 0);
    }
    if (p->bias)
        for (uint64_t row = 0; row < rows; row++)
            add(out + row * p->out_stride, p->bias + column0, columns);
}

/* Hides keys behind the row's position, turns its scores into weights, and returns the factor by
 * which its earlier sums shrink. */
static float soften(const struct cpu_attention *a, float *scores, float *largest, float *weight,
                    uint64_t first, uint64_t count, uint32_t position)
{
    float top = *largest;
    if (a->key_positions) {
        for (uint64_t j = 0; j < count; j++)
            scores[j] = a->key_positions[first + j] <= position ? scores[j] : -INFINITY;
    } else {
        uint64_t visible = position < first ? 0 : position - first + 1;
        count = larder_min_u64(count, visible);
    }
    for (uint64_t j = count; j < LARDER_ATTENTION_BLOCK_KEYS; j++)
        scores[j] = -INFINITY;
    float tops[CPU_LANES];
    for (uint64_t lane = 0; lane < CPU_LANES; lane++)
        tops[lane] = -INFINITY;
    for (uint64_t j = 0; j < LARDER_ATTENTION_BLOCK_KEYS; j += CPU_LANES)
        for (uint64_t lane = 0; lane < CPU_LANES; lane++)
            tops[lane] = scores[j + lane] > tops[lane] ? scores[j + lane] : tops[lane];
    for (uint64_t lane = 0; lane < CPU_LANES; lane++)
        top = tops[lane] > top ? tops[lane] : top;
    if (top == -INFINITY) {
        memset(scores, 0, LARDER_ATTENTION_BLOCK_KEYS * sizeof(*scores));
        return 1;
    }
    float lanes[CPU_LANES] = {0};
    for (uint64_t j = 0; j < LARDER_ATTENTION_BLOCK_KEYS; j += CPU_LANES)
        for (uint64_t lane = 0; lane < CPU_LANES; lane++) {
            scores[j + lane] = exp_float(scores[j + lane] - top);
            lanes[lane] += scores[j + lane];
        }
    float shrink = exp_float(*largest - top);
    *weight = fmaf(*weight, shrink, sum_lanes(lanes));
    *largest = top;
    return shrink;
}

static bool block_visible(const struct cpu_attention *a, uint64_t first, uint64_t count,
                          uint32_t last_position)
{
    if (!a->key_positions)
        return first <= last_position;
    for (uint64_t j = 0; j < count; j++)
        if (a->key_positions[first + j] <= last_position)
            return true;
    return false;
}

static void attention(struct cpu_scratch *s, const struct cpu_attention *a, uint64_t row0,
                      uint64_t row1)
{
    const uint64_t block = LARDER_ATTENTION_BLOCK_KEYS;
    uint64_t group = a->group;
    uint64_t rows = (row1 - row0) * group;
    /* Widths that tile_product() takes; the columns between are zeros and stay unread. */
    uint64_t v_columns = larder_round_up(a->v_dims, 16);
    uint32_t last_position = 0;
    for (uint64_t i = 0; i < rows; i++) {
        uint64_t row = row0 + i / group;
        const float *q = a->q + row * a->q_stride[0] + i % group * a->q_stride[1];
        for (uint32_t d = 0; d < a->k_dims; d++)
            s->queries[i * a->k_dims + d] = q[d] * a->scale;
        s->largest[i] = -INFINITY;
        s->weight[i] = 0;
        if (a->query_positions[row] > last_position)
            last_position = a->query_positions[row];
    }
    memset(s->sums, 0, rows * v_columns * sizeof(*s->sums));

    for (uint64_t first = 0; first < a->key_count; first += block) {
        uint64_t count = larder_min_u64(block, a->key_count - first);
        if (!block_visible(a, first, count, last_position))
            continue;
        pack_transposed(s->keys, block, row_at(a->k, a->k_dtype, first * a->k_stride), a->k_dtype,
                        a->k_stride, count, a->k_dims);
        pack_rows(s->values, v_columns, row_at(a->v, a->v_dtype, first * a->v_stride), a->v_dtype,
                  a->v_stride, count, a->v_dims);
        tile_product(s->scores, block, s->queries, a->k_dims, s->keys, block, rows,
                     larder_round_up(count, 16), a->k_dims, false);
        for (uint64_t i = 0; i < rows; i++) {
            float shrink = soften(a, s->scores + i * block, &s->largest[i], &s->weight[i], first,
                                  count, a->query_positions[row0 + i / group]);
            for (uint64_t d = 0; d < v_columns; d++)
                s->sums[i * v_columns + d] *= shrink;
        }
        tile_product(s->sums, v_columns, s->scores, block, s->values, v_columns, rows, v_columns,
                     count, true);
    }
    for (uint64_t i = 0; i < rows; i++) {
        float *out = a->out + (row0 + i / group) * a->out_stride[0] + i % group * a->out_stride[1];
        float weight = s->weight[i];
        /* As in cpu_scalar.c: no -0. */
        for (uint32_t d = 0; d < a->v_dims; d++)
            out[d] = weight > 0 ? s->sums[i * v_columns + d] / weight + 0.0f : 0.0f;
    }
}

#endif
