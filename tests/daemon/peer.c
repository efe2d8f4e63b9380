/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/daemon/peer.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/key.h"
#include "base/record.h"
#include "base/slab.h"
#include "codec/codec.h"
#include "codec/profile_writer.h"

#define WAIT_MS      20000
#define STAGING_SIZE (1u << 20)

void peer_model_desc(struct larder_model_desc *out)
{
    memset(out, 0, sizeof(*out));
    strcpy(out->name, "peer");
    memset(out->weights, 7, sizeof(out->weights));
    out->layers = 2;
    out->kv_heads = 2;
    out->k_dims = 32;
    out->v_dims = 32;
    out->dtype = LARDER_BF16;
    out->vocab = 50000;
    out->rope.kind = LARDER_ROPE_PLAIN;
    out->rope.rotary_dims = 32;
    out->rope.theta = 10000;
    out->rope.factor = 1;
    out->rope.attention_factor = 1;
}

void peer_connect(struct peer *peer, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memset(peer, 0, sizeof(*peer));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    peer->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(peer->fd, 0);
    ck_assert_msg(connect(peer->fd, (struct sockaddr *)&address, sizeof(address)) == 0,
                  "connect %s: %s", path, strerror(errno));
    peer->staging_fd = -1;
    for (uint32_t i = 0; i < PEER_SLABS_MAX; i++)
        peer->slab_fds[i] = -1;
}

void peer_close(struct peer *peer)
{
    close(peer->fd);
    larder_hasher_close(peer->hasher);
    if (peer->staging)
        munmap(peer->staging, peer->staging_bytes);
    if (peer->staging_fd >= 0)
        close(peer->staging_fd);
    for (uint32_t i = 0; i < PEER_SLABS_MAX; i++) {
        if (peer->slabs[i])
            munmap((void *)(uintptr_t)peer->slabs[i], peer->slab_bytes[i]);
        if (peer->slab_fds[i] >= 0)
            close(peer->slab_fds[i]);
    }
    memset(peer, 0, sizeof(*peer));
    peer->fd = -1;
}

