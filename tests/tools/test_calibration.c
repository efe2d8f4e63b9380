/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: calibration learns what it says it learns, and gives the same bytes whatever the machine.
 * Method: the small model reads a short text; each tensor is checked by what defines it; the choice
 * of bits is compared with all choices there are.
 */
#include "tools/calibrate/calibrate.h"

#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "tools/calibrate/blocks.h"
#include "tools/calibrate/eigen.h"

#define MODEL       "tests/models/tiny"
#define TEXT        MODEL "/calibration.txt"
#define TEXT_TOKENS 4000u
#define WINDOW      400u
#define LAYERS      6u
#define CHANNELS    128u
#define DIMS        64u

static uint32_t text[TEXT_TOKENS];

static void read_text(void)
{
    static uint8_t bytes[TEXT_TOKENS];
    FILE *file = fopen(TEXT, "re");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fread(bytes, 1, sizeof(bytes), file), sizeof(bytes));
    fclose(file);
    for (uint32_t i = 0; i < TEXT_TOKENS; i++)
        text[i] = bytes[i];
}

static struct calibration_options options(void)
{
    return (struct calibration_options){.model = MODEL,
                                        .tokens = text,
                                        .token_count = TEXT_TOKENS,
                                        .window_tokens = WINDOW,
                                        .threads = 1,
                                        .kl_windows = 1};
}

struct made {
    void *bytes;
    uint64_t count;
    struct calibration_cost *costs;
};

/* What the house recipe reads takes longest, and is left out where it is not looked at. */
enum extent { WITHOUT_HOUSE, WITH_HOUSE };

static void make(struct made *out, const struct calibration_options *wanted, enum extent extent)
{
    struct calibration *c;
    struct larder_profile_writer *writer;
    ck_assert_msg(calibration_open(&c, wanted) == 0, "%s", larder_error_message());
    ck_assert_int_eq(larder_profile_writer_open(&writer, &c->model), 0);
    ck_assert_int_eq(calibration_read(c, writer), 0);
    ck_assert_int_eq(calibration_sort_weights(c, writer), 0);
    ck_assert_msg(calibration_measure_costs(c, &out->costs, writer) == 0, "%s",
                  larder_error_message());
    ck_assert_msg(extent == WITHOUT_HOUSE || calibration_make_house(c, writer) == 0, "%s",
                  larder_error_message());
    ck_assert_int_eq(larder_profile_finish(writer, &out->bytes, &out->count), 0);
    larder_profile_writer_close(writer);
    calibration_close(c);
}

static void drop(struct made *made)
{
    larder_free(made->costs);
    larder_free(made->bytes);
}

static const void *find(const struct larder_profile *profile, const char *name,
                        enum larder_profile_type type, uint64_t a, uint64_t b, uint64_t c,
                        uint64_t d)
{
    uint64_t shape[] = {a, b, c, d};
    const void *found;
    int err =
        larder_profile_find(profile, &found, name, type, shape, 1u + (b > 0) + (c > 0) + (d > 0));
    ck_assert_msg(err == 0, "%s: %s", name, larder_error_message());
    return found;
}

static void check_order(const struct larder_profile *profile, const char *name, uint32_t group)
{
    const int32_t *order = find(profile, name, LARDER_PROFILE_I32, LAYERS, CHANNELS, 0, 0);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        bool seen[CHANNELS] = {false};
        for (uint32_t i = 0; i < CHANNELS; i++) {
            int32_t channel = order[layer * CHANNELS + i];
            ck_assert_int_ge(channel, 0);
            ck_assert_int_lt(channel, (int32_t)CHANNELS);
            ck_assert_uint_eq((uint32_t)channel / group, i / group);
            ck_assert(!seen[channel]);
            seen[channel] = true;
        }
    }
}

static void check_levels(const struct larder_profile *profile, const char *side, uint32_t count)
{
    char name[32];
    snprintf(name, sizeof(name), "kvquant.%s.lut%u", side, count);
    const float *levels = find(profile, name, LARDER_PROFILE_F32, LAYERS, count, 0, 0);
    snprintf(name, sizeof(name), "kvquant.%s.norm%u", side, count);
    const float *norms = find(profile, name, LARDER_PROFILE_F32, LAYERS, 2, 0, 0);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < count; i++) {
            float level = levels[layer * count + i];
            ck_assert(level >= -1 && level <= 1);
            ck_assert(i == 0 || level > levels[layer * count + i - 1]);
        }
        /* Levels lie closer together than what they stand for. */
        ck_assert(norms[2 * layer] >= 1 && norms[2 * layer] < 1.3f);
        ck_assert(fabsf(norms[2 * layer + 1]) < 0.1f);
    }
}

