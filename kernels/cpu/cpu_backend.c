/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_backend.c - checks shapes, picks the instruction set, and parts the work among threads.
 * Owns:    the pool and one scratch per worker, made when the device opens.
 * Threads: see kernels.h. How the work is parted changes no result: items are whole results.
 */
#include "kernels/cpu/cpu_backend.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/cpu_pool.h"

/* More threads than any machine has cores: catches a size given in place of a count. */
#define THREADS_MAX 1024u
/* Rows of a product that share a packed panel: packing costs about as much as 12 rows. */
#define PRODUCT_ROWS 192u
/* Rows of the light operations in one item. */
#define LIGHT_ROWS 16u
/* Multiply-adds below which waking threads costs more than they save (some 20 us). */
#define PRODUCT_PARALLEL_MIN (1u << 19)

struct cpu_device {
    struct larder_device device; /* first: what callers hold */
    const struct cpu_isa *isa;
    struct cpu_pool *pool;
    struct cpu_scratch **scratch; /* per worker */
    char description[64];
};

/* Best first. */
static const struct cpu_isa *const isas[] = {
#ifdef LARDER_X86
    &cpu_avx512,
    &cpu_avx2,
#endif
    &cpu_scalar,
};

static struct cpu_device *cpu(struct larder_device *device)
{
    assert(device->ops == &larder_cpu_backend);
    return (struct cpu_device *)device;
}

static int choose_isa(const struct cpu_isa **out, const char *name)
{
    if (!name)
        name = getenv("LARDER_ISA");
    for (size_t i = 0; i < LARDER_COUNT_OF(isas); i++) {
        if (name && strcmp(name, isas[i]->name) != 0)
            continue;
        if (isas[i]->usable()) {
            *out = isas[i];
            return 0;
        }
        if (name)
            return larder_fail(LARDER_EUNSUPPORTED,
                               "instruction set '%s': this processor lacks it; try 'scalar'", name);
    }
    return larder_fail(-EINVAL,
                       "instruction set '%s' is unknown; known are scalar, avx2 and avx512 "
                       "(LARDER_ISA or the option isa)",
                       name);
}

static void cpu_close(struct larder_device *device)
{
    struct cpu_device *self = cpu(device);
    if (self->scratch)
        for (uint32_t i = 0; i < cpu_pool_threads(self->pool); i++)
            larder_free(self->scratch[i]);
    larder_free(self->scratch);
    cpu_pool_close(self->pool);
    larder_free(self);
}

static int cpu_open(struct larder_device **out, const struct larder_device_options *options)
{
    *out = NULL;
    const struct cpu_isa *isa = &cpu_scalar;
    LARDER_TRY(choose_isa(&isa, options->isa));
    uint32_t threads = options->threads;
    if (threads > THREADS_MAX)
        return larder_fail(LARDER_ELIMIT, "threads=%u is above %u", threads, THREADS_MAX);
    if (threads == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        threads = cores < 1 ? 1 : cores > (long)THREADS_MAX ? THREADS_MAX : (uint32_t)cores;
    }

    struct cpu_device *self = larder_alloc_zero(1, sizeof(*self));
    if (!self)
        return larder_fail(-ENOMEM, "no memory for a compute device");
    self->device.ops = &larder_cpu_backend;
    self->isa = isa;
    int err = cpu_pool_open(&self->pool, threads);
    if (err < 0) {
        larder_free(self);
        return err;
    }
    snprintf(self->description, sizeof(self->description), "%s, %u thread%s", isa->name, threads,
             threads == 1 ? "" : "s");
    self->scratch = larder_alloc_zero(threads, sizeof(struct cpu_scratch *));
    for (uint32_t i = 0; self->scratch && i < threads; i++) {
        self->scratch[i] = larder_alloc_aligned(64, sizeof(struct cpu_scratch));
        if (!self->scratch[i])
            err = larder_fail(-ENOMEM, "no memory for scratch of %u threads, %zu bytes each",
                              threads, sizeof(struct cpu_scratch));
    }
    if (!self->scratch)
        err = larder_fail(-ENOMEM, "no memory for scratch of %u threads", threads);
    if (err < 0) {
        cpu_close(&self->device);
        return err;
    }
    *out = &self->device;
    return 0;
}

