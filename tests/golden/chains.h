/* SPDX-License-Identifier: Apache-2.0 */
/* chains.h - what golden stores hold: chains of tokens and KV that follow from a number, put and
 * read through liblarder as an engine does. What is written here is in committed stores: it does
 * not change any more; new stores take new numbers.
 * Threads: one.
 */
#ifndef LARDER_TESTS_GOLDEN_CHAINS_H
#define LARDER_TESTS_GOLDEN_CHAINS_H

#include <stdint.h>

#include "base/larder_base.h"
#include "tests/daemon/fixture.h"

#define CHAINS_CONFIG "tenant other = socket DIR/other.sock\nslab_bytes = 1M\n"
/* Of encrypted stores: with a committed key, copied to DIR/test.key. */
#define CHAINS_CONFIG_ENCRYPTED CHAINS_CONFIG "key_file = DIR/test.key\n"
#define CHAIN_TENANTS           2u /* 0: who asks; 1: "other", by its socket */
#define CHAIN_MODELS            2u /* 0: bf16 without rotation; 1: f16, another shape, rotated */
#define CHAIN_TOKENS_MAX        64u
#define CHAIN_DIGEST_TEXT       65u

struct chain {
    uint32_t tenant;
    uint32_t model;
    uint32_t number; /* even: recipe raw; odd: exact; a multiple of 3: `extra` is not empty */
};

/* Of any wait for the daemon; 0: the library's default. */
extern uint32_t chain_timeout_ms;

/* The first `tokens` tokens, durable. */
int chain_put(const struct fixture *fixture, const struct chain *chain, uint32_t tokens);
/* A lossy variant of it beside what is there, durable. */
int chain_put_lossy(const struct fixture *fixture, const struct chain *chain, uint32_t tokens);
/* Pins the chain to its block that ends the first `tokens` tokens. */
int chain_pin(const struct fixture *fixture, const struct chain *chain, uint32_t tokens);
/* Removes the block that ends the first `tokens` tokens, and what is behind it. */
int chain_remove(const struct fixture *fixture, const struct chain *chain, uint32_t tokens);
/* Asks for `tokens` tokens; gives how many came and SHA-256 of their K and V, in hex; or an error.
 * The bytes are compared with what was put. LARDER_ECORRUPT: they differ. */
int64_t chain_get(const struct fixture *fixture, const struct chain *chain, uint32_t tokens,
                  char digest[CHAIN_DIGEST_TEXT]);

#endif
