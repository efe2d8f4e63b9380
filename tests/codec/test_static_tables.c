/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   tables of a profile are used where they make a section smaller, and only there; what was
 *         coded with them decodes with that profile alone; no bytes, no tables break the decoder.
 * Method: symbols counted as a calibration does, tables made from them, blocks like and unlike
 *         those that were counted; tables with one fault each; sections cut and changed. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/profile_writer.h"
#include "codec/rans.h"
#include "tests/codec/number_scene.h"

#define RECIPE "quant levels=15 axis=token group=0 mode=sym | rans"
#define HEADS  2u
#define DIMS   64u
#define TOKENS 256u
#define LAYERS 3u
#define LEVELS 15u
#define GROUPS 4u
#define FORM   (8u + 1 + 2 * TOKENS) /* where a section says how its symbols are coded */

enum { PACKED, FITTED, PROFILE };

struct counts {
    char pipe[17];
    uint64_t of[HEADS * DIMS][LEVELS];
};

static void see(void *context, const char *pipe, uint32_t layer, const uint8_t *symbols,
                uint32_t heads, uint32_t tokens, uint32_t dims, uint32_t levels)
{
    struct counts *counts = context;
    ck_assert(layer == 0 && heads == HEADS && tokens == TOKENS && dims == DIMS);
    ck_assert_uint_eq(levels, LEVELS);
    memcpy(counts->pipe, pipe, sizeof(counts->pipe));
    for (uint64_t i = 0; i < (uint64_t)heads * tokens * dims; i++)
        counts->of[i / tokens / dims * dims + i % dims][symbols[i]]++;
}

/* What a fault changes before the profile is written. */
struct tables {
    uint16_t frequency[LAYERS][GROUPS][LEVELS];
    uint8_t group[LAYERS][HEADS * DIMS];
    uint64_t levels; /* 0: as they are */
};

static void count_scene(struct counts *out, struct scene *s)
{
    *out = (struct counts){0};
    const struct larder_symbol_watch watch = {.see = see, .context = out};
    s->block.watch = &watch;
    scene_encode(s);
    s->block.watch = NULL;
    ck_assert_uint_eq(strlen(out->pipe), 16);
}

/* Every fourth channel shares a table; layer 1 has none. */
static void make_tables(struct tables *out, const struct counts *counts)
{
    memset(out, 0, sizeof(*out));
    for (uint32_t group = 0; group < GROUPS; group++) {
        uint64_t sum[LEVELS];
        for (uint32_t i = 0; i < LEVELS; i++) {
            sum[i] = 1;
            for (uint32_t channel = group; channel < HEADS * DIMS; channel += GROUPS)
                sum[i] += counts->of[channel][i];
        }
        struct rans_model model;
        rans_model_fit(&model, sum, LEVELS);
        for (uint32_t layer = 0; layer < LAYERS; layer += 2)
            memcpy(out->frequency[layer][group], model.frequency, LEVELS * sizeof(uint16_t));
    }
    for (uint32_t i = 0; i < LAYERS * HEADS * DIMS; i++)
        out->group[i / (HEADS * DIMS)][i % (HEADS * DIMS)] = (uint8_t)(i % GROUPS);
}

struct opened {
    void *bytes;
    struct larder_profile *profile;
};

static void open_profile(struct opened *out, const struct larder_model_desc *model,
                         const char *pipe, const struct tables *tables)
{
    struct larder_profile_writer *writer;
    char name[64];
    uint64_t count;
    uint64_t levels = tables->levels ? tables->levels : LEVELS;
    ck_assert_int_eq(larder_profile_writer_open(&writer, model), 0);
    snprintf(name, sizeof(name), "rans.%s.frequency", pipe);
    ck_assert_int_eq(larder_profile_put(writer, name, LARDER_PROFILE_U16,
                                        (uint64_t[]){LAYERS, GROUPS, levels}, 3, tables->frequency),
                     0);
    snprintf(name, sizeof(name), "rans.%s.group", pipe);
    ck_assert_int_eq(larder_profile_put(writer, name, LARDER_PROFILE_U8,
                                        (uint64_t[]){LAYERS, HEADS * DIMS}, 2, tables->group),
                     0);
    ck_assert_int_eq(larder_profile_finish(writer, &out->bytes, &count), 0);
    larder_profile_writer_close(writer);
    ck_assert_int_eq(larder_profile_open(&out->profile, out->bytes, count), 0);
}

