/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what was coded comes back, at a size near its entropy; every version of the decoder gives
 *         what the scalar one gives, on streams and on any other bytes; models are read as written.
 * Method: symbols of many distributions and lengths; cut and random streams in rooms of exactly
 *         their size, under sanitizers too. */
#include "codec/rans.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"

static uint64_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(random_state >> 33);
}

/* `shape` 0: one symbol alone; the higher, the flatter. */
static void fill(uint8_t *out, uint64_t count, uint32_t levels, uint32_t shape)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t symbol = 0;
        while (symbol + 1 < levels && next_random() % 16 < shape)
            symbol++;
        out[i] = (uint8_t)symbol;
    }
}

static void count_symbols(uint64_t counts[RANS_LEVELS_MAX], const uint8_t *symbols, uint64_t count)
{
    memset(counts, 0, RANS_LEVELS_MAX * sizeof(counts[0]));
    for (uint64_t i = 0; i < count; i++)
        counts[symbols[i]]++;
}

/* Those that can run here, the specification first; the last is what users get. */
static const struct rans_version as_chosen = {.decode = rans_decode,
                                              .decode_runs = rans_decode_runs,
                                              .decode_two = rans_decode_two,
                                              .encode_runs = rans_encode_runs};
static const struct rans_version *versions[4] = {&rans_scalar};
static uint32_t version_count = 1;

static void find_versions(void)
{
    if (rans_avx2())
        versions[version_count++] = rans_avx2();
    if (rans_avx512())
        versions[version_count++] = rans_avx512();
    versions[version_count++] = &as_chosen;
}

/* Runs of symbols of quite different models, each with the model that `which` says. */
enum { RUNS = 600, RUN_SYMBOLS = RUNS * RANS_RUN, RUN_MODELS = 6 };

struct scene {
    struct rans_model models[RUN_MODELS];
    struct rans_table tables[RUN_MODELS];
    uint8_t which[RUNS];
    uint8_t symbols[RUN_SYMBOLS];
    uint8_t first[RUN_SYMBOLS]; /* as the specification decodes it */
    uint8_t again[RUN_SYMBOLS];
};

static struct scene *make_scene(void)
{
    struct scene *scene = larder_alloc_zero(1, sizeof(*scene));
    for (uint32_t m = 0; m < RUN_MODELS; m++) {
        uint64_t counts[RANS_LEVELS_MAX];
        /* Of the first one symbol has all slots. */
        fill(scene->symbols, RUN_SYMBOLS, 2u << m, m == 0 ? 0 : m == 1 ? 1 : 2u << m);
        count_symbols(counts, scene->symbols, RUN_SYMBOLS);
        rans_model_fit(&scene->models[m], counts, RANS_LEVELS_MAX);
        rans_table_fill(&scene->tables[m], &scene->models[m]);
    }
    for (uint32_t run = 0; run < RUNS; run++) {
        uint32_t m = scene->which[run] = (uint8_t)(next_random() % RUN_MODELS);
        for (uint32_t i = 0; i < RANS_RUN; i++)
            scene->symbols[run * RANS_RUN + i] =
                (uint8_t)scene->tables[m].slots[next_random() % RANS_SCALE];
    }
    return scene;
}

/* Decodes in parts, as tiles are; false when the decoder was not done. */
static bool decode(uint32_t version, uint8_t *out, uint64_t count, const struct rans_table *table,
                   const uint8_t *in, uint64_t bytes)
{
    struct rans_decoder decoder;
    if (!rans_decoder_open(&decoder, in, bytes))
        return false;
    for (uint64_t at = 0; at < count;) {
        uint64_t part = larder_min_u64(count - at, at % 3 ? 96 : 1024);
        versions[version]->decode(&decoder, table, out + at, part);
        at += part;
    }
    return rans_decoder_is_done(&decoder);
}

