/* SPDX-License-Identifier: Apache-2.0 */
/* record.h - the bytes of a record: the same image lies in a segment file and in a slab of the
 * host tier, so that it moves between them in one O_DIRECT transfer. docs/FORMAT.md is the
 * specification; this header is its C form.
 *
 *   head:     struct larder_record | extra | recipe text | tokens (u32) | directory
 *   padding:  zeros, to a multiple of 64 bytes from the record's start
 *   sections: layer-major, K before V, each padded to 64 bytes
 *   padding:  zeros, to a multiple of 4096 bytes
 *
 * Tombstones have no tokens and no sections: `extra` holds the keys they remove, 32 bytes each. Of
 * one variant alone they have its number + 1, quality, computed_on, recipe and profile.
 * Marks have neither: `extra` holds up to LARDER_MARKS_MAX of struct larder_record_mark.
 * Model records have neither: `extra` is a struct larder_model_desc, `model` its fingerprint. One
 * stands in every segment before the first entry of its model, so that segments alone tell all.
 * Threads: plain functions over the caller's bytes.
 */
#ifndef LARDER_BASE_RECORD_H
#define LARDER_BASE_RECORD_H

#include "base/larder_base.h"
#include "base/limits.h"

#define LARDER_RECORD_MAGIC   0x3143455244524c4cull /* "LLRDREC1" */
#define LARDER_RECORD_VERSION 1u
#define LARDER_SECTION_ALIGN  64u

enum larder_record_type {
    LARDER_RECORD_ENTRY = 1,
    LARDER_RECORD_TOMBSTONE = 2,
    LARDER_RECORD_MARK = 3, /* pin, expiry, priority */
    LARDER_RECORD_MODEL = 4,
};

enum larder_tag_kind {
    LARDER_TAG_XXH3_128 = 1,
    LARDER_TAG_AES_256_GCM = 2, /* all behind the fixed header is encrypted on disk */
};

struct larder_record {
    uint64_t magic;          /* 000-007  LARDER_RECORD_MAGIC */
    uint16_t version;        /* 008-009  LARDER_RECORD_VERSION */
    uint16_t type;           /* 010-011  enum larder_record_type */
    uint16_t tag_kind;       /* 012-013  enum larder_tag_kind */
    uint16_t flags;          /* 014-015  0 */
    uint64_t record_bytes;   /* 016-023  whole record with padding; multiple of 4096 */
    uint64_t raw_bytes;      /* 024-031  K and V in the model's dtype, uncompressed */
    uint64_t generation;     /* 032-039  of the write, store-wide and rising; kept when moved */
    uint32_t segment_id;     /* 040-043  where the record stands (guards misdirected reads); */
    uint32_t segment_page;   /* 044-047  offset / 4096; both 0 until it is appended */
    uint64_t created_s;      /* 048-055  Unix time */
    uint8_t key[32];         /* 056-087 */
    uint8_t parent[32];      /* 088-119  zeros: first block of a chain */
    uint8_t model[32];       /* 120-151  fingerprint */
    uint8_t tenant[16];      /* 152-167  id of the tenant */
    uint8_t profile[32];     /* 168-199  hash of the recipe's profile; zeros: none */
    uint32_t variant;        /* 200-203  0: the first of its key */
    uint32_t head_bytes;     /* 204-207  struct to end of directory, without padding */
    uint32_t extra_bytes;    /* 208-211  <= LARDER_EXTRA_BYTES_MAX; tombstone: 32 x keys */
    uint32_t token_count;    /* 212-215  1..LARDER_BLOCK_TOKENS_MAX; 0 for opaque keys */
    uint64_t position;       /* 216-223  rope_base_pos: of the first token when K was computed */
    uint16_t section_count;  /* 224-225  <= LARDER_SECTIONS_MAX */
    uint16_t recipe_bytes;   /* 226-227  <= LARDER_RECIPE_BYTES_MAX */
    uint8_t quality;         /* 228      enum larder_quality, of this variant */
    uint8_t computed_on;     /* 229      enum larder_quality of the KV it was computed on */
    uint16_t computed_on_kl; /* 230-231  of that KV: larder_record_computed_on_kl() */
    float k_error;           /* 232-235  relative RMS error of K over all layers; 0: exact */
    float v_error;           /* 236-239  of V */
    uint8_t tag[16];         /* 240-255  over head_bytes, this field as zeros */
};
static_assert(sizeof(struct larder_record) == 256, "on-disk size");

enum larder_section_kind {
    LARDER_SECTION_K = 0,
    LARDER_SECTION_V = 1,
};

