/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/section.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/cpu/cpu_math.h"

#define SECTION_VERSION 1

enum section_form {
    FORM_TREE = 0,
    FORM_EXACT = 1, /* bytes of the exact stage follow */
};

struct section_header {
    uint8_t version;     /* 0    SECTION_VERSION */
    uint8_t form;        /* 1    enum section_form */
    uint8_t reserved[6]; /* 2-7  0 */
};
static_assert(sizeof(struct section_header) == 8, "on-disk size");

/* --- the section ------------------------------------------------------------------------------ */

static struct codec_shape planes_shape(const struct section *section)
{
    return (struct codec_shape){
        .group_count = section->size.heads,
        .token_count = section->size.tokens,
        .dims = section->size.dims,
        .elem_bytes = (uint32_t)larder_dtype_bytes(section->block->model->dtype),
    };
}

uint64_t section_bound(const struct section *section)
{
    struct codec_shape shape = planes_shape(section);
    uint64_t tree = codec_bound(section->tree, &section->size);
    uint64_t exact = codec_stage_byteplanes.bound(&shape);
    return sizeof(struct section_header) + (tree > exact ? tree : exact);
}

/* Encoding: the numbers, the tree's scratch; or the exact stage's workspace. Decoding needs less:
 * a tile in place of all numbers. */
uint64_t section_workspace_bytes(const struct section *section)
{
    struct codec_shape shape = planes_shape(section);
    uint64_t numbers = larder_round_up(codec_elems(&section->size) * sizeof(float), 64);
    uint64_t tree = numbers + codec_scratch(section->tree, &section->size);
    uint64_t exact = codec_stage_byteplanes.workspace_bytes(&shape);
    return tree > exact ? tree : exact;
}

/* Squares are summed in f32 for so many elements, in lanes, and all of those in f64: to a part in
 * a hundred thousand or better, and the same bits on every machine. */
#define MEASURED_ELEMS 1024u
#define LOADED_ELEMS   4096u

/* Adds what a vector lost, and its squares; a macro, as RESTORE_PAIRS() in quant.c. */
#define ADD_SQUARES(errors, squares, before, after, scale)                                         \
    do {                                                                                           \
        codec_lanes off = ((after) - (before)) * (scale);                                          \
        codec_lanes scaled = (before) * (scale);                                                   \
        (errors) += off * off;                                                                     \
        (squares) += scaled * scaled;                                                              \
    } while (0)

/* Sums of each second vector go beside the others, so that none waits for the one before. */
#define ADD_UP(sums, errors, squares)                                                              \
    do {                                                                                           \
        float lanes[2][CPU_LANES];                                                                 \
        (errors)[0] += (errors)[1];                                                                \
        (squares)[0] += (squares)[1];                                                              \
        memcpy(lanes[0], &(errors)[0], sizeof(lanes[0]));                                          \
        memcpy(lanes[1], &(squares)[0], sizeof(lanes[1]));                                         \
        for (uint32_t i = 0; i < 2; i++)                                                           \
            (sums)[i] += (double)sum_lanes(lanes[i]);                                              \
    } while (0)

/* Adds to sums those of squared errors and of squares, of numbers times `scale`. Behind the last
 * number stand zeros up to a multiple of two vectors. */
CODEC_VECTOR static void sum_squares(double sums[2], const float *restrict was,
                                     const float *restrict is, uint64_t count, float scale)
{
    codec_lanes errors[2] = {{0}, {0}};
    codec_lanes squares[2] = {{0}, {0}};
    for (uint64_t i = 0; i < count; i += 2 * CODEC_LANES) {
        for (uint32_t j = 0; j < 2; j++) {
            codec_lanes before;
            codec_lanes after;
            memcpy(&before, was + i + j * CODEC_LANES, sizeof(before));
            memcpy(&after, is + i + j * CODEC_LANES, sizeof(after));
            ADD_SQUARES(errors[j], squares[j], before, after, scale);
        }
    }
    ADD_UP(sums, errors, squares);
}

/* The same sums, of numbers that are bf16 and of those that are rounded to it only here; `count` is
 * a multiple of two vectors. */
