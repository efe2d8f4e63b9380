/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: every operation of the CPU backend gives the same bits at every instruction set, number
 * of threads and number of rows, and what they are is right.
 * Method: odd shapes, all dtypes, random numbers; the scalar version on one thread is compared
 * bit for bit with the others, and with sums in double. What this machine lacks is left out.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_math.h"
#include "kernels/cpu/cpu_pool.h"
#include "kernels/kernels.h"

static const char *const isas[] = {"scalar", "avx2", "avx512"};
static const uint32_t dtypes[] = {LARDER_F32, LARDER_F16, LARDER_BF16};

static uint64_t seed = 1;

/* In -2..2. */
static float next_float(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-30f;
}

static void *fill(uint32_t dtype, size_t count)
{
    float *values = malloc((count + 1) * sizeof(*values));
    for (size_t i = 0; i < count; i++)
        values[i] = next_float();
    uint16_t *halves = (uint16_t *)values;
    for (size_t i = 0; dtype != LARDER_F32 && i < count; i++)
        halves[i] = dtype == LARDER_F16 ? f16_from_float(values[i]) : bf16_from_float(values[i]);
    return values;
}

/* NULL when this machine lacks the instruction set. */
static struct larder_device *open_device(const char *isa, uint32_t threads)
{
    struct larder_device *device;
    int err = larder_device_open(&device, "cpu",
                                 &(struct larder_device_options){.isa = isa, .threads = threads});
    if (err == LARDER_EUNSUPPORTED)
        return NULL;
    ck_assert_msg(err == 0, "%s", larder_error_message());
    return device;
}

/* Runs `body` with the specification and then with every other version. */
#define FOR_EACH_DEVICE(device, body)                                                              \
    for (size_t isa_ = 0; isa_ < LARDER_COUNT_OF(isas); isa_++)                                    \
        for (uint32_t threads_ = 1; threads_ <= 3; threads_ += 2) {                                \
            struct larder_device *device = open_device(isas[isa_], threads_);                      \
            if (!device)                                                                           \
                continue;                                                                          \
            body larder_device_close(device);                                                      \
        }

static void check_same(const float *wanted, const float *got, size_t count,
                       const struct larder_device *device)
{
    for (size_t i = 0; i < count; i++)
        ck_assert_msg(bits_of(wanted[i]) == bits_of(got[i]), "%s: element %zu is %a, not %a",
                      larder_device_describe(device), i, (double)got[i], (double)wanted[i]);
}

struct product {
    uint64_t rows;
    uint64_t columns;
    uint64_t depth;
};

static void check_matmul(struct product size, uint32_t dtype)
{
    size_t outs = size.rows * size.columns;
    float *x = fill(LARDER_F32, size.rows * size.depth);
    void *weight = fill(dtype, size.columns * size.depth);
    float *bias = fill(LARDER_F32, size.columns);
    float *wanted = calloc(outs, sizeof(float));
    float *got = calloc(outs + 1, sizeof(float));
    struct larder_tensor tensor_x = larder_matrix(x, LARDER_F32, size.rows, size.depth);
    struct larder_tensor tensor_w = larder_matrix(weight, dtype, size.columns, size.depth);
    struct larder_tensor tensor_b = larder_matrix(bias, LARDER_F32, 1, size.columns);

    for (uint64_t row = 0; row < size.rows; row++)
        for (uint64_t column = 0; column < size.columns; column++) {
            float chain = 0;
            double sum = 0;
            for (uint64_t k = 0; k < size.depth; k++) {
                float w = load_element(weight, dtype, column * size.depth + k);
                chain = fmaf(x[row * size.depth + k], w, chain);
                sum += (double)x[row * size.depth + k] * (double)w;
            }
            ck_assert_double_le(fabs((double)chain - sum), 1e-4);
            wanted[row * size.columns + column] = chain + bias[column];
        }
    FOR_EACH_DEVICE(device, {
        got[outs] = 12345;
        struct larder_tensor out = larder_matrix(got, LARDER_F32, size.rows, size.columns);
        ck_assert_int_eq(device->ops->matmul(device, &out, &tensor_x, &tensor_w, &tensor_b), 0);
        check_same(wanted, got, outs, device);
        ck_assert(got[outs] == 12345);
        /* Each row alone. */
        struct larder_tensor one_x = larder_matrix(x, LARDER_F32, 1, size.depth);
        struct larder_tensor one = larder_matrix(got, LARDER_F32, 1, size.columns);
        for (uint64_t row = 0; row < size.rows; row += 3) {
            one_x.data = x + row * size.depth;
            ck_assert_int_eq(device->ops->matmul(device, &one, &one_x, &tensor_w, &tensor_b), 0);
            check_same(wanted + row * size.columns, got, size.columns, device);
        }
    })
    free(got);
    free(wanted);
    free(bias);
    free(weight);
    free(x);
}

