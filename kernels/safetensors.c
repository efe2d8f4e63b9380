/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/json_file.h"

struct mapping {
    unsigned char *base;
    uint64_t bytes;
};

struct larder_weights {
    struct mapping *mappings;
    size_t mapping_count;
    struct larder_weight *items; /* sorted by name once open; names are owned */
    size_t count;
    size_t room;
    json_t *metadata; /* of the one file; NULL: none */
};

static const struct {
    const char *name;
    uint32_t bytes;
    uint32_t dtype;
} formats[] = {
    {"F32", 4, LARDER_F32}, {"F16", 2, LARDER_F16}, {"BF16", 2, LARDER_BF16},
    {"F64", 8, 0},          {"I64", 8, 0},          {"U64", 8, 0},
    {"I32", 4, 0},          {"U32", 4, 0},          {"I16", 2, 0},
    {"U16", 2, 0},          {"I8", 1, 0},           {"U8", 1, 0},
    {"BOOL", 1, 0},         {"F8_E4M3", 1, 0},      {"F8_E5M2", 1, 0},
    {"F8_E8M0", 1, 0},
};

/* The parts of one header, for messages. */
struct header {
    const char *path;
    const unsigned char *data;
    uint64_t data_bytes;
};

static int read_count(uint64_t *out, const struct header *h, const char *tensor, const char *member,
                      const json_t *value)
{
    if (!json_is_integer(value))
        return larder_fail(LARDER_EFORMAT,
                           "%s: tensor %s: %s holds something that is not an integer; save the "
                           "file again",
                           h->path, tensor, member);
    json_int_t number = json_integer_value(value);
    if (number < 0)
        return larder_fail(LARDER_EFORMAT, "%s: tensor %s: %s holds %lld, below 0", h->path, tensor,
                           member, (long long)number);
    *out = (uint64_t)number;
    return 0;
}

static int read_shape(struct larder_weight *weight, uint64_t *elements, const struct header *h,
                      const char *name, const json_t *shape)
{
    if (!json_is_array(shape) || json_array_size(shape) > LARDER_WEIGHT_RANK_MAX)
        return larder_fail(LARDER_EFORMAT, "%s: tensor %s: shape is not a list of at most %d",
                           h->path, name, LARDER_WEIGHT_RANK_MAX);
    weight->rank = (uint32_t)json_array_size(shape);
    *elements = 1;
    for (uint32_t i = 0; i < weight->rank; i++) {
        LARDER_TRY(read_count(&weight->shape[i], h, name, "shape", json_array_get(shape, i)));
        if (!larder_mul_u64(elements, *elements, weight->shape[i]))
            return larder_fail(LARDER_EFORMAT, "%s: tensor %s: shape has more than 2^64 elements",
                               h->path, name);
    }
    return 0;
}

static int read_tensor(struct larder_weight *weight, const struct header *h, const char *name,
                       const json_t *entry)
{
    const char *format = json_string_value(json_object_get(entry, "dtype"));
    if (!format)
        return larder_fail(LARDER_EFORMAT, "%s: tensor %s has no dtype", h->path, name);
    size_t kind = 0;
    while (kind < LARDER_COUNT_OF(formats) && strcmp(formats[kind].name, format) != 0)
        kind++;
    if (kind == LARDER_COUNT_OF(formats))
        return larder_fail(LARDER_EFORMAT,
                           "%s: tensor %s: dtype '%.16s' is unknown; convert the model to BF16, "
                           "F16 or F32",
                           h->path, name, format);
    weight->dtype_name = formats[kind].name;
    weight->dtype = formats[kind].dtype;

    uint64_t elements = 0;
    LARDER_TRY(read_shape(weight, &elements, h, name, json_object_get(entry, "shape")));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return larder_fail(LARDER_EFORMAT, "%s: tensor %s: data_offsets is not a pair", h->path,
                           name);
    uint64_t begin;
    uint64_t end;
    LARDER_TRY(read_count(&begin, h, name, "data_offsets", json_array_get(offsets, 0)));
    LARDER_TRY(read_count(&end, h, name, "data_offsets", json_array_get(offsets, 1)));
    if (begin > end || end > h->data_bytes)
        return larder_fail(LARDER_EFORMAT,
                           "%s: tensor %s: data_offsets [%llu, %llu] are not within the file's "
                           "%llu bytes of data; is the download complete?",
                           h->path, name, (unsigned long long)begin, (unsigned long long)end,
                           (unsigned long long)h->data_bytes);
    uint64_t bytes;
    if (!larder_mul_u64(&bytes, elements, formats[kind].bytes) || bytes != end - begin)
        return larder_fail(LARDER_EFORMAT,
                           "%s: tensor %s: data_offsets span %llu bytes, but shape and dtype need "
                           "%llu elements of %u",
                           h->path, name, (unsigned long long)(end - begin),
                           (unsigned long long)elements, formats[kind].bytes);
    weight->data = h->data + begin;
    weight->bytes = bytes;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const struct larder_weight *x = a;
    const struct larder_weight *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* an empty one lies before its place */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct larder_weight *)a)->name, ((const struct larder_weight *)b)->name);
}

