/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/seal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/crypt.h"
#include "storage/identity.h"
#include "storage/planted.h"
#include "storage/seglog.h"
#include "storage/tag.h"

/* One for each write that may be in flight, and one that waits for its record's last section. Most
 * records of small models fit the small ones. */
#define LARGE_BYTES LARDER_IO_BYTES_MAX
#define LARGE_COUNT 18u
#define SMALL_BYTES (64u << 10)
#define SMALL_COUNT 64u
#define ARENA_BYTES ((size_t)LARGE_COUNT * LARGE_BYTES + (size_t)SMALL_COUNT * SMALL_BYTES)
/* A chain's records are neighbours: few segments are read at a time. */
#define SUBKEYS 64u

struct subkey {
    uint8_t tenant[16];
    uint32_t segment_id; /* 0: none */
    uint8_t key[CRYPT_KEY_BYTES];
};

struct seal {
    struct larder_identity *identity;
    const struct seglog *log;
    struct subkey *subkeys; /* SUBKEYS, secret */
    struct crypt *reader;
    const struct subkey *reader_key; /* that it has; NULL: none */
    struct crypt *writer;

    uint8_t *arena;
    void *large[LARGE_COUNT]; /* free ones */
    void *small[SMALL_COUNT];
    uint32_t large_free;
    uint32_t small_free;

    /* The record that is being sealed: its place names it. Segment 0: none. */
    uint32_t segment_id;
    uint32_t segment_page;
    uint64_t sealed_bytes;
    uint32_t section; /* the next, or the one under way */
    uint8_t *first;   /* the piece with its head */
    uint32_t first_bytes;
};

/* --- buffers ---------------------------------------------------------------------------------- */

static void *take_buffer(struct seal *seal, uint64_t bytes)
{
    if (bytes <= SMALL_BYTES && seal->small_free > 0)
        return seal->small[--seal->small_free];
    return seal->large_free > 0 ? seal->large[--seal->large_free] : NULL;
}

void seal_piece_done(struct seal *seal, void *buffer)
{
    size_t at = (size_t)((uint8_t *)buffer - seal->arena);
    assert(at < ARENA_BYTES);
    if (at < (size_t)LARGE_COUNT * LARGE_BYTES) {
        assert(seal->large_free < LARGE_COUNT);
        seal->large[seal->large_free++] = buffer;
    } else {
        assert(seal->small_free < SMALL_COUNT);
        seal->small[seal->small_free++] = buffer;
    }
}

int seal_create(struct seal **out, struct larder_identity *identity, const struct seglog *log)
{
    *out = NULL;
    struct seal *seal = larder_alloc_zero(1, sizeof(*seal));
    if (!seal)
        return larder_fail(-ENOMEM, "no memory for ciphers");
    seal->identity = identity;
    seal->log = log;
    seal->subkeys = crypt_secret_alloc(sizeof(*seal->subkeys) * SUBKEYS);
    seal->arena = larder_alloc_aligned(LARDER_PAGE_BYTES, ARENA_BYTES);
    int err = seal->subkeys && seal->arena ? 0 : larder_fail(-ENOMEM, "no memory for ciphers");
    if (err == 0)
        err = crypt_open(&seal->reader);
    if (err == 0)
        err = crypt_open(&seal->writer);
    if (err < 0) {
        seal_close(seal);
        return err;
    }
    /* Tokens stand in a head's buffer until its record's last section is encrypted. */
    madvise(seal->arena, ARENA_BYTES, MADV_DONTDUMP);
    for (uint32_t i = 0; i < LARGE_COUNT; i++)
        seal_piece_done(seal, seal->arena + (size_t)i * LARGE_BYTES);
    uint8_t *small = seal->arena + (size_t)LARGE_COUNT * LARGE_BYTES;
    for (uint32_t i = 0; i < SMALL_COUNT; i++)
        seal_piece_done(seal, small + (size_t)i * SMALL_BYTES);
    *out = seal;
    return 0;
}

void seal_close(struct seal *seal)
{
    if (!seal)
        return;
    crypt_close(seal->writer);
    crypt_close(seal->reader);
    if (seal->arena)
        madvise(seal->arena, ARENA_BYTES, MADV_DODUMP);
    larder_free(seal->arena);
    crypt_secret_free(seal->subkeys, sizeof(*seal->subkeys) * SUBKEYS);
    larder_free(seal);
}

/* --- keys and nonces -------------------------------------------------------------------------- */

