/* SPDX-License-Identifier: Apache-2.0 */
/* node.h - the tree that a recipe's text becomes, and what each kind of node does.
 *
 * The numbers of a section go through the tree as f32, [head][token][dim].
 *
 *   Encoding  sees all tokens at once, appends bytes, and leaves in the numbers what decoding will
 *             give: so whoever works on the error of another node, and the error that is recorded,
 *             see the very values that a reader gets.
 *   Decoding  goes CODEC_ROWS_TOKENS tokens of all heads at a time, which stay in the caches:
 *             `decode_begin` takes the node's bytes in the order in which encoding appended them,
 *             then `decode_rows` gives the tokens from the first to the last, so many each time,
 *             fewer at the end only.
 *
 * Roles: a transform changes the numbers and hands them to the rest of its pipe (its first inner);
 * a wrapper has inner pipes in braces; a leaf turns numbers into bytes; a coder behind a leaf says
 * how its symbols are stored.
 *
 * What a node reads from a profile is taken at open (`bind`). Whoever encodes or decodes has seen
 * that the model's layers, heads and dims are those of the profile.
 *
 * Contract of every node: deterministic on every machine, total and memory-safe on hostile bytes,
 * allocates nothing but from the run's scratch, whose need `scratch` states.
 */
#ifndef LARDER_CODEC_NODE_H
#define LARDER_CODEC_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/larder_base.h"
#include "codec/codec.h"
#include "codec/profile.h"
#include "codec/stage.h"

/* Of a tile of symbols: groups of tokens are multiples of it. */
#define CODEC_TILE_TOKENS 16u
#define CODEC_ROWS_TOKENS 4u /* divides it */
#define CODEC_NODES_MAX   64u
#define CODEC_DEPTH_MAX   4u /* of braces */
#define CODEC_PARAMS_MAX  8u

/* The build contracts no multiplication and addition into one rounding, so that each of these
 * gives the same bits; the dynamic linker picks one. Sanitizers run before it can. */
#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&                \
    !defined(__SANITIZE_THREAD__)
#define CODEC_VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CODEC_VECTOR
#endif

/* So many numbers of a vector, whatever the machine has of them. Never an argument or a result: how
 * those are passed depends on the machine. */
#define CODEC_LANES 16u
typedef float codec_lanes __attribute__((vector_size(CODEC_LANES * sizeof(float))));
typedef int32_t codec_lane_ints __attribute__((vector_size(CODEC_LANES * sizeof(int32_t))));
typedef uint32_t codec_lane_words __attribute__((vector_size(CODEC_LANES * sizeof(uint32_t))));
typedef uint16_t codec_lane_halves __attribute__((vector_size(CODEC_LANES * sizeof(uint16_t))));
typedef uint8_t codec_lane_bytes __attribute__((vector_size(CODEC_LANES)));

/* Where a lane of the mask is set x, else y. */
#define CODEC_CHOOSE(mask, x, y)                                                                   \
    ((codec_lanes)(((codec_lane_ints)(x) & (mask)) | ((codec_lane_ints)(y) & ~(mask))))

/* Rounded to nearest, ties to even, in the upper half of each lane: as codec_store_elems(). */
#define CODEC_ROUNDED_BF16(x) ((codec_lane_words)(x) + 0x7fffu + ((codec_lane_words)(x) >> 16 & 1u))

/* The sum of all lanes in each of them, as sum_lanes() adds them. */
#define CODEC_SUM(x)                                                                               \
    do {                                                                                           \
        x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);  \
        x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);  \
        x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);  \
        x += __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);  \
    } while (0)

/* What an encoder answers, instead of an error, when these numbers cannot be had this way: the
 * section is stored exact then. */
#define CODEC_CANNOT 1

struct codec_size {
    uint32_t heads;
    uint32_t tokens;
    uint32_t dims;
};

static inline uint64_t codec_elems(const struct codec_size *size)
{
    return (uint64_t)size->heads * size->tokens * size->dims;
}

/* Of the rows that decoding gives at a time, as scratch. */
static inline uint64_t codec_rows_bytes(const struct codec_size *size)
{
    uint64_t tokens = larder_min_u64(size->tokens, CODEC_ROWS_TOKENS);
    return larder_round_up(tokens * size->heads * size->dims * sizeof(float), 64);
}

/* f32 [heads][tokens][dims], dense. */
struct codec_tile {
    float *x;
    struct codec_size size;
};

