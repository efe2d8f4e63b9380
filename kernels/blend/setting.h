/* SPDX-License-Identifier: Apache-2.0 */
/* setting.h - the text of a method read into its values: name { ' ' key '=' value { ',' value } }.
 * Inside kernels/blend/ only.
 * Threads: pure functions.
 */
#ifndef LARDER_KERNELS_BLEND_SETTING_H
#define LARDER_KERNELS_BLEND_SETTING_H

#include <stdbool.h>
#include <stdint.h>

#define BLEND_TEXT_BYTES_MAX 256u
#define BLEND_PARAMS_MAX     8u
#define BLEND_VALUES_MAX     16u

struct blend_method;

struct blend_param {
    const char *name;
    const char *words; /* the words it may be, "strict paper", read as 0, 1, ...; NULL: a number */
    double low;
    double high;
    double missing; /* its value where it is not named */
    bool whole;
    uint32_t count_max; /* values that it takes; 0: one */
};

struct blend_values {
    double at[BLEND_VALUES_MAX];
    uint32_t count;
};

struct blend_setting {
    const struct blend_method *method;
    struct blend_values value[BLEND_PARAMS_MAX]; /* in the order of the method's params */
};

/* -EINVAL with what was found and what is allowed. */
int blend_setting_read(struct blend_setting *out, const char *text, uint32_t layers);

static inline double blend_number(const struct blend_setting *setting, uint32_t param)
{
    return setting->value[param].at[0];
}

#endif
