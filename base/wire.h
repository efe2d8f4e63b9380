/* SPDX-License-Identifier: Apache-2.0 */
/* wire.h - the frames of the socket protocol, version 1 (docs/PROTOCOL.md is the specification).
 *
 * A frame is one SOCK_SEQPACKET message: struct wire_frame, then the body of its type. A frame
 * whose length is not exactly what its type and counts demand is malformed: the daemon answers
 * WIRE_ERROR with LARDER_EPROTO and closes. Requests carry an id the client chose; every answer
 * carries it back. Fields named reserved are zero.
 */
#ifndef LARDER_BASE_WIRE_H
#define LARDER_BASE_WIRE_H

#include <assert.h>

#include "base/event.h"
#include "base/larder_base.h"
#include "base/limits.h"

#define WIRE_MAGIC   0x3152444cu /* "LDR1" */
#define WIRE_VERSION 1u

enum wire_type {
    /* any direction: answer to a request that failed */
    WIRE_ERROR = 1,

    /* engine socket: client to daemon */
    WIRE_HELLO = 10,      /* wire_hello        -> wire_hello_ok */
    WIRE_MODEL = 11,      /* wire_model        -> wire_model_ok */
    WIRE_LOOKUP = 12,     /* wire_keys + keys  -> wire_lookup_ok + tails */
    WIRE_GET = 13,        /* wire_keys + keys  -> wire_get_ok + refs + tails, later wire_loaded */
    WIRE_RELEASE = 14,    /* wire_release + ids, one way */
    WIRE_STAGING = 15,    /* wire_staging      -> wire_staging_ok with one descriptor */
    WIRE_PUT = 16,        /* wire_put          -> wire_put_ok */
    WIRE_REMOVE = 17,     /* wire_remove       -> wire_remove_ok */
    WIRE_STAT = 18,       /* (nothing)         -> wire_stat_ok */
    WIRE_PREFETCH = 19,   /* wire_keys + keys -> wire_prefetch_ok */
    WIRE_MARK = 20,       /* wire_mark         -> (nothing) */
    WIRE_PROFILE = 21,    /* wire_profile      -> wire_profile_ok with one descriptor */
    WIRE_WORKER = 22,     /* wire_worker       -> wire_worker_ok */
    WIRE_BLEND = 23,      /* wire_blend        -> wire_blend_ok; ended by WIRE_RELEASE */
    WIRE_BLEND_READ = 24, /* wire_blend_read -> (nothing) */

    /* engine socket: daemon to client */
    WIRE_HELLO_OK = 40,
    WIRE_MODEL_OK = 41,
    WIRE_LOOKUP_OK = 42,
    WIRE_GET_OK = 43,
    WIRE_STAGING_OK = 45,
    WIRE_PUT_OK = 46,
    WIRE_REMOVE_OK = 47,
    WIRE_STAT_OK = 48,
    WIRE_PREFETCH_OK = 49,
    WIRE_MARK_OK = 50,
    WIRE_PROFILE_OK = 51,
    WIRE_WORKER_OK = 52,
    WIRE_BLEND_OK = 53,
    WIRE_BLEND_READ_OK = 54,
    WIRE_LOADED = 60, /* wire_loaded: every ref of a WIRE_GET is published or has failed */
    WIRE_SLAB = 61,   /* wire_slab with one descriptor: before the first ref into it */