/* The tensors of one file must tile its data. Sorts them by place. */
static int check_cover(struct larder_weight *items, size_t count, const struct header *h)
{
    if (count > 0)
        qsort(items, count, sizeof(*items), by_place);
    uint64_t reached = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t begin = (uint64_t)((const unsigned char *)items[i].data - h->data);
        if (begin != reached)
            return larder_fail(
                LARDER_EFORMAT, "%s: tensor %s begins at byte %llu of the data, but %s %llu",
                h->path, items[i].name, (unsigned long long)begin,
                begin < reached ? "overlaps another one that ends at" : "nothing fills it from",
                (unsigned long long)reached);
        reached += items[i].bytes;
    }
    if (reached != h->data_bytes)
        return larder_fail(LARDER_EFORMAT,
                           "%s: %llu bytes of data, but the tensors fill %llu; is this the file "
                           "that its header belongs to?",
                           h->path, (unsigned long long)h->data_bytes, (unsigned long long)reached);
    return 0;
}

static int reserve(struct larder_weights *weights, size_t more)
{
    if (weights->count + more <= weights->room)
        return 0;
    size_t room = weights->count + more;
    struct larder_weight *items = larder_realloc(weights->items, room * sizeof(*items));
    if (!items)
        return larder_fail(-ENOMEM, "no memory for %zu tensors", room);
    weights->items = items;
    weights->room = room;
    return 0;
}

static int read_header(struct larder_weights *weights, const struct header *h, json_t *root)
{
    size_t first = weights->count;
    LARDER_TRY(reserve(weights, json_object_size(root)));
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            json_decref(weights->metadata);
            weights->metadata = json_incref(entry);
            continue;
        }
        struct larder_weight weight = {0};
        LARDER_TRY(read_tensor(&weight, h, name, entry));
        weight.name = larder_strdup(name);
        if (!weight.name)
            return larder_fail(-ENOMEM, "no memory for a tensor's name");
        weights->items[weights->count++] = weight;
    }
    /* Of a file without tensors there may be no array at all. */
    struct larder_weight *items = weights->items ? weights->items + first : NULL;
    return check_cover(items, weights->count - first, h);
}

