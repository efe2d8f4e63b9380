/* SPDX-License-Identifier: Apache-2.0 */
/* seal.h - records of an encrypted store, on their way to the disk and back (docs/FORMAT.md,
 * "Encryption").
 *
 * What leaves is encrypted into buffers of this module, piece by piece, because clients read the
 * slot it comes from; what arrives is decrypted where it lies, once, before it is published.
 *
 * Owns:    the subkeys in use, in locked memory; the buffers, 22 MiB of address space.
 * Threads: the storage thread, or the one that opens the store.
 * E1  A nonce is used once under a subkey: it is the record's page and the section's number, a
 *     place is written once in a segment's life, and each segment has a salt of its own.
 * E2  Nothing is published, and no length believed, before its tag was found right.
 */
#ifndef LARDER_STORAGE_SEAL_H
#define LARDER_STORAGE_SEAL_H

#include <stdint.h>

#include "base/record.h"

struct seal;
struct seglog;
struct larder_identity;

/* Keys come from `identity`, salts from `log`; both outlive it. `log` may be opened later. */
int seal_create(struct seal **out, struct larder_identity *identity, const struct seglog *log);
void seal_close(struct seal *seal);

/* Decrypts in place the head of a record whose fixed header larder_record_check() accepted and
 * whose head is there whole; once. 0, LARDER_ECORRUPT, or -ENOMEM: not known. */
int seal_open_head(struct seal *seal, struct larder_record *record);
/* The same of a section, of a record whose head was opened; once. */
int seal_open_section(struct seal *seal, struct larder_record *record, uint32_t section);

/* Encrypted bytes to write at `offset` from the record's start. */
struct seal_piece {
    void *buffer;
    uint64_t offset;
    uint32_t bytes; /* <= LARDER_IO_BYTES_MAX */
};

/* The next piece of a record that goes to this place; the one with its head comes last. 1: there is
 * one, its buffer is the caller's until seal_piece_done(). 0: every buffer is in use. Negative: it
 * cannot be sealed. Records go one after another: asking for another place gives up the one before.
 * The record itself is not changed. */
int seal_next_piece(struct seal *seal, struct seal_piece *out, const struct larder_record *record,
                    uint32_t segment_id, uint32_t segment_page);
void seal_piece_done(struct seal *seal, void *buffer);

/* Forgets the subkeys: a tenant's key was replaced. */
void seal_forget_keys(struct seal *seal);

#endif
