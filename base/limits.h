/* SPDX-License-Identifier: Apache-2.0 */
/* limits.h - every limit in one place, each with its reason. */
#ifndef LARDER_BASE_LIMITS_H
#define LARDER_BASE_LIMITS_H

#include <assert.h>

#include "base/bytes.h"

/* Models. The largest open models have 126 layers, 128 KV heads (no GQA) and heads of 256. */
#define LARDER_LAYERS_MAX    1024u
#define LARDER_KV_HEADS_MAX  1024u
#define LARDER_HEAD_DIMS_MAX 1024u
#define LARDER_VOCAB_MAX     (1u << 24)
/* Query heads that share a KV head: 16 is the most seen in a Llama-family model. */
#define LARDER_HEAD_GROUP_MAX 96u
/* Widths of hidden state and feed-forward: 16,384 and 53,248 in the largest open dense model. */
#define LARDER_HIDDEN_MAX      (1u << 16)
#define LARDER_FEEDFORWARD_MAX (1u << 19)
/* A .safetensors header; the format's own limit. */
#define LARDER_SAFETENSORS_HEADER_BYTES_MAX 100000000u
/* Files that one model is spread over. */
#define LARDER_WEIGHT_FILES_MAX 1024u
/* config.json and the index of a model's files. */
#define LARDER_MODEL_JSON_BYTES_MAX (16u << 20)

/* A block of more tokens would make a lookup too coarse and a record too large. */
#define LARDER_BLOCK_TOKENS_MAX     4096u
#define LARDER_BLOCK_TOKENS_DEFAULT 256u
/* 2^22 tokens of context: four times the longest advertised today. */
#define LARDER_PROMPT_TOKENS_MAX (1u << 22)

/* Keys in one request, so that the request and its answer fit a frame. */
#define LARDER_REQUEST_KEYS_MAX 1024u
/* Shorter stored blocks named in an answer. */
#define LARDER_TAILS_MAX 16u
/* `extra` of a key: names of adapters, salts, hashes of images. */
#define LARDER_EXTRA_BYTES_MAX 1024u
/* Keys removed by one tombstone record: 2,048 of 32 bytes; more take several records. */
#define LARDER_TOMBSTONE_BYTES_MAX (2048u * 32u)
/* Variants of one key: exact, a few lossy ones, blended. A client may put as many as it likes. */
#define LARDER_VARIANTS_MAX 8u
/* Marks in one record: what fits its one page. */
#define LARDER_MARKS_MAX 43u
/* Profiles in a store: one or a few for each model. */
#define LARDER_PROFILES_MAX 256u
/* Measured qualities of recipes: some tens for each model that is served. */
#define LARDER_MEASURES_MAX 1024u
/* Text of a recipe. */
#define LARDER_RECIPE_BYTES_MAX 1024u
/* A profile: bases of 128 x 128 numbers for K and V of 64 layers of 8 heads are 67 MB. */
#define LARDER_PROFILE_BYTES_MAX (256ull << 20)
/* Sections of a record: K and V of each layer, at one head group a layer. */
#define LARDER_SECTIONS_MAX (2u * LARDER_LAYERS_MAX)
/* A record, raw or stored: 256 tokens of the largest models are 84 MB. Must fit a slab and a
 * segment. */
#define LARDER_RECORD_BYTES_MAX (1ull << 30)
/* What a worker needs to encode one section: its numbers as f32, copies of them that stages around
 * others keep, matrices. 256 tokens of 8 heads of 128 take 2 MB by `quant`, and 22 MB with as many
 * stages in each other as there may be. */
#define LARDER_WORKSPACE_BYTES_MAX (1ull << 30)

/* Small enough that a session never buffers much for a client that does not read. */
#define LARDER_FRAME_BYTES_MAX  65536u
#define LARDER_MESSAGE_WIRE_MAX 256u