int peer_send_bytes(struct peer *peer, const void *bytes, size_t byte_count)
{
    return send(peer->fd, bytes, byte_count, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

uint64_t peer_send(struct peer *peer, uint16_t type, const void *body, size_t body_bytes,
                   const void *items, size_t item_bytes)
{
    _Alignas(8) uint8_t bytes[LARDER_FRAME_BYTES_MAX];
    struct wire_frame *header = (struct wire_frame *)bytes;
    memset(header, 0, sizeof(*header));
    header->bytes = (uint32_t)(sizeof(*header) + body_bytes + item_bytes);
    ck_assert_uint_le(header->bytes, sizeof(bytes));
    header->type = type;
    header->request = ++peer->request;
    if (body_bytes)
        memcpy(header + 1, body, body_bytes);
    if (item_bytes)
        memcpy((uint8_t *)(header + 1) + body_bytes, items, item_bytes);
    ck_assert_int_eq(peer_send_bytes(peer, bytes, header->bytes), 0);
    return header->request;
}

static void receive_one(struct peer *peer, struct answer *answer)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec part = {answer->bytes, sizeof(answer->bytes)};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct pollfd ready = {.fd = peer->fd, .events = POLLIN};
    ck_assert_msg(poll(&ready, 1, WAIT_MS) == 1, "no answer in %d ms", WAIT_MS);
    ssize_t got = recvmsg(peer->fd, &message, MSG_CMSG_CLOEXEC);
    if (got < 0)
        ck_assert_msg(errno == ECONNRESET, "recvmsg: %s", strerror(errno));
    answer->byte_count = got < 0 ? 0 : (size_t)got;
    answer->fd = -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (got > 0 && header && header->cmsg_type == SCM_RIGHTS) {
        ck_assert_uint_eq(header->cmsg_len, CMSG_LEN(sizeof(int)));
        memcpy(&answer->fd, CMSG_DATA(header), sizeof(int));
    }
    if (answer->byte_count) {
        ck_assert_uint_ge(answer->byte_count, sizeof(struct wire_frame));
        ck_assert_uint_eq(((struct wire_frame *)answer->bytes)->bytes, answer->byte_count);
    }
}

static void keep_slab(struct peer *peer, const struct answer *answer)
{
    const struct wire_slab *slab =
        (const struct wire_slab *)(answer->bytes + sizeof(struct wire_frame));
    ck_assert_int_ge(answer->fd, 0);
    ck_assert_uint_lt(slab->slab_id, PEER_SLABS_MAX);
    ck_assert_int_eq(peer->slab_fds[slab->slab_id], -1);
    void *memory = mmap(NULL, slab->bytes, PROT_READ, MAP_SHARED, answer->fd, 0);
    ck_assert_ptr_ne(memory, MAP_FAILED);
    peer->slab_fds[slab->slab_id] = answer->fd;
    peer->slabs[slab->slab_id] = memory;
    peer->slab_bytes[slab->slab_id] = slab->bytes;
    peer->slab_count++;
}

void peer_receive(struct peer *peer, struct answer *answer)
{
    for (;;) {
        receive_one(peer, answer);
        if (!answer->byte_count || ((struct wire_frame *)answer->bytes)->type != WIRE_SLAB)
            return;
        keep_slab(peer, answer);
    }
}

const void *peer_expect(struct peer *peer, struct answer *answer, uint16_t type, uint64_t request)
{
    peer_receive(peer, answer);
    ck_assert_msg(answer->byte_count > 0, "closed instead of type %u", type);
    const struct wire_frame *header = (const struct wire_frame *)answer->bytes;
    const struct wire_error *error = (const struct wire_error *)(header + 1);
    ck_assert_msg(header->type == type, "type %u instead of %u: %s", header->type, type,
                  header->type == WIRE_ERROR ? error->message : "");
    ck_assert_uint_eq(header->request, request);
    return header + 1;
}

void peer_expect_error(struct peer *peer, uint64_t request, int code)
{
    struct answer answer;
    const struct wire_error *error = peer_expect(peer, &answer, WIRE_ERROR, request);
    ck_assert_msg(error->code == code, "error %d instead of %d: %s", error->code, code,
                  error->message);
    ck_assert_ptr_nonnull(memchr(error->message, 0, sizeof(error->message)));
    ck_assert_uint_gt(strlen(error->message), 5);
}

void peer_expect_close(struct peer *peer)
{
    struct answer answer;
    do {
        peer_receive(peer, &answer);
        if (answer.fd >= 0)
            close(answer.fd);
    } while (answer.byte_count);
}

void peer_say_hello(struct peer *peer)
{
    struct answer answer;
    const struct wire_hello hello = {WIRE_MAGIC, WIRE_VERSION, WIRE_VERSION, 0};
    uint64_t request = peer_send(peer, WIRE_HELLO, &hello, sizeof(hello), NULL, 0);
    peer->hello = *(const struct wire_hello_ok *)peer_expect(peer, &answer, WIRE_HELLO_OK, request);
}

void peer_open_model(struct peer *peer, const struct larder_model_desc *desc)
{
    struct answer answer;
    peer->desc = *desc;
    uint64_t request = peer_send(peer, WIRE_MODEL, desc, sizeof(*desc), NULL, 0);
    const struct wire_model_ok *ok = peer_expect(peer, &answer, WIRE_MODEL_OK, request);
    struct larder_key fingerprint;
    ck_assert_int_eq(larder_model_fingerprint(&fingerprint, desc), 0);
    ck_assert_mem_eq(fingerprint.bytes, ok->fingerprint, 32);
    peer->model = ok->model;
    larder_hasher_close(peer->hasher);
    ck_assert_int_eq(larder_hasher_open(&peer->hasher, peer->hello.tenant_key, &fingerprint), 0);
}

void peer_open_staging(struct peer *peer, uint64_t bytes)
{
    struct answer answer;
    const struct wire_staging staging = {bytes};
    uint64_t request = peer_send(peer, WIRE_STAGING, &staging, sizeof(staging), NULL, 0);
    const struct wire_staging_ok *ok = peer_expect(peer, &answer, WIRE_STAGING_OK, request);
    ck_assert_uint_ge(ok->bytes, bytes);
    ck_assert_int_ge(answer.fd, 0);
    if (peer->staging) {
        munmap(peer->staging, peer->staging_bytes);
        close(peer->staging_fd);
    }
    peer->staging_fd = answer.fd;
    peer->staging_bytes = ok->bytes;
    peer->staging = mmap(NULL, ok->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, answer.fd, 0);
    ck_assert_ptr_ne(peer->staging, MAP_FAILED);
}

void peer_open(struct peer *peer, const char *path)
{
    struct larder_model_desc desc;
    peer_model_desc(&desc);
    peer_connect(peer, path);
    peer_say_hello(peer);
    peer_open_model(peer, &desc);
    peer_open_staging(peer, STAGING_SIZE);
}

/* --- blocks ----------------------------------------------------------------------------------- */

void peer_chain(struct peer *peer, struct block *out, uint32_t count, uint32_t seed)
{
    const struct larder_key *parent = &larder_key_root;
    for (uint32_t i = 0; i < count; i++) {
        struct block *block = &out[i];
        block->parent = *parent;
        block->token_count = PEER_BLOCK_TOKENS;
        block->position = (uint64_t)i * PEER_BLOCK_TOKENS;
        for (uint32_t t = 0; t < PEER_BLOCK_TOKENS; t++)
            block->tokens[t] = (seed * 7919 + i * 31 + t) % peer->desc.vocab;
        ck_assert_int_eq(larder_hasher_block(peer->hasher, &block->key, parent, NULL, 0,
                                             block->tokens, block->token_count),
                         0);
        parent = &block->key;
    }
}

uint64_t peer_kv_bytes(const struct peer *peer, uint32_t token_count)
{
    return larder_model_kv_bytes(&peer->desc, token_count);
}

void peer_fill_kv(uint8_t *out, uint64_t bytes, uint32_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (uint64_t i = 0; i + 1 < bytes; i += 2) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        /* bf16 around 1, like KV: compressible exponents, noisy mantissas. */
        out[i] = (uint8_t)(state >> 56);
        out[i + 1] = (uint8_t)(0x3f | (state >> 40 & 0x80));
    }
}

