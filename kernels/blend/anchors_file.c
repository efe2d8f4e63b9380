/* SPDX-License-Identifier: Apache-2.0 */
/* anchors_file.c - a pool of anchors as bytes, as docs/FORMAT.md has it. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/blend/anchors_pool.h"

#define VERSION 1u

static const uint8_t magic[8] = {'L', 'R', 'D', 'R', 'A', 'N', 'C', 'H'};

struct anchors_head {
    uint8_t magic[8];      /* 00-07 */
    uint32_t version;      /* 08-11 */
    uint32_t anchor_count; /* 12-15  <= anchors_max */
    uint8_t model[32];     /* 16-47  the model's fingerprint, which has the shape and the dtype */
    uint64_t bytes;        /* 48-55  of all, the digest too */
    uint32_t first;        /* 56-59 */
    uint32_t after_first;  /* 60-63 */
    uint32_t after_count;  /* 64-67 */
    uint32_t anchors_max;  /* 68-71 */
    double gamma;          /* 72-79 */
    uint8_t zero[16];      /* 80-95 */
};
static_assert(sizeof(struct anchors_head) == 96, "on-disk size");

/* Before each anchor's numbers. */
struct anchor_head {
    uint32_t tokens;      /* 00-03  of the segment, 1..LARDER_PROMPT_TOKENS_MAX */
    uint32_t zero;        /* 04-07 */
    uint64_t activations; /* 08-15 */
};
static_assert(sizeof(struct anchor_head) == 16, "on-disk size");

uint64_t larder_blend_anchors_bytes(const struct larder_blend_anchors *pool)
{
    uint64_t bytes = sizeof(struct anchors_head) + sizeof(struct larder_key);
    for (uint32_t i = 0; i < pool->count; i++)
        bytes += sizeof(struct anchor_head) + anchors_numbers_bytes(pool, pool->list[i].tokens);
    return bytes;
}

int larder_blend_anchors_write(const struct larder_blend_anchors *pool, void *out)
{
    const struct larder_blend_anchors_options *options = &pool->options;
    struct anchors_head head = {
        .version = VERSION,
        .anchor_count = pool->count,
        .bytes = larder_blend_anchors_bytes(pool),
        .first = options->first,
        .after_first = options->after_first,
        .after_count = options->after_count,
        .anchors_max = options->anchors_max,
        .gamma = options->gamma,
    };
    memcpy(head.magic, magic, sizeof(magic));
    memcpy(head.model, pool->model.bytes, sizeof(head.model));
    uint8_t *at = out;
    memcpy(at, &head, sizeof(head));
    at += sizeof(head);
    for (uint32_t i = 0; i < pool->count; i++) {
        const struct anchor *anchor = &pool->list[i];
        const struct anchor_head own = {.tokens = anchor->tokens,
                                        .activations = anchor->activations};
        memcpy(at, &own, sizeof(own));
        at += sizeof(own);
        memcpy(at, anchor->numbers, anchors_numbers_bytes(pool, anchor->tokens));
        at += anchors_numbers_bytes(pool, anchor->tokens);
    }
    struct larder_key digest;
    LARDER_TRY(larder_sha256(&digest, out, (size_t)(at - (uint8_t *)out)));
    memcpy(at, digest.bytes, sizeof(digest.bytes));
    return 0;
}

static int check_head(const struct anchors_head *head, const void *bytes, uint64_t count)
{
    struct larder_key digest;
    if (head->version != VERSION)
        return larder_fail(LARDER_EVERSION, "anchors of version %u; this release knows %u",
                           head->version, VERSION);
    if (head->bytes != count)
        return larder_fail(LARDER_ECORRUPT, "anchors of %llu bytes, of which %llu are there",
                           (unsigned long long)head->bytes, (unsigned long long)count);
    uint64_t covered = count - sizeof(digest);
    LARDER_TRY(larder_sha256(&digest, bytes, covered));
    if (memcmp((const uint8_t *)bytes + covered, digest.bytes, sizeof(digest.bytes)) != 0)
        return larder_fail(LARDER_ECORRUPT, "the digest of anchors does not match their bytes");
    if (!larder_all_zero(head->zero, sizeof(head->zero)))
        return larder_fail(LARDER_ECORRUPT, "anchors whose reserved bytes are not zero");
    if (head->anchor_count > head->anchors_max)
        return larder_fail(LARDER_ECORRUPT, "%u anchors, of which there may be %u",
                           head->anchor_count, head->anchors_max);
    return 0;
}