START_TEST(test_matmul)
{
    static const struct product sizes[] = {{1, 1, 1},    {2, 16, 32},    {7, 65, 129}, {5, 81, 300},
                                           {13, 64, 64}, {200, 130, 37}, {3, 63, 15}};
    for (size_t i = 0; i < LARDER_COUNT_OF(sizes); i++)
        check_matmul(sizes[i], dtypes[_i]);
    check_matmul((struct product){200, 100, 130}, dtypes[_i]); /* large enough for threads */
}
END_TEST

struct heads {
    uint64_t rows;
    uint64_t keys;
    uint64_t heads;
    uint64_t kv_heads;
    uint64_t k_dims;
    uint64_t v_dims;
};

/* Softmax and sums in double. */
static void attend_double(double *out, const struct larder_attention *a, uint64_t row,
                          uint64_t head)
{
    uint64_t keys = a->k.shape[0];
    uint64_t kv = head / (a->q.shape[1] / a->k.shape[1]);
    double *weights = calloc(keys, sizeof(*weights));
    double top = -INFINITY;
    for (uint64_t key = 0; key < keys; key++) {
        uint32_t position = a->key_positions ? a->key_positions[key] : (uint32_t)key;
        weights[key] = -INFINITY;
        if (position > a->query_positions[row])
            continue;
        double score = 0;
        for (uint64_t i = 0; i < a->q.shape[2]; i++)
            score += (double)load_element(a->q.data, LARDER_F32,
                                          row * a->q.stride[0] + head * a->q.stride[1] + i) *
                     (double)load_element(a->k.data, a->k.dtype,
                                          key * a->k.stride[0] + kv * a->k.stride[1] + i);
        weights[key] = score * (double)a->scale;
        top = fmax(top, weights[key]);
    }
    double sum = 0;
    memset(out, 0, a->v.shape[2] * sizeof(*out));
    for (uint64_t key = 0; key < keys && top > -INFINITY; key++) {
        double weight = exp(weights[key] - top);
        sum += weight;
        for (uint64_t i = 0; i < a->v.shape[2]; i++)
            out[i] += weight * (double)load_element(a->v.data, a->v.dtype,
                                                    key * a->v.stride[0] + kv * a->v.stride[1] + i);
    }
    for (uint64_t i = 0; i < a->v.shape[2] && sum > 0; i++)
        out[i] /= sum;
    free(weights);
}

