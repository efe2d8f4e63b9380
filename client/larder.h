/* SPDX-License-Identifier: Apache-2.0 */
/* larder.h - the client library of larder, a store for the KV caches of language models.
 *
 * An engine opens a connection, describes its model, asks how much of a prompt is stored, has that
 * much written into its own KV memory, and stores what it computed. See liblarder(3), and the
 * 40-line program in the README.
 *
 * Errors:  0 or a negative code (larder_base.h; system errors as -errno); larder_last_error() has
 *          the message of the calling thread's last failure: value, limit, remedy.
 * Threads: a connection and its models may be used from several threads; calls on one connection
 *          take turns. After fork() the child opens its own.
 * Time:    no call waits longer than the connection's timeout for the daemon. When the daemon is
 *          gone, calls fail at once with LARDER_EDOWN, and reconnect by themselves when it is back.
 */
#ifndef LARDER_H
#define LARDER_H

#include "larder_base.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LARDER_API __attribute__((visibility("default")))
#else
#define LARDER_API
#endif

#define LARDER_SOCKET_DEFAULT "/run/larder/larder.sock"

/* --- errors ---------------------------------------------------------------------------------- */

LARDER_API const char *larder_last_error(void);
LARDER_API const char *larder_strerror(int code);
LARDER_API const char *larder_version(void);

/* --- connection ------------------------------------------------------------------------------ */

struct larder;

struct larder_options {
    const char *socket;  /* NULL: $LARDER_SOCKET, else LARDER_SOCKET_DEFAULT */
    uint32_t timeout_ms; /* of any one wait for the daemon; 0: 10,000 */
    uint32_t threads;    /* for gathering and decoding; 0: 1 */
    /* `socket` is larderd's control socket: which tenant to be. NULL everywhere else. */
    const char *tenant;
    uint8_t reserved[8]; /* zeros */
};

/* Connects; `options` may be NULL. LARDER_EDOWN when nobody listens. */
LARDER_API int larder_connect(struct larder **out, const struct larder_options *options);
/* Gets in steps must have ended; jobs are cancelled, and may be ended later. Models are closed by
 * their own call, before or after. */
LARDER_API void larder_close(struct larder *larder);

struct larder_model;

/* Tells the daemon which model the following calls mean. A description that cannot be is refused
 * here (LARDER_EMODEL, LARDER_ELIMIT, LARDER_EUNSUPPORTED), never met later as a miss. */
LARDER_API int larder_model_open(struct larder *larder, struct larder_model **out,
                                 const struct larder_model_desc *desc);
LARDER_API void larder_model_close(struct larder_model *model);

/* --- prompts --------------------------------------------------------------------------------- */

/* Tokens of a prompt or chunk, and what else changes its KV. */
struct larder_prompt {
    const uint32_t *tokens;
    size_t token_count;
    const void *extra; /* LoRA name, salt, image hashes, ...; NULL with 0 bytes: none */
    size_t extra_bytes;
};

/* --- lookup ---------------------------------------------------------------------------------- */

struct larder_lookup_result {
    uint64_t tokens;     /* leading tokens of the prompt that are stored */
    uint64_t bytes;      /* stored bytes of their KV */
    uint64_t bytes_host; /* of those already in the host tier */
    uint32_t blocks;
    uint32_t quality;     /* worst among them: enum larder_quality */
    float kl;             /* worst among them, as in struct larder_get_result */
    uint64_t estimate_us; /* what loading will take, from what this connection measured so far */
};

/* How much of the prompt is stored at `worst` quality or better (in C, `worst` may be or'ed with
 * LARDER_QUALITY_SMALLEST, here and in gets). No side effects; a miss is 0 tokens, not an error. */
LARDER_API int larder_lookup(struct larder_model *model, struct larder_lookup_result *out,
                             const struct larder_prompt *prompt, enum larder_quality worst);