void peer_stage(struct peer *peer, struct wire_put *out, const struct block *block,
                const uint8_t *kv, uint64_t offset, enum larder_wait wait, const char *recipe)
{
    uint64_t kv_bytes = peer_kv_bytes(peer, block->token_count);
    uint64_t planes = larder_round_up(4ull * block->token_count, 64);
    memset(out, 0, sizeof(*out));
    out->model = peer->model;
    out->wait = wait;
    memcpy(out->key, block->key.bytes, 32);
    memcpy(out->parent, block->parent.bytes, 32);
    out->staging_offset = offset;
    out->staging_bytes = planes + kv_bytes;
    out->token_count = block->token_count;
    out->position = block->position;
    if (recipe) {
        out->recipe_bytes = (uint32_t)strlen(recipe);
        memcpy(out->recipe, recipe, out->recipe_bytes);
    }
    ck_assert_uint_le(offset + out->staging_bytes, peer->staging_bytes);
    memcpy(peer->staging + offset, block->tokens, 4ull * block->token_count);
    memcpy(peer->staging + offset + planes, kv, kv_bytes);
}

int peer_put(struct peer *peer, const struct block *block, const uint8_t *kv, enum larder_wait wait,
             const char *recipe, struct wire_put_ok *ok)
{
    struct wire_put put;
    struct answer answer;
    peer_stage(peer, &put, block, kv, 0, wait, recipe);
    uint64_t request = peer_send(peer, WIRE_PUT, &put, sizeof(put), NULL, 0);
    peer_receive(peer, &answer);
    ck_assert_uint_gt(answer.byte_count, 0);
    const struct wire_frame *header = (const struct wire_frame *)answer.bytes;
    ck_assert_uint_eq(header->request, request);
    if (header->type == WIRE_ERROR)
        return ((const struct wire_error *)(header + 1))->code;
    ck_assert_uint_eq(header->type, WIRE_PUT_OK);
    if (ok)
        *ok = *(const struct wire_put_ok *)(header + 1);
    return 0;
}

void peer_put_chain(struct peer *peer, const struct block *blocks, uint32_t count, uint32_t seed,
                    enum larder_wait wait)
{
    uint64_t bytes = peer_kv_bytes(peer, PEER_BLOCK_TOKENS);
    uint8_t *kv = malloc(bytes);
    for (uint32_t i = 0; i < count; i++) {
        peer_fill_kv(kv, bytes, seed + i);
        int err = peer_put(peer, &blocks[i], kv, wait, NULL, NULL);
        ck_assert_msg(err == 0, "put of block %u: %d", i, err);
    }
    free(kv);
}