/* `scattered`: positions of queries and keys are arrays, in no order. */
static void check_attention(struct heads size, uint32_t dtype, bool scattered)
{
    size_t outs = size.rows * size.heads * size.v_dims;
    float *q = fill(LARDER_F32, size.rows * size.heads * size.k_dims);
    void *k = fill(dtype, size.keys * size.kv_heads * size.k_dims);
    void *v = fill(dtype, size.keys * size.kv_heads * size.v_dims);
    uint32_t *queries = calloc(size.rows, sizeof(*queries));
    uint32_t *keys = calloc(size.keys, sizeof(*keys));
    for (uint64_t i = 0; i < size.rows; i++)
        queries[i] =
            (uint32_t)(scattered ? (i * 37 + 11) % (size.keys + 1) : size.keys - size.rows + i);
    for (uint64_t i = 0; i < size.keys; i++)
        keys[i] = (uint32_t)((i * 5 + 3) % (2 * size.keys));
    struct larder_attention attention = {
        .q = larder_cube(q, LARDER_F32, size.rows, size.heads, size.k_dims),
        .k = larder_cube(k, dtype, size.keys, size.kv_heads, size.k_dims),
        .v = larder_cube(v, dtype, size.keys, size.kv_heads, size.v_dims),
        .query_positions = queries,
        .key_positions = scattered ? keys : NULL,
        .scale = 0.7f,
    };
    float *wanted = NULL;
    float *got = calloc(outs, sizeof(float));
    double *exact = calloc(size.v_dims, sizeof(double));
    FOR_EACH_DEVICE(device, {
        struct larder_tensor out = larder_cube(got, LARDER_F32, size.rows, size.heads, size.v_dims);
        ck_assert_int_eq(device->ops->attention(device, &out, &attention), 0);
        if (!wanted) { /* the specification's: right? */
            wanted = malloc(outs * sizeof(float));
            memcpy(wanted, got, outs * sizeof(float));
            for (uint64_t i = 0; i < size.rows * size.heads; i++) {
                attend_double(exact, &attention, i / size.heads, i % size.heads);
                for (uint64_t d = 0; d < size.v_dims; d++)
                    ck_assert_double_le(fabs((double)got[i * size.v_dims + d] - exact[d]), 2e-5);
            }
        }
        check_same(wanted, got, outs, device);
        /* Each row alone, over no more keys than it sees. */
        for (uint64_t row = 0; row < size.rows; row += 5) {
            struct larder_attention one = attention;
            one.q.data = q + row * size.heads * size.k_dims;
            one.q.shape[0] = 1;
            one.query_positions = queries + row;
            if (!scattered) {
                one.k.shape[0] = queries[row] + 1;
                one.v.shape[0] = queries[row] + 1;
            }
            out = larder_cube(got, LARDER_F32, 1, size.heads, size.v_dims);
            ck_assert_int_eq(device->ops->attention(device, &out, &one), 0);
            check_same(wanted + row * size.heads * size.v_dims, got, size.heads * size.v_dims,
                       device);
        }
    })
    free(exact);
    free(got);
    free(wanted);
    free(keys);
    free(queries);
    free(v);
    free(k);
    free(q);
}

START_TEST(test_attention)
{
    static const struct heads sizes[] = {{1, 1, 1, 1, 4, 4},       {1, 200, 4, 2, 64, 64},
                                         {70, 131, 4, 2, 16, 16},  {33, 64, 6, 1, 24, 24},
                                         {19, 100, 4, 4, 128, 40}, {110, 110, 2, 1, 32, 32}};
    for (size_t i = 0; i < LARDER_COUNT_OF(sizes); i++)
        for (int scattered = 0; scattered < 2; scattered++)
            check_attention(sizes[i], dtypes[_i], scattered);
}
END_TEST

/* Rows of the light operations; 37 rows make several items. */
#define ROWS 37
#define DIMS 83

START_TEST(test_rmsnorm)
{
    float *x = fill(LARDER_F32, ROWS * DIMS);
    float *weight = fill(LARDER_F32, DIMS);
    float wanted[ROWS * DIMS];
    float got[ROWS * DIMS];
    struct larder_tensor tensor_x = larder_matrix(x, LARDER_F32, ROWS, DIMS);
    struct larder_tensor tensor_w = larder_matrix(weight, LARDER_F32, 1, DIMS);
    struct larder_tensor out = larder_matrix(got, LARDER_F32, ROWS, DIMS);
    bool first = true;
    FOR_EACH_DEVICE(device, {
        ck_assert_int_eq(device->ops->rmsnorm(device, &out, &tensor_x, &tensor_w, 1e-5f), 0);
        if (first)
            memcpy(wanted, got, sizeof(got));
        first = false;
        check_same(wanted, got, ROWS * DIMS, device);
    })
    for (int row = 0; row < ROWS; row++) {
        double sum = 0;
        for (int i = 0; i < DIMS; i++)
            sum += (double)x[row * DIMS + i] * (double)x[row * DIMS + i];
        double inverse = 1 / sqrt(sum / DIMS + 1e-5);
        for (int i = 0; i < DIMS; i++)
            ck_assert_double_le(fabs((double)wanted[row * DIMS + i] -
                                     (double)x[row * DIMS + i] * inverse * (double)weight[i]),
                                1e-5);
    }
    free(weight);
    free(x);
}
END_TEST

