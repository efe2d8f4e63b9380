/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/client/fake.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
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
#include "base/wire.h"
#include "codec/codec.h"

#define SLAB_BYTES (3u << 20)
#define SLAB_SLOTS 64u
#define SLAB_ID    5u
#define SLOT_BYTES (44u << 10)
#define DATA_OFFSET                                                                                \
    ((LARDER_PAGE_BYTES + SLAB_SLOTS * sizeof(struct larder_slot) + LARDER_PAGE_BYTES - 1) /       \
     LARDER_PAGE_BYTES * LARDER_PAGE_BYTES)
static_assert(DATA_OFFSET + (uint64_t)SLAB_SLOTS * SLOT_BYTES <= SLAB_BYTES, "slots fit");

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

struct entry {
    struct larder_key key;
    uint32_t slot;
};

struct fake {
    char directory[64];
    char socket[96];
    int listener;
    int stop[2]; /* pipe: closed to stop */
    pthread_t thread;
    _Atomic int fault;
    _Atomic bool forget; /* asks to empty the store */
    _Atomic bool drop;   /* asks to close the connection */
    _Atomic int leases;
    /* the thread's */
    int fd;
    bool slab_sent;
    int slab_fd;
    char *slab;
    int staging_fd;
    char *staging;
    uint64_t staging_bytes;
    struct larder_model_desc desc;
    struct larder_key fingerprint;
    struct larder_recipe *raw;
    struct entry entries[SLAB_SLOTS];
    uint32_t entry_count;
    uint32_t puts;
    uint64_t late_profile; /* a request for one that is still to be answered; 0: none */
    uint32_t random;
    _Alignas(64) char frame[LARDER_FRAME_BYTES_MAX];
};

static const uint8_t tenant_id[16] = {1, 2, 3};
static const uint8_t tenant_key[32] = {4, 5, 6};

const char *fake_fault_name(enum fake_fault fault)
{
    static const char *const names[] = {
#define FAKE_NAME(name) #name,
        FAKE_FAULTS(FAKE_NAME)
#undef FAKE_NAME
    };
    return names[fault];
}

static bool has(const struct fake *fake, enum fake_fault fault)
{
    return fake->fault == (int)fault;
}

static uint32_t next_random(struct fake *fake)
{
    fake->random = fake->random * 1664525u + 1013904223u;
    return fake->random >> 8;
}

/* --- frames ---------------------------------------------------------------------------------- */

static void send_raw(struct fake *fake, const void *bytes, size_t count, const int *fds,
                     int fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *at = CMSG_FIRSTHDR(&message);
        at->cmsg_level = SOL_SOCKET;
        at->cmsg_type = SCM_RIGHTS;
        at->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(at), fds, (size_t)fd_count * sizeof(int));
    }
    (void)sendmsg(fake->fd, &message, MSG_NOSIGNAL);
}

/* The body follows in `frame` behind its head. */
static void answer_fds(struct fake *fake, uint16_t type, uint64_t request, const void *body,
                       size_t bytes, const int *fds, int fd_count)
{
    static char out[2 * LARDER_FRAME_BYTES_MAX];
    struct wire_frame head = {
        .bytes = (uint32_t)(sizeof(head) + bytes), .type = type, .request = request};
    assert(sizeof(head) + bytes <= LARDER_FRAME_BYTES_MAX);
    memcpy(out, &head, sizeof(head));
    memcpy(out + sizeof(head), body, bytes);
    size_t count = sizeof(head) + bytes;
    if (has(fake, FAKE_FUZZ) && type != WIRE_HELLO_OK && next_random(fake) % 2) {
        switch (next_random(fake) % 4) {
        case 0: /* any bytes */
            count = next_random(fake) % 200;
            for (size_t i = 0; i < count; i++)
                out[i] = (char)next_random(fake);
            break;
        case 1: /* another length, told right */
            count = sizeof(head) + next_random(fake) % (bytes + 64);
            head.bytes = (uint32_t)count;
            memcpy(out, &head, sizeof(head));
            break;
        default: /* a few other bytes in the body */
            for (int i = 0; i < 3 && bytes > 0; i++)
                out[sizeof(head) + next_random(fake) % bytes] = (char)next_random(fake);
        }
    }
    send_raw(fake, out, count, fds, fd_count);
}

