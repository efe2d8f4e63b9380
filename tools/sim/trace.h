/* SPDX-License-Identifier: Apache-2.0 */
/* trace.h - requests to a chat service, one JSON object a line: when ("timestamp", ms), how long
 * ("input_length", tokens), and the prompt's blocks in order ("hash_ids"; equal ids are equal
 * prefixes). The form of the traces that the Mooncake project published.
 */
#ifndef LARDER_TOOLS_SIM_TRACE_H
#define LARDER_TOOLS_SIM_TRACE_H

#include <stdint.h>

struct trace_request {
    uint64_t time_ms;
    uint32_t first; /* in refs[] */
    uint32_t count;
};

struct trace_block { /* 1 .. block_count */
    uint64_t id;     /* in the file */
    uint32_t parent; /* 0: none */
    uint32_t depth;
    uint32_t token_count;
};

struct trace {
    struct trace_request *requests;
    uint32_t request_count;
    uint32_t *refs; /* blocks of all requests */
    uint32_t ref_count;
    struct trace_block *blocks;
    uint32_t block_count;
};

/* The first `requests_max` requests (0: all). LARDER_EPROTO with the line's number when one is not
 * of this form, or an id stands behind two different ones. */
int trace_load(struct trace *trace, const char *path, uint32_t block_tokens, uint32_t requests_max);
void trace_free(struct trace *trace);

#endif