START_TEST(test_swiglu_add)
{
    float *gate = fill(LARDER_F32, ROWS * DIMS);
    float *up = fill(LARDER_F32, ROWS * DIMS);
    for (int i = 0; i < ROWS * DIMS; i++)
        gate[i] *= 60; /* far into both ends of the exponential */
    float wanted[ROWS * DIMS];
    float got[ROWS * DIMS];
    struct larder_tensor tensor_gate = larder_matrix(gate, LARDER_F32, ROWS, DIMS);
    struct larder_tensor tensor_up = larder_matrix(up, LARDER_F32, ROWS, DIMS);
    struct larder_tensor out = larder_matrix(got, LARDER_F32, ROWS, DIMS);
    bool first = true;
    FOR_EACH_DEVICE(device, {
        ck_assert_int_eq(device->ops->swiglu(device, &out, &tensor_gate, &tensor_up), 0);
        ck_assert_int_eq(device->ops->add(device, &out, &tensor_up), 0);
        if (first)
            memcpy(wanted, got, sizeof(got));
        first = false;
        check_same(wanted, got, ROWS * DIMS, device);
    })
    for (int i = 0; i < ROWS * DIMS; i++) {
        double exact = (double)gate[i] / (1 + exp(-(double)gate[i])) * (double)up[i];
        ck_assert_double_le(fabs((double)wanted[i] - exact - (double)up[i]),
                            1e-6 * (fabs(exact) + 2));
    }
    free(up);
    free(gate);
}
END_TEST

START_TEST(test_rope)
{
    enum { HEADS = 3, HEAD = 20, PAIRS = 7, POSITIONS = 50 };
    float *angles = fill(LARDER_F32, POSITIONS * PAIRS);
    float cosines[POSITIONS * PAIRS];
    float sines[POSITIONS * PAIRS];
    for (int i = 0; i < POSITIONS * PAIRS; i++) {
        cosines[i] = cosf(angles[i]);
        sines[i] = sinf(angles[i]);
    }
    float *x = fill(LARDER_F32, ROWS * HEADS * HEAD);
    float got[ROWS * HEADS * HEAD];
    float wanted[ROWS * HEADS * HEAD];
    uint32_t positions[ROWS];
    for (uint32_t row = 0; row < ROWS; row++)
        positions[row] = row * 17 % POSITIONS;
    struct larder_rotation rotation = {
        .cos = larder_matrix(cosines, LARDER_F32, POSITIONS, PAIRS),
        .sin = larder_matrix(sines, LARDER_F32, POSITIONS, PAIRS),
        .positions = positions,
        .interleaved = (uint32_t)_i,
    };
    memcpy(wanted, x, sizeof(wanted));
    for (int row = 0; row < ROWS; row++)
        for (int head = 0; head < HEADS; head++)
            for (int pair = 0; pair < PAIRS; pair++) {
                float *base = wanted + (row * HEADS + head) * HEAD;
                float *low = base + (_i ? 2 * pair : pair);
                float *high = base + (_i ? 2 * pair + 1 : pair + PAIRS);
                float c = cosines[positions[row] * PAIRS + (uint32_t)pair];
                float s = sines[positions[row] * PAIRS + (uint32_t)pair];
                float turned = *low * c - *high * s;
                *high = *high * c + *low * s;
                *low = turned;
            }
    struct larder_tensor tensor = larder_cube(got, LARDER_F32, ROWS, HEADS, HEAD);
    FOR_EACH_DEVICE(device, {
        memcpy(got, x, sizeof(got));
        ck_assert_int_eq(device->ops->rope(device, &tensor, &rotation), 0);
        check_same(wanted, got, ROWS * HEADS * HEAD, device);
    })
    free(x);
    free(angles);
}
END_TEST

