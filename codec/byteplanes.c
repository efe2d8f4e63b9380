/* SPDX-License-Identifier: Apache-2.0 */
/* byteplanes.c - bit-exact compression: byte planes, a base per channel, Huffman.
 *
 * What is redundant in K and V is the exponent. Elements are split into byte planes (planes.h); in
 * the top plane each channel (group, dim) may have its mean over the tokens subtracted, so that
 * loud and quiet channels share one histogram; a plane is then stored as one byte when it is
 * constant, as a zstd frame when that is smaller, and as it is otherwise. A section is never longer
 * than its planes and the header.
 *
 * The zstd frames hold literals only: matches in exponents are chance, cost more than they save
 * (3.0 against 2.6 bits a symbol) and halve the speed of decoding. So each block of a frame is
 * Huffman alone. Decoding accepts any zstd frame of the right size.
 *
 *   struct byteplanes_header | base, if flagged (group_count x dims) | top plane | ... | plane 0
 */
#include "codec/stage.h"

#define ZSTD_STATIC_LINKING_ONLY /* contexts in the caller's memory; literal-only sequences */
#include <assert.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "codec/planes.h"

#define BYTEPLANES_VERSION   1
#define BYTEPLANES_FLAG_BASE 1u
#define WORKSPACE_ALIGN      64u
/* With fewer tokens a base costs more than half a bit an element. */
#define BASE_TOKENS_MIN 16u
/* A quarter of it is a run: a whole row even of heads of 1,024 dims, so every channel is met. */
#define SAMPLE_STRIDE_BYTES 4096u

/* A Huffman table each: smaller blocks follow the data better, larger ones decode faster. */
#define BLOCK_BYTES      (64u << 10)
#define BLOCK_WINDOW_LOG 17

enum byteplanes_mode {
    MODE_AS_IT_IS = 0,
    MODE_ZSTD = 1,
    MODE_CONSTANT = 2, /* one byte */
};

struct byteplanes_header {
    uint8_t version;            /* 00     BYTEPLANES_VERSION */
    uint8_t plane_count;        /* 01     bytes of an element */
    uint8_t flags;              /* 02     BYTEPLANES_FLAG_BASE */
    uint8_t reserved;           /* 03     0 */
    uint8_t mode[PLANES_MAX];   /* 04-07  enum byteplanes_mode; 0 beyond plane_count */
    uint32_t bytes[PLANES_MAX]; /* 08-23  of each plane as stored; 0 beyond plane_count */
};
static_assert(sizeof(struct byteplanes_header) == 24, "on-disk size");

/* The caller's workspace: a zstd context at 0, the list of sequences, a room for each plane, one
 * more for the top plane less its base, and one for a frame. */
struct workspace_layout {
    uint64_t context_bytes;
    uint64_t sequences; /* offset */
    uint64_t planes;    /* offset */
    uint64_t plane_stride;
    uint64_t frame; /* offset */
    uint64_t frame_bytes;
    uint64_t bytes;
};

/* The smallest tables zstd allows: nothing is searched for. */
static ZSTD_compressionParameters table_params(void)
{
    ZSTD_compressionParameters params = ZSTD_getCParams(1, 0, 0);
    params.windowLog = BLOCK_WINDOW_LOG;
    params.hashLog = ZSTD_HASHLOG_MIN;
    params.chainLog = ZSTD_CHAINLOG_MIN;
    return params;
}

static void lay_out_workspace(struct workspace_layout *out, const struct codec_shape *shape)
{
    uint64_t plane_bytes = codec_shape_elems(shape);
    uint64_t compress_bytes = ZSTD_estimateCStreamSize_usingCParams(table_params());
    uint64_t decompress_bytes = ZSTD_estimateDCtxSize();
    out->context_bytes = larder_round_up(
        compress_bytes > decompress_bytes ? compress_bytes : decompress_bytes, WORKSPACE_ALIGN);
    out->sequences = out->context_bytes;
    uint64_t block_count = plane_bytes / BLOCK_BYTES + 1;
    out->planes =
        out->sequences + larder_round_up(block_count * sizeof(ZSTD_Sequence), WORKSPACE_ALIGN);
    out->plane_stride = larder_round_up(plane_bytes, WORKSPACE_ALIGN);
    out->frame = out->planes + out->plane_stride * (shape->elem_bytes + 1);
    out->frame_bytes = ZSTD_compressBound(plane_bytes);
    out->bytes = out->frame + larder_round_up(out->frame_bytes, WORKSPACE_ALIGN);
}

