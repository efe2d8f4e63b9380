/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   any file is a profile or is refused with a message, and what recipes take out of a
 *         profile lies within it or they refuse it.
 * Input:  a profile's file. */
#include "codec/profile.h"

#include "base/error.h"
#include "base/limits.h"
#include "codec/codec.h"
#include "tests/fuzz/fuzz.h"

/* As the recipe would: bytes of it are read. */
static void check_recipe(const struct larder_profile *profile, const char *text)
{
    struct larder_recipe *recipe;
    int err = larder_recipe_open(&recipe, text, profile);
    assert(err == 0 || err == LARDER_EFORMAT || err == LARDER_EUNSUPPORTED);
    if (err < 0) {
        assert(!recipe && larder_error_message()[0]);
        return;
    }
    larder_recipe_close(recipe);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char *const recipes[] = {
        "kivi4",
        "quant bits=2 | rans",
        "choose map=kvtuner{kivi2}{kivi4}{kivi8}",
        "reorder by=bfp | quant",
        "kvquant3",
        "larder",
        "rotatekv2",
        "cachegen2",
    };
    uint8_t *copy = fuzz_copy(data, bytes);
    struct larder_profile *profile;
    int err = larder_profile_open(&profile, copy, bytes);
    assert(err == 0 || err == LARDER_EFORMAT || err == LARDER_EVERSION);
    if (err < 0) {
        assert(!profile && larder_error_message()[0]);
    } else {
        const struct larder_profile_model *model = larder_profile_model(profile);
        assert(model->layers > 0 && model->layers <= LARDER_LAYERS_MAX);
        for (size_t i = 0; i < sizeof(recipes) / sizeof(*recipes); i++)
            check_recipe(profile, recipes[i]);
    }
    larder_profile_close(profile);
    free(copy);
    return 0;
}
