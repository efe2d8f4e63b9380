/* SPDX-License-Identifier: Apache-2.0 */
/* number_scene.h - made-up KV with loud channels, and one section of it through a recipe. What goes
 * wrong fails the test. */
#ifndef LARDER_TESTS_CODEC_NUMBER_SCENE_H
#define LARDER_TESTS_CODEC_NUMBER_SCENE_H

#include <stdint.h>

#include "base/record.h"
#include "codec/codec.h"

/* A block and everything that encoding and decoding one of its sections wants. */
struct scene {
    struct larder_recipe *recipe;
    struct larder_model_desc model;
    struct larder_block block;
    uint32_t section;
    uint64_t count;
    uint64_t planes_bytes;
    uint8_t *planes;
    uint8_t *decoded;
    uint8_t *encoded;
    uint64_t encoded_bytes;
    uint64_t bound;
    void *workspace;
    uint64_t workspace_bytes;
    void *tables;
    float *importance; /* uniform numbers, as if they had come with the PUT */
    float *q_max;
    struct larder_section_error error;
};

/* Random numbers of the tests; scene_open() begins a row of its own. */
uint32_t next_random(void);
float next_normal(void);

/* Three layers; `section` is 2 * layer, and one more for V. */
void scene_open(struct scene *s, const char *text, uint32_t dtype, uint32_t heads, uint32_t dims,
                uint32_t tokens, uint64_t position, uint32_t section);
/* With a profile, which must outlive the scene. */
void scene_open_with(struct scene *s, const struct larder_profile *profile, const char *text,
                     uint32_t dtype, uint32_t heads, uint32_t dims, uint32_t tokens,
                     uint64_t position, uint32_t section);
void scene_close(struct scene *s);
void scene_encode(struct scene *s);
/* From a copy of exactly so many bytes, so that a sanitizer sees what is read behind them. */
int scene_decode(struct scene *s, const uint8_t *from, uint64_t bytes);
/* One number of planes in the model's dtype. */
float element(const struct scene *s, const uint8_t *planes, uint64_t index);
/* Of what was decoded; it must be what encoding said. */
double relative_error(const struct scene *s);
/* Encodes without falling back, decodes, looks at the error. */
void scene_run(struct scene *s);
/* What `text` alone gives for these f32 numbers of the scene's shape. */
void run_alone(float *out, const struct scene *like, const char *text, const float *x);
float *floats_of(uint8_t *planes);
/* f16 of `x` as leaves store it beside numbers of which `most` is the largest. */
float stored_f16(float x, float most);

#endif
