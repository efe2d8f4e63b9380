/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_scalar.c - the specification: what every other version must equal, bit for bit. */
#include "kernels/cpu/cpu_elementwise.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/cpu_math.h"

static bool usable(void)
{
    return true;
}

static void matmul(struct cpu_scratch *scratch, const struct cpu_product *p, uint64_t row0,
                   uint64_t row1, uint64_t column0, uint64_t column1)
{
    (void)scratch;
    for (uint64_t row = row0; row < row1; row++) {
        const float *x = p->x + row * p->x_stride;
        for (uint64_t column = column0; column < column1; column++) {
            float sum = 0;
            for (uint64_t k = 0; k < p->depth; k++)
                sum = fmaf(x[k],
                           load_element(p->weight, p->weight_dtype, column * p->weight_stride + k),
                           sum);
            p->out[row * p->out_stride + column] = p->bias ? sum + p->bias[column] : sum;
        }
    }
}

/* The softmax runs over blocks of keys: when a block raises the largest score, what was summed
 * so far is scaled down by the same factor. */
static void attend_row(struct cpu_scratch *scratch, const struct cpu_attention *a, float *out,
                       const float *query, uint32_t position)
{
    const uint64_t block = LARDER_ATTENTION_BLOCK_KEYS;
    float *sums = scratch->sums;
    float largest = -INFINITY;
    float weight = 0;
    for (uint32_t i = 0; i < a->v_dims; i++)
        sums[i] = 0;

    for (uint64_t first = 0; first < a->key_count; first += block) {
        float scores[LARDER_ATTENTION_BLOCK_KEYS];
        uint64_t count = larder_min_u64(block, a->key_count - first);
        float top = largest;
        for (uint64_t j = 0; j < block; j++) {
            scores[j] = -INFINITY;
            if (j >= count || cpu_key_position(a, first + j) > position)
                continue;
            float sum = 0;
            for (uint32_t i = 0; i < a->k_dims; i++)
                sum = fmaf(query[i] * a->scale,
                           load_element(a->k, a->k_dtype, (first + j) * a->k_stride + i), sum);
            scores[j] = sum;
            top = sum > top ? sum : top;
        }
        if (top == -INFINITY)
            continue;

        float lanes[CPU_LANES] = {0};
        for (uint64_t j = 0; j < block; j++) {
            scores[j] = exp_float(scores[j] - top);
            lanes[j % CPU_LANES] += scores[j];
        }
        float shrink = exp_float(largest - top);
        weight = fmaf(weight, shrink, sum_lanes(lanes));
        largest = top;
        for (uint32_t i = 0; i < a->v_dims; i++) {
            float sum = sums[i] * shrink;
            for (uint64_t j = 0; j < count; j++)
                sum = fmaf(scores[j], load_element(a->v, a->v_dtype, (first + j) * a->v_stride + i),
                           sum);
            sums[i] = sum;
        }
    }
    /* Adding zero makes -0 a +0: whether a hidden key's 0 * v was added must leave no trace. */
    for (uint32_t i = 0; i < a->v_dims; i++)
        out[i] = weight > 0 ? sums[i] / weight + 0.0f : 0.0f;
}

static void attention(struct cpu_scratch *scratch, const struct cpu_attention *a, uint64_t row0,
                      uint64_t row1)
{
    for (uint64_t row = row0; row < row1; row++)
        for (uint32_t head = 0; head < a->group; head++)
            attend_row(scratch, a, a->out + row * a->out_stride[0] + head * a->out_stride[1],
                       a->q + row * a->q_stride[0] + head * a->q_stride[1],
                       a->query_positions[row]);
}

const struct cpu_isa cpu_scalar = {
    .name = "scalar",
    .usable = usable,
    .matmul = matmul,
    .attention = attention,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .swiglu = swiglu,
    .add = add,
    .to_float = to_float,
    .from_float = from_float,
};
