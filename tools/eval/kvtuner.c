/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/kvtuner.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "tools/calibrate/calibrate.h"

static int read_costs(struct calibration_cost **out, const struct larder_profile *profile,
                      uint32_t layers)
{
    *out = NULL;
    if (!profile)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "KVTuner needs a profile; larder calibrate makes it");
    const void *kl;
    uint64_t shape[] = {layers, 2, CALIBRATION_WIDTHS};
    LARDER_TRY(larder_profile_find(profile, &kl, "sensitivity.kl", LARDER_PROFILE_F32, shape, 3));
    size_t count = (size_t)layers * 2 * CALIBRATION_WIDTHS;
    *out = larder_alloc_zero(count, sizeof(**out));
    if (!*out)
        return larder_fail(-ENOMEM, "no memory for sensitivities");
    for (size_t i = 0; i < count; i++)
        (*out)[i].kl = ((const float *)kl)[i];
    return 0;
}

/* The presets kiviN spelled out, so that a coder can stand behind them. */
static int spell_out(char *out, size_t out_bytes, const char *text)
{
    size_t used = 0;
    while (*text) {
        unsigned bits;
        int wrote;
        if (sscanf(text, "k{kivi%u}", &bits) == 1) {
            wrote = snprintf(out + used, out_bytes - used, "k{quant bits=%u axis=channel%%}", bits);
            text += strcspn(text, "}") + 1;
        } else if (sscanf(text, "v{kivi%u}", &bits) == 1) {
            wrote = snprintf(out + used, out_bytes - used, "v{quant bits=%u%%}", bits);
            text += strcspn(text, "}") + 1;
        } else {
            wrote = snprintf(out + used, out_bytes - used, "%c", *text++);
        }
        if (wrote < 0 || (size_t)wrote >= out_bytes - used)
            return larder_fail(-ENOSPC, "the recipe is longer than %zu bytes", out_bytes);
        used += (size_t)wrote;
    }
    return 0;
}

int eval_kvtuner(char *out, size_t out_bytes, const struct larder_profile *profile, double budget)
{
    char text[LARDER_RECIPE_BYTES_MAX + 1];
    uint32_t layers = profile ? larder_profile_model(profile)->layers : 0;
    struct calibration_cost *costs;
    LARDER_TRY(read_costs(&costs, profile, layers));
    double kl;
    uint8_t *choice = larder_alloc_zero(2 * (size_t)layers, 1);
    int err = choice ? 0 : larder_fail(-ENOMEM, "no memory for a bit map");
    if (err == 0)
        err = calibration_choose_bits(choice, &kl, costs, layers, 1, budget);
    if (err == 0)
        err = calibration_bits_recipe(text, sizeof(text), choice, layers);
    if (err == 0)
        err = spell_out(out, out_bytes, text);
    larder_free(choice);
    larder_free(costs);
    return err;
}
