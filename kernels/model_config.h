/* SPDX-License-Identifier: Apache-2.0 */
/* model_config.h - what config.json of a model directory says, for the Llama family:
 * LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM.
 * What the forward does not compute (sliding windows in use, experts, quantized weights, other
 * kinds of RoPE) is refused with LARDER_EUNSUPPORTED; values out of their range with
 * LARDER_EFORMAT. A missing value gets the default of transformers.
 */
#ifndef LARDER_KERNELS_MODEL_CONFIG_H
#define LARDER_KERNELS_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"

#define LARDER_EOS_MAX 8

struct larder_model_config {
    char architecture[32];
    uint32_t layers;
    uint32_t hidden;
    uint32_t feedforward;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dims;
    uint32_t vocab;
    uint32_t positions_max; /* the context the model was made for */
    int64_t bos;            /* -1: none */
    uint32_t eos[LARDER_EOS_MAX];
    uint32_t eos_count;
    float norm_eps;
    bool tied;     /* the output projection is the embedding */
    bool qkv_bias; /* q_proj, k_proj, v_proj */
    bool out_bias; /* o_proj */
    bool mlp_bias; /* gate_proj, up_proj, down_proj */
    bool qk_norm;  /* q_norm, k_norm, per head */
    struct larder_rope rope;
};

int larder_model_config_load(struct larder_model_config *out, const char *directory);

#endif
