/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/profile.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/safetensors.h"

#define REMEDY "`larder calibrate` makes one"

struct larder_profile {
    struct larder_weights *tensors;
    struct larder_profile_model model;
    struct larder_key name;
};

static const struct {
    const char *name; /* in a safetensors header */
    uint32_t bytes;
} types[] = {
    [LARDER_PROFILE_F32] = {"F32", 4},
    [LARDER_PROFILE_I32] = {"I32", 4},
    [LARDER_PROFILE_U16] = {"U16", 2},
    [LARDER_PROFILE_U8] = {"U8", 1},
};

/* --- metadata --------------------------------------------------------------------------------- */

static int read_number(uint32_t *out, const struct larder_weights *tensors, const char *key,
                       uint32_t limit)
{
    const char *text = larder_weights_metadata(tensors, key);
    if (!text)
        return larder_fail(LARDER_EFORMAT, "profile: its metadata has no %s; " REMEDY, key);
    size_t digits = strspn(text, "0123456789");
    unsigned long long value =
        digits > 0 && digits < 10 && !text[digits] ? strtoull(text, NULL, 10) : 0;
    if (value == 0 || value > limit)
        return larder_fail(LARDER_EFORMAT, "profile: %s is '%.16s', not a number from 1 to %u", key,
                           text, limit);
    *out = (uint32_t)value;
    return 0;
}

static int read_digest(uint8_t out[32], const struct larder_weights *tensors)
{
    const char *text = larder_weights_metadata(tensors, "weights");
    if (text && larder_unhex(out, 32, text) == 0)
        return 0;
    return larder_fail(LARDER_EFORMAT, "profile: its metadata has no weights, a digest of 64 hex "
                                       "digits; " REMEDY);
}

static int read_model(struct larder_profile *profile)
{
    const struct larder_weights *tensors = profile->tensors;
    const char *version = larder_weights_metadata(tensors, "larder_profile");
    if (!version)
        return larder_fail(
            LARDER_EFORMAT,
            "profile: its metadata has no larder_profile; is this a profile? " REMEDY);
    if (strcmp(version, "1") != 0)
        return larder_fail(LARDER_EVERSION, "profile: version '%.16s'; this release knows 1",
                           version);
    struct larder_profile_model *model = &profile->model;
    LARDER_TRY(read_digest(model->weights, tensors));
    LARDER_TRY(read_number(&model->layers, tensors, "layers", LARDER_LAYERS_MAX));
    LARDER_TRY(read_number(&model->kv_heads, tensors, "kv_heads", LARDER_KV_HEADS_MAX));
    LARDER_TRY(read_number(&model->k_dims, tensors, "k_dims", LARDER_HEAD_DIMS_MAX));
    return read_number(&model->v_dims, tensors, "v_dims", LARDER_HEAD_DIMS_MAX);
}

/* --- the profile ------------------------------------------------------------------------------ */

int larder_profile_open(struct larder_profile **out, const void *bytes, uint64_t byte_count)
{
    *out = NULL;
    assert((uintptr_t)bytes % 8 == 0);
    if (byte_count > LARDER_PROFILE_BYTES_MAX)
        return larder_fail(LARDER_EFORMAT, "profile: %llu bytes; the limit is %llu",
                           (unsigned long long)byte_count,
                           (unsigned long long)LARDER_PROFILE_BYTES_MAX);
    struct larder_profile *profile = larder_alloc_zero(1, sizeof(*profile));
    if (!profile)
        return larder_fail(-ENOMEM, "no memory for a profile");
    int err = larder_weights_open_bytes(&profile->tensors, "profile", bytes, byte_count);
    if (err == 0)
        err = read_model(profile);
    if (err == 0)
        err = larder_sha256(&profile->name, bytes, byte_count);
    if (err < 0) {
        larder_profile_close(profile);
        return err;
    }
    *out = profile;
    return 0;
}