#define LARDER_SLAB_BYTES_DEFAULT    (256ull << 20)
#define LARDER_SLAB_BYTES_MIN        (1ull << 20)
#define LARDER_SLAB_SLOTS_MAX        4096u
#define LARDER_SEGMENT_BYTES_DEFAULT (256ull << 20)
#define LARDER_SEGMENT_BYTES_MIN     (1ull << 20)
#define LARDER_HOST_BYTES_DEFAULT    (2ull << 30)
#define LARDER_SSD_BYTES_DEFAULT     (64ull << 30)
/* Percent of ssd_bytes. */
#define LARDER_SSD_HIGH_DEFAULT 95u
#define LARDER_SSD_LOW_DEFAULT  90u
/* Several blocks of 256 tokens of an 8B model, 33.6 MB each: one is gathered, another encoded. */
#define LARDER_STAGING_BYTES_DEFAULT (256ull << 20)
#define LARDER_STAGING_BYTES_MAX     (1ull << 30)

/* Events of one key that an answer names. */
#define LARDER_EVENTS_FOUND_MAX 8u
/* Kinds of events that a frame has room for. */
#define LARDER_WIRE_EVENTS 32u

/* Models that one connection may describe; an engine has one or two. */
#define LARDER_SESSION_MODELS_MAX 64u
/* A client that connects and says nothing, and one that asks and does not read, are closed. */
#define LARDER_HELLO_MS_DEFAULT 5000u
#define LARDER_SEND_MS_DEFAULT  10000u
/* A lease lasts longer than any decode of one request; a stopped client loses it. */
#define LARDER_LEASE_MS_DEFAULT 30000u
/* With others waiting for memory, who holds too much of it has less time: a decode of one request
 * takes tens of milliseconds. */
#define LARDER_LEASE_GRACE_MS_DEFAULT 2000u
/* Of one UID. A request in flight costs the daemon 2 to 50 KB, a lease about 200 bytes. */
#define LARDER_CONNECTIONS_DEFAULT 256u
#define LARDER_LEASES_DEFAULT      4096u
#define LARDER_IN_FLIGHT_DEFAULT   1024u
/* Requests of one tenant that wait for a worker: some seconds of work; more are refused. */
#define LARDER_TENANT_WAITING_MAX 2048u
/* Answers waiting for one client: enough for any one answer and the slabs in front of it. */
#define LARDER_OUTPUT_BYTES_MAX (1u << 20)

/* A tenant's name as it stands in the configuration. */
#define LARDER_TENANT_NAME_MAX 64u
#define LARDER_TENANTS_MAX     1024u
#define LARDER_MODELS_MAX      4096u

/* One I/O request: larger O_DIRECT reads through io_uring came back EAGAIN (liburing issue 766). */
#define LARDER_IO_BYTES_MAX (1u << 20)

/* Pieces of a blended prompt: some tens in practice. */
#define LARDER_PIECES_MAX 1024u
/* A piece is a prefix in front, moved in the middle and missing at its end; then the suffix. */
#define LARDER_BLEND_SPANS_MAX(pieces) (3u * (pieces) + 2u)
/* Text of a blending method. */
#define LARDER_METHOD_BYTES_MAX 128u
/* Of one segment: as many as the authors of KVCOMM keep. Each is two copies of its KV. */
#define LARDER_ANCHORS_MAX 20u
/* Texts that name what a worker has. */
#define LARDER_MODEL_NAME_MAX  64u
#define LARDER_DEVICE_TEXT_MAX 64u
/* Models that one daemon has workers for. */
#define LARDER_SERVED_MAX 16u
/* Blends that wait for one worker: minutes of work; more are refused. */
#define LARDER_BLENDS_WAITING_MAX 64u
/* Of a blend that names no deadline. */
#define LARDER_BLEND_MS_DEFAULT 60000u

static_assert(LARDER_REQUEST_KEYS_MAX * 32 + 1024 <= LARDER_FRAME_BYTES_MAX, "keys fit a frame");
static_assert(LARDER_REQUEST_KEYS_MAX * 40 + 2048 <= LARDER_FRAME_BYTES_MAX, "answers fit too");
static_assert(LARDER_IO_BYTES_MAX % LARDER_PAGE_BYTES == 0, "requests are whole pages");

#endif
