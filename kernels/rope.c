/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/rope.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_math.h"

#define PI 3.14159265358979323846

static bool positive(double x)
{
    return isfinite(x) && x > 0;
}

static int check_scaling(const struct larder_rope *rope)
{
    if (rope->kind == LARDER_ROPE_PLAIN)
        return 0;
    if (!isfinite(rope->factor) || rope->factor < 1)
        return larder_fail(LARDER_EMODEL, "rope factor=%g is not a number of at least 1",
                           rope->factor);
    if (rope->kind == LARDER_ROPE_LINEAR)
        return 0;
    if (rope->original_max_position == 0)
        return larder_fail(LARDER_EMODEL, "rope original_max_position=0; llama3 and yarn need the "
                                          "context length that the model was trained with");
    if (rope->kind == LARDER_ROPE_LLAMA3) {
        if (!positive(rope->low_freq_factor) || !isfinite(rope->high_freq_factor) ||
            rope->high_freq_factor <= rope->low_freq_factor)
            return larder_fail(LARDER_EMODEL,
                               "rope low_freq_factor=%g, high_freq_factor=%g: need 0 < low < high",
                               rope->low_freq_factor, rope->high_freq_factor);
        return 0;
    }
    if (!positive(rope->beta_slow) || !isfinite(rope->beta_fast) ||
        rope->beta_fast < rope->beta_slow)
        return larder_fail(LARDER_EMODEL, "rope beta_slow=%g, beta_fast=%g: need 0 < slow <= fast",
                           rope->beta_slow, rope->beta_fast);
    if (!positive(rope->attention_factor))
        return larder_fail(LARDER_EMODEL, "rope attention_factor=%g is not above 0",
                           rope->attention_factor);
    return 0;
}

int larder_rope_check(const struct larder_rope *rope, uint32_t head_dims)
{
    if (rope->kind > LARDER_ROPE_YARN)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "rope kind %u is unknown; known are 0..%d (none, plain, linear, llama3, "
                           "yarn)",
                           rope->kind, LARDER_ROPE_YARN);
    if (rope->kind == LARDER_ROPE_NONE)
        return 0;
    if (rope->rotary_dims == 0 || rope->rotary_dims % 2 != 0 || rope->rotary_dims > head_dims)
        return larder_fail(LARDER_EMODEL, "rope rotary_dims=%u is not an even number in 2..%u",
                           rope->rotary_dims, head_dims);
    if (rope->interleaved > 1)
        return larder_fail(LARDER_EMODEL, "rope interleaved=%u is neither 0 nor 1",
                           rope->interleaved);
    if (!isfinite(rope->theta) || rope->theta <= 1)
        return larder_fail(LARDER_EMODEL, "rope theta=%g is not above 1", rope->theta);
    return check_scaling(rope);
}

/* Slow turns are divided by the factor, fast ones stay, those between are mixed. */
static void scale_llama3(float *out, const struct larder_rope *rope)
{
    double trained = rope->original_max_position;
    float low = (float)(trained / rope->low_freq_factor);
    float high = (float)(trained / rope->high_freq_factor);
    float factor = (float)rope->factor;
    for (uint32_t i = 0; i < rope->rotary_dims / 2; i++) {
        float length = (float)(2 * PI) / out[i];
        if (length < high)
            continue;
        if (length > low) {
            out[i] /= factor;
            continue;
        }
        float smooth = ((float)trained / length - (float)rope->low_freq_factor) /
                       (float)(rope->high_freq_factor - rope->low_freq_factor);
        out[i] = (1 - smooth) * out[i] / factor + smooth * out[i];
    }
}

/* The pair that turns `turns` times within the trained context. */
static double yarn_pair(const struct larder_rope *rope, double turns)
{
    return rope->rotary_dims * log(rope->original_max_position / (turns * 2 * PI)) /
           (2 * log(rope->theta));
}

/* `powers` are the inverses of the unscaled frequencies. */
static void scale_yarn(float *out, const float *powers, const struct larder_rope *rope)
{
    double low = fmax(floor(yarn_pair(rope, rope->beta_fast)), 0);
    double high = fmin(ceil(yarn_pair(rope, rope->beta_slow)), rope->rotary_dims - 1);
    if (low == high)
        high += 0.001;
    for (uint32_t i = 0; i < rope->rotary_dims / 2; i++) {
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1 - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
        float stretched = 1.0f / ((float)rope->factor * powers[i]);
        out[i] = stretched * (1 - keep) + 1.0f / powers[i] * keep;
    }
}

void larder_rope_frequencies(float *out, const struct larder_rope *rope)
{
    assert(rope->kind != LARDER_ROPE_NONE);
    assert(rope->rotary_dims <= LARDER_HEAD_DIMS_MAX);
    float powers[LARDER_HEAD_DIMS_MAX / 2];
    for (uint32_t i = 0; i < rope->rotary_dims / 2; i++) {
        float exponent = (float)(2 * i) / (float)rope->rotary_dims;
        powers[i] = (float)pow(rope->theta, (double)exponent);
        out[i] = 1.0f / powers[i];
        if (rope->kind == LARDER_ROPE_LINEAR)
            out[i] /= (float)rope->factor;
    }
    if (rope->kind == LARDER_ROPE_LLAMA3)
        scale_llama3(out, rope);
    if (rope->kind == LARDER_ROPE_YARN)
        scale_yarn(out, powers, rope);
}

