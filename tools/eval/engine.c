/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/engine.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/llama.h"
#include "tools/eval/planes.h"
#include "tools/eval/stats.h"

#define RUN_LOGITS (EVAL_RUNS_MAX * EVAL_NEXT_TOKENS)

struct eval_engine {
    struct larder_device *device;
    struct larder_llama *model;
    const struct larder_model_config *config;
    struct larder_model_desc desc;
    struct larder_kv_cache *cache;
    uint64_t plane_bytes[2]; /* of a block's K and V of one layer */
    uint64_t block_bytes;
    uint64_t query_floats; /* of one layer */

    struct eval_inputs *inputs; /* NULL: not wanted */

    /* of the loaded prefix */
    const struct eval_prefix *prefix;
    uint8_t *planes;
    float *wide;      /* the planes as f32 */
    float *plane;     /* one plane as f32, of those compared */
    float *log_probs; /* [run][token][vocab] */
    float *queries;   /* [layer][EVAL_QUERY_ROWS][heads * dims] */
    float *attention; /* the same, its output */
    double *energy;   /* [layer][EVAL_PARTS] */
    float *logits;    /* [token][vocab] of a run */
    float *attended;  /* of one layer */
    uint32_t query_rows;
};

static int open_memory(struct eval_engine *engine)
{
    const struct larder_model_config *c = engine->config;
    const struct larder_model_desc *desc = &engine->desc;
    uint64_t elem_bytes = larder_dtype_bytes(desc->dtype);
    engine->plane_bytes[LARDER_K] = elem_bytes * EVAL_BLOCK_TOKENS * desc->kv_heads * desc->k_dims;
    engine->plane_bytes[LARDER_V] = elem_bytes * EVAL_BLOCK_TOKENS * desc->kv_heads * desc->v_dims;
    engine->block_bytes =
        desc->layers * (engine->plane_bytes[LARDER_K] + engine->plane_bytes[LARDER_V]);
    engine->query_floats = (uint64_t)EVAL_QUERY_ROWS * c->heads * c->head_dims;
    engine->planes = larder_alloc_aligned(64, eval_engine_planes_bytes(engine));
    engine->log_probs = larder_alloc_zero((size_t)RUN_LOGITS * c->vocab, sizeof(float));
    engine->queries = larder_alloc_zero(c->layers * engine->query_floats, sizeof(float));
    engine->attention = larder_alloc_zero(c->layers * engine->query_floats, sizeof(float));
    engine->attended = larder_alloc_zero(engine->query_floats, sizeof(float));
    engine->energy = larder_alloc_zero((size_t)c->layers * EVAL_PARTS, sizeof(double));
    uint64_t elems = eval_engine_planes_bytes(engine) / elem_bytes;
    engine->wide = larder_alloc_zero(elems, sizeof(float));
    engine->plane = larder_alloc_zero(
        larder_max_u64(engine->plane_bytes[0], engine->plane_bytes[1]) / elem_bytes, sizeof(float));
    engine->logits = larder_alloc_zero((size_t)EVAL_NEXT_TOKENS * c->vocab, sizeof(float));
    if (!engine->planes || !engine->log_probs || !engine->queries || !engine->attention ||
        !engine->attended || !engine->energy || !engine->logits || !engine->wide || !engine->plane)
        return larder_fail(-ENOMEM, "no memory for an evaluation");
    return 0;
}

int eval_engine_open(struct eval_engine **out, const char *model_directory, uint32_t threads)
{
    *out = NULL;
    struct eval_engine *engine = larder_alloc_zero(1, sizeof(*engine));
    if (!engine)
        return larder_fail(-ENOMEM, "no memory for an evaluation");
    int err = larder_device_open(&engine->device, "cpu",
                                 &(struct larder_device_options){.threads = threads});
    if (err == 0)
        err = larder_llama_open(&engine->model, engine->device, model_directory);
    if (err == 0) {
        engine->config = larder_llama_config(engine->model);
        err = larder_llama_describe(engine->model, &engine->desc, 0);
    }
    if (err == 0)
        err = larder_llama_cache_open(engine->model, &engine->cache,
                                      EVAL_PREFIX_TOKENS + EVAL_NEXT_TOKENS, 0);
    if (err == 0)
        err = open_memory(engine);
    if (err < 0) {
        eval_engine_close(engine);
        return err;
    }
    *out = engine;
    return 0;
}

