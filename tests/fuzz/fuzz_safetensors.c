/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   any file is a set of tensors within it or LARDER_EFORMAT with a message.
 * Input:  a .safetensors file, which lies in memory. */
#include "kernels/safetensors.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "tests/fuzz/fuzz.h"

static void check_tensors(const struct larder_weights *weights, size_t file_bytes)
{
    uint64_t all = 0;
    const char *name = NULL;
    for (size_t i = 0; i < larder_weights_count(weights); i++) {
        const struct larder_weight *weight = larder_weights_at(weights, i);
        assert(!name || strcmp(name, weight->name) < 0);
        name = weight->name;
        assert(larder_weights_find(weights, name) == weight);
        assert(weight->rank <= LARDER_WEIGHT_RANK_MAX && weight->dtype_name[0]);
        all += weight->bytes;
        assert(all <= file_bytes);
        fuzz_touch(weight->data, weight->bytes);
    }
    assert(!larder_weights_find(weights, "\1 no such name"));
    uint8_t digest[32], again[32];
    assert(larder_weights_digest(digest, weights) == 0);
    assert(larder_weights_digest(again, weights) == 0);
    assert(memcmp(digest, again, sizeof(digest)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    int fd = memfd_create("fuzz.safetensors", MFD_CLOEXEC);
    assert(fd >= 0);
    if (bytes > 0)
        assert(write(fd, data, bytes) == (ssize_t)bytes);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    struct larder_weights *weights;
    int err = larder_weights_open_file(&weights, path);
    close(fd);
    assert(err == 0 || err == LARDER_EFORMAT);
    if (err == 0)
        check_tensors(weights, bytes);
    else
        assert(!weights && larder_error_message()[0]);
    larder_weights_close(weights);
    return 0;
}
