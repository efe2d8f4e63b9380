/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.h - compute over plain tensors: one table of operations per backend.
 * Owns:    nothing; a device owns its threads and scratch memory (for a GPU: its stream).
 * Threads: a device belongs to one thread at a time; two devices are independent.
 * I1  The CPU's scalar version is the specification. Every operation fixes the order in which it
 *     rounds, so that AVX2 and AVX-512 give the scalar version's very bits.
 * I2  A row's result does not depend on how many rows stand in the call, nor on the number of
 *     threads. So a prefill in one go, in chunks, or behind restored KV gives the same bits.
 * I3  An operation writes its first tensor only. Shapes that do not fit are bugs (assert); a code
 *     comes back only from a backend that can fail while it runs (a GPU).
 * Tensors lie in the device's memory; positions, tokens and the indices of argmax in the host's.
 */
#ifndef LARDER_KERNELS_KERNELS_H
#define LARDER_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/larder_base.h"

#define LARDER_TENSOR_RANK_MAX 4

/* Memory that the device can read. `stride` counts elements; the last dimension is dense. */
struct larder_tensor {
    void *data;
    uint32_t dtype; /* enum larder_dtype */
    uint32_t rank;
    uint64_t shape[LARDER_TENSOR_RANK_MAX];
    uint64_t stride[LARDER_TENSOR_RANK_MAX];
};

/* Dense tensors of two and three dimensions. */
struct larder_tensor larder_matrix(void *data, uint32_t dtype, uint64_t rows, uint64_t columns);
struct larder_tensor larder_cube(void *data, uint32_t dtype, uint64_t rows, uint64_t heads,
                                 uint64_t dims);

struct larder_backend;

/* What every backend's device starts with. */
struct larder_device {
    const struct larder_backend *ops;
};

struct larder_device_options {
    uint32_t threads; /* CPU; 0: as many as there are cores */
    const char *isa;  /* CPU: "scalar", "avx2", "avx512"; NULL: $LARDER_ISA, else the best here */
};

/* Rows of queries over a KV cache. Row i attends to the keys whose position is <= its own. Query
 * head h uses KV head h / (heads / kv_heads). The key order is the order of the reduction, in
 * blocks of LARDER_ATTENTION_BLOCK_KEYS. A row that sees no key gets zeros. V must be finite. */
struct larder_attention {
    struct larder_tensor q;          /* f32 [rows, heads, k_dims], rotated */
    struct larder_tensor k;          /* [keys, kv_heads, k_dims] */
    struct larder_tensor v;          /* [keys, kv_heads, v_dims] */
    const uint32_t *query_positions; /* per row */
    const uint32_t *key_positions;   /* per key; NULL: key j stands at position j */
    float scale;                     /* of the products, usually 1 / sqrt(k_dims) */
};

#define LARDER_ATTENTION_BLOCK_KEYS 64u

/* Rotation of rows in place, from tables of one row per position (kernels/rope.h). */
struct larder_rotation {
    struct larder_tensor cos;  /* f32 [positions, rotary_dims / 2] */
    struct larder_tensor sin;  /* the same */
    const uint32_t *positions; /* per row, each below the tables' rows */
    uint32_t interleaved;      /* 0: pairs (i, i + rotary_dims / 2); 1: pairs (2i, 2i + 1) */
};

struct larder_backend {
    const char *name;
    const char *(*describe)(const struct larder_device *device);
    int (*open)(struct larder_device **out, const struct larder_device_options *options);
    void (*close)(struct larder_device *device);

    /* Memory. The CPU's is the host's, and `place` gives back `host` itself there: weights are
     * used where they are mapped. */
    int (*alloc)(struct larder_device *device, void **out, size_t bytes);
    void (*release)(struct larder_device *device, void *memory);
    int (*place)(struct larder_device *device, void **out, const void *host, size_t bytes);
    void (*unplace)(struct larder_device *device, void *placed);
    int (*download)(struct larder_device *device, void *host, const void *memory, size_t bytes);

    /* out[r][n] = x[r] . weight[n] (+ bias[n]): one chain of fused multiply-adds in the order of
     * k from zero, then the bias. out, x f32 [rows, n], [rows, k]; weight [n, k]; bias [1, n]. */
    int (*matmul)(struct larder_device *device, const struct larder_tensor *out,
                  const struct larder_tensor *x, const struct larder_tensor *weight,
                  const struct larder_tensor *bias);
    /* out = x / sqrt(mean(x^2) + eps) * weight; f32 [rows, n]; weight [1, n]; out may be x. */
    int (*rmsnorm)(struct larder_device *device, const struct larder_tensor *out,
                   const struct larder_tensor *x, const struct larder_tensor *weight, float eps);
    /* x f32 [rows, heads, dims]; dims beyond rotary_dims stay. */
    int (*rope)(struct larder_device *device, const struct larder_tensor *x,
                const struct larder_rotation *rotation);
    /* out f32 [rows, heads, v_dims]. */
    int (*attention)(struct larder_device *device, const struct larder_tensor *out,
                     const struct larder_attention *attention);
    /* out = gate * sigmoid(gate) * up; f32 [rows, n]; out may be gate or up. */
    int (*swiglu)(struct larder_device *device, const struct larder_tensor *out,
                  const struct larder_tensor *gate, const struct larder_tensor *up);
    /* out += x; f32 [rows, n]. */
    int (*add)(struct larder_device *device, const struct larder_tensor *out,
               const struct larder_tensor *x);
    /* out f32 [rows, n] from rows of table [vocab, n]; every token is below vocab. */
    int (*embed)(struct larder_device *device, const struct larder_tensor *out,
                 const struct larder_tensor *table, const uint32_t *tokens);
    /* out[r] = the first index of the largest of x[r]; f32 [rows, n]; NaN never wins. */
    int (*argmax)(struct larder_device *device, uint32_t *out, const struct larder_tensor *x);
    /* out = x in out's dtype, rounded to nearest even; shapes [rows, n] or [rows, heads, dims]. */
    int (*convert)(struct larder_device *device, const struct larder_tensor *out,
                   const struct larder_tensor *x);
};

/* Opens a device of the backend called `name` ("cpu"). `options` may be NULL. -EINVAL for an
 * unknown name; LARDER_EUNSUPPORTED when this machine lacks what is asked for. */
int larder_device_open(struct larder_device **out, const char *name,
                       const struct larder_device_options *options);
void larder_device_close(struct larder_device *device);

/* For people: "avx512, 2 threads". Valid as long as the device. */
const char *larder_device_describe(const struct larder_device *device);

#endif
