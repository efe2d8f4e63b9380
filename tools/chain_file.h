/* SPDX-License-Identifier: Apache-2.0 */
/* chain_file.h - a chain in a file of its own (docs/FORMAT.md, "Chain files"): the model, tokens,
 * and their KV as an engine gave it. What larder export writes and larder import reads.
 *
 * A file lies in memory whole; nothing in it is trusted. It holds no key: the store that takes it
 * in derives them anew.
 */
#ifndef LARDER_TOOLS_CHAIN_FILE_H
#define LARDER_TOOLS_CHAIN_FILE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "base/larder_base.h"

#define CHAIN_FILE_MAGIC   0x314e48435244524cull /* "LRDRCHN1" */
#define CHAIN_FILE_VERSION 1u

struct chain_head {
    uint64_t magic;                 /* 000-007  "LRDRCHN1" */
    uint32_t version;               /* 008-011 */
    uint32_t token_count;           /* 012-015 */
    uint32_t piece_tokens;          /* 016-019  of every piece but the last, shorter one */
    uint32_t extra_bytes;           /* 020-023 */
    uint32_t quality;               /* 024-027  worst of its blocks */
    float kl;                       /* 028-031  worst of theirs; 0: exact, or not known */
    uint64_t data_offset;           /* 032-039 */
    uint64_t data_bytes;            /* 040-047 */
    uint64_t created_s;             /* 048-055 */
    struct larder_model_desc model; /* 056-247 */
    uint64_t reserved2;             /* 248-255 */
    uint8_t check[16];              /* 256-271  XXH3-128 of 0-255, then of 272 up to the data */
};
static_assert(sizeof(struct chain_head) == 272, "on-disk size");

/* Where the parts of a file lie in it. */
struct chain_layout {
    uint64_t extra;
    uint64_t tokens;
    uint64_t checks; /* 16 bytes a piece */
    uint64_t data;
    uint64_t bytes; /* of all */
    uint64_t token_bytes;
    uint64_t piece_count;
};

/* From token_count, extra_bytes, piece_tokens and the model, all within their limits. */
void chain_file_layout(struct chain_layout *out, const struct chain_head *head);
/* Tokens of a piece of about 1 MiB. */
uint32_t chain_file_piece_tokens(const struct larder_model_desc *model);

/* Is it such a file, in form? Its parts lie within it then, and its tokens are below the model's
 * vocabulary. LARDER_EFORMAT; LARDER_EVERSION; what larder_model_check() says of the model. */
int chain_file_parse(struct chain_layout *out, const void *file, uint64_t file_bytes);

/* Of a file with such a layout: fills in the checks, of a piece or of all in front of the data. */
void chain_file_seal_piece(void *file, const struct chain_layout *layout, uint64_t piece);
void chain_file_seal_head(void *file, const struct chain_layout *layout);
/* LARDER_ECORRUPT. */
int chain_file_verify_piece(const void *file, const struct chain_layout *layout, uint64_t piece);
int chain_file_verify_head(const void *file, const struct chain_layout *layout);

#endif
