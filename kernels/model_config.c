/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/model_config.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/json_file.h"
#include "kernels/rope.h"

struct family {
    const char *architecture;
    bool qkv_bias;       /* always there */
    bool attention_bias; /* config.json may ask for biases of all four projections */
    bool mlp_bias;       /* and of the feed-forward */
    bool qk_norm;
    bool always_slides; /* sliding_window counts without use_sliding_window; 4096 when missing */
    uint32_t head_dims; /* default; 0: hidden_size / num_attention_heads */
};

static const struct family families[] = {
    {.architecture = "LlamaForCausalLM", .attention_bias = true, .mlp_bias = true},
    {.architecture = "MistralForCausalLM", .always_slides = true},
    {.architecture = "Qwen2ForCausalLM", .qkv_bias = true},
    {.architecture = "Qwen3ForCausalLM", .attention_bias = true, .qk_norm = true, .head_dims = 128},
};

/* config.json, for messages. */
struct source {
    const char *path;
    const json_t *root;
};

static bool absent(const json_t *value)
{
    return !value || json_is_null(value);
}

/* `missing` 0: the value must be there. */
static int read_u32(uint32_t *out, const struct source *s, const char *name, uint32_t missing,
                    uint32_t limit)
{
    const json_t *value = json_object_get(s->root, name);
    *out = missing;
    if (absent(value))
        return missing ? 0
                       : larder_fail(LARDER_EFORMAT,
                                     "%s: %s is missing; is this the config.json "
                                     "of a language model?",
                                     s->path, name);
    if (!json_is_integer(value))
        return larder_fail(LARDER_EFORMAT, "%s: %s is not an integer", s->path, name);
    json_int_t number = json_integer_value(value);
    if (number < 1 || number > (json_int_t)limit)
        return larder_fail(LARDER_EFORMAT, "%s: %s=%lld is not within 1..%u", s->path, name,
                           (long long)number, limit);
    *out = (uint32_t)number;
    return 0;
}

static int read_bool(bool *out, const struct source *s, const char *name)
{
    const json_t *value = json_object_get(s->root, name);
    *out = json_is_true(value);
    if (!absent(value) && !json_is_boolean(value))
        return larder_fail(LARDER_EFORMAT, "%s: %s is neither true nor false", s->path, name);
    return 0;
}

/* A finite number of `object`, which is config.json or a part of it. */
static int read_double(double *out, const struct source *s, const json_t *object, const char *name,
                       double missing)
{
    const json_t *value = json_object_get(object, name);
    *out = missing;
    if (absent(value))
        return 0;
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return larder_fail(LARDER_EFORMAT, "%s: %s is not a finite number", s->path, name);
    *out = json_number_value(value);
    return 0;
}

static int read_family(const struct family **out, const struct source *s)
{
    const char *name =
        json_string_value(json_array_get(json_object_get(s->root, "architectures"), 0));
    if (!name)
        return larder_fail(LARDER_EFORMAT, "%s: architectures names no model class", s->path);
    for (size_t i = 0; i < LARDER_COUNT_OF(families); i++)
        if (strcmp(families[i].architecture, name) == 0) {
            *out = &families[i];
            return 0;
        }
    return larder_fail(LARDER_EUNSUPPORTED,
                       "%s: architecture '%.64s' is not supported; these are: LlamaForCausalLM, "
                       "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
                       s->path, name);
}