/* The same of what a get with these options (NULL too) would accept. */
struct larder_get_options;
LARDER_API int larder_lookup_for(struct larder_model *model, struct larder_lookup_result *out,
                                 const struct larder_prompt *prompt,
                                 const struct larder_get_options *options);

/* --- layouts --------------------------------------------------------------------------------- */

/* Where the engine keeps K and V. The element (layer, kv, token, head, dim) lies at
 *   bases[layer] or base + layer * layer_stride
 *   + kv * kv_stride + block(token) * block_stride + row(token) * token_stride
 *   + head * head_stride + dim * dim_stride              (strides in bytes)
 * with block(token) = block_table[token / block_tokens], row(token) = token % block_tokens, or
 * block 0 and row = token without a block table. With v_bases, V of a layer starts there and
 * kv_stride is not used. Strides for the engines known: liblarder(3), "Layouts". Unused fields are
 * zeros. */
struct larder_layout {
    void *const *bases;   /* one per layer; or NULL to use base */
    void *const *v_bases; /* one per layer, for V when it is apart from K; or NULL */
    void *base;
    int64_t layer_stride; /* unused with bases */
    int64_t kv_stride;    /* from K to V */
    int64_t block_stride;
    int64_t token_stride;
    int64_t head_stride;
    int64_t k_dim_stride;   /* bytes between elements of a K head; normally the element's size */
    int64_t v_dim_stride;   /* the same of V; other when V is stored transposed */
    int64_t v_token_stride; /* of V when other than token_stride; 0: the same */
    int64_t v_head_stride;  /* of V when other than head_stride; 0: the same */
    const uint32_t *block_table; /* engine block of each block_tokens tokens; NULL: contiguous */
    uint32_t block_table_count;
    uint32_t block_tokens;
    uint32_t dtype;          /* enum larder_dtype: must be the model's */
    uint32_t memory;         /* 0: host */
    uint64_t token_capacity; /* tokens with room, so that nothing is written beyond */
    uint64_t token_first;    /* a get leaves tokens before it alone: the engine has them */
};

/* Fills in a plain layout: [layer][K/V][token][head][dim] without padding at `base`. Needs equal
 * k_dims and v_dims. */
LARDER_API int larder_layout_plain(struct larder_layout *out, const struct larder_model_desc *desc,
                                   void *base, uint64_t token_capacity);

/* --- get ------------------------------------------------------------------------------------- */

enum larder_block_status {
    LARDER_BLOCK_OK = 0,
    LARDER_BLOCK_MISS = 1,
    LARDER_BLOCK_CORRUPT = 2,
    LARDER_BLOCK_IO = 3,
    LARDER_BLOCK_TIMEOUT = 4,
    LARDER_BLOCK_CANCELLED = 5,
    LARDER_BLOCK_MISMATCH = 6,   /* tokens differ: a hash collision, or a wrong store */
    LARDER_BLOCK_NO_PROFILE = 7, /* encoded with a profile that the store has no more */
};

struct larder_get_result {
    uint64_t tokens;    /* leading tokens whose KV is in the caller's memory now, all layers */
    uint64_t bytes;     /* stored bytes read for them */
    uint64_t bytes_ssd; /* of those, from SSD */
    uint32_t blocks;    /* whole blocks behind `tokens` */
    uint32_t quality;   /* worst among them */
    /* What this KV costs the model's logits, as measured with the recipes that it went through: the
     * KL to those on exact KV, nats a token, of the worst block. 0: all exact; infinity: not all
     * measured. For struct larder_put_options. */
    float kl;
    uint32_t stop_status; /* why there are no more: enum larder_block_status */
    int32_t stop_error;   /* its code; 0 for a plain miss */
};

struct larder_get_options {
    enum larder_quality worst; /* accepted; as for a lookup */
    /* Layers to be written, and read from SSD; others are left alone. 0 and 0: all. More layers may
     * be asked for by another get. */
    uint32_t layer_first;
    uint32_t layer_count; /* 0: all from layer_first on */
    /* From the call on; then it returns with the tokens that are valid by then, -ETIMEDOUT and
     * LARDER_BLOCK_TIMEOUT in the result. 0: none. Only connecting anew may take longer. */
    uint32_t deadline_ms;
    uint64_t tokens_max; /* 0: all */
    /* Accepted too: lossy blocks whose recipe was measured on this model (larder quality) to keep
     * this KL, what they were computed on included. 0: none. */
    float max_kl;
    uint8_t reserved[12]; /* zeros */
};

