/* SPDX-License-Identifier: Apache-2.0 */
/* The entropy decoder alone, as sections with a profile's tables use it: two streams in lockstep, a
 * table for each 16 channels. */
#include "tools/bench/rows.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "codec/rans.h"

#define SYMBOLS   (1u << 20)
#define RUNS      (SYMBOLS / RANS_RUN)
#define HALF      (SYMBOLS / 2)
#define HALF_RUNS (RUNS / 2)
#define LEVELS    16u
#define TABLES    8u /* heads of 128 channels */
/* Streams over and over, until a round is some tens of milliseconds. */
#define REPEATS 24u

struct rans_bench {
    struct rans_model models[TABLES];
    struct rans_table *tables;
    const struct rans_version *version;
    uint8_t which[RUNS];
    uint8_t *symbols;
    uint8_t *decoded;
    uint8_t *room[2];
    uint64_t bytes[2]; /* of the streams, each at the end of its room */
};

/* Sums of four small numbers, as a quantizer makes them of normal ones; a channel group's levels
 * lie closer together the higher its number. */
static void make_symbols(struct rans_bench *rans)
{
    uint64_t state = 1;
    for (uint32_t i = 0; i < SYMBOLS; i++) {
        uint32_t sum = 0;
        for (int k = 0; k < 4; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (uint32_t)(state >> 60);
        }
        uint32_t narrow = rans->which[i / RANS_RUN];
        rans->symbols[i] = (uint8_t)((sum / 4 * (LEVELS - narrow) + 8 * narrow) / LEVELS);
    }
}

static int rans_open(struct rans_bench *rans, const struct rans_version *version)
{
    *rans = (struct rans_bench){.version = version};
    rans->tables = larder_alloc_zero(TABLES, sizeof(*rans->tables));
    rans->symbols = larder_alloc(SYMBOLS);
    rans->decoded = larder_alloc(SYMBOLS);
    rans->room[0] = larder_alloc(rans_bound(HALF));
    rans->room[1] = larder_alloc(rans_bound(HALF));
    if (!rans->tables || !rans->symbols || !rans->decoded || !rans->room[0] || !rans->room[1])
        return larder_fail(-ENOMEM, "no memory");
    for (uint32_t i = 0; i < RUNS; i++)
        rans->which[i] = (uint8_t)(i % TABLES);
    make_symbols(rans);
    uint64_t counts[TABLES][LEVELS] = {0};
    for (uint32_t i = 0; i < SYMBOLS; i++)
        counts[rans->which[i / RANS_RUN]][rans->symbols[i]]++;
    for (uint32_t i = 0; i < TABLES; i++) {
        rans_model_fit(&rans->models[i], counts[i], LEVELS);
        rans_table_fill(&rans->tables[i], &rans->models[i]);
    }
    for (uint32_t i = 0; i < 2; i++)
        rans->bytes[i] = rans_encode_runs(rans->room[i], rans_bound(HALF), rans->symbols + i * HALF,
                                          rans->models, rans->which + i * HALF_RUNS, HALF_RUNS);
    return 0;
}

static void rans_close(struct rans_bench *rans)
{
    larder_free(rans->room[1]);
    larder_free(rans->room[0]);
    larder_free(rans->decoded);
    larder_free(rans->symbols);
    larder_free(rans->tables);
}

static int decode_all(void *context, double *measure)
{
    struct rans_bench *rans = context;
    double started = bench_cpu_s();
    for (uint32_t i = 0; i < REPEATS; i++) {
        struct rans_decoder decoders[2];
        for (uint32_t k = 0; k < 2; k++)
            if (!rans_decoder_open(&decoders[k], rans->room[k] + rans_bound(HALF) - rans->bytes[k],
                                   rans->bytes[k]))
                return larder_fail(LARDER_ECORRUPT, "a stream of %llu bytes",
                                   (unsigned long long)rans->bytes[k]);
        rans->version->decode_two(decoders, rans->tables, rans->which, rans->decoded, RUNS);
    }
    *measure = (double)REPEATS * SYMBOLS / 1e9 / (bench_cpu_s() - started);
    return 0;
}

static int copy_all(void *context, double *measure)
{
    struct rans_bench *rans = context;
    double started = bench_cpu_s();
    for (uint32_t i = 0; i < REPEATS; i++) {
        memcpy(rans->decoded, rans->symbols, SYMBOLS);
        __asm__ volatile("" ::"r"(rans->decoded) : "memory");
    }
    *measure = (double)REPEATS * SYMBOLS / 1e9 / (bench_cpu_s() - started);
    return 0;
}

static int rans_row(const struct bench *bench, struct bench_result *out,
                    const struct rans_version *version)
{
    if (!version)
        return larder_fail(LARDER_EUNSUPPORTED, "this processor lacks the instructions");
    struct rans_bench *rans = larder_alloc_zero(1, sizeof(*rans));
    if (!rans)
        return larder_fail(-ENOMEM, "no memory");
    double ignored;
    int err = rans_open(rans, version);
    if (err == 0)
        err = bench_compare(bench, out, decode_all, copy_all, rans);
    if (err == 0)
        err = decode_all(rans, &ignored);
    if (err == 0 && memcmp(rans->symbols, rans->decoded, SYMBOLS) != 0)
        err = larder_fail(LARDER_ECORRUPT, "other symbols came out than went in");
    bench_note(out, "%u tables, %.2f bits a symbol", TABLES,
               8 * (double)(rans->bytes[0] + rans->bytes[1]) / SYMBOLS);
    rans_close(rans);
    larder_free(rans);
    return err;
}

int row_rans_scalar(const struct bench *bench, struct bench_result *out)
{
    return rans_row(bench, out, &rans_scalar);
}

int row_rans_avx2(const struct bench *bench, struct bench_result *out)
{
    return rans_row(bench, out, rans_avx2());
}

int row_rans_avx512(const struct bench *bench, struct bench_result *out)
{
    return rans_row(bench, out, rans_avx512());
}
