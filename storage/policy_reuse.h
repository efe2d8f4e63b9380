/* SPDX-License-Identifier: Apache-2.0 */
/* policy_reuse.h - learns from the stream of uses how likely an entry is to be used again, by its
 * class and the time since its last use, whether or not the tier still has it.
 *
 * A sample of the entries is followed by key, beyond their eviction: each counts, for its class,
 * the ages that it reached and the age at which it was used again. From these comes the hit
 * density of a class and an age: the chance of a use per second of stay, over the span of time
 * ahead that is best (Gittins' index; "hit density": Beckmann et al., NSDI 2018). Counters halve
 * with time, so that old habits are forgotten.
 *
 * Threads: none of its own.
 */
#ifndef LARDER_STORAGE_POLICY_REUSE_H
#define LARDER_STORAGE_POLICY_REUSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REUSE_CLASSES     40u
#define REUSE_AGES        96u /* classes of age; a quarter of an octave each */
#define REUSE_TICK_MS     16u
#define REUSE_SAMPLES_MAX 65536u

struct reuse;

struct reuse_sample {
    uint64_t key;
    uint32_t used_ticks;
    uint32_t prev; /* of the same age; older */
    uint32_t next;
    uint32_t next_hash; /* or the next free one */
    uint8_t class;
    uint8_t age;
    uint8_t turn;
    uint8_t reserved;
};

/* `follow`: how many entries' worth of stay is to be followed at the least. */
int reuse_open(struct reuse **out, uint64_t follow);
void reuse_close(struct reuse *reuse);
size_t reuse_bytes(const struct reuse *reuse);

/* What it learned and whom it follows, as bytes; no more than REUSE_STATE_BYTES_MAX. */
#define REUSE_SAMPLE_BYTES 16u
#define REUSE_STATE_BYTES_MAX                                                                      \
    (16u + REUSE_CLASSES * REUSE_AGES * 8u + REUSE_SAMPLES_MAX * REUSE_SAMPLE_BYTES)
size_t reuse_save(const struct reuse *reuse, uint8_t *out);
/* Into one that has learned nothing yet; LARDER_ECORRUPT (and still nothing learned) when the bytes
 * are not such a state. */
int reuse_load(struct reuse *reuse, const uint8_t *in, size_t bytes);

/* Follows so many from now on: some are given up, or more are taken up when they are met. */
void reuse_follow(struct reuse *reuse, uint64_t follow);

void reuse_advance(struct reuse *reuse, uint32_t now_ticks);
/* All of its time so much earlier; no earlier than 0. */
void reuse_rewind(struct reuse *reuse, uint32_t ticks);
/* NULL when it is not followed. Valid until the next use. */
const struct reuse_sample *reuse_find(const struct reuse *reuse, uint64_t key);
/* It was used, or stored, now; it is of that class from here on. */
void reuse_use(struct reuse *reuse, uint64_t key, uint32_t class, uint32_t turn);

uint32_t reuse_age(uint32_t ticks);
/* The first tick of an age. */
uint32_t reuse_age_start(uint32_t age);
uint32_t reuse_now(const struct reuse *reuse);
/* Uses to be had per tick of stay. */
float reuse_density(const struct reuse *reuse, uint32_t class, uint32_t age);

#endif