START_TEST(test_tensors)
{
    struct calibration_options wanted = options();
    struct made made;
    make(&made, &wanted, WITHOUT_HOUSE);
    struct larder_profile *profile;
    ck_assert_int_eq(larder_profile_open(&profile, made.bytes, made.count), 0);
    check_order(profile, "rotatekv.order", CHANNELS);
    check_order(profile, "bfp.order", DIMS);
    for (uint32_t count = 4; count <= 16; count *= 2) {
        check_levels(profile, "k", count);
        check_levels(profile, "v", count);
    }
    const float *low = find(profile, "kvquant.k.low", LARDER_PROFILE_F32, LAYERS, CHANNELS, 0, 0);
    const float *high = find(profile, "kvquant.k.high", LARDER_PROFILE_F32, LAYERS, CHANNELS, 0, 0);
    const float *mean = find(profile, "moments.k.mean", LARDER_PROFILE_F32, LAYERS, 2, DIMS, 0);
    const float *second = find(profile, "moments.k", LARDER_PROFILE_F32, LAYERS, 2, DIMS, DIMS);
    find(profile, "moments.v", LARDER_PROFILE_F32, LAYERS, 2, DIMS, DIMS);
    find(profile, "moments.q", LARDER_PROFILE_F32, LAYERS, 2, DIMS, DIMS);
    find(profile, "sinks.k_norm", LARDER_PROFILE_F32, LAYERS, 16, 0, 0);
    for (uint32_t i = 0; i < LAYERS * CHANNELS; i++) {
        uint32_t dim = i % DIMS;
        float square = second[((uint64_t)i / DIMS * DIMS + dim) * DIMS + dim];
        ck_assert(low[i] < mean[i] && mean[i] < high[i]);
        ck_assert(square > mean[i] * mean[i]);
        ck_assert(square < fmaxf(low[i] * low[i], high[i] * high[i]));
        uint32_t other = (dim * 7 + 3) % DIMS;
        ck_assert(second[((uint64_t)i / DIMS * DIMS + dim) * DIMS + other] ==
                  second[((uint64_t)i / DIMS * DIMS + other) * DIMS + dim]);
    }
    /* More bits cost less; 2 bits of everything cost something. */
    double sums[CALIBRATION_WIDTHS] = {0};
    for (uint32_t i = 0; i < LAYERS * 2 * CALIBRATION_WIDTHS; i++) {
        sums[i % CALIBRATION_WIDTHS] += (double)made.costs[i].kl;
        ck_assert(i % CALIBRATION_WIDTHS == 0 || made.costs[i].mse < made.costs[i - 1].mse / 8);
    }
    ck_assert(sums[0] > 4 * sums[1] && sums[1] > sums[2] && sums[2] >= 0 && sums[0] > 0.001);
    larder_profile_close(profile);
    drop(&made);
}
END_TEST