static uint64_t send_keys(struct peer *peer, uint16_t type, const struct block *blocks,
                          uint32_t count)
{
    struct wire_keys wire = {
        .model = peer->model, .key_count = count, .worst = LARDER_QUALITY_BLENDED};
    struct larder_key keys[LARDER_REQUEST_KEYS_MAX];
    memcpy(wire.parent, blocks[0].parent.bytes, 32);
    for (uint32_t i = 0; i < count; i++)
        keys[i] = blocks[i].key;
    return peer_send(peer, type, &wire, sizeof(wire), keys, count * sizeof(keys[0]));
}

uint32_t peer_lookup(struct peer *peer, const struct block *blocks, uint32_t count)
{
    struct answer answer;
    uint64_t request = send_keys(peer, WIRE_LOOKUP, blocks, count);
    const struct wire_lookup_ok *ok = peer_expect(peer, &answer, WIRE_LOOKUP_OK, request);
    return ok->matched;
}

uint64_t peer_send_get(struct peer *peer, const struct block *blocks, uint32_t count)
{
    return send_keys(peer, WIRE_GET, blocks, count);
}

uint64_t peer_get(struct peer *peer, const struct block *blocks, uint32_t count,
                  struct wire_get_ok *ok, struct wire_ref *refs, struct wire_loaded *loaded)
{
    struct answer answer;
    uint64_t request = peer_send_get(peer, blocks, count);
    const struct wire_get_ok *got = peer_expect(peer, &answer, WIRE_GET_OK, request);
    *ok = *got;
    ck_assert_uint_le(ok->ref_count, count);
    memcpy(refs, got + 1, ok->ref_count * sizeof(refs[0]));
    loaded->loaded = ok->ref_count;
    loaded->error = 0;
    if (!ok->ready)
        *loaded = *(const struct wire_loaded *)peer_expect(peer, &answer, WIRE_LOADED, request);
    return request;
}

void peer_release(struct peer *peer, uint64_t request)
{
    const struct wire_release release = {1, 0};
    peer_send(peer, WIRE_RELEASE, &release, sizeof(release), &request, sizeof(request));
}

static int decode(struct peer *peer, const struct larder_record *record, const struct block *block,
                  uint8_t *kv_out, uint64_t kv_bytes)
{
    if (record->token_count != block->token_count ||
        memcmp(larder_record_tokens(record), block->tokens, 4ull * block->token_count) != 0)
        return LARDER_EMISMATCH;
    char text[LARDER_RECIPE_BYTES_MAX + 1] = {0};
    memcpy(text, larder_record_recipe(record), record->recipe_bytes);
    struct larder_recipe *recipe;
    ck_assert_int_eq(larder_recipe_open(&recipe, text, NULL), 0);
    uint64_t workspace_bytes =
        larder_recipe_workspace_bytes(recipe, &peer->desc, block->token_count);
    void *workspace = aligned_alloc(64, larder_round_up(workspace_bytes + 64, 64));
    const struct larder_block stored = {.model = &peer->desc, .token_count = block->token_count};
    uint64_t used = 0;
    int err = 0;
    for (uint32_t i = 0; err == 0 && i < record->section_count; i++) {
        const struct larder_section *section = &larder_record_directory(record)[i];
        struct larder_slice slice;
        larder_recipe_slice(recipe, &slice, &peer->desc, i);
        uint64_t raw = larder_slice_raw_bytes(&peer->desc, &slice, block->token_count);
        ck_assert_uint_le(used + raw, kv_bytes);
        err = larder_recipe_decode(recipe, kv_out + used, raw, &stored, i,
                                   (const uint8_t *)record + section->offset, section->bytes,
                                   workspace, workspace_bytes);
        used += raw;
    }
    if (err == 0)
        ck_assert_uint_eq(used, kv_bytes);
    free(workspace);
    larder_recipe_close(recipe);
    return err;
}

