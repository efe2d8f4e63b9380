/* SPDX-License-Identifier: Apache-2.0 */
/* ranges.h - the range of each channel that a profile knows, outside of which numbers are outliers.
 *
 * Threads: pure functions; what is found points into the profile.
 */
#ifndef LARDER_CODEC_RANGES_H
#define LARDER_CODEC_RANGES_H

#include <stdint.h>

#include "codec/profile.h"

/* [layer][head][dim] each; lower <= upper, both far from overflow. */
struct ranges {
    const float *lower;
    const float *upper;
    uint64_t channels; /* of a layer */
};

/* Tensors "kvquant.k.low" and "kvquant.k.high", or of "v". Errors as larder_profile_find(). */
int ranges_find(struct ranges *out, const struct larder_profile *profile, uint8_t kind);

/* The name of a tensor for K or V: "kvquant.k.WHAT". */
#define RANGES_NAME_BYTES 48u
void ranges_name(char out[RANGES_NAME_BYTES], uint8_t kind, const char *what);

#endif
