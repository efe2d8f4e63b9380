/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_isa.h - the serial inner operations, one table per instruction set.
 * cpu_scalar.c is the specification, written as plainly as it goes; the others give the same bits.
 * Threads: any; what is written and the scratch belong to the caller.
 */
#ifndef LARDER_KERNELS_CPU_ISA_H
#define LARDER_KERNELS_CPU_ISA_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "kernels/kernels.h"

/* A product is cut into panels of this many columns, and k into pieces that stay in the caches. */
#define CPU_PANEL_COLUMNS 64u
#define CPU_PANEL_DEPTH   128u
/* Query rows (tokens x heads of one KV head) that share a block of keys. */
#define CPU_TILE_ROWS 96u
static_assert(LARDER_HEAD_GROUP_MAX <= CPU_TILE_ROWS, "a token's heads share a tile");

/* A thread's own scratch. */
struct cpu_scratch {
    float panel[CPU_PANEL_DEPTH * CPU_PANEL_COLUMNS];
    float keys[LARDER_HEAD_DIMS_MAX * LARDER_ATTENTION_BLOCK_KEYS];   /* [k_dims][block] */
    float values[LARDER_ATTENTION_BLOCK_KEYS * LARDER_HEAD_DIMS_MAX]; /* [block][v_dims] */
    float queries[CPU_TILE_ROWS * LARDER_HEAD_DIMS_MAX];              /* scaled */
    float scores[CPU_TILE_ROWS * LARDER_ATTENTION_BLOCK_KEYS];
    float sums[CPU_TILE_ROWS * LARDER_HEAD_DIMS_MAX];
    float largest[CPU_TILE_ROWS];
    float weight[CPU_TILE_ROWS];
};

struct cpu_product {
    float *out;
    const float *x;
    const void *weight;
    const float *bias; /* or NULL */
    uint64_t out_stride;
    uint64_t x_stride;
    uint64_t weight_stride;
    uint64_t depth; /* k */
    uint32_t weight_dtype;
};

/* What attention of one KV head needs; strides in elements. */
struct cpu_attention {
    float *out;
    const float *q;
    const void *k;
    const void *v;
    const uint32_t *query_positions;
    const uint32_t *key_positions; /* or NULL */
    uint64_t out_stride[2];        /* row, head */
    uint64_t q_stride[2];
    uint64_t k_stride; /* key */
    uint64_t v_stride;
    uint64_t key_count;
    uint32_t k_dtype;
    uint32_t v_dtype;
    uint32_t k_dims;
    uint32_t v_dims;
    uint32_t group; /* query heads: out and q start at the first of them */
    float scale;
};

struct cpu_isa {
    const char *name;
    bool (*usable)(void);
    /* out[row0..row1)[column0..column1), at most CPU_PANEL_COLUMNS columns. */
    void (*matmul)(struct cpu_scratch *scratch, const struct cpu_product *product, uint64_t row0,
                   uint64_t row1, uint64_t column0, uint64_t column1);
    /* Rows row0..row1, at most CPU_TILE_ROWS / group of them, all heads of the group. */
    void (*attention)(struct cpu_scratch *scratch, const struct cpu_attention *attention,
                      uint64_t row0, uint64_t row1);
    void (*rmsnorm)(float *out, const float *x, const float *weight, uint64_t count, float eps);
    /* One row of `heads` heads. */
    void (*rope)(float *x, uint64_t heads, uint64_t head_stride, const float *cos, const float *sin,
                 uint64_t pairs, uint32_t interleaved);
    void (*swiglu)(float *out, const float *gate, const float *up, uint64_t count);
    void (*add)(float *out, const float *x, uint64_t count);
    void (*to_float)(float *out, const void *x, uint32_t dtype, uint64_t count);
    void (*from_float)(void *out, uint32_t dtype, const float *x, uint64_t count);
};

extern const struct cpu_isa cpu_scalar;
#ifdef LARDER_X86
extern const struct cpu_isa cpu_avx2;
extern const struct cpu_isa cpu_avx512;
#endif

static inline uint32_t cpu_key_position(const struct cpu_attention *a, uint64_t key)
{
    return a->key_positions ? a->key_positions[key] : (uint32_t)key;
}

#endif