static const char *cpu_describe(const struct larder_device *device)
{
    return ((const struct cpu_device *)device)->description;
}

static int cpu_alloc(struct larder_device *device, void **out, size_t bytes)
{
    (void)device;
    *out = larder_alloc_aligned(64, bytes);
    return *out ? 0 : larder_fail(-ENOMEM, "no memory for %zu bytes", bytes);
}

static void cpu_release(struct larder_device *device, void *memory)
{
    (void)device;
    larder_free(memory);
}

static int cpu_place(struct larder_device *device, void **out, const void *host, size_t bytes)
{
    (void)device;
    (void)bytes;
    *out = (void *)(uintptr_t)host; /* operations only read it */
    return 0;
}

static void cpu_unplace(struct larder_device *device, void *placed)
{
    (void)device;
    (void)placed;
}

static int cpu_download(struct larder_device *device, void *host, const void *memory, size_t bytes)
{
    (void)device;
    memcpy(host, memory, bytes);
    return 0;
}

static bool is_f32(const struct larder_tensor *tensor, uint32_t rank)
{
    return tensor->dtype == LARDER_F32 && tensor->rank == rank && tensor->stride[rank - 1] == 1;
}

static bool same_shape(const struct larder_tensor *a, const struct larder_tensor *b)
{
    return a->rank == b->rank && memcmp(a->shape, b->shape, a->rank * sizeof(a->shape[0])) == 0;
}

static float *row_of(const struct larder_tensor *tensor, uint64_t row)
{
    return (float *)tensor->data + row * tensor->stride[0];
}

/* Matrix product: an item is a panel of columns by a block of rows. */

struct product_job {
    struct cpu_device *self;
    struct cpu_product product;
    uint64_t rows;
    uint64_t columns;
    uint64_t panels;
};

static void run_product(void *context, uint64_t item, uint32_t worker)
{
    const struct product_job *job = context;
    uint64_t row = item / job->panels * PRODUCT_ROWS;
    uint64_t column = item % job->panels * CPU_PANEL_COLUMNS;
    job->self->isa->matmul(job->self->scratch[worker], &job->product, row,
                           larder_min_u64(row + PRODUCT_ROWS, job->rows), column,
                           larder_min_u64(column + CPU_PANEL_COLUMNS, job->columns));
}

static int cpu_matmul(struct larder_device *device, const struct larder_tensor *out,
                      const struct larder_tensor *x, const struct larder_tensor *weight,
                      const struct larder_tensor *bias)
{
    assert(is_f32(out, 2));
    assert(is_f32(x, 2));
    assert(weight->rank == 2);
    assert(weight->stride[1] == 1);
    assert(out->shape[0] == x->shape[0]);
    assert(out->shape[1] == weight->shape[0]);
    assert(x->shape[1] == weight->shape[1]);
    assert(x->shape[1] > 0);
    assert(!bias || (is_f32(bias, 2) && bias->shape[1] == out->shape[1]));
    struct product_job job = {
        .self = cpu(device),
        .product = {.out = out->data,
                    .x = x->data,
                    .weight = weight->data,
                    .bias = bias ? bias->data : NULL,
                    .out_stride = out->stride[0],
                    .x_stride = x->stride[0],
                    .weight_stride = weight->stride[0],
                    .depth = x->shape[1],
                    .weight_dtype = weight->dtype},
        .rows = out->shape[0],
        .columns = out->shape[1],
        .panels = (out->shape[1] + CPU_PANEL_COLUMNS - 1) / CPU_PANEL_COLUMNS,
    };
    uint64_t items = (job.rows + PRODUCT_ROWS - 1) / PRODUCT_ROWS * job.panels;
    if (job.rows * job.columns * job.product.depth < PRODUCT_PARALLEL_MIN)
        for (uint64_t item = 0; item < items; item++)
            run_product(&job, item, 0);
    else
        cpu_pool_run(job.self->pool, run_product, &job, items);
    return 0;
}

