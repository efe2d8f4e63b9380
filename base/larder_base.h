/* SPDX-License-Identifier: Apache-2.0 */
/* larder_base.h - types that every side of larder shares, and that programs may use.
 * Installed beside larder.h. Needs only the C library.
 */
#ifndef LARDER_BASE_H
#define LARDER_BASE_H

#include <stddef.h>
#include <stdint.h>

/* Errors. Functions return 0 or a negative value: -errno for the system's errors (EINVAL, ENOSPC,
 * EBUSY, ETIMEDOUT, ECANCELED, ...), one of these for ours. */
#define LARDER_ERRORS(X)                                                                           \
    X(LARDER_ENOTFOUND, -1001, "not stored")                                                       \
    X(LARDER_EPROTO, -1002, "malformed message")                                                   \
    X(LARDER_ECORRUPT, -1003, "stored checksum does not match")                                    \
    X(LARDER_EMODEL, -1004, "model description does not match")                                    \
    X(LARDER_EVERSION, -1005, "version is not known to this release")                              \
    X(LARDER_ELOCKED, -1006, "another daemon uses this directory")                                 \
    X(LARDER_EREADONLY, -1007, "store is read-only after a failed sync")                           \
    X(LARDER_EDOWN, -1008, "daemon cannot be reached")                                             \
    X(LARDER_ESTALE, -1009, "lease ended and the memory was used again")                           \
    X(LARDER_ELIMIT, -1010, "a limit is exceeded")                                                 \
    X(LARDER_EFORMAT, -1011, "file is not in the expected format")                                 \
    X(LARDER_EUNSUPPORTED, -1012, "known, but not supported")                                      \
    X(LARDER_ECONFIG, -1013, "bad configuration")                                                  \
    X(LARDER_EFULL, -1014, "no room: tier or quota is full")                                       \
    X(LARDER_EEXISTS, -1015, "stored already, at this quality or better")                          \
    X(LARDER_ENOPARENT, -1016, "parent block is not stored")                                       \
    X(LARDER_EMISMATCH, -1017, "stored tokens differ from the caller's")                           \
    X(LARDER_EPINNED, -1018, "pinned, or holds up what is pinned")                                 \
    X(LARDER_ENOPROFILE, -1019, "the profile that its recipe reads is not there")

enum larder_error {
#define LARDER_ERROR_ENUM(name, value, text) name = (value),
    LARDER_ERRORS(LARDER_ERROR_ENUM)
#undef LARDER_ERROR_ENUM
};

enum larder_dtype {
    LARDER_F32 = 1,
    LARDER_F16 = 2,
    LARDER_BF16 = 3,
};

/* Bytes of one element; 0 for an unknown dtype. */
static inline size_t larder_dtype_bytes(uint32_t dtype)
{
    return dtype == LARDER_F32 ? 4 : dtype == LARDER_F16 || dtype == LARDER_BF16 ? 2 : 0;
}

/* Kinds of rotary position embedding. */
enum larder_rope_kind {
    LARDER_ROPE_NONE = 0,
    LARDER_ROPE_PLAIN = 1,
    LARDER_ROPE_LINEAR = 2,
    LARDER_ROPE_LLAMA3 = 3,
    LARDER_ROPE_YARN = 4,
};

struct larder_rope {
    uint32_t kind;                  /* enum larder_rope_kind */
    uint32_t interleaved;           /* 0: pairs (i, i + d/2) (neox); 1: pairs (2i, 2i + 1) */
    uint32_t rotary_dims;           /* leading dims of a head that rotate; even, <= head dims */
    uint32_t original_max_position; /* llama3, yarn */
    double theta;                   /* base, e.g. 10000 */
    double factor;                  /* linear, llama3, yarn; 1 otherwise */
    double low_freq_factor;         /* llama3 */
    double high_freq_factor;        /* llama3 */
    double beta_fast;               /* yarn */
    double beta_slow;               /* yarn */
    double attention_factor;        /* yarn; 1 otherwise */
};