static uint64_t base_bytes_of(const struct codec_shape *shape)
{
    return (uint64_t)shape->group_count * shape->dims;
}

static uint64_t byteplanes_bound(const struct codec_shape *shape)
{
    /* A base is stored only beside a top plane that shrank by more than the base takes. */
    return sizeof(struct byteplanes_header) + codec_shape_bytes(shape);
}

static uint64_t byteplanes_workspace_bytes(const struct codec_shape *shape)
{
    struct workspace_layout layout;
    lay_out_workspace(&layout, shape);
    return layout.bytes;
}

/* --- encode ---------------------------------------------------------------------------------- */

/* Sum of the squared counts of a quarter of the bytes, in runs all over them: the more concentrated
 * they are, the larger. Stands in for the entropy without a logarithm, so that every machine
 * decides alike. */
static uint64_t concentration(const uint8_t *bytes, uint64_t count)
{
    /* Four tables, so that runs of one value do not wait for their own counter. */
    uint32_t counts[4][256];
    memset(counts, 0, sizeof(counts));
    for (uint64_t first = 0; first < count; first += SAMPLE_STRIDE_BYTES) {
        uint64_t end = first + larder_min_u64(count - first, SAMPLE_STRIDE_BYTES / 4);
        for (uint64_t i = first; i < end; i++)
            counts[i % 4][bytes[i]]++;
    }
    uint64_t sum = 0;
    for (unsigned v = 0; v < 256; v++) {
        uint64_t c = (uint64_t)counts[0][v] + counts[1][v] + counts[2][v] + counts[3][v];
        sum += c * c;
    }
    return sum;
}

/* The rounded mean over the tokens of each channel of one group. */
static void mean_of_channels(uint8_t *base, const uint8_t *top, uint32_t token_count, uint32_t dims)
{
    uint32_t sums[LARDER_HEAD_DIMS_MAX];
    assert(dims <= LARDER_HEAD_DIMS_MAX);
    memset(sums, 0, dims * sizeof(sums[0]));
    for (uint32_t t = 0; t < token_count; t++) {
        const uint8_t *row = top + (size_t)t * dims;
        for (uint32_t d = 0; d < dims; d++)
            sums[d] += row[d];
    }
    for (uint32_t d = 0; d < dims; d++)
        base[d] = (uint8_t)((sums[d] + token_count / 2) / token_count);
}

static void subtract_base(uint8_t *out, const uint8_t *top, const uint8_t *base,
                          uint32_t token_count, uint32_t dims)
{
    for (uint32_t t = 0; t < token_count; t++) {
        for (uint32_t d = 0; d < dims; d++)
            out[(size_t)t * dims + d] = (uint8_t)(top[(size_t)t * dims + d] - base[d]);
    }
}

/* Fills base[] and residual[] from the top plane; false when the base does not pay for itself. */
static bool try_base(uint8_t *base, uint8_t *residual, const uint8_t *top,
                     const struct codec_shape *shape)
{
    uint64_t group_bytes = (uint64_t)shape->token_count * shape->dims;
    for (uint32_t g = 0; g < shape->group_count; g++) {
        mean_of_channels(base + (size_t)g * shape->dims, top + g * group_bytes, shape->token_count,
                         shape->dims);
        subtract_base(residual + g * group_bytes, top + g * group_bytes,
                      base + (size_t)g * shape->dims, shape->token_count, shape->dims);
    }
    uint64_t count = codec_shape_elems(shape);
    uint64_t before = concentration(top, count);
    uint64_t after = concentration(residual, count);
    /* A base costs 8 / token_count bits a symbol; the gain is about log2(after / before) bits, and
     * 2^x <= 1 + x makes this the careful side. */
    return after > before && after - before > before / shape->token_count * 8;
}

