/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/ranges.h"

#include <stdio.h>

#include "base/error.h"
#include "base/record.h"

/* Sums and products of a few of them are finite. */
#define NUMBER_MOST 1e30f

void ranges_name(char out[RANGES_NAME_BYTES], uint8_t kind, const char *what)
{
    snprintf(out, RANGES_NAME_BYTES, "kvquant.%c.%s", kind == LARDER_SECTION_K ? 'k' : 'v', what);
}

static uint64_t channels_of(const struct larder_profile *profile, uint8_t kind)
{
    const struct larder_profile_model *model = larder_profile_model(profile);
    return (uint64_t)model->kv_heads * (kind == LARDER_SECTION_K ? model->k_dims : model->v_dims);
}

static int find(const float **out, const struct larder_profile *profile, uint8_t kind,
                const char *what)
{
    uint64_t shape[2] = {larder_profile_model(profile)->layers, channels_of(profile, kind)};
    char name[RANGES_NAME_BYTES];
    ranges_name(name, kind, what);
    const void *data;
    LARDER_TRY(larder_profile_find(profile, &data, name, LARDER_PROFILE_F32, shape, 2));
    *out = data;
    return 0;
}

int ranges_find(struct ranges *out, const struct larder_profile *profile, uint8_t kind)
{
    *out = (struct ranges){0};
    LARDER_TRY(find(&out->lower, profile, kind, "low"));
    LARDER_TRY(find(&out->upper, profile, kind, "high"));
    out->channels = channels_of(profile, kind);
    for (uint64_t i = 0; i < larder_profile_model(profile)->layers * out->channels; i++) {
        if (!(out->lower[i] <= out->upper[i]) || !(out->lower[i] >= -NUMBER_MOST) ||
            !(out->upper[i] <= NUMBER_MOST))
            return larder_fail(LARDER_EFORMAT,
                               "profile: channel %llu is said to lie between %g and %g; "
                               "`larder calibrate` makes a profile anew",
                               (unsigned long long)i, (double)out->lower[i], (double)out->upper[i]);
    }
    return 0;
}