static int read_sizes(struct larder_model_config *c, const struct source *s,
                      const struct family *family)
{
    LARDER_TRY(read_u32(&c->layers, s, "num_hidden_layers", 0, LARDER_LAYERS_MAX));
    LARDER_TRY(read_u32(&c->hidden, s, "hidden_size", 0, LARDER_HIDDEN_MAX));
    LARDER_TRY(read_u32(&c->feedforward, s, "intermediate_size", 0, LARDER_FEEDFORWARD_MAX));
    LARDER_TRY(read_u32(&c->heads, s, "num_attention_heads", 0,
                        LARDER_KV_HEADS_MAX * LARDER_HEAD_GROUP_MAX));
    LARDER_TRY(read_u32(&c->kv_heads, s, "num_key_value_heads", c->heads, LARDER_KV_HEADS_MAX));
    LARDER_TRY(read_u32(&c->vocab, s, "vocab_size", 0, LARDER_VOCAB_MAX));
    LARDER_TRY(
        read_u32(&c->positions_max, s, "max_position_embeddings", 2048, LARDER_PROMPT_TOKENS_MAX));
    uint32_t head_dims = family->head_dims ? family->head_dims : c->hidden / c->heads;
    if (head_dims == 0)
        head_dims = UINT32_MAX; /* refused below unless head_dim says something else */
    LARDER_TRY(read_u32(&c->head_dims, s, "head_dim", head_dims, LARDER_HEAD_DIMS_MAX));
    if (c->head_dims > LARDER_HEAD_DIMS_MAX)
        return larder_fail(LARDER_EFORMAT,
                           "%s: %u heads of hidden_size=%u do not have 1..%u dimensions each",
                           s->path, c->heads, c->hidden, LARDER_HEAD_DIMS_MAX);
    if (c->kv_heads > LARDER_KV_HEADS_MAX || c->heads % c->kv_heads != 0 ||
        c->heads / c->kv_heads > LARDER_HEAD_GROUP_MAX)
        return larder_fail(LARDER_EFORMAT,
                           "%s: %u attention heads do not share %u KV heads evenly, at most %u "
                           "each",
                           s->path, c->heads, c->kv_heads, LARDER_HEAD_GROUP_MAX);
    double eps;
    LARDER_TRY(read_double(&eps, s, s->root, "rms_norm_eps", 1e-6));
    if (eps < 0 || eps > 1)
        return larder_fail(LARDER_EFORMAT, "%s: rms_norm_eps=%g is not within 0..1", s->path, eps);
    c->norm_eps = (float)eps;
    return 0;
}

static int read_switches(struct larder_model_config *c, const struct source *s,
                         const struct family *family)
{
    bool attention_bias;
    bool mlp_bias;
    LARDER_TRY(read_bool(&c->tied, s, "tie_word_embeddings"));
    LARDER_TRY(read_bool(&attention_bias, s, "attention_bias"));
    LARDER_TRY(read_bool(&mlp_bias, s, "mlp_bias"));
    c->out_bias = family->attention_bias && attention_bias;
    c->qkv_bias = family->qkv_bias || c->out_bias;
    c->mlp_bias = family->mlp_bias && mlp_bias;
    c->qk_norm = family->qk_norm;
    const char *act = json_string_value(json_object_get(s->root, "hidden_act"));
    if (act && strcmp(act, "silu") != 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "%s: hidden_act '%.32s' is not supported; 'silu' is", s->path, act);
    if (!absent(json_object_get(s->root, "quantization_config")))
        return larder_fail(LARDER_EUNSUPPORTED,
                           "%s: quantized weights are not supported; use the BF16, F16 or F32 "
                           "form of the model",
                           s->path);
    return 0;
}

/* A window that every position fits in hides nothing. */
static int refuse_windows(const struct larder_model_config *c, const struct source *s,
                          const struct family *family)
{
    const json_t *value = json_object_get(s->root, "sliding_window");
    bool in_use = family->always_slides;
    uint32_t first_sliding = 0;
    if (!in_use) {
        LARDER_TRY(read_bool(&in_use, s, "use_sliding_window"));
        const json_t *layer = json_object_get(s->root, "max_window_layers");
        first_sliding =
            json_is_integer(layer) && json_integer_value(layer) >= c->layers ? c->layers : 0;
    }
    uint32_t window = UINT32_MAX;
    if (!value || !json_is_null(value))
        LARDER_TRY(read_u32(&window, s, "sliding_window", 4096, UINT32_MAX));
    if (in_use && first_sliding < c->layers && window < c->positions_max)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "%s: a sliding window of %u of %u positions is not supported; only "
                           "full attention is",
                           s->path, window, c->positions_max);
    size_t i;
    json_t *type;
    json_array_foreach(json_object_get(s->root, "layer_types"), i, type)
    {
        const char *name = json_string_value(type);
        if (!name || strcmp(name, "full_attention") != 0)
            return larder_fail(LARDER_EUNSUPPORTED,
                               "%s: layer %zu is of type '%.32s'; only full_attention is supported",
                               s->path, i, name ? name : "?");
    }
    return 0;
}

