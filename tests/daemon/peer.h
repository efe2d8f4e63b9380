/* SPDX-License-Identifier: Apache-2.0 */
/* peer.h - a client that speaks raw frames, right or wrong ones, for tests. Not the client library:
 * what it sends is the test's to choose. A wait that takes too long fails the test.
 */
#ifndef LARDER_TESTS_DAEMON_PEER_H
#define LARDER_TESTS_DAEMON_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/wire.h"

struct larder_hasher;

#define PEER_SLABS_MAX    256u
#define PEER_BLOCK_TOKENS 16u

struct peer {
    int fd;
    uint64_t request; /* the last one used */
    struct wire_hello_ok hello;
    struct larder_model_desc desc;
    uint32_t model;
    struct larder_hasher *hasher;
    int staging_fd;
    uint8_t *staging;
    uint64_t staging_bytes;
    int slab_fds[PEER_SLABS_MAX]; /* -1: not sent */
    const uint8_t *slabs[PEER_SLABS_MAX];
    uint64_t slab_bytes[PEER_SLABS_MAX];
    uint32_t slab_count; /* sent so far */
    uint32_t fds_unexpected;
};

/* A frame as it came in. */
struct answer {
    _Alignas(8) uint8_t bytes[LARDER_FRAME_BYTES_MAX];
    size_t byte_count; /* 0: the daemon closed */
    int fd;            /* -1: none */
};

struct block {
    struct larder_key key;
    struct larder_key parent;
    uint32_t tokens[PEER_BLOCK_TOKENS];
    uint32_t token_count;
    uint64_t position;
};

/* A model of 2 layers, 2 heads of 32, bf16. */
void peer_model_desc(struct larder_model_desc *out);

/* Connects, and nothing else. */
void peer_connect(struct peer *peer, const char *path);
/* Connects, says hello, describes the model, gets staging. */
void peer_open(struct peer *peer, const char *path);
void peer_close(struct peer *peer);

/* Sends bytes as they are; 0 or -errno. */
int peer_send_bytes(struct peer *peer, const void *bytes, size_t byte_count);
/* Sends a well-formed frame; returns its request. `items` may be NULL. */
uint64_t peer_send(struct peer *peer, uint16_t type, const void *body, size_t body_bytes,
                   const void *items, size_t item_bytes);
/* The next frame other than WIRE_SLAB, whose slabs it keeps and maps. */
void peer_receive(struct peer *peer, struct answer *answer);
/* The same, which must be of that type and answer that request; its body. */
const void *peer_expect(struct peer *peer, struct answer *answer, uint16_t type, uint64_t request);
/* The next frame must be an error with this code. */
void peer_expect_error(struct peer *peer, uint64_t request, int code);
/* The daemon must have closed, after what it still had to say. */
void peer_expect_close(struct peer *peer);

void peer_say_hello(struct peer *peer);
void peer_open_model(struct peer *peer, const struct larder_model_desc *desc);
void peer_open_staging(struct peer *peer, uint64_t bytes);

/* A chain of whole blocks from the root; another seed, other tokens. */
void peer_chain(struct peer *peer, struct block *out, uint32_t count, uint32_t seed);
/* K and V of a block of the model; bytes that follow from the seed. */
uint64_t peer_kv_bytes(const struct peer *peer, uint32_t token_count);
void peer_fill_kv(uint8_t *out, uint64_t bytes, uint32_t seed);

/* Fills in a PUT of this block and writes it to staging. */
void peer_stage(struct peer *peer, struct wire_put *out, const struct block *block,
                const uint8_t *kv, uint64_t offset, enum larder_wait wait, const char *recipe);
/* One PUT and its answer: 0 or the error's code. */
int peer_put(struct peer *peer, const struct block *block, const uint8_t *kv, enum larder_wait wait,
             const char *recipe, struct wire_put_ok *ok);
/* The same for `count` blocks of one chain with KV of seed, seed + 1, ...; all must succeed. */
void peer_put_chain(struct peer *peer, const struct block *blocks, uint32_t count, uint32_t seed,
                    enum larder_wait wait);

/* A GET of these blocks: its request. */
uint64_t peer_send_get(struct peer *peer, const struct block *blocks, uint32_t count);
/* A GET of these blocks, until everything is loaded. Its request, which names the lease. */
uint64_t peer_get(struct peer *peer, const struct block *blocks, uint32_t count,
                  struct wire_get_ok *ok, struct wire_ref *refs, struct wire_loaded *loaded);
void peer_release(struct peer *peer, uint64_t request);
uint32_t peer_lookup(struct peer *peer, const struct block *blocks, uint32_t count);
/* Reads a ref as docs/PROTOCOL.md says: 0, LARDER_ESTALE, LARDER_ECORRUPT, LARDER_EMISMATCH. */
int peer_read(struct peer *peer, const struct wire_ref *ref, const struct block *block,
              uint8_t *kv_out, uint64_t kv_bytes);
/* A profile of a model with what bfp4-ksort reads, the order of K's channels; larder_free(). */
void *peer_make_profile(const struct larder_model_desc *desc, uint64_t *bytes, uint8_t name[32]);
/* Fills the memory that the daemon gives for it over the control socket; the answer to ADD, whose
 * request this is, is still to come. */
uint64_t peer_upload_profile(struct peer *control, const void *bytes, uint64_t count,
                             const uint8_t name[32], bool is_default);

/* Does a fresh client at `path` get served: hello, put, get, bytes equal? Aborts if not. */
void peer_check_served(const char *path, uint32_t seed);

#endif