/* K and V of which most numbers are the same, or all: levels differ all the same, and are taken. */
START_TEST(test_few_numbers)
{
    enum { DIMS_HERE = 400, TOKENS = 100 };
    static float rows[TOKENS * DIMS_HERE];
    const struct calibration_options wanted = {.window_tokens = TOKENS};
    struct calibration c = {.options = &wanted, .window_count = 1};
    c.model = (struct larder_model_desc){.name = "few",
                                         .dtype = LARDER_F32,
                                         .layers = 1,
                                         .kv_heads = 1,
                                         .k_dims = DIMS_HERE,
                                         .v_dims = DIMS_HERE,
                                         .vocab = 1,
                                         .weights = {1}};
    for (uint32_t different = 0; different <= 8; different += 4) {
        for (uint32_t i = 0; i < TOKENS * DIMS_HERE; i++)
            rows[i] = i % 10 < different ? (float)(i * 37 % 1009) - 500 : 0;
        void *state;
        ck_assert_int_eq(calibration_codebooks.open(&state, &c), 0);
        calibration_codebooks.see(
            state, &(struct calibration_rows){.tokens = TOKENS, .k = rows, .v = rows});
        struct larder_profile_writer *writer;
        ck_assert_int_eq(larder_profile_writer_open(&writer, &c.model), 0);
        ck_assert_int_eq(calibration_codebooks.finish(state, writer), 0);
        calibration_codebooks.close(state);
        void *bytes;
        uint64_t byte_count;
        ck_assert_int_eq(larder_profile_finish(writer, &bytes, &byte_count), 0);
        larder_profile_writer_close(writer);
        struct larder_profile *profile;
        ck_assert_int_eq(larder_profile_open(&profile, bytes, byte_count), 0);
        for (uint32_t bits = 2; bits <= 4; bits++) {
            struct larder_recipe *recipe;
            char recipe_text[32];
            snprintf(recipe_text, sizeof(recipe_text), "codebook bits=%u norm=on", bits);
            ck_assert_msg(larder_recipe_open(&recipe, recipe_text, profile) == 0, "%s: %s",
                          recipe_text, larder_error_message());
            larder_recipe_close(recipe);
        }
        larder_profile_close(profile);
        larder_free(bytes);
    }
}
END_TEST

/* Coefficients and back is the identity, variances fall, and the better the recipe is to be, the
 * finer the step. */
static void check_basis(const struct larder_profile *profile, const char *side)
{
    char name[32];
    snprintf(name, sizeof(name), "larder.%s.forward", side);
    const float *forward = find(profile, name, LARDER_PROFILE_F32, LAYERS, 2, DIMS, DIMS);
    snprintf(name, sizeof(name), "larder.%s.back", side);
    const float *back = find(profile, name, LARDER_PROFILE_F32, LAYERS, 2, DIMS, DIMS);
    snprintf(name, sizeof(name), "larder.%s.scale", side);
    const int32_t *scale = find(profile, name, LARDER_PROFILE_I32, LAYERS, 2, DIMS, 0);
    for (uint32_t i = 0; i < LAYERS * 2 * DIMS; i++) {
        ck_assert(i % DIMS == 0 || scale[i] <= scale[i - 1]);
        for (uint32_t j = i / DIMS * DIMS; j < i / DIMS * DIMS + DIMS; j++) {
            double sum = 0;
            for (uint32_t k = 0; k < DIMS; k++)
                sum += (double)forward[(i / DIMS * DIMS + k) * DIMS + i % DIMS] *
                       (double)back[j * DIMS + k];
            ck_assert_double_eq_tol(sum, i == j, 1e-4);
        }
    }
}

START_TEST(test_house)
{
    struct calibration_options wanted = options();
    struct made made;
    make(&made, &wanted, WITH_HOUSE);
    struct larder_profile *profile;
    ck_assert_int_eq(larder_profile_open(&profile, made.bytes, made.count), 0);
    check_basis(profile, "k");
    check_basis(profile, "v");
    uint64_t count[] = {0};
    const void *found;
    ck_assert_int_eq(
        larder_profile_find(profile, &found, "larder.kl", LARDER_PROFILE_F32, count, 1), 0);
    const float *kl = found;
    const int32_t *step = find(profile, "larder.step", LARDER_PROFILE_I32, count[0], 0, 0, 0);
    for (uint64_t i = 1; i < count[0]; i++)
        ck_assert(step[i] > step[i - 1] && kl[i] >= kl[i - 1]);
    ck_assert(kl[0] <= 0.001f && kl[count[0] - 1] >= 0.05f);
    static const char *const presets[] = {"larder", "larder-high", "larder-small"};
    for (size_t i = 0; i < 3; i++) {
        struct larder_recipe *recipe;
        ck_assert_msg(larder_recipe_open(&recipe, presets[i], profile) == 0, "%s",
                      larder_error_message());
        larder_recipe_close(recipe);
    }
    larder_profile_close(profile);
    drop(&made);
}
END_TEST

/* With few runs of the model the heads of a layer have one scale: a unit of each one's error was
 * found to cost the same. */