static bool is_constant(const uint8_t *bytes, uint64_t count)
{
    return memcmp(bytes, bytes + 1, count - 1) == 0;
}

/* Saving less than 1/64 of a plane is not worth its decoding. */
static uint64_t worthwhile_bytes(uint64_t count)
{
    return count - count / 64 - 1;
}

/* Bytes of a literals-only zstd frame, or 0 when it does not fit `capacity`. */
static uint64_t compress_literals(uint8_t *out, uint64_t capacity, const uint8_t *plane,
                                  uint64_t count, uint8_t *workspace,
                                  const struct workspace_layout *layout)
{
    ZSTD_CCtx *context = ZSTD_initStaticCCtx(workspace, layout->context_bytes);
    assert(context);
    ZSTD_compressionParameters tables = table_params();
    const struct {
        ZSTD_cParameter name;
        int value;
    } settings[] = {
        {ZSTD_c_compressionLevel, 1},
        {ZSTD_c_windowLog, (int)tables.windowLog},
        {ZSTD_c_hashLog, (int)tables.hashLog},
        {ZSTD_c_chainLog, (int)tables.chainLog},
        {ZSTD_c_literalCompressionMode, ZSTD_ps_enable},
        {ZSTD_c_blockDelimiters, ZSTD_sf_explicitBlockDelimiters},
        {ZSTD_c_stableInBuffer, 1},
        {ZSTD_c_stableOutBuffer, 1},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(settings); i++) {
        if (ZSTD_isError(ZSTD_CCtx_setParameter(context, settings[i].name, settings[i].value)))
            return 0;
    }
    ZSTD_Sequence *sequences = (ZSTD_Sequence *)(void *)(workspace + layout->sequences);
    size_t sequence_count = 0;
    for (uint64_t at = 0; at < count; at += BLOCK_BYTES) {
        sequences[sequence_count++] =
            (ZSTD_Sequence){.litLength = (unsigned)larder_min_u64(count - at, BLOCK_BYTES)};
    }
    /* Into a room of full size first: with a capacity below its own header's this function writes
     * out of bounds (seen with zstd 1.5.4). */
    uint8_t *frame = workspace + layout->frame;
    size_t bytes = ZSTD_compressSequences(context, frame, layout->frame_bytes, sequences,
                                          sequence_count, plane, count);
    if (ZSTD_isError(bytes) || bytes > capacity)
        return 0;
    memcpy(out, frame, bytes);
    return bytes;
}

/* Stores a plane in fewer bytes than it has, within `capacity`; MODE_AS_IT_IS (and nothing stored)
 * when that fails. */
static enum byteplanes_mode shrink_plane(uint8_t *out, uint64_t capacity, uint32_t *out_bytes,
                                         const uint8_t *plane, uint64_t count, uint8_t *workspace,
                                         const struct workspace_layout *layout)
{
    if (is_constant(plane, count)) {
        out[0] = plane[0];
        *out_bytes = 1;
        return MODE_CONSTANT;
    }
    uint64_t bytes = compress_literals(out, capacity, plane, count, workspace, layout);
    *out_bytes = (uint32_t)bytes;
    return bytes > 0 ? MODE_ZSTD : MODE_AS_IT_IS;
}

/* The top plane less a base per channel, when both together are smaller than the plane. Returns the
 * bytes written, 0 when not. */
static uint64_t store_top_with_base(uint8_t *out, struct byteplanes_header *header,
                                    const uint8_t *top, const struct codec_shape *shape,
                                    uint8_t *workspace, const struct workspace_layout *layout)
{
    uint32_t p = shape->elem_bytes - 1;
    uint8_t *residual = workspace + layout->planes + shape->elem_bytes * layout->plane_stride;
    uint64_t count = codec_shape_elems(shape);
    uint64_t base_bytes = base_bytes_of(shape);
    if (shape->token_count < BASE_TOKENS_MIN || !try_base(out, residual, top, shape))
        return 0;
    enum byteplanes_mode mode = shrink_plane(out + base_bytes, worthwhile_bytes(count) - base_bytes,
                                             &header->bytes[p], residual, count, workspace, layout);
    if (mode == MODE_AS_IT_IS)
        return 0;
    header->flags |= BYTEPLANES_FLAG_BASE;
    header->mode[p] = (uint8_t)mode;
    return base_bytes + header->bytes[p];
}

