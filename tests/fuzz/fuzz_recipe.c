/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   any text is a recipe or -EINVAL with a message; the text that is stored for a recipe
 *         gives the same recipe, and the same text, again.
 * Input:  the text, up to its first NUL. */
#include "codec/codec.h"

#include <errno.h>

#include "base/error.h"
#include "base/limits.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const uint8_t *nul = bytes ? memchr(data, 0, bytes) : NULL;
    size_t length = nul ? (size_t)(nul - data) : bytes;
    char *text = malloc(length + 1);
    assert(text);
    if (length > 0)
        memcpy(text, data, length);
    text[length] = 0;

    struct larder_recipe *recipe, *again;
    int err = larder_recipe_open(&recipe, text, NULL);
    assert(err == 0 || err == -EINVAL);
    if (err < 0) {
        assert(!recipe && larder_error_message()[0]);
        free(text);
        return 0;
    }
    free(text); /* the recipe keeps nothing of it */
    assert(strlen(larder_recipe_text(recipe)) <= LARDER_RECIPE_BYTES_MAX);
    assert(larder_recipe_open(&again, larder_recipe_text(recipe), NULL) == 0);
    assert(strcmp(larder_recipe_text(recipe), larder_recipe_text(again)) == 0);
    assert(larder_recipe_is_raw(recipe) == larder_recipe_is_raw(again));
    assert(larder_recipe_quality(recipe) == larder_recipe_quality(again));
    char shown[16384], shown_again[16384];
    assert(larder_recipe_describe(recipe, shown, sizeof(shown)) == 0);
    assert(larder_recipe_describe(again, shown_again, sizeof(shown_again)) == 0);
    assert(strcmp(shown, shown_again) == 0);
    assert(larder_recipe_describe(recipe, shown, strlen(shown)) == -ENOSPC);
    larder_recipe_close(again);
    larder_recipe_close(recipe);
    return 0;
}