int eval_engine_want_inputs(struct eval_engine *engine)
{
    return engine->inputs ? 0 : eval_inputs_open(&engine->inputs, engine->config);
}

void eval_engine_close(struct eval_engine *engine)
{
    if (!engine)
        return;
    eval_inputs_close(engine->inputs);
    larder_free(engine->logits);
    larder_free(engine->energy);
    larder_free(engine->attended);
    larder_free(engine->attention);
    larder_free(engine->queries);
    larder_free(engine->log_probs);
    larder_free(engine->plane);
    larder_free(engine->wide);
    larder_free(engine->planes);
    larder_kv_cache_close(engine->cache);
    larder_llama_close(engine->model);
    larder_device_close(engine->device);
    larder_free(engine);
}

const struct larder_model_config *eval_engine_config(const struct eval_engine *engine)
{
    return engine->config;
}

const struct larder_model_desc *eval_engine_desc(const struct eval_engine *engine)
{
    return &engine->desc;
}

const struct eval_inputs *eval_engine_inputs(const struct eval_engine *engine)
{
    return engine->inputs;
}

uint64_t eval_engine_planes_bytes(const struct eval_engine *engine)
{
    return EVAL_BLOCKS * engine->block_bytes;
}

const uint8_t *eval_engine_planes(const struct eval_engine *engine)
{
    return engine->planes;
}

const double *eval_engine_energy(const struct eval_engine *engine)
{
    return engine->energy;
}

/* --- planes and the cache --------------------------------------------------------------------- */

static void take_planes(struct eval_engine *engine)
{
    for (uint32_t block = 0; block < EVAL_BLOCKS; block++)
        eval_planes_take(engine->planes + block * engine->block_bytes, engine->cache,
                         block * EVAL_BLOCK_TOKENS, EVAL_BLOCK_TOKENS);
}

static void give_planes(struct eval_engine *engine, const uint8_t *planes)
{
    for (uint32_t block = 0; block < EVAL_BLOCKS; block++)
        eval_planes_give(planes + block * engine->block_bytes, engine->cache,
                         block * EVAL_BLOCK_TOKENS, EVAL_BLOCK_TOKENS);
}

/* --- how far apart ---------------------------------------------------------------------------- */

#define SUM_LANES 16u

/* Of a few hundred numbers in f32, lane by lane, which are then added up in f64. */
static double sum_of_squares(const float *a, const float *b, uint64_t count)
{
    double sum = 0;
    for (uint64_t first = 0; first < count; first += 16 * SUM_LANES) {
        uint64_t end = larder_min_u64(first + 16 * SUM_LANES, count);
        float lanes[SUM_LANES] = {0};
        uint64_t i = first;
        for (; i + SUM_LANES <= end; i += SUM_LANES) {
            for (uint32_t lane = 0; lane < SUM_LANES; lane++) {
                float off = b ? a[i + lane] - b[i + lane] : a[i + lane];
                lanes[lane] += off * off;
            }
        }
        for (; i < end; i++) {
            float off = b ? a[i] - b[i] : a[i];
            lanes[0] += off * off;
        }
        for (uint32_t lane = 0; lane < SUM_LANES; lane++)
            sum += (double)lanes[lane];
    }
    return sum;
}

/* Planes of one layer's K or V in one block, as f32. */
static int widen_plane(const struct eval_engine *engine, float *out, const uint8_t *plane,
                       enum larder_kv kv)
{
    uint32_t dtype = engine->desc.dtype;
    uint64_t elems = engine->plane_bytes[kv] / larder_dtype_bytes(dtype);
    struct larder_tensor to = larder_matrix(out, LARDER_F32, 1, elems);
    struct larder_tensor from = larder_matrix((void *)(uintptr_t)plane, dtype, 1, elems);
    return engine->device->ops->convert(engine->device, &to, &from);
}