    /* control socket: admin to daemon */
    WIRE_ADMIN_STATUS = 100,      /* (nothing)          -> wire_admin_status_ok */
    WIRE_ADMIN_LIST = 101,        /* wire_admin_list    -> wire_admin_list_ok + entries */
    WIRE_ADMIN_SHOW = 102,        /* wire_admin_key     -> wire_admin_show_ok */
    WIRE_ADMIN_VERIFY = 103,      /* wire_admin_variant -> wire_admin_verify_ok */
    WIRE_ADMIN_REMOVE = 104,      /* wire_admin_remove  -> wire_remove_ok */
    WIRE_ADMIN_MODELS = 105,      /* wire_admin_index   -> wire_admin_model_ok */
    WIRE_ADMIN_TENANTS = 106,     /* wire_admin_index   -> wire_admin_tenant_ok */
    WIRE_ADMIN_MARK = 108,        /* wire_mark          -> (nothing) */
    WIRE_ADMIN_COUNTERS = 120,    /* (nothing)         -> wire_admin_counters_ok */
    WIRE_ADMIN_HISTORY = 121,     /* wire_admin_key    -> wire_admin_history_ok */
    WIRE_ADMIN_DERIVE = 122,      /* wire_admin_derive + tokens -> wire_admin_key */
    WIRE_ADMIN_SCRUB = 123,       /* wire_admin_scrub  -> wire_admin_scrub_ok */
    WIRE_ADMIN_TOKENS = 124,      /* wire_admin_key    -> wire_admin_tokens_ok + tokens */
    WIRE_ADMIN_ACT = 125,         /* wire_admin_act    -> (nothing); then an engine's hello */
    WIRE_ADMIN_PURGE = 126,       /* wire_admin_purge  -> wire_remove_ok */
    WIRE_ADMIN_GC = 127,          /* wire_admin_gc     -> wire_admin_gc_ok */
    WIRE_ADMIN_SECTIONS = 128,    /* wire_admin_variant -> wire_admin_sections_ok + sections */
    WIRE_ADMIN_PROFILE_NEW = 129, /* wire_staging -> wire_staging_ok with one descriptor */
    WIRE_ADMIN_PROFILE_ADD = 130, /* wire_admin_profile_add -> wire_admin_profile_add_ok */
    WIRE_ADMIN_PROFILES = 131,    /* wire_admin_index -> wire_admin_profile_ok */
    WIRE_ADMIN_PROFILE_RM = 132,  /* wire_profile     -> (nothing) */
    WIRE_ADMIN_MEASURE = 133,     /* wire_admin_measure + rows -> (nothing) */
    WIRE_ADMIN_MEASURES = 134,    /* wire_admin_index -> wire_measure */
    WIRE_ADMIN_DEMOTE = 135,      /* wire_admin_scrub -> wire_admin_demote_ok */
    WIRE_ADMIN_WORKERS = 136,     /* wire_admin_index -> wire_admin_worker_ok */
    WIRE_ADMIN_STATUS_OK = 140,
    WIRE_ADMIN_LIST_OK = 141,
    WIRE_ADMIN_SHOW_OK = 142,
    WIRE_ADMIN_VERIFY_OK = 143,
    WIRE_ADMIN_REMOVE_OK = 144,
    WIRE_ADMIN_MODEL_OK = 145,
    WIRE_ADMIN_TENANT_OK = 146,
    WIRE_ADMIN_MARK_OK = 148,
    WIRE_ADMIN_COUNTERS_OK = 160,
    WIRE_ADMIN_HISTORY_OK = 161,
    WIRE_ADMIN_DERIVE_OK = 162,
    WIRE_ADMIN_SCRUB_OK = 163,
    WIRE_ADMIN_TOKENS_OK = 164,
    WIRE_ADMIN_ACT_OK = 165,
    WIRE_ADMIN_PURGE_OK = 166,
    WIRE_ADMIN_GC_OK = 167,
    WIRE_ADMIN_SECTIONS_OK = 168,
    WIRE_ADMIN_PROFILE_NEW_OK = 169,
    WIRE_ADMIN_PROFILE_ADD_OK = 170,
    WIRE_ADMIN_PROFILES_OK = 171,
    WIRE_ADMIN_PROFILE_RM_OK = 172,
    WIRE_ADMIN_MEASURE_OK = 173,
    WIRE_ADMIN_MEASURES_OK = 174,
    WIRE_ADMIN_DEMOTE_OK = 175,
    WIRE_ADMIN_WORKER_OK = 176,
};

struct wire_frame {
    uint32_t bytes;    /* 00-03  of the whole frame: must equal the message's length */
    uint16_t type;     /* 04-05  enum wire_type */
    uint16_t reserved; /* 06-07 */
    uint64_t request;  /* 08-15  chosen by the client, not 0 and not that of an unanswered request
                                 or of a held lease; 0 in frames that answer nothing */
};
static_assert(sizeof(struct wire_frame) == 16, "wire size");

struct wire_error {
    int32_t code; /* negative */
    uint32_t reserved;
    char message[LARDER_MESSAGE_WIRE_MAX]; /* NUL-terminated */
};
static_assert(sizeof(struct wire_error) == 264, "wire size");

struct wire_hello {
    uint32_t magic;       /* WIRE_MAGIC */
    uint32_t version_min; /* versions the client speaks */
    uint32_t version_max;
    uint32_t reserved;
};
static_assert(sizeof(struct wire_hello) == 16, "wire size");

struct wire_hello_ok {
    uint32_t magic;
    uint32_t version;
    uint32_t block_tokens;
    uint32_t lease_ms;          /* leases older than this may be revoked */
    uint64_t staging_bytes_max; /* of a connection */
    uint8_t tenant_id[16];
    uint8_t tenant_key[32];
    char tenant_name[LARDER_TENANT_NAME_MAX];
    char daemon_version[32];
    char recipe[64]; /* default of this tenant; the whole text, or empty when longer */
};
static_assert(sizeof(struct wire_hello_ok) == 232, "wire size");

struct wire_model {
    struct larder_model_desc desc;
};
static_assert(sizeof(struct larder_model_desc) == 192, "wire size");