static void answer(struct fake *fake, uint16_t type, uint64_t request, const void *body,
                   size_t bytes)
{
    answer_fds(fake, type, request, body, bytes, NULL, 0);
}

static void answer_error(struct fake *fake, uint64_t request, int code)
{
    struct wire_error body = {.code = code, .message = "fake"};
    answer(fake, WIRE_ERROR, request, &body, sizeof(body));
}

/* --- memory ---------------------------------------------------------------------------------- */

static int make_memory(uint64_t bytes, char **map, int seals)
{
    int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert(fd >= 0);
    int err = ftruncate(fd, (off_t)bytes);
    assert(err == 0);
    *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert(*map != MAP_FAILED);
    err = seals ? fcntl(fd, F_ADD_SEALS, seals) : 0;
    assert(err == 0);
    return fd;
}

static struct larder_slot *slot_at(struct fake *fake, uint32_t slot)
{
    return (struct larder_slot *)(void *)(fake->slab + LARDER_PAGE_BYTES) + slot;
}

static char *record_at(struct fake *fake, uint32_t slot)
{
    return fake->slab + DATA_OFFSET + (uint64_t)slot * SLOT_BYTES;
}

/* A fresh slab for each connection, so that no fault outlives it; entries move along. */
static void open_slab(struct fake *fake)
{
    char *old = fake->slab;
    int old_fd = fake->slab_fd;
    fake->slab_fd = make_memory(
        SLAB_BYTES, &fake->slab,
        has(fake, FAKE_SLAB_UNSEALED) ? 0 : F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
    if (old)
        memcpy(fake->slab, old, SLAB_BYTES);
    struct larder_slab *head = (void *)fake->slab;
    *head = (struct larder_slab){
        .magic = LARDER_SLAB_MAGIC,
        .slab_bytes = SLAB_BYTES,
        .data_offset = DATA_OFFSET,
        .slab_id = SLAB_ID,
        .slot_count = SLAB_SLOTS,
    };
    head->magic += has(fake, FAKE_SLAB_MAGIC);
    head->slab_id += has(fake, FAKE_SLAB_ID);
    head->slot_count = has(fake, FAKE_SLAB_SLOTS) ? 4000 : SLAB_SLOTS;
    head->data_offset = has(fake, FAKE_SLAB_DATA) ? SLAB_BYTES + 4096 : DATA_OFFSET;
    if (old) {
        munmap(old, SLAB_BYTES);
        close(old_fd);
    }
}

static void send_slab(struct fake *fake)
{
    if (fake->slab_sent)
        return;
    fake->slab_sent = true;
    open_slab(fake);
    const struct wire_slab body = {
        .slab_id = SLAB_ID,
        .bytes = has(fake, FAKE_SLAB_SHORT) ? 2 * SLAB_BYTES : SLAB_BYTES,
    };
    int fds[2] = {fake->slab_fd, fake->slab_fd};
    if (has(fake, FAKE_SLAB_FILE))
        fds[0] = fake->stop[0];
    int count = has(fake, FAKE_SLAB_NO_FD) ? 0 : has(fake, FAKE_SLAB_TWO_FDS) ? 2 : 1;
    answer_fds(fake, WIRE_SLAB, 0, &body, sizeof(body), fds, count);
    if (has(fake, FAKE_SLAB_TWICE))
        answer_fds(fake, WIRE_SLAB, 0, &body, sizeof(body), fds, count);
}

/* --- setup ----------------------------------------------------------------------------------- */

static void serve_hello(struct fake *fake, uint64_t request)
{
    struct wire_hello_ok body = {
        .magic = WIRE_MAGIC,
        .version = has(fake, FAKE_HELLO_VERSION) ? 9 : WIRE_VERSION,
        .block_tokens = has(fake, FAKE_HELLO_BLOCK) ? 0 : FAKE_BLOCK_TOKENS,
        .lease_ms = 1000,
        .staging_bytes_max = 4u << 20,
        .tenant_name = "fake",
        .daemon_version = "0",
        .recipe = "raw",
    };
    memcpy(body.tenant_id, tenant_id, sizeof(tenant_id));
    memcpy(body.tenant_key, tenant_key, sizeof(tenant_key));
    if (has(fake, FAKE_HELLO_TEXT))
        memset(body.tenant_name, 'x', sizeof(body.tenant_name));
    if (!has(fake, FAKE_HELLO_SILENT))
        answer(fake, WIRE_HELLO_OK, request, &body, sizeof(body) - has(fake, FAKE_HELLO_SHORT));
}

static void serve_model(struct fake *fake, uint64_t request, const void *body)
{
    memcpy(&fake->desc, body, sizeof(fake->desc));
    int err = larder_model_fingerprint(&fake->fingerprint, &fake->desc);
    assert(err == 0);
    struct wire_model_ok ok = {.model = 3};
    memcpy(ok.fingerprint, fake->fingerprint.bytes, sizeof(ok.fingerprint));
    ok.fingerprint[7] ^= has(fake, FAKE_MODEL_OTHER);
    answer(fake, WIRE_MODEL_OK, request, &ok, sizeof(ok) - has(fake, FAKE_MODEL_SHORT));
}

static void close_staging(struct fake *fake)
{
    if (fake->staging)
        munmap(fake->staging, fake->staging_bytes);
    if (fake->staging_fd >= 0)
        close(fake->staging_fd);
    fake->staging = NULL;
    fake->staging_fd = -1;
}

static void serve_staging(struct fake *fake, uint64_t request, const struct wire_staging *body)
{
    close_staging(fake);
    fake->staging_bytes = body->bytes;
    fake->staging_fd = make_memory(body->bytes, &fake->staging,
                                   has(fake, FAKE_STAGING_UNSEALED) ? 0 : F_SEAL_SHRINK);
    struct wire_staging_ok ok = {.bytes = body->bytes};
    if (has(fake, FAKE_STAGING_SMALL))
        ok.bytes /= 2;
    if (has(fake, FAKE_STAGING_SHORT))
        ok.bytes *= 2;
    answer_fds(fake, WIRE_STAGING_OK, request, &ok, sizeof(ok), &fake->staging_fd,
               !has(fake, FAKE_STAGING_NO_FD));
}

/* --- entries --------------------------------------------------------------------------------- */

static const struct entry *find_entry(const struct fake *fake, const void *key)
{
    for (uint32_t i = 0; i < fake->entry_count; i++)
        if (memcmp(fake->entries[i].key.bytes, key, 32) == 0)
            return &fake->entries[i];
    return NULL;
}

/* Writes the raw record of a PUT to the next slot. */
static void store(struct fake *fake, const struct wire_put *put)
{
    const char *region = fake->staging + put->staging_offset;
    const char *recipe = "raw";
    const uint32_t sections = larder_recipe_section_count(fake->raw, &fake->desc);
    struct larder_head_layout layout;
    larder_head_layout(&layout, put->extra_bytes, 3, put->token_count, sections);
    const uint32_t index = fake->entry_count;
    assert(index < SLAB_SLOTS);
    char *at = record_at(fake, index);
    memset(at, 0, SLOT_BYTES);
    struct larder_record head = {
        .magic = LARDER_RECORD_MAGIC,
        .version = LARDER_RECORD_VERSION,
        .type = LARDER_RECORD_ENTRY,
        .tag_kind = LARDER_TAG_XXH3_128,
        .record_bytes = SLOT_BYTES,
        .head_bytes = layout.head_bytes,
        .extra_bytes = put->extra_bytes,
        .token_count = put->token_count,
        .position = put->position,
        .section_count = (uint16_t)sections,
        .recipe_bytes = 3,
    };
    memcpy(head.key, put->key, 32);
    memcpy(head.parent, put->parent, 32);
    memcpy(head.model, fake->fingerprint.bytes, 32);
    memcpy(head.tenant, tenant_id, 16);
    memcpy(at, &head, sizeof(head));
    memcpy(at + layout.extra, region, put->extra_bytes);
    memcpy(at + layout.recipe, recipe, 3);
    const uint64_t tokens_at = larder_round_up(put->extra_bytes, 4);
    memcpy(at + layout.tokens, region + tokens_at, 4 * put->token_count);
    const char *planes = region + larder_round_up(tokens_at + 4 * put->token_count, 64);
    uint64_t end = layout.sections;
    for (uint32_t i = 0; i < sections; i++) {
        struct larder_slice slice;
        larder_recipe_slice(fake->raw, &slice, &fake->desc, i);
        const uint64_t bytes = larder_slice_raw_bytes(&fake->desc, &slice, put->token_count);
        const struct larder_section section = {
            .layer_first = slice.layer_first,
            .layer_count = slice.layer_count,
            .head_first = slice.head_first,
            .head_count = slice.head_count,
            .kind = slice.kind,
            .offset = end,
            .bytes = bytes,
        };
        assert(end + bytes <= SLOT_BYTES);
        memcpy(at + layout.directory + i * sizeof(section), &section, sizeof(section));
        memcpy(at + end, planes, bytes);
        planes += bytes;
        end = larder_round_up(end + bytes, 64);
    }
    struct larder_slot *slot = slot_at(fake, index);
    slot->offset = (uint64_t)(at - fake->slab);
    slot->record_bytes = SLOT_BYTES;
    slot->generation = 100 + index;
    slot->published_sections = sections;
    memcpy(fake->entries[index].key.bytes, put->key, 32);
    fake->entries[index].slot = index;
    fake->entry_count++;
}

static bool serve_put(struct fake *fake, uint64_t request, const struct wire_put *put)
{
    if (has(fake, FAKE_PUT_CLOSE))
        return false;
    if (has(fake, FAKE_PUT_BUSY) && fake->puts++ > 0) {
        answer_error(fake, request, -EBUSY);
        return true;
    }
    struct wire_put_ok ok = {.stored_bytes = SLOT_BYTES, .existed = 0};
    if (!fake->slab)
        open_slab(fake);
    if (find_entry(fake, put->key))
        ok = (struct wire_put_ok){.existed = 1};
    else if (fake->entry_count < SLAB_SLOTS)
        store(fake, put);
    answer(fake, WIRE_PUT_OK, request, &ok, has(fake, FAKE_PUT_EMPTY) ? 0 : sizeof(ok));
    return true;
}

/* Spoils the last matched entry in the slab, as the fault says; the slab is fresh. */
static void spoil(struct fake *fake, uint32_t index)
{
    struct larder_slot *slot = slot_at(fake, index);
    char *at = record_at(fake, index);
    struct larder_record head;
    memcpy(&head, at, sizeof(head));
    struct larder_head_layout layout;
    larder_head_layout(&layout, head.extra_bytes, head.recipe_bytes, head.token_count,
                       head.section_count);
    struct larder_section section;
    char *directory = at + layout.directory + 2 * sizeof(section);
    memcpy(&section, directory, sizeof(section));
    switch ((enum fake_fault)fake->fault) {
    case FAKE_SLOT_OUTSIDE:
        slot->offset = SLAB_BYTES + 4096;
        return;
    case FAKE_SLOT_LONG:
        slot->record_bytes = SLAB_BYTES;
        return;
    case FAKE_SLOT_UNALIGNED:
        slot->offset += 4;
        return;
    case FAKE_SLOT_FAILED:
        slot->published_sections = 1;
        slot->failed = LARDER_ECORRUPT;
        return;
    case FAKE_SLOT_NEVER:
    case FAKE_SLOT_HANGS:
        slot->published_sections = 0;
        return;
    case FAKE_SLOT_PUBLISHED:
        slot->published_sections = UINT32_MAX;
        return;
    case FAKE_HEAD_MAGIC:
        head.magic++;
        break;
    case FAKE_HEAD_BYTES:
        head.head_bytes += 8;
        break;
    case FAKE_HEAD_HUGE:
        head.head_bytes = UINT32_MAX;
        head.record_bytes = UINT64_MAX;
        break;
    case FAKE_HEAD_KEY:
        head.key[0] ^= 1;
        break;
    case FAKE_HEAD_TOKENS:
        at[layout.tokens] ^= 1;
        break;
    case FAKE_HEAD_POSITION:
        head.position = 5000;
        break;
    case FAKE_HEAD_MODEL:
        head.model[0] ^= 1;
        break;
    case FAKE_HEAD_QUALITY:
        head.quality = LARDER_QUALITY_BLENDED;
        break;
    case FAKE_HEAD_RECIPE:
        memcpy(at + layout.recipe, "xyz", 3);
        break;
    case FAKE_HEAD_EXACT:
        /* The tokens move by four bytes, into the padding before the directory. */
        assert(layout.directory - layout.tokens >= 4 * head.token_count + 4);
        memmove(at + layout.tokens + 4, at + layout.tokens, 4 * head.token_count);
        memcpy(at + layout.recipe, "exact", 5);
        head.recipe_bytes = 5;
        break;
    case FAKE_PROFILE_NONE:
    case FAKE_PROFILE_NO_FD:
    case FAKE_PROFILE_OPEN:
    case FAKE_PROFILE_SHORT:
    case FAKE_PROFILE_JUNK:
    case FAKE_PROFILE_SILENT:
    case FAKE_PROFILE_LATE:
        head.profile[7] = 7;
        break;
    case FAKE_SECTION_OUTSIDE:
        section.offset = SLAB_BYTES;
        break;
    case FAKE_SECTION_LAYER:
        section.layer_first++;
        break;
    case FAKE_SECTION_SHORT:
        section.bytes -= 64;
        break;
    default:
        return;
    }
    memcpy(at, &head, sizeof(head));
    memcpy(directory, &section, sizeof(section));
}

struct get_ok {
    struct wire_get_ok head;
    struct wire_ref refs[LARDER_REQUEST_KEYS_MAX];
};

/* Answers with the faults that concern the answer itself. */
static void answer_get(struct fake *fake, uint64_t request, struct get_ok *ok, uint32_t key_count)
{
    size_t bytes = sizeof(ok->head) + ok->head.ref_count * sizeof(ok->refs[0]);
    uint16_t type = WIRE_GET_OK;
    const struct wire_loaded loaded = {.loaded = 1000};
    struct wire_ref *last = &ok->refs[ok->head.ref_count - 1];
    switch ((enum fake_fault)fake->fault) {
    case FAKE_GET_EMPTY:
        bytes = 0;
        break;
    case FAKE_GET_CUT:
        bytes--;
        break;
    case FAKE_GET_LONG:
        bytes++;
        break;
    case FAKE_GET_MATCHED:
        ok->head.matched = key_count + 1;
        break;
    case FAKE_GET_REFS:
        ok->head.matched = ok->head.ref_count - 1;
        break;
    case FAKE_GET_TAILS:
        ok->head.tail_count = 3;
        break;
    case FAKE_GET_SLAB:
        last->slab_id = 77;
        break;
    case FAKE_GET_SLOT:
        last->slot = SLAB_SLOTS;
        break;
    case FAKE_GET_GENERATION:
        last->generation--;
        break;
    case FAKE_GET_STRANGER:
        request += 1000;
        break;
    case FAKE_GET_TWICE:
        answer(fake, type, request, ok, bytes);
        break;
    case FAKE_GET_TYPE:
        type = WIRE_STAT_OK;
        break;
    case FAKE_GET_UNKNOWN:
        type = 999;
        break;
    case FAKE_GET_FLOOD:
        for (uint64_t i = 0; i < 3000; i++)
            answer(fake, WIRE_LOADED, 1000000 + i, &loaded, sizeof(loaded));
        break;
    default:
        break;
    }
    answer_fds(fake, type, request, ok, bytes, &fake->slab_fd, has(fake, FAKE_GET_FD));
}

/* Changes bytes of what the refs lead to: of slots and heads, not of KV. */
static void scribble(struct fake *fake, const struct get_ok *ok, int times)
{
    for (int i = 0; i < times; i++) {
        const uint32_t slot = ok->refs[next_random(fake) % ok->head.ref_count].slot;
        const bool in_slot = next_random(fake) % 4 == 0;
        volatile char *at = in_slot ? (volatile char *)slot_at(fake, slot) : record_at(fake, slot);
        at += next_random(fake) % (in_slot ? sizeof(struct larder_slot) : 700);
        *at = (char)next_random(fake);
    }
}

static uint32_t count_matched(const struct fake *fake, const char *keys, uint32_t count)
{
    uint32_t matched = 0;
    while (matched < count && find_entry(fake, keys + 32 * matched))
        matched++;
    return matched;
}

static bool serve_get(struct fake *fake, uint64_t request, const struct wire_keys *body)
{
    const char *keys = (const char *)(body + 1);
    /* The test may set another as soon as it has the answer. */
    const enum fake_fault fault = (enum fake_fault)fake->fault;
    const struct wire_frame odd = {
        .bytes = has(fake, FAKE_GET_LENGTH) ? 99 : 4, .type = WIRE_GET_OK, .request = request};
    static char huge[2 * LARDER_FRAME_BYTES_MAX];
    switch (fault) {
    case FAKE_GET_SILENT:
        return true;
    case FAKE_GET_CLOSE:
        return false;
    case FAKE_GET_ERROR:
        answer_error(fake, request, LARDER_EREADONLY);
        return true;
    case FAKE_GET_FULL:
        answer_error(fake, request, -EBUSY);
        return true;
    case FAKE_GET_LENGTH:
        send_raw(fake, &odd, sizeof(odd), NULL, 0);
        return true;
    case FAKE_GET_TINY:
        send_raw(fake, &odd, 4, NULL, 0);
        return true;
    case FAKE_GET_HUGE:
        send_raw(fake, huge, LARDER_FRAME_BYTES_MAX + 100, NULL, 0);
        return true;
    default:
        break;
    }
    struct get_ok *ok = calloc(1, sizeof(*ok));
    ok->head.matched = count_matched(fake, keys, body->key_count);
    ok->head.ref_count = ok->head.matched;
    ok->head.ready = 1;
    if (ok->head.matched == 0) {
        answer(fake, WIRE_GET_OK, request, ok, sizeof(ok->head));
        free(ok);
        return true;
    }
    send_slab(fake);
    for (uint32_t i = 0; i < ok->head.matched; i++) {
        uint32_t slot = find_entry(fake, keys + 32 * i)->slot;
        ok->refs[i] = (struct wire_ref){
            .slab_id = SLAB_ID, .slot = slot, .generation = slot_at(fake, slot)->generation};
    }
    uint32_t last = ok->refs[ok->head.matched - 1].slot;
    char *record = record_at(fake, last);
    struct larder_slot slot_before;
    memcpy(&slot_before, slot_at(fake, last), sizeof(slot_before));
    char *before = malloc(SLOT_BYTES);
    memcpy(before, record, SLOT_BYTES);
    if (fault < FAKE_FUZZ)
        spoil(fake, last);
    if (has(fake, FAKE_GET_KL))
        ok->head.kl = NAN;
    if (has(fake, FAKE_SLOT_HANGS) || has(fake, FAKE_SLOT_NEVER))
        ok->head.ready = 0;
    if (fault == FAKE_FUZZ_SLAB)
        scribble(fake, ok, (int)(next_random(fake) % 4));
    answer_get(fake, request, ok, body->key_count);
    if (fault == FAKE_FUZZ_SLAB)
        scribble(fake, ok, 2000);
    const struct wire_loaded loaded = {.loaded = ok->head.ref_count};
    if (fault == FAKE_SLOT_NEVER)
        answer(fake, WIRE_LOADED, request, &loaded, sizeof(loaded));
    fake->leases += 1;
    /* What is kept stays whole: the next slab is made from a private copy of it. */
    char *copy = mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(copy != MAP_FAILED);
    if (fault != FAKE_NONE && fault < FAKE_FUZZ) {
        memcpy(copy, fake->slab, SLAB_BYTES);
        memcpy(copy + slot_before.offset, before, SLOT_BYTES);
        memcpy(copy + ((char *)slot_at(fake, last) - fake->slab), &slot_before,
               sizeof(slot_before));
        munmap(fake->slab, SLAB_BYTES);
        fake->slab = copy;
    } else {
        munmap(copy, SLAB_BYTES);
    }
    free(before);
    free(ok);
    return true;
}

static void serve_lookup(struct fake *fake, uint64_t request, const struct wire_keys *body)
{
    struct wire_lookup_ok ok = {.matched =
                                    count_matched(fake, (const char *)(body + 1), body->key_count)};
    ok.bytes = ok.bytes_host = ok.matched * (uint64_t)SLOT_BYTES;
    if (has(fake, FAKE_LOOKUP_MATCHED))
        ok.matched = body->key_count + 1;
    if (has(fake, FAKE_LOOKUP_TAILS))
        ok.tail_count = LARDER_TAILS_MAX + 1;
    if (has(fake, FAKE_LOOKUP_KL))
        ok.kl = NAN;
    answer(fake, WIRE_LOOKUP_OK, request, &ok, sizeof(ok));
}

static void serve_profile(struct fake *fake, uint64_t request)
{
    char *map;
    if (has(fake, FAKE_PROFILE_SILENT))
        return;
    if (has(fake, FAKE_PROFILE_LATE) && fake->late_profile != request) {
        fake->late_profile = request;
        return;
    }
    fake->late_profile = 0;
    if (has(fake, FAKE_PROFILE_NONE)) {
        answer_error(fake, request, LARDER_ENOPROFILE);
        return;
    }
    const struct wire_profile_ok ok = {.bytes = has(fake, FAKE_PROFILE_SHORT) ? 8192 : 4096};
    int fd = make_memory(4096, &map, 0);
    memset(map, 'x', 4096);
    munmap(map, 4096);
    const int seals =
        F_SEAL_SHRINK | F_SEAL_GROW | (has(fake, FAKE_PROFILE_OPEN) ? 0 : F_SEAL_WRITE);
    int err = fcntl(fd, F_ADD_SEALS, seals);
    assert(err == 0);
    answer_fds(fake, WIRE_PROFILE_OK, request, &ok, sizeof(ok), &fd,
               !has(fake, FAKE_PROFILE_NO_FD));
    close(fd);
}

/* --- the thread ------------------------------------------------------------------------------ */

/* False closes the connection. */
static bool serve_frame(struct fake *fake)
{
    struct wire_frame head;
    memcpy(&head, fake->frame, sizeof(head));
    const void *body = fake->frame + sizeof(head);
    static const struct wire_stat_ok stat = {.entries = 7};
    const struct wire_release *release = body;
    if (fake->late_profile && head.type != WIRE_RELEASE)
        serve_profile(fake, fake->late_profile);
    switch (head.type) {
    case WIRE_HELLO:
        serve_hello(fake, head.request);
        return true;
    case WIRE_MODEL:
        serve_model(fake, head.request, body);
        return true;
    case WIRE_STAGING:
        serve_staging(fake, head.request, body);
        return true;
    case WIRE_PUT:
        return serve_put(fake, head.request, body);
    case WIRE_LOOKUP:
        serve_lookup(fake, head.request, body);
        return true;
    case WIRE_GET:
        return serve_get(fake, head.request, body);
    case WIRE_PROFILE:
        serve_profile(fake, head.request);
        return true;
    case WIRE_RELEASE:
        fake->leases -= (int)release->count;
        return true;
    case WIRE_STAT:
        answer(fake, WIRE_STAT_OK, head.request, &stat, sizeof(stat) - has(fake, FAKE_STAT_SHORT));
        return true;
    default:
        answer_error(fake, head.request, LARDER_ENOTFOUND);
        return true;
    }
}

/* Waits for the descriptor; false when the fake is to stop. */
static bool wait_for(struct fake *fake, int fd)
{
    struct pollfd polls[2] = {{.fd = fd, .events = POLLIN}, {.fd = fake->stop[0]}};
    while (poll(polls, 2, 5) >= 0 || errno == EINTR) {
        if (polls[1].revents || fake->drop)
            return false;
        if (polls[0].revents)
            return true;
    }
    return false;
}

static bool is_stopped(const struct fake *fake)
{
    struct pollfd poll_stop = {.fd = fake->stop[0]};
    return poll(&poll_stop, 1, 0) > 0;
}

static void *fake_main(void *argument)
{
    struct fake *fake = argument;
    while (!is_stopped(fake)) {
        if (fake->forget)
            fake->entry_count = 0;
        fake->forget = false;
        fake->drop = false;
        if (!wait_for(fake, fake->listener))
            continue;
        fake->fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
        fake->slab_sent = false;
        fake->puts = 0;
        fake->late_profile = 0;
        fake->leases = 0;
        bool go_on = true;
        while (go_on && wait_for(fake, fake->fd)) {
            ssize_t got = recv(fake->fd, fake->frame, sizeof(fake->frame), 0);
            go_on = got >= (ssize_t)sizeof(struct wire_frame) && serve_frame(fake);
        }
        close(fake->fd);
        close_staging(fake);
    }
    return NULL;
}

struct fake *fake_start(void)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    strcpy(fake->directory, "/tmp/larder-fake-XXXXXX");
    const char *made = mkdtemp(fake->directory);
    assert(made);
    snprintf(fake->socket, sizeof(fake->socket), "%s/socket", fake->directory);
    int err = pipe2(fake->stop, O_CLOEXEC);
    assert(err == 0);
    fake->staging_fd = -1;
    fake->random = 7;
    err = larder_recipe_open(&fake->raw, "raw", NULL);
    assert(err == 0);
    fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", fake->socket);
    err = bind(fake->listener, (const struct sockaddr *)&address, sizeof(address));
    assert(err == 0);
    err = listen(fake->listener, 16);
    assert(err == 0);
    err = pthread_create(&fake->thread, NULL, fake_main, fake);
    assert(err == 0);
    return fake;
}

void fake_stop(struct fake *fake)
{
    close(fake->stop[1]);
    pthread_join(fake->thread, NULL);
    close(fake->stop[0]);
    close(fake->listener);
    if (fake->slab) {
        munmap(fake->slab, SLAB_BYTES);
        close(fake->slab_fd);
    }
    larder_recipe_close(fake->raw);
    unlink(fake->socket);
    rmdir(fake->directory);
    free(fake);
}

const char *fake_socket(const struct fake *fake)
{
    return fake->socket;
}

/* A client does not look whether its connection is open when it has read from it within a moment of
 * 2 ms: no daemon is back so soon. */
#define MOMENT_US 3000u

/* Each fault meets a new connection and a fresh slab. */
static void drop_connection(struct fake *fake)
{
    fake->drop = true;
    do
        usleep(MOMENT_US);
    while (fake->drop);
}

void fake_set_fault(struct fake *fake, enum fake_fault fault)
{
    fake->fault = (int)fault;
    drop_connection(fake);
}

void fake_forget(struct fake *fake)
{
    fake->forget = true;
    drop_connection(fake);
}

int fake_leases(const struct fake *fake)
{
    return fake->leases;
}