static void close_profile(struct opened *opened)
{
    larder_profile_close(opened->profile);
    larder_free(opened->bytes);
}

static void scene_bind(struct scene *s, const struct larder_profile *profile)
{
    larder_recipe_close(s->recipe);
    ck_assert_msg(larder_recipe_open(&s->recipe, RECIPE, profile) == 0, "%s",
                  larder_error_message());
}

static void counted_scene(struct scene *s, struct counts *counts, struct tables *tables)
{
    scene_open(s, RECIPE, LARDER_BF16, HEADS, DIMS, TOKENS, 0, 0);
    count_scene(counts, s);
    make_tables(tables, counts);
}

START_TEST(used_where_they_are_smaller)
{
    struct scene s;
    struct counts counts;
    struct tables tables;
    struct opened opened;
    counted_scene(&s, &counts, &tables);
    uint64_t fitted = s.encoded_bytes;
    ck_assert_uint_eq(s.encoded[FORM], FITTED);
    open_profile(&opened, &s.model, counts.pipe, &tables);
    scene_bind(&s, opened.profile);
    uint8_t name[32];
    ck_assert(!larder_recipe_needs_profile(s.recipe) && larder_recipe_profile_name(s.recipe, name));
    scene_encode(&s);
    ck_assert_uint_eq(s.encoded[FORM], PROFILE);
    ck_assert_uint_lt(s.encoded_bytes, fitted);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    ck_assert(relative_error(&s) < 0.5);

    /* Without the profile, or with another one's tables, it says so. */
    scene_bind(&s, NULL);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), LARDER_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "profile"));
    scene_bind(&s, opened.profile);

    /* A layer that has none is fitted; so is a block that looks otherwise. */
    s.section = 2;
    scene_encode(&s);
    ck_assert_uint_eq(s.encoded[FORM], FITTED);
    s.section = 0;
    for (uint64_t i = 0; i < s.count; i++) {
        float x = i % DIMS == 0 ? 100 : 0.001f * next_normal();
        memcpy(s.planes + 2 * i, (uint8_t *)&x + 2, 2);
    }
    scene_encode(&s);
    ck_assert_uint_eq(s.encoded[FORM], FITTED);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);

    /* Another model has no use for them. */
    s.model.weights[0]++;
    ck_assert_int_eq(larder_recipe_fits(s.recipe, &s.model), LARDER_EMODEL);
    scene_close(&s);
    close_profile(&opened);
}
END_TEST

START_TEST(damage)
{
    struct scene s;
    struct counts counts;
    struct tables tables;
    struct opened opened;
    counted_scene(&s, &counts, &tables);
    open_profile(&opened, &s.model, counts.pipe, &tables);
    scene_bind(&s, opened.profile);
    scene_encode(&s);
    ck_assert_uint_eq(s.encoded[FORM], PROFILE);
    for (uint64_t cut = FORM; cut < s.encoded_bytes; cut += 1 + next_random() % 40)
        ck_assert_int_eq(scene_decode(&s, s.encoded, cut), LARDER_ECORRUPT);
    for (int round = 0; round < 300; round++) {
        uint64_t at = FORM + next_random() % (s.encoded_bytes - FORM);
        uint8_t was = s.encoded[at];
        s.encoded[at] = (uint8_t)next_random();
        int err = scene_decode(&s, s.encoded, s.encoded_bytes);
        ck_assert(err == 0 || err == LARDER_ECORRUPT);
        s.encoded[at] = was;
    }
    scene_close(&s);
    close_profile(&opened);
}
END_TEST

