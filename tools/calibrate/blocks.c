/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/calibrate/blocks.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

static int open_memory(struct blocks *b)
{
    const struct larder_model_desc *model = &b->calibration->model;
    uint64_t elem_bytes = larder_dtype_bytes(model->dtype);
    b->plane_bytes[LARDER_K] = elem_bytes * BLOCK_TOKENS * model->kv_heads * model->k_dims;
    b->plane_bytes[LARDER_V] = elem_bytes * BLOCK_TOKENS * model->kv_heads * model->v_dims;
    for (uint32_t section = 0; section < larder_recipe_section_count(b->recipe, model); section++)
        b->encoded_room = larder_max_u64(
            b->encoded_room, larder_recipe_bound(b->recipe, model, section, BLOCK_TOKENS));
    b->workspace_bytes = larder_recipe_workspace_bytes(b->recipe, model, BLOCK_TOKENS);
    b->tables_bytes = larder_recipe_tables_bytes(b->recipe, model, BLOCK_TOKENS);
    b->planes = larder_alloc(larder_max_u64(b->plane_bytes[LARDER_K], b->plane_bytes[LARDER_V]));
    b->encoded = larder_alloc(b->encoded_room);
    b->workspace = larder_alloc_aligned(64, b->workspace_bytes + !b->workspace_bytes);
    b->tables = larder_alloc(b->tables_bytes * b->block_count + 1);
    if (!b->planes || !b->encoded || !b->workspace || !b->tables)
        return larder_fail(-ENOMEM, "no memory for blocks of %u tokens", BLOCK_TOKENS);
    for (uint32_t block = 0; block < b->block_count; block++)
        LARDER_TRY(larder_recipe_fill_tables(b->recipe,
                                             (uint8_t *)b->tables + block * b->tables_bytes, model,
                                             (uint64_t)block * BLOCK_TOKENS, BLOCK_TOKENS));
    return 0;
}

int blocks_open(struct blocks *out, const struct calibration *calibration, const char *recipe,
                const struct larder_profile *profile, uint32_t block_count)
{
    *out = (struct blocks){.calibration = calibration, .block_count = block_count};
    int err = larder_recipe_open(&out->recipe, recipe, profile);
    if (err == 0)
        err = larder_recipe_fits(out->recipe, &calibration->model);
    if (err == 0)
        err = open_memory(out);
    if (err < 0)
        blocks_close(out);
    return err;
}

void blocks_close(struct blocks *b)
{
    larder_free(b->tables);
    larder_free(b->workspace);
    larder_free(b->encoded);
    larder_free(b->planes);
    larder_recipe_close(b->recipe);
    *b = (struct blocks){0};
}

/* Between the cache's [token][head][dim] and the planes' [head][token][dim]. */
static void move(const struct blocks *b, uint32_t layer, enum larder_kv kv, uint32_t block,
                 bool to_cache)
{
    const struct larder_kv_cache *cache = b->calibration->cache;
    uint64_t token_bytes = kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes;
    uint64_t row_bytes = token_bytes / cache->kv_heads;
    uint8_t *rows = larder_kv_cache_rows(cache, layer, kv);
    uint8_t *plane = b->planes;
    for (uint32_t head = 0; head < cache->kv_heads; head++) {
        for (uint32_t token = 0; token < BLOCK_TOKENS; token++, plane += row_bytes) {
            uint8_t *row =
                rows + ((uint64_t)block * BLOCK_TOKENS + token) * token_bytes + head * row_bytes;
            memcpy(to_cache ? row : plane, to_cache ? plane : row, row_bytes);
        }
    }
}

static struct larder_block block_of(const struct blocks *b, uint32_t block)
{
    return (struct larder_block){
        .model = &b->calibration->model,
        .position = (uint64_t)block * BLOCK_TOKENS,
        .tables = b->tables_bytes ? (uint8_t *)b->tables + block * b->tables_bytes : NULL,
        .token_count = BLOCK_TOKENS,
        .watch = b->watch,
    };
}

int blocks_encode(struct blocks *b, uint32_t layer, enum larder_kv kv, uint32_t block,
                  uint64_t *bytes, struct larder_section_error *error)
{
    move(b, layer, kv, block, false);
    struct larder_block described = block_of(b, block);
    return larder_recipe_encode(b->recipe, b->encoded, b->encoded_room, bytes, error, &described,
                                2 * layer + (kv == LARDER_V), b->planes, b->workspace,
                                b->workspace_bytes);
}

int blocks_decode(struct blocks *b, uint32_t layer, enum larder_kv kv, uint32_t block,
                  uint64_t bytes)
{
    struct larder_block described = block_of(b, block);
    LARDER_TRY(larder_recipe_decode(b->recipe, b->planes, b->plane_bytes[kv], &described,
                                    2 * layer + (kv == LARDER_V), b->encoded, bytes, b->workspace,
                                    b->workspace_bytes));
    move(b, layer, kv, block, true);
    return 0;
}