START_TEST(test_embed_argmax)
{
    enum { VOCAB = 29 };
    void *table = fill(dtypes[_i], VOCAB * DIMS);
    uint32_t tokens[ROWS];
    for (uint32_t row = 0; row < ROWS; row++)
        tokens[row] = row * 11 % VOCAB;
    float got[ROWS * DIMS];
    struct larder_tensor tensor = larder_matrix(table, dtypes[_i], VOCAB, DIMS);
    struct larder_tensor out = larder_matrix(got, LARDER_F32, ROWS, DIMS);
    FOR_EACH_DEVICE(device, {
        ck_assert_int_eq(device->ops->embed(device, &out, &tensor, tokens), 0);
        for (uint32_t i = 0; i < ROWS * DIMS; i++)
            ck_assert(got[i] ==
                      load_element(table, dtypes[_i], tokens[i / DIMS] * DIMS + i % DIMS));
        got[5] = 9;
        got[7] = 9;
        got[DIMS] = NAN;
        got[2 * DIMS - 1] = 10;
        uint32_t best[ROWS];
        ck_assert_int_eq(device->ops->argmax(device, best, &out), 0);
        ck_assert_uint_eq(best[0], 5);
        ck_assert_uint_eq(best[1], DIMS - 1);
    })
    free(table);
}
END_TEST

/* Rows of a cache: strides larger than the rows, each pair of dtypes. */
START_TEST(test_convert)
{
    enum { HEADS = 2, HEAD = 300, GAP = 5 };
    uint32_t from = dtypes[_i / 3];
    uint32_t to = dtypes[_i % 3];
    size_t row_elements = HEADS * HEAD;
    void *x = fill(from, ROWS * row_elements);
    size_t bytes = ROWS * (row_elements + GAP) * sizeof(float);
    void *got = malloc(bytes);
    struct larder_tensor tensor_x = larder_cube(x, from, ROWS, HEADS, HEAD);
    struct larder_tensor out = larder_cube(got, to, ROWS, HEADS, HEAD);
    out.stride[0] = row_elements + GAP;
    FOR_EACH_DEVICE(device, {
        memset(got, 0xa5, bytes);
        ck_assert_int_eq(device->ops->convert(device, &out, &tensor_x), 0);
        for (size_t i = 0; i < ROWS * row_elements; i++) {
            float value = load_element(x, from, i);
            float rounded = to == LARDER_F16    ? float_from_f16(f16_from_float(value))
                            : to == LARDER_BF16 ? float_from_bf16(bf16_from_float(value))
                                                : value;
            size_t at = i / row_elements * out.stride[0] + i % row_elements;
            ck_assert(load_element(got, to, at) == rounded);
        }
        const unsigned char *gap =
            (const unsigned char *)got + row_elements * larder_dtype_bytes(to);
        ck_assert_uint_eq(gap[0], 0xa5);
    })
    free(got);
    free(x);
}
END_TEST

START_TEST(test_formats)
{
    /* Every half there and back; NaN stays NaN. */
    for (uint32_t half = 0; half <= UINT16_MAX; half++) {
        float wide = float_from_f16((uint16_t)half);
        bool nan = (half & 0x7fff) > 0x7c00;
        ck_assert(nan == (isnan(wide) != 0));
        if (!nan)
            ck_assert_uint_eq(f16_from_float(wide), half);
        float brain = float_from_bf16((uint16_t)half);
        if (!isnan(brain))
            ck_assert_uint_eq(bf16_from_float(brain), half);
    }
    static const struct {
        float value;
        uint16_t f16;
        uint16_t bf16;
    } cases[] = {{0x1.002p0f, 0x3c00, 0x3f80},      {0x1.006p0f, 0x3c02, 0x3f80}, /* ties to even */
                 {0x1.01p0f, 0x3c04, 0x3f80},       {0x1.03p0f, 0x3c0c, 0x3f82},
                 {65519.0f, 0x7bff, 0x4780},        {65520.0f, 0x7c00, 0x4780},
                 {INFINITY, 0x7c00, 0x7f80},        {-INFINITY, 0xfc00, 0xff80},
                 {0x1p-24f, 0x0001, 0x3380},        {0x1p-25f, 0x0000, 0x3300},
                 {0x1.8p-25f, 0x0001, 0x3340},      {-0x1.ff8p-15f, 0x83ff, 0xb880},
                 {0x1.fffffep-15f, 0x0400, 0x3880}, {0x1.fffffep127f, 0x7c00, 0x7f80},
                 {0x1.ffep-15f, 0x0400, 0x3880},    {-0.0f, 0x8000, 0x8000}};
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        ck_assert_uint_eq(f16_from_float(cases[i].value), cases[i].f16);
        ck_assert_uint_eq(bf16_from_float(cases[i].value), cases[i].bf16);
    }
    ck_assert(isnan(float_from_f16(f16_from_float(NAN))));
    ck_assert(isnan(float_from_bf16(bf16_from_float(float_of(0x7f800001u)))));
}
END_TEST

