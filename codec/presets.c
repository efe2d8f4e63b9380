/* SPDX-License-Identifier: Apache-2.0 */
/* presets.c - names for recipes; docs/CODECS.md says what each follows and where it differs. */
#include "base/bytes.h"
#include "codec/recipe_tree.h"

/* CacheGen's quantizer of 32, 16 and 12 bins, and the same of differences to 8-bit anchors. */
#define VECTORWISE(levels) "{quant levels=" #levels " axis=token group=0 mode=sym | rans}"
#define ANCHORED(levels)                                                                           \
    "{anchors group=16{quant bits=8 axis=token group=0 mode=sym}" VECTORWISE(levels) "}"
#define CACHEGEN(level)                                                                            \
    "choose map=cachegen" #level VECTORWISE(31) VECTORWISE(15) VECTORWISE(11) ANCHORED(31)         \
        ANCHORED(15) ANCHORED(11)

const struct recipe_preset recipe_presets[] = {
    {"raw", "as the engine computed it, not compressed", "plain"},
    {"exact", "bit-exact and smaller: byte planes, Huffman-coded exponents", "byteplanes"},
    {"larder", "the house recipe: a basis from the model's profile, one step, entropy-coded",
     "sinks tokens=1{rope-off | klt | steps kl=0.01}"},
    {"larder-high", "the house recipe, nearer to raw",
     "sinks tokens=1{rope-off | klt | steps kl=0.0025}"},
    {"larder-small", "the house recipe, smaller", "sinks tokens=1{rope-off | klt | steps kl=0.04}"},
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
    {"turboquant2.5", "TurboQuant, 3 bits for the channels of the widest range, 2 for the others",
     "split by=channels{hadamard signs=1 | lloyd bits=3}{hadamard signs=2 | lloyd bits=2}"},
    {"turboquant3", "TurboQuant, 3 bits", "hadamard signs=1 | lloyd bits=3"},
    {"turboquant3.5", "TurboQuant, 4 bits for the channels of the widest range, 3 for the others",
     "split by=channels{hadamard signs=1 | lloyd bits=4}{hadamard signs=2 | lloyd bits=3}"},
    {"turboquant4", "TurboQuant, 4 bits", "hadamard signs=1 | lloyd bits=4"},
    {"turboquant2-prod",
     "TurboQuant for inner products: of K's 2 bits one is a sketch of the error",
     "k{hadamard signs=1 | residual{lloyd bits=1}{qjl}} "
     "v{hadamard signs=1 | lloyd bits=2}"},
    {"turboquant2.5-prod", "TurboQuant for inner products, 3 and 2 bits",
     "k{split by=channels{hadamard signs=1 | residual{lloyd bits=2}{qjl}}"
     "{hadamard signs=2 | residual{lloyd bits=1}{qjl}}} "
     "v{split by=channels{hadamard signs=1 | lloyd bits=3}{hadamard signs=2 | lloyd bits=2}}"},
    {"turboquant3-prod", "TurboQuant for inner products, 3 bits",
     "k{hadamard signs=1 | residual{lloyd bits=2}{qjl}} "
     "v{hadamard signs=1 | lloyd bits=3}"},
    {"turboquant3.5-prod", "TurboQuant for inner products, 4 and 3 bits",
     "k{split by=channels{hadamard signs=1 | residual{lloyd bits=3}{qjl}}"
     "{hadamard signs=2 | residual{lloyd bits=2}{qjl}}} "
     "v{split by=channels{hadamard signs=1 | lloyd bits=4}{hadamard signs=2 | lloyd bits=3}}"},
    {"turboquant4-prod", "TurboQuant for inner products, 4 bits",
     "k{hadamard signs=1 | residual{lloyd bits=3}{qjl}} "
     "v{hadamard signs=1 | lloyd bits=4}"},
    {"itq3", "ITQ3's grid: a rotation, then three levels, five numbers to a byte",
     "hadamard | ternary group=128"},
    {"vidkv", "VidKV: K in 2 bits and in 1 behind a Fourier transform, V in three levels",
     "k{split by=channels{quant bits=2 axis=channel group=32}"
     "{rfft | lloyd bits=1 axis=channel group=32 scale=fit}} "
     "v{ternary axis=channel group=32 scale=mean}"},
    {"vidkv-stp", "VidKV, V of the most important 20 % of the tokens in 2 bits",
     "k{split by=channels{quant bits=2 axis=channel group=32}"
     "{rfft | lloyd bits=1 axis=channel group=32 scale=fit}} "
     "v{split by=class share=.2{quant bits=2 axis=channel group=32}"
     "{ternary axis=channel group=32 scale=mean}}"},
    {"mxfp4", "4-bit floats with a power of two for 32 channels, rotated within them",
     "hadamard block=32 | fp4"},
    {"fp8-e4m3", "8-bit floats, a scale for each token", "fp8 format=e4m3"},
    {"fp8-e5m2", "8-bit floats with a wider range", "fp8 format=e5m2"},
    {"bfp4", "block floating point: 4 bits, an exponent for 32 channels; K not sorted",
     "bfp mantissa=4 block=32"},
    {"bfp4-ksort", "the same, K's channels sorted by the profile",
     "k{reorder by=bfp | bfp mantissa=4 block=32} v{bfp mantissa=4 block=32}"},
    {"gear2", "GEAR, 2 bits: 2 % outliers and a product of rank 4 for the rest of the error",
     "k{lowrank rank=4{outliers share=.02 axis=channel fill=mean{"
     "quant bits=2 axis=channel group=64}}} "
     "v{lowrank rank=4{outliers share=.02 axis=token fill=mean{"
     "quant bits=2 axis=token group=64}}}"},
    {"gear4", "GEAR, 4 bits",
     "k{lowrank rank=4{outliers share=.02 axis=channel fill=mean{"
     "quant bits=4 axis=channel group=64}}} "
     "v{lowrank rank=4{outliers share=.02 axis=token fill=mean{"
     "quant bits=4 axis=token group=64}}}"},
    {"gear-l2", "GEAR without outliers, 2 bits",
     "k{lowrank rank=4{quant bits=2 axis=channel group=64}} "
     "v{lowrank rank=4{quant bits=2 axis=token group=64}}"},
    {"gear-l4", "GEAR without outliers, 4 bits",
     "k{lowrank rank=4{quant bits=4 axis=channel group=64}} "
     "v{lowrank rank=4{quant bits=4 axis=token group=64}}"},
    {"zipcache", "ZipCache: the more important 60 % of the tokens in 4 bits, the others in 2",
     "k{split by=class share=.6{quant bits=4 axis=channel group=0}"
     "{quant bits=2 axis=channel group=0}} "
     "v{split by=class share=.6{normalize | quant bits=4 axis=token group=0}"
     "{normalize | quant bits=2 axis=token group=0}}"},
    {"mikv-16-2",
     "MiKV: the most important 20 % of a head's tokens as they are, the others in 2 bits",
     "balance | split by=class heads=each share=.2{keep}{quant bits=2 parts=2}"},
    {"mikv-16-3", "MiKV, 20 % as they are, the others in 3 bits",
     "balance | split by=class heads=each share=.2{keep}{quant bits=3 parts=2}"},
    {"mikv-8-2", "MiKV, 20 % in 8 bits, the others in 2",
     "balance | split by=class heads=each share=.2{quant bits=8 parts=2}{quant bits=2 parts=2}"},
    {"mikv-4-2", "MiKV, 20 % in 4 bits, the others in 2",
     "balance | split by=class heads=each share=.2{quant bits=4 parts=2}{quant bits=2 parts=2}"},
    {"prq-int4", "4 bits, and 4 more for what those got wrong",
     "residual{quant bits=4 axis=channel group=16 mode=sym}"
     "{quant bits=4 axis=channel group=16 mode=sym}"},
    {"kvquant2", "KVQuant, 2 bits and 1 % outliers, the first token as it is",
     "k{sinks tokens=1{rope-off | outliers by=thresholds axis=channel{"
     "codebook bits=2 axis=channel norm=on}}} "
     "v{sinks tokens=1{outliers share=.01 axis=token{codebook bits=2 axis=token norm=on}}}"},
    {"kvquant3", "KVQuant, 3 bits and 1 % outliers",
     "k{sinks tokens=1{rope-off | outliers by=thresholds axis=channel{"
     "codebook bits=3 axis=channel}}} "
     "v{sinks tokens=1{outliers share=.01 axis=token{codebook bits=3 axis=token}}}"},
    {"kvquant4", "KVQuant, 4 bits and 1 % outliers",
     "k{sinks tokens=1{rope-off | outliers by=thresholds axis=channel{"
     "codebook bits=4 axis=channel}}} "
     "v{sinks tokens=1{outliers share=.01 axis=token{codebook bits=4 axis=token}}}"},
    {"rotatekv2",
     "RotateKV, 2 bits: channels of four heads turned together, in the profile's order",
     "sinks tokens=4{k{rope-off | hadamard heads=4 | reorder by=rotatekv | join | "
     "quant bits=2 group=128 clip=.8 mode=int} "
     "v{hadamard | join | quant bits=2 group=128 clip=.8 mode=int}}"},
    {"rotatekv3", "RotateKV, 3 bits",
     "sinks tokens=4{k{rope-off | hadamard heads=4 | reorder by=rotatekv | join | "
     "quant bits=3 group=128 mode=int} v{hadamard | join | quant bits=3 group=128 mode=int}}"},
    {"rotatekv4", "RotateKV, 4 bits",
     "sinks tokens=4{k{rope-off | hadamard heads=4 | reorder by=rotatekv | join | "
     "quant bits=4 group=128 mode=int} v{hadamard | join | quant bits=4 group=128 mode=int}}"},
    {"kvtuner", "KVTuner: KIVI in 2, 4 or 8 bits, as the profile's map has it for each layer",
     "choose map=kvtuner{kivi2}{kivi4}{kivi8}"},
    {"cachegen1", "CacheGen, its smallest level: 16 bins for each token, 12 in the last layers",
     CACHEGEN(1)},
    {"cachegen2", "CacheGen: 32 bins for each token in the first layers, then 16", CACHEGEN(2)},
    {"cachegen3", "CacheGen, its finest level: 32 bins for each token", CACHEGEN(3)},
};

const uint32_t recipe_preset_count = LARDER_COUNT_OF(recipe_presets);