struct wire_model_ok {
    uint32_t model;   /* handle on this connection and in this daemon */
    uint32_t quality; /* that a PUT without a recipe gives: enum larder_quality */
    uint8_t fingerprint[32];
    float max_kl; /* that it keeps, when its recipe is chosen by what was measured; else 0 */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_model_ok) == 48, "wire size");

enum wire_keys_flag {
    WIRE_KEYS_SMALLEST = 1 << 0, /* of variants that are good enough the smallest */
};

/* LOOKUP, GET and PREFETCH: followed by key_count keys of 32 bytes, a chain from the root or a
 * stored block. The parent is told so that shorter blocks behind it can be named when no key
 * matches. */
struct wire_keys {
    uint32_t model;
    uint32_t key_count;   /* 1..LARDER_REQUEST_KEYS_MAX */
    uint16_t worst;       /* enum larder_quality, without its flag */
    uint16_t flags;       /* bits of enum wire_keys_flag */
    uint16_t layer_first; /* of the layers to be loaded; 0 in a LOOKUP */
    uint16_t layer_count; /* 0: all from layer_first on */
    uint8_t parent[32];   /* of the first key; zeros: the root */
    float max_kl;         /* also accepted: what was measured to keep it; 0: nothing */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_keys) == 56, "wire size");

/* Followed by tail_count struct wire_tail. */
struct wire_lookup_ok {
    uint32_t matched; /* leading keys */
    uint32_t quality;
    uint32_t tail_count; /* <= LARDER_TAILS_MAX: shorter stored blocks behind the last match */
    float kl;            /* worst among the matched; 0: all exact; infinity: not measured */
    uint64_t bytes;
    uint64_t bytes_host;
};
static_assert(sizeof(struct wire_lookup_ok) == 32, "wire size");

struct wire_tail {
    uint8_t key[32];
    uint32_t token_count;
    uint32_t reserved;
};
static_assert(sizeof(struct wire_tail) == 40, "wire size");

/* Followed by ref_count struct wire_ref, then tail_count struct wire_tail. The refs are the leading
 * keys now held by a lease named by the request's id; ref_count < matched when the host tier is
 * full: release and ask for the rest. ready: all are loaded, no WIRE_LOADED follows. */
struct wire_get_ok {
    uint32_t matched;
    uint32_t ref_count;
    uint32_t quality;
    uint32_t ready;
    uint32_t tail_count;
    float kl; /* as in wire_lookup_ok */
    uint64_t bytes;
    uint64_t bytes_host; /* of the matched ones, found in the host tier */
};
static_assert(sizeof(struct wire_get_ok) == 40, "wire size");

struct wire_ref {
    uint32_t slab_id;
    uint32_t slot;
    uint64_t generation;
};
static_assert(sizeof(struct wire_ref) == 16, "wire size");

struct wire_prefetch_ok {
    uint32_t matched; /* leading keys that are stored */
    uint32_t coming;  /* of those, leading ones in the host tier or on their way to it */
};
static_assert(sizeof(struct wire_prefetch_ok) == 8, "wire size");

struct wire_loaded {
    uint32_t loaded; /* leading refs that are good */
    int32_t error;   /* why the next is not; 0: all are */
};
static_assert(sizeof(struct wire_loaded) == 8, "wire size");

/* Followed by count request ids (u64) of WIRE_GETs whose leases end. */
struct wire_release {
    uint32_t count; /* 1..LARDER_REQUEST_KEYS_MAX */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_release) == 8, "wire size");

struct wire_slab {
    uint32_t slab_id;
    uint32_t reserved;
    uint64_t bytes;
};
static_assert(sizeof(struct wire_slab) == 16, "wire size");

struct wire_staging {
    uint64_t bytes; /* wanted; once a connection, larger later replaces it when no PUT is open */
};
static_assert(sizeof(struct wire_staging) == 8, "wire size");

struct wire_staging_ok {
    uint64_t bytes; /* granted, at least what was wanted */
};
static_assert(sizeof(struct wire_staging_ok) == 8, "wire size");

enum wire_put_flag {
    WIRE_PUT_BESIDE = 1 << 0,     /* as a further variant, whatever is stored */
    WIRE_PUT_IMPORTANCE = 1 << 1, /* staging ends with importance scores, */
    WIRE_PUT_Q_MAX = 1 << 2,      /* and these behind them (codec/codec.h, struct larder_block) */
};

/* One block. Staging holds, from staging_offset (a multiple of 64) on: extra, padded to 4 | tokens
 * (u32) | padding to 64 | canonical planes (codec/codec.h) of all layers, layer-major, K before V |
 * with a flag for each: padding to 64, importance, padding to 64, q_max; staging_bytes is exactly
 * the sum. The region is the daemon's until the answer, and is read once.
 * PUTs of one connection are carried out in order, so that a chain may be sent without waiting. */