START_TEST(symbols_come_back_at_their_entropy)
{
    static const uint32_t levels[] = {2, 3, 16, 17, 200, 256};
    static const uint64_t counts_of[] = {1, 31, 32, 33, 1000, 70001};
    static struct rans_table table;
    for (size_t l = 0; l < LARDER_COUNT_OF(levels); l++) {
        for (size_t c = 0; c < LARDER_COUNT_OF(counts_of); c++) {
            for (uint32_t shape = 0; shape <= 16; shape += 4) {
                uint64_t count = counts_of[c];
                uint8_t *symbols = larder_alloc(count);
                fill(symbols, count, levels[l], shape);
                uint64_t counts[RANS_LEVELS_MAX];
                count_symbols(counts, symbols, count);
                struct rans_model model;
                rans_model_fit(&model, counts, levels[l]);
                uint64_t room = rans_bound(count);
                uint8_t *out = larder_alloc(room);
                uint64_t bytes = rans_encode(out, room, symbols, count, &model);
                double bits = rans_model_bits(&model, counts);
                ck_assert_msg((double)bytes * 8 <= bits * 1.001 + 32 * 32 + 32 * 17,
                              "%llu bytes for %g bits", (unsigned long long)bytes, bits);
                double entropy = 0;
                for (uint32_t i = 0; i < levels[l]; i++)
                    if (counts[i])
                        entropy -= (double)counts[i] * log2((double)counts[i] / (double)count);
                ck_assert(bits >= entropy * 0.999999);
                ck_assert(count < 70000 || bits <= entropy * 1.02 + 64);
                rans_table_fill(&table, &model);
                uint8_t *stream = larder_alloc(bytes);
                memcpy(stream, out + room - bytes, bytes);
                uint8_t *back = larder_alloc(count);
                for (uint32_t v = 0; v < version_count; v++) {
                    memset(back, 0xee, count);
                    ck_assert(decode(v, back, count, &table, stream, bytes));
                    ck_assert_mem_eq(back, symbols, count);
                }
                larder_free(back);
                larder_free(stream);
                larder_free(out);
                larder_free(symbols);
            }
        }
    }
}
END_TEST

START_TEST(any_bytes_decode_alike)
{
    static struct rans_table table;
    uint8_t symbols[3000];
    uint8_t first[3000];
    uint8_t again[3000];
    fill(symbols, sizeof(symbols), 16, 12);
    uint64_t counts[RANS_LEVELS_MAX];
    count_symbols(counts, symbols, sizeof(symbols));
    struct rans_model model;
    rans_model_fit(&model, counts, 16);
    rans_table_fill(&table, &model);
    uint8_t *out = larder_alloc(rans_bound(sizeof(symbols)));
    uint64_t bytes =
        rans_encode(out, rans_bound(sizeof(symbols)), symbols, sizeof(symbols), &model);
    memmove(out, out + rans_bound(sizeof(symbols)) - bytes, bytes);
    for (int round = 0; round < 400; round++) {
        uint64_t cut = next_random() % (bytes + 1);
        uint8_t *stream = larder_alloc(cut + !cut);
        memcpy(stream, out, cut);
        for (int i = 0; i < 3 && cut > 0; i++)
            stream[next_random() % cut] = (uint8_t)next_random();
        bool done = decode(0, first, sizeof(first), &table, stream, cut);
        ck_assert(!done || cut == bytes);
        for (uint32_t v = 1; v < version_count; v++) {
            memset(again, 0xee, sizeof(again));
            ck_assert_int_eq(decode(v, again, sizeof(again), &table, stream, cut), done);
            if (cut >= RANS_LANES * 4)
                ck_assert_mem_eq(again, first, sizeof(first));
        }
        larder_free(stream);
    }
    larder_free(out);
}
END_TEST

/* Whole, and with bytes changed or cut off: a copy in a room of its size. */
static uint8_t *damage(uint64_t *bytes, const uint8_t *stream, int round)
{
    if (round > 0)
        *bytes = RANS_LANES * 4 + next_random() % (*bytes - RANS_LANES * 4 + 1);
    uint8_t *copy = larder_alloc(*bytes);
    memcpy(copy, stream, *bytes);
    if (round > 0)
        copy[next_random() % *bytes] ^= 0x41;
    return copy;
}

START_TEST(each_run_has_its_model)
{
    struct scene *s = make_scene();
    double bits = 0;
    for (uint32_t i = 0; i < RUN_SYMBOLS; i++)
        bits += 12 - log2(s->models[s->which[i / RANS_RUN]].frequency[s->symbols[i]]);
    uint64_t room = rans_bound(RUN_SYMBOLS);
    uint8_t *out = larder_alloc(room);
    uint64_t bytes = rans_encode_runs(out, room, s->symbols, s->models, s->which, RUNS);
    ck_assert_double_le((double)bytes, bits / 8 + RANS_LANES * 4);
    for (int round = 0; round < 200; round++) {
        uint64_t cut = bytes;
        uint8_t *stream = damage(&cut, out + room - bytes, round);
        for (uint32_t v = 0; v < version_count; v++) {
            struct rans_decoder decoder;
            ck_assert(rans_decoder_open(&decoder, stream, cut));
            memset(s->again, 0xee, RUN_SYMBOLS);
            for (uint32_t run = 0; run < RUNS; run += 60)
                versions[v]->decode_runs(&decoder, s->tables, s->which + run,
                                         s->again + run * RANS_RUN, 60);
            if (v == 0)
                memcpy(s->first, s->again, RUN_SYMBOLS);
            ck_assert_mem_eq(s->again, s->first, RUN_SYMBOLS);
            ck_assert(round > 0 || rans_decoder_is_done(&decoder));
        }
        ck_assert(round > 0 || memcmp(s->first, s->symbols, RUN_SYMBOLS) == 0);
        larder_free(stream);
    }
    larder_free(out);
    larder_free(s);
}
END_TEST