START_TEST(test_heads_together)
{
    struct calibration_options wanted = options();
    wanted.head_runs = 12;
    wanted.token_count = WINDOW;
    struct made made;
    make(&made, &wanted, WITH_HOUSE);
    struct larder_profile *profile;
    ck_assert_int_eq(larder_profile_open(&profile, made.bytes, made.count), 0);
    check_basis(profile, "k");
    check_basis(profile, "v");
    larder_profile_close(profile);
    drop(&made);
}
END_TEST

START_TEST(test_eigenvectors)
{
    enum { N = 24 };
    double a[N * N];
    double kept[N * N];
    double values[N];
    double vectors[N * N];
    uint64_t random = 7;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            for (int j = 0; j <= i; j++) {
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                double x = (double)(random >> 40) / 0x1p24 - 0.5;
                /* dense; one axis alone; two that belong together */
                a[i * N + j] = a[j * N + i] = round == 0   ? x
                                              : round == 1 ? (i == j ? i % 5 : 0)
                                                           : (i / 2 == j / 2);
            }
        }
        memcpy(kept, a, sizeof(a));
        eigen_symmetric(values, vectors, a, N);
        for (int i = 0; i < N; i++) {
            ck_assert(i == 0 || values[i] <= values[i - 1]);
            for (int j = 0; j < N; j++) {
                double dot = 0;
                double turned = 0;
                for (int k = 0; k < N; k++) {
                    dot += vectors[i * N + k] * vectors[j * N + k];
                    turned += kept[j * N + k] * vectors[i * N + k];
                }
                ck_assert_double_eq_tol(dot, i == j, 1e-12);
                ck_assert_double_eq_tol(turned, values[i] * vectors[i * N + j], 1e-12);
            }
        }
    }
}
END_TEST

START_TEST(test_same_bytes)
{
    struct calibration_options wanted = options();
    struct made first;
    struct made second;
    make(&first, &wanted, WITHOUT_HOUSE);
    wanted.threads = 3;
    make(&second, &wanted, WITHOUT_HOUSE);
    ck_assert_uint_eq(first.count, second.count);
    ck_assert_mem_eq(first.bytes, second.bytes, first.count);
    drop(&second);
    drop(&first);
}
END_TEST

/* Layers of any costs, few enough that all choices can be tried. */
START_TEST(test_bits)
{
    enum { COUNT = 3 };
    struct calibration_cost costs[COUNT * 2 * CALIBRATION_WIDTHS];
    srand(1);
    for (int round = 0; round < 200; round++) {
        for (uint32_t i = 0; i < COUNT * 2 * CALIBRATION_WIDTHS; i++)
            costs[i].kl = (float)rand() / (float)RAND_MAX / (float)(1 << 2 * (i % 3));
        double budget = 2 + (double)(round % 25) / 4;
        uint8_t choice[2 * COUNT];
        double kl;
        ck_assert_int_eq(calibration_choose_bits(choice, &kl, costs, COUNT, 1, budget), 0);
        double best = INFINITY;
        for (uint32_t code = 0; code < 729; code++) {
            double sum = 0;
            uint32_t bits = 0;
            for (uint32_t i = 0, rest = code; i < 2 * COUNT; i++, rest /= 3) {
                bits += calibration_widths[rest % 3];
                sum += (double)costs[i * CALIBRATION_WIDTHS + rest % 3].kl;
            }
            if (bits <= budget * 2 * COUNT && sum < best)
                best = sum;
        }
        ck_assert(fabs(best - kl) < 1e-6);
        double sum = 0;
        for (uint32_t i = 0; i < 2 * COUNT; i++)
            sum += (double)costs[i * CALIBRATION_WIDTHS + choice[i]].kl;
        ck_assert(fabs(sum - kl) < 1e-6);
    }
    uint8_t choice[2 * COUNT];
    double kl;
    ck_assert_int_eq(calibration_choose_bits(choice, &kl, costs, COUNT, 1, 1.5), -EINVAL);
    ck_assert_int_eq(calibration_choose_bits(choice, &kl, costs, COUNT, 2, 3), 0);
    ck_assert(choice[0] == choice[2] && choice[1] == choice[3]);
}
END_TEST

