/* SPDX-License-Identifier: Apache-2.0 */
/* make_kv_sample.c - writes kv_sample.bin: KV of a real text from the small model in
 * tests/models/tiny. Not part of the build; `ninja make_kv_sample`, then
 *
 *     make_kv_sample tests/models/tiny tests/models/tiny/heldout.txt tests/codec/kv_sample.bin 1 4
 *
 * The file holds canonical planes (codec/codec.h) and nothing else: for each layer named, K then V,
 * as [kv_head][token][dim] in bf16; KV_SAMPLE_TOKENS tokens: the model's start token, then bytes of
 * the text. The codec's tests read it with the shape in kv_sample.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "kernels/kv_cache.h"
#include "kernels/llama.h"
#include "tests/codec/kv_sample.h"

static void write_planes(FILE *file, const struct larder_kv_cache *cache, uint32_t layer,
                         enum larder_kv kv)
{
    const uint8_t *rows = larder_kv_cache_rows(cache, layer, kv);
    uint64_t token_bytes = kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes;
    size_t head_bytes = KV_SAMPLE_DIMS * larder_dtype_bytes(cache->dtype);
    for (uint32_t head = 0; head < cache->kv_heads; head++) {
        for (uint32_t token = 0; token < cache->count; token++)
            fwrite(rows + token * token_bytes + head * head_bytes, head_bytes, 1, file);
    }
}

int main(int argc, char **argv)
{
    struct larder_device *device = NULL;
    struct larder_llama *model = NULL;
    struct larder_kv_cache *cache = NULL;
    uint8_t text[KV_SAMPLE_TOKENS];
    uint32_t tokens[KV_SAMPLE_TOKENS];
    if (argc < 5) {
        fprintf(stderr, "usage: make_kv_sample MODEL_DIR TEXT OUT LAYER...\n");
        return 2;
    }
    FILE *in = fopen(argv[2], "rb");
    FILE *out = fopen(argv[3], "wb");
    if (!in || !out || fread(text, sizeof(text), 1, in) != 1) {
        perror(in ? argv[3] : argv[2]);
        return 1;
    }
    if (larder_device_open(&device, "cpu", &(struct larder_device_options){.threads = 1}) < 0 ||
        larder_llama_open(&model, device, argv[1]) < 0 ||
        larder_llama_cache_open(model, &cache, KV_SAMPLE_TOKENS, LARDER_BF16) < 0) {
        fprintf(stderr, "make_kv_sample: %s\n", larder_error_message());
        return 1;
    }
    tokens[0] = 256;
    for (size_t i = 1; i < KV_SAMPLE_TOKENS; i++)
        tokens[i] = text[i - 1];
    if (cache->kv_heads != KV_SAMPLE_HEADS || cache->k_dims != KV_SAMPLE_DIMS ||
        larder_llama_forward(model, cache, NULL, LARDER_LOGITS_NONE, tokens, KV_SAMPLE_TOKENS) <
            0) {
        fprintf(stderr, "make_kv_sample: another shape, or: %s\n", larder_error_message());
        return 1;
    }
    for (int i = 4; i < argc; i++) {
        write_planes(out, cache, (uint32_t)atoi(argv[i]), LARDER_K);
        write_planes(out, cache, (uint32_t)atoi(argv[i]), LARDER_V);
    }
    fclose(in);
    return fclose(out) == 0 ? 0 : 1;
}
