/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/inputs.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/eval/samples.h"

#define PROBE_EVERY 20u
#define PROBE_LAST  (EVAL_PREFIX_TOKENS - EVAL_PREFIX_TOKENS / PROBE_EVERY)
#define PROBES_MAX  (2 * EVAL_PREFIX_TOKENS / PROBE_EVERY + 2)

struct eval_inputs {
    const struct larder_model_config *config;
    uint32_t group; /* query heads of a KV head */
    uint32_t probes[PROBES_MAX];
    uint32_t probe_count;
    float *queries;    /* [layer][probe][head][dim] */
    float *importance; /* [block][layer][KV head][token] */
    float *q_max;      /* [layer][KV head][dim] */
    float weights[EVAL_PREFIX_TOKENS];
};

static bool is_probe(uint32_t row)
{
    return row >= PROBE_LAST || row % PROBE_EVERY == PROBE_EVERY - 1;
}

int eval_inputs_open(struct eval_inputs **out, const struct larder_model_config *config)
{
    *out = NULL;
    struct eval_inputs *inputs = larder_alloc_zero(1, sizeof(*inputs));
    if (!inputs)
        return larder_fail(-ENOMEM, "no memory for inputs of encoding");
    inputs->config = config;
    inputs->group = config->heads / config->kv_heads;
    for (uint32_t row = 0; row < EVAL_PREFIX_TOKENS; row++)
        if (is_probe(row))
            inputs->probes[inputs->probe_count++] = row;
    size_t row_floats = (size_t)config->heads * config->head_dims;
    size_t heads = (size_t)config->layers * config->kv_heads;
    inputs->queries = larder_alloc_zero(config->layers * inputs->probe_count * row_floats,
                                        sizeof(*inputs->queries));
    inputs->importance = larder_alloc_zero(heads * EVAL_PREFIX_TOKENS, sizeof(*inputs->importance));
    inputs->q_max = larder_alloc_zero(heads * config->head_dims, sizeof(*inputs->q_max));
    if (!inputs->queries || !inputs->importance || !inputs->q_max) {
        eval_inputs_close(inputs);
        return larder_fail(-ENOMEM, "no memory for inputs of encoding");
    }
    *out = inputs;
    return 0;
}

void eval_inputs_close(struct eval_inputs *inputs)
{
    if (!inputs)
        return;
    larder_free(inputs->q_max);
    larder_free(inputs->importance);
    larder_free(inputs->queries);
    larder_free(inputs);
}

void eval_inputs_clear(struct eval_inputs *inputs)
{
    const struct larder_model_config *c = inputs->config;
    size_t heads = (size_t)c->layers * c->kv_heads;
    memset(inputs->q_max, 0, heads * c->head_dims * sizeof(*inputs->q_max));
    memset(inputs->importance, 0, heads * EVAL_PREFIX_TOKENS * sizeof(*inputs->importance));
}

static void widen_q_max(struct eval_inputs *inputs, uint32_t layer, const float *row)
{
    const struct larder_model_config *c = inputs->config;
    for (uint32_t head = 0; head < c->heads; head++, row += c->head_dims) {
        uint32_t kv_head = layer * c->kv_heads + head / inputs->group;
        float *most = inputs->q_max + (size_t)kv_head * c->head_dims;
        for (uint32_t i = 0; i < c->head_dims; i++)
            most[i] = fmaxf(most[i], fabsf(row[i]));
    }
}

static float *probe_of(const struct eval_inputs *inputs, uint32_t layer, uint32_t probe)
{
    const struct larder_model_config *c = inputs->config;
    return inputs->queries +
           ((size_t)layer * inputs->probe_count + probe) * c->heads * c->head_dims;
}

void eval_inputs_take(struct eval_inputs *inputs, uint32_t layer, uint32_t first,
                      const struct larder_tensor *q)
{
    size_t row_floats = (size_t)inputs->config->heads * inputs->config->head_dims;
    uint32_t probe = 0;
    for (uint32_t i = 0; i < q->shape[0] && first + i < EVAL_PREFIX_TOKENS; i++) {
        const float *row = (const float *)q->data + i * row_floats;
        widen_q_max(inputs, layer, row);
        while (probe < inputs->probe_count && inputs->probes[probe] < first + i)
            probe++;
        if (is_probe(first + i))
            memcpy(probe_of(inputs, layer, probe), row, row_floats * sizeof(*row));
    }
}

static float dot(const float *a, const float *b, uint32_t count)
{
    float sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Adds the attention of one query to what each key got. */
static void add_attention(struct eval_inputs *inputs, float *scores, uint64_t block_stride,
                          const float *query, uint32_t position, const float *const *keys)
{
    uint32_t dims = inputs->config->head_dims;
    float scale = 1 / sqrtf((float)dims);
    float most = -INFINITY;
    double sum = 0;
    for (uint32_t key = 0; key <= position; key++) {
        const float *at = keys[key / EVAL_BLOCK_TOKENS] + key % EVAL_BLOCK_TOKENS * dims;
        inputs->weights[key] = scale * dot(query, at, dims);
        most = fmaxf(most, inputs->weights[key]);
    }
    for (uint32_t key = 0; key <= position; key++) {
        inputs->weights[key] = expf(inputs->weights[key] - most);
        sum += (double)inputs->weights[key];
    }
    for (uint32_t key = 0; key <= position; key++)
        scores[key / EVAL_BLOCK_TOKENS * block_stride + key % EVAL_BLOCK_TOKENS] +=
            inputs->weights[key] / (float)sum;
}

void eval_inputs_score(struct eval_inputs *inputs, uint32_t layer, uint32_t kv_head,
                       const float *const *keys)
{
    const struct larder_model_config *c = inputs->config;
    uint64_t block_stride = (uint64_t)c->layers * c->kv_heads * EVAL_BLOCK_TOKENS;
    float *scores =
        inputs->importance + ((uint64_t)layer * c->kv_heads + kv_head) * EVAL_BLOCK_TOKENS;
    for (uint32_t probe = 0; probe < inputs->probe_count; probe++) {
        const float *queries =
            probe_of(inputs, layer, probe) + (size_t)kv_head * inputs->group * c->head_dims;
        for (uint32_t i = 0; i < inputs->group; i++)
            add_attention(inputs, scores, block_stride, queries + (size_t)i * c->head_dims,
                          inputs->probes[probe], keys);
    }
    uint32_t before = 0; /* probes that stand before the key: they do not see it */
    for (uint32_t key = 0; key < EVAL_PREFIX_TOKENS; key++) {
        while (inputs->probes[before] < key)
            before++;
        scores[key / EVAL_BLOCK_TOKENS * block_stride + key % EVAL_BLOCK_TOKENS] /=
            (float)(inputs->probe_count - before);
    }
}

const float *eval_inputs_importance(const struct eval_inputs *inputs, uint32_t block)
{
    return inputs->importance +
           (size_t)block * inputs->config->layers * inputs->config->kv_heads * EVAL_BLOCK_TOKENS;
}

const float *eval_inputs_q_max(const struct eval_inputs *inputs)
{
    return inputs->q_max;
}