struct wire_put {
    uint32_t model;
    uint32_t wait;   /* enum larder_wait */
    uint8_t key[32]; /* checked against tokens, extra and parent */
    uint8_t parent[32];
    uint64_t staging_offset;
    uint64_t staging_bytes;
    uint64_t position;
    uint32_t token_count; /* 1..block_tokens of the hello */
    uint32_t extra_bytes;
    uint32_t computed_on;  /* enum larder_quality */
    uint32_t recipe_bytes; /* 0: the default */
    uint32_t flags;        /* bits of enum wire_put_flag */
    float computed_on_kl;  /* measured on that KV; 0 or infinity: unknown, or it is exact */
    float max_kl;          /* with recipe "auto" */
    uint32_t reserved;
    uint8_t profile[32]; /* for a recipe that needs one; zeros: the model's default */
    char recipe[LARDER_RECIPE_BYTES_MAX]; /* the rest 0 */
    struct larder_mark mark;              /* made with the entry; fields 0: none */
};
static_assert(sizeof(struct larder_mark) == 32, "wire size");
static_assert(sizeof(struct wire_put) == 1216, "wire size");

struct wire_put_ok {
    uint64_t stored_bytes; /* of the record; 0 when it was stored before */
    uint32_t existed;      /* 1: stored already at this quality or better, or this very variant */
    uint32_t quality;      /* of the record; when it existed: what it would have been */
    float kl;              /* measured of its recipe and what it was computed on; infinity: not */
    uint32_t unmeasured;   /* 1: recipe "auto", and no measured recipe keeps max_kl: exact */
    char recipe[64];       /* NUL-terminated; a longer text: its start, and "..." */
};
static_assert(sizeof(struct wire_put_ok) == 88, "wire size");

/* A profile's bytes, for whoever knows its name: read-only memory. */
struct wire_profile {
    uint8_t name[32]; /* SHA-256 of its bytes */
};
static_assert(sizeof(struct wire_profile) == 32, "wire size");

struct wire_profile_ok {
    uint64_t bytes;
};
static_assert(sizeof(struct wire_profile_ok) == 8, "wire size");

struct wire_remove {
    uint8_t key[32];
};
static_assert(sizeof(struct wire_remove) == 32, "wire size");

struct wire_remove_ok {
    uint64_t removed; /* entries, the subtree included */
};
static_assert(sizeof(struct wire_remove_ok) == 8, "wire size");

struct wire_mark {
    uint8_t key[32];
    struct larder_mark mark;
};
static_assert(sizeof(struct wire_mark) == 64, "wire size");

struct wire_stat_ok {
    uint64_t entries;
    uint64_t entries_host;
    uint64_t entries_durable;
    uint64_t bytes_host;
    uint64_t bytes_ssd;
    uint64_t gets;
    uint64_t puts;
    uint64_t blocks_hit_host;
    uint64_t blocks_hit_ssd;
    uint64_t blocks_missed;
    uint64_t corrupt;
    uint64_t bytes_pinned;  /* of entries that are pinned, and before them */
    uint64_t bytes_slabs;   /* of the host tier that is the tenant's */
    uint64_t ssd_bytes_max; /* its quotas; 0: none */
    uint64_t host_bytes_max;
    uint64_t fell_back;           /* sections stored exact: their recipe could not hold them */
    uint64_t bytes_slabs_retired; /* of slabs that went to others, and its clients keep */
};
static_assert(sizeof(struct wire_stat_ok) == 136, "wire size");

/* --- blending: on a worker of the daemon's that has the model's weights ---------------------- */

/* In place of a token: there is none, or the model's own start token. */
#define WIRE_TOKEN_NONE  0xffffffffu
#define WIRE_TOKEN_MODEL 0xfffffffeu

/* Which worker would blend for this model? */
struct wire_worker {
    uint32_t model; /* handle */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_worker) == 8, "wire size");

struct wire_worker_ok {
    uint32_t ready;         /* 1: it is there; 0: it is being started */
    uint32_t waiting;       /* blends that would come before a new one */
    uint32_t positions_max; /* of the model; 0, as all that follows, when it was never ready */
    uint32_t start;         /* the model's start token, or WIRE_TOKEN_NONE */
    double row_ns;          /* measured: a token through all layers, without its attention */
    double pair_ns;         /* a query's look at one key, in all layers */
    char name[LARDER_MODEL_NAME_MAX];     /* of the configuration; NUL-terminated */
    char device[LARDER_DEVICE_TEXT_MAX];  /* for people; NUL-terminated */
    char method[LARDER_METHOD_BYTES_MAX]; /* of blends that name none; NUL-terminated */
};
static_assert(sizeof(struct wire_worker_ok) == 288, "wire size");

