/* SPDX-License-Identifier: Apache-2.0 */
#include "client/layout.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/record.h"

/* Beyond any address space; sums of a handful of such offsets still fit an int64_t. */
#define OFFSET_MAX (1ll << 56)

/* --- checks ---------------------------------------------------------------------------------- */

/* Is |stride| * (count - 1) an offset that can be? */
static int check_extent(const char *name, int64_t stride, uint64_t count)
{
    int64_t extent;
    if (count > 0 && (__builtin_mul_overflow(stride, (int64_t)(count - 1), &extent) ||
                      extent >= OFFSET_MAX || extent <= -OFFSET_MAX))
        return larder_fail(-EINVAL,
                           "layout: %s=%lld over %llu elements leaves the address space; strides "
                           "are in bytes",
                           name, (long long)stride, (unsigned long long)count);
    return 0;
}

static int check_pointers(const struct larder_layout *layout, uint32_t layers)
{
    if (!layout->bases && !layout->base)
        return larder_fail(-EINVAL, "layout: neither bases nor base is set");
    if (layout->v_bases && !layout->bases)
        return larder_fail(-EINVAL, "layout: v_bases needs bases");
    for (uint32_t i = 0; layout->bases && i < layers; i++)
        if (!layout->bases[i] || (layout->v_bases && !layout->v_bases[i]))
            return larder_fail(-EINVAL, "layout: layer %u of %u has no base", i, layers);
    return 0;
}

static int check_block_table(const struct larder_layout *layout, uint64_t *capacity)
{
    if (!layout->block_table)
        return 0;
    if (layout->block_tokens == 0)
        return larder_fail(-EINVAL, "layout: block_tokens=0 with a block table; it is the number "
                                    "of tokens in an engine block");
    uint32_t largest = 0;
    for (uint32_t i = 0; i < layout->block_table_count; i++)
        if (layout->block_table[i] > largest)
            largest = layout->block_table[i];
    LARDER_TRY(check_extent("block_stride", layout->block_stride, (uint64_t)largest + 1));
    *capacity =
        larder_min_u64(*capacity, (uint64_t)layout->block_table_count * layout->block_tokens);
    return 0;
}

static int check_side(const struct layout_side *side, const struct larder_model_desc *desc,
                      uint64_t rows)
{
    LARDER_TRY(check_extent("layer_stride", side->layer_stride, desc->layers));
    LARDER_TRY(check_extent("token_stride", side->token_stride, rows));
    LARDER_TRY(check_extent("head_stride", side->head_stride, desc->kv_heads));
    if (side->dim_stride == 0)
        return larder_fail(-EINVAL,
                           "layout: a dim stride is 0; it is normally the element's size, "
                           "%zu",
                           larder_dtype_bytes(desc->dtype));
    return check_extent("dim_stride", side->dim_stride, side->dims);
}

int layout_open(struct layout_view *out, const struct larder_layout *layout,
                const struct larder_model_desc *desc)
{
    if (layout->dtype != desc->dtype)
        return larder_fail(LARDER_EMODEL,
                           "layout: dtype %u, the model's is %u; larder does not convert",
                           layout->dtype, desc->dtype);
    if (layout->memory != 0)
        return larder_fail(LARDER_EUNSUPPORTED, "layout: memory %u is unknown; known is 0 (host)",
                           layout->memory);
    LARDER_TRY(check_pointers(layout, desc->layers));
    LARDER_TRY(check_extent("kv_stride", layout->kv_stride, 2));
    /* No prompt is longer, so no address beyond will be asked for. */
    uint64_t capacity = larder_min_u64(layout->token_capacity, LARDER_PROMPT_TOKENS_MAX);
    if (capacity == 0)
        return larder_fail(-EINVAL, "layout: token_capacity=0; it is the number of tokens that "
                                    "have room");
    LARDER_TRY(check_block_table(layout, &capacity));

    *out = (struct layout_view){
        .block_table = layout->block_table,
        .block_stride = layout->block_stride,
        .block_tokens = layout->block_tokens,
        .element_bytes = (uint32_t)larder_dtype_bytes(desc->dtype),
        .token_capacity = capacity,
    };
    out->sides[LARDER_SECTION_K] = (struct layout_side){
        .bases = layout->bases,
        .base = layout->base,
        .layer_stride = layout->bases ? 0 : layout->layer_stride,
        .token_stride = layout->token_stride,
        .head_stride = layout->head_stride,
        .dim_stride = layout->k_dim_stride,
        .dims = desc->k_dims,
    };
    struct layout_side *v = &out->sides[LARDER_SECTION_V];
    *v = out->sides[LARDER_SECTION_K];
    v->dim_stride = layout->v_dim_stride;
    v->dims = desc->v_dims;
    if (layout->v_token_stride != 0)
        v->token_stride = layout->v_token_stride;
    if (layout->v_head_stride != 0)
        v->head_stride = layout->v_head_stride;
    if (layout->v_bases)
        v->bases = layout->v_bases;
    v->shift = layout->v_bases ? 0 : layout->kv_stride;
    uint64_t rows = layout->block_table ? layout->block_tokens : capacity;
    LARDER_TRY(check_side(&out->sides[LARDER_SECTION_K], desc, rows));
    return check_side(v, desc, rows);
}