START_TEST(test_recipe)
{
    char text_of[256];
    const uint8_t choice[] = {0, 1, 2, 2, 2, 2, 1, 0};
    ck_assert_int_eq(calibration_bits_recipe(text_of, sizeof(text_of), choice, 4), 0);
    ck_assert_str_eq(text_of, "layers(0){k{kivi2}v{kivi4}}layers(1-2){k{kivi8}v{kivi8}}"
                              "else{k{kivi4}v{kivi2}}");
    struct larder_recipe *recipe;
    ck_assert_int_eq(larder_recipe_open(&recipe, text_of, NULL), 0);
    larder_recipe_close(recipe);
    ck_assert_int_eq(calibration_bits_recipe(text_of, sizeof(text_of), choice + 2, 2), 0);
    ck_assert_str_eq(text_of, "k{kivi8}v{kivi8}");
    ck_assert_int_eq(calibration_bits_recipe(text_of, 10, choice, 4), -ENOSPC);
}
END_TEST

/* --- coded sizes ------------------------------------------------------------------------------ */

#define HELDOUT      MODEL "/heldout.txt"
#define PROFILE      MODEL "/profile.safetensors"
#define HELD_WINDOWS 8u
#define HELD_WINDOW  1024u
#define LEVELS_MAX   32u

/* What cachegen2 makes of text that it was not calibrated on. */
struct held {
    uint64_t counts[2 * LAYERS][CHANNELS][LEVELS_MAX];
    uint32_t section; /* being encoded */
    double coded_bits;
};

static void count_held(void *context, const char *pipe, uint32_t layer, const uint8_t *symbols,
                       uint32_t heads, uint32_t tokens, uint32_t dims, uint32_t levels)
{
    struct held *held = context;
    (void)pipe;
    ck_assert_uint_eq(layer, held->section / 2);
    ck_assert_uint_le(levels, LEVELS_MAX);
    for (uint64_t i = 0; i < (uint64_t)heads * tokens * dims; i++)
        held->counts[held->section][i / tokens / dims * dims + i % dims][symbols[i]]++;
}

static double entropy_bits(const uint64_t *counts)
{
    double all = 0;
    double bits = 0;
    for (uint32_t i = 0; i < LEVELS_MAX; i++)
        all += (double)counts[i];
    for (uint32_t i = 0; i < LEVELS_MAX; i++) {
        if (counts[i] > 0)
            bits -= (double)counts[i] * log2((double)counts[i] / all);
    }
    return bits;
}

/* Of each section by the groups of channels that share a table. */
static double entropy_of_groups(const struct held *held, const struct larder_profile *profile,
                                const char *pipe_of[2 * LAYERS])
{
    double bits = 0;
    for (uint32_t section = 0; section < 2 * LAYERS; section++) {
        char name[64];
        snprintf(name, sizeof(name), "rans.%s.group", pipe_of[section]);
        const uint8_t *group = find(profile, name, LARDER_PROFILE_U8, LAYERS, CHANNELS, 0, 0);
        group += section / 2 * CHANNELS;
        uint64_t sums[64][LEVELS_MAX] = {0};
        for (uint32_t i = 0; i < CHANNELS; i++) {
            for (uint32_t level = 0; level < LEVELS_MAX; level++)
                sums[group[i]][level] += held->counts[section][i][level];
        }
        for (uint32_t i = 0; i < 64; i++)
            bits += entropy_bits(sums[i]);
    }
    return bits;
}

static void *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "re");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fseek(file, 0, SEEK_END), 0);
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *out = larder_alloc_aligned(64, *bytes);
    ck_assert_uint_eq(fread(out, 1, *bytes, file), *bytes);
    fclose(file);
    return out;
}

struct names {
    char of[2 * LAYERS][17];
    struct held *held;
};

static void count_and_name(void *context, const char *pipe, uint32_t layer, const uint8_t *symbols,
                           uint32_t heads, uint32_t tokens, uint32_t dims, uint32_t levels)
{
    struct names *names = context;
    memcpy(names->of[names->held->section], pipe, sizeof(names->of[0]));
    count_held(names->held, pipe, layer, symbols, heads, tokens, dims, levels);
}

/* The bytes of a section but its header, the unit and the scales. */
static double symbol_bits(uint64_t bytes)
{
    return 8 * ((double)bytes - 8 - 1 - 2.0 * BLOCK_TOKENS);
}