/* Attention: an item is one KV head by a tile of rows. */

struct attention_job {
    struct cpu_device *self;
    struct cpu_attention attention; /* of KV head 0 */
    uint64_t rows;
    uint64_t tile_rows;
    uint64_t kv_heads;
    uint64_t k_head_bytes;
    uint64_t v_head_bytes;
};

static void run_attention(void *context, uint64_t item, uint32_t worker)
{
    const struct attention_job *job = context;
    uint64_t tiles = (job->rows + job->tile_rows - 1) / job->tile_rows;
    uint64_t head = item % job->kv_heads;
    /* The last rows see the most keys: they go first, so that no thread is left with them. */
    uint64_t row = (tiles - 1 - item / job->kv_heads) * job->tile_rows;
    struct cpu_attention one = job->attention;
    one.out += head * one.group * one.out_stride[1];
    one.q += head * one.group * one.q_stride[1];
    one.k = (const char *)one.k + head * job->k_head_bytes;
    one.v = (const char *)one.v + head * job->v_head_bytes;
    job->self->isa->attention(job->self->scratch[worker], &one, row,
                              larder_min_u64(row + job->tile_rows, job->rows));
}

static int cpu_attention(struct larder_device *device, const struct larder_tensor *out,
                         const struct larder_attention *a)
{
    assert(is_f32(out, 3));
    assert(is_f32(&a->q, 3));
    assert(a->k.rank == 3);
    assert(a->v.rank == 3);
    assert(a->k.stride[2] == 1);
    assert(a->v.stride[2] == 1);
    assert(out->shape[0] == a->q.shape[0]);
    assert(out->shape[1] == a->q.shape[1]);
    assert(out->shape[2] == a->v.shape[2]);
    assert(a->q.shape[2] == a->k.shape[2]);
    assert(a->k.shape[0] == a->v.shape[0]);
    assert(a->k.shape[1] == a->v.shape[1]);
    assert(a->k.shape[2] <= LARDER_HEAD_DIMS_MAX);
    assert(a->v.shape[2] <= LARDER_HEAD_DIMS_MAX);
    uint64_t kv_heads = a->k.shape[1];
    assert(a->q.shape[1] % kv_heads == 0);
    uint64_t group = a->q.shape[1] / kv_heads;
    assert(group <= CPU_TILE_ROWS);
    struct attention_job job = {
        .self = cpu(device),
        .attention = {.out = out->data,
                      .q = a->q.data,
                      .k = a->k.data,
                      .v = a->v.data,
                      .query_positions = a->query_positions,
                      .key_positions = a->key_positions,
                      .out_stride = {out->stride[0], out->stride[1]},
                      .q_stride = {a->q.stride[0], a->q.stride[1]},
                      .k_stride = a->k.stride[0],
                      .v_stride = a->v.stride[0],
                      .key_count = a->k.shape[0],
                      .k_dtype = a->k.dtype,
                      .v_dtype = a->v.dtype,
                      .k_dims = (uint32_t)a->k.shape[2],
                      .v_dims = (uint32_t)a->v.shape[2],
                      .group = (uint32_t)group,
                      .scale = a->scale},
        .rows = out->shape[0],
        .tile_rows = CPU_TILE_ROWS / group,
        .kv_heads = kv_heads,
        .k_head_bytes = a->k.stride[1] * larder_dtype_bytes(a->k.dtype),
        .v_head_bytes = a->v.stride[1] * larder_dtype_bytes(a->v.dtype),
    };
    uint64_t tiles = (job.rows + job.tile_rows - 1) / job.tile_rows;
    cpu_pool_run(job.self->pool, run_attention, &job, tiles * kv_heads);
    return 0;
}

/* Light operations: an item is a few rows. */

