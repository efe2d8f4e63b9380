/* SPDX-License-Identifier: Apache-2.0 */
/* codec.h - recipes: how K and V of a block become the sections of a record, and back.
 *
 * A recipe is a text that names stages; larder_recipe_open() parses it once, the rest is total,
 * deterministic and allocates nothing. Everything is done a section at a time, so that callers can
 * spread sections over threads and decode one layer before the next has arrived.
 *
 * Canonical planes: the K (or V) of one layer as [kv_head][token][dim] in the model's dtype,
 * without padding. That is what encode reads and decode writes; gathering from an engine's layout
 * and scattering into it is the caller's (client/layout.h).
 *
 * Threads: a recipe is immutable after open; a workspace belongs to one call at a time.
 */
#ifndef LARDER_CODEC_CODEC_H
#define LARDER_CODEC_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/larder_base.h"

struct larder_recipe;
struct larder_profile;

/* Parses a recipe's text, presets by name included: "raw", "exact", "kivi4". -EINVAL with a message
 * that names the position, what was found and what is allowed. The grammar: codec/recipe_tree.h.
 * `profile` (codec/profile.h) must outlive the recipe; when it lacks what a stage reads, the open
 * fails with a message that names the tensor. NULL: none; a recipe that needs one can then be
 * asked about, but fits no model. */
int larder_recipe_open(struct larder_recipe **out, const char *text,
                       const struct larder_profile *profile);
void larder_recipe_close(struct larder_recipe *recipe);
/* Whether it does nothing without a profile of the model, opened with one or not. */
bool larder_recipe_needs_profile(const struct larder_recipe *recipe);
/* Whether some stage reads the profile that it was opened with: then a record made by it names
 * that profile, and is decoded with no other. Zeros when it does not. */
bool larder_recipe_profile_name(const struct larder_recipe *recipe, uint8_t out[32]);
/* Memory that it takes for as long as it is open: that of entropy tables, beside which all the rest
 * is little. */
uint64_t larder_recipe_memory_bytes(const struct larder_recipe *recipe);
/* The text to store: presets stay names, spaces are normalised. Lives as long as the recipe. */
const char *larder_recipe_text(const struct larder_recipe *recipe);
/* Of what comes out of decode, when what went in was exact. */
enum larder_quality larder_recipe_quality(const struct larder_recipe *recipe);
/* Whether it can encode blocks of this model: LARDER_EUNSUPPORTED with a message that says why;
 * LARDER_EMODEL when its profile was made for another one. */
int larder_recipe_fits(const struct larder_recipe *recipe, const struct larder_model_desc *model);
/* What encoding needs beside K and V: bits of larder_recipe_input. */
enum larder_recipe_input {
    LARDER_INPUT_IMPORTANCE = 1,
    LARDER_INPUT_Q_MAX = 2,
    LARDER_INPUT_PROFILE = 4, /* of decoding too */
};
uint32_t larder_recipe_needs(const struct larder_recipe *recipe);
/* For people: a line a stage. -ENOSPC when `out_bytes` is too small. */
int larder_recipe_describe(const struct larder_recipe *recipe, char *out, size_t out_bytes);

/* Presets, for `larder recipe ls`: index = 0, 1, ...; NULL at the end. */
const char *larder_recipe_preset(uint32_t index, const char **summary);
/* The same of the stages that recipes are made of. */
const char *larder_recipe_stage(uint32_t index, const char **summary);

/* What a section holds: the recipe's own choice for a model and a number of tokens. */
struct larder_slice {
    uint16_t layer_first;
    uint16_t layer_count;
    uint16_t head_first;
    uint16_t head_count;
    uint8_t kind; /* enum larder_section_kind */
};

/* Sections of a block, layer-major, K before V. */
uint32_t larder_recipe_section_count(const struct larder_recipe *recipe,
                                     const struct larder_model_desc *model);
void larder_recipe_slice(const struct larder_recipe *recipe, struct larder_slice *out,
                         const struct larder_model_desc *model, uint32_t section);
/* Bytes of a slice's canonical planes, its layers one after the other. */
uint64_t larder_slice_raw_bytes(const struct larder_model_desc *model,
                                const struct larder_slice *slice, uint32_t token_count);