CODEC_VECTOR static void sum_squares_bf16(double sums[2], const uint8_t *restrict was,
                                          const float *restrict decoded, uint64_t count,
                                          float scale)
{
    codec_lanes errors[2] = {{0}, {0}};
    codec_lanes squares[2] = {{0}, {0}};
    for (uint64_t i = 0; i < count; i += 2 * CODEC_LANES) {
        for (uint32_t j = 0; j < 2; j++) {
            codec_lane_halves halves;
            codec_lanes after;
            memcpy(&halves, was + 2 * (i + j * CODEC_LANES), sizeof(halves));
            memcpy(&after, decoded + i + j * CODEC_LANES, sizeof(after));
            codec_lanes before =
                (codec_lanes)(__builtin_convertvector(halves, codec_lane_words) << 16);
            after = (codec_lanes)(CODEC_ROUNDED_BF16(after) & 0xffff0000u);
            ADD_SQUARES(errors[j], squares[j], before, after, scale);
        }
    }
    ADD_UP(sums, errors, squares);
}

/* What a reader gets differs from what was there by this much; `most` is the largest magnitude of
 * what was there. */
static void measure(struct larder_section_error *error, const struct section *section,
                    const float *decoded, const uint8_t *planes, float most)
{
    uint32_t dtype = section->block->model->dtype;
    uint64_t elem_bytes = larder_dtype_bytes(dtype);
    uint64_t count = codec_elems(&section->size);
    float was[MEASURED_ELEMS];
    float is[MEASURED_ELEMS];
    int exponent = 0;
    (void)frexpf(most, &exponent);
    exponent = exponent < -126 ? -126 : exponent;
    float scale = ldexpf(1, -exponent);
    double sums[2] = {0};
    for (uint64_t first = 0; first < count; first += MEASURED_ELEMS) {
        uint64_t n = larder_min_u64(count - first, MEASURED_ELEMS);
        if (dtype == LARDER_BF16 && n == MEASURED_ELEMS) {
            sum_squares_bf16(sums, planes + first * elem_bytes, decoded + first, n, scale);
            continue;
        }
        for (uint64_t i = n; i < MEASURED_ELEMS; i++)
            was[i] = is[i] = 0;
        codec_load_elems(was, planes + first * elem_bytes, n, dtype);
        codec_round_elems(is, decoded + first, n, dtype);
        sum_squares(sums, was, is, n, scale);
    }
    error->error_energy = ldexp(sums[0], 2 * exponent);
    error->signal_energy = ldexp(sums[1], 2 * exponent);
}

/* The numbers as f32; the largest magnitude, which is looked for while they are near. */
static float load_numbers(float *x, const struct section *section, const uint8_t *planes)
{
    uint32_t dtype = section->block->model->dtype;
    uint64_t elem_bytes = larder_dtype_bytes(dtype);
    uint64_t count = codec_elems(&section->size);
    float most = 0;
    for (uint64_t first = 0; first < count; first += LOADED_ELEMS) {
        uint64_t n = larder_min_u64(count - first, LOADED_ELEMS);
        codec_load_elems(x + first, planes + first * elem_bytes, n, dtype);
        most = fmaxf(most, codec_largest(x + first, n));
    }
    return most;
}

static int encode_exact(const struct section *section, uint8_t *out, uint64_t *out_bytes,
                        struct larder_section_error *error, const void *planes, void *workspace)
{
    struct codec_shape shape = planes_shape(section);
    struct section_header header = {.version = SECTION_VERSION, .form = FORM_EXACT};
    memcpy(out, &header, sizeof(header));
    *error = (struct larder_section_error){0};
    uint64_t bytes;
    LARDER_TRY(codec_stage_byteplanes.encode(out + sizeof(header),
                                             codec_stage_byteplanes.bound(&shape), &bytes, error,
                                             &shape, planes, workspace));
    *out_bytes = sizeof(header) + bytes;
    error->fell_back = !section->block->keep_bits;
    return 0;
}

