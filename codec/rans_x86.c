/* SPDX-License-Identifier: Apache-2.0 */
/* rans_x86.c - rans.h with 16 or 8 lanes a vector. What is left of a stream, and words near its
 * end, go to the scalar code. */
#include "codec/rans.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define AVX2   __attribute__((target("avx2,bmi2,popcnt")))

/* A step of all lanes takes at most a word each; the loads below read 16 words past their place. */
#define WORDS_AHEAD (RANS_LANES + 16u)

static uint64_t words_left(const struct rans_decoder *decoder)
{
    return (uint64_t)(decoder->end - decoder->in) / 2;
}

/* One step of 16 lanes: their symbols, and the words they take, counted. */
AVX512 static inline __m128i step_512(__m512i *states, const uint8_t **in, const uint32_t *slots)
{
    const __m512i low12 = _mm512_set1_epi32(RANS_SCALE - 1);
    __m512i slot = _mm512_i32gather_epi32(_mm512_and_si512(*states, low12), slots, 4);
    __m512i frequency =
        _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(slot, 8), low12), _mm512_set1_epi32(1));
    __m512i x =
        _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(*states, RANS_SCALE_BITS)),
                         _mm512_srli_epi32(slot, 20));
    __mmask16 wants = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(1 << 16));
    __m512i words = _mm512_maskz_expand_epi32(
        wants, _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)*in)));
    *in += 2 * (unsigned)__builtin_popcount(wants);
    *states = _mm512_mask_or_epi32(x, wants, _mm512_slli_epi32(x, 16), words);
    return _mm512_cvtepi32_epi8(slot);
}

AVX512 static void decode_512(struct rans_decoder *decoder, const struct rans_table *table,
                              uint8_t *symbols, uint64_t count)
{
    uint64_t done = 0;
    __m512i first = _mm512_loadu_si512(decoder->states);
    __m512i second = _mm512_loadu_si512(decoder->states + 16);
    while (done + RANS_LANES <= count) {
        /* So many steps are safe without a look at the end of the stream. */
        uint64_t left = words_left(decoder);
        if (left < WORDS_AHEAD)
            break;
        uint64_t steps = (left - 16) / RANS_LANES;
        uint64_t wanted = (count - done) / RANS_LANES;
        const uint8_t *in = decoder->in;
        for (uint64_t i = steps < wanted ? steps : wanted; i > 0; i--, done += RANS_LANES) {
            __m128i low = step_512(&first, &in, table->slots);
            __m128i high = step_512(&second, &in, table->slots);
            _mm_storeu_si128((__m128i *)(void *)(symbols + done), low);
            _mm_storeu_si128((__m128i *)(void *)(symbols + done + 16), high);
        }
        decoder->in = in;
    }
    _mm512_storeu_si512(decoder->states, first);
    _mm512_storeu_si512(decoder->states + 16, second);
    rans_scalar.decode(decoder, table, symbols + done, count - done);
}

AVX512 static void decode_runs_512(struct rans_decoder *decoder, const struct rans_table *tables,
                                   const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    uint64_t done = 0;
    __m512i first = _mm512_loadu_si512(decoder->states);
    __m512i second = _mm512_loadu_si512(decoder->states + 16);
    while (done < run_count) {
        uint64_t left = words_left(decoder);
        if (left < WORDS_AHEAD)
            break;
        uint64_t steps = (left - 16) / RANS_LANES;
        uint64_t wanted = (run_count - done) / 2;
        const uint8_t *in = decoder->in;
        for (uint64_t i = steps < wanted ? steps : wanted; i > 0; i--, done += 2) {
            __m128i low = step_512(&first, &in, tables[which[done]].slots);
            __m128i high = step_512(&second, &in, tables[which[done + 1]].slots);
            _mm_storeu_si128((__m128i *)(void *)(symbols + done * RANS_RUN), low);
            _mm_storeu_si128((__m128i *)(void *)(symbols + (done + 1) * RANS_RUN), high);
        }
        decoder->in = in;
    }
    _mm512_storeu_si512(decoder->states, first);
    _mm512_storeu_si512(decoder->states + 16, second);
    rans_scalar.decode_runs(decoder, tables, which + done, symbols + done * RANS_RUN,
                            run_count - done);
}

/* Steps that both streams can make without a look at their ends. */
static uint64_t safe_steps(const struct rans_decoder *decoder)
{
    uint64_t left = words_left(decoder);
    return left < WORDS_AHEAD ? 0 : (left - 16) / RANS_LANES;
}