static void check_refused(const struct scene *s, const char *pipe, const struct tables *tables)
{
    struct opened opened;
    struct larder_recipe *recipe;
    open_profile(&opened, &s->model, pipe, tables);
    ck_assert_int_eq(larder_recipe_open(&recipe, RECIPE, opened.profile), LARDER_EFORMAT);
    ck_assert_ptr_null(recipe);
    close_profile(&opened);
}

START_TEST(bad_tables)
{
    struct scene s;
    struct counts counts;
    struct tables tables;
    counted_scene(&s, &counts, &tables);
    struct tables bad = tables;
    bad.group[2][17] = GROUPS;
    check_refused(&s, counts.pipe, &bad);
    bad = tables;
    bad.frequency[0][3][7]++;
    check_refused(&s, counts.pipe, &bad);
    bad = tables;
    bad.frequency[0][0][0] = 65535;
    check_refused(&s, counts.pipe, &bad);
    bad = tables;
    bad.levels = 1;
    check_refused(&s, counts.pipe, &bad);

    /* Of other levels than the leaf makes: never used. */
    struct opened opened;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < GROUPS * 3; i++)
            ((uint16_t *)bad.frequency)[layer * GROUPS * 3 + i] =
                (uint16_t[]){1000, 2000, 1096}[i % 3];
    }
    bad.levels = 3;
    open_profile(&opened, &s.model, counts.pipe, &bad);
    scene_bind(&s, opened.profile);
    scene_encode(&s);
    ck_assert_uint_eq(s.encoded[FORM], FITTED);
    s.encoded[FORM] = PROFILE;
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), LARDER_ECORRUPT);
    scene_close(&s);
    close_profile(&opened);
}
END_TEST

/* Sections of many symbols have two streams. */
START_TEST(two_streams)
{
    struct scene s;
    scene_open(&s, RECIPE, LARDER_BF16, 8, DIMS, TOKENS, 0, 1);
    scene_encode(&s);
    ck_assert_uint_eq(s.encoded[FORM], FITTED);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    ck_assert(relative_error(&s) < 0.5);
    for (int round = 0; round < 30; round++) {
        uint64_t cut = FORM + next_random() % (s.encoded_bytes - FORM);
        ck_assert_int_eq(scene_decode(&s, s.encoded, cut), LARDER_ECORRUPT);
    }
    /* Where the model, the lengths and the states are, and anywhere. */
    for (int round = 0; round < 100; round++) {
        uint64_t at = FORM + next_random() % (round < 50 ? 200 : s.encoded_bytes - FORM);
        uint8_t was = s.encoded[at];
        s.encoded[at] ^= (uint8_t)(1 + next_random() % 255);
        int err = scene_decode(&s, s.encoded, s.encoded_bytes);
        ck_assert(err == 0 || err == LARDER_ECORRUPT);
        s.encoded[at] = was;
    }
    scene_close(&s);
}
END_TEST