enum larder_section_flag {
    LARDER_SECTION_MEASURED = 1 << 0,  /* `error` is known */
    LARDER_SECTION_FELL_BACK = 1 << 1, /* stored exact, in place of what its recipe does */
};

/* A slice that can be read, verified and decoded alone. */
struct larder_section {
    uint16_t layer_first; /* 00-01 */
    uint16_t layer_count; /* 02-03 */
    uint16_t head_first;  /* 04-05  KV head */
    uint16_t head_count;  /* 06-07 */
    uint8_t kind;         /* 08     enum larder_section_kind */
    uint8_t flags;        /* 09     bits of enum larder_section_flag */
    uint16_t error;       /* 10-11  upper half of an f32: larder_section_error() */
    uint8_t reserved[4];  /* 12-15  0 */
    uint64_t offset;      /* 16-23  from the record's start; multiple of LARDER_SECTION_ALIGN */
    uint64_t bytes;       /* 24-31  without padding */
    uint8_t tag[16];      /* 32-47 */
};
static_assert(sizeof(struct larder_section) == 48, "on-disk size");

/* The most that the logits' KL (nats a token) was measured to be on the KV that this record was
 * computed on; 0: that was exact; infinity: nobody knows. What was set is never read back lower. */
float larder_record_computed_on_kl(const struct larder_record *record);
/* The same from the record's fields, wherever they were kept. */
float larder_computed_on_kl(uint8_t computed_on, uint16_t bits);
/* 0 or infinity: unknown. */
uint16_t larder_computed_on_kl_bits(float kl);

/* Relative RMS error of the section: 0 when it is exact, negative when nobody measured it. */
float larder_section_error(const struct larder_section *section);
/* A finite one, not negative; what is read back is never below it. */
void larder_section_set_error(struct larder_section *section, float error);

/* Pin, expiry and priority of an entry, as they are stored. Times are Unix seconds by the writer's
 * clock; `boot` and `epoch_s` say which clock that was (docs/FORMAT.md, "Marks"). */
struct larder_mark_value {
    uint64_t generation;         /* 00-07  of the mark; the highest of a key holds */
    uint64_t expires_s;          /* 08-15  0: never */
    uint64_t pin_expires_s;      /* 16-23  0: never */
    uint64_t priority_expires_s; /* 24-31  0: never */
    uint64_t boot;               /* 32-39  which boot of the machine; 0: unknown */
    uint64_t epoch_s;            /* 40-47  the clock's time at that boot */
    int8_t priority;             /* 48     -8..8 */
    uint8_t pinned;              /* 49     0 or 1 */
    uint8_t reserved[6];         /* 50-55  0 */
};
static_assert(sizeof(struct larder_mark_value) == 56, "on-disk size");

struct larder_record_mark {
    uint8_t key[32];                /* 00-31 */
    struct larder_mark_value value; /* 32-87 */
};
static_assert(sizeof(struct larder_record_mark) == 88, "on-disk size");
static_assert(sizeof(struct larder_record) + LARDER_MARKS_MAX * sizeof(struct larder_record_mark) <=
                  LARDER_PAGE_BYTES,
              "a record of marks is a page");

/* Where the variable parts of a head lie, in bytes from the record's start. */
struct larder_head_layout {
    uint32_t extra;
    uint32_t recipe;
    uint32_t tokens;     /* aligned to 4 */
    uint32_t directory;  /* aligned to 8 */
    uint32_t head_bytes; /* end of the directory */
    uint64_t sections;   /* first section: head_bytes rounded up to LARDER_SECTION_ALIGN */
};

/* Total for every input within the limits; the counts come from the caller or from a header that
 * larder_record_check() accepted. */
void larder_head_layout(struct larder_head_layout *out, uint32_t extra_bytes, uint32_t recipe_bytes,
                        uint32_t token_count, uint32_t section_count);

/* Is this head well-formed, and does it fit in `available_bytes` of head (>= 256)? Total and safe
 * on hostile bytes: all counts against limits.h, the layout against head_bytes, every section
 * within record_bytes, in order and apart. Does not look at tags. 0, LARDER_EVERSION, or
 * LARDER_ECORRUPT with a message. A head longer than `available_bytes` gives -EAGAIN when the
 * fixed header is fine: read head_bytes and ask again. */
int larder_record_check(const void *record, uint64_t available_bytes);

static inline const uint8_t *larder_record_extra(const struct larder_record *record)
{
    return (const uint8_t *)(record + 1);
}

const char *larder_record_recipe(const struct larder_record *record); /* not NUL-terminated */
const uint32_t *larder_record_tokens(const struct larder_record *record);
const struct larder_section *larder_record_directory(const struct larder_record *record);

#endif