/* One section being encoded or decoded. */
struct codec_run {
    const struct larder_block *block;
    uint32_t layer;
    uint8_t kind;
    uint8_t *out;      /* encoding: where the next bytes go; the bound was checked */
    const uint8_t *in; /* decoding */
    const uint8_t *in_end;
    uint8_t *scratch; /* a stack, aligned to 64 */
    uint8_t *scratch_end;
};

struct codec_node;
struct symbol_tables;

struct codec_param {
    const char *name;
    double low;
    double high;
    double missing; /* its value when the text does not say it */
    /* Names for the values 0, 1, ..., separated by spaces; or NULL: a number. */
    const char *words;
    bool whole; /* a number without fraction */
};

/* Of the section that a node sees, so that it may look up what is known of a place in it. */
enum codec_whole {
    CODEC_WHOLE_TOKENS = 1,   /* its tokens are the block's */
    CODEC_WHOLE_CHANNELS = 2, /* head * dims + dim is that of the model */
    CODEC_WHOLE_HEADS = 4,    /* its heads are the model's */
};

enum codec_role {
    CODEC_TRANSFORM,
    CODEC_WRAPPER,
    CODEC_LEAF,
    CODEC_CODER,
    CODEC_CASES,  /* layers(): the parser makes it */
    CODEC_PLANES, /* works on the planes' bytes, see stage.h */
};

struct codec_node_ops {
    const char *name;
    const char *summary;
    enum codec_role role;
    uint32_t inner_count; /* of a wrapper */
    bool inner_more;      /* ... and more may follow */
    const struct codec_param *params;
    uint32_t param_count;
    bool needs_tables;                    /* larder_block.tables */
    bool needs_profile;                   /* does nothing without one */
    const struct codec_stage_ops *planes; /* of CODEC_PLANES */

    /* What it does nothing without, enum larder_recipe_input; NULL: nothing but what needs_profile
     * says. */
    uint32_t (*needs)(const struct codec_node *node);
    /* What must be whole where it stands, and what is not any more for its inner nodes: bits of
     * codec_whole. NULL: nothing. The parser refuses what does not meet. */
    uint32_t (*wants)(const struct codec_node *node);
    uint32_t (*breaks)(const struct codec_node *node);
    /* Parameters against each other; -EINVAL with a message. May be NULL. */
    int (*check)(const struct codec_node *node);
    /* Takes what it reads out of a profile, for all layers of one side, when the recipe is opened:
     * *bound becomes the node's. It is one piece of larder_alloc(), and may point into the profile;
     * NULL when this profile has nothing for it. LARDER_EUNSUPPORTED or LARDER_EFORMAT as
     * larder_profile_find(). NULL: the node reads none. */
    int (*bind)(void **bound, const struct codec_node *node, const struct larder_profile *profile,
                uint8_t kind);
    /* Whether it can serve such sections, inner nodes included: LARDER_EUNSUPPORTED with a message.
     * May be NULL. */
    int (*fits)(const struct codec_node *node, const struct codec_size *size);
    /* At most so many bytes are appended; with those of its inner nodes. */
    uint64_t (*bound)(const struct codec_node *node, const struct codec_size *size);
    /* Of encoding or decoding, whichever is more; with inner nodes; each piece rounded up to 64. */
    uint64_t (*scratch)(const struct codec_node *node, const struct codec_size *size);
    /* 0, CODEC_CANNOT, or an error. */
    int (*encode)(const struct codec_node *node, struct codec_run *run, struct codec_tile *tile);
    /* LARDER_ECORRUPT with a message; *state is handed to decode_rows. */
    int (*decode_begin)(const struct codec_node *node, struct codec_run *run,
                        const struct codec_size *size, void **state);
    /* Tokens first .. first + tile->size.tokens - 1. */
    void (*decode_rows)(const struct codec_node *node, const struct codec_run *run, void *state,
                        uint32_t first, struct codec_tile *tile);
    /* A shorter way for a node that nothing stands above, where the model's dtype is bf16: rows
     * from token `first` on as they stand in the planes, [head][size->tokens][dim], the same bits
     * as decode_rows() and codec_store_elems() give. How many tokens' rows were written: a whole
     * tile, or 0 where decode_rows() must do it. NULL: there is none. */
    uint32_t (*decode_planes)(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, uint8_t *planes,
                              const struct codec_size *size);
};

struct codec_node {
    const struct codec_node_ops *ops;
    const struct codec_node *inner; /* the first */
    const struct codec_node *next;  /* beside it in the node around both */
    bool entropy_coded;             /* of a leaf: rans stands behind it */
    double value[CODEC_PARAMS_MAX];
    void *bound;                  /* by `bind`; only read after open. NULL: nothing */
    struct symbol_tables *tables; /* of an entropy-coded leaf (symbols.h); NULL: none */
    char pipe[17];                /* of a leaf: a digest of all stages down to it */
    uint32_t layer_first;         /* inner nodes of layers() */
    uint32_t layer_last;
};