/* Adds up K's and V's squares, of the planes or of their difference to the reference. */
static int sum_planes(struct eval_engine *engine, double *sums, const uint8_t *planes)
{
    bool is_reference = planes == engine->planes;
    float *reference = engine->wide;
    for (uint32_t i = 0; i < EVAL_BLOCKS * engine->desc.layers * 2; i++) {
        enum larder_kv kv = i % 2 ? LARDER_V : LARDER_K;
        uint64_t elems = engine->plane_bytes[kv] / larder_dtype_bytes(engine->desc.dtype);
        float *numbers = is_reference ? reference : engine->plane;
        LARDER_TRY(widen_plane(engine, numbers, planes, kv));
        sums[i / 2 % engine->desc.layers * EVAL_PARTS + (kv == LARDER_V ? EVAL_V : EVAL_K)] +=
            sum_of_squares(numbers, is_reference ? NULL : reference, elems);
        planes += engine->plane_bytes[kv];
        reference += elems;
    }
    return 0;
}

/* What the kept queries of a layer read from the prefix that is in the cache. */
static int attend(struct eval_engine *engine, float *out, uint32_t layer)
{
    const struct larder_model_config *c = engine->config;
    uint32_t positions[EVAL_QUERY_ROWS];
    for (uint32_t i = 0; i < engine->query_rows; i++)
        positions[i] = EVAL_PREFIX_TOKENS + i;
    struct larder_tensor to =
        larder_cube(out, LARDER_F32, engine->query_rows, c->heads, c->head_dims);
    struct larder_attention attention = {
        .q = larder_cube(engine->queries + layer * engine->query_floats, LARDER_F32,
                         engine->query_rows, c->heads, c->head_dims),
        .k = larder_kv_cache_tensor(engine->cache, layer, LARDER_K, 0, EVAL_PREFIX_TOKENS),
        .v = larder_kv_cache_tensor(engine->cache, layer, LARDER_V, 0, EVAL_PREFIX_TOKENS),
        .query_positions = positions,
        .scale = 1.0f / sqrtf((float)c->head_dims),
    };
    return engine->device->ops->attention(engine->device, &to, &attention);
}

static int sum_attention(struct eval_engine *engine, double *sums, bool is_reference)
{
    uint64_t count =
        (uint64_t)engine->query_rows * engine->config->heads * engine->config->head_dims;
    for (uint32_t layer = 0; layer < engine->desc.layers; layer++) {
        float *kept = engine->attention + layer * engine->query_floats;
        float *out = is_reference ? kept : engine->attended;
        LARDER_TRY(attend(engine, out, layer));
        sums[layer * EVAL_PARTS + EVAL_ATTENTION] +=
            sum_of_squares(out, is_reference ? NULL : kept, count);
    }
    return 0;
}

/* --- runs ------------------------------------------------------------------------------------- */

static int run_after(struct eval_engine *engine, const struct eval_run *run)
{
    engine->cache->count = EVAL_PREFIX_TOKENS;
    return larder_llama_forward(engine->model, engine->cache, engine->logits, LARDER_LOGITS_ALL,
                                run->tokens, run->count);
}

static float *log_probs_of(const struct eval_engine *engine, uint32_t run, uint32_t token)
{
    return engine->log_probs + ((uint64_t)run * EVAL_NEXT_TOKENS + token) * engine->config->vocab;
}

/* The first run's queries are the ones that attention is judged by. */
static void keep_queries(void *context, uint32_t layer, uint32_t first,
                         const struct larder_tensor *q)
{
    struct eval_engine *engine = context;
    if (first != EVAL_PREFIX_TOKENS)
        return;
    uint32_t rows = (uint32_t)larder_min_u64(q->shape[0], EVAL_QUERY_ROWS);
    memcpy(engine->queries + layer * engine->query_floats, q->data,
           rows * q->shape[1] * q->shape[2] * sizeof(float));
    engine->query_rows = rows;
}

