/* SPDX-License-Identifier: Apache-2.0 */
/* kv_sample.h - the shape of kv_sample.bin, which make_kv_sample.c made. */
#ifndef LARDER_TESTS_CODEC_KV_SAMPLE_H
#define LARDER_TESTS_CODEC_KV_SAMPLE_H

#define KV_SAMPLE_LAYERS 2
#define KV_SAMPLE_HEADS  2
#define KV_SAMPLE_TOKENS 256
#define KV_SAMPLE_DIMS   64
#define KV_SAMPLE_BYTES                                                                            \
    (KV_SAMPLE_LAYERS * 2 * KV_SAMPLE_HEADS * KV_SAMPLE_TOKENS * KV_SAMPLE_DIMS * 2)

#endif
