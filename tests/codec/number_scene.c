/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/codec/number_scene.h"

#include <check.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/node.h"
#include "kernels/cpu/cpu_math.h"

static uint64_t random_state;

uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(random_state >> 33);
}

/* About normal: the sum of four uniform numbers. */
float next_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)next_random() / 0x1p31f - 0.5f;
    return sum * 1.7f;
}

void scene_open(struct scene *s, const char *text, uint32_t dtype, uint32_t heads, uint32_t dims,
                uint32_t tokens, uint64_t position, uint32_t section)
{
    scene_open_with(s, NULL, text, dtype, heads, dims, tokens, position, section);
}

void scene_open_with(struct scene *s, const struct larder_profile *profile, const char *text,
                     uint32_t dtype, uint32_t heads, uint32_t dims, uint32_t tokens,
                     uint64_t position, uint32_t section)
{
    *s = (struct scene){.section = section};
    s->model = (struct larder_model_desc){.layers = 3,
                                          .kv_heads = heads,
                                          .k_dims = dims,
                                          .v_dims = dims,
                                          .dtype = dtype,
                                          .vocab = 10};
    s->model.rope = (struct larder_rope){
        .kind = LARDER_ROPE_PLAIN, .rotary_dims = dims & ~1u, .theta = 10000, .factor = 1};
    ck_assert_msg(larder_recipe_open(&s->recipe, text, profile) == 0, "%s", larder_error_message());
    s->count = (uint64_t)heads * tokens * dims;
    s->planes_bytes = s->count * larder_dtype_bytes(dtype);
    s->planes = larder_alloc(s->planes_bytes);
    s->decoded = larder_alloc(s->planes_bytes);
    s->bound = larder_recipe_bound(s->recipe, &s->model, section, tokens);
    s->encoded = larder_alloc(s->bound);
    s->workspace_bytes = larder_recipe_workspace_bytes(s->recipe, &s->model, tokens);
    s->workspace = larder_alloc_aligned(64, s->workspace_bytes + 64);
    memset(s->workspace, 0xa5, s->workspace_bytes);
    uint64_t tables_bytes = larder_recipe_tables_bytes(s->recipe, &s->model, tokens);
    s->tables = larder_alloc(tables_bytes + 1);
    ck_assert_int_eq(larder_recipe_fill_tables(s->recipe, s->tables, &s->model, position, tokens),
                     0);
    s->block = (struct larder_block){.model = &s->model,
                                     .position = position,
                                     .tables = tables_bytes ? s->tables : NULL,
                                     .token_count = tokens};
    random_state = 42 + s->count;
    s->importance = larder_alloc((uint64_t)s->model.layers * heads * tokens * sizeof(float));
    for (uint32_t i = 0; i < s->model.layers * heads * tokens; i++)
        s->importance[i] = (float)next_random() / 0x1p31f;
    s->q_max = larder_alloc((uint64_t)s->model.layers * heads * dims * sizeof(float));
    for (uint32_t i = 0; i < s->model.layers * heads * dims; i++)
        s->q_max[i] = 0.5f + (float)next_random() / 0x1p30f;
    s->block.importance = s->importance;
    s->block.q_max = s->q_max;
    for (uint64_t i = 0; i < s->count; i++) {
        float x = next_normal() * (i % dims == 3 ? 9 : 1) + (i % dims == 5 ? 4 : 0);
        codec_store_elems(s->planes + i * larder_dtype_bytes(dtype), &x, 1, dtype);
    }
}

void scene_close(struct scene *s)
{
    larder_free(s->q_max);
    larder_free(s->importance);
    larder_free(s->tables);
    larder_free(s->workspace);
    larder_free(s->encoded);
    larder_free(s->decoded);
    larder_free(s->planes);
    larder_recipe_close(s->recipe);
}

void scene_encode(struct scene *s)
{
    ck_assert_msg(larder_recipe_encode(s->recipe, s->encoded, s->bound, &s->encoded_bytes,
                                       &s->error, &s->block, s->section, s->planes, s->workspace,
                                       s->workspace_bytes) == 0,
                  "%s", larder_error_message());
    ck_assert_uint_le(s->encoded_bytes, s->bound);
}

int scene_decode(struct scene *s, const uint8_t *from, uint64_t bytes)
{
    uint8_t *copy = larder_alloc(bytes + !bytes);
    memcpy(copy, from, bytes);
    int err = larder_recipe_decode(s->recipe, s->decoded, s->planes_bytes, &s->block, s->section,
                                   copy, bytes, s->workspace, s->workspace_bytes);
    larder_free(copy);
    return err;
}

float element(const struct scene *s, const uint8_t *planes, uint64_t index)
{
    return load_element(planes, s->model.dtype, index);
}

double relative_error(const struct scene *s)
{
    double off = 0;
    double all = 0;
    for (uint64_t i = 0; i < s->count; i++) {
        double was = (double)element(s, s->planes, i);
        double is = (double)element(s, s->decoded, i);
        off += (is - was) * (is - was);
        all += was * was;
    }
    ck_assert(fabs(off - s->error.error_energy) <= 1e-5 * off);
    ck_assert(s->error.fell_back || fabs(all - s->error.signal_energy) <= 1e-5 * all);
    return sqrt(off / all);
}

float *floats_of(uint8_t *planes)
{
    return (float *)(void *)planes;
}

void run_alone(float *out, const struct scene *like, const char *text, const float *x)
{
    struct scene s;
    scene_open(&s, text, LARDER_F32, like->model.kv_heads, like->model.k_dims,
               like->block.token_count, like->block.position, like->section);
    memcpy(s.planes, x, s.planes_bytes);
    scene_encode(&s);
    ck_assert(!s.error.fell_back);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    memcpy(out, s.decoded, s.planes_bytes);
    scene_close(&s);
}

void scene_run(struct scene *s)
{
    scene_encode(s);
    ck_assert(!s->error.fell_back);
    ck_assert_int_eq(scene_decode(s, s->encoded, s->encoded_bytes), 0);
    (void)relative_error(s);
}

float stored_f16(float x, float most)
{
    int exponent = 0;
    (void)frexpf(most, &exponent);
    float unit = ldexpf(1, 14 - exponent);
    return float_from_f16(f16_from_float(x * unit)) / unit;
}