AVX512 static void decode_two_512(struct rans_decoder decoders[2], const struct rans_table *tables,
                                  const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    uint64_t half = run_count / 2;
    uint64_t done = 0;
    __m512i states[4];
    for (uint32_t i = 0; i < 4; i++)
        states[i] = _mm512_loadu_si512(decoders[i / 2].states + i % 2 * RANS_RUN);
    while (done < half) {
        uint64_t steps = safe_steps(&decoders[0]);
        uint64_t others = safe_steps(&decoders[1]);
        steps = steps < others ? steps : others;
        if (steps == 0)
            break;
        const uint8_t *in[2] = {decoders[0].in, decoders[1].in};
        uint64_t wanted = (half - done) / 2;
        for (uint64_t n = steps < wanted ? steps : wanted; n > 0; n--, done += 2) {
            for (uint32_t i = 0; i < 4; i++) {
                uint64_t run = (i / 2) * half + done + i % 2;
                __m128i got = step_512(&states[i], &in[i / 2], tables[which[run]].slots);
                _mm_storeu_si128((__m128i *)(void *)(symbols + run * RANS_RUN), got);
            }
        }
        decoders[0].in = in[0];
        decoders[1].in = in[1];
    }
    for (uint32_t i = 0; i < 4; i++)
        _mm512_storeu_si512(decoders[i / 2].states + i % 2 * RANS_RUN, states[i]);
    for (uint32_t i = 0; i < 2; i++)
        decode_runs_512(&decoders[i], tables, which + i * half + done,
                        symbols + (i * half + done) * RANS_RUN, half - done);
}

/* Sixteen symbols of one model onto sixteen lanes. Quotients of doubles: x + 1/2 over f is at least
 * 2^-13 away from a whole number, which rounding cannot bridge. */
AVX512 static inline __m512i push_512(__m512i x, uint8_t **at, const uint8_t *symbols,
                                      const struct rans_model *model)
{
    const __m512i low16 = _mm512_set1_epi32(0xffff);
    const __m512d half = _mm512_set1_pd(0.5);
    __m512i which = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)symbols));
    __m512i frequency = _mm512_and_si512(_mm512_i32gather_epi32(which, model->frequency, 2), low16);
    __m512i start = _mm512_and_si512(_mm512_i32gather_epi32(which, model->start, 2), low16);
    /* x >= f << 20, where f << 20 may be 2^32: x >> 20 >= f says the same. */
    __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 20), frequency);
    __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x));
    unsigned count = (unsigned)__builtin_popcount(full);
    *at -= 2 * count;
    _mm256_mask_storeu_epi16(*at, (__mmask16)((1u << count) - 1), words);
    x = _mm512_mask_srli_epi32(x, full, x, 16);
    __m512d low = _mm512_div_pd(_mm512_add_pd(_mm512_cvtepu32_pd(_mm512_castsi512_si256(x)), half),
                                _mm512_cvtepu32_pd(_mm512_castsi512_si256(frequency)));
    __m512d high =
        _mm512_div_pd(_mm512_add_pd(_mm512_cvtepu32_pd(_mm512_extracti64x4_epi64(x, 1)), half),
                      _mm512_cvtepu32_pd(_mm512_extracti64x4_epi64(frequency, 1)));
    __m512i quotient = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvttpd_epu32(low)),
                                          _mm512_cvttpd_epu32(high), 1);
    __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
    return _mm512_add_epi32(_mm512_slli_epi32(quotient, RANS_SCALE_BITS),
                            _mm512_add_epi32(rest, start));
}

AVX512 static uint64_t encode_runs_512(uint8_t *out, uint64_t room, const uint8_t *symbols,
                                       const struct rans_model *models, const uint8_t *which,
                                       uint64_t run_count)
{
    __m512i first = _mm512_set1_epi32(1 << 16);
    __m512i second = first;
    uint8_t *at = out + room;
    for (uint64_t run = run_count; run > 0; run -= 2) {
        second = push_512(second, &at, symbols + (run - 1) * RANS_RUN, &models[which[run - 1]]);
        first = push_512(first, &at, symbols + (run - 2) * RANS_RUN, &models[which[run - 2]]);
    }
    at -= RANS_LANES * sizeof(uint32_t);
    _mm512_storeu_si512(at, first);
    _mm512_storeu_si512(at + RANS_RUN * sizeof(uint32_t), second);
    return (uint64_t)(out + room - at);
}

