/* SPDX-License-Identifier: Apache-2.0 */
/* llama_weights.h - a model's tensors by their place in the forward. Inside kernels/ only.
 * Owns:    what was placed on the device, and one block with norms and biases in f32. The mapped
 *          files must outlive it: the CPU computes on them in place.
 */
#ifndef LARDER_KERNELS_LLAMA_WEIGHTS_H
#define LARDER_KERNELS_LLAMA_WEIGHTS_H

#include "kernels/kernels.h"
#include "kernels/model_config.h"
#include "kernels/safetensors.h"

struct llama_linear {
    struct larder_tensor weight; /* [n, k], in the file's dtype */
    struct larder_tensor bias;   /* f32 [1, n]; data NULL: none */
};

struct llama_layer {
    struct larder_tensor input_norm; /* norms: f32 [1, n] */
    struct larder_tensor post_norm;
    struct larder_tensor q_norm; /* data NULL: none */
    struct larder_tensor k_norm;
    struct llama_linear q;
    struct llama_linear k;
    struct llama_linear v;
    struct llama_linear out;
    struct llama_linear gate;
    struct llama_linear up;
    struct llama_linear down;
};

struct llama_weights {
    struct larder_device *device;
    struct larder_tensor embedding; /* [vocab, hidden] */
    struct larder_tensor norm;
    struct llama_linear head; /* the embedding when tied */
    bool tied;
    struct llama_layer *layers;
    uint32_t layer_count;
    float *vectors; /* norms and biases */
    uint64_t vector_room;
    uint64_t vector_count;
};

/* LARDER_EFORMAT when a tensor is missing or has another shape than config.json asks for. */
int llama_weights_open(struct llama_weights *out, struct larder_device *device,
                       const struct larder_weights *files,
                       const struct larder_model_config *config);
void llama_weights_close(struct llama_weights *weights);

#endif