static int read_rope_kind(struct larder_rope *rope, const struct source *s, const json_t *scaling)
{
    static const struct {
        const char *name;
        uint32_t kind;
    } kinds[] = {{"default", LARDER_ROPE_PLAIN},
                 {"linear", LARDER_ROPE_LINEAR},
                 {"llama3", LARDER_ROPE_LLAMA3},
                 {"yarn", LARDER_ROPE_YARN}};
    const json_t *type = json_object_get(scaling, "rope_type");
    const char *name = json_string_value(type ? type : json_object_get(scaling, "type"));
    if (!name)
        name = "default";
    for (size_t i = 0; i < LARDER_COUNT_OF(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0) {
            rope->kind = kinds[i].kind;
            return 0;
        }
    return larder_fail(LARDER_EUNSUPPORTED,
                       "%s: rope_type '%.32s' is not supported; default, linear, llama3 and yarn "
                       "are",
                       s->path, name);
}

/* How much yarn lengthens what it turns, unless config.json says so itself. */
static int read_yarn_factor(struct larder_rope *rope, const struct source *s, const json_t *scaling)
{
    double mscale;
    double mscale_all;
    LARDER_TRY(read_double(&mscale, s, scaling, "mscale", 0));
    LARDER_TRY(read_double(&mscale_all, s, scaling, "mscale_all_dim", 0));
    double growth = rope->factor <= 1 ? 0 : 0.1 * log(rope->factor);
    double inferred = growth + 1;
    if (mscale != 0 && mscale_all != 0)
        inferred = (growth * mscale + 1) / (growth * mscale_all + 1);
    const json_t *truncate = json_object_get(scaling, "truncate");
    if (json_is_false(truncate))
        return larder_fail(LARDER_EUNSUPPORTED, "%s: yarn with truncate=false is not supported",
                           s->path);
    return read_double(&rope->attention_factor, s, scaling, "attention_factor", inferred);
}

static int read_scaling(struct larder_model_config *c, const struct source *s,
                        const json_t *scaling)
{
    struct larder_rope *rope = &c->rope;
    LARDER_TRY(read_double(&rope->theta, s, scaling, "rope_theta", rope->theta));
    LARDER_TRY(read_rope_kind(rope, s, scaling));
    if (rope->kind == LARDER_ROPE_PLAIN)
        return 0;

    double trained = c->positions_max;
    LARDER_TRY(read_double(&trained, s, scaling, "original_max_position_embeddings", trained));
    LARDER_TRY(read_double(&trained, s, s->root, "original_max_position_embeddings", trained));
    if (trained < 1 || trained > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_EFORMAT,
                           "%s: original_max_position_embeddings=%g is not within 1..%u", s->path,
                           trained, LARDER_PROMPT_TOKENS_MAX);
    double factor = rope->kind == LARDER_ROPE_YARN ? c->positions_max / trained : 0;
    LARDER_TRY(read_double(&rope->factor, s, scaling, "factor", factor));
    if (rope->kind == LARDER_ROPE_LINEAR)
        return 0;
    rope->original_max_position = (uint32_t)trained;
    if (rope->kind == LARDER_ROPE_LLAMA3) {
        LARDER_TRY(read_double(&rope->low_freq_factor, s, scaling, "low_freq_factor", 0));
        return read_double(&rope->high_freq_factor, s, scaling, "high_freq_factor", 0);
    }
    LARDER_TRY(read_double(&rope->beta_fast, s, scaling, "beta_fast", 32));
    LARDER_TRY(read_double(&rope->beta_slow, s, scaling, "beta_slow", 1));
    return read_yarn_factor(rope, s, scaling);
}

/* rope_theta and rope_scaling, or both in one rope_parameters. */
static int read_rope(struct larder_model_config *c, const struct source *s)
{
    c->rope = (struct larder_rope){.kind = LARDER_ROPE_PLAIN,
                                   .rotary_dims = c->head_dims,
                                   .theta = 10000,
                                   .factor = 1,
                                   .attention_factor = 1};
    LARDER_TRY(read_double(&c->rope.theta, s, s->root, "rope_theta", c->rope.theta));
    const json_t *scaling = json_object_get(s->root, "rope_parameters");
    if (absent(scaling))
        scaling = json_object_get(s->root, "rope_scaling");
    if (!absent(scaling) && !json_is_object(scaling))
        return larder_fail(LARDER_EFORMAT, "%s: rope_scaling or rope_parameters is not an object",
                           s->path);
    if (json_object_get(scaling, "full_attention") || json_object_get(scaling, "sliding_attention"))
        return larder_fail(LARDER_EUNSUPPORTED, "%s: RoPE that differs by layer is not supported",
                           s->path);
    double share;
    LARDER_TRY(read_double(&share, s, s->root, "partial_rotary_factor", 1));
    if (!absent(scaling)) {
        LARDER_TRY(read_double(&share, s, scaling, "partial_rotary_factor", share));
        LARDER_TRY(read_scaling(c, s, scaling));
    }
    if (share != 1)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "%s: partial_rotary_factor=%g: models of this family rotate whole heads",
                           s->path, share);
    return larder_rope_check(&c->rope, c->head_dims);
}