AVX2 static inline void step_256(__m256i *states, const uint8_t **in, const uint32_t *slots,
                                 uint8_t *symbols)
{
    const __m256i low12 = _mm256_set1_epi32(RANS_SCALE - 1);
    __m256i slot = _mm256_i32gather_epi32((const int *)(const void *)slots,
                                          _mm256_and_si256(*states, low12), 4);
    __m256i frequency =
        _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(slot, 8), low12), _mm256_set1_epi32(1));
    __m256i x =
        _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(*states, RANS_SCALE_BITS)),
                         _mm256_srli_epi32(slot, 20));
    /* x < 2^16: its upper half is zero. */
    __m256i wants = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
    unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(wants));
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)*in));
    /* Lane by lane, how many before it want one too: 0, 1, 2, ... spread to those of the mask. */
    uint64_t spread =
        _pdep_u64(0x0706050403020100ull, _pdep_u64(mask, 0x0101010101010101ull) * 0xff);
    __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)spread));
    words = _mm256_permutevar8x32_epi32(words, places);
    *in += 2 * (unsigned)__builtin_popcount(mask);
    *states = _mm256_blendv_epi8(x, _mm256_or_si256(_mm256_slli_epi32(x, 16), words), wants);
    /* The lowest byte of each lane. */
    const __m256i lowest = _mm256_set1_epi32(0xff);
    __m256i bytes = _mm256_packus_epi32(_mm256_and_si256(slot, lowest), _mm256_setzero_si256());
    bytes = _mm256_permute4x64_epi64(bytes, 0xd8);
    __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(bytes), _mm_setzero_si128());
    _mm_storel_epi64((__m128i *)(void *)symbols, packed);
}

AVX2 static void decode_256(struct rans_decoder *decoder, const struct rans_table *table,
                            uint8_t *symbols, uint64_t count)
{
    uint64_t done = 0;
    __m256i states[RANS_LANES / 8];
    for (uint32_t i = 0; i < RANS_LANES / 8; i++)
        states[i] = _mm256_loadu_si256((const __m256i *)(const void *)(decoder->states + 8 * i));
    while (done + RANS_LANES <= count) {
        uint64_t left = words_left(decoder);
        if (left < WORDS_AHEAD)
            break;
        uint64_t steps = (left - 16) / RANS_LANES;
        uint64_t wanted = (count - done) / RANS_LANES;
        const uint8_t *in = decoder->in;
        for (uint64_t n = steps < wanted ? steps : wanted; n > 0; n--, done += RANS_LANES) {
            for (uint32_t i = 0; i < RANS_LANES / 8; i++)
                step_256(&states[i], &in, table->slots, symbols + done + 8ul * i);
        }
        decoder->in = in;
    }
    for (uint32_t i = 0; i < RANS_LANES / 8; i++)
        _mm256_storeu_si256((__m256i *)(void *)(decoder->states + 8 * i), states[i]);
    rans_scalar.decode(decoder, table, symbols + done, count - done);
}

AVX2 static void decode_runs_256(struct rans_decoder *decoder, const struct rans_table *tables,
                                 const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    uint64_t done = 0;
    __m256i states[RANS_LANES / 8];
    for (uint32_t i = 0; i < RANS_LANES / 8; i++)
        states[i] = _mm256_loadu_si256((const __m256i *)(const void *)(decoder->states + 8 * i));
    while (done < run_count) {
        uint64_t left = words_left(decoder);
        if (left < WORDS_AHEAD)
            break;
        uint64_t steps = (left - 16) / RANS_LANES;
        uint64_t wanted = (run_count - done) / 2;
        const uint8_t *in = decoder->in;
        for (uint64_t n = steps < wanted ? steps : wanted; n > 0; n--, done += 2) {
            for (uint32_t i = 0; i < RANS_LANES / 8; i++)
                step_256(&states[i], &in, tables[which[done + i / 2]].slots,
                         symbols + done * RANS_RUN + 8ul * i);
        }
        decoder->in = in;
    }
    for (uint32_t i = 0; i < RANS_LANES / 8; i++)
        _mm256_storeu_si256((__m256i *)(void *)(decoder->states + 8 * i), states[i]);
    rans_scalar.decode_runs(decoder, tables, which + done, symbols + done * RANS_RUN,
                            run_count - done);
}

AVX2 static void decode_two_256(struct rans_decoder decoders[2], const struct rans_table *tables,
                                const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    uint64_t half = run_count / 2;
    decode_runs_256(&decoders[0], tables, which, symbols, half);
    decode_runs_256(&decoders[1], tables, which + half, symbols + half * RANS_RUN, half);
}

const struct rans_version *rans_avx512(void)
{
    static const struct rans_version version = {
        .decode = decode_512,
        .decode_runs = decode_runs_512,
        .decode_two = decode_two_512,
        .encode_runs = encode_runs_512,
    };
    bool can = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl");
    return can ? &version : NULL;
}

/* AVX2 has no way to compress lanes, which encoding is made of. */
const struct rans_version *rans_avx2(void)
{
    static const struct rans_version version = {
        .decode = decode_256,
        .decode_runs = decode_runs_256,
        .decode_two = decode_two_256,
        .encode_runs = rans_encode_runs_scalar,
    };
    bool can = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    return can ? &version : NULL;
}

#else

const struct rans_version *rans_avx512(void)
{
    return NULL;
}

const struct rans_version *rans_avx2(void)
{
    return NULL;
}

#endif