/* Two streams in lockstep are what they are alone, whole or damaged; encoders agree. */
START_TEST(two_streams_and_all_encoders)
{
    struct scene *s = make_scene();
    uint64_t room = rans_bound(RUN_SYMBOLS);
    uint8_t *out[2];
    uint64_t bytes[2];
    for (uint32_t half = 0; half < 2; half++) {
        uint64_t at = half * RUNS / 2;
        const uint8_t *symbols = s->symbols + at * RANS_RUN;
        uint8_t *other = larder_alloc(room);
        out[half] = larder_alloc(room);
        bytes[half] =
            rans_encode_runs_scalar(out[half], room, symbols, s->models, s->which + at, RUNS / 2);
        for (uint32_t v = 0; v < version_count; v++) {
            uint64_t same =
                versions[v]->encode_runs(other, room, symbols, s->models, s->which + at, RUNS / 2);
            ck_assert_uint_eq(same, bytes[half]);
            ck_assert_mem_eq(other + room - same, out[half] + room - same, same);
        }
        larder_free(other);
    }
    for (int round = 0; round < 100; round++) {
        uint64_t cut[2] = {bytes[0], bytes[1]};
        uint8_t *in[2];
        for (uint32_t half = 0; half < 2; half++)
            in[half] = damage(&cut[half], out[half] + room - bytes[half], round);
        for (uint32_t v = 0; v < version_count; v++) {
            struct rans_decoder two[2];
            for (uint32_t half = 0; half < 2; half++)
                ck_assert(rans_decoder_open(&two[half], in[half], cut[half]));
            memset(s->again, 0xee, RUN_SYMBOLS);
            versions[v]->decode_two(two, s->tables, s->which, s->again, RUNS);
            if (v == 0)
                memcpy(s->first, s->again, RUN_SYMBOLS);
            ck_assert_mem_eq(s->again, s->first, RUN_SYMBOLS);
            ck_assert(round > 0 ||
                      (rans_decoder_is_done(&two[0]) && rans_decoder_is_done(&two[1])));
        }
        ck_assert(round > 0 || memcmp(s->first, s->symbols, RUN_SYMBOLS) == 0);
        larder_free(in[0]);
        larder_free(in[1]);
    }
    larder_free(out[0]);
    larder_free(out[1]);
    larder_free(s);
}
END_TEST

START_TEST(models_are_read_as_written)
{
    for (int round = 0; round < 500; round++) {
        uint32_t levels = 1 + next_random() % RANS_LEVELS_MAX;
        uint64_t counts[RANS_LEVELS_MAX] = {0};
        for (uint32_t i = 0; i < levels; i++)
            counts[i] = next_random() % 3 ? 0 : (uint64_t)next_random() >> (next_random() % 31);
        counts[next_random() % levels]++;
        struct rans_model model;
        struct rans_model back;
        rans_model_fit(&model, counts, levels);
        uint32_t sum = 0;
        for (uint32_t i = 0; i < levels; i++) {
            sum += model.frequency[i];
            ck_assert_int_eq(model.frequency[i] > 0, counts[i] > 0);
        }
        ck_assert_uint_eq(sum, RANS_SCALE);
        uint8_t bytes[RANS_MODEL_BYTES_MAX];
        size_t count = rans_model_store(&model, bytes);
        ck_assert_uint_eq(rans_model_load(&back, bytes, count, levels), count);
        ck_assert_mem_eq(&back, &model, sizeof(model));
        ck_assert_uint_eq(rans_model_load(&back, bytes, count - 1, levels), 0);
        bytes[next_random() % count] ^= 1;
        ck_assert_uint_eq(rans_model_load(&back, bytes, count, levels), 0);
    }
}
END_TEST

int main(void)
{
    find_versions();
    Suite *suite = suite_create("rans");
    TCase *tests = tcase_create("rans");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, symbols_come_back_at_their_entropy);
    tcase_add_test(tests, any_bytes_decode_alike);
    tcase_add_test(tests, each_run_has_its_model);
    tcase_add_test(tests, two_streams_and_all_encoders);
    tcase_add_test(tests, models_are_read_as_written);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