/* Writes the KV of the longest stored prefix into `layout`, at token 0 on. What was not stored is a
 * plain miss: 0 with result->tokens smaller than the prompt. A daemon that dies meanwhile is one
 * too: result->tokens are valid, in all layers asked for; stop_status says why there are no more.
 * `options` may be NULL: all layers and tokens, exact. */
LARDER_API int larder_get(struct larder_model *model, struct larder_get_result *result,
                          const struct larder_prompt *prompt, const struct larder_layout *layout,
                          const struct larder_get_options *options);

/* The same layer by layer, so that an engine can run layer 0 while layer 1 is on its way.
 * begin: *tokens is what will be restored if nothing fails; the arguments stay valid until end.
 * wait_layer: returns when that layer's K and V are written; layers in rising order. An error means
 * that fewer tokens are valid: end() says how many (in all layers asked for). A deadline runs on
 * until end.
 * end: always needed; gives the lease back. Before the last layer and without an error it means
 * that the caller gave up: no tokens are valid then. */
struct larder_get_op;
LARDER_API int larder_get_begin(struct larder_model *model, struct larder_get_op **out,
                                uint64_t *tokens, const struct larder_prompt *prompt,
                                const struct larder_layout *layout,
                                const struct larder_get_options *options);
LARDER_API int larder_get_wait_layer(struct larder_get_op *op, uint32_t layer);
LARDER_API int larder_get_end(struct larder_get_op *op, struct larder_get_result *result);

/* Has the daemon read what a get would have to wait for, as much as its host tier has room for, and
 * does not wait for it: a get that comes soon finds it there, or on its way. *tokens: leading ones
 * that are there or on their way. `options` as the get's (NULL too); its deadline is that of this
 * call. A get does the same for the end of a chain that does not fit at once. */
LARDER_API int larder_prefetch(struct larder_model *model, uint64_t *tokens,
                               const struct larder_prompt *prompt,
                               const struct larder_get_options *options);

/* --- put ------------------------------------------------------------------------------------- */

enum larder_put_flag {
    /* Store each block as a further variant, beside what is stored of it, be that better or worse.
     * Without it a better one replaces the best, and what is stored as good or better stays. The
     * variants of a block differ in quality, computed_on or recipe; at most 8 (LARDER_ELIMIT). */
    LARDER_PUT_BESIDE = 1 << 0,
};

struct larder_put_options {
    enum larder_wait wait;
    /* NULL: the daemon's default for this tenant and model. "auto": of the recipes measured on this
     * model (larder quality) the smallest that keeps max_kl; without one, exact. */
    const char *recipe;
    enum larder_quality computed_on; /* of the KV that this KV was computed on */
    uint64_t position;               /* of token 0 when K was computed: 0; others are refused */
    uint64_t tokens_stored;          /* leading tokens known to be stored: not sent again */
    uint32_t flags;                  /* bits of enum larder_put_flag */
    /* Of each block that this call sends: its time and priority. Blocks stored before keep theirs.
     * A pin is the last block's, stored before or not, and so holds the whole prompt. Without
     * fields: none. No crash leaves a block without the mark it was put with. */
    struct larder_mark mark;
    /* With recipe "auto", or NULL: the KL to keep, nats a token, what it was computed on included.
     * 0: as the daemon's default says. */
    float max_kl;
    /* Unless computed_on is exact: what the get before said, larder_get_result.kl. 0: unknown. */
    float computed_on_kl;
    /* Of the recipe, when it reads one: its name, 32 bytes. NULL: the model's default. */
    const uint8_t *profile;
    /* What some recipes need (larder recipe show), NULL: not there. A score for [layer][KV head]
     * [token of the prompt], higher is more important; and the largest |q| for [layer][KV head]
     * [dim of K], over all tokens and the query heads that read this KV head, as they meet K, with
     * their rotary embedding on. Finite numbers. */
    const float *importance;
    const float *q_max;
    uint8_t reserved[16]; /* zeros */
};