static int read_bytes(struct larder_weights *weights, const char *path, const unsigned char *base,
                      uint64_t bytes)
{
    uint64_t length;
    memcpy(&length, base, sizeof(length));
    if (length > LARDER_SAFETENSORS_HEADER_BYTES_MAX)
        return larder_fail(LARDER_EFORMAT,
                           "%s: header of %llu bytes is above %u; is this a .safetensors file?",
                           path, (unsigned long long)length, LARDER_SAFETENSORS_HEADER_BYTES_MAX);
    if (length > bytes - 8)
        return larder_fail(LARDER_EFORMAT,
                           "%s: header of %llu bytes ends behind the file's %llu; is the download "
                           "complete?",
                           path, (unsigned long long)length, (unsigned long long)bytes);
    json_error_t error;
    json_t *root =
        json_loadb((const char *)base + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return larder_fail(LARDER_EFORMAT, "%s: header, byte %d: %s", path, error.position,
                           error.text);
    struct header header = {
        .path = path, .data = base + 8 + length, .data_bytes = bytes - 8 - length};
    int err = json_is_object(root)
                  ? read_header(weights, &header, root)
                  : larder_fail(LARDER_EFORMAT, "%s: header is not a JSON object", path);
    json_decref(root);
    return err;
}

/* A file begins with its header's length. */
static int check_bytes(const char *path, uint64_t bytes)
{
    if (bytes >= sizeof(uint64_t))
        return 0;
    return larder_fail(LARDER_EFORMAT, "%s: %llu bytes are too short for a .safetensors file", path,
                       (unsigned long long)bytes);
}

/* Maps a file behind the others (there is room) and reads its header. */
static int add_file(struct larder_weights *weights, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    struct stat status;
    int err = 0;
    if (fstat(fd, &status) < 0)
        err = larder_fail(-errno, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(status.st_mode))
        err = larder_fail(LARDER_EFORMAT, "%s: not a regular file", path);
    else
        err = check_bytes(path, (uint64_t)status.st_size);
    struct mapping mapping = {0};
    if (err == 0) {
        mapping.bytes = (uint64_t)status.st_size;
        mapping.base = mmap(NULL, mapping.bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (mapping.base == MAP_FAILED)
            err = larder_fail(-errno, "%s: mapping %llu bytes: %s", path,
                              (unsigned long long)mapping.bytes, strerror(errno));
    }
    close(fd);
    LARDER_TRY(err);
    weights->mappings[weights->mapping_count++] = mapping;
    return read_bytes(weights, path, mapping.base, mapping.bytes);
}

/* Sorts by name; two files may hold a tensor of one name. */
static int finish(struct larder_weights *weights, const char *path)
{
    if (weights->count > 0)
        qsort(weights->items, weights->count, sizeof(*weights->items), by_name);
    for (size_t i = 1; i < weights->count; i++)
        if (strcmp(weights->items[i - 1].name, weights->items[i].name) == 0)
            return larder_fail(LARDER_EFORMAT, "%s: tensor %s stands in two files", path,
                               weights->items[i].name);
    return 0;
}

static int new_weights(struct larder_weights **out, size_t files)
{
    struct larder_weights *weights = larder_alloc_zero(1, sizeof(*weights));
    struct mapping *mappings = larder_alloc_zero(files, sizeof(*mappings));
    if (!weights || !mappings) {
        larder_free(weights);
        larder_free(mappings);
        return larder_fail(-ENOMEM, "no memory for weights");
    }
    weights->mappings = mappings;
    *out = weights;
    return 0;
}

void larder_weights_close(struct larder_weights *weights)
{
    if (!weights)
        return;
    for (size_t i = 0; i < weights->count; i++)
        larder_free((void *)(uintptr_t)weights->items[i].name);
    for (size_t i = 0; i < weights->mapping_count; i++)
        munmap(weights->mappings[i].base, weights->mappings[i].bytes);
    json_decref(weights->metadata);
    larder_free(weights->items);
    larder_free(weights->mappings);
    larder_free(weights);
}

/* Ends an open: what was made is handed out, or closed again. */
static int hand_out(struct larder_weights **out, struct larder_weights *weights, int err,
                    const char *path)
{
    if (err == 0)
        err = finish(weights, path);
    if (err < 0) {
        larder_weights_close(weights);
        return err;
    }
    *out = weights;
    return 0;
}

int larder_weights_open_file(struct larder_weights **out, const char *path)
{
    *out = NULL;
    struct larder_weights *weights;
    LARDER_TRY(new_weights(&weights, 1));
    return hand_out(out, weights, add_file(weights, path), path);
}

int larder_weights_open_bytes(struct larder_weights **out, const char *name, const void *bytes,
                              uint64_t byte_count)
{
    *out = NULL;
    LARDER_TRY(check_bytes(name, byte_count));
    struct larder_weights *weights;
    LARDER_TRY(new_weights(&weights, 1));
    return hand_out(out, weights, read_bytes(weights, name, bytes, byte_count), name);
}

/* The distinct file names of an index, as the members of an object. Names only: what lies
 * elsewhere is none of the model's. */
static int list_files(json_t *files, const char *path, const json_t *index)
{
    json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return larder_fail(LARDER_EFORMAT, "%s: weight_map is missing or empty", path);
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const char *file = json_string_value(value);
        if (!file || strchr(file, '/') || file[0] == '.' || file[0] == '\0')
            return larder_fail(LARDER_EFORMAT,
                               "%s: weight_map of %s is not the name of a file beside it", path,
                               tensor);
        if (json_object_set_new(files, file, json_true()) < 0)
            return larder_fail(-ENOMEM, "no memory for an index");
    }
    if (json_object_size(files) > LARDER_WEIGHT_FILES_MAX)
        return larder_fail(LARDER_ELIMIT, "%s: %zu files are more than %u", path,
                           json_object_size(files), LARDER_WEIGHT_FILES_MAX);
    return 0;
}

static int open_listed(struct larder_weights **out, const char *directory, const char *path,
                       const json_t *index, json_t *files)
{
    LARDER_TRY(list_files(files, path, index));
    struct larder_weights *weights;
    LARDER_TRY(new_weights(&weights, json_object_size(files)));
    int err = 0;
    const char *name;
    json_t *value;
    json_object_foreach(files, name, value)
    {
        char *file = join_path(directory, name);
        err = file ? add_file(weights, file) : -ENOMEM;
        larder_free(file);
        if (err < 0)
            break;
    }
    if (err == 0)
        err = finish(weights, path);
    json_object_foreach(json_object_get(index, "weight_map"), name, value)
    {
        if (err == 0 && !larder_weights_find(weights, name))
            err = larder_fail(LARDER_EFORMAT, "%s: tensor %s is not in %s", path, name,
                              json_string_value(value));
    }
    if (err < 0) {
        larder_weights_close(weights);
        return err;
    }
    *out = weights;
    return 0;
}

static int open_index(struct larder_weights **out, const char *directory, const char *path)
{
    json_t *index;
    LARDER_TRY(json_file_load(&index, path));
    json_t *files = json_object();
    int err = files ? open_listed(out, directory, path, index, files)
                    : larder_fail(-ENOMEM, "no memory for an index");
    json_decref(files);
    json_decref(index);
    return err;
}

int larder_weights_open(struct larder_weights **out, const char *directory)
{
    *out = NULL;
    char *single = join_path(directory, "model.safetensors");
    char *index = join_path(directory, "model.safetensors.index.json");
    int err = -ENOMEM;
    if (single && index) {
        if (access(single, F_OK) == 0)
            err = larder_weights_open_file(out, single);
        else if (access(index, F_OK) == 0)
            err = open_index(out, directory, index);
        else
            err = larder_fail(-ENOENT,
                              "%s holds neither model.safetensors nor model.safetensors.index.json",
                              directory);
    }
    larder_free(index);
    larder_free(single);
    return err;
}

size_t larder_weights_count(const struct larder_weights *weights)
{
    return weights->count;
}

const struct larder_weight *larder_weights_at(const struct larder_weights *weights, size_t index)
{
    assert(index < weights->count);
    return &weights->items[index];
}

const struct larder_weight *larder_weights_find(const struct larder_weights *weights,
                                                const char *name)
{
    if (weights->count == 0)
        return NULL;
    struct larder_weight wanted = {.name = name};
    return bsearch(&wanted, weights->items, weights->count, sizeof(wanted), by_name);
}

static bool put_part(EVP_MD_CTX *ctx, const void *bytes, uint64_t count)
{
    return EVP_DigestUpdate(ctx, &count, sizeof(count)) == 1 &&
           EVP_DigestUpdate(ctx, bytes, count) == 1;
}

const char *larder_weights_metadata(const struct larder_weights *weights, const char *name)
{
    return json_string_value(json_object_get(weights->metadata, name));
}

const char *larder_weights_metadata_at(const struct larder_weights *weights, size_t index,
                                       const char **name)
{
    const char *key;
    json_t *value;
    json_object_foreach(weights->metadata, key, value)
    {
        if (index-- > 0)
            continue;
        *name = key;
        return json_string_value(value);
    }
    return NULL;
}

int larder_weights_digest(uint8_t out[32], const struct larder_weights *weights)
{
    static const char label[] = "larder weights 1";
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (!ctx)
        return larder_fail(-ENOMEM, "libcrypto gave no SHA-256 context");
    bool good =
        EVP_DigestInit_ex2(ctx, EVP_sha256(), NULL) == 1 && put_part(ctx, label, sizeof(label) - 1);
    for (size_t i = 0; good && i < weights->count; i++) {
        const struct larder_weight *weight = &weights->items[i];
        uint64_t shape[1 + LARDER_WEIGHT_RANK_MAX] = {weight->rank};
        memcpy(shape + 1, weight->shape, weight->rank * sizeof(*shape));
        good = put_part(ctx, weight->name, strlen(weight->name)) &&
               put_part(ctx, weight->dtype_name, strlen(weight->dtype_name)) &&
               put_part(ctx, shape, (1 + weight->rank) * sizeof(*shape)) &&
               put_part(ctx, weight->data, weight->bytes);
    }
    good = good && EVP_DigestFinal_ex(ctx, out, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    return good ? 0 : larder_fail(-EIO, "SHA-256 of libcrypto failed");
}