struct light_job {
    struct cpu_device *self;
    const struct larder_tensor *out;
    const struct larder_tensor *a;
    const struct larder_tensor *b;
    const struct larder_rotation *rotation;
    const uint32_t *tokens;
    uint32_t *indices;
    float eps;
    void (*row)(const struct light_job *job, uint64_t row);
    uint64_t rows;
};

static void run_light(void *context, uint64_t item, uint32_t worker)
{
    (void)worker;
    const struct light_job *job = context;
    uint64_t end = larder_min_u64((item + 1) * LIGHT_ROWS, job->rows);
    for (uint64_t row = item * LIGHT_ROWS; row < end; row++)
        job->row(job, row);
}

static int run_rows(struct light_job *job)
{
    cpu_pool_run(job->self->pool, run_light, job, (job->rows + LIGHT_ROWS - 1) / LIGHT_ROWS);
    return 0;
}

static void rmsnorm_row(const struct light_job *job, uint64_t row)
{
    job->self->isa->rmsnorm(row_of(job->out, row), row_of(job->a, row), job->b->data,
                            job->out->shape[1], job->eps);
}

static int cpu_rmsnorm(struct larder_device *device, const struct larder_tensor *out,
                       const struct larder_tensor *x, const struct larder_tensor *weight, float eps)
{
    assert(is_f32(out, 2));
    assert(is_f32(x, 2));
    assert(is_f32(weight, 2));
    assert(same_shape(out, x));
    assert(weight->shape[1] == x->shape[1]);
    return run_rows(&(struct light_job){.self = cpu(device),
                                        .out = out,
                                        .a = x,
                                        .b = weight,
                                        .eps = eps,
                                        .row = rmsnorm_row,
                                        .rows = out->shape[0]});
}

static void rope_row(const struct light_job *job, uint64_t row)
{
    const struct larder_rotation *rotation = job->rotation;
    uint32_t position = rotation->positions[row];
    assert(position < rotation->cos.shape[0]);
    job->self->isa->rope(row_of(job->out, row), job->out->shape[1], job->out->stride[1],
                         row_of(&rotation->cos, position), row_of(&rotation->sin, position),
                         rotation->cos.shape[1], rotation->interleaved);
}

static int cpu_rope(struct larder_device *device, const struct larder_tensor *x,
                    const struct larder_rotation *rotation)
{
    assert(is_f32(x, 3));
    assert(is_f32(&rotation->cos, 2));
    assert(is_f32(&rotation->sin, 2));
    assert(same_shape(&rotation->cos, &rotation->sin));
    assert(rotation->cos.shape[1] * 2 <= x->shape[2]);
    return run_rows(&(struct light_job){
        .self = cpu(device), .out = x, .rotation = rotation, .row = rope_row, .rows = x->shape[0]});
}

static void swiglu_row(const struct light_job *job, uint64_t row)
{
    job->self->isa->swiglu(row_of(job->out, row), row_of(job->a, row), row_of(job->b, row),
                           job->out->shape[1]);
}

static int cpu_swiglu(struct larder_device *device, const struct larder_tensor *out,
                      const struct larder_tensor *gate, const struct larder_tensor *up)
{
    assert(is_f32(out, 2));
    assert(is_f32(gate, 2));
    assert(is_f32(up, 2));
    assert(same_shape(out, gate));
    assert(same_shape(out, up));
    return run_rows(&(struct light_job){.self = cpu(device),
                                        .out = out,
                                        .a = gate,
                                        .b = up,
                                        .row = swiglu_row,
                                        .rows = out->shape[0]});
}

static void add_row(const struct light_job *job, uint64_t row)
{
    job->self->isa->add(row_of(job->out, row), row_of(job->a, row), job->out->shape[1]);
}

static int cpu_add(struct larder_device *device, const struct larder_tensor *out,
                   const struct larder_tensor *x)
{
    assert(is_f32(out, 2));
    assert(is_f32(x, 2));
    assert(same_shape(out, x));
    return run_rows(&(struct light_job){
        .self = cpu(device), .out = out, .a = x, .row = add_row, .rows = out->shape[0]});
}