int section_encode(const struct section *section, void *out, uint64_t *out_bytes,
                   struct larder_section_error *error, const void *planes, void *workspace,
                   uint64_t workspace_bytes)
{
    if (section->block->keep_bits)
        return encode_exact(section, out, out_bytes, error, planes, workspace);
    struct codec_run run = {
        .block = section->block,
        .layer = section->layer,
        .kind = section->kind,
        .out = (uint8_t *)out + sizeof(struct section_header),
        .scratch = workspace,
        .scratch_end = (uint8_t *)workspace + workspace_bytes,
    };
    uint64_t count = codec_elems(&section->size);
    struct codec_tile tile = {.x = codec_take_scratch(&run, count * sizeof(float)),
                              .size = section->size};
    float most = load_numbers(tile.x, section, planes);
    if (!isfinite(most))
        return encode_exact(section, out, out_bytes, error, planes, workspace);
    struct section_header header = {.version = SECTION_VERSION, .form = FORM_TREE};
    memcpy(out, &header, sizeof(header));
    int err = codec_encode(section->tree, &run, &tile);
    if (err < 0)
        return err;
    *out_bytes = (uint64_t)(run.out - (uint8_t *)out);
    struct codec_shape shape = planes_shape(section);
    if (err == CODEC_CANNOT || *out_bytes >= codec_shape_bytes(&shape))
        return encode_exact(section, out, out_bytes, error, planes, workspace);
    measure(error, section, tile.x, planes, most);
    /* What the largest numbers were rounded to may be beyond the dtype. */
    if (!isfinite(error->error_energy))
        return encode_exact(section, out, out_bytes, error, planes, workspace);
    return 0;
}

static void store_tile(const struct section *section, uint8_t *planes,
                       const struct codec_tile *tile, uint32_t first)
{
    uint32_t dtype = section->block->model->dtype;
    uint64_t row_bytes = section->size.dims * larder_dtype_bytes(dtype);
    uint64_t row_elems = (uint64_t)tile->size.tokens * tile->size.dims;
    for (uint32_t head = 0; head < section->size.heads; head++) {
        uint64_t row = (uint64_t)head * section->size.tokens + first;
        codec_store_elems(planes + row * row_bytes, tile->x + head * row_elems, row_elems, dtype);
    }
}

static int decode_tree(const struct section *section, void *planes, struct codec_run *run)
{
    struct codec_tile tile = {.x = codec_take_scratch(run, codec_rows_bytes(&section->size)),
                              .size = section->size};
    void *state;
    LARDER_TRY(codec_decode_begin(section->tree, run, &section->size, &state));
    if (run->in != run->in_end)
        return larder_fail(LARDER_ECORRUPT, "a section has %llu bytes too many",
                           (unsigned long long)(run->in_end - run->in));
    bool is_straight = section->block->model->dtype == LARDER_BF16;
    uint32_t done;
    for (uint32_t first = 0; first < section->size.tokens; first += done) {
        done = is_straight
                   ? codec_decode_planes(section->tree, run, state, first, planes, &section->size)
                   : 0;
        if (done > 0)
            continue;
        done = (uint32_t)larder_min_u64(section->size.tokens - first, CODEC_ROWS_TOKENS);
        tile.size.tokens = done;
        codec_decode_rows(section->tree, run, state, first, &tile);
        store_tile(section, planes, &tile, first);
    }
    return 0;
}

int section_decode(const struct section *section, void *planes, const void *encoded,
                   uint64_t encoded_bytes, void *workspace, uint64_t workspace_bytes)
{
    struct section_header header;
    if (encoded_bytes < sizeof(header))
        return larder_fail(LARDER_ECORRUPT, "a section of %llu bytes has no header",
                           (unsigned long long)encoded_bytes);
    memcpy(&header, encoded, sizeof(header));
    if (header.version != SECTION_VERSION)
        return larder_fail(LARDER_EVERSION, "a section of version %u; this release knows %u",
                           header.version, SECTION_VERSION);
    if (header.form > FORM_EXACT || !larder_all_zero(header.reserved, sizeof(header.reserved)))
        return larder_fail(LARDER_ECORRUPT,
                           "a section's header has form %u, or a reserved byte that is not 0",
                           header.form);
    const uint8_t *in = (const uint8_t *)encoded + sizeof(header);
    uint64_t bytes = encoded_bytes - sizeof(header);
    if (header.form == FORM_EXACT) {
        struct codec_shape shape = planes_shape(section);
        return codec_stage_byteplanes.decode(planes, &shape, in, bytes, workspace);
    }
    struct codec_run run = {
        .block = section->block,
        .layer = section->layer,
        .kind = section->kind,
        .in = in,
        .in_end = in + bytes,
        .scratch = workspace,
        .scratch_end = (uint8_t *)workspace + workspace_bytes,
    };
    return decode_tree(section, planes, &run);
}