/* LARDER_ECORRUPT: nobody has the key of this record. */
static int find_subkey(struct seal *seal, const struct subkey **out,
                       const struct larder_record *record, uint32_t segment_id)
{
    uint32_t hash;
    memcpy(&hash, record->tenant, sizeof(hash));
    struct subkey *subkey = &seal->subkeys[(hash + segment_id) % SUBKEYS];
    *out = subkey;
    if (subkey->segment_id == segment_id &&
        memcmp(subkey->tenant, record->tenant, sizeof(subkey->tenant)) == 0)
        return 0;
    const struct segment *segment = seglog_find(seal->log, segment_id);
    if (!segment || !segment->has_salt)
        return larder_fail(LARDER_ECORRUPT, "segment %u: its salt is lost", segment_id);
    uint8_t key[CRYPT_KEY_BYTES];
    if (!larder_identity_data_key(seal->identity, key, record->tenant))
        return larder_fail(LARDER_ECORRUPT, "record: of a tenant that does not exist");
    if (seal->reader_key == subkey)
        seal->reader_key = NULL;
    subkey->segment_id = 0;
    int err =
        crypt_derive(subkey->key, key, segment->salt, sizeof(segment->salt), "larder record 1");
    crypt_wipe(key, sizeof(key));
    LARDER_TRY(err);
    memcpy(subkey->tenant, record->tenant, sizeof(subkey->tenant));
    subkey->segment_id = segment_id;
    return 0;
}

void seal_forget_keys(struct seal *seal)
{
    crypt_wipe(seal->subkeys, sizeof(*seal->subkeys) * SUBKEYS);
    seal->reader_key = NULL;
}

static void make_nonce(uint8_t out[CRYPT_NONCE_BYTES], uint32_t segment_page, uint32_t section)
{
    memset(out, 0, CRYPT_NONCE_BYTES);
    memcpy(out, &segment_page, sizeof(segment_page));
    memcpy(out + 4, &section, sizeof(section));
}

static bool add_binding(struct crypt *crypt, const struct larder_record *header, uint32_t section)
{
    struct tag_binding binding;
    tag_bind(&binding, header, section);
    return crypt_add(crypt, &binding, sizeof(binding));
}

/* The header with its tag as zeros. */
static bool add_header(struct crypt *crypt, const struct larder_record *header)
{
    struct larder_record clear = *header;
    memset(clear.tag, 0, sizeof(clear.tag));
    return add_binding(crypt, header, TAG_HEAD_SECTION) && crypt_add(crypt, &clear, sizeof(clear));
}

/* --- opening ---------------------------------------------------------------------------------- */

static int use_reader(struct seal *seal, const struct larder_record *record)
{
    const struct subkey *subkey;
    LARDER_TRY(find_subkey(seal, &subkey, record, record->segment_id));
    if (seal->reader_key == subkey)
        return 0;
    seal->reader_key = NULL;
    if (!crypt_set_key(seal->reader, subkey->key))
        return larder_fail(-ENOMEM, "libcrypto refused a key");
    seal->reader_key = subkey;
    return 0;
}

/* A planted bug believes what was not authentic. */
static int verdict(bool good, const char *what)
{
    if (good || LARDER_PLANT(TAG_UNCHECKED))
        return 0;
    return larder_fail(LARDER_ECORRUPT, "record: the tag of its %s does not match", what);
}

int seal_open_head(struct seal *seal, struct larder_record *record)
{
    LARDER_TRY(use_reader(seal, record));
    uint8_t nonce[CRYPT_NONCE_BYTES];
    make_nonce(nonce, record->segment_page, TAG_HEAD_SECTION);
    uint8_t *rest = (uint8_t *)(record + 1);
    bool good = crypt_open_begin(seal->reader, nonce) && add_header(seal->reader, record) &&
                crypt_update(seal->reader, rest, rest, record->head_bytes - sizeof(*record)) &&
                crypt_open_end(seal->reader, record->tag);
    return verdict(good, "head");
}

int seal_open_section(struct seal *seal, struct larder_record *record, uint32_t index)
{
    assert(index < record->section_count);
    LARDER_TRY(use_reader(seal, record));
    const struct larder_section *section = &larder_record_directory(record)[index];
    uint8_t nonce[CRYPT_NONCE_BYTES];
    make_nonce(nonce, record->segment_page, index);
    uint8_t *bytes = (uint8_t *)record + section->offset;
    bool good = crypt_open_begin(seal->reader, nonce) && add_binding(seal->reader, record, index) &&
                crypt_update(seal->reader, bytes, bytes, section->bytes) &&
                crypt_open_end(seal->reader, section->tag);
    return verdict(good, "section");
}

/* --- sealing ---------------------------------------------------------------------------------- */

static int begin_record(struct seal *seal, const struct larder_record *record, uint32_t segment_id,
                        uint32_t segment_page)
{
    assert(segment_id != 0);
    if (seal->first) /* of a record that was given up */
        seal_piece_done(seal, seal->first);
    seal->first = NULL;
    seal->segment_id = 0;
    const struct subkey *subkey;
    LARDER_TRY(find_subkey(seal, &subkey, record, segment_id));
    if (!crypt_set_key(seal->writer, subkey->key))
        return larder_fail(-ENOMEM, "libcrypto refused a key");
    seal->segment_id = segment_id;
    seal->segment_page = segment_page;
    seal->sealed_bytes = 0;
    seal->section = 0;
    return 0;
}

