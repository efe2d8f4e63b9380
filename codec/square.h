/* SPDX-License-Identifier: Apache-2.0 */
/* square.h - sixteen runs of sixteen bytes turned over: channels as they are coded become rows of
 * tokens.
 *
 * Threads: a pure function over the caller's memory.
 */
#ifndef LARDER_CODEC_SQUARE_H
#define LARDER_CODEC_SQUARE_H

#include <stdint.h>
#include <string.h>

#define SQUARE_BYTES 16u

/* Never an argument or a result: how those are passed depends on the machine. */
typedef uint8_t square_row __attribute__((vector_size(SQUARE_BYTES)));

/* out[i * row_bytes + j] = runs[j][i]. Interleaving the first half of the rows with the second four
 * times is turning them over. */
static inline void square_turn(uint8_t *out, uint64_t row_bytes,
                               const uint8_t *const runs[SQUARE_BYTES])
{
    square_row rows[SQUARE_BYTES];
    square_row next[SQUARE_BYTES];
    for (uint32_t i = 0; i < SQUARE_BYTES; i++)
        memcpy(&rows[i], runs[i], sizeof(rows[i]));
    for (int round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < SQUARE_BYTES / 2; i++) {
            next[2 * i] = __builtin_shufflevector(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19,
                                                  4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(rows, next, sizeof(rows));
    }
    for (uint64_t i = 0; i < SQUARE_BYTES; i++)
        memcpy(out + i * row_bytes, &rows[i], sizeof(rows[i]));
}

#endif
