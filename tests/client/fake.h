/* SPDX-License-Identifier: Apache-2.0 */
/* fake.h - a daemon in a thread that keeps a few raw blocks in memory and, on demand, breaks the
 * protocol in one of many ways. It serves one connection after another.
 */
#ifndef LARDER_TESTS_CLIENT_FAKE_H
#define LARDER_TESTS_CLIENT_FAKE_H

#include <stdint.h>

#define FAKE_BLOCK_TOKENS 16u

/* What it does wrong. Those before FAULTS_GET show in a GET of what is stored. */
#define FAKE_FAULTS(X)                                                                             \
    X(NONE)                                                                                        \
    X(GET_SILENT)     /* no answer */                                                              \
    X(GET_CLOSE)      /* closes instead of answering */                                            \
    X(GET_ERROR)      /* answers LARDER_EREADONLY */                                               \
    X(GET_FULL)       /* answers -EBUSY, however few blocks are asked for */                       \
    X(GET_EMPTY)      /* an empty body */                                                          \
    X(GET_CUT)        /* the last byte is missing */                                               \
    X(GET_LONG)       /* one byte more */                                                          \
    X(GET_MATCHED)    /* more matched than asked for */                                            \
    X(GET_REFS)       /* more refs than matched */                                                 \
    X(GET_TAILS)      /* counts tails that are not there */                                        \
    X(GET_FD)         /* a descriptor with the answer */                                           \
    X(GET_SLAB)       /* names a slab that was never sent */                                       \
    X(GET_SLOT)       /* names a slot that is not there */                                         \
    X(GET_GENERATION) /* of an older content */                                                    \
    X(GET_STRANGER)   /* the answer to another request */                                          \
    X(GET_TWICE)      /* two answers */                                                            \
    X(GET_TYPE)       /* an answer of another type */                                              \
    X(GET_KL)         /* a KL that is no number */                                                 \
    X(GET_UNKNOWN)    /* a frame of a type nobody knows */                                         \
    X(GET_LENGTH)     /* the frame says another length */                                          \
    X(GET_TINY)       /* a frame of four bytes */                                                  \
    X(GET_HUGE)       /* a frame larger than any may be */                                         \
    X(GET_FLOOD)      /* thousands of WIRE_LOADED nobody asked for, then the answer */             \
    X(SLAB_NO_FD)     /* WIRE_SLAB without a descriptor */                                         \
    X(SLAB_TWO_FDS)   /* with two */                                                               \
    X(SLAB_TWICE)     /* the same id again */                                                      \
    X(SLAB_UNSEALED)  /* memory that can shrink */                                                 \
    X(SLAB_SHORT)     /* says more bytes than the memory has */                                    \
    X(SLAB_MAGIC)     /* a bad head: magic, id, slots, data offset */                              \
    X(SLAB_ID)                                                                                     \
    X(SLAB_SLOTS)                                                                                  \
    X(SLAB_DATA)                                                                                   \
    X(SLAB_FILE)    /* a pipe instead of memory */                                                 \
    X(SLOT_OUTSIDE) /* the record starts behind the slab */                                        \
    X(SLOT_LONG)    /* it ends behind it */                                                        \
    X(SLOT_UNALIGNED)                                                                              \
    X(SLOT_FAILED)    /* loading failed: LARDER_ECORRUPT */                                        \
    X(SLOT_NEVER)     /* says loaded, publishes nothing */                                         \
    X(SLOT_HANGS)     /* neither says nor publishes */                                             \
    X(SLOT_PUBLISHED) /* publishes more sections than there are */                                 \
    X(HEAD_MAGIC)     /* malformed record heads */                                                 \
    X(HEAD_BYTES)                                                                                  \
    X(HEAD_HUGE)                                                                                   \
    X(HEAD_KEY)      /* another entry */                                                           \
    X(HEAD_TOKENS)   /* other tokens: a hash collision */                                          \
    X(HEAD_POSITION) /* K rotated for another place */                                             \
    X(HEAD_MODEL)                                                                                  \
    X(HEAD_QUALITY)    /* worse than asked for */                                                  \
    X(HEAD_RECIPE)     /* a recipe nobody knows */                                                 \
    X(HEAD_EXACT)      /* says exact, holds raw bytes */                                           \
    X(SECTION_OUTSIDE) /* sections that leave the record */                                        \
    X(SECTION_LAYER)   /* of another layer */                                                      \
    X(SECTION_SHORT)   /* of fewer bytes */                                                        \
    X(PROFILE_NONE)    /* the record names a profile, and there is none */                         \
    X(PROFILE_NO_FD)   /* it comes without its memory, */                                          \
    X(PROFILE_OPEN)    /* that can still be written, */                                            \
    X(PROFILE_SHORT)   /* of fewer bytes than it says, */                                          \
    X(PROFILE_JUNK)    /* or of others than its name says */                                       \
    X(PROFILE_SILENT)  /* no answer, */                                                            \
    X(PROFILE_LATE)    /* or one before that to the next request */                                \
    X(FAULTS_GET)      /* not a fault: ends those of GET */                                        \
    X(PUT_BUSY)        /* answers -EBUSY to the second block */                                    \
    X(PUT_CLOSE)                                                                                   \
    X(PUT_EMPTY)                                                                                   \
    X(STAGING_UNSEALED)                                                                            \
    X(STAGING_SMALL) /* grants less than wanted */                                                 \
    X(STAGING_SHORT) /* says more than the memory has */                                           \
    X(STAGING_NO_FD)                                                                               \
    X(LOOKUP_MATCHED) /* malformed answers to the rest */                                          \
    X(LOOKUP_TAILS)                                                                                \
    X(LOOKUP_KL)                                                                                   \
    X(STAT_SHORT)                                                                                  \
    X(MODEL_OTHER) /* another fingerprint */                                                       \
    X(MODEL_SHORT)                                                                                 \
    X(HELLO_SILENT)                                                                                \
    X(HELLO_VERSION)                                                                               \
    X(HELLO_BLOCK) /* blocks of 0 tokens */                                                        \
    X(HELLO_TEXT)  /* a name without an end */                                                     \
    X(HELLO_SHORT)                                                                                 \
    X(FUZZ)      /* answers are random bytes, or right ones with random changes */                 \
    X(FUZZ_SLAB) /* heads and slots change at random, also while they are read */

enum fake_fault {
#define FAKE_ENUM(name) FAKE_##name,
    FAKE_FAULTS(FAKE_ENUM)
#undef FAKE_ENUM
        FAKE_FAULT_COUNT
};

const char *fake_fault_name(enum fake_fault fault);

struct fake;

struct fake *fake_start(void);
void fake_stop(struct fake *fake);
const char *fake_socket(const struct fake *fake);
/* Drops the connection, too: each fault meets a new one. */
void fake_set_fault(struct fake *fake, enum fake_fault fault);
/* Drops the connection and what is stored, as a restart on an empty store would. */
void fake_forget(struct fake *fake);
/* GETs whose lease was not given back. */
int fake_leases(const struct fake *fake);

#endif