struct larder_put_result {
    uint64_t tokens;       /* leading tokens stored now, earlier ones included */
    uint64_t tokens_new;   /* of those, stored by this call */
    uint64_t bytes_raw;    /* KV of the new ones, as the engine holds it */
    uint64_t bytes_stored; /* the same as stored */
    /* Of the last block that was sent: */
    uint32_t quality;    /* enum larder_quality */
    float kl;            /* as in struct larder_get_result */
    uint32_t unmeasured; /* 1: "auto" knew no measured recipe that keeps max_kl, and chose exact */
    char recipe[64];     /* with "..." at the end when it is longer */
};

/* Stores the KV of the prompt's tokens from `layout`: whole blocks, and a shorter last one; what is
 * stored already is not sent. K is as rotated for the tokens' own places, from 0 on: an
 * options->position other than 0 is LARDER_EUNSUPPORTED. `options` may be NULL. When memory or
 * queues are full, LARDER_CACHED fails at once with -EBUSY; LARDER_DURABLE waits for room, and
 * fails so when nothing was stored for timeout_ms. Result says how far it came. */
LARDER_API int larder_put(struct larder_model *model, struct larder_put_result *result,
                          const struct larder_prompt *prompt, const struct larder_layout *layout,
                          const struct larder_put_options *options);

/* --- blending -------------------------------------------------------------------------------- */

/* A prompt made of pieces that were stored apart, in whatever order, and a suffix (the question).
 * A piece is found where it stands as part of the whole prompt's stored prefix, or else as a chunk:
 * by its own chain, that of the model's start token and the piece's tokens (a piece that begins
 * with that token itself: by its tokens). So chunks are stored by an ordinary put of [start] +
 * tokens. A chunk's K is moved to its new place, its start token is left out, and what is missing,
 * the suffix, and those tokens that the method chooses are computed by a worker of the daemon that
 * has the model's weights (larderd.conf(5), "model"). What a piece's `extra` stands for must not
 * change what the model computes: the worker knows no adapters. */

/* What stands before a piece's tokens in its chain. */
enum larder_start {
    LARDER_START_MODEL = 0, /* the model's start token, if it has one, as the worker knows it */
    LARDER_START_NONE = 1,
    LARDER_START_TOKEN = 2, /* start_token */
};

/* What becomes of the blended KV in the store. Blocks that are stored at its quality already stay
 * as they are, and so those of an earlier blend. */
enum larder_keep {
    LARDER_KEEP_NOT = 0,
    LARDER_KEEP_CACHED = 1, /* put as the whole prompt's chain, at the quality that it has */
    LARDER_KEEP_DURABLE = 2,
};

struct larder_blend_request {
    const struct larder_prompt *pieces; /* none empty */
    size_t piece_count;
    struct larder_prompt suffix; /* at least one token; its `extra` is the whole prompt's */
    /* "none", "link k=16", "cacheblend r=.15", ...: docs/BLENDING.md; NULL: what is configured. */
    const char *method;
    enum larder_quality worst; /* of stored KV that is used; as for a get, as the next */
    float max_kl;
    /* Of larder_blend(), until the worker is done: -ETIMEDOUT behind it. 0: 60,000. */
    uint32_t deadline_ms;
    enum larder_start start;
    uint32_t start_token;
    enum larder_keep keep;
    uint64_t seed;        /* of methods that choose at random */
    uint8_t reserved[32]; /* zeros */
};

/* What a blend would do now. Nothing is held: what is stored may be gone when it is wanted, and the
 * blend then does what it can and says so. */