enum wire_blend_flag {
    WIRE_BLEND_SMALLEST = 1 << 0, /* as of wire_keys */
    WIRE_BLEND_KEEP = 1 << 1,     /* put the result as a prefix, CACHED, */
    WIRE_BLEND_DURABLE = 1 << 2,  /* or DURABLE */
};

/* The region of staging holds the request: u32 [piece_count][2] (tokens, bytes of extra) | the
 * whole prompt's extra, padded to 4 | each piece's extra, padded to 4 | tokens, u32: the pieces',
 * then the suffix's. The answer takes its place: f32 [vocab] logits of the last token | padding to
 * 64 | u8 [token_count] enum larder_blend_recomputed | padding to 64 | span_count struct
 * larder_blend_span. After an ERROR the worker may still write into that staging: a client takes
 * another. */
struct wire_blend {
    uint32_t model;
    uint32_t piece_count;    /* 1..LARDER_PIECES_MAX */
    uint64_t staging_offset; /* multiple of 64 */
    uint64_t staging_bytes;  /* of the region: at least what request and answer take */
    uint32_t token_count;    /* of the whole prompt: pieces and suffix */
    uint32_t suffix_tokens;  /* 1..token_count - 1 */
    uint32_t extra_bytes;    /* of the whole prompt */
    uint32_t deadline_ms;    /* at least 1 */
    uint32_t start;          /* before each piece's tokens in its chain; or WIRE_TOKEN_* */
    uint32_t worst;          /* enum larder_quality, of what is stored */
    float max_kl;            /* as of wire_keys */
    uint32_t flags;          /* bits of enum wire_blend_flag */
    uint64_t seed;
    char method[LARDER_METHOD_BYTES_MAX]; /* NUL-terminated, the rest 0 */
};
static_assert(sizeof(struct wire_blend) == 192, "wire size");

struct wire_blend_ok {
    uint32_t span_count;
    uint32_t quality;   /* enum larder_quality, of the result */
    float kl;           /* of what was loaded; as in wire_lookup_ok */
    uint32_t replanned; /* 1: something was gone when it was fetched */
    double share;       /* recomputed share of the context */
    uint64_t rows;      /* computed, in all layers together */
    uint64_t bytes;     /* stored bytes loaded */
    uint64_t bytes_ssd; /* of those, from SSD */
    uint64_t wait_us;   /* until the worker began */
    uint64_t load_us;   /* of the work, waiting for stored KV */
    uint64_t compute_us;
    uint64_t keep_us;
    uint64_t kept_tokens; /* leading tokens stored as a prefix */
    int32_t keep_error;   /* why no more; 0 when not asked for */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_blend_ok) == 96, "wire size");

/* Copies a rectangle of the result into staging: canonical planes, layer-major, K before V. An
 * ERROR as for wire_blend. */
struct wire_blend_read {
    uint64_t blend; /* request of the WIRE_BLEND */
    uint64_t token_first;
    uint64_t token_count; /* at least 1 */
    uint32_t layer_first;
    uint32_t layer_count;    /* at least 1 */
    uint64_t staging_offset; /* multiple of 64 */
    uint64_t staging_bytes;  /* exactly what it takes */
};
static_assert(sizeof(struct wire_blend_read) == 48, "wire size");

/* --- control socket: wire_hello first, as on the engine socket ------------------------------- */

/* Entries a list may answer with: they fit a frame. */
#define LARDER_ADMIN_LIST_MAX 128u

struct wire_admin_key {
    uint8_t key[32];
};
static_assert(sizeof(struct wire_admin_key) == 32, "wire size");

#define WIRE_VARIANT_ALL 0xffffffffu

struct wire_admin_variant {
    uint8_t key[32];
    uint32_t variant; /* its number */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_variant) == 40, "wire size");

struct wire_admin_remove {
    uint8_t key[32];
    uint32_t variant; /* or WIRE_VARIANT_ALL, with all that is behind */
    uint32_t pinned;  /* 1: also what is pinned */
};
static_assert(sizeof(struct wire_admin_remove) == 40, "wire size");

struct wire_admin_index {
    uint32_t index; /* 0, 1, ...; LARDER_ENOTFOUND at the end */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_index) == 8, "wire size");

struct wire_admin_list {
    uint64_t cursor;        /* 0 to start, then what the answer said */
    uint32_t count_max;     /* 1..LARDER_ADMIN_LIST_MAX */
    uint32_t prefix_digits; /* only keys that begin so, in hex digits, 0..64 */
    uint8_t prefix[32];     /* the first digit is the high half of byte 0; the rest 0 */
};
static_assert(sizeof(struct wire_admin_list) == 48, "wire size");

