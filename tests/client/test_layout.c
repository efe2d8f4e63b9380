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

#define LAYERS 3u
#define HEADS  4u
#define DIMS   40u
#define TOKENS 77u /* with room; no multiple of a block or tile */
#define BLOCK  16u /* tokens of an engine block */
#define BLOCKS 9u

struct engine {
    struct larder_model_desc desc;
    struct larder_layout layout;
    void *bases[LAYERS];
    void *v_bases[LAYERS];
    uint32_t table[BLOCKS];
    char *memory;
    size_t bytes;
};

static uint32_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

/* --- the layouts ----------------------------------------------------------------------------- */

typedef void (*fill_layout)(struct engine *engine, int64_t e);

static void fill_plain(struct engine *engine, int64_t e)
{
    (void)e;
    ck_assert_int_eq(larder_layout_plain(&engine->layout, &engine->desc, engine->memory, TOKENS),
                     0);
}

/* transformers: keys and values of a layer are tensors of their own, [heads, seq, dim]. */
static void fill_heads_seq_dim(struct engine *engine, int64_t e)
{
    const int64_t tensor = e * HEADS * TOKENS * DIMS;
    for (uint32_t i = 0; i < LAYERS; i++) {
        engine->bases[i] = engine->memory + tensor * (2 * (LAYERS - 1 - i) + 1);
        engine->v_bases[i] = engine->memory + tensor * (2 * i);
    }
    engine->layout.bases = engine->bases;
    engine->layout.v_bases = engine->v_bases;
    engine->layout.head_stride = e * TOKENS * DIMS;
    engine->layout.token_stride = e * DIMS;
}

/* llama.cpp: K in rows of all heads, V transposed: [heads * dims][cells]. */
static void fill_transposed_v(struct engine *engine, int64_t e)
{
    const int64_t tensor = e * HEADS * TOKENS * DIMS;
    engine->layout.base = engine->memory;
    engine->layout.layer_stride = 2 * tensor;
    engine->layout.kv_stride = tensor;
    engine->layout.token_stride = e * HEADS * DIMS;
    engine->layout.head_stride = e * DIMS;
    engine->layout.v_token_stride = e;
    engine->layout.v_head_stride = e * DIMS * TOKENS;
    engine->layout.v_dim_stride = e * TOKENS;
}

static void use_blocks(struct engine *engine)
{
    static const uint32_t table[BLOCKS] = {7, 2, 8, 0, 5, 1, 3, 6, 4};
    memcpy(engine->table, table, sizeof(table));
    engine->layout.block_table = engine->table;
    engine->layout.block_table_count = (TOKENS + BLOCK - 1) / BLOCK;
    engine->layout.block_tokens = BLOCK;
}

/* vLLM FlashAttention: a tensor a layer, [2, B, N, H, D]. */
static void fill_2bnhd(struct engine *engine, int64_t e)
{
    use_blocks(engine);
    for (uint32_t i = 0; i < LAYERS; i++)
        engine->bases[i] = engine->memory + i * (e * 2 * BLOCKS * BLOCK * HEADS * DIMS);
    engine->layout.bases = engine->bases;
    engine->layout.kv_stride = e * BLOCKS * BLOCK * HEADS * DIMS;
    engine->layout.block_stride = e * BLOCK * HEADS * DIMS;
    engine->layout.token_stride = e * HEADS * DIMS;
    engine->layout.head_stride = e * DIMS;
}

/* vLLM on a CPU: [2, B, H, N, D]. */
static void fill_2bhnd(struct engine *engine, int64_t e)
{
    fill_2bnhd(engine, e);
    engine->layout.head_stride = e * BLOCK * DIMS;
    engine->layout.token_stride = e * DIMS;
}

/* vLLM's newer orders of [L, B, H, N, C], K and V side by side in C. */
static void fill_order(struct engine *engine, int64_t e, const char *order)
{
    use_blocks(engine);
    int64_t stride = e;
    for (const char *at = order + strlen(order); at-- > order;) {
        switch (*at) {
        case 'L':
            engine->layout.layer_stride = stride;
            stride *= LAYERS;
            break;
        case 'B':
            engine->layout.block_stride = stride;
            stride *= BLOCKS;
            break;
        case 'H':
            engine->layout.head_stride = stride;
            stride *= HEADS;
            break;
        case 'N':
            engine->layout.token_stride = stride;
            stride *= BLOCK;
            break;
        default:
            engine->layout.kv_stride = e * DIMS;
            stride *= 2 * DIMS;
        }
    }
    engine->layout.base = engine->memory;
}

static void fill_lbhnc(struct engine *engine, int64_t e)
{
    fill_order(engine, e, "LBHNC");
}

