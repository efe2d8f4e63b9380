/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/encode.h"

#include <assert.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"
#include "daemon/workers.h"
#include "storage/store.h"

/* --- planes ----------------------------------------------------------------------------------- */

/* Where the heads of a slice's layer lie in a block's planes, in one run. */
struct run {
    uint64_t offset;
    uint64_t bytes;
};

static struct run run_of(const struct larder_slice *slice, uint32_t layer,
                         const struct larder_model_desc *model, uint32_t token_count)
{
    uint64_t element = larder_dtype_bytes(model->dtype);
    uint64_t k_head = (uint64_t)token_count * model->k_dims * element;
    uint64_t v_head = (uint64_t)token_count * model->v_dims * element;
    bool is_v = slice->kind == LARDER_SECTION_V;
    uint64_t head = is_v ? v_head : k_head;
    return (struct run){.offset = (uint64_t)(slice->layer_first + layer) * model->kv_heads *
                                      (k_head + v_head) +
                                  (is_v ? model->kv_heads * k_head : 0) + slice->head_first * head,
                        .bytes = slice->head_count * head};
}

void encode_gather(void *out, const volatile uint8_t *planes, const struct larder_slice *slice,
                   const struct larder_model_desc *model, uint32_t token_count)
{
    uint8_t *to = out;
    for (uint32_t i = 0; i < slice->layer_count; i++) {
        const struct run run = run_of(slice, i, model, token_count);
        memcpy(to, (const void *)(uintptr_t)(planes + run.offset), run.bytes);
        to += run.bytes;
    }
}

void encode_scatter(uint8_t *planes, const void *in, const struct larder_slice *slice,
                    const struct larder_model_desc *model, uint32_t token_count)
{
    const uint8_t *from = in;
    for (uint32_t i = 0; i < slice->layer_count; i++) {
        const struct run run = run_of(slice, i, model, token_count);
        memcpy(planes + run.offset, from, run.bytes);
        from += run.bytes;
    }
}

/* --- before ----------------------------------------------------------------------------------- */

static int fill_tables(struct encoding *encoding)
{
    const struct larder_block *block = &encoding->block;
    uint64_t bytes = larder_recipe_tables_bytes(encoding->recipe, block->model, block->token_count);
    if (bytes == 0)
        return 0;
    encoding->tables = larder_alloc(bytes);
    if (!encoding->tables)
        return larder_fail(-ENOMEM, "no memory for tables of %u positions", block->token_count);
    encoding->block.tables = encoding->tables;
    return larder_recipe_fill_tables(encoding->recipe, encoding->tables, block->model,
                                     block->position, block->token_count);
}

/* Workers keep their memory, and a recipe's text may be anybody's. */
static int check_workspace(const struct encoding *encoding)
{
    const struct larder_block *block = &encoding->block;
    uint64_t bytes =
        larder_recipe_workspace_bytes(encoding->recipe, block->model, block->token_count);
    if (bytes <= LARDER_WORKSPACE_BYTES_MAX)
        return 0;
    return larder_fail(LARDER_ELIMIT,
                       "recipe '%.80s' takes %llu bytes of memory for a section of %u tokens; the "
                       "limit is %llu: use smaller blocks, or fewer stages in each other",
                       larder_recipe_text(encoding->recipe), (unsigned long long)bytes,
                       block->token_count, (unsigned long long)LARDER_WORKSPACE_BYTES_MAX);
}

int encode_plan(struct encoding *encoding, uint64_t *payload_bytes_max)
{
    const struct larder_recipe *recipe = encoding->recipe;
    const struct larder_model_desc *model = encoding->block.model;
    uint32_t token_count = encoding->block.token_count;
    LARDER_TRY(check_workspace(encoding));
    LARDER_TRY(fill_tables(encoding));
    uint32_t count = larder_recipe_section_count(recipe, model);
    if (count == 0 || count > LARDER_SECTIONS_MAX)
        return larder_fail(LARDER_ELIMIT, "recipe '%s' makes %u sections, at most %u fit a record",
                           larder_recipe_text(recipe), count, LARDER_SECTIONS_MAX);
    encoding->places = larder_alloc(count * sizeof(encoding->places[0]));
    encoding->errors = larder_alloc_zero(count, sizeof(encoding->errors[0]));
    if (!encoding->places || !encoding->errors)
        return larder_fail(-ENOMEM, "no memory for %u sections", count);
    uint64_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        encoding->places[i] = used;
        used += larder_round_up(larder_recipe_bound(recipe, model, i, token_count),
                                LARDER_SECTION_ALIGN);
    }
    if (used > LARDER_RECORD_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT,
                           "a block of %u tokens may become %llu bytes, a record has at most %llu; "
                           "use smaller blocks",
                           token_count, (unsigned long long)used,
                           (unsigned long long)LARDER_RECORD_BYTES_MAX);
    encoding->section_count = count;
    *payload_bytes_max = used;
    return 0;
}