/* The next anchor of what is left. */
static int read_anchor(struct larder_blend_anchors *pool, const uint8_t **at, uint64_t *left)
{
    struct anchor_head head;
    if (*left < sizeof(head))
        return larder_fail(LARDER_ECORRUPT, "anchors end before anchor %u", pool->count);
    memcpy(&head, *at, sizeof(head));
    *at += sizeof(head);
    *left -= sizeof(head);
    if (head.tokens == 0 || head.tokens > LARDER_PROMPT_TOKENS_MAX || head.zero != 0)
        return larder_fail(LARDER_ECORRUPT, "anchor %u of %u tokens is outside 1..%u", pool->count,
                           head.tokens, LARDER_PROMPT_TOKENS_MAX);
    struct anchor anchor = {.tokens = head.tokens, .activations = head.activations};
    uint64_t bytes = anchors_numbers_bytes(pool, anchor.tokens);
    if (bytes > *left)
        return larder_fail(LARDER_ECORRUPT, "anchor %u takes %llu bytes of %llu that are left",
                           pool->count, (unsigned long long)bytes, (unsigned long long)*left);
    anchor.numbers = larder_alloc(bytes);
    if (!anchor.numbers)
        return larder_fail(-ENOMEM, "no memory for an anchor of %u tokens", anchor.tokens);
    memcpy(anchor.numbers, *at, bytes);
    *at += bytes;
    *left -= bytes;
    pool->list[pool->count++] = anchor; /* the pool's, to be closed with it */
    if (!anchors_are_finite(pool, &anchor))
        return larder_fail(LARDER_ECORRUPT, "anchor %u holds what is no number", pool->count - 1);
    return 0;
}

int larder_blend_anchors_read(struct larder_blend_anchors **out,
                              const struct larder_model_desc *model, const void *bytes,
                              uint64_t count)
{
    *out = NULL;
    struct anchors_head head;
    if (count < sizeof(head) + sizeof(struct larder_key) || memcmp(bytes, magic, sizeof(magic)))
        return larder_fail(LARDER_EFORMAT, "%llu bytes that are no anchors",
                           (unsigned long long)count);
    memcpy(&head, bytes, sizeof(head));
    LARDER_TRY(check_head(&head, bytes, count));
    const struct larder_blend_anchors_options options = {.first = head.first,
                                                         .after_first = head.after_first,
                                                         .after_count = head.after_count,
                                                         .anchors_max = head.anchors_max,
                                                         .gamma = head.gamma};
    struct larder_blend_anchors *pool;
    int err = larder_blend_anchors_open(&pool, model, &options);
    if (err == -EINVAL) /* whoever wrote them, it was not this code */
        return larder_fail(LARDER_ECORRUPT, "anchors whose options are outside their ranges");
    if (err < 0)
        return err;
    if (memcmp(pool->model.bytes, head.model, sizeof(head.model)) != 0) {
        larder_blend_anchors_close(pool);
        return larder_fail(LARDER_EMODEL, "anchors of another model, or of KV of another dtype");
    }
    const uint8_t *at = (const uint8_t *)bytes + sizeof(head);
    uint64_t left = count - sizeof(head) - sizeof(struct larder_key);
    for (uint32_t i = 0; err == 0 && i < head.anchor_count; i++)
        err = read_anchor(pool, &at, &left);
    if (err == 0 && left > 0)
        err = larder_fail(LARDER_ECORRUPT, "%llu bytes behind the last anchor",
                          (unsigned long long)left);
    if (err < 0) {
        larder_blend_anchors_close(pool);
        return err;
    }
    *out = pool;
    return 0;
}