static void fill_lbnhc(struct engine *engine, int64_t e)
{
    fill_order(engine, e, "LBNHC");
}

static void fill_lhbnc(struct engine *engine, int64_t e)
{
    fill_order(engine, e, "LHBNC");
}

static void fill_blhnc(struct engine *engine, int64_t e)
{
    fill_order(engine, e, "BLHNC");
}

static void fill_blnhc(struct engine *engine, int64_t e)
{
    fill_order(engine, e, "BLNHC");
}

static void fill_bhlnc(struct engine *engine, int64_t e)
{
    fill_order(engine, e, "BHLNC");
}

/* Dynamo's universal block: [head, layer, kv, token, dim]. */
static void fill_universal(struct engine *engine, int64_t e)
{
    engine->layout.base = engine->memory;
    engine->layout.token_stride = e * DIMS;
    engine->layout.kv_stride = e * TOKENS * DIMS;
    engine->layout.layer_stride = 2 * e * TOKENS * DIMS;
    engine->layout.head_stride = 2 * e * TOKENS * DIMS * LAYERS;
}

/* Tokens from last to first, elements spread: nobody does it, the formula allows it. */
static void fill_backwards(struct engine *engine, int64_t e)
{
    const int64_t token = e * HEADS * DIMS;
    engine->layout.base = engine->memory + (TOKENS - 1) * token;
    engine->layout.token_stride = -token;
    engine->layout.head_stride = e;
    engine->layout.k_dim_stride = e * HEADS;
    engine->layout.v_dim_stride = e * HEADS;
    engine->layout.kv_stride = token * TOKENS;
    engine->layout.layer_stride = 2 * token * TOKENS;
}

static const struct {
    const char *name;
    fill_layout fill;
} cases[] = {
    {"plain", fill_plain},
    {"transformers [heads, seq, dim]", fill_heads_seq_dim},
    {"llama.cpp, transposed V", fill_transposed_v},
    {"vLLM [2, B, N, H, D]", fill_2bnhd},
    {"vLLM CPU [2, B, H, N, D]", fill_2bhnd},
    {"vLLM LBHNC", fill_lbhnc},
    {"vLLM LBNHC", fill_lbnhc},
    {"vLLM LHBNC", fill_lhbnc},
    {"vLLM BLHNC", fill_blhnc},
    {"vLLM BLNHC", fill_blnhc},
    {"vLLM BHLNC", fill_bhlnc},
    {"Dynamo universal", fill_universal},
    {"backwards", fill_backwards},
};

#define CASES (sizeof(cases) / sizeof(cases[0]))
static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F32};

static void open_engine(struct engine *engine, size_t case_index, uint32_t dtype)
{
    memset(engine, 0, sizeof(*engine));
    engine->desc = (struct larder_model_desc){
        .layers = LAYERS,
        .kv_heads = HEADS,
        .k_dims = DIMS,
        .v_dims = DIMS,
        .dtype = dtype,
        .vocab = 256,
    };
    const size_t e = larder_dtype_bytes(dtype);
    engine->bytes = e * 2 * LAYERS * BLOCKS * BLOCK * HEADS * DIMS;
    engine->memory = malloc(engine->bytes);
    ck_assert_ptr_nonnull(engine->memory);
    for (size_t i = 0; i < engine->bytes; i++)
        engine->memory[i] = (char)next_random();
    engine->layout.dtype = dtype;
    engine->layout.k_dim_stride = (int64_t)e;
    engine->layout.v_dim_stride = (int64_t)e;
    engine->layout.token_capacity = TOKENS;
    cases[case_index].fill(engine, (int64_t)e);
}

static void close_engine(struct engine *engine)
{
    free(engine->memory);
}

/* --- the reference --------------------------------------------------------------------------- */

static char *element(const struct larder_layout *layout, uint32_t layer, uint32_t kind,
                     uint64_t token, uint32_t head, uint32_t dim)
{
    const int v = kind == LARDER_SECTION_V;
    char *at;
    if (v && layout->v_bases)
        at = layout->v_bases[layer];
    else if (layout->bases)
        at = (char *)layout->bases[layer] + kind * layout->kv_stride;
    else
        at = (char *)layout->base + layer * layout->layer_stride + kind * layout->kv_stride;
    const int64_t token_stride =
        v && layout->v_token_stride ? layout->v_token_stride : layout->token_stride;
    const int64_t head_stride =
        v && layout->v_head_stride ? layout->v_head_stride : layout->head_stride;
    if (layout->block_table) {
        at += layout->block_table[token / layout->block_tokens] * layout->block_stride;
        token %= layout->block_tokens;
    }
    return at + (int64_t)token * token_stride + head * head_stride +
           dim * (v ? layout->v_dim_stride : layout->k_dim_stride);
}

