/* SPDX-License-Identifier: Apache-2.0 */
/* section.h - one section through a tree of nodes: planes to f32, the tree, and back.
 *
 * A section that the tree cannot hold (numbers that are not finite) or does not make smaller is
 * stored by the exact stage instead; its header says so.
 *
 * Threads: pure functions over the caller's memory.
 */
#ifndef LARDER_CODEC_SECTION_H
#define LARDER_CODEC_SECTION_H

#include "codec/codec.h"
#include "codec/node.h"
#include "codec/stage.h"

struct section {
    const struct codec_node *tree;
    const struct larder_block *block;
    uint32_t layer;
    uint8_t kind; /* enum larder_section_kind */
    struct codec_size size;
};

uint64_t section_bound(const struct section *section);
uint64_t section_workspace_bytes(const struct section *section);
int section_encode(const struct section *section, void *out, uint64_t *out_bytes,
                   struct larder_section_error *error, const void *planes, void *workspace,
                   uint64_t workspace_bytes);
int section_decode(const struct section *section, void *planes, const void *encoded,
                   uint64_t encoded_bytes, void *workspace, uint64_t workspace_bytes);

#endif