static uint64_t store_plane(uint8_t *out, struct byteplanes_header *header, uint32_t p,
                            const uint8_t *plane, uint64_t count, uint8_t *workspace,
                            const struct workspace_layout *layout)
{
    header->mode[p] = (uint8_t)shrink_plane(out, worthwhile_bytes(count), &header->bytes[p], plane,
                                            count, workspace, layout);
    if (header->mode[p] == MODE_AS_IT_IS) {
        memcpy(out, plane, count);
        header->bytes[p] = (uint32_t)count;
    }
    return header->bytes[p];
}

static int byteplanes_encode(void *out, uint64_t out_capacity, uint64_t *out_bytes,
                             struct larder_section_error *error, const struct codec_shape *shape,
                             const void *planes, void *workspace)
{
    (void)error;
    assert(out_capacity >= byteplanes_bound(shape));
    uint64_t count = codec_shape_elems(shape);
    uint32_t plane_count = shape->elem_bytes;
    struct workspace_layout layout;
    lay_out_workspace(&layout, shape);
    uint8_t *split[PLANES_MAX] = {0};
    for (uint32_t p = 0; p < plane_count; p++)
        split[p] = (uint8_t *)workspace + layout.planes + p * layout.plane_stride;
    planes_best()->split[plane_count == 4](split, planes, count);

    struct byteplanes_header header = {
        .version = BYTEPLANES_VERSION,
        .plane_count = (uint8_t)plane_count,
    };
    uint8_t *at = (uint8_t *)out + sizeof(header);
    uint32_t top = plane_count - 1;
    uint64_t top_bytes = store_top_with_base(at, &header, split[top], shape, workspace, &layout);
    if (top_bytes == 0)
        top_bytes = store_plane(at, &header, top, split[top], count, workspace, &layout);
    at += top_bytes;
    for (uint32_t p = top; p-- > 0;)
        at += store_plane(at, &header, p, split[p], count, workspace, &layout);
    memcpy(out, &header, sizeof(header));
    *out_bytes = (uint64_t)(at - (uint8_t *)out);
    assert(*out_bytes <= out_capacity);
    return 0;
}

/* --- decode ---------------------------------------------------------------------------------- */

static int check_header(const struct byteplanes_header *header, const struct codec_shape *shape,
                        uint64_t encoded_bytes)
{
    if (header->version != BYTEPLANES_VERSION)
        return larder_fail(LARDER_EVERSION, "byteplanes: version %u, this release knows %u",
                           header->version, BYTEPLANES_VERSION);
    if (header->plane_count != shape->elem_bytes)
        return larder_fail(LARDER_ECORRUPT, "byteplanes: %u planes for elements of %u bytes",
                           header->plane_count, shape->elem_bytes);
    if (header->reserved != 0 || (header->flags & ~BYTEPLANES_FLAG_BASE) != 0)
        return larder_fail(LARDER_ECORRUPT, "byteplanes: flags %u, reserved %u", header->flags,
                           header->reserved);
    uint64_t count = codec_shape_elems(shape);
    uint64_t total = sizeof(*header);
    if (header->flags & BYTEPLANES_FLAG_BASE)
        total += base_bytes_of(shape);
    for (uint32_t p = 0; p < PLANES_MAX; p++) {
        uint64_t bytes = header->bytes[p];
        bool fits;
        if (p >= header->plane_count)
            fits = header->mode[p] == 0 && bytes == 0;
        else if (header->mode[p] == MODE_AS_IT_IS)
            fits = bytes == count;
        else if (header->mode[p] == MODE_CONSTANT)
            fits = bytes == 1;
        else
            fits = header->mode[p] == MODE_ZSTD && bytes < count;
        if (!fits)
            return larder_fail(
                LARDER_ECORRUPT, "byteplanes: plane %u of mode %u has %llu bytes for %llu elements",
                p, header->mode[p], (unsigned long long)bytes, (unsigned long long)count);
        total += bytes;
    }
    if (total != encoded_bytes)
        return larder_fail(LARDER_ECORRUPT, "byteplanes: section of %llu bytes, its parts are %llu",
                           (unsigned long long)encoded_bytes, (unsigned long long)total);
    return 0;
}