/* Walks the elements of a move: `visit` gets the element's address and its place in the planes. */
static void walk(const struct engine *engine, const struct layout_move *move, char *planes,
                 void (*visit)(char *engine_at, char *plane_at, size_t bytes))
{
    const size_t e = larder_dtype_bytes(engine->desc.dtype);
    const struct larder_slice *slice = &move->slice;
    for (uint32_t layer = 0; layer < slice->layer_count; layer++)
        for (uint32_t head = 0; head < slice->head_count; head++)
            for (uint32_t row = 0; row < move->row_count; row++)
                for (uint32_t dim = 0; dim < DIMS; dim++)
                    visit(element(&engine->layout, slice->layer_first + layer, slice->kind,
                                  move->token_first + row, slice->head_first + head, dim),
                          planes + e * (((layer * slice->head_count + head) * move->plane_tokens +
                                         move->row_first + row) *
                                            DIMS +
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
                                move->slice.head_count * move->plane_tokens * DIMS;
    struct layout_view view;
    ck_assert_int_eq(layout_open(&view, &engine->layout, &engine->desc), 0);
    char *planes = malloc(planes_bytes);
    char *expected = malloc(planes_bytes);
    char *memory = malloc(engine->bytes);
    char *expected_memory = malloc(engine->bytes);
    for (size_t i = 0; i < planes_bytes; i++)
        planes[i] = (char)next_random();
    memcpy(expected, planes, planes_bytes);
    walk(engine, move, expected, copy_in);
    layout_gather(&view, planes, move);
    ck_assert_msg(memcmp(planes, expected, planes_bytes) == 0, "%s: gather", name);

    for (size_t i = 0; i < planes_bytes; i++)
        planes[i] = (char)next_random();
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
    const size_t case_index = (size_t)_i % CASES;
    struct engine engine;
    open_engine(&engine, case_index, dtypes[(size_t)_i / CASES]);
    for (int round = 0; round < 40; round++) {
        struct layout_move move = {0};
        move.slice.layer_first = (uint16_t)(next_random() % LAYERS);
        move.slice.layer_count = (uint16_t)(1 + next_random() % (LAYERS - move.slice.layer_first));
        move.slice.head_first = (uint16_t)(next_random() % HEADS);
        move.slice.head_count = (uint16_t)(1 + next_random() % (HEADS - move.slice.head_first));
        move.slice.kind = (uint8_t)(next_random() % 2);
        move.token_first = next_random() % TOKENS;
        move.row_count = 1 + next_random() % (TOKENS - (uint32_t)move.token_first);
        move.row_first = next_random() % 5;
        move.plane_tokens = move.row_first + move.row_count + next_random() % 5;
        check_move(&engine, &move, cases[case_index].name);
    }
    close_engine(&engine);
}
END_TEST

START_TEST(test_whole)
{
    struct engine engine;
    open_engine(&engine, (size_t)_i % CASES, dtypes[(size_t)_i / CASES]);
    for (uint8_t kind = 0; kind < 2; kind++) {
        const struct layout_move move = {
            .slice = {.layer_count = LAYERS, .head_count = HEADS, .kind = kind},
            .plane_tokens = TOKENS,
            .row_count = TOKENS,
        };
        check_move(&engine, &move, cases[(size_t)_i % CASES].name);
    }
    close_engine(&engine);
}
END_TEST

START_TEST(test_refused)
{
    struct engine engine;
    struct layout_view view;
    open_engine(&engine, 3, LARDER_BF16);
    const struct larder_layout good = engine.layout;
    struct larder_layout *layout = &engine.layout;
    ck_assert_int_eq(layout_open(&view, layout, &engine.desc), 0);
    ck_assert_uint_eq(view.token_capacity, TOKENS);

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
    ck_assert_uint_eq(view.token_capacity, 2 * BLOCK);

    ck_assert_int_eq(larder_layout_plain(layout, &engine.desc, engine.memory, 1ull << 40),
                     LARDER_ELIMIT);
    engine.desc.v_dims = 8;
    ck_assert_int_eq(larder_layout_plain(layout, &engine.desc, engine.memory, 1),
                     LARDER_EUNSUPPORTED);
    close_engine(&engine);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("layout");
    TCase *tcase = tcase_create("layout");
    tcase_add_loop_test(tcase, test_moves, 0, (int)(2 * CASES));
    tcase_add_loop_test(tcase, test_whole, 0, (int)(2 * CASES));
    tcase_add_test(tcase, test_refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
