/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   gather and scatter are right for every layout seen in an engine, and touch nothing else;
 *         impossible layouts are refused.
 * Method: each layout over a buffer of random bytes, against a reference that computes the address
 *         of one element at a time from the formula in larder.h. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/record.h"
#include "client/layout.h"
#include "tests/client/engine.h"

static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F32};

/* Walks the elements of a move: `visit` gets the element's address and its place in the planes. */
static void walk(const struct engine *engine, const struct layout_move *move, char *planes,
                 void (*visit)(char *engine_at, char *plane_at, size_t bytes))
{
    const size_t e = larder_dtype_bytes(engine->desc.dtype);
    const struct larder_slice *slice = &move->slice;
    for (uint32_t layer = 0; layer < slice->layer_count; layer++)
        for (uint32_t head = 0; head < slice->head_count; head++)
            for (uint32_t row = 0; row < move->row_count; row++)
                for (uint32_t dim = 0; dim < ENGINE_DIMS; dim++)
                    visit(engine_element(&engine->layout, slice->layer_first + layer, slice->kind,
                                         move->token_first + row, slice->head_first + head, dim),
                          planes + e * (((layer * slice->head_count + head) * move->plane_tokens +
                                         move->row_first + row) *
                                            ENGINE_DIMS +
                                        dim),
                          e);
}

static void copy_in(char *engine_at, char *plane_at, size_t bytes)
{
    memcpy(plane_at, engine_at, bytes);
}

static void copy_out(char *engine_at, char *plane_at, size_t bytes)
{
    memcpy(engine_at, plane_at, bytes);
}

/* --- tests ----------------------------------------------------------------------------------- */

static void check_move(struct engine *engine, const struct layout_move *move, const char *name)
{
    const size_t planes_bytes = larder_dtype_bytes(engine->desc.dtype) * move->slice.layer_count *
                                move->slice.head_count * move->plane_tokens * ENGINE_DIMS;
    struct layout_view view;
    ck_assert_int_eq(layout_open(&view, &engine->layout, &engine->desc), 0);
    char *planes = malloc(planes_bytes);
    char *expected = malloc(planes_bytes);
    char *memory = malloc(engine->bytes);
    char *expected_memory = malloc(engine->bytes);
    for (size_t i = 0; i < planes_bytes; i++)
        planes[i] = (char)engine_random();
    memcpy(expected, planes, planes_bytes);
    walk(engine, move, expected, copy_in);
    layout_gather(&view, planes, move);
    ck_assert_msg(memcmp(planes, expected, planes_bytes) == 0, "%s: gather", name);

    for (size_t i = 0; i < planes_bytes; i++)
        planes[i] = (char)engine_random();
    memcpy(memory, engine->memory, engine->bytes);
    walk(engine, move, planes, copy_out);
    memcpy(expected_memory, engine->memory, engine->bytes);
    memcpy(engine->memory, memory, engine->bytes);
    layout_scatter(&view, planes, move);
    ck_assert_msg(memcmp(engine->memory, expected_memory, engine->bytes) == 0, "%s: scatter", name);
    free(expected_memory);
    free(memory);
    free(expected);
    free(planes);
}

START_TEST(test_moves)
{
    const unsigned case_index = (unsigned)_i % engine_layouts;
    struct engine engine;
    engine_open(&engine, case_index, dtypes[(unsigned)_i / engine_layouts]);
    for (int round = 0; round < 40; round++) {
        struct layout_move move = {0};
        move.slice.layer_first = (uint16_t)(engine_random() % ENGINE_LAYERS);
        move.slice.layer_count =
            (uint16_t)(1 + engine_random() % (ENGINE_LAYERS - move.slice.layer_first));
        move.slice.head_first = (uint16_t)(engine_random() % ENGINE_HEADS);
        move.slice.head_count =
            (uint16_t)(1 + engine_random() % (ENGINE_HEADS - move.slice.head_first));
        move.slice.kind = (uint8_t)(engine_random() % 2);
        move.token_first = engine_random() % ENGINE_TOKENS;
        move.row_count = 1 + engine_random() % (ENGINE_TOKENS - (uint32_t)move.token_first);
        move.row_first = engine_random() % 5;
        move.past_cache = round % 2;
        move.plane_tokens = move.row_first + move.row_count + engine_random() % 5;
        check_move(&engine, &move, engine.name);
    }
    engine_close(&engine);
}
END_TEST

START_TEST(test_whole)
{
    struct engine engine;
    engine_open(&engine, (unsigned)_i % engine_layouts, dtypes[(unsigned)_i / engine_layouts]);
    for (uint8_t kind = 0; kind < 2; kind++) {
        const struct layout_move move = {
            .slice = {.layer_count = ENGINE_LAYERS, .head_count = ENGINE_HEADS, .kind = kind},
            .plane_tokens = ENGINE_TOKENS,
            .row_count = ENGINE_TOKENS,
        };
        check_move(&engine, &move, engine.name);
    }
    engine_close(&engine);
}
END_TEST

START_TEST(test_refused)
{
    struct engine engine;
    struct layout_view view;
    engine_open(&engine, ENGINE_PAGED, LARDER_BF16);
    const struct larder_layout good = engine.layout;
    struct larder_layout *layout = &engine.layout;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), 0);
    ck_assert_uint_eq(view.token_capacity, ENGINE_TOKENS);

    layout->dtype = LARDER_F16;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), LARDER_EMODEL);
    *layout = good;
    layout->memory = 1;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), LARDER_EUNSUPPORTED);
    *layout = good;
    layout->bases = NULL;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    *layout = good;
    engine.bases[1] = NULL;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    engine.bases[1] = engine.memory;
    layout->token_capacity = 0;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    *layout = good;
    layout->block_tokens = 0;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    *layout = good;
    layout->k_dim_stride = 0;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    *layout = good;
    layout->block_stride = INT64_MAX / 2;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    *layout = good;
    layout->head_stride = INT64_MIN;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);
    *layout = good;
    layout->block_table = NULL;
    layout->token_stride = 1ll << 50;
    layout->token_capacity = UINT64_MAX;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), -EINVAL);

    /* A block table with room for less than token_capacity says how much there is. */
    *layout = good;
    layout->block_table_count = 2;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), 0);
    ck_assert_uint_eq(view.token_capacity, 2 * ENGINE_BLOCK);

    ck_assert_int_eq(larder_layout_plain(layout, &engine.desc, engine.memory, 1ull << 40),
                     LARDER_ELIMIT);
    engine.desc.v_dims = 8;
    ck_assert_int_eq(larder_layout_plain(layout, &engine.desc, engine.memory, 1),
                     LARDER_EUNSUPPORTED);
    engine_close(&engine);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("layout");
    TCase *tcase = tcase_create("layout");
    tcase_add_loop_test(tcase, test_moves, 0, (int)(2 * engine_layouts));
    tcase_add_loop_test(tcase, test_whole, 0, (int)(2 * engine_layouts));
    tcase_add_test(tcase, test_refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
