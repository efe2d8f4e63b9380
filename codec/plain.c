/* SPDX-License-Identifier: Apache-2.0 */
/* plain.c - the stage that changes nothing: canonical planes as they are. */
#include "codec/stage.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"

static uint64_t plain_bound(const struct codec_shape *shape)
{
    return codec_shape_bytes(shape);
}

static uint64_t plain_workspace_bytes(const struct codec_shape *shape)
{
    (void)shape;
    return 0;
}

static int plain_encode(void *out, uint64_t out_capacity, uint64_t *out_bytes,
                        struct larder_section_error *error, const struct codec_shape *shape,
                        const void *planes, void *workspace)
{
    (void)workspace;
    (void)error;
    uint64_t bytes = codec_shape_bytes(shape);
    assert(out_capacity >= bytes);
    memcpy(out, planes, bytes);
    *out_bytes = bytes;
    return 0;
}

static int plain_decode(void *planes, const struct codec_shape *shape, const void *encoded,
                        uint64_t encoded_bytes, void *workspace)
{
    (void)workspace;
    uint64_t bytes = codec_shape_bytes(shape);
    if (encoded_bytes != bytes)
        return larder_fail(LARDER_ECORRUPT, "plain: section of %llu bytes, its planes are %llu",
                           (unsigned long long)encoded_bytes, (unsigned long long)bytes);
    memcpy(planes, encoded, bytes);
    return 0;
}

const struct codec_stage_ops codec_stage_plain = {
    .name = "plain",
    .summary = "canonical planes as they are",
    .quality = LARDER_QUALITY_EXACT,
    .is_identity = true,
    .bound = plain_bound,
    .workspace_bytes = plain_workspace_bytes,
    .encode = plain_encode,
    .decode = plain_decode,
};