/* *out: the plane's bytes, in `encoded` itself or in `room`. */
static int load_plane(const uint8_t **out, uint8_t *room, uint64_t count, uint8_t mode,
                      const uint8_t *encoded, uint64_t encoded_bytes, ZSTD_DCtx *context)
{
    *out = room;
    if (mode == MODE_AS_IT_IS) {
        *out = encoded;
        return 0;
    }
    if (mode == MODE_CONSTANT) {
        memset(room, encoded[0], count);
        return 0;
    }
    /* zstd writes no more than `count` bytes, whatever the frame declares. */
    size_t bytes = ZSTD_decompressDCtx(context, room, count, encoded, encoded_bytes);
    if (ZSTD_isError(bytes))
        return larder_fail(LARDER_ECORRUPT, "byteplanes: zstd: %s", ZSTD_getErrorName(bytes));
    if (bytes != count)
        return larder_fail(LARDER_ECORRUPT, "byteplanes: plane of %zu bytes, %llu elements", bytes,
                           (unsigned long long)count);
    return 0;
}

static int byteplanes_decode(void *planes, const struct codec_shape *shape, const void *encoded,
                             uint64_t encoded_bytes, void *workspace)
{
    struct byteplanes_header header;
    if (encoded_bytes < sizeof(header))
        return larder_fail(LARDER_ECORRUPT, "byteplanes: section of %llu bytes, its header is %zu",
                           (unsigned long long)encoded_bytes, sizeof(header));
    memcpy(&header, encoded, sizeof(header));
    LARDER_TRY(check_header(&header, shape, encoded_bytes));

    struct workspace_layout layout;
    lay_out_workspace(&layout, shape);
    ZSTD_DCtx *context = ZSTD_initStaticDCtx(workspace, layout.context_bytes);
    assert(context);
    uint64_t count = codec_shape_elems(shape);
    const uint8_t *at = (const uint8_t *)encoded + sizeof(header);
    const uint8_t *base = NULL;
    if (header.flags & BYTEPLANES_FLAG_BASE) {
        base = at;
        at += base_bytes_of(shape);
    }
    const uint8_t *split[PLANES_MAX] = {0};
    for (uint32_t p = header.plane_count; p-- > 0;) {
        uint8_t *room = (uint8_t *)workspace + layout.planes + p * layout.plane_stride;
        LARDER_TRY(
            load_plane(&split[p], room, count, header.mode[p], at, header.bytes[p], context));
        at += header.bytes[p];
    }

    const struct planes_ops *ops = planes_best();
    if (!base) {
        ops->join[shape->elem_bytes == 4](planes, split, NULL, 1, count);
        return 0;
    }
    uint64_t group_elems = (uint64_t)shape->token_count * shape->dims;
    for (uint32_t g = 0; g < shape->group_count; g++) {
        const uint8_t *group[PLANES_MAX] = {0};
        for (uint32_t p = 0; p < header.plane_count; p++)
            group[p] = split[p] + g * group_elems;
        ops->join[shape->elem_bytes == 4]((uint8_t *)planes + g * group_elems * shape->elem_bytes,
                                          group, base + (size_t)g * shape->dims, shape->token_count,
                                          shape->dims);
    }
    return 0;
}

const struct codec_stage_ops codec_stage_byteplanes = {
    .name = "byteplanes",
    .summary = "bit-exact: byte planes, exponents less a base per channel, Huffman (zstd)",
    .quality = LARDER_QUALITY_EXACT,
    .is_identity = false,
    .bound = byteplanes_bound,
    .workspace_bytes = byteplanes_workspace_bytes,
    .encode = byteplanes_encode,
    .decode = byteplanes_decode,
};
