/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h - what the fuzz targets share. Each fuzz_NAME.c has one function that takes bytes from
 * anywhere and asserts what must hold whatever they are. libFuzzer calls it (preset `fuzz`,
 * tests/fuzz/run); in every other build replay.c calls it with the files of corpus/NAME, as a test.
 */
#ifndef LARDER_TESTS_FUZZ_H
#define LARDER_TESTS_FUZZ_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* A copy in memory of exactly this size, so that the address sanitizer sees what is read behind it;
 * free() it. Aligned to 16. */
static inline void *fuzz_copy(const void *data, size_t bytes)
{
    void *copy = calloc(1, bytes ? bytes : 1);
    assert(copy);
    if (bytes > 0)
        memcpy(copy, data, bytes);
    return copy;
}

/* Reads every byte; the sum keeps the compiler from leaving that out. */
static inline uint64_t fuzz_touch(const void *data, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i++)
        sum = sum * 31 + ((const volatile uint8_t *)data)[i];
    return sum;
}

#endif