static int read_token(uint32_t *out, const struct larder_model_config *c, const struct source *s,
                      const char *name, const json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= (json_int_t)c->vocab)
        return larder_fail(LARDER_EFORMAT, "%s: %s is not a token below vocab_size=%u", s->path,
                           name, c->vocab);
    *out = (uint32_t)json_integer_value(value);
    return 0;
}

static int read_tokens(struct larder_model_config *c, const struct source *s)
{
    const json_t *bos = json_object_get(s->root, "bos_token_id");
    c->bos = -1;
    if (!absent(bos)) {
        uint32_t token;
        LARDER_TRY(read_token(&token, c, s, "bos_token_id", bos));
        c->bos = token;
    }
    const json_t *eos = json_object_get(s->root, "eos_token_id");
    c->eos_count = 0;
    if (absent(eos))
        return 0;
    if (!json_is_array(eos)) {
        LARDER_TRY(read_token(&c->eos[0], c, s, "eos_token_id", eos));
        c->eos_count = 1;
        return 0;
    }
    if (json_array_size(eos) > LARDER_EOS_MAX)
        return larder_fail(LARDER_EFORMAT, "%s: eos_token_id lists %zu tokens, more than %d",
                           s->path, json_array_size(eos), LARDER_EOS_MAX);
    for (; c->eos_count < json_array_size(eos); c->eos_count++)
        LARDER_TRY(read_token(&c->eos[c->eos_count], c, s, "eos_token_id",
                              json_array_get(eos, c->eos_count)));
    return 0;
}

static int read_config(struct larder_model_config *c, const struct source *s)
{
    const struct family *family = NULL;
    LARDER_TRY(read_family(&family, s));
    strncpy(c->architecture, family->architecture, sizeof(c->architecture) - 1);
    LARDER_TRY(read_sizes(c, s, family));
    LARDER_TRY(read_switches(c, s, family));
    LARDER_TRY(refuse_windows(c, s, family));
    LARDER_TRY(read_rope(c, s));
    return read_tokens(c, s);
}

int larder_model_config_load(struct larder_model_config *out, const char *directory)
{
    memset(out, 0, sizeof(*out));
    char *path = join_path(directory, "config.json");
    if (!path)
        return -ENOMEM;
    json_t *root = NULL;
    int err = json_file_load(&root, path);
    if (err == 0)
        err = read_config(out, &(struct source){.path = path, .root = root});
    json_decref(root);
    larder_free(path);
    return err;
}