/* --- moves ----------------------------------------------------------------------------------- */

enum direction { TO_PLANES, TO_ENGINE };

/* Copies `bytes` from one side to the other. Rows of common sizes become a few vector moves. */
static inline __attribute__((always_inline)) void copy_row(char *engine, char *plane, size_t bytes,
                                                           enum direction direction)
{
    char *to = direction == TO_PLANES ? plane : engine;
    const char *from = direction == TO_PLANES ? engine : plane;
    switch (bytes) {
    case 64:
        memcpy(to, from, 64);
        break;
    case 128:
        memcpy(to, from, 128);
        break;
    case 256:
        memcpy(to, from, 256);
        break;
    default:
        memcpy(to, from, bytes);
    }
}

/* One layer's heads over a run of tokens without a gap: `engine` at head 0 of the run's first
 * token, `plane` at its row in the first plane. */
struct run {
    const struct layout_side *side;
    char *engine;
    char *plane;
    size_t plane_bytes; /* from head to head */
    uint32_t heads;
    uint32_t tokens;
    uint32_t element_bytes;
    bool past_cache;
};

#ifdef __SSE2__
/* Stores past the caches do not read the lines that they write: a third less traffic. They want
 * addresses that are multiples of 16; neighbouring rows fill each other's cache lines. */
static bool can_stream(const struct run *run, size_t row_bytes)
{
    const uint64_t all = (uint64_t)(uintptr_t)run->engine | (uint64_t)run->side->token_stride |
                         (uint64_t)run->side->head_stride | row_bytes;
    return run->past_cache && all % 16 == 0;
}

static inline void stream_row(char *to, const char *from, size_t bytes)
{
    const __m128i *source = (const __m128i *)(const void *)from;
    __m128i *target = (__m128i *)(void *)to;
    size_t left = bytes / sizeof(*source);
    for (; left >= 4; left -= 4) {
        const __m128i a = _mm_loadu_si128(source++);
        const __m128i b = _mm_loadu_si128(source++);
        const __m128i c = _mm_loadu_si128(source++);
        const __m128i d = _mm_loadu_si128(source++);
        _mm_stream_si128(target++, a);
        _mm_stream_si128(target++, b);
        _mm_stream_si128(target++, c);
        _mm_stream_si128(target++, d);
    }
    for (; left > 0; left--)
        _mm_stream_si128(target++, _mm_loadu_si128(source++));
}

/* Each head's plane is a stream of its own, and the CPU's prefetchers stop at its page ends: rows
 * are asked for this much ahead. */
#define PREFETCH_BYTES 1024u

static void stream_rows(const struct run *run, size_t row_bytes)
{
    const uint32_t ahead = (uint32_t)((PREFETCH_BYTES + row_bytes - 1) / row_bytes);
    for (uint32_t token = 0; token < run->tokens; token++)
        for (uint32_t head = 0; head < run->heads; head++) {
            const char *row = run->plane + head * run->plane_bytes + token * row_bytes;
            if (token + ahead < run->tokens)
                for (size_t i = 0; i < row_bytes; i += 64)
                    _mm_prefetch(row + ahead * row_bytes + i, _MM_HINT_T0);
            stream_row(run->engine + token * run->side->token_stride +
                           head * run->side->head_stride,
                       row, row_bytes);
        }
    /* Orders these stores before what tells another thread that the rows are there. */
    _mm_sfence();
}
#endif

/* Elements of a head lie together. */
static inline __attribute__((always_inline)) void move_rows(const struct run *run,
                                                            enum direction direction)
{
    const struct layout_side *side = run->side;
    const size_t row_bytes = (size_t)side->dims * run->element_bytes;
#ifdef __SSE2__
    if (direction == TO_ENGINE && can_stream(run, row_bytes)) {
        stream_rows(run, row_bytes);
        return;
    }
#endif
    if (side->token_stride == (int64_t)row_bytes) {
        for (uint32_t head = 0; head < run->heads; head++)
            copy_row(run->engine + head * side->head_stride, run->plane + head * run->plane_bytes,
                     row_bytes * run->tokens, direction);
        return;
    }
    /* Heads innermost: in the common [token][head][dim] order the engine's side is then walked
     * from end to end. */
    for (uint32_t token = 0; token < run->tokens; token++)
        for (uint32_t head = 0; head < run->heads; head++)
            copy_row(run->engine + token * side->token_stride + head * side->head_stride,
                     run->plane + head * run->plane_bytes + token * row_bytes, row_bytes,
                     direction);
}

/* Any strides. Done in tiles, so that a transposed V (elements of a head far apart, tokens side by
 * side) touches each cache line once. */
#define TILE 32u

