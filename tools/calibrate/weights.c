/* SPDX-License-Identifier: Apache-2.0 */
/* weights.c - K-sort of "Accurate Block Quantization in LLMs with Outliers" (Trukhanov and
 * Soloveychik, 2024): K's channels ordered by the length of the rows of W_k that make them, so that
 * channels of one size share an exponent.
 *
 *   bfp.order [layer, kv_heads * k_dims] i32   longest first, within each head
 *
 * The rotary embedding mixes the two channels of a pair, so a pair is sorted by the length of both
 * its rows and stays side by side; channels that do not rotate are pairs of neighbours, too.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/mem.h"
#include "codec/node.h"
#include "kernels/safetensors.h"
#include "tools/calibrate/calibrate.h"

struct pair {
    double square;
    int32_t low;
    int32_t high; /* -1: none */
};

static int by_length(const void *a, const void *b)
{
    const struct pair *x = a;
    const struct pair *y = b;
    if (x->square != y->square)
        return x->square > y->square ? -1 : 1;
    return x->low < y->low ? -1 : 1;
}

static double row_square(const struct larder_weight *weight, uint64_t row)
{
    uint64_t columns = weight->shape[1];
    uint64_t elem_bytes = larder_dtype_bytes(weight->dtype);
    const uint8_t *at = (const uint8_t *)weight->data + row * columns * elem_bytes;
    double square = 0;
    for (uint64_t i = 0; i < columns; i++) {
        float x;
        codec_load_elems(&x, at + i * elem_bytes, 1, weight->dtype);
        square += (double)x * (double)x;
    }
    return square;
}

/* The channel that rotates with `dim`, if it is the higher one; -1: it is a pair's higher one. */
static int32_t partner(const struct larder_rope *rope, uint32_t dim, uint32_t dims)
{
    uint32_t rotary = rope->kind == LARDER_ROPE_NONE ? 0 : rope->rotary_dims;
    if (dim < rotary && !rope->interleaved)
        return dim < rotary / 2 ? (int32_t)(dim + rotary / 2) : -1;
    if (dim % 2 == 1)
        return -1;
    return dim + 1 < dims ? (int32_t)(dim + 1) : (int32_t)dim;
}

static void sort_head(int32_t *order, struct pair *pairs, const struct calibration *c,
                      const struct larder_weight *weight, uint32_t head)
{
    uint32_t dims = c->model.k_dims;
    uint32_t count = 0;
    uint64_t first = (uint64_t)head * dims;
    for (uint32_t dim = 0; dim < dims; dim++) {
        int32_t other = partner(&c->model.rope, dim, dims);
        if (other < 0)
            continue;
        pairs[count] = (struct pair){.square = row_square(weight, first + dim),
                                     .low = (int32_t)dim,
                                     .high = other == (int32_t)dim ? -1 : other};
        if (pairs[count].high >= 0)
            pairs[count].square += row_square(weight, first + (uint32_t)other);
        count++;
    }
    qsort(pairs, count, sizeof(*pairs), by_length);
    for (uint32_t i = 0; i < count; i++) {
        *order++ = (int32_t)first + pairs[i].low;
        if (pairs[i].high >= 0)
            *order++ = (int32_t)first + pairs[i].high;
    }
}

static int sort_layers(int32_t *order, struct pair *pairs, const struct calibration *c,
                       const struct larder_weights *weights)
{
    uint64_t channels = (uint64_t)c->model.kv_heads * c->model.k_dims;
    for (uint32_t layer = 0; layer < c->model.layers; layer++) {
        char name[64];
        snprintf(name, sizeof(name), "model.layers.%u.self_attn.k_proj.weight", layer);
        const struct larder_weight *weight = larder_weights_find(weights, name);
        if (!weight || weight->rank != 2 || weight->shape[0] != channels || weight->dtype == 0)
            return larder_fail(LARDER_EFORMAT, "%s: no tensor %s of %llu rows", c->options->model,
                               name, (unsigned long long)channels);
        for (uint32_t head = 0; head < c->model.kv_heads; head++)
            sort_head(order + layer * channels + (uint64_t)head * c->model.k_dims, pairs, c, weight,
                      head);
    }
    return 0;
}

int calibration_sort_weights(const struct calibration *c, struct larder_profile_writer *writer)
{
    uint64_t channels = (uint64_t)c->model.kv_heads * c->model.k_dims;
    struct larder_weights *weights;
    LARDER_TRY(larder_weights_open(&weights, c->options->model));
    int32_t *order = larder_alloc(c->model.layers * channels * sizeof(*order));
    struct pair *pairs = larder_alloc(c->model.k_dims * sizeof(*pairs));
    int err = order && pairs ? sort_layers(order, pairs, c, weights)
                             : larder_fail(-ENOMEM, "no memory for an order");
    if (err == 0)
        err = larder_profile_put(writer, "bfp.order", LARDER_PROFILE_I32,
                                 (uint64_t[]){c->model.layers, channels}, 2, order);
    larder_free(pairs);
    larder_free(order);
    larder_weights_close(weights);
    return err;
}
