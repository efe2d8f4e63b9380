/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h - the KV memory of a make-believe engine, in each layout seen in a real one, and KV that
 * depends on all tokens before it, so that a wrong block shows.
 */
#ifndef LARDER_TESTS_CLIENT_ENGINE_H
#define LARDER_TESTS_CLIENT_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/larder.h"

#define ENGINE_LAYERS 3u
#define ENGINE_HEADS  4u
#define ENGINE_DIMS   40u /* rows of f32 end within a cache line */
#define ENGINE_TOKENS 77u /* with room; no multiple of a block or tile */
#define ENGINE_BLOCK  16u /* tokens of an engine's block, where it has blocks */
#define ENGINE_BLOCKS 9u

struct engine {
    struct larder_model_desc desc;
    struct larder_layout layout;
    const char *name;
    void *bases[ENGINE_LAYERS];
    void *v_bases[ENGINE_LAYERS];
    uint32_t table[ENGINE_BLOCKS];
    char *memory;
    size_t bytes;
};

/* Layouts are numbered from 0. */
#define ENGINE_PLAIN 0u
#define ENGINE_PAGED 3u
extern const unsigned engine_layouts;

/* Memory full of noise. */
void engine_open(struct engine *engine, unsigned layout, uint32_t dtype);
void engine_close(struct engine *engine);
void engine_scramble(struct engine *engine);

/* Address of an element by the formula in larder.h. */
char *engine_element(const struct larder_layout *layout, uint32_t layer, uint32_t kind,
                     uint64_t token, uint32_t head, uint32_t dim);

/* Writes the KV of tokens [0, count), as a prefill would. */
void engine_prefill(struct engine *engine, const uint32_t *tokens, size_t count);
/* Is the KV of tokens [first, end) in layers [0, layers) what a prefill writes? */
bool engine_holds(const struct engine *engine, const uint32_t *tokens, size_t first, size_t end,
                  uint32_t layers);

/* The same numbers every time. */
uint32_t engine_random(void);

#endif
