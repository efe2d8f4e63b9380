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
    {"kivi8", "KIVI, 8 bits: what KVTuner gives the layers that need it",
     "k{quant bits=8 axis=channel group=32} v{quant bits=8 axis=token group=32}"},
    {"quarot-int4", "QuaRot's rotation, 4 bits, one scale for 16 tokens of a channel",
     "hadamard | quant bits=4 axis=channel group=16 mode=sym"},
    {"quarot-int2", "QuaRot's rotation, 2 bits (three levels)",
     "hadamard | quant bits=2 axis=channel group=16 mode=sym"},
    {"turboquant2", "TurboQuant, 2 bits: rotated rows on the levels of a normal number",
     "hadamard signs=1 | lloyd bits=2"},
    {"turboquant3", "TurboQuant, 3 bits", "hadamard signs=1 | lloyd bits=3"},
    {"turboquant4", "TurboQuant, 4 bits", "hadamard signs=1 | lloyd bits=4"},
    {"itq3", "ITQ3's grid: a rotation, then three levels, five numbers to a byte",
     "hadamard | ternary group=128"},
    {"mxfp4", "4-bit floats with a power of two for 32 channels, rotated within them",
     "hadamard block=32 | fp4"},
    {"fp8-e4m3", "8-bit floats, a scale for each token", "fp8 format=e4m3"},
    {"fp8-e5m2", "8-bit floats with a wider range", "fp8 format=e5m2"},
    {"bfp4", "block floating point: 4 bits, an exponent for 32 channels; K not sorted",
     "bfp mantissa=4 block=32"},
    {"bfp4-ksort", "the same, K's channels sorted by the profile",
     "k{reorder by=bfp | bfp mantissa=4 block=32} v{bfp mantissa=4 block=32}"},
};

const uint32_t recipe_preset_count = LARDER_COUNT_OF(recipe_presets);
