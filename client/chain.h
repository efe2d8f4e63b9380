/* SPDX-License-Identifier: Apache-2.0 */
/* chain.h - a prompt as the chain of keys of its blocks, and what the daemon has of it.
 * Owns:    the keys; a hasher, borrowed from the model.
 * Threads: a chain belongs to one call.
 * I1  Key i names tokens [i * block_tokens, (i + 1) * block_tokens), the last one what is left.
 */
#ifndef LARDER_CLIENT_CHAIN_H
#define LARDER_CLIENT_CHAIN_H

#include "client/connection.h"

struct client_chain {
    struct larder_model *model;
    struct larder_link *link;
    struct larder_prompt prompt; /* what it points at is the caller's */
    uint32_t block_tokens;
    uint32_t block_count;
    uint32_t hashed; /* leading keys that are known */
    struct larder_hasher *hasher;
    struct larder_key *keys;
};

/* Checks the prompt (-EINVAL, LARDER_ELIMIT with a message). An empty one has no blocks. */
int client_chain_open(struct client_chain *chain, struct larder_model *model,
                      struct larder_link *link, const struct larder_prompt *prompt);
/* The chain of the first `tokens` tokens, which must end a block (else -EINVAL). */
int client_chain_open_prefix(struct client_chain *chain, struct larder_model *model,
                             struct larder_link *link, const struct larder_prompt *prompt,
                             uint64_t tokens);
void client_chain_close(struct client_chain *chain);

/* Hashes on, so that the first `count` keys are known. */
int client_chain_hash(struct client_chain *chain, uint32_t count);

/* The key before block `index`. */
const struct larder_key *client_chain_parent(const struct client_chain *chain, uint32_t index);

/* Tokens in the first `blocks` blocks. */
static inline uint64_t client_chain_tokens(const struct client_chain *chain, uint32_t blocks)
{
    uint64_t tokens = (uint64_t)blocks * chain->block_tokens;
    return tokens < chain->prompt.token_count ? tokens : chain->prompt.token_count;
}

/* Which records a lookup or get takes: those of this quality or better, and those measured to keep
 * max_kl (0: none). */
struct client_accept {
    enum larder_quality worst;
    float max_kl;
};

/* An answer to LOOKUP or GET, checked. */
struct client_match {
    uint32_t matched;
    uint32_t quality;
    float kl;
    uint64_t bytes;
    uint64_t bytes_host;
    uint32_t tail_count;
    struct wire_tail tails[LARDER_TAILS_MAX];
};

/* Asks for `count` keys from block `first` on, without side effects. */
int client_chain_lookup(struct client_chain *chain, struct client_match *out, uint32_t handle,
                        uint32_t first, uint32_t count, struct client_accept accept);
/* The same for one key. */
int client_lookup_keys(struct larder_link *link, struct client_match *out, uint32_t handle,
                       const struct larder_key *parent, const struct larder_key *keys,
                       uint32_t count, struct client_accept accept);

/* Which of the tails behind block `index - 1` holds the prompt's own next tokens? The longest: its
 * key and token count, or 0 tokens when none does. */
int client_chain_tail(struct client_chain *chain, const struct client_match *match, uint32_t index,
                      struct larder_key *key, uint32_t *token_count);

/* What a lookup or get asks for. */
struct wire_keys client_wire_keys(uint32_t handle, const struct larder_key *parent, uint32_t count,
                                  struct client_accept accept);
/* 0, or -EINVAL for what is not an enum larder_quality. */
int client_check_quality(enum larder_quality worst);
/* 0, or -EINVAL for what is no KL to keep. */
int client_check_kl(const char *what, float kl);
/* What a get's options accept; NULL: exact. */
struct client_accept client_accept_of(const struct larder_get_options *options);

/* Fails the link for an answer that breaks the protocol, and returns LARDER_EPROTO. */
int client_malformed(struct larder_link *link, const char *what);

#endif