struct wire_admin_entry {
    uint8_t key[32];
    uint8_t parent[32];
    uint32_t tenant; /* index for WIRE_ADMIN_TENANTS */
    uint32_t model;  /* index for WIRE_ADMIN_MODELS */
    uint32_t token_count;
    uint32_t depth; /* blocks before it in its chain */
    uint32_t children;
    uint32_t lease_count;
    uint64_t record_bytes; /* stored, with padding */
    uint64_t raw_bytes;
    uint64_t created_s; /* Unix time */
    uint64_t position;
    uint64_t uses;       /* leases since the daemon started */
    uint32_t segment_id; /* 0: not on SSD */
    uint32_t segment_page;
    uint8_t quality;     /* enum larder_quality */
    uint8_t computed_on; /* enum larder_quality */
    uint8_t in_host;
    uint8_t durable;
    uint8_t variant;  /* its number */
    uint8_t variants; /* of its key, this one included */
    uint8_t pinned;
    uint8_t held;           /* pinned, or before what is */
    int8_t priority;        /* now */
    uint8_t reserved[3];    /* 0 */
    uint32_t idle_s;        /* since it was used, or put; over a restart as eviction has it */
    uint64_t expires_s;     /* this and the next two: Unix time; 0: never */
    uint64_t pin_expires_s; /* 0, too, when it is not pinned */
    uint64_t priority_expires_s;
    char recipe[64]; /* NUL-terminated; longer than 32 bytes: its start, '~' and a hash */
};
static_assert(sizeof(struct wire_admin_entry) == 240, "wire size");

/* Followed by `count` struct wire_admin_entry. An answer may hold fewer than wanted, even none,
 * before the end. */
struct wire_admin_list_ok {
    uint64_t cursor; /* for the next request; 0: that was all */
    uint32_t count;
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_list_ok) == 16, "wire size");
static_assert(LARDER_ADMIN_LIST_MAX * 240 + 32 <= LARDER_FRAME_BYTES_MAX, "a list fits a frame");

struct wire_admin_show_ok {
    struct wire_admin_entry entry;
    uint8_t fingerprint[32]; /* of the model */
    char model_name[64];
    char tenant_name[LARDER_TENANT_NAME_MAX];
};
static_assert(sizeof(struct wire_admin_show_ok) == 400, "wire size");

/* What reading one entry from SSD gave. */
struct wire_admin_verify_ok {
    int32_t result; /* 0, LARDER_ECORRUPT (dropped), LARDER_ENOTFOUND (not on SSD), or -errno */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_verify_ok) == 8, "wire size");

struct wire_admin_model_ok {
    uint32_t index;
    uint32_t reserved;
    uint8_t fingerprint[32];
    struct larder_model_desc desc;
};
static_assert(sizeof(struct wire_admin_model_ok) == 232, "wire size");

struct wire_admin_tenant_ok {
    uint32_t index;
    uint32_t connections;
    uint8_t id[16];
    char name[LARDER_TENANT_NAME_MAX];
    struct wire_stat_ok stat;
};
static_assert(sizeof(struct wire_admin_tenant_ok) == 224, "wire size");

struct wire_admin_status_ok {
    char version[32];
    char directory[256]; /* cut when longer */
    char io[16];         /* backend */
    char recipe[64];     /* default; cut when longer */
    uint64_t pid;
    uint64_t uptime_s;
    uint32_t block_tokens;
    uint32_t threads;
    uint32_t connections;
    uint32_t leases;
    uint32_t in_flight; /* requests not yet answered */
    uint32_t read_only; /* 1 after a failed sync: an alarm */
    uint64_t entries;
    uint64_t entries_host;
    uint64_t entries_durable;
    uint64_t raw_bytes; /* of all entries */
    uint64_t bytes_host;
    uint64_t bytes_ssd;
    uint64_t host_bytes_max;
    uint64_t slab_bytes;
    uint64_t ssd_bytes_max;
    uint64_t segment_bytes;
    uint64_t segments;
    uint64_t staging_bytes;
    uint64_t puts;
    uint64_t puts_refused;
    uint64_t gets;
    uint64_t blocks_hit_host;
    uint64_t blocks_hit_ssd;
    uint64_t blocks_missed;
    uint64_t corrupt;
    uint64_t evicted_host;
    uint64_t evicted_ssd;
    uint64_t removed;
    uint64_t synced_groups;
    uint64_t bytes_written;
    uint64_t bytes_read;
    uint64_t io_errors;
    uint64_t recovered_entries;
    uint64_t recovered_from_tail;
    uint64_t index_rebuilt;
    uint64_t recovery_us;
    uint64_t frames_refused; /* malformed ones */
    uint64_t bytes_not_admitted;
    uint64_t bytes_demoted;
    uint64_t bytes_hit_host;
    uint64_t bytes_hit_ssd;
    uint64_t fell_back;          /* sections stored exact: their recipe could not hold them */
    uint64_t slab_bytes_retired; /* on top of slab_bytes: kept by clients of those they went from */
    uint64_t demote_entries;     /* kept smaller since nobody used them: blocks */
    uint64_t demote_saved_bytes;
};
static_assert(sizeof(struct wire_admin_status_ok) == 720, "wire size");

