/* SPDX-License-Identifier: Apache-2.0 */
/* work.h - the frames between larderd and a larder-worker, over the socket pair that it is started
 * with (descriptor WORK_FD). Both are of one build, so there is no version here.
 *
 * A frame is struct wire_frame, then the body of its type, as on larderd's sockets (base/wire.h);
 * `request` is larderd's number of the blend. The worker says WORK_READY once, then answers. It
 * blends one prompt at a time and keeps its KV until WORK_END, which may also come while it
 * blends: then it gives up soon. A frame that is not of its length ends the worker.
 *
 *     larderd                                   larder-worker
 *                                           <-- WORK_READY
 *     WORK_BLEND with the staging's fd      --> WORK_BLEND_OK or WIRE_ERROR
 *     WORK_READ                             --> WORK_READ_OK or WIRE_ERROR
 *     WORK_END                              --> WORK_END_OK, always
 */
#ifndef LARDER_DAEMON_WORK_H
#define LARDER_DAEMON_WORK_H

#include "base/wire.h"

#define WORK_FD 3

enum work_type {
    WORK_BLEND = 200,
    WORK_READ = 201, /* wire_blend_read, whose `blend` is not looked at */
    WORK_END = 202,
    WORK_READY = 210,
    WORK_BLEND_OK = 211,
    WORK_READ_OK = 212,
    WORK_END_OK = 213,
};

/* The rates of struct wire_worker_ok, as measured so far. */
struct work_rates {
    double row_ns;
    double pair_ns;
};

struct work_ready {
    struct larder_model_desc desc;
    struct work_rates rates;
    uint32_t positions_max;
    uint32_t start; /* the model's start token, or WIRE_TOKEN_NONE */
    char device[LARDER_DEVICE_TEXT_MAX];
};
static_assert(sizeof(struct work_ready) == 280, "one size on both sides");

struct work_blend {
    struct wire_blend blend;
    uint64_t staging_bytes; /* all of what comes along */
    char tenant[LARDER_TENANT_NAME_MAX];
};
static_assert(sizeof(struct work_blend) == 264, "one size on both sides");

struct work_blend_ok {
    struct wire_blend_ok ok; /* wait_us is larderd's to fill in */
    struct work_rates rates;
};
static_assert(sizeof(struct work_blend_ok) == 112, "one size on both sides");

#endif
