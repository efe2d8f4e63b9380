/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/llama_pass.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/llama_layer.h"

struct larder_llama_pass {
    struct larder_llama *model;
    struct larder_kv_cache *cache;
    uint64_t kv_dims;
    uint32_t room;  /* rows at open */
    uint32_t count; /* rows that go on */
    uint32_t layer; /* runs next */
    bool projected; /* k and v are of that layer */
    uint32_t *positions;
    float *x; /* [rows, hidden] */
    float *k; /* [rows, kv_dims]; NULL until rows are first projected */
    float *v;
};

static int check_positions(const struct larder_kv_cache *cache,
                           const struct larder_llama_rows *rows)
{
    if (rows->count == 0)
        return larder_fail(-EINVAL, "a pass over no rows; at least 1 is needed");
    for (uint32_t i = 1; i < rows->count; i++)
        if (rows->positions[i] <= rows->positions[i - 1])
            return larder_fail(-EINVAL, "row %u at position %u follows one at %u; they must rise",
                               i, rows->positions[i], rows->positions[i - 1]);
    if (rows->positions[rows->count - 1] >= cache->capacity)
        return larder_fail(LARDER_ELIMIT,
                           "position %u does not fit the KV cache of %u; open a larger one",
                           rows->positions[rows->count - 1], cache->capacity);
    return 0;
}

static int alloc_floats(const struct larder_llama_pass *pass, float **out, uint64_t dims)
{
    struct larder_device *device = pass->model->device;
    void *memory = NULL;
    LARDER_TRY(device->ops->alloc(device, &memory, pass->room * dims * sizeof(float)));
    *out = memory;
    return 0;
}

/* Rows [first, ...) of the pass, as many as pass together. */
static struct llama_rows rows_from(const struct larder_llama_pass *pass, uint32_t first)
{
    const struct llama_workspace *w = &pass->model->work;
    return (struct llama_rows){
        .model = pass->model,
        .cache = pass->cache,
        .positions = pass->positions + first,
        .count = (uint32_t)larder_min_u64(LLAMA_ROWS_MAX, pass->count - first),
        .x = pass->x + first * (uint64_t)pass->model->config.hidden,
        .k = pass->projected ? pass->k + first * pass->kv_dims : w->k,
        .v = pass->projected ? pass->v + first * pass->kv_dims : w->v,
    };
}

int larder_llama_pass_open(struct larder_llama_pass **out, struct larder_llama *model,
                           struct larder_kv_cache *cache, const struct larder_llama_rows *rows)
{
    *out = NULL;
    llama_check_cache(model, cache);
    LARDER_TRY(check_positions(cache, rows));
    LARDER_TRY(llama_check_tokens(model, rows->tokens, rows->count));
    struct larder_llama_pass *pass = larder_alloc_zero(1, sizeof(*pass));
    if (!pass)
        return larder_fail(-ENOMEM, "no memory for a pass");
    *pass = (struct larder_llama_pass){
        .model = model,
        .cache = cache,
        .kv_dims = (uint64_t)model->config.kv_heads * model->config.head_dims,
        .room = rows->count,
        .count = rows->count,
        .positions = larder_alloc(rows->count * sizeof(uint32_t)),
    };
    int err = pass->positions
                  ? alloc_floats(pass, &pass->x, model->config.hidden)
                  : larder_fail(-ENOMEM, "no memory for a pass over %u rows", rows->count);
    if (err == 0)
        memcpy(pass->positions, rows->positions, rows->count * sizeof(uint32_t));
    for (uint32_t first = 0; err == 0 && first < rows->count; first += LLAMA_ROWS_MAX) {
        struct llama_rows part = rows_from(pass, first);
        err = llama_rows_embed(&part, rows->tokens + first);
    }
    if (err < 0) {
        larder_llama_pass_close(pass);
        return err;
    }
    *out = pass;
    return 0;
}

void larder_llama_pass_close(struct larder_llama_pass *pass)
{
    if (!pass)
        return;
    struct larder_device *device = pass->model->device;
    float *parts[] = {pass->v, pass->k, pass->x};
    for (size_t i = 0; i < LARDER_COUNT_OF(parts); i++)
        if (parts[i])
            device->ops->release(device, parts[i]);
    larder_free(pass->positions);
    larder_free(pass);
}

uint32_t larder_llama_pass_rows(const struct larder_llama_pass *pass)
{
    return pass->count;
}

const uint32_t *larder_llama_pass_positions(const struct larder_llama_pass *pass)
{
    return pass->positions;
}

uint32_t larder_llama_pass_next(const struct larder_llama_pass *pass)
{
    return pass->layer;
}