static int run_reference(struct eval_engine *engine)
{
    const struct eval_prefix *prefix = engine->prefix;
    for (uint32_t i = 0; i < prefix->run_count; i++) {
        larder_llama_watch(engine->model, i == 0 ? keep_queries : NULL, engine);
        int err = run_after(engine, &prefix->runs[i]);
        larder_llama_watch(engine->model, NULL, NULL);
        LARDER_TRY(err);
        for (uint32_t token = prefix->runs[i].scored; token < prefix->runs[i].count; token++)
            eval_log_softmax(log_probs_of(engine, i, token),
                             engine->logits + (uint64_t)token * engine->config->vocab,
                             engine->config->vocab);
    }
    return 0;
}

static void take_inputs(void *context, uint32_t layer, uint32_t first,
                        const struct larder_tensor *q)
{
    eval_inputs_take(context, layer, first, q);
}

static void score_inputs(struct eval_engine *engine)
{
    const struct larder_model_desc *desc = &engine->desc;
    uint64_t head = (uint64_t)EVAL_BLOCK_TOKENS * desc->k_dims;
    uint64_t block_elems = engine->block_bytes / larder_dtype_bytes(desc->dtype);
    for (uint32_t layer = 0; layer < desc->layers; layer++) {
        for (uint32_t kv_head = 0; kv_head < desc->kv_heads; kv_head++) {
            const float *keys[EVAL_BLOCKS];
            for (uint32_t i = 0; i < EVAL_BLOCKS; i++)
                keys[i] = engine->wide + i * block_elems + layer * (block_elems / desc->layers) +
                          kv_head * head;
            eval_inputs_score(engine->inputs, layer, kv_head, keys);
        }
    }
}

static int run_prefix(struct eval_engine *engine)
{
    if (engine->inputs) {
        eval_inputs_clear(engine->inputs);
        larder_llama_watch(engine->model, take_inputs, engine->inputs);
    }
    engine->cache->count = 0;
    int err = larder_llama_forward(engine->model, engine->cache, NULL, LARDER_LOGITS_NONE,
                                   engine->prefix->tokens, EVAL_PREFIX_TOKENS);
    larder_llama_watch(engine->model, NULL, NULL);
    return err;
}

int eval_engine_load(struct eval_engine *engine, const struct eval_prefix *prefix)
{
    engine->prefix = prefix;
    LARDER_TRY(run_prefix(engine));
    take_planes(engine);
    memset(engine->energy, 0, engine->config->layers * EVAL_PARTS * sizeof(*engine->energy));
    LARDER_TRY(run_reference(engine));
    LARDER_TRY(sum_planes(engine, engine->energy, engine->planes));
    if (engine->inputs)
        score_inputs(engine);
    return sum_attention(engine, engine->energy, true);
}

int eval_engine_compare(struct eval_engine *engine, const uint8_t *planes,
                        const struct eval_figures *figures)
{
    const struct eval_prefix *prefix = engine->prefix;
    assert(prefix);
    uint32_t vocab = engine->config->vocab;
    memset(figures->error, 0, engine->config->layers * EVAL_PARTS * sizeof(*figures->error));
    LARDER_TRY(sum_planes(engine, figures->error, planes));
    give_planes(engine, planes);
    for (uint32_t i = 0; i < prefix->run_count; i++) {
        const struct eval_run *run = &prefix->runs[i];
        LARDER_TRY(run_after(engine, run));
        for (uint32_t token = run->scored; token < run->count; token++) {
            const float *reference = log_probs_of(engine, i, token);
            float *here = engine->logits + (uint64_t)token * vocab;
            uint32_t place = run->place + token - run->scored;
            uint32_t came = run->tokens[token + 1];
            eval_log_softmax(here, here, vocab);
            double kl = eval_kl(reference, here, vocab);
            if (!isfinite(kl))
                return larder_fail(-ERANGE, "the model's logits are no numbers behind what came "
                                            "back, or before");
            figures->kl[place] = (float)kl;
            figures->nats[place] = reference[came] - here[came];
            figures->agree[place] = eval_largest(reference, vocab) == eval_largest(here, vocab);
        }
    }
    return sum_attention(engine, figures->error, false);
}