void encode_into(struct encoding *encoding, struct larder_put *put)
{
    encoding->payload = larder_put_payload(put, &encoding->payload_offset);
    encoding->directory = larder_put_directory(put);
}

/* --- sections --------------------------------------------------------------------------------- */

/* What overflows an f32 is as bad as its largest number. */
static float relative_rms(double error_energy, double signal_energy)
{
    if (error_energy == 0)
        return 0;
    return signal_energy > 0 ? (float)fmin(sqrt(error_energy / signal_energy), FLT_MAX) : 1;
}

int encode_section(struct encoding *encoding, uint32_t index, uint64_t place,
                   struct scratch *scratch)
{
    const struct larder_recipe *recipe = encoding->recipe;
    const struct larder_block *block = &encoding->block;
    const struct larder_model_desc *model = block->model;
    struct larder_section *section = &encoding->directory[index];
    struct larder_slice slice;
    larder_recipe_slice(recipe, &slice, model, index);
    uint64_t raw_bytes = larder_slice_raw_bytes(model, &slice, block->token_count);
    uint64_t bytes = raw_bytes;
    uint8_t *out = encoding->payload + place;

    if (larder_recipe_is_raw(recipe)) {
        encode_gather(out, encoding->planes, &slice, model, block->token_count);
    } else {
        uint64_t workspace_bytes = larder_recipe_workspace_bytes(recipe, model, block->token_count);
        uint64_t copy_bytes = larder_round_up(raw_bytes, 64);
        uint8_t *memory = scratch_reserve(scratch, copy_bytes + workspace_bytes + 64);
        if (!memory)
            return larder_fail(-ENOMEM, "no memory to encode %llu bytes",
                               (unsigned long long)raw_bytes);
        encode_gather(memory, encoding->planes, &slice, model, block->token_count);
        uint64_t bound = larder_recipe_bound(recipe, model, index, block->token_count);
        LARDER_TRY(larder_recipe_encode(recipe, out, bound, &bytes, &encoding->errors[index], block,
                                        index, memory, memory + copy_bytes, workspace_bytes));
        assert(bytes <= bound);
    }
    const struct larder_section_error *error = &encoding->errors[index];
    *section = (struct larder_section){
        .layer_first = slice.layer_first,
        .layer_count = slice.layer_count,
        .head_first = slice.head_first,
        .head_count = slice.head_count,
        .kind = slice.kind,
        .flags = error->fell_back ? LARDER_SECTION_FELL_BACK : 0,
        .offset = encoding->payload_offset + place,
        .bytes = bytes,
    };
    larder_section_set_error(section, relative_rms(error->error_energy, error->signal_energy));
    return 0;
}

/* --- after ------------------------------------------------------------------------------------ */

/* Zeroes the padding; returns the payload's length. */
static uint64_t close_gaps(struct encoding *encoding)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < encoding->section_count; i++) {
        struct larder_section *section = &encoding->directory[i];
        uint64_t place = section->offset - encoding->payload_offset;
        assert(place >= used);
        if (place != used)
            memmove(encoding->payload + used, encoding->payload + place, section->bytes);
        section->offset = encoding->payload_offset + used;
        uint64_t end = used + section->bytes;
        used = larder_round_up(end, LARDER_SECTION_ALIGN);
        memset(encoding->payload + end, 0, used - end);
    }
    return used;
}

uint64_t encode_finish(struct encoding *encoding, struct larder_put *put, uint32_t *fell_back)
{
    double error[2] = {0, 0};
    double signal[2] = {0, 0};
    *fell_back = 0;
    for (uint32_t i = 0; i < encoding->section_count; i++) {
        bool is_v = encoding->directory[i].kind == LARDER_SECTION_V;
        error[is_v] += encoding->errors[i].error_energy;
        signal[is_v] += encoding->errors[i].signal_energy;
        *fell_back += encoding->errors[i].fell_back;
    }
    larder_put_set_errors(put, relative_rms(error[0], signal[0]),
                          relative_rms(error[1], signal[1]));
    return close_gaps(encoding);
}

void encode_free(struct encoding *encoding)
{
    larder_free(encoding->places);
    larder_free(encoding->errors);
    larder_free(encoding->tables);
    *encoding = (struct encoding){.recipe = NULL};
}