int larder_llama_pass_project(struct larder_llama_pass *pass)
{
    assert(pass->layer < pass->model->config.layers);
    if (!pass->k)
        LARDER_TRY(alloc_floats(pass, &pass->k, pass->kv_dims));
    if (!pass->v)
        LARDER_TRY(alloc_floats(pass, &pass->v, pass->kv_dims));
    pass->projected = true;
    for (uint32_t first = 0; first < pass->count; first += LLAMA_ROWS_MAX) {
        struct llama_rows part = rows_from(pass, first);
        LARDER_TRY(llama_rows_project(&part, pass->layer));
    }
    return 0;
}

struct larder_tensor larder_llama_pass_projected(const struct larder_llama_pass *pass,
                                                 enum larder_kv kv)
{
    assert(pass->projected);
    const struct larder_model_config *c = &pass->model->config;
    return larder_cube(kv == LARDER_K ? pass->k : pass->v, LARDER_F32, pass->count, c->kv_heads,
                       c->head_dims);
}

int larder_llama_pass_write(struct larder_llama_pass *pass)
{
    assert(pass->projected);
    for (uint32_t first = 0; first < pass->count; first += LLAMA_ROWS_MAX) {
        struct llama_rows part = rows_from(pass, first);
        LARDER_TRY(llama_rows_write(&part, pass->layer));
    }
    return 0;
}

static int copy_floats(const struct larder_llama_pass *pass, float *to, float *from, uint64_t count,
                       uint64_t dims)
{
    struct larder_device *device = pass->model->device;
    struct larder_tensor out = larder_matrix(to, LARDER_F32, count, dims);
    struct larder_tensor in = larder_matrix(from, LARDER_F32, count, dims);
    return device->ops->convert(device, &out, &in);
}

/* Moves the named rows of `data` to its front, by way of `work`, which has room for LLAMA_ROWS_MAX
 * rows. Rows only move down, so that no part overwrites what a later one reads. */
static int gather(const struct larder_llama_pass *pass, float *data, float *work,
                  const uint32_t *indices, uint32_t count, uint64_t dims)
{
    for (uint32_t first = 0; first < count; first += LLAMA_ROWS_MAX) {
        uint32_t part = (uint32_t)larder_min_u64(LLAMA_ROWS_MAX, count - first);
        if (indices[first + part - 1] == first + part - 1)
            continue; /* they are where they belong */
        for (uint32_t i = 0; i < part;) {
            uint32_t run = 1;
            while (i + run < part && indices[first + i + run] == indices[first + i] + run)
                run++;
            LARDER_TRY(
                copy_floats(pass, work + i * dims, data + indices[first + i] * dims, run, dims));
            i += run;
        }
        LARDER_TRY(copy_floats(pass, data + first * dims, work, part, dims));
    }
    return 0;
}

int larder_llama_pass_keep(struct larder_llama_pass *pass, const uint32_t *indices, uint32_t count)
{
    assert(count <= pass->count);
    for (uint32_t i = 0; i < count; i++) {
        assert(indices[i] < pass->count);
        assert(i == 0 || indices[i] > indices[i - 1]);
    }
    const struct llama_workspace *w = &pass->model->work;
    LARDER_TRY(gather(pass, pass->x, w->h, indices, count, pass->model->config.hidden));
    if (pass->projected) {
        LARDER_TRY(gather(pass, pass->k, w->k, indices, count, pass->kv_dims));
        LARDER_TRY(gather(pass, pass->v, w->v, indices, count, pass->kv_dims));
    }
    for (uint32_t i = 0; i < count; i++)
        pass->positions[i] = pass->positions[indices[i]];
    pass->count = count;
    return 0;
}

int larder_llama_pass_layer(struct larder_llama_pass *pass)
{
    assert(pass->layer < pass->model->config.layers);
    for (uint32_t first = 0; first < pass->count; first += LLAMA_ROWS_MAX) {
        struct llama_rows part = rows_from(pass, first);
        if (!pass->projected)
            LARDER_TRY(llama_rows_project(&part, pass->layer));
        LARDER_TRY(llama_rows_write(&part, pass->layer));
        LARDER_TRY(llama_rows_finish(&part, pass->layer));
    }
    pass->projected = false;
    if (++pass->layer == pass->model->config.layers)
        pass->model->forwarded += pass->count;
    return 0;
}

int larder_llama_pass_logits(struct larder_llama_pass *pass, float *logits, uint32_t first,
                             uint32_t count)
{
    assert(pass->layer == pass->model->config.layers);
    assert(first <= pass->count);
    assert(count <= pass->count - first);
    while (count > 0) {
        struct llama_rows part = rows_from(pass, first);
        part.count = (uint32_t)larder_min_u64(part.count, count);
        LARDER_TRY(llama_rows_logits(&part, logits, 0));
        logits += (uint64_t)part.count * pass->model->config.vocab;
        first += part.count;
        count -= part.count;
    }
    return 0;
}