void larder_rope_rows(float *cosines, float *sines, const struct larder_rope *rope, uint32_t first,
                      uint32_t count)
{
    float frequencies[LARDER_HEAD_DIMS_MAX / 2];
    larder_rope_frequencies(frequencies, rope);
    float factor = rope->kind == LARDER_ROPE_YARN ? (float)rope->attention_factor : 1.0f;
    uint32_t pairs = rope->rotary_dims / 2;
    for (uint32_t row = 0; row < count; row++)
        for (uint32_t i = 0; i < pairs; i++) {
            double angle = (double)((float)(first + row) * frequencies[i]);
            size_t at = (size_t)row * pairs + i;
            cosines[at] = (float)cos(angle) * factor;
            sines[at] = (float)sin(angle) * factor;
        }
}

int larder_rope_table_open(struct larder_rope_table **out, const struct larder_rope *rope,
                           uint32_t head_dims)
{
    *out = NULL;
    assert(head_dims <= LARDER_HEAD_DIMS_MAX);
    LARDER_TRY(larder_rope_check(rope, head_dims));
    struct larder_rope_table *table = larder_alloc_zero(1, sizeof(*table));
    if (!table)
        return larder_fail(-ENOMEM, "no memory for a rope table");
    table->rope = *rope;
    table->pairs = rope->kind == LARDER_ROPE_NONE ? 0 : rope->rotary_dims / 2;
    *out = table;
    return 0;
}

void larder_rope_table_close(struct larder_rope_table *table)
{
    if (!table)
        return;
    larder_free(table->cos);
    larder_free(table->sin);
    larder_free(table);
}

int larder_rope_table_grow(struct larder_rope_table *table, uint32_t positions)
{
    if (positions <= table->positions)
        return 0;
    if (positions > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "rope table of %u positions is above %u", positions,
                           LARDER_PROMPT_TOKENS_MAX);
    if (table->pairs == 0) {
        table->positions = positions;
        return 0;
    }
    size_t bytes = (size_t)positions * table->pairs * sizeof(float);
    float *cosines = larder_realloc(table->cos, bytes);
    if (cosines)
        table->cos = cosines;
    float *sines = larder_realloc(table->sin, bytes);
    if (sines)
        table->sin = sines;
    if (!cosines || !sines)
        return larder_fail(-ENOMEM, "no memory for a rope table of %u positions, %zu bytes",
                           positions, 2 * bytes);

    size_t at = (size_t)table->positions * table->pairs;
    larder_rope_rows(table->cos + at, table->sin + at, &table->rope, table->positions,
                     positions - table->positions);
    table->positions = positions;
    return 0;
}

/* cos and sin of the turn from one table row to another; the attention factor cancels out. */
static void turn_between(float *cosines, float *sines, const struct larder_rope_table *table,
                         uint32_t from, uint32_t to)
{
    const float *cos0 = table->cos + (size_t)from * table->pairs;
    const float *sin0 = table->sin + (size_t)from * table->pairs;
    const float *cos1 = table->cos + (size_t)to * table->pairs;
    const float *sin1 = table->sin + (size_t)to * table->pairs;
    for (uint32_t i = 0; i < table->pairs; i++) {
        double c0 = (double)cos0[i];
        double s0 = (double)sin0[i];
        double c1 = (double)cos1[i];
        double s1 = (double)sin1[i];
        double length = c0 * c0 + s0 * s0;
        cosines[i] = (float)((c1 * c0 + s1 * s0) / length);
        sines[i] = (float)((s1 * c0 - c1 * s0) / length);
    }
}

static void store_element(void *data, uint32_t dtype, uint64_t index, float x)
{
    if (dtype == LARDER_F32)
        ((float *)data)[index] = x;
    else
        ((uint16_t *)data)[index] = dtype == LARDER_F16 ? f16_from_float(x) : bf16_from_float(x);
}

void larder_rope_move(const struct larder_rope_table *table, const struct larder_rope_move *move)
{
    const struct larder_tensor *in = &move->in;
    const struct larder_tensor *out = &move->out;
    assert(in->rank == 3);
    assert(out->rank == 3);
    assert(memcmp(in->shape, out->shape, 3 * sizeof(in->shape[0])) == 0);
    assert(in->stride[2] == 1);
    assert(out->stride[2] == 1);
    assert(2 * (uint64_t)table->pairs <= in->shape[2]);
    float cosines[LARDER_HEAD_DIMS_MAX / 2];
    float sines[LARDER_HEAD_DIMS_MAX / 2];
    uint64_t step = table->rope.interleaved ? 2 : 1;
    uint64_t partner = table->rope.interleaved ? 1 : table->pairs;
    for (uint64_t row = 0; row < in->shape[0]; row++) {
        assert(move->from[row] < table->positions);
        assert(move->to[row] < table->positions);
        uint64_t pairs = move->from[row] == move->to[row] ? 0 : table->pairs;
        turn_between(cosines, sines, table, move->from[row], move->to[row]);
        for (uint64_t head = 0; head < in->shape[1]; head++) {
            uint64_t from = row * in->stride[0] + head * in->stride[1];
            uint64_t to = row * out->stride[0] + head * out->stride[1];
            for (uint64_t i = 0; i < pairs; i++) {
                float low = load_element(in->data, in->dtype, from + i * step);
                float high = load_element(in->data, in->dtype, from + i * step + partner);
                store_element(out->data, out->dtype, to + i * step,
                              low * cosines[i] - high * sines[i]);
                store_element(out->data, out->dtype, to + i * step + partner,
                              high * cosines[i] + low * sines[i]);
            }
            for (uint64_t i = 2 * pairs; i < in->shape[2]; i++)
                store_element(out->data, out->dtype, to + i,
                              load_element(in->data, in->dtype, from + i));
        }
    }
}