/* Each layer and side goes through the pipe that the map has for it, and no other. */
START_TEST(choose_takes_the_map)
{
    static const uint8_t map[LAYERS][2] = {{2, 0}, {1, 1}, {0, 2}};
    static const char *const pipes[] = {"kivi2", "kivi4", "kivi8"};
    struct scene s;
    scene_open(&s, "choose map=kvtuner{kivi2}{kivi4}{kivi8}", LARDER_BF16, HEADS, DIMS, TOKENS, 0,
               0);
    ck_assert(larder_recipe_needs_profile(s.recipe));
    ck_assert_int_eq(larder_recipe_fits(s.recipe, &s.model), LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "larder calibrate"));
    struct larder_profile_writer *writer;
    struct opened opened;
    uint64_t bytes;
    for (int bad = 0; bad < 3; bad++) {
        uint8_t numbers[LAYERS][2];
        memcpy(numbers, map, sizeof(map));
        numbers[1][1] = bad == 1 ? 3 : numbers[1][1];
        ck_assert_int_eq(larder_profile_writer_open(&writer, &s.model), 0);
        ck_assert_int_eq(larder_profile_put(writer, bad == 2 ? "map.other" : "map.kvtuner",
                                            LARDER_PROFILE_U8, (uint64_t[]){LAYERS, 2}, 2, numbers),
                         0);
        ck_assert_int_eq(larder_profile_finish(writer, &opened.bytes, &bytes), 0);
        larder_profile_writer_close(writer);
        ck_assert_int_eq(larder_profile_open(&opened.profile, opened.bytes, bytes), 0);
        struct larder_recipe *recipe;
        int err = larder_recipe_open(&recipe, "kvtuner", opened.profile);
        ck_assert_int_eq(err, bad == 0 ? 0 : bad == 1 ? LARDER_EFORMAT : LARDER_EUNSUPPORTED);
        for (uint32_t section = 0; section < 2 * LAYERS && err == 0; section++) {
            s.section = section;
            larder_recipe_close(s.recipe);
            ck_assert_int_eq(
                larder_recipe_open(&s.recipe, pipes[map[section / 2][section % 2]], NULL), 0);
            scene_encode(&s);
            uint64_t plain = s.encoded_bytes;
            uint8_t *kept = larder_alloc(plain);
            memcpy(kept, s.encoded, plain);
            larder_recipe_close(s.recipe);
            ck_assert_int_eq(larder_recipe_open(&s.recipe, "kvtuner", opened.profile), 0);
            scene_encode(&s);
            ck_assert_uint_eq(s.encoded_bytes, plain);
            ck_assert_mem_eq(s.encoded, kept, plain);
            ck_assert_int_eq(scene_decode(&s, kept, plain), 0);
            larder_free(kept);
        }
        larder_recipe_close(recipe);
        if (err == 0) {
            larder_recipe_close(s.recipe);
            s.recipe = NULL;
        }
        close_profile(&opened);
    }
    scene_close(&s);
}
END_TEST

/* A pipe is the same in each recipe that has these stages. */
START_TEST(names_of_pipes)
{
    static const struct {
        const char *text;
        bool same;
    } cases[] = {
        {"k{" RECIPE "} v{raw}", true},
        {"quant bits=4 levels=15 axis=token group=0 mode=sym clip=1 | rans", true},
        {"quant levels=15 axis=token group=0 mode=sym clip=.9 | rans", false},
        {"hadamard | " RECIPE, false},
        {"layers(0){" RECIPE "} else{quant}", false},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct scene s;
        struct counts plain;
        struct counts other;
        scene_open(&s, RECIPE, LARDER_BF16, HEADS, DIMS, TOKENS, 0, 0);
        count_scene(&plain, &s);
        larder_recipe_close(s.recipe);
        ck_assert_int_eq(larder_recipe_open(&s.recipe, cases[i].text, NULL), 0);
        larder_free(s.workspace);
        s.workspace_bytes = larder_recipe_workspace_bytes(s.recipe, &s.model, TOKENS);
        s.workspace = larder_alloc_aligned(64, s.workspace_bytes);
        larder_free(s.encoded);
        s.bound = larder_recipe_bound(s.recipe, &s.model, 0, TOKENS);
        s.encoded = larder_alloc(s.bound);
        count_scene(&other, &s);
        ck_assert_msg((strcmp(plain.pipe, other.pipe) == 0) == cases[i].same, "%s", cases[i].text);
        scene_close(&s);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("static_tables");
    TCase *tests = tcase_create("static_tables");
    tcase_add_test(tests, used_where_they_are_smaller);
    tcase_add_test(tests, damage);
    tcase_add_test(tests, bad_tables);
    tcase_add_test(tests, two_streams);
    tcase_add_test(tests, choose_takes_the_map);
    tcase_add_test(tests, names_of_pipes);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