int peer_read(struct peer *peer, const struct wire_ref *ref, const struct block *block,
              uint8_t *kv_out, uint64_t kv_bytes)
{
    const struct larder_slab *slab = (const struct larder_slab *)peer->slabs[ref->slab_id];
    ck_assert_ptr_nonnull(slab);
    ck_assert_uint_eq(slab->magic, LARDER_SLAB_MAGIC);
    ck_assert_uint_lt(ref->slot, slab->slot_count);
    const struct larder_slot *slots =
        (const struct larder_slot *)((const uint8_t *)slab + LARDER_PAGE_BYTES);
    const struct larder_slot *slot = &slots[ref->slot];
    if (atomic_load_explicit(&slot->generation, memory_order_acquire) != ref->generation)
        return LARDER_ESTALE;
    uint64_t offset = slot->offset;
    uint64_t record_bytes = slot->record_bytes;
    ck_assert_uint_le(offset, slab->slab_bytes);
    ck_assert_uint_le(record_bytes, slab->slab_bytes - offset);
    const struct larder_record *record =
        (const struct larder_record *)((const uint8_t *)slab + offset);
    int err = larder_record_check(record, record_bytes);
    uint32_t published = atomic_load_explicit(&slot->published_sections, memory_order_acquire);
    if (err == 0) {
        ck_assert_uint_eq(published, record->section_count);
        err = decode(peer, record, block, kv_out, kv_bytes);
    }
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&slot->generation, memory_order_relaxed) != ref->generation)
        return LARDER_ESTALE;
    return err;
}

/* --- profiles --------------------------------------------------------------------------------- */

void *peer_make_profile(const struct larder_model_desc *desc, uint64_t *bytes, uint8_t name[32])
{
    const uint32_t channels = desc->kv_heads * desc->k_dims;
    const uint64_t shape[] = {desc->layers, channels};
    int32_t order[512];
    struct larder_profile_writer *writer;
    struct larder_profile *profile;
    void *out;
    ck_assert_uint_le(desc->layers * channels, LARDER_COUNT_OF(order));
    for (uint32_t i = 0; i < desc->layers * channels; i++)
        order[i] = (int32_t)(i % channels ^ 1);
    ck_assert_int_eq(larder_profile_writer_open(&writer, desc), 0);
    ck_assert_int_eq(larder_profile_put(writer, "bfp.order", LARDER_PROFILE_I32, shape, 2, order),
                     0);
    ck_assert_int_eq(larder_profile_finish(writer, &out, bytes), 0);
    larder_profile_writer_close(writer);
    ck_assert_int_eq(larder_profile_open(&profile, out, *bytes), 0);
    larder_profile_name(profile, name);
    larder_profile_close(profile);
    return out;
}

uint64_t peer_upload_profile(struct peer *control, const void *bytes, uint64_t count,
                             const uint8_t name[32], bool is_default)
{
    const struct wire_staging ask = {.bytes = count};
    struct wire_admin_profile_add add = {.is_default = is_default};
    static struct answer answer;
    uint64_t request = peer_send(control, WIRE_ADMIN_PROFILE_NEW, &ask, sizeof(ask), NULL, 0);
    peer_expect(control, &answer, WIRE_ADMIN_PROFILE_NEW_OK, request);
    void *map = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_SHARED, answer.fd, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    ck_assert_int_ne(ftruncate(answer.fd, 0), 0);
    memcpy(map, bytes, count);
    munmap(map, count);
    close(answer.fd);
    memcpy(add.name, name, sizeof(add.name));
    return peer_send(control, WIRE_ADMIN_PROFILE_ADD, &add, sizeof(add), NULL, 0);
}

void peer_check_served(const char *path, uint32_t seed)
{
    struct peer peer;
    struct block blocks[3];
    struct wire_get_ok ok;
    struct wire_ref refs[3];
    struct wire_loaded loaded;
    peer_open(&peer, path);
    peer_chain(&peer, blocks, 3, seed);
    peer_put_chain(&peer, blocks, 3, seed, LARDER_CACHED);
    ck_assert_uint_eq(peer_lookup(&peer, blocks, 3), 3);
    uint64_t request = peer_get(&peer, blocks, 3, &ok, refs, &loaded);
    ck_assert_uint_eq(loaded.loaded, 3);
    uint64_t bytes = peer_kv_bytes(&peer, PEER_BLOCK_TOKENS);
    uint8_t *wanted = malloc(bytes);
    uint8_t *got = malloc(bytes);
    for (uint32_t i = 0; i < 3; i++) {
        peer_fill_kv(wanted, bytes, seed + i);
        ck_assert_int_eq(peer_read(&peer, &refs[i], &blocks[i], got, bytes), 0);
        ck_assert_mem_eq(wanted, got, bytes);
    }
    free(wanted);
    free(got);
    peer_release(&peer, request);
    peer_close(&peer);
}