START_TEST(test_coded_near_entropy)
{
    size_t bytes;
    uint8_t *heldout = read_file(HELDOUT, &bytes);
    uint32_t *tokens = larder_alloc(bytes * sizeof(*tokens));
    for (size_t i = 0; i < bytes; i++)
        tokens[i] = heldout[i];
    size_t profile_bytes;
    void *profile_file = read_file(PROFILE, &profile_bytes);
    struct larder_profile *profile;
    ck_assert_int_eq(larder_profile_open(&profile, profile_file, profile_bytes), 0);
    struct calibration_options wanted = {
        .model = MODEL, .tokens = tokens, .token_count = bytes, .window_tokens = HELD_WINDOW};
    struct calibration *c;
    struct blocks blocks;
    struct held *held = larder_alloc_zero(1, sizeof(*held));
    struct names names = {.held = held};
    const struct larder_symbol_watch watch = {.see = count_and_name, .context = &names};
    ck_assert_int_eq(calibration_open(&c, &wanted), 0);
    ck_assert_msg(blocks_open(&blocks, c, "cachegen2", profile, HELD_WINDOW / BLOCK_TOKENS) == 0,
                  "%s", larder_error_message());
    blocks.watch = &watch;
    for (uint32_t window = 0; window < HELD_WINDOWS; window++) {
        uint32_t count;
        ck_assert_int_eq(calibration_fill_cache(c, window * c->window_count / HELD_WINDOWS, &count),
                         0);
        for (uint32_t i = 0; i < 2 * LAYERS * count; i++) {
            struct larder_section_error error;
            uint64_t section_bytes;
            held->section = i / count;
            ck_assert_int_eq(blocks_encode(&blocks, i / count / 2,
                                           i / count % 2 ? LARDER_V : LARDER_K, i % count,
                                           &section_bytes, &error),
                             0);
            held->coded_bits += symbol_bits(section_bytes);
        }
    }
    const char *pipes[2 * LAYERS];
    for (uint32_t i = 0; i < 2 * LAYERS; i++)
        pipes[i] = names.of[i];
    double entropy = entropy_of_groups(held, profile, pipes);
    double elements = (double)HELD_WINDOWS * HELD_WINDOW * 2 * LAYERS * CHANNELS;
    printf(
        "cachegen2 on held-out text: %.4f bits an element coded, %.4f of entropy (%.2f %% more)\n",
        held->coded_bits / elements, entropy / elements, 100 * (held->coded_bits / entropy - 1));
    ck_assert(held->coded_bits < 1.03 * entropy);
    blocks_close(&blocks);
    calibration_close(c);
    larder_profile_close(profile);
    larder_free(held);
    larder_free(profile_file);
    larder_free(tokens);
    larder_free(heldout);
}
END_TEST

START_TEST(test_bad_input)
{
    struct calibration *c;
    struct calibration_options wanted = options();
    wanted.token_count = WINDOW - 2;
    ck_assert_int_eq(calibration_open(&c, &wanted), -EINVAL);
    ck_assert_ptr_null(c);
    wanted = options();
    text[17] = 272;
    ck_assert_int_eq(calibration_open(&c, &wanted), -EINVAL);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "272"));
    text[17] = 'x';
    wanted.model = "tests/models/none";
    ck_assert_int_eq(calibration_open(&c, &wanted), -ENOENT);
    wanted = options();
    wanted.window_tokens = 100; /* too short to measure on */
    ck_assert_int_eq(calibration_open(&c, &wanted), 0);
    struct larder_profile_writer *writer;
    struct calibration_cost *costs;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &c->model), 0);
    ck_assert_int_eq(calibration_measure_costs(c, &costs, writer), -EINVAL);
    ck_assert_ptr_null(costs);
    larder_profile_writer_close(writer);
    calibration_close(c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("calibration");
    TCase *tests = tcase_create("calibration");
    tcase_set_timeout(tests, 200);
    tcase_add_checked_fixture(tests, read_text, NULL);
    tcase_add_test(tests, test_few_numbers);
    tcase_add_test(tests, test_tensors);
    tcase_add_test(tests, test_house);
    tcase_add_test(tests, test_heads_together);
    tcase_add_test(tests, test_eigenvectors);
    tcase_add_test(tests, test_same_bytes);
    tcase_add_test(tests, test_bits);
    tcase_add_test(tests, test_recipe);
    tcase_add_test(tests, test_coded_near_entropy);
    tcase_add_test(tests, test_bad_input);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
