/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/kernels.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"

static const struct larder_backend *const backends[] = {&larder_cpu_backend};

struct larder_tensor larder_matrix(void *data, uint32_t dtype, uint64_t rows, uint64_t columns)
{
    return (struct larder_tensor){
        .data = data, .dtype = dtype, .rank = 2, .shape = {rows, columns}, .stride = {columns, 1}};
}

struct larder_tensor larder_cube(void *data, uint32_t dtype, uint64_t rows, uint64_t heads,
                                 uint64_t dims)
{
    return (struct larder_tensor){.data = data,
                                  .dtype = dtype,
                                  .rank = 3,
                                  .shape = {rows, heads, dims},
                                  .stride = {heads * dims, dims, 1}};
}

int larder_device_open(struct larder_device **out, const char *name,
                       const struct larder_device_options *options)
{
    static const struct larder_device_options defaults;
    *out = NULL;
    for (size_t i = 0; i < LARDER_COUNT_OF(backends); i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i]->open(out, options ? options : &defaults);
    return larder_fail(-EINVAL, "compute backend '%s' is unknown; this build has 'cpu'", name);
}

void larder_device_close(struct larder_device *device)
{
    if (device)
        device->ops->close(device);
}

const char *larder_device_describe(const struct larder_device *device)
{
    return device->ops->describe(device);
}