static const void *element_at(const struct larder_tensor *tensor, uint64_t index)
{
    return (const char *)tensor->data + index * larder_dtype_bytes(tensor->dtype);
}

static void embed_row(const struct light_job *job, uint64_t row)
{
    assert(job->tokens[row] < job->a->shape[0]);
    job->self->isa->to_float(row_of(job->out, row),
                             element_at(job->a, job->tokens[row] * job->a->stride[0]),
                             job->a->dtype, job->out->shape[1]);
}

static int cpu_embed(struct larder_device *device, const struct larder_tensor *out,
                     const struct larder_tensor *table, const uint32_t *tokens)
{
    assert(is_f32(out, 2));
    assert(table->rank == 2);
    assert(table->stride[1] == 1);
    assert(table->shape[1] == out->shape[1]);
    return run_rows(&(struct light_job){.self = cpu(device),
                                        .out = out,
                                        .a = table,
                                        .tokens = tokens,
                                        .row = embed_row,
                                        .rows = out->shape[0]});
}

static void argmax_row(const struct light_job *job, uint64_t row)
{
    const float *x = row_of(job->a, row);
    uint32_t best = 0;
    for (uint32_t i = 1; i < job->a->shape[1]; i++)
        if (x[i] > x[best] || (isnan(x[best]) && !isnan(x[i])))
            best = i;
    job->indices[row] = best;
}

static int cpu_argmax(struct larder_device *device, uint32_t *out, const struct larder_tensor *x)
{
    assert(is_f32(x, 2));
    assert(x->shape[1] > 0);
    assert(x->shape[1] <= UINT32_MAX);
    return run_rows(&(struct light_job){
        .self = cpu(device), .a = x, .indices = out, .row = argmax_row, .rows = x->shape[0]});
}

static void convert_row(const struct light_job *job, uint64_t row)
{
    const struct larder_tensor *out = job->out;
    const struct larder_tensor *x = job->a;
    bool deep = out->rank == 3;
    uint64_t heads = deep ? out->shape[1] : 1;
    uint64_t dims = out->shape[out->rank - 1];
    for (uint64_t head = 0; head < heads; head++) {
        uint64_t x_head = deep ? head * x->stride[1] : 0;
        uint64_t out_head = deep ? head * out->stride[1] : 0;
        const void *from = element_at(x, row * x->stride[0] + x_head);
        char *to =
            (char *)out->data + (row * out->stride[0] + out_head) * larder_dtype_bytes(out->dtype);
        if (x->dtype == out->dtype) {
            memcpy(to, from, dims * larder_dtype_bytes(x->dtype));
            continue;
        }
        for (uint64_t i = 0; i < dims; i += 256) {
            float part[256];
            uint64_t count = larder_min_u64(256, dims - i);
            job->self->isa->to_float(part, (const char *)from + i * larder_dtype_bytes(x->dtype),
                                     x->dtype, count);
            job->self->isa->from_float(to + i * larder_dtype_bytes(out->dtype), out->dtype, part,
                                       count);
        }
    }
}

static int cpu_convert(struct larder_device *device, const struct larder_tensor *out,
                       const struct larder_tensor *x)
{
    assert(out->rank == 2 || out->rank == 3);
    assert(same_shape(out, x));
    assert(out->stride[out->rank - 1] == 1);
    assert(x->stride[x->rank - 1] == 1);
    return run_rows(&(struct light_job){
        .self = cpu(device), .out = out, .a = x, .row = convert_row, .rows = out->shape[0]});
}

const struct larder_backend larder_cpu_backend = {
    .name = "cpu",
    .describe = cpu_describe,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .place = cpu_place,
    .unplace = cpu_unplace,
    .download = cpu_download,
    .matmul = cpu_matmul,
    .rmsnorm = cpu_rmsnorm,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .add = cpu_add,
    .embed = cpu_embed,
    .argmax = cpu_argmax,
    .convert = cpu_convert,
};