static struct larder_section *first_directory(const struct seal *seal,
                                              const struct larder_record *record)
{
    size_t at =
        (size_t)((const uint8_t *)larder_record_directory(record) - (const uint8_t *)record);
    return (struct larder_section *)(void *)(seal->first + at);
}

static bool begin_section(struct seal *seal)
{
    uint8_t nonce[CRYPT_NONCE_BYTES];
    make_nonce(nonce, seal->segment_page, seal->section);
    return crypt_seal_begin(seal->writer, nonce) &&
           add_binding(seal->writer, (const struct larder_record *)(void *)seal->first,
                       seal->section);
}

/* Bytes [seal->sealed_bytes, end) of the record: sections encrypted, all between them zeros. */
static bool seal_bytes(struct seal *seal, uint8_t *out, const struct larder_record *record,
                       uint64_t end)
{
    const struct larder_section *sections = larder_record_directory(record);
    uint64_t begin = seal->sealed_bytes;
    uint64_t at = begin;
    bool good = true;
    while (good) {
        const struct larder_section *section =
            seal->section < record->section_count ? &sections[seal->section] : NULL;
        if (!section || at < section->offset) {
            uint64_t gap_end = section ? larder_min_u64(section->offset, end) : end;
            memset(out + (at - begin), 0, gap_end - at);
            at = gap_end;
            if (!section || at < section->offset)
                break;
        }
        uint64_t section_end = section->offset + section->bytes;
        /* One that begins where the piece ends begins in the next piece; an empty one at the end of
         * its record has no next. */
        if (at == end && (section->bytes > 0 || end < record->record_bytes))
            break;
        if (at == section->offset)
            good = begin_section(seal);
        uint64_t bytes = larder_min_u64(section_end, end) - at;
        good = good &&
               crypt_update(seal->writer, out + (at - begin), (const uint8_t *)record + at, bytes);
        at += bytes;
        if (at < section_end)
            break;
        good =
            good && crypt_seal_end(seal->writer, first_directory(seal, record)[seal->section].tag);
        seal->section++;
    }
    seal->sealed_bytes = end;
    return good;
}

/* The head as it will stand there, its sections' tags yet to come. */
static bool seal_first(struct seal *seal, const struct larder_record *record)
{
    assert(record->head_bytes <= seal->first_bytes);
    struct larder_record *header = (struct larder_record *)(void *)seal->first;
    memcpy(header, record, sizeof(*record));
    header->tag_kind = LARDER_TAG_AES_256_GCM;
    header->segment_id = seal->segment_id;
    header->segment_page = seal->segment_page;
    memset(header->tag, 0, sizeof(header->tag));
    memcpy(header + 1, record + 1, record->head_bytes - sizeof(*record));
    seal->sealed_bytes = record->head_bytes;
    return seal_bytes(seal, seal->first + record->head_bytes, record, seal->first_bytes);
}

static bool finish_head(struct seal *seal)
{
    struct larder_record *header = (struct larder_record *)(void *)seal->first;
    uint8_t nonce[CRYPT_NONCE_BYTES];
    make_nonce(nonce, seal->segment_page, TAG_HEAD_SECTION);
    uint8_t *rest = (uint8_t *)(header + 1);
    return crypt_seal_begin(seal->writer, nonce) && add_header(seal->writer, header) &&
           crypt_update(seal->writer, rest, rest, header->head_bytes - sizeof(*header)) &&
           crypt_seal_end(seal->writer, header->tag);
}

static int refused(struct seal *seal)
{
    seal->segment_id = 0;
    return larder_fail(-EIO, "AES-256-GCM of libcrypto failed");
}

int seal_next_piece(struct seal *seal, struct seal_piece *out, const struct larder_record *record,
                    uint32_t segment_id, uint32_t segment_page)
{
    if (seal->segment_id != segment_id || seal->segment_page != segment_page)
        LARDER_TRY(begin_record(seal, record, segment_id, segment_page));
    uint64_t bytes = record->record_bytes;
    if (!seal->first) {
        seal->first_bytes = (uint32_t)larder_min_u64(bytes, LARGE_BYTES);
        seal->first = take_buffer(seal, seal->first_bytes);
        if (!seal->first)
            return 0;
        if (!seal_first(seal, record))
            return refused(seal);
    }
    if (seal->sealed_bytes < bytes) {
        uint64_t begin = seal->sealed_bytes;
        uint64_t end = larder_min_u64(begin + LARGE_BYTES, bytes);
        void *buffer = take_buffer(seal, end - begin);
        if (!buffer)
            return 0;
        if (!seal_bytes(seal, buffer, record, end)) {
            seal_piece_done(seal, buffer);
            return refused(seal);
        }
        *out = (struct seal_piece){buffer, begin, (uint32_t)(end - begin)};
        return 1;
    }
    if (!finish_head(seal))
        return refused(seal);
    *out = (struct seal_piece){seal->first, 0, seal->first_bytes};
    seal->first = NULL;
    seal->segment_id = 0;
    return 1;
}