struct larder_blend_plan {
    struct larder_blend_span *spans; /* freed by larder_blend_plan_free() */
    uint32_t span_count;
    uint32_t quality;          /* expected: enum larder_quality */
    uint64_t tokens;           /* of the whole prompt */
    uint64_t source_tokens[4]; /* by enum larder_blend_source */
    /* Of the tokens before the suffix, over all layers, the share that is computed; of a method
     * that this library does not know as if all were. */
    double share;
    uint64_t bytes;         /* stored, to be loaded */
    uint64_t bytes_host;    /* of those already in the host tier */
    uint64_t load_us;       /* from what this connection measured so far, as for a lookup */
    uint64_t compute_us;    /* from what the worker measured; 0: there is no worker */
    uint64_t prefill_us;    /* of computing all behind the prefix in place of blending */
    float kl;               /* worst of what would be loaded, as in struct larder_get_result */
    uint32_t waiting;       /* blends that the worker has to do before */
    uint32_t ready;         /* 1: there is a worker now */
    uint32_t positions_max; /* of the model; 0: not known */
};

/* With LARDER_START_MODEL the daemon must know the model: LARDER_EUNSUPPORTED (no weights of it),
 * LARDER_EMODEL (others of that name), -EBUSY (they are being loaded). */
LARDER_API int larder_blend_plan(struct larder_model *model, struct larder_blend_plan *out,
                                 const struct larder_blend_request *request);
LARDER_API void larder_blend_plan_free(struct larder_blend_plan *plan);

/* What was done to a token's KV. */
enum larder_blend_recomputed {
    LARDER_BLEND_STORED = 0,   /* nothing, but that its K was moved */
    LARDER_BLEND_PARTLY = 1,   /* computed in some layers */
    LARDER_BLEND_COMPUTED = 2, /* in all */
};

struct larder_blended {
    struct larder_blend_span *spans; /* this and the next two freed by larder_blended_free() */
    uint8_t *recomputed;             /* [tokens]: enum larder_blend_recomputed */
    float *logits;                   /* [vocab]: of the last token */
    uint32_t span_count;
    uint32_t quality; /* exact only if all that is not from an exact prefix was computed */
    uint64_t tokens;  /* whose KV is in the caller's memory: all */
    double share;     /* as in the plan, as it was */
    uint64_t rows;    /* computed, in all layers together */
    uint64_t bytes;   /* stored bytes loaded */
    uint64_t bytes_ssd;
    uint64_t wait_us; /* until the worker began; then waiting for stored KV; computing; storing */
    uint64_t load_us;
    uint64_t compute_us;
    uint64_t keep_us;
    uint64_t copy_us;     /* from the worker into the layout */
    uint64_t kept_tokens; /* leading tokens stored as the whole prompt's chain */
    int32_t keep_error;   /* why not all: its code; 0 too when it was not asked for */
    float kl;             /* of what was loaded, as in struct larder_get_result */
    uint32_t replanned; /* 1: something that was planned to be loaded was gone, and was computed */
};

/* Blends the prompt and writes the KV of all its tokens into `layout` (of those from
 * layout->token_first on). Errors as of the plan, and LARDER_ELIMIT for a prompt longer than the
 * model's positions, -EINVAL for a method that is not known, LARDER_EDOWN when the worker ended
 * twice at this. On an error the memory behind the layout may be written in part. Puts and blends
 * of one connection take turns. */
LARDER_API int larder_blend(struct larder_model *model, struct larder_blended *out,
                            const struct larder_blend_request *request,
                            const struct larder_layout *layout);
LARDER_API void larder_blended_free(struct larder_blended *blended);

/* --- marks ----------------------------------------------------------------------------------- */

/* These change the mark of the block that ends the first `tokens` tokens of the prompt (a multiple
 * of the block size, or the prompt's length), at once, and durably when they return: struct
 * larder_mark in larder_base.h says what a mark means. LARDER_ENOTFOUND when the block is not
 * stored; LARDER_ELIMIT for times above 100 years and priorities outside -8..8. Seconds count on
 * whatever is done to the wall clock; over a reboot of the machine the wall clock is believed. */