/* --- for the ops ------------------------------------------------------------------------------ */

static inline int codec_encode(const struct codec_node *node, struct codec_run *run,
                               struct codec_tile *tile)
{
    return node->ops->encode(node, run, tile);
}

static inline int codec_decode_begin(const struct codec_node *node, struct codec_run *run,
                                     const struct codec_size *size, void **state)
{
    return node->ops->decode_begin(node, run, size, state);
}

static inline void codec_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                     void *state, uint32_t first, struct codec_tile *tile)
{
    node->ops->decode_rows(node, run, state, first, tile);
}

static inline uint32_t codec_decode_planes(const struct codec_node *node,
                                           const struct codec_run *run, void *state, uint32_t first,
                                           uint8_t *planes, const struct codec_size *size)
{
    return node->ops->decode_planes
               ? node->ops->decode_planes(node, run, state, first, planes, size)
               : 0;
}

static inline uint64_t codec_bound(const struct codec_node *node, const struct codec_size *size)
{
    return node->ops->bound(node, size);
}

static inline uint64_t codec_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return node->ops->scratch(node, size);
}

static inline int codec_fits(const struct codec_node *node, const struct codec_size *size)
{
    return node->ops->fits ? node->ops->fits(node, size) : 0;
}

/* For nodes that add nothing to what their first inner node needs. */
int codec_inner_fits(const struct codec_node *node, const struct codec_size *size);
uint64_t codec_inner_bound(const struct codec_node *node, const struct codec_size *size);
uint64_t codec_inner_scratch(const struct codec_node *node, const struct codec_size *size);

/* Room on the run's scratch, aligned to 64, which `scratch` announced. It is let go by setting
 * run->scratch back. */
void *codec_take_scratch(struct codec_run *run, uint64_t bytes);
/* Appends room for `bytes`. */
uint8_t *codec_append(struct codec_run *run, uint64_t bytes);
/* The next `bytes` of the input; NULL with LARDER_ECORRUPT's message when there are fewer. */
const uint8_t *codec_take(struct codec_run *run, uint64_t bytes, const char *what);

/* The largest magnitude; infinity when one number is not finite. */
float codec_largest(const float *x, uint64_t count);

/* Leaves store parameters as f16, times a unit: the power of two by which the largest of the
 * numbers is near f16's largest, so that neither tiny nor huge ones are lost. One byte of the
 * stream. CODEC_CANNOT when a number is not finite. */
#define CODEC_UNIT_BYTES 1u
int codec_append_unit(struct codec_run *run, float *unit, const float *x, uint64_t count);
int codec_take_unit(struct codec_run *run, float *unit);
void codec_store_f16(uint8_t *out, const float *x, uint64_t count, float unit);
void codec_load_f16(float *out, const uint8_t *in, uint64_t count, float unit);
/* Numbers in the model's dtype. */
void codec_store_elems(uint8_t *out, const float *x, uint64_t count, uint32_t dtype);
void codec_load_elems(float *out, const uint8_t *in, uint64_t count, uint32_t dtype);
/* What storing them leaves of them. */
void codec_round_elems(float *out, const float *x, uint64_t count, uint32_t dtype);

extern const struct codec_node_ops codec_node_balance;
extern const struct codec_node_ops codec_node_anchors;
extern const struct codec_node_ops codec_node_cases;
extern const struct codec_node_ops codec_node_choose;
extern const struct codec_node_ops codec_node_codebook;
extern const struct codec_node_ops codec_node_hadamard;
extern const struct codec_node_ops codec_node_join;
extern const struct codec_node_ops codec_node_keep;
extern const struct codec_node_ops codec_node_lowrank;
extern const struct codec_node_ops codec_node_klt;
extern const struct codec_node_ops codec_node_normalize;
extern const struct codec_node_ops codec_node_outliers;
extern const struct codec_node_ops codec_node_qjl;
extern const struct codec_node_ops codec_node_quant;
extern const struct codec_node_ops codec_node_rans;
extern const struct codec_node_ops codec_node_reorder;
extern const struct codec_node_ops codec_node_residual;
extern const struct codec_node_ops codec_node_rfft;
extern const struct codec_node_ops codec_node_rope_off;
extern const struct codec_node_ops codec_node_sinks;
extern const struct codec_node_ops codec_node_split;
extern const struct codec_node_ops codec_node_steps;

#endif
