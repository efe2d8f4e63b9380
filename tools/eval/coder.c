/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/coder.h"

#include <assert.h>
#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

struct eval_coder {
    const struct larder_recipe *recipe;
    const struct larder_model_desc *model;
    uint32_t tokens_max;
    uint8_t *encoded; /* a section */
    uint64_t encoded_bytes;
    void *workspace;
    uint64_t workspace_bytes;
    void *tables; /* of positions from 0 on, for the tokens of the block in hand */
};

static int open_memory(struct eval_coder *coder)
{
    uint64_t tables_bytes =
        larder_recipe_tables_bytes(coder->recipe, coder->model, coder->tokens_max);
    coder->workspace_bytes =
        larder_recipe_workspace_bytes(coder->recipe, coder->model, coder->tokens_max);
    for (uint32_t i = 0; i < larder_recipe_section_count(coder->recipe, coder->model); i++)
        coder->encoded_bytes =
            larder_max_u64(coder->encoded_bytes,
                           larder_recipe_bound(coder->recipe, coder->model, i, coder->tokens_max));
    coder->encoded = larder_alloc_aligned(64, larder_max_u64(coder->encoded_bytes, 64));
    coder->workspace = larder_alloc_aligned(64, larder_max_u64(coder->workspace_bytes, 64));
    coder->tables = larder_alloc_aligned(64, larder_max_u64(tables_bytes, 64));
    if (!coder->encoded || !coder->workspace || !coder->tables)
        return larder_fail(-ENOMEM, "no memory for a recipe on %u tokens", coder->tokens_max);
    return 0;
}

int eval_coder_open(struct eval_coder **out, const struct larder_recipe *recipe,
                    const struct larder_model_desc *model, uint32_t tokens_max)
{
    *out = NULL;
    uint32_t inputs = LARDER_INPUT_IMPORTANCE | LARDER_INPUT_Q_MAX;
    if (larder_recipe_needs(recipe) & inputs)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "%s wants scores or queries with a PUT, which chunks here come without",
                           larder_recipe_text(recipe));
    LARDER_TRY(larder_recipe_fits(recipe, model));
    struct eval_coder *coder = larder_alloc_zero(1, sizeof(*coder));
    if (!coder)
        return larder_fail(-ENOMEM, "no memory for a recipe");
    *coder = (struct eval_coder){.recipe = recipe, .model = model, .tokens_max = tokens_max};
    int err = open_memory(coder);
    if (err < 0) {
        eval_coder_close(coder);
        return err;
    }
    *out = coder;
    return 0;
}

void eval_coder_close(struct eval_coder *coder)
{
    if (!coder)
        return;
    larder_free(coder->tables);
    larder_free(coder->workspace);
    larder_free(coder->encoded);
    larder_free(coder);
}

int eval_coder_pass(struct eval_coder *coder, uint8_t *planes, uint32_t tokens)
{
    assert(tokens > 0);
    assert(tokens <= coder->tokens_max);
    if (larder_recipe_tables_bytes(coder->recipe, coder->model, tokens) > 0)
        LARDER_TRY(
            larder_recipe_fill_tables(coder->recipe, coder->tables, coder->model, 0, tokens));
    const struct larder_block block = {
        .model = coder->model, .tables = coder->tables, .token_count = tokens};
    for (uint32_t i = 0; i < larder_recipe_section_count(coder->recipe, coder->model); i++) {
        struct larder_slice slice;
        struct larder_section_error error;
        uint64_t encoded_bytes;
        larder_recipe_slice(coder->recipe, &slice, coder->model, i);
        uint64_t bytes = larder_slice_raw_bytes(coder->model, &slice, tokens);
        LARDER_TRY(larder_recipe_encode(coder->recipe, coder->encoded, coder->encoded_bytes,
                                        &encoded_bytes, &error, &block, i, planes, coder->workspace,
                                        coder->workspace_bytes));
        LARDER_TRY(larder_recipe_decode(coder->recipe, planes, bytes, &block, i, coder->encoded,
                                        encoded_bytes, coder->workspace, coder->workspace_bytes));
        planes += bytes;
    }
    return 0;
}
