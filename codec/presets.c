/* SPDX-License-Identifier: Apache-2.0 */
/* presets.c - names for recipes; docs/CODECS.md says what each follows and where it differs. */
#include "base/bytes.h"
#include "codec/recipe_tree.h"

const struct recipe_preset recipe_presets[] = {
    {"raw", "as the engine computed it, not compressed", "plain"},
    {"exact", "bit-exact and smaller: byte planes, Huffman-coded exponents", "byteplanes"},
    {"kivi2", "KIVI, 2 bits: K in groups of 32 tokens, V in groups of 32 channels",
     "k{quant bits=2 axis=channel group=32} v{quant bits=2 axis=token group=32}"},
    {"kivi4", "KIVI, 4 bits",
     "k{quant bits=4 axis=channel group=32} v{quant bits=4 axis=token group=32}"},
    {"quarot-int4", "QuaRot's rotation, 4 bits, one scale for 16 tokens of a channel",
     "hadamard | quant bits=4 axis=channel group=16 mode=sym"},
    {"quarot-int2", "QuaRot's rotation, 2 bits (three levels)",
     "hadamard | quant bits=2 axis=channel group=16 mode=sym"},
};

const uint32_t recipe_preset_count = LARDER_COUNT_OF(recipe_presets);
