/* SPDX-License-Identifier: Apache-2.0 */
/* profile.h - what is known of a model beside its weights: code books, tables, bases, orders and
 * statistics that recipes read. `larder calibrate` makes it (docs/CODECS.md, "Profiles").
 * Owns:    nothing of the bytes: they are the caller's (a mapping or a copy, aligned to 8) and must
 *          outlive the profile, as the profile must outlive the recipes that were opened with it.
 * Threads: after open everything is read-only and may be shared.
 *
 * A profile is a safetensors file; its name is the SHA-256 of its bytes. It is taken iff
 *   kernels/safetensors.h takes it, and it is at most LARDER_PROFILE_BYTES_MAX long;
 *   its metadata says larder_profile = "1", weights = the digest of the model's weights in 64 hex
 *   digits, and layers, kv_heads, k_dims, v_dims as decimal numbers within limits.h.
 * Tensors are checked when they are looked up: what no stage reads may be anything.
 */
#ifndef LARDER_CODEC_PROFILE_H
#define LARDER_CODEC_PROFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"

struct larder_profile;

/* LARDER_EFORMAT, or LARDER_EVERSION for one of another release, with a message. */
int larder_profile_open(struct larder_profile **out, const void *bytes, uint64_t byte_count);
void larder_profile_close(struct larder_profile *profile);

/* SHA-256 of the bytes. */
void larder_profile_name(const struct larder_profile *profile, uint8_t out[32]);

/* The model that it was made for. The dtype of K and V and the rotary embedding are not part of it:
 * statistics do not depend on how the cache is rounded. */
struct larder_profile_model {
    uint8_t weights[32]; /* struct larder_model_desc */
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t k_dims;
    uint32_t v_dims;
};
const struct larder_profile_model *larder_profile_model(const struct larder_profile *profile);
/* LARDER_EMODEL with a message when it was made for another model. */
int larder_profile_fits(const struct larder_profile *profile,
                        const struct larder_model_desc *model);

/* A text of its metadata, for people; NULL: it has none of this name. */
const char *larder_profile_text(const struct larder_profile *profile, const char *key);

enum larder_profile_type {
    LARDER_PROFILE_F32,
    LARDER_PROFILE_I32,
    LARDER_PROFILE_U16,
    LARDER_PROFILE_U8,
};

#define LARDER_PROFILE_RANK_MAX 4u

/* Elements by name, aligned to their size. `shape` has `rank` numbers; one that is 0 may be
 * anything above 0 and is set to what it is. Numbers of F32 are finite. LARDER_EUNSUPPORTED when
 * there is no such tensor, LARDER_EFORMAT when it has another type or shape. */
int larder_profile_find(const struct larder_profile *profile, const void **out, const char *name,
                        enum larder_profile_type type, uint64_t *shape, uint32_t rank);
bool larder_profile_has(const struct larder_profile *profile, const char *name);

/* i32 [1], of no recipe: the layer at which blending looks which tokens to compute again. */
#define LARDER_PROFILE_CHECK_LAYER "blend.check_layer"

/* All that it holds, to copy it. */
struct larder_weights;
const struct larder_weights *larder_profile_tensors(const struct larder_profile *profile);

#endif
