/* SPDX-License-Identifier: Apache-2.0 */
/* bytes.h - sizes, alignment, overflow checks, hex.
 * On-disk and wire structs are little-endian and are used in place: a big-endian build is refused.
 */
#ifndef LARDER_BASE_BYTES_H
#define LARDER_BASE_BYTES_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "larder's formats are little-endian");

#define LARDER_PAGE_BYTES 4096u

#define LARDER_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static inline uint64_t larder_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t larder_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* `align` is a power of two; the caller knows that bytes + align does not overflow. */
static inline uint64_t larder_round_up(uint64_t bytes, uint64_t align)
{
    return (bytes + align - 1) & ~(align - 1);
}

/* False on overflow. */
static inline bool larder_mul_u64(uint64_t *out, uint64_t a, uint64_t b)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool larder_add_u64(uint64_t *out, uint64_t a, uint64_t b)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Is all of it zero? For reserved fields. */
bool larder_all_zero(const void *bytes, size_t count);

/* Lower-case hex; out gets 2 * count + 1 bytes. */
void larder_hex(char *out, const void *bytes, size_t count);
/* Reads exactly 2 * count hex digits; -EINVAL otherwise. */
int larder_unhex(void *out, size_t count, const char *text);

/* "786.4 KB", "3.1 GB": powers of 1000; out gets at most 16 bytes. Returns out. */
char *larder_human_bytes(char out[16], uint64_t bytes);

/* Parses "4096", "64K", "2G", "1T" (powers of 1024); -EINVAL with a message. */
int larder_parse_bytes(uint64_t *out, const char *text);
/* "90", "90s", "15m", "12h", "7d": seconds, above 0; -EINVAL with a message. */
int larder_parse_seconds(uint64_t *out, const char *text);

#endif
