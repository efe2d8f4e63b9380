/* SPDX-License-Identifier: Apache-2.0 */
/* frame.h - is this message a frame that the daemon accepts (docs/PROTOCOL.md, "Valid frames")?
 *
 * Looks at the bytes alone: what depends on the session (order of frames, model handles, staging
 * ranges) is the session's. Total and safe on hostile bytes.
 * Threads: plain functions over the caller's bytes.
 */
#ifndef LARDER_DAEMON_FRAME_H
#define LARDER_DAEMON_FRAME_H

#include <stddef.h>
#include <stdint.h>

enum frame_side {
    FRAME_ENGINE,
    FRAME_CONTROL,
};

struct frame {
    uint16_t type; /* enum wire_type, one that this side may send */
    uint64_t request;
    const void *body; /* the struct of the type; items follow it */
    const void *items;
    uint32_t item_count;
};

/* 0, or LARDER_EPROTO with a message. out->request is set whenever the bytes hold one, else 0.
 * `bytes` is aligned to 8: structs are used in place. */
int frame_parse(struct frame *out, enum frame_side side, const void *bytes, size_t byte_count);

#endif