static inline __attribute__((always_inline)) void
move_elements_of(const struct run *run, enum direction direction, size_t bytes)
{
    const struct layout_side *side = run->side;
    const uint32_t dims = side->dims;
    for (uint32_t head = 0; head < run->heads; head++) {
        char *engine = run->engine + head * side->head_stride;
        char *plane = run->plane + head * run->plane_bytes;
        for (uint32_t dim0 = 0; dim0 < dims; dim0 += TILE)
            for (uint32_t token0 = 0; token0 < run->tokens; token0 += TILE) {
                const uint32_t dim_end = dim0 + TILE < dims ? dim0 + TILE : dims;
                const uint32_t token_end =
                    token0 + TILE < run->tokens ? token0 + TILE : run->tokens;
                for (uint32_t dim = dim0; dim < dim_end; dim++)
                    for (uint32_t token = token0; token < token_end; token++) {
                        char *far = engine + token * side->token_stride + dim * side->dim_stride;
                        char *near = plane + ((size_t)token * dims + dim) * bytes;
                        if (direction == TO_PLANES)
                            memcpy(near, far, bytes);
                        else
                            memcpy(far, near, bytes);
                    }
            }
    }
}

static inline __attribute__((always_inline)) void move_run(const struct run *run,
                                                           enum direction direction)
{
    if (run->side->dim_stride == (int64_t)run->element_bytes)
        move_rows(run, direction);
    else if (run->element_bytes == 2)
        move_elements_of(run, direction, 2);
    else
        move_elements_of(run, direction, 4);
}

static char *side_base(const struct layout_side *side, uint32_t layer)
{
    char *base = side->bases ? side->bases[layer] : side->base + layer * side->layer_stride;
    return base + side->shift;
}

static inline __attribute__((always_inline)) void move_planes(const struct layout_view *view,
                                                              char *planes,
                                                              const struct layout_move *move,
                                                              enum direction direction)
{
    assert(move->token_first + move->row_count <= view->token_capacity);
    assert(move->row_first + move->row_count <= move->plane_tokens);
    const struct layout_side *side = &view->sides[move->slice.kind];
    const size_t row_bytes = (size_t)side->dims * view->element_bytes;
    const size_t plane_bytes = row_bytes * move->plane_tokens;
    for (uint32_t i = 0; i < move->slice.layer_count; i++) {
        char *layer_base = side_base(side, move->slice.layer_first + i) +
                           move->slice.head_first * side->head_stride;
        char *layer_planes = planes + i * plane_bytes * move->slice.head_count;
        for (uint32_t done = 0; done < move->row_count;) {
            uint64_t token = move->token_first + done;
            struct run run = {
                .side = side,
                .plane = layer_planes + (move->row_first + done) * row_bytes,
                .plane_bytes = plane_bytes,
                .heads = move->slice.head_count,
                .tokens = move->row_count - done,
                .element_bytes = view->element_bytes,
                .past_cache = move->past_cache,
            };
            if (view->block_table) {
                uint32_t row = (uint32_t)(token % view->block_tokens);
                uint32_t block = view->block_table[token / view->block_tokens];
                if (run.tokens > view->block_tokens - row)
                    run.tokens = view->block_tokens - row;
                run.engine = layer_base + block * view->block_stride + row * side->token_stride;
            } else {
                run.engine = layer_base + (int64_t)token * side->token_stride;
            }
            move_run(&run, direction);
            done += run.tokens;
        }
    }
}

void layout_gather(const struct layout_view *view, void *planes, const struct layout_move *move)
{
    move_planes(view, planes, move, TO_PLANES);
}

void layout_scatter(const struct layout_view *view, const void *planes,
                    const struct layout_move *move)
{
    /* The planes are only read in this direction. */
    move_planes(view, (char *)(uintptr_t)planes, move, TO_ENGINE);
}

/* --- the plain layout ------------------------------------------------------------------------ */

int larder_layout_plain(struct larder_layout *out, const struct larder_model_desc *desc, void *base,
                        uint64_t token_capacity)
{
    if (desc->k_dims != desc->v_dims)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "layout: k_dims=%u and v_dims=%u differ; fill in a layout by hand",
                           desc->k_dims, desc->v_dims);
    const int64_t element = (int64_t)larder_dtype_bytes(desc->dtype);
    const int64_t head = element * desc->k_dims;
    const int64_t token = head * desc->kv_heads;
    int64_t side;
    if (element == 0 || token_capacity > LARDER_PROMPT_TOKENS_MAX ||
        __builtin_mul_overflow(token, (int64_t)token_capacity, &side) || side > OFFSET_MAX / 2)
        return larder_fail(
            LARDER_ELIMIT, "layout: %llu tokens of dtype %u; at most %u tokens of a known dtype",
            (unsigned long long)token_capacity, desc->dtype, LARDER_PROMPT_TOKENS_MAX);
    *out = (struct larder_layout){
        .base = base,
        .layer_stride = 2 * side,
        .kv_stride = side,
        .token_stride = token,
        .head_stride = head,
        .k_dim_stride = element,
        .v_dim_stride = element,
        .dtype = desc->dtype,
        .token_capacity = token_capacity,
    };
    return 0;
}