START_TEST(test_exponential)
{
    double worst = 0;
    for (float x = -87; x < 88; x += 0.0137f)
        worst = fmax(worst, fabs((double)exp_float(x) / exp((double)x) - 1));
    ck_assert_double_le(worst, 2.4e-7);
    ck_assert(exp_float(0) == 1);
    ck_assert(exp_float(-INFINITY) == 0);
    ck_assert(exp_float(-88) == 0);
    ck_assert(isnan(exp_float(NAN)));
    ck_assert(exp_float(1000) == exp_float(88));
}
END_TEST

struct tally {
    _Atomic uint32_t seen[1000];
};

static void count_item(void *context, uint64_t item, uint32_t worker)
{
    struct tally *tally = context;
    ck_assert_uint_lt(worker, 4);
    tally->seen[item]++;
}

START_TEST(test_pool)
{
    struct cpu_pool *pool;
    ck_assert_int_eq(cpu_pool_open(&pool, 4), 0);
    static struct tally tally;
    for (uint32_t round = 0; round < 2000; round++) {
        uint64_t count = round % 40;
        memset(&tally, 0, sizeof(tally));
        cpu_pool_run(pool, count_item, &tally, count);
        for (uint64_t i = 0; i < 1000; i++)
            ck_assert_uint_eq(tally.seen[i], i < count);
    }
    cpu_pool_close(pool);
}
END_TEST

START_TEST(test_open)
{
    struct larder_device *device;
    ck_assert_int_eq(larder_device_open(&device, "abacus", NULL), -EINVAL);
    ck_assert_ptr_null(device);
    ck_assert_int_eq(
        larder_device_open(&device, "cpu", &(struct larder_device_options){.isa = "mmx"}), -EINVAL);
    ck_assert_int_eq(
        larder_device_open(&device, "cpu", &(struct larder_device_options){.threads = 1 << 20}),
        LARDER_ELIMIT);
    setenv("LARDER_ISA", "scalar", 1);
    ck_assert_int_eq(larder_device_open(&device, "cpu", NULL), 0);
    ck_assert_ptr_nonnull(strstr(larder_device_describe(device), "scalar"));
    larder_device_close(device);
    unsetenv("LARDER_ISA");
    /* Each allocation fails once. */
    int err = -ENOMEM;
    for (uint64_t n = 1; err < 0; n++) {
        larder_mem_fail_at(n);
        err = larder_device_open(&device, "cpu", &(struct larder_device_options){.threads = 3});
        ck_assert(err == 0 || err == -ENOMEM);
        ck_assert_uint_lt(n, 20);
    }
    larder_mem_fail_at(0);
    larder_device_close(device);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ops");
    TCase *numbers = tcase_create("numbers");
    tcase_add_test(numbers, test_formats);
    tcase_add_test(numbers, test_exponential);
    suite_add_tcase(suite, numbers);
    TCase *operations = tcase_create("operations");
    tcase_set_timeout(operations, 120);
    tcase_add_loop_test(operations, test_matmul, 0, 3);
    tcase_add_loop_test(operations, test_attention, 0, 3);
    tcase_add_test(operations, test_rmsnorm);
    tcase_add_test(operations, test_swiglu_add);
    tcase_add_loop_test(operations, test_rope, 0, 2);
    tcase_add_loop_test(operations, test_embed_argmax, 0, 3);
    tcase_add_loop_test(operations, test_convert, 0, 9);
    suite_add_tcase(suite, operations);
    TCase *device = tcase_create("device");
    tcase_add_test(device, test_pool);
    tcase_add_test(device, test_open);
    suite_add_tcase(suite, device);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