LARDER_API int larder_mark(struct larder_model *model, const struct larder_prompt *prompt,
                           uint64_t tokens, const struct larder_mark *mark);
/* Keeps the block, and all before it, from eviction, expiry and removal for so many seconds (0:
 * until larder_unpin()). It counts against the tenant's quota. */
LARDER_API int larder_pin(struct larder_model *model, const struct larder_prompt *prompt,
                          uint64_t tokens, uint64_t seconds);
LARDER_API int larder_unpin(struct larder_model *model, const struct larder_prompt *prompt,
                            uint64_t tokens);
/* The block, and with it all that is stored behind it, is gone in so many seconds from now (0: not
 * any more), unless it or something behind it is pinned then. */
LARDER_API int larder_touch(struct larder_model *model, const struct larder_prompt *prompt,
                            uint64_t tokens, uint64_t seconds);

/* --- remove ---------------------------------------------------------------------------------- */

/* Removes the block that ends the first `tokens` tokens of the prompt (a multiple of the block
 * size, or the prompt's length) and everything stored behind it, durably. LARDER_ENOTFOUND;
 * LARDER_EPINNED when one of them is pinned. */
LARDER_API int larder_remove(struct larder_model *model, const struct larder_prompt *prompt,
                             uint64_t tokens, uint64_t *removed);

/* --- jobs ------------------------------------------------------------------------------------ */

/* The same calls without waiting. A job runs on a thread of the library; all arguments, what they
 * point at, and `result` belong to it until it has ended. Its eventfd becomes readable then. */
struct larder_job;
LARDER_API int larder_get_submit(struct larder_model *model, struct larder_job **out,
                                 struct larder_get_result *result,
                                 const struct larder_prompt *prompt,
                                 const struct larder_layout *layout,
                                 const struct larder_get_options *options);
LARDER_API int larder_put_submit(struct larder_model *model, struct larder_job **out,
                                 struct larder_put_result *result,
                                 const struct larder_prompt *prompt,
                                 const struct larder_layout *layout,
                                 const struct larder_put_options *options);
/* Readable once the job has ended; the job's, do not close. */
LARDER_API int larder_job_fd(struct larder_job *job);
/* The job's code once it has ended; -EINPROGRESS while it runs; waits up to timeout_ms. */
LARDER_API int larder_job_wait(struct larder_job *job, uint32_t timeout_ms);
/* Asks it to stop soon; it still ends, with -ECANCELED or as if not asked. A get that is stopped
 * keeps what is valid: its result says which tokens are. */
LARDER_API void larder_job_cancel(struct larder_job *job);
/* Waits for it to end, then frees it. The job's message stays in larder_last_error(). */
LARDER_API int larder_job_end(struct larder_job *job);

/* --- the daemon's word about itself ---------------------------------------------------------- */

struct larder_info {
    uint32_t block_tokens;
    uint32_t protocol_version;
    uint8_t tenant_id[16];
    char tenant_name[64];
    char daemon_version[32];
};
LARDER_API int larder_get_info(struct larder *larder, struct larder_info *out);

struct larder_stat {
    uint64_t entries; /* of this tenant */
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
    uint64_t bytes_pinned;  /* stored bytes of what is pinned, and before that */
    uint64_t bytes_slabs;   /* host memory that is the tenant's */
    uint64_t ssd_bytes_max; /* its quotas; 0: none */
    uint64_t host_bytes_max;
    /* K or V of a layer stored exact, because the recipe could not hold it (a number that is not
     * finite) or would not have made it smaller; since the daemon started. */
    uint64_t fell_back;
    /* Host memory that went to other tenants, and that clients of this one still have mapped: it
     * counts towards the quota. A connection lets it go with its next call. */
    uint64_t bytes_slabs_retired;
};
LARDER_API int larder_get_stat(struct larder *larder, struct larder_stat *out);

#ifdef __cplusplus
}
#endif
#endif