void larder_profile_close(struct larder_profile *profile)
{
    if (!profile)
        return;
    larder_weights_close(profile->tensors);
    larder_free(profile);
}

void larder_profile_name(const struct larder_profile *profile, uint8_t out[32])
{
    memcpy(out, profile->name.bytes, sizeof(profile->name.bytes));
}

const struct larder_profile_model *larder_profile_model(const struct larder_profile *profile)
{
    return &profile->model;
}

int larder_profile_fits(const struct larder_profile *profile, const struct larder_model_desc *model)
{
    const struct larder_profile_model *own = &profile->model;
    if (memcmp(own->weights, model->weights, sizeof(own->weights)) != 0)
        return larder_fail(LARDER_EMODEL,
                           "the profile was made for other weights (%02x%02x%02x%02x"
                           "..., the model's are %02x%02x%02x%02x...); " REMEDY " for this model",
                           own->weights[0], own->weights[1], own->weights[2], own->weights[3],
                           model->weights[0], model->weights[1], model->weights[2],
                           model->weights[3]);
    if (own->layers != model->layers || own->kv_heads != model->kv_heads ||
        own->k_dims != model->k_dims || own->v_dims != model->v_dims)
        return larder_fail(LARDER_EMODEL,
                           "the profile was made for %u layers of %u KV heads of %u and %u "
                           "dims; the model has %u of %u of %u and %u",
                           own->layers, own->kv_heads, own->k_dims, own->v_dims, model->layers,
                           model->kv_heads, model->k_dims, model->v_dims);
    return 0;
}

const char *larder_profile_text(const struct larder_profile *profile, const char *key)
{
    return larder_weights_metadata(profile->tensors, key);
}

/* --- tensors ---------------------------------------------------------------------------------- */

static int check_shape(const struct larder_weight *tensor, uint64_t *shape, uint32_t rank)
{
    bool good = tensor->rank == rank;
    for (uint32_t i = 0; i < rank && good; i++) {
        good = shape[i] ? shape[i] == tensor->shape[i] : tensor->shape[i] > 0;
        shape[i] = tensor->shape[i];
    }
    return good ? 0
                : larder_fail(LARDER_EFORMAT,
                              "profile: tensor %s has another shape than the "
                              "model asks for; " REMEDY,
                              tensor->name);
}

static bool all_finite(const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (!isfinite(x[i]))
            return false;
    }
    return true;
}

int larder_profile_find(const struct larder_profile *profile, const void **out, const char *name,
                        enum larder_profile_type type, uint64_t *shape, uint32_t rank)
{
    *out = NULL;
    assert(rank <= LARDER_PROFILE_RANK_MAX);
    const struct larder_weight *tensor = larder_weights_find(profile->tensors, name);
    if (!tensor)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the profile has no tensor %s; " REMEDY " that has it", name);
    if (strcmp(tensor->dtype_name, types[type].name) != 0)
        return larder_fail(LARDER_EFORMAT, "profile: tensor %s is of type %s instead of %s", name,
                           tensor->dtype_name, types[type].name);
    LARDER_TRY(check_shape(tensor, shape, rank));
    if ((uintptr_t)tensor->data % types[type].bytes != 0)
        return larder_fail(LARDER_EFORMAT,
                           "profile: tensor %s is not aligned to its elements of %u bytes", name,
                           types[type].bytes);
    if (type == LARDER_PROFILE_F32 && !all_finite(tensor->data, tensor->bytes / sizeof(float)))
        return larder_fail(LARDER_EFORMAT, "profile: tensor %s holds a number that is not finite",
                           name);
    *out = tensor->data;
    return 0;
}

bool larder_profile_has(const struct larder_profile *profile, const char *name)
{
    return larder_weights_find(profile->tensors, name) != NULL;
}

const struct larder_weights *larder_profile_tensors(const struct larder_profile *profile)
{
    return profile->tensors;
}