/* How long requests took: bucket i counts those above bound i - 1 and up to bound i, the last one
 * those above all bounds. */
#define WIRE_LATENCY_BUCKETS 13u
#define WIRE_LATENCY_BOUNDS_US                                                                     \
    {                                                                                              \
        10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000, 300000, 1000000, 3000000               \
    }

enum wire_latency_kind {
    WIRE_LATENCY_LOOKUP,
    WIRE_LATENCY_GET, /* that found something, until all of it was loaded */
    WIRE_LATENCY_PUT,
    WIRE_LATENCY_KINDS,
};

struct wire_latency {
    uint64_t count;
    uint64_t sum_us;
    uint64_t buckets[WIRE_LATENCY_BUCKETS];
};
static_assert(sizeof(struct wire_latency) == 120, "wire size");

/* Since the daemon started. */
struct wire_admin_counters_ok {
    struct wire_latency latencies[WIRE_LATENCY_KINDS];
    uint64_t events[LARDER_WIRE_EVENTS]; /* by enum larder_event */
};
static_assert(sizeof(struct wire_admin_counters_ok) == 616, "wire size");

struct wire_event {
    uint64_t when_s; /* Unix time */
    uint32_t what;   /* enum larder_event */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_event) == 16, "wire size");

/* Newest first. */
struct wire_admin_history_ok {
    uint32_t count;
    uint32_t reserved;
    struct wire_event events[LARDER_EVENTS_FOUND_MAX]; /* zeros behind `count` */
};
static_assert(sizeof(struct wire_admin_history_ok) == 136, "wire size");

/* Followed by `token_count` u32. */
struct wire_admin_tokens_ok {
    uint32_t token_count;
    uint32_t extra_bytes;
    uint8_t extra[LARDER_EXTRA_BYTES_MAX]; /* the rest zeros */
};
static_assert(sizeof(struct wire_admin_tokens_ok) == 1032, "wire size");

/* What encoding made of a block, and what it cost. Followed by `section_count` struct
 * wire_admin_section. */
struct wire_admin_sections_ok {
    uint64_t record_bytes;
    uint64_t raw_bytes;
    uint32_t head_bytes;
    uint32_t token_count;
    uint32_t section_count;
    float k_error; /* relative RMS error over all layers; 0: exact */
    float v_error;
    uint32_t reserved;
    uint8_t profile[32];                      /* zeros: none */
    char recipe[LARDER_RECIPE_BYTES_MAX + 8]; /* the whole text; NUL-terminated */
};
static_assert(sizeof(struct wire_admin_sections_ok) == 1104, "wire size");

struct wire_admin_section {
    uint16_t layer_first;
    uint16_t layer_count;
    uint16_t head_first;
    uint16_t head_count;
    uint8_t kind;  /* enum larder_section_kind */
    uint8_t flags; /* bits of enum larder_section_flag */
    uint16_t reserved;
    float error; /* relative RMS error; negative: unknown */
    uint64_t bytes;
};
static_assert(sizeof(struct wire_admin_section) == 24, "wire size");
static_assert(sizeof(struct wire_admin_sections_ok) +
                      LARDER_SECTIONS_MAX * sizeof(struct wire_admin_section) + 16 <=
                  LARDER_FRAME_BYTES_MAX,
              "sections fit a frame");

/* What WIRE_ADMIN_PROFILE_NEW's memory was filled with is a profile of this name. */
struct wire_admin_profile_add {
    uint8_t name[32];
    uint32_t is_default; /* 1: of its model, from now on */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_profile_add) == 40, "wire size");

struct wire_admin_profile_add_ok {
    uint32_t existed; /* 1: it was there already */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_profile_add_ok) == 8, "wire size");

struct wire_admin_profile_ok {
    uint8_t name[32];
    uint64_t bytes;
    uint64_t uses; /* records that need it */
    uint32_t is_default;
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_profile_ok) == 56, "wire size");

/* What larder-eval measured of a recipe on a model. */
struct wire_measure {
    uint8_t fingerprint[32]; /* of the model */
    uint8_t profile[32];     /* zeros: none */
    float kl;                /* mean, nats a token */
    float kl_p99;
    float top1; /* share of tokens whose likeliest stays the same */
    float bits_per_element;
    char recipe[LARDER_RECIPE_BYTES_MAX + 8]; /* NUL-terminated */
};
static_assert(sizeof(struct wire_measure) == 1112, "wire size");

#define LARDER_ADMIN_MEASURES_MAX 56u
static_assert(LARDER_ADMIN_MEASURES_MAX * sizeof(struct wire_measure) + 64 <=
                  LARDER_FRAME_BYTES_MAX,
              "rows fit a frame");