/* Upper bound of one encoded section, and of the caller's memory for encode and decode of any
 * section (aligned to 64; any contents). Here and below token_count is the number of tokens whose
 * KV is in the block: 1..LARDER_BLOCK_TOKENS_MAX, checked by the caller. */
uint64_t larder_recipe_bound(const struct larder_recipe *recipe,
                             const struct larder_model_desc *model, uint32_t section,
                             uint32_t token_count);
uint64_t larder_recipe_workspace_bytes(const struct larder_recipe *recipe,
                                       const struct larder_model_desc *model, uint32_t token_count);

/* Shows symbols as encoding makes them, to those who calibrate: [head][token][dim], each below
 * `levels`; `pipe` names the leaf that made them and all stages above it, the same in each recipe
 * that has these. */
struct larder_symbol_watch {
    void (*see)(void *context, const char *pipe, uint32_t layer, const uint8_t *symbols,
                uint32_t heads, uint32_t tokens, uint32_t dims, uint32_t levels);
    void *context;
};

/* The block whose sections are encoded or decoded. */
struct larder_block {
    const struct larder_model_desc *model; /* larder_model_check() accepted it */
    uint64_t position;                     /* of its first token when K was computed */
    const void *tables; /* larder_recipe_fill_tables(); NULL where a recipe needs none */
    uint32_t token_count;
    const struct larder_symbol_watch *watch; /* NULL: nobody looks on */
    /* Inputs of encoding (larder_recipe_needs); NULL: not there. Decoding never looks at them.
     * Importance is a score for [layer][KV head][token of the block], higher is more important;
     * q_max the largest |q| for [layer][KV head][dim of K], over all tokens and over the query
     * heads that read this KV head, as they meet K: with their rotary embedding on. */
    const float *importance;
    const float *q_max;
    /* Encoding: every bit is kept, whatever the recipe. For the last block of a chain when it is
     * short: what it gains is little, it is the part that the next tokens look at most, and a
     * longer block will replace it. */
    bool keep_bits;
};

/* Some recipes take the rotary embedding off K and put it back, and read cosines and sines of the
 * block's positions: memory of so many bytes (aligned to 4; 0: none), filled once and read by all
 * sections. Decoding with tables of another position gives K rotated for that one.
 * LARDER_ELIMIT for positions that no prompt has. */
uint64_t larder_recipe_tables_bytes(const struct larder_recipe *recipe,
                                    const struct larder_model_desc *model, uint32_t token_count);
int larder_recipe_fill_tables(const struct larder_recipe *recipe, void *tables,
                              const struct larder_model_desc *model, uint64_t position,
                              uint32_t token_count);

/* What encode measured on its section. Bit-exact stages leave all of it 0. */
struct larder_section_error {
    double error_energy;  /* sum over elements of (decoded - original)^2 */
    double signal_energy; /* sum of original^2 */
    bool fell_back;       /* stored exact: the recipe could not hold it, or would not shrink it */
};

/* Encodes one section from its canonical planes. *out_bytes <= out_capacity, which is at least the
 * bound; -EINVAL when it is not, when the workspace is too small or not aligned, or when an input
 * that larder_recipe_needs() names is missing; LARDER_EUNSUPPORTED or LARDER_EMODEL as
 * larder_recipe_fits(). */
int larder_recipe_encode(const struct larder_recipe *recipe, void *out, uint64_t out_capacity,
                         uint64_t *out_bytes, struct larder_section_error *error,
                         const struct larder_block *block, uint32_t section, const void *planes,
                         void *workspace, uint64_t workspace_bytes);

/* Decodes one section into its canonical planes (exactly larder_slice_raw_bytes). LARDER_ECORRUPT
 * or LARDER_EVERSION with a message for bytes that no encode made; never reads or writes out of
 * bounds, and what the planes hold after a failure is undefined. Other errors like encode. */
int larder_recipe_decode(const struct larder_recipe *recipe, void *planes, uint64_t planes_bytes,
                         const struct larder_block *block, uint32_t section, const void *encoded,
                         uint64_t encoded_bytes, void *workspace, uint64_t workspace_bytes);

/* The encoded bytes are the canonical planes themselves (recipe "raw"): a reader may scatter from
 * them without decode. */
bool larder_recipe_is_raw(const struct larder_recipe *recipe);

#endif