/* What a KV cache is bound to. Two models whose descriptions differ in any field, `weights`
 * included, never see each other's entries. Fill the unused fields with zeros. */
struct larder_model_desc {
    char name[64];       /* for people: not part of the identity; NUL-terminated */
    uint8_t weights[32]; /* a digest over all weights, the same in every process */
    uint32_t layers;     /* with a KV cache */
    uint32_t kv_heads;   /* per layer */
    uint32_t k_dims;     /* per head */
    uint32_t v_dims;     /* per head */
    uint32_t dtype;      /* of K and V: enum larder_dtype */
    uint32_t vocab;      /* tokens are < vocab */
    struct larder_rope rope;
};

/* 32 bytes that name a block: see docs/FORMAT.md, "Keys". */
struct larder_key {
    uint8_t bytes[32];
};

/* How K and V of an entry relate to a plain prefill; ordered, smaller is better. */
enum larder_quality {
    LARDER_QUALITY_EXACT = 0,   /* bit for bit what the engine computed on exact KV */
    LARDER_QUALITY_LOSSY = 1,   /* a lossy recipe, or computed on lossy KV */
    LARDER_QUALITY_BLENDED = 2, /* from a blend in which some tokens were not recomputed */
    /* Or'ed to the least quality that a lookup or get accepts: of several variants of a block the
     * smallest that is good enough, instead of the best. */
    LARDER_QUALITY_SMALLEST = 0x100,
};

/* What may be said of a stored block: a mark. A pin keeps it, and all before it in its chain,
 * from eviction, expiry and removal. A block whose time is over is a miss at once, with all behind
 * it. Each step of priority doubles (or halves) what the block is worth to eviction. */
enum larder_mark_field {
    LARDER_MARK_PIN = 1 << 0,
    LARDER_MARK_UNPIN = 1 << 1, /* not with LARDER_MARK_PIN */
    LARDER_MARK_TTL = 1 << 2,
    LARDER_MARK_PRIORITY = 1 << 3,
};

#define LARDER_PRIORITY_MAX 8
/* 100 years: more is a mistake in units. */
#define LARDER_MARK_SECONDS_MAX (100ull * 366 * 24 * 3600)

struct larder_mark {
    uint32_t fields;     /* which of the following hold: bits of enum larder_mark_field */
    int32_t priority;    /* -LARDER_PRIORITY_MAX..LARDER_PRIORITY_MAX; 0: none */
    uint64_t pin_s;      /* seconds from now that the pin lasts; 0: until it is taken away */
    uint64_t ttl_s;      /* seconds from now that the block lasts; 0: as long as it is worth it */
    uint64_t priority_s; /* seconds from now that the priority lasts; 0: as long as the block */
};

/* What a PUT waits for. */
enum larder_wait {
    LARDER_CACHED = 0,  /* visible in the host tier; no survival is promised */
    LARDER_DURABLE = 1, /* survives power loss */
};

/* Where the KV of a run of tokens of a blended prompt comes from. */
enum larder_blend_source {
    LARDER_BLEND_PREFIX = 0,  /* stored, at this very place and behind these very tokens */
    LARDER_BLEND_MOVED = 1,   /* stored as a chunk of its own: K is moved to its place here */
    LARDER_BLEND_MISSING = 2, /* not stored: computed */
    LARDER_BLEND_SUFFIX = 3,  /* the request's own: computed */
};

/* Spans cover a prompt in order and without gaps. A chunk is stored as the chain of the model's
 * BOS and its tokens; placed behind another piece its BOS is left out, so that `stored_first` of
 * its span is 1. */
struct larder_blend_span {
    uint64_t first;        /* token of the whole prompt */
    uint64_t count;        /* at least 1 */
    uint64_t stored_first; /* position of its first token where its KV was computed */
    uint32_t source;       /* enum larder_blend_source */
    uint32_t piece;        /* of the request's pieces; for people and reports */
};

#endif
