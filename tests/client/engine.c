/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/client/engine.h"

#include <stdlib.h>
#include <string.h>

#define LAYERS ENGINE_LAYERS
#define HEADS  ENGINE_HEADS
#define DIMS   ENGINE_DIMS
#define TOKENS ENGINE_TOKENS
#define BLOCK  ENGINE_BLOCK
#define BLOCKS ENGINE_BLOCKS

uint32_t engine_random(void)
{
    static _Thread_local uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/* --- the layouts ----------------------------------------------------------------------------- */

typedef void (*fill_layout)(struct engine *engine, int64_t e);

static void fill_plain(struct engine *engine, int64_t e)
{
    (void)e;
    if (larder_layout_plain(&engine->layout, &engine->desc, engine->memory, TOKENS) < 0)
        abort();
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

const unsigned engine_layouts = sizeof(cases) / sizeof(cases[0]);

/* --- memory ---------------------------------------------------------------------------------- */

void engine_scramble(struct engine *engine)
{
    for (size_t i = 0; i < engine->bytes; i++)
        engine->memory[i] = (char)engine_random();
}

void engine_open(struct engine *engine, unsigned layout, uint32_t dtype)
{
    memset(engine, 0, sizeof(*engine));
    engine->name = cases[layout].name;
    engine->desc = (struct larder_model_desc){
        .name = "engine",
        .layers = LAYERS,
        .kv_heads = HEADS,
        .k_dims = DIMS,
        .v_dims = DIMS,
        .dtype = dtype,
        .vocab = 256,
    };
    const size_t e = larder_dtype_bytes(dtype);
    engine->bytes = e * 2 * LAYERS * BLOCKS * BLOCK * HEADS * DIMS;
    engine->memory = aligned_alloc(64, engine->bytes);
    if (!engine->memory)
        abort();
    engine_scramble(engine);
    engine->layout.dtype = dtype;
    engine->layout.k_dim_stride = (int64_t)e;
    engine->layout.v_dim_stride = (int64_t)e;
    engine->layout.token_capacity = TOKENS;
    cases[layout].fill(engine, (int64_t)e);
}

void engine_close(struct engine *engine)
{
    free(engine->memory);
}

char *engine_element(const struct larder_layout *layout, uint32_t layer, uint32_t kind,
                     uint64_t token, uint32_t head, uint32_t dim)
{
    const bool v = kind == 1;
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

/* --- KV -------------------------------------------------------------------------------------- */

static uint32_t mix(uint32_t a, uint32_t b)
{
    uint32_t h = a * 0x9e3779b1u ^ (b + 0x7f4a7c15u) * 0x85ebca6bu;
    h ^= h >> 15;
    h *= 0x2c1b3c6du;
    return h ^ h >> 13;
}

/* Shaped like KV: a small range of exponents, a scale per channel. */
static void make_value(char out[4], uint32_t dtype, uint32_t hash, uint32_t dim)
{
    float value = ((float)(hash & 0xffff) - 32768.0f) / 32768.0f * (float)(1 + dim % 5);
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (dtype == LARDER_BF16)
        bits >>= 16;
    else if (dtype == LARDER_F16)
        bits = (hash & 0x83ff) | (14u << 10);
    memcpy(out, &bits, sizeof(bits));
}

/* Visits the values of tokens [first, end): false ends it. */
static bool walk(const struct engine *engine, const uint32_t *tokens, size_t first, size_t end,
                 uint32_t layers, bool (*visit)(char *at, const char *value, size_t bytes))
{
    const size_t e = larder_dtype_bytes(engine->desc.dtype);
    uint32_t history = 1;
    for (size_t token = 0; token < end; token++) {
        history = mix(history, tokens[token]);
        for (uint32_t layer = 0; token >= first && layer < layers; layer++)
            for (uint32_t kind = 0; kind < 2; kind++)
                for (uint32_t head = 0; head < HEADS; head++)
                    for (uint32_t dim = 0; dim < DIMS; dim++) {
                        char value[4];
                        uint32_t place = ((layer * 2 + kind) * HEADS + head) * DIMS + dim;
                        make_value(value, engine->desc.dtype, mix(history, place), dim);
                        if (!visit(engine_element(&engine->layout, layer, kind, token, head, dim),
                                   value, e))
                            return false;
                    }
    }
    return true;
}

static bool write_value(char *at, const char *value, size_t bytes)
{
    memcpy(at, value, bytes);
    return true;
}

static bool is_value(char *at, const char *value, size_t bytes)
{
    return memcmp(at, value, bytes) == 0;
}

void engine_prefill(struct engine *engine, const uint32_t *tokens, size_t count)
{
    (void)walk(engine, tokens, 0, count, LAYERS, write_value);
}

bool engine_holds(const struct engine *engine, const uint32_t *tokens, size_t first, size_t end,
                  uint32_t layers)
{
    return walk(engine, tokens, first, end, layers, is_value);
}
