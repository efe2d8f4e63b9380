/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   frame_parse() takes any message without leaving its bytes, and what it accepts has its
 *         body and items within the message.
 * Input:  a byte whose lowest bit is the side; the frame. It is parsed as it is, and again with its
 *         own length written into it. */
#include "daemon/frame.h"

#include "base/error.h"
#include "base/limits.h"
#include "base/wire.h"
#include "tests/fuzz/fuzz.h"

static void parse(enum frame_side side, const void *bytes, size_t count)
{
    struct frame frame;
    int err = frame_parse(&frame, side, bytes, count);
    assert(err == 0 || err == LARDER_EPROTO);
    uint64_t request = 0;
    if (count >= sizeof(struct wire_frame))
        memcpy(&request, (const uint8_t *)bytes + 8, sizeof(request));
    assert(frame.request == request);
    if (err < 0) {
        assert(larder_error_message()[0]);
        return;
    }
    assert(count <= LARDER_FRAME_BYTES_MAX);
    const uint8_t *end = (const uint8_t *)bytes + count;
    const uint8_t *body = frame.body, *items = frame.items;
    assert(body == (const uint8_t *)bytes + sizeof(struct wire_frame));
    assert(items >= body && items <= end);
    /* Keys are the largest items, request ids the smallest. */
    size_t item_bytes = frame.item_count ? (size_t)(end - items) / frame.item_count : 0;
    assert(frame.item_count == 0 ? items == end : item_bytes == 8 || item_bytes == 32);
    assert((size_t)(end - items) == item_bytes * frame.item_count);
    fuzz_touch(body, (size_t)(end - body));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 1)
        return 0;
    enum frame_side side = data[0] & 1 ? FRAME_CONTROL : FRAME_ENGINE;
    size_t count = bytes - 1;
    uint8_t *frame = fuzz_copy(data + 1, count);
    parse(side, frame, count);
    uint32_t length = (uint32_t)count;
    if (count >= sizeof(struct wire_frame)) {
        memcpy(frame, &length, sizeof(length));
        parse(side, frame, count);
    }
    free(frame);
    return 0;
}