/* Followed by `count` struct wire_measure, each of which takes the place of one for the same model,
 * recipe and profile. */
struct wire_admin_measure {
    uint32_t count; /* 1..LARDER_ADMIN_MEASURES_MAX */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_measure) == 8, "wire size");

enum wire_worker_state {
    WIRE_WORKER_DOWN,    /* ended; to be started again */
    WIRE_WORKER_LOADING, /* started, not yet ready */
    WIRE_WORKER_READY,
};

/* A model of the configuration and its worker. */
struct wire_admin_worker_ok {
    uint32_t index;
    uint32_t state;          /* enum wire_worker_state */
    uint64_t pid;            /* 0: none */
    uint64_t starts;         /* since larderd started */
    uint64_t blends;         /* done */
    uint64_t failures;       /* blends that were answered by an error */
    uint64_t busy_us;        /* with a blend at the worker, until its client had it */
    uint8_t fingerprint[32]; /* zeros, as the model in what follows: it was never ready */
    struct wire_worker_ok worker;
};
static_assert(sizeof(struct wire_admin_worker_ok) == 368, "wire size");

/* From here on the connection is one of that tenant's on the engine socket. */
struct wire_admin_act {
    char tenant[LARDER_TENANT_NAME_MAX]; /* NUL-terminated */
};
static_assert(sizeof(struct wire_admin_act) == 64, "wire size");

/* Said by who means it: a purge cannot be undone. */
#define WIRE_PURGE_CONFIRM 0x65677270u /* "prge" */

struct wire_admin_purge {
    char tenant[LARDER_TENANT_NAME_MAX]; /* NUL-terminated */
    uint32_t confirm;                    /* WIRE_PURGE_CONFIRM */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_purge) == 72, "wire size");

enum wire_scrub_action {
    WIRE_SCRUB_ASK,
    WIRE_SCRUB_START, /* one that runs goes on, at the rate given */
    WIRE_SCRUB_CANCEL,
};

struct wire_admin_scrub {
    uint32_t action; /* enum wire_scrub_action */
    uint32_t reserved;
    uint64_t rate_bytes; /* a second; 0: as configured */
};
static_assert(sizeof(struct wire_admin_scrub) == 16, "wire size");

/* Of the pass that runs, or of the last one since the daemon started. */
struct wire_admin_scrub_ok {
    uint32_t running;
    uint32_t cancelled; /* the last one was */
    uint64_t rate_bytes;
    uint64_t entries_done;
    uint64_t entries_all; /* when it began */
    uint64_t bytes_done;
    uint64_t bytes_all;
    uint64_t bad;       /* damaged: dropped */
    uint64_t failed;    /* could not be read */
    uint64_t started_s; /* Unix time; 0: none since the daemon started */
    uint64_t ended_s;
    uint64_t whole_s; /* when the last whole one ended, also of an earlier daemon; else its start */
    uint64_t passes;  /* whole ones since the daemon started */
};
static_assert(sizeof(struct wire_admin_scrub_ok) == 96, "wire size");

struct wire_admin_gc {
    uint32_t action;       /* enum wire_scrub_action */
    uint32_t live_percent; /* segments of which less is live are emptied; 0: 50; at most 100 */
    uint64_t rate_bytes;   /* read and written a second; 0: as scrubbing is configured */
};
static_assert(sizeof(struct wire_admin_gc) == 16, "wire size");

struct wire_admin_gc_ok {
    struct wire_admin_scrub_ok pass; /* whole_s: 0 */
    uint64_t moved;
    uint64_t moved_bytes;
    uint64_t segments_before;
    uint64_t segments; /* now */
};
static_assert(sizeof(struct wire_admin_gc_ok) == 128, "wire size");

struct wire_admin_demote_ok {
    struct wire_admin_scrub_ok pass; /* bytes: read and written; bytes_all, bad, whole_s: 0 */
    uint64_t demoted;                /* blocks, in this pass */
    uint64_t saved_bytes;
    uint64_t demoted_all; /* this and the next two: since the daemon started */
    uint64_t saved_bytes_all;
    uint64_t failed_all;
    uint32_t lines; /* of the configuration that ask for it */
    uint32_t reserved;
};
static_assert(sizeof(struct wire_admin_demote_ok) == 144, "wire size");

/* Followed by `token_count` u32: which key would this block have? */
struct wire_admin_derive {
    uint32_t tenant;
    uint32_t model;
    uint32_t token_count;
    uint32_t extra_bytes;
    uint8_t parent[32];
    uint8_t extra[LARDER_EXTRA_BYTES_MAX]; /* the rest zeros */
};
static_assert(sizeof(struct wire_admin_derive) == 1072, "wire size");

#endif
